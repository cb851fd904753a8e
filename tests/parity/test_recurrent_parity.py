"""Policies with a memory on Torch and on TensorFlow: the same weights after 20 steps in float32 and 200 in float64.

TensorFlow runs the compiled loop, Torch the uncompiled one (``--slow``: PPO's compiled one as well, which takes a
minute to compile): one comparison more. ``--slow`` also has IMPALA and APPO.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.both import in_both

MID = "default_policy"
LR = 3e-4
KINDS = ("lstm", "gru")


def run(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """Weights before and after; one learner each kind and precision, sequences padded, warmed up and masked."""
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

    from support.sequences import recurrent_config, sequence_batch

    out: dict[str, Any] = {}
    for kind in KINDS:
        precision, updates = ("float32", 5) if kind == "gru" else ("float64", 50)
        config = recurrent_config(
            backend_name, model={"recurrent": kind, "vf_share_layers": kind == "gru"}, lr=LR, optimizer="adam",
            grad_clip=0.5, use_kl_loss=True, normalize_advantages="batch", minibatch_size=20, train_batch_size=40,
            num_epochs=2, burn_in=1,
        )  # fmt: skip
        space = Dict(observations=Box(-9, 9, (3,), np.float32), action_mask=MultiBinary(3))
        config.environment(observation_space=space, action_space=Discrete(3))
        compiled = backend_name == "tf" or bool(settings["compile_torch"])
        learner = config.framework(backend_name, compile=compiled, precision=precision).build_learner()
        before = learner.get_module_state()[MID]
        for update in range(updates):
            batch = sequence_batch(8, learner.module[MID].initial_state(), seed=update, pad=True)
            mask = np.random.default_rng(update).uniform(size=(8, 5, 3)) < 0.7
            np.put_along_axis(mask, batch["actions"][..., None], True, axis=-1)
            results = learner.update_from_batch({**batch, "action_mask": mask})
            assert results["__all__"]["compiled"] == float(compiled)
        out[kind] = {
            "before": before,
            "after": learner.get_module_state()[MID],
            "steps": np.asarray(learner.get_state()["optimizer"][MID]["default"]["step"]),
        }
    return out


@pytest.mark.parametrize("compile_torch", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_equal_weights_on_both_backends(compile_torch: bool) -> None:
    torch, tf = in_both(__file__, "run", timeout=600, settings={"compile_torch": compile_torch})
    assert torch["gru/steps"] == 20 and torch["lstm/steps"] == 200
    for path, value in torch.items():
        kind, when, *_ = path.split("/")
        if when == "before":
            assert value.tobytes() == tf[path].tobytes(), path
        elif when == "after":
            moved = np.abs(value - torch[path.replace("after", "before")]).max()
            assert moved > LR, path
            bound = 1e-3 * LR + 1e-6 if kind == "gru" else 1e-9
            np.testing.assert_allclose(value, tf[path], rtol=0, atol=bound, err_msg=path)


def run_vtrace(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """Weights before and after; IMPALA with an LSTM, APPO with a GRU and its target network, in both precisions."""
    from gymnasium.spaces import Box, Discrete

    from learner_core_algorithms import APPOConfig, IMPALAConfig

    from support.vtrace_learners import sequence_batch, tiny_sequences

    out: dict[str, Any] = {}
    for algorithm, kind in (("impala", "lstm"), ("appo", "gru")):
        for precision, updates in (("float32", 10), ("float64", 100)):
            config: Any = (IMPALAConfig if algorithm == "impala" else APPOConfig)()
            tiny_sequences(config, backend_name, precision=precision, lr=LR, minibatch_size=10, train_batch_size=20)
            config.framework(compile=backend_name == "tf")
            config.rl_module(model={"hidden": [6], "activation": "tanh", "recurrent": kind, "recurrent_size": 3})
            config.environment(observation_space=Box(-9, 9, (3,), np.float32), action_space=Discrete(3))
            learner = config.build_learner()
            before = learner.get_module_state()[MID]
            for update in range(updates):
                rng = np.random.default_rng(update)
                batch = sequence_batch(4, Discrete(3), seed=update)
                state = learner.module[MID].initial_state()
                batch["state_in"] = {leaf: rng.normal(size=(4, *value.shape)) for leaf, value in state.items()}
                batch["resets"] = rng.uniform(size=(4, 5)) < 0.2
                learner.update_from_batch(batch)
            out[f"{algorithm}-{precision}"] = {
                "before": before,
                "after": learner.get_module_state()[MID],
                "steps": np.asarray(learner.get_state()["optimizer"][MID]["default"]["step"]),
            }
    return out


@pytest.mark.slow
def test_equal_weights_of_impala_and_appo() -> None:
    torch, tf = in_both(__file__, "run_vtrace", timeout=600)
    for algorithm in ("impala", "appo"):
        assert torch[f"{algorithm}-float32/steps"] == 20 and torch[f"{algorithm}-float64/steps"] == 200
    for path, value in torch.items():
        run_name, when, *_ = path.split("/")
        if when == "before":
            assert value.tobytes() == tf[path].tobytes(), path
        elif when == "after":
            assert np.abs(value - torch[path.replace("after", "before")]).max() > LR, path
            bound = 1e-3 * LR + 1e-6 if run_name.endswith("float32") else 1e-9
            np.testing.assert_allclose(value, tf[path], rtol=0, atol=bound, err_msg=path)
