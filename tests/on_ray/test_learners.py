"""Learners as Ray actors on two nodes: numbers, calls, faults, and how Ray is found or started."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
import pytest
import ray
from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core.group.learner_group import LearnerGroup
from learner_core.group.ray.cluster import RayOptions, connect

from .conftest import Told, alive, largest_difference, nothing_left, ppo_config, strike, wait_until
from support import row_networks
from support.learners import OBS, assert_states_equal, flat_state, ppo_batch

cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(row_networks)

Make = Callable[..., LearnerGroup]
BATCHES = [ppo_batch(rows, Discrete(2), seed=rows) for rows in (384, 385, 7, 1)]


@pytest.mark.parametrize(
    ("backend", "collective"),
    [("torch", "torch"), pytest.param("torch", "horovod", marks=pytest.mark.slow), ("tf", "horovod")],
)
def test_two_nodes_compute_what_one_learner_computes(
    groups: Make, told: Told, tmp_path: Any, backend: str, collective: str
) -> None:
    two = groups(ppo_config(backend, collective, restart_failed_learners=True))
    one = groups(ppo_config(backend, collective, num_learners=1, launcher="local", launcher_options={}))
    assert "torch" not in sys.modules and "tensorflow" not in sys.modules
    assert len({member.host for member in two._learners._members}) == 2
    batches = BATCHES if backend == "torch" else BATCHES[1:3]  # TensorFlow without compilation takes its time
    for step, batch in enumerate(batches):
        timesteps = {"num_env_steps_sampled_lifetime": 384 * step}
        one.update_from_batch(batch=batch, timesteps=timesteps)
        two.update_from_batch(batch=batch, timesteps=timesteps)
    for batch in batches:
        one.update_from_batch(batch=batch)
        two.update_from_batch(batch=batch, async_update=True)
    assert two.wait()["__all__"]["num_updates"] == 2.0 * len(batches)
    first, second = two.foreach_learner(lambda learner: learner.get_state())
    assert_states_equal(first, second)
    assert largest_difference(one.get_weights(), two.get_weights()) <= 2e-6
    if collective == "horovod":
        names = ("RANK", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "HOSTNAME")
        places = two.foreach_learner(lambda learner: [os.environ[f"HOROVOD_{name}"] for name in names])
        assert [place[:5] for place in places] == [["0", "0", "1", "0", "2"], ["1", "0", "1", "1", "2"]]
        assert [place[5] for place in places] == [member.host for member in two._learners._members]
    if backend == "torch":
        two.save_state(tmp_path / "state")
        two.update_from_batch(batch=BATCHES[0])
        two.load_state(tmp_path / "state")
        assert_states_equal(first, two.get_state())
        weights = two.get_weights()["default_policy"]
        assert all(array.flags.writeable for array in weights.values())
        one.set_state(two.get_state())
    # NaN on one rank: the step is left out on all.
    one.foreach_learner(strike("nan", 0))
    two.foreach_learner(strike("nan", 1))
    for group in (one, two):
        assert group.update_from_batch(batch=batches[0])["default_policy"]["num_nonfinite_steps"] == 1.0
    assert largest_difference(one.get_weights(), two.get_weights()) <= 2e-6
    # In an update an actor dies, or with its node: the update is made again from what the other one rescued.
    head = ray.get_runtime_context().get_node_id()
    rank = next(member.rank for member in two._learners._members if member.host != head)
    two.foreach_learner(strike("node" if collective == "torch" else "kill", rank, held_up=True))
    one.update_from_batch(batch=batches[0])
    assert two.update_from_batch(batch=batches[0])["__all__"]["num_learners_restarted"] == 1.0
    assert [reason.startswith(f"learner {rank} of 2 ") for reason in told.lost] == [True]
    assert told.restarted == [(rank, 2 * len(batches) + 1)]
    first, second = two.foreach_learner(lambda learner: learner.get_state())
    assert_states_equal(first, second)
    assert largest_difference(one.get_weights(), two.get_weights()) <= 2e-6
    if collective == "torch":
        wait_until(lambda: len(alive()) == 1, alive)  # Ray may take its time; the next test starts another
    else:
        assert "died (process" in told.lost[0]


class Unreadable:
    """Can be sent and not be read."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_refusals_leave_the_group_as_it_was(groups: Make) -> None:
    options = {"placement": "STRICT_PACK", "start_timeout_s": 300.0}
    group = groups(ppo_config("torch", "torch", launcher_options=options, restart_failed_learners=True))
    assert len({member.host for member in group._learners._members}) == 1
    before = group.get_state()
    with pytest.raises(lc.BatchError, match="column 'advantages': holds 384 NaN") as refused:
        group.update_from_batch(batch={**BATCHES[0], "advantages": np.full(384, np.nan, np.float32)})
    assert "check_batch" in refused.value.__notes__[0]
    with pytest.raises(lc.LearnerGroupError, match="the answer to call cannot be sent"):
        group.foreach_learner(lambda learner: (item for item in ()))
    with pytest.raises(ZeroDivisionError):
        group.foreach_learner(lambda learner: 1 // 0)
    with pytest.raises(lc.LearnerGroupError, match=r"what an actor answers cannot be read: ValueError"):
        group.foreach_learner(lambda learner: Unreadable())
    assert_states_equal(before, group.get_state())
    # One that fails alone is replaced, and the error is told.
    group.foreach_learner(strike("raise", 1))
    with pytest.raises(lc.LearnerGroupError, match="learner 1 failed in update where the others did not") as failed:
        group.update_from_batch(batch=BATCHES[0])
    assert "the group was rebuilt from the others' state, without this update" in failed.value.__notes__[-1]
    assert_states_equal(before, group.get_state())
    group.update_from_batch(batch=BATCHES[0])


def test_a_stopped_actor_is_named_in_bounded_time(groups: Make) -> None:
    group = groups(ppo_config("torch", "torch", timeout_s=8.0))
    group.update_from_batch(batch=BATCHES[0])
    os.kill(group._learners._members[1].pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(lc.WorkerLostError, match="learner 1 of 2 gave no sign of life for 8 s during update") as lost:
        group.update_from_batch(batch=BATCHES[0])
    assert time.monotonic() - start < 8.0 + 60
    assert lost.value.rank == 1


def test_where_there_is_no_room_the_error_says_what_there_is(cluster: Any) -> None:
    # Ray frees what the test before had in its own time.
    config = ppo_config("torch", "torch", num_learners=5, launcher_options={"start_timeout_s": 1.0})
    with pytest.raises(lc.LearnerGroupError, match=r"no room for 5 in 1 s. It has 4 CPU; free are \d CPU"):
        config.build_learner_group()
    with pytest.raises(lc.LearnerGroupError, match="num_learners=5 need 1 CPU, 1 GPU each"):
        config.learners(num_gpus_per_learner=1).build_learner_group()


def test_nothing_is_left_where_an_actor_cannot_be_made(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from learner_core.group.ray import fleet

    make, made = fleet.start_actor, list[Any]()

    def refuse_the_second(*arguments: Any, **options: Any) -> Any:
        if made:
            raise RuntimeError("no second actor")
        made.append(make(*arguments, **options))
        return made[0]

    monkeypatch.setattr(fleet, "start_actor", refuse_the_second)
    with pytest.raises(RuntimeError, match="no second actor"):
        ppo_config("torch", "torch").build_learner_group()
    nothing_left()


def test_a_client_outside_the_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.1.2.3:10001")
    with pytest.raises(lc.LearnerGroupError, match="outside the cluster"):
        connect(RayOptions(), 2.0)


def test_a_cluster_that_is_not_there_is_said_so_in_bounded_time() -> None:
    code = """
from learner_core.group.ray.cluster import RayOptions, connect
try:
    connect(RayOptions(), 1.0)
except Exception as error:
    print(error)
"""
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert "the cluster of RAY_ADDRESS=127.0.0.1:9: ConnectionError: nobody answers at 127.0.0.1:9" in done.stdout


FAILED_START = """
from ray._private.node import Node
from learner_core.group.ray.cluster import RayOptions, connect

def fail(self, address):  # what comes last, when its processes run
    started.extend(info.process for infos in self.all_processes.values() for info in infos)
    raise Exception("The current node timed out during startup.")

started, Node.validate_ip_port = [], fail
try:
    connect(RayOptions(), 1.0)
except Exception as error:
    print(error)
print(len(started), sum(process.poll() is None for process in started))
"""


def test_a_ray_that_does_not_come_up_leaves_no_process() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-c", FAILED_START]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    said, counts = done.stdout.splitlines()
    assert "a Ray of our own on this machine: Exception: The current node timed out" in said, done.stderr
    started, left = map(int, counts.split())
    assert started >= 4  # two attempts, each with two processes at the least
    assert left == 0


SCRIPT = """
from gymnasium.spaces import Discrete
from learner_core_algorithms import PPOConfig
from support.learners import OBS, ppo_batch

config = PPOConfig().framework("torch").learners(num_learners=1, launcher="ray")
config.environment(observation_space=OBS, action_space=Discrete(2)).training(train_batch_size=64, minibatch_size=64)
group = config.build_learner_group()
results = group.update_from_batch(batch=ppo_batch(64, Discrete(2)))
import os, ray
if "RAY_ADDRESS" not in os.environ:
    try:
        config.learners(launcher_options={"resources": {"unheard": 1}, "start_timeout_s": 1e4}).build_learner_group()
    except Exception as error:
        print(error)
    from support.listening import listening_addresses
    print(*listening_addresses(os.getpid()))
    print(oct(os.stat(os.path.dirname(ray._private.worker._global_node.get_temp_dir_path())).st_mode & 0o777))
print(int(results["__all__"]["num_updates"]), ray.get_runtime_context().gcs_address)
# Left as it is: the end of the process is the end of its learners.
"""


@pytest.mark.parametrize("started", [False, True])
def test_ray_is_started_quietly_or_used_where_it_runs(cluster: Any, started: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    if started:
        environment["RAY_ADDRESS"] = cluster.address
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    updates, address = last.split()
    assert updates == "1"
    if not started:  # what a Ray of our own lacks, it will never have
        assert re.search("need 1 CPU, 1 unheard each .*, and Ray was started here, does not grow", refused[0])
        # Nobody else can reach it: not over the network, and not through the folder with its sockets.
        assert refused[1:] == ["127.0.0.1", "0o700"]
    assert (address == cluster.address) == started
    assert done.stderr == ""


GROWING = """
import json, os, sys, time
from gymnasium.spaces import Discrete
import learner_core as lc
from learner_core_algorithms import PPOConfig
from support.learners import OBS, ppo_batch

def make(**learners):
    config = PPOConfig().framework("torch", compile=False).learners(launcher="ray", **learners)
    config.environment(observation_space=OBS, action_space=Discrete(2)).training(train_batch_size=64, minibatch_size=64)
    return config.build_learner_group()

def refused(**learners):
    begin = time.monotonic()
    try:
        make(**learners)
    except lc.LearnerGroupError as error:
        return [str(error), time.monotonic() - begin]

more = os.cpu_count() + 1
first = make(num_learners=1)
said = [refused(num_learners=1, num_cpus_per_learner=more)]
first.update_from_batch(batch=ppo_batch(64, Discrete(2)))  # nothing has befallen it
first.shutdown()

import ray
kept = ray.put("of the user's own")
said.append(refused(num_learners=1, num_cpus_per_learner=more))
said.append([ray.get(kept), 0.0])
del kept
with make(num_learners=1, num_cpus_per_learner=more) as larger:
    larger.update_from_batch(batch=ppo_batch(64, Discrete(2)))
    said.append([str(ray.cluster_resources()["CPU"] - more), 0.0])
said.append(refused(num_learners=2, collective="torch", launcher_options={"placement": "STRICT_SPREAD"}))
print(json.dumps(said))
"""


def test_a_larger_run_gets_a_larger_ray_of_our_own_or_is_refused_at_once() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-W", "error", "-c", GROWING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    (busy, in_use_s), (idle, idle_s), (kept, _), (spare, _), (spread, spread_s) = json.loads(done.stdout)
    number = f"this run needs {os.cpu_count() + 1} CPUs. The Ray that an earlier run of this process has started has"
    assert number in busy and "1 are taken" in busy and "because of learners or environment runners" in busy
    assert "num_learners=2 need 1 CPU each (placement STRICT_SPREAD), and Ray was started here, on this" in spread
    assert number in idle and "because of objects that this process refers to" in idle and kept == "of the user's own"
    assert float(spare) == 0.0
    assert max(in_use_s, spread_s, idle_s) < 60  # not the two minutes of start_timeout_s


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "collective"), [("torch", "torch"), ("tf", "horovod")])
def test_batch_norm_has_the_statistics_of_one_learner(groups: Make, backend: str, collective: str) -> None:
    network = row_networks.norm_network(backend)

    def config(**learners: Any) -> Any:
        made = ppo_config(backend, collective, **learners).framework(backend, compile=False, precision="float64")
        return made.rl_module(rl_module_spec=lc.RLModuleSpec(network, OBS, Discrete(2)), model={})

    two, one = groups(config()), groups(config(num_learners=1, launcher="local", launcher_options={}))
    start = one.get_state()
    two.set_state(start)
    for batch in (BATCHES[0], BATCHES[2]):
        one.update_from_batch(batch=batch)
        two.update_from_batch(batch=batch)
    states = [flat_state({part: group.get_state()[part] for part in ("rl_module", "buffers")}) for group in (one, two)]
    for path, value in states[0].items():
        np.testing.assert_allclose(states[1][path], value, rtol=0, atol=1e-7, err_msg=path)
    before = flat_state({"buffers": start["buffers"]})
    assert max(np.abs(states[0][path] - value).max() for path, value in before.items()) > 0.1
