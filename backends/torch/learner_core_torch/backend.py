"""Arrays, gradients and loops on Torch.

Needs torch. Gradients are ordinary autograd, so modules may use whatever autograd supports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from learner_core.backend import (
    ArrayDict,
    Aux,
    Backend,
    Body,
    Function,
    Gradient,
    Groups,
    Loop,
    Loss,
    NetworkSpec,
    OptimizerRule,
    Params,
    Reduce,
    RunSettings,
    loss_groups,
)
from learner_core.errors import ConfigError
from learner_core.xp import Array, ArrayTree

from . import xp as torch_xp
from .compile import CompiledLoop, SplitLoop, compile_pays_after
from .large_vectors import LargeVectors, is_large
from .value_reads import ValueReads

if TYPE_CHECKING:
    from learner_core.exporting.source import ExportedPolicy
    from learner_core.group.collectives import Collective

    from .modules import NetworkModule

__all__ = ["TorchBackend"]


class TorchBackend(Backend):
    """Torch on one device; see :class:`learner_core.backend.Backend`."""

    name: ClassVar[str] = "torch"
    xp = torch_xp

    def __init__(self, *, device: str = "auto", precision: str = "float32") -> None:
        super().__init__(device=device, precision=precision)
        self.check_precision()
        self.torch_device = _device(device)
        self.reads_are_free = self.torch_device.type == "cpu"
        self._large = LargeVectors()

    @classmethod
    def limit_threads(cls, num_threads: int) -> None:
        torch.set_num_threads(num_threads)

    def from_numpy(self, tree: ArrayTree) -> ArrayTree:
        if isinstance(tree, Mapping):
            return {key: self.from_numpy(value) for key, value in tree.items()}
        array = np.asarray(tree)
        # Of ml_dtypes' kinds this one is carried; numpy's own dtypes are not asked for their names, which is slow.
        if array.dtype.kind == "V" and array.dtype.name == "bfloat16":
            tensor = torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(np.array(array, order="C", copy=True))
        return tensor if self.torch_device.type == "cpu" else tensor.to(self.torch_device)

    def view_numpy(self, tree: ArrayTree) -> ArrayTree:
        if isinstance(tree, Mapping):
            return {key: self.view_numpy(value) for key, value in tree.items()}
        shares = tree.device.type == "cpu" and tree.dtype != torch.bfloat16 and tree.is_contiguous()
        return tree.detach().numpy() if shares else self.to_numpy(tree)

    def adopt_numpy(self, array: np.ndarray) -> Array:
        if self.torch_device.type != "cpu" or array.dtype.kind == "V" or not array.flags.c_contiguous:
            return self.from_numpy(array)
        return torch.from_numpy(array)

    def to_numpy(self, tree: ArrayTree) -> ArrayTree:
        if isinstance(tree, Mapping):
            return {key: self.to_numpy(value) for key, value in tree.items()}
        tensor = tree.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            import ml_dtypes

            return np.array(tensor.contiguous().view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.array(tensor.numpy(), order="C", copy=True)

    def gradients(
        self,
        loss_fn: Callable[[dict[str, ArrayDict]], tuple[Mapping[str, Loss], Aux]],
        params: Params,
        groups: Groups,
    ) -> tuple[dict[str, ArrayDict], Aux]:
        with torch.enable_grad():
            leaves = {
                mid: {name: value.detach().requires_grad_(True) for name, value in arrays.items()}
                for mid, arrays in params.items()
            }
            losses, aux = loss_fn(leaves)
        gradients: dict[str, ArrayDict] = {mid: dict.fromkeys(arrays) for mid, arrays in params.items()}
        wanted = loss_groups(losses, leaves, groups)
        for position, (loss, names) in enumerate(wanted):
            if not (loss.requires_grad and names):
                self.note_reach(names, [False] * len(names))
                continue
            sources = [leaves[mid][name] for mid, name in names]
            found = torch.autograd.grad(loss, sources, retain_graph=position + 1 < len(wanted), allow_unused=True)
            self.note_reach(names, [gradient is not None for gradient in found])
            for (mid, name), gradient in zip(names, found, strict=True):
                gradients[mid][name] = gradient
        for mid, arrays in gradients.items():
            for name, gradient in arrays.items():
                if gradient is None:
                    arrays[name] = torch.zeros_like(params[mid][name])
        return gradients, _detached(aux)

    def squared_norm(self, vector: Array) -> Array:
        return self._large.squared_norm(vector) if is_large(vector) else super().squared_norm(vector)

    def optimizer_update(
        self,
        spec: OptimizerRule,
        *,
        params: Array,
        gradients: Array,
        slots: Mapping[str, Array],
        lr: Array,
        corrections: list[Array],
        clip: Callable[[Array], Array] | None = None,
    ) -> tuple[Array, ArrayDict]:
        update = self._large.optimizer_update if is_large(params) else super().optimizer_update
        return update(spec, params=params, gradients=gradients, slots=slots, lr=lr, corrections=corrections, clip=clip)

    def recording(self) -> contextlib.AbstractContextManager[object]:
        return torch.inference_mode(mode=False)

    def why_not_recording(self) -> str:
        return "torch.inference_mode() is on, in which Torch records none" if torch.is_inference_mode_enabled() else ""

    def scope(self) -> contextlib.AbstractContextManager[object]:
        # A function mode on every operation; not worth its microseconds where the default device is the right one.
        return contextlib.nullcontext() if self.torch_device.type == "cpu" else self.torch_device

    def compile_function(self, function: Function) -> Function:
        return torch.no_grad()(function)

    def value_reads(self) -> ValueReads:
        return ValueReads()

    def adapt_module(self, spec: NetworkSpec) -> NetworkModule:
        from .modules import NetworkModule

        return NetworkModule(spec, self, self.torch_device)

    def export_policy(self, policy: ExportedPolicy, path: Path) -> None:
        from .exporting import export_policy

        export_policy(policy, path, self)

    def export_weights(self, arrays: Mapping[str, np.ndarray], path: Path) -> None:
        from .exporting import save_state_dict

        save_state_dict(arrays, path, self)

    def make_split_loop(
        self,
        gradient: Gradient,
        apply: Body,
        reduce: Reduce,
        *,
        example: tuple[ArrayDict, ArrayDict],
        config: RunSettings,
    ) -> Loop:
        return SplitLoop(gradient, apply, reduce, example, device=self.torch_device)

    def make_collective(self, name: str) -> Collective | None:
        from .collective import make_collective

        return make_collective(name, self.torch_device)

    def compile_after(self, config: RunSettings) -> int | None:
        return compile_pays_after(self.torch_device, config)

    def make_loop(self, body: Body, *, example: tuple[ArrayDict, ArrayDict], config: RunSettings) -> Loop:
        return CompiledLoop(body, example, device=self.torch_device)


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        device = torch.device(name.replace("gpu", "cuda", 1))
    except RuntimeError:
        raise ConfigError(f"device={name!r}: Torch knows no such device; use 'auto', 'cpu' or 'cuda:0'") from None
    if device.type == "cuda":
        found = torch.cuda.device_count() if has_cuda else 0
        if (device.index or 0) >= found:
            raise ConfigError(f"device={name!r}: Torch sees {found} CUDA device(s) here; use device='auto' or 'cpu'")
    return device


def _detached(tree: ArrayTree) -> ArrayTree:
    if isinstance(tree, Mapping):
        return {key: _detached(value) for key, value in tree.items()}
    return tree.detach() if isinstance(tree, torch.Tensor) else tree
