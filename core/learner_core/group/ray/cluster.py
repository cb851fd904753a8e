"""Ray itself: the options of ``launcher="ray"``, connecting to a cluster or starting one, and room for the actors.

Needs Ray where a group is built, and refuses with the command that brings it; importing this file needs nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
import os
import socket
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import TYPE_CHECKING, Literal, get_args

from learner_core.errors import LearnerGroupError, did_you_mean
from learner_core.state.tree import Plain

from ..private_files import open_private, user_folder
from .own import make_fit

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from learner_core.config.algorithm_settings import AlgorithmSettings

__all__ = ["RayOptions", "connect", "describe_room", "import_ray", "make_room"]

#: Seconds for a cluster's address to take a connection.
_KNOCK_S = 10.0
#: Seconds for room to be found without nodes that seem to have gone; in about so many, Ray notices by itself.
_AVOID_S = 60.0
#: Ray's own label of every node.
_NODE_ID = "ray.io/node-id"
#: Addresses of clusters that were started here.
_own: set[str] = set()

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """``.learners(launcher="ray", launcher_options={...})``."""

    placement: Strategy = "PACK"
    """Ray's placement strategy of the learners: PACK: as few machines as possible; SPREAD: as many; STRICT_PACK: one
    machine or none; STRICT_SPREAD: one learner per machine. Gradients travel least with PACK."""

    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources of each learner besides CPUs and GPUs, ``{"accelerator_type:H100": 0.001}``."""

    num_cpus_per_env_runner: float = 1.0
    """CPUs of each environment runner; a fraction shares one."""

    env_runner_resources: dict[str, float] = field(default_factory=dict)
    """Custom resources of each environment runner, to keep them on machines without GPUs, say."""

    start_timeout_s: float = 120.0
    """Seconds for Ray to find room for all actors, to start their processes and to import the framework there; on a
    cluster that grows on demand, what a new machine takes."""

    fetch_timeout_s: float = 60.0
    """Seconds for a batch to come from the object store of one machine to that of another."""

    def num_cpus_of_runners(self, config: AlgorithmSettings) -> float:
        """What all environment runners of a configuration take."""
        return float(config.num_env_runners * self.num_cpus_per_env_runner)

    @classmethod
    def of(cls, given: Mapping[str, Plain]) -> RayOptions:
        """Check the options.

        Raises:
            LearnerGroupError: an unknown name, with the nearest, or a value that is none.
        """
        names = [option.name for option in fields(cls)]
        for name, value in given.items():
            if name not in names:
                raise LearnerGroupError(f'launcher_options of "ray": no option {name!r}.{did_you_mean(name, names)}')
            strategies = get_args(Strategy)
            if name == "placement" and value not in strategies:
                raise LearnerGroupError(f"launcher_options: placement={value!r}: choose from {', '.join(strategies)}")
            if name.endswith("resources") and not (
                isinstance(value, dict) and all(isinstance(k, str) and _positive(v) for k, v in value.items())
            ):
                raise LearnerGroupError(f"launcher_options: {name}={value!r}: a dict of names and positive amounts")
            if (name.endswith("_s") or name.startswith("num_")) and not _positive(value):
                raise LearnerGroupError(f"launcher_options: {name}={value!r}: a positive number")
        return cls(**given)


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def import_ray() -> ModuleType:
    """The module ``ray``.

    Raises:
        LearnerGroupError: it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise LearnerGroupError('launcher="ray": Ray is not installed: pip install "learner-core[ray]"')
    return importlib.import_module("ray")


def connect(options: RayOptions, num_cpus: float) -> ModuleType:
    """Use the Ray that there is, or start one on this machine; returns the module.

    In this order: the Ray that this process is connected to (``ray.init``); the cluster of ``RAY_ADDRESS``, where
    ``auto`` is the one that runs on this machine; else a new one, quiet, without a dashboard, on the loopback interface
    alone, that ends with this process. Nothing is guessed: what a cluster that crashed has left behind makes Ray wait
    for minutes.

    Args:
        options: of the config.
        num_cpus: what the run will ask for, with learners and runners. A new one has at least these: CPUs are Ray's way
            of counting, and more learners than cores is the user's decision, as it is with ``launcher="local"``.

    Raises:
        LearnerGroupError: there is no Ray, the cluster does not answer, this process is a client outside of it, or the
            Ray that was started here for another run is too small for both.
    """
    ray = import_ray()
    address = os.environ.get("RAY_ADDRESS", "")
    client = importlib.import_module("ray.util.client")
    if "://" in address or client.ray.is_connected():
        raise LearnerGroupError(
            'launcher="ray": this process is a Ray Client (ray://...), outside the cluster, where the learners cannot '
            "meet it: run it on a machine of the cluster, by `ray job submit`, say"
        )
    if ray.is_initialized() and not (_is_own(ray) and make_fit(ray, num_cpus)):
        return ray
    quiet = {"include_dashboard": False, "logging_level": logging.ERROR}
    try:
        if address and address != "local":
            _knock(address)
            ray.init(address=address, **quiet)
        else:
            _start(ray, num_cpus, quiet)
    except Exception as error:
        where, advice = "a Ray of our own on this machine", ""
        if address:
            where = f"the cluster of RAY_ADDRESS={address}"
            advice = " (`ray start --head` starts one; without RAY_ADDRESS a new one is started here)"
        raise LearnerGroupError(f'launcher="ray": {where}: {type(error).__name__}: {error}{advice}') from error
    return ray


def _knock(address: str) -> None:
    """Raise ConnectionError where nobody listens: Ray itself would try for minutes."""
    if address == "auto":
        services = importlib.import_module("ray._private.services")
        address = services.canonicalize_bootstrap_address_or_die("auto")
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
        except OSError as error:
            raise ConnectionError(f"nobody answers at {address}: {error}") from error


def _is_own(ray: ModuleType) -> bool:
    return ray.get_runtime_context().gcs_address in _own


def _start(ray: ModuleType, num_cpus: float, quiet: Mapping[str, object]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's default is 15: beside anything else that computes, learners would hardly run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    arguments = {"address": "local", "num_cpus": max(math.ceil(num_cpus), os.cpu_count() or 1), **quiet}
    folder = _folder()
    if folder is not None:
        arguments["_temp_dir"] = folder
    for attempt in range(2):
        try:
            with _on_loopback():
                ray.init(**arguments)
            break
        except Exception as error:
            ray.shutdown()
            _end_half_started(error)
            # Ray gives its own processes 30 seconds, which is not much on a machine that is busy.
            if attempt or "timed out during startup" not in str(error):
                raise
    _own.add(ray.get_runtime_context().gcs_address)
    address = ray.util.get_node_ip_address()
    if not address.startswith("127."):
        warnings.warn(
            f"this version of Ray ({ray.__version__}) listens at {address} instead of the loopback interface: machines "
            "that reach it can try to join (docs/deployment.md, Trust)",
            RuntimeWarning,
            stacklevel=2,
        )


#: Ray's own variable, and its constant, for a Ray that other machines are not to join: Windows' and macOS' default.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "ENABLE_RAY_CLUSTER"


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that is started within listens on the loopback interface, with all of its processes.

    They read the variable when they start, this process has read it when it imported Ray.
    """
    variable, constant = _CLUSTERS
    constants = importlib.import_module("ray._private.ray_constants")
    if variable in os.environ or not hasattr(constants, constant):
        yield  # as the user says; an unknown version is found out by its address
        return
    before = getattr(constants, constant)
    os.environ[variable] = "0"
    setattr(constants, constant, False)
    try:
        yield
    finally:
        del os.environ[variable]
        setattr(constants, constant, before)


