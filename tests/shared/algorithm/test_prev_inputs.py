"""Memories that are told their last step, through the public door: training, runner processes, checkpoints, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core_algorithms import APPOConfig, IMPALAConfig, PPOConfig

from support.sampling import same_tree
from support.told import Wander, make_wander

MID = "default_policy"


def _config(backend: str, kind: str = "lstm", **training: Any) -> Any:
    settings = {"train_batch_size": 36, "minibatch_size": 48, "num_epochs": 1, "max_seq_len": 4, "burn_in": 0}
    config = PPOConfig().environment(make_wander, env_config={"continuous": kind == "gru"})
    config.framework(backend, compile=False).env_runners(num_envs_per_env_runner=2, normalize_rewards=True)
    model = {"hidden": [4], "recurrent": kind, "recurrent_size": 3, "use_prev_action": True, "use_prev_reward": True}
    return config.training(**{**settings, **training}).rl_module(model=model)


@pytest.mark.parametrize("kind", ["lstm", pytest.param("gru", marks=pytest.mark.fast_on_torch)])
def test_training_computes_what_sampling_computed(training_backend_name: str, kind: str) -> None:
    """One step on the whole batch, with the weights that it was sampled with: nothing has changed by then."""
    with _config(training_backend_name, kind).build() as algo:
        for _ in range(3):
            results = algo.train()["learners"][MID]
            assert abs(results["approx_kl"]) < 1e-6 and abs(results["mean_kl"]) < 1e-6
            assert results["gradient_norm"] > 0.0
        weights = algo.learner_group.get_weights()[MID]
        # 4 features, and 2 one-hot actions or 1 number, and the reward.
        assert weights["pi_core.weight_ih_l0"].shape == ((12, 7) if kind == "lstm" else (9, 6))
        assert algo.evaluate()["num_episodes"] == 10


@pytest.mark.fast_on_torch
def test_with_burn_in_and_short_minibatches(training_backend_name: str) -> None:
    with _config(training_backend_name, burn_in=1, minibatch_size=8, num_epochs=2).build() as algo:
        assert np.isfinite(algo.train()["learners"][MID]["policy_loss"])


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("kind", [IMPALAConfig, APPOConfig])
def test_sequences_of_other_algorithms(training_backend_name: str, kind: Any) -> None:
    """With one learner in this process the first update has the weights that sampled: every ratio is 1."""
    config = kind().environment(make_wander, env_config={}).framework(training_backend_name, compile=False)
    config.env_runners(num_envs_per_env_runner=2, rollout_fragment_length=7)
    config.training(train_batch_size=14, timesteps_per_iteration=14, lr=0.0)
    if kind is APPOConfig:
        config.training(circular_buffer_num_batches=1)
    model = {"hidden": [4], "recurrent": "gru", "recurrent_size": 3, "use_prev_action": True, "use_prev_reward": True}
    with config.rl_module(model=model).build() as algo:
        for _ in range(2):
            results = algo.train()["learners"][MID]
            assert results["mean_rho"] == pytest.approx(1.0, abs=1e-5)
            assert abs(results["behaviour_kl"]) < 1e-6


@pytest.mark.fast_on_torch
def test_numpy_and_the_backend_answer_alike(training_backend_name: str) -> None:
    columns = []
    for inference in ("numpy", "backend"):
        with _config(training_backend_name).env_runners(inference=inference).build() as algo:
            columns.append(algo.runner.sample(9).columns)
    np.testing.assert_array_equal(columns[0]["actions"], columns[1]["actions"])
    for leaf in ("prev_action", "prev_reward", "pi_h"):
        np.testing.assert_allclose(columns[0]["state_in"][leaf], columns[1]["state_in"][leaf], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compiled_is_eager(training_backend_name: str) -> None:
    weights = []
    for compile_ in (False, True):
        with _config(training_backend_name, burn_in=1).framework(compile=compile_).build() as algo:
            results = [algo.train()["learners"], algo.train()["learners"]]
            assert all(result["__all__"]["compiled"] == float(compile_) for result in results)
            weights.append(algo.learner_group.get_weights()[MID])
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("num_env_runners", [0, 2])
def test_a_run_resumes_bit_for_bit(training_backend_name: str, num_env_runners: int, tmp_path: Path) -> None:
    """In the middle of episodes, also of runner processes."""
    config = _config(training_backend_name, train_batch_size=20).env_runners(num_env_runners=num_env_runners)
    with config.build() as algo:
        algo.train()
        algo.save(tmp_path / "run")
        expected = [algo.train()["learners"], algo.train()["learners"]]
        weights = algo.learner_group.get_weights()
    with lc.Algorithm.from_checkpoint(tmp_path / "run", env=make_wander) as again:
        assert [again.train()["learners"], again.train()["learners"]] == expected
        assert same_tree(again.learner_group.get_weights(), weights)


@pytest.mark.fast_on_torch
def test_an_export_is_told_by_who_steps_the_environment(training_backend_name: str, tmp_path: Path) -> None:
    """The exported network answers as the run's policy does: it passes its action on, and the reward is put in."""
    onnxruntime = pytest.importorskip("onnxruntime")
    config = _config(training_backend_name).env_runners(normalize_rewards=False, num_envs_per_env_runner=1)
    with config.build() as algo:
        algo.train()
        lc.export(algo, tmp_path / "policy.onnx", to="onnx")
        policy = algo.runner.policy
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert "state_out/prev_action" in names and "state_out/prev_reward" not in names
    shapes = {entry.name: entry.shape[1:] for entry in session.get_inputs()}
    env = Wander()
    state = {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items() if name != "obs"}
    obs, _ = env.reset(seed=1)
    assert set(state) == {f"state_in/{leaf}" for leaf in ("pi_h", "pi_c", "vf_h", "vf_c", "prev_action", "prev_reward")}
    for _ in range(5):
        out = dict(zip(names, session.run(names, {"obs": obs[None], **state}), strict=True))
        own = {name.removeprefix("state_in/"): value for name, value in state.items()}
        expected = policy.compute_actions(obs[None], noise=None, explore=False, state=own)
        np.testing.assert_allclose(out["action_dist_inputs"], expected["action_dist_inputs"], rtol=1e-4, atol=1e-6)
        action = int(out["actions"][0])
        np.testing.assert_array_equal(out["state_out/prev_action"], np.eye(2, dtype=np.float32)[[action]])
        obs, reward, *_ = env.step(action)
        state = {name.replace("out", "in", 1): value for name, value in out.items() if name.startswith("state_out")}
        state["state_in/prev_reward"] = np.array([[reward]], np.float32)


def test_a_batch_says_which_columns_it_needs(training_backend_name: str) -> None:
    config = PPOConfig().framework(training_backend_name, compile=False).training(max_seq_len=4, minibatch_size=8)
    config.environment(observation_space=spaces.Box(-1, 1, (2,)), action_space=spaces.Discrete(2))
    learner = config.rl_module(model={"recurrent": "gru", "use_prev_reward": True}).build_learner()
    with pytest.raises(lc.BatchError, match="rewards"):
        columns = {
            name: np.zeros((2, *spec.shape), "float32" if spec.dtype == "float" else spec.dtype)
            for name, spec in learner.batch_spec().items()
            if name != "rewards"
        }
        learner.update_from_batch(columns)
