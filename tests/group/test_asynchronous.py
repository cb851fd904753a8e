"""IMPALA and APPO whose learners are processes: the same updates as one learner's, and nothing lost in between."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner_core_algorithms import APPOConfig, IMPALAConfig


def _config(config: Any, num_learners: int, num_env_runners: int) -> Any:
    config.environment("CartPole-v1").framework("torch").rl_module(model={"hidden": [8]})
    config.env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=4, rollout_fragment_length=5).training(
        train_batch_size=20, timesteps_per_iteration=120
    )
    return config.learners(num_learners=num_learners, collective="torch")


def test_two_learners_train_as_one() -> None:
    """Batches of four sequences over two learners: targets, KL coefficient and what is drawn are the same."""
    settings = {"circular_buffer_num_batches": 2, "use_kl_loss": True}
    states = []
    for num_learners in (1, 2):
        with _config(APPOConfig().training(**settings), num_learners, 0).build() as algo:
            algo.train()
            states.append(algo.get_state()["learner"])
    one, two = states
    assert one["counters"]["num_updates"] == two["counters"]["num_updates"] > 5
    assert one["variables"]["default_policy"] == two["variables"]["default_policy"]
    for part in ("rl_module", "targets"):
        for name, value in one[part]["default_policy"].items():
            np.testing.assert_allclose(two[part]["default_policy"][name], value, atol=2e-6, err_msg=name)


def test_sampling_and_learning_in_processes_of_their_own() -> None:
    with _config(IMPALAConfig(), 2, 1).build() as algo:
        # How far the runner gets ahead is the machine's affair; sooner or later it does.
        for _ in range(30):
            results = algo.train()
            if algo.iteration >= 2 and results["throughput"]["policy_lag_mean"] > 0:
                break
        state = algo.get_state()
    assert results["throughput"]["policy_lag_mean"] > 0
    kept, runners = state["extra"]["throughput"], state["env_runners"]
    assert kept["num_updates_lifetime"] == state["learner"]["counters"]["num_updates"] > 5
    waiting = state["extra"]["waiting"]["default_policy"]["batch"]
    rows = 0 if waiting is None else int(waiting["loss_mask"].sum())
    rows += sum(int(np.count_nonzero(f["rollout"]["columns"]["valid"])) for f in runners["fragments"])
    assert runners["counts"]["num_env_steps_sampled_lifetime"] == kept["num_env_steps_trained_lifetime"] + rows
