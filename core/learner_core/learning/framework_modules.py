"""A user's own ``torch.nn.Module`` or ``keras.Model`` as an RLModule: what both backends' adapters share.

Needs ``forward(obs)`` (Keras: ``call``) to return ``action_dist_inputs``, or ``(action_dist_inputs, vf_preds)``, or a
dict with these keys. Observations arrive as the environment gives them: batched, images height x width x channels in
uint8. Refuses anything else that stands in ``module_class``, by what it is.

Names and layouts of the state are canonical, so that weights move between frameworks (docs/interop.md): Torch's shapes,
the owner's attribute path, and numbers that count only the layers that hold weights.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError, LearnerCoreError
from ..spaces import AnySpace
from ..xp import Array, Arrays, ArrayTree, Columns, Namespace, Outputs
from .rl_module import RLModule

__all__ = [
    "FrameworkModule",
    "RowTotals",
    "UnboundNetwork",
    "dummy_observations",
    "make_network",
    "random_observations",
]


@dataclass(frozen=True)
class RowTotals:
    """What a layer must know of the other learners' rows.

    Attributes:
        has_rows: whether this learner has rows of the minibatch; else those that it computes on must not count.
        total: the sum over the learners of a flat float vector of the backend, called by all of them in the same order.
            It may overwrite its argument, and knows nothing of gradients.
    """

    has_rows: bool
    total: Callable[[Array], Array]


class FrameworkModule(RLModule):
    """Base of the adapters; a backend implements ``_call``, ``init`` and ``init_buffers``.

    Attributes:
        not_portable: parameter or layer -> why its weights cannot move to another framework.
        not_proved: why it was not tried with random numbers whether its weights can move, though reordered maps are
            derived from; "" where it was, or there are none.
        not_resumable: layer -> why training with it is not bit-identical after a restart.
        row_layers: layers that couple the rows of a minibatch, and take their sums from ``rows`` where it is set.
        rows: the other learners' rows, while a step of several is computed; ``None``: there are no others.
        holds_statistics: in training, too, ``row_layers`` normalise by their running statistics, which stay.
    """

    portable: ClassVar[bool] = False
    row_layers: tuple[str, ...] = ()
    rows: RowTotals | None = None
    holds_statistics: bool = False

    def __init__(
        self, observation_space: AnySpace, action_space: AnySpace, model: Mapping[str, Any] | None, xp: Namespace
    ) -> None:
        super().__init__(observation_space, action_space, model, xp)
        self.not_portable: dict[str, str] = {}
        self.not_proved = ""
        self.not_resumable: dict[str, str] = {}

    def _call(self, params: Arrays, obs: ArrayTree, training: bool) -> tuple[Any, dict[str, Any]]:
        """(what the network returned, its new buffers by canonical name)."""
        raise NotImplementedError

    def export_native(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Canonical name -> array, as the framework itself names and lays them out."""
        raise NotImplementedError

    def forward_train(self, params: Arrays, batch: Columns) -> Outputs:
        return self._forward(params, batch, training=True)

    def forward_exploration(self, params: Arrays, batch: Columns) -> Outputs:
        return self._forward(params, batch, training=False)

    def _forward(self, params: Arrays, batch: Columns, training: bool) -> Outputs:
        outputs, buffers = self._call(params, batch["obs"], training)
        # Compiled policies take plain dicts only; it is losses that may ask for what is not there.
        standard = _by_name(outputs, self._network_name)
        if training:
            standard = _Outputs(standard, self._network_name)
        values = standard.get("vf_preds")
        if values is not None and len(self.xp.shape(values)) == 2 and self.xp.shape(values)[1] == 1:
            standard["vf_preds"] = self.xp.squeeze(values, -1)
        if training and buffers:
            standard["buffers"] = buffers
        return standard

    _network_name = "the network"

    def _finish(self, outputs: Any) -> None:
        """Check what the network returned for two dummy observations, and say what will not move."""
        found = _by_name(outputs, self._network_name)
        size = self.get_train_action_dist_cls().input_size(self.action_space)
        shape = tuple(self.xp.shape(found["action_dist_inputs"]))
        if shape != (2, size):
            raise ConfigError(
                f"{self._network_name}: action_dist_inputs has shape {shape} for two observations, expected (2, {size})"
                f" for {self.action_space}: logits, or mean and log_std concatenated on the last axis"
            )
        if "vf_preds" in found and tuple(self.xp.shape(found["vf_preds"])) not in ((2,), (2, 1)):
            raise ConfigError(
                f"{self._network_name}: vf_preds has shape {tuple(self.xp.shape(found['vf_preds']))} for two "
                "observations, expected (2,) or (2, 1)"
            )
        if self.not_proved and not self.not_portable:
            reason = f"portable as far as it can be read, not tried: {self.not_proved}"
            warnings.warn(f"{self._network_name} is {reason}", UserWarning, stacklevel=4)
        for what, reasons in (("not portable", self.not_portable), ("not bit-resumable", self.not_resumable)):
            if reasons:
                listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
                warnings.warn(f"{self._network_name} is {what}: {listed}", UserWarning, stacklevel=4)


