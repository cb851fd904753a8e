"""A campaign of faults: learners killed, stopped, made to fail or to compute NaN, at every phase of a group's life.

Every fault is a small run of its own: a group is built, updated, asked for its state, saved and shut down, and on one
rank, once, something happens. Afterwards nothing may have been lost without a word: every update is in the weights of
every rank exactly once (they are compared with a run without faults), or a call has said that it is not; no call took
longer than it may, and no process, descriptor, file or shared memory is left.

    PYTHONPATH=tests python -m support.campaign --backend torch --faults 150 [--seed S] [--only N] [--out FILE]

The driver imports no framework.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core.group.shared_batch import Segment
from learner_core.plugins.hookspecs import hookimpl
from learner_core.plugins.registry import get_manager
from learner_core.state.files import load_state
from learner_core_algorithms import PPOConfig

from .faults import NUM_UPDATES, NUMBERS, SIGNALS, Fault, FaultyLearner, claim, draw
from .learners import OBS, flat_state, ppo_batch
from .leftovers import belongings, deadline, learners, nothing_left
from .outcomes import LostError, Outcome, line, table

__all__ = ["Campaign", "LostError", "Outcome", "line", "table"]

#: For signs of life; the default, where a busy machine may not let a process that compiles give any for 3 s.
TIMEOUT_S, BUSY_TIMEOUT_S = 3.0, 10.0
#: Processes that want to run, for each core, from which on a machine is busy.
BUSY = 4.0
#: Rows of the batches; two steps each, in which every one of four learners has a row.
ROWS = (32, 31, 22, 20)
#: Longest that one call may take (noticing a stop, a new ring), times the machine's load on each core if above one.
LIMIT_S = {"torch": 40.0, "tf": 90.0}


class Campaign:
    """Runs faults one after the other on one backend.

    Args:
        backend: a backend's name.
        folder: for what the runs write.
    """

    def __init__(self, backend: str, folder: Path) -> None:
        self.backend = backend
        self.folder = folder
        self._batches = [ppo_batch(rows, Discrete(2), seed=i) for i, rows in enumerate(ROWS)]
        self._expected: dict[tuple[Any, ...], list[Any]] = {}

    def run(self, fault: Fault) -> Outcome:
        """Run one.

        Raises:
            LostError: a guarantee did not hold; says the fault, with what repeats it.
        """
        before = belongings()
        outcome = Outcome(fault)
        once = self.folder / f"struck-{fault.backend}-{fault.seed}-{fault.number}"
        once.unlink(missing_ok=True)
        try:
            limit = LIMIT_S[self.backend] * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
            with deadline(6 * limit):
                self._run(fault, outcome, once)
            if outcome.longest_s > limit:
                raise LostError(f"a call took {outcome.longest_s:.1f} s, longer than {limit:.0f}")
            self._check_left(before)
        except Exception as error:
            said = "; ".join(outcome.said)
            raise LostError(f"{type(error).__name__}: {error}\n  said: {said}\n  again: {fault}") from error
        return outcome

    def expected(self, compile: bool | None, skipped: Fault | None = None) -> list[Any]:
        """Weights of one learner without faults after 0, 1, ... updates; with the same NaN, if there is one."""
        key = (compile, (skipped.update, skipped.step) if skipped else None)
        if key not in self._expected:
            fault = None
            if skipped is not None:
                where = {"update": skipped.update, "step": skipped.step, "kind": skipped.kind}
                fault = {"rank": 0, "phase": "gradient", "once": str(self.folder / "calm"), **where}
            config = self._config(compile=compile, fault=fault).learners(num_learners=1)
            with config.build_learner_group() as group, warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                states = [group.get_state()]
                for batch in self._batches:
                    group.update_from_batch(batch=batch)
                    states.append(group.get_state())
            self._expected[key] = states
        return self._expected[key]

    def _config(self, *, compile: bool | None, fault: dict[str, Any] | None) -> Any:
        config = PPOConfig().framework(self.backend, compile=compile)
        config.training(lr=3e-4, train_batch_size=32, minibatch_size=16, num_epochs=1)
        config.environment(observation_space=OBS, action_space=Discrete(2), env_config={"fault": fault})
        return config.rl_module(model={"hidden": [8]}).learners(learner_class=FaultyLearner, num_cpus_per_learner=1)

    # ------------------------------------------------------------------ one run

    def _run(self, fault: Fault, outcome: Outcome, once: Path) -> None:
        numbers = fault.kind in NUMBERS
        expected = self.expected(fault.compile, fault if numbers else None)
        config = self._config(compile=fault.compile, fault={**asdict(fault), "once": str(once)})
        config.learners(num_learners=fault.size, collective=fault.collective, timeout_s=_timeout_s())
        config.learners(restart_failed_learners=fault.restart, max_requests_in_flight_per_learner=2)
        calls = _Calls(outcome, once)
        with _listening(calls):
            self._live(fault, outcome, calls, once, config, expected)
        if not once.exists():
            raise LostError("the fault did not happen: the campaign is at fault")
        if outcome.said:
            self._check_report(fault, outcome)
        elif calls.skipped:
            outcome.result = "skipped"
        elif calls.restarts:
            outcome.result = "repaired"
        if calls.restarts != calls.losses and not calls.broken:
            raise LostError(f"{calls.losses} losses were told to plugins and {calls.restarts} restarts")

    def _live(self, fault: Fault, outcome: Outcome, calls: Any, once: Path, config: Any, expected: list[Any]) -> None:
        striker = _Striker(fault, once)
        with striker.at_start():
            group = calls(config.build_learner_group)
        if group is None:
            calls.broken = True
            return
        try:
            self._use(fault, outcome, group, calls, striker, expected)
        finally:
            with striker.at_end(group):
                calls(group.shutdown)

    def _use(self, fault: Fault, outcome: Outcome, group: Any, calls: Any, striker: Any, expected: list[Any]) -> None:
        done = failed = 0
        for number, batch in enumerate(self._batches):
            striker.at_update(group, number)
            results = calls(group.update_from_batch, batch=batch, async_update=fault.asynchronous)
            if results is None:
                failed += 1
                # Asynchronous: it was an earlier one's error, and this one was not queued; so two are not done.
                failed += fault.asynchronous
            else:
                counts = results.get("__all__", {})
                done += int(counts.get("num_updates_reduced", 0) if fault.asynchronous else 1)
                calls.hear(results)
            striker.after_update()
        while fault.asynchronous and done + failed < NUM_UPDATES:
            results = calls(group.wait)
            if results is None:
                failed += 1
                continue
            if not results:
                raise LostError(f"{done} updates reported, {failed} failed, of {NUM_UPDATES}")
            done += int(results["__all__"]["num_updates_reduced"])
            calls.hear(results)
        if done + failed != NUM_UPDATES:
            raise LostError(f"{done} updates reported and {failed} failed, of {NUM_UPDATES}")
        if calls.broken:
            return
        states = None
        for _ in range(2):  # a foreach_learner that meets a loss is repeated by the caller
            states = states or calls(group.foreach_learner, _state_of)
        path = self.folder / "state"
        path.unlink(missing_ok=True)
        first = calls(group.get_state) or calls(group.get_state)
        if calls(_saved, group, path) is None:
            calls(_saved, group, path)
        if calls.broken:
            return
        if states is None or first is None:
            raise LostError("the state cannot be read though the group goes on")
        applied = states[0]["counters"]["num_updates"]
        # An update that failed alone on one rank may have been applied by the others; the error has said which.
        told = NUM_UPDATES - failed + sum(", with this update" in text for text in outcome.said)
        if applied != told:
            raise LostError(f"{applied} updates are in the state, {told} were reported")
        if not failed:
            for state in (*states, first, load_state(path)):
                _same(expected[applied], state)
        for state in states:
            _same(states[0], state, atol=0.0)
        if [name for name in os.listdir(self.folder) if name.endswith(".lctmp")]:
            raise LostError("a temporary file was left beside the saved state")
        if calls.counted > calls.restarts:
            raise LostError(f"{calls.counted} restarts are in the results, {calls.restarts} were told to plugins")

    def _check_left(self, before: dict[str, Any]) -> None:
        nothing_left(before)

    def _check_report(self, fault: Fault, outcome: Outcome) -> None:
        """What was raised names the rank and the cause, and only a fault that may be an error was one."""
        outcome.result = "reported"
        text = "\n".join(outcome.said)
        if fault.kind in NUMBERS:
            raise LostError("NaN is no error here")
        cause = "struck in" if fault.kind == "raise" else f"learner {fault.rank} of {fault.size}"
        if cause not in text or (fault.kind == "raise" and f"learner {fault.rank}" not in text):
            raise LostError(f"the error does not name learner {fault.rank} and what befell it")
        if fault.kind == "kill" and "SIGKILL" not in text and "exit code" not in text:
            raise LostError("the error does not say how the learner ended")
        if fault.kind == "raise" and "Traceback" not in text:
            raise LostError("the error has no traceback of the learner's")
        if fault.restart and fault.kind != "raise" and not all("rebuilt" in said for said in outcome.said):
            raise LostError("restart_failed_learners=True, and yet an error")


def _timeout_s() -> float:
    return TIMEOUT_S if os.getloadavg()[0] / (os.cpu_count() or 1) < BUSY else BUSY_TIMEOUT_S


@contextlib.contextmanager
def _listening(plugin: Any) -> Iterator[None]:
    get_manager().register(plugin, "campaign")
    try:
        yield
    finally:
        get_manager().unregister(plugin)


class _Calls:
    """Calls of the group, timed; ``None`` where one raised, with what it said kept."""

    def __init__(self, outcome: Outcome, once: Path) -> None:
        self._outcome = outcome
        self._once = once
        self.broken = False
        self.skipped = False
        self.counted = 0
        self.losses = 0
        self.restarts = 0

    @hookimpl
    def learner_group_worker_lost(self, rank: int, exitcode: int | None, reason: str) -> None:
        self.losses += 1

    @hookimpl
    def learner_group_worker_restarted(self, rank: int, update: int) -> None:
        self.restarts += 1

    def hear(self, results: dict[str, Any]) -> None:
        """Take note of what an update's results say."""
        self.counted += int(results.get("__all__", {}).get("num_learners_restarted", 0))
        self.skipped = self.skipped or bool(results.get("default_policy", {}).get("num_nonfinite_steps"))

    def __call__(self, function: Any, *arguments: Any, **named: Any) -> Any:
        outcome = self._outcome
        restarts, began = self.restarts, time.monotonic()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                answer = function(*arguments, **named)
        except (lc.LearnerGroupError, RuntimeError) as error:
            notes = getattr(error, "__notes__", [])
            outcome.said.append("\n".join([str(error), *notes]))
            self.broken = self.broken or not any(
                text in outcome.said[-1] for text in ("was rebuilt", "struck in state", "struck in checkpoint")
            )
            answer = None
        else:
            outcome.said += [str(w.message) for w in caught if "no later call" in str(w.message)]
            answer = True if answer is None else answer
        taken = time.monotonic() - began
        outcome.longest_s = max(outcome.longest_s, taken)
        if outcome.recovery_s is None and (answer is None or self.restarts > restarts) and self._once.exists():
            # From the fault to the end of the call that met it.
            outcome.recovery_s = time.time() - float(self._once.read_text())
        return answer


