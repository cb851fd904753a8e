"""PPO and SAC on Torch and on TensorFlow: the same weights after a thousand steps, and states that travel bit for bit.

Tolerances are those that facts about both frameworks allow: float32 round-off grows with the length of a run, float64
round-off stays far below any mistake. Where a loss has ReLU, min or clip, float32 is compared step by step from the
same state, since one unit that flips near a tie goes its own way from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc

from support.both import in_both, run_in
from support.learners import states_differ

MID = "default_policy"
LR = 3e-4


def _learner(algorithm: str, backend_name: str, *, space: str, precision: str, **training: Any) -> Any:
    from gymnasium.spaces import Box, Discrete

    from learner_core_algorithms import PPOConfig, SACConfig

    config: Any = (PPOConfig if algorithm == "ppo" else SACConfig)()
    # Eager TensorFlow takes 40 ms a step; Torch takes 20 s to compile. The numbers are those of the compiled step
    # on one and of the eager step on the other, which is one comparison more.
    config.framework(backend_name, compile=backend_name == "tf", precision=precision)
    config.environment(
        observation_space=Box(-10, 10, (4,), np.float32),
        action_space=Discrete(3) if space == "discrete" else Box(-1.0, 1.0, (2,), np.float32),
    )
    if algorithm == "sac":
        config.rl_module(model={"hidden": [48, 48], "activation": "relu"})
    return config.training(**training).build_learner()


def _ppo_batch(space: str, update: int) -> dict[str, Any]:
    from gymnasium.spaces import Box, Discrete

    from support.learners import ppo_batch

    action_space = Discrete(3) if space == "discrete" else Box(-1.0, 1.0, (2,), np.float32)
    return ppo_batch(640, action_space, obs_size=4, seed=update)


def _arrays(state: Any) -> dict[str, Any]:
    """The arrays of a state, by path."""
    from support.learners import flat_state

    return {
        path: np.asarray(value)
        for path, value in flat_state({k: state[k] for k in ("rl_module", "targets", "variables", "optimizer")}).items()
        if not isinstance(value, str)
    }


# ---- PPO, 1000 steps -------------------------------------------------------------------------------------------------


PPO_RUNS = [(space, precision) for space in ("discrete", "continuous") for precision in ("float32", "float64")]


def run_ppo(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for space, precision in PPO_RUNS:
        learner = _learner(
            "ppo", backend_name, space=space, precision=precision, lr=LR, minibatch_size=64, train_batch_size=640,
            num_epochs=10, entropy_coeff=0.01, vf_clip_range=0.5,
        )  # fmt: skip
        start = _arrays(learner.get_state())
        metrics: list[list[float]] = []
        for update in range(10):
            results = learner.update_from_batch(batch=_ppo_batch(space, update))[MID]
            metrics.append([results[name] for name in sorted(results)])
        end = _arrays(learner.get_state())
        out[f"{space}-{precision}"] = {"start": start, "end": end, "metrics": np.array(metrics)}
    return out


@pytest.fixture(scope="module")
def ppo_runs() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return in_both(__file__, "run_ppo", timeout=600)


@pytest.mark.parametrize(("space", "precision"), PPO_RUNS)
def test_ppo_after_1000_minibatch_steps(ppo_runs: Any, space: str, precision: str) -> None:
    prefix = f"{space}-{precision}/"
    torch, tf = ({p[len(prefix) :]: v for p, v in run.items() if p.startswith(prefix)} for run in ppo_runs)
    tolerance = {"float32": 1e-6, "float64": 1e-10}[precision]
    assert torch["end/optimizer/default_policy/default/step"] == 1000
    assert sorted(torch) == sorted(tf)
    moved = worst = 0.0
    for path in torch:
        if path.startswith("start/"):
            assert torch[path].tobytes() == tf[path].tobytes(), path
        elif path.startswith("end/rl_module/"):
            assert torch[path].dtype == precision
            worst = max(worst, float(np.abs(torch[path] - tf[path]).max()))
            moved = max(moved, float(np.abs(torch[path] - torch[path.replace("end/", "start/")]).max()))
    print(f"PPO {space} {precision}: largest difference {worst:.1e} after a movement of {moved:.2f}")
    assert worst <= tolerance
    assert moved > 0.02
    np.testing.assert_allclose(torch["metrics"], tf["metrics"], rtol=0, atol=1e3 * tolerance)


# ---- SAC -------------------------------------------------------------------------------------------------------------

_SAC = {"actor_lr": LR, "critic_lr": LR, "alpha_lr": LR, "train_batch_size": 64}


def _sac_batch(rows: int, seed: int) -> dict[str, Any]:
    from support.learners import sac_batch

    return sac_batch(rows, num_actions=2, obs_size=4, seed=seed)


def run_sac(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    learner = _learner("sac", backend_name, space="continuous", precision="float64", minibatch_size=64, **{
        **_SAC, "train_batch_size": 640})  # fmt: skip
    for update in range(100):
        learner.update_from_batch(batch=_sac_batch(640, update))
    return _arrays(learner.get_state())


@pytest.mark.slow  # step by step, below, in the fast tier
def test_sac_after_1000_steps_in_float64() -> None:
    torch, tf = in_both(__file__, "run_sac", timeout=600)
    assert sorted(torch) == sorted(tf) and torch["optimizer/default_policy/policy/step"] == 1000
    for path in torch:
        if path.startswith(("rl_module/", "targets/", "variables/")):
            np.testing.assert_allclose(torch[path], tf[path], rtol=0, atol=1e-10, err_msg=path)


def record_sac(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """Steps of one learner, its state saved before each of them."""
    import learner_core as lc

    learner = _learner("sac", backend_name, space="continuous", precision="float32", **_SAC)
    for step in range(settings["steps"]):
        lc.save_state(Path(settings["folder"]) / f"{step}", learner.get_state())
        learner.update_from_batch(batch=_sac_batch(64, step))
    lc.save_state(Path(settings["folder"]) / f"{settings['steps']}", learner.get_state())
    return {}


def follow_sac(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """Every step again from the recorded state before it: the largest difference to the recorded state after it."""
    import learner_core as lc

    learner = _learner("sac", backend_name, space="continuous", precision="float32", **_SAC)
    worst: dict[str, np.ndarray] = {}
    for step in range(settings["steps"]):
        learner.load_state(Path(settings["folder"]) / f"{step}")
        learner.update_from_batch(batch=_sac_batch(64, step))
        mine, expected = (
            _arrays(state) for state in (learner.get_state(), lc.load_state(Path(settings["folder"]) / f"{step + 1}"))
        )
        for path, value in expected.items():
            difference = np.abs(mine[path].astype(np.float64) - value.astype(np.float64)).max()
            worst[path] = np.maximum(worst.get(path, np.zeros(())), difference)
    return worst


def test_sac_step_by_step_from_equal_states(tmp_path: Path) -> None:
    settings = {"steps": 100, "folder": str(tmp_path)}
    run_in("torch", __file__, "record_sac", settings=settings)
    worst = run_in("tf", __file__, "follow_sac", settings=settings)
    assert worst["optimizer/default_policy/qf/step"] == 0
    for path, difference in worst.items():
        if path.startswith(("rl_module/", "targets/", "variables/")):
            assert difference <= 1e-3 * LR + 1e-6, (path, difference)


def sac_in_its_unit(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """Actions that are no numbers of [-1, 1]: 50 steps of a state that Torch wrote, and what Q says of two actions."""
    from gymnasium.spaces import Box

    from learner_core_algorithms import SACConfig

    config: Any = SACConfig().framework(backend_name, compile=False, precision="float64")
    low, high = np.array([-0.02, 100.0]), np.array([0.01, 400.0])
    config.environment(observation_space=Box(-10, 10, (4,), np.float32), action_space=Box(low, high, (2,), np.float64))
    config.rl_module(model={"hidden": [16]}).training(train_batch_size=32)
    learner = config.build_learner()
    if settings["load"]:
        learner.load_state(settings["file"])
    else:
        learner.save_state(settings["file"])
    batch = _sac_batch(32, 0)
    batch["actions"] = low + (batch["actions"] + 1.0) / 2.0 * (high - low)
    for _ in range(50):
        learner.update_from_batch(batch=batch)
    given = {name: learner.backend.from_numpy({name: batch[name][:4]})[name] for name in ("obs", "actions")}
    q, twin = learner.module[MID].q(given["obs"], given["actions"])
    return {**_arrays(learner.get_state()), **learner.backend.to_numpy({"q": q, "twin": twin})}


def test_sac_in_the_unit_of_its_actions(tmp_path: Path) -> None:
    file = str(tmp_path / "state")
    torch = run_in("torch", __file__, "sac_in_its_unit", settings={"file": file, "load": False})
    tf = run_in("tf", __file__, "sac_in_its_unit", settings={"file": file, "load": True})
    assert sorted(torch) == sorted(tf) and torch["optimizer/default_policy/policy/step"] == 50
    for path in torch:
        if not path.startswith("optimizer/"):
            np.testing.assert_allclose(torch[path], tf[path], rtol=0, atol=1e-10, err_msg=path)


# ---- states that travel ----------------------------------------------------------------------------------------------


def pass_on(backend_name: str, arrays: Any, settings: Any) -> dict[str, Any]:
    """Load, keep and save again; the first runner trains instead of loading."""
    out: dict[str, Any] = {}
    for algorithm, space in (("ppo", "discrete"), ("ppo", "continuous"), ("sac", "continuous")):
        from gymnasium.spaces import Box, Discrete

        from learner_core_algorithms import PPOConfig, SACConfig

        config: Any = (PPOConfig if algorithm == "ppo" else SACConfig)().framework(backend_name, compile=False)
        config.environment(
            observation_space=Box(-10, 10, (4,), np.float32),
            action_space=Discrete(3) if space == "discrete" else Box(-1.0, 1.0, (2,), np.float32),
        ).debugging(seed=settings["seed"])
        learner = config.build_learner()
        name = f"{algorithm}-{space}"
        if settings["source"]:
            learner.load_state(Path(settings["folder"]) / f"{settings['source']}-{name}")
        else:
            batch = _ppo_batch(space, 0) if algorithm == "ppo" else _sac_batch(64, 0)
            learner.update_from_batch(batch=batch, num_epochs=1, timesteps={"num_env_steps_sampled_lifetime": 12345})
        learner.save_state(Path(settings["folder"]) / f"{settings['target']}-{name}")
        out[name] = _arrays(learner.get_state())
    return out


def test_a_relay_is_bit_identical(tmp_path: Path) -> None:
    """Each leg reads what the one before it wrote, with another seed of its own, and writes the very same state."""
    legs = []
    for leg, backend_name in enumerate(("torch", "tf", "torch", "tf")):
        settings = {"folder": str(tmp_path), "source": leg and str(leg), "target": str(leg + 1), "seed": leg}
        legs.append(run_in(backend_name, __file__, "pass_on", settings=settings))
    for later in legs[1:]:
        assert sorted(later) == sorted(legs[0])
        for path, value in legs[0].items():
            assert value.dtype == later[path].dtype and value.tobytes() == later[path].tobytes(), path
    for name in ("ppo-discrete", "ppo-continuous", "sac-continuous"):
        first, *others = (lc.load_state(tmp_path / f"{leg}-{name}") for leg in (1, 2, 3, 4))
        assert not any(states_differ(first, other) for other in others)
