"""Two modules of different spaces, sizes, settings on Torch and on TensorFlow: the same weights; runs that move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.both import in_both, run_in

LR = 3e-4
#: precision -> (updates of 10 minibatch steps, tolerance of a weight).
RUNS = {"float32": (2, 1e-3 * LR + 1e-6), "float64": (20, 1e-9)}


def _spaces() -> tuple[dict[str, Any], dict[str, Any]]:
    """Action spaces and specs of two modules that have nothing in common."""
    from gymnasium.spaces import Box, Discrete

    import learner_core as lc

    spaces: dict[str, Any] = {"a": Discrete(3), "b": Box(-1.0, 1.0, (2,), np.float32)}
    return spaces, {
        "a": lc.RLModuleSpec(None, Box(-10, 10, (4,), np.float32), spaces["a"], {"hidden": [24]}),
        "b": lc.RLModuleSpec(None, Box(-10, 10, (5,), np.float32), spaces["b"], {"hidden": [16, 8]}),
    }


def _arrays(learner: Any, *parts: str) -> dict[str, Any]:
    from support.learners import flat_state

    state = learner.get_state()
    flat = flat_state({part: state[part] for part in parts})
    return {path: np.asarray(value) for path, value in flat.items() if not isinstance(value, str)}


def train_two_modules(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    from learner_core_algorithms import PPOConfig

    from support.learners import ppo_batch

    spaces, specs = _spaces()
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
        out[precision] = _arrays(learner, "rl_module", "optimizer")
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


def train_two_modules_by_vtrace(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """Sequences of two modules, minibatches of both at once, in float64; results of the last update, too."""
    from learner_core_algorithms import APPOConfig, IMPALAConfig

    from support.vtrace_learners import sequence_batch

    spaces, specs = _spaces()
    own = {"lr": 0.5 * LR, "entropy_coeff": 0.01, "vf_loss_coeff": 0.25, "vtrace_clip_rho_threshold": 0.8}
    out: dict[str, Any] = {}
    for name, config in {"impala": IMPALAConfig(), "appo": APPOConfig().training(use_kl_loss=True)}.items():
        config.framework(backend_name, compile=backend_name == "tf", precision="float64")
        config.env_runners(rollout_fragment_length=5).training(lr=LR, minibatch_size=50, train_batch_size=100)
        if name == "appo":
            own = {**own, "clip_param": 0.1, "use_kl_loss": False}
        learner = config.multi_agent(policies=specs, settings={"b": own}).build_learner()
        start = _arrays(learner, "rl_module")
        for update in range(12):
            batch = {"a": sequence_batch(20, spaces["a"], obs_size=4, seed=update)}
            if update % 4 != 3:  # fewer sequences, and now and then none
                batch["b"] = sequence_batch(13, spaces["b"], obs_size=5, seed=100 + update)
            results = learner.update_from_batch(batch=batch)
        parts = ("rl_module", "variables", "optimizer", *(["targets"] if name == "appo" else []))
        out[name] = {"start": start, "end": _arrays(learner, *parts), "results": results}
    return out


@pytest.mark.slow  # two modules of PPO, and V-trace of one, are in the fast tier
def test_two_modules_of_impala_and_appo() -> None:
    torch, tf = in_both(__file__, "train_two_modules_by_vtrace", timeout=600)
    assert sorted(torch) == sorted(tf)
    moved: dict[str, float] = {}
    for path, value in torch.items():
        algorithm, part, *rest = path.split("/")
        if part == "start":
            assert value.tobytes() == tf[path].tobytes(), path
        elif part == "results" and rest[-1] != "compiled" and rest[0] != "__all__":
            np.testing.assert_allclose(value, tf[path], rtol=1e-7, atol=1e-9, err_msg=path)
        elif part == "end" and rest[0] in ("rl_module", "targets", "variables"):
            np.testing.assert_allclose(value, tf[path], rtol=0, atol=1e-9, err_msg=path)
            if rest[0] == "rl_module":
                module = f"{algorithm}/{rest[1]}"
                change = float(np.abs(value - torch[path.replace("/end/", "/start/")]).max())
                moved[module] = max(moved.get(module, 0.0), change)
    assert sorted(moved) == ["appo/a", "appo/b", "impala/a", "impala/b"] and min(moved.values()) > 5 * LR
    steps = {path: int(value) for path, value in torch.items() if path.endswith("/default/step")}
    # b is absent three times, and has two minibatches, of which the second is short, as a has.
    assert sorted(steps.values()) == [18, 18, 24, 24]


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