#: Ray's sockets lie this much deeper in its folder, and their paths are short (unix(7)).
_DEEPER, _MOST = len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.0"), 107


def _folder() -> str | None:
    """Where a Ray of our own has its sockets and logs: Ray's own choice is open to every user of the machine.

    ``None``: where the user says, or the path would be too long.
    """
    path = user_folder()
    if "RAY_TMPDIR" in os.environ or len(os.fsencode(path / "ray")) + _DEEPER > _MOST:
        return None
    os.close(open_private(path))
    return str(path / "ray")


def _end_half_started(error: Exception) -> None:
    """End the processes of a node that did not come up, which Ray itself does when the interpreter exits.

    ``ray.shutdown()`` does not know the node yet: only the frames in which it was being made do.
    """
    trace = error.__traceback__
    while trace is not None:
        node = trace.tb_frame.f_locals.get("self")
        if node is not None and type(node).__module__ == "ray._private.node" and hasattr(node, "kill_all_processes"):
            node.kill_all_processes(check_alive=False, wait=True)
            return
        trace = trace.tb_next


def make_room(
    bundles: Sequence[dict[str, float]], options: RayOptions, what: str, *, avoid: Collection[str] = ()
) -> PlacementGroup:
    """Reserve resources for one actor per bundle, all or none.

    Args:
        bundles: what each actor takes.
        options: of the config.
        what: needs them, in words.
        avoid: ids of nodes that seem to have gone: Ray takes a minute to notice, and would wait for them. Where there
            is no room without them, they are tried.

    Returns:
        A placement group, ready.

    Raises:
        LearnerGroupError: not in ``start_timeout_s``, or, in a Ray that was started here, never: at once. Says what was
            asked for and what there is.
    """
    ray = import_ray()
    found = f"has found no room for {len(bundles)} in {options.start_timeout_s:g} s"
    if _is_own(ray) and options.placement == "STRICT_SPREAD" and len(bundles) > 1:
        found = "was started here, on this machine alone"
    elif _is_own(ray) and not _fits(bundles, ray.cluster_resources()):
        found = f"was started here, does not grow, and has no room for {len(bundles)}"
    else:
        group = _placed(bundles, options.placement, min(_AVOID_S, options.start_timeout_s), avoid) if avoid else None
        group = group or _placed(bundles, options.placement, options.start_timeout_s)
        if group is not None:
            return group
    raise LearnerGroupError(
        f"{what} need {_listed(bundles[0])} each (placement {options.placement}), and Ray {found}. {describe_room()}"
    )


