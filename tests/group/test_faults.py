"""Learners that are killed, stopped, or fail alone: an error that names them, or a rebuilt ring, in bounded time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest
from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core.group.learner_group import LearnerGroup
from learner_core.plugins.hookspecs import hookimpl
from learner_core.plugins.registry import get_manager
from learner_core_algorithms.ppo.learner import PPOLearner

from .conftest import ppo_config
from support.learners import assert_states_equal, ppo_batch
from support.runners import gone

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Make = Callable[..., LearnerGroup]
TIMEOUT = 6.0
#: Of what is to take bounded time: generous, for a machine may be busy; far below the minutes of a hang.
BOUND = 2 * TIMEOUT + 60


class Faulty(PPOLearner):
    """On one rank something happens at a chosen phase of the second update, once per machine."""

    def _fault(self, phase: str) -> None:
        plan = self.config.env_config.get("fault")
        if (
            plan is None
            or plan["phase"] != phase
            or self.ranks.rank != plan["rank"]
            or self.train_state.num_updates != plan["update"]
        ):
            return
        try:
            os.close(os.open(plan["once"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        if plan["kind"] == "raise":
            raise RuntimeError("a hook of rank 1 failed")
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[plan["kind"]])

    def build(self) -> None:
        super().build()
        self._fault("build")

    def before_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        self._fault("before")

    def compute_gradients(self, loss_fn: Any, params: Any) -> Any:
        if self.results:  # not while it is being built
            self._steps = getattr(self, "_steps", 0) + 1
            if self._steps % 12 == 5:
                self._fault("during")
        return super().compute_gradients(loss_fn, params)

    def after_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        self._fault("after")


def _config(tmp_path: Any, backend: str, collective: str, kind: str, phase: str, **learners: Any) -> Any:
    # Faults strike in hooks, which a compiled step calls while it is traced alone.
    config = ppo_config(backend, compile=False, timeout_s=TIMEOUT, learner_class=Faulty, **learners)
    config.learners(collective=collective)
    update = 2 if phase == "after" else 1  # the counter has moved on by then
    fault = {"kind": kind, "phase": phase, "rank": 1, "update": update, "once": str(tmp_path / "done")}
    return config.environment(env_config={"fault": fault})


def _batch(seed: int) -> dict[str, Any]:
    return ppo_batch(384, Discrete(2), seed=seed)


@pytest.mark.parametrize(
    ("backend", "collective", "kind", "phase"),
    [
        ("torch", "horovod", "kill", "during"),
        ("torch", "torch", "kill", "before"),
        ("torch", "torch", "kill", "after"),
        ("torch", "torch", "stop", "during"),
        ("tf", "horovod", "kill", "during"),
    ],
)
def test_a_lost_learner_is_named_in_bounded_time(
    groups: Make, tmp_path: Any, backend: str, collective: str, kind: str, phase: str
) -> None:
    group = groups(_config(tmp_path, backend, collective, kind, phase, num_learners=2))
    group.update_from_batch(batch=_batch(0))
    start = time.monotonic()
    with pytest.raises(lc.WorkerLostError, match=r"learner 1 of 2 (died|gave no sign of life)") as lost:
        group.update_from_batch(batch=_batch(1))
    assert time.monotonic() - start < BOUND
    assert lost.value.rank == 1
    assert lost.value.exitcode == -signal.SIGKILL
    with pytest.raises(lc.LearnerGroupError, match="of no more use: learner 1 of 2"):
        group.update_from_batch(batch=_batch(1))


@pytest.mark.parametrize(
    ("backend", "collective", "kind", "phase", "size"),
    [
        ("torch", "torch", "kill", "before", 2),
        pytest.param("torch", "horovod", "kill", "during", 3, marks=pytest.mark.slow),
        ("torch", "torch", "kill", "during", 3),
        ("torch", "torch", "kill", "after", 2),
        ("torch", "torch", "stop", "during", 2),
        ("tf", "horovod", "kill", "during", 2),
    ],
)
def test_a_restarted_ring_goes_on_as_if_nothing_had_happened(
    groups: Make, tmp_path: Any, backend: str, collective: str, kind: str, phase: str, size: int
) -> None:
    config = _config(tmp_path, backend, collective, kind, phase, num_learners=size, restart_failed_learners=True)
    quiet = config.copy().environment(env_config={})
    faulty, calm = groups(config), groups(quiet)
    for seed in range(3):
        expected = calm.update_from_batch(batch=_batch(seed))
        results = faulty.update_from_batch(batch=_batch(seed))
        restarted = results["__all__"].pop("num_learners_restarted", 0.0)
        assert restarted == (1.0 if seed == 1 else 0.0)
        for name, value in expected["default_policy"].items():
            np.testing.assert_allclose(results["default_policy"][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert (tmp_path / "done").exists()
    for state in faulty.foreach_learner(lambda learner: learner.get_state()):
        assert_states_equal(calm.get_state(), state, atol=2e-6)


def test_an_exception_on_one_learner_names_it_with_its_traceback(groups: Make, tmp_path: Any) -> None:
    group = groups(_config(tmp_path, "torch", "torch", "raise", "during", num_learners=2))
    group.update_from_batch(batch=_batch(0))
    start = time.monotonic()
    with pytest.raises(lc.LearnerGroupError, match=r"(?s)learner 1 failed in update.*a hook of rank 1 failed.*_fault"):
        group.update_from_batch(batch=_batch(1))
    assert time.monotonic() - start < BOUND


class Listener:
    """Hears of losses and restarts."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    @hookimpl
    def learner_group_worker_lost(self, rank: int, exitcode: int | None, reason: str) -> None:
        self.heard.append(("lost", rank, exitcode, reason))

    @hookimpl
    def learner_group_worker_restarted(self, rank: int, update: int) -> None:
        self.heard.append(("restarted", rank, update))


