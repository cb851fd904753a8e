"""Networks as functions over ``xp``: objects here hold structure, never weights.

Needs parameters in canonical form: torch's shapes, that is linear ``[out, in]`` and convolution ``[out, in, height,
width]``; observations NHWC, flattened in that order. :meth:`MLP.init` and its like sample them by numpy, so that every
backend starts from the same numbers. Refuses unknown activations, and filters that do not fit their input, when built.

References:
    Mnih et al., Human-level control through deep reinforcement learning, Nature 518, 2015 (the convolution stack)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

import numpy as np

from ..errors import ConfigError, did_you_mean
from ..xp import Array, Namespace
from .images import ImageLayout, axes_of_three
from .initialisers import ModelSettings, Parameters, init_name, orthogonal, sample_layer, uniform_fan_in
from .layers import LayerNorm

__all__ = [
    "ENCODER_SETTINGS",
    "MLP",
    "NATURE_FILTERS",
    "ConvStack",
    "Encoder",
    "Parameters",
    "activate",
    "default_filters",
    "make_encoder",
    "make_image_encoder",
    "orthogonal",
    "uniform_fan_in",
]

#: ``(outputs, kernel, stride[, padding])``; all but the first are a number or (vertical, horizontal).
Filter: TypeAlias = Sequence[int | Sequence[int]]

NATURE_FILTERS: Final = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""(outputs, kernel, stride) of the three convolutions of the Nature DQN, for images of about 84 x 84."""
_SMALL_FILTERS: Final = ((16, 3, 1),)  # for images under 36 x 36, which the Nature stack does not fit (MinAtar, grids)
_LEAST_FOR_NATURE: Final = 36

ENCODER_SETTINGS: Final = ("activation", "conv_activation", "conv_filters", "hidden", "init", "layer_norm")
"""The keys of a model mapping that :func:`make_encoder` reads."""

_ACTIVATIONS: Final = ("elu", "gelu", "identity", "leaky_relu", "relu", "sigmoid", "silu", "softplus", "tanh")


class Encoder(Protocol):
    """What :func:`make_encoder` returns, and what a module may put in its place."""

    @property
    def output_size(self) -> int:
        """Length of the last axis of what :meth:`apply` returns."""
        ...

    def init(self, rng: np.random.Generator) -> Parameters:
        """Sample the parameters, float32, by name."""
        ...

    def apply(self, xp: Namespace, params: Mapping[str, Array], x: Array) -> Array:
        """Compute ``[..., output_size]`` from observations ``[..., *shape]``."""
        ...


def activate(xp: Namespace, name: str, x: Array) -> Array:
    """Apply an activation by name.

    Args:
        xp: The array namespace.
        name: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"``, ``"silu"``, ``"leaky_relu"``, ``"sigmoid"``,
            ``"softplus"`` or ``"identity"``.
        x: Floating, any shape.

    Returns:
        An array of ``x``'s shape.
    """
    if name == "identity":
        return x
    function: Callable[[Array], Array] = getattr(xp, name)
    return function(x)


