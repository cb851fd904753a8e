"""Paths, copies, comparisons of state trees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from learner_core import StateError
from learner_core.state.tree import (
    assert_same_structure,
    copy_tree,
    diff,
    flatten,
    join,
    mismatches,
    unflatten,
)

from support.states import assert_identical, nan, sample_tree


def test_paths_look_like_the_names_they_are_made_of():
    tree = {"rl_module": {"default_policy": {"pi.0.weight": 1, "pi.0.bias": 2}}, "list": [3, {"a": 4}], "empty": {}}
    assert flatten(tree) == {
        "rl_module/default_policy/pi.0.weight": 1,
        "rl_module/default_policy/pi.0.bias": 2,
        "list/[0]": 3,
        "list/[1]/a": 4,
        "empty": {},
    }


def test_awkward_keys_keep_paths_unambiguous():
    tree = {"a/b": 1, "a": {"b": 2}, "~": 3, "": 4, 3: 5, "3": 6, "#3": 7, "[3]": 8, -1: 9, "~1": 10}
    flat = flatten(tree)
    assert list(flat) == ["a~1b", "a/b", "~0", "~4", "#3", "3", "~33", "~23]", "#-1", "~01"]
    assert_identical(tree, unflatten(flat))


def test_a_leaf_alone_is_a_tree():
    assert flatten(5) == {"": 5}
    assert unflatten({"": 5}) == 5
    assert unflatten({}) == {}


_keys = st.one_of(st.text(alphabet="ab/~#[]01 é", max_size=4), st.integers(-3, 3))
_trees = st.recursive(
    st.integers() | st.none() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=25,
)


@given(_trees)
def test_unflatten_undoes_flatten(tree):
    assert_identical(tree, unflatten(flatten(tree)))


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"a": 1, "a/b": 2}, "a/b: this path runs through a leaf"),
        ({"a": {}, "a/b": 2}, "a/b: this path runs through a leaf"),
        ({"a/b": 2, "a": 1}, "a: this path is given twice, or is both a leaf and a container"),
        ({"a/[0]": 1, "a/b": 2}, "a/b: a list index and a dict key stand side by side here"),
        ({"a/[0]": 1, "a/[2]": 2}, "a list has the indices [0, 2], not 0 to 1"),
        ({"a/[x]": 1}, "a/[x]: '[x]' is neither a list index [3] nor an int key #3"),
        ({"": 1, "a": 2}, "the path '' is the whole tree; no other path can stand beside it"),
    ],
)
def test_contradictory_paths_are_refused(flat, message):
    with pytest.raises(StateError) as caught:
        unflatten(flat)
    assert str(caught.value) == message


def test_a_copy_shares_nothing(rng):
    tree = sample_tree(rng)
    copy = copy_tree(tree)
    before = copy_tree(tree)
    for leaf in flatten(copy).values():
        if isinstance(leaf, np.ndarray):
            assert leaf.flags.writeable
            leaf.reshape(-1).view(np.uint8)[...] ^= 1
    copy["plain"].append(1)
    assert not diff(before, tree)
    assert len(tree["plain"]) == len(before["plain"])


@pytest.mark.parametrize("leaf", [(1, 2), object(), {1, 2}, np.array([object()])])
def test_what_cannot_be_copied_for_sure_is_refused_by_path(leaf):
    with pytest.raises(StateError, match=r"^a/\[1\]: "):
        copy_tree({"a": [0, leaf]})


def test_a_mismatch_names_the_path():
    expected = {"rl_module": {"default_policy": {"pi.0.weight": np.zeros((64, 4), np.float32)}}}
    got = {"rl_module": {"default_policy": {"pi.0.weight": np.zeros((64, 5), np.float32)}}}
    with pytest.raises(StateError) as caught:
        assert_same_structure(expected, got)
    path = "rl_module/default_policy/pi.0.weight"
    assert str(caught.value) == f"{path}: expected float32 (64, 4), got float32 (64, 5)"
    assert caught.value.path == path


W = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("expected", "got", "found"),
    [
        ({"a": W}, {"a": W.astype(">f4")}, []),
        ({"a": W}, {"a": W.astype(np.float64)}, [("a", "expected float32 (2, 3), got float64 (2, 3)")]),
        ({"a": W}, {}, [("a", "expected float32 (2, 3), got nothing")]),
        ({}, {"a": W}, [("a", "expected nothing, got float32 (2, 3)")]),
        (
            {"kl_coeff": 0.2},
            {"kl_coef": 0.2},
            [
                ("kl_coeff", "expected float, got nothing. Did you mean 'kl_coef'?"),
                ("kl_coef", "expected nothing, got float"),
            ],
        ),
        ({"a": 0.5}, {"a": 1}, []),
        ({"a": 0.5}, {"a": np.float32(1)}, []),
        ({"a": None}, {"a": 1}, []),
        ({"a": 1}, {"a": None}, []),
        ({"a": "x"}, {"a": 1}, [("a", "expected str, got int")]),
        ({"a": 1}, {"a": W}, [("a", "expected int, got float32 (2, 3)")]),
        ({"a": None}, {"a": W}, [("a", "expected None, got float32 (2, 3)")]),
        ({"a": {"b": 1}}, {"a": 1}, [("a", "expected dict of 1, got int")]),
        ({"a": [1, 2]}, {"a": [1]}, [("a", "expected list of 2, got list of 1")]),
        ({"a": [1, "x"]}, {"a": [1, 2]}, [("a/[1]", "expected str, got int")]),
    ],
)
def test_mismatches(expected, got, found):
    assert list(mismatches(expected, got)) == found


def test_the_prefix_of_a_path_and_the_number_of_mismatches_are_told():
    with pytest.raises(StateError, match=r"^rl_module/a: expected int, got nothing.* \(and 1 more\)$"):
        assert_same_structure({"a": 1, "b": 2}, {}, path="rl_module")


def test_diff_sees_every_bit():
    first = {"same": W, "w": np.array([1, 2, 3], np.float32), "zero": 0.0, "nan": nan(1), "gone": 1, "type": 1}
    second = {"same": W, "w": np.array([1, 2.5, 3], np.float32), "zero": -0.0, "nan": nan(2), "type": "1", "new": W}
    assert [(d.path, d.kind, d.message) for d in diff(first, second)] == [
        ("w", "value", "1 of 3 elements differ, by at most 0.5"),
        ("zero", "value", "0.0 against -0.0"),
        ("nan", "value", "nan against nan"),
        ("gone", "missing", "int only in the first"),
        ("type", "type", "int against str"),
        ("new", "extra", "float32 (2, 3) only in the second"),
    ]


def test_diff_of_arrays_with_nan_and_infinity():
    first = {"a": np.array([np.nan, 1, np.inf]), "b": np.array([1 + 1j])}
    assert not diff(first, copy_tree(first))
    second = {"a": np.array([0, 1.25, np.inf]), "b": np.array([1 + 2j])}
    assert [d.message for d in diff(first, second)] == [
        "2 of 3 elements differ, by at most 0.25; some are not finite",
        "1 of 1 elements differ, by at most 1",
    ]


def test_join_is_what_flatten_does():
    assert join("a", "b/c") == "a/b~1c"
    assert join("", 3) == "#3"
    assert join("a", 3, index=True) == "a/[3]"
