"""Environments by name or callable, and what is said when there is none."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest

from learner_core import AlgorithmConfig, ConfigError, EnvError
from learner_core.config import make_env


def test_a_name_and_its_settings() -> None:
    env = make_env(AlgorithmConfig().environment("FrozenLake-v1", env_config={"is_slippery": False}))
    assert env.observation_space == gymnasium.spaces.Discrete(16)
    assert env.spec.kwargs["is_slippery"] is False
    env.close()


def test_a_callable_gets_the_settings() -> None:
    seen: list[Any] = []

    def toy(env_config: dict[str, Any]) -> str:
        seen.append(env_config)
        return "env"

    assert make_env(AlgorithmConfig().environment(toy, env_config={"a": 1})) == "env"
    assert seen == [{"a": 1}]


def test_no_environment() -> None:
    with pytest.raises(ConfigError, match=r"set \.environment"):
        make_env(AlgorithmConfig())


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(EnvError, match="Did you mean 'CartPole-v1'"):
        make_env(AlgorithmConfig().environment("CartPol-v1"))


def test_a_callable_that_raises_is_named() -> None:
    def broken(env_config: dict[str, Any]) -> None:
        raise ValueError("no display")

    with pytest.raises(EnvError, match=r"broken\(env_config=\{\}\) raised ValueError: no display"):
        make_env(AlgorithmConfig().environment(broken))


def test_a_wrong_setting_of_the_environment() -> None:
    with pytest.raises(EnvError, match=r"cannot be made.*env_config=\{'nonsense': 1\}"):
        make_env(AlgorithmConfig().environment("CartPole-v1", env_config={"nonsense": 1}))


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("HalfCheetah-v5", "mujoco", "mujoco"),
        ("BipedalWalker-v3", "Box2D", "box2d"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str) -> None:
    import sys

    for loaded in [key for key in sys.modules if key.partition(".")[0] == module or key.startswith("gymnasium.envs.")]:
        if not loaded.startswith("gymnasium.envs.registration"):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", {
        key: spec for key, spec in gymnasium.registry.items() if not key.startswith("ALE/")
    })  # fmt: skip
    with pytest.raises(EnvError, match=rf'pip install "learner-core\[{extra}\]"'):
        make_env(AlgorithmConfig().environment(name))
