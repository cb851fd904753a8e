"""The queue of asynchronous updates under scripts of faults: every update is reported, refused or dropped, once.

A script is drawn from a seed: asynchronous and blocking updates, batches that do not fit, a hook that raises,
``wait``, ``poll``, reading the state, a learner killed at some moment, ``shutdown`` twice. The queue may block or drop,
and holds one to three. At the end, what was submitted is what was reported, what was raised and what was dropped
together; what the state counts is what was reported.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core_algorithms import PPOConfig
from learner_core_algorithms.ppo.learner import PPOLearner

from .learners import OBS, ppo_batch
from .leftovers import belongings, deadline, nothing_left
from .outcomes import LostError

__all__ = ["Script", "StruckError", "draw", "play"]

#: Longest that a script may take, times the machine's load on each core if that is above one.
LIMIT_S = 60.0


class StruckError(RuntimeError):
    """What the hook raises."""


class StruckLearner(PPOLearner):
    """Raises in the hooks of updates whose timesteps say so; waits a little in all, so that a queue fills."""

    def before_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        time.sleep(timesteps.get("wait_ms", 0) / 1000)
        if timesteps.get("strike"):
            raise StruckError("struck")


@dataclass(frozen=True)
class Script:
    """One script.

    Attributes:
        backend, seed, number: what draws it again.
        num_learners: 0: in this process.
        limit, block: of the queue.
        calls: in order: "async", "bad" (an asynchronous update with a batch that does not fit), "strike" (one whose
            hook raises), "blocking", "wait", "poll", "state", "kill".
        restart: whether a lost learner is replaced.
        untaken: shut down without asking for the results.
    """

    backend: str
    seed: int
    number: int
    num_learners: int
    limit: int
    block: bool
    calls: tuple[str, ...]
    restart: bool
    untaken: bool


def draw(seed: int, number: int, backend: str) -> Script:
    """The script of this number; every fifth kills a learner."""
    rng = random.Random(seed * 100_003 + number)
    kills = number % 5 == 0
    size = rng.choice([1, 2, 2]) if kills else rng.choice([0, 0, 0, 1])
    kinds = ["async"] * 6 + ["bad", "strike", "blocking", "wait", "poll", "state"]
    calls = [rng.choice(kinds) for _ in range(rng.randrange(3, 14))]
    if kills:
        calls = ["async" if call in ("bad", "strike") else call for call in calls]
        calls.insert(rng.randrange(len(calls)), "kill")
    return Script(
        backend, seed, number, size, rng.randrange(1, 4), rng.random() < 0.5, tuple(calls), rng.random() < 0.6,
        rng.random() < 0.25,
    )  # fmt: skip


class _Account:
    """What was asked for, and what was said of it."""

    def __init__(self) -> None:
        self.submitted = self.reported = self.raised = self.dropped = self.blocking = self.refused_blocking = 0
        self.said: list[str] = []

    def hear(self, results: dict[str, Any]) -> dict[str, Any]:
        counts = results.get("__all__", {})
        self.reported += int(counts.get("num_updates_reduced", 0))
        self.dropped += int(counts.get("num_updates_dropped", 0))
        return results


def play(script: Script, folder: Path) -> Counter[str]:
    """Run one script; returns what became of the updates.

    Raises:
        LostError: the account does not come out, or something hangs or is left; says the script.
    """
    before = belongings()
    account = _Account()
    limit = LIMIT_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    try:
        with deadline(limit), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _run(script, account)
        untold = sum(
            int(found[1]) for one in caught if (found := re.match(r"(\d+) asynchronous update", str(one.message)))
        )
        told = account.reported + account.raised + account.dropped + untold
        if not script.untaken and (untold or told != account.submitted):
            raise LostError(f"{account.submitted} submitted, but {vars(account)}, {untold} raised unheard")
        if told > account.submitted:
            raise LostError(f"more was told than submitted: {vars(account)}, {untold} raised unheard")
        nothing_left(before)
    except Exception as error:
        raise LostError(f"{type(error).__name__}: {error}\n  said: {account.said}\n  again: {script}") from error
    return Counter(
        reported=account.reported, raised=account.raised, dropped=account.dropped, blocking=account.blocking,
        untold=untold,
    )  # fmt: skip


def _run(script: Script, account: _Account) -> None:
    config = PPOConfig().framework(script.backend, compile=False)
    config.training(train_batch_size=8, minibatch_size=8, num_epochs=1).rl_module(model={"hidden": [4]})
    config.environment(observation_space=OBS, action_space=Discrete(2))
    config.learners(
        num_learners=script.num_learners,
        learner_class=StruckLearner,
        collective="torch" if script.backend == "torch" else "horovod",
        restart_failed_learners=script.restart,
        max_requests_in_flight_per_learner=script.limit,
        queue_full="block" if script.block else "drop",
        timeout_s=10,
    )
    group = config.build_learner_group()
    try:
        rng = random.Random(script.number)
        for call in script.calls:
            _call(group, script, call, account, rng)
        if not script.untaken:
            _settle(group, script, account)
    finally:
        group.shutdown()
    group.shutdown()  # twice
    for late in (group.wait, group.poll, lambda: group.update_from_batch(batch={}, async_update=True)):
        try:
            late()
        except lc.LearnerGroupError:
            continue
        raise LostError("a group that was shut down answers")


def _call(group: Any, script: Script, call: str, account: _Account, rng: random.Random) -> None:
    batch = ppo_batch(8, Discrete(2), seed=script.number)
    timesteps = {"wait_ms": rng.choice([0, 0, 1, 5]), "strike": int(call == "strike")}
    if call == "kill":
        members = group._learners._members
        if members:
            pid = members[rng.randrange(len(members))].pid
            timer = threading.Timer(rng.uniform(0, 0.05), _kill, [pid])
            timer.start()
        return
    if call == "bad":
        batch = {**batch, "advantages": batch["advantages"][:3]}
    try:
        if call in ("async", "bad", "strike"):
            # One that raises was not queued: what it raised is another's error.
            results = group.update_from_batch(batch=batch, timesteps=timesteps, async_update=True)
            account.submitted += 1
            account.hear(results)
        elif call == "blocking":
            group.drain()
            group.update_from_batch(batch=batch, timesteps=timesteps)
            account.blocking += 1
        elif call in ("wait", "poll"):
            account.hear(getattr(group, call)())
        elif call == "state":
            group.get_state()
    except (lc.LearnerCoreError, StruckError) as error:
        account.said.append(f"{call}: {type(error).__name__}: {str(error)[:200]}")
        if call == "blocking" and not _of_queue(group, error):
            account.refused_blocking += 1
        else:
            account.raised += _of_queue(group, error)


def _of_queue(group: Any, error: Exception) -> bool:
    """Whether an exception is that of a queued update, and not of the call itself: it has passed through a future."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "_raise_first":
            return True
        trace = trace.tb_next
    return False


def _settle(group: Any, script: Script, account: _Account) -> None:
    """Hear of everything, then compare with the state."""
    for _ in range(100):
        try:
            if not account.hear(group.wait()):
                break
        except (lc.LearnerCoreError, StruckError) as error:
            account.said.append(f"settling: {type(error).__name__}: {str(error)[:200]}")
            account.raised += _of_queue(group, error)
    else:
        raise LostError("wait() never ends")
    if "kill" in script.calls and (not script.restart or script.num_learners < 2):
        return  # the group is of no more use
    with contextlib.suppress(lc.WorkerLostError):
        group.get_state()  # a kill that comes now is repaired now
    applied = group.get_state()["counters"]["num_updates"]
    if applied != account.reported + account.blocking:
        raise LostError(f"{applied} updates are in the state: {vars(account)}")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
