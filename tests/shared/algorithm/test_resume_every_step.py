"""Row 11 of the reliability plan: stopped anywhere and taken up from the file, a run is the run that went on.

Every entry of the state and every metric is compared to the last bit. In ``make test`` the runs are short; ``--slow``
stops long ones at twenty random places each, also compiled. Seeds are fresh every time and printed on failure.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.sampling.recording import RECORDING_FORMAT
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig

from support.parallel_envs import make_signals


def _ppo(folder: Path) -> Any:
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=2, normalize_observations=True)
        .training(train_batch_size=24, minibatch_size=10, num_epochs=2, lr=[[0, 1e-3], [200, 1e-4]])
        .training(entropy_coeff=[[0, 0.01], [100, 0.0]], use_kl_loss=True, kl_target=1e-4)
        .evaluation(interval=2, num_episodes=1)
        .rl_module(model={"hidden": [8]})
    )


def _sac(folder: Path) -> Any:
    """One environment step and one gradient step an iteration, from the third on."""
    return (
        SACConfig()
        .environment("Pendulum-v1")
        .training(train_batch_size=4, learning_starts=3, timesteps_per_iteration=1, buffer_capacity=9)
        .rl_module(model={"hidden": [8], "activation": "relu"})
    )


def _bc(folder: Path) -> Any:
    rng = np.random.default_rng(0)
    columns = {"obs": rng.normal(size=(37, 4)).astype(np.float32), "actions": rng.integers(0, 2, 37)}
    path = folder / "recording"
    lc.save_state(path, {"format": RECORDING_FORMAT, "columns": columns})
    return (
        BCConfig()
        .environment("CartPole-v1")
        .training(input_path=str(path), train_batch_size=16, minibatch_size=6, updates_per_iteration=2)
        .rl_module(model={"hidden": [8]})
    )


def _asynchronous(config: Any, **training: Any) -> Any:
    """Without processes, so that it is deterministic: sequences are left over, and weights are of some age."""
    return (
        config.environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=3, rollout_fragment_length=5)
        .training(train_batch_size=20, timesteps_per_iteration=30, lr=[[0, 1e-2], [300, 1e-3]], **training)
        .rl_module(model={"hidden": [8]})
    )


def _impala(folder: Path) -> Any:
    return _asynchronous(IMPALAConfig(), broadcast_interval=3)


def _appo(folder: Path) -> Any:
    settings = {"circular_buffer_num_batches": 3, "use_kl_loss": True, "target_network_update_freq": 0.5, "tau": 0.5}
    return _asynchronous(APPOConfig(), **settings)


def _memory(folder: Path) -> Any:
    """PPO with an LSTM; sequences that go on over episodes."""
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=2, normalize_observations=True)
        .training(train_batch_size=24, minibatch_size=8, num_epochs=2, max_seq_len=4, burn_in=1)
        .rl_module(model={"hidden": [4], "recurrent": "lstm", "recurrent_size": 3, "vf_share_layers": True})
    )


def _agents(folder: Path) -> Any:
    """Two agents, each with a module and settings of its own."""
    return (
        PPOConfig()
        .environment(make_signals)
        .env_runners(num_envs_per_env_runner=2)
        .training(train_batch_size=24, minibatch_size=10, num_epochs=2, lr=0.01)
        .rl_module(model={"hidden": [8]})
        .multi_agent(policies=["speaker", "listener"], settings={"speaker": {"lr": 0.02, "clip_param": 0.1}})
    )


#: Taken up from every step in ``make test``; the others from a random one.
SHORT = {"ppo": _ppo, "sac": _sac, "bc": _bc}
ALGORITHMS = {**SHORT, "impala": _impala, "appo": _appo, "ppo-memory": _memory, "ppo-agents": _agents}
EVERY_STEP = [*SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS if name not in SHORT)]
#: In ``make test`` all are stopped at a random step on Torch, and one that test_every_step does not take up on both.
RANDOM_STEP = [name if name == "impala" else pytest.param(name, marks=pytest.mark.fast_on_torch) for name in ALGORITHMS]
#: Metrics of time.
TIMED = ("_per_second", "learner_utilization")
#: Iterations of a long run.
STEPS = {"ppo": 30, "sac": 200, "bc": 40, "impala": 30, "appo": 30, "ppo-memory": 20, "ppo-agents": 20}


def _differences(left: Any, right: Any, path: str = "") -> list[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        missing = [f"{path}/{key}" for key in set(left) ^ set(right)]
        return missing + [
            d for key in set(left) & set(right) for d in _differences(left[key], right[key], f"{path}/{key}")
        ]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [d for i, (a, b) in enumerate(zip(left, right, strict=True)) for d in _differences(a, b, f"{path}[{i}]")]
    if type(left) is type(right) and isinstance(left, (int, str, bytes, type(None))):
        return [] if left == right else [path]  # integers of any size
    a, b = np.asarray(left), np.asarray(right)
    same = type(left) is type(right) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return [] if same else [path]


def _untimed(results: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on the clock: how busy learners were, how many steps a second."""
    kept = {name: value for name, value in results.items() if name not in ("timers", "throughput")}
    counted = {k: v for k, v in results.get("throughput", {}).items() if not k.endswith(TIMED)}
    return {**kept, "throughput": counted}


