"""Builds a Learner: modules, optimizers, layouts, and what its step reads and logs.

In order:

1. modules from their specifications, parameters from the seed;
2. the hooks ``build`` and ``configure_optimizers_for_module`` register variables and optimizers;
3. parameters become flat vectors, one per optimizer (the *carry* of the step);
4. one uncompiled step on a dummy batch finds out which columns, noise and metrics the hooks use;
5. two more find out whether its short minibatches may be padded;
6. the backend compiles the step, if it is to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..action_parts import has_parts, with_open_boxes
from ..errors import ConfigError, did_you_mean
from ..maths import noise as noise_maths
from ..maths.optimizers import OptimizerSpec
from ..schedules import parse as parse_schedule
from ..state.memory import trim
from .batch import ColumnSpec, standard_columns
from .executor import Executor
from .explore import Found, explore_step, pads_safely
from .hook_answers import refuse_answer
from .parameters import FlatLayout, match_names
from .rl_module import RLModule, check_references
from .row_coupling import check_rows_apart
from .row_totals import check_row_layers
from .sequences import Sequences, obs_leaf
from .shared_parameters import take_shared
from .step import ModulePlan, OptimizerPlan, UpdateStep
from .tables import CorrectionTable, TableLayout

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["LearnerBuild"]


#: Parameters from which on it is worth it to ask malloc for what it keeps.
_LARGE = 1 << 20


class LearnerBuild:
    """The static side of a Learner; made anew when its modules or static settings change.

    Attributes:
        modules: module id -> module over the backend's namespace.
        plans: module id -> layouts and optimizers, of all modules.
        groups: module id -> optimizer -> names of its parameters.
        columns: module id -> column -> specification, of the columns the step reads.
        minibatch: module id -> rows of a full minibatch, of the modules that have rows in the step.
        traced: module id -> settings that are arrays in a step.
        step, executor: what runs.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self.modules: dict[str, RLModule] = {}
        self.plans: dict[str, ModulePlan] = {}
        self.groups: dict[str, dict[str, list[str]]] = {}
        self.columns: dict[str, dict[str, ColumnSpec]] = {}
        self.standard: dict[str, dict[str, ColumnSpec]] = {}
        self.minibatch: dict[str, int] = {}
        self.traced: dict[str, tuple[str, ...]] = {}
        self.trainable_variables: dict[str, dict[str, np.ndarray]] = {}
        self._host_variables: dict[str, dict[str, float]] = {}
        self.bounds: dict[str, dict[str, tuple[float, float]]] = {}
        self._registered: dict[str, dict[str, tuple[OptimizerSpec, list[str], Any]]] = {}
        #: module id -> parameter -> module that holds it for several.
        self.borrowed: dict[str, dict[str, str]] = {}
        self._values: dict[str, dict[str, np.ndarray]] = {}
        self._open: str | None = None
        # Asked for in every update.
        self._checked_spaces: dict[str, Any] = {}

    def run(self) -> None:
        """Build everything and put the initial state into the learner."""
        with self._learner.backend.recording():
            self._run()

    def _run(self) -> None:
        learner, config = self._learner, self._learner.config
        learner._build = self
        learner._context = None
        check_references(learner.module_specs)
        for module_id, spec in learner.module_specs.items():
            module = self.modules[module_id] = spec.build(learner.xp, learner.backend)
            rng = np.random.Generator(np.random.Philox(key=[learner._seed, noise_maths.stream_id(f"init/{module_id}")]))
            self._values[module_id] = {name: np.asarray(value) for name, value in module.init(rng).items()}
            self.trainable_variables[module_id] = {}
            self._host_variables[module_id] = {}
            self.bounds[module_id] = {}
            self._registered[module_id] = {}
        self.borrowed = take_shared(learner.module_specs, self._values)
        learner._host_variables = self._host_variables
        answer: Any = learner.build()  # type: ignore[func-returns-value]
        refuse_answer("build", answer, "register_variable() makes variables")
        for module_id in self.modules:
            own = config.for_module(module_id)
            answer = learner.configure_optimizers_for_module(module_id=module_id, config=own)  # type: ignore[func-returns-value]
            refuse_answer("configure_optimizers_for_module", answer, "register_optimizer() makes optimizers")
        self.traced = {module_id: config.for_module(module_id).traced_fields() for module_id in self.modules}
        self._lay_out()
        self._find_columns()

    # ------------------------------------------------------------------ registration

    def register_variable(
        self, module_id: str, name: str, value: Any, trainable: bool, bounds: tuple[float, float] | None
    ) -> None:
        """See ``Learner.register_variable``."""
        self.known(module_id)
        taken = (self._values[module_id], self._host_variables[module_id], self.borrowed[module_id])
        if any(name in names for names in taken):
            raise ConfigError(f"register_variable: module {module_id!r} has {name!r} already")
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise ConfigError(f"register_variable({name!r}): value={value!r} is not a number or array") from None
        if not np.all(np.isfinite(array)):
            raise ConfigError(f"register_variable({name!r}): value={value!r} is not finite")
        least, most = (-math.inf, math.inf) if bounds is None else map(float, bounds)
        if not (np.all(array >= least) and np.all(array <= most)):
            raise ConfigError(f"register_variable({name!r}): value={value!r} is not within bounds={bounds!r}")
        self.bounds[module_id][name] = (least, most)
        if trainable:
            self.trainable_variables[module_id][name] = array
            self._values[module_id][name] = array
        elif array.ndim:
            raise ConfigError(f"register_variable({name!r}): only a trainable variable may be an array")
        else:
            self._host_variables[module_id][name] = float(array)

    def register_optimizer(
        self, module_id: str, name: str, optimizer: OptimizerSpec, params: list[str], lr: Any
    ) -> None:
        """See ``Learner.register_optimizer``."""
        self.known(module_id)
        where = f"register_optimizer({module_id!r}, {name!r})"
        if name in self._registered[module_id]:
            raise ConfigError(f"{where}: there is an optimizer of that name already")
        if not isinstance(optimizer, OptimizerSpec):
            raise ConfigError(f"{where}: optimizer={optimizer!r} is not an OptimizerSpec")
        chosen = match_names(params, [*self._values[module_id], *self.borrowed[module_id]], what=where)
        frozen = {*self.modules[module_id].frozen_parameters, *self.borrowed[module_id]}
        chosen = [parameter for parameter in chosen if parameter not in frozen]
        if not chosen:
            return
        for other, (_, names, _) in self._registered[module_id].items():
            shared = sorted(set(names) & set(chosen))
            if shared:
                raise ConfigError(f"{where}: {shared[0]!r} belongs to optimizer {other!r} already")
        if isinstance(lr, str) and not hasattr(self._learner.config, lr):
            known = self._learner.config.settings()
            raise ConfigError(f"{where}: lr_or_lr_schedule={lr!r} is no setting.{did_you_mean(lr, known)}")
        if not isinstance(lr, str):
            parse_schedule(lr, where)
        self._registered[module_id][name] = (optimizer, chosen, lr)

    def known(self, module_id: str) -> None:
        """Raise ConfigError unless there is such a module."""
        if module_id not in self.modules:
            raise ConfigError(f"unknown module_id {module_id!r}.{did_you_mean(module_id, self.modules)}")

    # ------------------------------------------------------------------ layouts and carry

    def _lay_out(self) -> None:
        learner, dtype = self._learner, self._learner.backend.numpy_float_dtype
        backend, carry = learner.backend, dict[str, Any]()
        optimizers: dict[tuple[str, str], OptimizerSpec] = {}
        held = {holder: dict(self._values[holder]) for mid in self.modules for holder in self.borrowed[mid].values()}
        for mid, module in self.modules.items():
            values = self._values.pop(mid)  # each array goes as soon as it is in a vector
            borrowed = {name: held[holder][name] for name, holder in self.borrowed[mid].items()}
            shapes = {name: value.shape for name, value in values.items()}
            plans: dict[str, OptimizerPlan] = {}
            self.groups[mid] = {}
            for name, (spec, names, lr) in self._registered[mid].items():
                layout = FlatLayout({n: shapes[n] for n in names})
                plans[name] = OptimizerPlan(spec, lr, layout)
                self.groups[mid][name] = names
                vector = layout.from_host(layout.check({n: values[n] for n in names}, f"rl_module/{mid}"), dtype)
                carry[f"params/{mid}/{name}"] = backend.adopt_numpy(vector)
                for slot in spec.slot_names:
                    carry[f"slots/{mid}/{name}/{slot}"] = backend.adopt_numpy(layout.zeros(dtype))
                optimizers[mid, name] = spec
            taken = {n for plan in plans.values() for n in plan.layout.names}
            frozen = FlatLayout({n: s for n, s in shapes.items() if n not in taken})
            if frozen.names:
                vector = frozen.from_host({n: values[n] for n in frozen.names}, dtype)
                carry[f"frozen/{mid}"] = backend.adopt_numpy(vector)
            all_values = {**values, **borrowed}
            copied = match_names(module.targets, list(all_values), what=f"{type(module).__name__}.targets")
            targets = FlatLayout({n: all_values[n].shape for n in copied})
            if targets.names:
                vector = targets.from_host({n: all_values[n] for n in copied}, dtype)
                carry[f"targets/{mid}"] = backend.adopt_numpy(vector)
            del all_values
            del values
            buffers = module.init_buffers()
            for name, value in buffers.items():
                array = np.asarray(value)
                array = array.astype(dtype) if array.dtype.kind == "f" else array
                carry.update(backend.from_numpy({f"buffers/{mid}/{name}": array}))
            self.plans[mid] = ModulePlan(
                module=module,
                optimizers=plans,
                frozen=frozen,
                targets=targets,
                buffers=tuple(buffers),
                columns=(),
                host_variables=tuple(self._host_variables[mid]),
                sequences=self._sequences(mid),
                masked=learner.module_specs[mid].masked,
                learns=self._learns(mid, bool(shapes or buffers or borrowed)),
                rows_from="" if learner.module_specs[mid].shares else learner.module_specs[mid].rows_of or mid,
                borrowed=self.borrowed[mid],
                shared_by=tuple(learner.module_specs[mid].shared_by),
            )
        learning = {mid: plan for mid, plan in self.plans.items() if plan.learns}
        feeds = list(dict.fromkeys(plan.rows_from for plan in learning.values() if plan.rows_from))
        size = learner.config.minibatch_size or learner.config.train_batch_size
        self.minibatch = {mid: self.minibatch_rows(mid, size, ConfigError) for mid in feeds}
        floats = [("config", mid, name) for mid in self.plans for name in self.traced[mid]]
        floats += [("lr", mid, name) for mid, plan in learning.items() for name in plan.optimizers]
        floats += [("var", mid, name) for mid, plan in self.plans.items() for name in plan.host_variables]
        ints = [(kind, mid) for kind in ("rows", "count", "step") for mid in feeds]
        followed = {plan.rows_from for mid, plan in learning.items() if plan.rows_from not in ("", mid)}
        ints += [("updated", mid) for mid, plan in learning.items() if plan.rows_from in followed]
        self._table = TableLayout(floats, ints)
        self._corrections = CorrectionTable({key: spec for key, spec in optimizers.items() if key[0] in learning})
        learner._optimizer_steps = dict.fromkeys(optimizers, 0)
        learner._carry = carry

    def _learns(self, module_id: str, has_arrays: bool) -> bool:
        """Whether the step has the module: it has something to learn, and ``policies_to_train`` does not leave it out.

        Others are not traced: a scripted opponent has neither the outputs nor the columns that the loss reads.
        """
        chosen = self._learner.config.policies_to_train
        users = self._learner.module_specs[module_id].shared_by or (module_id,)
        return has_arrays and (chosen is None or any(user in chosen for user in users))

    def _sequences(self, module_id: str) -> Sequences | None:
        """What a row of the module is: a sequence where the algorithm takes them, or the module carries a state."""
        config, module = self._learner.config, self.modules[module_id]
        recurrent = bool(module.initial_state())
        if not (recurrent or config.uses_sequences):
            return None
        length, burn_in = int(config.sequence_length), int(config.burn_in) if recurrent else 0
        if burn_in >= length:
            raise ConfigError(f"burn_in={burn_in} leaves nothing to learn from of sequences of {length} timesteps")
        return Sequences(length, burn_in, recurrent, *obs_leaf(module.observation_space))

    def minibatch_rows(self, module_id: str, timesteps: int, error: type[Exception]) -> int:
        """Rows of a minibatch of so many timesteps: as many, or the sequences that they make.

        Raises:
            error: ``timesteps`` is no multiple of the sequences' length.
        """
        sequences = self.plans[module_id].sequences
        if sequences is None:
            return timesteps
        if timesteps % sequences.length:
            nearest = max(1, round(timesteps / sequences.length)) * sequences.length
            raise error(
                f"minibatch_size={timesteps} counts timesteps and must be a multiple of the sequences' length of "
                f"{sequences.length} in module {module_id!r}, as {nearest} is"
            )
        return timesteps // sequences.length

    # ------------------------------------------------------------------ what the step reads and logs

    def _find_columns(self) -> None:
        learner = self._learner
        for mid, spec in learner.module_specs.items():
            size = self.modules[mid].get_train_action_dist_cls().input_size(spec.action_space)
            sequences = self.plans[mid].sequences
            self.standard[mid] = standard_columns(
                spec.observation_space,
                spec.action_space,
                size,
                length=None if sequences is None else sequences.length,
                state=self.modules[mid].initial_state(),
            )
        declared = self._declared()
        accumulate = learner.config.accumulate
        self.step = UpdateStep(learner, self.plans, self._table, self._corrections, accumulate=accumulate)
        found = explore_step(learner, self.step, declared, self.standard) if self.step.plans else Found({})
        self.columns = {mid: {} for mid in self.plans}
        for mid, names in found.columns.items():
            self.columns[mid] = {name: declared[mid][name] for name in names if name != "loss_mask"}
        self.noise = found.noise
        self._clear_up()
        self.mask_safe = not self.step.plans or pads_safely(learner, self.step, self._specs())
        self._clear_up()
        self._uncompilable = ""
        if learner._ring.size > 1 and self.step.plans:
            check_rows_apart(learner, self.step, self._specs())
            self._uncompilable = check_row_layers(self.step)
        self._value_reads = found.value_reads
        self._make_executor()

    def _declared(self) -> dict[str, dict[str, ColumnSpec]]:
        """module id -> columns that may be read of its rows, by itself or by modules that learn from them."""
        learner = self._learner
        declared = {mid: learner.batch_spec(mid) for mid in self.plans}
        for mid, plan in self.plans.items():
            if plan.rows_from not in ("", mid):
                extra = {name: spec for name, spec in declared[mid].items() if name not in self.standard[mid]}
                declared[plan.rows_from] = {**extra, **declared[plan.rows_from]}
        return declared

    def _clear_up(self) -> None:
        """Give back what trying the step out has left with malloc, where that is much."""
        if sum(layout.size for layout in self.step.layouts.values()) >= _LARGE:
            trim()

    def _make_executor(self) -> None:
        learner = self._learner
        self.executor = Executor(
            learner,
            self.step,
            specs=self._specs(),
            minibatch=self.minibatch,
            noise=self.noise,
            mask_safe=self.mask_safe,
            value_reads=self._value_reads,
            uncompilable=self._uncompilable,
        )
        self.executor.choose(learner._num_steps)

    def make_room_for(self, minibatch: Mapping[str, int]) -> None:
        """Make minibatches of these rows possible: wider than those it was built for need a new executable."""
        if all(rows <= self.minibatch[mid] for mid, rows in minibatch.items()):
            return
        self.minibatch = {mid: max(minibatch[mid], largest) for mid, largest in self.minibatch.items()}
        self._make_executor()

    def _specs(self) -> dict[str, dict[str, ColumnSpec]]:
        columns = {mid: self.columns[mid] for mid in self.step.feeds}
        return {mid: {**specs, "loss_mask": self.mask_spec(mid)} for mid, specs in columns.items()}

    def mask_spec(self, module_id: str) -> ColumnSpec:
        """The column ``loss_mask`` of the module: [B], or [B, T]."""
        shape = self.plans[module_id].row_shape
        return ColumnSpec(shape, "float", sequence=bool(shape))

    def checked_space(self, module_id: str) -> Any:
        """The space that ``actions`` must lie in, or ``None``."""
        if module_id not in self._checked_spaces:
            fits = self.modules[module_id].actions_in_space
            space = self._learner.module_specs[module_id].action_space
            # A Gaussian samples beyond its bounds; choices beside it are held to theirs.
            beyond = with_open_boxes(space) if has_parts(space) else None
            self._checked_spaces[module_id] = space if fits else beyond
        return self._checked_spaces[module_id]
