"""The actors of one group: placed together, fed from the object store, gone together.

docs/decisions/launchers.md says why.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from learner_core.errors import LearnerGroupError
from learner_core.plugins import discovery
from learner_core.state.tree import Plain
from learner_core.xp import ArrayTree, Columns

from ..collectives import Place, load_collective
from ..launchers import Member
from ..worker import LearnerWorker
from .actor import RayMember, start_actor, wait_for
from .cluster import RayOptions, connect, import_ray, make_room
from .own import hold, release

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.placement_group import PlacementGroup

    from learner_core.config.algorithm_settings import AlgorithmSettings

__all__ = ["RayFleet", "StoreWorker"]

_LOOPBACK = "127.0.0.1"
#: Seconds for a node to take a connection.
_CALL_S = 3.0
#: Seconds for Ray to take back what was reserved.
_REMOVE_S = 3.0


class StoreWorker(LearnerWorker):
    """A learner in an actor: its batches are objects of Ray's store, one copy per machine.

    Args:
        framework, collective: imported now, before the driver counts seconds.
    """

    def __init__(self, framework: str, collective: str) -> None:
        super().__init__()
        # What cannot be imported here will say so where it is used.
        with contextlib.suppress(Exception):
            discovery.load("learner_core.backends", framework)
            importlib.import_module("learner_core.learning.learner")
            if collective:
                load_collective(collective).preload(framework)

    def fetch(self, where: Mapping[str, Plain]) -> ArrayTree:
        """The batch, its arrays read-only views of the store."""
        ray = import_ray()
        try:
            return ray.get(where["reference"][0], timeout=where["fetch_timeout_s"])
        except ray.exceptions.RayError as error:
            raise LearnerGroupError(
                f"the batch did not come from Ray's object store: {type(error).__name__}: {error}"
            ) from error


class RayFleet:
    """See ``launchers.Fleet``.

    Args:
        config: frozen configuration.

    Raises:
        LearnerGroupError: Ray is not installed or not reachable, or an option is none.
    """

    def __init__(self, config: AlgorithmSettings) -> None:
        self._config = config
        self._options = RayOptions.of(config.launcher_options)
        gpus = config.num_gpus_per_learner
        if gpus > 1 and gpus != int(gpus):
            raise LearnerGroupError(f"num_gpus_per_learner={gpus}: more than one GPU each must be a whole number")
        self._num_cpus = float(config.num_learners * config.num_cpus_per_learner)
        self._ray = connect(self._options, self._num_cpus + self._options.num_cpus_of_runners(config))
        self._room: PlacementGroup | None = None
        self._members: list[RayMember] = []
        self._batch: ObjectRef[object] | None = None

    def start(self, frameworks: Sequence[str], collective: str) -> Sequence[Member]:
        """As :meth:`Fleet.start`; waits until the actors' processes run, at most ``start_timeout_s``."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        silent = self._silent_nodes()
        self._leave()
        config = self._config
        bundle = {"CPU": float(config.num_cpus_per_learner), **self._options.resources}
        if config.num_gpus_per_learner:
            bundle["GPU"] = float(config.num_gpus_per_learner)
        deadline = time.monotonic() + self._options.start_timeout_s
        what = f"num_learners={len(frameworks)}"
        self._room = make_room([bundle] * len(frameworks), self._options, what, avoid=silent)
        hold(self, self._num_cpus)
        self._members = []
        try:
            for rank, framework in enumerate(frameworks):
                place = PlacementGroupSchedulingStrategy(self._room, placement_group_bundle_index=rank)
                handle = start_actor(
                    functools.partial(StoreWorker, framework, collective),
                    num_cpus=config.num_cpus_per_learner,
                    num_gpus=config.num_gpus_per_learner,
                    resources=self._options.resources or None,
                    scheduling_strategy=place,
                )
                self._members.append(RayMember(rank, handle))
            self._await_start(deadline)
        except BaseException:
            for member in self._members:
                member.kill()
            self._leave()
            raise
        return self._members

    def _silent_nodes(self) -> set[str]:
        """Nodes that seem to have gone: of members long silent when others were heard, and answering no call now."""
        newest = max((member.last_sign for member in self._members), default=0.0)
        silent = {m.host for m in self._members if newest - m.last_sign > self._config.timeout_s / 2} - {""}
        for node in self._ray.nodes() if silent else ():
            if node["NodeID"] in silent:
                with contextlib.suppress(OSError):
                    socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _CALL_S).close()
                    silent.discard(node["NodeID"])  # its process was stopped, the machine was not
        return silent

    def _await_start(self, deadline: float) -> None:
        for member in self._members:
            while not member.pid:
                ending = member.ending(0.02)
                if ending is not None:
                    raise LearnerGroupError(f"learner {member.rank} did not start: {ending.reason}")
                if time.monotonic() > deadline:
                    raise LearnerGroupError(
                        f"learner {member.rank} did not start in {self._options.start_timeout_s:g} s: wait longer "
                        "(launcher_options={'start_timeout_s': ...}), or see Ray's logs"
                    )
                member.hear()

    def build_arguments(self, rank: int) -> dict[str, object]:
        """As :meth:`Fleet.build_arguments`: Ray itself gives an actor its GPUs."""
        hidden = {} if self._config.num_gpus_per_learner else {"CUDA_VISIBLE_DEVICES": ""}
        return {"environment": hidden, "num_threads": self._config.num_cpus_per_learner}

    def places(self) -> Sequence[Place]:
        """As :meth:`Fleet.places`: by the nodes' addresses, or by loopback where all are on the driver's node."""
        here = self._ray.get_runtime_context().get_node_id()
        if all(member.host == here for member in self._members):
            return [Place(member.host, _LOOPBACK) for member in self._members]
        return [Place(member.host, member.address) for member in self._members]

    @property
    def shares_files(self) -> bool:
        """Whether rank 0 is on the driver's machine."""
        return bool(self._members[0].host == self._ray.get_runtime_context().get_node_id())

    def put_batch(self, batch: Columns) -> Mapping[str, object]:
        """As :meth:`Fleet.put_batch`: one object, whatever the number of learners.

        Raises:
            LearnerGroupError: the store cannot take it.
        """
        try:
            self._batch = self._ray.put(batch)
        except Exception as error:
            raise LearnerGroupError(
                f"the batch cannot be put into Ray's object store: {type(error).__name__}: {error}"
            ) from error
        # In a list, it is fetched by the learner, within a bounded time, and not by Ray before the learner is asked.
        return {"reference": [self._batch], "fetch_timeout_s": self._options.fetch_timeout_s}

    def wait(self, members: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """As :meth:`Fleet.wait`."""
        return wait_for(members, timeout_s)

    def close(self) -> None:
        """As :meth:`Fleet.close`."""
        self._batch = None
        self._members = []  # with what they have been asked for
        self._leave()

    def _leave(self) -> None:
        release(self)
        room, self._room = self._room, None
        if room is not None and self._ray.is_initialized():
            # Ray answers when all machines have, and waits two minutes for one that is gone.
            removing = threading.Thread(target=self._remove, args=(room,), name="ray-room", daemon=True)
            removing.start()
            removing.join(_REMOVE_S)

    def _remove(self, room: PlacementGroup) -> None:
        with contextlib.suppress(Exception):
            self._ray.util.remove_placement_group(room)
