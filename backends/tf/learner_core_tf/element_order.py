"""In which order a Keras network's layers see the elements of maps: those of a model channels last, or not.

Records the network's operations once and follows every element through them, by the rules of the core. What a model
computes channels last in the ordinary way is in order everywhere; where it moves axes by itself, the weights that
follow are stored in order, or, where the order is not known, said to be not portable, and why.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from learner_core.learning import element_order as rules
from learner_core.learning.element_order import Elements, Lost, NotFollowedError
from learner_core.xp import ArrayTree

from .operations import run, static_value

__all__ = ["ELEMENTWISE", "POOLS", "REDUCTIONS", "SHAPES", "LayerCall", "Orders", "Recorded", "read_orders", "record"]

#: Plain (element_order.py of the core), of a shape that is not known.
_ALIKE = Elements(np.zeros(0, np.int64))
Tracked = Elements | Lost

ELEMENTWISE = frozenset(
    "Identity StopGradient Cast Snapshot PreventGradient CheckNumerics EnsureShape Relu Relu6 Elu Selu LeakyRelu "
    "Sigmoid Tanh Softplus Softsign Exp Expm1 Log Log1p Neg Abs Sqrt Rsqrt Square Erf Erfc Sign Floor Ceil Round Rint "
    "Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Reciprocal Inv LogicalNot IsNan IsInf IsFinite Add AddV2 "
    "Sub Mul RealDiv Div DivNoNan TruncateDiv FloorDiv FloorMod Mod Maximum Minimum Pow SquaredDifference Xdivy Xlogy "
    "Atan2 Greater GreaterEqual Less LessEqual Equal NotEqual LogicalAnd LogicalOr Select SelectV2 BiasAdd AddN "
    "ClipByValue".split()
)
#: They treat whole lines alike, and keep the places in them.
_LINES = frozenset("Softmax LogSoftmax".split())
SHAPES = frozenset("Reshape ExpandDims Squeeze".split())
_MOVES = frozenset("StridedSlice Slice Split SplitV Unpack GatherV2 Roll DepthToSpace SpaceToDepth Transpose".split())
#: Along axes: both layouts do the same to the same elements in the same order.
_SCANS = frozenset("Cumsum Cumprod CumulativeLogsumexp ReverseV2".split())
_COPIES = frozenset("BroadcastTo Tile".split())
_PADS = frozenset("Pad PadV2 MirrorPad".split())
REDUCTIONS = frozenset("Mean Sum Max Min Prod All Any EuclideanNorm".split())
POOLS = frozenset(
    "MaxPool MaxPoolV2 AvgPool MaxPool3D AvgPool3D ResizeBilinear ResizeNearestNeighbor ResizeBicubic "
    "ResizeArea".split()
)
#: Layers whose results are known, whatever operations they are made of.
_KNOWN = (layers.LSTM, layers.GRU, layers.RNN, layers.Bidirectional, layers.MultiHeadAttention)


@dataclass
class Orders:
    """What a recorded forward pass tells; variables by ``id`` of Keras' object.

    Attributes:
        columns: variable -> (its axis, for each entry along it the place it has in the state).
        reasons: variable -> why its order is not known.
        outputs: why the outputs themselves are not in order, by the output's name.
        reordered: somewhere it has arrays that have another order channels last.
    """

    columns: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    reordered: bool = False


@dataclass(frozen=True)
class Recorded:
    """A network's operations.

    Attributes:
        operations: in the order in which they were recorded.
        calls: of layers whose results are known, and of dense ones.
        inputs: the observations' leaves.
        outputs: (name, tensor) of what the network returns.
        variables: ``id`` of Keras' object -> the object.
        captured: ``id`` of a graph's tensor -> variable, by ``id``.
        graph: kept, for the tensors' sake.
    """

    operations: list[tf.Operation]
    calls: list[LayerCall]
    inputs: list[tf.Tensor]
    outputs: list[tuple[str, tf.Tensor]]
    variables: dict[int, Any]
    captured: dict[int, int]
    graph: tf.Graph


def record(network: keras.Model, obs: ArrayTree) -> Recorded:
    """Record ``network(obs)``.

    Args:
        network: built.
        obs: array or nested dict of arrays, two rows.
    """
    graph = tf.__internal__.FuncGraph("orders")
    calls: list[LayerCall] = []
    with graph.as_default(), _watched(network, calls), _inlined():
        inputs = tf.nest.map_structure(lambda x: tf.compat.v1.placeholder(x.dtype, x.shape), obs)
        outputs = network(inputs, training=False)
    handles = {id(v.value.handle): v for v in network.variables if hasattr(v.value, "handle")}
    captured = {id(inside): id(handles[id(out)]) for out, inside in graph.captures if id(out) in handles}
    variables = {id(v): v for v in network.variables}
    flat, named = tf.nest.flatten(inputs), list(_named(outputs))
    return Recorded(graph.get_operations(), calls, flat, named, variables, captured, graph)


def read_orders(recorded: Recorded) -> Orders:
    """Follow the elements of the observations through what a network computes."""
    follower = _Follower(recorded.captured)
    for tensor in recorded.inputs:
        follower.set(tensor, rules.fresh(tuple(tensor.shape), raw=True))
    follower.walk(recorded.operations, recorded.calls)
    for name, tensor in recorded.outputs:
        follower.note_output(name, tensor)
    return follower.orders


def _named(outputs: ArrayTree) -> Iterator[tuple[str, tf.Tensor]]:
    if isinstance(outputs, Mapping):
        yield from outputs.items()
    else:
        values = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        yield from zip(("action_dist_inputs", "vf_preds"), values, strict=False)


@contextlib.contextmanager
def _inlined() -> Iterator[None]:
    """Functions that the network is made of are recorded as what they do."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