class MLP:
    """Linear layers with an activation after each but the head.

    Parameters are ``{name}.{i}.weight`` ``[out, in]`` and ``{name}.{i}.bias`` ``[out]``, ``i`` from 0; of normalised
    layers ``{name}.norm.{i}.weight`` and ``{name}.norm.{i}.bias`` ``[out]`` as well.

    Args:
        name: Prefix of the parameter names, such as ``"pi"``.
        input_size: Length of the last axis of the input.
        hidden: Sizes of the hidden layers; may be empty.
        output_size: Size of the head, a last linear layer without activation; ``None`` for no head.
        activation: After every hidden layer; see :func:`activate`.
        output_gain: Scale of the head's initial weight: 0.01 starts a policy near uniform.
        init: ``"orthogonal"`` (gain sqrt(2) for hidden layers, zero biases), ``"uniform"`` (torch's default for weights
            and biases), ``"xavier_uniform"`` or ``"kaiming_uniform"`` (zero biases); ``output_gain`` scales the head's.
        layer_norm: Whether every hidden layer is normalised, before its activation (:class:`LayerNorm`, eps 1e-5).

    Raises:
        ConfigError: For an unknown activation or init, or a size that is not a positive integer.
    """

    def __init__(
        self,
        name: str,
        input_size: int,
        hidden: Sequence[int],
        output_size: int | None = None,
        *,
        activation: str = "tanh",
        output_gain: float = 1.0,
        init: str = "orthogonal",
        layer_norm: bool = False,
    ) -> None:
        _check_name("activation", activation, _ACTIVATIONS)
        if isinstance(hidden, (str, bytes, Mapping)) or not isinstance(hidden, Sequence):
            raise ConfigError(f"hidden={hidden!r}: expected a list of sizes, such as [64, 64]")
        head = () if output_size is None else (output_size,)
        self.name = name
        self.sizes: tuple[int, ...] = tuple(
            _positive(f"{name}: layer sizes", size) for size in (input_size, *hidden, *head)
        )
        self.activation = activation
        self.output_gain = output_gain
        self.has_head: bool = output_size is not None
        self._init = init_name(init)
        self._names = [(f"{name}.{i}.weight", f"{name}.{i}.bias") for i in range(len(self.sizes) - 1)]
        self._norms = [
            LayerNorm(f"{name}.norm.{i}", self.sizes[i + 1]) for i in range(len(hidden) if layer_norm else 0)
        ]

    @property
    def input_size(self) -> int:
        """Length of the last axis of the input."""
        return self.sizes[0]

    @property
    def output_size(self) -> int:
        """Length of the last axis of the output: the head's, else the last hidden layer's, else the input's."""
        return self.sizes[-1]

    def init(self, rng: np.random.Generator) -> Parameters:
        """Sample the parameters.

        Args:
            rng: Where the numbers come from.

        Returns:
            float32 arrays by parameter name.
        """
        params: Parameters = {}
        last = len(self._names) - 1
        for i, (weight, bias) in enumerate(self._names):
            gain = self.output_gain if self.has_head and i == last else None
            shape = (self.sizes[i + 1], self.sizes[i])
            params[weight], params[bias] = sample_layer(rng, shape, init=self._init, gain=gain)
        for norm in self._norms:
            params.update(norm.init(rng))
        return params

    def apply(self, xp: Namespace, params: Mapping[str, Array], x: Array) -> Array:
        """Run the network.

        Args:
            xp: The array namespace.
            params: Arrays by parameter name; others are ignored.
            x: ``[..., input_size]``; converted to the parameters' dtype.

        Returns:
            ``[..., output_size]``.
        """
        if not self._names:
            return x
        x = xp.astype(x, params[self._names[0][0]].dtype)
        last = len(self._names) - 1
        for i, (weight, bias) in enumerate(self._names):
            x = xp.linear(x, params[weight], params[bias])
            if self._norms and (i < last or not self.has_head):
                x = self._norms[i].apply(xp, params, x)
            if i < last or not self.has_head:
                x = activate(xp, self.activation, x)
        return x

    def __repr__(self) -> str:
        norm = ", layer_norm" if self._norms else ""
        return f"MLP({self.name!r}, {' -> '.join(map(str, self.sizes))}, {self.activation}{norm})"


