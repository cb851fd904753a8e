"""Reducing TensorFlow tensors over learners: through Horovod.

Needs tensorflow; Horovod only where it is asked for (``learner-core horovod build``). ``torch.distributed`` does not
take TensorFlow's tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from learner_core.errors import LearnerGroupError
from learner_core.group.collectives import Collective
from learner_core.group.horovod.rank import HorovodRank

from .compile import traced

__all__ = ["HorovodCollective", "make_collective"]


def make_collective(name: str, device: str) -> Collective | None:
    """One rank's end of a ring for tensors on ``device``; ``None``: TensorFlow has no collective of this name."""
    return HorovodCollective(device) if name == "horovod" else None


class HorovodCollective(HorovodRank):
    """One rank of a Horovod ring. Results are new tensors.

    On the wire an operation has the name of its graph node, so every one runs inside a ``tf.function`` under the name
    that Horovod's Torch half would give it; that is what lets rings of both frameworks form. XLA cannot compile a node
    of Horovod's on the CPU: call this from a plain ``tf.function`` between two compiled ones.

    Args:
        device: of the vectors to reduce.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._functions: dict[tuple[str, str, int], Callable[[tf.Tensor], tf.Tensor]] = {}

    def prepare(self) -> None:
        try:
            import horovod.tensorflow as hvd
        except (ImportError, tf.errors.OpError) as error:
            raise LearnerGroupError(
                f'collective="horovod": Horovod for tensorflow {tf.__version__} is not installed ({error}): '
                "run `learner-core horovod build`"
            ) from error
        if "GPU" in self._device and not hvd.nccl_built():
            raise LearnerGroupError(
                'collective="horovod" on a GPU: this Horovod has no NCCL, every gradient would visit the host: '
                "build it with `learner-core horovod build --gpu`"
            )
        self._hvd = hvd

    def allreduce_flat_(self, flat: tf.Tensor, *, name: str = "flat_grad") -> tf.Tensor:
        return self._call("allreduce", flat, name, 0)

    def broadcast(self, flat: tf.Tensor, *, root: int = 0, name: str = "flat") -> tf.Tensor:
        return self._call("broadcast", flat, name, root)

    def barrier(self) -> None:
        with tf.device(self._device):
            self.allreduce_flat_(tf.zeros(1), name="barrier")

    def _call(self, kind: str, flat: tf.Tensor, name: str, root: int) -> tf.Tensor:
        from horovod.tensorflow import mpi_ops

        def operation(x: tf.Tensor) -> tf.Tensor:
            wire = f"{kind}.{name}"
            if kind == "allreduce":
                return mpi_ops._allreduce(x, name=wire, op=mpi_ops.Sum, ignore_name_scope=True)
            return mpi_ops.broadcast(x, root, name=wire, ignore_name_scope=True)

        if tf.inside_function():
            return operation(flat)
        if (kind, name, root) not in self._functions:
            # A function per name: two nodes of one name in one graph would become "name" and "name_1".
            self._functions[kind, name, root] = traced(operation)
        with _peers(), tf.device(self._device):
            return self._functions[kind, name, root](flat)


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """An operation of the ring fails when somebody has left it."""
    try:
        yield
    except tf.errors.OpError as error:
        raise LearnerGroupError(f'collective="horovod": another rank has left the ring: {error.message}') from error
