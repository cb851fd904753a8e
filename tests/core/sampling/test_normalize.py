"""Normalisers: literal values, exactness of parallel statistics, states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from learner_core.errors import StateError
from learner_core.sampling.normalize import RewardScaler, RunningMoments, RunningNormalizer, merge_moments


def test_moments_of_four_numbers() -> None:
    moments = RunningMoments()
    moments.update(np.array([1.0, 2.0]))
    moments.update(np.array([3.0, 6.0]))
    assert (moments.count, moments.mean, moments.variance) == (4.0, 3.0, 3.5)


def test_moments_are_ones_and_zeros_before_the_first_sample() -> None:
    moments = RunningMoments((2,))
    moments.update(np.empty((0, 2)))
    assert moments.mean.tolist() == [0, 0] and moments.variance.tolist() == [1, 1]


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=6), min_size=1, max_size=6), st.floats(-1e8, 1e8))
def test_any_split_gives_the_moments_of_the_whole(parts: list[list[float]], offset: float) -> None:
    """Also far from zero, where the textbook formula with sums of squares loses everything."""
    moments = RunningMoments()
    for part in parts:
        moments.update(np.array(part) + offset)
    whole = np.array([x for part in parts for x in part]) + offset
    if whole.size:
        assert moments.count == whole.size
        np.testing.assert_allclose(moments.mean, whole.mean(), rtol=1e-12, atol=1e-7)
        np.testing.assert_allclose(moments.variance, whole.var(), rtol=1e-6, atol=1e-4)


def test_normalised_values() -> None:
    normalizer = RunningNormalizer(np.zeros(2, np.float32))
    normalizer.update(np.array([[0, 10], [2, 10], [4, 10]], np.float32))
    result = normalizer.normalize(np.array([[2, 10], [6, 10], [100, 11]], np.float32))
    std = np.sqrt(8 / 3)
    np.testing.assert_allclose(result, [[0, 0], [4 / std, 0], [10, 10]], rtol=1e-6)  # the last ones clipped
    assert result.dtype == np.float32


def test_only_float_leaves_are_touched() -> None:
    example = {"image": np.zeros((2, 2), np.uint8), "inner": {"x": np.zeros(1), "k": np.int64(3)}}
    normalizer = RunningNormalizer(example)
    assert list(normalizer.moments) == ["obs/inner/x"]
    batch = {
        "image": np.ones((3, 2, 2), np.uint8),
        "inner": {"x": np.array([[1.0], [2.0], [3.0]]), "k": np.array([1, 2, 3])},
    }
    normalizer.update(batch)
    result = normalizer.normalize(batch)
    assert result["image"] is batch["image"] and result["inner"]["k"] is batch["inner"]["k"]
    np.testing.assert_allclose(result["inner"]["x"][:, 0], [-np.sqrt(1.5), 0, np.sqrt(1.5)], rtol=1e-6)


def test_merged_runners_know_what_one_would() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(50, 3, (90, 4))
    one, first, second = (RunningNormalizer(np.zeros(4)) for _ in range(3))
    one.update(rows)
    first.update(rows[:20])
    second.update(rows[20:])
    merged = merge_moments(*({"obs": normalizer.moments["obs"].get_state()} for normalizer in (first, second)))["obs"]
    assert merged["count"] == len(rows)
    np.testing.assert_allclose(merged["mean"], one.moments["obs"].mean, rtol=1e-14)
    np.testing.assert_allclose(merged["m2"] / len(rows), one.moments["obs"].variance, rtol=1e-12)


def test_reward_scaling_by_hand() -> None:
    scaler = RewardScaler(2, 0.5)
    first = scaler.scale(np.array([1.0, 3.0]), np.array([False, True]))
    np.testing.assert_allclose(first, [1.0, 3.0], rtol=1e-6)  # returns 1 and 3: variance 1
    second = scaler.scale(np.array([1.0, 2.0]), np.array([False, False]))
    # Returns now 0.5 + 1 = 1.5 and 0 (ended) + 2 = 2, so all four are 1, 3, 1.5, 2.
    std = np.std([1, 3, 1.5, 2])
    np.testing.assert_allclose(second, [1 / std, 2 / std], rtol=1e-6)
    assert scaler.returns.tolist() == [1.5, 2.0]


def test_rows_that_are_no_steps_do_not_count_for_the_scale() -> None:
    scaler = RewardScaler(2, 0.5)
    scaler.scale(np.array([1.0, 3.0]), np.zeros(2, np.bool_))
    scaler.scale(np.array([0.0, 1.0]), np.zeros(2, np.bool_), rows=np.array([False, True]))
    assert scaler.moments.count == 3 and scaler.returns.tolist() == [1.0, 2.5]


@pytest.mark.parametrize("make", [lambda: RunningNormalizer({"a": np.zeros(2)}), lambda: RewardScaler(2, 0.9)])
def test_states_are_copies_and_come_back(make: Any) -> None:
    first, second = make(), make()
    feed(first, 1)
    state = first.get_state()
    second.set_state(state)
    feed(second, 2)
    feed(first, 2)
    assert repr(first.get_state()) == repr(second.get_state()) != repr(state)


def feed(thing: Any, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(5, 2))
    if isinstance(thing, RewardScaler):
        for row in rows:
            thing.scale(row, row > 1)
    else:
        thing.update({"a": rows})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "moments: missing"),
        ({"moments": {}}, "moments/obs: missing"),
        ({"moments": {"obs": {"count": 1}}}, "moments/obs/mean: missing"),
        ({"moments": {"obs": {"count": 1, "mean": [0, 0], "m2": [0, 0, 0]}}}, "moments/obs/m2: expected shape"),
        (
            {"moments": {"obs": {"count": 1, "mean": [0, np.nan], "m2": [0, 0]}}},
            "moments/obs/mean: expected finite values",
        ),
        (
            {"moments": {"obs": {"count": -1, "mean": [0, 0], "m2": [0, 0]}}},
            "moments/obs/count: expected a number from 0 to 1e.18, got -1",
        ),
    ],
)
def test_states_that_are_none_are_refused(state: Any, message: str) -> None:
    normalizer = RunningNormalizer(np.zeros(2))
    with pytest.raises(StateError, match=message):
        normalizer.set_state(state)
    assert normalizer.moments["obs"].count == 0
