"""Steps N environments with a policy and records what happened.

Needs a config (``env env_config num_envs_per_env_runner vectorization action_mask_in_info max_env_restarts
env_step_timeout_s normalize_observations normalize_rewards gamma samples_raw``), a module spec, and weights before the
first policy action. Refuses: NaN and infinite observations or rewards, values outside of the environments' spaces,
environments that raise too often, states of another number of environments. Imports no framework.

One step, in the order that matters:

1. The policy answers the observations as they stand in the buffer (normalised, if they are normalised).
2. Its actions go through the door: clipped to the bounds, cast. The batch keeps them as they were sampled.
3. The environments step; what comes back is copied and compared with their spaces, before anything learns from it;
   final observations of ended episodes are set aside where they were reset at once.
4. The normalisers take the new observations and rewards in, then scale them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..config.agents import EnvSource
from ..config.algorithm_settings import AlgorithmSettings
from ..errors import SpaceError
from ..learning.rl_module import RLModuleSpec
from ..maths.action_masks import split_mask
from ..spaces import AnySpace, alike, blank
from ..state.schema import Schema
from ..state.tree import Plain, Tree
from .actions import ActionDoor
from .columns import Columns, columns_schema, tree_map
from .episodes import Episode, EpisodeTracker
from .evaluation import StepLimit, Trial, Watch, evaluate
from .lane_memory import LaneMemory
from .lanes import Lanes, Step
from .noise_blocks import NoiseBlocks
from .normalize import NO_STATISTICS, RewardScaler, RunningMoments, RunningNormalizer
from .numpy_backend import NumpyPolicy, Policy
from .rebuilding import Tell
from .recorder import Recorder
from .rollout import Rollout, rollout_columns
from .runner_base import RunnerBase
from .vector_env import make_lanes

__all__ = ["EnvRunner"]


class EnvRunner(RunnerBase):
    """N environments, a policy, and the record of what they do together.

    Seeds, statistics and state are as ``RunnerBase`` says.

    Args:
        config: An ``AlgorithmSettings``, or anything with the fields named above.
        module_spec: ``RLModuleSpec``; missing spaces are taken from the environment.
        seed: The run's seed.
        worker_index: Which runner this is; runners of one seed have noise and environments of their own.
        policy: Answers observations; by default the module in numpy.
        tell: Told of every environment that is made anew; by default the user of this process.

    Raises:
        EnvError: The environment cannot be made.
    """

    _state_name = "a runner's state"

    def __init__(
        self,
        config: AlgorithmSettings,
        module_spec: RLModuleSpec,
        *,
        seed: int,
        worker_index: int = 0,
        policy: Policy | None = None,
        tell: Tell | None = None,
    ) -> None:
        super().__init__(config, worker_index=worker_index, tell=tell)
        # As the environments gave them, for a replay buffer; it asks ``normalized_obs`` when rows are drawn.
        self._gives_raw = config.samples_raw
        self.lanes: Lanes = self._make_lanes(self._env, int(config.num_envs_per_env_runner), self._whose)
        self._evaluation_lanes: Lanes | None = None
        self._evaluation_width = 0
        try:
            self._prepare(module_spec, policy, int(seed))
        except BaseException:
            self.close()
            raise

    def _prepare(self, module_spec: RLModuleSpec, policy: Policy | None, seed: int) -> None:
        """All that comes after the environments, up to their first observations."""
        config = self._config
        self.num_envs: int = self.lanes.num_envs
        self.action_space: AnySpace = self.lanes.action_space
        # What the environment shows may have a mask of actions in it; a network sees the rest.
        self._shown_space = self.lanes.observation_space
        self.observation_space: AnySpace
        self.observation_space, self._mask = split_mask(self._shown_space, self.action_space)
        spec = self._with_spaces(module_spec)
        self.policy: Policy = policy if policy is not None else NumpyPolicy(spec)
        self._door = ActionDoor(self.action_space)
        # As the environment gives them: what a normaliser takes in.
        self._raw_example = example = blank(self._shown_space)
        # float64 observations are kept as float32: no learner takes more, and they are half of a rollout.
        self._example = tree_map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, example)
        self._memory = LaneMemory(
            self.policy, self.num_envs, self._mask, action_space=self.action_space, whose=self._whose
        )
        seen = self._memory.seen(example)
        self._normalizer = RunningNormalizer(seen) if config.normalize_observations else None
        self._scaler = RewardScaler(self.num_envs, float(config.gamma)) if config.normalize_rewards else None
        self._episodes = EpisodeTracker(self.num_envs)
        self._set_seed(seed)
        self._obs = self._empty((self.num_envs,))
        self._raw_obs = self._obs if self._normalizer is None else self._empty((self.num_envs,), example)
        self._start_episodes()

    @property
    def normalizer(self) -> RunningNormalizer | None:
        """The observations' normaliser, if there is one."""
        return self._normalizer

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Give the policy new parameters.

        Args:
            weights: {name: array}, copied.
        """
        self.policy.set_weights(weights)

    def set_config(self, config: AlgorithmSettings) -> None:
        """Go by these settings from now on, as far as a run can change them: the discount of ``normalize_rewards``."""
        self._config = config
        if self._scaler is not None:
            self._scaler.gamma = float(config.gamma)

    def normalized_obs(self, obs: Columns) -> Columns:
        """Observations [..., *shape] as the policy sees them now; nothing is learned from them."""
        return obs if self._normalizer is None else self._normalizer.normalize(obs)

    def normalized_rewards(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards float[...] as a learner gets them now; nothing is learned from them."""
        return rewards if self._scaler is None else self._scaler.scaled(rewards)

    def sample(self, num_steps: int, *, explore: bool = True, random_actions: bool = False) -> Rollout:
        """Step all environments.

        Args:
            num_steps: T, steps of each environment.
            explore: Sample actions; False takes the most likely ones.
            random_actions: Uniformly random actions instead of the policy's (warm-up of a replay buffer).

        Returns:
            T * N rows; see ``Rollout``.

        Raises:
            EnvOutputError: An environment gave what its spaces do not allow, NaN or infinity.
            EnvError: One raised too often.
        """
        count, lanes, memory = self.num_envs, self.lanes, self._memory
        recorder = Recorder(num_steps, count, self._scaler, raw=self._gives_raw)
        obs = self._empty((num_steps + 1, count))
        tree_map(_copy_first, obs, self._obs)
        raw_obs = self._empty((num_steps + 1, count), self._raw_example) if self._keeps_raw_obs else None
        if raw_obs is not None:
            tree_map(_copy_first, raw_obs, self._raw_obs)
        plain = not isinstance(obs, dict)
        columns: dict[str, Columns] = {}
        state_in, after = self._empty_state(num_steps), self._empty_state(num_steps)
        resets = np.zeros((num_steps, count), np.bool_)
        for t in range(num_steps):
            current = obs[t] if plain else tree_map(lambda leaf, t=t: leaf[t], obs)
            allowed = memory.allowed(current)
            if random_actions:
                uniforms = self._random_noise.at(self._num_vector_steps)
                answer: dict[str, Columns] = {"actions": self._door.random(uniforms, allowed)}
            else:
                noise = self._action_noise.at(self._num_vector_steps) if explore else None
                answer = memory.ask(memory.seen(current), noise=noise, explore=explore, allowed=allowed)
            state_out = answer.pop("state_out", None)
            if allowed is not None:
                answer["action_mask"] = allowed
            for leaf, column in state_in.items():
                column[t] = memory.state[leaf]
            resets[t] = memory.fresh
            if not columns:
                columns = {name: np.empty((num_steps, *a.shape), a.dtype) for name, a in answer.items()}
            for name, column in columns.items():
                column[t] = answer[name]
            following = obs[t + 1] if plain else tree_map(lambda leaf, t=t: leaf[t + 1], obs)
            out = following if self._normalizer is None else self._raw_obs
            step = lanes.step(self._door.to_env(answer["actions"]), out)
            for lane, final in step.finals.items():
                step.finals[lane] = memory.seen(final)
            if self._normalizer is not None:
                self._normalize(step, out, following)
                if raw_obs is not None:
                    tree_map(lambda leaf, row, t=t: leaf.__setitem__(t + 1, row), raw_obs, out)
                else:
                    for lane, final in step.finals.items():
                        step.finals[lane] = self._normalizer.normalize(final)
            rewards = recorder.record(t, step)
            state_out = memory.after(state_out, answer["actions"], rewards)
            for leaf, column in after.items():
                column[t] = state_out[leaf]
            memory.advance(step, state_out)
            self._num_vector_steps += 1
        self._obs = tree_map(lambda leaf: leaf[-1].copy(), obs)
        if self._normalizer is None:
            self._raw_obs = self._obs
        if memory.recurrent:
            columns.update(state_in=state_in, resets=resets)
        rows, values = (obs, self.policy.values) if raw_obs is None else (raw_obs, self._values_of_raw)
        rollout = recorder.finish(
            memory.seen(rows), columns, self._episodes, values, after if memory.recurrent else None
        )
        self._num_env_steps += rollout.num_env_steps
        self._finished.extend(rollout.episodes)
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

        Each lane contributes its first episodes, as many as any other (give or take one), so that short episodes are
        not overrepresented, as they would be among the first to finish. Observations are normalised with the
        statistics as they are; returns are of raw rewards.

        Args:
            num_episodes: How many.
            explore: Sample actions instead of taking the most likely ones.
            watch: Told of every step (``evaluation.Watch``): to record, to draw.
            max_episode_steps: An episode that is longer is cut, and counts; None: see ``evaluation.StepLimit``.

        Returns:
            ``num_episodes`` episodes, each lane's first before the second ones.
        """
        width = min(self.num_envs, num_episodes)  # a vector environment has its own
        if self._evaluation_lanes is None or self._evaluation_width != width:
            self._close_evaluation()
            self._evaluation_lanes = self._make_lanes(self._env_apart(), width, self._whose_in_evaluation)
            self._evaluation_width = width
        number, self._num_evaluations = self._num_evaluations, self._num_evaluations + 1
        lanes, stream = self._evaluation_lanes, f"env_runner/{self.worker_index}/evaluation/{number}"
        trial = Trial(
            lanes,
            self.policy,
            self._door,
            example=self._example if self._normalizer is None else self._raw_example,
            normalizer=self._normalizer,
            mask=self._mask,
            learned_rewards=self.normalized_rewards,
        )
        return evaluate(
            trial,
            num_episodes,
            seeds=self._env_seeds("evaluation", number, lanes.num_envs),
            noise=NoiseBlocks(self.seed, stream, lanes.num_envs, self.policy.noise_shape) if explore else None,
            limit=StepLimit(max_episode_steps, lanes.environments(), tell=self._tell),
            watch=watch,
        )

    # ------------------------------------------------------------------------------------------------------- state

    def _counts(self) -> dict[str, int]:
        return {
            "num_episodes_lifetime": self._episodes.num_episodes,
            "num_episodes_lost_lifetime": self._episodes.num_lost,
        }

    def _moments(self) -> dict[str, RunningMoments]:
        found: dict[str, RunningMoments] = {}
        if self._normalizer is not None:
            found = {f"observations/{path}": moments for path, moments in self._normalizer.moments.items()}
        if self._scaler is not None:
            found["rewards"] = self._scaler.moments
        return found

    def _refresh(self) -> None:
        if self._normalizer is not None:
            self._normalizer.refresh()

    def _get_own_state(self) -> dict[str, Plain]:
        return {
            "episodes": self._episodes.get_state(),
            "observations": None if self._normalizer is None else self._normalizer.get_state(),
            "rewards": None if self._scaler is None else self._scaler.get_state(),
            "obs": tree_map(np.array, self._obs),
            "raw_obs": tree_map(np.array, self._raw_obs),
            "memory": self._memory.get_state(),
        }

    def _own_schema(self, module_specs: Mapping[str, RLModuleSpec] | None) -> tuple[dict[str, Schema], tuple[str, ...]]:
        normalizer, scaler = self._normalizer, self._scaler
        fields: dict[str, Schema] = {
            "episodes": self._episodes.state_schema(),
            "observations": NO_STATISTICS if normalizer is None else normalizer.state_schema(),
            "rewards": NO_STATISTICS if scaler is None else scaler.state_schema(),
            "obs": columns_schema(self._obs),
            "raw_obs": columns_schema(self._raw_obs),
            "memory": self._memory.state_schema(),
        }
        return fields, () if self._memory.recurrent else ("memory",)

    def rollout_columns(self, module_id: str, rows: tuple[None, ...] = (None, None)) -> dict[str, Schema]:
        """What columns of a fragment must be to be of this runner's environments; see the function of that name."""
        example = self._raw_example if self._keeps_raw_obs else self._example
        seen = self._memory.seen(example)
        return rollout_columns(seen if self._keeps_raw_obs else self.normalized_obs(seen), self._door, rows)

    def _set_own_state(self, state: Tree, *, exact: bool) -> None:
        if self._normalizer is not None:
            self._normalizer.set_state(state["observations"])
        if self._scaler is not None:
            self._scaler.set_state(state["rewards"])
        self._episodes.set_state(state["episodes"])
        if exact:
            tree_map(_copy_into, self._obs, state["obs"])
            if self._normalizer is not None:
                tree_map(_copy_into, self._raw_obs, state["raw_obs"])
            self._memory.set_state(state.get("memory"))
            return
        self._episodes.drop_running()
        if self._scaler is not None:
            self._scaler.drop(np.ones(self.num_envs, np.bool_))

    # ----------------------------------------------------------------------------------------------------- internals

    @property
    def _keeps_raw_obs(self) -> bool:
        """Whether rollouts hold other observations than those that the policy saw."""
        return self._gives_raw and self._normalizer is not None

    def _values_of_raw(self, obs: Columns, *state: Columns) -> np.ndarray | None:
        return self.policy.values(self.normalized_obs(obs), *state)

    def _make_lanes(self, env: EnvSource | None, num_envs: int, whose: Callable[[int], str]) -> Lanes:
        return make_lanes(env, self._config, num_envs=num_envs, whose=whose, tell=self._tell)

    def _played(self) -> int:
        return 0 if self._evaluation_lanes is None else self._evaluation_lanes.num_steps

    def _close_evaluation(self) -> None:
        if self._evaluation_lanes is not None:
            self._evaluation_lanes.close()
            self._evaluation_lanes = None

    def _with_spaces(self, spec: RLModuleSpec) -> RLModuleSpec:
        filled = spec.filled(
            module_class=None,
            observation_space=self._shown_space,
            action_space=self.action_space,
            model=None,
        )
        for what in ("observation_space", "action_space"):
            given, own = getattr(filled, what), getattr(self, what)
            if not alike(given, own):
                raise SpaceError(
                    f"the environment has {what} {own}, but the module's is {given}; leave it out of RLModuleSpec to "
                    "take the environment's"
                )
        return filled

    def _set_seed(self, seed: int) -> None:
        self.seed = seed
        prefix = f"env_runner/{self.worker_index}"
        self._action_noise = NoiseBlocks(seed, f"{prefix}/actions", self.num_envs, self.policy.noise_shape)
        self._random_noise = NoiseBlocks(
            seed, f"{prefix}/random", self.num_envs, self._door.noise_shape, kind="uniform"
        )

    def _empty(self, leading: tuple[int, ...], example: Columns = None) -> Columns:
        shapes = self._example if example is None else example
        return tree_map(lambda leaf: np.empty((*leading, *leaf.shape), leaf.dtype), shapes)

    def _empty_state(self, num_steps: int) -> dict[str, np.ndarray]:
        """Room for the recurrent state at every step: leaves [T, N, ...]."""
        return {leaf: np.empty((num_steps, *value.shape), value.dtype) for leaf, value in self._memory.state.items()}

    def _start_episodes(self) -> None:
        self._memory.begin()
        self.lanes.reset(self._env_seeds("training", self._num_vector_steps, self.num_envs), self._raw_obs)
        if self._normalizer is not None:
            self._normalizer.update(self._memory.seen(self._raw_obs))
            self._show(self._raw_obs, self._obs)

    def _normalize(self, step: Step, raw: Columns, out: Columns) -> None:
        """Learn from the observations of one step, then write them normalised."""
        normalizer = self._normalizer
        if normalizer is None:
            return
        normalizer.update(self._memory.seen(raw))
        for final in step.finals.values():
            normalizer.update(tree_map(lambda leaf: leaf[np.newaxis], final))
        self._show(raw, out)

    def _show(self, raw: Columns, out: Columns) -> None:
        """Write observations normalised; a mask of actions stays what it is."""
        if self._normalizer is None:
            return
        seen = self._memory.seen
        if self._mask is not None:
            tree_map(_copy_into, out, raw)
        tree_map(_copy_into, seen(out), self._normalizer.normalize(seen(raw)))


def _copy_first(leaf: np.ndarray, value: np.ndarray) -> None:
    leaf[0] = value


def _copy_into(leaf: np.ndarray, value: np.ndarray) -> None:
    leaf[...] = value
