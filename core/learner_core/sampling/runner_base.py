"""What every environment runner in this process has: counters, seeds, statistics, and a state to go on from.

Needs lanes, and a config (``env max_env_restarts``). Refuses states of another number of environments and environments
of other classes than the saved ones. Everything random is a function of the seed and of counters, so that a runner
continued from its state goes on as if it had never stopped, as far as its environments can be saved (``env_state``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..config.agents import EnvSource, is_environment
from ..config.algorithm_settings import AlgorithmSettings
from ..config.given_environments import maker_of
from ..learning.rl_module import RLModuleSpec
from ..state.schema import COUNT, SEED, Anything, ListOf, Nullable, OneOf, Record, Schema, refuse
from ..state.tree import Plain, Tree, describe, join
from .env_state import check_env, restore_env, save_env
from .episodes import EPISODE, Episode
from .lanes import LanesSchema
from .normalize import RunningMoments, Statistics
from .rebuilding import Tell

__all__ = ["RunnerBase"]


class RunnerBase(ABC):
    """N environments and what happened in them; a subclass makes ``lanes`` and samples.

    Args:
        config: An ``AlgorithmSettings``, or anything with its fields.
        worker_index: Which runner this is; runners of one seed have noise and environments of their own.
        tell: Told of every environment that is made anew; by default the user of this process.
    """

    lanes: Any
    num_envs: int
    seed: int

    #: What a state of such a runner is called.
    _state_name: ClassVar[str]

    def __init__(self, config: AlgorithmSettings, *, worker_index: int, tell: Tell | None = None) -> None:
        self._config = config
        self._env = config.env
        self._max_restarts = int(config.max_env_restarts)
        self._tell = tell
        self.worker_index = worker_index
        self._finished: list[Episode] = []
        self._num_vector_steps = 0
        self._num_env_steps = 0
        self._num_evaluations = 0

    # ------------------------------------------------------------------------------------------------ for everybody

    @property
    def env_state(self) -> str:
        """What ``get_state`` can say of the environments: "exact", or "restarted" (``env_state_reason`` says why)."""
        return "restarted" if self._save_envs()[1] else "exact"

    @property
    def env_state_reason(self) -> str:
        """What stands in the way of saving the environments exactly; "" if nothing does."""
        return self._save_envs()[1]

    @property
    def num_vector_steps(self) -> int:
        """Steps of all environments together so far: the key of the noise, and a sign of progress."""
        return self._num_vector_steps

    @property
    def count_names(self) -> set[str]:
        """What ``metrics`` counts over the lifetime."""
        return {"num_env_steps_sampled_lifetime", "num_env_restarts_lifetime", *self._counts()}

    def metrics(self) -> dict[str, Any]:
        """What happened since the last call, and over the lifetime.

        Returns:
            ``episodes`` (list of ``Episode``), ``num_env_steps_sampled_lifetime``, ``num_episodes_lifetime``,
            ``num_episodes_lost_lifetime``, ``num_env_restarts_lifetime``, and what the kind of runner counts besides.
        """
        finished, self._finished = self._finished, []
        return {
            "episodes": finished,
            "num_env_steps_sampled_lifetime": self._num_env_steps,
            **self._counts(),
            "num_env_restarts_lifetime": self.lanes.num_restarts,
        }

    def take_statistics(self) -> Statistics:
        """What the normalisers saw since the last call (at the first: ever), for other runners.

        Returns:
            {name: moments ``{"count", "mean", "m2"}``}; {} without normalisers.
        """
        return {name: moments.take_fresh() for name, moments in self._moments().items()}

    def get_statistics(self) -> Statistics:
        """All that the normalisers know: {name: moments}, as ``take_statistics`` names them; copies."""
        return {name: moments.get_state() for name, moments in self._moments().items()}

    def set_statistics(self, statistics: Mapping[str, Tree]) -> None:
        """Normalise by these moments from now on; what ``take_statistics`` has not told yet stays to be told.

        Args:
            statistics: {name: moments}, as ``take_statistics`` names them; those that are not named stay.
        """
        for name, moments in self._moments().items():
            if name in statistics:
                fresh = moments.fresh
                moments.set_state(statistics[name], path=name)
                moments.fresh = fresh
        self._refresh()

    def close(self) -> None:
        """Release the environments, but no object that was handed over; safe to call twice."""
        if not is_environment(self._env):
            self.lanes.close()
        self._close_evaluation()

    # ------------------------------------------------------------------------------------------------------- state

    def get_state(self, *, environments: bool = True) -> dict[str, Plain]:
        """Everything needed to go on, as plain data and arrays that share no memory with the runner.

        Args:
            environments: False leaves the environments out, which takes less time; a runner that goes on from that
                starts new episodes.

        Returns:
            Seed, counters, normalisers, running episodes, current observations, and the environments' states; under
            ``env_state`` whether those are "exact" or will be "restarted". Weights and modules are not part of it.
        """
        envs, reason = self._save_envs() if environments else (None, "left out")
        return {
            "seed": self.seed,
            "num_envs": self.num_envs,
            "num_vector_steps": self._num_vector_steps,
            "num_env_steps_sampled_lifetime": self._num_env_steps,
            "num_evaluations": self._num_evaluations,
            "finished": [episode.to_plain() for episode in self._finished],
            **self._get_own_state(),
            "lanes": self.lanes.get_state(),
            "env_state": "restarted" if reason else "exact",
            "envs": envs,
        }

    def set_state(self, state: Tree) -> str:
        """Go on from a state; modules must be those it was taken with.

        Environments saved exactly go on where they were. Others start new episodes, with seeds that follow from the
        state (the same in every resumed run); their running episodes are given up.

        Args:
            state: What ``get_state`` returned, here or elsewhere.

        Returns:
            "exact" or "restarted".

        Raises:
            StateError: Another number of environments, other modules, normalisers or observations, or another
                environment. Nothing has changed then.
        """
        self.state_schema().check(state, "")
        exact = self._is_exact(state)
        self._set_own_state(state, exact=exact)
        self._set_seed(int(state["seed"]))
        self._num_vector_steps = int(state["num_vector_steps"])
        self._num_env_steps = int(state["num_env_steps_sampled_lifetime"])
        self._num_evaluations = int(state["num_evaluations"])
        self._finished = [Episode.from_plain(episode) for episode in state["finished"]]
        if exact:
            self.lanes.set_state(state["lanes"])
            for env, saved in zip(self.lanes.environments(), state["envs"], strict=True):
                restore_env(env, saved)
            return "exact"
        self.lanes.num_restarts = int(state["lanes"]["num_restarts"])
        self._start_episodes()
        return "restarted"

    def _is_exact(self, state: Tree) -> bool:
        """Whether the state's environments can go on here: saved whole, and stepped in the same way."""
        return bool(state["env_state"] == "exact" and state["lanes"]["kind"] == self.lanes.get_state()["kind"])

    def state_schema(self, module_specs: Mapping[str, RLModuleSpec] | None = None) -> Record:
        """What ``set_state`` takes.

        Args:
            module_specs: of a multi-agent runner, the modules that it will have by then; ``None``: those it has.
        """
        fields: dict[str, Schema] = {
            "seed": SEED,
            "num_envs": OneOf((self.num_envs,)),
            "num_vector_steps": COUNT,
            "num_env_steps_sampled_lifetime": COUNT,
            "num_evaluations": COUNT,
            "finished": ListOf(EPISODE),
            "lanes": LanesSchema(self.num_envs),
            "env_state": OneOf(("exact", "restarted")),
            "envs": Nullable(ListOf(Anything())),
        }
        own, optional = self._own_schema(module_specs)

        def rule(state: Tree, path: str) -> None:
            self._check_parts(state, path)
            self._check_environments(state, path)

        return Record(fields | own, optional, rule=rule, what=self._state_name)

    def _check_parts(self, state: Tree, path: str) -> None:
        """Refuse what a subclass keeps in several entries that do not go together."""
        return

    def _check_environments(self, state: Tree, path: str) -> None:
        """Refuse environments that cannot go on as the state says."""
        place = join(path, "envs")
        if (state["envs"] is None) != (state["env_state"] == "restarted"):
            refuse(place, 'environments with env_state "exact", None with "restarted"', describe(state["envs"]))
        if not self._is_exact(state):
            return
        environments = self.lanes.environments()
        if len(environments) != len(state["envs"]):
            refuse(place, f"{len(environments)} environments", f"{len(state['envs'])}")
        for index, (env, saved) in enumerate(zip(environments, state["envs"], strict=True)):
            check_env(env, saved, join(place, index, index=True))

    def _save_envs(self) -> tuple[list[Tree] | None, str]:
        environments = self.lanes.environments()
        if not environments:
            return None, "the environments run in other processes"
        states: list[Tree] = []
        for env in environments:
            state, reason = save_env(env)
            if state is None:
                return None, reason
            states.append(state)
        return states, ""

    # ------------------------------------------------------------------------------------------------ for subclasses

    @abstractmethod
    def _counts(self) -> dict[str, int]:
        """Lifetime counts besides those of every runner."""

    @abstractmethod
    def _moments(self) -> dict[str, RunningMoments]:
        """What the normalisers know, by names that all runners of a run have in common."""

    @abstractmethod
    def _refresh(self) -> None:
        """The moments have been changed from outside."""

    @abstractmethod
    def _get_own_state(self) -> dict[str, Plain]:
        """What goes into the state besides what every runner has."""

    @abstractmethod
    def _own_schema(self, module_specs: Mapping[str, RLModuleSpec] | None) -> tuple[dict[str, Schema], tuple[str, ...]]:
        """What ``_get_own_state`` must be, and which of it states of earlier versions do not have."""

    @abstractmethod
    def _set_own_state(self, state: Tree, *, exact: bool) -> None:
        """Take it back; unless ``exact`` new episodes will begin."""

    @abstractmethod
    def _set_seed(self, seed: int) -> None:
        """Keep the seed, and draw from it from now on."""

    @abstractmethod
    def _start_episodes(self) -> None:
        """Reset all environments and take in what they show first."""

    @abstractmethod
    def _close_evaluation(self) -> None:
        """Release the environments of evaluation, if there are any."""

    def _env_seeds(self, purpose: str, number: int, count: int) -> list[int]:
        """Seeds of N environments: a function of the run's seed, the worker, the purpose and its number."""
        entropy = [self.seed, self.worker_index, number, *purpose.encode()]
        return [int(word) for word in np.random.SeedSequence(entropy).generate_state(count)]

    def _env_apart(self) -> EnvSource | None:
        """What to make environments of evaluation from: what made an environment object that was handed over.

        Raises:
            ConfigError: Nobody knows that.
        """
        return maker_of(self._env) if is_environment(self._env) else self._env

    def _whose(self, index: int) -> str:
        """Names an environment in an error."""
        return f"environment {index} of runner {self.worker_index} ({self._env_name()}), vector step " + str(
            self._num_vector_steps
        )

    def _whose_in_evaluation(self, index: int) -> str:
        """Names an environment of an evaluation in an error."""
        name = self._env_name()
        return f"environment {index} of an evaluation in runner {self.worker_index} ({name}), step {self._played()}"

    @abstractmethod
    def _played(self) -> int:
        """Steps of the evaluation under way."""

    def _env_name(self) -> str:
        return self._env if isinstance(self._env, str) else getattr(self._env, "__qualname__", type(self._env).__name__)
