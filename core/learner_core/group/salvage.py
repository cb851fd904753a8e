"""What the survivors of a broken ring still know: the newest applied state.

A survivor that waited for the lost learner in the ring gets an error there and puts its state back to where it was
before the update; one that had all it needed has applied it. They differ by one update at most, so the highest wins.
Repeating that update gives the same numbers, so nobody has to wait long for one that is still held up in the ring.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle

from .launchers import Fleet, Member

__all__ = ["salvage"]

#: Seconds that the others have once one has answered.
_PATIENCE_S = 0.5


def salvage(
    fleet: Fleet, survivors: Sequence[Member], answered: Mapping[int, Any], timeout_s: float
) -> dict[str, Any] | None:
    """Ask the survivors.

    Args:
        fleet: they are of.
        survivors: the learners that may still live; those that do not answer in time are left out.
        answered: rank -> what it had said to the interrupted update before the loss was noticed.
        timeout_s: for all of them together.

    Returns:
        ``state``, ``config``, ``module_specs`` and ``num_updates`` of the one that applied most, and as ``answer`` what
        it had to say to the interrupted update, if it did apply it. ``None``: nobody answered.
    """
    deadline = time.monotonic() + timeout_s
    pending = [member for member in survivors if member.waiting]
    answers = {
        **answered,
        **{member.rank: answer for member, good, answer in _collect(fleet, pending, deadline) if good},
    }
    alive = [member for member in survivors if not member.waiting]  # the rest are held up, or dead as well
    best = None
    for member, good, count in _ask(fleet, alive, _count, deadline):
        if good and (best is None or count > best[1]):
            best = (member, count)
    if best is None:
        return None
    for _, good, found in _ask(fleet, [best[0]], _everything, deadline):
        if good:
            answer = answers.get(best[0].rank)
            applied = answer if isinstance(answer, dict) and answer.get("num_updates") == best[1] else None
            return {**found, "num_updates": best[1], "answer": applied}
    return None


def _count(learner: Any) -> int:
    return int(learner._num_updates)


def _everything(learner: Any) -> dict[str, Any]:
    return {"state": learner.get_state(), "config": learner.config, "module_specs": dict(learner.module_specs)}


def _ask(fleet: Fleet, members: Sequence[Member], function: Any, deadline: float) -> list[tuple[Member, bool, Any]]:
    for member in members:
        member.send("call", {"function": cloudpickle.dumps(function)})
    return _collect(fleet, members, deadline)


def _collect(fleet: Fleet, members: Sequence[Member], deadline: float) -> list[tuple[Member, bool, Any]]:
    """(member, good, answer) of those that answer before the deadline."""
    waiting = list(members)
    found: list[tuple[Member, bool, Any]] = []
    while waiting and time.monotonic() < deadline:
        for member in fleet.wait(waiting, max(deadline - time.monotonic(), 0.0)):
            waiting.remove(member)
            try:
                good, answer = member.receive()
            except EOFError:
                continue  # dead as well; it stays marked as waiting
            member.waiting = False
            found.append((member, good, answer))
            deadline = min(deadline, time.monotonic() + _PATIENCE_S)
    return found
