"""The settings of ``model``: which there are, whose each one is, and the refusal of those without a use.

Needs a module's settings and the names of its networks. Refuses settings that do not exist, values of another kind, and
what nothing would read beside the other settings or for these spaces, in words that say what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from .. import spaces
from ..config.foreign_names import known_in_model
from ..errors import ConfigError, did_you_mean
from ..maths.images import could_be_image, image_layouts
from ..spaces import AnySpace

__all__ = ["NETWORK_KEYS", "NetworkSettings", "check_kinds", "check_model", "given"]

NETWORK_KEYS: Final = (
    "hidden", "activation", "conv_filters", "conv_activation", "encoders", "image_layout", "init", "layer_norm"
)  # fmt: skip
"""What every network over observations has."""

#: Settings that may differ by network: {"pi": ..., "vf": ...}.
_BY_NETWORK: Final = ("hidden", "activation", "init", "layer_norm")
#: Names of networks, which some take for settings.
_NETWORKS: Final = ("pi", "policy", "qf", "vf", "critic")
#: Settings that are True or False.
_SWITCHES: Final = ("free_log_std", "layer_norm", "twin_q", "use_prev_action", "use_prev_reward", "vf_share_layers")


def check_model(model: Mapping[str, Any], known: Collection[str], owner: str) -> None:
    """Refuse settings that the module does not have.

    Raises:
        ConfigError: names the nearest setting.
    """
    for key in model:
        if key not in known:
            near = known_in_model(str(key), known) or did_you_mean(key, known)
            if key in _NETWORKS and "hidden" in known:
                near = f" Sizes of one network are hidden={{{key!r}: [...], ...}}."
            raise ConfigError(f"{owner}: model={{{key!r}: ...}} is no setting of it.{near}")


def given(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have a value: ``None`` is the default of each."""
    return {key: value for key, value in model.items() if value is not None}


def check_kinds(model: Mapping[str, Any]) -> None:
    """Refuse values of another kind: where a bool, a number or a pair of numbers belongs.

    Raises:
        ConfigError: says which.
    """
    for key in _SWITCHES:
        for value in _values(model.get(key)):
            if value is not None and not isinstance(value, bool):
                _refuse(key, value, "expected True or False")
    start, bounds = model.get("log_std_init"), model.get("log_std_range")
    if start is not None and not _is_number(start):
        _refuse("log_std_init", start, "expected a number")
    if bounds is None:
        return
    if not isinstance(bounds, Sequence) or len(bounds) != 2 or not all(map(_is_number, bounds)):
        _refuse("log_std_range", bounds, "expected two numbers, such as [-20, 2]")
    if not bounds[0] < bounds[1]:
        _refuse("log_std_range", bounds, "expected the lower bound first")
    if model.get("free_log_std") is not False and not bounds[0] <= (start or 0.0) <= bounds[1]:
        _refuse("log_std_range", bounds, f"log_std starts at {start or 0.0}, outside of it: set log_std_init within")


@dataclass(frozen=True)
class NetworkSettings:
    """The settings of a module's networks.

    Args:
        model: the module's.
        networks: names of its networks. A mapping of ``hidden`` has each of them, other mappings may leave some out.
        bare: networks that have no hidden layers unless a mapping of ``hidden`` gives them some.

    Raises:
        ConfigError: a mapping names a network that the module does not have, or ``hidden`` leaves one out.
    """

    model: Mapping[str, Any]
    networks: tuple[str, ...]
    bare: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in _BY_NETWORK:
            value = self.model.get(key)
            if not isinstance(value, Mapping):
                continue
            for network in value:
                if network not in self.networks:
                    known = f"the networks are {_listed(self.networks)}"
                    _refuse(key, value, f"{known}.{did_you_mean(network, self.networks, nearest_only=True)}")
            if key == "hidden" and set(value) != set(self.networks):
                _refuse(key, dict(value), f"give the sizes of each network: {_listed(self.networks)}")

    def of(self, name: str) -> dict[str, Any]:
        """One network's own settings, none of them by network any more."""
        own = given(self.model)
        if name in self.bare and not isinstance(own.get("hidden"), Mapping):
            own["hidden"] = []
        for key in _BY_NETWORK:
            value = own.get(key)
            if isinstance(value, Mapping):
                del own[key]
                if value.get(name) is not None:
                    own[key] = value[name]
        return own

    def refuse_idle(self, space: AnySpace) -> None:
        """Refuse what nothing would read: an activation or normalisation of no hidden layer, convolutions of no image.

        Args:
            space: observation space.

        Raises:
            ConfigError: there is such a setting.
            SpaceError: a part of the observations may be an image.
        """
        _refuse_idle_convolutions(self.model, space)
        for key in ("activation", "layer_norm"):
            value = self.model.get(key)
            if value is None or value is False:
                continue
            by_network = isinstance(value, Mapping)
            named = [name for name in self.networks if not by_network or value.get(name)]
            idle = [name for name in named if not _has_hidden(self.of(name), key)]
            if idle and (by_network or idle == named):
                whose = f" of {_listed(idle)}" if by_network else ""
                _refuse(key, value, f"there are no hidden layers{whose} for it: leave it out, or give hidden sizes")


def _refuse_idle_convolutions(model: Mapping[str, Any], space: AnySpace) -> None:
    seen = image_layouts(space, model)
    filters, activation = model.get("conv_filters"), model.get("conv_activation")
    if filters is not None and not filters:
        if activation and not seen:
            _refuse("conv_activation", activation, "with conv_filters=[] there are no convolutions")
        if not any(map(could_be_image, spaces.parts(space).values())):
            _refuse("conv_filters", filters, f"there is nothing to flatten in {space}: leave it out")
    for key, value in (("conv_filters", filters), ("conv_activation", activation)):
        if value and not seen:
            _refuse(key, value, f"it needs an image ('image_layout' says what is one), and there is none in {space}")


def _has_hidden(own: Mapping[str, Any], key: str) -> bool:
    """Whether a network, or an encoder of a part that does not say it for itself, has hidden layers."""
    encoders = own.get("encoders")
    parts = encoders.values() if isinstance(encoders, Mapping) else ()
    inside = (part for part in parts if isinstance(part, Mapping) and part.get(key) is None)
    return bool(own.get("hidden", True)) or any(part.get("hidden") for part in inside)


def _values(value: object) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, names))


def _refuse(key: str, value: object, why: str) -> NoReturn:
    raise ConfigError(f"model={{{key!r}: {value!r}}}: {why}")
