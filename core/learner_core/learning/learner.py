"""The Learner: what trains one set of modules.

An algorithm is a subclass, written once for every backend, that overrides the hooks of ``learning/hooks.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..config.foreign_names import unknown_attribute
from ..config.foreign_table import LEARNER as LEARNER_NAMES
from ..errors import BatchError, ConfigError, NonFiniteError, did_you_mean
from ..maths import noise as noise_maths
from ..plugins.manager import checkpoint_collect, checkpoint_restore, get_manager, notify
from ..schedules import value_at
from ..state.kinds import LEARNER, refuse_other_kinds
from ..state.tree import copy_tree
from ..state.writer import check_tree
from . import learner_state, rebuild
from .batch import check_batch, split_modules
from .batch_rule import BatchRule
from .build import LearnerBuild
from .context import StepContext
from .hook_answers import refuse_answer, yes_or_no
from .hooks import LearnerHooks
from .plain_arrays import has_elements
from .plan import MinibatchPlan, make_plan
from .resolve import resolve_backend, resolve_modules
from .results import reduce_metrics
from .ring import ALONE, Ring
from .rl_module import RLModuleSpec, acting, check_module_id
from .sharding import meet, num_shards_of, shards_of
from .state_fitting import Skipped

__all__ = ["Learner"]

#: The counter that schedules move by.
_COUNTER = "num_env_steps_sampled_lifetime"


class Learner(LearnerHooks):
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
    #: What its state means, by number (its entry ``schema``). A subclass whose weights or variables come to mean
    #: something else counts on from here, and says in ``why_not_earlier`` which earlier states it cannot take.
    state_version: ClassVar[int] = 1

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
        rebuild.check_module_ids(self, config, config.news)
        self.results: dict[str, dict[str, float]] = {}
        self.timesteps: dict[str, int] = {_COUNTER: 0}
        self._context: StepContext | None = None
        self._host_variables: dict[str, dict[str, float]] = {}
        self._carry = {}
        self._optimizer_steps: dict[tuple[str, str], int] = {}
        self._num_updates = 0
        self._num_steps = 0
        self._noise_requests: dict[str, tuple[int, ...]] | None = None
        self._seed: int = config.seed
        self._num_shards = num_shards_of(config, self._ring)
        self._wrap_batch: Callable[[str, dict[str, Any]], dict[str, Any]] = _as_it_is
        self._plugin_states: dict[str, Any] = {}
        self._build = LearnerBuild(self)
        self._build.run()
        rebuild.check_memory(self, config, config.news)
        self._tell_built()

    if not TYPE_CHECKING:  # for type checkers there are no more attributes than are written down

        def __getattr__(self, name: str) -> Any:
            raise unknown_attribute(self, name, LEARNER_NAMES)

    # ------------------------------------------------------------------ training

    def update_from_batch(
        self,
        batch: Mapping[str, Any],
        timesteps: Mapping[str, int] | None = None,
        *,
        num_epochs: int | None = None,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool | None = None,
        shard_rows: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    ) -> dict[str, dict[str, float]]:
        """Train on one batch and wait for the result.

        Args:
            batch: columns [B, ...], or [B, T, ...] where rows are sequences (``batch_spec()`` lists them), or
                {module_id: columns}.
            timesteps: lifetime counters; ``num_env_steps_sampled_lifetime`` moves the schedules. ``None`` or ``{}``
                leaves them where they were.
            num_epochs: passes over the batch; ``None``: the setting.
            minibatch_size: timesteps of a step; ``None``: the setting. A larger one than ever before recompiles.
            shuffle_batch_per_epoch: new order for every pass; ``None``: the setting.
            shard_rows: with ``data_shards``: rows of each shard of the batch, which stand one after the other, or
                {module_id: rows of each}; ``None``: as even as can be.

        Returns:
            {module_id: {metric: mean over the rows}, "__all__": {...}}.

        Raises:
            BatchError: the batch does not fit; nothing has changed.
            ConfigError: no gradients can be taken here (``torch.inference_mode()``); nothing has changed.
            LearnerGroupError: learners have rows of their own, and another one refused its batch; nothing has changed.
            NonFiniteError: with ``nonfinite_gradients="raise"``; the steps concerned were not applied.
        """
        rows: dict[str, int] = {}
        updated: dict[str, bool] = {}

        def prepare() -> tuple[dict[str, dict[str, np.ndarray]], dict[str, list[int]]]:
            self._check_recording()
            checked = self._check(batch)
            self._check_sizes(num_epochs, minibatch_size)
            self._check_timesteps(timesteps)
            rows.update({module_id: len(next(iter(columns.values()))) for module_id, columns in checked.items()})
            shards = shards_of(checked, self._num_shards // (self._ring.size if self._ring.meeting else 1), shard_rows)
            updated.update(self._to_be_updated(checked))
            fed = {plan.rows_from for mid, plan in self._build.step.plans.items() if updated.get(mid)}
            wanted = {mid: columns for mid, columns in checked.items() if mid in fed}
            return wanted, {module_id: shards[module_id] for module_id in wanted}

        if self._ring.meeting is None:
            wanted, shards = prepare()
        else:
            said = {"num_epochs": num_epochs, "minibatch_size": minibatch_size, "shuffle": shuffle_batch_per_epoch}
            wanted, shards = meet(self, prepare, updated, {**said, "timesteps": dict(timesteps or {})})
        self.timesteps.update({name: int(value) for name, value in (timesteps or {}).items()})
        learning = self._build.step.plans  # rows of a module that rests are there for others, in the columns they read
        ready = {
            mid: self.preprocess_batch(module_id=mid, batch=columns) if mid in learning else columns
            for mid, columns in wanted.items()
        }
        update, rank = self._num_updates, self._ring.rank
        manager = get_manager()
        notify(manager, "learner_update_begin", update=update, timesteps=self.timesteps, num_rows=rows, rank=rank)
        answer: Any = self.before_gradient_based_update(timesteps=dict(self.timesteps))  # type: ignore[func-returns-value]
        refuse_answer("before_gradient_based_update", answer, "self.update_parameters(fn) changes parameters")
        self.results = {module_id: {} for module_id in (*self.module_specs, "__all__")}
        if ready:
            self._train(ready, shards, updated, num_epochs, minibatch_size, shuffle_batch_per_epoch)
        else:
            self.results["__all__"]["num_modules_updated"] = 0.0
        answer = self.after_gradient_based_update(timesteps=dict(self.timesteps))  # type: ignore[func-returns-value]
        refuse_answer("after_gradient_based_update", answer, "write metrics into self.results[module_id]")
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
        own_rows = self._ring.meeting is not None
        nothing = own_rows and isinstance(batch, Mapping) and not batch
        parts = {} if nothing else split_modules(batch, self.module_specs)
        for module_id, columns in parts.items():
            if module_id not in self._build.step.feeds:
                continue  # nothing is learned from its rows
            if own_rows and columns and not any(map(has_elements, columns.values())):
                continue  # others may have some
            specs = self._build.columns[module_id]
            if "loss_mask" in columns:
                specs = {**specs, "loss_mask": self._build.mask_spec(module_id)}
            out[module_id] = check_batch(
                columns,
                specs,
                module_id=module_id,
                action_space=self._build.checked_space(module_id),
                float_dtype=self.backend.numpy_float_dtype,
            )
            self._mask_sequences(module_id, out[module_id])
        return out

    def _to_be_updated(self, checked: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, bool]:
        """module id -> whether it learns from these rows, of the modules that have some."""
        asked = {mid: plan.rows_from for mid, plan in self._build.step.plans.items() if plan.rows_from in checked}
        return {
            mid: yes_or_no(
                "should_module_be_updated", self.should_module_be_updated(module_id=mid, batch=checked[feed])
            )
            for mid, feed in asked.items()
        }

    def _mask_sequences(self, module_id: str, columns: dict[str, np.ndarray]) -> None:
        """Batches of sequences always have a mask, and steps of a burn-in never count."""
        sequences = self._build.plans[module_id].sequences
        if sequences is None:
            return
        shape = (len(next(iter(columns.values()))), sequences.length)
        given = columns.get("loss_mask")
        mask = np.ones(shape, self.backend.numpy_float_dtype) if given is None else given.copy()
        mask[:, : sequences.burn_in] = 0
        columns["loss_mask"] = mask

    def _check_sizes(self, num_epochs: Any, minibatch_size: Any) -> None:
        for name, value in (("num_epochs", num_epochs), ("minibatch_size", minibatch_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
                raise BatchError(f"{name}={value!r}: expected an int of at least 1, or None")
        if minibatch_size is not None:
            for module_id in self._build.minibatch:
                self._build.minibatch_rows(module_id, int(minibatch_size), BatchError)

    def _check_recording(self) -> None:
        reason = self.backend.why_not_recording()
        trained = [module_id for module_id, groups in self._build.groups.items() if groups] if reason else []
        if trained:
            raise ConfigError(
                f"{type(self).__name__}.update_from_batch: no gradients can be taken of the losses of "
                f"{', '.join(trained)}: {reason}, so the update would train nothing. Call it outside"
            )

    def _check_timesteps(self, timesteps: Mapping[str, int] | None) -> None:
        if timesteps is not None and not isinstance(timesteps, Mapping):
            raise BatchError(f"timesteps: expected a dict of lifetime counters, got {timesteps!r}")
        for name, value in (timesteps or {}).items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise BatchError(f"timesteps[{name!r}] must be a non-negative int, got {value!r}")
        if timesteps and _COUNTER not in timesteps:
            near = next((name for name in timesteps if did_you_mean(name, [_COUNTER], nearest_only=True)), None)
            if near is not None:
                raise BatchError(
                    f"timesteps[{near!r}]: schedules move by {_COUNTER!r}, which is not among the counters: give that, "
                    "or {} to leave them where they are"
                )

    def _train(
        self,
        ready: dict[str, dict[str, np.ndarray]],
        shards: Mapping[str, list[int]],
        updated: Mapping[str, bool],
        num_epochs: int | None,
        minibatch_size: int | None,
        shuffle: bool | None,
    ) -> None:
        config = self.config
        size = int(minibatch_size or config.minibatch_size or config.train_batch_size)
        minibatch = {mid: self._build.minibatch_rows(mid, size, BatchError) for mid in self._build.minibatch}
        self._build.make_room_for(minibatch)
        executor = self._build.executor
        plans: dict[str, MinibatchPlan] = {}
        for module_id, width in minibatch.items():
            shard_rows = shards.get(module_id, [0] * self._num_shards)
            rows = sum(shard_rows)
            plan = make_plan(
                num_rows=rows,
                minibatch=width,
                num_epochs=(config.num_epochs if num_epochs is None else int(num_epochs)) if rows else 0,
                shuffle=config.shuffle_batch_per_epoch if shuffle is None else bool(shuffle),
                seed=self._seed,
                update=self._num_updates,
                stream=noise_maths.stream_id(f"plan/{module_id}"),
                shard_rows=shard_rows,
                own=self._ring.own_shards(self._num_shards),
            )
            plans[module_id] = plan.widened_to(self._build.minibatch[module_id])
        steps = max(plan.num_steps for plan in plans.values())
        plans = {module_id: plan.padded_to(steps) for module_id, plan in plans.items()}
        if self._ring.meeting is not None:
            executor.make_room_for_shares(plans)
        executor.choose(self._num_steps)
        sums = executor.run(ready, plans, self._num_steps, self._most_rows(shards), updated)
        self._num_updates += 1
        self._num_steps += steps
        self.results = reduce_metrics(sums, self._build.step.metrics or [], self.module_specs)
        step = self._build.step
        trained = {mid for mid, plan in step.plans.items() if plan.rows_from in ready and updated.get(mid, True)}
        trained |= {mid for mid, plan in step.plans.items() if trained.intersection(plan.shared_by)}
        for module_id in trained:
            optimizers = step.plans[module_id].optimizers
            rate = {name: self._rate(module_id, plan.lr) for name, plan in optimizers.items()}
            for name, value in rate.items():
                label = "learning_rate" if len(rate) == 1 else f"learning_rate/{name}"
                self.results[module_id][label] = value
        self.results["__all__"].update(
            num_modules_updated=float(len(trained)),
            compiled=float(executor.compiled),
            num_updates=float(self._num_updates),
        )
        self._report_nonfinite()

    def _most_rows(self, shards: Mapping[str, list[int]]) -> dict[str, int]:
        """module id -> most rows that any learner holds."""
        held = self._ring.size if self._ring.meeting is not None else 1
        return {mid: int(np.reshape(rows, (held, -1)).sum(axis=1).max()) for mid, rows in shards.items()}

    def _report_nonfinite(self) -> None:
        bad = {mid: m["num_nonfinite_steps"] for mid, m in self.results.items() if m.get("num_nonfinite_steps")}
        if not bad:
            return
        text = ", ".join(f"{int(count)} step(s) of module {module_id!r}" for module_id, count in bad.items())
        if self.config.nonfinite_gradients == "raise":
            raise NonFiniteError(f"NaN or infinity in the loss or its gradients in {text}; these were not applied")
        warnings.warn(f"skipped {text}: NaN or infinity in the loss or its gradients", RuntimeWarning, stacklevel=4)

    def set_config(self, **settings: Any) -> None:
        """Change settings between updates. Numbers and schedules take effect at once; others recompile.

        Raises:
            ConfigError: unknown, ill-typed, or fixed when the learner was built; nothing has changed.
        """
        rebuild.set_config(self, settings)

    # ------------------------------------------------------------------ modules

    def add_module(self, *, module_id: str, module_spec: Any, settings: Mapping[str, Any] | None = None) -> None:
        """Add a module; the others keep everything they have learned.

        Args:
            module_id: its id.
            module_spec: RLModuleSpec; missing spaces are taken from the first module.
            settings: training settings of this module alone, as ``multi_agent(settings=...)`` has them.

        Raises:
            ConfigError: the id is taken or not valid, or a setting is not; nothing has changed.
        """
        check_module_id(module_id)
        if module_id in self.module_specs:
            raise ConfigError(f"module {module_id!r} exists already")
        spec = resolve_modules(self.config, None, module_spec, like=self.module_specs)
        own = {} if settings is None else {module_id: dict(settings)}
        rebuild.change_modules(self, {**self.module_specs, module_id: next(iter(spec.values()))}, own)
        self._tell_built()

    def remove_module(self, module_id: str) -> None:
        """Remove a module with its optimizers and variables.

        Raises:
            ConfigError: no such module, or the last one.
        """
        self._one_module(module_id)
        if len(self.module_specs) == 1:
            raise ConfigError(f"module {module_id!r} is the only one and cannot be removed")
        rebuild.change_modules(self, {mid: spec for mid, spec in self.module_specs.items() if mid != module_id})
        self._tell_built()

    # ------------------------------------------------------------------ state

    def get_state(self) -> dict[str, Any]:
        """Everything training needs to go on: numpy arrays and plain values that share no memory with the learner."""
        return self._state(copy=True)

    def _state(self, *, copy: bool) -> dict[str, Any]:
        state = learner_state.get_state(self, copy=copy)
        # What absent plugins left is kept for when they are back.
        collected = checkpoint_collect(get_manager(), rank=self._ring.rank, check=check_tree)
        state["plugins"] = {**self._plugin_states, **collected}
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
            StateError: structure, shape, type or values are not those of a learner like this one; says the path, and
                nothing has changed. Not strict: it is no state of a learner at all, or of another schema.
        """
        skipped: list[Skipped] = []
        if not strict:
            state, skipped = learner_state.fitted_state(self, state)
        learner_state.check_state(self, state)
        plugins = copy_tree(state["plugins"])
        learner_state.set_state(self, state)
        absent = checkpoint_restore(get_manager(), plugins, rank=self._ring.rank)
        self._plugin_states = {name: plugins[name] for name in absent}
        return skipped

    def check_state(
        self, state: Mapping[str, Any], strict: bool = True, *, modules: Collection[str] | None = None
    ) -> None:
        """Would ``set_state`` take this state? Changes nothing; one that a subclass overrides decides for itself.

        Args:
            state, strict: as for ``set_state``.
            modules: those that the learner will have by then; ``None``: those it has.

        Raises:
            StateError: it would not; says the path.
        """
        if type(self).set_state is not Learner.set_state:
            return
        if not strict:
            state, _ = learner_state.fitted_state(self, state)
        learner_state.check_state(self, state, modules)

    def why_not_earlier(self, version: int) -> str:
        """Why a state of an earlier ``state_version`` means something else here, and what to do; "": it does not.

        Called on the host whenever such a state is checked, before anything changes.

        Args:
            version: of the state, below ``state_version``.
        """
        return ""

    def batch_rules(self) -> dict[str, BatchRule]:
        """{module_id: what a batch of it must be}, to check one elsewhere; of the modules with rows of their own."""
        return {mid: self._batch_rule(mid) for mid in acting(self.module_specs)}

    def _batch_rule(self, module_id: str) -> BatchRule:
        build = self._build
        is_read = module_id in build.step.feeds
        # Of one that rests now no column is read; those that there are must be what they may be.
        standard = {name: replace(spec, required=False) for name, spec in build.standard[module_id].items()}
        columns = build.columns[module_id] if is_read else standard
        return BatchRule(
            module_id,
            {**columns, "loss_mask": build.mask_spec(module_id)},
            build.checked_space(module_id),
            self.backend.numpy_float_dtype,
            is_read=is_read,
        )

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

        # Written from where it lies: nothing changes it meanwhile. A subclass's own get_state is heard.
        own = type(self).get_state is not Learner.get_state
        save_state(path, self.get_state() if own else self._state(copy=False))
        notify(
            get_manager(), "learner_checkpoint_saved", path=str(path), update=self._num_updates, rank=self._ring.rank
        )

    def load_state(self, path: Any, strict: bool = True) -> list[Skipped]:
        """Read a file that ``save_state`` wrote on any backend; otherwise as ``set_state``."""
        from ..state.files import load_state

        state = load_state(path, mmap=self._copies_states)
        refuse_other_kinds(state, LEARNER, where=str(path))
        return self.set_state(state, strict=strict)

    # ------------------------------------------------------------------ inside

    @property
    def _copies_states(self) -> bool:
        """Arrays of a state may be read-only views of a file: our own ``set_state`` copies them, once."""
        return type(self).set_state is Learner.set_state

    @property
    def _default_gradients(self) -> bool:
        """No override between gradients and optimizers, so that clipping may work on flat vectors."""
        own = type(self)
        names = ("postprocess_gradients", "postprocess_gradients_for_module", "apply_gradients")
        by_parameter = any(self.config.for_module(mid).grad_clip_by == "norm" for mid in self.module_specs)
        return not by_parameter and all(getattr(own, n) is getattr(Learner, n) for n in names)

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

    def _rate(self, module_id: str, lr: Any) -> float:
        """The learning rate now: of a setting's name, a number or a schedule."""
        value = getattr(self.config.for_module(module_id), lr) if isinstance(lr, str) else lr
        return value_at(value, self.timesteps[_COUNTER])

    def _float_values(self) -> dict[tuple[str, ...], float]:
        """Values of every float column of the step's table, now."""
        position = self.timesteps[_COUNTER]
        values: dict[tuple[str, ...], float] = {}
        for module_id, plan in self._build.plans.items():
            own = self.config.for_module(module_id)
            for name in self._build.traced[module_id]:
                values["config", module_id, name] = value_at(getattr(own, name), position)
            if plan.learns:
                values.update({("lr", module_id, n): self._rate(module_id, o.lr) for n, o in plan.optimizers.items()})
            values.update({("var", module_id, n): self._host_variables[module_id][n] for n in plan.host_variables})
        return values


def _as_it_is(module_id: str, batch: dict[str, Any]) -> dict[str, Any]:
    return batch
