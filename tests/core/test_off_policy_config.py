"""What the off-policy loop reads, given to third parties' configs by inheritance, and missed with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

import learner_core as lc
from learner_core import OffPolicyConfig
from learner_core.algorithm.off_policy import OffPolicyAlgorithm
from learner_core_algorithms import SACConfig


def _set_up(config: lc.AlgorithmConfig) -> None:
    OffPolicyAlgorithm.check_config(SimpleNamespace(config=config))  # all that it reads


def test_settings_that_the_loop_reads_are_missed_by_name() -> None:
    with pytest.raises(lc.ConfigError, match=r"reads the settings .*buffer_capacity.*OffPolicyConfig"):
        _set_up(lc.AlgorithmConfig())
    _set_up(SACConfig())


def test_several_agents_are_refused() -> None:
    with pytest.raises(lc.ConfigError, match=r"SACConfig: .*one agent's experience.*PPO, IMPALA or APPO"):
        _set_up(SACConfig().multi_agent(policies=["walker_0"]))
    with pytest.raises(lc.ConfigError, match="one agent's experience"):
        _set_up(SACConfig().environment("pettingzoo:sisl/multiwalker-v9"))


@pytest.mark.parametrize(
    ("algorithm", "change"),
    [("sac", lambda config: config.multi_agent(policies=["walker_0"])), ("bc", lambda config: config)],
)
def test_what_the_settings_alone_forbid_is_refused_before_learners_are_made(
    algorithm: str, change: Callable[[lc.AlgorithmConfig], lc.AlgorithmConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be compiled for two minutes first."""
    monkeypatch.setattr(
        "learner_core.algorithm.algorithm.LearnerGroup", lambda config: pytest.fail("learners were made")
    )
    config = change(lc.get_config(algorithm).environment("CartPole-v1").framework("torch"))
    with pytest.raises(lc.ConfigError, match=r"one agent's experience|input_path"):
        config.build()


def test_priorities_need_errors_to_draw_by() -> None:
    @dataclass(kw_only=True, repr=False, eq=False)
    class PlainConfig(OffPolicyConfig):
        algorithm_name = "plain"
        default_learner_class = lc.Learner

    _set_up(PlainConfig())
    with pytest.raises(lc.ConfigError, match=r"Learner has no td_errors\(batch\)"):
        _set_up(PlainConfig().training(prioritized_replay=True))
