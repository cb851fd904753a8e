"""Runners that are killed, stopped or hang, environments that fail: replaced, counted, bounded, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from learner_core.errors import EnvError, EnvRunnerLostError, LearnerGroupError
from learner_core.plugins.hookspecs import hookimpl
from learner_core.plugins.registry import get_manager

from support import runners as support_runners
from support.runners import BOUND_S, faulty, gone, group_of, pids, running, weights

cloudpickle.register_pickle_by_value(support_runners)
cloudpickle.register_pickle_by_value(sys.modules[__name__])

Make = Callable[..., Any]
TESTS = str(Path(__file__).resolve().parents[2])


@pytest.fixture
def groups() -> Iterator[Make]:
    """``groups(env, number, ...)``; every group is closed afterwards; no process, file or descriptor is left."""
    group_of("CartPole-v1", 1).close()  # the nursery stays
    shared, descriptors = set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    made: list[Any] = []
    seen: set[int] = set()

    def make(*arguments: Any, **settings: Any) -> Any:
        made.append(group_of(*arguments, **settings))
        seen.update(pids(made[-1]))
        return made[-1]

    yield make
    for group in made:
        seen.update(pids(group))
        began = time.monotonic()
        group.close()
        group.close()
        assert time.monotonic() - began < BOUND_S
    assert not running(seen)
    # Others may use /dev/shm meanwhile; what is ours says so.
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if "learner" in name]
    assert len(os.listdir("/proc/self/fd")) == descriptors


class Listener:
    """Hears of losses and replacements."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    @hookimpl
    def env_runner_lost(self, worker_index: int, exitcode: int | None, reason: str) -> None:
        self.heard.append(("lost", worker_index, exitcode, reason))

    @hookimpl
    def env_runner_restarted(self, worker_index: int, num_restarts: int) -> None:
        self.heard.append(("restarted", worker_index, num_restarts))


@pytest.fixture
def listener() -> Iterator[Listener]:
    plugin = Listener()
    get_manager().register(plugin, "listener")
    yield plugin
    get_manager().unregister(plugin)


