"""Schedules: values, ends, and what is refused."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import learner_core as lc
from learner_core import schedules
from learner_core.cli import settings as cli_settings
from learner_core.errors import ConfigError
from learner_core_algorithms import PPOConfig, SACConfig


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
        ({0: 1.0}, "kind=None is not known"),
        ({"kind": "exponental", "start": 1, "end": 2, "timesteps": 3}, "Did you mean 'exponential'"),
        ({"kind": "linear", "start": 1, "timesteps": 3}, "needs end"),
        ({"kind": "linear"}, "needs start, timesteps, end"),
        ({"kind": "linear", "start": 1, "end": 2, "timesteps": 3, "power": 2}, "kind='linear' has no 'power'"),
        ({"kind": "linear", "start": 1, "rate": 2, "timesteps": 3}, "kind='linear' has no 'rate'"),
        ({"kind": "linear", "start": 1, "end": 2, "timesteps": 0}, "timesteps=0: expected a number above 0"),
        ({"kind": "linear", "start": 1, "end": "x", "timesteps": 9}, "end='x' is not a number"),
        ({"kind": "linear", "start": 1, "end": 2, "timesteps": 9, "begin": -1}, "begin=-1 is negative"),
        ({"kind": "exponential", "start": 1, "end": 0, "timesteps": 9}, "same sign, none of them 0"),
        ({"kind": "exponential", "start": 1, "end": -1, "timesteps": 9}, "same sign, none of them 0"),
        ({"kind": "exponential", "start": 1, "end": 2, "rate": 2, "timesteps": 9}, "end or rate"),
        (
            {"kind": "polynomial", "start": 1, "end": 2, "timesteps": 9, "power": -1},
            "power=-1: expected a number above",
        ),
        (lambda t: 0.1, r"lc\.schedule\(function, timesteps=N\)"),
        (math.sqrt, r"lc\.schedule\(function, timesteps=N\)"),
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        ([], "at least one"),
        (np.array(0.5), "expected a number"),
        ([1.0, 2.0], r"lr\[0\]"),
        ([[0, 1.0, 2.0]], r"lr\[0\]"),
        ([[0, 1.0], [5, float("nan")]], r"lr\[1\].*not finite"),
        ([[0, 1.0], [5, "a"]], r"lr\[1\].*not a number"),
        ([[0, 1.0], [0, 2.0], [0, 3.0]], r"lr\[2\]: three values at timestep=0"),
        ([[5, 1.0], [3, 2.0]], r"lr\[1\].*comes before 5; timesteps must increase"),
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


# ---- jumps -----------------------------------------------------------------------------------------------------------


def test_a_jump_takes_its_second_value_from_its_timestep_on() -> None:
    s = schedules.parse([[100, 0.5], [100, 0.25]])
    assert [s.value_at(t) for t in (0, 99, 99.999, 100, 101, 10**9)] == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    stairs = schedules.parse([[0, 1.0], [10, 1.0], [10, 0.5], [20, 0.0], [20, 3.0], [30, 3.0]])
    assert [stairs.value_at(t) for t in (0, 9, 10, 15, 20, 25, 30)] == [1.0, 1.0, 0.5, 0.25, 3.0, 3.0, 3.0]
    assert schedules.parse(stairs.to_plain()) == stairs


# ---- forms -----------------------------------------------------------------------------------------------------------


def _form(kind: str, **more: Any) -> schedules.Schedule:
    return schedules.parse({"kind": kind, "start": 1e-2, "timesteps": 1000, **more})


def test_an_exponential() -> None:
    s = _form("exponential", end=1e-4)
    assert len(s.points) == 257
    assert (s.value_at(0), s.value_at(1000), s.value_at(10**9)) == (1e-2, 1e-4, 1e-4)
    for t in (1, 137, 500, 999):
        assert s.value_at(t) == pytest.approx(1e-2 * 0.01 ** (t / 1000), rel=5e-5)
    assert _form("exponential", rate=0.01).value_at(500) == pytest.approx(1e-3, rel=1e-12)
    assert _form("exponential", rate=0.01) == s
    rising = schedules.parse({"kind": "exponential", "start": -1.0, "end": -8.0, "timesteps": 3})
    assert rising.value_at(1) == pytest.approx(-2.0, rel=1e-4)


def test_the_other_forms() -> None:
    assert _form("linear", end=0.0).points == ((0.0, 1e-2), (1000.0, 0.0))
    assert _form("polynomial", end=0.0).points == ((0.0, 1e-2), (1000.0, 0.0))
    cosine, square = _form("cosine", end=0.0), _form("polynomial", end=2e-3, power=2)
    for t in (0, 250, 500, 1000):
        assert cosine.value_at(t) == pytest.approx(0.5e-2 * (1 + math.cos(math.pi * t / 1000)), abs=1e-6)
        assert square.value_at(t) == pytest.approx(2e-3 + 8e-3 * (1 - t / 1000) ** 2, abs=1e-7)


def test_a_form_may_begin_later() -> None:
    s = _form("exponential", end=1e-4, begin=500)
    assert (s.value_at(0), s.value_at(500), s.value_at(1500)) == (1e-2, 1e-2, 1e-4)
    assert s.value_at(1000) == pytest.approx(1e-3, rel=1e-12)


# ---- functions -------------------------------------------------------------------------------------------------------


def test_a_function_of_the_timestep_is_kept_as_points() -> None:
    asked: list[float] = []

    def rate(t: float) -> float:
        asked.append(t)
        return 1e-3 / (1 + t / 500)

    points = lc.schedule(rate, timesteps=1000)
    assert len(points) == 257 and asked == [1000 * i / 256 for i in range(257)]
    assert points[0] == [0.0, 1e-3] and points[128] == [500.0, 5e-4]
    assert points[-1] == [1000.0, pytest.approx(1e-3 / 3, rel=1e-15)]
    assert schedules.parse(points).value_at(300) == pytest.approx(1e-3 / 1.6, rel=1e-5)


def test_a_function_of_the_progress_that_remains() -> None:
    """As Stable-Baselines3's linear_schedule: 3e-4 * progress_remaining."""
    points = lc.schedule(lambda progress: 3e-4 * progress, timesteps=100_000, of="progress_remaining")
    assert points == [[0.0, 3e-4], [100_000.0, 0.0]]
    squared = lc.schedule(lambda progress: progress**2, timesteps=100, of="progress_remaining", num_points=5)
    assert squared == [[0.0, 1.0], [25.0, 0.5625], [50.0, 0.25], [75.0, 0.0625], [100.0, 0.0]]


