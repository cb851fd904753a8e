"""Which element is which in what Torch's operations compute: the rules of the core, by the names of ``aten``.

An operation that is not listed leaves plain arrays plain; of others it keeps the order if it turns out, tried on random
numbers, to treat elements one by one. Otherwise its results are lost, with a reason that names it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from learner_core.learning import element_order as rules
from learner_core.learning.element_order import Elements, Lost, NotFollowedError, NotMapsError
from learner_core.xp import ArrayTree

from .operations import AXES, CHANNEL_NORMS, COPIES, MAPS, NEW, REDUCTIONS, RESHAPES, Arguments, Call

__all__ = ["Follower"]

Tracked = Elements | Lost

_SAME = frozenset(
    "clone detach alias _to_copy contiguous lift lift_fresh lift_fresh_copy positive native_dropout hardswish prelu "
    "_prelu_kernel rsub fill log_sigmoid_forward rrelu_with_noise floor_divide "
    "copy zero bernoulli".split()
)
#: They treat whole lines alike, and keep the places in them.
_LINES = frozenset("native_layer_norm _fused_rms_norm _softmax _log_softmax".split())
_MOVES = frozenset(
    "unsqueeze squeeze slice select roll rot90 diagonal narrow unbind split split_with_sizes chunk unfold "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle index_select index unsafe_split "
    "unsafe_split_with_sizes".split()
)
#: Along axes: both layouts do the same to the same elements in the same order.
_SCANS = frozenset("cumsum cumprod logcumsumexp cummax cummin flip".split())
#: What Torch and others have in different orders even where their arrays are alike.
_OWN_ORDER = frozenset("im2col col2im".split())


class Follower(TorchDispatchMode):
    """Follows the elements of observations through what a network computes.

    Attributes:
        reasons: name of a parameter -> why its weights have no counterpart; filled by operations that use parameters
            directly.
        reordered: there was an array that has another order channels last.
        maps: dense layers whose features are read as maps -> channels, height, width (or more, or fewer).
        paused: operations are not followed while it is positive: a layer whose results are known computes.
    """

    def __init__(self, parameters: dict[int, str]) -> None:
        super().__init__()
        # The tensors are kept: an id or an address alone could come back as another one's.
        self._states: dict[int, tuple[torch.Tensor, Tracked, tuple[int, ...]]] = {}
        self._learned: dict[int, tuple[Any, frozenset[str]]] = {
            identity: (None, frozenset([name])) for identity, name in parameters.items()
        }
        self._written: dict[int, tuple[torch.Tensor, Tracked]] = {}
        self.reasons: dict[str, str] = {}
        self._makers: dict[int, tuple[torch.Tensor, frozenset[str]]] = {}
        self.maps: dict[str, tuple[int, ...]] = {}
        self.reordered = False
        self.paused = 0

    # ------------------------------------------------------------------ what is known of a tensor

    def start(self, obs: ArrayTree) -> None:
        """Number the observations in the order they come in."""
        if isinstance(obs, torch.Tensor):
            self.set(obs, rules.fresh(tuple(obs.shape), raw=True))
        else:
            for value in obs.values():
                self.start(value)

    def of(self, tensor: object) -> Tracked | None:
        """``None``: it does not depend on observations."""
        if not isinstance(tensor, torch.Tensor):
            return None
        entry = self._states.get(id(tensor))
        if entry is not None:
            return entry[1]
        if _address(tensor) not in self._written:
            return None
        written = self._written[_address(tensor)][1]
        return rules.fresh(tuple(tensor.shape)) if isinstance(written, Elements) else written

    def set(self, tensor: torch.Tensor, state: Tracked) -> None:
        if isinstance(state, Elements) and state.shape != tuple(tensor.shape):
            state = Lost("an operation's result has another shape than it should have")
        self.reordered = self.reordered or not _is_plain(state)
        self._states[id(tensor)] = (tensor, state, tuple(tensor.stride()))

    def names(self, tensor: object) -> frozenset[str]:
        """Parameters that a tensor which does not depend on observations is made of."""
        entry = self._learned.get(id(tensor))
        return frozenset() if entry is None else entry[1]

    def learned(self, tensor: torch.Tensor, names: frozenset[str]) -> None:
        """It is made of these parameters alone."""
        if names:
            self._learned[id(tensor)] = (tensor, names)

    def makers(self, tensor: torch.Tensor) -> frozenset[str]:
        """Dense layers whose features these are, in their order."""
        entry = self._makers.get(id(tensor))
        return frozenset() if entry is None else entry[1]

    def made_by(self, tensor: torch.Tensor, makers: frozenset[str]) -> None:
        if makers:
            self._makers[id(tensor)] = (tensor, makers)

    def read_as_maps(self, tensor: torch.Tensor) -> None:
        """It is read as maps, and is none that a network channels last would have."""
        state = self.of(tensor)
        if isinstance(state, Elements) and state.plain and tensor.ndim > 2:
            self.maps.update(dict.fromkeys(self.makers(tensor), tuple(tensor.shape[1:])))

    # ------------------------------------------------------------------ one operation

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Arguments = (), kwargs: dict[str, object] | None = None
    ) -> object:
        outputs = func(*args, **(kwargs or {}))
        if not self.paused:
            call = Call(func, args, kwargs or {}, outputs)
            try:
                self._note(call)
            except Exception as error:
                # An operation with arguments that nobody thought of: the network itself is none the worse.
                lost = Lost(call.said(f"it cannot be followed ({type(error).__name__}: {error})"))
                for tensor in [*call.outputs, *(call.inputs[:1] if call.mutates else [])]:
                    self.set(tensor, lost)
                self._blame(call, lost.reason)
        return outputs

    def _note(self, call: Call) -> None:
        states = [self.of(tensor) for tensor in call.inputs]
        if call.name in NEW:
            return
        if not any(state is not None for state in states):
            names = frozenset().union(*(self.names(tensor) for tensor in call.inputs))
            for tensor in call.outputs:
                self.learned(tensor, names)
            return
        results = self._results(call, states)
        if call.mutates:
            self._wrote(call.inputs[0], results[0])
            return
        makers = frozenset[str]().union(*map(self.makers, call.inputs))
        for tensor, state in zip(call.outputs, results, strict=True):
            self.set(tensor, state)
            if call.is_elementwise or call.name in _SAME or call.name in RESHAPES:
                self.made_by(tensor, makers)

    def _results(self, call: Call, states: list[Tracked | None]) -> list[Tracked]:
        lost = next((state for state in states if isinstance(state, Lost)), None)
        try:
            if lost is not None:
                raise NotFollowedError(lost.reason)
            followed = self._follow(call, states)
            results = [*followed, *[Lost(call.said("only its first result is followed"))] * len(call.outputs)]
            return results[: max(len(call.outputs), 1)]
        except NotFollowedError as error:
            if isinstance(error, NotMapsError):
                self.read_as_maps(call.inputs[0])
            reason = lost.reason if lost is not None else call.said(str(error))
            self._blame(call, reason)
            return [Lost(reason)] * max(len(call.outputs), 1)

    def _blame(self, call: Call, reason: str) -> None:
        """Its own parameters stand in places that are not known."""
        for tensor in call.inputs:
            for name in self.names(tensor):
                self.reasons.setdefault(name, reason)

    def _wrote(self, target: torch.Tensor, after: Tracked) -> None:
        """An operation in place: what shares the memory has changed, too."""
        before = self.of(target)
        if _alike(before, after):
            return
        plain = isinstance(after, Elements) and after.plain and (before is None or _is_plain(before))
        address = _address(target)
        self._states = {k: entry for k, entry in self._states.items() if _address(entry[0]) != address}
        whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
        now = after if plain or isinstance(after, Lost) else Lost("it was written in place, in parts")
        self._written[address] = (target, now)
        if whole:
            self.set(target, after)

    # ------------------------------------------------------------------ the rules, by name

    def _follow(self, call: Call, states: list[Tracked | None]) -> list[Tracked]:
        known = [state for state in states if isinstance(state, Elements)]
        name, shape = call.name, call.shape
        first = states[0] if isinstance(states[0], Elements) else None
        self._weights_fit(call, known)
        if name in _LINES:
            for elements in known:
                rules.lines(elements, "it")
        if call.is_elementwise or name in _SAME or name in _LINES:
            operands = [state if isinstance(state, Elements) else None for state in states]
            shapes = [tuple(tensor.shape) for tensor in call.inputs]
            return [rules.combined(operands, shapes, shape)] * (1 if name != "native_dropout" else 2)
        if name in ("cat", "concat", "stack"):
            return [self._join(call, states)]
        if name in ("mm", "addmm", "bmm", "baddbmm", "matmul"):
            return [self._multiply(call)]
        if "scaled_dot_product" in name and len(known) == 3:
            keys = rules.moved(known[1], lambda numbers: np.swapaxes(numbers, -1, -2), axes=True)
            return [rules.multiplied(rules.multiplied(known[0], keys), known[2])]
        if name == "convolution":
            return [self._convolve(call)]
        if name == "constant_pad_nd" and first is not None:
            return [self._pad(call, first)]
        if first is None or len(known) > 1:
            return self._unknown(call, known)
        if name in RESHAPES:
            return [rules.reshaped(first, shape)]
        if name in AXES or name in _MOVES:
            return self._move(call, first)
        if name == "as_strided" and self._is_as_it_was(call):
            return [first]
        if name in COPIES:
            return [rules.spread(first, call.on_numbers)]
        if name in ("sort", "topk"):
            axis = call.argument("dim", -1)
            return list(rules.ranked(first, axis, shape[axis]))
        if name in _SCANS:
            axes = call.argument("dims", call.argument("dim", -1))
            for axis in [axes] if isinstance(axes, int) else axes:
                rules.kept_along(first, axis, "it")
            return [first] * len(call.outputs)
        if name in REDUCTIONS:
            return self._reduce(call, first)
        if name in CHANNEL_NORMS:
            return [self._normalize(first)]
        if any(part in name for part in MAPS) and first.numbers.ndim in (4, 5) and "unpool" not in name:
            return [rules.mapped(first, 1, shape[2:])[1]]
        if name == "glu":
            return [self._gate(call, first)]
        return self._unknown(call, known)

    def _weights_fit(self, call: Call, known: list[Elements]) -> None:
        """Parameters used outside of known layers must meet elements that are in order."""
        if all(elements.plain for elements in known):
            return
        weights = [tensor for tensor in call.inputs if self.names(tensor)]
        for tensor in weights:
            shape = tuple(tensor.shape)
            if not call.is_elementwise or not all(rules.aligned(elements, shape) for elements in known):
                for name in self.names(tensor):
                    self.reasons.setdefault(
                        name, call.said("it is used on elements that have another order channels last")
                    )

    def _unknown(self, call: Call, known: list[Elements]) -> list[Tracked]:
        if call.name in _OWN_ORDER:
            raise NotFollowedError("the order of what it makes is Torch's own")
        if all(elements.plain for elements in known):
            return [rules.fresh(tuple(tensor.shape)) for tensor in call.outputs]
        if len(known) == 1 and not any(map(self.names, call.inputs)) and call.treats_elements_alone():
            return [known[0]]
        raise NotFollowedError("what it does to elements that have another order channels last is not known")

    def _join(self, call: Call, states: list[Tracked | None]) -> Tracked:
        parts = [
            (state if isinstance(state, Elements) else None, tuple(tensor.shape))
            for state, tensor in zip(states, call.inputs, strict=True)
        ]
        axis = call.argument("dim", 0)
        if call.name == "stack":
            axis %= len(call.shape)
            parts = [
                (
                    None if state is None else rules.moved(state, lambda numbers: np.expand_dims(numbers, axis)),
                    (*shape[:axis], 1, *shape[axis:]),
                )
                for state, shape in parts
            ]
        return rules.joined(parts, axis % len(call.shape), stacked=call.name == "stack")

    def _multiply(self, call: Call) -> Tracked:
        added = call.inputs[0] if call.name in ("addmm", "baddbmm") else None
        left, right = call.inputs[-2:]
        of_left, of_right = self.of(left), self.of(right)
        if isinstance(of_left, Elements) and isinstance(of_right, Elements):
            product = rules.multiplied(of_left, of_right)
        elif isinstance(of_left, Elements):
            rules.kept_along(of_left, -1, "it")
            product = rules.mixed(of_left, -1, right.shape[-1])[1]
        elif isinstance(of_right, Elements):
            rules.kept_along(of_right, -2, "it")
            if not of_right.plain:
                raise NotFollowedError("its columns have another order channels last")
            product = rules.fresh(call.shape)
        else:
            product = rules.fresh(call.shape)
        if added is None or self.of(added) is None:
            return product
        return rules.combined([self._elements(added), product], [tuple(added.shape), call.shape], call.shape)

    def _elements(self, tensor: torch.Tensor) -> Elements | None:
        state = self.of(tensor)
        return state if isinstance(state, Elements) else None

    def _convolve(self, call: Call) -> Tracked:
        maps, weight = call.inputs[:2]
        elements = self._elements(maps)
        if elements is None or self.of(weight) is not None:
            raise NotFollowedError("its weights depend on observations")
        order, made = rules.mapped(elements, 1, call.shape[2:], call.shape[1])
        if (np.diff(order) < 0).any():
            raise NotFollowedError("the channels that it reads have another order channels last")
        return made

    def _pad(self, call: Call, elements: Elements) -> Tracked:
        before, after = elements.shape, call.shape
        if not elements.plain and len(after) in (4, 5) and before[:2] == after[:2]:
            return rules.mapped(elements, 1, after[2:])[1]
        return rules.padded(elements, after)

    def _move(self, call: Call, elements: Elements) -> list[Tracked]:
        if any(self.of(tensor) is not None or self.names(tensor) for tensor in call.inputs[1:]):
            raise NotFollowedError("where its elements go depends on data")
        reorders, along = call.name in AXES, self._picks_along(call, elements)
        made: list[Tracked] = []
        for index in range(len(call.outputs)):
            move = functools.partial(call.on_numbers, index=index)
            shuffles = call.name in ("pixel_shuffle", "pixel_unshuffle")
            made.append(rules.moved(elements, move, axes=reorders, along=along, shuffles=shuffles))
        return made

    def _picks_along(self, call: Call, elements: Elements) -> list[int]:
        """The axes along which it tells entries apart by their places."""
        if call.name in AXES or call.name in ("unsqueeze", "squeeze", "pixel_shuffle", "pixel_unshuffle"):
            return []
        axes = call.argument("dim", call.argument("dims", call.argument("dimension", None)))
        if axes is None or axes == []:
            return list(range(elements.numbers.ndim))
        return [axes] if isinstance(axes, int) else list(axes)

    def _reduce(self, call: Call, elements: Elements) -> list[Tracked]:
        axes = call.argument("dim", None)
        axes = [axes] if isinstance(axes, int) else list(axes or range(elements.numbers.ndim))
        axes = [axis % max(elements.numbers.ndim, 1) for axis in axes]
        made: Tracked = rules.reduced(elements, axes, keepdims=bool(call.argument("keepdim", False)))
        if call.name in ("argmax", "argmin"):
            return [self._places(elements, axes, made)]
        places = call.name in ("max", "min", "median") and len(call.outputs) > 1
        return [made, self._places(elements, axes, made) if places else made]

    def _places(self, elements: Elements, axes: list[int], made: Tracked) -> Tracked:
        try:
            if len(axes) != 1 and not elements.plain:
                raise NotFollowedError("it counts elements that have another order channels last")
            rules.kept_along(elements, axes[0], "its count")
        except NotFollowedError as error:
            return Lost(str(error))
        return made

    def _normalize(self, elements: Elements) -> Tracked:
        if elements.numbers.ndim == 2:
            return elements
        order, _ = rules.mapped(elements, 1, elements.shape[2:])
        if (np.diff(order) < 0).any():
            raise NotFollowedError("the channels that it reads have another order channels last")
        return elements

    def _is_as_it_was(self, call: Call) -> bool:
        """Whether ``as_strided`` leaves each element where it was: only strides of axes of length 1 are others."""
        entry, made = self._states.get(id(call.inputs[0])), call.outputs[0]
        if entry is None or not isinstance(entry[1], Elements) or entry[1].shape != call.shape:
            return False
        pairs = zip(call.shape, entry[2], made.stride(), strict=True)
        same = made.storage_offset() == 0 and made.untyped_storage().nbytes() == made.numel() * made.element_size()
        return same and all(before == after for length, before, after in pairs if length > 1)

    def _gate(self, call: Call, elements: Elements) -> Tracked:
        axis = call.argument("dim", -1)
        parts = np.split(elements.numbers, 2, axis)
        halves = [rules.moved(elements, functools.partial(_picked, part), along=[axis]) for part in parts]
        return rules.combined(halves, [call.shape] * 2, call.shape)


def _picked(part: np.ndarray, _: np.ndarray) -> np.ndarray:
    return part


def _address(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _alike(before: Tracked | None, after: Tracked) -> bool:
    both = isinstance(before, Elements) and isinstance(after, Elements)
    return both and np.array_equal(before.numbers, after.numbers)  # type: ignore[union-attr]


def _is_plain(state: Tracked) -> bool:
    return isinstance(state, Elements) and state.plain
