"""`learner-core plugins`: listing, diagnosis, and the conformance kit on the built-in and on a faulty plugin."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from learner_core.cli.main import main
from learner_core.plugins import discovery
from learner_core.plugins.hookspecs import hookimpl

from support.fake_algorithm import FakeConfig, register


def test_list_names_every_plugin_with_its_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[2:] if line]
    assert ["backends", "torch", "learner-core"] in [row[:3] for row in rows]
    assert ["algorithms", "sac", "learner-core"] in [row[:3] for row in rows]


def test_check_passes_the_numpy_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "numpy"]) == 0
    assert "all good" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ppo", "sac", "bc", "impala", "appo"])
def test_check_passes_the_algorithms(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", name]) == 0, capsys.readouterr().out


def test_check_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    @hookimpl
    def learner_core_algorithm() -> type:
        return FakeConfig  # its algorithm_name is "fake"

    register()
    if "misnamed" not in discovery.list_algorithms():
        plugin = SimpleNamespace(learner_core_algorithm=learner_core_algorithm)
        discovery.register("learner_core.algorithms", "misnamed", plugin)
    assert main(["plugins", "check", "misnamed"]) == 1
    assert "FAIL  its config class names it: algorithm_name is 'fake', expected 'misnamed'" in capsys.readouterr().out