@pytest.fixture
def listener() -> Iterator[Listener]:
    plugin = Listener()
    get_manager().register(plugin, "listener")
    yield plugin
    get_manager().unregister(plugin)


def test_a_learner_killed_between_updates_is_replaced(groups: Make, listener: Listener) -> None:
    group = groups(ppo_config("torch", num_learners=2, collective="torch", restart_failed_learners=True))
    group.update_from_batch(batch=_batch(0))
    group.set_config(lr=0.0625)
    before = group.get_state()
    victim = group.foreach_learner(lambda learner: os.getpid())[0]
    os.kill(victim, signal.SIGKILL)
    results = group.update_from_batch(batch=_batch(1))
    assert results["__all__"]["num_learners_restarted"] == 1.0
    assert group.get_state()["counters"]["num_updates"] == before["counters"]["num_updates"] + 1
    reason = "learner 0 of 2 died (exit code -9, SIGKILL) during update"
    assert listener.heard == [("lost", 0, -signal.SIGKILL, reason), ("restarted", 0, 1)]
    os.kill(group.foreach_learner(lambda learner: os.getpid())[1], signal.SIGKILL)
    with pytest.raises(lc.WorkerLostError) as lost:
        group.foreach_learner(lambda learner: None)
    assert "the group was rebuilt" in lost.value.__notes__[-1]
    assert group.foreach_learner(lambda learner: learner.config.lr) == [0.0625, 0.0625]


def test_after_a_restart_the_newest_memory_is_read(groups: Make) -> None:
    """The new learners are handed the memory there is; before they look, a larger batch brings another."""
    config = ppo_config("torch", collective="torch", restart_failed_learners=True)
    calm, group = groups(config.copy().learners(num_learners=1)), groups(config.learners(num_learners=2))
    for each in (calm, group):
        each.update_from_batch(batch=_batch(0))
    os.kill(group.foreach_learner(lambda learner: os.getpid())[1], signal.SIGKILL)
    with pytest.raises(lc.WorkerLostError) as lost:
        group.foreach_learner(lambda learner: None)
    assert lost.value.rebuilt
    larger = ppo_batch(1000, Discrete(2), seed=1)
    for each in (calm, group):
        each.update_from_batch(batch=larger)
    assert_states_equal(calm.get_weights(), group.get_weights(), atol=2e-6)


def test_a_learner_stopped_within_a_large_message_holds_nobody_up(groups: Make) -> None:
    group = groups(ppo_config("torch", num_learners=2, collective="torch", timeout_s=4.0))
    os.kill(group.foreach_learner(lambda learner: os.getpid())[1], signal.SIGSTOP)
    much = np.zeros(4_000_000)
    start = time.monotonic()
    with pytest.raises(lc.WorkerLostError, match="learner 1 of 2 gave no sign of life"):
        group.foreach_learner(lambda learner: much.sum())
    assert time.monotonic() - start < BOUND


