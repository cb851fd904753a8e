"""An environment in a process of gymnasium's, compared with its spaces over there.

Needs a gymnasium environment. Gymnasium's ``AsyncVectorEnv`` casts observations into shared memory and resets at the
end of an episode before it sends the final observation: by the time this process sees them, wrong values fit and an
environment that reuses its array has lost its last one. So both are looked after where the environment is. What does
not fit is said in ``info``: an exception over there would end the process and be told on the terminal, too. One of the
environment's own takes its traceback along.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from ..config.foreign_arrays import ArrayForm
from ..errors import EnvError, EnvOutputError
from ..plugins.containment import said
from ..spaces import AnySpace
from .answers import Infos, flag_of, reset_result, reward_of, step_result
from .columns import Columns, tree_map
from .contract import broken_contract
from .env_state import layers_of
from .lanes import AnyEnv
from .observations import ObservationReader
from .space_generators import SpaceSeeds

__all__ = ["CheckedEnv", "check_infos"]

_KEY = "learner_core_refused"
_NAME = "environment"


class CheckedEnv:
    """The environment; what it returns is a copy that fits its spaces. Everything else is its own.

    Args:
        env: The environment.
    """

    def __init__(self, env: AnyEnv) -> None:
        self.env = env
        self._space_seeds = SpaceSeeds()
        self._arrays = ArrayForm()
        self._reader = ObservationReader(env.observation_space, _whose)

    def __getattr__(self, name: str) -> object:
        if name == "env" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, **options: Any) -> tuple[object, object]:
        """As the environment's; a seed is for its spaces, too."""
        if options.get("seed") is not None:
            self._space_seeds.seed(layers_of(self.env), options["seed"])
        try:
            obs, info = reset_result(self._asked("reset", **options), 0, _whose)
            return self._as_given(self._reader.read(self._arrays.read(obs), 0)), info
        except EnvOutputError as error:
            return self._nothing(), _refused(error)

    def step(self, action: object) -> tuple[object, float, bool, bool, object]:
        """As the environment's."""
        try:
            *answer, info = step_result(self._asked("step", self._arrays.give(action)), 0, _whose)
            obs, reward, terminated, truncated = self._arrays.read(answer)
            return (
                self._as_given(self._reader.read(obs, 0)),
                reward_of(reward, 0, _whose),
                flag_of(terminated, "terminated", 0, _whose),
                flag_of(truncated, "truncated", 0, _whose),
                info,
            )
        except EnvOutputError as error:
            return self._nothing(), 0.0, False, False, _refused(error)

    def _asked(self, method: str, *given: object, **options: object) -> object:
        """What a method of the environment returns.

        Raises:
            EnvOutputError: Its exception says that it breaks the interface.
            Exception: Of its own, with its traceback as a note; one that cannot be sent is told by another.
        """
        try:
            return getattr(self.env, method)(*given, **options)
        except Exception as error:
            if rule := broken_contract(error):
                raise EnvOutputError(f"{_NAME}: {rule}") from error
            trace = "".join(traceback.format_exception(error))
            sent = error if _travels(error) else EnvError(said(error))
            sent.add_note(f"raised in the environment's process; its traceback:\n{trace}")
            raise sent from None

    def _nothing(self) -> object:
        return self._as_given(tree_map(lambda leaf: np.zeros_like(leaf[0]), self._reader.empty()))

    def _as_given(self, columns: Columns) -> object:
        return _in_form(self.env.observation_space, columns)


def check_infos(infos: Infos, whose: Callable[[int], str]) -> None:
    """Refuse what a ``CheckedEnv`` has refused in its process.

    Args:
        infos: of the vector of environments.
        whose: Index -> the environment's name.

    Raises:
        EnvOutputError: As over there, with the name that the environment has here.
    """
    if _KEY in infos:
        index = int(np.flatnonzero(infos[f"_{_KEY}"])[0])
        raise EnvOutputError(f"{whose(index)}: {infos[_KEY][index]}")


def _travels(error: Exception) -> bool:
    """Whether gymnasium can send an exception to the process that started this one, and raise it there."""
    try:
        again = type(error)(pickle.loads(pickle.dumps(error)))
    except Exception:
        return False
    return type(again) is type(error)


def _whose(_: int) -> str:
    return _NAME


def _refused(error: EnvOutputError) -> dict[str, str]:
    return {_KEY: str(error).removeprefix(f"{_NAME}: ")}


def _in_form(space: AnySpace, columns: Columns) -> object:
    """An observation in the form of its space, of one in the form of columns."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {key: _in_form(inner, columns[str(key)]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_in_form(inner, columns[str(i)]) for i, inner in enumerate(space.spaces))
    return columns
