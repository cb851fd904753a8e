"""Steps N copies of a PettingZoo parallel environment with one policy per module and records what happened.

Needs a config (``env env_config num_envs_per_env_runner policies policy_mapping_fn policies_to_train
normalize_observations``), a spec of every module with its spaces, and weights before the first policy action. Refuses
what its parts refuse (``multi_agent_lanes``, ``agent_game``), NaN and infinite observations, and normalised rewards.
Imports no framework.

One step, in the order that matters:

1. The agents that act are grouped by module; each module answers all of its agents in all copies at once.
2. Its actions go through the door: clipped to the bounds, cast. The batch keeps them as they were sampled.
3. Every copy steps with the actions of its agents; where nobody is left, the next episode begins in the same step.
4. Rewards and ends become rows of the module that acted, whoever plays the agent next.

Statistics of observations are of one module; they take in what the module answers, and rest while it is not trained.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..config.agents import AgentMapping
from ..config.environments import make_env
from ..errors import ConfigError, EnvError, StateError
from .agent_game import AgentGame, Lane, Player
from .agent_recorder import AgentRecorder
from .columns import Columns
from .env_state import check_env, restore_env, save_env
from .episodes import Episode
from .evaluation import Watch
from .finite import check_finite
from .multi_agent_lanes import AgentLanes
from .noise_blocks import NoiseBlocks
from .normalize import RunningMoments
from .numpy_backend import NumpyPolicy
from .rollout import Rollout

__all__ = ["MultiAgentEnvRunner"]

MAX_ENV_RESTARTS = 10
"""Default of ``max_env_restarts``, for configs without such a setting."""

_STATE = {
    "seed", "num_envs", "num_vector_steps", "num_env_steps_sampled_lifetime", "num_agent_steps_sampled_lifetime",
    "num_evaluations", "game", "finished", "normalizers", "lanes", "env_state", "envs",
}  # fmt: skip


class MultiAgentEnvRunner:
    """N copies of an environment, the policies of its agents, and the record of what they do together.

    Everything random is a function of the seed and of counters, so that a runner continued from its state goes on as
    if it had never stopped, as far as its environments can be saved (``env_state``).

    Args:
        config: An ``AlgorithmConfig``, or anything with the fields named above.
        module_specs: {module_id: ``RLModuleSpec``}, with their spaces.
        seed: The run's seed.
        env: Takes the place of ``config.env``: a name, a callable, or a parallel environment (one copy).
        worker_index: Which runner this is; runners of one seed have noise and environments of their own.
        make_policy: (config, spec) -> who answers observations; by default the modules in numpy.

    Raises:
        EnvError: The environment cannot be made, or is no parallel one.
        ConfigError: An agent maps to no known module, or a setting that is not for several agents.
        SpaceError: An agent's spaces are not those of its module.
    """

    def __init__(
        self,
        config: Any,
        module_specs: Mapping[str, Any],
        *,
        seed: int,
        env: Any = None,
        worker_index: int = 0,
        make_policy: Any = None,
    ) -> None:
        self._config = config
        self._env = env if env is not None else config.env
        self._make_policy = make_policy
        self.worker_index = worker_index
        self.num_envs = int(getattr(config, "num_envs_per_env_runner", 1))
        if getattr(config, "normalize_rewards", False):
            raise ConfigError(
                "normalize_rewards=True: rewards of several agents are not scaled; scale them in the environment"
            )
        self.players: dict[str, Player] = {mid: self._make_player(spec) for mid, spec in module_specs.items()}
        self._mapping = AgentMapping(getattr(config, "policy_mapping_fn", None), list(self.players))
        self._trained: list[str] | None = getattr(config, "policies_to_train", None)
        self._set_seed(int(seed))
        self._finished: list[Episode] = []
        self._num_vector_steps = 0
        self._num_env_steps = 0
        self._num_agent_steps = 0
        self._num_evaluations = 0
        self._broken = False
        self._evaluation: AgentGame | None = None
        self._game = self._make_game(self.num_envs)
        self.lanes = self._game.lanes
        self._start_episodes()

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
        """Steps of all copies together so far: the key of the noise, and a sign of progress."""
        return self._num_vector_steps

    def set_weights(self, weights: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Give the policies new parameters.

        Args:
            weights: {module_id: {name: array}}, copied; modules that are not named keep theirs, and those of modules
                that have been removed meanwhile are left aside.
        """
        for module_id, values in weights.items():
            if module_id in self.players:
                self.players[module_id].policy.set_weights(values)

    def metrics(self) -> dict[str, Any]:
        """What happened since the last call, and over the lifetime.

        Returns:
            ``episodes`` (list of ``Episode``, each with its agents), ``num_env_steps_sampled_lifetime``,
            ``num_agent_steps_sampled_lifetime``, ``num_episodes_lifetime``, ``num_episodes_lost_lifetime``,
            ``num_env_restarts_lifetime``.
        """
        finished, self._finished = self._finished, []
        return {
            "episodes": finished,
            "num_env_steps_sampled_lifetime": self._num_env_steps,
            "num_agent_steps_sampled_lifetime": self._num_agent_steps,
            "num_episodes_lifetime": self._game.num_episodes,
            "num_episodes_lost_lifetime": self._game.num_lost,
            "num_env_restarts_lifetime": self.lanes.num_restarts,
        }

    def sample(self, num_steps: int, *, explore: bool = True, random_actions: bool = False) -> dict[str, Rollout]:
        """Step all copies.

        Args:
            num_steps: T, steps of each copy.
            explore: Sample actions; False takes the most likely ones.
            random_actions: Uniformly random actions instead of the policies'.

        Returns:
            {module_id: its rows, [T, N, ...]}; N lanes are the (copy, agent) pairs that it played in this fragment.
            A module that played nobody is left out.

        Raises:
            EnvError: NaN or infinity from an environment, or one that raised too often.
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
        recorders: dict[str, AgentRecorder] = {}
        began = [0] * self.num_envs
        for t in range(num_steps):
            groups = game.groups()
            actions: dict[str, np.ndarray] = {}
            for module_id, lanes in groups.items():
                player = self.players[module_id]
                obs = self._observed(game, module_id, lanes)
                allowed = game.allowed(lanes)
                state, fresh = game.memory(module_id, lanes)
                if random_actions:
                    answer: dict[str, Any] = {
                        "actions": player.door.random(self._noise("random", module_id, lanes), allowed)
                    }
                else:
                    noise = self._noise("actions", module_id, lanes) if explore else None
                    answer = player.ask(obs, noise=noise, explore=explore, allowed=allowed, state=state)
                after = answer.pop("state_out", state)
                if allowed is not None:
                    answer["action_mask"] = allowed
                if state:
                    answer.update(state_in=state, resets=fresh)
                    game.remember(lanes, after)
                recorder = recorders.setdefault(module_id, AgentRecorder(num_steps))
                recorder.act(t, lanes, obs, answer, after if state else None)
                actions[module_id] = player.door.to_env(answer["actions"])
            steps = game.step(groups, actions)
            for module_id, lanes in groups.items():
                recorder = recorders[module_id]
                for lane in lanes:
                    step = steps[lane[0]]
                    if step.lost:
                        continue
                    agent = lane[1]
                    if agent in step.ended:
                        recorder.ended(lane, step.rewards[agent], step.ended[agent], step.finals[agent])
                    else:
                        recorder.went(lane, step.rewards[agent])
            for copy, step in enumerate(steps):
                self._num_env_steps += 1
                if step.lost:
                    self._num_env_steps -= t + 1 - began[copy]
                    for recorder in recorders.values():
                        recorder.lose(copy, began[copy], t)
                elif step.episode is not None:
                    self._finish(step.episode, recorders)
                if step.lost or step.episode is not None:
                    began[copy] = t + 1
            self._num_vector_steps += 1
        return {module_id: self._rollout(module_id, recorder) for module_id, recorder in recorders.items()}

    def _finish(self, episode: Episode, recorders: Mapping[str, AgentRecorder]) -> None:
        self._finished.append(episode)
        for agent in episode.agents:
            if agent.module_id in recorders:
                own = Episode(agent.episode_return, agent.episode_length, (agent,))
                recorders[agent.module_id].episodes.append(own)

    def _rollout(self, module_id: str, recorder: AgentRecorder) -> Rollout:
        game, player = self._game, self.players[module_id]
        rollout = recorder.finish(
            last=lambda lane: game.copies[lane[0]].obs[lane[1]],
            order=lambda lane: (lane[0], game.rank[lane[1]]),
            shown=player.shown,
            values=player.policy.values,
        )
        flat = rollout.rows()["next_obs"]
        check_finite(flat, None, whose=lambda _: f"an agent of module {module_id!r} in runner {self.worker_index}")
        self._num_agent_steps += rollout.num_env_steps
        return rollout

    def evaluate(self, num_episodes: int, *, explore: bool = False, watch: Watch | None = None) -> list[Episode]:
        """Play whole episodes in environments of their own; training is not disturbed.

        Each copy contributes its first episodes, as many as any other (give or take one), so that short episodes are
        not overrepresented. Observations are normalised with the statistics as they are; returns are of raw rewards.

        Args:
            num_episodes: How many.
            explore: Sample actions instead of taking the most likely ones.
            watch: Must be None: episodes of several agents cannot be watched.

        Returns:
            ``num_episodes`` episodes with their agents, each copy's first before the second ones.
        """
        if watch is not None:
            raise ConfigError("episodes of several agents cannot be recorded or watched")
        count = min(self.num_envs, num_episodes)
        if self._evaluation is None or len(self._evaluation.copies) != count:
            self._close_evaluation()
            self._evaluation = self._make_game(count, apart=True)
        game, number = self._evaluation, self._num_evaluations
        self._num_evaluations += 1
        for copy, running in enumerate(game.copies):  # the same episodes whatever was evaluated before
            running.number, running.length = copy, 0
            running.agents.clear()
        game.reset(self._env_seeds("evaluation", number, count))
        quota = num_episodes // count + (np.arange(count) < num_episodes % count)
        played: list[list[Episode]] = [[] for _ in range(count)]
        blocks: dict[tuple[str, str, str], NoiseBlocks] = {}
        at = 0
        while any(len(episodes) < quota[copy] for copy, episodes in enumerate(played)):
            groups = game.groups()
            actions = {}
            for module_id, lanes in groups.items():
                player = self.players[module_id]
                obs = self._observed(game, module_id, lanes, learn=False)
                noise = self._noise(f"evaluation/{number}", module_id, lanes, blocks, at) if explore else None
                state, _ = game.memory(module_id, lanes)
                answer = player.ask(obs, noise=noise, explore=explore, allowed=game.allowed(lanes), state=state)
                game.remember(lanes, answer.get("state_out"))
                actions[module_id] = player.door.to_env(answer["actions"])
            at += 1
            for copy, step in enumerate(game.step(groups, actions)):
                if step.episode is not None and len(played[copy]) < quota[copy]:
                    played[copy].append(step.episode)
        return [episodes[i] for i in range(int(quota.max())) for episodes in played if i < len(episodes)]

    def take_statistics(self) -> dict[str, Any]:
        """What the normalisers saw since the last call: {"observations/<module>/<leaf>": moments}."""
        return {name: moments.take_fresh() for name, moments in self._moments().items()}

    def get_statistics(self) -> dict[str, Any]:
        """All that the normalisers know: {name: moments}; copies."""
        return {name: moments.get_state() for name, moments in self._moments().items()}

    def set_statistics(self, statistics: Mapping[str, Any]) -> None:
        """Normalise by these from now on; what ``take_statistics`` has not told yet stays to be told."""
        for name, moments in self._moments().items():
            if name in statistics:
                fresh = moments.fresh
                moments.set_state(statistics[name], path=name)
                moments.fresh = fresh
        for player in self.players.values():
            if player.normalizer is not None:
                player.normalizer.refresh()

    def close(self) -> None:
        """Release the environments; safe to call twice."""
        self.lanes.close()
        self._close_evaluation()

    # ------------------------------------------------------------------------------------------------------- modules

    def set_modules(
        self,
        config: Any,
        module_specs: Mapping[str, Any],
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
        self.set_weights(weights)

    def _make_player(self, spec: Any) -> Player:
        if self._make_policy is not None:
            policy = self._make_policy(self._config, spec)
        else:
            policy = NumpyPolicy(spec)
        return Player(spec, policy, normalized=bool(getattr(self._config, "normalize_observations", False)))

    # ------------------------------------------------------------------------------------------------------- state

    def get_state(self, *, environments: bool = True) -> dict[str, Any]:
        """Everything needed to go on, as plain data and arrays that share no memory with the runner.

        Args:
            environments: False leaves the environments out; a runner that goes on from that starts new episodes.

        Returns:
            Seed, counters, normalisers, running episodes with who plays whom, and the environments' states; under
            ``env_state`` whether those are "exact" or will be "restarted". Weights and modules are not part of it.
        """
        envs, reason = self._save_envs() if environments else (None, "left out")
        return {
            "seed": self.seed,
            "num_envs": self.num_envs,
            "num_vector_steps": self._num_vector_steps,
            "num_env_steps_sampled_lifetime": self._num_env_steps,
            "num_agent_steps_sampled_lifetime": self._num_agent_steps,
            "num_evaluations": self._num_evaluations,
            "game": self._game.get_state(),
            "finished": [episode.to_plain() for episode in self._finished],
            "normalizers": {
                module_id: None if player.normalizer is None else player.normalizer.get_state()
                for module_id, player in self.players.items()
            },
            "lanes": self.lanes.get_state(),
            "env_state": "restarted" if reason else "exact",
            "envs": envs,
        }

    def set_state(self, state: Mapping[str, Any]) -> str:
        """Go on from a state; the modules must be those it was taken with.

        Args:
            state: What ``get_state`` returned, here or elsewhere.

        Returns:
            "exact", or "restarted": new episodes, with seeds that follow from the state, the running ones given up.

        Raises:
            StateError: Another number of environments, other modules, normalisers or environments. Nothing has
                changed then.
        """
        self._check_state(state)
        exact = state["env_state"] == "exact"
        for module_id, saved in state["normalizers"].items():
            normalizer = self.players[module_id].normalizer
            if normalizer is not None:
                normalizer.set_state(saved)
        self._set_seed(int(state["seed"]))
        self._num_vector_steps = int(state["num_vector_steps"])
        self._num_env_steps = int(state["num_env_steps_sampled_lifetime"])
        self._num_agent_steps = int(state["num_agent_steps_sampled_lifetime"])
        self._num_evaluations = int(state["num_evaluations"])
        self._finished = [Episode.from_plain(episode) for episode in state["finished"]]
        self._game.set_state(state["game"], exact=exact)
        self._broken = False
        if exact:
            self.lanes.set_state(state["lanes"])
            for env, saved in zip(self.lanes.environments(), state["envs"], strict=True):
                restore_env(env, saved)
            return "exact"
        self.lanes.num_restarts = int(state["lanes"]["num_restarts"])
        self._start_episodes()
        return "restarted"

    def _check_state(self, state: Mapping[str, Any]) -> None:
        missing = sorted(_STATE - set(state))
        if missing:
            raise StateError(f"not a multi-agent runner's state: {', '.join(missing)} missing")
        if state["num_envs"] != self.num_envs:
            raise StateError(f"expected {self.num_envs} environments, got {state['num_envs']}", path="num_envs")
        if set(state["normalizers"]) != set(self.players):
            raise StateError(
                f"expected the modules {sorted(self.players)}, got {sorted(state['normalizers'])}", path="normalizers"
            )
        for module_id, saved in state["normalizers"].items():
            if (saved is None) != (self.players[module_id].normalizer is None):
                here = "off" if saved is not None else "on"
                raise StateError(f"normalisation is {here} here and not in the state", path=f"normalizers/{module_id}")
        self._game.check_state(state["game"])
        if state["env_state"] == "exact":
            for env, saved in zip(self.lanes.environments(), state["envs"], strict=True):
                check_env(env, saved)

    # ----------------------------------------------------------------------------------------------------- internals

    def _observed(self, game: AgentGame, module_id: str, lanes: Sequence[Lane], *, learn: bool = True) -> Columns:
        """What the module's lanes see, as its policy sees it; checked, and taken into the statistics."""
        player = self.players[module_id]
        obs = game.observations(lanes)
        check_finite(obs, None, whose=lambda row: f"{self._whose(lanes[row][0])}, agent {lanes[row][1]!r}")
        if player.normalizer is not None and learn and (self._trained is None or module_id in self._trained):
            player.normalizer.update(obs)
        return player.shown(obs)

    def _noise(
        self,
        purpose: str,
        module_id: str,
        lanes: Sequence[Lane],
        blocks: dict[tuple[str, str, str], NoiseBlocks] | None = None,
        at: int | None = None,
    ) -> np.ndarray:
        """Noise of these lanes: a function of seed, module, agent, copy and step, whoever else is there."""
        store = self._blocks if blocks is None else blocks
        number = self._num_vector_steps if at is None else at
        player = self.players[module_id]
        rows = []
        for copy, agent in lanes:
            key = (purpose, module_id, agent)
            if key not in store:
                random = purpose == "random"
                shape = player.door.noise_shape if random else player.policy.noise_shape
                stream = f"env_runner/{self.worker_index}/{module_id}/{agent}/{purpose}"
                kind = "uniform" if random else "normal"
                store[key] = NoiseBlocks(self.seed, stream, self.num_envs, shape, kind=kind)
            rows.append(store[key].at(number)[copy])
        return np.stack(rows)

    def _make_game(self, num_envs: int, *, apart: bool = False) -> AgentGame:
        """Copies of the configured environment; ``apart`` from an environment object that was handed over."""
        env = self._env
        if hasattr(env, "step"):
            if num_envs > 1:
                raise ConfigError(
                    f"num_envs_per_env_runner={num_envs}: one environment object was given; configure its name, or a "
                    "callable that makes it"
                )
            if apart:
                try:
                    env = copying.deepcopy(env)
                except Exception as error:
                    raise EnvError(
                        f"evaluation needs environments of its own and cannot copy {type(env).__name__} ({error!r}); "
                        "configure the environment's name, or a callable that makes it"
                    ) from error

        def make() -> Any:
            if hasattr(env, "step"):
                return env
            return make_env(SimpleNamespace(env=env, env_config=dict(getattr(self._config, "env_config", None) or {})))

        limit = int(getattr(self._config, "max_env_restarts", MAX_ENV_RESTARTS))
        lanes = AgentLanes(make, num_envs, max_restarts=limit, whose=self._whose)
        runners = 1 + int(getattr(self._config, "num_env_runners", 0))
        first = 0 if apart else self.worker_index * num_envs
        stride = num_envs if apart else runners * num_envs
        return AgentGame(lanes, self.players, self._mapping, first=first, stride=stride)

    def _close_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.lanes.close()
            self._evaluation = None

    def _set_seed(self, seed: int) -> None:
        self.seed = seed
        self._blocks: dict[tuple[str, str, str], NoiseBlocks] = {}

    def _env_seeds(self, purpose: str, number: int, count: int) -> list[int]:
        """Seeds of N environments: a function of the run's seed, the worker, the purpose and its number."""
        entropy = [self.seed, self.worker_index, number, *purpose.encode()]
        return [int(word) for word in np.random.SeedSequence(entropy).generate_state(count)]

    def _start_episodes(self) -> None:
        self._game.reset(self._env_seeds("training", self._num_vector_steps, self.num_envs))
        self._broken = False

    def _moments(self) -> dict[str, RunningMoments]:
        return {
            f"observations/{module_id}/{path}": moments
            for module_id, player in self.players.items()
            if player.normalizer is not None
            for path, moments in player.normalizer.moments.items()
        }

    def _whose(self, copy: int) -> str:
        """Names an environment in an error."""
        name = self._env if isinstance(self._env, str) else getattr(self._env, "__qualname__", type(self._env).__name__)
        return f"environment {copy} of runner {self.worker_index} ({name}), vector step {self._num_vector_steps}"

    def _save_envs(self) -> tuple[list[Any] | None, str]:
        states = []
        for env in self.lanes.environments():
            state, reason = save_env(env)
            if state is None:
                return None, reason
            states.append(state)
        return states, ""