FAULTS = {
    "kill": (r"environment runner [12] of 2 died \(exit code -9, SIGKILL\)", {}),
    "stop": (r"gave no sign of life for 3 s", {"env_runner_timeout_s": 3.0}),
    "hang": (r"did not get on for 3 s .*during sample: an environment hangs", {"env_step_timeout_s": 3.0}),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone"])
def test_a_runner_lost_in_mid_fragment_is_replaced(
    groups: Make, listener: Listener, tmp_path: Path, fault: str, alone: bool
) -> None:
    import re

    text, settings = FAULTS[fault]
    group = groups(faulty(fault=fault, once=str(tmp_path / "once"), step=12), **settings)
    before = set(pids(group))
    began = time.monotonic()
    if alone:
        group.request(10)
        fragments: list[Any] = []
        while sum(f.worker_index == 1 for f in fragments) < 3 or sum(f.worker_index == 2 for f in fragments) < 3:
            fragments += group.ready(5.0)
        rollouts = [fragment.rollout for fragment in fragments]
    else:
        rollouts = [rollout for _ in range(3) for rollout in group.sample(10)]
    assert time.monotonic() - began < BOUND_S
    assert all(rollout.num_env_steps == 20 for rollout in rollouts)
    metrics = group.metrics()
    assert metrics["num_env_runner_restarts_lifetime"] == 1
    assert metrics["num_fragments_lost_lifetime"] == 1
    assert metrics["num_env_steps_sampled_lifetime"] >= 20 * len(rollouts)
    lost, restarted = listener.heard
    assert lost[0] == "lost" and lost[2] == -signal.SIGKILL and re.search(text, lost[3])
    assert restarted == ("restarted", lost[1], 1)
    (dead,) = before - set(pids(group))
    assert gone([dead])


def test_a_replacement_neither_repeats_nor_forgets(groups: Make) -> None:
    group, calm = groups("CartPole-v1", 1), groups("CartPole-v1", 1)
    first, _ = group.sample(10)[0], calm.sample(10)
    os.kill(pids(group)[0], signal.SIGKILL)
    (replaced,), (expected,) = group.sample(10), calm.sample(10)
    assert replaced.num_env_steps == 20
    for other in (first, expected):
        assert (replaced.columns["obs"][0] != other.columns["obs"][0]).all()
    assert group.metrics()["num_env_steps_sampled_lifetime"] == first.num_env_steps + replaced.num_env_steps
    # Killed again before its next fragment is done, it starts elsewhere again.
    os.kill(pids(group)[0], signal.SIGKILL)
    again = group.sample(10)[0]
    assert (again.columns["obs"][0] != replaced.columns["obs"][0]).all()


def test_a_seed_that_kills_is_not_used_again(groups: Make, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"

    class Fatal(support_runners.FaultyEnv):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.seed = seed
            return super().reset(seed=seed)

        def step(self, action: Any) -> Any:
            used = seeds.read_text().split() if seeds.exists() else []
            if len(used) < 4:
                seeds.write_text(" ".join([*used, str(self.seed)]))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(action)

    group = groups(lambda config: Fatal(), 1, 1)
    assert group.sample(6)[0].num_env_steps == 6
    used = seeds.read_text().split()
    assert len(used) == 4 and len(set(used)) == 4
    assert group.metrics()["num_env_runner_restarts_lifetime"] == 4


def test_an_environment_that_raises_is_rebuilt_over_there(groups: Make, tmp_path: Path) -> None:
    group = groups(faulty(fault="raise", once=str(tmp_path / "once"), step=5), max_env_restarts=1)
    before = pids(group)
    with pytest.warns(RuntimeWarning, match=r"environment \d of runner [12] .*raised .*1 of 1 times") as told:
        group.sample(10)
        group.sample(10)
    assert len(told) == 1
    metrics = group.metrics()
    assert metrics["num_env_restarts_lifetime"] == 1 and metrics["num_episodes_lost_lifetime"] == 1
    assert metrics["num_env_runner_restarts_lifetime"] == 0 and pids(group) == before


def test_an_environment_that_keeps_raising_ends_in_its_own_error(groups: Make) -> None:
    group = groups(faulty(fault="always"), max_env_restarts=3)
    with pytest.raises(EnvError, match=r"this environment never works.*max_env_restarts=3") as error:
        group.sample(10)
    note = "".join(error.value.__notes__)
    assert note.count("before that: environment") == 3
    assert "raised in an environment runner; its traceback" in note and "support/runners.py" in note
    group.request(10)
    with pytest.raises(EnvError, match="never works"):
        group.ready(5.0)


def test_what_the_others_have_seen_is_kept_where_one_fails(groups: Make) -> None:
    group = groups(faulty(), max_env_restarts=0)
    assert group.metrics()["episodes"] == []

    def break_the_second(runner: Any) -> None:
        for env in runner.lanes.environments() if runner.worker_index == 2 else []:
            env.unwrapped.fault = "always"

    group.foreach_runner(break_the_second)
    with pytest.raises(EnvError, match="never works"):
        group.sample(10)
    metrics = group.metrics()
    assert metrics["num_episodes_lifetime"] == len(metrics["episodes"]) == 2
    assert metrics["num_fragments_lost_lifetime"] == 1


class Unreadable:
    """Can be sent and not be read."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_an_answer_that_cannot_be_read_fails_its_own_request_alone(groups: Make) -> None:
    group = groups(faulty(), 1)
    with pytest.raises(EnvError, match=r"what runner 1 answers cannot be read: ValueError: .*no number"):
        group.foreach_runner(lambda runner: Unreadable())
    assert group.foreach_runner(lambda runner: runner.worker_index) == [1]


def test_without_a_replacement_the_runners_are_of_no_more_use(groups: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    group = groups(faulty())

    def refuse(*_: Any) -> int:
        raise LearnerGroupError("there is no nursery")

    monkeypatch.setattr("learner_core.group.nursery.Nursery.fork", refuse)
    os.kill(pids(group)[0], signal.SIGKILL)
    with pytest.raises(LearnerGroupError, match="no nursery"):
        group.sample(10)
    with pytest.raises(EnvRunnerLostError, match=r"runner 1 of 2 died.*no other could be started: .*no nursery"):
        group.sample(10)
    assert gone(pids(group))


def test_too_many_losses_end_in_an_error_that_names_the_runner(groups: Make, tmp_path: Path) -> None:
    group = groups("CartPole-v1", max_env_runner_restarts=1)
    group.sample(5)
    os.kill(pids(group)[1], signal.SIGKILL)
    group.sample(5)
    os.kill(pids(group)[0], signal.SIGKILL)
    with pytest.raises(
        EnvRunnerLostError, match=r"runner 1 of 2 died .*max_env_runner_restarts=1 restarts are used up"
    ) as lost:
        group.sample(5)
    assert lost.value.worker_index == 1 and lost.value.exitcode == -signal.SIGKILL
    assert gone(pids(group))
    with pytest.raises(EnvRunnerLostError, match="of no more use: environment runner 1 of 2 died"):
        group.sample(5)
    # The run can still be saved, and goes on in new processes.
    state = group.get_state()
    again = groups("CartPole-v1", max_env_runner_restarts=5)
    assert again.set_state(state) == "restarted"
    again.sample(5)
    metrics = again.metrics()
    assert metrics["num_env_runner_restarts_lifetime"] == 1 and metrics["num_env_steps_sampled_lifetime"] > 30


def test_runners_that_die_at_once_are_not_started_for_ever() -> None:
    def make(config: Any) -> Any:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return support_runners.FaultyEnv()

    here = os.getpid()
    began = time.monotonic()
    with pytest.raises(EnvRunnerLostError, match="max_env_runner_restarts=3"):
        group_of(make, max_env_runner_restarts=3)
    assert time.monotonic() - began < BOUND_S


def test_an_environment_that_cannot_be_made_again_is_tried_a_bounded_number_of_times(
    groups: Make, tmp_path: Path
) -> None:
    made = tmp_path / "made"

    def make(config: Any) -> Any:
        if made.exists():
            raise OSError("the licence is gone")
        return support_runners.FaultyEnv()

    group = groups(make, 1, max_env_runner_restarts=2)
    group.sample(3)
    made.touch()
    os.kill(pids(group)[0], signal.SIGKILL)
    with pytest.raises(EnvRunnerLostError, match=r"could not be built again: .*the licence is gone.*restarts=2"):
        group.sample(3)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone"])
def test_faults_at_any_moment(groups: Make, alone: bool) -> None:
    """Kills and stops from outside, at random moments: no hang, nothing counted twice, nothing left."""
    rng = np.random.default_rng(int(alone))
    settings = {"max_env_runner_restarts": 1000, "env_runner_timeout_s": 1.0, "normalize_observations": True}
    group = groups("CartPole-v1", 3, max_requests_in_flight_per_env_runner=2, **settings)
    steps = faults = 0
    recoveries = {signal.SIGKILL: [0.0], signal.SIGSTOP: [0.0]}
    if alone:
        group.request(40)
    while faults < 60:
        before = group.metrics()["num_env_runner_restarts_lifetime"]
        number = signal.SIGSTOP if rng.random() < 0.3 else signal.SIGKILL
        victim = pids(group)[int(rng.integers(3))]
        timer = threading.Timer(float(rng.uniform(0, 0.05)), os.kill, (victim, number))
        timer.start()
        began = time.monotonic()
        while group.metrics()["num_env_runner_restarts_lifetime"] == before:
            rollouts = [f.rollout for f in group.ready(1.0)] if alone else group.sample(40)
            steps += sum(rollout.num_env_steps for rollout in rollouts)
            assert time.monotonic() - began < BOUND_S
        recoveries[number].append(time.monotonic() - began)
        timer.join()
        faults += 1
    if alone:
        group.get_state()  # waits for all that is under way
        steps += sum(fragment.rollout.num_env_steps for fragment in group._arrived)
    metrics = group.metrics()
    assert metrics["num_env_steps_sampled_lifetime"] == steps
    assert metrics["num_env_runner_restarts_lifetime"] == faults
    assert group.local.normalizer.moments["obs"].count > 0
    for kind, times in recoveries.items():
        print(f"{len(times) - 1} x {kind.name}: median {np.median(times[1:]):.2f} s, most {max(times):.2f} s")


def test_setting_weights_waits_for_nobody(groups: Make) -> None:
    group = groups("CartPole-v1", env_runner_timeout_s=BOUND_S)
    group.request(5)
    victim = pids(group)[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        for version in range(1, 200):
            group.set_weights({"default_policy": group.local.policy._params}, version=version)
        # Whoever waited for the one that is stopped would have waited until it was given up.
        assert pids(group)[0] == victim and group.metrics()["num_env_runner_restarts_lifetime"] == 0
    finally:
        os.kill(victim, signal.SIGCONT)
    versions: list[int] = []
    while 199 not in versions:
        versions += [fragment.weights_version for fragment in group.ready(5.0)]


def test_an_interrupted_sample_is_forgotten(groups: Make) -> None:
    group = groups("CartPole-v1", env_runner_timeout_s=BOUND_S)
    group.sample(5)
    victim = pids(group)[1]
    os.kill(victim, signal.SIGSTOP)

    def interrupt() -> None:
        deadline = time.monotonic() + BOUND_S
        while not group._elsewhere.remotes[1].pending and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)  # sooner or later, it waits for the one that is stopped
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupting.start()
            group.sample(1000)
        interrupting.join()
    finally:
        signal.signal(signal.SIGINT, before)
    os.kill(victim, signal.SIGCONT)
    assert [rollout.num_steps for rollout in group.sample(7)] == [7, 7]
    metrics = group.metrics()
    assert metrics["num_fragments_lost_lifetime"] == 2 and metrics["num_env_runner_restarts_lifetime"] == 0


DRIVER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, {tests!r})
from support.runners import faulty, group_of, pids
def group_leader(number):
    try:
        return os.getpgid(number)
    except ProcessLookupError:
        return None

if __name__ == "__main__":
    group = group_of(faulty(fault="child", once={once!r}, step=1))
    group.sample(3)
    numbers = pids(group)
    everybody = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    print(*(number for number in everybody if group_leader(number) in numbers), flush=True)
    group.request(50)
    while True:
        group.ready(1.0)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGKILL, one of them stopped", "SIGINT"])
def test_nothing_outlives_the_driver(tmp_path: Path, how: str) -> None:
    """Neither runners nor what their environments have started; Ctrl-C goes to the whole process group."""
    code = DRIVER.format(tests=TESTS, once=str(tmp_path / "once"))
    driver = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None
    numbers = [int(word) for word in driver.stdout.readline().split()]
    assert len(numbers) == 3 and running(numbers) == numbers
    time.sleep(0.1)  # it samples, or is about to
    if "stopped" in how:
        os.kill(numbers[0], signal.SIGSTOP)
    os.killpg(driver.pid, getattr(signal, how[:7].rstrip(",")))
    _, errors = driver.communicate(timeout=BOUND_S)
    assert gone(numbers)
    if how == "SIGINT":
        assert "KeyboardInterrupt" in errors and "EnvRunnerLostError" not in errors


def test_weights_are_taken_whole(tmp_path: Path) -> None:
    """A reader that is overtaken again and again never sees a mixture."""
    from learner_core.sampling.runner_memory import WeightsBoard, WeightsReader

    board = WeightsBoard()
    tree = {"a": {"w": np.zeros(40_000, np.float32), "none": np.zeros((0, 3))}, "b": {"v": np.zeros((), np.float64)}}
    assert board.publish(tree, 0)
    notice = board.notice()
    assert notice is not None
    reader = WeightsReader(os.dup(notice[0]), **notice[1])
    taken = reader.take()
    assert taken is not None and taken[0] == 0 and taken[1]["a"]["none"].shape == (0, 3)
    assert reader.take() is None
    tree["a"]["w"][:], tree["b"]["v"][...] = 1, 1
    assert not board.publish(tree, 1)
    # Another version is being written where the reader looks, and is not complete.
    body = bytes(np.full(100, 2, np.float32))
    assert board._memory is not None
    place = board._memory.find(bytes(np.ones(100, np.float32)))
    board._memory[place : place + len(body)] = body
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(reader.take()))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    tree["a"]["w"][:], tree["b"]["v"][...] = 5, 5
    for version in (3, 4, 5):
        board.publish(tree, version)
    thread.join(10.0)
    version, weights = got[0]
    assert version in (3, 4, 5) and (weights["a"]["w"] == 5).all() and weights["b"]["v"] == 5
    assert board.publish({"a": tree["a"]}, 9)  # other parameters: another board
    board.close()


def test_the_default_weights_fit() -> None:
    assert set(weights()) == {"default_policy"}