@dataclass
class LayerCall:
    """One call of a layer: its tensors, and the operations that it recorded."""

    layer: layers.Layer
    start: int
    stop: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[tf.Tensor]
    outputs: list[tf.Tensor]

    @property
    def is_whole(self) -> bool:
        """Whether what it is made of is not looked into."""
        return type(self.layer) in _KNOWN


@contextlib.contextmanager
def _watched(network: keras.Model, calls: list[LayerCall]) -> Iterator[None]:
    """Note the calls of layers that an order or a proof may have to know as a whole."""
    watched = [layer for layer in network._flatten_layers() if type(layer) in (*_KNOWN, layers.Dense)]
    for layer in watched:
        object.__setattr__(layer, "call", _noting(layer, layer.call, calls))
    try:
        yield
    finally:
        for layer in watched:
            object.__delattr__(layer, "call")


def _noting(layer: layers.Layer, call: Callable[..., ArrayTree], calls: list[LayerCall]) -> Callable[..., ArrayTree]:
    def noted(*args: object, **kwargs: object) -> ArrayTree:
        graph = tf.compat.v1.get_default_graph()
        start = len(graph.get_operations())
        outputs = call(*args, **kwargs)
        inputs = [x for x in tf.nest.flatten([args, kwargs]) if isinstance(x, tf.Tensor)]
        flat = [x for x in tf.nest.flatten(outputs) if isinstance(x, tf.Tensor)]
        calls.append(LayerCall(layer, start, len(graph.get_operations()), args, kwargs, inputs, flat))
        return outputs

    noted.__signature__ = inspect.signature(call)  # type: ignore[attr-defined]
    return noted


