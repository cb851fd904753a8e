"""Any vector environment of gymnasium's as lanes, in any of its autoreset modes.

Needs a maker of vector environments. Refuses an unknown autoreset mode, SAME_STEP without final observations, an
environment that is no ``VectorEnv`` and does not say its mode, and environments that raise more often than allowed.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..action_parts import NestedActions
from ..config.foreign import closed, failure
from ..config.foreign_arrays import ArrayForm
from ..errors import EnvError, EnvOutputError
from ..plugins.containment import said
from ..state.tree import Plain, Tree
from .actions import EnvActions
from .answers import Infos, flags_of, reset_result, rewards_of, step_result
from .checked_env import check_infos
from .columns import Columns, tree_map
from .env_state import layers_of
from .lanes import DISABLED, NEXT_STEP, SAME_STEP, AnyEnv, AnyVectorEnv, Step, lose
from .observations import ObservationReader
from .rebuilding import Rebuilding, Tell
from .space_generators import SpaceSeeds

if TYPE_CHECKING:
    from ..spaces import AnySpace

__all__ = ["GymLanes"]

#: Above all levels of gymnasium's messages.
_SILENT = 99


class GymLanes(Rebuilding):
    """Any ``gymnasium.vector.VectorEnv``, in any of its autoreset modes.

    Args:
        make: Makes the vector environment.
        max_restarts: How many rebuilds are allowed. One that raises is rebuilt whole: all running episodes are lost.
        step_timeout_s: Seconds that environments in processes of their own (AsyncVectorEnv) may take for a step or a
            reset; then they are ended and made anew.
        whose: Lane -> its name in an error.
        tell: Told of every rebuild.
    """

    def __init__(
        self,
        make: Callable[[], AnyVectorEnv],
        *,
        max_restarts: int,
        step_timeout_s: float | None = None,
        whose: Callable[[int], str] | None = None,
        tell: Tell | None = None,
    ) -> None:
        super().__init__(max_restarts=max_restarts, tell=tell)
        self._step_timeout_s = step_timeout_s
        self._whose = whose or (lambda lane: f"environment {lane}")
        self._make = make
        self._seed = 0
        self._space_seeds: list[SpaceSeeds] = []
        self._adopt(make())

    def _adopt(self, env: AnyVectorEnv) -> None:
        self.env = env
        self.num_envs: int = int(env.num_envs)
        self.observation_space: AnySpace = env.single_observation_space
        self.action_space: AnySpace = env.single_action_space
        self._reader = ObservationReader(self.observation_space, self._whose)
        self._arrays = ArrayForm()
        mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
        if mode is None and not _is_gymnasiums(env):
            raise EnvError(
                f"{type(env).__name__} is {self.num_envs} environments and no gymnasium VectorEnv: say what it does "
                'where an episode ends, by metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP} '
                "(reset in the same step, the last observations in infos['final_obs']), NEXT_STEP or DISABLED"
            )
        # Vector environments without a word on it follow gymnasium's default.
        self.autoreset: str = str(getattr(mode, "value", mode or NEXT_STEP))
        if self.autoreset not in (NEXT_STEP, SAME_STEP, DISABLED):
            raise EnvError(f"unknown autoreset_mode={mode!r} in the metadata of {env}")
        self._was_done = np.zeros(self.num_envs, np.bool_)

    def reset(self, seeds: Sequence[int], out: Columns) -> None:
        self._seed = int(seeds[0])
        self.num_steps: int = 0
        try:
            obs = self._begin_anew(self._seed)
        except EnvOutputError:
            raise
        except BaseException as error:
            obs = self._rebuild(failure(error))
        self._was_done = np.zeros(self.num_envs, np.bool_)
        self._reader.write_all(out, obs)
        self._reader.check(out)

    def step(self, actions: EnvActions, out: Columns) -> Step:
        self.num_steps += 1
        try:
            step = self._step(actions, out)
        except EnvError:
            raise
        except BaseException as error:
            self._reader.write_all(out, self._rebuild(failure(error)))
            count = self.num_envs
            step = Step(np.zeros(count), np.zeros(count, np.bool_), np.zeros(count, np.bool_))
            lose(step, range(count), count)
        self._reader.check(out)
        return step

    def _step(self, actions: EnvActions, out: Columns) -> Step:
        """One step, copied before the reset of what has ended: environments may write into what they returned."""
        whose, count = self._whose, self.num_envs
        answer = step_result(self._stepped(self._arrays.give(_batched(actions))), 0, whose)
        infos = answer[4]
        check_infos(infos, whose)
        obs, rewards, terminateds, truncateds = self._arrays.read(answer[:4])
        step = Step(
            rewards_of(rewards, count, whose),
            flags_of(terminateds, "terminateds", count, whose),
            flags_of(truncateds, "truncateds", count, whose),
        )
        done = step.terminateds | step.truncateds
        self._reader.write_all(out, obs)
        if self.autoreset == NEXT_STEP:
            if self._was_done.any():
                step.valid = ~self._was_done
            self._was_done = done
        elif done.any():
            lanes = [int(lane) for lane in np.flatnonzero(done)]
            if self.autoreset == SAME_STEP:
                step.finals = {lane: self._final(infos, lane) for lane in lanes}
            else:
                self._reader.check(out)
                step.finals = {lane: _pick(out, lane) for lane in lanes}
                self._reader.write_all(out, self._reset_some(done))
        return step

    def begin_again(self, lanes: Sequence[int], out: Columns) -> bool:
        if self.autoreset != DISABLED:
            return False
        chosen = np.zeros(self.num_envs, np.bool_)
        chosen[list(lanes)] = True
        try:
            self._reader.write_all(out, self._reset_some(chosen))
        except EnvError:
            raise
        except BaseException as error:
            self._reader.write_all(out, self._rebuild(failure(error)))
        self._reader.check(out)
        return True

    def _reset_some(self, chosen: np.ndarray) -> object:
        """Reset the environments of a mask bool[N]; the observations of all."""
        return self._reset(options={"reset_mask": self._arrays.give(chosen)})

    def _final(self, infos: Infos, lane: int) -> Columns:
        if "final_obs" not in infos:
            raise EnvError(
                f"environment {lane} ended its episode in autoreset mode {SAME_STEP} without infos['final_obs']: "
                "the value of a truncated episode cannot be known. Put the last observations there, as gymnasium's own "
                "vectors do, or take the mode DISABLED, in which it is reset by reset_mask"
            )
        final = infos["final_obs"]
        if isinstance(final, np.ndarray) and final.dtype == object:
            return self._reader.read(self._arrays.read(final[lane]), lane)
        final = self._arrays.read(final)
        batch = self._reader.empty(self.num_envs)  # as some native environments give it
        self._reader.write_all(batch, final)
        picked = _pick(batch, lane)
        self._reader.check(tree_map(lambda leaf: leaf[np.newaxis], picked), lambda _: self._whose(lane))
        return picked

    def _rebuild(self, error: Exception) -> object:
        def begin(error: Exception, seed: int) -> object:
            self._close_broken(error)
            self._adopt(self._make())
            return self._begin_anew(seed)

        try:
            return self._retry(_inner(error), begin, seed=self._seed, whose=self._whose_vector)
        except EnvError:
            if hasattr(self.env, "processes"):
                _end_processes(self.env)  # asked to close, it would wait for those that are dead or hang
            raise

    def _begin_anew(self, seed: int) -> object:
        """Seed the environments with their spaces, and reset them; their first observations."""
        for number, env in enumerate(self.environments()):
            if number == len(self._space_seeds):
                self._space_seeds.append(SpaceSeeds())
            self._space_seeds[number].seed(layers_of(env), seed + number)
        return self._reset(seed=seed)

    def _stepped(self, actions: object) -> object:
        if self._step_timeout_s is None or not hasattr(self.env, "processes"):
            return self.env.step(actions)
        self.env.step_async(actions)
        return self._in_time(self.env.step_wait)

    def _reset(self, **arguments: object) -> object:
        """The first observations of the environments that are reset."""
        if self._step_timeout_s is None or not hasattr(self.env, "processes"):
            result = self.env.reset(**arguments)
        else:
            self.env.reset_async(**arguments)
            result = self._in_time(self.env.reset_wait)
        obs, infos = reset_result(result, 0, self._whose)
        read = self._arrays.read(obs)
        check_infos(infos, self._whose)
        return read

    def _in_time(self, wait: Callable[..., object]) -> object:
        """The answer of environments in processes of their own."""
        from gymnasium import logger

        level = logger.min_level
        logger.min_level = _SILENT  # it would warn of an exception over there, which is raised here
        try:
            return wait(timeout=self._step_timeout_s)
        except multiprocessing.TimeoutError as error:
            raise TimeoutError(f"{error} (env_step_timeout_s={self._step_timeout_s:g})") from error
        finally:
            logger.min_level = level

    def _close_broken(self, error: Exception) -> None:
        """Close an environment that raised; whatever it says to that becomes a note of the error.

        AsyncVectorEnv.close waits for the answer of a worker that died, and then gives up with the others running:
        its processes and pipes are done away with here instead.
        """
        if hasattr(self.env, "processes"):
            _end_processes(self.env)
            return
        try:
            self.env.close()
        except BaseException as close_error:
            error.add_note(f"closing it raised {said(failure(close_error))}")
            self.env.closed = True  # or its destructor tries again

    def environments(self) -> list[AnyEnv | AnyVectorEnv]:
        if hasattr(self.env, "processes"):
            return []  # the environments live in other processes
        if hasattr(self.env.unwrapped, "envs"):
            return [self.env, *self.env.unwrapped.envs]
        return [self.env]

    def get_state(self) -> dict[str, Plain]:
        return {
            "kind": f"{type(self.env.unwrapped).__qualname__}/{self.autoreset}",
            "num_restarts": self.num_restarts,
            "seed": self._seed,
            "was_done": self._was_done.copy(),
        }

    def set_state(self, state: Tree) -> None:
        self.num_restarts: int = int(state["num_restarts"])
        self._seed = int(state["seed"])
        self._was_done = np.array(state["was_done"], np.bool_)

    def close(self) -> None:
        closed(self.env.close, whose=self._whose_vector)

    def _whose_vector(self) -> str:
        return f"the vector environment of {self._whose(0)}"


def _is_gymnasiums(env: AnyVectorEnv) -> bool:
    import gymnasium as gym

    return isinstance(env, gym.vector.VectorEnv)


def _inner(error: Exception) -> Exception:
    """What was raised in a process of gymnasium's, which raises it here inside of another of its kind."""
    inner = error.args[0] if len(error.args) == 1 else None
    return inner if isinstance(inner, Exception) and type(inner) is type(error) else error


def _end_processes(env: AnyVectorEnv) -> None:
    """Let nothing be left of an AsyncVectorEnv, whatever its processes are doing; may be called twice."""
    if env.closed:
        return
    for process in env.processes:
        process.kill()  # one that hangs in native code, or is stopped, hears nothing else
    for process in env.processes:
        process.join()
        process.close()
    for pipe in env.parent_pipes:
        if pipe is not None:  # of a process that raised
            pipe.close()
    env.error_queue.close()
    env.closed = True


def _pick(obs: Columns, lane: int) -> Columns:
    return tree_map(lambda leaf: np.array(leaf[lane]), obs)


def _batched(actions: EnvActions) -> object:
    """As a vector environment takes them: those of a Dict or Tuple part by part."""
    return actions.batched if isinstance(actions, NestedActions) else actions
