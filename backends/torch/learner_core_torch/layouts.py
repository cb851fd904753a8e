"""In which order a network's layers see the elements of maps that Torch computes channels first.

Runs the network once on two observations and follows every element: the layers known here by the rules below, what
stands between them operation by operation (``element_order.py``). A layer whose inputs are out of order has its weights
stored in order, so that the same weights fit a network that computes channels last; where the order is not known, the
layer's weights are said to be not portable, and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from learner_core.learning import element_order as rules
from learner_core.learning.element_order import Elements, Lost, NotFollowedError, NotMapsError
from learner_core.xp import ArrayTree

from .element_order import Follower
from .operations import Argument, Arguments, named_outputs, tensors_in

__all__ = ["Orders", "known_layers", "read_orders"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
States: TypeAlias = list[Any]
"""Of each of a layer's inputs its elements; ``None`` where it depends on no observations."""
Tensors: TypeAlias = list[torch.Tensor]
Rule: TypeAlias = "Callable[[_Layer, States, Tensors, Tensors], Sequence[Elements | Lost]]"
"""``rule(layer, states, inputs, results)``: what is known of the results."""

_SEQUENCES = (nn.LSTM, nn.GRU, nn.RNN)
_CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


@dataclass
class Orders:
    """What a forward pass tells.

    Attributes:
        columns: Torch's name of a parameter or buffer -> axis -> for each entry along it the place it has in the state.
        reasons: Torch's name of a parameter or buffer -> why its order is not known.
        outputs: why the outputs themselves are not in order, by the output's name.
        maps: dense layers whose features are read as maps -> channels, height, width (or more, or fewer).
        reordered: somewhere it has arrays that have another order channels last.
    """

    columns: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    maps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reordered: bool = False


def read_orders(network: nn.Module, obs: ArrayTree) -> tuple[ArrayTree, Orders]:
    """Run ``network(obs)`` and follow the elements of the observations.

    Args:
        network: in evaluation mode.
        obs: tensor or nested dict of tensors, two rows.

    Returns:
        (outputs, what was found)
    """
    maps: dict[str, tuple[int, ...]] = {}
    while True:
        outputs, orders, found = _follow(network, obs, maps)
        # What a dense layer makes is read as maps: its rows stand in the state as maps channels last have them.
        if found.keys() <= maps.keys():
            return outputs, orders
        maps = {**found, **maps}


def _follow(
    network: nn.Module, obs: ArrayTree, maps: Mapping[str, tuple[int, ...]]
) -> tuple[ArrayTree, Orders, dict[str, tuple[int, ...]]]:
    """(outputs, what was found, dense layers whose features are read as maps)."""
    names = {id(value): name for name, value in network.named_parameters()}
    follower = Follower(names)
    layers = _Layers(follower, maps)
    handles = [handle for name, module in network.named_modules() for handle in layers.watch(name, module)]
    try:
        follower.start(obs)
        with _no_shortcuts(), follower:
            outputs = network(obs)
    finally:
        for handle in handles:
            handle.remove()
    orders = layers.orders
    orders.reordered = follower.reordered
    for name, reason in follower.reasons.items():
        orders.reasons.setdefault(name, reason)
    for name, tensor in named_outputs(outputs):
        state = follower.of(tensor)
        if isinstance(state, Lost):
            orders.outputs[name] = state.reason
        elif isinstance(state, Elements) and not state.in_order:
            orders.outputs[name] = "its elements are in another order than they are channels last"
        elif state is None and not follower.names(tensor):
            orders.outputs[name] = "it is not computed from observations by operations that can be followed"
    return outputs, orders, follower.maps


