"""Settings that count beside another one alone: refused without it, whoever declares it and in whatever order.

What a run remembers is kept: values of a file, and those whose condition ``set_config`` has switched off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

import learner_core as lc
from learner_core.cli.main import main
from learner_core.cli.settings import describe_settings
from learner_core.config import MEMORY, Needs, Range, needs
from learner_core.config.changes import changed
from learner_core.errors import ConfigError
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig

CONFIGS: dict[str, Any] = {
    "ppo": PPOConfig, "sac": SACConfig, "impala": IMPALAConfig, "appo": APPOConfig, "bc": BCConfig
}  # fmt: skip

KL = ({"use_kl_loss": False}, {"use_kl_loss": True})
CRITIC = ({"use_critic": False}, {"use_critic": True})
REPLAY = ({}, {"prioritized_replay": True})
ENV = ({}, {"env": "CartPole-v1"})
#: Setting -> (a value, settings that it has no effect with, settings that it has one with).
EVERYWHERE: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "critic_observes": ("all", {}, {"policies": ["a"]}),
    "evaluation_interval": (2, *ENV),
    "evaluation_max_episode_steps": (7, *ENV),
    "evaluation_num_episodes": (3, *ENV),
    "vectorization": ("sync", {"env": "pettingzoo:classic/rps_v2"}, {"env": "CartPole-v1"}),
    "grad_clip_by": ("value", {"grad_clip": None}, {"grad_clip": 1.0}),
}
OWN: dict[str, dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]] = {
    "ppo": {
        "kl_coeff": (0.7, *KL),
        "kl_target": (0.05, *KL),
        "lambda_": (0.5, *CRITIC),
        "vf_loss_coeff": (2.0, *CRITIC),
        "vf_clip_param": (1.0, *CRITIC),
        "vf_clip_range": (1.0, *CRITIC),
    },
    "sac": {
        "priority_alpha": (0.5, *REPLAY),
        "priority_beta": ([[0, 0.4], [10, 1.0]], *REPLAY),
        "target_entropy": (-3.0, {"alpha_lr": [[0, 0.0], [9, 0.0]]}, {"alpha_lr": [[0, 0.0], [9, 1e-3]]}),
    },
    "impala": {},
    "appo": {"kl_coeff": (0.7, *KL), "kl_target": (0.05, *KL)},
    "bc": {
        "env_config": ({"size": 3}, *ENV),
        "vectorization": ("sync", *ENV),
        "num_envs_per_env_runner": (3, *ENV),
        "inference": ("numpy", *ENV),
        "max_env_restarts": (3, *ENV),
        "env_step_timeout_s": (3.0, *ENV),
    },
}


def _rows() -> Iterator[tuple[str, str]]:
    for name, config in CONFIGS.items():
        for setting, need in config.needed_settings.items():
            if not need.of_modules and setting not in config.unused_settings:
                yield name, setting


def _given(config: Any, settings: Mapping[str, Any]) -> Any:
    for name, value in settings.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(("name", "setting"), list(_rows()))
def test_a_setting_without_what_it_needs_is_refused(name: str, setting: str) -> None:
    value, off, on = OWN[name].get(setting) or EVERYWHERE[setting]
    for order in ({setting: value, **off}, {**off, setting: value}):
        with pytest.raises(ConfigError, match=f"{setting}=.* would have no effect: it needs .* leave {setting} as it"):
            _given(CONFIGS[name](), order).freeze()
    default = CONFIGS[name].settings()[setting].default
    _given(CONFIGS[name](), {**off, setting: default}).freeze()
    _given(CONFIGS[name](), {setting: value, **on}).freeze()


def test_every_declaration_is_of_a_setting_and_its_default_is_no_mistake() -> None:
    for config in CONFIGS.values():
        assert set(config.needed_settings) <= set(config.settings())
        config().freeze()


@pytest.mark.parametrize("workers", [0, 2])
def test_one_script_runs_with_processes_and_without(workers: int) -> None:
    """How processes are started, watched and restarted is no claim about what is trained."""
    config = IMPALAConfig().environment("CartPole-v1")
    config.learners(num_learners=workers, restart_failed_learners=True, timeout_s=60, collective="torch")
    config.learners(max_requests_in_flight_per_learner=2, queue_full="drop", check_parameters_every=5)
    config.env_runners(num_env_runners=workers, max_env_runner_restarts=3, env_runner_timeout_s=9)
    config.env_runners(env_step_timeout_s=9, max_requests_in_flight_per_env_runner=2).freeze()


# ---- several modules -------------------------------------------------------------------------------------------------


def test_a_shared_setting_counts_if_it_does_for_one_module() -> None:
    def config(**settings: Any) -> Any:
        return PPOConfig().multi_agent(policies=["a", "b"], settings=settings)

    off, on = {"use_kl_loss": False}, {"use_kl_loss": True}
    config(a=off).training(kl_target=0.05).freeze()
    config(a=on).training(kl_target=0.05, use_kl_loss=False).freeze()
    config(a={"kl_target": 0.05}).freeze()
    with pytest.raises(ConfigError, match=r"kl_target=0\.05 would have no effect"):
        config(a=off, b=off).training(kl_target=0.05).freeze()
    with pytest.raises(ConfigError, match=r"settings={'a': {'kl_target': 0\.05}}\) would have no effect"):
        config(a={"kl_target": 0.05, **off}).freeze()
    with pytest.raises(ConfigError, match=r"optimizer=.* dampening=0\.5 would have no effect: it needs a momentum"):
        config(a={"optimizer": {"kind": "sgd", "dampening": 0.5}}).freeze()
    config(a={"optimizer": {"kind": "sgd", "dampening": 0.5, "momentum": 0.9}}).freeze()
    with pytest.raises(ConfigError, match=r"'b': {'kl_target': 0\.05}"):  # a module that is added
        config().freeze().with_modules({"b": None}, {"b": {"kl_target": 0.05, **off}})


# ---- in a run, and out of files --------------------------------------------------------------------------------------


def test_what_counted_is_remembered_when_its_condition_is_switched_off() -> None:
    run = PPOConfig().training(kl_target=0.05).freeze()
    run = changed(run, {"use_kl_loss": False}, by="learner")
    assert run.kl_target == 0.05
    with pytest.raises(ConfigError, match=r"kl_target=0\.07 would have no effect"):
        changed(run, {"kl_target": 0.07}, by="learner")
    with pytest.raises(ConfigError, match="kl_target"):
        changed(run, {"kl_target": 0.07, "use_kl_loss": False}, by="learner")
    assert changed(run, {"kl_target": 0.07, "use_kl_loss": True}, by="learner").kl_target == 0.07
    again = changed(changed(run, {"lr": 1.0}, by="learner"), {"use_kl_loss": True}, by="learner")
    assert again.kl_target == 0.05
    assert run.copy().freeze().kl_target == 0.05


def test_stored_settings_open_and_are_what_they_were() -> None:
    """Of a run that switched something off, or of an earlier version that refused nothing."""
    run = changed(PPOConfig().training(kl_target=0.05).freeze(), {"use_kl_loss": False}, by="learner")
    for data in (run.to_dict(), {**run.to_dict(), "settings": {"kl_target": 0.05, "use_kl_loss": False}}):
        opened = lc.AlgorithmConfig.from_dict(data)
        assert opened.copy().freeze().kl_target == 0.05
        lc.AlgorithmConfig.from_dict(data, lr=1.0).freeze()
        with pytest.raises(ConfigError, match=r"kl_target=0\.05 would have no effect"):  # it is said again
            lc.AlgorithmConfig.from_dict(data, kl_target=0.05).freeze()
        assert opened.training(kl_target=0.06, use_kl_loss=True).freeze().kl_target == 0.06


@pytest.mark.parametrize("in_file", [False, True])
def test_the_command_line_says_the_same(tmp_path: Path, capsys: Any, in_file: bool) -> None:
    words = ["train", "ppo", "--env", "CartPole-v1", "--out", str(tmp_path / "run"), "--set", "use_kl_loss=false"]
    if in_file:
        (tmp_path / "mine.toml").write_text("[training]\nkl_target = 0.05\n")
        words += ["--config", str(tmp_path / "mine.toml")]
    else:
        words += ["--set", "kl_target=0.05"]
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "kl_target=0.05 would have no effect: it needs use_kl_loss=True" in said
    assert not (tmp_path / "run").exists()
    assert "kl_target=0.01   (float > 0 or None; needs use_kl_loss=True)" in describe_settings(PPOConfig())


# ---- a third party's -------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, repr=False, eq=False)
class NoisyConfig(PPOConfig):
    """A third party's algorithm."""

    needed_settings: ClassVar[Mapping[str, Needs]] = {
        **PPOConfig.needed_settings,
        "noise_decay": needs("noise", "0.1"),
        "noise": Needs("one environment at a time", lambda config: config.num_envs_per_env_runner == 1),
        "noise_length": MEMORY,
    }

    noise: Annotated[float, Range(0)] = 0.0
    """Of actions."""

    noise_decay: Annotated[float, Range(0)] = 1.0
    """Of the noise."""

    noise_length: Annotated[int, Range(1)] = 1
    """Of sequences."""


def test_a_third_partys_settings_are_held_to_it() -> None:
    with pytest.raises(ConfigError, match=r"NoisyConfig: noise_decay=0\.5 .* it needs noise=0\.1"):
        NoisyConfig().training(noise_decay=0.5).freeze()
    with pytest.raises(ConfigError, match=r"noise=0\.1 .* it needs one environment at a time"):
        NoisyConfig().training(noise_decay=0.5, noise=0.1).freeze()
    alone = {"num_envs_per_env_runner": 1}
    NoisyConfig().training(noise_decay=0.5, noise=0.1, noise_length=3).env_runners(**alone).freeze()  # not known yet
    with pytest.raises(ConfigError, match="kl_target"):
        NoisyConfig().training(kl_target=0.5, use_kl_loss=False).freeze()
