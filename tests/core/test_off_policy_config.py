"""What the off-policy loop reads, given to third parties' configs by inheritance, and missed with a remedy."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

import learner_core as lc
from learner_core.algorithm.off_policy import OffPolicyAlgorithm
from learner_core.config import OffPolicyConfig
from learner_core_algorithms import SACConfig


def _set_up(config: lc.AlgorithmConfig) -> None:
    OffPolicyAlgorithm.setup(SimpleNamespace(config=config, seed=0))  # all that it reads


def test_settings_that_the_loop_reads_are_missed_by_name() -> None:
    with pytest.raises(lc.ConfigError, match=r"reads the settings .*buffer_capacity.*OffPolicyConfig"):
        _set_up(lc.AlgorithmConfig())
    _set_up(SACConfig())


def test_several_agents_are_refused() -> None:
    with pytest.raises(lc.ConfigError, match=r"SACConfig: .*one agent's experience.*PPO, IMPALA or APPO"):
        _set_up(SACConfig().multi_agent(policies=["walker_0"]))
    with pytest.raises(lc.ConfigError, match="one agent's experience"):
        _set_up(SACConfig().environment("pettingzoo:sisl/multiwalker-v9"))


def test_priorities_need_errors_to_draw_by() -> None:
    @dataclass(kw_only=True, repr=False, eq=False)
    class PlainConfig(OffPolicyConfig):
        algorithm_name = "plain"
        default_learner_class = lc.Learner

    _set_up(PlainConfig())
    with pytest.raises(lc.ConfigError, match=r"Learner has no td_errors\(batch\)"):
        _set_up(PlainConfig().training(prioritized_replay=True))
