"""Exports that need no framework: ONNX against numpy's policy, safetensors bit by bit, refusals by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core import numpy_xp
from learner_core.errors import ConfigError, StateError
from learner_core.exporting import export as export_file
from learner_core.exporting.onnx_file import build_model, sample_observations, write_onnx
from learner_core.exporting.onnx_graph import Graph
from learner_core.exporting.onnx_xp import OnnxNamespace
from learner_core.exporting.source import ExportedPolicy, nest
from learner_core.learning.actor_critic import PolicyModule
from learner_core.sampling.numpy_backend import NumpyPolicy

from support.user_policies import POLICIES, exported_policy, state_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class FakeLearner:
    """What export reads of a Learner."""

    def __init__(self, policies: dict[str, ExportedPolicy]) -> None:
        self.module_specs = {mid: policy.spec for mid, policy in policies.items()}
        self._policies = policies

    def get_module_state(self) -> dict[str, dict[str, np.ndarray]]:
        return {mid: dict(policy.params) for mid, policy in self._policies.items()}


def run_model(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("case", POLICIES)
@pytest.mark.parametrize("rows", [1, 5])
def test_onnx_answers_as_numpy_does(case: str, rows: int, tmp_path: Path) -> None:
    policy = exported_policy(case)
    write_onnx(policy, tmp_path / "policy.onnx")
    inputs, state = sample_observations(policy, rows), state_of(policy, rows)
    given = {**inputs, **{f"state_in/{leaf}": value for leaf, value in state.items()}}
    answers = run_model(tmp_path / "policy.onnx", given)
    expected = policy.answer(nest(inputs), state)
    expected |= {f"state_out/{leaf}": value for leaf, value in expected.pop("state_out", {}).items()}
    assert answers.keys() == expected.keys()
    for name, value in expected.items():
        assert answers[name].dtype == value.dtype
        np.testing.assert_allclose(answers[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", POLICIES)
def test_a_policy_answers_as_a_run_acts(case: str) -> None:
    """What all formats are compared with is what environment runners do, a module's own actions included."""
    policy = exported_policy(case)
    obs, state = nest(sample_observations(policy, 5)), state_of(policy, 5)
    acting = NumpyPolicy(policy.spec, policy.params)
    seen = policy.normalized(numpy_xp, obs)
    acted = acting.compute_actions(seen, noise=None, explore=False, **({"state": state} if state else {}))
    answers = policy.answer(obs, state)
    np.testing.assert_allclose(answers["actions"], acted["actions"], rtol=1e-6, atol=1e-6)
    assert answers["actions"].dtype.kind == acted["actions"].dtype.kind
    assert answers.keys() - {"state_out"} == acted.keys() - {"action_logp", "state_out"}


class Mute(PolicyModule):
    def forward_inference(self, params: Any, batch: Any) -> Any:
        return {"vf_preds": self.forward_train(params, batch)["action_dist_inputs"][:, 0]}


def test_a_module_that_says_nothing_to_act_by_is_refused(tmp_path: Path) -> None:
    policy = exported_policy("binary")
    policy.spec = replace(policy.spec, module_class=Mute)
    with pytest.raises(ConfigError, match="forward_inference returned vf_preds: expected 'action_dist_inputs' or 'act"):
        write_onnx(policy, tmp_path / "policy.onnx")


def test_a_policy_of_masked_actions_says_that_it_knows_no_masks(tmp_path: Path) -> None:
    policy = exported_policy("binary")
    policy.spec = replace(policy.spec, masked=True)
    with pytest.warns(UserWarning, match="acts by masks in a run, and an exported policy is given none"):
        lc.export(FakeLearner({"default_policy": policy}), tmp_path / "policy.onnx")


def test_onnx_needs_nothing_but_the_standard_operators() -> None:
    model = build_model(exported_policy("image, shared"))
    assert {imported.domain for imported in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}


def test_a_wrong_model_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxNamespace, "gelu", lambda self, x: self.tanh(x))
    with pytest.raises(ConfigError, match="differs by"):
        write_onnx(exported_policy("shared"), tmp_path / "policy.onnx")
    assert not (tmp_path / "policy.onnx").exists()


class Scanning(PolicyModule):
    def forward_train(self, params: Any, batch: Any) -> Any:
        self.xp.scan(lambda carry, x: (carry, x), params["log_std"], batch["obs"])
        raise AssertionError("not reached")


