"""An operation of ``aten`` as a dispatch mode sees it, and what groups of them have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch._ops import OpOverload

__all__ = [
    "AXES",
    "CHANNEL_NORMS",
    "COPIES",
    "MAPS",
    "NEW",
    "REDUCTIONS",
    "RESHAPES",
    "Argument",
    "Arguments",
    "Call",
    "named_outputs",
    "tensors_in",
]

Argument: TypeAlias = Any
"""What an operation takes: a tensor, a number, a dtype, or lists of such."""
Arguments: TypeAlias = tuple[Argument, ...]
"""An operation's positional arguments."""

RESHAPES = frozenset("view _unsafe_view reshape _reshape_alias _reshape_copy view_copy flatten unflatten".split())
AXES = frozenset("permute transpose t numpy_T movedim swapaxes permute_copy transpose_copy t_copy".split())
COPIES = frozenset("expand repeat repeat_interleave tile expand_copy".split())
REDUCTIONS = frozenset(
    "mean sum amax amin max min prod var std var_mean std_mean logsumexp norm linalg_vector_norm any all nansum "
    "count_nonzero argmax argmin nanmean median".split()
)
CHANNEL_NORMS = frozenset(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training native_group_norm "
    "_batch_norm_impl_index cudnn_batch_norm _batch_norm_no_update".split()
)
NEW = frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full "
    "new_empty_strided randint_like arange zeros ones empty full scalar_tensor eye linspace".split()
)
#: Parts of the names of what reads maps channel by channel.
MAPS = ("pool", "upsample", "reflection_pad", "replication_pad")


class Call:
    """One operation, its tensors and its arguments by name."""

    def __init__(self, func: OpOverload, args: Arguments, kwargs: Mapping[str, object], outputs: object) -> None:
        self._func, self._args, self._kwargs = func, args, kwargs
        full = func.overloadpacket.__name__
        self.mutates = bool(func._schema.is_mutable) and full not in ("native_batch_norm", "_native_batch_norm_legit")
        self.name = full[:-1] if self.mutates and full.endswith("_") and not full.startswith("__") else full
        self.inputs = list(tensors_in([args, list(kwargs.values())]))
        self.outputs = list(tensors_in(outputs))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first result."""
        return tuple(self.outputs[0].shape)

    @property
    def is_elementwise(self) -> bool:
        return torch.Tag.pointwise in self._func.tags

    def said(self, reason: str) -> str:
        """The reason with the operation's name."""
        return f"{self.name}: {reason}"

    def argument(self, name: str, default: Argument) -> Argument:
        for place, described in enumerate(self._func._schema.arguments):
            if described.name == name:
                if name in self._kwargs:
                    return self._kwargs[name]
                if place < len(self._args):
                    return self._args[place]
                return described.default_value if described.has_default_value() else default
        return default

    def on_numbers(self, numbers: np.ndarray, index: int = 0) -> np.ndarray:
        """The operation on numbers in place of its first tensor; one of its results."""
        made = self._func(torch.from_numpy(np.ascontiguousarray(numbers)), *self._args[1:], **self._kwargs)
        return list(tensors_in(made))[index].numpy()

    def on(self, first: torch.Tensor) -> torch.Tensor:
        """The operation on another first tensor; its first result."""
        made: torch.Tensor = next(tensors_in(self._func(first, *self._args[1:], **self._kwargs)))
        return made

    def treats_elements_alone(self) -> bool:
        """Try whether elements that change places change nothing but the places of the results."""
        only = [tensor for tensor in self.inputs if isinstance(tensor, torch.Tensor)]
        if len(only) != 1 or len(self.outputs) != 1 or self.mutates or only[0] is not self._args[0]:
            return False
        if self.outputs[0].shape != only[0].shape or not only[0].is_floating_point():
            return False
        rng = np.random.default_rng(0)
        values = rng.normal(size=only[0].numel())
        places = rng.permutation(values.size)
        try:
            straight, turned = (self._try(v.reshape(self.shape), only[0]) for v in (values, values[places]))
        except Exception:
            return False
        return bool(np.array_equal(straight.reshape(-1)[places], turned.reshape(-1), equal_nan=True))

    def _try(self, values: np.ndarray, like: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            value = torch.tensor(values, dtype=like.dtype, device=like.device)
            made: np.ndarray = self._func(value, *self._args[1:], **self._kwargs).cpu().double().numpy()
        return made


def tensors_in(tree: object) -> Iterator[torch.Tensor]:
    """The tensors in nested lists and tuples, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors_in(item)


def named_outputs(outputs: object) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of what a network returns: a dict, action inputs and values in this order, or the former alone."""
    if not isinstance(outputs, dict):
        several = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        outputs = dict(zip(("action_dist_inputs", "vf_preds"), several, strict=False))
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor):
            yield str(name), value
