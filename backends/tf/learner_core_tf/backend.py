"""Arrays, gradients and loops on TensorFlow.

Needs tensorflow. No Keras is involved: parameters are plain tensors, gradients come from ``tf.GradientTape``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import tensorflow as tf

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
    Params,
    Reduce,
    RunSettings,
    loss_groups,
)
from learner_core.errors import ConfigError
from learner_core.xp import Array, ArrayTree

from . import xp as tf_xp
from .compile import CompiledLoop, SplitLoop, traced
from .given_networks import refuse_other_backends

if TYPE_CHECKING:
    from learner_core.exporting.source import ExportedPolicy
    from learner_core.group.collectives import Collective

    from .modules import NetworkModule

__all__ = ["TfBackend"]

_WORTH_ADOPTING = 1 << 20  # bytes


class TfBackend(Backend):
    """TensorFlow on one device; see :class:`learner_core.backend.Backend`."""

    name: ClassVar[str] = "tf"
    xp = tf_xp

    def __init__(self, *, device: str = "auto", precision: str = "float32") -> None:
        super().__init__(device=device, precision=precision)
        self.check_precision()
        self.tf_device = _device(device)

    @classmethod
    def limit_threads(cls, num_threads: int) -> None:
        # TensorFlow refuses once it has computed anything; then its threads are somebody else's choice.
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(num_threads)
            tf.config.threading.set_inter_op_parallelism_threads(num_threads)

    def from_numpy(self, tree: ArrayTree) -> ArrayTree:
        with tf.device(self.tf_device):
            return _from_numpy(tree)

    def view_numpy(self, tree: ArrayTree) -> ArrayTree:
        if isinstance(tree, Mapping):
            return {key: self.view_numpy(value) for key, value in tree.items()}
        return np.asarray(memoryview(tree)) if tree.dtype in (tf.float32, tf.float64) else self.to_numpy(tree)

    def adopt_numpy(self, array: np.ndarray) -> Array:
        # convert_to_tensor always copies; DLPack never does, but kernels abort the process on memory that does not
        # begin at 64 bytes.
        takes_over = array.dtype.kind == "f" and array.flags.c_contiguous and array.ctypes.data % 64 == 0
        if takes_over and array.nbytes >= _WORTH_ADOPTING and self.tf_device == "/CPU:0":
            return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
        with tf.device(self.tf_device):
            return tf.convert_to_tensor(array)

    def to_numpy(self, tree: ArrayTree) -> ArrayTree:
        if isinstance(tree, Mapping):
            return {key: self.to_numpy(value) for key, value in tree.items()}
        return np.asarray(tree.numpy())  # a copy already: that is what .numpy() promises

    def gradients(
        self,
        loss_fn: Callable[[dict[str, ArrayDict]], tuple[Mapping[str, Loss], Aux]],
        params: Params,
        groups: Groups,
    ) -> tuple[dict[str, ArrayDict], Aux]:
        leaves = {mid: {name: tf.identity(value) for name, value in arrays.items()} for mid, arrays in params.items()}
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch([value for arrays in leaves.values() for value in arrays.values()])
            losses, aux = loss_fn(leaves)
            wanted = loss_groups(losses, leaves, groups)
        gradients: dict[str, ArrayDict] = {mid: {} for mid in params}
        for loss, names in wanted:
            sources = [leaves[mid][name] for mid, name in names]
            found = tape.gradient(loss, sources)
            self.note_reach(names, [gradient is not None for gradient in found])
            for (mid, name), gradient in zip(names, found, strict=True):
                if gradient is not None:
                    gradients[mid][name] = tf.convert_to_tensor(gradient)
        del tape
        for mid, arrays in params.items():
            for name, value in arrays.items():
                if name not in gradients[mid]:
                    gradients[mid][name] = tf.zeros_like(value)
        return gradients, aux

    def scope(self) -> contextlib.AbstractContextManager[object]:
        device: contextlib.AbstractContextManager[object] = tf.device(self.tf_device)
        return device

    def compile_function(self, function: Function) -> Function:
        # The number of rows varies between runners and evaluation; each is traced once.
        compiled: Function = traced(function)
        return compiled

    def make_split_loop(
        self,
        gradient: Gradient,
        apply: Body,
        reduce: Reduce,
        *,
        example: tuple[ArrayDict, ArrayDict],
        config: RunSettings,
    ) -> Loop:
        return SplitLoop(gradient, apply, reduce, example, device=self.tf_device)

    def adapt_module(self, spec: NetworkSpec) -> NetworkModule:
        refuse_other_backends("a network of Keras")
        from .modules import NetworkModule

        return NetworkModule(spec, self, self.tf_device)

    def export_policy(self, policy: ExportedPolicy, path: Path) -> None:
        refuse_other_backends("to='keras'")
        from .exporting import export_policy

        export_policy(policy, path, self)

    def make_collective(self, name: str) -> Collective | None:
        from .collective import make_collective

        return make_collective(name, self.tf_device)

    def compile_after(self, config: RunSettings) -> int | None:
        # Eager TensorFlow costs 20 to 40 ms a step; tracing pays within the first update.
        return 0

    def make_loop(self, body: Body, *, example: tuple[ArrayDict, ArrayDict], config: RunSettings) -> Loop:
        return CompiledLoop(body, example, device=self.tf_device)


def _from_numpy(tree: ArrayTree) -> ArrayTree:
    if isinstance(tree, Mapping):
        return {key: _from_numpy(value) for key, value in tree.items()}
    # TensorFlow may take over an aligned numpy buffer without copying it, so the copy is made here.
    return tf.convert_to_tensor(np.array(tree, order="C", copy=True))


def _device(name: str) -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if name == "auto":
        return "/GPU:0" if gpus else "/CPU:0"
    kind, _, index = name.replace("cuda", "gpu", 1).partition(":")
    if kind == "cpu":
        return "/CPU:0"
    if kind != "gpu" or not (index or "0").isdigit():
        raise ConfigError(f"device={name!r}: TensorFlow knows no such device; use 'auto', 'cpu' or 'gpu:0'")
    if int(index or 0) >= len(gpus):
        raise ConfigError(f"device={name!r}: TensorFlow sees {len(gpus)} GPU(s) here; use device='auto' or 'cpu'")
    return f"/GPU:{index or 0}"
