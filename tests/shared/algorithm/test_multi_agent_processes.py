"""Several agents sampled in two processes: as exact as in one, also while modules come and go and processes die."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.algorithm.policies import make_policy
from learner_core.sampling.make_runner import give_weights, make_runner
from learner_core_algorithms import PPOConfig

from support.parallel_envs import make_crossing
from support.runners import pids
from support.sampling import same_tree


def everybody_m(agent: str) -> str:
    return "m"


def snapshot_plays_a(agent: str) -> str:
    return "old" if agent == "a" else "m"


def config(backend: str) -> Any:
    return (
        PPOConfig()
        .environment(make_crossing)
        .framework(backend, compile=False)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=2, normalize_observations=True)
        .training(train_batch_size=40, minibatch_size=16, num_epochs=1)
        .rl_module(model={"hidden": [8]})
        .multi_agent(policies=["m"], policy_mapping_fn=everybody_m, policies_to_train=["m"])
    )


@pytest.mark.fast_on_torch
def test_modules_come_and_go_in_all_processes_and_survive_their_end(training_backend_name: str, tmp_path: Any) -> None:
    with config(training_backend_name).build() as algo:
        algo.train()
        algo.add_module(module_id="old", like="m", policy_mapping_fn=snapshot_plays_a)
        algo.train()
        algo.save(tmp_path / "checkpoint")
        results = algo.train()
        assert set(results["env_runners"]["module_episode_return_mean"]) == {"m", "old"}
        statistics = algo.runner.get_statistics()
        assert statistics["observations/m/obs"]["count"] > statistics["observations/old/obs"]["count"] > 0
        expected = algo.learner_group.get_weights()
        # A process that is started anew knows the module, and its weights.
        os.kill(pids(algo.env_runners)[0], signal.SIGKILL)
        results = algo.train()
        assert results["env_runners"]["num_env_runner_restarts_lifetime"] == 1
        assert "policy_loss" in results["learners"]["m"]
        algo.remove_module("old", policy_mapping_fn=everybody_m)
        assert set(algo.train()["learners"]) == {"m", "__all__"}
    given = {"env": make_crossing, "policy_mapping_fn": snapshot_plays_a}
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", **given) as again:
        again.train()
        weights = again.learner_group.get_weights()
        assert all(np.array_equal(weights[m][name], value) for m in expected for name, value in expected[m].items())


def test_two_processes_sample_what_their_runners_would_here(training_backend_name: str) -> None:
    own = config(training_backend_name).env_runners(normalize_observations=False)
    with own.build() as algo:
        weights = algo.learner_group.get_weights()
        there = algo.env_runners.sample(7)
        for index, rollouts in enumerate(there, start=1):
            here = make_runner(
                algo.config, algo.learner_group.module_specs, worker_index=index, make_policy=make_policy
            )
            give_weights(here, weights)
            assert all(same_tree(r.columns, rollouts[m].columns) for m, r in here.sample(7).items())
            here.close()
