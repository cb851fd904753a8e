"""Which parts of an observation are images, and how their axes lie.

Needs an observation space and a module's ``model``. What is without doubt is recognised, by axes, dtype and bounds.
Refuses what is in doubt, and says what to type: ``model={"image_layout": ...}``. Networks see every image as height,
width, channels, floats in [0, 1]; :meth:`ImageLayout.to_hwc` brings an observation there, inside the forward pass, so
that batches, replay, statistics and exported files hold observations as the environment gives them.
docs/decisions/observations-and-actions.md says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .. import spaces
from ..errors import ConfigError, SpaceError, did_you_mean
from ..spaces import AnySpace
from ..xp import Array, Namespace
from .initialisers import ModelSettings

__all__ = [
    "FLAT",
    "LAYOUTS",
    "ImageLayout",
    "axes_of_three",
    "byte_image",
    "could_be_image",
    "has_image",
    "image_layouts",
    "layouts_in_doubt",
]

#: What ``image_layout`` says of something that is no image.
FLAT: Final = "flat"

LAYOUTS: Final[Mapping[str, str]] = {
    "HWC": "height, width, channels",
    "CHW": "channels or stacked grey frames, height, width",
    "HW": "height, width of one grey image",
    "SHWC": "stacked frames of height, width, channels",
    "SCHW": "stacked frames of channels, height, width",
    FLAT: "no image: numbers in a row",
}
"""The values of ``image_layout``: one letter an axis."""

#: Permutation that puts height and width first.
_TO_HWC: Final[Mapping[str, tuple[int, ...]]] = {
    "HWC": (0, 1, 2),
    "CHW": (1, 2, 0),
    "HW": (0, 1),
    "SHWC": (1, 2, 0, 3),
    "SCHW": (2, 3, 0, 1),
}
#: The longer side of an image is at most so many times the shorter one, unless a layout is given.
_MAX_ASPECT: Final = 4
#: Two axes alone are a picture from this side on; a window of features is hardly ever as large.
_LEAST_SIDE: Final = 32


@dataclass(frozen=True)
class ImageLayout:
    """How one image lies, in plain Python, for a network to keep.

    Attributes:
        layout: A key of ``LAYOUTS`` other than ``"flat"``.
        shape: The observation's.
        scale: Whether its numbers are no bytes and go from 0 to 255: they are divided here. (``ConvStack`` divides
            bytes, whatever their bounds.)
    """

    layout: str
    shape: tuple[int, ...]
    scale: bool = False

    @property
    def hwc(self) -> tuple[int, int, int]:
        """Height, width, channels; the channels of stacked frames side by side, the first frame's first."""
        height, width, *rest = (self.shape[axis] for axis in _TO_HWC[self.layout])
        return height, width, math.prod(rest)

    def to_hwc(self, xp: Namespace, x: Array) -> Array:
        """Bring images into the form that convolutions take.

        Args:
            xp: The array namespace.
            x: ``[..., *shape]``.

        Returns:
            ``[..., height, width, channels]``: divided by 255 where ``scale`` says so.
        """
        if self.layout != "HWC":
            lead = tuple(xp.shape(x))[: -len(self.shape)]
            one = lead if len(lead) == 1 else (-1,)
            x = x if len(lead) == 1 else xp.reshape(x, (-1, *self.shape))
            if self.layout != "HW":
                x = xp.permute_dims(x, (0, *(1 + axis for axis in _TO_HWC[self.layout])))
            if len(self.shape) != 3:
                x = xp.reshape(x, (*one, *self.hwc))
            x = x if len(lead) == 1 else xp.reshape(x, (*lead, *self.hwc))
        if self.scale:
            floating = (xp.float32, xp.float64, getattr(xp, "bfloat16", xp.float32))
            x = (x if x.dtype in floating else xp.astype(x, xp.float32)) / 255.0
        return x


def byte_image(space: AnySpace) -> bool:
    """Whether the space is a uint8 Box of three axes."""
    return type(space).__name__ == "Box" and len(space.shape) == 3 and np.dtype(space.dtype) == np.dtype(np.uint8)


def could_be_image(space: AnySpace) -> bool:
    """Whether a layout may be given of a part: it is a Box of two to four axes."""
    return type(space).__name__ == "Box" and 2 <= len(space.shape) <= 4


def has_image(observation_space: AnySpace) -> bool:
    """Whether any part is an image, or may well be one."""
    return any(_Look(part).in_question for part in spaces.parts(observation_space).values())


