"""Help comes at once and loads nothing; an algorithm's help lists its settings."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from learner_core.cli.main import main

from support.fake_algorithm import register

MEASURE = """
import json, sys
from learner_core.cli.main import main
try:
    code = main(json.loads(sys.argv[1]))
except SystemExit as error:
    code = error.code or 0
loaded = [m for m in ("torch", "tensorflow", "gymnasium", "matplotlib", "rich", "jax", "ray") if m in sys.modules]
print(json.dumps({"code": code, "modules": len(sys.modules), "loaded": loaded}))
"""
#: What a help page may import in all, the standard library's and numpy's modules with it: a count, not a time, since it
#: is the same on every machine. `train ppo --help`, the longest, has 349 on Python 3.11 (0.33 s of a processor here).
MOST_MODULES = 400

COMMANDS = [
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["train", "ppo", "--help"],
    ["evaluate", "--help"],
    ["inspect", "--help"],
    ["plugins", "--help"],
    ["plugins", "list"],
    ["bench", "--help"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_help_imports_little_and_no_framework(arguments: list[str]) -> None:
    command = [sys.executable, "-W", "error", "-c", MEASURE, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0
    assert result["loaded"] == []
    assert result["modules"] <= MOST_MODULES


def test_an_algorithms_help_lists_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    register()
    assert main(["train", "--help", "fake"]) == 0
    text = capsys.readouterr().out
    assert "coefficient=0.5   (float or schedule [[timestep, value], ...] >= 0)" in text
    assert "A schedule or a number." in text
    assert "Seconds an iteration takes." in text
    assert "num_envs_per_env_runner=8" in text


def test_no_command_prints_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "learner-core train ppo --env CartPole-v1" in capsys.readouterr().out
