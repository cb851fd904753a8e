"""A run whose ranks are scripts of their own (``launcher="spmd"``): what differs between them, and what may not.

Each rank samples its own environments, from a seed of its own, and learns from its own rows. Everything that decides
how a run goes on, its counters, episodes and normalisers, is that of all ranks together and the same on each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError
from ..maths import noise
from ..sampling.episodes import Episode
from ..sampling.normalize import merge_moments
from ..state.tree import Plain, Tree

if TYPE_CHECKING:
    from ..config.algorithm_settings import AlgorithmSettings
    from ..group.spmd.learners import SpmdLearners
    from ..sampling.runner_group import EnvRunnerGroup

__all__ = ["RankedRun"]

T = TypeVar("T")


class RankedRun:
    """What an Algorithm asks about ranks; alone, it is rank 0 of 1 and nothing is exchanged.

    Attributes:
        ranks: the other ranks; ``None``: there are none.
    """

    config: AlgorithmSettings
    ranks: SpmdLearners | None = None
    env_runners: EnvRunnerGroup | None
    _moments: Mapping[str, Any]
    #: Steps of runners that are no more: of a checkpoint of another number of ranks.
    _earlier_steps: int = 0

    @property
    def rank(self) -> int:
        """This rank."""
        return 0 if self.ranks is None else self.ranks.rank

    @property
    def num_ranks(self) -> int:
        """How many there are."""
        return 1 if self.ranks is None else self.ranks.size

    @property
    def seed(self) -> int:
        """Seed of what differs between ranks, environments and replay; rank 0's is the run's."""
        if not self.rank:
            return int(self.config.seed)
        return noise.stream_id(f"rank/{self.config.seed}/{self.rank}") >> 1

    def share(self, rows: int) -> int:
        """How many of so many rows are this rank's to bring."""
        return (self.rank + 1) * rows // self.num_ranks - self.rank * rows // self.num_ranks

    def on_first(self, function: Callable[[], T]) -> T:
        """``function()`` of rank 0, on every rank."""
        answer: T = function() if self.ranks is None else self.ranks.on_first(function)
        return answer

    def on_each(self, function: Callable[[], T]) -> T:
        """``function()`` of this rank, once all have done theirs: if it fails on one, it fails on all."""
        if self.ranks is None:
            return function()
        answer: T = self.ranks.on_each(function)
        return answer

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in rank order, on every rank."""
        return [value] if self.ranks is None else self.ranks.gather(value)

    def runner_config(self, config: AlgorithmSettings | None = None) -> AlgorithmSettings:
        """The configuration of this rank's environment runners; ``config``: with other settings than the run's."""
        own = self.config if config is None else config
        return own if not self.rank else own.replaced(seed=self.seed)

    def check_runners(self) -> None:
        """Refuse what ranks cannot do.

        Raises:
            ConfigError: normalisers whose statistics are in other processes.
        """
        if self.ranks is None or self.env_runners is None:
            return
        # Of what the runner has seen so far it tells at the first asking.
        self._moments = {}
        if self.config.num_env_runners and self.env_runners.local.get_statistics():
            raise ConfigError(
                f'launcher="spmd" with num_env_runners={self.config.num_env_runners} and a normaliser: ranks exchange '
                "the statistics of runners in their own process only; use num_env_runners=0 and more ranks"
            )

    def metrics_of_all(self, metrics: dict[str, Plain]) -> dict[str, Plain]:
        """Runner metrics added up over the ranks, in rank order; normalisers learn what all have seen."""
        if self.ranks is None:
            metrics["num_env_steps_sampled_lifetime"] += self._earlier_steps
            return metrics
        assert self.env_runners is not None
        local = self.env_runners.local
        own = {} if self.config.num_env_runners else local.take_statistics()
        plain = {**metrics, "episodes": [episode.to_plain() for episode in metrics["episodes"]]}
        answers = self.ranks.gather((plain, own))
        fresh = [statistics for _, statistics in answers]
        if any(fresh):
            self._moments = merge_moments(self._moments, *fresh)
            local.set_statistics(self._moments)
        total: dict[str, Any] = {
            "episodes": [Episode.from_plain(episode) for part, _ in answers for episode in part["episodes"]]
        }
        for name in metrics:
            if name != "episodes":
                total[name] = sum(part[name] for part, _ in answers)
        total["num_env_steps_sampled_lifetime"] += self._earlier_steps
        return total

    # ------------------------------------------------------------------ checkpoints

    def states_of_all(self, own: dict[str, Plain]) -> list[dict[str, Plain]] | None:
        """Every rank's own part of a checkpoint, in rank order; ``None`` for a run without ranks."""
        return None if self.ranks is None else self.ranks.gather(own)

    def part_of(self, state: Tree) -> Tree:
        """This rank's part of a checkpoint of any number of ranks: its own, else rank 0's without its environments."""
        own = {name: state[name] for name in ("env_runner", "env_runners", "extra")}
        parts = state.get("ranks") or [own]
        part = parts[self.rank] if self.rank < len(parts) else {**parts[0], "env_runner": None}
        return {**part, "extra": self.extra_state_of([other["extra"] for other in parts])}

    def extra_state_of(self, states: Sequence[Tree]) -> Tree:
        """This rank's extra state out of those of a checkpoint's ranks: its own, else rank 0's."""
        return states[self.rank] if self.rank < len(states) else states[0]

    def count_from(self, lifetime_steps: int) -> None:
        """After a restore: counters go on from there, whatever runners there are now, with the same normalisers."""
        if self.env_runners is None:
            return
        local = self.env_runners.local
        metrics = self.env_runners.metrics()
        if self.ranks is None:
            self._earlier_steps = lifetime_steps - int(metrics["num_env_steps_sampled_lifetime"])
            return
        local.take_statistics()
        answers = self.ranks.gather((int(metrics["num_env_steps_sampled_lifetime"]), local.get_statistics()))
        self._earlier_steps = lifetime_steps - sum(steps for steps, _ in answers)
        self._moments = answers[0][1]
        if self._moments:
            local.set_statistics(self._moments)
