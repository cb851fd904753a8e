"""Two modules of different spaces, sizes and settings on Torch and on TensorFlow: the same weights; runs that move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.both import in_both, run_in

LR = 3e-4
#: precision -> (updates of 10 minibatch steps, tolerance of a weight).
RUNS = {"float32": (2, 1e-3 * LR + 1e-6), "float64": (20, 1e-9)}


def train_two_modules(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    from gymnasium.spaces import Box, Discrete

    import learner_core as lc
    from learner_core_algorithms import PPOConfig

    from support.learners import flat_state, ppo_batch

    spaces = {"a": Discrete(3), "b": Box(-1.0, 1.0, (2,), np.float32)}
    specs = {
        "a": lc.RLModuleSpec(None, Box(-10, 10, (4,), np.float32), spaces["a"], {"hidden": [24]}),
        "b": lc.RLModuleSpec(None, Box(-10, 10, (5,), np.float32), spaces["b"], {"hidden": [16, 8]}),
    }
    own = {"lr": 0.5 * LR, "clip_param": 0.1, "entropy_coeff": 0.01, "grad_clip": None, "use_kl_loss": False}
    out: dict[str, Any] = {}
    for precision, (updates, _) in RUNS.items():
        # TensorFlow compiled where there are many steps, which is one comparison more.
        compiled = backend_name == "tf" and precision == "float64"
        config = PPOConfig().framework(backend_name, compile=compiled, precision=precision)
        config.training(lr=LR, minibatch_size=64, train_batch_size=320, num_epochs=2, vf_clip_range=0.5)
        learner = config.multi_agent(policies=specs, settings={"b": own}).build_learner()
        for update in range(updates):
            batch = {"a": ppo_batch(320, spaces["a"], obs_size=4, seed=update)}
            if update % 4 != 3:  # fewer rows, and now and then none
                batch["b"] = ppo_batch(200, spaces["b"], obs_size=5, seed=100 + update)
            learner.update_from_batch(batch=batch)
        state = learner.get_state()
        out[precision] = {
            path: np.asarray(value)
            for part in ("rl_module", "optimizer")
            for path, value in flat_state({part: state[part]}).items()
            if not isinstance(value, str)
        }
    return out


@pytest.fixture(scope="module")
def runs() -> Any:
    return in_both(__file__, "train_two_modules", timeout=600)


@pytest.mark.parametrize("precision", RUNS)
def test_two_modules_of_ppo(runs: Any, precision: str) -> None:
    torch, tf = runs
    assert torch["float64/optimizer/a/default/step"] == 200 and torch["float32/optimizer/a/default/step"] == 20
    assert sorted(torch) == sorted(tf)
    for path in torch:
        if path.startswith(f"{precision}/rl_module/"):
            np.testing.assert_allclose(torch[path], tf[path], rtol=0, atol=RUNS[precision][1], err_msg=path)


def snapshot_plays(agent: str, episode: int) -> str:
    return "old" if agent == "speaker" and episode % 2 else agent


def begin(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """A run to which a frozen snapshot has been added."""
    from learner_core_algorithms import PPOConfig

    from support.parallel_envs import make_signals

    config = PPOConfig().environment(make_signals).framework(backend_name, compile=False)
    config.env_runners(num_envs_per_env_runner=2).training(train_batch_size=40, minibatch_size=16, num_epochs=2, lr=LR)
    config.multi_agent(policies=["speaker", "listener"], policies_to_train=["speaker", "listener"])
    with config.build() as algo:
        algo.train()
        algo.add_module(module_id="old", like="speaker", policy_mapping_fn=snapshot_plays)
        algo.save(settings["path"])
    return {}


def go_on(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    import learner_core as lc

    from support.parallel_envs import make_signals

    given = {"policy_mapping_fn": snapshot_plays, "env": make_signals}  # of a script, not of a module
    with lc.Algorithm.from_checkpoint(settings["path"], framework=backend_name, **given) as algo:
        results = [algo.train() for _ in range(2)][-1]
        played = results["env_runners"]["module_episode_return_mean"]
        return {"weights": algo.learner_group.get_weights(), "played": {k: np.float64(v) for k, v in played.items()}}


def test_a_run_of_three_modules_goes_on_on_either(tmp_path: Path) -> None:
    settings = {"path": str(tmp_path / "checkpoint")}
    run_in("torch", __file__, "begin", settings=settings)
    torch, tf = in_both(__file__, "go_on", settings=settings)
    assert sorted(torch) == sorted(tf) and "played/old" in torch
    for path in torch:
        np.testing.assert_allclose(torch[path], tf[path], rtol=0, atol=1e-5, err_msg=path)