def _functions(config: Any) -> dict[str, Any]:
    """What no file gives back."""
    return {"env": config.env} if callable(config.env) else {}


def _config(algorithm: str, backend: str, folder: Path, compile: bool | None, seed: int) -> Any:
    return ALGORITHMS[algorithm](folder).framework(backend, compile=compile).debugging(seed=seed)


@pytest.mark.parametrize("algorithm", EVERY_STEP)
def test_every_step(training_backend_name: str, algorithm: str, tmp_path: Path) -> None:
    """From each checkpoint one step leads to the next one's state: so, by induction, does every later one."""
    seed, steps = secrets.randbelow(10**6), 6
    print(f"seed={seed}")
    config = _config(algorithm, training_backend_name, tmp_path, False, seed)
    with config.build() as algo:
        states, results = [], []
        for step in range(steps):
            algo.save(tmp_path / str(step))
            results.append(_untimed(algo.train()))
            states.append(algo.get_state())
    for step in range(steps):
        with lc.Algorithm.from_checkpoint(tmp_path / str(step), **_functions(config)) as again:
            resumed = _untimed(again.train())
            assert not _differences(states[step], again.get_state()), f"step {step}"
        assert not _differences(results[step], resumed), f"step {step}"


def _stop_anywhere(algorithm: str, backend: str, folder: Path, *, steps: int, compile: bool | None) -> None:
    seed = secrets.randbelow(10**6)
    stop = 1 + secrets.randbelow(steps - 1)
    print(f"{algorithm} on {backend}: seed={seed}, stopped after {stop} of {steps} iterations")
    config = _config(algorithm, backend, folder, compile, seed)
    with config.build() as algo:
        for step in range(steps):
            if step == stop:
                algo.save(folder / "checkpoint")
            last = _untimed(algo.train())
        uninterrupted = algo.get_state()
    with lc.Algorithm.from_checkpoint(folder / "checkpoint", **_functions(config)) as again:
        for _ in range(steps - stop):
            resumed = _untimed(again.train())
        assert not _differences(uninterrupted, again.get_state())
    assert not _differences(last, resumed)


@pytest.mark.parametrize("algorithm", RANDOM_STEP)
def test_a_random_step(training_backend_name: str, algorithm: str, tmp_path: Path) -> None:
    _stop_anywhere(algorithm, training_backend_name, tmp_path, steps=10, compile=False)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_twenty_random_steps(training_backend_name: str, algorithm: str, tmp_path: Path) -> None:
    for place in range(20):
        folder = tmp_path / str(place)
        folder.mkdir()
        _stop_anywhere(algorithm, training_backend_name, folder, steps=STEPS[algorithm], compile=False)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_compiled(training_backend_name: str, algorithm: str, tmp_path: Path) -> None:
    for place in range(2):
        folder = tmp_path / str(place)
        folder.mkdir()
        _stop_anywhere(algorithm, training_backend_name, folder, steps=30, compile=True)
