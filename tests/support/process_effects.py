"""Settings of learners and environment runners that are processes: what a user sees of two values of each."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_core.errors import ConfigError, EnvError, EnvRunnerLostError, WorkerLostError
from learner_core_algorithms.ppo.learner import PPOLearner

from .effects import MID, any_warning, batch, ppo, shows
from .told import Told, make_told, told

# ---- learners --------------------------------------------------------------------------------------------------------


@shows("num_learners", "num_cpus_per_learner", slow=True)
def _processes(backend: str, folder: Path) -> None:
    """Who learns, with how many threads; and the same numbers."""
    weights = []
    for num_learners, threads in ((0, 1), (2, 1), (2, 2)):
        config = told("ppo", backend, lr=0.1).framework(precision="float64")
        config.learners(num_learners=num_learners, num_cpus_per_learner=threads)
        with config.build_learner_group() as group:
            pids = set(group.foreach_learner(_pid))
            assert len(pids) == max(1, num_learners)
            assert (os.getpid() in pids) == (num_learners == 0)
            if num_learners:
                assert group.foreach_learner(_threads) == [threads] * 2
            group.update_from_batch(batch())
            weights.append(group.get_weights()[MID])
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, atol=1e-9)


def _pid(learner: Any) -> int:
    return os.getpid()


def _threads(learner: Any) -> int:
    if learner.backend.name == "torch":
        import torch

        return torch.get_num_threads()
    import tensorflow as tf

    return int(tf.config.threading.get_intra_op_parallelism_threads())


@shows("collective", slow=True)
def _collective_of_a_group(backend: str, folder: Path) -> None:
    named = "torch" if backend == "torch" else "horovod"
    with ppo(backend, num_learners=2, collective=named).build_learner_group() as group:
        assert group.collective == named
    with ppo(backend, num_learners=2, collective="auto").build_learner_group() as group:
        assert group.collective in ("torch", "horovod")


@shows("check_parameters_every", slow=True)
def _comparisons(backend: str, folder: Path) -> None:
    def disturbed(every: int) -> list[Any]:
        with ppo(backend, num_learners=2, check_parameters_every=every).build_learner_group() as group:
            group.foreach_learner(_disturb)
            group.update_from_batch(batch())
            return [w[MID]["pi.0.bias"] for w in group.foreach_learner(_weights)]

    first, second = disturbed(0)
    assert not np.array_equal(first, second)
    with pytest.warns(RuntimeWarning, match="the learners' parameters differed"):
        first, second = disturbed(1)
    assert np.array_equal(first, second)


def _disturb(learner: Any) -> None:
    if learner.ranks.rank == 1:
        learner.update_parameters(lambda module_id, params: {name: value + 1e-3 for name, value in params.items()})


def _weights(learner: Any) -> Any:
    return learner.get_module_state()


class Struck(PPOLearner):
    """The second learner is ended or stopped in its first update, once."""

    def before_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        fault = self.config.env_config.get("fault")
        if fault and self.ranks.rank == 1 and _is_first(fault["once"]):
            os.kill(os.getpid(), fault["signal"])


def _is_first(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _struck(backend: str, folder: Path, number: int, **learners: Any) -> Any:
    once = folder / f"{len(os.listdir(folder))}"
    config = ppo(backend, num_learners=2, learner_class=Struck, **learners)
    return config.environment(make_told, env_config={"fault": {"once": str(once), "signal": number}})


@shows("restart_failed_learners", slow=True)
def _restarts(backend: str, folder: Path) -> None:
    lost = _struck(backend, folder, signal.SIGKILL, restart_failed_learners=False)
    with lost.build_learner_group() as group, pytest.raises(WorkerLostError):
        group.update_from_batch(batch())
    replaced = _struck(backend, folder, signal.SIGKILL, restart_failed_learners=True)
    with replaced.build_learner_group() as group, any_warning():
        assert group.update_from_batch(batch())["__all__"]["num_updates"] == 1


@shows("timeout_s", slow=True)
def _silence(backend: str, folder: Path) -> None:
    for seconds in (2.0, 4.0):
        with _struck(backend, folder, signal.SIGSTOP, timeout_s=seconds).build_learner_group() as group:
            began = time.monotonic()
            with pytest.raises(WorkerLostError, match=f"gave no sign of life for {seconds:g} s"):
                group.update_from_batch(batch())
            assert seconds <= time.monotonic() - began < seconds + 60


# ---- environments and their runners ----------------------------------------------------------------------------------


class Faulty(Told):
    """Something happens in its third step, once for each file ``once``."""

    def __init__(self, fault: str = "", once: str = "") -> None:
        super().__init__()
        self.fault, self.once = fault, once

    def step(self, action: Any) -> Any:
        if self.fault and self.clock == 2 and _is_first(self.once):
            if self.fault == "raise":
                raise RuntimeError("a fault")
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(30)
        return super().step(action)


def make_faulty(env_config: dict[str, Any]) -> Faulty:
    """``{"fault": "raise" | "exit" | "stop" | "sleep", "once": path}``."""
    return Faulty(**env_config)


def _faulty(backend: str, folder: Path, fault: str, *, max_env_restarts: int = 0, **env_runners: Any) -> Any:
    once = str(folder / f"{len(os.listdir(folder))}")
    config = told("ppo", backend).environment(make_faulty, env_config={"fault": fault, "once": once})
    return config.environment(max_env_restarts=max_env_restarts).env_runners(**env_runners)


@shows("max_env_restarts", neutral=True)
def _env_restarts(backend: str, folder: Path) -> None:
    with (
        _faulty(backend, folder, "raise", max_env_restarts=0).build() as algo,
        pytest.raises(EnvError, match="a fault"),
    ):
        algo.train()
    with _faulty(backend, folder, "raise", max_env_restarts=3).build() as algo, any_warning():
        assert algo.train()["env_runners"]["num_env_restarts_lifetime"] == 1


@shows("max_env_runner_restarts", slow=True, neutral=True)
def _runner_restarts(backend: str, folder: Path) -> None:
    lost = _faulty(backend, folder, "exit", max_env_runner_restarts=0, num_env_runners=1)
    with lost.build() as algo, pytest.raises(EnvRunnerLostError):
        algo.train()
    replaced = _faulty(backend, folder, "exit", max_env_runner_restarts=3, num_env_runners=1)
    with replaced.build() as algo, any_warning():
        assert algo.train()["env_runners"]["num_env_runner_restarts_lifetime"] == 1


@shows("env_runner_timeout_s", slow=True, neutral=True)
def _silent_runners(backend: str, folder: Path) -> None:
    _reported(backend, folder, "stop", "env_runner_timeout_s")


@shows("env_step_timeout_s", slow=True, neutral=True)
def _long_steps(backend: str, folder: Path) -> None:
    _reported(backend, folder, "sleep", "env_step_timeout_s")


def _reported(backend: str, folder: Path, fault: str, setting: str) -> None:
    """The run ends when the time is over, and not before."""
    for seconds in (1.0, 4.0):
        settings = {"num_env_runners": 1, "max_env_runner_restarts": 0, setting: seconds}
        with _faulty(backend, folder, fault, **settings).build() as algo:
            began = time.monotonic()
            with pytest.raises(EnvRunnerLostError, match=f"{seconds:g} s"):
                algo.train()
            assert seconds <= time.monotonic() - began < seconds + 20


class Where(Told):
    """Pays the number of its process."""

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return (obs, float(os.getpid()), *rest)


def make_where(env_config: dict[str, Any]) -> Where:
    """Of this process, whichever it is."""
    return Where()


@shows("vectorization", neutral=True)
def _forms(backend: str, folder: Path) -> None:
    config = told("ppo", backend).environment(make_where, env_config={})
    with pytest.raises(ConfigError, match="no vectorised form of its own"):
        config.env_runners(vectorization="native").build()
    with config.env_runners(vectorization="sync").build() as algo:
        assert set(algo.runner.sample(3).columns["rewards"].reshape(-1)) == {np.float32(os.getpid())}


@shows("vectorization", slow=True, neutral=True)
def _processes_of_environments(backend: str, folder: Path) -> None:
    config = told("ppo", backend).environment(make_where, env_config={})
    with config.env_runners(vectorization="async").build() as algo:
        found = set(algo.runner.sample(3).columns["rewards"].reshape(-1).tolist())
    assert len(found) == 2 and os.getpid() not in found


@shows("max_requests_in_flight_per_env_runner", slow=True, neutral=True)
def _ahead(backend: str, folder: Path) -> None:
    """How many fragments a runner has sampled with old weights by the time that new ones come."""
    old = {}
    for limit in (1, 3):
        config = told("appo", backend).environment(make_faulty, env_config={})
        config.env_runners(num_env_runners=1, max_requests_in_flight_per_env_runner=limit)
        with config.build() as algo:
            runners = algo.env_runners
            runners.request(5)
            time.sleep(3)
            runners.set_weights(algo.learner_group.get_weights(), version=9)
            deadline, versions = time.monotonic() + 60, []
            while 9 not in versions and time.monotonic() < deadline:
                versions += [fragment.weights_version for fragment in runners.ready(0.5)]
            old[limit] = versions.index(9)
    assert old == {1: 1, 3: 3}
