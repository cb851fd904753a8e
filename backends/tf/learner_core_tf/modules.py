"""A user's own ``keras.Model`` as an RLModule.

Needs Keras on its TensorFlow backend, and a model that computes in a ``StatelessScope``; the object the user gave is
read, not trained. Parameters appear in the state under their attribute path (layers in lists and in Sequential and
Functional models without a name of their own: by a number that counts those with weights), in Torch's layout
(``layouts.py``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf

from learner_core.backend import Backend, NetworkSpec
from learner_core.errors import ConfigError
from learner_core.learning.framework_modules import (
    FrameworkModule,
    describe,
    dummy_observations,
    make_network,
    random_observations,
)
from learner_core.xp import Array, Arrays, ArrayTree, Outputs

from .element_order import Orders, read_orders, record
from .layout_proof import prove
from .layouts import PACKED, Weight, reordered, weights_of
from .row_layers import over_all_rows, row_layers

__all__ = ["NetworkModule"]

#: Names of a weight -> an axis of its variable, and for each entry along it the place it has in the state.
_Orders: TypeAlias = dict[tuple[str, ...], tuple[int, np.ndarray]]

_NUMBERS = {2: "two", 3: "three"}


class NetworkModule(FrameworkModule):
    """The adapter.

    Args:
        spec: ``RLModuleSpec`` with its spaces; ``module_class`` an instance, a class or a function that makes one.
        backend: the TensorFlow backend.
        device: that it computes on.

    Raises:
        ConfigError: it is no Keras model, it fails on an observation, or it returns what no policy returns.
    """

    def __init__(self, spec: NetworkSpec, backend: Backend, device: str) -> None:
        super().__init__(spec.observation_space, spec.action_space, spec.model, backend.xp)
        if keras.backend.backend() != "tensorflow":
            raise ConfigError(
                f"Keras runs on {keras.backend.backend()!r} here; set KERAS_BACKEND=tensorflow before it is imported"
            )
        self._spec = spec
        self._backend = backend
        self._device = device
        self._network_name = describe(spec.module_class)
        self._dtype = "float64" if backend.precision == "float64" else "float32"
        self.network, self._made, outputs = self._make(seed=0)
        with tf.device(device):
            self._first_answer(self.network, 3)  # a minibatch has any number of rows
        self._layout = _Layout(self.network, self._network_name, self._written(self.network))
        self._read_orders()
        self.not_portable = self._layout.not_portable
        self._row_layers = row_layers(_walk(self.network))
        self.row_layers = tuple(path or layer.name for path, layer in self._row_layers.items())
        self._finish(outputs)

    def _make(self, *, seed: int) -> tuple[keras.Model, bool, ArrayTree]:
        """(network, whether it was made here, what it returns for two observations).

        Made under a seed of ours, so that a run depends on the configured seed alone: Keras draws the seeds of its
        initialisers from Python's generator.
        """
        before, policy, generator = keras.config.floatx(), keras.config.dtype_policy(), random.getstate()
        if self._dtype == "float64":
            keras.config.set_floatx("float64")
            keras.config.set_dtype_policy("float64")
        elif self._backend.precision == "bfloat16":
            keras.config.set_dtype_policy("mixed_bfloat16")
        random.seed(seed)
        try:
            with tf.device(self._device):
                network, made = make_network(self._spec, keras.Model, "tf")
                outputs = self._first_answer(network, 2)
        finally:
            keras.config.set_floatx(before)
            keras.config.set_dtype_policy(policy)
            random.setstate(generator)
        return network, made, outputs

    def _first_answer(self, network: keras.Model, rows: int) -> ArrayTree:
        """What the network returns for so many blank observations.

        Raises:
            ConfigError: it fails on them; says with what.
        """
        observations = dummy_observations(self.observation_space, rows, self._dtype)
        try:
            return network(self._backend.from_numpy(observations), training=False)
        except Exception as error:
            raise ConfigError(
                f"{self._network_name}: call(obs) failed on {_NUMBERS[rows]} observations of "
                f"{self.observation_space}: {type(error).__name__}: {error}"
            ) from error

    @property
    def frozen_parameters(self) -> tuple[str, ...]:
        return self._layout.frozen

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        layout = self._layout
        if self._made:
            network, _, _ = self._make(seed=int(rng.integers(2**62)))
            layout = _Layout(network, self._network_name, set(), self._layout.orders)
        return layout.parameters()

    def _written(self, network: keras.Model) -> set[int]:
        """ids of the variables that a training pass changes: many layers have a generator that they never ask."""
        observations = dummy_observations(self.observation_space, 2, self._dtype)
        with keras.StatelessScope() as scope:
            network(self._backend.from_numpy(observations), training=True)
        return {id(v) for v in network.non_trainable_variables if scope.get_current_value(v) is not None}

    def _read_orders(self) -> None:
        """Which weights the network uses in another order than one channels last."""
        observations = dummy_observations(self.observation_space, 2, self._dtype)
        try:
            recorded = record(self.network, _cast(self._backend.from_numpy(observations), self._dtype))
            orders = read_orders(recorded)
        except Exception as error:
            reason = f"its operations cannot be recorded ({type(error).__name__}: {error})"
            self._layout.not_portable.update(dict.fromkeys(self._layout.names, reason))
            return
        if orders.reordered and not orders.reasons and not orders.outputs:
            drawn = self._backend.from_numpy(random_observations(self.observation_space, 2, self._dtype))
            with tf.device(self._device):
                proof = prove(recorded, drawn, orders.columns)
            self.not_proved = proof.skipped
            orders.reasons.update(proof.wrong)
            orders.outputs.update(proof.outputs)
        self._layout.take_orders(orders)

    def init_buffers(self) -> dict[str, np.ndarray]:
        return self._layout.buffers()

    def export_native(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Keras' path of a variable -> array in Keras' layout."""
        values = self._layout.keras_values({name: tf.constant(value) for name, value in params.items()})
        return {variable.path: value.numpy() for variable, value in values}

    def load_into_network(self, params: Mapping[str, np.ndarray]) -> keras.Model:
        """The user's network itself, its variables set to ``params`` (canonical, buffers included)."""
        for variable, value in self._layout.keras_values({name: tf.constant(v) for name, v in params.items()}):
            variable.assign(value)
        return self.network

    def _call(self, params: Arrays, obs: ArrayTree, training: bool) -> tuple[ArrayTree, Outputs]:
        # As network.stateless_call does, except that `training` reaches the layers when call() does not name it.
        everywhere = over_all_rows(self._row_layers, self.rows, hold=self.holds_statistics)
        with everywhere, keras.StatelessScope(state_mapping=self._layout.keras_values(params)) as scope:
            outputs = self.network(_cast(obs, self._dtype), training=training)
        if not training:
            return outputs, {}
        return outputs, {name: scope.get_current_value(v) for name, v in self._layout.buffer_variables.items()}