def image_layouts(observation_space: AnySpace, model: ModelSettings) -> dict[str, ImageLayout]:
    """The parts of an observation that convolutions see.

    Args:
        observation_space: The space.
        model: ``image_layout``, ``conv_filters`` and ``encoders`` are read: a part, or a whole observation, with
            ``conv_filters`` of its own is an image; with ``conv_filters=[]`` it is flattened.

    Returns:
        {path with dots: layout}; an observation without parts has the path ``""``.

    Raises:
        SpaceError: A part may be an image or not, or lie in several ways; the text says what to type.
        ConfigError: ``image_layout`` has no such value, does not fit the space, or has no use.
    """
    parts, filters, flattened = _with_filters(observation_space, model)
    said = _said(parts, model.get("image_layout"), flattened)
    found: dict[str, ImageLayout] = {}
    for key, layout in said.items():
        if not filters.get(key) and not model.get("conv_filters"):
            _refuse_against_axes(key, parts[key], layout)
    for key, part in parts.items():
        look, known = _Look(part), said.get(key)
        if known is None and key not in flattened:
            known = look.layout(key, convolved=bool(filters.get(key)))
        if known is not None and known != FLAT:
            found[key] = ImageLayout(known, look.shape, look.bounds == (0, 255) and not look.is_bytes)
    return found


def layouts_in_doubt(observation_space: AnySpace, model: ModelSettings) -> dict[str, AnySpace]:
    """The parts, by path with dots, that :func:`image_layouts` would ask about.

    Args:
        observation_space: The space.
        model: As of :func:`image_layouts`.
    """
    parts, filters, flattened = _with_filters(observation_space, model)
    said = _said(parts, model.get("image_layout"), flattened)
    found: dict[str, Any] = {}
    for key, part in parts.items():
        if key not in said and key not in flattened:
            try:
                _Look(part).layout(key, convolved=bool(filters.get(key)))
            except SpaceError:
                found[key] = part
    return found


def _with_filters(
    observation_space: AnySpace, model: ModelSettings
) -> tuple[dict[str, AnySpace], dict[str, Any], set[str]]:
    """Parts by path, the filters that are given for one part alone, and the parts that none are to be for."""
    parts = {".".join(path): part for path, part in spaces.parts(observation_space).items()}
    encoders = model.get("encoders") or {}
    filters = {
        key: own["conv_filters"]
        for key, own in (encoders.items() if isinstance(encoders, Mapping) else ())
        if isinstance(own, Mapping) and own.get("conv_filters") is not None
    }
    if "" in parts and model.get("conv_filters") is not None:
        filters[""] = model["conv_filters"]
    flattened = {key for key, own in filters.items() if not own}
    if model.get("conv_filters") is not None and not model["conv_filters"]:
        flattened |= {key for key in parts if not filters.get(key)}
    return parts, filters, flattened


