"""What the survivors of a broken ring still know: the newest applied state.

A survivor that waited for the lost learner in the ring gets an error there and puts its state back to where it was
before the update; one that had all it needed has applied it. They differ by one update at most, so the highest wins.
Repeating that update gives the same numbers, so nobody has to wait long for one that is still held up in the ring: a
library may take its own time to notice who is gone. Where the launcher allows it, such a learner is asked for its state
before the update past its main thread. docs/decisions/faults.md says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import cloudpickle

from .launchers import Answer, Fleet, Member
from .worker import RESCUED, Everything, Rescued, Updated, everything

if TYPE_CHECKING:
    from ..learning.learner import Learner

__all__ = ["Saved", "salvage"]

#: Seconds that the others have once one has answered.
_PATIENCE_S = 0.5


class Saved(Rescued):
    """What the one that applied most was, and its ``answer`` to the interrupted update, if it had applied that."""

    answer: Updated | None


def salvage(
    fleet: Fleet, survivors: Sequence[Member], answered: Mapping[int, Answer], timeout_s: float
) -> Saved | None:
    """Ask the survivors.

    Args:
        fleet: they are of.
        survivors: the learners that may still live; those that do not answer in time are left out.
        answered: rank -> what it had said to the interrupted update before the loss was noticed.
        timeout_s: for all of them together.

    Returns:
        What the one that applied most knows; ``None``: nobody answered.
    """
    deadline = time.monotonic() + timeout_s
    pending = [member for member in survivors if member.waiting]
    for member in pending:
        rescue = getattr(member, "rescue", None)
        if rescue is not None:
            rescue()
    rescued: list[Rescued] = []
    found = _collect(fleet, pending, deadline, rescued)
    answers = {**answered, **{member.rank: answer for member, good, answer in found if good}}
    alive = [member for member in survivors if not member.waiting]  # the rest are held up, or dead as well
    counts = [(count, member) for member, good, count in _ask(fleet, alive, _count, deadline, rescued) if good]
    best = max((found["num_updates"] for found in rescued), default=-1)
    for count, member in sorted(counts, key=lambda it: -it[0]):
        if count < best:
            break
        for _, good, all_ in _ask(fleet, [member], everything, deadline, rescued):
            if good:
                answer = answers.get(member.rank)
                applied = isinstance(answer, dict) and answer.get("num_updates") == count
                known: Everything = all_
                return {**known, "num_updates": count, "answer": answer if applied else None}
    for all_ in rescued:
        if all_["num_updates"] == best:
            return {**all_, "answer": None}
    return None


def _count(learner: Learner) -> int:
    return int(learner.train_state.num_updates)


def _ask(
    fleet: Fleet,
    members: Sequence[Member],
    function: Callable[[Learner], object],
    deadline: float,
    rescued: list[Rescued],
) -> list[tuple[Member, bool, Answer]]:
    for member in members:
        member.send("call", {"function": cloudpickle.dumps(function)})
    return _collect(fleet, members, deadline, rescued)


def _collect(
    fleet: Fleet, members: Sequence[Member], deadline: float, rescued: list[Rescued]
) -> list[tuple[Member, bool, Answer]]:
    """(member, good, answer) of those that answer before the deadline; what was rescued meanwhile goes to the list."""
    waiting = list(members)
    held_up: set[int] = set()
    found: list[tuple[Member, bool, Answer]] = []
    while any(member.rank not in held_up for member in waiting) and time.monotonic() < deadline:
        for member in fleet.wait(waiting, max(deadline - time.monotonic(), 0.0)):
            try:
                good, answer = member.receive()
            except EOFError:
                waiting.remove(member)
                continue  # dead as well; it stays marked as waiting
            if isinstance(answer, dict) and RESCUED in answer:
                if answer[RESCUED] is None:
                    continue  # not held up: its own answer is coming
                rescued.append(answer[RESCUED])
                held_up.add(member.rank)
            else:
                waiting.remove(member)
                member.waiting = False
                found.append((member, good, answer))
            deadline = min(deadline, time.monotonic() + _PATIENCE_S)
    return found
