"""``learner-core plugins``: what is installed, whether it works, and whether one plugin keeps its promises."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence

from learner_core.errors import LearnerCoreError, PluginNotFoundError, did_you_mean
from learner_core.plugins import discovery

from .console import table
from .quiet import without_startup_messages

__all__ = ["run"]

_LOAD_ONE = """
import json, sys
from learner_core.errors import BackendNotInstalledError, PluginError
from learner_core.plugins import discovery
try:
    discovery.load(*sys.argv[1:])
    result = ["loaded", None]
except BackendNotInstalledError as error:
    result = ["not installed", str(error)]
except PluginError as error:
    result = ["broken", str(error)]
print(json.dumps(result))
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
        # Two frameworks in one process may break each other, so backends are tried in processes of their own.
        apart = try_loading and group == "learner_core.backends"
        for info in discovery.list_plugins(group, try_loading=try_loading and not apart):
            status, error = _try_apart(group, info) if apart else (info.status, info.error)
            rows.append((group.partition(".")[2], info.name, f"{info.distribution} {info.version}".rstrip(), status))
            if error is not None:
                problems.append((info.name, status, error))
    print(table(rows, header=("group", "name", "from", "status")))
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    for name, status, error in problems:
        print()
        print(textwrap.fill(f"{name} ({status}): {error}", width, break_long_words=False))
    # A framework that was not installed is a choice, not a fault.
    faults = [name for name, status, _ in problems if status != "not installed"]
    if try_loading:
        print(f"\n{len(rows)} plugins, {len(faults)} with a fault")
    return 1 if try_loading and faults else 0


def _try_apart(group: str, info: discovery.PluginInfo) -> tuple[str, str | None]:
    """Load one plugin in a fresh process; returns its status and what is wrong."""
    if info.status not in ("available", "loaded"):
        return info.status, info.error
    command = [sys.executable, "-c", _LOAD_ONE, group, info.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        status, error = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return "broken", f"loading it ended the process with exit code {done.returncode}: {done.stderr[-300:]}"
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
        with without_startup_messages():
            trials = list(check_plugin(kind, name, backend=backend))
            outcomes = [(label, _outcome(trial)) for label, trial in trials]
        for label, problem in outcomes:
            failures += problem is not None
            print(f"{'ok  ' if problem is None else 'FAIL'}  {label}" + (f": {problem}" if problem else ""))
    print("all good" if not failures else f"{failures} failed")
    return 1 if failures else 0


def _outcome(trial: Callable[[], str | None]) -> str | None:
    try:
        return trial()
    except LearnerCoreError as error:
        return str(error)
    except Exception as error:  # a plugin may raise anything; the check goes on and says so
        return f"{type(error).__name__}: {error}"