class ConvStack:
    """Convolutions over images, an activation after each, flattened at the end.

    Parameters are ``{name}.{i}.weight`` ``[out, in, kernel_height, kernel_width]`` and ``{name}.{i}.bias`` ``[out]``.
    uint8 images are divided by 255; floats are taken as they are. The flattening is in the order height, width,
    channels: a network that flattens channels first needs the columns of its next layer permuted.

    Args:
        name: Prefix of the parameter names.
        input_shape: ``(height, width, channels)``.
        filters: ``(outputs, kernel, stride)`` or ``(outputs, kernel, stride, padding)`` of each convolution; kernel,
            stride and padding are a number or (vertical, horizontal). The Nature stack unless told otherwise.
        activation: See :func:`activate`.
        init: As for :class:`MLP`.

    Raises:
        ConfigError: For an unknown activation or init, an input that is not three-dimensional, a malformed filter, or
            one that does not fit its input.
    """

    def __init__(
        self,
        name: str,
        input_shape: Sequence[int],
        filters: Sequence[Filter] = NATURE_FILTERS,
        *,
        activation: str = "relu",
        init: str = "orthogonal",
    ) -> None:
        _check_name("conv_activation", activation, _ACTIVATIONS)
        if len(input_shape) != 3:
            raise ConfigError(f"{name}: convolutions need (height, width, channels), got shape={tuple(input_shape)}")
        self.name = name
        self.input_shape: tuple[int, ...] = tuple(int(length) for length in input_shape)
        self.activation = activation
        self._init = init_name(init)
        self._names = [(f"{name}.{i}.weight", f"{name}.{i}.bias") for i in range(len(filters))]
        self._layers: list[
            tuple[tuple[int, ...], tuple[int, int], tuple[int, int]]
        ] = []  # weight shape, stride, padding
        height, width, channels = self.input_shape
        for i, spec in enumerate(filters):
            where = f"conv_filters[{i}]={spec!r}"
            outputs, kernel, stride, padding = _parse_filter(where, spec)
            self._layers.append(((outputs, channels, *kernel), stride, padding))
            padded = (height + 2 * padding[0], width + 2 * padding[1])
            if padded[0] < kernel[0] or padded[1] < kernel[1]:
                raise ConfigError(
                    f"{where} does not fit its input of height={height} width={width} channels={channels} (image "
                    f"shape={self.input_shape}, read as height, width, channels): give smaller conv_filters"
                )
            height = (padded[0] - kernel[0]) // stride[0] + 1
            width = (padded[1] - kernel[1]) // stride[1] + 1
            channels = outputs
        self.output_shape: tuple[int, int, int] = (height, width, channels)

    @property
    def output_size(self) -> int:
        """Length of the flattened output."""
        return math.prod(self.output_shape)

    def init(self, rng: np.random.Generator) -> Parameters:
        """Sample the parameters.

        Args:
            rng: Where the numbers come from.

        Returns:
            float32 arrays by parameter name.
        """
        params: Parameters = {}
        for (weight, bias), (shape, _, _) in zip(self._names, self._layers, strict=True):
            params[weight], params[bias] = sample_layer(rng, shape, init=self._init)
        return params

    def apply(self, xp: Namespace, params: Mapping[str, Array], x: Array) -> Array:
        """Run the convolutions.

        Args:
            xp: The array namespace.
            params: Arrays by parameter name; others are ignored.
            x: uint8 or floating ``[..., height, width, channels]``.

        Returns:
            ``[..., output_size]`` in the parameters' dtype.
        """
        leading = xp.shape(x)[:-3]
        is_bytes = x.dtype == xp.uint8
        if self._names:
            x = xp.astype(x, params[self._names[0][0]].dtype)
        elif is_bytes:
            x = xp.astype(x, xp.float32)
        if is_bytes:
            x = x / 255.0
        if len(leading) != 1:
            x = xp.reshape(x, (-1, *self.input_shape))
        for (weight, bias), (_, stride, padding) in zip(self._names, self._layers, strict=True):
            x = xp.conv2d(x, params[weight], params[bias], stride=stride, padding=padding)
            x = activate(xp, self.activation, x)
        return xp.reshape(x, (*leading, self.output_size))

    def __repr__(self) -> str:
        filters = " -> ".join(f"{shape[0]}@{shape[2]}x{shape[3]}/{stride[0]}" for shape, stride, _ in self._layers)
        return f"ConvStack({self.name!r}, {self.input_shape} -> {filters} -> {self.output_size}, {self.activation})"


class _ImageEncoder:
    """A convolution stack, then hidden layers."""

    def __init__(self, conv: ConvStack, mlp: MLP) -> None:
        self.conv = conv
        self.mlp = mlp
        self.output_size = mlp.output_size

    def init(self, rng: np.random.Generator) -> Parameters:
        return {**self.conv.init(rng), **self.mlp.init(rng)}

    def apply(self, xp: Namespace, params: Mapping[str, Array], x: Array) -> Array:
        return self.mlp.apply(xp, params, self.conv.apply(xp, params, x))

    def __repr__(self) -> str:
        return f"{self.conv!r} + {self.mlp!r}"


class _LaidOutEncoder:
    """An image that lies in any way, brought to height, width, channels."""

    def __init__(self, layout: ImageLayout, encoder: Encoder) -> None:
        self.layout = layout
        self.encoder = encoder
        self.output_size = encoder.output_size

    def init(self, rng: np.random.Generator) -> Parameters:
        return self.encoder.init(rng)

    def apply(self, xp: Namespace, params: Mapping[str, Array], x: Array) -> Array:
        return self.encoder.apply(xp, params, self.layout.to_hwc(xp, x))

    def __repr__(self) -> str:
        return f"{self.layout.layout} {self.layout.shape} -> {self.encoder!r}"


class _FlatEncoder:
    """Hidden layers over an array of several axes, flattened."""

    def __init__(self, shape: Sequence[int], mlp: MLP) -> None:
        self.shape = tuple(shape)
        self.mlp = mlp
        self.output_size = mlp.output_size

    def init(self, rng: np.random.Generator) -> Parameters:
        return self.mlp.init(rng)

    def apply(self, xp: Namespace, params: Mapping[str, Array], x: Array) -> Array:
        leading = xp.shape(x)[: -len(self.shape)] if self.shape else xp.shape(x)
        return self.mlp.apply(xp, params, xp.reshape(x, (*leading, self.mlp.input_size)))

    def __repr__(self) -> str:
        return f"flatten {self.shape} + {self.mlp!r}"


