"""Two learner processes on batches of several modules: what one learner computes, modules that come and go included."""

from __future__ import annotations

from typing import Any

import numpy as np

import learner_core as lc
from learner_core_algorithms import PPOConfig

from support.parallel_envs import make_signals


def listener_alone(agent: str) -> str:
    return agent if agent == "speaker" else "second"


def config(num_learners: int) -> Any:
    return (
        PPOConfig()
        .environment(make_signals)
        .framework("torch")
        .learners(num_learners=num_learners, collective="torch")
        .env_runners(num_envs_per_env_runner=2)
        .training(train_batch_size=46, minibatch_size=16, num_epochs=2, lr=1e-3)
        .multi_agent(
            policies={"speaker": lc.RLModuleSpec(model={"hidden": [4]}), "listener": None},
            settings={"speaker": {"lr": 3e-3, "entropy_coeff": 0.01}},
        )
        .rl_module(model={"hidden": [8]})
    )


def test_two_learners_train_two_modules_as_one_does() -> None:
    with config(1).build() as one, config(2).build() as two:
        for step in range(4):
            for algo in (one, two):
                if step == 2:
                    algo.set_policies_to_train(["listener"])
                    spec = algo.learner_group.module_specs["listener"]
                    own = {"lr": 5e-3}
                    algo.add_module(
                        module_id="second", module_spec=spec, settings=own, policies_to_train=["speaker", "second"],
                        policy_mapping_fn=listener_alone,
                    )  # fmt: skip
                results = algo.train()
            expected, got = one.learner_group.get_weights(), two.learner_group.get_weights()
            assert sorted(expected) == sorted(got)
            for module_id, values in expected.items():
                for name, value in values.items():
                    np.testing.assert_allclose(got[module_id][name], value, atol=2e-6, err_msg=f"{module_id}/{name}")
        assert results["learners"]["second"]["learning_rate"] == 5e-3
        assert results["learners"]["__all__"]["num_modules_updated"] == 2
