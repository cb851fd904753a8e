"""Schedules: values, ends, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner_core import schedules
from learner_core.errors import ConfigError


def test_values_on_between_and_beyond_the_points() -> None:
    s = schedules.parse([[100, 1.0], [200, 0.5], [600, 0.1]])
    assert s.value_at(0) == 1.0
    assert s.value_at(100) == 1.0
    assert s.value_at(150) == 0.75
    assert s.value_at(200) == 0.5
    assert s.value_at(300) == pytest.approx(0.4, abs=1e-15)
    assert s.value_at(600) == 0.1
    assert s.value_at(10**18) == 0.1


def test_a_number_is_a_constant() -> None:
    s = schedules.parse(3e-4)
    assert s.value_at(0) == s.value_at(10**12) == 3e-4
    assert s.to_plain() == 3e-4


@pytest.mark.parametrize(
    "value", [1, 0.5, np.float32(0.5), np.int64(3), [[0, 1], [5, 2]], ((0, 1), (5, 2)), np.array([[0.0, 1.0], [5, 2]])]
)
def test_plain_form_round_trips(value: object) -> None:
    s = schedules.parse(value)
    assert schedules.parse(s) is s
    assert schedules.parse(s.to_plain()) == s
    assert pickle.loads(pickle.dumps(s)) == s


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "expected a number"),
        (np.bool_(True), "expected a number"),
        ("0.1", "expected a number"),
        (None, "expected a number"),
        ({0: 1.0}, "expected a number"),
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        ([], "at least one"),
        (np.array(0.5), "expected a number"),
        ([1.0, 2.0], r"lr\[0\]"),
        ([[0, 1.0, 2.0]], r"lr\[0\]"),
        ([[0, 1.0], [5, float("nan")]], r"lr\[1\].*not finite"),
        ([[0, 1.0], [5, "a"]], r"lr\[1\].*not a number"),
        ([[0, 1.0], [0, 2.0]], r"lr\[1\].*increase strictly"),
        ([[5, 1.0], [3, 2.0]], r"lr\[1\].*increase strictly"),
        ([[-1, 1.0]], "negative"),
    ],
)
def test_refusals_name_the_setting(value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        schedules.parse(value, "lr")
    assert "lr" in str(caught.value)


numbers = st.floats(-1e6, 1e6)


@given(st.dictionaries(st.integers(0, 10**9), numbers, min_size=1, max_size=6), st.integers(0, 2 * 10**9))
def test_agrees_with_numpy_interpolation(points: dict[int, float], timestep: int) -> None:
    times = sorted(points)
    values = [points[t] for t in times]
    got = schedules.parse([[t, points[t]] for t in times]).value_at(timestep)
    assert got == pytest.approx(np.interp(timestep, times, values), rel=1e-9, abs=1e-9)
    assert min(values) <= got <= max(values) or got == pytest.approx(min(values)) or got == pytest.approx(max(values))


@pytest.mark.parametrize("setting", [0.25, 3, [[0, 1.0], [10, 0.0]], schedules.parse([[0, 1.0], [10, 0.0]])])
@pytest.mark.parametrize("timestep", [0, 4, 20])
def test_value_at_is_that_of_the_parsed_setting(setting: Any, timestep: int) -> None:
    assert schedules.value_at(setting, timestep) == schedules.parse(setting).value_at(timestep)


def test_value_at_refuses_what_parse_refuses() -> None:
    with pytest.raises(ConfigError):
        schedules.value_at(True, 0)
