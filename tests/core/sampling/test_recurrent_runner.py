"""Runners of policies with a memory: state from step to step and over fragments, sequences, resuming, evaluation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from learner_core import numpy_xp
from learner_core.errors import ConfigError, StateError
from learner_core.learning.actor_critic import ActorCriticModule
from learner_core.learning.rl_module import RLModuleSpec
from learner_core.sampling.env_runner import EnvRunner
from learner_core.sampling.rollout import Rollout
from learner_core.sampling.sequences import rollout_to_sequences

from support.sampling import CountEnv, runner_config, same_tree

MODES = ["own", "NextStep", "SameStep", "Disabled"]


def _env(mode: str, num_envs: int = 2) -> Any:
    if mode == "own":
        return lambda config: CountEnv()
    return lambda config: gym.vector.SyncVectorEnv([CountEnv] * num_envs, autoreset_mode=mode)


def _runner(env: Any, num_envs: int = 2, *, kind: str = "lstm", shared: bool = False, **settings: Any) -> EnvRunner:
    model = {"hidden": [4], "recurrent": kind, "recurrent_size": 3, "vf_share_layers": shared}
    spec = RLModuleSpec(ActorCriticModule, model=model)
    runner = EnvRunner(runner_config(env, num_envs, **settings), spec, seed=7)
    module = runner.policy.module
    runner.set_weights({name: 3.0 * value for name, value in module.init(np.random.default_rng(1)).items()})
    return runner


def _answers(runner: EnvRunner, batch: dict[str, Any]) -> dict[str, Any]:
    """What the module says of sequences [B, T]."""
    policy: Any = runner.policy
    answer: dict[str, Any] = policy.module.forward_train(policy._params, batch)
    return answer


def _joined(first: Rollout, second: Rollout) -> dict[str, Any]:
    """Both fragments as one, state before each step included."""

    def join(one: Any, other: Any) -> Any:
        if isinstance(one, dict):
            return {key: join(one[key], other[key]) for key in one}
        return np.concatenate([one, other])

    return {name: join(first.columns[name], second.columns[name]) for name in first.columns}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "shared"), [("lstm", False), ("gru", True)])
def test_a_sequence_computes_what_was_computed_step_by_step(mode: str, kind: str, shared: bool) -> None:
    """Over two fragments and many episodes, from the state before the very first step alone."""
    runner = _runner(_env(mode), kind=kind, shared=shared)
    columns = _joined(runner.sample(7), runner.sample(6))
    batch = {
        "obs": columns["obs"].swapaxes(0, 1),
        "resets": columns["resets"].swapaxes(0, 1),
        "state_in": {leaf: value[0] for leaf, value in columns["state_in"].items()},
    }
    answer = _answers(runner, batch)
    for name in ("action_dist_inputs", "vf_preds"):
        np.testing.assert_allclose(answer[name].swapaxes(0, 1), columns[name], rtol=1e-5, atol=1e-6)
    assert columns["resets"][0].all()
    # An episode begins where the step counter is 0 again, and nowhere else.
    np.testing.assert_array_equal(columns["resets"][1:], columns["obs"][1:, :, 1] == 0)
    runner.close()


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_that_was_cut_is_bootstrapped_from_the_state_after_its_last_step(mode: str) -> None:
    runner = _runner(_env(mode))
    rollout = runner.sample(10)
    columns = rollout.columns
    assert rollout.bootstrap_values is not None
    checked = 0
    for lane in range(2):
        for t in np.flatnonzero(columns["valid"][:, lane]):
            value = rollout.bootstrap_values[t, lane]
            if columns["terminateds"][t, lane]:
                assert value == 0.0
                continue
            begin = t - int(columns["obs"][t, lane, 1])
            if begin < 0:
                continue
            steps = np.concatenate([columns["obs"][begin : t + 1, lane], columns["next_obs"][t : t + 1, lane]])
            zeros = {leaf: np.zeros((1, 3), np.float32) for leaf in columns["state_in"]}
            batch = {"obs": steps[None], "resets": np.zeros((1, len(steps)), bool), "state_in": zeros}
            assert value == pytest.approx(_answers(runner, batch)["vf_preds"][0, -1], rel=1e-5, abs=1e-6)
            checked += 1
    assert checked >= 8
    runner.close()


def test_a_runner_that_is_given_its_state_back_goes_on_bit_for_bit() -> None:
    runner = _runner(lambda config: CountEnv(5), normalize_observations=True)
    runner.sample(7)
    state = runner.get_state()
    expected = [runner.sample(4), runner.sample(4)]
    again = _runner(lambda config: CountEnv(5), normalize_observations=True)
    again.sample(2)
    assert again.set_state(state) == "exact"
    for rollout in expected:
        assert same_tree(rollout.columns, again.sample(4).columns)
    bad = {**state, "memory": {**state["memory"], "state": {"pi_h": np.zeros((2, 3), np.float32)}}}
    before = again.get_state()
    with pytest.raises(StateError, match=r"memory/state/pi_c: missing; expected an array of float32 of shape \(2, 3\)"):
        again.set_state(bad)
    assert same_tree(before["memory"], again.get_state()["memory"])


class RecallEnv(gym.Env):
    """Shows a bit in the first step only and pays for saying it in the third."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.bit, self.clock = int(self.np_random.integers(2)), 0
        return np.array([2 * self.bit - 1], np.float32), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        done = self.clock == 3
        return np.zeros(1, np.float32), float(done and action == self.bit), done, False, {}


