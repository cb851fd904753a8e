"""Two raylets on this machine. The tests import no framework; after each of them nothing is left in the cluster."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from gymnasium.spaces import Discrete
from ray.cluster_utils import Cluster

from learner_core.group.learner_group import LearnerGroup
from learner_core_algorithms import PPOConfig

from support.learners import OBS

NODE = {"num_cpus": 2, "num_gpus": 0}


def ppo_config(backend: str, collective: str, *, num_learners: int = 2, **learners: Any) -> Any:
    """PPO on three observations and two actions: 12 steps an update; one learner on each node if both have room."""
    config = PPOConfig().framework(backend, compile=False)
    config.training(lr=3e-4, train_batch_size=384, minibatch_size=64, num_epochs=2)
    config.environment(observation_space=OBS, action_space=Discrete(2)).rl_module(model={"hidden": [16, 16]})
    # CPUs may be shared with much else: what takes long to start is no failure.
    where = {"placement": "SPREAD", "start_timeout_s": 300.0}
    options = {"launcher": "ray", "launcher_options": where, "timeout_s": 8.0, **learners}
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
    if len(_alive(nodes)) < 2:
        _started(lambda: nodes.add_node(**NODE))
    yield nodes
    deadline = time.monotonic() + 10
    while (left := _left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _alive(nodes: Cluster) -> list[Any]:
    return [node for node in ray.nodes() if node["Alive"]]


def _left() -> list[str]:
    actors = [key for key, actor in ray._private.state.actors().items() if actor["State"] != "DEAD"]
    rooms = [key for key, room in ray.util.placement_group_table().items() if room["state"] != "REMOVED"]
    return [*actors, *rooms]


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
        deadline = time.monotonic() + 10  # Ray gives a process that is stopped five seconds
        while (left := [pid for pid in pids if runs(pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left


def runs(pid: int) -> bool:
    """Whether this process exists and is no zombie (its parent is a raylet that may be gone)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
