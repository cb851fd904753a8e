"""The replay buffer holds what environments gave; what is drawn is normalised by the statistics of that moment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import learner_core as lc
from learner_core_algorithms import SACConfig

from support.learners import states_differ


class Clock(gym.Env[Any, Any]):
    """Shows [1e6 + step / 1024, step] in float64; pays 1 a step; five steps an episode."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        return self._obs(), 1.0, self.clock == 5, False, {}

    def _obs(self) -> np.ndarray:
        return np.array([1e6 + self.clock / 1024.0, self.clock], np.float64)


def config_for(backend: str, *, normalized: bool = True, runners: int = 0, **training: Any) -> Any:
    settings = {"train_batch_size": 8, "learning_starts": 10, "timesteps_per_iteration": 40, "buffer_capacity": 64}
    return (
        SACConfig()
        .environment(lambda env_config: Clock())
        .framework(backend, compile=False)
        .env_runners(
            num_envs_per_env_runner=2,
            num_env_runners=runners,
            normalize_observations=normalized,
            normalize_rewards=normalized,
        )
        .training(**{**settings, **training})
        .rl_module(model={"hidden": [4]})
    )


def stored(algo: Any) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = algo.get_extra_state()["replay"]["storage"]["columns"]
    return columns


def check_draw(algo: Any, n_step: int, gamma: float) -> None:
    """What is drawn, by hand from the statistics of now."""
    statistics = algo.runner.get_statistics()
    mean, m2, count = (statistics["observations/obs"][name] for name in ("mean", "m2", "count"))
    spread = np.sqrt(m2 / count + 1e-8)
    assert spread[0] == pytest.approx(spread[1] / 1024, rel=1e-2)  # float32 rows would know nothing of it
    rewards = statistics["rewards"]
    scale = np.sqrt(rewards["m2"] / rewards["count"] + 1e-8)
    batch = algo.replay.sample(64, 7)
    assert batch["obs"].dtype == batch["next_obs"].dtype == batch["rewards"].dtype == np.float32
    # The step, from what is drawn; its neighbour follows.
    step = batch["obs"][:, 1] * spread[1] + mean[1]
    assert np.abs(step - np.round(step)).max() < 1e-4
    step = np.round(step)
    ahead = np.round(batch["next_obs"][:, 1] * spread[1] + mean[1])
    assert ((ahead > step) & (ahead <= np.minimum(step + n_step, 5))).all()
    for name, clock in (("obs", step), ("next_obs", ahead)):
        expected = (np.stack([1e6 + clock / 1024.0, clock], -1) - mean) / spread
        np.testing.assert_allclose(batch[name], expected, rtol=0, atol=1e-5)
    each = min(1.0 / scale, 10.0)
    expected = [sum(gamma**k * each for k in range(int(steps))) for steps in ahead - step]
    np.testing.assert_allclose(batch["rewards"], expected, rtol=1e-6)


OPTIONS: list[dict[str, Any]] = [{}, {"n_step": 3}, {"prioritized_replay": True, "n_step": 2}]


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "uniform")
def test_rows_are_raw_and_draws_are_of_now(training_backend_name: str, options: dict[str, Any]) -> None:
    with config_for(training_backend_name, gamma=0.9, **options).build() as algo:
        for _ in range(2):
            algo.train()
            columns = stored(algo)
            assert set(columns["rewards"].tolist()) == {1.0}
            assert columns["obs"].dtype == np.float64
            assert set(columns["obs"][:, 1].tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
            np.testing.assert_array_equal(columns["obs"][:, 0], 1e6 + columns["obs"][:, 1] / 1024.0)
            check_draw(algo, options.get("n_step", 1), 0.9)


@pytest.mark.fast_on_torch
def test_of_several_runners_as_well(training_backend_name: str) -> None:
    with config_for(training_backend_name, runners=2, gamma=0.9).build() as algo:
        algo.train()
        assert set(stored(algo)["rewards"].tolist()) == {1.0}
        check_draw(algo, 1, 0.9)


@pytest.mark.fast_on_torch
def test_an_old_row_means_what_a_new_one_does(training_backend_name: str) -> None:
    """The same row, drawn before and after the statistics have moved."""
    with config_for(training_backend_name).build() as algo:
        algo.train()
        before = algo.replay.sample(8, 3)
        statistics = algo.runner.get_statistics()
        statistics["observations/obs"]["mean"] += np.array([0.0, 1.0])
        statistics["rewards"]["m2"] *= 4.0
        algo.runner.set_statistics(statistics)
        after = algo.replay.sample(8, 3)
        spread = np.sqrt(statistics["observations/obs"]["m2"][1] / statistics["observations/obs"]["count"])
        for name in ("obs", "next_obs"):
            np.testing.assert_allclose(after[name][:, 1], before[name][:, 1] - 1.0 / spread, rtol=0, atol=1e-5)
        np.testing.assert_allclose(after["rewards"], before["rewards"] / 2.0, rtol=1e-5)


@pytest.mark.fast_on_torch
def test_a_restored_buffer_draws_the_same(training_backend_name: str, tmp_path: Any) -> None:
    with config_for(training_backend_name, n_step=2).build() as algo:
        algo.train()
        algo.save(tmp_path / "checkpoint")
        drawn = algo.replay.sample(16, 5)
        with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", env=lambda env_config: Clock()) as more:
            assert not states_differ(drawn, more.replay.sample(16, 5))
            more.train()
            algo.train()
            assert not states_differ(stored(algo), stored(more))
            assert not states_differ(algo.learner_group.get_weights(), more.learner_group.get_weights())


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("normalized", [True, False])
def test_rows_of_an_earlier_version(training_backend_name: str, tmp_path: Any, normalized: bool) -> None:
    """Those that were normalised are refused; where nothing was, they mean what they did."""
    with config_for(training_backend_name, normalized=normalized).build() as algo:
        algo.train()
        algo.save(tmp_path / "new")
        tree = lc.load_state(tmp_path / "new")
        del tree["state"]["extra"]["replay"]["is_raw"]
        lc.save_state(tmp_path / "old", tree)
        if not normalized:
            algo.restore(tmp_path / "old")
            return
        before = algo.get_state()
        with pytest.raises(lc.StateError, match=r"extra/replay/is_raw: .*normalised when they were stored"):
            algo.restore(tmp_path / "old")
        assert not states_differ(before["extra"], algo.get_state()["extra"])
        algo.learner_group.set_state(tree["state"]["learner"])  # as the refusal says


def test_a_config_without_raw_rows_is_refused(training_backend_name: str) -> None:
    class Unaware(SACConfig):
        samples_raw = False

    config = Unaware().environment(lambda env_config: Clock()).framework(training_backend_name, compile=False)
    with pytest.raises(lc.ConfigError, match=r"Unaware: .*samples_raw = True"):
        config.env_runners(normalize_rewards=True).build()