class UnboundNetwork(RLModule):
    """Stands in where a framework's network would be needed and there is only numpy: it has distributions, no forward.

    Args:
        network: what stood in ``module_class``, for the message.
    """

    portable: ClassVar[bool] = False

    def __init__(self, spec: Any, xp: Namespace) -> None:
        super().__init__(spec.observation_space, spec.action_space, spec.model, xp)
        self._what = describe(spec.module_class)

    def forward_train(self, params: Arrays, batch: Columns) -> Outputs:
        raise ConfigError(
            f"{self._what} computes in its own framework, not in numpy: set .env_runners(inference='backend')"
        )


class _Outputs(dict[str, Any]):
    """Outputs that say what the network should have returned."""

    def __init__(self, values: Mapping[str, Any], owner: str) -> None:
        super().__init__(values)
        self._owner = owner

    def __missing__(self, key: str) -> Any:
        raise ConfigError(
            f"{self._owner} returned {', '.join(sorted(self))}; this algorithm needs {key!r} as well. Return "
            "(action_dist_inputs, vf_preds), or a dict with these keys"
        )


def _by_name(outputs: Any, owner: str) -> dict[str, Any]:
    if isinstance(outputs, Mapping):
        if "action_dist_inputs" not in outputs:
            raise ConfigError(f"{owner}: the dict it returns has no 'action_dist_inputs', only {sorted(outputs)}")
        return dict(outputs)
    if isinstance(outputs, (tuple, list)):
        if len(outputs) != 2:
            raise ConfigError(
                f"{owner} returned {len(outputs)} values; expected action_dist_inputs, or (action_dist_inputs, "
                "vf_preds), or a dict with these keys"
            )
        return {"action_dist_inputs": outputs[0], "vf_preds": outputs[1]}
    if not hasattr(outputs, "shape"):
        raise ConfigError(f"{owner} returned {type(outputs).__name__}; expected an array, a pair of arrays or a dict")
    return {"action_dist_inputs": outputs}