def test_a_constant_function_and_numbers_of_numpy() -> None:
    assert lc.schedule(lambda t: np.float32(0.5), timesteps=10) == [[0.0, 0.5], [10.0, 0.5]]
    assert lc.schedule(lambda t: np.array(0.5), timesteps=10) == [[0.0, 0.5], [10.0, 0.5]]


def _raises(t: float) -> float:
    raise KeyError("rate")


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (3e-4, {"timesteps": 9}, "expected a function, got float"),
        (_raises, {"timesteps": 9}, r"function\(0\.0\) raised KeyError: 'rate'"),
        (lambda t: None, {"timesteps": 9}, r"function\(0\.0\): value=None is not a number"),
        (lambda t: "1", {"timesteps": 9}, "value='1' is not a number"),
        (lambda t: math.inf, {"timesteps": 9}, "not finite"),
        (lambda t: 1.0, {"timesteps": 0}, "timesteps=0: expected a number above 0"),
        (lambda t: 1.0, {"timesteps": 9, "of": "progress"}, "of='progress' is not known"),
        (lambda t: 1.0, {"timesteps": 9, "num_points": 1}, "num_points=1: expected a whole number from 2 to 10001"),
        (lambda t: 1.0, {"timesteps": 9, "num_points": 2.5}, "num_points=2.5"),
    ],
)
def test_a_function_that_is_refused(function: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        lc.schedule(function, **arguments)


# ---- in settings -----------------------------------------------------------------------------------------------------

EXPONENTIAL = {"kind": "exponential", "start": 1e-3, "end": 1e-5, "timesteps": 1000}


def test_a_setting_keeps_the_points_alone() -> None:
    config = PPOConfig().training(lr=EXPONENTIAL, clip_param=[[100, 0.2], [100, 0.1]])
    assert len(config.lr) == 257 and config.lr[0] == [0.0, 1e-3]  # type: ignore[arg-type, index]
    config.entropy_coeff = lc.schedule(lambda t: 0.01 * math.exp(-t / 100), timesteps=1000)
    again = lc.AlgorithmConfig.from_dict(config.to_dict())
    assert again == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert again.clip_param == [[100.0, 0.2], [100.0, 0.1]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": lambda t: 1e-3}, r"lr=\.\.\.\).*lc\.schedule\(function, timesteps=N\)"),
        ({"grad_clip": lambda t: 1e-3}, r"lc\.schedule\(function, timesteps=N\)"),
        ({"clip_param": {"kind": "linear", "start": 0.2, "end": 0.0, "timesteps": 9}}, "expected .* > 0"),
        ({"lr": {"kind": "linear", "start": 0.2, "end": -1, "timesteps": 9}}, "expected .* >= 0"),
        ({"gamma": {"kind": "linear", "start": 0.9, "end": 0.99, "timesteps": 9}}, "expected float"),
        ({"gamma": lambda t: 0.9}, "expected float"),
        ({"lr": {"kind": "linear", "start": 0.2}}, "needs timesteps, end"),
    ],
)
def test_a_setting_that_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PPOConfig().training(**settings)


def test_a_module_of_its_own_rate() -> None:
    config = SACConfig().multi_agent(policies=["a", "b"], settings={"a": {"actor_lr": EXPONENTIAL}})
    assert len(config.for_module("a").actor_lr) == 257  # type: ignore[arg-type]


def test_on_a_command_line_and_in_a_settings_file(tmp_path: Path) -> None:
    typed = PPOConfig()
    form = 'lr={kind="exponential", start=1e-3, end=1e-5, timesteps=1000}'
    cli_settings.apply_assignments(typed, [form, "clip_param=[[100, 0.2], [100, 0.1]]"])
    assert typed == PPOConfig().training(lr=EXPONENTIAL, clip_param=[[100, 0.2], [100, 0.1]])
    (tmp_path / "run.toml").write_text(
        f"[training]\n{form.replace('=', ' = ', 1)}\nclip_param = [[100, 0.2], [100, 0.1]]"
    )
    read = PPOConfig()
    cli_settings.apply_file(read, cli_settings.read_file(tmp_path / "run.toml"), source="run.toml")
    assert read == typed
    again = PPOConfig()
    cli_settings.apply_file(again, cli_settings.parse_toml(cli_settings.to_toml(typed)), source="config.toml")
    assert again == typed
