"""What cannot be built is refused in bounded time, by an error that says what to do."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core.group.devices import gpu_environment
from learner_core.group.spmd.joining import FixedPlace, join_ranks
from learner_core.group.spmd.rendezvous import RendezvousServer
from learner_core.group.spmd.world import SpmdOptions, find_world
from learner_core_algorithms import PPOConfig

from support.learners import OBS
from support.ranks import free_port

NONE = SpmdOptions()
BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def _config(**learners: Any) -> Any:
    config = PPOConfig().framework("torch").learners(**learners)
    return config.environment(observation_space=OBS, action_space=Discrete(2))


def test_fewer_than_no_learners() -> None:
    with pytest.raises(lc.ConfigError, match="num_learners"):
        _config(num_learners=-1)


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = _config(num_learners=2, num_gpus_per_learner=1, collective="torch")
    with pytest.raises(lc.LearnerGroupError, match="need 2 GPUs, this machine shows 1"):
        config.build_learner_group()
    assert gpu_environment(config, 0, 1) == {"CUDA_VISIBLE_DEVICES": "0"}


def test_a_launcher_or_collective_that_there_is_not() -> None:
    with pytest.raises(lc.LearnerCoreError, match="Did you mean 'spmd'"):
        _config(launcher="spmb")
    with pytest.raises(lc.LearnerCoreError, match="Did you mean 'horovod'"):
        _config(collective="horovot")


def test_a_process_that_nobody_started_as_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(lc.LearnerGroupError, match=r"not started as one rank.*horovodrun -np N"):
        find_world({}, NONE)
    for name in ("RANK", "WORLD_SIZE", "HOROVOD_RANK", "HOROVOD_SIZE", "SLURM_PROCID", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(lc.LearnerGroupError, match="not started as one rank"):
        _config(launcher="spmd").build_learner_group()


def test_places_that_launchers_give() -> None:
    world = find_world({**BY_HAND, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, NONE)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (1, 2, 0, 1)
    assert (world.address, world.port, world.served) == ("10.0.0.1", 29500, False)
    assert find_world({**BY_HAND, "TORCHELASTIC_RUN_ID": "x"}, NONE).port == 29501
    horovod = {f"HOROVOD_{name}": "1" for name in ("RANK", "LOCAL_RANK")} | {"HOROVOD_SIZE": "2"}
    horovod |= {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.2", "HOROVOD_GLOO_RENDEZVOUS_PORT": "7"}
    assert find_world({**BY_HAND, **horovod}, NONE).served
    mpi = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert find_world(mpi, SpmdOptions.of({"rendezvous": "a:1"})).local_rank == 1
    here = {**mpi, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-a-7@1"}
    one, same = find_world(here, NONE), find_world({**here, "OMPI_COMM_WORLD_RANK": "0"}, NONE)
    assert (one.address, one.port) == (same.address, same.port) and one.address == "127.0.0.1"
    assert find_world({**here, "PMIX_NAMESPACE": "prterun-a-8@1"}, NONE).port != one.port
    assert find_world({**here, "MASTER_ADDR": "b", "MASTER_PORT": "5"}, NONE).port == 5
    hydra = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    assert find_world(hydra, NONE).port == find_world({**hydra, "PMI_RANK": "0"}, NONE).port
    with pytest.raises(lc.LearnerGroupError, match="set MASTER_ADDR and MASTER_PORT"):
        find_world({**hydra, "MPI_LOCALNRANKS": "1", "MPI_LOCALRANKID": "0"}, NONE)
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "2(x2)"}
    assert find_world(slurm, SpmdOptions.of({"rendezvous": "a:1"})).rank == 2


@pytest.mark.parametrize(
    ("environment", "options", "text"),
    [
        ({**BY_HAND, "RANK": "2"}, {}, "a rank is 0 to 1"),
        ({**BY_HAND, "RANK": "one"}, {}, "RANK='one': expected a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {}, "set MASTER_ADDR and MASTER_PORT"),
        (BY_HAND, {"rendezvous": "nowhere"}, 'expected "HOST:PORT"'),
        (BY_HAND, {"rendezvouz": "a:1"}, "Did you mean 'rendezvous'"),
        (BY_HAND, {"start_timeout_s": 0}, "a positive number of seconds"),
    ],
)
def test_places_that_contradict_themselves(environment: dict[str, str], options: dict[str, Any], text: str) -> None:
    with pytest.raises(lc.LearnerGroupError, match=text):
        find_world(environment, SpmdOptions.of(options))


class _Known:
    """A secret that is known."""

    source, fixed, on_this_machine = "the test", True, False

    def now(self) -> bytes:
        return b"0123456789abcdef" * 4

    def close(self) -> None:
        """Nothing is held."""


def test_a_port_in_use_and_an_address_of_another_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(lc.LearnerGroupError, match=f"port {port} is in use on 127.0.0.1: choose another"):
            RendezvousServer("127.0.0.1", port, _Known(), 2)
    with pytest.raises(lc.LearnerGroupError, match="is not an address of this machine"):
        RendezvousServer("192.0.2.1", 29500, _Known(), 2)


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.1"])
def test_a_host_that_cannot_be_reached(address: str) -> None:
    """Nobody listens; and an address that no network has, which a firewall looks like."""
    start = time.monotonic()
    place = FixedPlace(address, free_port())
    with pytest.raises(lc.LearnerGroupError, match=r"rank 1 of 2 could not reach .* does a firewall"):
        join_ranks(place, _Known(), rank=1, said={"size": 2, "about": "it"}, deadline=start + 1.0)
    assert time.monotonic() - start < 60
