"""``learner-core plugins``: what is installed, whether it works, and whether one plugin keeps its promises."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from learner_core.errors import LearnerCoreError, PluginNotFoundError, did_you_mean
from learner_core.plugins import discovery
from learner_core.plugins.containment import contained, said, shown
from learner_core.plugins.manager import HERE, OURS

from .console import table
from .quiet import without_startup_messages

__all__ = ["run"]

#: Seconds that loading one plugin may take in a process of its own; importing a framework on a busy machine takes 30.
_LOADING_S = 120.0

# What the plugin prints is its own; the result goes to a file.
_LOAD_ONE = """
import json, os, sys
from learner_core.plugins import discovery
group, name, file = sys.argv[1:]
(info,) = [info for info in discovery.list_plugins(group, only=name, try_loading=True) if info == name]
with open(file, "w") as stream:
    json.dump([info.status, info.error], stream)
os._exit(0)  # threads that it has started, and what it does at exit, are not waited for
"""


def run(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code: 1 where ``doctor`` or ``check`` found a fault."""
    parser = argparse.ArgumentParser(
        prog="learner-core plugins",
        description="list: what is installed, importing nothing. doctor: load everything and say what is wrong. "
        "check NAME: try one plugin against the interface it promises.",
    )
    parser.add_argument("action", choices=("list", "doctor", "check"))
    parser.add_argument("name", nargs="?", help="the plugin to check")
    parser.add_argument("--group", choices=_short_groups(), help="only this group")
    parser.add_argument("--backend", metavar="NAME", help="for the check of an algorithm: train on it, too")
    parser.add_argument("--debug", action="store_true", help="a traceback when something is refused")
    given = parser.parse_args(arguments)
    groups = [f"learner_core.{given.group}"] if given.group else list(discovery.GROUPS)
    if (given.action == "check") != (given.name is not None):
        parser.error("check takes the NAME of a plugin" if given.action == "check" else f"{given.action} takes no name")
    if given.action == "list":
        return _list(groups, try_loading=False)
    if given.action == "doctor":
        return _list(groups, try_loading=True)
    return _check(groups, given.name, given.backend)


def _short_groups() -> list[str]:
    return [group.partition(".")[2] for group in discovery.GROUPS]


def _list(groups: Sequence[str], *, try_loading: bool) -> int:
    rows: list[tuple[str, str, str, str]] = []
    problems: list[tuple[str, str, str]] = []
    for group in groups:
        for info in discovery.list_plugins(group):
            status, error = _tried(group, info) if try_loading else (info.status, info.error)
            rows.append((group.partition(".")[2], info.name, f"{info.distribution} {info.version}".rstrip(), status))
            if error is not None:
                problems.append((info.name, status, error))
    damaged = discovery.unreadable()
    for one in damaged:
        rows.append(("?", "?", f"{one.distribution} {one.version}".rstrip(), "unreadable"))
        problems.append((one.distribution, "unreadable", one.reason))
    print(table(rows, header=("group", "name", "from", "status")))
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    for name, status, error in problems:
        print()
        print(textwrap.fill(f"{name} ({status}): {error}", width, break_long_words=False))
    # A framework that was not installed is a choice, not a fault.
    faults = [name for name, status, _ in problems if status != "not installed"]
    if try_loading:
        print(f"\n{len(rows) - len(damaged)} plugins, {len(faults)} with a fault")
    return 1 if try_loading and faults else 0


def _tried(group: str, info: discovery.PluginInfo) -> tuple[str, str | None]:
    """Load one plugin; returns its status and what is wrong.

    Two frameworks in one process may break each other, and a foreign module may end the process that imports it, so
    backends and what other distributions bring are tried in processes of their own.
    """
    if info.distribution == HERE or (info.distribution == OURS and group != "learner_core.backends"):
        (found,) = [one for one in discovery.list_plugins(group, only=info.name, try_loading=True) if _same(one, info)]
        return found.status, found.error
    return try_apart(group, info)


def _same(one: discovery.PluginInfo, other: discovery.PluginInfo) -> bool:
    return (one.name, one.distribution) == (other.name, other.distribution)


def try_apart(group: str, info: discovery.PluginInfo) -> tuple[str, str | None]:
    """Load one plugin in a fresh process; returns its status and what is wrong."""
    if info.status not in ("available", "loaded"):
        return info.status, info.error
    blame = f"loading plugin {info.name!r} of {info.distribution} {info.version}".rstrip()
    with tempfile.TemporaryDirectory(prefix="learner-core-plugins-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-c", _LOAD_ONE, group, info.name, str(result)]
        # It finds modules where this process does.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=_LOADING_S, check=False
            )
        except subprocess.TimeoutExpired:
            return "broken", f"{blame} takes longer than {_LOADING_S:.0f} s"
        try:
            status, error = json.loads(result.read_text())
        except (OSError, ValueError):
            words = shown(done.stderr.decode(errors="replace")[-300:].strip())
            return (
                "broken",
                f"{blame} ended the process with exit code {done.returncode}{': ' + words if words else ''}",
            )
    return str(status), None if error is None else str(error)


def _check(groups: Sequence[str], name: str, backend: str | None) -> int:
    from .plugin_check import check_plugin

    claims = [info for group in groups for info in discovery.list_plugins(group) if info.name == name]
    if not claims:
        known = [info.name for group in groups for info in discovery.list_plugins(group)]
        raise PluginNotFoundError(f"There is no plugin {name!r}.{did_you_mean(name, known)}", plugin=name)
    failures = 0
    for kind in dict.fromkeys(info.group for info in claims):  # one name may be a backend's and a collective's
        print(f"{kind}: {name}")
        if (fatal := _fatal(kind, [info for info in claims if info.group == kind])) is not None:
            failures += 1
            print(f"FAIL  it loads: {fatal}")
            continue
        with without_startup_messages():
            trials = list(check_plugin(kind, name, backend=backend))
            outcomes = [(label, _outcome(trial)) for label, trial in trials]
        for label, problem in outcomes:
            failures += problem is not None
            print(f"{'ok  ' if problem is None else 'FAIL'}  {label}" + (f": {problem}" if problem else ""))
    print("all good" if not failures else f"{failures} failed")
    return 1 if failures else 0


def _fatal(group: str, claims: Sequence[discovery.PluginInfo]) -> str | None:
    """What is wrong with a foreign plugin that cannot even be loaded in a process of its own."""
    if len(claims) != 1 or claims[0].distribution in (OURS, HERE):
        return None
    return try_apart(group, claims[0])[1]


def _outcome(trial: Callable[[], str | None]) -> str | None:
    try:
        with contained():
            problem = trial()
            return None if problem is None else shown(problem)
    except LearnerCoreError as error:
        return shown(str(error))
    except Exception as error:  # a plugin may raise anything; the check goes on and says so
        return said(error)
