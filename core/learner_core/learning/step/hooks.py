"""The hooks of a Learner: what an algorithm overrides, and what its hooks use.

Hooks marked T are traced: they are called once per minibatch step on the backend's arrays and must be pure. Hooks
marked H run on the host, once per update or at build. All are called with keyword arguments as they are written here.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...backend import Backend
from ...config.algorithm_settings import AlgorithmSettings
from ...errors import ConfigError, did_you_mean
from ...maths import noise as noise_maths
from ...maths.optimizers import OptimizerSpec, clip_by_global_norm, clip_by_norm, clip_by_value
from ...xp import Array, Arrays, ArrayTree, Columns, DType, Namespace, Outputs
from ..batch import ColumnSpec
from ..blueprint import Blueprint, LearningRate
from ..ranks import Ranks
from ..registry import Registry
from ..rl_module import RLModuleSpec
from ..train_state import TrainState
from . import host_parameters
from .context import ModuleViews, StepContext
from .host_parameters import ParameterFunction, TargetFunction
from .variables import Variables

__all__ = ["LearnerHooks", "Loss", "LossFunction", "optimizer_from"]

#: A scalar, or {optimizer name: scalar}.
Loss = Array | dict[str, Array]
#: ``loss_fn(params) -> (losses, aux)``.
LossFunction = Callable[[Mapping[str, Mapping[str, Array]]], tuple[dict[str, Loss], ArrayTree]]


class LearnerHooks:
    """Defaults of all hooks; ``Learner`` inherits from it and calls them.

    Attributes:
        config: the live settings; in a traced hook use the ``config`` it is given.
        backend: the Backend that computes.
        xp: its array namespace.
        float_dtype: its dtype of parameters and losses.
        compute_dtype: the narrower one that modules compute in, or ``None``.
        ranks: its place among other learners.
        module_specs: module id -> complete RLModuleSpec.
        results: module id -> metric -> value, of the last update.
        train_state: what training changes.
        blueprint: what was fixed when it was built.
    """

    #: What its state means, by number (its entry ``schema``). A subclass whose weights or variables come to mean
    #: something else counts on from here, and says in ``why_not_earlier`` which earlier states it cannot take.
    state_version: ClassVar[int] = 1

    config: AlgorithmSettings
    backend: Backend
    xp: Namespace
    float_dtype: DType
    compute_dtype: DType | None
    ranks: Ranks
    module_specs: dict[str, RLModuleSpec]
    results: dict[str, dict[str, float]]
    train_state: TrainState
    blueprint: Blueprint
    _registry: Registry | None = None
    _context: StepContext | None = None

    # ------------------------------------------------------------------ hooks: building (H)

    def build(self) -> None:
        """Called once, before optimizers are configured: register variables here."""

    def configure_optimizers_for_module(self, module_id: str, config: AlgorithmSettings) -> None:
        """H. Register the module's optimizers; by default one over all its parameters at rate ``lr``."""
        self.register_optimizer(
            module_id=module_id,
            optimizer_name="default",
            optimizer=optimizer_from(config.optimizer),
            params=["*"],
            lr_or_lr_schedule="lr",
        )

    def register_optimizer(
        self,
        *,
        module_id: str,
        optimizer_name: str = "default",
        optimizer: OptimizerSpec | None = None,
        params: list[str] | None = None,
        lr_or_lr_schedule: LearningRate = "lr",
    ) -> None:
        """Give parameters an optimizer. Parameters without one are frozen.

        Args:
            module_id: the module.
            optimizer_name: its name in states and results.
            optimizer: its maths; ``None``: Adam.
            params: names or shell-style patterns of parameters and trainable variables; ``None``: all.
            lr_or_lr_schedule: name of a setting (it follows ``set_config``), a float, or [[timestep, value], ...].

        Raises:
            ConfigError: unknown parameter or setting, or a parameter that already has an optimizer.
        """
        self._registering("register_optimizer").register_optimizer(
            module_id, optimizer_name, optimizer or OptimizerSpec("adam"), params or ["*"], lr_or_lr_schedule
        )

    def register_variable(
        self,
        *,
        module_id: str,
        name: str,
        value: npt.ArrayLike,
        trainable: bool = False,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        """Add a number (or array) that is part of the state: alpha, a KL coefficient and the like.

        Args:
            module_id: the module.
            name: its name in ``self.variables[module_id]`` and in the state.
            value: initial value; float if not trainable, else float or array.
            trainable: it is a parameter: give it to an optimizer by name. Otherwise host hooks may assign it.
            bounds: least and most value with a meaning, such as (0.0, math.inf); what a state holds beyond them is
                refused, and so is such a value here and in an assignment. ``None``: any finite one.

        Raises:
            ConfigError: a name that there is, or a value that is no number, not finite or not within ``bounds``.
        """
        self._registering("register_variable").register_variable(module_id, name, value, trainable, bounds)

    def batch_spec(self, module_id: str | None = None) -> dict[str, ColumnSpec]:
        """Columns that the update reads: path -> ColumnSpec(shape of a row, dtype, required).

        Override to declare columns that are not standard ones; add to what ``super()`` returns.

        Args:
            module_id: whose; may be left out when there is one module.
        """
        module_id = self.one_module(module_id)
        if self.blueprint.explored:
            return self.blueprint.columns(module_id)
        return dict(self.blueprint.plans[module_id].standard)

    # ------------------------------------------------------------------ hooks: an update (H)

    def should_module_be_updated(self, module_id: str, batch: Mapping[str, np.ndarray]) -> bool:
        """H. Whether the module trains on this batch; by default always. ``batch``: the columns that it learns from.

        Modules that ``policies_to_train`` leaves out are not asked about.
        """
        return True

    def preprocess_batch(self, *, module_id: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """H. Whole-batch work on checked numpy columns, standardisation for instance; returns the columns."""
        return batch

    def before_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        """H. Before the minibatch steps: add noise to parameters with ``update_parameters``, for instance."""

    def after_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        """H. After them: ``self.results[module_id]`` holds this update's metrics, ``self.variables`` may be set."""

    def update_parameters(self, fn: ParameterFunction) -> None:
        """Replace parameters from a host hook: ``fn(module_id, params) -> params`` on the backend's arrays."""
        host_parameters.update_parameters(self, fn)

    def update_targets(self, fn: TargetFunction) -> None:
        """Replace targets from a host hook: ``fn(module_id, params, targets) -> targets`` on the backend's arrays.

        For targets that move once in some updates; those that move at every step belong in ``after_step``.
        """
        host_parameters.update_targets(self, fn)

    # ------------------------------------------------------------------ hooks: a step (T)

    def compute_losses(self, *, fwd_out: Mapping[str, Outputs], batch: Mapping[str, Columns]) -> dict[str, Loss]:
        """T. {module_id: loss} by ``compute_loss_for_module``; override when modules share a loss."""
        context = self._require_context("compute_losses")
        losses = {}
        for module_id in fwd_out:
            context.module_id = module_id
            losses[module_id] = self.compute_loss_for_module(
                module_id=module_id,
                config=context.config[module_id],
                batch=batch[module_id],
                fwd_out=fwd_out[module_id],
            )
            context.module_id = None
        return losses

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Columns, fwd_out: Outputs) -> Loss:
        """T. The loss of one module: a scalar, or {optimizer_name: scalar}.

        Args:
            module_id: the module.
            config: settings; floats and schedules are 0-d arrays.
            batch: columns [M, ...] of this minibatch, nested for dict observations, with ``loss_mask`` float[M].
            fwd_out: what the module's ``forward_train`` returned.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement compute_loss_for_module(...)")

    def compute_gradients(
        self, loss_fn: LossFunction, params: Mapping[str, Mapping[str, Array]]
    ) -> tuple[dict[str, dict[str, Array]], ArrayTree]:
        """T. ``(gradients, aux)``; ``loss_fn(params) -> (losses, aux)``, gradients {module_id: {name: array}}."""
        gradients, aux = self.backend.gradients(loss_fn, params, self.blueprint.groups)
        return gradients, aux

    def postprocess_gradients(self, gradients: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
        """T. All gradients, before they are applied; by default ``postprocess_gradients_for_module`` of each module."""
        context = self._require_context("postprocess_gradients")
        return {
            mid: self.postprocess_gradients_for_module(module_id=mid, config=context.config[mid], gradients=arrays)
            for mid, arrays in gradients.items()
        }

    def postprocess_gradients_for_module(
        self, *, module_id: str, config: Any, gradients: dict[str, Array]
    ) -> dict[str, Array]:
        """T. Clip as ``grad_clip`` and ``grad_clip_by`` say; a global norm is taken per optimizer."""
        bound, out = config.grad_clip, dict(gradients)
        if bound is None:
            return out
        for names in self.blueprint.groups[module_id].values():
            group = {name: gradients[name] for name in names}
            if config.grad_clip_by == "global_norm":
                group, _ = clip_by_global_norm(self.xp, group, bound)
            elif config.grad_clip_by == "norm":
                group = clip_by_norm(self.xp, group, bound)
            else:
                group = clip_by_value(self.xp, group, bound)
            out.update(group)
        return out

    def apply_gradients(self, gradients: Mapping[str, Arrays]) -> None:
        """T. Take the optimizers' step with these gradients."""
        apply = self._require_context("apply_gradients").apply
        if apply is None:
            raise ConfigError("apply_gradients: there is nothing to apply yet; it runs after compute_gradients")
        apply(gradients)

    def after_step(self, *, module_id: str, params: dict[str, Array], targets: dict[str, Array], config: Any) -> None:
        """T. After the optimizers: edit ``params`` and ``targets`` in place (polyak averaging)."""

    # ------------------------------------------------------------------ what hooks use

    @property
    def module(self) -> ModuleViews:
        """module id -> view bound to the step's parameters (outside a step: to the current ones)."""
        modules = self.blueprint.modules if self._registry is None else self._registry.modules
        return ModuleViews(modules, self._context or host_parameters.host_context(self))

    _module = module

    @property
    def variables(self) -> Variables:
        """module id -> name -> array in a step; on the host a float that hooks may assign."""
        registry = self._registry
        if registry is not None:
            return Variables(registry.host_variables, registry.bounds, None, lambda module_id, name: None)
        trained = functools.partial(host_parameters.trained_variable, self)
        return Variables(self.train_state.host_variables, self.blueprint.bounds, self._context, trained)

    def noise(self, name: str, shape: tuple[int, ...] = ()) -> Array:
        """Standard normal noise, the same on every backend and at every minibatch padding.

        Args:
            name: what it is for; different names are independent.
            shape: shape of one row's noise.

        Returns:
            In a step float[M, *shape], new for every step; in a host hook numpy float[*shape], new for every update.
        """
        shape = tuple(int(size) for size in shape)
        if self._context is not None:
            return self._context.noise(self._context.current(None), name, shape)
        stream = noise_maths.stream_id(f"host/{name}")
        dtype = self.backend.numpy_float_dtype
        state = self.train_state
        return noise_maths.normals(state.seed, state.num_updates, stream, 1, shape, dtype=dtype)[0]

    def mean(self, x: Array, module_id: str | None = None) -> Array:
        """T. Mean of ``x`` [M, ...] over the rows that count: padding and ``loss_mask`` left out."""
        return self._require_context("mean").mean(x, module_id)

    def steps_before(self, module_id: str | None = None) -> Array:
        """T. Minibatch steps that this learner took before this one, in its lifetime: they are in its state.

        All learners of a group are at the same one.

        Args:
            module_id: any module; may be left out in ``compute_loss_for_module`` and where there is one module.

        Returns:
            0-d int64.
        """
        context = self._require_context("steps_before")
        return context.steps[context.current(module_id)]

    def minibatch_statistics(self, column: str, module_id: str | None = None) -> tuple[Array, Array]:
        """T. Mean and population standard deviation of a batch column over the whole minibatch.

        Unlike :meth:`mean`, which sees the rows of this micro-batch on this learner, these are over all of them. They
        are computed on the host, in float64, over the rows that count, all further axes included.

        Args:
            column: its path, ``"advantages"``; it must be numeric and a column of every batch.
            module_id: whose; the module whose loss runs if left out.

        Returns:
            (mean, standard deviation), 0-d arrays.
        """
        context = self._require_context("minibatch_statistics")
        return context.statistics(context.current(module_id), column)

    def batch_statistics(self, values: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
        """H. Mean and population standard deviation of a column over the whole batch, for ``preprocess_batch``.

        Where every learner has rows of its own these are over all of them, so each must call it, in the same order.

        Args:
            values: [B, ...], numeric; B may be 0 on a learner that has none.
            mask: [B, ...] of the same shape, 1 where an entry counts; ``None``: all do.

        Returns:
            (mean, standard deviation), in float64; zeros where nothing counts.
        """
        weights = np.ones(values.shape) if mask is None else mask.astype(np.float64)
        exact = values.astype(np.float64)
        sums = np.array([weights.sum(), (exact * weights).sum()])
        count, total = self.ranks.sum(sums).tolist()
        mean = total / max(count, 1.0)
        squares = np.array([(np.square(exact - mean) * weights).sum()])
        (square,) = self.ranks.sum(squares).tolist()
        return mean, math.sqrt(square / max(count, 1.0))

    def log(self, name: str, value: Array | float, module_id: str | None = None) -> None:
        """T. Record a metric on the device; results hold its mean weighted by the module's rows.

        Args:
            name: metric.
            value: 0-d array or number.
            module_id: whose; the module whose loss runs if left out, ``"__all__"`` for the learner's own.
        """
        context = self._require_context("log")
        key = ("__all__" if module_id == "__all__" else context.current(module_id), name)
        value = self.xp.asarray(value)
        if math.prod(self.xp.shape(value)) != 1:
            raise ConfigError(f"self.log({name!r}): expected one number, got shape {tuple(self.xp.shape(value))}")
        context.metrics[key] = (value, None)

    def stop_update(self, condition: Array | bool, module_id: str | None = None) -> None:
        """T. From the step on where ``condition`` holds, the rest of the update leaves the module as it is.

        Args:
            condition: 0-d bool, or a 0-d float that means stop when it is above 0. A margin such as
                ``kl - bound`` is averaged over micro-batches before it is compared; of bools one that holds is enough.
            module_id: whose; the module whose loss runs if left out.
        """
        context = self._require_context("stop_update")
        margin = self.xp.reshape(self.xp.astype(self.xp.asarray(condition), self.float_dtype), ())
        context.stop[context.current(module_id)] = margin

    # ------------------------------------------------------------------ inside

    @contextlib.contextmanager
    def in_step(self, context: StepContext) -> Iterator[None]:
        """While it is open, hooks compute in this step."""
        previous, self._context = self._context, context
        try:
            yield
        finally:
            self._context = previous

    @contextlib.contextmanager
    def registering(self, registry: Registry) -> Iterator[None]:
        """While it is open, hooks register variables and optimizers there."""
        self._registry = registry
        try:
            yield
        finally:
            self._registry = None

    @property
    def has_default_gradients(self) -> bool:
        """No override between gradients and optimizers, so that clipping may work on flat vectors."""
        names = ("postprocess_gradients", "postprocess_gradients_for_module", "apply_gradients")
        by_parameter = any(self.config.for_module(mid).grad_clip_by == "norm" for mid in self.module_specs)
        return not by_parameter and all(getattr(type(self), n) is getattr(LearnerHooks, n) for n in names)

    def why_not_earlier(self, version: int) -> str:
        """Why a state of an earlier ``state_version`` means something else here, and what to do; "": it does not.

        Called on the host whenever such a state is checked, before anything changes.

        Args:
            version: of the state, below ``state_version``.
        """
        return ""

    def _registering(self, what: str) -> Registry:
        if self._registry is None:
            raise ConfigError(f"{what}: only in build() and configure_optimizers_for_module()")
        return self._registry

    def one_module(self, module_id: str | None) -> str:
        """The module meant: the one given, or the only one.

        Raises:
            ConfigError: there is none of that id, or there are several to choose from.
        """
        if module_id is None:
            if len(self.module_specs) == 1:
                return next(iter(self.module_specs))
            raise ConfigError(f"say which module: module_id= one of {sorted(self.module_specs)}")
        if module_id not in self.module_specs:
            raise ConfigError(f"unknown module_id {module_id!r}.{did_you_mean(module_id, self.module_specs)}")
        return module_id

    def _require_context(self, what: str) -> StepContext:
        if self._context is None:
            raise ConfigError(f"self.{what}: only inside a training step")
        return self._context


def optimizer_from(setting: str | Mapping[str, Any]) -> OptimizerSpec:
    """The specification that the setting ``optimizer`` means: a kind, or {"kind": ..., constant: value}."""
    return OptimizerSpec(setting) if isinstance(setting, str) else OptimizerSpec(**setting)
