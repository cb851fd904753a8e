"""Gymnasium's pendulum with half of the torque."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.pendulum import PendulumEnv

__all__ = ["WeakPendulum"]


class WeakPendulum(PendulumEnv):  # type: ignore[misc]
    """Torque from -1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.max_torque = 1.0
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
