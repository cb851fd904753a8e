"""Vector environments whose every number can be told beforehand, and arrays of a library that is not numpy."""

from __future__ import annotations

import sys
import types
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from .told import Told, Wander

__all__ = ["Clocks", "Endless", "Tensor", "fake_library", "make_vector", "own_reset_modes"]

MODE = gym.vector.AutoresetMode


def own_reset_modes() -> list[Any]:
    """All of gymnasium's autoreset modes."""
    return [MODE.NEXT_STEP, MODE.SAME_STEP, MODE.DISABLED]


def make_vector(kind: str = "told", number: int = 3, mode: Any = MODE.SAME_STEP) -> Any:
    """A vector environment: "told", "wander" (of boxes: "told-box", "wander-box"), "endless" or "masked"."""
    make = {
        "told": Told,
        "told-box": lambda: Told(continuous=True),
        "wander": Wander,
        "wander-box": lambda: Wander(continuous=True),
        "endless": Endless,
        "masked": Masked,
    }[kind]
    return gym.vector.SyncVectorEnv([make] * number, autoreset_mode=mode)


class Endless(Told):
    """Shows halves, pays 1 a step; no episode ends, but those that ``ends`` says: of the episodes' numbers, from 1."""

    def __init__(self, ends: dict[int, int] | None = None) -> None:
        super().__init__()
        self.ends, self.episode = ends or {}, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.episode += 1
        super().reset(seed=seed)
        return np.full(2, 0.5, np.float32), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        return np.full(2, 0.5, np.float32), 1.0, self.clock == self.ends.get(self.episode), False, {}


class Masked(Told):
    """Forbids action 0, in its observation."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(
            {"observation": spaces.Box(-1, 1, (2,), np.float32), "action_mask": spaces.MultiBinary(2)}
        )

    def _shown(self, obs: Any) -> dict[str, Any]:
        return {"observation": obs, "action_mask": np.array([0, 1], np.int8)}

    def reset(self, **options: Any) -> Any:
        obs, info = super().reset(**options)
        return self._shown(obs), info

    def step(self, action: Any) -> Any:
        assert action == 1
        obs, *rest = super().step(action)
        return self._shown(obs), *rest


class Tensor:
    """An array of a library that is not numpy, on a device that numpy cannot read: only ``cpu()`` brings it."""

    __module__ = "fake_tensors.core"

    def __init__(self, values: Any, device: str = "chip") -> None:
        self.values, self.device = np.asarray(values), device

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("not on this device")

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return Tensor(self.values, "cpu")

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self.device != "cpu":
            raise TypeError("can't convert a tensor of the chip to numpy")
        return np.asarray(self.values, dtype)


def fake_library(monkeypatch: Any) -> None:
    """Let ``fake_tensors`` be imported, for the length of a test."""
    module = types.ModuleType("fake_tensors")
    module.asarray = lambda values, device="cpu": Tensor(values, device)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_tensors", module)


class Clocks(gym.vector.VectorEnv[Any, Any, Any]):
    """N episodes of 3, 4, ... steps, in arrays of another library; pays the action.

    Args:
        asarray: Makes such an array of numpy's.
        kind: The class that actions must be of.
        mode: What it does where an episode ends.
        number: N.
    """

    def __init__(self, asarray: Any, kind: type, mode: Any = MODE.SAME_STEP, number: int = 2) -> None:
        self.num_envs, self.kind, self.asarray = number, kind, asarray
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, number)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, number)
        self.clock, self.lengths = np.zeros(number, np.int64), np.arange(3, 3 + number)
        self.was_done = np.zeros(number, np.bool_)

    def _obs(self) -> Any:
        return self.asarray(np.stack([self.clock / 10, self.clock * 0.0], axis=1).astype(np.float32))

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        chosen = np.ones(self.num_envs, np.bool_)
        if options is not None:
            assert isinstance(options["reset_mask"], self.kind)
            chosen = np.asarray(options["reset_mask"].cpu())
        self.clock[chosen], self.was_done[chosen] = 0, False
        return self._obs(), {}

    def step(self, actions: Any) -> Any:
        assert isinstance(actions, self.kind), type(actions)
        chosen = np.asarray(actions.cpu())
        resets = self.was_done if self.metadata["autoreset_mode"] == MODE.NEXT_STEP else np.zeros_like(self.was_done)
        self.clock = np.where(resets, 0, self.clock + 1)
        done = self.clock == self.lengths
        rewards, infos = np.where(resets, 0.0, chosen).astype(np.float32), {}
        if self.metadata["autoreset_mode"] == MODE.SAME_STEP and done.any():
            infos = {"final_obs": self._obs(), "_final_obs": self.asarray(done), "text": "any"}
            self.clock = np.where(done, 0, self.clock)
        self.was_done = done
        never = np.zeros_like(done)
        return self._obs(), self.asarray(rewards), self.asarray(done), self.asarray(never), infos
