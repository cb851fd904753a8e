"""Observations of several parts: an encoder for each that needs one, then one network over them all.

Needs a Dict or Tuple space. An image inside it goes through convolutions instead of being flattened; which network any
other part gets, the setting ``encoders`` says. Everything without an encoder of its own is encoded to numbers
(``learner_core.spaces.encode``) as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from .. import spaces
from ..errors import ConfigError, did_you_mean
from ..spaces import AnySpace
from ..xp import Array, ArrayTree, Namespace
from .images import ImageLayout, byte_image, has_image, image_layouts
from .initialisers import ModelSettings
from .layers import Embedding
from .networks import ENCODER_SETTINGS, Encoder, Parameters, make_encoder, make_image_encoder

__all__ = ["DictEncoder", "needs_encoders"]

_PART_SETTINGS: Final = (*ENCODER_SETTINGS, "embedding")


def needs_encoders(space: AnySpace, model: ModelSettings) -> bool:
    """Whether a space of several parts has one with an encoder of its own: an image, or one that ``encoders`` names."""
    if "" in map(".".join, spaces.parts(space)):
        return bool(model.get("encoders"))
    if model.get("encoders") or any(map(byte_image, spaces.parts(space).values())):
        return True
    return has_image(space) and bool(image_layouts(space, model))


@dataclass(frozen=True)
class _Part:
    """One part: flattened, or through a network, or one after the other."""

    path: tuple[str, ...]
    flat: spaces.SpaceEncoder | None
    network: Encoder | Embedding | None
    start: int = 0  # of a Discrete part that is looked up

    @property
    def output_size(self) -> int:
        if self.network is not None:
            return self.network.output_size
        return 0 if self.flat is None else self.flat.size

    def apply(self, xp: Namespace, params: Mapping[str, Array], obs: ArrayTree) -> Array:
        for key in self.path:
            obs = obs[key]
        if self.flat is not None:
            obs = self.flat(xp, obs)
        if isinstance(self.network, Embedding):
            # Rows that only fill up a minibatch hold zeros, which a space that starts elsewhere does not have.
            obs = xp.clip(obs - self.start, 0, self.network.num_embeddings - 1)
        return obs if self.network is None else self.network.apply(xp, params, obs)


class DictEncoder:
    """Features of all parts of an observation, side by side, in the space's order.

    A part's network is named ``{name}.{path}``, its path joined by dots. An image gets the convolutions that
    ``conv_filters`` and ``conv_activation`` of the model describe, flattened. A part that ``encoders`` names gets
    what :func:`make_encoder` makes of its settings, for which the model's are the defaults; for a Discrete part
    ``{"embedding": size}`` is a table of learned vectors.

    Args:
        name: Prefix of the parameter names.
        space: Observation space: Dict or Tuple of what :mod:`learner_core.spaces` supports.
        model: ``encoders`` ({path with dots: settings}) and the settings of :func:`make_encoder`.

    Raises:
        ConfigError: ``encoders`` names no part, or has settings that its network does not have.
        SpaceError: The space, or a part of it, is not supported.
    """

    def __init__(self, name: str, space: AnySpace, model: ModelSettings) -> None:
        self.name = name
        wanted = model.get("encoders") or {}
        if not isinstance(wanted, Mapping):
            raise ConfigError(f"encoders={wanted!r}: expected {{part: settings}}, such as {{'camera': {{}}}}")
        parts = {".".join(path): (path, part) for path, part in spaces.parts(space).items()}
        for key in wanted:
            if not key or key not in parts:
                raise ConfigError(f"encoders: the observations have no part {key!r}.{did_you_mean(str(key), parts)}")
        layouts = image_layouts(space, model)
        self._parts = [
            _make_part(f"{name}.{key}", path, part, wanted.get(key), model, layouts.get(key))
            for key, (path, part) in parts.items()
        ]
        self.has_images: bool = any(key in layouts or byte_image(part) for key, (_, part) in parts.items())

    @property
    def output_size(self) -> int:
        """Length of the features of all parts together."""
        return sum(part.output_size for part in self._parts)

    def init(self, rng: np.random.Generator) -> Parameters:
        """Sample the parameters of every part's network, float32."""
        params: Parameters = {}
        for part in self._parts:
            if part.network is not None:
                params.update(part.network.init(rng))
        return params

    def apply(self, xp: Namespace, params: Mapping[str, Array], obs: ArrayTree) -> Array:
        """Compute the features.

        Args:
            xp: The array namespace.
            params: Arrays by parameter name; others are ignored.
            obs: Nested dict of arrays ``[..., *shape]``.

        Returns:
            ``[..., output_size]``, in the parameters' dtype.
        """
        features = [part.apply(xp, params, obs) for part in self._parts]
        computed = [x.dtype for x, part in zip(features, self._parts, strict=True) if part.network is not None]
        dtype = computed[0] if computed else xp.float32
        return xp.concat([xp.astype(x, dtype) for x in features], -1)

    def __repr__(self) -> str:
        parts = ", ".join(f"{'.'.join(part.path)}: {part.network or part.output_size}" for part in self._parts)
        return f"DictEncoder({self.name!r}, {parts} -> {self.output_size})"


def _make_part(
    name: str, path: tuple[str, ...], space: AnySpace, own: object, model: ModelSettings, layout: ImageLayout | None
) -> _Part:
    """The part of this space; ``own``: its settings, ``None`` if it has none; ``layout``: how it lies, as an image."""
    flat = spaces.SpaceEncoder(space)
    if own is None and layout is None:
        return _Part(path, flat, None)
    settings = {} if own is None else own
    if not isinstance(settings, Mapping):
        raise ConfigError(f"encoders: {name}: expected a dict of settings, got {settings!r}")
    for key in settings:
        if key == "image_layout":
            raise ConfigError(f"encoders: {name}: layouts have one place: model={{'image_layout': {{part: layout}}}}")
        if key not in _PART_SETTINGS:
            raise ConfigError(f"encoders: {name}: no setting {key!r}.{did_you_mean(str(key), _PART_SETTINGS)}")
    if "embedding" in settings:
        if type(space).__name__ != "Discrete" or len(settings) > 1:
            raise ConfigError(
                f"encoders: {name}: an embedding alone, of a Discrete part; got {dict(settings)} of {space}"
            )
        # A part of a Tuple is called as the trunk's layers are: pi.0.weight is the first layer's.
        table = f"{name}.embedding" if len(path) == 1 and path[0].isdecimal() else name
        return _Part(path, None, Embedding(table, int(space.n), settings["embedding"]), int(space.start))
    merged = {**{key: value for key, value in model.items() if key in ENCODER_SETTINGS}, **settings}
    if layout is not None:
        if byte_image(space) or not settings.get("conv_filters"):
            merged["hidden"] = settings.get("hidden", [])
        return _Part(path, None, make_image_encoder(name, layout, merged))
    if settings.get("conv_filters"):
        raise ConfigError(f"encoders: {name}: conv_filters need an image (height, width, channels), this is {space}")
    merged["conv_filters"] = []
    if byte_image(space):
        merged["hidden"] = settings.get("hidden", [])
    return _Part(path, flat, make_encoder(name, (flat.size,), merged))
