"""Builds a Learner: modules, optimizers, layouts, and what its step reads and logs.

In order:

1. modules from their specifications, parameters from the seed;
2. the hooks ``build`` and ``configure_optimizers_for_module`` register variables and optimizers;
3. parameters become flat vectors, one per optimizer;
4. one uncompiled step on a dummy batch finds out which columns, noise and metrics the hooks use;
5. two more find out whether its short minibatches may be padded.

What it finds is the Blueprint; what it makes is put into the TrainState.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...action_parts import has_parts, with_open_boxes
from ...backend import Backend
from ...config.algorithm_settings import AlgorithmSettings
from ...errors import ConfigError
from ...state.memory import trim
from ...xp import Array
from ..arrays import ModuleArrays
from ..batch import ColumnSpec, standard_columns
from ..blueprint import Blueprint, ModulePlan, OptimizerPlan
from ..parameters import FlatLayout, match_names
from ..registry import Registry
from ..rl_module import RLModule, RLModuleSpec, check_references
from ..sequences import Sequences, obs_leaf
from ..step.hook_answers import refuse_answer
from ..step.hooks import LearnerHooks
from ..step.row_totals import check_row_layers
from ..step.step import UpdateStep
from ..tables import CorrectionTable, TableLayout
from .executor import Executor, Tried
from .explore import Trial, explored, pads_safely
from .row_coupling import check_rows_apart

if TYPE_CHECKING:
    from gymnasium import Space

__all__ = ["build", "make_executor"]

#: Parameters from which on it is worth it to ask malloc for what it keeps.
_LARGE = 1 << 20


def build(learner: LearnerHooks) -> Tried:
    """Make a Learner's blueprint and first state.

    Args:
        learner: has its settings, backend, specifications and a ``train_state``, whose seed counts; the rest of it is
            made anew.

    Returns:
        What trying its step out has shown.
    """
    learner.blueprint = Blueprint.blank(learner.backend.numpy_float_dtype)
    with learner.backend.recording():
        registry = _registered(learner)
        _lay_out(learner, registry)
        return _try_out(learner)


def make_executor(learner: LearnerHooks, tried: Tried, minibatch: Mapping[str, int] | None = None) -> Executor:
    """What runs its step.

    Args:
        learner: is built.
        tried: of :func:`build`.
        minibatch: module id -> rows of a full minibatch; ``None``: by the settings.
    """
    config, blueprint = learner.config, learner.blueprint
    if minibatch is None:
        size = config.minibatch_size or config.train_batch_size
        minibatch = {mid: plan.minibatch_rows(mid, size, ConfigError) for mid, plan in blueprint.feeds.items()}
    step = UpdateStep(learner, blueprint, _num_parts(learner))
    return Executor(step, learner.ranks, config, tried, minibatch)


def _num_parts(learner: LearnerHooks) -> int:
    return learner.blueprint.accumulate * learner.ranks.size


def _registered(learner: LearnerHooks) -> Registry:
    """The modules, and what the learner's hooks register for them."""
    config, specs = learner.config, learner.module_specs
    check_references(specs)
    modules = {module_id: spec.build(learner.xp, learner.backend) for module_id, spec in specs.items()}
    registry = Registry(modules, specs, config, learner.train_state.seed)
    with learner.registering(registry):
        answer: object = learner.build()  # type: ignore[func-returns-value]
        refuse_answer("build", answer, "register_variable() makes variables")
        for module_id in modules:
            own = config.for_module(module_id)
            answer = learner.configure_optimizers_for_module(module_id=module_id, config=own)  # type: ignore[func-returns-value]
            refuse_answer("configure_optimizers_for_module", answer, "register_optimizer() makes optimizers")
    return registry


# ---- layouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _FirstValues:
    """One module's first arrays by name: its parameters, those that others hold for it, and its buffers."""

    parameters: Mapping[str, np.ndarray]
    borrowed: Mapping[str, np.ndarray]
    buffers: Mapping[str, np.ndarray]


