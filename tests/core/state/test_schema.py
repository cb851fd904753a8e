"""Schemas of states: what fits passes, what does not is refused by path, in words, whatever its type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner_core.errors import StateError
from learner_core.state.kinds import kind_of, refuse_other_kinds
from learner_core.state.schema import (
    COUNT,
    FLAG,
    NAME,
    NUMBER,
    PLAIN,
    SEED,
    TEXT,
    Also,
    Array,
    Int,
    Items,
    ListOf,
    MapOf,
    Nullable,
    OneOf,
    Real,
    Record,
    Schema,
    reason_of,
    refuse,
    under,
)

#: Nothing of these is a number, an array of numbers, a text or a container of the kinds below.
STRANGERS: list[Any] = [object(), {1, 2}, b"x", 1j, np.datetime64("2020"), lambda: 0, np.zeros(2, "M8[s]")]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (COUNT, [0, 7, 2**52 - 1, np.int8(3), np.uint64(9)], [-1, 2**52, 2**63, 2**70, 0.0, 1.0, True, "3", None, [1]]),
        (SEED, [0, 2**127], [-1, 2**128, 0.5]),
        (Int(2, 4), [2, 4], [1, 5]),
        (NUMBER, [0, -1.5, np.float32(2), 2**1000], [float("nan"), float("inf"), -np.inf, 2**5000, True, "1", None]),
        (Real(0.0, 1.0, below=True), [0, 0.999], [-1e-9, 1.0, 2]),
        (FLAG, [True, np.False_], [0, 1, None, "True"]),
        (TEXT, ["", "x"], [b"x", 1, None, ["x"]]),
        (NAME, ["x"], ["", 1]),
        (OneOf((1,)), [1, np.int64(1)], [True, 1.0, "1", np.ones(1), [1], None]),
        (OneOf(("a", None)), ["a", None], ["b", 0, np.array("a")]),
        (Nullable(COUNT), [None, 1], [-1, "x"]),
        (ListOf(COUNT), [[], [1, 2], (3,)], [[-1], "12", {0: 1}, None, np.arange(3)]),
        (ListOf(COUNT, 2), [[1, 2]], [[], [1], [1, 2, 3]]),
        (Items([TEXT, COUNT], optional=1), [["a"], ["a", 1]], [[], [1], ["a", 1, 2], {"a": 1}, None]),
        (MapOf(COUNT), [{}, {"a": 1}], [{"a": -1}, {1: 1}, [1], None, 3]),
        (MapOf(COUNT, known=("a",)), [{}, {"a": 1}], [{"b": 1}]),
        (Record({"a": COUNT, "b": TEXT}, optional=("b",)), [{"a": 1}, {"a": 1, "b": ""}], [{}, {"b": ""}, {"c": 2}]),
        (Record({"a": COUNT}, is_open=True), [{"a": 1, "c": object()}], [{"c": 1}, {"a": -1}, []]),
        (PLAIN, [None, {"a": [1, {2: b"x"}, np.ones(2)]}], [{(): 1}, {"a": (1,)}, [object()], np.array([object()])]),
    ],
)  # fmt: skip
def test_values(schema: Schema, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        schema.check(value, "here")
    for value in [*bad, *([] if schema is PLAIN else STRANGERS)]:
        with pytest.raises(StateError) as caught:
            schema.check(value, "here")
        assert (caught.value.path or "").startswith("here") and len(str(caught.value)) < 600
    assert schema.expected


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (Array((2, None)), [np.ones((2, 3)), np.zeros((2, 0), np.int8), [[1], [2]]], [np.ones(2), np.ones((1, 2))]),
        (Array(()), [1.0, np.float32(1), np.array(2)], [np.ones(1), [1], np.nan]),
        (Array((1,)), [[1], [True], np.array([1], ">f8")], [[np.nan], [np.inf], ["1"], [None], [[1], [1, 2]], {}]),
        (Array((1,), finite=False), [[np.nan], [-np.inf]], [[1j]]),
        (Array((1,), allow_inf=True, least=0.0), [[np.inf], [0]], [[np.nan], [-np.inf], [-1e-9]]),
        (Array((1,), np.float32), [[1e38], [2**31]], [[1e300], np.array([np.nan])]),
        (Array((1,), np.uint8), [[255], [True]], [[256], [-1], [1.0]]),
        (Array((1,), np.bool_), [[True]], [[1], [0.0]]),
        (Array((1,), np.int64, least=0), [[2**62]], [[-1], np.array([2**64 - 1], np.uint64)]),
        (Array((1,), np.float32, exactly=(np.float32,)), [np.ones(1, "<f4"), np.ones(1, ">f4")], [np.ones(1), [1.0]]),
        (Array(None, None), [np.ones(3), 1, [[1, 2]]], ["x", None, {}, b"12"]),
    ],
)  # fmt: skip
def test_arrays(schema: Array, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        schema.check(value, "here")
    for value in [*bad, *STRANGERS]:
        with pytest.raises(StateError, match=r"^here: expected"):
            schema.check(value, "here")


def test_one_nan_in_many_megabytes() -> None:
    array = np.ones((1 << 20, 3), np.float32)
    Array((1 << 20, 3), np.float32).check(array, "x")
    array[-1, -1] = np.nan
    with pytest.raises(StateError, match="x: expected finite values, got nan in 1 place"):
        Array((1 << 20, 3), np.float32).check(array, "x")
    array[-1, -1] = np.finfo(np.float32).max  # the sum of it and of its like is infinite, the values are not
    array[-2, -1] = np.finfo(np.float32).max
    Array((1 << 20, 3), np.float32).check(array, "x")


def test_the_message_says_path_expectation_and_remedy() -> None:
    tree = Record({"a/b": ListOf(Record({"count": COUNT}))})
    with pytest.raises(StateError) as caught:
        tree.check({"a/b": [{"count": 1}, {"count": -4}]}, "top")
    assert caught.value.path == "top/a~1b/[1]/count"
    assert str(caught.value) == (
        "top/a~1b/[1]/count: expected a non-negative int below 2**52, got -4: "
        "the state was changed or damaged; take an earlier one"
    )
    assert reason_of(caught.value) == "expected a non-negative int below 2**52, got -4"
    with pytest.raises(StateError, match=r"^cuont: unknown entry\. Did you mean 'count'\?"):
        Record({"count": COUNT}).check({"count": 1, "cuont": 1}, "")


def test_rules_come_after_the_fields() -> None:
    def rule(value: Any, path: str) -> None:
        if value["low"] > value["high"]:
            refuse(path, "low below high", "not")

    schema = Record({"low": COUNT, "high": COUNT}, rule=rule)
    schema.check({"low": 1, "high": 2}, "")
    with pytest.raises(StateError, match=r"^p: expected low below high"):
        schema.check({"low": 3, "high": 2}, "p")
    with pytest.raises(StateError, match=r"^p/low: expected a non-negative int"):
        schema.check({"low": "x", "high": 2}, "p")
    with pytest.raises(StateError, match=r"^p: expected low below high"):
        Also(MapOf(COUNT), rule).check({"low": 3, "high": 2}, "p")


def test_a_part_stands_in_a_larger_state() -> None:
    with pytest.raises(StateError, match=r"^learner/x/y: expected a str, got 1") as caught, under("learner/x"):
        TEXT.check(1, "y")
    assert caught.value.path == "learner/x/y"
    with pytest.raises(StateError, match=r"^learner: expected a str") as caught, under("learner"):
        TEXT.check(1, "")
    assert caught.value.path == "learner"


def test_kinds() -> None:
    arrays = {"w": np.ones(2)}
    for tree, kind in (
        ({"format": "learner_core/algorithm"}, "a checkpoint of an Algorithm"),
        ({"format": "learner_core/recording"}, "a recording"),
        ({"learner": {}, "algorithm": {}}, "the state of an Algorithm"),
        ({"rl_module": {}}, "a learner's state"),
        ({"local": {}, "runners": []}, "the state of environment runners"),
        ({"m": arrays, "n": arrays}, "weights"),
        (arrays, "weights of one module"),
        ({}, ""), ({"format": ["x"]}, ""), ({"a": 1}, ""), (None, ""), ([], ""), ({1: 2}, ""), ({"a": {}}, ""),
    ):  # fmt: skip
        assert kind_of(tree) == kind
        refuse_other_kinds(tree, kind)
    with pytest.raises(StateError, match=r"^f is weights, not a learner's state: set_module_state of a Learner"):
        refuse_other_kinds({"m": arrays}, "a learner's state", where="f")