def _said(parts: Mapping[str, AnySpace], given: object, flattened: set[str]) -> dict[str, str]:
    """{path: layout} of the parts that ``image_layout`` speaks of."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        if "" in parts:
            raise ConfigError(
                f"image_layout={dict(given)!r}: the observations have no parts; say image_layout='CHW', or another of "
                f"{', '.join(LAYOUTS)}"
            )
        if not given:
            raise ConfigError("image_layout={}: expected {part: layout}; leave it out")
        said = {}
        for key, layout in given.items():
            if key not in parts:
                raise ConfigError(
                    f"image_layout: the observations have no part {key!r}.{did_you_mean(str(key), parts)}"
                )
            said[str(key)] = _fitting(key, parts[key], layout)
    else:
        _known(given)
        keys = [key for key, part in parts.items() if _Look(part).in_question]
        if not keys:
            keys = [key for key, part in parts.items() if could_be_image(part) and given in (FLAT, *_of(part))]
            keys = [] if given == FLAT else keys
        said = {key: _fitting(key, parts[key], given) for key in keys}
        if not said:
            raise ConfigError(
                f"image_layout={given!r} needs an image, and there is none in {list(parts.values())}: leave it out"
            )
    for key in said:
        if key in flattened:
            raise ConfigError(f"image_layout={given!r}: with conv_filters=[] there are no convolutions; leave one out")
    return said


def _fitting(key: str, space: AnySpace, layout: object) -> str:
    """The layout, if it has as many axes as the space."""
    known, where = _known(layout), f"image_layout={layout!r}{f' of {key!r}' if key else ''}"
    if type(space).__name__ != "Box":
        raise ConfigError(f"{where}: an image is a Box, this is {space}")
    if known != FLAT and len(known) != len(space.shape):
        fitting = ", ".join(map(repr, (*_of(space), FLAT)))
        raise ConfigError(
            f"{where} has {len(known)} axes ({LAYOUTS[known]}), the observations have shape {tuple(space.shape)}: "
            f"expected {fitting}"
        )
    return known


def _refuse_against_axes(key: str, space: AnySpace, layout: str) -> None:
    """Refuse a layout that the axes of three contradict: the filters that nobody has given would not be meant."""
    three = tuple(space.shape)[-3:]
    seen = axes_of_three(three) if len(layout) in (3, 4) and layout != FLAT else None
    if seen is not None and seen != layout[-3:]:
        raise ConfigError(
            f"image_layout={layout!r}{f' of {key!r}' if key else ''}: {three} reads as {seen} ({LAYOUTS[seen]}), not "
            f"as {layout[-3:]}; if {layout[-3:]} is meant, give conv_filters as well"
        )


def _known(layout: object) -> str:
    if not isinstance(layout, str) or layout not in LAYOUTS:
        near = did_you_mean(layout.upper(), LAYOUTS) if isinstance(layout, str) else ""
        raise ConfigError(f"image_layout={layout!r}: expected one of {', '.join(map(repr, LAYOUTS))}.{near}")
    return layout


def _of(space: AnySpace) -> list[str]:
    """The layouts with as many axes as the space."""
    return [layout for layout in _TO_HWC if len(layout) == len(space.shape)]


class _Look:
    """What a part looks like."""

    def __init__(self, space: AnySpace) -> None:
        self.space = space
        self.is_box = type(space).__name__ == "Box"
        self.shape: tuple[int, ...] = tuple(space.shape) if self.is_box else ()
        self.bounds: tuple[float, float] | None = None
        if len(self.shape) >= 2 and 0 not in self.shape:
            low, high = (
                (float(space.low.min()), float(space.low.max())),
                (float(space.high.min()), float(space.high.max())),
            )
            if low[0] == low[1] and high[0] == high[1]:
                self.bounds = (low[0], high[0])

    @property
    def is_bytes(self) -> bool:
        """Of uint8."""
        return bool(np.dtype(self.space.dtype) == np.dtype(np.uint8))

    @property
    def _is_bounded(self) -> bool:
        """Whether the numbers are those of an image."""
        return self.bounds in ((0, 1), (0, 255)) or (self.is_bytes and len(self.shape) >= 3)

    @property
    def in_question(self) -> bool:
        """Whether it is an image, or may well be one: what nobody takes for a window of features."""
        if len(self.shape) >= 3:
            return True
        if len(self.shape) < 2:
            return False
        return self.bounds == (0, 255) or (self.bounds == (0, 1) and not self.is_bytes and self._is_picture)

    @property
    def _is_picture(self) -> bool:
        return min(self.shape) >= _LEAST_SIDE and _aspect(self.shape) <= _MAX_ASPECT

    def _candidates(self) -> list[str]:
        """The layouts that the axes admit; one: they leave no doubt."""
        shape = self.shape
        if len(shape) == 2:
            # Of numbers from 0 to 1 squares alone: a window of features may be as large.
            sure = self._is_picture and (self.bounds == (0, 255) or shape[0] == shape[1])
            return ["HW"] if sure else ["HW", FLAT]
        if len(shape) == 3:
            sure_layout = axes_of_three(shape)
            return ["HWC", "CHW"] if sure_layout is None else [sure_layout]
        if len(shape) == 4:
            inner = axes_of_three(shape[1:])
            sides = shape[1:3] if inner == "HWC" else shape[2:]
            return [f"S{inner}"] if inner is not None and shape[0] < min(sides) else ["SHWC", "SCHW"]
        return []

    def layout(self, key: str, *, convolved: bool) -> str | None:
        """Its layout, or ``None`` where it is no image; ``convolved``: filters for it say that it is one.

        Raises:
            SpaceError: It is in doubt.
        """
        if not self.in_question and not (convolved and could_be_image(self.space)):
            return None
        candidates = ["HW"] if convolved and len(self.shape) == 2 else self._candidates()
        bounded = self._is_bounded or convolved
        if bounded and len(candidates) == 1:
            return candidates[0]
        why = "its axes do not say how it lies" if bounded else "its bounds do not say whether it is one"
        if bounded and FLAT in candidates:
            why = "its axes do not say whether it is one"
        words = [*(name for name in candidates if name != FLAT), FLAT]
        value = f"{{{key!r}: {words[0]!r}}}" if key else repr(words[0])
        others = "".join(f", or {word!r} ({LAYOUTS[word]})" for word in words[1:])
        meaning = f" ({LAYOUTS[words[0]]})" if words[0] != FLAT else ""
        raise SpaceError(
            f"observation {key + ' ' if key else ''}{self.space}: it may be an image, and {why}: say "
            f"model={{'image_layout': {value}}}{meaning}{others}"
        )


def axes_of_three(shape: Sequence[int]) -> str | None:
    """``"HWC"`` or ``"CHW"`` by three axes: the channels are fewer than either side; ``None`` where a doubt is left."""
    first, middle, last = shape
    if last < min(first, middle) and _aspect((first, middle)) <= _MAX_ASPECT:
        return "HWC"
    if first < min(middle, last) and _aspect((middle, last)) <= _MAX_ASPECT:
        return "CHW"
    return None


def _aspect(sides: tuple[int, ...]) -> float:
    return max(sides) / max(1, min(sides))
