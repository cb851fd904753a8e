"""Every algorithm trains in bfloat16 on every backend: through the door, with finite losses and float32 weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import learner_core as lc
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig

from support.algorithms import make_random_env, small_ppo, small_sac
from support.learners import OBS, bc_batch, build_on_spaces, ppo_batch, sac_batch
from support.row_networks import norm_network

MID = "default_policy"
slow = pytest.mark.slow


def _sequences(kind: type, backend: str, actions: str, **model: Any) -> Any:
    config = kind().environment(make_random_env, env_config={"actions": actions})
    config.env_runners(num_envs_per_env_runner=2, rollout_fragment_length=5).training(train_batch_size=10)
    return config.rl_module(model={"hidden": [4], **model})


RUNS: dict[str, Callable[[str], Any]] = {
    "ppo": lambda backend: small_ppo(backend),
    "ppo box": lambda backend: small_ppo(backend, actions="bounded"),
    "ppo image": lambda backend: small_ppo(backend, obs="image"),
    "sac": lambda backend: small_sac(backend),
    "sac image": lambda backend: small_sac(backend, obs="image"),
    "sac dict": lambda backend: small_sac(backend, obs="dict"),
    "sac prioritized": lambda backend: small_sac(backend).training(prioritized_replay=True, n_step=3, q_loss="huber"),
    "sac one q": lambda backend: small_sac(backend).training(twin_q=False),
    "impala": lambda backend: _sequences(IMPALAConfig, backend, "discrete"),
    "impala lstm": lambda backend: _sequences(IMPALAConfig, backend, "bounded", recurrent="lstm", recurrent_size=3),
    "appo": lambda backend: _sequences(APPOConfig, backend, "bounded"),
    "appo gru": lambda backend: _sequences(APPOConfig, backend, "discrete", recurrent="gru", recurrent_size=3),
}
FAST = ("sac", "sac dict")


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=slow) for name in RUNS])
def test_an_algorithm_in_bfloat16(training_backend_name: str, name: str) -> None:
    config = RUNS[name](training_backend_name).framework(training_backend_name, compile=False, precision="bfloat16")
    with config.build() as algo:
        before = algo.learner_group.get_weights()[MID]
        for _ in range(2):
            learners = algo.train()["learners"]
        assert learners and all(np.isfinite(value) for value in learners[MID].values())
        algo.evaluate(1)
        after = algo.learner_group.get_weights()[MID]
        assert {array.dtype.name for array in after.values()} == {"float32"}
        assert any(not np.array_equal(after[key], before[key]) for key in after)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=slow)])
def test_sac_in_bfloat16_is_near_float32(training_backend_name: str, compile: bool) -> None:
    """Losses of one step from the same state, on bounds that bfloat16 cannot tell apart: 1000 and 1001."""
    low, high = np.array([1000.0, -3.0], np.float32), np.array([1001.0, 1.0], np.float32)
    batch = sac_batch(32)
    batch["actions"] = low + (batch["actions"] + 1.0) / 2.0 * (high - low)
    found: dict[str, Any] = {}
    state = None
    for precision in ("float32", "bfloat16"):
        config = SACConfig().framework(training_backend_name, compile=compile, precision=precision)
        config.training(train_batch_size=32, initial_alpha=0.5).rl_module(model={"hidden": [16], "activation": "tanh"})
        learner = build_on_spaces(config, OBS, Box(low, high, (2,), np.float32))
        state = state or learner.get_state()
        learner.set_state(state)
        found[precision] = learner.update_from_batch(batch=batch)[MID]
    for name in ("qf_loss", "qf_twin_loss", "policy_loss", "alpha_loss", "mean_q", "entropy"):
        assert found["bfloat16"][name] == pytest.approx(found["float32"][name], rel=0.02, abs=0.02), name
        assert found["bfloat16"][name] != found["float32"][name]


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float64", marks=slow)])
@pytest.mark.filterwarnings("ignore:.*is not portable:UserWarning")
def test_networks_of_ones_own_and_bc(training_backend_name: str, precision: str) -> None:
    two = Discrete(2)
    for kind, batch in ((PPOConfig, ppo_batch(16, two)), (BCConfig, bc_batch(16))):
        config: Any = kind().framework(training_backend_name, compile=False, precision=precision)
        config.training(train_batch_size=16).rl_module(
            rl_module_spec=lc.RLModuleSpec(norm_network(training_backend_name), OBS, two)
        )
        learner = config.build_learner()
        results = learner.update_from_batch(batch=batch, num_epochs=1)[MID]
        assert all(np.isfinite(value) for value in results.values())
        weights = learner.get_state()["rl_module"][MID]
        assert {array.dtype.name for array in weights.values()} == {"float64" if precision == "float64" else "float32"}