@contextlib.contextmanager
def _no_shortcuts() -> Iterator[None]:
    """Torch's transformer layers call their own layers, not one kernel for all."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Layers:
    """The layers whose weights have a known meaning; what stands inside of them is not followed."""

    def __init__(self, follower: Follower, maps: Mapping[str, tuple[int, ...]]) -> None:
        self._follower = follower
        self.orders = Orders(maps=maps)

    def watch(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        """Hooks on a layer that is known and computes as Torch's own does."""
        rule = _rule(module)
        if rule is None:
            return []

        def before(module: nn.Module, args: Arguments, kwargs: dict[str, Argument]) -> None:
            self._follower.paused += 1

        def after(module: nn.Module, args: Arguments, kwargs: dict[str, Argument], outputs: object) -> None:
            self._follower.paused -= 1
            if not self._follower.paused:
                self._compute(name, module, rule, [*args, *kwargs.values()], outputs)

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def _compute(self, name: str, module: nn.Module, rule: Rule, args: object, outputs: object) -> None:
        inputs = list(tensors_in(args))
        states = [self._follower.of(tensor) for tensor in inputs]
        results = list(tensors_in(outputs))
        if all(state is None for state in states):
            names = {_join(name, own) for own, value in module.named_parameters()}
            for tensor in results:
                self._follower.learned(tensor, frozenset(names))
            return
        made: list[Elements | Lost]
        try:
            lost = next((state for state in states if isinstance(state, Lost)), None)
            if lost is not None:
                raise NotFollowedError(lost.reason)
            made = [*rule(_Layer(self.orders, name, module), states, inputs, results)]
        except NotFollowedError as error:
            if isinstance(error, NotMapsError):
                self._follower.read_as_maps(inputs[0])
            for own in (*module._parameters, *module._buffers):
                self.orders.reasons[_join(name, own)] = str(error)
            self.orders.reasons.update({_join(name, own): str(error) for own, _ in module.named_parameters()})
            made = [_after_lost(str(error), tensor, inputs[0]) for tensor in results]
        for tensor, state in zip(results, made, strict=False):
            self._follower.set(tensor, state)
        if isinstance(module, nn.Linear):
            self._follower.made_by(results[0], frozenset([name]))
        elif isinstance(module, (nn.LayerNorm, *_NORMS)):
            self._follower.made_by(results[0], self._follower.makers(inputs[0]))


def _after_lost(reason: str, tensor: torch.Tensor, given: torch.Tensor) -> Elements | Lost:
    """What a layer makes of inputs whose order is lost, its own outputs are in order; rows are the first axis."""
    if tensor.ndim == given.ndim == 2:
        return rules.fresh(tuple(tensor.shape))
    return Lost(reason)


@dataclass(frozen=True)
class _Layer:
    """A layer that is called, and where its orders are noted."""

    orders: Orders
    name: str
    module: nn.Module

    def columns(self, axis: int, order: np.ndarray, *names: str) -> None:
        """These parameters have their entries along ``axis`` in that order."""
        for own in names:
            value = self.module._parameters.get(own, self.module._buffers.get(own))
            path = _join(self.name, own)
            if value is None:
                # A weight that is computed from other parameters.
                if getattr(self.module, own, None) is not None and (np.diff(order) < 0).any():
                    raise NotFollowedError(
                        "its weight is computed from others, and its inputs have another order channels last"
                    )
                continue
            known = self.orders.columns.setdefault(path, {})
            if not np.array_equal(known.setdefault(axis, order), order):
                raise NotFollowedError("it is called on inputs in different orders")

    def in_order(self, order: np.ndarray, what: str) -> None:
        """Refuse what has no counterpart unless it is in order."""
        if (np.diff(order) < 0).any():
            raise NotFollowedError(f"{what} have another order channels last")


def _linear(layer: _Layer, states: States, inputs: Tensors, results: Tensors) -> list[Elements]:
    size = results[0].shape[-1]
    order, made = rules.mixed(states[0], -1, size)
    layer.columns(1, order, "weight")
    maps = layer.orders.maps.get(layer.name)
    if maps is None:
        return [made]
    if results[0].ndim != 2 or int(np.prod(maps)) != size:
        raise NotFollowedError("only some of its features are read as maps")
    rows = np.moveaxis(np.arange(size).reshape(*maps[1:], maps[0]), -1, 0).reshape(-1)
    layer.columns(0, rows, "weight", "bias")
    return [Elements(made.numbers[:, rows])]


def _convolution(layer: _Layer, states: States, inputs: Tensors, results: Tensors) -> list[Elements]:
    module: Any = layer.module
    batched = inputs[0].ndim == module.weight.ndim
    given = states[0] if batched else rules.moved(states[0], lambda numbers: numbers[None])
    shape = tuple(results[0].shape)[-(module.weight.ndim - 2) :]
    order, made = rules.mapped(given, 1, shape, module.out_channels)
    if module.groups == 1:
        layer.columns(0 if module.transposed else 1, order, "weight")
    else:
        layer.in_order(order, "the channels that its groups read")
    return [made if batched else rules.moved(made, lambda numbers: numbers[0])]


