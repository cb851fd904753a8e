"""What ranks were given, in words that are equal where the values are, and where they first differ."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from learner_core.group.agreement import difference_of, words_of


def _first(agent: str) -> str:
    return agent


def _second(agent: str) -> str:
    return agent


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"gamma": 0.5}, {"gamma": 0.25}, "gamma: 0.5 on rank 0, 0.25 on rank 1"),
        ({"gamma": 0.5}, {}, "gamma: 0.5 on rank 0, nothing on rank 1"),
        ({"lr": [[0, 1.0]]}, {"lr": [[0, 1.0], [5, 0.0]]}, "lr: 1 values on rank 0, 2 values on rank 1"),
        ({"m": {"w": np.zeros(3)}}, {"m": {"w": np.zeros(3, np.float32)}}, "m/w: float64[3] "),
        ({"m": np.array([0.0, 1.0])}, {"m": np.array([1.0, 0.0])}, "m: float64[2] "),
        ({"m": np.array(2.0)}, {"m": np.array(3.0)}, "m: float64[] "),
        ({"f": _first}, {"f": _second}, "f: "),
        ("a", "b", "it: 'a' on rank 0, 'b' on rank 1"),
    ],
)
def test_the_first_difference_is_named(one: Any, other: Any, said: str) -> None:
    assert difference_of([words_of(one), words_of(one), words_of(one)]) == ""
    assert difference_of([words_of(one), words_of(other)]).startswith(said)


def test_objects_that_differ_by_their_address_alone_are_the_same() -> None:
    given = [{"f": functools.partial(_first), "o": object()} for _ in range(2)]
    assert difference_of([words_of(one) for one in given]) == ""


def test_what_is_nested_without_end_has_an_end() -> None:
    assert len(words_of(_deep(100_000))) == 33
