"""PPO with a memory on Torch and on TensorFlow: the same weights after 20 steps in float32 and 200 in float64.

TensorFlow runs the compiled loop, Torch the uncompiled one (``--slow``: the compiled one, which takes a minute to
compile): one comparison more.
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
