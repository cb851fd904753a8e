"""A name that no environment has is answered with the nearest one, before a framework is imported or a process started.

What was imported is looked at, in a process of its own: seconds are another machine's affair.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from learner_core_algorithms import PPOConfig

NEAREST = "Did you mean 'CartPole-v1'?"
FRAMEWORKS = {"torch", "tensorflow", "keras", "horovod", "ray", "learner_core_torch", "learner_core_tf"}

ASK = """
import contextlib, io, json, os, sys
given = json.loads(sys.argv[1])
said = io.StringIO()
with contextlib.redirect_stderr(said):
    if isinstance(given, list):
        from learner_core.cli.main import main
        code = main(given)
    else:
        from learner_core_algorithms import PPOConfig
        from learner_core.errors import EnvError
        config = PPOConfig().environment(given["env"]).framework(given["backend"]).learners(**given["learners"])
        config.env_runners(num_env_runners=given["runners"])
        try:
            getattr(config, given["build"])()
        except EnvError as error:
            code = 2
            said.write(str(error))
with open("/proc/thread-self/children") as children:
    print(json.dumps([code, said.getvalue(), [name for name in sys.modules if sys.modules[name]], children.read()]))
"""


def _ask(given: Any) -> None:
    done = subprocess.run([sys.executable, "-c", ASK, json.dumps(given)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    code, said, modules, children = json.loads(done.stdout.splitlines()[-1])
    assert code == 2 and NEAREST in said, said
    assert not {name.partition(".")[0] for name in modules} & FRAMEWORKS
    assert not children.split()


@pytest.mark.parametrize("build", ["build", "build_learner", "build_learner_group"])
@pytest.mark.parametrize(
    ("learners", "runners"),
    [({}, 0), ({"num_learners": 2}, 2), ({"launcher": "spmd"}, 0)],
    ids=["one", "processes", "ranks"],
)
@pytest.mark.fast_on_torch
def test_in_a_script(training_backend_name: str, build: str, learners: Any, runners: int) -> None:
    if build == "build_learner" and learners:
        pytest.skip("one learner, whatever there are")
    _ask({"env": "CartPol-v1", "backend": training_backend_name, "learners": learners, "runners": runners,
          "build": build})  # fmt: skip


@pytest.mark.fast_on_torch
def test_on_the_command_line(training_backend_name: str, tmp_path: Path) -> None:
    train = ["train", "ppo", "--backend", training_backend_name, "--out", str(tmp_path / "run")]
    _ask([*train, "--env", "CartPol-v1"])
    _ask([*train, "--set", "env=CartPol-v1"])
    _ask([*train, "--env", "CartPol-v1", "--launcher", "spmd"])  # a rank need not meet the others to say so
    _ask([*train, "--env", "CartPol-v1", "--set", "num_learners=2"])
    assert not (tmp_path / "run").exists()


@pytest.mark.fast_on_torch
def test_beside_a_checkpoint(training_backend_name: str, tmp_path: Path) -> None:
    config = PPOConfig().environment("CartPole-v1").framework(training_backend_name, compile=False)
    path = tmp_path / "run.lcstate"
    with config.rl_module(model={"hidden": [4]}).build() as algo:
        algo.save(str(path))
    for command in (["evaluate", str(path)], ["record", str(path), "--out", str(tmp_path / "episodes.lcstate")]):
        _ask([*command, "--env", "CartPol-v1"])


@pytest.mark.slow
def test_a_run_that_is_resumed(training_backend_name: str, tmp_path: Path) -> None:
    from learner_core.cli.main import main

    sizes = [f"--set={one}" for one in ("train_batch_size=32", "minibatch_size=16", "num_epochs=1", "compile=false")]
    run = str(tmp_path / "run")
    train = ["train", "ppo", "--env", "CartPole-v1", "--backend", training_backend_name, "--out", run, "--quiet"]
    assert main([*train, "--stop-iterations", "1", *sizes]) == 0
    _ask(["train", "--resume", run, "--env", "CartPol-v1", "--stop-iterations", "2"])
    assert main(["train", "--resume", run, "--stop-iterations", "2", "--quiet"]) == 0


@pytest.mark.fast_on_torch
def test_a_known_name_is_made_no_more_often(training_backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium as gym

    made: list[str] = []
    make = gym.make

    def counting(name: Any, **options: Any) -> Any:
        made.append(name)
        return make(name, **options)

    monkeypatch.setattr(gym, "make", counting)
    config = PPOConfig().environment("CartPole-v1").framework(training_backend_name, compile=False)
    with config.env_runners(vectorization="sync", num_envs_per_env_runner=2).build():
        assert made == ["CartPole-v1"] * 3  # to be looked at, and two to be sampled
