"""A training run among misbehaving plugins: it ends with the numbers of one without any, and names who was left out."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from learner_core.plugins import claims, registry
from learner_core_algorithms import PPOConfig

from support.hostile_plugins import CASES, install
from support.learners import states_differ
from support.sampling import CountEnv


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(claims, "INDEX", claims.Index())
    monkeypatch.setattr(registry, "_MANAGER", None)
    before = set(sys.modules)
    yield monkeypatch
    for name in set(sys.modules) - before:
        if name.startswith("hostile_"):
            del sys.modules[name]


def _trained(backend: str, path: Path) -> tuple[dict[str, Any], str]:
    """The state after two iterations, a save and a restore; and all warnings."""
    config = PPOConfig().framework(backend, compile=False).environment(lambda settings: CountEnv(length=5))
    config.training(train_batch_size=32, minibatch_size=16, num_epochs=1).rl_module(model={"hidden": [4]})
    config.env_runners(num_envs_per_env_runner=2).debugging(seed=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with config.build() as algo:
            algo.train()
            algo.save(str(path))
            algo.restore(str(path))
            algo.train()
            state = algo.learner_group.get_state()
    return state, "\n".join(str(one.message) for one in caught)


def test_a_run_among_hostile_plugins_is_one_without_them(
    training_backend_name: str, registries: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected, _ = _trained(training_backend_name, tmp_path / "alone")
    registries.setattr(claims, "INDEX", claims.Index())
    registries.setattr(registry, "_MANAGER", None)
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder)
    registries.syspath_prepend(str(folder))
    state, said = _trained(training_backend_name, tmp_path / "among")
    assert state.pop("plugins") == {"good-listener": {"told": 2}} and expected.pop("plugins") == {}
    assert not states_differ(expected, state)
    for case in CASES:
        if case.group == "plugins":
            assert f"{case.name!r} of {case.name}" in said, case.name