class _Layout:
    """The variables of one network and the canonical arrays they are made of.

    Args:
        network: built.
        owner: what the user called it.
        written: ids of the variables that a training pass changes.
        orders: as the attribute, of a network of the same structure.

    Attributes:
        names: of the parameters, in order.
        buffer_variables: canonical name -> Keras variable that no gradient moves.
        frozen: parameters that are not trainable.
        not_portable: as ``FrameworkModule.not_portable``.
        orders: names of a weight -> (axis of its variable, for each entry along it the place it has in the state).
    """

    def __init__(self, network: keras.Model, owner: str, written: set[int], orders: _Orders | None = None) -> None:
        self._owner = owner
        self._is_mixed = network.compute_dtype == "bfloat16"
        self._weights: list[tuple[tuple[str, ...], Weight]] = []
        self.buffer_variables: dict[str, keras.Variable] = {}
        self.not_portable: dict[str, str] = {}
        self.orders: _Orders = dict(orders or {})
        trainable: dict[str, bool] = {}
        seen: set[int] = set()
        for prefix, layer in _walk(network):
            known = weights_of(layer)
            weights, reason = known if known is not None else _own_weights(layer)
            for weight in weights:
                if id(weight.variable) in seen:
                    continue
                seen.add(id(weight.variable))
                names = tuple(_join(prefix, name) for name in weight.names)
                ordered = reordered(weight, *self.orders[names]) if names in self.orders else weight
                self._weights.append((names, ordered))
                if weight.buffer:
                    self.buffer_variables[names[0]] = weight.variable
                else:
                    trainable.update(dict.fromkeys(names, bool(weight.variable.trainable)))
                if weight.buffer and known is None:
                    reason = reason or "a variable of the network's own that no gradient moves"
                if reason:
                    self.not_portable.update(dict.fromkeys(names, reason))
        for number, variable in enumerate(v for v in network.non_trainable_variables if id(v) in written - seen):
            # Generators of dropout layers and the like: they are carried, so resuming is exact.
            name = f"keras_state.{number}"
            self._weights.append(((name,), Weight(variable, (name,), _identity, lambda value: (value,), True)))
            self.buffer_variables[name] = variable
            self.not_portable[name] = f"Keras' own {variable.path}"
        for variable in network.trainable_variables:
            if id(variable) not in seen:
                raise ConfigError(f"{owner}: the weight {variable.path!r} belongs to no layer that can be found")
        self._packs = _packs(trainable)
        whole = {part: name for name, parts in self._packs.items() for part in parts}
        self.names = list(dict.fromkeys(whole.get(name, name) for name in trainable))
        self.frozen = tuple(
            name for name in self.names if not all(trainable[part] for part in self._packs.get(name, (name,)))
        )

    def take_orders(self, found: Orders) -> None:
        """Store in order what the network uses in another one, and name what cannot be."""
        for number, (names, weight) in enumerate(self._weights):
            key = id(weight.variable)
            if key in found.reasons:
                for name in names:
                    self.not_portable.setdefault(name, found.reasons[key])
            axis, order = found.columns.get(key, (0, np.zeros(0, np.int64)))
            if (np.diff(order) < 0).any() and not any(name in self.not_portable for name in names):
                self.orders[names] = (axis, order)
                self._weights[number] = (names, reordered(weight, axis, order))
        self.not_portable.update(found.outputs)

    def parameters(self) -> dict[str, np.ndarray]:
        """Canonical name -> value, copies."""
        parts: dict[str, np.ndarray] = {}
        for names, weight in self._weights:
            if not weight.buffer:
                value = weight.variable.value.numpy()
                for name, array in zip(names, weight.to_canonical(value), strict=True):
                    parts[name] = np.array(array, order="C")
        for name, packed in self._packs.items():
            parts[name] = np.concatenate([parts.pop(part) for part in packed], 0)
        return {name: parts[name] for name in self.names}

    def buffers(self) -> dict[str, np.ndarray]:
        """Canonical name -> value, copies."""
        return {name: np.array(v.value.numpy()) for name, v in self.buffer_variables.items()}

    def keras_values(self, params: Arrays) -> list[tuple[keras.Variable, tf.Tensor]]:
        """(Keras variable, its value) of every one, made of canonical arrays; differentiable."""
        missing = [name for name in (*self.names, *self.buffer_variables) if name not in params]
        if missing:
            raise ConfigError(f"{self._owner}: no value for {missing[0]!r}")
        parts = dict(params)
        for name, packed in self._packs.items():
            parts.update(zip(packed, tf.split(parts.pop(name), len(packed), 0), strict=True))
        values: list[tuple[keras.Variable, tf.Tensor]] = []
        for names, weight in self._weights:
            value = weight.to_keras(*[parts[name] for name in names])
            if value.dtype == tf.bfloat16 and self._is_mixed:
                # Keras keeps its variables wide and narrows them where it computes.
                value = tf.cast(value, weight.variable.dtype)
            if value.dtype.name != keras.backend.standardize_dtype(weight.variable.dtype):
                raise ConfigError(
                    f"{self._owner} was built in {weight.variable.dtype}, the learner computes in {value.dtype.name}: "
                    f"build it under the dtype policy {_policy(value.dtype)!r}, or let a function build it"
                )
            values.append((weight.variable, value))
        return values