def _placed(
    bundles: Sequence[dict[str, float]], placement: Strategy, timeout_s: float, avoid: Collection[str] = ()
) -> PlacementGroup | None:
    """A placement group that is ready in time, or ``None``."""
    util = import_ray().util
    elsewhere = [{_NODE_ID: f"!in({','.join(sorted(avoid))})"}] * len(bundles) if avoid else None
    group = util.placement_group(list(bundles), strategy=placement, bundle_label_selector=elsewhere)
    ready = False
    try:
        ready = group.wait(timeout_s)
    finally:
        if not ready:  # an interruption, too, gives back what was asked for
            util.remove_placement_group(group)
    return group if ready else None


def _fits(bundles: Sequence[dict[str, float]], total: dict[str, float]) -> bool:
    wanted = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for bundle in bundles for name in bundle}
    return all(amount <= total.get(name, 0.0) + 1e-6 for name, amount in wanted.items())


def describe_room() -> str:
    """What Ray has and what is free, and what can be done about it."""
    ray = import_ray()
    total = ray.cluster_resources()
    free = {name: ray.available_resources().get(name, 0.0) for name in total}
    return (
        f"It has {_listed(total)}; free are {_listed(free)}. Use fewer, give Ray more, or wait longer "
        "(launcher_options={'start_timeout_s': ...})"
    )


def _listed(resources: dict[str, float]) -> str:
    """CPUs, GPUs and custom resources in words."""
    hidden = ("memory", "object_store_memory", "node:", "bundle_", "CPU_group_", "GPU_group_")
    shown = [f"{amount:g} {name}" for name, amount in sorted(resources.items()) if not name.startswith(hidden)]
    return ", ".join(shown) or "nothing"
