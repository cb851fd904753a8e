"""A Ray of our own: who uses it, and whether another run fits, or a larger Ray may take its place.

Such a Ray does not grow: what does not fit is refused at once. It has been sized by the first run; a later, larger run
of the same process gets a new one where nothing of the old one is in use any more.
"""

from __future__ import annotations

import gc
import math
import time
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from learner_core.errors import LearnerGroupError

__all__ = ["hold", "make_fit", "release"]

#: Seconds in which Ray has heard of the end of those that have been ended.
_SETTLE_S = 5.0
_SLACK = 1e-6
#: CPUs by who takes them: fleets of learners, and launchers of environment runners.
_held: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()


def hold(owner: object, num_cpus: float) -> None:
    """These CPUs are ``owner``'s, until it releases them or is no more."""
    _held[owner] = num_cpus


def release(owner: object) -> None:
    """It needs none any more; may be called twice."""
    _held.pop(owner, None)


def make_fit(ray: ModuleType, num_cpus: float) -> bool:
    """Whether a Ray of our own has to be made anew for a run that takes so many CPUs more.

    Returns:
        ``True``: the old one has been shut down, and nothing of it was in use. ``False``: the run fits.

    Raises:
        LearnerGroupError: it does not fit, and the Ray is in use.
    """
    total = float(ray.cluster_resources().get("CPU", 0.0))
    held = sum(_held.values())
    if num_cpus <= total - held + _SLACK:
        return False
    users = "learners or environment runners of an earlier run" if held else _users(ray)
    if users:
        raise LearnerGroupError(
            f'launcher="ray": this run needs {num_cpus:g} CPUs. The Ray that an earlier run of this process has started'
            f" has {total:g}, of which {held:g} are taken, does not grow, and cannot be made anew, because of {users}. "
            "End those first (algo.stop(), group.shutdown()), or start one that is large enough before the first run: "
            f"ray.init(num_cpus={math.ceil(held + num_cpus)})"
        )
    ray.shutdown()
    return True


def _users(ray: ModuleType) -> str:
    """What uses this Ray, in words; "" if nothing does."""
    until = time.monotonic() + _SETTLE_S
    while True:
        gc.collect()
        found = _user(ray)
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.1)


def _user(ray: ModuleType) -> str:
    try:
        actors: Mapping[str, Any] = ray._private.state.actors()
        references = ray._private.worker.global_worker.core_worker.get_all_reference_counts()
    except AttributeError:
        return f"what this version of Ray ({ray.__version__}) does not tell"
    if any(actor["State"] != "DEAD" for actor in actors.values()):
        return "actors that live"
    if any(room["state"] != "REMOVED" for room in ray.util.placement_group_table().values()):
        return "placement groups"
    return "objects that this process refers to" if references else ""
