"""The algorithms of docs/plugins.md and of README.md, as third parties would have them, train on this backend."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]


def _import(page: str, wanted: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    (code,) = [block for block in blocks if wanted in block]
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def test_the_pages_dqn_trains(training_backend_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = _import("docs/plugins.md", "class DQNConfig", "learner_core_page_dqn", tmp_path, monkeypatch)
    config = page.learner_core_algorithm()().environment("CartPole-v1").framework(training_backend_name, compile=False)
    config.training(learning_starts=20, timesteps_per_iteration=24, train_batch_size=8, epsilon=[[0, 1.0], [96, 0.5]])
    with config.rl_module(model={"hidden": [8], "activation": "relu"}).build() as algo:
        before = algo.learner_group.get_weights()["default_policy"]
        assert before["epsilon"] == 1.0
        for _ in range(2):
            results = algo.train()["learners"]["default_policy"]
        assert results["num_minibatch_steps"] == 24
        assert np.isfinite(results["mean_q"])
        state = algo.learner_group.get_state()
        weights = state["rl_module"]["default_policy"]
        assert weights["epsilon"] == pytest.approx(0.75)  # after 48 steps
        assert not np.array_equal(weights["q.0.weight"], before["q.0.weight"])
        assert state["targets"]["default_policy"].keys() == weights.keys() - {"epsilon"}
        assert algo.evaluate(2)["num_episodes"] == 2
        algo.save(tmp_path / "dqn.lcstate")
        algo.restore(tmp_path / "dqn.lcstate")


def test_the_readmes_plugin_trains(training_backend_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = _import("README.md", "class ReinforceConfig", "learner_core_readme_reinforce", tmp_path, monkeypatch)
    config = page.learner_core_algorithm()().environment("CartPole-v1").framework(training_backend_name, compile=False)
    config.training(train_batch_size=64, minibatch_size=32, num_epochs=1).rl_module(model={"hidden": [8]})
    with config.env_runners(num_envs_per_env_runner=2).build() as algo:
        assert algo.train()["learners"]["default_policy"]["num_minibatch_steps"] == 2
