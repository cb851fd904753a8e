"""Any vector environment of gymnasium's as lanes, in any of its autoreset modes.

Needs a maker of vector environments. Refuses an unknown autoreset mode, SAME_STEP without final observations, and
environments that raise more often than allowed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import EnvError
from ..spaces import to_columns
from .columns import Columns, tree_map
from .lanes import DISABLED, NEXT_STEP, SAME_STEP, Step, lose, write
from .rebuilding import Rebuilding

__all__ = ["GymLanes"]


class GymLanes(Rebuilding):
    """Any ``gymnasium.vector.VectorEnv``, in any of its autoreset modes.

    Args:
        make: Makes the vector environment.
        max_restarts: How many rebuilds are allowed. One that raises is rebuilt whole: all running episodes are lost.
    """

    def __init__(self, make: Callable[[], Any], *, max_restarts: int) -> None:
        super().__init__(max_restarts=max_restarts)
        self._make = make
        self._seed = 0
        self._adopt(make())

    def _adopt(self, env: Any) -> None:
        self.env = env
        self.num_envs = int(env.num_envs)
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        mode = env.metadata.get("autoreset_mode")
        # Vector environments without a word on it follow gymnasium's default.
        self.autoreset = str(getattr(mode, "value", mode or NEXT_STEP))
        if self.autoreset not in (NEXT_STEP, SAME_STEP, DISABLED):
            raise EnvError(f"unknown autoreset_mode={mode!r} in the metadata of {env}")
        self._was_done = np.zeros(self.num_envs, np.bool_)

    def reset(self, seeds: Sequence[int], out: Columns) -> None:
        self._seed = int(seeds[0])
        try:
            obs, _ = self.env.reset(seed=self._seed)
        except Exception as error:
            obs = self._rebuild(error)
        self._was_done = np.zeros(self.num_envs, np.bool_)
        write(out, obs)

    def step(self, actions: Any, out: Columns) -> Step:
        try:
            obs, rewards, terminateds, truncateds, infos = self.env.step(actions)
            step = Step(np.asarray(rewards), np.asarray(terminateds), np.asarray(truncateds))
            if self.autoreset == NEXT_STEP:
                was_done = self._was_done
                if was_done.any():
                    step.valid = ~was_done
                self._was_done = step.terminateds | step.truncateds
            else:
                done = step.terminateds | step.truncateds
                if done.any():
                    lanes = np.flatnonzero(done)
                    if self.autoreset == SAME_STEP:
                        step.finals = {int(lane): self._final(infos, int(lane)) for lane in lanes}
                    else:
                        step.finals = {
                            int(lane): _pick(to_columns(self.observation_space, obs), int(lane)) for lane in lanes
                        }
                        obs, _ = self.env.reset(options={"reset_mask": done})
            write(out, obs)
            return step
        except EnvError:
            raise
        except Exception as error:
            write(out, self._rebuild(error))
            count = self.num_envs
            step = Step(np.zeros(count), np.zeros(count, np.bool_), np.zeros(count, np.bool_))
            lose(step, range(count), count)
            return step

    def _final(self, infos: Mapping[str, Any], lane: int) -> Columns:
        if "final_obs" not in infos:
            raise EnvError(
                f"environment {lane} ended its episode in autoreset mode {SAME_STEP} without infos['final_obs']: "
                "the value of a truncated episode cannot be known"
            )
        final = infos["final_obs"]
        if isinstance(final, Mapping) or not (isinstance(final, np.ndarray) and final.dtype == object):
            return _pick(
                to_columns(self.observation_space, final), lane
            )  # a batch, as some native environments give it
        return tree_map(np.array, to_columns(self.observation_space, final[lane]))

    def _rebuild(self, error: Exception) -> Any:
        def begin(_: Exception, seed: int) -> Any:
            try:
                self._adopt(self._make())
                return self.env.reset(seed=seed)[0]
            except Exception as next_error:
                self._close_broken(next_error)
                raise

        self._close_broken(error)
        return self._retry(error, begin, seed=self._seed, whose=lambda: f"vector environment {self.env}")

    def _close_broken(self, error: Exception) -> None:
        """Close an environment that raised; whatever it says to that becomes a note of the error.

        AsyncVectorEnv.close waits for the answer of a worker that died, and then gives up with the others running:
        they are stopped here first.
        """
        processes = getattr(self.env, "processes", [])
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # gymnasium warns of the call that will never be answered
                self.env.close(**({"terminate": True} if processes else {}))
        except Exception as close_error:
            error.add_note(f"closing it raised {type(close_error).__name__}: {close_error}")
            self.env.closed = True  # or its destructor tries again

    def environments(self) -> list[Any]:
        if hasattr(self.env, "processes"):
            return []  # the environments live in other processes
        if hasattr(self.env.unwrapped, "envs"):
            return [self.env, *self.env.unwrapped.envs]
        return [self.env]

    def get_state(self) -> dict[str, Any]:
        return {
            "kind": f"{type(self.env.unwrapped).__qualname__}/{self.autoreset}",
            "num_restarts": self.num_restarts,
            "seed": self._seed,
            "was_done": self._was_done.copy(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.num_restarts = int(state["num_restarts"])
        self._seed = int(state["seed"])
        self._was_done = np.array(state["was_done"], np.bool_)

    def close(self) -> None:
        self.env.close()


def _pick(obs: Columns, lane: int) -> Columns:
    return tree_map(lambda leaf: np.array(leaf[lane]), obs)
