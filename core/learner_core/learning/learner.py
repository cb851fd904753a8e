"""The Learner: what trains one set of modules, and the hooks that an algorithm overrides.

An algorithm is a subclass written once for every backend. Hooks marked T are traced: they are called once per
minibatch step on the backend's arrays and must be pure. Hooks marked H run on the host, once per update.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ..errors import BatchError, ConfigError, NonFiniteError, did_you_mean
from ..maths import noise as noise_maths
from ..maths.optimizers import OptimizerSpec, clip_by_global_norm, clip_by_norm, clip_by_value
from ..plugins.manager import checkpoint_collect, checkpoint_restore, get_manager, notify
from ..schedules import value_at
from ..state.tree import copy_tree
from . import learner_state
from .batch import ColumnSpec, check_batch, split_modules
from .build import LearnerBuild, resolve_backend, resolve_modules
from .context import ModuleViews, StepContext
from .plan import MinibatchPlan, make_plan
from .results import reduce_metrics
from .ring import ALONE, Ring
from .rl_module import RLModuleSpec, check_module_id
from .state_fitting import Skipped
from .variables import Variables

__all__ = ["Learner"]

_EMPTY = 0


class Learner:
    """Trains modules by minibatch gradient steps.

    Args:
        config: frozen configuration of the algorithm.
        env: environment to take the spaces from; ``None`` makes the configured one for a moment.
        module_spec: RLModuleSpec or MultiRLModuleSpec; ``None`` takes the configuration's.
        backend: a Backend instance; ``None`` loads the configured one.
        ring: this learner's place among several (a LearnerGroup gives it); ``None``: it is alone.

    Raises:
        ConfigError, SpaceError: the configuration does not fit itself, the spaces, or this backend.
        BackendNotInstalledError: the framework is missing; names the extra.
        CompileError: ``compile=True`` and the step cannot be traced.
    """

    #: Backend that this class is written for; ``None``: any.
    framework: ClassVar[str | None] = None

    def __init__(
        self, config: Any, env: Any = None, *, module_spec: Any = None, backend: Any = None, ring: Ring | None = None
    ) -> None:
        self.config = config
        self._ring = ring or ALONE
        self.backend = backend or resolve_backend(config, type(self))
        self.xp = self.backend.xp
        self.float_dtype = self.backend.float_dtype
        self.compute_dtype = self.xp.bfloat16 if config.precision == "bfloat16" else None
        self.module_specs: dict[str, RLModuleSpec] = resolve_modules(config, env, module_spec)
        self.results: dict[str, dict[str, float]] = {}
        self.timesteps: dict[str, int] = {"num_env_steps_sampled_lifetime": 0}
        self._context: StepContext | None = None
        self._host_variables: dict[str, dict[str, float]] = {}
        self._carry: dict[str, Any] = {}
        self._optimizer_steps: dict[tuple[str, str], int] = {}
        self._num_updates = 0
        self._num_steps = 0
        self._noise_requests: dict[str, tuple[int, ...]] | None = None
        self._seed: int = config.seed
        self._wrap_batch: Callable[[str, dict[str, Any]], dict[str, Any]] = _as_it_is
        self._plugin_states: dict[str, Any] = {}
        self._build = LearnerBuild(self)
        self._build.run()
        self._tell_built()

    # ------------------------------------------------------------------ training

    def update_from_batch(
        self,
        batch: Mapping[str, Any],
        timesteps: Mapping[str, int] | None = None,
        *,
        num_epochs: int | None = None,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool | None = None,
    ) -> dict[str, dict[str, float]]:
        """Train on one batch and wait for the result.

        Args:
            batch: columns [B, ...] (``batch_spec()`` lists them), or {module_id: columns}.
            timesteps: lifetime counters; ``num_env_steps_sampled_lifetime`` moves the schedules. ``None`` or ``{}``
                leaves them where they were.
            num_epochs: passes over the batch; ``None``: the setting.
            minibatch_size: rows of a step; ``None``: the setting. A larger one than ever before recompiles.
            shuffle_batch_per_epoch: new order for every pass; ``None``: the setting.

        Returns:
            {module_id: {metric: mean over the rows}, "__all__": {...}}.

        Raises:
            BatchError: the batch does not fit; nothing has changed.
            NonFiniteError: with ``nonfinite_gradients="raise"``; the steps concerned were not applied.
        """
        checked = self._check(batch)
        self._check_sizes(num_epochs, minibatch_size)
        self._count_timesteps(timesteps)
        ready: dict[str, dict[str, np.ndarray]] = {}
        for module_id, columns in checked.items():
            if self.should_module_be_updated(module_id=module_id, batch=columns):
                ready[module_id] = self.preprocess_batch(module_id=module_id, batch=columns)
        update, rank = self._num_updates, self._ring.rank
        rows = {module_id: len(next(iter(columns.values()))) for module_id, columns in checked.items()}
        manager = get_manager()
        notify(manager, "learner_update_begin", update=update, timesteps=self.timesteps, num_rows=rows, rank=rank)
        self.before_gradient_based_update(timesteps=dict(self.timesteps))
        self.results = {module_id: {} for module_id in (*self.module_specs, "__all__")}
        if ready:
            self._train(ready, num_epochs, minibatch_size, shuffle_batch_per_epoch)
        else:
            self.results["__all__"]["num_modules_updated"] = 0.0
        self.after_gradient_based_update(timesteps=dict(self.timesteps))
        notify(manager, "learner_update_end", update=update, timesteps=self.timesteps, results=self.results, rank=rank)
        return {module_id: dict(metrics) for module_id, metrics in self.results.items()}

    def _tell_built(self) -> None:
        notify(
            get_manager(),
            "learner_build_end",
            config=self.config.to_dict(),
            module_ids=sorted(self.module_specs),
            backend=self.backend.name,
            compiled=self._build.executor.compiled,
            rank=self._ring.rank,
            world_size=self._ring.size,
        )

    def _check(self, batch: Any) -> dict[str, dict[str, np.ndarray]]:
        out = {}
        for module_id, columns in split_modules(batch, list(self.module_specs)).items():
            specs = self._build.columns[module_id]
            if "loss_mask" in columns:
                specs = {**specs, "loss_mask": ColumnSpec((), "float")}
            out[module_id] = check_batch(
                columns,
                specs,
                module_id=module_id,
                action_space=self._build.checked_space(module_id),
                float_dtype=self.backend.numpy_float_dtype,
            )
        return out

    def _check_sizes(self, num_epochs: Any, minibatch_size: Any) -> None:
        for name, value in (("num_epochs", num_epochs), ("minibatch_size", minibatch_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
                raise BatchError(f"{name}={value!r}: expected an int of at least 1, or None")

    def _count_timesteps(self, timesteps: Mapping[str, int] | None) -> None:
        if timesteps is not None and not isinstance(timesteps, Mapping):
            raise BatchError(f"timesteps: expected a dict of lifetime counters, got {timesteps!r}")
        for name, value in (timesteps or {}).items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise BatchError(f"timesteps[{name!r}] must be a non-negative int, got {value!r}")
        self.timesteps.update({name: int(value) for name, value in (timesteps or {}).items()})

    def _train(
        self,
        ready: dict[str, dict[str, np.ndarray]],
        num_epochs: int | None,
        minibatch_size: int | None,
        shuffle: bool | None,
    ) -> None:
        config = self.config
        size = int(minibatch_size or config.minibatch_size or config.train_batch_size)
        self._build.make_room_for(size)
        executor = self._build.executor
        plans: dict[str, MinibatchPlan] = {}
        for module_id in self._build.plans:
            rows = len(next(iter(ready[module_id].values()))) if module_id in ready else _EMPTY
            plan = make_plan(
                num_rows=rows,
                minibatch=size,
                num_epochs=(config.num_epochs if num_epochs is None else int(num_epochs)) if rows else 0,
                shuffle=config.shuffle_batch_per_epoch if shuffle is None else bool(shuffle),
                seed=self._seed,
                update=self._num_updates,
                stream=noise_maths.stream_id(f"plan/{module_id}"),
            )
            plans[module_id] = plan.widened_to(self._build.minibatch[module_id])
        steps = max(plan.num_steps for plan in plans.values())
        plans = {module_id: plan.padded_to(steps) for module_id, plan in plans.items()}
        executor.choose(self._num_steps)
        sums = executor.run(ready, plans, self._num_steps)
        self._num_updates += 1
        self._num_steps += steps
        self.results = reduce_metrics(sums, self._build.step.metrics or [], self.module_specs)
        for module_id in ready:
            rate = {name: self._rate(plan.lr) for name, plan in self._build.plans[module_id].optimizers.items()}
            for name, value in rate.items():
                label = "learning_rate" if len(rate) == 1 else f"learning_rate/{name}"
                self.results[module_id][label] = value
        self.results["__all__"].update(
            num_modules_updated=float(len(ready)),
            compiled=float(executor.compiled),
            num_updates=float(self._num_updates),
        )
        self._report_nonfinite()

    def _report_nonfinite(self) -> None:
        bad = {mid: m["num_nonfinite_steps"] for mid, m in self.results.items() if m.get("num_nonfinite_steps")}
        if not bad:
            return
        text = ", ".join(f"{int(count)} step(s) of module {module_id!r}" for module_id, count in bad.items())
        if self.config.nonfinite_gradients == "raise":
            raise NonFiniteError(f"NaN or infinity in the loss or its gradients in {text}; these were not applied")
        warnings.warn(f"skipped {text}: NaN or infinity in the loss or its gradients", RuntimeWarning, stacklevel=4)

    # ------------------------------------------------------------------ hooks: building (H)

    def build(self) -> None:
        """Called once, before optimizers are configured: register variables here."""

    def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
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
        lr_or_lr_schedule: Any = "lr",
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
        self._build.register_optimizer(
            module_id, optimizer_name, optimizer or OptimizerSpec("adam"), params or ["*"], lr_or_lr_schedule
        )

    def register_variable(self, *, module_id: str, name: str, value: Any, trainable: bool = False) -> None:
        """Add a number (or array) that is part of the state: alpha, a KL coefficient and the like.

        Args:
            module_id: the module.
            name: its name in ``self.variables[module_id]`` and in the state.
            value: initial value; float if not trainable, else float or array.
            trainable: it is a parameter: give it to an optimizer by name. Otherwise host hooks may assign it.
        """
        self._build.register_variable(module_id, name, value, trainable)

    def batch_spec(self, module_id: str | None = None) -> dict[str, ColumnSpec]:
        """Columns that the update reads: path -> ColumnSpec(shape of a row, dtype, required).

        Override to declare columns that are not standard ones; add to what ``super()`` returns.

        Args:
            module_id: whose; may be left out when there is one module.
        """
        module_id = self._one_module(module_id)
        found = self._build.columns.get(module_id)
        if found is not None:
            return dict(found)
        return self._build.standard[module_id]

    # ------------------------------------------------------------------ hooks: an update (H)

    def should_module_be_updated(self, module_id: str, batch: Mapping[str, Any]) -> bool:
        """H. Whether the module trains on this batch; by default if ``policies_to_train`` has it."""
        chosen = self.config.policies_to_train
        return chosen is None or module_id in chosen

    def preprocess_batch(self, *, module_id: str, batch: dict[str, Any]) -> dict[str, Any]:
        """H. Whole-batch work on checked numpy columns, standardisation for instance; returns the columns."""
        return batch

    def before_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        """H. Before the minibatch steps: add noise to parameters with ``update_parameters``, for instance."""

    def after_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        """H. After them: ``self.results[module_id]`` holds this update's metrics, ``self.variables`` may be set."""

    def update_parameters(self, fn: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
        """Replace parameters from a host hook: ``fn(module_id, params) -> params`` on the backend's arrays."""
        self._build.update_parameters(fn)

    # ------------------------------------------------------------------ hooks: a step (T)

    def compute_losses(self, *, fwd_out: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
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

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        """T. The loss of one module: a scalar, or {optimizer_name: scalar}.

        Args:
            module_id: the module.
            config: settings; floats and schedules are 0-d arrays.
            batch: columns [M, ...] of this minibatch, nested for dict observations, with ``loss_mask`` float[M].
            fwd_out: what the module's ``forward_train`` returned.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement compute_loss_for_module(...)")

    def compute_gradients(self, loss_fn: Callable[[Any], Any], params: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """T. ``(gradients, aux)``; ``loss_fn(params) -> (losses, aux)``, gradients {module_id: {name: array}}."""
        gradients, aux = self.backend.gradients(loss_fn, params, self._build.groups)
        return gradients, aux

    def postprocess_gradients(self, gradients: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """T. All gradients, before they are applied; by default ``postprocess_gradients_for_module`` of each module."""
        context = self._require_context("postprocess_gradients")
        return {
            mid: self.postprocess_gradients_for_module(module_id=mid, config=context.config[mid], gradients=arrays)
            for mid, arrays in gradients.items()
        }

    def postprocess_gradients_for_module(
        self, *, module_id: str, config: Any, gradients: dict[str, Any]
    ) -> dict[str, Any]:
        """T. Clip as ``grad_clip`` and ``grad_clip_by`` say; a global norm is taken per optimizer."""
        bound, out = config.grad_clip, dict(gradients)
        if bound is None:
            return out
        for names in self._build.groups[module_id].values():
            group = {name: gradients[name] for name in names}
            if config.grad_clip_by == "global_norm":
                group, _ = clip_by_global_norm(self.xp, group, bound)
            elif config.grad_clip_by == "norm":
                group = clip_by_norm(self.xp, group, bound)
            else:
                group = clip_by_value(self.xp, group, bound)
            out.update(group)
        return out

    def apply_gradients(self, gradients: Mapping[str, Mapping[str, Any]]) -> None:
        """T. Take the optimizers' step with these gradients."""
        apply = self._require_context("apply_gradients").apply
        if apply is None:
            raise ConfigError("apply_gradients: there is nothing to apply yet; it runs after compute_gradients")
        apply(gradients)

    def after_step(self, *, module_id: str, params: dict[str, Any], targets: dict[str, Any], config: Any) -> None:
        """T. After the optimizers: edit ``params`` and ``targets`` in place (polyak averaging)."""

    # ------------------------------------------------------------------ what hooks use

    @property
    def module(self) -> ModuleViews:
        """module id -> view bound to the step's parameters (outside a step: to the current ones)."""
        return ModuleViews(self._build.modules, self._context or self._build.host_context())

    _module = module

    @property
    def variables(self) -> Mapping[str, Any]:
        """module id -> name -> array in a step; on the host a float that hooks may assign."""
        return Variables(self._host_variables, self._context, self._build.trainable_variable)

    def noise(self, name: str, shape: tuple[int, ...] = ()) -> Any:
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
        return noise_maths.normals(self._seed, self._num_updates, stream, 1, shape, dtype=dtype)[0]

    def mean(self, x: Any, module_id: str | None = None) -> Any:
        """T. Mean of ``x`` [M, ...] over the rows that count: padding and ``loss_mask`` left out."""
        return self._require_context("mean").mean(x, module_id)

    def minibatch_statistics(self, column: str, module_id: str | None = None) -> tuple[Any, Any]:
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

    def log(self, name: str, value: Any, module_id: str | None = None) -> None:
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

    def stop_update(self, condition: Any, module_id: str | None = None) -> None:
        """T. From the step on where ``condition`` holds, the rest of the update leaves the module as it is.

        Args:
            condition: 0-d bool, or a 0-d float that means stop when it is above 0. A margin such as
                ``kl - bound`` is averaged over micro-batches before it is compared; of bools one that holds is enough.
            module_id: whose; the module whose loss runs if left out.
        """
        context = self._require_context("stop_update")
        margin = self.xp.reshape(self.xp.astype(self.xp.asarray(condition), self.float_dtype), ())
        context.stop[context.current(module_id)] = margin

    def set_config(self, **settings: Any) -> None:
        """Change settings between updates. Numbers and schedules take effect at once; others recompile.

        Raises:
            ConfigError: unknown, ill-typed, or fixed when the learner was built; nothing has changed.
        """
        self._build.set_config(settings)

    # ------------------------------------------------------------------ modules

    def add_module(self, *, module_id: str, module_spec: Any) -> None:
        """Add a module; the others keep everything they have learned.

        Raises:
            ConfigError: the id is taken or not valid.
        """
        check_module_id(module_id)
        if module_id in self.module_specs:
            raise ConfigError(f"module {module_id!r} exists already")
        spec = resolve_modules(self.config, None, module_spec, like=self.module_specs)
        self._build.change_modules({**self.module_specs, module_id: next(iter(spec.values()))})
        self._tell_built()

    def remove_module(self, module_id: str) -> None:
        """Remove a module with its optimizers and variables.

        Raises:
            ConfigError: no such module, or the last one.
        """
        self._one_module(module_id)
        if len(self.module_specs) == 1:
            raise ConfigError(f"module {module_id!r} is the only one and cannot be removed")
        self._build.change_modules({mid: spec for mid, spec in self.module_specs.items() if mid != module_id})
        self._tell_built()

    # ------------------------------------------------------------------ state

    def get_state(self) -> dict[str, Any]:
        """Everything training needs to go on: numpy arrays and plain values that share no memory with the learner."""
        state = learner_state.get_state(self)
        # What absent plugins left is kept for when they are back.
        state["plugins"] = {**self._plugin_states, **checkpoint_collect(get_manager(), rank=self._ring.rank)}
        return state

    def set_state(self, state: Mapping[str, Any], strict: bool = True) -> list[Skipped]:
        """Take over a copy of a state of any backend, device or compile setting.

        Args:
            state: what ``get_state`` returned; any part of it will do if not strict.
            strict: refuse a state that does not fit entry for entry. Otherwise what has the same path and shape is
                taken over, an optimizer whole or not at all, and everything else keeps its value.

        Returns:
            What was skipped: ``[(path, reason), ...]``, empty if strict.

        Raises:
            StateError: structure, shape or type differ; says the path, and nothing has changed. Not strict: the state
                is no tree or of another schema.
        """
        skipped: list[Skipped] = []
        if not strict:
            state, skipped = learner_state.fitted_state(self, state)
        learner_state.set_state(self, state)
        plugins = copy_tree(state["plugins"])
        absent = checkpoint_restore(get_manager(), plugins, rank=self._ring.rank)
        self._plugin_states = {name: plugins[name] for name in absent}
        return skipped

    def get_module_state(self) -> dict[str, dict[str, np.ndarray]]:
        """The weights alone: module id -> name -> array."""
        return learner_state.get_weights(self)

    def set_module_state(self, state: Mapping[str, Any]) -> None:
        """Take over weights alone; optimizers and counters stay.

        Raises:
            StateError: as ``set_state``.
        """
        learner_state.set_weights(self, state)

    def save_state(self, path: Any) -> None:
        """Write ``get_state()`` to one file, atomically."""
        from ..state.files import save_state

        save_state(path, self.get_state())
        notify(
            get_manager(), "learner_checkpoint_saved", path=str(path), update=self._num_updates, rank=self._ring.rank
        )

    def load_state(self, path: Any, strict: bool = True) -> list[Skipped]:
        """Read a file that ``save_state`` wrote on any backend; otherwise as ``set_state``."""
        from ..state.files import load_state

        return self.set_state(load_state(path), strict=strict)

    # ------------------------------------------------------------------ inside

    @property
    def _default_gradients(self) -> bool:
        """No override between gradients and optimizers, so that clipping may work on flat vectors."""
        own = type(self)
        names = ("postprocess_gradients", "postprocess_gradients_for_module", "apply_gradients")
        return self.config.grad_clip_by != "norm" and all(getattr(own, n) is getattr(Learner, n) for n in names)

    def _one_module(self, module_id: str | None) -> str:
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

    def _noise_source(self, draw: Any, rows: Mapping[str, slice]) -> Any:
        """``draw``, or while the step is being explored a source that records what is asked for."""
        if self._noise_requests is None:
            return draw

        def record(module_id: str, name: str, shape: tuple[int, ...]) -> Any:
            key = f"{module_id}/{name}"
            requests = self._noise_requests
            assert requests is not None
            if requests.setdefault(key, shape) != shape:
                raise ConfigError(f"noise {name!r} is asked for with shapes {requests[key]} and {shape} in one step")
            part = rows[module_id]
            return self.backend.from_numpy({"x": self._draw(key, 0, part.stop, shape)[part]})["x"]

        return record

    def _draw(self, key: str, step: int, rows: int, shape: tuple[int, ...]) -> np.ndarray:
        stream = noise_maths.stream_id(key)
        return noise_maths.normals(self._seed, step, stream, rows, shape, dtype=self.backend.numpy_float_dtype)

    def _rate(self, lr: Any) -> float:
        """The learning rate now: of a setting's name, a number or a schedule."""
        value = getattr(self.config, lr) if isinstance(lr, str) else lr
        return value_at(value, self.timesteps["num_env_steps_sampled_lifetime"])

    def _float_values(self) -> dict[tuple[str, ...], float]:
        """Values of every float column of the step's table, now."""
        position = self.timesteps["num_env_steps_sampled_lifetime"]
        values: dict[tuple[str, ...], float] = {}
        traced = {name: value_at(getattr(self.config, name), position) for name in self._build.traced}
        for module_id, plan in self._build.plans.items():
            values.update({("config", module_id, name): value for name, value in traced.items()})
            values.update({("lr", module_id, name): self._rate(o.lr) for name, o in plan.optimizers.items()})
            values.update({("var", module_id, n): self._host_variables[module_id][n] for n in plan.host_variables})
        return values


def optimizer_from(setting: Any) -> OptimizerSpec:
    """The specification that the setting ``optimizer`` means: a kind, or {"kind": ..., constant: value}."""
    return OptimizerSpec(setting) if isinstance(setting, str) else OptimizerSpec(**setting)


def _as_it_is(module_id: str, batch: dict[str, Any]) -> dict[str, Any]:
    return batch