class _Follower:
    """Follows elements through recorded operations."""

    def __init__(self, captured: dict[int, int]) -> None:
        self.orders = Orders()
        self._states: dict[int, Tracked] = {}
        self._captured = captured
        #: A tensor that depends on weights alone -> the variables it is made of.
        self._learned: dict[int, frozenset[int]] = {}
        #: A tensor that is a variable as it is, but for its dtype and leading axes of length 1.
        self._variable: dict[int, int] = {}

    def set(self, tensor: tf.Tensor, state: Tracked) -> None:
        self.orders.reordered = self.orders.reordered or not _is_plain(state)
        self._states[id(tensor)] = state

    def note_output(self, name: str, tensor: tf.Tensor) -> None:
        state = self._states.get(id(tensor))
        if isinstance(state, Lost):
            self.orders.outputs[str(name)] = state.reason
        elif state is not None and not _is_plain(state) and not state.in_order:
            self.orders.outputs[str(name)] = "its elements are in another order than they are channels last"
        elif state is None and not self._learned.get(id(tensor)):
            self.orders.outputs[str(name)] = "it is not computed from observations by operations that can be followed"

    def walk(self, operations: list[tf.Operation], calls: list[LayerCall]) -> None:
        """All operations, in the order in which they were recorded."""
        outermost = {c.start: c for c in sorted(calls, key=lambda c: c.stop) if c.is_whole}
        index = 0
        while index < len(operations):
            call = outermost.get(index)
            if call is not None and call.stop > index:
                self._layer(call)
                index = call.stop
                continue
            self._operation(operations[index])
            index += 1

    # ------------------------------------------------------------------ layers

    def _layer(self, call: LayerCall) -> None:
        states = [self._states.get(id(tensor)) for tensor in call.inputs]
        known = [state for state in states if state is not None]
        if not known:
            return
        try:
            if not all(map(_is_plain, known)):
                self._tokens(call, states)
            return
        except NotFollowedError as error:
            for variable in call.layer.variables:
                self.orders.reasons[id(variable)] = str(error)
        finally:
            for tensor in call.outputs:
                if id(tensor) not in self._states:
                    self.set(tensor, _fresh(tensor))

    def _tokens(self, call: LayerCall, states: list[Tracked | None]) -> None:
        """Tokens [rows, tokens, features] whose tokens have another order channels last, their features the same."""
        lost = next((state for state in states if isinstance(state, Lost)), None)
        if lost is not None or len(states) > 3 or type(call.layer) is not layers.MultiHeadAttention:
            raise NotFollowedError(lost.reason if lost else "its inputs have another order channels last")
        for state in states:
            if not isinstance(state, Elements):
                raise NotFollowedError("it reads tokens that do not depend on observations beside others")
            rules.kept_along(state, -1, "it")
        for tensor in call.outputs[:1]:
            query = states[0]
            assert isinstance(query, Elements)
            self.set(tensor, rules.mixed(query, -1, int(tensor.shape[-1]))[1])
        for tensor in call.outputs[1:]:
            self.set(tensor, Lost("attention weights of tokens that have another order channels last"))

    # ------------------------------------------------------------------ one operation

    def _operation(self, op: tf.Operation) -> None:
        states = [self._states.get(id(tensor)) for tensor in op.inputs]
        known = [state for state in states if state is not None]
        if not known:
            self._of_weights(op)
            return
        lost = next((state for state in known if isinstance(state, Lost)), None)
        try:
            if lost is not None:
                raise NotFollowedError(lost.reason)
            results = self._follow(op, states)
        except NotFollowedError as error:
            results = self._lose(op, lost.reason if lost is not None else f"{op.type} ({op.name}): {error}")
        except Exception as error:
            reason = f"{op.type} ({op.name}): it cannot be followed ({type(error).__name__}: {error})"
            results = self._lose(op, reason)
        for tensor, state in zip(op.outputs, results, strict=True):
            shape = tuple(tensor.shape) if tensor.shape.is_fully_defined() else None
            misfit = isinstance(state, Elements) and state is not _ALIKE and state.shape != shape
            other = Lost(f"{op.type} ({op.name}): its result has another shape than it should have")
            self.set(tensor, other if misfit else state)

    def _lose(self, op: tf.Operation, reason: str) -> list[Tracked]:
        """The operation's weights stand in places that are not known; what a matrix makes of rows is in order."""
        names = frozenset[int]().union(*(self._learned.get(id(tensor), frozenset()) for tensor in op.inputs))
        for name in names:
            self.orders.reasons.setdefault(name, reason)
        if op.type == "MatMul" and names:
            return [_fresh(tensor) for tensor in op.outputs]
        return [Lost(reason)] * len(op.outputs)

    def _of_weights(self, op: tf.Operation) -> None:
        if op.type == "ReadVariableOp" and id(op.inputs[0]) in self._captured:
            variable = self._captured[id(op.inputs[0])]
            self._learned[id(op.outputs[0])] = frozenset([variable])
            self._variable[id(op.outputs[0])] = variable
            return
        names = frozenset[int]().union(*(self._learned.get(id(tensor), frozenset()) for tensor in op.inputs))
        for tensor in op.outputs:
            if names:
                self._learned[id(tensor)] = names
            if op.type in ("Identity", "Cast", "ExpandDims") and id(op.inputs[0]) in self._variable:
                self._variable[id(tensor)] = self._variable[id(op.inputs[0])]

    # ------------------------------------------------------------------ the rules, by type

    def _follow(self, op: tf.Operation, states: list[Tracked | None]) -> list[Tracked]:
        known = [state for state in states if isinstance(state, Elements)]
        kind = op.type
        if any(state is _ALIKE for state in known) or not all(t.shape.is_fully_defined() for t in op.outputs):
            return self._unknown(op, known)
        self._weights_fit(op, known)
        if kind in _LINES:
            return [rules.lines(known[0], "it")]
        if kind in ELEMENTWISE:
            operands = [state if isinstance(state, Elements) else None for state in states]
            shapes = [tuple(tensor.shape) for tensor in op.inputs]
            return [rules.combined(operands, shapes, tuple(op.outputs[0].shape))]
        if kind in ("ConcatV2", "Pack"):
            return [self._join(op, states)]
        if kind in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
            return [self._multiply(op, states)]
        if kind in ("Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput"):
            return [self._convolve(op, states)]
        place = next(i for i, state in enumerate(states) if state is not None)
        first = known[0]
        if len(known) > 1 or place != (kind == "Split"):
            return self._unknown(op, known)
        shape = tuple(op.outputs[0].shape)
        if kind in SHAPES:
            return [rules.reshaped(first, shape)]
        if kind in _MOVES:
            parts, along = _on_numbers(op, place, first.numbers), _picks_along(op, first)
            settings = {"axes": kind == "Transpose", "shuffles": kind in ("DepthToSpace", "SpaceToDepth")}
            return [rules.moved(first, functools.partial(_picked, part), along=along, **settings) for part in parts]
        if kind in _SCANS:
            for axis in np.ravel(_static(op.inputs[1])):
                rules.kept_along(first, int(axis), "it")
            return [first]
        if kind == "TopKV2":
            return list(rules.ranked(first, -1, shape[-1]))
        if kind in _COPIES:
            copies = _on_numbers(op, place, first.numbers)[0]
            return [rules.spread(first, lambda _: copies)]
        if kind in _PADS:
            return [rules.padded(first, shape)]
        if kind in REDUCTIONS:
            axes = [int(axis) % max(first.numbers.ndim, 1) for axis in np.ravel(_static(op.inputs[1]))]
            return [rules.reduced(first, axes, keepdims=op.get_attr("keep_dims"))]
        if kind in POOLS:
            return [rules.mapped(first, -1, shape[1:-1])[1]]
        return self._unknown(op, known)

    def _unknown(self, op: tf.Operation, known: list[Elements]) -> list[Tracked]:
        if not all(map(_is_plain, known)):
            raise NotFollowedError("what it does to elements that have another order channels last is not known")
        return [_fresh(tensor) for tensor in op.outputs]

    def _weights_fit(self, op: tf.Operation, known: list[Elements]) -> None:
        """Weights that meet elements one by one must meet those that are in order."""
        if op.type not in ELEMENTWISE or all(map(_is_plain, known)):
            return
        for tensor in op.inputs:
            names = self._learned.get(id(tensor), frozenset())
            if names and not all(rules.aligned(elements, tuple(tensor.shape)) for elements in known):
                for name in names:
                    reason = f"{op.type} ({op.name}): it is used on elements that have another order channels last"
                    self.orders.reasons.setdefault(name, reason)

    def _columns(self, tensor: tf.Tensor, axis: int, order: np.ndarray) -> None:
        """The weight has its entries along an axis, counted from the end, in that order."""
        out_of_order = bool((np.diff(order) < 0).any())
        variable = self._variable.get(id(tensor))
        if variable is None:
            if out_of_order:
                raise NotFollowedError("it is used with a computed weight on elements in another order channels last")
            return
        known = self.orders.columns.setdefault(variable, (axis, order))
        if not np.array_equal(known[1], order):
            raise NotFollowedError("its weight is used on inputs in different orders")

    def _join(self, op: tf.Operation, states: list[Tracked | None]) -> Tracked:
        rank = len(op.outputs[0].shape)
        stacked = op.type == "Pack"
        axis = int(op.get_attr("axis") if stacked else _static(op.inputs[-1])) % rank
        parts = []
        for tensor, state in zip(op.inputs, states, strict=True):
            if not stacked and tensor is op.inputs[-1]:
                continue
            shape, elements = tuple(tensor.shape), state if isinstance(state, Elements) else None
            if stacked:
                shape = (*shape[:axis], 1, *shape[axis:])
                elements = elements and rules.moved(elements, lambda numbers: np.expand_dims(numbers, axis))
            parts.append((elements, shape))
        return rules.joined(parts, axis, stacked=stacked)

    def _multiply(self, op: tf.Operation, states: list[Tracked | None]) -> Tracked:
        flags = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
        turned = [bool(op.get_attr(flag)) for flag in flags]
        sides = [
            rules.moved(state, lambda numbers: np.swapaxes(numbers, -1, -2), axes=True)
            if turn and isinstance(state, Elements)
            else state
            for state, turn in zip(states, turned, strict=True)
        ]
        left, right = sides
        if isinstance(left, Elements) and isinstance(right, Elements):
            return rules.multiplied(left, right)
        if isinstance(left, Elements):
            order, made = rules.mixed(left, -1, int(op.outputs[0].shape[-1]))
            weight = op.inputs[1]
            if turned[1] or len(weight.shape) != 2:
                rules.kept_along(left, -1, "it")
            else:
                self._columns(weight, 0, order)
            return made
        return self._unknown(op, [state for state in states if isinstance(state, Elements)])[0]

    def _convolve(self, op: tf.Operation, states: list[Tracked | None]) -> Tracked:
        backwards = op.type == "Conv2DBackpropInput"
        maps, weight = states[2 if backwards else 0], op.inputs[1]
        if op.get_attr("data_format") not in (b"NHWC", b"NDHWC") or not isinstance(maps, Elements):
            raise NotFollowedError("it computes channels first, or with weights that depend on observations")
        shape = tuple(op.outputs[0].shape)
        outputs = None if op.type == "DepthwiseConv2dNative" and shape[-1] == maps.shape[-1] else shape[-1]
        order, made = rules.mapped(maps, -1, shape[1:-1], outputs)
        groups = op.type == "Conv2D" and int(weight.shape[-2]) != maps.shape[-1]
        if op.type == "Conv2D" and not groups:
            variable = next((v for v in [self._variable.get(id(weight))] if v is not None), None)
            rank = 3 if variable is not None and op.inputs[1].op.type == "ExpandDims" else 4
            self._columns(weight, rank - 2, order)
        elif (np.diff(order) < 0).any():
            raise NotFollowedError("the channels that it reads have another order channels last")
        return made


