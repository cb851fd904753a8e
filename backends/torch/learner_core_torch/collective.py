"""Reducing Torch tensors over learners: through Horovod, or through ``torch.distributed``.

Needs torch; Horovod only where it is asked for (``learner-core horovod build``).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.distributed as dist

from learner_core.errors import LearnerGroupError
from learner_core.group.collectives import Collective
from learner_core.group.horovod.rank import HorovodRank
from learner_core.group.network import interface_of, use_interface

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["HorovodCollective", "TorchCollective", "make_collective"]

#: gloo and NCCL count the time that a learner compiles while the others wait for its sum. Whoever drives the ring
#: notices the dead and the silent long before, and ends them; their sockets close, and everybody waiting hears of it.
_PATIENCE_S = 1800.0


def make_collective(name: str, device: torch.device) -> Collective | None:
    """One rank's end of a ring for tensors on ``device``; ``None``: Torch has no collective of this name."""
    if name == "horovod":
        return HorovodCollective(device)
    if name == "torch":
        return TorchCollective(device)
    return None


class HorovodCollective(HorovodRank):
    """One rank of a Horovod ring. Sums are in place; on the wire names begin with ``allreduce.`` and ``broadcast.``.

    Args:
        device: of the vectors to reduce.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def prepare(self) -> None:
        try:
            import horovod.torch as hvd
        except ImportError as error:
            raise LearnerGroupError(
                f'collective="horovod": Horovod for torch {torch.__version__} is not installed ({error}): '
                'run `learner-core horovod build`, or use collective="torch"'
            ) from error
        if not hasattr(hvd, "allreduce_"):  # it prints and goes on when its binary is missing
            raise LearnerGroupError(
                'collective="horovod": the installed Horovod has no Torch part: run `learner-core horovod build`, '
                'or use collective="torch"'
            )
        if self._device.type == "cuda" and not hvd.nccl_built():
            raise LearnerGroupError(
                'collective="horovod" on CUDA: this Horovod has no NCCL, every gradient would visit the host: use '
                'collective="torch", or build it with `learner-core horovod build --gpu`'
            )
        self._hvd = hvd

    def allreduce_flat_(self, flat: torch.Tensor, *, name: str = "flat_grad") -> torch.Tensor:
        with _peers("horovod"):
            total: torch.Tensor = self._hvd.allreduce_(flat, name=name, op=self._hvd.Sum)
        return total

    def broadcast(self, flat: torch.Tensor, *, root: int = 0, name: str = "flat") -> torch.Tensor:
        with _peers("horovod"):
            sent: torch.Tensor = self._hvd.broadcast_(flat, root, name=name)
        return sent

    def barrier(self) -> None:
        self.allreduce_flat_(torch.zeros(1, device=self._device), name="barrier")


class TorchCollective(Collective):
    """One rank of a ``torch.distributed`` process group: gloo on the CPU, NCCL on CUDA.

    Args:
        device: of the vectors to reduce.
    """

    name: ClassVar[str] = "torch"
    interface_variable: ClassVar[str] = "GLOO_SOCKET_IFNAME"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open = False
        self._store: Store | None = None

    def prepare(self) -> None:
        if not dist.is_available():
            raise LearnerGroupError(
                'collective="torch": this torch was built without torch.distributed: use collective="horovod" '
                "(learner-core horovod build)"
            )

    def choose_interface(self, address: str) -> str:
        return self._use_interface(interface_of(address)) or address

    def _use_interface(self, name: str) -> str:
        if self._device.type != "cuda":
            return use_interface(self.interface_variable, name)
        if name:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)  # what users write there is a pattern, which NCCL checks
        return ""

    def offer(self, address: str, *, timeout_s: float) -> dict[str, str]:
        # A socket of our own: left to itself, the store would listen on every interface.
        with socket.socket() as listener:
            listener.bind((address, 0))
            listener.listen()
            port = listener.getsockname()[1]
            self._store = dist.TCPStore(  # type: ignore[attr-defined]  # re-exported by torch
                address,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=datetime.timedelta(seconds=timeout_s),
                master_listen_fd=listener.detach(),
            )
        return {"port": str(port)}

    def init(self, *, rank: int, size: int, rendezvous: Mapping[str, str], timeout_s: float) -> None:
        self.prepare()
        if dist.is_initialized():
            raise LearnerGroupError('collective="torch": this process is in another torch.distributed group already')
        self._use_interface(rendezvous.get("interface", "lo"))
        with _peers("torch", "the ranks cannot join in a ring"):
            dist.init_process_group(
                "nccl" if self._device.type == "cuda" else "gloo",
                store=self._meet(rendezvous, size, timeout_s),
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(seconds=max(timeout_s, _PATIENCE_S)),
                device_id=self._device if self._device.type == "cuda" else None,
            )
        self.rank, self.size, self._open = rank, size, True

    def _meet(self, rendezvous: Mapping[str, str], size: int, timeout_s: float) -> Store:
        """A file on one machine; on several, the store that rank 0 has opened."""
        if "file" in rendezvous:
            return dist.FileStore(rendezvous["file"], size)  # type: ignore[attr-defined]  # re-exported by torch
        if self._store is not None:
            return self._store
        timeout = datetime.timedelta(seconds=timeout_s)
        return dist.TCPStore(  # type: ignore[attr-defined]  # re-exported by torch
            rendezvous["address"], int(rendezvous["port"]), is_master=False, wait_for_workers=False, timeout=timeout
        )

    def allreduce_flat_(self, flat: torch.Tensor, *, name: str = "flat_grad") -> torch.Tensor:
        with _peers("torch"):
            dist.all_reduce(flat)
        return flat

    def broadcast(self, flat: torch.Tensor, *, root: int = 0, name: str = "flat") -> torch.Tensor:
        with _peers("torch"):
            dist.broadcast(flat, root)
        return flat

    def barrier(self) -> None:
        self.allreduce_flat_(torch.zeros(1, device=self._device))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def abort(self) -> None:
        self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._store = None
            with contextlib.suppress(Exception):
                dist.destroy_process_group()


@contextlib.contextmanager
def _peers(name: str, what: str = "another rank has left the ring") -> Iterator[None]:
    """An operation of the ring fails when somebody has left it."""
    try:
        yield
    except RuntimeError as error:  # HorovodInternalError and torch's DistBackendError are RuntimeErrors
        raise LearnerGroupError(f'collective="{name}": {what}: {error}') from error
