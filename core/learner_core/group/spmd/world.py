"""Which rank this process is, from the environment that a launcher has left: Horovod's, Torch's, MPI's, SLURM's.

Reads variables only (and, where MPI gives the job no name, the number of the parent process). Refuses a process that
nobody has started as a rank, and places that contradict themselves.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from learner_core.errors import LearnerGroupError, did_you_mean
from learner_core.state.tree import Plain

__all__ = ["SpmdOptions", "World", "find_world"]

#: Launchers by the variables they set: (rank, size, rank on this machine, ranks on this machine).
_LAUNCHERS: dict[str, tuple[str, str, str, str]] = {
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH or Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
}  # fmt: skip
_MPI = ("Open MPI", "MPICH or Intel MPI")
#: What launchers call a job, as far as they say; the same on all of its ranks.
_JOB_NAMES = ("TORCHELASTIC_RUN_ID", "PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID")
#: Below those that Linux gives to outgoing connections.
_PORTS = range(20_000, 32_000)
_BY_HAND = (
    "start the script by `horovodrun -np N python SCRIPT`, or start every rank with RANK, WORLD_SIZE, MASTER_ADDR and "
    "MASTER_PORT set (docs/deployment.md)"
)


@dataclass(frozen=True)
class SpmdOptions:
    """``.learners(launcher="spmd", launcher_options={...})``."""

    rendezvous: str = ""
    """"HOST:PORT" where the ranks meet; rank 0 opens it. "": what the environment says."""
    start_timeout_s: float = 120.0
    """Seconds that ranks wait for each other at the start: the slowest has a framework to import."""

    @classmethod
    def of(cls, given: Mapping[str, Plain]) -> SpmdOptions:
        """The options of a config, checked.

        Raises:
            LearnerGroupError: an unknown name, or a value that is none.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in names:
                raise LearnerGroupError(f'launcher_options of "spmd": no option {name!r}.{did_you_mean(name, names)}')
        options = cls(**given)
        seconds = options.start_timeout_s
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
            raise LearnerGroupError(f"launcher_options: start_timeout_s={seconds!r}: a positive number of seconds")
        if not isinstance(options.rendezvous, str):
            raise LearnerGroupError(f'launcher_options: rendezvous={options.rendezvous!r}: "HOST:PORT"')
        return options


@dataclass(frozen=True)
class World:
    """This rank's place.

    Attributes:
        launcher: who started it, in words.
        rank, size: among all.
        local_rank, local_size: among those on this machine.
        address, port: where the ranks meet.
        served: somebody else serves that place (``horovodrun``); otherwise rank 0 does.
        one_machine: it is known that all ranks run on one machine; ``False`` where it is not known.
        job: what the ranks of this job have in common and those of another job, on this machine, have not.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    served: bool
    one_machine: bool
    job: str


def find_world(environment: Mapping[str, str], options: SpmdOptions) -> World:
    """This rank's place.

    Args:
        environment: ``os.environ``.
        options: the launcher's.

    Raises:
        LearnerGroupError: no launcher's variables are set, or some of them are missing or contradict each other.
    """
    found = [launcher for launcher, names in _LAUNCHERS.items() if all(name in environment for name in names[:2])]
    if not found:
        raise LearnerGroupError(f'launcher="spmd": this process was not started as one rank of several: {_BY_HAND}')
    launcher, names = found[0], _LAUNCHERS[found[0]]
    rank, size = (_number(environment, name) for name in names[:2])
    if not 0 <= rank < size:
        raise LearnerGroupError(f"{names[0]}={rank} and {names[1]}={size}: a rank is 0 to {size - 1}")
    local_rank = _number(environment, names[2], default=rank)
    # SLURM writes "2(x3)" and the like: then it is not known, and only matters for GPUs.
    local_size = max(_number(environment, names[3], default=size), local_rank + 1)
    address, port, served = _meeting_point(environment, options, launcher)
    one_machine = _says_one_machine(environment, launcher) or _is_loopback(address)
    job = "|".join([launcher, str(size), address, str(port), *(environment.get(name, "") for name in _JOB_NAMES)])
    return World(launcher, rank, size, local_rank, local_size, address, port, served, one_machine, job)


def _meeting_point(environment: Mapping[str, str], options: SpmdOptions, launcher: str) -> tuple[str, int, bool]:
    if options.rendezvous:
        address, _, digits = options.rendezvous.rpartition(":")
        if not address or not digits.isdigit():
            raise LearnerGroupError(f'launcher_options: rendezvous={options.rendezvous!r}: expected "HOST:PORT"')
        return address, int(digits), False
    horovod = ("HOROVOD_GLOO_RENDEZVOUS_ADDR", "HOROVOD_GLOO_RENDEZVOUS_PORT")
    if launcher == "horovodrun" and all(name in environment for name in horovod):
        return environment[horovod[0]], _number(environment, horovod[1]), True
    named = {"MASTER_ADDR", "MASTER_PORT"} & set(environment)
    if not named and launcher in _MPI and _says_one_machine(environment, launcher):
        return "127.0.0.1", _port_of_job(environment), False
    if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        raise LearnerGroupError(
            f'launcher="spmd" under {launcher}: set MASTER_ADDR and MASTER_PORT on every rank, an address of rank 0\'s '
            "machine and a free port there, or launcher_options={'rendezvous': 'HOST:PORT'}"
        )
    port = _number(environment, "MASTER_PORT")
    if "TORCHELASTIC_RUN_ID" in environment:
        port += 1  # torchrun itself listens at MASTER_PORT
    return environment["MASTER_ADDR"], port, False


def _says_one_machine(environment: Mapping[str, str], launcher: str) -> bool:
    """Whether the launcher says that all ranks run here."""
    if launcher == "SLURM":
        return environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1"
    _, size, _, local_size = _LAUNCHERS[launcher]
    return environment.get(local_size) == environment[size]


def _is_loopback(address: str) -> bool:
    """Whether no other machine can mean this one by that address."""
    return address == "localhost" or (address.startswith("127.") and address.replace(".", "").isdigit())


def _port_of_job(environment: Mapping[str, str]) -> int:
    """The same on all ranks that one ``mpirun`` has started here, and hardly ever that of another's."""
    job = environment.get("PMIX_NAMESPACE") or f"the children of {os.getppid()}"
    return _PORTS[zlib.crc32(job.encode()) % len(_PORTS)]


def _number(environment: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environment.get(name)
    try:
        return int(text)  # type: ignore[arg-type]  # what is no text is refused as well
    except (TypeError, ValueError):
        if default is None:
            raise LearnerGroupError(f"{name}={text!r}: expected a whole number; {_BY_HAND}") from None
        return default
