"""A Keras network's recorded operations run once more in both layouts: whether what was read of them holds.

Runs them on random numbers, in float64 but for recurrent and attention layers, which are called as a whole, and carries
each array's second value along (``layout_proof.py`` of the core). Variables have random values, too, and as their
second one what the state would hold, in Keras' shape. Nothing of the network or of the process is changed by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from learner_core.learning import layout_proof as rules
from learner_core.learning.layout_proof import Nesting, NotProvedError, Within
from learner_core.xp import ArrayTree

from .element_order import ELEMENTWISE, POOLS, REDUCTIONS, SHAPES, LayerCall, Recorded
from .operations import run, static_value

__all__ = ["Proof", "prove"]

_PRODUCTS = frozenset("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3".split())
_CONVOLUTIONS = frozenset("Conv2D Conv3D DepthwiseConv2dNative Conv2DBackpropInput Conv3DBackpropInputV2".split())
#: They move elements in ways that no axis tells; the analysis stores what follows as if they had stayed.
_ELSEWHERE = frozenset("DepthToSpace SpaceToDepth GatherV2 GatherNd Roll".split())
_WIDE = {tf.float32: tf.float64, tf.bfloat16: tf.float64, tf.float16: tf.float64}


@dataclass(frozen=True)
class Proof:
    """What came of it.

    Attributes:
        wrong: ``id`` of the variables of the first place where the layouts differ -> why.
        outputs: outputs that differ, where no variable is to blame -> why.
        skipped: why there is no proof, "" where there is.
    """

    wrong: Mapping[int, str]
    outputs: Mapping[str, str]
    skipped: str = ""


def prove(recorded: Recorded, obs: ArrayTree, columns: Mapping[int, tuple[int, np.ndarray]]) -> Proof:
    """Run what was recorded in both layouts.

    Args:
        recorded: of the network.
        obs: random ones, array or nested dict of arrays.
        columns: variable -> (its axis, for each entry along it the place it has in the state).
    """
    try:
        rules.check_size(sum(int(np.prod(v.shape)) for v in recorded.variables.values()))
        second = _Second(recorded, columns)
        second.run(tf.nest.flatten(obs))
        if not (wrong := second.wrong()):
            return Proof({}, {})
        where, names = second.place()
        reason = f"{where}: {rules.DIFFERS}" if where else rules.DIFFERS
        return Proof(dict.fromkeys(names, reason), {} if names else dict.fromkeys(wrong, reason))
    except NotProvedError as error:
        return Proof({}, {}, str(error))
    except Exception as error:  # an operation with arguments that nobody thought of
        return Proof({}, {}, f"it does not run on random numbers ({type(error).__name__}: {error})")


@dataclass(frozen=True)
class _Both:
    """A tensor's value, its second one, and how its axes are nested."""

    value: tf.Tensor
    second: tf.Tensor
    nesting: Nesting
    within: Within

    @property
    def same(self) -> bool:
        return self.value is self.second


