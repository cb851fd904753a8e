"""A policy as an ONNX model, checked against what numpy computes before it is handed over."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import numpy_xp, spaces
from ..errors import ConfigError
from ..xp import Array, ArrayTree
from .onnx_graph import OPSET, ROWS, Graph, Symbol
from .onnx_xp import OnnxNamespace
from .source import ExportedPolicy, nest, require, sample_state

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

__all__ = ["build_model", "write_onnx"]

_TOLERANCE = 1e-5


def build_model(policy: ExportedPolicy) -> ModelProto:
    """The policy as an ``onnx.ModelProto``.

    Inputs are the observations: ``obs``, or ``obs/<key>`` for each leaf of a dict. Outputs: ``actions``, the most
    likely ones in the action space's own units; ``action_dist_inputs``; ``vf_preds`` where the module gives them. A
    policy with a memory has the inputs ``state_in/<leaf>``, zeros at an episode's start, and the outputs
    ``state_out/<leaf>``, which are the next step's.

    Args:
        policy: of a portable module.

    Raises:
        ConfigError: a network of one framework, or a module that uses what ONNX has not; no onnx is installed.
    """
    require("onnx", "export")
    from onnx import checker, helper, numpy_helper

    spec = policy.require_neutral("onnx")
    graph = Graph()
    xp = OnnxNamespace(graph)
    samples = sample_observations(policy, ROWS)
    inputs = {name: graph.input(name, sample) for name, sample in samples.items()}
    module = spec.build(xp)
    params = {name: graph.constant(value, name) for name, value in policy.params.items()}
    obs = nest(inputs)
    state = {leaf: graph.input(f"state_in/{leaf}", value) for leaf, value in sample_state(module, ROWS).items()}
    inputs.update({f"state_in/{leaf}": symbol for leaf, symbol in state.items()})
    named = _flat(policy.act(module, params, policy.normalized(xp, obs), state))

    def info(name: str, symbol: Symbol) -> ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(symbol.dtype)
        return helper.make_tensor_value_info(name, kind, ["batch", *symbol.sample.shape[1:]])

    for name, symbol in named.items():
        graph.nodes.append(helper.make_node("Identity", [symbol.name], [name]))
        if symbol.constant:
            graph.constants[symbol.name] = symbol.sample
    proto = helper.make_graph(
        graph.nodes,
        "policy",
        [info(name, symbol) for name, symbol in inputs.items()],
        [info(name, symbol) for name, symbol in named.items()],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in graph.constants.items()],
    )
    model = helper.make_model(
        proto, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="learner-core", ir_version=9
    )
    checker.check_model(model)
    return model


def write_onnx(policy: ExportedPolicy, path: Path) -> None:
    """Write the model; where onnxruntime is installed, only after its answers equal numpy's.

    Raises:
        ConfigError: as :func:`build_model`, or the answers differ.
    """
    model = build_model(policy)
    if importlib.util.find_spec("onnxruntime") is not None:
        _check(model, policy)
    path.write_bytes(model.SerializeToString())


def _check(model: ModelProto, policy: ExportedPolicy) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    samples, state = sample_observations(policy, 3), sample_state(policy.require_spec("onnx").build(numpy_xp), 3)
    names = [output.name for output in session.get_outputs()]
    given = {**samples, **{f"state_in/{leaf}": value for leaf, value in state.items()}}
    answers = dict(zip(names, session.run(names, given), strict=True))
    expected = _flat(policy.answer(nest(samples), state))
    for name, value in expected.items():
        if name in answers and not np.allclose(answers[name], value, rtol=_TOLERANCE, atol=_TOLERANCE):
            error = float(np.abs(answers[name] - value).max())
            raise ConfigError(f"onnx: output {name!r} differs by {error:.2g} from what numpy computes; nothing written")


def _flat(answers: Mapping[str, ArrayTree]) -> dict[str, Array]:
    """A policy's answers with the leaves of its state as ``state_out/<leaf>``."""
    flat = dict(answers)
    state = flat.pop("state_out", {})
    return {**flat, **{f"state_out/{leaf}": value for leaf, value in state.items()}}


def sample_observations(policy: ExportedPolicy, rows: int) -> dict[str, np.ndarray]:
    """input name -> random observations [rows, ...], within the space's bounds."""
    rng = np.random.default_rng(0)
    space = policy.require_spec("onnx").observation_space
    space.seed(int(rng.integers(2**31)))
    drawn = [spaces.to_columns(space, space.sample()) for _ in range(rows)]

    def stack(parts: list[ArrayTree], path: str) -> dict[str, np.ndarray]:
        if isinstance(parts[0], Mapping):
            out: dict[str, np.ndarray] = {}
            for key in parts[0]:
                out.update(stack([part[key] for part in parts], f"{path}/{key}"))
            return out
        array = np.stack([np.asarray(part) for part in parts])
        return {path: array.astype(np.float32) if array.dtype.kind == "f" else array}

    return stack(drawn, "obs")
