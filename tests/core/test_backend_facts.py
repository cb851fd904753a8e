"""What backends say of themselves before their framework is imported, and who goes by that, not by their names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_core import ConfigError, LearnerGroupError, PluginError, PluginNotFoundError
from learner_core.backend import BackendFacts, FileFormat
from learner_core.exporting.export import export
from learner_core.exporting.formats import default_suffix, export_formats
from learner_core.group.collectives import load_collective
from learner_core.plugins import claims, discovery
from learner_core.plugins.hookspecs import hookimpl
from learner_core.sampling.numpy_backend import NumpyBackend
from learner_core.state.files import save_state


class _Backend(NumpyBackend):
    """numpy, with a weights format of its own."""

    name = "third"

    def export_weights(self, arrays: Any, path: Any) -> None:
        Path(path).write_text(",".join(sorted(arrays)))


class _Plugin:
    PLUGIN_API = 1

    def __init__(self, facts: Any = None) -> None:
        self._facts = facts

    @hookimpl
    def learner_core_backend(self) -> type:
        return _Backend

    @hookimpl
    def learner_core_backend_facts(self) -> Any:
        return self._facts


class _Silent:
    PLUGIN_API = 1

    @hookimpl
    def learner_core_backend(self) -> type:
        return _Backend


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "INDEX", claims.Index())


FACTS = BackendFacts(collectives={"torch": "json.tool"}, exports={"names": FileFormat(weights=(".names",))})


def test_built_in_backends_say_it_without_their_frameworks() -> None:
    assert discovery.backend_facts("torch").collectives == {"horovod": "horovod.torch", "torch": "torch.distributed"}
    assert discovery.backend_facts("tf").collectives == {"horovod": "horovod.tensorflow"}
    assert {name: default_suffix(of) for name, of in export_formats().items()} == {
        "keras": ".keras",
        "onnx": ".onnx",
        "safetensors": ".safetensors",
        "torch": ".pt",
    }
    assert not {"torch", "tensorflow"} & set(sys.modules)


def test_one_that_says_nothing_has_no_facts_and_an_unknown_one_is_refused(index: None) -> None:
    discovery.register("learner_core.backends", "third", _Silent())
    assert discovery.backend_facts("third") == BackendFacts()
    with pytest.raises(PluginNotFoundError, match="Did you mean 'third'"):
        discovery.backend_facts("thrd")


def test_a_wrong_answer_names_the_plugin_and_leaves_the_others_their_formats(index: None) -> None:
    discovery.register("learner_core.backends", "third", _Plugin({"collectives": {}}))
    with pytest.raises(PluginError, match=r"'third'.*must return learner_core.backend.BackendFacts"):
        discovery.backend_facts("third")
    assert "keras" in export_formats()


def test_the_format_of_a_third_party_is_written_by_its_backend(index: None, tmp_path: Path) -> None:
    discovery.register("learner_core.backends", "third", _Plugin(FACTS))
    saved = tmp_path / "learner.lc"
    save_state(saved, {"rl_module": {"default_policy": {"pi.0.weight": np.zeros((2, 3), np.float32)}}})
    assert export(saved, tmp_path / "weights.names").read_text() == "pi.0.weight"
    assert export(saved, tmp_path / "weights.txt", "names").read_text() == "pi.0.weight"
    with pytest.raises(ConfigError, match="Did you mean 'names'"):
        export(saved, tmp_path / "weights.txt", "name")


def test_collectives_go_by_what_a_backend_says(index: None, monkeypatch: pytest.MonkeyPatch) -> None:
    discovery.register("learner_core.backends", "third", _Plugin(FACTS))
    discovery.register("learner_core.backends", "silent", _Silent())
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    torch = load_collective("torch")
    torch.check("third")
    torch.preload("third")
    assert "json.tool" in sys.modules
    with pytest.raises(LearnerGroupError, match="the framework is 'silent'"):
        torch.check("silent")
    load_collective("horovod").preload("silent")  # nothing is known, so nothing is imported beforehand
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, said in (("third", r'build`, or use collective="torch"$'), ("silent", "build`$")):
        with pytest.raises(LearnerGroupError, match=said):
            load_collective("horovod").check(name)
