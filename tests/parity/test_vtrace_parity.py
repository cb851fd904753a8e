"""IMPALA and APPO on Torch and on TensorFlow: step by step in float32, 200 steps in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.both import in_both, run_in

MID = "default_policy"
LR = 5e-4
_LENGTH = 5


def _learner(algorithm: str, backend_name: str, precision: str) -> Any:
    from gymnasium.spaces import Box, Discrete

    from learner_core_algorithms import APPOConfig, IMPALAConfig

    config: Any = (IMPALAConfig if algorithm == "impala" else APPOConfig)()
    # As in test_learners: the compiled step of one, the eager step of the other.
    config.framework(backend_name, compile=backend_name == "tf", precision=precision)
    config.env_runners(rollout_fragment_length=_LENGTH)
    config.training(lr=LR, train_batch_size=20 * _LENGTH, minibatch_size=20 * _LENGTH)
    if algorithm == "appo":
        config.training(use_kl_loss=True)
    config.environment(observation_space=Box(-10, 10, (4,), np.float32), action_space=Discrete(3))
    return config.build_learner()


def _batch(seed: int) -> dict[str, Any]:
    from gymnasium.spaces import Discrete

    from support.vtrace_learners import sequence_batch

    return sequence_batch(20, Discrete(3), length=_LENGTH, obs_size=4, seed=seed)


def _arrays(state: Any) -> dict[str, Any]:
    from support.learners import flat_state

    parts = {part: state[part] for part in ("rl_module", "targets", "variables", "optimizer")}
    return {path: np.asarray(value) for path, value in flat_state(parts).items() if not isinstance(value, str)}


def run(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """200 updates of each algorithm in float64."""
    out = {}
    for algorithm in ("impala", "appo"):
        learner = _learner(algorithm, backend_name, "float64")
        start = _arrays(learner.get_state())
        for update in range(200):
            learner.update_from_batch(batch=_batch(update))
        out[algorithm] = {"start": start, "end": _arrays(learner.get_state())}
    return out


@pytest.mark.slow  # step by step, below, in the fast tier
def test_200_steps_in_float64() -> None:
    torch, tf = in_both(__file__, "run", timeout=600)
    assert sorted(torch) == sorted(tf)
    for algorithm in ("impala", "appo"):
        assert torch[f"{algorithm}/end/optimizer/{MID}/default/step"] == 200
    moved = 0.0
    for path, value in torch.items():
        if "/start/" in path:
            assert value.tobytes() == tf[path].tobytes(), path
        elif "/end/optimizer/" not in path:
            np.testing.assert_allclose(value, tf[path], rtol=0, atol=1e-9, err_msg=path)
            moved = max(moved, float(np.abs(value - torch[path.replace("/end/", "/start/")]).max()))
    assert moved > 0.02


def record(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """Steps of one learner, its state saved before each of them."""
    import learner_core as lc

    for algorithm in ("impala", "appo"):
        learner = _learner(algorithm, backend_name, "float32")
        for step in range(settings["steps"] + 1):
            lc.save_state(Path(settings["folder"]) / f"{algorithm}-{step}", learner.get_state())
            learner.update_from_batch(batch=_batch(step))
    return {}


def follow(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """Every step again from the recorded state before it: the largest difference to the recorded state after it."""
    import learner_core as lc

    worst: dict[str, np.ndarray] = {}
    for algorithm in ("impala", "appo"):
        learner = _learner(algorithm, backend_name, "float32")
        for step in range(settings["steps"]):
            learner.load_state(Path(settings["folder"]) / f"{algorithm}-{step}")
            learner.update_from_batch(batch=_batch(step))
            mine = _arrays(learner.get_state())
            for path, value in _arrays(lc.load_state(Path(settings["folder"]) / f"{algorithm}-{step + 1}")).items():
                difference = np.abs(mine[path].astype(np.float64) - value.astype(np.float64)).max()
                worst[f"{algorithm}/{path}"] = np.maximum(worst.get(f"{algorithm}/{path}", np.zeros(())), difference)
    return worst


@pytest.mark.parametrize("first", ["torch"])
def test_20_steps_from_equal_states_in_float32(first: str, tmp_path: Path) -> None:
    settings = {"steps": 20, "folder": str(tmp_path)}
    second = "tf" if first == "torch" else "torch"
    run_in(first, __file__, "record", settings=settings)
    worst = run_in(second, __file__, "follow", settings=settings)
    for algorithm in ("impala", "appo"):
        assert worst[f"{algorithm}/optimizer/{MID}/default/step"] == 0
    for path, difference in worst.items():
        if path.split("/")[1] in ("rl_module", "targets", "variables"):
            assert difference <= 1e-3 * LR + 1e-6, (path, difference)
