"""Masks of actions: found in observations, held in sampling, warm-up and evaluation; refused where they fit nothing."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from learner_core.errors import EnvError, SpaceError
from learner_core.learning.actor_critic import ActorCriticModule
from learner_core.learning.rl_module import RLModuleSpec
from learner_core.maths.action_masks import ActionMask, split_mask
from learner_core.sampling.actions import ActionDoor
from learner_core.sampling.env_runner import EnvRunner

from support.sampling import runner_config, same_tree

SPACES = {
    "discrete": spaces.Discrete(4, start=2),
    "multi": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary(3),
}


class MaskedEnv(gym.Env):
    """Forbids actions at random and raises when it is given one; its last observation allows none."""

    def __init__(self, action_space: Any, key: str = "observations", length: int = 4, trap: int = 10**9) -> None:
        self.action_space = action_space
        self._key = key
        self._length = length
        self._trap = trap
        self._steps = 0
        mask = spaces.Box(0, 1, (self._mask.size,), np.int8)
        self.observation_space = spaces.Dict({key: spaces.Box(-9, 9, (2,), np.float32), "action_mask": mask})

    @property
    def _mask(self) -> ActionMask:
        return ActionMask(self.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        if not self._mask.allows(self.allowed[None], np.asarray(action)[None])[0]:
            raise ValueError(f"{action} is forbidden by {self.allowed}")
        self.clock += 1
        self._steps += 1
        done = self.clock == self._length
        return self._observe(none=done), 1.0, done and self._steps % 8 == 0, done and self._steps % 8 != 0, {}

    def _observe(self, none: bool = False) -> Any:
        allowed = self.np_random.uniform(size=self._mask.size) < 0.4
        start = 0
        for size in self._mask.choices:
            allowed[start + int(self.np_random.integers(size))] = True
            start += size
        self.allowed = allowed
        shown = np.zeros_like(allowed) if none or self._steps >= self._trap else allowed
        return {self._key: self.np_random.normal(size=2).astype(np.float32), "action_mask": shown.astype(np.int8)}


def _runner(make: Any, **settings: Any) -> EnvRunner:
    spec = RLModuleSpec(ActorCriticModule, model={"hidden": [4]})
    runner = EnvRunner(runner_config(make, max_env_restarts=0, **settings), spec, seed=5)
    runner.set_weights(runner.policy.module.init(np.random.default_rng(0)))
    return runner


@pytest.mark.parametrize("mode", ["own", "NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("kind", sorted(SPACES))
def test_no_forbidden_action_is_ever_taken(kind: str, mode: str) -> None:
    """The environment raises if one is, and may not be restarted."""

    def make(config: Any) -> Any:
        if mode == "own":
            return MaskedEnv(SPACES[kind])
        return gym.vector.SyncVectorEnv([lambda: MaskedEnv(SPACES[kind])] * 2, autoreset_mode=mode)

    runner = _runner(make)
    for random_actions in (False, True):
        columns = runner.sample(40, random_actions=random_actions).columns
        mask, actions = columns["action_mask"], columns["actions"]
        assert columns["obs"].shape == (40, 2, 2) and columns["next_obs"].shape == (40, 2, 2)
        assert mask.shape == (40, 2, ActionMask(SPACES[kind]).size) and mask.dtype == bool
        allowed = ActionMask(SPACES[kind]).allows(mask.reshape(80, -1), actions.reshape(80, -1))
        assert allowed.all() and not mask.all()
        if not random_actions:
            assert np.isfinite(columns["action_logp"]).all() and (columns["action_logp"] > -50).all()
            assert (columns["action_dist_inputs"][~mask] == -1e9).all() or kind == "bits"
    if mode == "own":
        assert len(runner.evaluate(6)) == len(runner.evaluate(6, explore=True)) == 6
    runner.close()


def test_random_actions_are_uniform_among_the_allowed_ones() -> None:
    door = ActionDoor(spaces.MultiDiscrete([3, 4]))
    allowed = np.tile(np.array([True, False, True, False, True, True, True]), (6000, 1))
    actions = door.random(np.random.default_rng(0).uniform(size=(6000, 2)), allowed)
    first, second = (np.bincount(actions[:, index], minlength=size) for index, size in ((0, 3), (1, 4)))
    assert first[1] == second[0] == 0
    np.testing.assert_allclose(first[[0, 2]] / 6000, 0.5, atol=0.03)
    np.testing.assert_allclose(second[1:] / 6000, 1 / 3, atol=0.03)


@pytest.mark.parametrize("kind", ["discrete", "multi"])
def test_an_environment_that_allows_nothing_is_named(kind: str) -> None:
    runner = _runner(lambda config: MaskedEnv(SPACES[kind], length=100, trap=3))
    runner.sample(2)
    with pytest.raises(EnvError, match=r"environment 0 of runner 0 .*vector step 3: action_mask allows no action in 2"):
        runner.sample(5)


def test_normalisation_leaves_masks_alone_and_a_state_goes_on() -> None:
    def make(config: Any) -> MaskedEnv:
        return MaskedEnv(SPACES["multi"], key="observation")

    runner = _runner(make, normalize_observations=True)
    assert runner.sample(9).columns["action_mask"].dtype == bool
    state = runner.get_state()
    expected = runner.sample(9).columns
    again = _runner(make, normalize_observations=True)
    assert again.set_state(state) == "exact"
    assert same_tree(expected, again.sample(9).columns)


def test_what_a_mask_must_look_like() -> None:
    seen = spaces.Box(-1, 1, (2,))
    action = spaces.MultiDiscrete([2, 3])
    parts = spaces.Tuple([spaces.MultiBinary(2), spaces.MultiBinary(3)])
    inner, mask = split_mask(spaces.Dict(obs=seen, action_mask=parts), action)
    assert inner == seen and mask is not None
    columns = {"obs": np.zeros((1, 2)), "action_mask": {"0": np.array([[1, 0]]), "1": np.array([[0, 1, 1]])}}
    assert mask.mask(columns).tolist() == [[True, False, False, True, True]]
    several, mask = split_mask(spaces.Dict(a=seen, b=seen, action_mask=parts), action)
    assert mask is not None and list(several.spaces) == ["a", "b"]
    assert split_mask(seen, action) == (seen, None)
    for wrong, actions, text in (
        (spaces.MultiBinary(4), action, "needs 5 entries"),
        (spaces.MultiBinary(2), spaces.Box(-1, 1, (2,)), "only discrete ones"),
    ):
        with pytest.raises(SpaceError, match=text):
            split_mask(spaces.Dict(obs=seen, action_mask=wrong), actions)
    with pytest.raises(SpaceError, match="nothing to observe"):
        split_mask(spaces.Dict(action_mask=parts), action)