def _lay_out(learner: LearnerHooks, registry: Registry) -> None:
    """Flat vectors of all parameters, as far as a blueprint can tell before the step has run."""
    config, backend, state = learner.config, learner.backend, learner.train_state
    plans: dict[str, ModulePlan] = {}
    arrays: dict[str, ModuleArrays] = {}
    holders = {holder for borrowed in registry.borrowed.values() for holder in borrowed.values()}
    held = {holder: dict(registry.values[holder]) for holder in holders}
    for mid, module in registry.modules.items():
        first = _FirstValues(
            registry.values.pop(mid),  # each array goes as soon as it is in a vector
            {name: held[holder][name] for name, holder in registry.borrowed[mid].items()},
            module.init_buffers(),
        )
        plans[mid] = _plan(config, learner.module_specs[mid], mid, registry, first)
        arrays[mid] = _arrays(backend, mid, plans[mid], first)
        del first
    learning = {mid: plan for mid, plan in plans.items() if plan.learns}
    feeds = list(dict.fromkeys(plan.rows_from for plan in learning.values() if plan.rows_from))
    floats = [("config", mid, name) for mid, plan in plans.items() for name in plan.traced]
    floats += [("lr", mid, name) for mid, plan in learning.items() for name in plan.optimizers]
    floats += [("var", mid, name) for mid, plan in plans.items() for name in plan.host_variables]
    ints = [(kind, mid) for kind in ("rows", "count", "step") for mid in feeds]
    followed = {plan.rows_from for mid, plan in learning.items() if plan.rows_from not in ("", mid)}
    ints += [("updated", mid) for mid, plan in learning.items() if plan.rows_from in followed]
    moved = {(mid, name): one.spec for mid, plan in learning.items() for name, one in plan.optimizers.items()}
    learner.blueprint = Blueprint(
        plans=plans,
        table=TableLayout(floats, ints),
        corrections=CorrectionTable(moved),
        accumulate=config.accumulate,
        float_dtype=np.dtype(backend.numpy_float_dtype),
    )
    state.arrays = arrays
    state.optimizer_steps = {(mid, name): 0 for mid, plan in plans.items() for name in plan.optimizers}
    state.host_variables = registry.host_variables


def _plan(
    config: AlgorithmSettings,
    spec: RLModuleSpec,
    mid: str,
    registry: Registry,
    first: _FirstValues,
) -> ModulePlan:
    module = registry.modules[mid]
    shapes = {name: value.shape for name, value in first.parameters.items()}
    optimizers = {
        name: OptimizerPlan(one.spec, one.lr, FlatLayout({n: shapes[n] for n in one.params}))
        for name, one in registry.optimizers[mid].items()
    }
    taken = {name for optimizer in optimizers.values() for name in optimizer.layout.names}
    every = {**shapes, **{name: value.shape for name, value in first.borrowed.items()}}
    copied = match_names(module.targets, list(every), what=f"{type(module).__name__}.targets")
    sequences = _sequences(config, module)
    dist_size = module.get_train_action_dist_cls().input_size(spec.action_space)
    return ModulePlan(
        module=module,
        optimizers=optimizers,
        frozen=FlatLayout({name: shape for name, shape in shapes.items() if name not in taken}),
        targets=FlatLayout({name: every[name] for name in copied}),
        buffers=tuple(first.buffers),
        standard=standard_columns(
            spec.observation_space,
            spec.action_space,
            dist_size,
            length=None if sequences is None else sequences.length,
            state=module.initial_state(),
        ),
        checked_space=_checked_space(module, spec.action_space),
        traced=config.for_module(mid).traced_fields(),
        host_variables=tuple(registry.host_variables[mid]),
        trained_variables=tuple(registry.trained_variables[mid]),
        bounds=registry.bounds[mid],
        sequences=sequences,
        masked=spec.masked,
        learns=bool(every or first.buffers) and _is_trained(config, spec, mid),
        rows_from="" if spec.shares else spec.rows_of or mid,
        borrowed=registry.borrowed[mid],
        shared_by=tuple(spec.shared_by),
    )


