"""A user's own ``torch.nn.Module`` as an RLModule.

Needs a network whose forward pass Torch can run functionally (``torch.func.functional_call``); it is copied, so the
object the user gave is never trained or switched between modes. Parameters appear in the state under their attribute
path, shared ones once, under the first; numbers in a path count only the layers that hold weights. Where a network
flattens channels first, the columns that follow are stored channels last, as every network here has them; which
columns those are is read off a forward pass (``layouts.py``), not guessed from names.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from learner_core.backend import Backend, NetworkSpec
from learner_core.errors import ConfigError
from learner_core.learning.framework_modules import (
    FrameworkModule,
    describe,
    dummy_observations,
    make_network,
    random_observations,
)
from learner_core.xp import Arrays, ArrayTree, Outputs

from .given_networks import has_lazy_layers, plain_network, refuse_foreign
from .layout_proof import prove
from .layouts import Orders, known_layers, read_orders
from .row_layers import over_all_rows, row_layers

__all__ = ["NetworkModule"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_SAME = (nn.Linear, *_CONVOLUTIONS, nn.ConvTranspose2d, nn.Embedding, nn.BatchNorm1d, nn.BatchNorm2d)
_CELLS = (nn.LSTMCell, nn.GRUCell)
_NUMBERS = {2: "two", 3: "three"}


class NetworkModule(FrameworkModule):
    """The adapter.

    Args:
        spec: ``RLModuleSpec`` with its spaces; ``module_class`` an instance, a class or a function that makes one.
        backend: the Torch backend.
        device: that it computes on.

    Raises:
        ConfigError: it is no network of Torch, it fails on an observation, or it returns what no policy returns.
    """

    def __init__(self, spec: NetworkSpec, backend: Backend, device: torch.device) -> None:
        super().__init__(spec.observation_space, spec.action_space, spec.model, backend.xp)
        self._spec = spec
        self._backend = backend
        self._device = device
        self._network_name = describe(spec.module_class)
        refuse_foreign(spec.module_class, self._network_name)
        network, self._made = self._make(seed=0)
        try:
            self.network: nn.Module = network if self._made else copy.deepcopy(network)
        except RuntimeError as error:
            raise ConfigError(
                f"{self._network_name} cannot be copied ({error}); give a function that makes it"
            ) from None
        self.network.to(device)
        self._prepare()

    def _make(self, *, seed: int) -> tuple[nn.Module, bool]:
        """The network, made under a seed of ours, so that a run depends on the configured seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, made = make_network(self._spec, nn.Module, "torch")
            network = plain_network(network, self._network_name)
            if made and has_lazy_layers(network):
                self._materialise(network)
        return network, made

    def _materialise(self, network: nn.Module) -> None:
        """Let layers that take their sizes from the first observations (``nn.LazyLinear``) take them."""
        trained = network.training
        with torch.no_grad(), self._explained(2):
            network.eval()(self._observed(2))
        network.train(trained)

    def _observed(self, rows: int, dtype: torch.dtype = torch.float32) -> ArrayTree:
        """Blank observations, floats in ``dtype``."""
        return _cast(self._backend.from_numpy(dummy_observations(self.observation_space, rows, np.float32)), dtype)

    @contextlib.contextmanager
    def _explained(self, rows: int) -> Iterator[None]:
        """What the network raises in the block is a refusal that says what it was given."""
        try:
            yield
        except Exception as error:
            raise ConfigError(
                f"{self._network_name}: forward(obs) failed on {_NUMBERS[rows]} observations of "
                f"{self.observation_space}: {type(error).__name__}: {error}"
            ) from error

    # ------------------------------------------------------------------ what the network holds

    def _prepare(self) -> None:
        #: canonical name -> the name that Torch gives it.
        self._parameters: dict[str, str] = {}
        self._buffers: dict[str, str] = {}
        #: canonical name -> axis -> for each entry along it the place it has in the state.
        self._orders: dict[str, dict[int, np.ndarray]] = {}
        self._constants: dict[str, torch.Tensor] = {}
        network = self.network
        trained = network.training
        network.eval()
        with torch.no_grad(), self._explained(2):
            outputs, found = read_orders(network, self._observed(2, _float_dtype(network)))
        with torch.no_grad(), self._explained(3):
            network(self._observed(3, _float_dtype(network)))  # a minibatch has any number of rows
        self._row_layers = row_layers(network)
        self.row_layers = tuple(name or type(layer).__name__ for name, layer in self._row_layers.items())
        seen: set[int] = set()
        for prefix, native, module in _walk(network):
            self._take_module(prefix, native, module, found, seen)
        self._frozen = tuple(
            canonical
            for canonical, native in self._parameters.items()
            if not network.get_parameter(native).requires_grad
        )
        self.not_portable.update(found.outputs)
        if found.reordered and not found.reasons and not found.outputs:
            self._prove(found.maps)
        network.train(trained)
        self._finish(outputs)

    def _prove(self, maps: Mapping[str, tuple[int, ...]]) -> None:
        """Try with random numbers whether the orders that were read hold."""
        observations = self._backend.from_numpy(random_observations(self.observation_space, 2, np.float32))
        canonical = {native: name for name, native in (self._parameters | self._buffers).items()}
        proof = prove(
            self.network,
            observations,
            lambda native, value: self._back(canonical.get(native, ""), value),
            known_layers(self.network),
            maps,
        )
        self.not_proved = proof.skipped
        self.not_portable.update({canonical.get(native, native): reason for native, reason in proof.wrong.items()})

    def _take_module(self, prefix: str, native: str, module: nn.Module, found: Orders, seen: set[int]) -> None:
        reason = _why_not(module)
        own = [(name, value) for name, value in module._parameters.items() if value is not None]
        for name, parameter in own:
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            canonical = _join(prefix, name)
            self._parameters[canonical] = _join(native, name)
            self._take_order(canonical, _join(native, name), reason, found)
        for name, buffer in module._buffers.items():
            if buffer is None:
                continue
            if name == "num_batches_tracked" and getattr(module, "momentum", 0.1) is not None:
                continue  # counts for nothing but a momentum of None
            if name in module._non_persistent_buffers_set:
                self._constants[_join(native, name)] = buffer
                continue
            canonical = _join(prefix, name)
            self._buffers[canonical] = _join(native, name)
            if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                reason = reason or "a buffer of the network's own"
            self._take_order(canonical, _join(native, name), reason, found)
        if isinstance(module, nn.LSTM | nn.GRU) and module.dropout and module.num_layers > 1:
            self.not_resumable[native or "the network"] = "dropout between its layers draws from Torch's own generator"
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)) and module.p:
            self.not_resumable[native or "the network"] = "its dropout draws from Torch's own generator"

    def _take_order(self, canonical: str, native: str, reason: str, found: Orders) -> None:
        reason = reason or found.reasons.get(native, "")
        if reason:
            self.not_portable[canonical] = reason
        orders = {axis: order for axis, order in found.columns.get(native, {}).items() if (np.diff(order) < 0).any()}
        # What is not portable stays as it is.
        if orders and not reason:
            self._orders[canonical] = orders

    @property
    def frozen_parameters(self) -> tuple[str, ...]:
        return self._frozen

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        network = self._make(seed=int(rng.integers(2**62)))[0] if self._made else self.network
        return {
            canonical: self._canonical(canonical, network.get_parameter(native))
            for canonical, native in self._parameters.items()
        }

    def init_buffers(self) -> dict[str, np.ndarray]:
        return {
            canonical: self._canonical(canonical, self.network.get_buffer(native))
            for canonical, native in self._buffers.items()
        }

    def _canonical(self, name: str, value: torch.Tensor) -> np.ndarray:
        array: np.ndarray = self._backend.to_numpy({"x": value})["x"]
        for axis, order in self._orders.get(name, {}).items():
            array = np.ascontiguousarray(np.take(array, np.argsort(order), axis))
        return array

    def export_native(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A ``state_dict`` for the user's network, as numpy arrays: Torch's names and column orders, buffers too."""
        native: dict[str, np.ndarray] = {}
        names = {**self._parameters, **self._buffers}
        for canonical, value in params.items():
            moved = value
            for axis, order in self._orders.get(canonical, {}).items():
                moved = np.ascontiguousarray(np.take(moved, order, axis))
            native[names[canonical]] = moved
        state = self.network.state_dict()
        tied = {id(parameter): name for name, parameter in self.network.named_parameters()}
        for name, parameter in self.network.named_parameters(remove_duplicate=False):
            native.setdefault(name, native[tied[id(parameter)]])
        # Left in the order and with the entries (num_batches_tracked) that load_state_dict expects.
        return {name: native[name] if name in native else value.cpu().numpy() for name, value in state.items()}

    # ------------------------------------------------------------------ forward

    def _call(self, params: Arrays, obs: ArrayTree, training: bool) -> tuple[ArrayTree, Outputs]:
        missing = [name for name in (*self._parameters, *self._buffers) if name not in params]
        if missing:
            raise ConfigError(f"{self._network_name}: no value for {missing[0]!r}")
        values: dict[str, torch.Tensor] = {}
        for canonical, native in self._parameters.items():
            values[native] = self._native(canonical, params[canonical])
        float_dtype = next(iter(values.values())).dtype if values else torch.float32
        for native, constant in self._constants.items():
            # Tracing records it as a constant of the graph.
            value = torch.ops.aten.lift_fresh_copy(constant)
            values[native] = value.to(float_dtype) if constant.is_floating_point() else value
        buffers: dict[str, torch.Tensor] = {}
        for canonical, native in self._buffers.items():
            # The network updates buffers in place; the state's own array must stay as it was.
            buffers[native] = self._native(canonical, params[canonical]).detach().clone()
        for native in self._batch_counters():
            buffers.setdefault(native, torch.zeros((), dtype=torch.int64, device=self._device))
        if self.network.training != training:
            self.network.train(training)
        with _recordable(), over_all_rows(self._row_layers, self.rows, hold=self.holds_statistics):
            outputs = torch.func.functional_call(self.network, {**values, **buffers}, (_cast(obs, float_dtype),))
        new = {}
        if training:
            for canonical, native in self._buffers.items():
                new[canonical] = self._back(canonical, buffers[native])
        return outputs, new

    def _batch_counters(self) -> Iterator[str]:
        for name, module in self.network.named_modules():
            if module._buffers.get("num_batches_tracked") is not None:
                yield _join(name, "num_batches_tracked")

    def _native(self, name: str, value: torch.Tensor) -> torch.Tensor:
        for axis, order in self._orders.get(name, {}).items():
            value = value.index_select(axis, self._index(order, value))
        return value

    def _back(self, name: str, value: torch.Tensor) -> torch.Tensor:
        for axis, order in self._orders.get(name, {}).items():
            value = value.index_select(axis, self._index(np.argsort(order), value))
        return value

    def _index(self, order: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(order.tolist(), dtype=torch.int64, device=like.device)


def _recordable() -> contextlib.AbstractContextManager[object]:
    """While a step is being recorded: no oneDNN kernels for recurrent layers, whose backward cannot be compiled."""
    if get_proxy_mode() is None:
        return contextlib.nullcontext()
    manager: contextlib.AbstractContextManager[object] = torch.backends.mkldnn.flags(enabled=False)
    return manager


def _walk(network: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(canonical path, Torch's path, module) of every module, each once, in the order of definition."""
    seen: set[int] = set()

    def visit(prefix: str, native: str, module: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        yield prefix, native, module
        count = 0
        for name, child in module._modules.items():
            if child is None:
                continue
            own = name
            if name.isdigit():
                # Activations and the like stand between layers in one framework and inside them in another.
                own = str(count)
                count += bool(child.state_dict(keep_vars=True))
            yield from visit(_join(prefix, own), _join(native, name), child)

    yield from visit("", "", network)


def _why_not(module: nn.Module) -> str:
    """Why this module's own weights have no counterpart in another framework; "" where they have."""
    kind = type(module).__name__
    if isinstance(module, nn.LSTM | nn.GRU):
        if module.num_layers > 1 and module.bidirectional:
            return f"bidirectional {kind} of {module.num_layers} layers; use one of one layer after another"
        return f"{kind} with projections" if getattr(module, "proj_size", 0) else ""
    if isinstance(module, nn.LayerNorm):
        return "" if len(module.normalized_shape) == 1 else "LayerNorm over several axes"
    if isinstance(module, nn.MultiheadAttention):
        if not module._qkv_same_embed_dim or module.bias_k is not None or module.add_zero_attn:
            return "MultiheadAttention with sizes of its own for keys or values, bias_k or add_zero_attn"
        return ""
    if isinstance(module, _CONVOLUTIONS) and module.padding_mode != "zeros":
        return f"{kind} with padding_mode={module.padding_mode!r}"
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.momentum is None:
        return f"{kind} with momentum=None"
    if isinstance(module, _SAME + _CELLS):
        return ""
    own = [value for value in module._parameters.values() if value is not None]
    if not own and not module._buffers:
        return ""
    if type(module).__module__.startswith("torch.nn"):
        return f"no other framework's layer is known for {kind}"
    large = any(value.ndim > 1 for value in own)
    return f"a weight of {kind}'s own, in a layout that only it knows" if large else ""


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _float_dtype(network: nn.Module) -> torch.dtype:
    return next((value.dtype for value in network.parameters() if value.is_floating_point()), torch.float32)


def _cast(tree: ArrayTree, dtype: torch.dtype) -> ArrayTree:
    """Floating-point leaves in the parameters' dtype."""
    if isinstance(tree, Mapping):
        return {key: _cast(value, dtype) for key, value in tree.items()}
    return tree.to(dtype) if tree.is_floating_point() else tree
