"""Environments that raise, hang, die or return garbage: bounded, counted, named; 250 a backend in the long tier."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from support.env_faults import CRASHES, GARBAGE, RAISED, EnvFault, draw, play
from support.outcomes import LostError


def _fault(backend: str, what: str, where: str = "step", **how: object) -> EnvFault:
    given = {"always": False, "step": 3, "agents": False, "runners": "here", **how}
    return EnvFault(backend, hash((what, where, *how.items())) % 10**6, 0, what, where, **given)  # type: ignore[arg-type]


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("agents", [False, True])
@pytest.mark.parametrize("what", RAISED)
def test_one_that_raises_once_is_made_anew_and_counted(
    training_backend_name: str, what: str, agents: bool, tmp_path: Path
) -> None:
    played = play(_fault(training_backend_name, what, agents=agents), tmp_path)
    assert (played.result, played.restarts, played.lost) == ("went on", 1, 1)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("what", ["ValueError", "SystemExit", "mute"])
@pytest.mark.parametrize("where", ["init", "reset", "step"])
def test_one_that_always_raises_ends_the_run_in_words(
    training_backend_name: str, what: str, where: str, tmp_path: Path
) -> None:
    played = play(_fault(training_backend_name, what, where, always=True), tmp_path)
    assert played.result == "refused" and played.said.startswith("EnvError")
    assert where == "init" or "max_env_restarts=3 rebuilds are used up" in played.said


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_ends_in_our_own_words_or_in_a_new_environment(
    training_backend_name: str, what: str, tmp_path: Path
) -> None:
    for runners in ("here", "native"):
        play(_fault(training_backend_name, what, runners=runners), tmp_path)


@pytest.mark.fast_on_torch
def test_closing_that_raises_is_a_warning(training_backend_name: str, tmp_path: Path) -> None:
    for what in ("ValueError", "SystemExit"):
        assert "closing it raised" in play(_fault(training_backend_name, what, "close", step=1), tmp_path).said


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("what", ["exit", "hang"])
def test_processes_of_environments_that_end_or_hang_are_replaced(
    training_backend_name: str, what: str, tmp_path: Path
) -> None:
    runners = "processes" if what == "exit" else "async"
    played = play(_fault(training_backend_name, what, runners=runners), tmp_path)
    assert played.result == "went on" and played.restarts == 1


@pytest.mark.slow
def test_every_fault_is_bounded_counted_and_named(training_backend_name: str, tmp_path: Path) -> None:
    """``LC_SEED`` repeats a draw, ``LC_FAULTS`` says how many."""
    seed = int(os.environ.get("LC_SEED") or int.from_bytes(os.urandom(3), "little"))
    number, lost, table, longest = int(os.environ.get("LC_FAULTS", "250")), [], Counter[tuple[str, ...]](), 0.0
    print(f"seed {seed}")
    for at in range(number):
        fault = draw(seed, at, training_backend_name)
        try:
            played = play(fault, tmp_path)
        except LostError as error:
            lost.append(f"{at}: {error}")
            print(f"LOST {lost[-1]}", flush=True)
            continue
        longest = max(longest, played.seconds)
        kind = next(n for n, k in (("raises", RAISED), ("garbage", GARBAGE), ("crash", CRASHES)) if fault.what in k)
        table[kind, "always" if fault.always else "once", fault.runners, played.result] += 1
        if at % 25 == 24:
            print(f"{at + 1} faults, {len(lost)} lost, longest {longest:.1f} s", flush=True)
    for row, count in sorted(table.items()):
        print(*row, count)
    print(f"{number} faults, {len(lost)} lost something, longest {longest:.1f} s")
    assert not lost, "\n".join(lost)
