"""What came of the faults of a campaign, and the table of them that docs/reliability.md shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from .faults import NUMBERS, Fault

__all__ = ["LostError", "Outcome", "line", "table"]


@dataclass
class Outcome:
    """What came of a fault: "repaired", "reported", "skipped" (NaN) or "unnoticed" (nobody needed the lost one)."""

    fault: Fault
    result: str = "unnoticed"
    recovery_s: float | None = None
    longest_s: float = 0.0
    said: list[str] = field(default_factory=list)


class LostError(AssertionError):
    """Something was lost without a word, or left behind."""


def line(outcome: Outcome) -> str:
    """One fault and what came of it, as a line."""
    fault = outcome.fault
    took = "" if outcome.recovery_s is None else f"{outcome.recovery_s:.2f} s"
    return (
        f"{fault.number:4} {fault.kind:5} {fault.phase:10} rank {fault.rank}/{fault.size} {fault.collective:8}"
        f" {'async' if fault.asynchronous else 'block'} {'restart' if fault.restart else '':7}"
        f" {outcome.result:9} {took}"
    )


def table(outcomes: list[Outcome]) -> str:
    """Markdown: what came of the faults, and how long recovery took."""
    lines = [
        "| Fault | Count | Repaired | Reported | Same decision | Nobody needed it | s, median | s, most |",
        "|---|" * 8,
    ]
    lines[1] = "|" + "---|" * 8
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        fault = outcome.fault
        kind = "NaN or Inf" if fault.kind in NUMBERS else {"raise": "exception"}.get(fault.kind, fault.kind)
        repair = (
            "" if kind in ("NaN or Inf", "exception") else (", restarting" if fault.restart else ", not restarting")
        )
        groups.setdefault(f"{fault.backend}: {kind}{repair}", []).append(outcome)
    for name, found in sorted(groups.items()):
        counts = [sum(o.result == r for o in found) for r in ("repaired", "reported", "skipped", "unnoticed")]
        times = sorted(o.recovery_s for o in found if o.recovery_s is not None and o.result in ("repaired", "reported"))
        spread = f"{times[len(times) // 2]:.2f} | {times[-1]:.2f}" if times else " | "
        lines.append(f"| {name} | {len(found)} | {' | '.join(map(str, counts))} | {spread} |")
    return "\n".join(lines)
