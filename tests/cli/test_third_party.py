"""A third party's algorithm and backend, built outside the tree, installed beside the wheel, used by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from support.outside import Outside

PROJECT = Path(__file__).resolve().parents[1] / "plugin_project"

UPDATE = """
import json, sys
import gymnasium as gym, numpy as np
import learner_core as lc

backend, compile = sys.argv[1], json.loads(sys.argv[2])
config = (
    lc.get_config("reinforce")
    .environment(None, observation_space=gym.spaces.Box(-1, 1, (3,), np.float32), action_space=gym.spaces.Discrete(2))
    .framework(backend, compile=compile, precision="float64", device="cpu")
    .training(lr=1e-2, train_batch_size=32, minibatch_size=16, num_epochs=2, grad_clip=0.5)
    .rl_module(model={"hidden": [4]})
)
learner = config.build_learner()
rng = np.random.default_rng(0)
batch = {"obs": rng.normal(size=(32, 3)), "actions": rng.integers(0, 2, 32), "advantages": rng.normal(size=32)}
for _ in range(3):
    results = learner.update_from_batch(batch=batch, timesteps={})
assert np.isfinite(results["default_policy"]["entropy"])
weights = learner.get_state()["rl_module"]["default_policy"]
print(json.dumps({name: np.asarray(value).tolist() for name, value in weights.items()}))
"""


@pytest.fixture(scope="module")
def installed(outside: Outside, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    source = tmp_path_factory.mktemp("thirdparty") / "project"
    shutil.copytree(PROJECT, source, ignore=shutil.ignore_patterns("__pycache__"))
    outside.install(source)
    return outside


def _weights(place: Outside, backend: str, *, compiled: bool | None = False) -> dict[str, np.ndarray]:
    output = place.python(UPDATE, backend, json.dumps(compiled))
    return {name: np.asarray(value) for name, value in json.loads(output.splitlines()[-1]).items()}


def test_both_are_listed_with_their_distribution(installed: Outside) -> None:
    lines = installed.run(installed.bin / "learner-core", "plugins", "list").stdout.splitlines()
    rows = [line.split() for line in lines]
    assert ["backends", "finite", "learner-core-thirdparty", "1.2.3", "available"] in rows
    assert ["algorithms", "reinforce", "learner-core-thirdparty", "1.2.3", "available"] in rows


def test_the_conformance_kit_passes_them(installed: Outside) -> None:
    command = installed.bin / "learner-core"
    assert "all good" in installed.run(command, "plugins", "check", "finite").stdout
    assert "all good" in installed.run(command, "plugins", "check", "reinforce", "--backend", "finite").stdout


def test_the_algorithms_help_lists_its_setting(installed: Outside) -> None:
    text = installed.run(installed.bin / "learner-core", "train", "reinforce", "--help").stdout
    assert "entropy_coeff=0.01" in text
    assert "Weight of the entropy bonus." in text


@pytest.mark.parametrize("backend", ["torch", "tf"])
def test_its_algorithm_trains_on_every_backend_and_on_its_own_to_the_same_weights(
    installed: Outside, backend: str
) -> None:
    expected = _weights(installed, "finite")
    got = _weights(installed, backend)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        # Central differences in float64 are good to about 1e-10 in the gradient; Adam divides by its size.
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_its_algorithm_runs_from_the_command_line_and_changes_frameworks(installed: Outside) -> None:
    command = [installed.bin / "learner-core", "train"]
    settings = ["--set", "train_batch_size=256", "--set", "compile=false", "--set", "model.hidden=[8]"]
    new = ["reinforce", "--env", "CartPole-v1", "--out", "run", "--stop-iterations", "2", *settings]
    assert "2 iterations" in installed.run(*command, *new).stdout
    again = ["--resume", "run", "--backend", "tf", "--stop-iterations", "3"]
    assert "3 iterations" in installed.run(*command, *again).stdout
    rows = [json.loads(line) for line in (installed.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["backend"] for row in rows] == ["torch", "torch", "tf"]


def test_a_broken_plugin_is_named_and_disturbs_no_other(installed: Outside, tmp_path: Path) -> None:
    source = tmp_path / "broken"
    (source / "learner_core_broken").mkdir(parents=True)
    (source / "learner_core_broken" / "__init__.py").write_text("raise RuntimeError('on purpose')\n")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "learner-core-broken"\nversion = "0.1"\n'
        '[project.entry-points."learner_core.algorithms"]\nbroken = "learner_core_broken"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["learner_core_broken"]\n'
    )
    installed.install(source)
    command = installed.bin / "learner-core"
    doctor = installed.run(command, "plugins", "doctor", "--group", "algorithms", check=False)
    assert doctor.returncode == 1
    assert "learner-core-broken" in doctor.stdout
    assert "on purpose" in " ".join(doctor.stdout.split())
    assert "broken" in installed.run(command, "train", "broken", "--env", "CartPole-v1", check=False).stderr
    assert "all good" in installed.run(command, "plugins", "check", "reinforce").stdout
