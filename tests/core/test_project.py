"""The tree of the design: four roots, nothing that could shadow a framework, `py.typed` in each package."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOTS = [
    "core/learner_core",
    "backends/torch/learner_core_torch",
    "backends/tf/learner_core_tf",
    "plugins/learner_core_algorithms",
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_wheel_packages_are_the_four_roots() -> None:
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ROOTS


def test_each_root_holds_one_typed_package_and_no_loose_python() -> None:
    for root in ROOTS:
        package = ROOT / root
        assert (package / "py.typed").is_file(), root
        assert (package / "__init__.py").is_file(), root
        beside = [p.name for p in package.parent.iterdir() if p.name != "__pycache__" and p != package]
        assert beside == [], f"{package.parent} holds more than one package: {beside}"
    assert not list((ROOT / "backends").glob("*.py"))


def test_backends_have_the_same_file_names() -> None:
    torch, tf = (
        {p.name for p in (ROOT / root).glob("*.py")}
        for root in ("backends/torch/learner_core_torch", "backends/tf/learner_core_tf")
    )
    # What only Torch needs: packages of compiled loops, a look at build for code that it traces much later, and memory
    # for what it does not compile.
    assert torch - tf == {"large_vectors.py", "loop_package.py", "value_reads.py"}
    assert tf <= torch


def test_torch_is_pinned_and_tensorflow_comes_once() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in pins
    assert [pin for pin in pins if pin.lower().startswith("tensorflow")] == ["tensorflow_cpu==2.21.0"]


def test_extra_all_leaves_out_horovod() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert "horovod" not in extras["all"][0]
    assert {"torch", "tf", "tf-cpu", "ray", "atari", "mujoco", "box2d", "multi-agent", "plot", "testing", "dev"} <= set(
        extras
    )
