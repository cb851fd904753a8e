"""A launcher is a plugin: one of a third party's gives the group everything the built-in ones do."""

from __future__ import annotations

import ast
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core.errors import PluginNotFoundError
from learner_core.group import launchers
from learner_core.group.launchers import load_launcher
from learner_core.group.learner_group import LearnerGroup
from learner_core.plugins import claims, discovery

from .conftest import ppo_config
from support import toy_launcher
from support.learners import assert_states_equal, ppo_batch

Make = Callable[..., LearnerGroup]


@pytest.fixture
def toy() -> Iterator[None]:
    discovery.register("learner_core.launchers", "toy", toy_launcher)
    yield
    claims.INDEX.here["learner_core.launchers"].clear()


def test_the_built_in_launchers_come_through_the_same_door() -> None:
    assert {"local", "ray"} <= set(discovery.list_plugins("learner_core.launchers"))
    assert load_launcher("local").name == "local"
    with pytest.raises(PluginNotFoundError, match="Did you mean 'local'"):
        load_launcher("locale")
    with pytest.raises(lc.ConfigError, match=r"launcher='rey'.*Did you mean 'ray'"):
        ppo_config("torch", launcher="rey")


def test_the_group_knows_no_launcher_by_name() -> None:
    folder = Path(launchers.__file__).parent
    for name in ("learner_group.py", "remote.py", "launchers.py", "salvage.py", "worker.py", "requests.py"):
        text = [
            node.value for node in ast.walk(ast.parse((folder / name).read_text())) if isinstance(node, ast.Constant)
        ]
        assert not {"local", "ray", "spmd"} & {value for value in text if isinstance(value, str)}, name


def test_a_third_partys_launcher_trains_loses_restarts_and_ends(groups: Make, toy: None) -> None:
    config = ppo_config("torch", num_learners=2, collective="torch", restart_failed_learners=True, timeout_s=20)
    there = groups(config.copy().learners(launcher="toy"))
    here = groups(config.copy().learners(launcher="local", num_learners=1))
    assert there.foreach_learner(lambda learner: __import__("os").environ["TOY_RANK"]) == ["0", "1"]
    for seed in range(3):
        if seed == 1:
            os.kill(there._learners._members[1].pid, signal.SIGKILL)
        batch = ppo_batch(384, Discrete(2), seed=seed)
        here.update_from_batch(batch=batch)
        results = there.update_from_batch(batch=batch)
        assert results["__all__"].get("num_learners_restarted", 0.0) == float(seed == 1)
    first, second = there.foreach_learner(lambda learner: learner.get_state())
    assert_states_equal(first, second)
    for name, value in here.get_weights()["default_policy"].items():
        np.testing.assert_allclose(there.get_weights()["default_policy"][name], value, atol=2e-6)
    with pytest.raises(lc.BatchError):
        there.update_from_batch(batch={**batch, "advantages": np.full(384, np.nan, np.float32)})
    fleet = there._learners._fleet
    there.shutdown()
    assert fleet.closed


def test_without_ray_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from learner_core.group.ray import cluster

    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    config = ppo_config("torch", num_learners=2, launcher="ray")
    with pytest.raises(lc.LearnerGroupError, match=re.escape('pip install "learner-core[ray]"')):
        config.build_learner_group()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"placment": "PACK"}, "no option 'placment'. Did you mean 'placement'"),
        ({"placement": "TIGHT"}, "placement='TIGHT': choose from PACK, SPREAD, STRICT_PACK, STRICT_SPREAD"),
        ({"resources": {"H100": -1}}, "resources={'H100': -1}: a dict of names and positive amounts"),
        ({"start_timeout_s": 0}, "start_timeout_s=0: a positive number"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], text: str) -> None:
    config = ppo_config("torch", num_learners=2, launcher="ray", launcher_options=options)
    with pytest.raises(lc.LearnerGroupError, match=re.escape(text)):
        config.build_learner_group()
