"""Algorithms whose environment runners are processes: what they sample, how they resume, what they survive."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.algorithm.policies import make_policy
from learner_core.sampling.make_runner import give_weights, make_runner

from support.algorithms import assert_same, small_ppo, small_sac
from support.runners import pids, running
from support.sampling import same_tree


def _ppo(backend: str, number: int = 2) -> Any:
    config = small_ppo(backend).environment("CartPole-v1", env_config={})
    return config.env_runners(num_env_runners=number, normalize_observations=True, normalize_rewards=True)


def _sac(backend: str, number: int = 2) -> Any:
    return small_sac(backend).environment("Pendulum-v1", env_config={}).env_runners(num_env_runners=number)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("make", [_ppo, _sac], ids=["ppo", "sac"])
def test_resuming_with_processes_is_bit_identical(training_backend_name: str, make: Any, tmp_path: Any) -> None:
    with make(training_backend_name).build() as algo:
        for _ in range(2):
            algo.train()
        algo.save(tmp_path / "checkpoint")
        algo.evaluate(2)  # disturbs nothing
        for _ in range(2):
            last = algo.train()
        uninterrupted = algo.get_state()
        numbers = pids(algo.env_runners)
        assert len(numbers) == 2
    assert not running(numbers)
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint") as again:
        again.evaluate(2)
        for _ in range(2):
            resumed_last = again.train()
        resumed = again.get_state()
    assert_same(uninterrupted, resumed)
    assert last["learners"] == resumed_last["learners"]
    assert last["env_runners"] == resumed_last["env_runners"]


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("make", [_ppo, _sac], ids=["ppo", "sac"])
def test_a_checkpoint_opens_with_another_number_of_runners(
    training_backend_name: str, make: Any, tmp_path: Any
) -> None:
    with make(training_backend_name, 0).build() as algo:
        algo.train()
        algo.save(tmp_path / "0")
        steps = algo.num_env_steps_sampled_lifetime
        last = algo.replay.sample(4, 0) if make is _sac else {}
    with lc.Algorithm.from_checkpoint(tmp_path / "0", num_env_runners=1, num_envs_per_env_runner=3) as more:
        assert more.num_env_steps_sampled_lifetime == steps
        if make is _sac:
            assert len(more.replay) == steps - steps % 3
            assert more.replay.sample(4, 0)["obs"].dtype == last["obs"].dtype
        sampled = more.train()["env_runners"]["num_env_steps_sampled"]
        assert more.num_env_steps_sampled_lifetime == steps + sampled > steps
        more.save(tmp_path / "1")
    with lc.Algorithm.from_checkpoint(tmp_path / "1", num_env_runners=0) as fewer:
        assert fewer.train()["num_env_steps_sampled_lifetime"] > steps + sampled


def test_fragments_of_all_runners_fill_the_batch(training_backend_name: str) -> None:
    config = small_ppo(training_backend_name).env_runners(num_env_runners=3).training(train_batch_size=30)
    with config.build() as algo:
        results = algo.train()
        assert results["env_runners"]["num_env_steps_sampled"] == 30  # 3 runners, 2 environments, 5 steps
        assert algo.env_runners is not None
        assert algo.env_runners.foreach_runner(_frameworks) == [[], [], []]
        assert algo.config.rows_per_update == 30
    config.env_runners(rollout_fragment_length=3)
    with config.build() as algo:
        # What compiled loops are sized for is what comes.
        assert algo.config.rows_per_update == 36
        assert algo.train()["env_runners"]["num_env_steps_sampled"] == 36  # whole rounds of 18


def test_a_run_goes_on_without_a_runner_that_was_killed(training_backend_name: str) -> None:
    with _ppo(training_backend_name).build() as algo:
        algo.train()
        os.kill(pids(algo.env_runners)[0], signal.SIGKILL)
        results = algo.train()["env_runners"]
        assert results["num_env_runner_restarts_lifetime"] == 1
        assert results["num_fragments_lost_lifetime"] == 1
        assert algo.train()["env_runners"]["num_env_runner_restarts_lifetime"] == 1


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("obs", ["image", "box"])
def test_networks_that_need_the_backend_run_in_the_processes(training_backend_name: str, obs: str) -> None:
    """Images by themselves, anything else when asked for: the same actions as in this process."""
    model = {"hidden": [8], "conv_filters": [[4, 3, 2]]} if obs == "image" else {"hidden": [8]}
    config = small_ppo(training_backend_name, obs=obs).rl_module(model=model)
    config.framework(device="cpu").env_runners(num_env_runners=1, inference="auto" if obs == "image" else "backend")
    with config.build() as algo:
        group = algo.env_runners
        assert group is not None
        (rollout,) = group.sample(6)
        (loaded,) = group.foreach_runner(_frameworks)
        assert loaded == [{"tf": "tensorflow"}.get(training_backend_name, training_backend_name)]
        here = make_runner(algo.config, algo.learner_group.module_specs, worker_index=1, make_policy=make_policy)
        give_weights(here, algo.learner_group.get_weights())
        expected = here.sample(6)
        here.close()
    np.testing.assert_array_equal(rollout.columns["actions"], expected.columns["actions"])
    assert same_tree(rollout.columns["obs"], expected.columns["obs"])
    np.testing.assert_allclose(rollout.columns["vf_preds"], expected.columns["vf_preds"], atol=1e-6)


def _frameworks(runner: Any) -> list[str]:
    import sys

    return sorted({"torch", "tensorflow"} & set(sys.modules))


def test_the_command_line_sets_the_number_of_runners(
    training_backend_name: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from learner_core.cli.main import main

    small = ["train_batch_size=32", "minibatch_size=32", "num_epochs=1", "compile=false", "model.hidden=[8]"]
    settings = [part for text in ["num_env_runners=1", *small] for part in ("--set", text)]
    out = str(tmp_path / "run")
    start = ["train", "ppo", "--env", "CartPole-v1", "--backend", training_backend_name, "--out", out, "--quiet"]
    assert main([*start, *settings, "--stop-iterations", "2"]) == 0
    assert main(["train", "--resume", out, "--quiet", "--stop-iterations", "3"]) == 0
    assert main(["evaluate", out, "--episodes", "2"]) == 0
    assert "num_env_runners = 1" in (tmp_path / "run" / "config.toml").read_text()
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3 and "env_runners/num_env_runner_restarts_lifetime" in rows[-1]