def _arrays(backend: Backend, mid: str, plan: ModulePlan, first: _FirstValues) -> ModuleArrays:
    """A module's first arrays on the backend."""
    dtype, made = backend.numpy_float_dtype, ModuleArrays()

    def vector(layout: FlatLayout, values: Mapping[str, np.ndarray]) -> Array:
        checked = layout.check({name: values[name] for name in layout.names}, f"rl_module/{mid}")
        return backend.adopt_numpy(layout.from_host(checked, dtype))

    for name, optimizer in plan.optimizers.items():
        made.params[name] = vector(optimizer.layout, first.parameters)
        zeros = {slot: optimizer.layout.zeros(dtype) for slot in optimizer.spec.slot_names}
        made.slots[name] = {slot: backend.adopt_numpy(value) for slot, value in zeros.items()}
    if plan.frozen.names:
        made.frozen = vector(plan.frozen, first.parameters)
    if plan.targets.names:
        made.targets = vector(plan.targets, {**first.parameters, **first.borrowed})
    for name, value in first.buffers.items():
        array = np.asarray(value)
        array = array.astype(dtype) if array.dtype.kind == "f" else array
        made.buffers.update(backend.from_numpy({name: array}))
    return made


def _is_trained(config: AlgorithmSettings, spec: RLModuleSpec, module_id: str) -> bool:
    """Whether ``policies_to_train`` leaves it in, or a module that shares its parameters.

    Others are not traced: a scripted opponent has neither the outputs nor the columns that the loss reads.
    """
    chosen = config.policies_to_train
    return chosen is None or any(user in chosen for user in spec.shared_by or (module_id,))


def _sequences(config: AlgorithmSettings, module: RLModule) -> Sequences | None:
    """What a row of the module is: a sequence where the algorithm takes them, or the module carries a state."""
    recurrent = bool(module.initial_state())
    if not (recurrent or config.uses_sequences):
        return None
    length, burn_in = int(config.sequence_length), int(config.burn_in) if recurrent else 0
    if burn_in >= length:
        raise ConfigError(f"burn_in={burn_in} leaves nothing to learn from of sequences of {length} timesteps")
    return Sequences(length, burn_in, recurrent, *obs_leaf(module.observation_space))


def _checked_space(module: RLModule, space: Space[Any]) -> Space[Any] | None:
    """The space that ``actions`` must lie in."""
    if module.actions_in_space:
        return space
    # A Gaussian samples beyond its bounds; choices beside it are held to theirs.
    return with_open_boxes(space) if has_parts(space) else None


# ---- what the step reads and logs ------------------------------------------------------------------------------------


def _try_out(learner: LearnerHooks) -> Tried:
    """Run the step on dummy batches until its blueprint is complete."""
    declared = _declared(learner)
    if not learner.blueprint.learning:
        learner.blueprint = replace(learner.blueprint, explored=True)
        return Tried()
    trial = Trial(learner, learner.blueprint, _num_parts(learner))
    learner.blueprint, value_reads = explored(trial, declared)
    _clear_up(learner.blueprint)
    trial = replace(trial, blueprint=learner.blueprint)
    mask_safe = pads_safely(trial)
    _clear_up(learner.blueprint)
    uncompilable = ""
    if learner.ranks.size > 1:
        check_rows_apart(trial, learner.ranks)
        uncompilable = check_row_layers(learner.blueprint, learner.ranks)
    return Tried(mask_safe, value_reads, uncompilable)


def _declared(learner: LearnerHooks) -> dict[str, dict[str, ColumnSpec]]:
    """module id -> columns that may be read of its rows, by itself or by modules that learn from them."""
    plans = learner.blueprint.plans
    declared = {mid: learner.batch_spec(mid) for mid in plans}
    for mid, plan in plans.items():
        if plan.rows_from not in ("", mid):
            extra = {name: spec for name, spec in declared[mid].items() if name not in plan.standard}
            declared[plan.rows_from] = {**extra, **declared[plan.rows_from]}
    return declared


def _clear_up(blueprint: Blueprint) -> None:
    """Give back what trying the step out has left with malloc, where that is much."""
    if blueprint.num_parameters >= _LARGE:
        trim()
