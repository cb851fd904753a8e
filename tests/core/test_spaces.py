"""Spaces: flattening against gymnasium's own, columns, checks of actions, plain data."""

from __future__ import annotations

import gymnasium as gym
import msgpack
import numpy as np
import pytest

from learner_core import BatchError, SpaceError, StateError, numpy_xp, spaces

Box, Discrete, Dict, Tuple = gym.spaces.Box, gym.spaces.Discrete, gym.spaces.Dict, gym.spaces.Tuple
MultiBinary, MultiDiscrete = gym.spaces.MultiBinary, gym.spaces.MultiDiscrete

SPACES = [
    Box(-1, 1, (3,), np.float32),
    Box(-np.inf, np.inf, (2, 2), np.float64),
    Box(0, 255, (4, 4, 3), np.uint8),
    Box(np.array([0, -1], np.float32), np.array([1, 2], np.float32)),
    Box(0, 1, (), np.float32),
    Discrete(5),
    Discrete(3, start=-1),
    MultiDiscrete([2, 3]),
    MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]),
    MultiBinary(4),
    MultiBinary((2, 3)),
    Dict(position=Box(-1, 1, (2,)), mode=Discrete(3), inner=Dict(flags=MultiBinary(2))),
    Tuple([Discrete(2), Box(0, 1, (1,))]),
]


def _batch(space: gym.Space, rows: int) -> object:
    """What a vector environment would return."""
    space.seed(0)
    samples = [space.sample() for _ in range(rows)]
    return gym.vector.utils.concatenate(space, samples, gym.vector.utils.create_empty_array(space, rows)), samples


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_encoding_agrees_with_gymnasium_flatten(space: gym.Space) -> None:
    batched, samples = _batch(space, 7)
    expected = np.stack([np.ravel(gym.spaces.flatten(space, sample)) for sample in samples])
    encoded = spaces.encode(numpy_xp, space, spaces.to_columns(space, batched))
    np.testing.assert_array_equal(encoded, expected)
    assert encoded.shape[-1] == spaces.encoded_size(space) == gym.spaces.flatdim(space)
    assert encoded.dtype == (np.float64 if getattr(space, "dtype", None) == np.float64 else np.float32)


def test_encoding_keeps_leading_axes_and_takes_a_dtype() -> None:
    obs = {"a": np.arange(12, dtype=np.float32).reshape(2, 3, 2), "b": np.array([[0, 1, 2], [2, 1, 0]])}
    space = Dict(a=Box(-99, 99, (2,)), b=Discrete(3))
    encoded = spaces.encode(numpy_xp, space, obs, numpy_xp.float64)
    assert encoded.shape == (2, 3, 5) and encoded.dtype == np.float64
    np.testing.assert_array_equal(encoded[1, 0], [6, 7, 0, 0, 1])


def test_encoding_names_what_is_missing() -> None:
    encoder = spaces.SpaceEncoder(Dict(a=Dict(b=Box(0, 1, (2,)))))
    with pytest.raises(SpaceError, match="'a/b' is missing"):
        encoder(numpy_xp, {"a": {}})
    with pytest.raises(SpaceError, match="shape"):
        encoder(numpy_xp, {"a": {"b": np.zeros((4, 3), np.float32)}})


@pytest.mark.parametrize("space", [gym.spaces.Text(3), Dict(a=gym.spaces.Sequence(Discrete(2)))], ids=str)
def test_other_spaces_are_refused(space: gym.Space) -> None:
    with pytest.raises(SpaceError, match="expected Box, Discrete"):
        spaces.leaves(space)


def test_a_space_without_elements_is_refused() -> None:
    with pytest.raises(SpaceError, match="no elements"):
        spaces.encoded_size(Box(0, 1, (0,)))


def test_leaves_have_paths_shapes_and_dtypes() -> None:
    space = Dict(b=Box(0, 255, (4, 4, 3), np.uint8), a=Tuple([Discrete(2), MultiBinary(3)]))
    assert spaces.leaves(space) == {
        ("a", "0"): ((), np.dtype("int64")),
        ("a", "1"): ((3,), np.dtype("int8")),
        ("b",): ((4, 4, 3), np.dtype("uint8")),
    }
    assert list(spaces.leaves(Discrete(2))) == [()]