class _Striker:
    """Faults from outside: a signal to a learner's process at some moment."""

    def __init__(self, fault: Fault, once: Path) -> None:
        self._fault = fault
        self._once = once
        self._timer: threading.Timer | None = None

    def _hit(self, pid: int) -> None:
        if pid and claim(str(self._once)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGNALS[self._fault.kind])

    @contextlib.contextmanager
    def at_start(self) -> Iterator[None]:
        """Strike a learner soon after its birth, somewhere between its fork and the first update."""
        if self._fault.phase != "start":
            yield
            return
        old, stop = set(learners()), threading.Event()

        def watch() -> None:
            while not stop.is_set():
                new = sorted(set(learners()) - old)
                if len(new) > self._fault.rank:
                    time.sleep(self._fault.delay_s * 3)
                    self._hit(new[self._fault.rank])
                    return
                time.sleep(0.002)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def at_update(self, group: Any, number: int) -> None:
        fault = self._fault
        if number != fault.update:
            return
        pid = group._learners._members[fault.rank].pid if group._learners._members else 0
        if fault.phase == "waiting":
            if fault.asynchronous:
                time.sleep(fault.delay_s)
            self._hit(pid)
        elif fault.phase == "update":
            self._timer = threading.Timer(fault.delay_s * (1.0 if fault.backend == "tf" else 0.3), self._hit, [pid])
            self._timer.start()
        elif fault.phase == "transport":
            write = Segment.write

            def struck(segment: Any, batch: Any) -> Any:
                Segment.write = write
                out = write(segment, batch)
                self._hit(pid)
                return out

            Segment.write = struck

    def after_update(self) -> None:
        if self._timer is not None and not self._fault.asynchronous:
            self._timer.join()

    @contextlib.contextmanager
    def at_end(self, group: Any) -> Iterator[None]:
        if self._timer is not None:
            self._timer.join()
        if self._fault.phase == "stopping" and group._learners._members:
            pid = group._learners._members[self._fault.rank].pid
            timer = threading.Timer(self._fault.delay_s * 0.3, self._hit, [pid])
            timer.start()
            yield
            timer.join()
        else:
            yield