def test_what_onnx_has_not_is_refused_by_name() -> None:
    policy = exported_policy("continuous")
    policy.spec = lc.RLModuleSpec(Scanning, policy.spec.observation_space, policy.spec.action_space)
    with pytest.raises(ConfigError, match=r"xp\.scan has no counterpart"):
        build_model(policy)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tanh", ()), ("elu", ()), ("gelu", ()), ("silu", ()), ("softplus", ()), ("leaky_relu", ()), ("erf", ()),
        ("log1p", ()), ("expm1", ()), ("square", ()), ("sign", ()), ("floor", ()), ("isfinite", ()), ("isnan", ()),
        ("clip", (-0.5, 0.5)), ("softmax", (-1,)), ("log_softmax", (1,)), ("argmax", (-1,)), ("cumulative_sum", (1,)),
        ("sum", (-1,)), ("mean", (1, True)), ("max", ((1, 2),)), ("min", (-1,)), ("prod", (2,)), ("logsumexp", (-1,)),
        ("any", (-1,)), ("all", (1,)), ("reshape", ((-1, 12),)), ("permute_dims", ((0, 2, 1),)), ("expand_dims", (1,)),
        ("maximum", (0.25,)), ("minimum", (0.25,)), ("pow", (2.0,)), ("zeros_like", ()), ("full_like", (3.0,)),
    ],
)  # fmt: skip
def test_every_function_means_what_numpy_means(name: str, arguments: tuple[Any, ...], tmp_path: Path) -> None:
    from onnx import helper

    x = np.random.default_rng(0).normal(size=(7, 3, 4)).astype(np.float32)
    if name == "log1p":
        x = np.abs(x)
    if name in ("any", "all"):
        x = x > 0.5
    graph = Graph()
    xp = OnnxNamespace(graph)
    symbol = graph.input("x", x)
    out = getattr(xp, name)(symbol, *arguments)
    kind = helper.np_dtype_to_tensor_dtype
    proto = helper.make_graph(
        [*graph.nodes, helper.make_node("Identity", [out.name], ["out"])],
        "one",
        [helper.make_tensor_value_info("x", kind(x.dtype), x.shape)],
        [helper.make_tensor_value_info("out", kind(out.dtype), None)],
        [onnx.numpy_helper.from_array(value, key) for key, value in graph.constants.items()],
    )
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    expected = getattr(numpy_xp, name)(x, *arguments)
    got = run_model(path, {"x": x})["out"]
    assert got.dtype == np.asarray(expected).dtype == out.dtype
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_safetensors_hold_every_weight_bit_by_bit(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    policy = exported_policy("continuous")
    policy.params["pi.0.weight"] = np.asfortranarray(policy.params["pi.0.weight"])
    written = lc.export(FakeLearner({"default_policy": policy}), tmp_path / "a.safetensors")
    arrays = load_file(written)
    assert arrays.keys() == policy.params.keys()
    for name, value in policy.params.items():
        np.testing.assert_array_equal(arrays[name], value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_several_modules_have_their_names_in_front(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    both = {"left": exported_policy("discrete"), "right": exported_policy("continuous")}
    arrays = load_file(lc.export(FakeLearner(both), tmp_path / "a.safetensors"))
    assert {name.split(".", 1)[0] for name in arrays} == {"left", "right"}
    with pytest.raises(ConfigError, match="left, right"):
        lc.export(FakeLearner(both), tmp_path / "a.onnx")
    lc.export(FakeLearner(both), tmp_path / "a.onnx", module_id="left")
    with pytest.raises(ConfigError, match="Did you mean 'left'"):
        lc.export(FakeLearner(both), tmp_path / "a.onnx", module_id="lefd")


def test_formats_follow_the_suffix_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    learner = FakeLearner({"default_policy": exported_policy("discrete")})
    assert lc.export(learner, tmp_path / "a.onnx").read_bytes()
    with pytest.raises(ConfigError, match=r"\.bin"):
        lc.export(learner, tmp_path / "a.bin")
    with pytest.raises(ConfigError, match="Did you mean 'onnx'"):
        lc.export(learner, tmp_path / "a.bin", to="onxx")
    with pytest.raises(ConfigError, match="Learner, LearnerGroup or Algorithm"):
        lc.export(object(), tmp_path / "a.onnx")


@pytest.mark.parametrize("suffix", ["onnx", "safetensors"])
def test_a_state_without_modules_is_refused(suffix: str, tmp_path: Path) -> None:
    lc.save_state(tmp_path / "state", {"schema": 1, "rl_module": {}, "buffers": {}})
    with pytest.raises(StateError, match="rl_module: there is no module"):
        lc.export(tmp_path / "state", tmp_path / f"policy.{suffix}")
    assert not (tmp_path / f"policy.{suffix}").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"policy\.onnx cannot be written: there is no folder .*absent; make it first"
    ):
        lc.export(tmp_path / "any.lcstate", tmp_path / "absent" / "policy.onnx")


def test_a_learners_state_file_gives_weights_but_no_policy(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    params = exported_policy("discrete").params
    lc.save_state(tmp_path / "s.lcstate", {"rl_module": {"default_policy": params}, "buffers": {}})
    arrays = load_file(lc.export(tmp_path / "s.lcstate", tmp_path / "a.safetensors"))
    assert arrays.keys() == params.keys()
    with pytest.raises(ConfigError, match="export the Learner itself"):
        lc.export(tmp_path / "s.lcstate", tmp_path / "a.onnx")
    lc.save_state(tmp_path / "other.lcstate", {"x": 1})
    with pytest.raises(StateError, match="neither of an Algorithm nor of a Learner"):
        lc.export(tmp_path / "other.lcstate", tmp_path / "a.onnx")
    with pytest.raises(StateError, match=r"without a checkpoint"):
        lc.export(tmp_path / "..", tmp_path / "a.onnx")


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ConfigError, match=r"learner-core\[export\]"):
        export_file.require("onnx", "export")