def _batch_norm(layer: _Layer, states: States, inputs: Tensors, results: Tensors) -> list[Elements]:
    given = states[0]
    if inputs[0].ndim == 2:
        order = rules.order_along(given, 1)
        if order is None:
            raise NotFollowedError("its inputs are not in one order in all places")
    else:
        order, _ = rules.mapped(given, 1, tuple(inputs[0].shape[2:]))
    layer.columns(0, order, "weight", "bias", "running_mean", "running_var")
    return [given]


def _layer_norm(layer: _Layer, states: States, inputs: Tensors, results: Tensors) -> list[Elements]:
    module: Any = layer.module
    axes = len(module.normalized_shape)
    if not rules.is_whole(states[0], -1):
        rules.lines(states[0], "it")
    if module.weight is not None and axes == 1:
        order = rules.order_along(states[0], -1)
        if order is None:
            raise NotFollowedError("its inputs are not in one order in all places")
        layer.columns(0, order, "weight", "bias")
    return [states[0]]


def _embedding(layer: _Layer, states: States, inputs: Tensors, results: Tensors) -> list[Elements]:
    given, size = states[0], results[0].shape[-1]
    layer.columns(1, np.arange(size), "weight")
    numbers = given.numbers[..., None] * size + np.arange(size)
    return [Elements(numbers, shifted=given.shifted)]


def _sequence(layer: _Layer, states: States, inputs: Tensors, results: Tensors) -> list[Elements]:
    module: Any = layer.module
    given = states[0]
    if given is None:
        raise NotFollowedError("its inputs do not depend on observations, its first state does")
    time = 1 if module.batch_first and inputs[0].ndim == 3 else 0
    rules.kept_along(given, time, "it")
    _states_in_order(layer, states[1:])
    order, made = rules.mixed(given, -1, results[0].shape[-1])
    layer.columns(1, order, "weight_ih_l0", "weight_ih_l0_reverse")
    rest = [rules.fresh(tuple(result.shape)) for result in results[1:]]
    return [made, *rest]


def _cell(layer: _Layer, states: States, inputs: Tensors, results: Tensors) -> list[Elements]:
    _states_in_order(layer, states[1:])
    size = results[0].shape[-1]
    if states[0] is None:
        return [states[1]] * len(results)
    order, made = rules.mixed(states[0], -1, size)
    layer.columns(1, order, "weight_ih")
    return [made] * len(results)


def _states_in_order(layer: _Layer, states: States) -> None:
    for state in states:
        if state is not None and not state.plain:
            raise NotFollowedError("its state is computed in another order than channels last")


def _attention(layer: _Layer, states: States, inputs: Tensors, results: Tensors) -> list[Elements]:
    module: Any = layer.module
    if not any(state is not None and not state.plain for state in states):
        return [rules.fresh(tuple(result.shape)) for result in results]
    query, key, value = states[:3]
    if any(state is None for state in (query, key, value)) or len(states) > 3:
        raise NotFollowedError("it is given masks, or tokens that do not depend on observations, beside others")
    orders = [rules.order_along(state, -1) for state in (query, key, value)]
    first = orders[0]
    if first is None or any(order is None or not np.array_equal(order, first) for order in orders):
        raise NotFollowedError("its inputs are not in one order in all places")
    _, made = rules.mixed(query, -1, results[0].shape[-1])
    layer.columns(1, first, "in_proj_weight")
    if module.in_proj_weight is None:
        layer.in_order(first, "its inputs")
    if len(results) > 1 and not made.plain:
        rest: list[Any] = [Lost("attention weights of tokens that have another order channels last")]
    else:
        rest = [rules.fresh(tuple(result.shape)) for result in results[1:]]
    return [made, *rest]


_RULES: tuple[tuple[tuple[type, ...], Rule], ...] = (
    ((nn.Linear,), _linear),
    (_CONVOLUTIONS + _TRANSPOSED, _convolution),
    (_NORMS, _batch_norm),
    ((nn.LayerNorm,), _layer_norm),
    ((nn.Embedding,), _embedding),
    (_SEQUENCES, _sequence),
    (_CELLS, _cell),
    ((nn.MultiheadAttention,), _attention),
)


def known_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Torch's path of each layer whose weights have a known meaning."""
    return {name: module for name, module in network.named_modules() if _rule(module) is not None}


def _rule(module: nn.Module) -> Rule | None:
    return next((r for kinds, r in _RULES if isinstance(module, kinds) and _is_stock(module, kinds)), None)


def _is_stock(module: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Whether it computes what Torch's own layer does: a subclass may do anything."""
    own = next(kind for kind in type(module).__mro__ if kind in kinds)
    return type(module).forward is own.forward  # type: ignore[attr-defined]


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