def test_columns_have_the_spaces_structure() -> None:
    space = Dict(a=Box(0, 1, (2,)), t=Tuple([Discrete(2), Discrete(3)]))
    columns = spaces.to_columns(space, {"a": [[0.5, 1]], "t": ([1], [2])})
    assert columns["a"].dtype == np.float32 and columns["t"]["1"].dtype == np.int64
    with pytest.raises(SpaceError, match="keys"):
        spaces.to_columns(space, {"a": [[0.5, 1]]})
    with pytest.raises(SpaceError, match="tuple of 2"):
        spaces.to_columns(space, {"a": [[0.5, 1]], "t": (1,)})


@pytest.mark.parametrize(
    ("space", "good", "bad"),
    [
        (Discrete(3), [0, 1, 2], [0, 3, 1]),
        (Discrete(3, start=1), [1, 2, 3], [1, 0, 3]),
        (Discrete(3), [0, 1, 2], [0, -1, 0]),
        (Discrete(3), [0.0, 1.0, 2.0], [0.0, 0.5, 1.0]),
        (MultiDiscrete([2, 3]), [[1, 2], [0, 0]], [[1, 2], [2, 0]]),
        (MultiBinary(2), [[0, 1], [1, 1]], [[0, 1], [2, 1]]),
        (Box(-1, 1, (1,)), [[0.5], [7.0]], [[0.5], [np.nan]]),
    ],
    ids=str,
)
def test_actions_outside_their_space_are_refused(space: gym.Space, good: list, bad: list) -> None:
    spaces.check_actions(space, np.array(good))
    with pytest.raises(BatchError, match=r"row 1 is .* \(1 of"):
        spaces.check_actions(space, np.array(bad))


def test_a_boxs_bounds_are_held_on_request() -> None:
    box = Box(-1, 1, (1,))
    spaces.check_actions(box, np.array([[-1.0000001], [1.0]]), bounds=True)
    with pytest.raises(BatchError, match="row 0"):
        spaces.check_actions(box, np.array([[1.1]]), bounds=True)
    spaces.check_actions(Box(-np.inf, np.inf, (1,)), np.array([[1e30]]), bounds=True)
    with pytest.raises(BatchError, match="shape"):
        spaces.check_actions(box, np.zeros((3, 2)))


def test_action_specs() -> None:
    assert spaces.action_spec(Discrete(3)) == ((), np.dtype("int64"))
    assert spaces.action_spec(Box(-1, 1, (2,))) == ((2,), np.dtype("float32"))
    assert spaces.action_spec(MultiBinary(2)) == ((2,), np.dtype("int64"))
    assert spaces.action_spec(Dict(a=Discrete(2), b=Box(-1, 1, (2,)))) == ((3,), np.dtype("float32"))
    with pytest.raises(SpaceError, match="action space"):
        spaces.action_spec(Dict(a=gym.spaces.Text(2)))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_round_trip_as_plain_data(space: gym.Space) -> None:
    plain = msgpack.unpackb(msgpack.packb(spaces.to_plain(space)))
    assert spaces.from_plain(plain) == space


HUGE = {"kind": "Box", "dtype": "float32", "low": 0.0, "high": 1.0}


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"kind": "Box"},
        {"kind": "Nothing", "shape": [], "dtype": "int64"},
        None,
        {**HUGE, "shape": [2**20, 2**20]},
        {**HUGE, "shape": [2**70]},
        {**HUGE, "shape": [-1]},
        {"kind": "MultiDiscrete", "shape": [2**40], "dtype": "int64", "sizes": [2], "starts": [0]},
        {"kind": "Discrete", "shape": [], "dtype": "int64", "sizes": [2**70], "starts": [0]},
    ],
)
def test_what_describes_no_space_is_refused(plain: object) -> None:
    with pytest.raises(StateError, match="does not describe"):
        spaces.from_plain(plain)


def test_what_describes_no_space_is_shown_in_one_line() -> None:
    plain = {"kind": "Discrete", "shape": [], "dtype": "int64", "sizes": [np.zeros((1, 2, 1))], "starts": [0]}
    with pytest.raises(StateError) as caught:
        spaces.from_plain(plain)
    assert "does not describe a space" in str(caught.value) and "\n" not in str(caught.value)