class RecallModule(ActorCriticModule):
    """Remembers the sum of what it saw."""

    def setup(self) -> None:
        pass

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"scale": np.ones(1, np.float32)}

    def initial_state(self) -> dict[str, np.ndarray]:
        return {"sum": np.zeros(1, np.float32)}

    def forward_train(self, params: Any, batch: Any) -> dict[str, Any]:
        total = batch["state_in"]["sum"] + batch["obs"]
        logits = numpy_xp.concat([-total, total], -1) * params["scale"]
        return {"action_dist_inputs": logits, "vf_preds": total[..., 0], "state_out": {"sum": total}}

    forward_exploration = forward_train
    forward_inference = forward_train


def test_evaluation_remembers_within_an_episode_and_forgets_after_it() -> None:
    runner = EnvRunner(runner_config(lambda config: RecallEnv()), RLModuleSpec(RecallModule), seed=3)
    runner.set_weights({"scale": np.ones(1, np.float32)})
    before = runner.get_state()["memory"]
    assert [episode.episode_return for episode in runner.evaluate(20)] == [1.0] * 20
    assert same_tree(before, runner.get_state()["memory"])


# ---- fragments to sequences ------------------------------------------------------------------------------------------


def _rollout(steps: int, lanes: int) -> Rollout:
    place = np.arange(steps)[:, None] * 10 + np.arange(lanes)
    valid = np.ones((steps, lanes), bool)
    valid[steps // 2, 0] = False
    state = {"h": np.repeat(place[..., None], 2, axis=-1).astype(np.float32)}
    return Rollout(
        {"obs": {"a": place[..., None].astype(np.float32)}, "rewards": place, "valid": valid, "state_in": state}
    )


@pytest.mark.parametrize(
    ("steps", "length", "burn_in"), [(8, 4, 0), (7, 3, 0), (5, 8, 0), (5, 5, 0), (9, 4, 2), (2, 4, 2)]
)
def test_every_step_counts_once_and_stands_where_it_stood(steps: int, length: int, burn_in: int) -> None:
    rollout = _rollout(steps, 3)
    extra = {"advantages": rollout.columns["rewards"] + 0.5}
    batch = rollout_to_sequences(rollout, length, extra, burn_in=burn_in)
    rows = len(batch["rewards"])
    assert rows == 3 * max(1, -(-(steps - burn_in) // (length - burn_in)))
    assert batch["obs"]["a"].shape == (rows, length, 1) and batch["loss_mask"].shape == (rows, length)
    counted = sorted(batch["rewards"][batch["loss_mask"] > 0].tolist())
    whole = rollout.columns["rewards"][burn_in:][rollout.columns["valid"][burn_in:]]
    assert counted == sorted(whole.tolist())
    np.testing.assert_array_equal(batch["obs"]["a"][..., 0], batch["rewards"])
    np.testing.assert_array_equal(batch["advantages"], batch["rewards"] + 0.5)
    for row in range(rows):
        first = batch["rewards"][row, 0]
        assert (batch["state_in"]["h"][row] == first).all()
        real = min(length, steps - first // 10)
        np.testing.assert_array_equal(batch["rewards"][row, :real], first + 10 * np.arange(real))
        assert not batch["loss_mask"][row, real:].any()


def test_a_burn_in_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="burn_in=4"):
        rollout_to_sequences(_rollout(8, 1), 4, burn_in=4)
