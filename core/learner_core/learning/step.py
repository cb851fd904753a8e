"""One minibatch step as a pure function: forward, losses, gradients, clipping, optimizers, targets.

``UpdateStep.body(s, carry, inputs) -> carry`` is what a backend compiles and loops over. ``carry`` and ``inputs`` are
flat dicts of arrays; nothing else changes, nothing synchronises, and a step that must not count (no rows for a module,
a non-finite gradient, an early stop) leaves every array of that module as it was.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigError
from ..maths.optimizers import OptimizerSpec, clip_by_value, clip_factor
from .context import ConfigView, StepContext
from .hook_answers import refuse_answer, refuse_others
from .minibatch import load_batch, table_line
from .parameters import FlatLayout
from .reach import check_gradients, gradients_that_reach, refuse_unapplied
from .sequences import Sequences
from .step_metrics import collect_metrics, merge_parts
from .tables import CorrectionTable, TableLayout

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["ModulePlan", "OptimizerPlan", "UpdateStep"]


@dataclass
class OptimizerPlan:
    """One registered optimizer: its maths, its rate, and the parameters it moves."""

    spec: OptimizerSpec
    lr: Any
    layout: FlatLayout


@dataclass
class ModulePlan:
    """Everything static about one module's part of the step."""

    module: Any
    optimizers: dict[str, OptimizerPlan]
    frozen: FlatLayout
    targets: FlatLayout
    buffers: tuple[str, ...]
    columns: tuple[str, ...]
    host_variables: tuple[str, ...] = ()
    #: What a row is where it is a sequence; ``None``: a timestep.
    sequences: Sequences | None = None
    #: Whether every batch says which actions are allowed.
    masked: bool = False
    #: Whether the step has its forward pass and loss; otherwise it is there for hooks of other modules to compute with.
    learns: bool = True
    #: The module whose rows it learns from: its own id, unless its specification has ``rows_of``; "": it has no loss.
    rows_from: str = ""
    #: Parameters that other modules hold for it: name -> module.
    borrowed: dict[str, str] = field(default_factory=dict)
    #: Modules whose losses move its parameters, where it holds them for these.
    shared_by: tuple[str, ...] = ()

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Leading axes of a row: (T,) of a sequence, () of a timestep."""
        return () if self.sequences is None else (self.sequences.length,)

    def rows(self, timesteps: int) -> int:
        """Rows that so many timesteps make."""
        return timesteps if self.sequences is None else self.sequences.rows(timesteps)


class UpdateStep:
    """The step of one Learner, over the layouts fixed at build.

    Args:
        learner: whose hooks are traced.
        plans: module id -> plan, of all modules.
        table: columns of the per-step tables.
        corrections: the optimizers' bias corrections.
        metrics: the metrics that the hooks log, in carry order; ``None`` while they are still being found out.
        accumulate: micro-batches that a minibatch is split into.

    Attributes:
        plans: module id -> plan of the modules that learn, which have a forward pass and a loss here.
        resting: module id -> plan of the others, whose parameters hooks may compute with.
        feeds: module id -> plan of the modules that have rows in a minibatch.
    """

    def __init__(
        self,
        learner: Learner,
        plans: Mapping[str, ModulePlan],
        table: TableLayout,
        corrections: CorrectionTable,
        *,
        metrics: list[tuple[str, str]] | None = None,
        accumulate: int = 1,
    ) -> None:
        self.learner = learner
        self.plans = {mid: plan for mid, plan in plans.items() if plan.learns}
        self.resting = {mid: plan for mid, plan in plans.items() if not plan.learns}
        self.feeds = {mid: plans[mid] for mid in dict.fromkeys(p.rows_from for p in self.plans.values() if p.rows_from)}
        #: Which arrays the vectors of the carry hold, but for the slots, which are laid out as their parameters.
        self.layouts: dict[str, FlatLayout] = {}
        for mid, plan in plans.items():
            self.layouts.update({f"params/{mid}/{name}": one.layout for name, one in plan.optimizers.items()})
            own = {f"frozen/{mid}": plan.frozen, f"targets/{mid}": plan.targets}
            self.layouts.update({key: layout for key, layout in own.items() if layout.names})
        self.table = table
        self.corrections = corrections
        self.metrics = metrics
        self.accumulate = accumulate
        #: (module, column) whose statistics over the minibatch the hooks read; found while the step is explored.
        self.statistics: set[tuple[str, str]] = set()
        #: Parts that a minibatch is split into: micro-batches on every learner.
        self.num_parts = accumulate * learner._ring.size
        self.xp = learner.backend.xp

    # ------------------------------------------------------------------ the loop body

    def body(
        self,
        s: Any,
        carry: Mapping[str, Any],
        inputs: Mapping[str, Any],
        *,
        masked: bool = True,
        sizes: Mapping[str, int] | None = None,
        trial: bool = False,
    ) -> dict[str, Any]:
        """Step ``s`` of the update.

        Args:
            s: line of the tables, int or 0-d int64.
            carry: parameters, optimizer slots, targets, buffers, ``applied`` int64[optimizers], ``stopped``
                bool[modules], ``metrics`` float[2, metrics].
            inputs: data columns [rows, ...], ``idx/<module>`` int64[steps, minibatch], tables, noise.
            masked: rows beyond the step's own count are padding; ``False`` when every row given is real.
            sizes: module id -> true number of rows, to run a step without padding.
            trial: run every hook, but leave parameters, slots and targets as they are: no vector is made.

        Returns:
            The next carry, same keys, shapes and dtypes.
        """
        with self.context() as context:
            # Only the uncompiled loop gives sizes.
            context.reads_values = sizes is not None and self.learner.backend.reads_are_free
            context.trial = trial
            floats, ints = self.lines(inputs, s)
            gradients, losses = self.gradient_half(s, carry, inputs, context, floats, ints, masked, sizes)
            raw = {mid: self._join(context, mid, gradients[mid]) for mid in self.plans}
            return self.apply_half(carry, inputs, context, floats, ints, gradients, raw, losses)

    def feed_of(self, path: str) -> str:
        """The module whose rows the module that a path begins with learns from."""
        module_id = path.split("/", 1)[0]
        return self.plans[module_id].rows_from if module_id in self.plans else module_id

    @contextlib.contextmanager
    def context(self) -> Iterator[StepContext]:
        """A fresh context, the learner's own while it is entered; blank afterwards."""
        learner = self.learner
        context = StepContext(self.xp)
        context.compute_dtype = learner.compute_dtype
        previous, learner._context = learner._context, context
        try:
            with learner.backend.scope():
                yield context
        finally:
            learner._context = previous
            context.clear()

    def lines(self, inputs: Mapping[str, Any], s: Any) -> tuple[Any, Any]:
        """Line ``s`` of the float and of the integer table."""
        return table_line(self.xp, inputs["floats"], s), table_line(self.xp, inputs["ints"], s)

    def apply_half(
        self,
        carry: Mapping[str, Any],
        inputs: Mapping[str, Any],
        context: StepContext,
        floats: Any,
        ints: Any,
        gradients: dict[str, dict[str, Any]],
        raw: Mapping[str, Mapping[str, Any]],
        losses: Mapping[str, Any],
    ) -> dict[str, Any]:
        """From the gradients on: clipping, optimizers, targets, metrics.

        Args:
            carry, inputs: as in :meth:`body`.
            context: filled by :meth:`gradient_half`.
            floats, ints: the step's lines of the tables.
            gradients: module -> parameter -> array.
            raw: module -> optimizer -> the same gradients as one flat vector.
            losses: module -> detached loss.

        Returns:
            The next carry.
        """
        xp, learner = self.xp, self.learner
        out = dict(carry)
        gate = self._gate(carry, context, losses, ints)
        # Measured before any hook or clip: clipping by value would make a usable number of an infinity.
        self._measure(context, raw, gate)
        if learner._default_gradients:
            self._apply(out, carry, context, raw, self._clips(context, gate), gate, floats, inputs)
        else:
            num_applied = 0

            def apply(final: Mapping[str, Mapping[str, Any]]) -> None:
                nonlocal num_applied
                num_applied += 1
                if context.trial:
                    check_gradients("apply_gradients", final, self.plans, context.params)
                flat = {mid: self._join(context, mid, final[mid]) for mid in self.plans}
                for mid, vectors in flat.items():
                    for vector in vectors.values():
                        gate[mid]["go"] = xp.logical_and(gate[mid]["go"], xp.all(xp.isfinite(vector)))
                self._apply(out, carry, context, flat, {}, gate, floats, inputs)

            context.apply = apply
            learner.apply_gradients(learner.postprocess_gradients(gradients))
            if context.trial:
                refuse_unapplied(learner, self.plans, num_applied)
        self._after(out, carry, context, gate)
        collect_metrics(self, out, carry, context, gate)
        return out

    def gradient_half(
        self,
        s: Any,
        carry: Mapping[str, Any],
        inputs: Mapping[str, Any],
        context: StepContext,
        floats: Any,
        ints: Any,
        masked: bool,
        sizes: Mapping[str, int] | None,
        only: Mapping[str, Collection[str]] | None = None,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Up to the gradients: ({module: {name: array}}, {module: detached loss}); arguments as in :meth:`body`.

        ``only``: module id -> parameters whose gradients are wanted; ``None``: all.
        """
        xp = self.xp
        indices = {mid: table_line(xp, inputs[f"idx/{mid}"], s) for mid in self.feeds}
        noise = {key[6:]: table_line(xp, value, s) for key, value in inputs.items() if key.startswith("noise/")}
        if sizes is not None:
            # A module without rows still takes one, which its gate then ignores.
            indices = {mid: rows[: max(sizes[mid], 1)] for mid, rows in indices.items()}
            noise = {key: value[: max(sizes[self.feed_of(key)], 1)] for key, value in noise.items()}
        # One row that does not count is padding, too.
        padded = {mid: masked or (sizes is not None and not sizes[mid]) for mid in self.feeds}
        trainable = self._bind(carry, context, floats, ints)
        if only is not None:
            trainable = {mid: {name: arrays[name] for name in only[mid]} for mid, arrays in trainable.items()}
        gradients: dict[str, dict[str, Any]] = {}
        losses: dict[str, Any] = {}
        parts: list[tuple[dict[str, Any], dict[tuple[str, str], Any], dict[str, Any]]] = []
        for part in range(self.accumulate):
            context.metrics, context.stop = {}, {}
            weights = load_batch(self, s, context, inputs, indices, noise, ints, padded, part)
            self._leave_out(carry, ints, weights)
            new_gradients, new_losses = self._gradients(context, trainable, weights)
            gradients = _add(gradients, new_gradients)
            losses = _add(losses, new_losses)
            parts.append((dict(context.count), dict(context.metrics), dict(context.stop)))
            for mid, new in context.new_buffers.items():
                # The next micro-batch goes on from the buffers that this one leaves.
                context.buffers[mid] = {**context.buffers[mid], **new}
        if self.num_parts > 1:
            merge_parts(self, context, ints, parts)
        return gradients, losses

    def _leave_out(self, carry: Mapping[str, Any], ints: Any, weights: dict[str, Any]) -> None:
        """Modules that share parameters have no part in their gradient where they have no rows or have stopped."""
        xp = self.xp
        sharers = {sharer for plan in self.plans.values() for sharer in plan.shared_by}
        for position, (mid, plan) in enumerate(self.plans.items()):
            if mid in sharers:
                goes_on = xp.logical_not(carry["stopped"][position])
                part = xp.astype(xp.logical_and(self._has_rows(ints, mid, plan), goes_on), self.learner.float_dtype)
                weights[mid] = part if weights[mid] is None else weights[mid] * part

    def _has_rows(self, ints: Any, mid: str, plan: ModulePlan) -> Any:
        """bool[]: the module has rows in this step that it is to learn from."""
        has_rows = ints[self.table.ints["count", plan.rows_from]] > 0
        if ("updated", mid) not in self.table.ints:
            return has_rows
        return self.xp.logical_and(has_rows, ints[self.table.ints["updated", mid]] > 0)

    def total_count(self, ints: Any, module_id: str) -> Any:
        """float[]: rows (timesteps) of the whole minibatch that count for a module, over all learners."""
        plan = self.plans.get(module_id) or self.feeds[module_id]
        own = [self.plans[mid].rows_from for mid in plan.shared_by if mid in self.plans] or [plan.rows_from]
        counts = [self.xp.astype(ints[self.table.ints["count", mid]], self.learner.float_dtype) for mid in own]
        return functools.reduce(operator.add, counts)

    # ------------------------------------------------------------------ the parts, in order

    def _bind(
        self, carry: Mapping[str, Any], context: StepContext, floats: Any, ints: Any
    ) -> dict[str, dict[str, Any]]:
        """Give the context its parameters, targets, settings and variables; returns the trainable parameters."""
        xp, config = self.xp, self.learner.config
        trainable: dict[str, dict[str, Any]] = {}
        for mid, plan in {**self.plans, **self.resting}.items():
            live: dict[str, Any] = {}
            for name, optimizer in plan.optimizers.items():
                live.update(optimizer.layout.split(xp, carry[f"params/{mid}/{name}"]))
            if plan.learns:
                trainable[mid] = live
            frozen = plan.frozen.split(xp, carry[f"frozen/{mid}"]) if plan.frozen.names else {}
            context.params[mid] = {**live, **frozen}
            context.targets[mid] = plan.targets.split(xp, carry[f"targets/{mid}"]) if plan.targets.names else {}
            context.buffers[mid] = {name: carry[f"buffers/{mid}/{name}"] for name in plan.buffers}
            context.sequences[mid] = plan.sequences
            traced = {column[2]: floats[i] for column, i in self.table.floats.items() if column[:2] == ("config", mid)}
            context.config[mid] = ConfigView(config.for_module(mid), traced)
            context.variables[mid] = {n: floats[self.table.floats["var", mid, n]] for n in plan.host_variables}
            # The same for all modules: lifetime minibatch steps.
            context.steps[mid] = ints[self.table.ints["step", next(iter(self.feeds))]]
        self._lend(context)
        return trainable

    def _lend(self, context: StepContext) -> None:
        """Modules that share parameters have those of the module that holds them."""
        for mid, plan in {**self.plans, **self.resting}.items():
            context.params[mid].update({name: context.params[holder][name] for name, holder in plan.borrowed.items()})

    def _gradients(
        self, context: StepContext, trainable: dict[str, dict[str, Any]], weights: Mapping[str, Any]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """The learner's gradients of this (micro-)batch, and each module's detached total loss."""
        learner, xp = self.learner, self.xp

        def loss_fn(params: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
            for mid, arrays in params.items():
                context.params[mid] = {**context.params[mid], **arrays}
            self._lend(context)
            fwd_out: dict[str, Any] = {}
            for mid, plan in self.plans.items():
                if plan.shared_by:
                    continue
                outputs = learner.module[mid].forward_train(context.batch[mid])
                if isinstance(outputs, Mapping) and "buffers" in outputs:
                    context.new_buffers[mid] = dict(outputs["buffers"])
                fwd_out[mid] = outputs
            losses = learner.compute_losses(fwd_out=fwd_out, batch=context.batch)
            _check_scalars(type(learner).__name__, losses)
            losses = {mid: _weighted(loss, weights[mid]) for mid, loss in losses.items()}
            aux = {
                "losses": losses,
                "metrics": {key: value for key, (value, _) in context.metrics.items()},
                "weights": {key: weight for key, (_, weight) in context.metrics.items()},
                "stop": context.stop,
                "buffers": context.new_buffers,
            }
            return {**losses, **self._shared_losses(losses)}, aux

        if context.trial:
            gradients, aux = gradients_that_reach(learner, context, loss_fn, trainable)
            check_gradients("compute_gradients", gradients, self.plans, context.params)
        else:
            gradients, aux = learner.compute_gradients(loss_fn, trainable)
        # Only detached values leave the loss function.
        context.metrics = {key: (aux["metrics"][key], aux["weights"][key]) for key in aux["metrics"]}
        context.stop = dict(aux["stop"])
        context.new_buffers = dict(aux["buffers"])
        # The trainable entries of context.params may still be the gradient's leaves: rebind them to plain arrays.
        for mid, arrays in trainable.items():
            context.params[mid] = {**context.params[mid], **arrays}
        self._lend(context)
        totals: dict[str, Any] = {}
        for mid, loss in aux["losses"].items():
            parts = list(loss.values()) if isinstance(loss, Mapping) else [loss]
            total = parts[0]
            for other in parts[1:]:
                total = total + other
            totals[mid] = xp.reshape(xp.astype(total, learner.float_dtype), ())
        return gradients, totals

    def _shared_losses(self, losses: Mapping[str, Any]) -> dict[str, Any]:
        """What else moves shared parameters than the sum of all modules' scalar losses, which does anyway."""
        found = {}
        for mid, plan in self.plans.items():
            if plan.shared_by:
                found[mid] = self.xp.zeros((), dtype=self.learner.float_dtype)
                for loss in (losses[sharer] for sharer in plan.shared_by if sharer in losses):
                    for part in loss.values() if isinstance(loss, Mapping) else ():
                        found[mid] = found[mid] + self.xp.reshape(part, ())
        return found

    def _gate(
        self, carry: Mapping[str, Any], context: StepContext, losses: Mapping[str, Any], ints: Any
    ) -> dict[str, Any]:
        """module id -> {"rows", "go"}: the module has rows here; and has not stopped early and its loss is finite."""
        xp = self.xp
        gate: dict[str, Any] = {}
        for position, (mid, plan) in enumerate(self.plans.items()):
            if plan.shared_by:
                continue
            has_rows = self._has_rows(ints, mid, plan)
            stopped = carry["stopped"][position]
            if mid in context.stop:
                stopped = xp.logical_or(stopped, xp.logical_and(context.stop[mid] > 0, has_rows))
            active = xp.logical_and(has_rows, xp.logical_not(stopped))
            finite = xp.isfinite(losses[mid]) if mid in losses else has_rows
            gate[mid] = {
                "active": active,
                "go": xp.logical_and(active, finite),
                "stopped": stopped,
                "loss": losses.get(mid),
                "norms": {},
            }
        for mid, plan in self.plans.items():
            if plan.shared_by:
                sharers = [gate[sharer] for sharer in plan.shared_by if sharer in gate]
                # Those that do not go have no part in its gradient, but for a loss that is not finite.
                active, stopped = (
                    functools.reduce(combine, [one[key] for one in sharers])
                    for key, combine in (("active", xp.logical_or), ("stopped", xp.logical_and))
                )
                gate[mid] = {"active": active, "go": active, "stopped": stopped, "loss": None, "norms": {}}
        return gate

    def _measure(self, context: StepContext, flat: Mapping[str, Mapping[str, Any]], gate: dict[str, Any]) -> None:
        """The gradients' norms; a module whose gradient is not finite does not go."""
        xp = self.xp
        for mid, vectors in flat.items():
            for name, vector in vectors.items():
                norm = gate[mid]["norms"][name] = xp.sqrt(self.learner.backend.squared_norm(vector))
                if context.reads_values and bool(xp.isfinite(norm)):
                    continue
                # A module steps with all of its optimizers or with none. Not by the norm: whether that overflows
                # depends on how a compiler arranges it.
                gate[mid]["go"] = xp.logical_and(gate[mid]["go"], xp.all(xp.isfinite(vector)))

    def _join(self, context: StepContext, module_id: str, gradients: Mapping[str, Any]) -> dict[str, Any]:
        """optimizer -> flat gradient vector; on trial of its last array alone."""
        optimizers = self.plans[module_id].optimizers
        if context.trial:
            arrays = {name: [gradients[n] for n in optimizer.layout.names] for name, optimizer in optimizers.items()}
            return {name: self.xp.reshape(of[-1], (-1,)) for name, of in arrays.items()}
        return {name: optimizer.layout.join(self.xp, gradients) for name, optimizer in optimizers.items()}

    def _choose(self, context: StepContext, go: Any, new: Any, old: Any) -> Any:
        """``new`` where the step counts, else ``old``; without copying either where a value may be read."""
        if context.reads_values:
            return new if bool(go) else old
        return self.xp.where(go, new, old)

    def _clips(self, context: StepContext, gate: Mapping[str, Any]) -> dict[tuple[str, str], Callable[[Any], Any]]:
        """(module, optimizer) -> the default clipping, elementwise: as ``postprocess_gradients_for_module`` clips."""
        xp = self.xp
        clips: dict[tuple[str, str], Callable[[Any], Any]] = {}
        for mid, plan in self.plans.items():
            config = context.config[mid]
            if config.grad_clip is None or config.grad_clip_by not in ("global_norm", "value"):
                continue
            for name in plan.optimizers:
                if config.grad_clip_by == "value":
                    clips[mid, name] = functools.partial(_clipped, xp, bound=config.grad_clip)
                else:
                    factor = clip_factor(xp, gate[mid]["norms"][name], config.grad_clip)
                    clips[mid, name] = functools.partial(operator.mul, factor)
        return clips

    def _apply(
        self,
        out: dict[str, Any],
        carry: Mapping[str, Any],
        context: StepContext,
        gradients: Mapping[str, Mapping[str, Any]],
        clips: Mapping[tuple[str, str], Callable[[Any], Any]],
        gate: dict[str, Any],
        floats: Any,
        inputs: Mapping[str, Any],
    ) -> None:
        """The optimizers; writes parameters and slots into ``out`` and ``context.params``."""
        xp = self.xp
        for mid, plan in self.plans.items():
            flat, go = gradients[mid], gate[mid]["go"]
            for name, optimizer in () if context.trial else plan.optimizers.items():
                position, start, num = self.corrections.index[mid, name]
                done = carry["applied"][position]
                corrections = table_line(xp, inputs["corrections"], done)
                key = f"params/{mid}/{name}"
                slots = {slot: carry[f"slots/{mid}/{name}/{slot}"] for slot in optimizer.spec.slot_names}
                new, new_slots = self.learner.backend.optimizer_update(
                    optimizer.spec,
                    params=carry[key],
                    gradients=flat[name],
                    slots=slots,
                    lr=floats[self.table.floats["lr", mid, name]],
                    corrections=[corrections[start + i] for i in range(num)],
                    clip=clips.get((mid, name)),
                )
                out[key] = self._choose(context, go, new, carry[key])
                for slot, value in new_slots.items():
                    slot_key = f"slots/{mid}/{name}/{slot}"
                    out[slot_key] = self._choose(context, go, value, carry[slot_key])
                context.params[mid].update(optimizer.layout.split(xp, out[key]))
        self._lend(context)
        go_all = [gate[mid]["go"] for mid, plan in self.plans.items() for _ in plan.optimizers]
        if go_all:
            out["applied"] = carry["applied"] + xp.astype(xp.stack(go_all, 0), xp.int64)

    def _after(
        self, out: dict[str, Any], carry: Mapping[str, Any], context: StepContext, gate: Mapping[str, Any]
    ) -> None:
        """``after_step`` of every module, new buffers and the early-stop flags."""
        xp = self.xp
        for mid, plan in self.plans.items():
            go = gate[mid]["go"]
            params, targets = dict(context.params[mid]), dict(context.targets[mid])
            config, hook = context.config[mid], cast("Callable[..., Any]", self.learner.after_step)
            answer = hook(module_id=mid, params=params, targets=targets, config=config)
            if context.trial:
                refuse_answer("after_step", answer, "edit the dicts params and targets that it is given")
                refuse_others("after_step leaves", f"rl_module/{mid}", params, context.params[mid])
                refuse_others("after_step leaves", f"targets/{mid}", targets, context.targets[mid])
                self._refuse_frozen(mid, params, context)
            if plan.targets.names:
                key = f"targets/{mid}"
                if context.trial:
                    _check_shapes(xp, targets, plan.targets, f"targets/{mid}")
                elif any(targets[n] is not context.targets[mid][n] for n in plan.targets.names):
                    out[key] = self._choose(context, go, plan.targets.join(xp, targets), carry[key])
            before = context.params[mid]
            for name, optimizer in plan.optimizers.items():
                if context.trial:
                    _check_shapes(xp, params, optimizer.layout, f"rl_module/{mid}")
                elif any(params[n] is not before[n] for n in optimizer.layout.names):
                    key = f"params/{mid}/{name}"
                    out[key] = self._choose(context, go, optimizer.layout.join(xp, params), out[key])
            for name, value in context.new_buffers.get(mid, {}).items():
                key = f"buffers/{mid}/{name}"
                out[key] = self._choose(context, go, xp.astype(value, carry[key].dtype), carry[key])
        if self.plans:
            out["stopped"] = xp.stack([gate[mid]["stopped"] for mid in self.plans], 0)

    def _refuse_frozen(self, mid: str, params: Mapping[str, Any], context: StepContext) -> None:
        """Refuse what ``after_step`` does to parameters that no optimizer has: they are not written back."""
        learned = {name for plan in self.plans[mid].optimizers.values() for name in plan.layout.names}
        for name, value in context.params[mid].items():
            if name not in learned and params.get(name) is not value:
                raise ConfigError(
                    f"after_step changes rl_module/{mid}/{name}, which no optimizer has: it stays as it is in a step"
                )


def _clipped(xp: Any, vector: Any, *, bound: Any) -> Any:
    return clip_by_value(xp, {"": vector}, bound)[""]


def _check_shapes(xp: Any, arrays: Mapping[str, Any], layout: FlatLayout, path: str) -> None:
    """Refuse what ``after_step`` leaves behind if it does not fit in its place."""
    for name, shape in layout.shapes.items():
        found = tuple(xp.shape(arrays[name])) if name in arrays else None
        if found != shape:
            raise ConfigError(f"after_step leaves {path}/{name} with shape {found}, expected {shape}")


def _check_scalars(whose: str, losses: Mapping[str, Any]) -> None:
    """Refuse losses that are one number per row: every backend would say something else about them, and later."""
    for module_id, loss in losses.items():
        parts = loss if isinstance(loss, Mapping) else {"": loss}
        for name, part in parts.items():
            shape = tuple(getattr(part, "shape", ()))
            if math.prod(shape) != 1:
                of = f"optimizer {name!r}, " if name else ""
                raise ConfigError(
                    f"{whose}: the loss of {of}module {module_id!r} has shape {shape}, expected a scalar, "
                    "self.mean(loss) for instance"
                )


def _weighted(loss: Any, weight: Any) -> Any:
    if weight is None:
        return loss
    if isinstance(loss, Mapping):
        return {name: value * weight for name, value in loss.items()}
    return loss * weight


def _add(total: Any, new: Any) -> Any:
    """Sum of two trees of the same structure; an empty total is the other."""
    if isinstance(new, Mapping):
        return {key: _add(total[key], value) if key in total else value for key, value in new.items()}
    return total + new