def test_losses_while_starting_are_repaired(groups: Make, tmp_path: Any, listener: Listener) -> None:
    """One learner is killed while it is being built, once; its weights are not of a survivor, there is none yet."""
    config = _config(tmp_path, "torch", "torch", "kill", "build", num_learners=2, restart_failed_learners=True)
    config.environment(env_config={"fault": {**config.env_config["fault"], "update": 0}})
    group = groups(config)
    results = group.update_from_batch(batch=_batch(0))
    assert results["__all__"]["num_learners_restarted"] == 1.0
    assert [heard[:2] for heard in listener.heard] == [("lost", 1), ("restarted", 1)]


def test_when_nobody_survives_the_loss_is_an_error(groups: Make) -> None:
    group = groups(ppo_config("torch", num_learners=1, restart_failed_learners=True))
    group.update_from_batch(batch=_batch(0))
    os.kill(group.foreach_learner(lambda learner: os.getpid())[0], signal.SIGKILL)
    with pytest.raises(lc.WorkerLostError, match="learner 0 of 1 died") as lost:
        group.update_from_batch(batch=_batch(1))
    assert "no learner survived" in lost.value.__notes__[0]


def test_learners_end_when_their_driver_is_killed(tmp_path: Any) -> None:
    import subprocess

    code = f"""
import sys
sys.path.insert(0, {str(os.path.dirname(os.path.dirname(__file__)))!r})
from gymnasium.spaces import Discrete
from learner_core_algorithms import PPOConfig
from support.learners import OBS
config = PPOConfig().framework("torch").learners(num_learners=2, collective="torch")
config.environment(observation_space=OBS, action_space=Discrete(2)).training(train_batch_size=64, minibatch_size=64)
group = config.build_learner_group()
print(*group.foreach_learner(lambda learner: __import__("os").getpid()), flush=True)
input()
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pids = [int(word) for word in driver.stdout.readline().split()]
    assert len(pids) == 2
    driver.kill()
    driver.communicate()
    assert gone(pids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "collective", "size", "faults"),
    [("torch", "torch", 2, 60), ("torch", "torch", 4, 40), ("torch", "horovod", 2, 60), ("torch", "horovod", 3, 60)],
)
def test_faults_at_any_moment(groups: Make, backend: str, collective: str, size: int, faults: int) -> None:
    """Kills and stops from outside, at random moments: no hang, no lost update, the numbers of a calm group."""
    rng = np.random.default_rng(size)
    config = ppo_config(backend, collective=collective, timeout_s=TIMEOUT, restart_failed_learners=True)
    calm, stormy = groups(config.copy().learners(num_learners=1)), groups(config.copy().learners(num_learners=size))
    recoveries = []
    usual = 0.1
    for fault in range(faults):
        batch = _batch(fault)
        calm.update_from_batch(batch=batch)
        victim = stormy._learners._members[int(rng.integers(size))].pid
        number = signal.SIGSTOP if rng.random() < 0.2 else signal.SIGKILL
        timer = threading.Timer(float(rng.uniform(0, usual)), os.kill, (victim, number))
        start = time.monotonic()
        timer.start()
        results = stormy.update_from_batch(batch=batch)
        timer.join()
        taken = time.monotonic() - start
        if "num_learners_restarted" in results["__all__"]:
            recoveries.append((int(number), taken))
        else:
            usual = 0.5 * usual + 0.5 * taken
            stormy.update_from_batch(batch=_batch(1000 + fault))  # notices the one that was hit at the very end
            calm.update_from_batch(batch=_batch(1000 + fault))
        assert taken < 3 * TIMEOUT + BOUND
    for state in stormy.foreach_learner(lambda learner: learner.get_state()):
        assert_states_equal(calm.get_state(), state, atol=1e-4)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        times = sorted(taken for kind, taken in recoveries if kind == number)
        if times:
            middle, most = times[len(times) // 2], times[-1]
            print(f"{collective} {size}: {len(times)} x {number.name}: median {middle:.2f} s, most {most:.2f} s")
