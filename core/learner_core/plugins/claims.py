"""The claims of names: what installed distributions and this process register, in which group; imports none of it.

Refuses groups and names that do not exist, and names that two distributions claim.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from learner_core.backend import BackendFacts
from learner_core.errors import PluginError, PluginNotFoundError, did_you_mean

from .containment import shown
from .manager import HERE
from .metadata import Unreadable, read_claims

__all__ = [
    "GROUPS",
    "Entry",
    "Index",
    "chosen",
    "duplicate",
    "entries_of",
    "nearest",
    "refresh",
    "register",
    "unreadable",
]

GROUPS: dict[str, str | None] = {
    "learner_core.backends": "learner_core_backend",
    "learner_core.algorithms": "learner_core_algorithm",
    "learner_core.launchers": "learner_core_launcher",
    "learner_core.collectives": "learner_core_collective",
    "learner_core.plugins": None,
}
"""Entry-point group -> the hook that its plugins answer; None: told everything instead of being asked for something."""

_ALIASES = {"pytorch": "torch", "tensorflow": "tf", "keras": "tf", "tf2": "tf", "tf-cpu": "tf"}


@dataclass
class Entry:
    """One claim of a name, and what has come of it: the plugin once imported, and what it was asked for."""

    name: str
    group: str
    value: str
    distribution: str
    version: str
    plugin: object = None
    thing: object = None
    facts: BackendFacts | None = None
    error: PluginError | None = None

    @property
    def owner(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version}".rstrip()


@dataclass
class Index:
    """What is known in this process: claims of installed distributions by group, and those made by hand."""

    installed: dict[str, list[Entry]] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    here: dict[str, list[Entry]] = field(default_factory=dict)


INDEX = Index()


def entries_of(group: str) -> list[Entry]:
    """Every claim in a group; the installed ones are read once."""
    if group not in GROUPS:
        raise PluginError(f"There is no plugin group {group!r}.{did_you_mean(group, GROUPS)}")
    if group not in INDEX.installed:
        claims, INDEX.unreadable = read_claims(GROUPS)
        INDEX.installed = {known: [] for known in GROUPS}
        for claim in claims:
            entry = Entry(claim.name, claim.group, claim.value, claim.distribution, claim.version)
            INDEX.installed[claim.group].append(entry)
    return [*INDEX.installed[group], *INDEX.here.get(group, [])]


def chosen(group: str, name: str) -> Entry:
    """The one entry of this name."""
    claims = [entry for entry in entries_of(group) if entry.name == name]
    kind = group.partition(".")[2].removesuffix("s")
    if not claims:
        damaged = "".join(f" (of {one.distribution}: {one.reason})" for one in INDEX.unreadable)
        raise PluginNotFoundError(f"There is no {kind} {name!r}.{nearest(group, name)}{damaged}", plugin=str(name))
    if len(claims) > 1:
        raise duplicate(group, claims)
    return claims[0]


def duplicate(group: str, claims: list[Entry]) -> PluginError:
    """That several claim one name."""
    owners = " and ".join(sorted(f"{entry.distribution} {entry.version} ({shown(entry.value)})" for entry in claims))
    return PluginError(
        f"{group}: {claims[0].name!r} is claimed by {owners}. Uninstall all but one.",
        plugin=claims[0].name,
        distribution=claims[0].distribution,
    )


def nearest(group: str, name: str) -> str:
    """Suggest the registered name of a group that is nearest to ``name``, as :func:`did_you_mean` does."""
    known = [entry.name for entry in entries_of(group)]
    return f" Did you mean {_ALIASES[name]!r}?" if _ALIASES.get(name) in known else did_you_mean(name, known)


def register(group: str, name: str, plugin: object) -> None:
    """Register a plugin of this process by hand, as an entry point would; other processes do not see it.

    Args:
        group: One of :data:`GROUPS`.
        name: The name it is chosen by.
        plugin: The plugin: an object or module with hook implementations.

    Raises:
        PluginError: The name is taken, or the group does not exist.
    """
    taken = [entry for entry in entries_of(group) if entry.name == name]
    if taken:
        raise PluginError(f"{group}: {name!r} is taken, by {taken[0].owner}.", plugin=name, distribution=HERE)
    entry = Entry(name, group, "", HERE, "", plugin=plugin)
    INDEX.here.setdefault(group, []).append(entry)


def refresh() -> None:
    """Forget everything but hand-made registrations: distributions were installed or removed while running."""
    INDEX.installed.clear()
    INDEX.unreadable.clear()


def unreadable() -> list[Unreadable]:
    """Installed distributions whose entry points cannot all be read, and why; what is lost of them is not listed."""
    entries_of(next(iter(GROUPS)))
    return list(INDEX.unreadable)
