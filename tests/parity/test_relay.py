"""A run relayed Torch -> TensorFlow -> Torch every ten updates is the run that never moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core_algorithms import PPOConfig

from support.both import Arrays, run_in
from support.learners import flat_state
from support.relay import Runner

NUM_UPDATES, LEG = 100, 10


def config() -> Any:
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .framework("torch", compile=False)
        .env_runners(num_envs_per_env_runner=4, normalize_observations=True)
        .training(
            lr=3e-4, train_batch_size=128, minibatch_size=64, num_epochs=2, entropy_coeff=[[0, 0.01], [9000, 0.0]]
        )
        .rl_module(model={"hidden": [32, 32]})
    )


def first(backend_name: str, arrays: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint that both runs start from."""
    with config().build() as algo:
        algo.save(settings["path"])
    return {}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("relay")
    start, stayed = folder / "start", folder / "stayed"
    run_in("torch", __file__, "first", settings={"path": str(start)})
    with Runner("torch", folder / "torch.log") as torch, Runner("tf", folder / "tf.log") as tf:
        torch.turn(start, stayed, NUM_UPDATES)
        at = start
        for leg in range(NUM_UPDATES // LEG):
            after = folder / f"leg-{leg}"
            (torch, tf)[leg % 2].turn(at, after, LEG)
            at = after
    return lc.load_state(stayed)["state"], lc.load_state(at)["state"]


def test_the_learner_is_within_2e6(ends: tuple[Any, Any]) -> None:
    stayed, moved = (flat_state(end["learner"]) for end in ends)
    assert stayed.keys() == moved.keys()
    worst = 0.0
    for path, value in stayed.items():
        if path.startswith("rl_module/"):
            difference = float(np.abs(np.asarray(value, np.float64) - np.asarray(moved[path], np.float64)).max())
            worst = max(worst, difference)
            assert difference <= 2e-6, path
        elif not isinstance(value, (np.ndarray, float)):
            assert value == moved[path], path  # steps, counters, seed
        else:
            np.testing.assert_allclose(moved[path], value, rtol=1e-3, atol=2e-6, err_msg=path)
    print(f"after {NUM_UPDATES} updates, {NUM_UPDATES // LEG - 1} moves: parameters differ by {worst:.1e}")


def test_everything_else_took_the_same_course(ends: tuple[Any, Any]) -> None:
    """The same episodes, to the last step: no action came out differently."""
    stayed, moved = ends
    assert stayed["algorithm"] == moved["algorithm"]
    assert stayed["algorithm"]["iteration"] == NUM_UPDATES
    assert stayed["learner"]["counters"] == moved["learner"]["counters"]
    assert stayed["learner"]["timesteps"] == moved["learner"]["timesteps"]