def _picked(part: np.ndarray, _: np.ndarray) -> np.ndarray:
    return part


def _fresh(tensor: tf.Tensor) -> Elements:
    return rules.fresh(tuple(tensor.shape)) if tensor.shape.is_fully_defined() else _ALIKE


def _is_plain(state: Tracked) -> bool:
    return state is _ALIKE or (isinstance(state, Elements) and state.plain)


def _picks_along(op: tf.Operation, elements: Elements) -> list[int]:
    """The axes along which it tells entries apart by their places."""
    ndim = elements.numbers.ndim
    if op.type in ("Transpose", "DepthToSpace", "SpaceToDepth"):
        return []
    if op.type == "StridedSlice" and not op.get_attr("ellipsis_mask") and not op.get_attr("new_axis_mask"):
        whole = op.get_attr("begin_mask") & op.get_attr("end_mask")
        forwards = [int(stride) == 1 for stride in np.ravel(_static(op.inputs[3]))]
        return [axis for axis, forward in enumerate(forwards) if not (forward and whole >> axis & 1)]
    if op.type in ("Split", "SplitV", "GatherV2", "Roll"):
        place = {"Split": 0, "SplitV": 2, "GatherV2": 2, "Roll": 2}[op.type]
        return [int(axis) % ndim for axis in np.ravel(_static(op.inputs[place]))]
    return [int(op.get_attr("axis")) % ndim] if op.type == "Unpack" else list(range(ndim))


def _static(tensor: tf.Tensor) -> np.ndarray:
    value = static_value(tensor)
    if value is None:
        raise NotFollowedError("where its elements go depends on data")
    return value


def _on_numbers(op: tf.Operation, place: int, numbers: np.ndarray) -> list[np.ndarray]:
    """An operation run on numbers in place of one of its inputs, the others as they are known."""
    inputs = [numbers if index == place else _static(tensor) for index, tensor in enumerate(op.inputs)]
    return [np.asarray(part) for part in run(op, inputs)]
