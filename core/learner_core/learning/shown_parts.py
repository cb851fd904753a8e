"""What of a Dict observation a network is shown: the setting ``policy_reads``, of an asymmetric actor and critic.

Needs the observation space. Refuses entries that there are not, and networks that are one.
docs/decisions/modules-and-critics.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError, did_you_mean
from ..spaces import AnySpace
from ..xp import ArrayTree

__all__ = ["ShownParts", "policy_reads"]

#: Settings that name parts of a Dict.
_BY_PART = ("encoders", "image_layout")


def policy_reads(model: Mapping[str, Any], space: AnySpace) -> tuple[str, ...] | None:
    """The entries that the policy's network is shown; ``None``: all.

    Args:
        model: a module's settings.
        space: its observation space.

    Raises:
        ConfigError: no list, no Dict, an entry that there is not, or layers shared with the value function.
    """
    reads = model.get("policy_reads")
    if reads is None:
        return None
    where = f"model={{'policy_reads': {reads!r}}}"
    if not isinstance(reads, (list, tuple)) or not reads or not all(isinstance(name, str) for name in reads):
        raise ConfigError(f"{where}: expected a list of entries of the observation")
    entries = getattr(space, "spaces", None)
    if not isinstance(entries, Mapping):
        raise ConfigError(f"{where} needs a Dict observation, got {space}")
    for name in reads:
        if name not in entries:
            raise ConfigError(f"{where}: the observation has no {name!r}.{did_you_mean(name, entries)}")
    if model.get("vf_share_layers"):
        raise ConfigError(f"{where} is for networks apart, and 'vf_share_layers' makes them one")
    return tuple(reads)


class ShownParts:
    """Takes entries out of observations; one alone stands for itself, unless settings name parts of the Dict.

    Args:
        reads: the entries; ``None``: all, as it is.
        settings: of the network.

    Attributes:
        settings: those that speak of what is shown.
    """

    def __init__(self, reads: Sequence[str] | None, settings: Mapping[str, Any]) -> None:
        self._reads = reads
        self.settings: dict[str, Any] = dict(settings)
        self._alone = False
        if reads is None:
            return
        for key in _BY_PART:
            value = self.settings.get(key)
            if isinstance(value, Mapping):
                kept = {part: own for part, own in value.items() if str(part).split("/", 1)[0] in reads}
                self.settings[key] = kept or None
        self._alone = len(reads) == 1 and not any(isinstance(self.settings.get(key), Mapping) for key in _BY_PART)

    def of(self, observation: ArrayTree) -> Any:
        """What is shown of an observation, or of its space."""
        if self._reads is None:
            return observation
        if self._alone:
            return observation[self._reads[0]]
        parts = {name: observation[name] for name in self._reads}
        return type(observation)(parts) if hasattr(observation, "spaces") else parts