class _Second:
    """Values of recorded tensors in both layouts."""

    def __init__(self, recorded: Recorded, columns: Mapping[int, tuple[int, np.ndarray]]) -> None:
        self._recorded = recorded
        self._columns = columns
        self._values: dict[int, _Both] = {}
        self._names: dict[int, frozenset[int]] = {}  # a tensor made of variables alone -> those
        self._steps: list[tuple[str, list[Any], list[Any], frozenset[int]]] = []
        self._tolerance = rules.TOLERANCES["float64"]
        rng = np.random.default_rng(0)
        self._variables: dict[int, tuple[Any, Any]] = {}
        for key, variable in recorded.variables.items():
            like = variable.value.numpy()
            if not np.issubdtype(like.dtype, np.floating) and like.dtype.name != "bfloat16":
                self._variables[key] = (variable.value, variable.value)
                continue
            made = rules.proof_values(variable.path, like, rng)
            axis, order = columns.get(key, (0, np.arange(0)))
            value = tf.constant(made)
            turned = bool((np.diff(order) < 0).any())
            other = tf.constant(np.take(made, np.argsort(order), axis)) if turned else value
            self._variables[key] = (value, other)

    def run(self, obs: list[tf.Tensor]) -> None:
        """All operations, in the order in which they were recorded."""
        for tensor, value in zip(self._recorded.inputs, obs, strict=True):
            wide = tf.cast(value, tf.float64) if tensor.dtype.is_floating else tf.cast(value, tensor.dtype)
            self._set(tensor, wide, wide, rules.own_order(len(tensor.shape)))
        starts = {c.start: c for c in sorted(self._recorded.calls, key=lambda c: c.stop)}
        index = 0
        while index < len(self._recorded.operations):
            call = starts.get(index)
            if call is not None and call.stop > index and (call.is_whole or self._is_turned(call)):
                self._layer(call)
                index = call.stop
                continue
            self._operation(self._recorded.operations[index])
            index += 1

    def _is_turned(self, call: LayerCall) -> bool:
        """Whether it is called on other axes than its own operations could be followed through."""
        known = [self._values[id(tensor)].nesting for tensor in call.inputs if id(tensor) in self._values]
        return any(nesting != rules.own_order(len(nesting)) for nesting in known)

    def wrong(self) -> list[str]:
        """Outputs that are not the same in both layouts."""
        wrong: list[str] = []
        for name, tensor in self._recorded.outputs:
            both = self._values.get(id(tensor))
            if both is not None and not both.same and not self._agrees(both, anywhere=False):
                wrong.append(name)
        return wrong

    def place(self) -> tuple[str, frozenset[int]]:
        """The first operation whose inputs agree, in whatever order, and whose results do not; variables it used."""
        for what, inputs, made, names in self._steps:
            before = [self._values[id(tensor)] for tensor in inputs if id(tensor) not in self._names]
            after = [self._values[id(tensor)] for tensor in made]
            if all(self._agrees(both) for both in before) and not all(self._agrees(both) for both in after):
                return what, names
        return "", frozenset()

    def _agrees(self, both: _Both, *, anywhere: bool = True) -> bool:
        if both.same or not both.value.dtype.is_floating:
            return True
        one, other = (tf.cast(value, tf.float64).numpy() for value in (both.value, both.second))
        return rules.agree(one, other, self._tolerance, anywhere=anywhere)

    def _set(
        self, tensor: tf.Tensor, value: tf.Tensor, second: tf.Tensor, nesting: Nesting, within: Within | None = None
    ) -> None:
        if tuple(value.shape) != tuple(second.shape):
            raise NotProvedError("an operation's second value has another shape than it should have")
        self._values[id(tensor)] = _Both(value, second, nesting, within or {})

    # ------------------------------------------------------------------ layers

    def _layer(self, call: LayerCall) -> None:
        layer = call.layer
        self._tolerance = rules.TOLERANCES["float32"]
        inputs = [tensor for tensor in call.inputs if id(tensor) in self._values]
        made: list[list[Any]] = []
        for index in (0, 1):
            values = [(v, tf.cast(self._variables[id(v)][index], v.dtype)) for v in layer.variables]

            def given(x: ArrayTree, index: int = index) -> ArrayTree:
                if not isinstance(x, tf.Tensor):
                    return x
                both = self._values.get(id(x))
                value = static_value(x) if both is None else (both.value, both.second)[index]
                if value is None:
                    raise NotProvedError(f"{layer.name}: what it is given is not known")
                return tf.cast(value, x.dtype)

            args, kwargs = tf.nest.map_structure(given, (call.args, call.kwargs))
            with tf.init_scope(), keras.StatelessScope(state_mapping=values):
                outputs = layer.call(*args, **kwargs)
            flat = [x for x in tf.nest.flatten(outputs) if isinstance(x, tf.Tensor)]
            made.append([tf.cast(x, tf.float64) if x.dtype.is_floating else x for x in flat])
        nesting = self._values[id(inputs[0])].nesting if inputs else ()
        for tensor, value, second in zip(call.outputs, *made, strict=True):
            ndim = len(tensor.shape)
            axes = rules.innermost(nesting, -1) if len(nesting) == ndim else rules.own_order(ndim)
            self._set(tensor, value, second, axes)
        names = frozenset(id(variable) for variable in layer.variables)
        self._steps.append((f"{type(layer).__name__} {layer.name}", inputs, call.outputs, names))

    # ------------------------------------------------------------------ operations

    def _operation(self, op: tf.Operation) -> None:
        if op.type == "ReadVariableOp":
            variable = self._recorded.captured.get(id(op.inputs[0]))
            if variable is None:
                raise NotProvedError(f"{op.name}: it reads what is no variable of the network")
            ndim = len(op.outputs[0].shape)
            self._set(op.outputs[0], *self._variables[variable], rules.own_order(ndim))
            self._names[id(op.outputs[0])] = frozenset([variable])
            return
        if "Random" in op.type or "Multinomial" in op.type:
            raise NotProvedError(f"{op.type} ({op.name}): it draws random numbers")
        inputs = [tensor for tensor in op.inputs if id(tensor) in self._values]
        if not inputs:
            return
        if op.op_def.is_stateful or op.type in _ELSEWHERE:
            raise NotProvedError(f"{op.type} ({op.name}): how it is computed channels last is not followed here")
        if op.type == "NoOp" or not op.outputs:
            return
        known = [self._values[id(tensor)] for tensor in inputs]
        values = self._run(op, [self._value(tensor, second=False) for tensor in op.inputs])
        shape = tuple(op.outputs[0].shape)
        if op.type in SHAPES:
            shaped = rules.reshaped(known[0].nesting, known[0].within, tuple(inputs[0].shape), shape)
            second = values[0]
            if not (known[0].same and shaped.moves_nothing):
                second = tf.transpose(tf.reshape(tf.transpose(known[0].second, shaped.axes), shaped.shape), shaped.then)
            self._set(op.outputs[0], values[0], second, shaped.nesting, shaped.within)
        else:
            same = all(both.same for both in known)
            seconds = values if same else self._run(op, [self._value(tensor, second=True) for tensor in op.inputs])
            for tensor, value, second in zip(op.outputs, values, seconds, strict=True):
                within = next((both.within for both in known if both.within), {})
                kept = within if tensor.shape == inputs[0].shape else {}
                self._set(tensor, value, second, self._nested(op, inputs, known, tuple(tensor.shape)), kept)
        names = frozenset[int]().union(*(self._names.get(id(tensor), frozenset()) for tensor in inputs))
        if all(id(tensor) in self._names for tensor in inputs):
            for tensor in op.outputs:
                self._names[id(tensor)] = names
        else:
            self._steps.append((f"{op.type} ({op.name})", inputs, list(op.outputs), names))

    def _value(self, tensor: tf.Tensor, *, second: bool) -> tf.Tensor:
        both = self._values.get(id(tensor))
        if both is not None:
            return both.second if second else both.value
        value = static_value(tensor)
        if value is None:
            raise NotProvedError(f"{tensor.op.type} ({tensor.op.name}): its value is not known")
        return value.astype(np.float64) if tensor.dtype.is_floating else value

    def _run(self, op: tf.Operation, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
        return run(op, inputs, dtypes=_WIDE)

    def _nested(self, op: tf.Operation, inputs: list[tf.Tensor], known: list[_Both], shape: tuple[int, ...]) -> Nesting:
        """How the axes of a result are nested channels last."""
        kind, first, ndim = op.type, known[0].nesting, len(shape)
        before = len(inputs[0].shape)
        if kind == "Transpose":
            return rules.moved(first, [int(axis) for axis in self._static(op.inputs[1])])
        if kind in _CONVOLUTIONS or kind in POOLS:
            return rules.maps(ndim, -1)
        if kind in _PRODUCTS:
            return self._product(op, ndim)
        if kind == "Pack":
            return rules.inserted(first, int(op.get_attr("axis")) % ndim)
        if kind == "StridedSlice":
            return self._sliced(op, first, ndim)
        if kind == "Unpack":
            return rules.removed(first, [int(op.get_attr("axis")) % before])
        if kind in REDUCTIONS:
            gone = [int(axis) % before for axis in np.ravel(self._static(op.inputs[1]))]
            return first if ndim == before else rules.removed(first, gone)
        nestings = [both.nesting for both in known]
        if kind in ELEMENTWISE:
            return rules.together(nestings, [tuple(tensor.shape) for tensor in inputs], shape)
        if ndim == before:
            return next((nesting for nesting in nestings if nesting != rules.own_order(ndim)), first)
        if all(nesting == rules.own_order(len(nesting)) for nesting in nestings):
            return rules.own_order(ndim)
        raise NotProvedError(f"{kind} ({op.name}): how its axes stand channels last is not known")

    def _product(self, op: tf.Operation, ndim: int) -> Nesting:
        flags = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
        sides: list[Nesting] = []
        for tensor, flag in zip(op.inputs, flags, strict=True):
            own = self._values[id(tensor)].nesting if id(tensor) in self._values else rules.own_order(ndim)
            axes = [*range(len(own) - 2), len(own) - 1, len(own) - 2]
            sides.append(rules.moved(own, axes) if op.get_attr(flag) else own)
        if any(id(tensor) in self._names or id(tensor) not in self._values for tensor in op.inputs):
            return rules.innermost(sides[0], -1) if len(sides[0]) == ndim else rules.own_order(ndim)
        shapes = [list(tensor.shape) for tensor in op.inputs]
        for shape, flag in zip(shapes, flags, strict=True):
            shape[-2:] = shape[:-3:-1] if op.get_attr(flag) else shape[-2:]
        return rules.multiplied(sides[0], sides[1], (shapes[0], shapes[1]))

    def _sliced(self, op: tf.Operation, nesting: Nesting, ndim: int) -> Nesting:
        if nesting == rules.own_order(len(nesting)):
            return rules.own_order(ndim)
        new, gone = op.get_attr("new_axis_mask"), op.get_attr("shrink_axis_mask")
        if op.get_attr("ellipsis_mask") or (new and gone):
            raise NotProvedError(f"{op.type} ({op.name}): how its axes stand channels last is not known")
        nesting = rules.removed(nesting, [axis for axis in range(len(nesting)) if gone >> axis & 1])
        for axis in (axis for axis in range(ndim) if new >> axis & 1):
            nesting = rules.inserted(nesting, axis)
        return nesting

    def _static(self, tensor: tf.Tensor) -> np.ndarray:
        value = static_value(tensor)
        if value is None:
            raise NotProvedError(f"{tensor.op.name}: its value is not known")
        return value
