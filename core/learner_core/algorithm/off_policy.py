"""The loop of off-policy algorithms: a few steps into the replay buffer, as many gradient steps out of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from ..config.agents import ONLY_MODULE, is_multi_agent
from ..errors import ConfigError
from ..group.results import merge_results
from ..sampling.env_runner import EnvRunner
from ..sampling.replay import ReplayBuffer, row_columns
from ..sampling.rollout import join_lanes, per_module
from ..sampling.runner_group import EnvRunnerGroup
from ..schedules import value_at
from ..state.schema import COUNT, Also, Real, Record
from ..state.tree import Plain, Tree
from ..xp import Array, ArrayTree, Columns
from .algorithm import Algorithm
from .evaluations import Results
from .off_policy_config import OffPolicyConfig

if TYPE_CHECKING:
    from ..learning.learner import Learner

__all__ = ["OffPolicyAlgorithm"]

#: Added to every TD error, so that each transition can be drawn again.
_LEAST_PRIORITY = 1e-6


class OffPolicyAlgorithm(Algorithm):
    """Fragments of ``rollout_fragment_length`` steps ("auto": 1), ``updates_per_step`` gradient steps for each.

    With several runners the replay buffer is filled from all of them, their environments side by side.

    An iteration is ``timesteps_per_iteration`` environment steps. The gradient steps that one fragment pays for are one
    call to the learners, on as many rows.
    """

    def check_config(self) -> None:
        config: Any = self.config
        missing = [name for name in OffPolicyConfig.settings() if not hasattr(config, name)]
        if missing:
            raise ConfigError(
                f"{type(config).__name__}: OffPolicyAlgorithm reads the settings {', '.join(missing)}, which it has "
                "not; let it inherit from learner_core.OffPolicyConfig, which has them"
            )
        if is_multi_agent(config):
            raise ConfigError(
                f"{type(config).__name__}: the replay buffer holds one agent's experience; for several agents take "
                "PPO, IMPALA or APPO"
            )
        if config.prioritized_replay and not hasattr(config.get_learner_class(), "td_errors"):
            raise ConfigError(
                f"prioritized_replay=True: {config.get_learner_class().__name__} has no td_errors(batch), float[B] on "
                "the host, to draw by"
            )
        if (config.normalize_observations or config.normalize_rewards) and not config.samples_raw:
            raise ConfigError(
                f"{type(config).__name__}: the replay buffer holds what environments gave and normalises it when it is "
                "drawn; say samples_raw = True in the class, or let it inherit from learner_core.OffPolicyConfig"
            )

    def setup(self) -> None:
        config: Any = self.config
        self.replay: ReplayBuffer = ReplayBuffer(
            config.buffer_capacity,
            self.seed,
            n_step=config.n_step,
            gamma=config.gamma,
            prioritized=config.prioritized_replay,
            alpha=config.priority_alpha,
            drawn=_drawn(config, self.env_runners),
        )
        self._owed = 0.0
        self._num_draws = 0

    def settings_changed(self) -> None:
        config: Any = self.config
        self.replay.gamma, self.replay.n_step = config.gamma, config.n_step

    def training_step(self) -> Results:
        config: Any = self.config
        goal = self.num_env_steps_sampled_lifetime + config.timesteps_per_iteration
        length = 1 if config.rollout_fragment_length == "auto" else int(config.rollout_fragment_length)
        results: list[dict[str, Any]] = []
        while self.num_env_steps_sampled_lifetime < goal:
            before = self.num_env_steps_sampled_lifetime
            warming_up = self.num_env_steps_sampled_lifetime < config.learning_starts
            with self.timed("sample"):
                sampled = self._runners.sample(length, random_actions=warming_up)
                rollout = join_lanes([per_module(one)[ONLY_MODULE] for one in sampled])
                self.count_episodes()
                (processed,) = per_module(self.processed(rollout)).values()
                self.replay.add_rollout(processed)
            empty = self.ranks is None and not len(self.replay)  # where there are others, they may have rows
            if self.num_env_steps_sampled_lifetime < config.learning_starts or empty:
                continue
            steps = rollout.num_env_steps if self.ranks is None else self.num_env_steps_sampled_lifetime - before
            self._owed += steps * config.updates_per_step
            updates = math.floor(self._owed)
            if updates:
                self._owed -= updates
                results.append(self._learn(updates))
                self.sync_weights()
        return merge_results(results)

    def _learn(self, updates: int) -> Results:
        config: Any = self.config
        beta = value_at(config.priority_beta, self.num_env_steps_sampled_lifetime)
        with self.timed("replay"):
            rows = updates * self.share(config.train_batch_size)
            batch = self.replay.sample(rows, self._num_draws, beta=beta) if rows and len(self.replay) else {}
            self._num_draws += 1
        with self.timed("learn"):
            results = self.learner_group.update_from_batch(
                batch, timesteps=self.timesteps, minibatch_size=config.minibatch_size or config.train_batch_size
            )
        if config.prioritized_replay:
            with self.timed("priorities"):
                indices = batch.pop("indices", None)
                errors = self.learner_group.foreach_learner(_td_errors(batch))[self.rank]
                if indices is not None:
                    self.replay.update_priorities(indices, errors + _LEAST_PRIORITY)
        return results

    def get_extra_state(self) -> dict[str, Plain]:
        return {"replay": self.replay.get_state(), "owed": self._owed, "num_draws": self._num_draws}

    def extra_state_schema(self) -> Record:
        columns: dict[str, Any] | None = None
        # A subclass's own loop may keep other columns.
        if self.env_runners is not None and type(self).training_step is OffPolicyAlgorithm.training_step:
            (rule,) = self.learner_group.batch_rules().values()
            columns = row_columns(self.env_runners.local.rollout_columns("", (None,)))
            columns["actions"] = Also(columns["actions"], rule.check_actions)
        # What is owed is less than an update.
        fields = {"replay": self.replay.state_schema(columns), "owed": Real(0.0, 1.0, below=True), "num_draws": COUNT}
        return Record(fields)

    def set_extra_state(self, state: Tree) -> None:
        self.replay.set_state(state["replay"], is_checked=True)
        if self.env_runners is not None:  # the state may be of another number of them
            self.replay.set_lanes(self.env_runners.num_runners * self.env_runners.local.num_envs)
        self._owed = float(state["owed"])
        self._num_draws = int(state["num_draws"])


def _drawn(config: OffPolicyConfig, env_runners: EnvRunnerGroup | None) -> dict[str, Callable[[ArrayTree], ArrayTree]]:
    """How columns of the replay buffer become what the policy sees: by the runners' statistics at that time."""
    runner = None if env_runners is None else env_runners.local
    if not isinstance(runner, EnvRunner):
        return {}
    found: dict[str, Callable[[Any], Any]] = {}
    if config.normalize_observations:
        found |= dict.fromkeys(("obs", "next_obs"), runner.normalized_obs)
    if config.normalize_rewards:
        found["rewards"] = runner.normalized_rewards
    return found


def _td_errors(batch: Columns) -> Callable[[Learner], Array]:
    return methodcaller("td_errors", batch) if batch else _nothing


def _nothing(learner: object) -> None:
    return None
