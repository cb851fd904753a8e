"""Environments that raise end the run, or are replaced by new ones, so many times and no more.

Needs a way to begin again with a seed. Refuses environments that raise more often than allowed (never, by default), and
those whose exception says that they break their interface, which a new one would do as well. The seed of a new one
follows from the lane's first seed and the number of rebuilds, so that it is the same in every run.
"""

from __future__ import annotations

import functools
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from ..config.agents import Environment
from ..config.foreign import closed, failure
from ..config.foreign_arrays import ArrayForm
from ..errors import EnvError, EnvOutputError
from ..plugins.containment import said
from ..state.tree import Plain, Tree
from .contract import broken_contract
from .env_state import layers_of
from .space_generators import SpaceSeeds

__all__ = ["EnvList", "Rebuilding", "Tell", "warn"]

#: Takes the text of a warning.
Tell: TypeAlias = Callable[[str], None]
_Env = TypeVar("_Env", bound=Environment)
#: What an environment shows when an episode begins.
_Shown = TypeVar("_Shown")


def warn(text: str) -> None:
    """Tell the user of this process."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)


class Rebuilding:
    """What lanes have that rebuild environments.

    Args:
        max_restarts: How many rebuilds are allowed over the lifetime of the lanes.
        tell: Told of every rebuild; by default the user of this process.

    Attributes:
        num_restarts: How many there have been.
        num_steps: Steps since the last reset of all environments.
    """

    #: Errors of a new environment that another one would not mend: they come out at once.
    final_errors: tuple[type[Exception], ...] = (EnvOutputError,)

    def __init__(self, *, max_restarts: int, tell: Tell | None = None) -> None:
        self.max_restarts = max_restarts
        self._tell = tell or warn
        self.num_restarts: int = 0
        self.num_steps = 0

    def _retry(
        self, error: Exception, begin: Callable[[Exception, int], _Shown], *, seed: int, whose: Callable[[], str]
    ) -> _Shown:
        """Begin again until it succeeds.

        Args:
            error: What the environment raised.
            begin: (that error, seed) -> the first observation; makes the new environment.
            seed: The seed that the lane began with.
            whose: Names the environment in an error.

        Returns:
            What ``begin`` returned.

        Raises:
            EnvOutputError: It breaks the interface of environments.
            EnvError: No more rebuilds are allowed; its cause is the environment's exception.
        """
        while True:
            if rule := broken_contract(error):
                raise EnvOutputError(f"{whose()}: {rule}") from error
            if self.num_restarts >= self.max_restarts:
                raise EnvError(f"{whose()}: raised {said(error)}{self._place_of(error)}. {self._remedy}") from error
            self.num_restarts += 1
            self._tell(
                f"{whose()}: raised {said(error)}{self._place_of(error)}. Its episode is given up and it is made anew, "
                f"{self.num_restarts} of {self.max_restarts} times (max_env_restarts)."
            )
            try:
                return begin(error, int(np.random.SeedSequence([seed, self.num_restarts]).generate_state(1)[0]))
            except self.final_errors:
                raise
            except BaseException as next_error:
                error = failure(next_error)

    @property
    def _remedy(self) -> str:
        if self.max_restarts:
            return f"max_env_restarts={self.max_restarts} rebuilds are used up"
        return (
            "To go on with a new environment instead, without that episode, N times at most: "
            ".environment(..., max_env_restarts=N)"
        )

    @staticmethod
    def _place_of(error: Exception) -> str:
        """Where it was raised: the innermost line."""
        frames = traceback.extract_tb(error.__traceback__)
        return f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""


class EnvList(Rebuilding, Generic[_Env, _Shown]):
    """N environments of this process, of any interface, each rebuilt by itself.

    Args:
        make: Makes one environment.
        num_envs: How many.
        max_restarts: How many rebuilds are allowed over the lifetime of the lanes.
        whose: Index -> the environment's name in an error.
        tell: As for ``Rebuilding``.
    """

    #: What a state says it is of.
    kind: str

    def __init__(
        self,
        make: Callable[[], _Env],
        num_envs: int,
        *,
        max_restarts: int,
        whose: Callable[[int], str],
        tell: Tell | None = None,
    ) -> None:
        super().__init__(max_restarts=max_restarts, tell=tell)
        self._make = make
        self._whose = whose
        self.num_envs = num_envs
        self.envs: list[_Env] = [make() for _ in range(num_envs)]
        self._arrays = [ArrayForm() for _ in range(num_envs)]
        #: Steps of each one's running episode.
        self._lengths = [0] * num_envs
        self._seeds = [0] * num_envs
        self._space_seeds = [SpaceSeeds() for _ in range(num_envs)]

    def _take_seeds(self, seeds: Sequence[int]) -> list[int]:
        """Rebuilt environments get theirs from these from now on."""
        self._seeds = [int(seed) for seed in seeds]
        return self._seeds

    def _begin_anew(self, index: int, seed: int) -> _Shown:
        """Seed one environment with its spaces, and reset it; its first observation."""
        self._space_seeds[index].seed(layers_of(self.envs[index]), seed)
        return self._begin(index, seed=seed)

    def _begin(self, index: int, /, **seed: int) -> _Shown:
        """Reset one environment; its first observation."""
        raise NotImplementedError

    def _rebuild(self, index: int, error: Exception) -> _Shown:
        """Replace one environment by a new one; its first observation."""

        def begin(error: Exception, seed: int) -> _Shown:
            try:
                self.envs[index].close()
            except BaseException as close_error:
                error.add_note(f"closing it raised {said(failure(close_error))}")
            self.envs[index], self._arrays[index] = self._make(), ArrayForm()
            return self._begin_anew(index, seed)

        return self._retry(error, begin, seed=self._seeds[index], whose=lambda: self._named(index))

    def _named(self, index: int) -> str:
        """Names an environment that raised, and when."""
        return f"{self._whose(index)}, step {self._lengths[index]} of its episode"

    def whose(self, index: int) -> str:
        """Names an environment in an error."""
        return self._whose(index)

    def environments(self) -> list[_Env]:
        """The environments, whose state may be saved."""
        return list(self.envs)

    def get_state(self) -> dict[str, Plain]:
        """What the lanes themselves carry from step to step."""
        return {"kind": self.kind, "num_restarts": self.num_restarts, "seeds": list(self._seeds)}

    def set_state(self, state: Tree) -> None:
        """Take it back."""
        self.num_restarts: int = int(state["num_restarts"])
        self._take_seeds(state["seeds"])

    def close(self) -> None:
        """Release the environments; safe to call twice."""
        for index, env in enumerate(self.envs):
            closed(env.close, whose=functools.partial(self._whose, index))