def make_network(spec: Any, base: type, framework: str) -> tuple[Any, bool]:
    """The network that ``spec.module_class`` stands for.

    Args:
        spec: ``RLModuleSpec`` with its spaces filled in. ``module_class`` is an instance of ``base``, or a class or
            function that makes one; of ``observation_space``, ``action_space``, ``model`` and the model's settings it
            is given those that its signature names.
        base: the framework's class of networks.
        framework: its name, for messages.

    Returns:
        ``(network, made)``; ``made`` is False for an instance that the user gave.

    Raises:
        ConfigError: it is something else, or needs an argument that is not known.
    """
    source = spec.module_class
    if isinstance(source, base):
        return source, False
    if not callable(source) or _is_network(type(source)):
        raise ConfigError(
            f"module_class={describe(source)}: expected an RLModule subclass, or for backend {framework!r} a "
            f"{base.__module__.split('.')[0]} {base.__name__}: an instance, a class, or a function that makes one"
        )
    if inspect.isclass(source) and not issubclass(source, base):
        raise ConfigError(
            f"module_class={describe(source)} is neither an RLModule subclass nor, for backend {framework!r}, a "
            f"{base.__module__.split('.')[0]} {base.__name__}"
        )
    known = {
        **spec.model,
        "observation_space": spec.observation_space,
        "action_space": spec.action_space,
        "model": spec.model,
    }
    arguments = {}
    try:
        parameters = inspect.signature(source).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"module_class={describe(source)}: its arguments are not known ({error})") from None
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in known and parameter.kind is not parameter.POSITIONAL_ONLY:
            arguments[name] = known[name]
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"module_class={describe(source)} needs the argument {name!r}; it can be given observation_space, "
                f"action_space, model, and the settings of model= ({', '.join(sorted(spec.model)) or 'none here'})"
            )
    try:
        network = source(**arguments)
    except LearnerCoreError:
        raise
    except Exception as error:
        raise ConfigError(f"module_class={describe(source)} raised {type(error).__name__}: {error}") from error
    if not isinstance(network, base):
        raise ConfigError(f"module_class={describe(source)} made {describe(network)}, not a {base.__name__}")
    return network, True


def _is_network(kind: type) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}".startswith(("torch.nn", "keras")) for base in kind.__mro__)


def describe(thing: Any) -> str:
    """A class, function or object in a few words."""
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return f"{thing.__module__}.{thing.__qualname__}"
    return f"an object of type {type(thing).__module__}.{type(thing).__qualname__}"


def dummy_observations(space: AnySpace, rows: int, float_dtype: Any) -> Any:
    """``rows`` observations of ``space``, the least there is of each leaf, as an update would pass them.

    Returns:
        an array [rows, ...], or a nested dict of arrays.
    """
    kind = type(space).__name__
    if kind == "Dict":
        return {key: dummy_observations(inner, rows, float_dtype) for key, inner in space.spaces.items()}
    if kind == "Tuple":
        return {str(i): dummy_observations(inner, rows, float_dtype) for i, inner in enumerate(space.spaces)}
    start = np.asarray(getattr(space, "start", 0))
    shape = tuple(space.shape)
    dtype = np.dtype(float_dtype) if np.dtype(space.dtype).kind == "f" else np.dtype(space.dtype)
    return np.broadcast_to(start.astype(dtype), (rows, *shape)).copy()


def random_observations(space: AnySpace, rows: int, float_dtype: Any) -> Any:
    """As ``dummy_observations``, drawn within the space by a generator of its own: the same in every process."""
    rng = np.random.default_rng(0)

    def draw(inner: Any) -> Any:
        like = dummy_observations(inner, rows, float_dtype)
        if isinstance(like, dict):
            parts = inner.spaces if isinstance(inner.spaces, Mapping) else dict(enumerate(inner.spaces))
            return {str(key): draw(part) for key, part in parts.items()}
        sizes = 2 if type(inner).__name__ == "MultiBinary" else getattr(inner, "nvec", getattr(inner, "n", 2))
        if not hasattr(inner, "low"):
            drawn = like + rng.integers(0, np.broadcast_to(sizes, like.shape) if like.ndim > 1 else sizes, like.shape)
            return drawn.astype(like.dtype)
        low, high = np.asarray(inner.low, np.float64), np.asarray(inner.high, np.float64)
        wide = ~(np.isfinite(low) & np.isfinite(high)) | (np.abs(low) > 1e4) | (np.abs(high) > 1e4)
        low, high = np.where(wide, np.maximum(low, -2.0), low), np.where(wide, np.minimum(high, 2.0), high)
        return (low + (np.maximum(high, low) - low) * rng.random(like.shape)).astype(like.dtype)

    return draw(space)
