"""Every measure of the project's structure: how it is taken, the most that is allowed now, and the aim.

A limit goes down with what is measured and never up without a page in docs/decisions/ that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import counts, traces
from .imports import circles, import_graph
from .sources import PACKAGES, Source, read_package

__all__ = ["Measure", "measures", "traced_measures"]


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    Attributes:
        name: what is counted.
        take: counts it; a list is what was found, one line each.
        limit: the most that is allowed.
        aim: where it is to come to; ``None``: no more than now.
    """

    name: str
    take: Callable[[], float | list[str]]
    limit: float
    aim: float | None = None


def _of(*packages: str, inside: str = "") -> list[Source]:
    sources = [source for package in packages for source in read_package(package)]
    return [source for source in sources if not inside or f"{source.module}.".startswith(f"learner_core.{inside}.")]


def _circles() -> list[str]:
    return [" -> ".join(circle) for package in PACKAGES for circle in circles(import_graph(package))]


def _in_circles() -> list[str]:
    return [module for package in PACKAGES for circle in circles(import_graph(package)) for module in circle]


def _long_files() -> list[str]:
    return [f"{source.path} {source.lines}" for source in _of(*PACKAGES) if source.lines > 500]


def measures() -> Iterator[Measure]:
    """What is read off the sources."""
    core, torch, tf, algorithms = PACKAGES
    yield Measure("import circles", _circles, 0, 0)
    yield Measure("files in import circles", _in_circles, 0, 0)
    yield Measure("private reads: learning", lambda: counts.private_reads(_of(core, inside="learning")), 1, 10)
    yield Measure("private reads: core", lambda: counts.private_reads(_of(core)), 24, 40)
    yield Measure("Any per 1,000 lines: core", lambda: counts.any_per_1000_lines(_of(core)), 10, 10)
    yield Measure("Any per 1,000 lines: backends", lambda: counts.any_per_1000_lines(_of(torch, tf)), 1, 25)
    yield Measure("Any per 1,000 lines: algorithms", lambda: counts.any_per_1000_lines(_of(algorithms)), 1.8, 15)
    yield Measure("getattr(config, name, default)", lambda: counts.defaulted_settings(_of(*PACKAGES)), 5, 0)
    yield Measure("functions of more than six parameters: core", lambda: counts.long_signatures(_of(core)), 9)
    yield Measure("keys joined or split as text", lambda: counts.joined_keys(_of(*PACKAGES)), 18)
    yield Measure("statements", lambda: counts.statements(_of(*PACKAGES)), 31_100, 27_400)
    yield Measure("files over 500 lines", _long_files, 5, 0)


def traced_measures(backend: str) -> Iterator[Measure]:
    """What is read off calls, on that backend; its steps are compiled first."""
    updated, stepped = traces.update(backend), traces.environment_step(backend)
    yield Measure("an update: files", lambda: updated.files, 29, 20)
    yield Measure("an update: moves between files", lambda: traces.in_words(updated), 80, 35)
    yield Measure("a step of an environment: files", lambda: stepped.files, 23, 16)
