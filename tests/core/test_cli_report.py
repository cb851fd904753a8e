"""The small parts of the command line: numbers, stop conditions, tables, files."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest

import learner_core as lc
from learner_core.cli.console import count, duration, number, parse_count, parse_duration, table
from learner_core.cli.curve import draw_curve
from learner_core.cli.report import Moment, StopConditions, flatten, make_report, moment_of
from learner_core.cli.run_folder import RunFolder, find_checkpoints


def test_durations_and_counts() -> None:
    assert [duration(s) for s in (0, 75, 3675, None, float("inf"))] == ["0:00", "1:15", "1:01:15", "-", "-"]
    assert [count(v) for v in (999, 12_345, 1_234_567, 2e9)] == ["999", "12.3k", "1.23M", "2G"]
    assert [number(v) for v in (None, float("nan"), 475.25)] == ["-", "-", "475.2"]


@pytest.mark.parametrize(("text", "steps"), [("200", 200), ("2e5", 200_000), ("200k", 200_000), ("1.5M", 1_500_000)])
def test_counts_are_read(text: str, steps: int) -> None:
    assert parse_count(text) == steps


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "nan", "inf", ""])
def test_bad_counts_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_count(text)


def test_durations_are_read() -> None:
    assert [parse_duration(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    for text in ("0", "-1s", "soon", "inf"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_duration(text)


def _moment(**changes: float | None) -> Moment:
    values: dict[str, float | None] = {
        "iteration": 5,
        "timesteps": 500,
        "seconds": 10.0,
        "steps_per_second": 50.0,
        "episode_return": 20.0,
    }
    return Moment(**(values | changes))


def test_stop_conditions() -> None:
    stop = StopConditions(episode_return=21, timesteps=1000, seconds=100)
    assert stop.reached(_moment()) is None
    assert stop.reached(_moment(episode_return=None)) is None
    assert stop.reached(_moment(episode_return=21.0)) == "mean return 21.0 >= 21"
    assert stop.reached(_moment(timesteps=1000)) == "1000 timesteps"
    assert stop.reached(_moment(seconds=100.0)) == "1:40 of training"
    assert stop.fraction(_moment()) == 0.5
    assert stop.time_left(_moment()) == 10.0
    assert StopConditions(episode_return=40).fraction(_moment()) == 0.5
    assert StopConditions(episode_return=-100).fraction(_moment(episode_return=-300.0)) is None
    assert StopConditions(episode_return=40).time_left(_moment()) is None
    assert StopConditions().is_empty


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    terminal, log = _Terminal(), io.StringIO()
    for stream in (terminal, log):
        with make_report("ppo on CartPole-v1, torch", StopConditions(timesteps=1000), stream=stream) as report:
            report.update(_moment())
            report.update(_moment(iteration=6, timesteps=600))
            report.say("saved")
    assert "\x1b[" in terminal.getvalue()
    assert "ppo on CartPole-v1" in terminal.getvalue()
    assert "\x1b" not in log.getvalue()
    lines = log.getvalue().splitlines()
    # The second one came too soon for a line of its own, but the last one is always shown.
    assert lines[0] == "ppo on CartPole-v1, torch"
    assert lines[1].split()[:8] == ["iteration", "5", "steps", "500", "return", "20", "length", "-"]
    assert lines[1].endswith("left 0:10")
    assert lines[2] == "saved"
    assert lines[3].startswith("iteration     6")


def test_tables_align() -> None:
    text = table([("a", 1), ("long name", 22)], header=("name", "n"))
    assert text.splitlines() == ["name        n", "---------  --", "a           1", "long name  22"]


def test_flatten_keeps_numbers_and_text() -> None:
    assert flatten({"a": {"b": 1, "c": "x"}, "d": None, "e": [1]}) == {"a/b": 1, "a/c": "x"}


def test_checkpoints_newest_first(tmp_path: Path) -> None:
    folder = RunFolder.new(tmp_path / "run")
    folder.claim(new=True).release()
    for iteration in (9, 10, 100):
        lc.save_state(folder.checkpoint_path(iteration), {"iteration": iteration})
    folder.write_info({"algorithm": "ppo"})
    names = ["checkpoint-00000100.lcstate", "checkpoint-00000010.lcstate", "checkpoint-00000009.lcstate"]
    assert [path.name for path in find_checkpoints(folder.path)] == names
    assert [path.name for path in find_checkpoints(folder.checkpoints)] == names
    assert find_checkpoints(folder.checkpoints / names[1]) == [folder.checkpoints / names[1]]
    folder.prune(100, 1)
    assert [path.name for path in find_checkpoints(folder.path)] == names[:2], "the second is the fallback"


def test_no_curve_without_an_episode(tmp_path: Path) -> None:
    assert draw_curve([{"num_env_steps_sampled_lifetime": 1}], tmp_path / "curve.png", title="x") is False
    assert not list(tmp_path.iterdir())


def test_an_offline_run_counts_rows_and_shows_its_evaluations() -> None:
    results = {
        "training_iteration": 3,
        "num_env_steps_sampled_lifetime": 0,
        "env_runners": {"num_episodes": 0},
        "learners": {"__all__": {"num_rows_trained_lifetime": 12_345.0}},
        "evaluation": {"episode_return_mean": 80.0, "episode_len_mean": 80.0},
    }
    moment = moment_of(results, seconds=10.0, steps_per_second=1234.5)
    assert moment.progress == ("rows", 12_345)
    assert StopConditions(episode_return=75).reached(moment) == "mean return 80.0 >= 75"
    stream = io.StringIO()
    with make_report("bc", StopConditions(), stream=stream) as report:
        report.update(moment)
    assert "rows   12.3k  return       80" in stream.getvalue()
    assert "rows/s" in stream.getvalue()
