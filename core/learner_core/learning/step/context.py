"""What a traced hook sees: parameters, variables, settings, noise, masks and metrics of the step being traced.

A ``StepContext`` lives for one evaluation of the step. Everything in it is an array of the backend, except the static
settings; the Learner's ``module``, ``variables``, ``noise``, ``mean`` and ``log`` read and write it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...config.algorithm_settings import AlgorithmSettings
from ...errors import ConfigError, did_you_mean
from ...xp import Array, Arrays, ArrayTree, Columns, DType, Namespace
from ..blueprint import Blueprint
from ..rl_module import RLModule
from ..sequences import Sequences, folded, warmed
from .probe import Probe

__all__ = ["ConfigView", "ModuleView", "ModuleViews", "StepContext", "cast_floats"]


class StepContext:
    """State of one step while it is evaluated.

    Args:
        xp: the backend's namespace.
        blueprint: of the learner.
        float_dtype: of parameters and losses.
        compute_dtype: the narrower one that modules compute in, or ``None``.
        num_parts: parts that a minibatch is split into, over micro-batches and learners.

    Attributes:
        params: module id -> name -> array, trainable ones first (rebound inside ``loss_fn``).
        targets: module id -> name -> array.
        buffers: module id -> name -> array, replaced by what a forward pass returns under ``"buffers"``.
        batch: module id -> columns (nested dicts for dict observations).
        mask: module id -> float[M] or [M, T], 1 where a row counts; ``None`` when every row does.
        count: module id -> 0-d array, number of rows (timesteps) that count on this learner.
        share: the same, once ``count`` holds those of all learners.
        noise: "module/name" -> float[M, *shape].
        statistics: (module id, column) -> (mean, standard deviation) over the whole minibatch.
        variables: module id -> name -> 0-d array (host variables).
        steps: module id -> 0-d int64, the learner's minibatch steps before this one, over its lifetime.
        config: module id -> ConfigView.
        sequences: module id -> what its sequences are; ``None`` where a row is one timestep.
        metrics: (module id or "__all__", name) -> (value, weight).
        stop: module id -> bool array: this module takes no further step in this update.
        module_id: the module whose loss is being computed.
    """

    def __init__(
        self,
        xp: Namespace,
        blueprint: Blueprint,
        float_dtype: DType,
        compute_dtype: DType | None = None,
        num_parts: int = 1,
    ) -> None:
        self.xp = xp
        self.blueprint = blueprint
        self.float_dtype = float_dtype
        self.compute_dtype = compute_dtype
        self.num_parts = num_parts
        self.params: dict[str, dict[str, Any]] = {}
        self.targets: dict[str, dict[str, Any]] = {}
        self.buffers: dict[str, dict[str, Any]] = {}
        self.batch: dict[str, Any] = {}
        self.mask: dict[str, Any] = {}
        self.count: dict[str, Any] = {}
        self.share: dict[str, Any] = {}
        self.noise: Callable[[str, str, tuple[int, ...]], Any] = _no_noise
        self.statistics: Callable[[str, str], tuple[Any, Any]] = _no_statistics
        self.variables: dict[str, dict[str, Any]] = {}
        self.steps: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.sequences: dict[str, Sequences | None] = {}
        self.metrics: dict[tuple[str, str], tuple[Any, Any]] = {}
        self.stop: dict[str, Any] = {}
        self.new_buffers: dict[str, dict[str, Any]] = {}
        self.module_id: str | None = None
        #: Notes what hooks ask for; ``None``: that is known.
        self.probe: Probe | None = None
        # The step is not being traced, and looking at an array stops nothing: a branch is cheaper than a `where`.
        self.reads_values = False
        # The step is run to find out what the hooks do; optimizers and flat vectors are not theirs and left out.
        self.trial = False
        # Modules of which a hook has taken the view with gradients stopped.
        self.frozen_views: set[str] = set()
        # Set by the step between the gradients and the optimizers.
        self.apply: Callable[[Mapping[str, Mapping[str, Any]]], None] | None = None

    def clear(self) -> None:
        """Let go of every array: functions in here refer to it in a circle, which only the garbage collector breaks."""
        blank = StepContext(self.xp, self.blueprint, self.float_dtype, self.compute_dtype, self.num_parts)
        vars(self).update(vars(blank))

    def current(self, module_id: str | None) -> str:
        """The module meant: the one given, the one whose loss runs, or the only one."""
        if module_id is not None:
            if module_id not in self.batch:
                raise ConfigError(f"unknown module_id {module_id!r}.{did_you_mean(module_id, self.batch)}")
            return module_id
        if self.module_id is not None:
            return self.module_id
        if len(self.batch) == 1:
            return next(iter(self.batch))
        raise ConfigError(f"say which module: module_id= one of {sorted(self.batch)}")

    def mean(self, x: Array, module_id: str | None = None) -> Array:
        """Mean of ``x`` over the rows that count (all further axes included)."""
        xp = self.xp
        module_id = self.current(module_id)
        mask = self.mask[module_id]
        if mask is None:
            return xp.mean(x)
        x_shape, mask_shape = xp.shape(x), xp.shape(mask)
        if tuple(x_shape[: len(mask_shape)]) != tuple(mask_shape):
            raise ConfigError(f"self.mean: expected leading axes {mask_shape}, one value a row, got shape {x_shape}")
        extra = 1
        for size in x_shape[len(mask_shape) :]:
            extra *= size
        if len(x_shape) > len(mask_shape):
            mask = xp.reshape(mask, (*mask_shape, *([1] * (len(x_shape) - len(mask_shape)))))
        # where, not a product: a padded row may hold an infinity, and 0 * inf is NaN.
        total = xp.sum(xp.where(mask > 0, x, xp.zeros_like(x)))
        count = xp.maximum(self.count[module_id], xp.ones_like(self.count[module_id]))
        return total / (xp.astype(count, total.dtype) * extra)


def _no_noise(module_id: str, name: str, shape: tuple[int, ...]) -> Array:
    raise ConfigError(f"noise {name!r} was asked for outside a step")


def _no_statistics(module_id: str, column: str) -> tuple[Array, Array]:
    raise ConfigError(f"statistics of column {column!r} were asked for outside a step")


class ConfigView:
    """Settings as a step sees them: float and schedule fields are 0-d arrays, the rest is static.

    Args:
        config: the live configuration of the module.
        traced: field -> 0-d array.
    """

    __slots__ = ("_config", "_traced")

    def __init__(self, config: AlgorithmSettings, traced: Arrays) -> None:
        object.__setattr__(self, "_config", config)
        object.__setattr__(self, "_traced", traced)

    def __getattr__(self, name: str) -> Any:
        traced = object.__getattribute__(self, "_traced")
        return traced[name] if name in traced else getattr(object.__getattribute__(self, "_config"), name)

    def __setattr__(self, name: str, value: object) -> None:
        raise ConfigError(f"config.{name} cannot be set inside a step; use learner.set_config({name}=...)")


@functools.cache
def _takes_params(function: Callable[..., object]) -> bool:
    parameters = list(inspect.signature(function).parameters)
    return len(parameters) > 1 and parameters[1] == "params"


class ModuleView:
    """A module whose methods have the step's parameters already in their first argument.

    ``view.forward_train(batch)`` calls ``module.forward_train(params, batch)``; so for every method of the module
    whose first argument is named ``params``. ``view.target`` uses target parameters where there are any;
    ``view.frozen`` the same parameters with gradients stopped.
    """

    def __init__(self, module: RLModule, context: StepContext, module_id: str, kind: str = "live") -> None:
        self._module = module
        self._context = context
        self._module_id = module_id
        self._kind = kind

    @property
    def target(self) -> ModuleView:
        """The view on target parameters (gradients stopped); parameters without a target copy are the live ones."""
        return ModuleView(self._module, self._context, self._module_id, "target")

    @property
    def frozen(self) -> ModuleView:
        """The view on the same parameters with gradients stopped."""
        self._context.frozen_views.add(self._module_id)
        return self._stopped()

    def _stopped(self) -> ModuleView:
        return ModuleView(self._module, self._context, self._module_id, "frozen")

    @property
    def unwrapped(self) -> RLModule:
        """The module itself."""
        return self._module

    @property
    def params(self) -> dict[str, Array]:
        """name -> array, as this view binds them."""
        context, module_id = self._context, self._module_id
        params: dict[str, Array] = dict(context.params[module_id])
        if self._kind != "live":
            params = {name: context.xp.stop_gradient(value) for name, value in params.items()}
        if self._kind == "target":
            params.update(context.targets[module_id])
        params.update(context.buffers[module_id])
        return params

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._module, name)
        function = getattr(type(self._module), name, None)
        if function is None or not callable(attribute) or not _takes_params(function):
            return attribute
        call = self._bound(attribute)
        sequences = self._context.sequences.get(self._module_id)
        if sequences is not None and not sequences.recurrent:
            mask = self._context.batch.get(self._module_id, {}).get("loss_mask")
            usual = () if mask is None else tuple(self._context.xp.shape(mask))
            call = folded(self._context.xp, call, sequences, usual)
        elif sequences is not None and sequences.burn_in and name == "forward_train":
            call = warmed(self._context.xp, call, self._stopped()._bound(attribute), sequences)
        return self._masked(call) if name == "forward_train" else call

    def _bound(self, method: Callable[..., ArrayTree]) -> Callable[..., ArrayTree]:
        """The method with this view's parameters in its first argument, in the precision that is computed in."""
        dtype = self._context.compute_dtype
        return functools.partial(method, self.params) if dtype is None else self._mixed(method, dtype)

    def _masked(self, call: Callable[..., ArrayTree]) -> Callable[..., ArrayTree]:
        """``call`` with the logits of actions that the batch's ``action_mask`` forbids put out of reach."""

        def masked(batch: Columns, *args: ArrayTree, **kwargs: ArrayTree) -> ArrayTree:
            out = call(batch, *args, **kwargs)
            if "action_mask" not in batch or "action_dist_inputs" not in out:
                return out
            kind = self._module.get_train_action_dist_cls()
            out["action_dist_inputs"] = kind.masked(out["action_dist_inputs"], batch["action_mask"])
            return out

        return masked

    def _mixed(self, method: Callable[..., ArrayTree], dtype: DType) -> Callable[..., ArrayTree]:
        """The method computed in a narrow dtype: arguments cast down, outputs cast back up."""
        xp, params = self._context.xp, self.params

        def call(*args: ArrayTree, **kwargs: ArrayTree) -> ArrayTree:
            narrow = functools.partial(cast_floats, xp, dtype)
            out = method(narrow(params), *[narrow(arg) for arg in args], **{k: narrow(v) for k, v in kwargs.items()})
            return cast_floats(xp, xp.float32, out)

        return call


class ModuleViews(Mapping[str, ModuleView]):
    """module id -> view, the type of ``learner.module``."""

    def __init__(self, modules: Mapping[str, RLModule], context: StepContext) -> None:
        self._modules = modules
        self._context = context

    def __getitem__(self, module_id: str) -> ModuleView:
        if module_id not in self._modules:
            raise ConfigError(f"unknown module id {module_id!r}.{did_you_mean(module_id, self._modules)}")
        return ModuleView(self._modules[module_id], self._context, module_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def cast_floats(xp: Namespace, dtype: DType, tree: ArrayTree) -> ArrayTree:
    """The tree (dicts, lists, tuples) with every floating-point array cast to ``dtype``; everything else as it is."""
    if isinstance(tree, Mapping):
        return {key: cast_floats(xp, dtype, value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [cast_floats(xp, dtype, value) for value in tree]
    if isinstance(tree, tuple):
        parts = [cast_floats(xp, dtype, value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if getattr(tree, "dtype", None) in (xp.float32, xp.float64, getattr(xp, "bfloat16", xp.float32)):
        return xp.astype(tree, dtype)
    return tree