def _walk(network: keras.Model) -> Iterator[tuple[str, keras.layers.Layer]]:
    """(canonical path, layer) of every layer, each once; known layers are not looked into."""
    seen: set[int] = set()

    def visit(prefix: str, layer: keras.layers.Layer) -> Iterator[tuple[str, keras.layers.Layer]]:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        if isinstance(layer, keras.layers.TimeDistributed):
            yield from visit(prefix, layer.layer)
            return
        yield prefix, layer
        if weights_of(layer) is not None:
            return
        for name, child in _children(layer):
            yield from visit(_join(prefix, name), child)

    yield from visit("", network)


def _children(layer: keras.layers.Layer) -> list[tuple[str, keras.layers.Layer]]:
    """(name, layer): by attribute, or in a Sequential or Functional model by the layer's own name or its number."""
    named: list[tuple[str, keras.layers.Layer]] = []
    if not (isinstance(layer, keras.Sequential) or hasattr(layer, "operations")):
        for attribute, value in vars(layer).items():
            if isinstance(value, keras.layers.Layer):
                named.append((attribute, value))
            elif isinstance(value, Mapping) and not attribute.startswith("_"):
                named += [(f"{attribute}.{key}", v) for key, v in value.items() if isinstance(v, keras.layers.Layer)]
            elif isinstance(value, list | tuple) and not attribute.startswith("_"):
                inside = [v for v in value if isinstance(v, keras.layers.Layer)]
                named += [(f"{attribute}.{key}", v) for key, v in _numbered(inside)]
    found = {id(value) for _, value in named}
    rest = [child for child in getattr(layer, "_layers", []) if id(child) not in found]
    return named + _numbered(rest, by_name=True)


