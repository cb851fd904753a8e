"""A Torch network run once more in both layouts, with random numbers: whether what was read of it holds.

Runs the network functionally, in float64 where it can, and carries each array's second value along (``layout_proof.py``
of the core): layers known to the analysis are called on it as they are, other operations one by one. Parameters have as
their second value what the state would hold. Nothing of the network or of the process is changed by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from learner_core.learning import layout_proof as rules
from learner_core.learning.layout_proof import Nesting, NotProvedError, Reshaped, Within
from learner_core.xp import ArrayTree

from .operations import (
    AXES,
    CHANNEL_NORMS,
    COPIES,
    MAPS,
    NEW,
    REDUCTIONS,
    RESHAPES,
    Argument,
    Arguments,
    Call,
    named_outputs,
    tensors_in,
)

__all__ = ["Proof", "prove"]

#: (Torch's name of a parameter or buffer, its value) -> as the state holds it.
ToState = Callable[[str, torch.Tensor], torch.Tensor]
#: They move elements in ways that no axis tells; the analysis stores what follows as if they had stayed.
_ELSEWHERE = frozenset(
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle index index_select gather roll rot90 "
    "diagonal unfold im2col col2im as_strided take take_along_dim".split()
)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_KEEP = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
_PRODUCTS = frozenset("mm bmm addmm baddbmm matmul".split())


@dataclass(frozen=True)
class Proof:
    """What came of it.

    Attributes:
        wrong: Torch's names of the parameters of the first place where the layouts differ, or names of outputs -> why.
        skipped: why there is no proof, "" where there is.
    """

    wrong: Mapping[str, str]
    skipped: str = ""


def prove(
    network: nn.Module,
    obs: ArrayTree,
    to_state: ToState,
    layers: Mapping[str, nn.Module],
    maps: Mapping[str, tuple[int, ...]],
) -> Proof:
    """Run ``network(obs)`` in both layouts.

    Args:
        network: in evaluation mode.
        obs: random ones, tensor or nested dict of tensors.
        to_state: how the state is said to hold a parameter.
        layers: Torch's path -> layer whose results are known, called as a whole.
        maps: path of a dense layer whose features are said to be maps -> channels, height, width.
    """
    reason = ""
    for dtype in (torch.float64, torch.float32):
        devices = [obs_device] if (obs_device := _device(obs)).type == "cuda" else []
        try:
            rules.check_size(sum(value.numel() for value in network.parameters()))
            with torch.random.fork_rng(devices=devices), torch.no_grad():
                run = _Run(network, obs, to_state, layers, maps, dtype)
                if not (wrong := run.wrong(run.second_values())):
                    return Proof({})
                found = run.second_values(look=True)
                where, names = found.place or ("", frozenset())
                reason = f"{where}: {rules.DIFFERS}" if where else rules.DIFFERS
                return Proof(dict.fromkeys(sorted(names) or wrong, reason))
        except NotProvedError as error:
            return Proof({}, str(error))
        except Exception as error:  # the user's own code, in a dtype that it may not have been written for
            reason = reason or f"it does not run on random numbers ({type(error).__name__}: {error})"
    return Proof({}, reason)


def _device(obs: ArrayTree) -> torch.device:
    return obs.device if isinstance(obs, torch.Tensor) else _device(next(iter(obs.values())))


@dataclass
class _Run:
    """One network, random observations and parameters."""

    network: nn.Module
    obs: ArrayTree
    to_state: ToState
    layers: Mapping[str, nn.Module]
    maps: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype

    def second_values(self, *, look: bool = False) -> _Second:
        """Run it; the mode holds what its outputs are in both layouts.

        Args:
            look: compare after every operation, to say where the layouts part.
        """
        rng = np.random.default_rng(0)
        values: dict[str, torch.Tensor] = {}
        for name, value in self.network.named_parameters():
            made = rules.proof_values(name, value.detach().cpu().numpy(), rng) if value.is_floating_point() else None
            values[name] = value if made is None else torch.tensor(made, dtype=self.dtype, device=value.device)
        for name, buffer in self.network.named_buffers():
            values[name] = buffer.detach().clone()
            if buffer.is_floating_point():
                drawn = rules.proof_values(name, buffer.cpu().numpy(), rng)
                known = name.endswith(("running_var", "running_mean"))
                values[name] = (torch.tensor(drawn, device=buffer.device) if known else values[name]).to(self.dtype)
        second = _Second(self.dtype, self.maps, self._tolerance if look else None)
        for name, drawn_value in values.items():
            second.start(drawn_value, self.to_state(name, drawn_value), name)
        obs = _cast(self.obs, self.dtype)
        for leaf in _leaves(obs):
            second.start(leaf, leaf, "")
        handles = [handle for path, layer in self.layers.items() for handle in second.watch(path, layer)]
        try:
            with second:
                second.outputs = torch.func.functional_call(self.network, values, (obs,))
        finally:
            for handle in handles:
                handle.remove()
        return second

    @property
    def _tolerance(self) -> float:
        return rules.TOLERANCES[str(self.dtype).removeprefix("torch.")]

    def wrong(self, second: _Second) -> list[str]:
        """Outputs that are not the same in both layouts."""
        wrong: list[str] = []
        for name, output in named_outputs(second.outputs):
            other = second.of(output)
            if other is not None and other.value is not output:
                one, two = (value.double().cpu().numpy() for value in (output, other.value))
                if not rules.agree(one, two, self._tolerance):
                    wrong.append(name)
        return wrong


@dataclass(frozen=True)
class _Other:
    """The second value of a tensor, and how its axes are nested; ``None``: its memory was written under other names."""

    value: torch.Tensor
    nesting: Nesting
    within: Within


class _Second(TorchDispatchMode):
    """Carries second values through what a network computes.

    Args:
        dtype: of all floats; the network's own casts lead to it, too.
        maps: dense layers whose features are said to be maps.
        tolerance: to compare after every operation; ``None``: not.

    Attributes:
        outputs: what the network returned.
        place: the first operation whose inputs agree and whose results do not, and the parameters it used.
    """

    def __init__(self, dtype: torch.dtype, maps: Mapping[str, tuple[int, ...]], tolerance: float | None) -> None:
        super().__init__()
        self._maps = maps
        self._dtype = dtype
        self._tolerance = tolerance
        # The tensors are kept: an id alone could come back as another one's.
        self._others: dict[int, tuple[torch.Tensor, _Other | None]] = {}
        self._names: dict[int, tuple[torch.Tensor, frozenset[str]]] = {}
        self._paused = 0
        self.outputs: Any = None
        self.place: tuple[str, frozenset[str]] | None = None

    def start(self, tensor: torch.Tensor, value: torch.Tensor, name: str) -> None:
        self._others[id(tensor)] = (tensor, _Other(value, rules.own_order(tensor.ndim), {}))
        if name:
            self._names[id(tensor)] = (tensor, frozenset([name]))

    def of(self, tensor: object) -> _Other | None:
        """``None``: it depends on neither observations nor parameters."""
        if id(tensor) not in self._others:
            return None
        other = self._others[id(tensor)][1]
        if other is None:
            raise NotProvedError("it writes in place what it has used under another shape")
        return other

    def _set(self, tensor: torch.Tensor, value: torch.Tensor, nesting: Nesting, within: Within) -> None:
        if value.shape != tensor.shape:
            raise NotProvedError("an operation's second value has another shape than it should have")
        self._others[id(tensor)] = (tensor, _Other(value, nesting, within))

    # ------------------------------------------------------------------ layers

    def watch(self, path: str, layer: nn.Module) -> list[RemovableHandle]:
        """Hooks on a layer that is called as a whole."""

        def before(module: nn.Module, args: Arguments, kwargs: dict[str, Argument]) -> None:
            self._paused += 1

        def after(module: nn.Module, args: Arguments, kwargs: dict[str, Argument], outputs: object) -> None:
            if self._paused == 1:
                try:
                    self._layer(path, module, args, kwargs, outputs)
                finally:
                    self._paused -= 1
            else:
                self._paused -= 1

        return [
            layer.register_forward_pre_hook(before, with_kwargs=True),
            layer.register_forward_hook(after, with_kwargs=True),
        ]

    def _layer(
        self, path: str, module: nn.Module, args: Arguments, kwargs: dict[str, Argument], outputs: object
    ) -> None:
        inputs = [tensor for tensor in tensors_in([args, list(kwargs.values())]) if id(tensor) in self._others]
        others = {
            name: other.value for name, value in module.named_parameters() if (other := self.of(value)) is not None
        }
        others.update((name, other.value) for name, value in module.named_buffers() if (other := self.of(value)))
        args, kwargs = self._swapped(args), self._swapped(kwargs)
        again = torch.func.functional_call(module, others, args, kwargs)
        nesting = self.of(inputs[0]) if inputs else None
        made = list(tensors_in(outputs))
        for tensor, value in zip(made, tensors_in(again), strict=True):
            known = nesting.nesting if nesting is not None else ()
            if isinstance(module, nn.modules.conv._ConvNd) and tensor.ndim > 2:
                batched = tensor.ndim == module.weight.ndim
                axes = rules.maps(tensor.ndim, 1) if batched else rules.maps(tensor.ndim, 0)
            elif len(known) == tensor.ndim:
                axes = known if isinstance(module, _KEEP) else rules.innermost(known, -1)
            else:
                axes = rules.own_order(tensor.ndim)
            within = rules.as_maps(self._maps[path]) if path in self._maps else {}
            if isinstance(module, _KEEP) and nesting is not None:
                within = dict(nesting.within)
            self._set(tensor, value, axes, within)
        own = [value for value in module.parameters() if id(value) in self._names]
        names = frozenset().union(*(self._names[id(value)][1] for value in own))
        self._compare(f"{type(module).__name__} {path}".strip(), inputs, made, names)

    # ------------------------------------------------------------------ operations

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Arguments = (), kwargs: dict[str, Argument] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") in _FLOATS:
            kwargs = {**kwargs, "dtype": self._dtype}
        self._paused += 1
        try:
            return self._operation(func, args, kwargs)
        finally:
            self._paused -= 1

    def _operation(self, func: OpOverload, args: Arguments, kwargs: dict[str, Argument]) -> object:
        if _draws(func, args, kwargs):
            raise NotProvedError(f"{func.overloadpacket.__name__}: it draws random numbers")
        inputs = [tensor for tensor in tensors_in([args, list(kwargs.values())]) if id(tensor) in self._others]
        if not inputs or func.overloadpacket.__name__ in NEW:
            return self._widened(func(*args, **kwargs))
        others = [self.of(tensor) for tensor in inputs]
        same = all(other is not None and other.value is tensor for other, tensor in zip(others, inputs, strict=True))
        swapped = None if same else (self._swapped(args), self._swapped(kwargs))
        if swapped is not None and func._schema.is_mutable and swapped[0][0] is args[0]:
            swapped = ((args[0].clone(), *swapped[0][1:]), swapped[1])
        outputs = func(*args, **kwargs)
        call = Call(func, args, kwargs, outputs)
        made = list(tensors_in(outputs))
        known = [other for other in others if other is not None]
        if call.name in RESHAPES:
            shaped = rules.reshaped(known[0].nesting, known[0].within, inputs[0].shape, call.shape)
            value = made[0] if same and shaped.moves_nothing else _reshape(known[0].value, shaped)
            self._set(made[0], value, shaped.nesting, shaped.within)
        else:
            values = made if swapped is None else list(tensors_in(func(*swapped[0], **swapped[1])))
            if call.mutates:
                self._wrote(call.inputs[0], values[0] if swapped is not None else call.inputs[0])
            for tensor, value in zip(made, values, strict=True):
                nesting = self._nested(call, inputs, [other.nesting for other in known], tensor) if tensor.ndim else ()
                within = next((other.within for other in known if other.within), {})
                self._set(tensor, value, nesting, within if tensor.shape == inputs[0].shape else {})
        names = frozenset().union(*(self._names[id(t)][1] for t in inputs if id(t) in self._names))
        fixed = all(id(tensor) in self._names for tensor in inputs)
        for tensor in made if fixed else ():
            self._names[id(tensor)] = (tensor, names)
        if not fixed:
            self._compare(call.name, inputs, made, names)
        return outputs

    def _widened(self, constant: Argument) -> Argument:
        narrow = isinstance(constant, torch.Tensor) and constant.dtype in _FLOATS
        return constant.to(self._dtype) if narrow else constant

    def _swapped(self, tree: Argument) -> Argument:
        if isinstance(tree, torch.Tensor):
            other = self.of(tree)
            return tree if other is None else other.value
        if isinstance(tree, dict):
            return {key: self._swapped(value) for key, value in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)([self._swapped(value) for value in tree])
        return tree

    def _wrote(self, target: torch.Tensor, value: torch.Tensor) -> None:
        """An operation in place: other views of the memory are no longer what they were."""
        memory = target.untyped_storage()._cdata
        for identity, (tensor, other) in list(self._others.items()):
            if tensor is not target and tensor.untyped_storage()._cdata == memory:
                self._others[identity] = (tensor, None)
            elif tensor is target and other is not None:
                self._others[identity] = (tensor, _Other(value, other.nesting, other.within))

    def _nested(self, call: Call, inputs: list[torch.Tensor], nestings: list[Nesting], made: torch.Tensor) -> Nesting:
        """How the axes of a result are nested channels last."""
        name, first, ndim = call.name, nestings[0], made.ndim
        before = inputs[0].ndim
        if name == "as_strided" and torch.equal(made, inputs[0]):
            return first  # only the strides of axes of length 1 are others
        if name in _ELSEWHERE:
            raise NotProvedError(call.said("where its elements stand channels last is not followed here"))
        if name in AXES:
            return rules.moved(first, _permutation(call, inputs[0]))
        if name in ("convolution", "_convolution") or (any(part in name for part in MAPS) and ndim == before):
            return rules.maps(ndim, 1) if ndim > 2 and (name != "max_pool1d" or ndim == 3) else first
        if "scaled_dot_product" in name and len(set(nestings[:3])) == 1:
            return first if ndim == before else rules.own_order(ndim)
        if name in _PRODUCTS:
            left, right = [self.of(tensor) for tensor in call.inputs[-2:]]
            if left is None or right is None:
                return rules.own_order(ndim)
            if any(id(tensor) in self._names for tensor in call.inputs[-2:]):
                return rules.innermost(left.nesting, -1) if len(left.nesting) == ndim else rules.own_order(ndim)
            return rules.multiplied(left.nesting, right.nesting, (call.inputs[-2].shape, call.inputs[-1].shape))
        if name in COPIES and ndim > before:
            shift = ndim - before
            return (*range(shift), *(axis + shift for axis in first))
        if name in ("unsqueeze", "stack"):
            axis = call.argument("dim", 0) % ndim
            return rules.inserted(first, axis)
        if name == "squeeze" or name in REDUCTIONS or (ndim < before and call.argument("dim", None) is not None):
            return first if ndim == before else rules.removed(first, _gone(call, inputs[0], ndim))
        shapes = [tensor.shape for tensor in inputs]
        if ndim == before and (len(inputs) == 1 or name in CHANNEL_NORMS or not call.is_elementwise):
            return first
        if call.is_elementwise:
            return rules.together(nestings, shapes, made.shape)
        if all(nesting == rules.own_order(len(nesting)) for nesting in nestings):
            return rules.own_order(ndim)
        raise NotProvedError(call.said("how its axes stand channels last is not known"))

    def _compare(self, what: str, inputs: list[torch.Tensor], made: list[torch.Tensor], names: frozenset[str]) -> None:
        """Note the first place whose inputs agree, in whatever order, and whose results do not."""
        if self._tolerance is None or self.place is not None:
            return
        if all(self._agrees(t) for t in inputs if id(t) not in self._names) and not all(map(self._agrees, made)):
            self.place = (what, names)

    def _agrees(self, tensor: torch.Tensor) -> bool:
        other = self.of(tensor)
        if other is None or not tensor.is_floating_point() or other.value is tensor:
            return True
        one, two = (value.double().cpu().numpy() for value in (tensor, other.value))
        return rules.agree(one, two, self._tolerance or 0.0, anywhere=True)


def _draws(func: OpOverload, args: Arguments, kwargs: Mapping[str, Argument]) -> bool:
    """Whether it makes use of a generator."""
    name = func.overloadpacket.__name__
    if torch.Tag.nondeterministic_seeded not in func.tags or name == "native_dropout":
        return False
    chances = [value for value, told in zip(args, func._schema.arguments, strict=False) if told.name == "dropout_p"]
    return "scaled_dot_product" not in name or any([*chances, kwargs.get("dropout_p", 0.0)])


def _reshape(value: torch.Tensor, shaped: Reshaped) -> torch.Tensor:
    return value.permute(shaped.axes).reshape(shaped.shape).permute(shaped.then)


def _permutation(call: Call, tensor: torch.Tensor) -> list[int]:
    """Where the axes went: tried on a tensor whose axes have different lengths."""
    lengths = range(2, 2 + tensor.ndim)
    tried = call.on(torch.empty(tuple(lengths), device="meta"))
    return [length - 2 for length in tried.shape]


def _gone(call: Call, tensor: torch.Tensor, ndim: int) -> list[int]:
    """The axes that are no longer there."""
    axes = call.argument("dim", None)
    if call.name == "squeeze" and axes is None:
        return [axis for axis, length in enumerate(tensor.shape) if length == 1]
    axes = [axes] if isinstance(axes, int) else list(axes or range(tensor.ndim))
    gone = sorted({axis % tensor.ndim for axis in axes})
    if call.name == "squeeze":
        gone = [axis for axis in gone if tensor.shape[axis] == 1]
    if tensor.ndim - len(gone) != ndim:
        raise NotProvedError(call.said("which axes it leaves is not known"))
    return gone


def _cast(tree: ArrayTree, dtype: torch.dtype) -> ArrayTree:
    if isinstance(tree, Mapping):
        return {key: _cast(value, dtype) for key, value in tree.items()}
    return tree.to(dtype) if tree.is_floating_point() else tree


def _leaves(tree: ArrayTree) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    else:
        for value in tree.values():
            yield from _leaves(value)
