"""A whole run on a user's own Torch network goes on with the Keras equivalent, from the checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from support.both import Arrays, run_in


def make(backend_name: str) -> Any:
    if backend_name == "torch":
        from torch import nn

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.BatchNorm1d(16))
                self.pi, self.vf = nn.Linear(16, 2), nn.Linear(16, 1)

            def forward(self, obs: Any) -> Any:
                x = self.body(obs)
                return self.pi(x), self.vf(x)

        return Net
    import keras
    from keras import layers

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            norm = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
            self.body = keras.Sequential([layers.Dense(16, activation="tanh"), norm])
            self.pi, self.vf = layers.Dense(2), layers.Dense(1)

        def call(self, obs: Any) -> Any:
            x = self.body(obs)
            return self.pi(x), self.vf(x)

    return Model


def program(backend_name: str, arrays: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    import learner_core as lc
    from learner_core_algorithms import PPOConfig

    warnings.simplefilter("ignore")
    spec = lc.RLModuleSpec(module_class=make(backend_name))
    path = Path(settings["path"])
    if path.exists():
        run = lc.Algorithm.from_checkpoint(path, framework=backend_name, rl_module_spec=spec)
    else:
        config = (
            PPOConfig()
            .framework(backend_name, compile=False)
            .environment("CartPole-v1")
            .env_runners(num_envs_per_env_runner=4)
            .training(train_batch_size=128, minibatch_size=64, num_epochs=2)
            .rl_module(rl_module_spec=spec)
        )
        run = config.build()
    with run:
        before = run.evaluate(4)["episode_return_mean"]
        if not path.exists():
            for _ in range(2):
                run.train()
            before = run.evaluate(4)["episode_return_mean"]
            run.save(path)
        weights = run.learner_group.get_weights()["default_policy"]
        loss = run.train()["learners"]["default_policy"]["total_loss"]
    return {"before": before, "loss": loss, "iteration": run.iteration, "weights": weights}


def test_a_run_moves_to_the_other_framework_with_its_network(tmp_path: Path) -> None:
    settings = {"path": str(tmp_path / "run.lcstate")}
    torch = run_in("torch", __file__, "program", settings=settings)
    tf = run_in("tf", __file__, "program", settings=settings)
    assert torch["iteration"] == tf["iteration"] == 3
    for name in (n for n in torch if n.startswith("weights/")):
        np.testing.assert_array_equal(torch[name], tf[name], err_msg=name)
    # The same checkpoint, the same next iteration: what differs is the rounding of two frameworks.
    np.testing.assert_allclose(tf["loss"], torch["loss"], rtol=1e-3)
