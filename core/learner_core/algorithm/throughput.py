"""How fast an asynchronous run samples and learns, and how old the policy is that it learns from."""

from __future__ import annotations

import time

import numpy as np

from ..state.schema import COUNT, Record
from ..state.tree import Tree

__all__ = ["Throughput"]

_LIFETIME = (
    "num_updates_lifetime",
    "num_env_steps_trained_lifetime",
    "num_updates_dropped_lifetime",
    "num_env_steps_dropped_lifetime",
    "num_broadcasts_lifetime",
)


class Throughput:
    """Counters of a run, and rates of an iteration.

    The lag of a sequence is the number of updates between the weights that acted and those that it updates.

    Attributes:
        num_updates_lifetime: updates that are done; the version of the learners' weights.
        num_env_steps_trained_lifetime: timesteps learned from, each use counted.
        num_updates_dropped_lifetime: updates that a full queue or a full buffer cost.
        num_env_steps_dropped_lifetime: their timesteps.
        num_broadcasts_lifetime: sets of weights that runners were sent.
    """

    def __init__(self) -> None:
        self.num_updates_lifetime: int = 0
        self.num_env_steps_trained_lifetime: int = 0
        self.num_updates_dropped_lifetime: int = 0
        self.num_env_steps_dropped_lifetime: int = 0
        self.num_broadcasts_lifetime = 0
        self._lags: list[np.ndarray] = []
        self._last: dict[str, float] = {}
        self._start: dict[str, float] = {}

    def begin(self, num_env_steps_sampled: int, busy_seconds: float) -> None:
        """An iteration begins."""
        self._lags = []
        self._start = self._now(num_env_steps_sampled, busy_seconds)

    def trained(self, versions: np.ndarray, num_timesteps: int) -> None:
        """An update is done, on sequences sampled with weights of these versions."""
        self._lags.append(self.num_updates_lifetime - versions)
        self.num_updates_lifetime += 1
        self.num_env_steps_trained_lifetime += num_timesteps

    def drop(self, num_timesteps: int, num_updates: int) -> None:
        """Updates will not be made."""
        self.num_updates_dropped_lifetime += num_updates
        self.num_env_steps_dropped_lifetime += num_timesteps

    def end(self, num_env_steps_sampled: int, busy_seconds: float, queue_depth: int) -> None:
        """The iteration ends."""
        now, start = self._now(num_env_steps_sampled, busy_seconds), self._start
        spent = {name: now[name] - start[name] for name in now}
        seconds = max(spent["seconds"], 1e-9)
        lags = np.concatenate(self._lags) if self._lags else np.zeros(0)
        self._last = {
            "env_steps_sampled_per_second": spent["sampled"] / seconds,
            "env_steps_trained_per_second": spent["trained"] / seconds,
            "updates_per_second": spent["updates"] / seconds,
            # An update that began before the iteration counts where it ends.
            "learner_utilization": min(spent["busy"] / seconds, 1.0),
            "queue_depth": float(queue_depth),
            "num_updates": spent["updates"],
            "num_updates_dropped": spent["dropped"],
            **({"policy_lag_mean": float(lags.mean()), "policy_lag_max": float(lags.max())} if lags.size else {}),
        }

    def results(self) -> dict[str, float]:
        """Rates of the last iteration and lifetime counters."""
        return {**self._last, **{name: float(getattr(self, name)) for name in _LIFETIME}}

    def _now(self, sampled: int, busy_seconds: float) -> dict[str, float]:
        return {
            "seconds": time.perf_counter(),
            "sampled": float(sampled),
            "trained": float(self.num_env_steps_trained_lifetime),
            "updates": float(self.num_updates_lifetime),
            "dropped": float(self.num_updates_dropped_lifetime),
            "busy": busy_seconds,
        }

    def get_state(self) -> dict[str, int]:
        """The lifetime counters."""
        return {name: int(getattr(self, name)) for name in _LIFETIME}

    @staticmethod
    def state_schema() -> Record:
        """What ``set_state`` takes."""
        return Record(dict.fromkeys(_LIFETIME, COUNT))

    def set_state(self, state: Tree) -> None:
        """Go on from what ``get_state`` returned."""
        for name in _LIFETIME:
            setattr(self, name, int(state[name]))
