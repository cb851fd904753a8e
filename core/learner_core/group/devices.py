"""Which GPUs a learner sees; without importing a framework."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LearnerGroupError

if TYPE_CHECKING:
    from ..config.algorithm_settings import AlgorithmSettings

__all__ = ["check_gpus", "gpu_environment", "visible_gpus"]


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() and name.strip() != "-1"]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(index) for index in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def check_gpus(config: AlgorithmSettings, size: int) -> None:
    """Refuse ``num_gpus_per_learner`` where this machine has not so many for ``size`` learners.

    Raises:
        LearnerGroupError: says how many there are.
    """
    wanted, found = config.num_gpus_per_learner, visible_gpus()
    if wanted > 1 and wanted != int(wanted):
        raise LearnerGroupError(f"num_gpus_per_learner={wanted}: more than one GPU each must be a whole number")
    if wanted * size > len(found) + 1e-9:
        raise LearnerGroupError(
            f"num_gpus_per_learner={wanted:g}: {size} learner{'s' if size > 1 else ''} here need "
            f"{wanted * size:g} GPUs, this machine shows {len(found)}: use fewer, or num_gpus_per_learner=0"
        )


def gpu_environment(config: AlgorithmSettings, rank: int, size: int) -> dict[str, str]:
    """The environment that gives a learner its GPUs, and no others.

    Args:
        config: ``num_gpus_per_learner``: whole ones each, or a fraction of one that several share.
        rank, size: the learner's place.

    Raises:
        LearnerGroupError: there are not so many.
    """
    wanted = config.num_gpus_per_learner
    if not wanted:
        return {"CUDA_VISIBLE_DEVICES": ""}
    check_gpus(config, size)
    found = visible_gpus()
    if wanted >= 1:
        first = rank * int(wanted)
        return {"CUDA_VISIBLE_DEVICES": ",".join(found[first : first + int(wanted)])}
    return {"CUDA_VISIBLE_DEVICES": found[int(rank * wanted + 1e-9)]}
