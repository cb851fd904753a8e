"""``collective="auto"``: what sums the gradients where nobody has said, by what is installed and backends offer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import learner_core as lc
from learner_core.backend import BackendFacts
from learner_core.group.collectives import choose_collective
from learner_core.group.horovod import plugin as horovod_plugin
from learner_core.group.horovod.tools import Target
from learner_core.plugins import claims, discovery
from learner_core.plugins.hookspecs import hookimpl
from learner_core.sampling.numpy_backend import NumpyBackend
from learner_core_algorithms import PPOConfig

OURS = Target({"torch": "2.13.0", "tf": "2.21.0"}).version


class _Plugin:
    """A backend that offers these collectives."""

    PLUGIN_API = 1

    def __init__(self, **collectives: str) -> None:
        self._collectives = collectives

    @hookimpl
    def learner_core_backend(self) -> type:
        return NumpyBackend

    @hookimpl
    def learner_core_backend_facts(self) -> Any:
        return BackendFacts(collectives=self._collectives)


class _Ring:
    """A third party's collective, over numpy arrays."""

    PLUGIN_API = 1
    name = "sums"

    @hookimpl
    def learner_core_collective(self) -> Any:
        return self

    def check(self, backend_name: str) -> None:
        """It needs nothing."""

    def preload(self, backend_name: str) -> None:
        """Nothing is imported."""

    def open_rendezvous(self, size: int, **how: Any) -> Any:
        raise NotImplementedError

    def create(self, backend: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "INDEX", claims.Index())


def _installed(monkeypatch: pytest.MonkeyPatch, version: str | None, folder: Path | None = None) -> None:
    """This Horovod is the one that is installed; ``None``: none is."""
    places = None if folder is None else [str(folder)]
    spec = None if version is None else SimpleNamespace(submodule_search_locations=places)
    found = SimpleNamespace(find_spec=lambda name: spec)
    monkeypatch.setattr(horovod_plugin.importlib, "util", found)
    monkeypatch.setattr(horovod_plugin, "installed_version", lambda: version)
    fits = {"torch": "2.13.0", "tf": "2.21.0"}
    monkeypatch.setattr(horovod_plugin, "find_target", lambda names: Target({name: fits[name] for name in names}))


def test_it_is_the_default_and_resolved_for_every_framework_apart() -> None:
    assert PPOConfig().collective == "auto"
    assert PPOConfig().learners(collective="horovod").collective == "horovod"
    assert PPOConfig().learners(collective="horovod").learners(collective="auto").collective == "auto"


@pytest.mark.parametrize("framework", ["torch", "tf"])
def test_horovod_where_it_is_installed_for_the_framework(monkeypatch: pytest.MonkeyPatch, framework: str) -> None:
    _installed(monkeypatch, OURS)
    assert choose_collective("auto", [framework, framework]) == "horovod"
    assert choose_collective("auto", ["torch", "tf"]) == "horovod"


@pytest.mark.parametrize("version", [None, "0.28.1+lc1.tf2.21.0", "0.28.1+lc1.tf2.21.0.torch2.12.0"])
def test_else_torch_distributed_for_torch(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """It is not there, was built for the other framework alone, or for another version."""
    _installed(monkeypatch, version)
    assert choose_collective("auto", ["torch"]) == "torch"


@pytest.mark.parametrize(
    ("version", "said"),
    [(None, "Horovod is not installed"), ("0.28.1+lc1.torch2.13.0", r"was not built for the tf that is installed")],
)
def test_else_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch, version: str | None, said: str) -> None:
    _installed(monkeypatch, version)
    expected = rf"collective=\"auto\": nothing here sums .* framework 'tf'.*{said}.*run `learner-core horovod build`$"
    with pytest.raises(lc.LearnerGroupError, match=expected):
        choose_collective("auto", ["tf"])
    with pytest.raises(lc.LearnerGroupError, match="nothing here sums"):
        choose_collective("auto", ["torch", "tf"])  # the one that Torch has besides does not take both


def test_what_was_named_is_taken_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, None)
    assert choose_collective("horovod", ["torch"]) == "horovod"
    assert choose_collective("torch", ["tf"]) == "torch"


def test_with_gpus_a_horovod_without_nccl_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, OURS)
    assert choose_collective("auto", ["torch"], gpus=True) == "torch"
    with pytest.raises(lc.LearnerGroupError, match=r"has no NCCL.*run `learner-core horovod build --gpu`"):
        choose_collective("auto", ["tf"], gpus=True)
    _installed(monkeypatch, f"{OURS}.nccl")
    assert choose_collective("auto", ["torch"], gpus=True) == "horovod"


def test_somebodys_own_horovod_counts_for_the_halves_that_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "mpi_lib_v2.cpython-311-x86_64-linux-gnu.so").touch()
    _installed(monkeypatch, "0.28.1", tmp_path)
    assert choose_collective("auto", ["torch"]) == "horovod"
    with pytest.raises(lc.LearnerGroupError, match=r"the installed Horovod 0.28.1 has no half for tensorflow"):
        choose_collective("auto", ["tf"])


def test_a_third_partys_backend_is_asked_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Horovod first, wherever it stands; then its own order; what it has nowhere to load from is passed over."""
    discovery.register("learner_core.collectives", "sums", _Ring())
    discovery.register("learner_core.backends", "third", _Plugin(missing="json", sums="json", horovod="horovod.third"))
    discovery.register("learner_core.backends", "own", _Plugin(sums="json"))
    discovery.register("learner_core.backends", "lost", _Plugin(missing="json"))
    discovery.register("learner_core.backends", "silent", _Plugin())
    _installed(monkeypatch, OURS)
    assert choose_collective("auto", ["third"]) == "horovod"
    assert choose_collective("auto", ["own"]) == "sums"
    assert choose_collective("auto", ["silent"]) == "horovod"  # which asks the backend, in the learners
    with pytest.raises(lc.LearnerGroupError, match=r"framework 'lost'.*There is no collective 'missing'"):
        choose_collective("auto", ["lost"])
    _installed(monkeypatch, None)
    assert choose_collective("auto", ["third"]) == "sums"
    with pytest.raises(lc.LearnerGroupError, match=r"framework 'silent'.*run `learner-core horovod build`"):
        choose_collective("auto", ["silent"])
