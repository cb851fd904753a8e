"""The Learner: what trains one set of modules.

An algorithm is a subclass, written once for every backend, that overrides the hooks of ``learning/step/hooks.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..backend import Backend
from ..config.algorithm_settings import AlgorithmSettings
from ..config.foreign_names import unknown_attribute
from ..config.foreign_table import LEARNER as LEARNER_NAMES
from ..errors import BatchError, ConfigError, NonFiniteError, did_you_mean
from ..maths import noise as noise_maths
from ..plugins.manager import checkpoint_collect, checkpoint_restore, notify
from ..plugins.registry import get_manager
from ..state.atomic import PathLike
from ..state.kinds import LEARNER, refuse_other_kinds
from ..state.tree import copy_tree
from ..state.writer import check_tree
from . import state_tree
from .batch import check_batch, split_modules
from .batch_rule import BatchRule
from .plain_arrays import has_elements
from .plan import MinibatchPlan, RowOrder, ShardRows, make_plan, shards_of
from .ranks import ALONE, Columns, Ranks, RowsHere
from .resolve import AnyModuleSpec, resolve_backend, resolve_modules
from .rl_module import RLModuleSpec, acting, check_module_id
from .run import rebuild
from .run.build import build, make_executor
from .run.inputs import learning_rate
from .state_fitting import Skipped
from .step.hook_answers import refuse_answer, yes_or_no
from .step.hooks import LearnerHooks
from .train_state import COUNTER, TrainState

if TYPE_CHECKING:
    from ..xp import DType, Namespace
    from .run.executor import Executor

__all__ = ["Learner"]


#: What a build makes anew.
_OF_A_BUILD = ("config", "module_specs", "blueprint", "executor", "_tried")


class Learner(LearnerHooks):
    """Trains modules by minibatch gradient steps.

    Args:
        config: frozen configuration of the algorithm.
        env: environment to take the spaces from; ``None`` makes the configured one for a moment.
        module_spec: RLModuleSpec or MultiRLModuleSpec; ``None`` takes the configuration's.
        backend: a Backend instance; ``None`` loads the configured one.
        ranks: this learner's place among several (a LearnerGroup gives it); ``None``: it is alone.

    Raises:
        ConfigError, SpaceError: the configuration does not fit itself, the spaces, or this backend.
        BackendNotInstalledError: the framework is missing; names the extra.
        CompileError: ``compile=True`` and the step cannot be traced.
    """

    #: Backend that this class is written for; ``None``: any.
    framework: ClassVar[str | None] = None

    def __init__(
        self,
        config: AlgorithmSettings,
        env: object = None,
        *,
        module_spec: AnyModuleSpec | None = None,
        backend: Backend | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.config: AlgorithmSettings = config
        self.ranks: Ranks = ranks or ALONE
        self.backend: Backend = backend or resolve_backend(config, type(self))
        self.xp: Namespace = self.backend.xp
        self.float_dtype: DType = self.backend.float_dtype
        self.compute_dtype: DType | None = self.backend.compute_dtype
        self.module_specs: dict[str, RLModuleSpec] = resolve_modules(config, env, module_spec)
        rebuild.check_module_ids(self, config, config.news)
        self.results: dict[str, dict[str, float]] = {}
        #: Data shards of all learners together.
        self.num_shards: int = self.ranks.num_shards(config)
        self.train_state: TrainState = TrainState(seed=config.seed)
        self._plugin_states: dict[str, Any] = {}
        self._build()
        rebuild.check_memory(self, config, config.news)
        self._tell_built()

    if not TYPE_CHECKING:  # for type checkers there are no more attributes than are written down

        def __getattr__(self, name: str) -> Any:
            raise unknown_attribute(self, name, LEARNER_NAMES)

    @property
    def timesteps(self) -> dict[str, int]:
        """Lifetime counters, by name."""
        return self.train_state.timesteps

    # ------------------------------------------------------------------ training

    def update_from_batch(
        self,
        batch: Mapping[str, Any],
        timesteps: Mapping[str, int] | None = None,
        *,
        num_epochs: int | None = None,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool | None = None,
        shard_rows: ShardRows | None = None,
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
        learning, state = self.blueprint.learning, self.train_state

        def prepare() -> RowsHere:
            self._check_recording()
            checked = self._check(batch)
            self._check_sizes(num_epochs, minibatch_size)
            self._check_timesteps(timesteps)
            rows.update({module_id: len(next(iter(columns.values()))) for module_id, columns in checked.items()})
            shards = shards_of(checked, self.ranks.shards_here(self.num_shards), shard_rows)
            updated = self._to_be_updated(checked)
            fed = {plan.rows_from for mid, plan in learning.items() if updated.get(mid)}
            wanted = {mid: columns for mid, columns in checked.items() if mid in fed}
            return RowsHere(wanted, {module_id: shards[module_id] for module_id in wanted}, updated)

        said = {
            "the number of updates so far": state.num_updates,
            "num_epochs": num_epochs,
            "minibatch_size": minibatch_size,
            "shuffle": shuffle_batch_per_epoch,
            "timesteps": dict(timesteps) if isinstance(timesteps, Mapping) else timesteps or {},
        }
        here = self.ranks.agree(self.blueprint, self.num_shards, prepare, said)
        state.timesteps.update({name: int(value) for name, value in (timesteps or {}).items()})
        # Rows of a module that rests are there for others, in the columns that they read.
        here.columns = {
            mid: self.preprocess_batch(module_id=mid, batch=columns) if mid in learning else columns
            for mid, columns in here.columns.items()
        }
        update, rank = state.num_updates, self.ranks.rank
        manager = get_manager()
        notify(manager, "learner_update_begin", update=update, timesteps=self.timesteps, num_rows=rows, rank=rank)
        answer: Any = self.before_gradient_based_update(timesteps=dict(self.timesteps))  # type: ignore[func-returns-value]
        if answer is not None:
            refuse_answer("before_gradient_based_update", answer, "self.update_parameters(fn) changes parameters")
        self.results = {module_id: {} for module_id in (*self.module_specs, "__all__")}
        if here.columns:
            self._train(here, num_epochs, minibatch_size, shuffle_batch_per_epoch)
        else:
            self.results["__all__"]["num_modules_updated"] = 0.0
        answer = self.after_gradient_based_update(timesteps=dict(self.timesteps))  # type: ignore[func-returns-value]
        if answer is not None:
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
            compiled=self.executor.compiled,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
        )

    def _check(self, batch: object) -> Columns:
        out: Columns = {}
        blueprint = self.blueprint
        own_rows = self.ranks.have_own_rows
        nothing = own_rows and isinstance(batch, Mapping) and not batch
        parts = {} if nothing else split_modules(batch, self.module_specs)
        for module_id, columns in parts.items():
            if module_id not in blueprint.feeds:
                continue  # nothing is learned from its rows
            if own_rows and columns and not any(map(has_elements, columns.values())):
                continue  # others may have some
            plan, specs = blueprint.plans[module_id], blueprint.columns(module_id)
            if "loss_mask" in columns:
                specs["loss_mask"] = plan.mask_spec
            out[module_id] = check_batch(
                columns,
                specs,
                module_id=module_id,
                action_space=plan.checked_space,
                float_dtype=blueprint.float_dtype,
            )
            self._mask_sequences(module_id, out[module_id])
        return out

    def _to_be_updated(self, checked: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, bool]:
        """module id -> whether it learns from these rows, of the modules that have some."""
        asked = {mid: plan.rows_from for mid, plan in self.blueprint.learning.items() if plan.rows_from in checked}
        found = {}
        for mid, feed in asked.items():
            answer = self.should_module_be_updated(module_id=mid, batch=checked[feed])
            found[mid] = answer if isinstance(answer, bool) else yes_or_no("should_module_be_updated", answer)
        return found

    def _mask_sequences(self, module_id: str, columns: dict[str, np.ndarray]) -> None:
        """Batches of sequences always have a mask, and steps of a burn-in never count."""
        sequences = self.blueprint.plans[module_id].sequences
        if sequences is None:
            return
        shape = (len(next(iter(columns.values()))), sequences.length)
        given = columns.get("loss_mask")
        mask = np.ones(shape, self.blueprint.float_dtype) if given is None else given.copy()
        mask[:, : sequences.burn_in] = 0
        columns["loss_mask"] = mask

    def _check_sizes(self, num_epochs: int | None, minibatch_size: int | None) -> None:
        for name, value in (("num_epochs", num_epochs), ("minibatch_size", minibatch_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
                raise BatchError(f"{name}={value!r}: expected an int of at least 1, or None")
        if minibatch_size is not None:
            for module_id, plan in self.blueprint.feeds.items():
                plan.minibatch_rows(module_id, int(minibatch_size), BatchError)

    def _check_recording(self) -> None:
        reason = self.backend.why_not_recording()
        trained = [module_id for module_id, groups in self.blueprint.groups.items() if groups] if reason else []
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
        if timesteps and COUNTER not in timesteps:
            near = next((name for name in timesteps if did_you_mean(name, [COUNTER], nearest_only=True)), None)
            if near is not None:
                raise BatchError(
                    f"timesteps[{near!r}]: schedules move by {COUNTER!r}, which is not among the counters: give that, "
                    "or {} to leave them where they are"
                )

    def _train(
        self,
        here: RowsHere,
        num_epochs: int | None,
        minibatch_size: int | None,
        shuffle: bool | None,
    ) -> None:
        config, state, blueprint = self.config, self.train_state, self.blueprint
        size = int(minibatch_size or config.minibatch_size or config.train_batch_size)
        minibatch = {mid: plan.minibatch_rows(mid, size, BatchError) for mid, plan in blueprint.feeds.items()}
        self._make_room_for(minibatch)
        plans: dict[str, MinibatchPlan] = {}
        for module_id, width in minibatch.items():
            shard_rows = here.shards.get(module_id, [0] * self.num_shards)
            plan = make_plan(
                shard_rows,
                minibatch=width,
                num_epochs=config.num_epochs if num_epochs is None else int(num_epochs),
                order=RowOrder(
                    state.seed,
                    state.num_updates,
                    noise_maths.stream_id(f"plan/{module_id}"),
                    config.shuffle_batch_per_epoch if shuffle is None else bool(shuffle),
                ),
                own=self.ranks.own_shards(self.num_shards),
            )
            plans[module_id] = plan.widened_to(self.executor.minibatch[module_id])
        steps = max(plan.num_steps for plan in plans.values())
        plans = {module_id: plan.padded_to(steps) for module_id, plan in plans.items()}
        self.executor.make_room_for_shares(plans)
        self.executor.choose(config, state)
        most_rows = {mid: self.ranks.most_rows(rows) for mid, rows in here.shards.items()}
        self.results = self.executor.run(config, state, here.columns, plans, most_rows, here.updated)
        state.num_updates += 1
        state.num_steps += steps
        fed = {mid for mid, one in blueprint.learning.items() if one.rows_from in here.columns}
        trained = {mid for mid in fed if here.updated.get(mid, True)}
        trained |= {mid for mid, one in blueprint.learning.items() if trained.intersection(one.shared_by)}
        for module_id in trained:
            optimizers = blueprint.plans[module_id].optimizers
            for name, optimizer in optimizers.items():
                label = "learning_rate" if len(optimizers) == 1 else f"learning_rate/{name}"
                self.results[module_id][label] = learning_rate(config, state, module_id, optimizer.lr)
        self.results["__all__"].update(
            num_modules_updated=float(len(trained)),
            compiled=float(self.executor.compiled),
            num_updates=float(state.num_updates),
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

    def set_config(self, **settings: object) -> None:
        """Change settings between updates. Numbers and schedules take effect at once; others recompile.

        Raises:
            ConfigError: unknown, ill-typed, or fixed when the learner was built; nothing has changed.
        """
        config = rebuild.changed_config(self, settings)
        if rebuild.takes_a_build(self, config):
            self._rebuild(config, self.module_specs)
        else:
            self.config = config

    # ------------------------------------------------------------------ modules

    def add_module(
        self, *, module_id: str, module_spec: AnyModuleSpec | None, settings: Mapping[str, Any] | None = None
    ) -> None:
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
        self._change_modules({**self.module_specs, module_id: next(iter(spec.values()))}, own)

    def remove_module(self, module_id: str) -> None:
        """Remove a module with its optimizers and variables.

        Raises:
            ConfigError: no such module, or the last one.
        """
        self.one_module(module_id)
        if len(self.module_specs) == 1:
            raise ConfigError(f"module {module_id!r} is the only one and cannot be removed")
        self._change_modules({mid: spec for mid, spec in self.module_specs.items() if mid != module_id})

    def _change_modules(
        self, specs: dict[str, RLModuleSpec], settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Rebuild with other modules, new ones with settings of their own; those that stay keep their state."""
        rebuild.refuse_other_sharing(self.module_specs, specs)
        self._rebuild(self.config.with_modules(specs, settings), specs)
        self._tell_built()

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        self._tried = build(self)
        self.executor: Executor = make_executor(self, self._tried)
        self.executor.choose(self.config, self.train_state)

    def _rebuild(self, config: AlgorithmSettings, specs: dict[str, RLModuleSpec]) -> None:
        """Build anew and give what stays its state back; all of it or nothing."""
        state = self.get_state()
        before = {name: getattr(self, name) for name in _OF_A_BUILD}
        counted = self.train_state
        self.train_state = replace(counted)
        self.config, self.module_specs = config, specs
        try:
            self._build()
            state_tree.restore_shared(self, state)
        except Exception:
            vars(self).update({**before, "train_state": counted})
            raise

    def _make_room_for(self, minibatch: Mapping[str, int]) -> None:
        """Make minibatches of these rows possible: wider than those it was built for need a new executable."""
        known = self.executor.minibatch
        if any(rows > known[mid] for mid, rows in minibatch.items()):
            wider = {mid: max(minibatch[mid], rows) for mid, rows in known.items()}
            self.executor = make_executor(self, self._tried, wider)
            self.executor.choose(self.config, self.train_state)

    # ------------------------------------------------------------------ state

    def get_state(self) -> dict[str, Any]:
        """Everything training needs to go on: numpy arrays and plain values that share no memory with the learner."""
        return self._state(copy=True)

    def _state(self, *, copy: bool) -> dict[str, Any]:
        state = state_tree.get_state(self, copy=copy)
        # What absent plugins left is kept for when they are back.
        collected = checkpoint_collect(get_manager(), rank=self.ranks.rank, check=check_tree)
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
            state, skipped = state_tree.fitted_state(self, state, self.get_state())
        state_tree.check_state(self, state)
        plugins = copy_tree(state["plugins"])
        state_tree.set_state(self, state)
        absent = checkpoint_restore(get_manager(), plugins, rank=self.ranks.rank)
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
            state, _ = state_tree.fitted_state(self, state, self.get_state())
        state_tree.check_state(self, state, modules)

    def batch_rules(self) -> dict[str, BatchRule]:
        """{module_id: what a batch of it must be}, to check one elsewhere; of the modules with rows of their own."""
        return {mid: self._batch_rule(mid) for mid in acting(self.module_specs)}

    def _batch_rule(self, module_id: str) -> BatchRule:
        blueprint, plan = self.blueprint, self.blueprint.plans[module_id]
        is_read = module_id in blueprint.feeds
        # Of one that rests now no column is read; those that there are must be what they may be.
        standard = {name: replace(spec, required=False) for name, spec in plan.standard.items()}
        columns = blueprint.columns(module_id) if is_read else standard
        specs = {**columns, "loss_mask": plan.mask_spec}
        return BatchRule(module_id, specs, plan.checked_space, blueprint.float_dtype, is_read=is_read)

    def get_module_state(self) -> dict[str, dict[str, np.ndarray]]:
        """The weights alone: module id -> name -> array."""
        return state_tree.get_weights(self)

    def set_module_state(self, state: Mapping[str, Any]) -> None:
        """Take over weights alone; optimizers and counters stay.

        Raises:
            StateError: as ``set_state``.
        """
        state_tree.set_weights(self, state)

    def save_state(self, path: PathLike) -> None:
        """Write ``get_state()`` to one file, atomically."""
        from ..state.files import save_state

        # Written from where it lies: nothing changes it meanwhile. A subclass's own get_state is heard.
        own = type(self).get_state is not Learner.get_state
        save_state(path, self.get_state() if own else self._state(copy=False))
        notify(
            get_manager(),
            "learner_checkpoint_saved",
            path=str(path),
            update=self.train_state.num_updates,
            rank=self.ranks.rank,
        )

    def load_state(self, path: PathLike, strict: bool = True) -> list[Skipped]:
        """Read a file that ``save_state`` wrote on any backend; otherwise as ``set_state``."""
        from ..state.files import load_state

        state = load_state(path, mmap=self.copies_states)
        refuse_other_kinds(state, LEARNER, where=str(path))
        return self.set_state(state, strict=strict)

    # ------------------------------------------------------------------ inside

    @property
    def copies_states(self) -> bool:
        """Arrays of a state may be read-only views of a file: our own ``set_state`` copies them, once."""
        return type(self).set_state is Learner.set_state
