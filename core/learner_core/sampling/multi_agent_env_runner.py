"""Steps N copies of a PettingZoo environment with one policy per module and records what happened.

Needs a config (``env env_config num_env_runners num_envs_per_env_runner policy_mapping_fn policies_to_train
normalize_observations normalize_rewards action_mask_in_info critic_observes max_env_restarts``), a spec of every module
with its spaces, and weights before the first policy action. Refuses what its parts refuse (``multi_agent_lanes``,
``agent_game``), and normalised rewards. Imports no framework.

One step, in the order that matters:

1. The agents that act are grouped by module; each module answers all of its agents in all copies at once.
2. Its actions go through the door: clipped to the bounds, cast. The batch keeps them as they were sampled.
3. Every copy steps with the actions of its agents; where nobody is left, the next episode begins in the same step.
4. Rewards and ends become rows of the module that acted, whoever plays the agent next. The row of an agent that waits
   stays open, in the next fragment if need be.

Statistics of observations are of one module; they take in what the module answers, and rest while it is not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import numpy as np

from ..config.agents import AgentMapping, EnvSource, is_environment
from ..config.algorithm_settings import AlgorithmSettings
from ..config.environments import make_env, wrapped
from ..errors import ConfigError
from ..learning.rl_module import RLModuleSpec
from ..state.schema import COUNT, Record, Schema
from ..state.tree import Plain, Tree, join
from .actions import EnvActions
from .agent_evaluation import evaluate_agents
from .agent_fragment import AgentFragment
from .agent_game import AgentGame, Lane
from .agent_game_schema import game_schema
from .agent_noise import AgentNoise
from .agent_player import Player
from .agent_recorder import AgentRecorder
from .columns import Columns
from .episodes import Episode
from .evaluation import StepLimit, Watch
from .lanes import AgentsEnv
from .multi_agent_lanes import AgentLanes
from .normalize import NO_STATISTICS, RunningMoments
from .numpy_backend import MakePolicy, NumpyPolicy
from .open_rows import OpenRows, check_owners, open_rows_schema
from .rebuilding import Tell
from .rollout import Rollout
from .runner_base import RunnerBase

__all__ = ["MultiAgentEnvRunner"]


class MultiAgentEnvRunner(RunnerBase):
    """N copies of an environment, the policies of its agents, and the record of what they do together.

    Seeds, statistics and state are as ``RunnerBase`` says.

    Args:
        config: An ``AlgorithmSettings``, or anything with the fields named above.
        module_specs: {module_id: ``RLModuleSpec``}, with their spaces.
        seed: The run's seed.
        worker_index: Which runner this is; runners of one seed have noise and environments of their own.
        make_policy: (config, spec) -> who answers observations; by default the modules in numpy.
        tell: Told of every environment that is made anew; by default the user of this process.

    Raises:
        EnvError: The environment cannot be made, or is not one of several agents.
        ConfigError: An agent maps to no known module, or a setting that is not for several agents.
        SpaceError: An agent's spaces are not those of its module.
    """

    _state_name = "a multi-agent runner's state"

    def __init__(
        self,
        config: AlgorithmSettings,
        module_specs: Mapping[str, RLModuleSpec],
        *,
        seed: int,
        worker_index: int = 0,
        make_policy: MakePolicy | None = None,
        tell: Tell | None = None,
    ) -> None:
        super().__init__(config, worker_index=worker_index, tell=tell)
        self._make_policy = make_policy
        self.num_envs: int = int(config.num_envs_per_env_runner)
        if config.normalize_rewards:
            raise ConfigError(
                "normalize_rewards=True: rewards of several agents are not scaled; scale them in the environment"
            )
        self.players: dict[str, Player] = {mid: self._make_player(spec) for mid, spec in module_specs.items()}
        self._mapping = AgentMapping(config.policy_mapping_fn, list(self.players))
        self._trained: list[str] | None = config.policies_to_train
        self._set_seed(int(seed))
        self._num_agent_steps = 0
        self._broken = False
        self._waiting: dict[str, OpenRows] = {}
        self._evaluation: AgentGame | None = None
        runners = 1 + int(config.num_env_runners)
        self._game = self._make_game(self._env, self.num_envs, first=worker_index * self.num_envs, runners=runners)
        self.lanes: AgentLanes = self._game.lanes
        try:
            self._start_episodes()
        except BaseException:
            self.close()
            raise

    def set_weights(self, weights: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Give the policies new parameters.

        Args:
            weights: {module_id: {name: array}}, copied; modules that are not named keep theirs, and those of modules
                that have been removed meanwhile are left aside.
        """
        for module_id, values in weights.items():
            if module_id in self.players:
                self.players[module_id].policy.set_weights(values)

    def set_config(self, config: AlgorithmSettings) -> None:
        """Go by these settings from now on, as far as a run can change them: who learns, and who plays whom."""
        self.set_modules(config, {module_id: player.spec for module_id, player in self.players.items()}, weights={})

    def sample(self, num_steps: int, *, explore: bool = True, random_actions: bool = False) -> dict[str, Rollout]:
        """Step all copies.

        Args:
            num_steps: T, steps of each copy.
            explore: Sample actions; False takes the most likely ones.
            random_actions: Uniformly random actions instead of the policies'.

        Returns:
            {module_id: its rows, [T, N, ...]}; N lanes are the (copy, agent) pairs that it played in this fragment.
            A module that played nobody is left out. Rows of agents that wait at the end are the next call's; they are
            given up where one call takes random actions and the other does not.

        Raises:
            EnvOutputError: An environment gave what its spaces do not allow, NaN or infinity.
            EnvError: One raised too often.
            ConfigError, SpaceError: An agent that has just appeared maps to no module, or to one of other spaces.
                What was sampled is lost then; the next call begins new episodes.
        """
        if self._broken:
            self._start_episodes()
        self._broken = True  # until this fragment is whole
        rollouts = self._sample(num_steps, explore=explore, random_actions=random_actions)
        self._broken = False
        return rollouts

    def _sample(self, num_steps: int, *, explore: bool, random_actions: bool) -> dict[str, Rollout]:
        game = self._game
        fragment = AgentFragment(num_steps, self.num_envs, self._waiting)
        for t in range(num_steps):
            groups = game.groups()
            actions: dict[str, EnvActions] = {}
            for module_id, lanes in groups.items():
                player = self.players[module_id]
                obs = self._observed(game, module_id, lanes)
                allowed = game.allowed(lanes)
                state, fresh = game.memory(module_id, lanes)
                if random_actions:
                    uniforms = self._random_noise.at(self._num_vector_steps, module_id, player, lanes)
                    answer: dict[str, Columns] = {"actions": player.door.random(uniforms, allowed)}
                else:
                    noise = None
                    if explore:
                        noise = self._action_noise.at(self._num_vector_steps, module_id, player, lanes)
                    answer = player.ask(obs, noise=noise, explore=explore, allowed=allowed, state=state)
                after = player.after(answer.pop("state_out", state), answer["actions"])
                if allowed is not None:
                    answer["action_mask"] = allowed
                if state:
                    answer.update(state_in=state, resets=fresh)
                    game.remember(lanes, after)
                fragment.act(t, module_id, lanes, obs=obs, answer=answer, after=after if state else None)
                actions[module_id] = player.door.to_env(answer["actions"])
            num_env_steps, episodes = fragment.stepped(t, game.step(groups, actions))
            self._num_env_steps += num_env_steps
            self._finished.extend(episodes)
            self._num_vector_steps += 1
        self._waiting = fragment.take_waiting(lambda lane: lane[1] in game.copies[lane[0]].waiting)
        rollouts = {module_id: self._rollout(module_id, recorder) for module_id, recorder in fragment.recorders.items()}
        return {module_id: rollout for module_id, rollout in rollouts.items() if rollout is not None}

    def _rollout(self, module_id: str, recorder: AgentRecorder) -> Rollout | None:
        game, player = self._game, self.players[module_id]
        rollout = recorder.finish(
            last=lambda lane: game.copies[lane[0]].obs[lane[1]],
            order=lambda lane: (lane[0], game.rank[lane[1]]),
            shown=player.shown,
            values=player.policy.values,
        )
        if rollout is None:
            return None
        self._num_agent_steps += rollout.num_env_steps
        return rollout

    def evaluate(
        self,
        num_episodes: int,
        *,
        explore: bool = False,
        watch: Watch | None = None,
        max_episode_steps: int | None = None,
    ) -> list[Episode]:
        """Play whole episodes in environments of their own; training is not disturbed.

        Each copy contributes its first episodes, as many as any other (give or take one), so that short episodes are
        not overrepresented. Observations are normalised with the statistics as they are; returns are of raw rewards.

        Args:
            num_episodes: How many.
            explore: Sample actions instead of taking the most likely ones.
            watch: Must be None: episodes of several agents cannot be watched.
            max_episode_steps: An episode that is longer is cut, and counts; None: see ``evaluation.StepLimit``.

        Returns:
            ``num_episodes`` episodes with their agents, each copy's first before the second ones.
        """
        if watch is not None:
            raise ConfigError("episodes of several agents cannot be recorded or watched")
        count = min(self.num_envs, num_episodes)
        if self._evaluation is None or len(self._evaluation.copies) != count:
            self._close_evaluation()
            self._evaluation = self._make_game(self._env_apart(), count, whose=self._whose_in_evaluation)
        game, number = self._evaluation, self._num_evaluations
        self._num_evaluations += 1
        return evaluate_agents(
            game,
            num_episodes,
            observed=lambda module_id, lanes: self._observed(game, module_id, lanes, learn=False),
            seeds=self._env_seeds("evaluation", number, count),
            noise=self._noise(f"evaluation/{number}") if explore else None,
            limit=StepLimit(max_episode_steps, game.lanes.environments(), tell=self._tell),
        )

    # ------------------------------------------------------------------------------------------------------- modules

    def set_modules(
        self,
        config: AlgorithmSettings,
        module_specs: Mapping[str, RLModuleSpec],
        *,
        weights: Mapping[str, Mapping[str, np.ndarray]],
        statistics_of: Mapping[str, str] | None = None,
    ) -> None:
        """Change who is there, who plays whom and who learns. Running episodes go on.

        Agents that a removed module played get another from the mapping; all others keep theirs until their episode
        ends.

        Args:
            config: The configuration from now on, of which its ``policy_mapping_fn`` and ``policies_to_train`` are
                new.
            module_specs: {module_id: ``RLModuleSpec``} of all modules; those that stay keep their policies.
            weights: As for ``set_weights``, those of new modules among them.
            statistics_of: {new module: module whose statistics of observations it starts with}.

        Raises:
            ConfigError: A possible agent maps to no module. Nothing has changed then.
        """
        mapping = AgentMapping(config.policy_mapping_fn, list(module_specs))
        for agent in self.lanes.possible_agents():
            mapping.module_of(agent, self._game.copies[0].number)
        new = {mid: self._make_player(spec) for mid, spec in module_specs.items() if mid not in self.players}
        for module_id, player in new.items():
            source = self.players.get((statistics_of or {}).get(module_id, ""))
            if player.normalizer is not None and source is not None and source.normalizer is not None:
                player.normalizer.set_state(source.normalizer.get_state())
                for moments in player.normalizer.moments.values():
                    moments.fresh = RunningMoments(moments.mean.shape)  # the others know as much
        gone = [module_id for module_id in self.players if module_id not in module_specs]
        self.players.update(new)
        self._config = config
        self._trained = None if config.policies_to_train is None else list(config.policies_to_train)
        self._mapping = mapping
        for game in (self._game, self._evaluation):
            if game is not None:
                game.mapping = mapping
                for module_id in gone:
                    game.forget(module_id)
        for module_id in gone:
            del self.players[module_id]
            self._waiting.pop(module_id, None)
        self._set_seed(self.seed)  # a module of a name that was another's draws noise of its own shape
        self.set_weights(weights)

    def _make_player(self, spec: RLModuleSpec) -> Player:
        if self._make_policy is not None:
            policy = self._make_policy(self._config, spec)
        else:
            policy = NumpyPolicy(spec)
        return Player(spec, policy, normalized=self._config.normalize_observations)

    # ------------------------------------------------------------------------------------------------------- state

    def _counts(self) -> dict[str, int]:
        return {
            "num_agent_steps_sampled_lifetime": self._num_agent_steps,
            "num_episodes_lifetime": self._game.num_episodes,
            "num_episodes_lost_lifetime": self._game.num_lost,
        }

    def _moments(self) -> dict[str, RunningMoments]:
        return {
            f"observations/{module_id}/{path}": moments
            for module_id, player in self.players.items()
            if player.normalizer is not None
            for path, moments in player.normalizer.moments.items()
        }

    def _refresh(self) -> None:
        for player in self.players.values():
            if player.normalizer is not None:
                player.normalizer.refresh()

    def _get_own_state(self) -> dict[str, Plain]:
        return {
            "num_agent_steps_sampled_lifetime": self._num_agent_steps,
            "game": self._game.get_state(),
            "waiting": {module_id: rows.to_plain() for module_id, rows in self._waiting.items()},
            "normalizers": {
                module_id: None if player.normalizer is None else player.normalizer.get_state()
                for module_id, player in self.players.items()
            },
        }

    def _own_schema(self, module_specs: Mapping[str, RLModuleSpec] | None) -> tuple[dict[str, Schema], tuple[str, ...]]:
        players = self._players_of(module_specs)
        normalizers = {
            module_id: NO_STATISTICS if player.normalizer is None else player.normalizer.state_schema()
            for module_id, player in players.items()
        }
        fields: dict[str, Schema] = {
            "num_agent_steps_sampled_lifetime": COUNT,
            "game": game_schema(players, self.num_envs),
            "waiting": Record(
                {mid: open_rows_schema(player, self.num_envs) for mid, player in players.items()}, players
            ),
            "normalizers": Record(normalizers),
        }
        return fields, ("waiting",)  # states from before turn-based games do not have it

    def _check_parts(self, state: Tree, path: str) -> None:
        check_owners(state.get("waiting", {}), state["game"]["copies"], join(path, "waiting"))

    def rollout_columns(self, module_id: str, rows: tuple[None, ...] = (None, None)) -> dict[str, Schema]:
        """What columns of a module's fragment must be to be of this runner's environments."""
        return self.players[module_id].rollout_columns(rows)

    def _players_of(self, module_specs: Mapping[str, RLModuleSpec] | None) -> dict[str, Player]:
        """The players with these modules, of which some may be new."""
        if module_specs is None:
            return self.players
        return {mid: self.players.get(mid) or self._make_player(spec) for mid, spec in module_specs.items()}

    def _set_own_state(self, state: Tree, *, exact: bool) -> None:
        for module_id, saved in state["normalizers"].items():
            normalizer = self.players[module_id].normalizer
            if normalizer is not None:
                normalizer.set_state(saved)
        self._num_agent_steps = int(state["num_agent_steps_sampled_lifetime"])
        self._game.set_state(state["game"], exact=exact)
        waiting = state.get("waiting", {}) if exact else {}
        self._waiting = {module_id: OpenRows.from_plain(rows) for module_id, rows in waiting.items()}
        self._broken = False

    # ----------------------------------------------------------------------------------------------------- internals

    def _observed(self, game: AgentGame, module_id: str, lanes: Sequence[Lane], *, learn: bool = True) -> Columns:
        """What the module's lanes see, as its policy sees it; taken into the statistics."""
        player = self.players[module_id]
        obs = game.observations(lanes)
        if player.normalizer is not None and learn and (self._trained is None or module_id in self._trained):
            player.normalizer.update(obs)
        return player.shown(obs)

    def _noise(self, purpose: str) -> AgentNoise:
        return AgentNoise(self.seed, self.worker_index, self.num_envs, purpose)

    def _make_game(
        self,
        env: EnvSource | None,
        num_envs: int,
        *,
        first: int = 0,
        runners: int = 1,
        whose: Callable[[int], str] | None = None,
    ) -> AgentGame:
        """Copies of an environment; their episodes are numbered apart from those of other runners."""
        if is_environment(env) and num_envs > 1:
            raise ConfigError(
                f"num_envs_per_env_runner={num_envs}: one environment object was given; configure its name, or a "
                "callable that makes it"
            )

        def make() -> AgentsEnv:
            config = self._config
            if is_environment(env):
                return wrapped(env, config)
            return make_env(
                SimpleNamespace(
                    env=env,
                    env_config=dict(config.env_config),
                    action_mask_in_info=config.action_mask_in_info,
                    critic_observes=config.critic_observes,
                )
            )

        named = whose or self._whose
        lanes = AgentLanes(make, num_envs, max_restarts=self._max_restarts, whose=named, tell=self._tell)
        return AgentGame(lanes, self.players, self._mapping, first=first, stride=runners * num_envs)

    def _played(self) -> int:
        return 0 if self._evaluation is None else self._evaluation.lanes.num_steps

    def _close_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.lanes.close()
            self._evaluation = None

    def _set_seed(self, seed: int) -> None:
        self.seed = seed
        self._action_noise, self._random_noise = self._noise("actions"), self._noise("random")

    def _start_episodes(self) -> None:
        self._waiting = {}
        self._game.reset(self._env_seeds("training", self._num_vector_steps, self.num_envs))
        self._broken = False
