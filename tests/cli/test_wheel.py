"""The built wheel, installed away from the repository, is whole."""

from __future__ import annotations

import json
import zipfile

from support.outside import Outside


def test_the_wheel_holds_the_four_packages_and_nothing_else(outside: Outside) -> None:
    names = zipfile.ZipFile(outside.wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"learner_core", "learner_core_torch", "learner_core_tf", "learner_core_algorithms"}
    for package in tops:
        assert f"{package}/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_installed_packages_are_the_wheels(outside: Outside) -> None:
    code = """
import importlib.util, json
names = ["learner_core", "learner_core_torch", "learner_core_tf", "learner_core_algorithms"]
print(json.dumps([importlib.util.find_spec(name).origin for name in names]))
"""
    for origin in json.loads(outside.python(code)):
        assert origin.startswith(str(outside.folder)), origin


def test_the_entry_points_are_there_once(outside: Outside) -> None:
    code = """
import importlib.metadata as metadata, json
groups = ["learner_core.backends", "learner_core.algorithms"]
own = metadata.distribution("learner-core").entry_points
print(json.dumps({g: [e.name for e in own if e.group == g] for g in groups}))
"""
    found = json.loads(outside.python(code))
    assert sorted(found["learner_core.backends"]) == ["numpy", "tf", "torch"]
    assert {"appo", "bc", "impala", "ppo", "sac"} <= set(found["learner_core.algorithms"])
    assert len(set(found["learner_core.algorithms"])) == len(found["learner_core.algorithms"])


def test_every_public_name_resolves(outside: Outside) -> None:
    outside.python("import learner_core as lc; [getattr(lc, name) for name in lc.__all__]")


def test_the_command_prints_its_version(outside: Outside) -> None:
    done = outside.run(outside.bin / "learner-core", "--version")
    assert done.stdout.startswith("learner-core ")