def _numbered(children: list[keras.layers.Layer], *, by_name: bool = False) -> list[tuple[str, keras.layers.Layer]]:
    out: list[tuple[str, keras.layers.Layer]] = []
    count = 0
    for child in children:
        if by_name and not _named_by_keras(child):
            out.append((child.name, child))
            continue
        out.append((str(count), child))
        # Generators of random numbers are no weights: a Dropout holds none.
        count += bool(child.weights)
    return out


def _named_by_keras(layer: keras.layers.Layer) -> bool:
    snake = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
    snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", snake).lower()
    return re.fullmatch(rf"{re.escape(snake)}(_\d+)?", layer.name) is not None


def _own_weights(layer: keras.layers.Layer) -> tuple[list[Weight], str]:
    """Weights of a layer that is not known: as they are."""
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    weights = []
    for variable in own:
        # A variable that is not trainable in a trainable layer is one that the layer changes by itself.
        buffer = bool(layer.trainable) and not variable.trainable
        name = variable.name
        weights.append(Weight(variable, (name,), _identity, lambda value: (value,), buffer))
    if not own:
        return [], ""
    if type(layer).__module__.startswith("keras."):
        return weights, f"no other framework's layer is known for {type(layer).__name__}"
    large = any(len(variable.shape) > 1 for variable in own)
    return weights, f"a weight of {type(layer).__name__}'s own, in a layout that only it knows" if large else ""


def _policy(dtype: tf.DType) -> str:
    """Keras' dtype policy of networks that compute in it."""
    return "mixed_bfloat16" if dtype == tf.bfloat16 else str(dtype.name)


def _packs(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """canonical name -> the parts that are in ``names``, for arrays that Keras keeps in parts."""
    packs: dict[str, tuple[str, ...]] = {}
    for name in names:
        prefix, _, last = name.rpartition(".")
        for whole, parts in PACKED.items():
            if last == parts[0] and all(_join(prefix, part) in names for part in parts):
                packs[_join(prefix, whole)] = tuple(_join(prefix, part) for part in parts)
    return packs


def _identity(value: Array) -> Array:
    return value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _cast(tree: ArrayTree, dtype: str) -> ArrayTree:
    """Floating-point leaves in the network's dtype."""
    if isinstance(tree, Mapping):
        return {key: _cast(value, dtype) for key, value in tree.items()}
    return tf.cast(tree, dtype) if tree.dtype.is_floating else tree