def _state_of(learner: Any) -> Any:
    return learner.get_state()


def _saved(group: Any, path: Path) -> None:
    group.save_state(path)


def _same(one: Any, other: Any, atol: float = 2e-6) -> None:
    a, b = flat_state(one), flat_state(other)
    if sorted(a) != sorted(b):
        raise LostError(f"states have other entries: {sorted(set(a) ^ set(b))[:5]}")
    for path, value in a.items():
        if isinstance(value, str) or path.startswith("config"):
            continue
        x, y = np.asarray(value, np.float64), np.asarray(b[path], np.float64)
        if x.shape != y.shape or not np.allclose(x, y, rtol=0, atol=atol):
            raise LostError(f"{path} differs by {np.abs(x - y).max() if x.shape == y.shape else 'its shape'}")


def main() -> int:
    """Run a campaign from the command line; the number of faults that lost something is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torch", choices=["torch", "tf"])
    parser.add_argument("--faults", type=int, default=150)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"))
    parser.add_argument("--only", type=int, nargs="+", help="these faults of the seed alone")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    outcomes, lost = [], 0
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(given.backend, Path(folder))
        for number in given.only or range(given.faults):
            fault = draw(given.seed, number, given.backend)
            try:
                outcome = campaign.run(fault)
            except LostError as error:
                lost += 1
                print(f"LOST {number}: {error}", flush=True)
                continue
            outcomes.append(outcome)
            print(line(outcome), flush=True)
            if given.only is not None:
                print("\n".join(outcome.said))
    print(table(outcomes))
    print(f"{len(outcomes) + lost} faults, {lost} lost something")
    if given.out:
        found = [{**asdict(o.fault), **{k: v for k, v in asdict(o).items() if k != "fault"}} for o in outcomes]
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return min(lost, 100)


if __name__ == "__main__":
    sys.exit(main())
