"""What the README and the pages on several learners show, typed as it stands there, for one iteration."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from .start import Door, missing

ROOT = Path(__file__).resolve().parents[2]


def _blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def _finish(door: Door, launcher: str, program: str, *, timeout_s: float = 550) -> str:
    """Run a program in a folder of its own; what it printed."""
    folder = Path(tempfile.mkdtemp(dir=door.outside.folder, prefix="page-"))
    (folder / "train.py").write_text(program)
    processes = [
        subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command, env in door.commands(launcher, ["train.py"])
    ]
    printed = []
    for process in processes:
        try:
            printed.append(process.communicate(timeout=timeout_s)[0])
        finally:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(printed)
    return "\n".join(printed)


def test_the_first_example_with_every_setting_untouched(door: Door) -> None:
    """README: PPO on Torch, saved, taken up on TensorFlow."""
    (program,) = [block for block in _blocks("README.md") if "cartpole.lcstate" in block]
    program = program.replace("range(20)", "range(1)").replace("num_episodes=20", "num_episodes=1")
    printed = _finish(door, "0", program)
    assert "episode_return_mean" in printed


@pytest.mark.parametrize(
    ("backend", "launcher"),
    [
        ("torch", "spmd"),
        *(
            pytest.param(backend, launcher, marks=pytest.mark.slow)
            for backend in ("torch", "tf")
            for launcher in ("2", "spmd", "horovodrun", "mpirun", "ray")
            if (backend, launcher) != ("torch", "spmd")
        ),
    ],
)
def test_the_same_example_on_two_learners_and_on_from_its_checkpoint(door: Door, backend: str, launcher: str) -> None:
    """Two groups in one script, one after the other, and not one setting more than how many learners there are."""
    if reason := missing(launcher):
        pytest.skip(reason)
    learners = {"2": "num_learners=2", "ray": 'num_learners=2, launcher="ray"'}.get(launcher, 'launcher="spmd"')
    program = f"""
import learner_core as lc
from learner_core_algorithms import PPOConfig

if __name__ == "__main__":
    config = PPOConfig().environment("CartPole-v1").framework("{backend}").learners({learners})
    with config.build() as algo:
        print("steps", algo.train()["num_env_steps_sampled_lifetime"], algo.learner_group.collective, flush=True)
        algo.save("cartpole.lcstate")
    with lc.Algorithm.from_checkpoint("cartpole.lcstate") as algo:
        print("steps", algo.train()["num_env_steps_sampled_lifetime"], algo.learner_group.collective, flush=True)
"""
    printed = _finish(door, launcher, program)
    steps = re.findall(r"steps (\d+) (\w+)", printed)
    each = len(steps) // (1 if launcher in ("2", "ray") else 2)
    assert each == 2 and {name for _, name in steps} == {"horovod"}
    assert max(int(count) for count, _ in steps) > 1.9 * min(int(count) for count, _ in steps) > 3000


@pytest.mark.parametrize(
    ("backend", "launcher"),
    [
        ("torch", "horovodrun"),
        *(
            pytest.param(backend, launcher, marks=pytest.mark.slow)
            for backend in ("torch", "tf")
            for launcher in ("0", "2", "spmd", "horovodrun", "mpirun", "ray")
            if (backend, launcher) != ("torch", "horovodrun")
        ),
    ],
)
def test_the_command_line(door: Door, backend: str, launcher: str) -> None:
    """``learner-core train``: defaults, one iteration, then ``--resume``."""
    if reason := missing(launcher):
        pytest.skip(reason)
    options = {
        "0": [],
        "2": ["--set", "num_learners=2"],
        "ray": ["--launcher", "ray", "--set", "num_learners=2"],
    }.get(launcher, ["--launcher", "spmd"])
    folder = Path(tempfile.mkdtemp(dir=door.outside.folder, prefix="line-"))
    command = [str(door.outside.bin / "learner-core"), "train"]
    begun = [*command, "ppo", "--env", "CartPole-v1", "--backend", backend, "--out", "run", "--stop-iterations", "1"]
    resumed = [*command, "--resume", "run", "--stop-iterations", "2"]
    for line in ([*begun, *options], resumed):
        processes = [
            subprocess.Popen(started, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for started, env in door.commands(launcher, line, script=False)
        ]
        printed = [process.communicate(timeout=550)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(printed)
    assert ("summed over the learners by horovod" in "\n".join(printed)) == (launcher != "0")
    rows = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert len(os.listdir(folder / "run" / "checkpoints")) == 2