def default_filters(height: int, width: int) -> tuple[Filter, ...]:
    """The convolutions of an image for which none are given; they fit every size.

    From 36 x 36 the Nature stack, under it one of 3 x 3. Kernels are cut to what is left of a side that is shorter.

    Args:
        height: Of the image.
        width: Of the image.

    Returns:
        ``(outputs, kernel, stride)`` of each.
    """
    filters: Sequence[tuple[int, int, int]] = NATURE_FILTERS
    if min(height, width) >= _LEAST_FOR_NATURE:
        return NATURE_FILTERS
    if max(height, width) < _LEAST_FOR_NATURE:
        filters = _SMALL_FILTERS
    found: list[Filter] = []
    for outputs, kernel, stride in filters:
        cut = (min(kernel, height), min(kernel, width))
        found.append((outputs, kernel if cut == (kernel, kernel) else cut, stride))
        height, width = ((side - size) // stride + 1 for side, size in zip((height, width), cut, strict=True))
    return tuple(found)


def make_image_encoder(name: str, layout: ImageLayout, model: ModelSettings) -> Encoder:
    """Build the network from an image, however it lies, to features: as :func:`make_encoder`, whose names it has.

    Args:
        name: Prefix of the parameter names.
        layout: How the image lies (``learner_core.maths.images``).
        model: As of :func:`make_encoder`.

    Returns:
        The encoder.

    Raises:
        ConfigError: As :func:`make_encoder`.
    """
    if model.get("conv_filters") is None:
        model = {**model, "conv_filters": default_filters(*layout.hwc[:2])}
    encoder = make_encoder(name, layout.hwc, model)
    return encoder if layout.layout == "HWC" and not layout.scale else _LaidOutEncoder(layout, encoder)


def make_encoder(name: str, shape: Sequence[int], model: ModelSettings) -> Encoder:
    """Build the network from an observation to features that ``model`` describes.

    Three axes are an image and get a :class:`ConvStack` ``{name}.conv``, unless ``conv_filters`` is empty; anything
    else is flattened. Hidden layers ``{name}`` follow, with an activation after the last.

    Args:
        name: Prefix of the parameter names.
        shape: Shape of one observation: ``(num_features,)`` or ``(height, width, channels)``.
        model: ``hidden`` (default: [64, 64]; for images [512]), ``activation`` (tanh; for images relu),
            ``conv_filters`` (default: :func:`default_filters`), ``conv_activation`` (relu), ``init`` (orthogonal),
            ``layer_norm`` (False). ``None`` is the default; other keys are ignored: they are the module's.

    Returns:
        The encoder: ``init(rng)``, ``apply(xp, params, x)`` and ``output_size``.

    Raises:
        ConfigError: As :class:`MLP` and :class:`ConvStack` do; three axes that look like channels first.
    """
    given = {key: value for key, value in model.items() if value is not None}
    is_image = len(shape) == 3
    filters = given.get("conv_filters")
    if is_image and filters is None:
        if axes_of_three(shape) == "CHW":
            raise ConfigError(
                f"{name}: shape={tuple(shape)} is read as (height, width, channels) and looks like (channels, height, "
                "width): take make_image_encoder, which is told how an image lies, or give conv_filters"
            )
        filters = default_filters(shape[0], shape[1])
    if filters and not is_image:
        raise ConfigError(f"{name}: conv_filters need (height, width, channels), got shape={tuple(shape)}")
    init = given.get("init", "orthogonal")
    hidden = given.get("hidden", [512] if filters else [64, 64])
    activation = given.get("activation", "relu" if filters else "tanh")
    layer_norm = given.get("layer_norm", False)
    if filters:
        conv = ConvStack(f"{name}.conv", shape, filters, activation=given.get("conv_activation", "relu"), init=init)
        mlp = MLP(name, conv.output_size, hidden, activation=activation, init=init, layer_norm=layer_norm)
        return _ImageEncoder(conv, mlp)
    mlp = MLP(name, math.prod(shape), hidden, activation=activation, init=init, layer_norm=layer_norm)
    return mlp if len(shape) == 1 else _FlatEncoder(shape, mlp)


def _check_name(setting: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{setting}={value!r} does not exist.{did_you_mean(value, known)}")


def _positive(what: str, value: object, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{what}: expected integers of at least {least}, got {value!r}")
    return int(value)


def _parse_filter(where: str, spec: object) -> tuple[int, tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(outputs, kernel, stride[, padding]) with pairs made of lone numbers."""
    if isinstance(spec, str) or not isinstance(spec, Sequence) or len(spec) not in (3, 4):
        raise ConfigError(f"{where}: expected (outputs, kernel, stride) or (outputs, kernel, stride, padding)")

    def pair(value: object, least: int) -> tuple[int, int]:
        values = list(value) if isinstance(value, Sequence) else [value, value]
        if len(values) != 2:
            raise ConfigError(f"{where}: expected a number or (vertical, horizontal), got {value!r}")
        return _positive(where, values[0], least), _positive(where, values[1], least)

    padding = pair(spec[3], 0) if len(spec) == 4 else (0, 0)
    return _positive(where, spec[0]), pair(spec[1], 1), pair(spec[2], 1), padding
