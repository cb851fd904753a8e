"""Whatever is set in whatever order: samplers, learners, evaluation and the file agree, and say what was set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.walk import Walk, walk_config


def _walk(kind: str, config: Any, seed: int, steps: int, folder: Path) -> None:
    walk = Walk(kind, config, seed, folder)
    try:
        for _ in range(steps):
            walk.step()
    finally:
        walk.close()


@pytest.mark.parametrize("kind", ["one", pytest.param("several", marks=pytest.mark.slow), "appo"])
def test_a_short_walk(training_backend_name: str, kind: str, tmp_path: Path) -> None:
    _walk(kind, walk_config(kind, training_backend_name), 0, 12, tmp_path)


@pytest.mark.fast_on_torch
def test_a_short_walk_with_runners_in_processes(training_backend_name: str, tmp_path: Path) -> None:
    _walk("several", walk_config("several", training_backend_name).env_runners(num_env_runners=1), 1, 10, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_env_runners", [0, 2])
@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_long_walk(training_backend_name: str, kind: str, num_env_runners: int, seed: int, tmp_path: Path) -> None:
    config = walk_config(kind, training_backend_name).env_runners(num_env_runners=num_env_runners)
    _walk(kind, config, 100 + seed, 60, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_long_asynchronous_walk(training_backend_name: str, seed: int, tmp_path: Path) -> None:
    _walk("appo", walk_config("appo", training_backend_name), 100 + seed, 60, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_walk_with_learners_in_processes(training_backend_name: str, kind: str, tmp_path: Path) -> None:
    config = walk_config(kind, training_backend_name).learners(num_learners=2).env_runners(num_env_runners=1)
    _walk(kind, config, 7, 30, tmp_path)
