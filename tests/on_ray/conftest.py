"""Two raylets on this machine. The tests import no framework; after each of them nothing is left in the cluster."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest
import ray
from gymnasium.spaces import Discrete
from ray.cluster_utils import Cluster

from learner_core.group.learner_group import LearnerGroup
from learner_core.plugins.hookspecs import hookimpl
from learner_core.plugins.registry import get_manager
from learner_core_algorithms import PPOConfig

from support.learners import OBS, flat_state

cloudpickle.register_pickle_by_value(sys.modules[__name__])

NODE = {"num_cpus": 2, "num_gpus": 0}


def ppo_config(backend: str, collective: str, *, num_learners: int = 2, **learners: Any) -> Any:
    """PPO on three observations and two actions: 12 steps an update; one learner on each node if both have room."""
    # Faults strike in hooks, which a compiled step calls while it is traced alone; tests/doors has the defaults.
    config = PPOConfig().framework(backend, compile=False)
    config.training(lr=3e-4, train_batch_size=384, minibatch_size=64, num_epochs=2)
    config.environment(observation_space=OBS, action_space=Discrete(2)).rl_module(model={"hidden": [16, 16]})
    # CPUs may be shared with much else: what takes long is no failure.
    where = {"placement": "SPREAD", "start_timeout_s": 300.0}
    options = {"launcher": "ray", "launcher_options": where, "timeout_s": 30.0, **learners}
    return config.learners(num_learners=num_learners, collective=collective, **options)


@pytest.fixture(scope="session")
def nodes() -> Iterator[Cluster]:
    """A cluster of two nodes, to which this process is connected."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    patches = pytest.MonkeyPatch()
    if ray.util.get_node_ip_address().startswith("127."):  # no network but loopback: let Ray take it
        from ray._private import services

        patches.setattr(services, "resolve_ip_for_localhost", lambda host: "127.0.0.1")
        patches.setattr(services, "get_node_ip_address", lambda *arguments, **keywords: "127.0.0.1")
    cluster = _started(lambda: Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **NODE}))
    _started(lambda: cluster.add_node(**NODE))
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    patches.undo()


def _started(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 seconds to start, which a busy machine may need twice."""
    for _ in range(2):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


@pytest.fixture
def cluster(nodes: Cluster) -> Iterator[Cluster]:
    """The cluster, with two nodes; checked afterwards to hold no actor and no placement group."""
    if len(alive()) < 2:
        _started(lambda: nodes.add_node(**NODE))
    # A node whose processors seem taken by an actor that has just ended is passed over when learners are placed.
    wait_until(lambda: _processors(ray.available_resources()) == 2 * NODE["num_cpus"], ray.available_resources)
    yield nodes
    nothing_left()


def nothing_left() -> None:
    """The cluster holds no actor and no placement group: now, or soon."""
    wait_until(lambda: not _left(), _left)


def wait_until(condition: Callable[[], bool], what: Callable[[], Any]) -> None:
    """Wait for it, long enough for any machine; say what there was."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def alive() -> list[Any]:
    """The nodes that Ray believes to live."""
    return [node for node in ray.nodes() if node["Alive"]]


def _processors(resources: dict[str, float]) -> float:
    return resources.get("CPU", 0.0)


def _left() -> list[str]:
    actors = [key for key, actor in ray._private.state.actors().items() if actor["State"] != "DEAD"]
    rooms = [key for key, room in ray.util.placement_group_table().items() if room["state"] != "REMOVED"]
    return [*actors, *rooms]


class Told:
    """What callbacks are told of losses: the reasons, and (rank, update) of restarts."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.restarted: list[tuple[int, int]] = []

    @hookimpl
    def learner_group_worker_lost(self, rank: int, exitcode: int | None, reason: str) -> None:
        self.lost.append(reason)

    @hookimpl
    def learner_group_worker_restarted(self, rank: int, update: int) -> None:
        self.restarted.append((rank, update))


@pytest.fixture
def told() -> Iterator[Told]:
    """A listener, registered."""
    listener = Told()
    get_manager().register(listener)
    yield listener
    get_manager().unregister(listener)


@pytest.fixture
def groups(cluster: Cluster) -> Iterator[Callable[..., LearnerGroup]]:
    """``groups(config) -> LearnerGroup``; every group is shut down afterwards, and none of its processes is left."""
    made: list[LearnerGroup] = []

    def make(config: Any) -> LearnerGroup:
        group: LearnerGroup = config.build_learner_group()
        made.append(group)
        return group

    yield make
    for group in made:
        pids = [member.pid for member in group._learners._members]
        group.shutdown()
        # Ray gives a process that is stopped five seconds.
        wait_until(lambda pids=pids: not any(map(runs, pids)), lambda pids=pids: [pid for pid in pids if runs(pid)])


def strike(kind: str, rank: int, *, step: int = 3, held_up: bool = False) -> Callable[[Any], None]:
    """For ``foreach_learner``: something happens to one learner, once, in a step of the next update.

    Args:
        kind: "kill" its process, or its "node"; "raise"; "nan" for its gradients.
        rank: whom it happens to.
        step: in which step, from 1.
        held_up: the others do not come out of this step by themselves, not even when the ring breaks.
    """

    def arm(learner: Any) -> None:
        compute, left = learner.compute_gradients, [step]

        def struck(loss_fn: Any, params: Any) -> Any:
            left[0] -= 1
            gradients, aux = compute(loss_fn, params)
            if left[0]:
                return gradients, aux
            if learner.ranks.rank != rank:
                time.sleep(600 if held_up else 0)
            elif kind == "nan":
                gradients = {m: {n: value * np.nan for n, value in found.items()} for m, found in gradients.items()}
            elif kind == "raise":
                raise RuntimeError("struck")
            else:  # a worker's parent is its raylet
                os.kill(os.getppid() if kind == "node" else os.getpid(), signal.SIGKILL)
                time.sleep(600)
            return gradients, aux

        learner.compute_gradients = struck

    return arm


def largest_difference(one: Any, other: Any) -> float:
    """Between two states, over all entries."""
    a, b = flat_state(one), flat_state(other)
    assert sorted(a) == sorted(b)
    return max(float(np.abs(a[path] - b[path]).max()) for path in a)


def runs(pid: int) -> bool:
    """Whether this process exists and is no zombie (its parent is a raylet that may be gone)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
