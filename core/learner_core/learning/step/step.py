"""One minibatch step as a pure function: forward, losses, gradients, clipping, optimizers, targets.

``UpdateStep.body(s, carry, inputs) -> carry`` is what runs again and again. Nothing but the next carry comes of it,
nothing synchronises, and a step that must not count (no rows for a module, a non-finite gradient, an early stop) leaves
every array of that module as it was.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, cast

from ...errors import ConfigError
from ...maths.optimizers import clip_by_value, clip_factor
from ...xp import Array, ArrayTree, Namespace
from ..arrays import Carry, StepInputs
from ..blueprint import Blueprint, ModulePlan
from ..parameters import FlatLayout
from .context import ConfigView, StepContext
from .gate import Gate, check_finite, gates_of, has_rows
from .hook_answers import refuse_answer, refuse_others
from .hooks import LearnerHooks, Loss
from .line import StepLine, table_line
from .metrics import Part, collect_metrics, merge_parts
from .minibatch import load_batch
from .probe import Probe
from .reach import check_gradients, gradients_that_reach, refuse_unapplied

__all__ = ["UpdateStep"]

#: module id -> parameter -> gradient.
Gradients = dict[str, dict[str, Array]]
#: module id -> optimizer -> its parameters' gradients as one vector.
Vectors = Mapping[str, Mapping[str, Array]]


class UpdateStep:
    """The step of one Learner.

    Args:
        learner: whose hooks are called.
        blueprint: its modules and layouts.
        num_parts: parts that a minibatch is split into: micro-batches on every learner.
        probe: notes what the hooks ask for; ``None``: that is known.
    """

    def __init__(
        self, learner: LearnerHooks, blueprint: Blueprint, num_parts: int = 1, probe: Probe | None = None
    ) -> None:
        self.learner = learner
        self.blueprint = blueprint
        self.num_parts = num_parts
        self.probe = probe
        self.xp: Namespace = learner.backend.xp

    # ------------------------------------------------------------------ the loop body

    def body(
        self,
        s: int | Array,
        carry: Carry,
        inputs: StepInputs,
        *,
        masked: bool = True,
        sizes: Mapping[str, int] | None = None,
        trial: bool = False,
    ) -> Carry:
        """Step ``s`` of the update.

        Args:
            s, carry, inputs, masked, sizes: as in ``StepLine``.
            trial: run every hook, but leave parameters, slots and targets as they are: no vector is made.

        Returns:
            The next carry, of the same structure, shapes and dtypes.
        """
        with self.context(reads_values=sizes is not None) as context:
            context.trial = trial
            line = StepLine.of(self.xp, s, carry, inputs, masked=masked, sizes=sizes)
            gradients, losses = self.gradient_half(line, context)
            raw = {mid: self._join(context, mid, gradients[mid]) for mid in self.blueprint.learning}
            return self.apply_half(line, context, gradients, raw, losses)

    @contextlib.contextmanager
    def context(self, *, reads_values: bool = False) -> Iterator[StepContext]:
        """A fresh context, the learner's own while it is entered; blank afterwards.

        Args:
            reads_values: nothing is traced, so that Python may look at values where that costs nothing.
        """
        learner = self.learner
        dtypes = (learner.float_dtype, learner.compute_dtype)
        context = StepContext(self.xp, self.blueprint, *dtypes, num_parts=self.num_parts)
        context.probe = self.probe
        context.reads_values = reads_values and learner.backend.reads_are_free
        with learner.in_step(context), learner.backend.scope():
            try:
                yield context
            finally:
                context.clear()

    def gradient_half(
        self, line: StepLine, context: StepContext, only: Mapping[str, Collection[str]] | None = None
    ) -> tuple[Gradients, dict[str, Array]]:
        """Up to the gradients: these, and {module id: detached loss}.

        Args:
            line: the step.
            context: is filled.
            only: module id -> parameters whose gradients are wanted; ``None``: all.
        """
        trainable = self.bind(line, context)
        if only is not None:
            trainable = {mid: {name: arrays[name] for name in only[mid]} for mid, arrays in trainable.items()}
        gradients: Gradients = {}
        losses: dict[str, Array] = {}
        parts: list[Part] = []
        for part in range(self.blueprint.accumulate):
            context.metrics, context.stop = {}, {}
            weights = load_batch(line, context, part)
            self._leave_out(line, context, weights)
            new_gradients, new_losses = self._gradients(context, trainable, weights)
            gradients = _add(gradients, new_gradients)
            losses = _add(losses, new_losses)
            parts.append(Part(dict(context.count), dict(context.metrics), dict(context.stop)))
            for mid, new in context.new_buffers.items():
                # The next micro-batch goes on from the buffers that this one leaves.
                context.buffers[mid] = {**context.buffers[mid], **new}
        if self.num_parts > 1:
            merge_parts(line, context, parts)
        return gradients, losses

    def apply_half(
        self, line: StepLine, context: StepContext, gradients: Gradients, raw: Vectors, losses: Mapping[str, Array]
    ) -> Carry:
        """From the gradients on: clipping, optimizers, targets, metrics.

        Args:
            line: the step.
            context: filled by :meth:`gradient_half`.
            gradients, losses: of :meth:`gradient_half`.
            raw: the same gradients as flat vectors.

        Returns:
            The next carry.
        """
        learner, plans = self.learner, self.blueprint.learning
        out = line.carry.copy()
        gates = gates_of(line, context, losses)
        # Measured before any hook or clip: clipping by value would make a usable number of an infinity.
        check_finite(context, learner.backend, raw, gates)
        if learner.has_default_gradients:
            self._apply(line, out, context, raw, gates, self._clips(context, gates))
        else:
            num_applied = 0

            def apply(final: Mapping[str, Mapping[str, Array]]) -> None:
                nonlocal num_applied
                num_applied += 1
                if context.trial:
                    check_gradients("apply_gradients", final, plans, context.params)
                flat = {mid: self._join(context, mid, final[mid]) for mid in plans}
                for mid, vectors in flat.items():
                    for vector in vectors.values():
                        gates[mid].go = self.xp.logical_and(gates[mid].go, self.xp.all(self.xp.isfinite(vector)))
                self._apply(line, out, context, flat, gates)

            context.apply = apply
            learner.apply_gradients(learner.postprocess_gradients(gradients))
            if context.trial:
                refuse_unapplied(learner, plans, num_applied)
        self._after(line, out, context, gates)
        out.metrics = collect_metrics(line, context, gates)
        return out

    # ------------------------------------------------------------------ the parts, in order

    def bind(self, line: StepLine, context: StepContext) -> dict[str, dict[str, Array]]:
        """Give the context its parameters, targets, settings and variables; returns the trainable parameters."""
        xp, config, blueprint = self.xp, self.learner.config, self.blueprint
        table = blueprint.table
        trainable: dict[str, dict[str, Array]] = {}
        for mid, plan in {**blueprint.learning, **blueprint.resting}.items():
            arrays = line.carry.modules[mid]
            live: dict[str, Array] = {}
            for name, optimizer in plan.optimizers.items():
                live.update(optimizer.layout.split(xp, arrays.params[name]))
            if plan.learns:
                trainable[mid] = live
            context.params[mid] = {**live, **plan.frozen.split(xp, arrays.frozen)}
            context.targets[mid] = plan.targets.split(xp, arrays.targets)
            context.buffers[mid] = dict(arrays.buffers)
            context.sequences[mid] = plan.sequences
            traced = {column[2]: line.floats[i] for column, i in table.floats.items() if column[:2] == ("config", mid)}
            context.config[mid] = ConfigView(config.for_module(mid), traced)
            context.variables[mid] = {n: line.floats[table.floats["var", mid, n]] for n in plan.host_variables}
            # The same for all modules: lifetime minibatch steps.
            context.steps[mid] = line.ints[table.ints["step", next(iter(blueprint.feeds))]]
        self._lend(context)
        return trainable

    def _lend(self, context: StepContext) -> None:
        """Modules that share parameters have those of the module that holds them."""
        for mid, plan in self.blueprint.plans.items():
            context.params[mid].update({name: context.params[holder][name] for name, holder in plan.borrowed.items()})

    def _leave_out(self, line: StepLine, context: StepContext, weights: dict[str, Array | None]) -> None:
        """Modules that share parameters have no part in their gradient where they have no rows or have stopped."""
        xp, plans = self.xp, self.blueprint.learning
        sharers = {sharer for plan in plans.values() for sharer in plan.shared_by}
        for position, (mid, plan) in enumerate(plans.items()):
            if mid in sharers:
                goes_on = xp.logical_not(line.carry.stopped[position])
                rows = has_rows(line, context, mid, plan)
                part = xp.astype(xp.logical_and(rows, goes_on), self.learner.float_dtype)
                weights[mid] = part if weights[mid] is None else weights[mid] * part

    def _gradients(
        self, context: StepContext, trainable: dict[str, dict[str, Array]], weights: Mapping[str, Array | None]
    ) -> tuple[Gradients, dict[str, Array]]:
        """The learner's gradients of this (micro-)batch, and each module's detached total loss."""
        learner, xp, plans = self.learner, self.xp, self.blueprint.learning

        def loss_fn(params: Mapping[str, Mapping[str, Array]]) -> tuple[dict[str, Loss], ArrayTree]:
            for mid, arrays in params.items():
                context.params[mid] = {**context.params[mid], **arrays}
            self._lend(context)
            fwd_out: dict[str, Any] = {}
            for mid, plan in plans.items():
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
            check_gradients("compute_gradients", gradients, plans, context.params)
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
        totals: dict[str, Array] = {}
        for mid, loss in aux["losses"].items():
            parts = list(loss.values()) if isinstance(loss, Mapping) else [loss]
            total = functools.reduce(operator.add, parts)
            totals[mid] = xp.reshape(xp.astype(total, learner.float_dtype), ())
        return gradients, totals

    def _shared_losses(self, losses: Mapping[str, Loss]) -> dict[str, Array]:
        """What else moves shared parameters than the sum of all modules' scalar losses, which does anyway."""
        found = {}
        for mid, plan in self.blueprint.learning.items():
            if plan.shared_by:
                found[mid] = self.xp.zeros((), dtype=self.learner.float_dtype)
                for loss in (losses[sharer] for sharer in plan.shared_by if sharer in losses):
                    for part in loss.values() if isinstance(loss, Mapping) else ():
                        found[mid] = found[mid] + self.xp.reshape(part, ())
        return found

    def _join(self, context: StepContext, module_id: str, gradients: Mapping[str, Array]) -> dict[str, Array]:
        """optimizer -> flat gradient vector; on trial of its last array alone."""
        optimizers = self.blueprint.plans[module_id].optimizers
        if context.trial:
            last = {name: gradients[optimizer.layout.names[-1]] for name, optimizer in optimizers.items()}
            return {name: self.xp.reshape(array, (-1,)) for name, array in last.items()}
        return {name: optimizer.layout.join(self.xp, gradients) for name, optimizer in optimizers.items()}

    def _choose(self, context: StepContext, go: Array, new: Array, old: Array) -> Array:
        """``new`` where the step counts, else ``old``; without copying either where a value may be read."""
        if context.reads_values:
            return new if bool(go) else old
        return self.xp.where(go, new, old)

    def _clips(
        self, context: StepContext, gates: Mapping[str, Gate]
    ) -> dict[tuple[str, str], Callable[[Array], Array]]:
        """(module, optimizer) -> the default clipping, elementwise: as ``postprocess_gradients_for_module`` clips."""
        xp = self.xp
        clips: dict[tuple[str, str], Callable[[Array], Array]] = {}
        for mid, plan in self.blueprint.learning.items():
            config = context.config[mid]
            if config.grad_clip is None or config.grad_clip_by not in ("global_norm", "value"):
                continue
            for name in plan.optimizers:
                if config.grad_clip_by == "value":
                    clips[mid, name] = functools.partial(_clipped, xp, bound=config.grad_clip)
                else:
                    factor = clip_factor(xp, gates[mid].norms[name], config.grad_clip)
                    clips[mid, name] = functools.partial(operator.mul, factor)
        return clips

    def _apply(
        self,
        line: StepLine,
        out: Carry,
        context: StepContext,
        gradients: Vectors,
        gates: Mapping[str, Gate],
        clips: Mapping[tuple[str, str], Callable[[Array], Array]] | None = None,
    ) -> None:
        """The optimizers; writes parameters and slots into ``out`` and ``context.params``."""
        xp, blueprint = self.xp, self.blueprint
        for mid, plan in blueprint.learning.items():
            flat, go, old, new = gradients[mid], gates[mid].go, line.carry.modules[mid], out.modules[mid]
            for name, optimizer in () if context.trial else plan.optimizers.items():
                position, start, num = blueprint.corrections.index[mid, name]
                corrections = table_line(xp, line.inputs.corrections, line.carry.applied[position])
                params, slots = self.learner.backend.optimizer_update(
                    optimizer.spec,
                    params=old.params[name],
                    gradients=flat[name],
                    slots=old.slots[name],
                    lr=line.floats[blueprint.table.floats["lr", mid, name]],
                    corrections=[corrections[start + i] for i in range(num)],
                    clip=(clips or {}).get((mid, name)),
                )
                new.params[name] = self._choose(context, go, params, old.params[name])
                for slot, value in slots.items():
                    new.slots[name][slot] = self._choose(context, go, value, old.slots[name][slot])
                context.params[mid].update(optimizer.layout.split(xp, new.params[name]))
        self._lend(context)
        go_all = [gates[mid].go for mid, plan in blueprint.learning.items() for _ in plan.optimizers]
        if go_all:
            out.applied = line.carry.applied + xp.astype(xp.stack(go_all, 0), xp.int64)

    def _after(self, line: StepLine, out: Carry, context: StepContext, gates: Mapping[str, Gate]) -> None:
        """``after_step`` of every module, new buffers and the early-stop flags."""
        xp, plans = self.xp, self.blueprint.learning
        for mid, plan in plans.items():
            go, arrays = gates[mid].go, out.modules[mid]
            before, old_targets = context.params[mid], context.targets[mid]
            params, targets = dict(before), dict(old_targets)
            hook = cast("Callable[..., object]", self.learner.after_step)
            answer = hook(module_id=mid, params=params, targets=targets, config=context.config[mid])
            if context.trial:
                refuse_answer("after_step", answer, "edit the dicts params and targets that it is given")
                refuse_others("after_step leaves", f"rl_module/{mid}", params, before)
                refuse_others("after_step leaves", f"targets/{mid}", targets, old_targets)
                _refuse_frozen(mid, plan, params, before)
                _check_shapes(xp, targets, plan.targets, f"targets/{mid}")
                for optimizer in plan.optimizers.values():
                    _check_shapes(xp, params, optimizer.layout, f"rl_module/{mid}")
            else:
                if any(targets[n] is not old_targets[n] for n in plan.targets.names):
                    arrays.targets = self._choose(context, go, plan.targets.join(xp, targets), arrays.targets)
                for name, optimizer in plan.optimizers.items():
                    if any(params[n] is not before[n] for n in optimizer.layout.names):
                        joined = optimizer.layout.join(xp, params)
                        arrays.params[name] = self._choose(context, go, joined, arrays.params[name])
            for name, value in context.new_buffers.get(mid, {}).items():
                old = line.carry.modules[mid].buffers[name]
                arrays.buffers[name] = self._choose(context, go, xp.astype(value, old.dtype), old)
        if plans:
            out.stopped = xp.stack([gates[mid].stopped for mid in plans], 0)


def _refuse_frozen(mid: str, plan: ModulePlan, params: Mapping[str, Array], before: Mapping[str, Array]) -> None:
    """Refuse what ``after_step`` does to parameters that no optimizer has: they are not written back."""
    learned = {name for optimizer in plan.optimizers.values() for name in optimizer.layout.names}
    for name, value in before.items():
        if name not in learned and params.get(name) is not value:
            raise ConfigError(
                f"after_step changes rl_module/{mid}/{name}, which no optimizer has: it stays as it is in a step"
            )


def _clipped(xp: Namespace, vector: Array, *, bound: Array) -> Array:
    return clip_by_value(xp, {"": vector}, bound)[""]


def _check_shapes(xp: Namespace, arrays: Mapping[str, Array], layout: FlatLayout, path: str) -> None:
    """Refuse what ``after_step`` leaves behind if it does not fit in its place."""
    for name, shape in layout.shapes.items():
        found = tuple(xp.shape(arrays[name])) if name in arrays else None
        if found != shape:
            raise ConfigError(f"after_step leaves {path}/{name} with shape {found}, expected {shape}")


def _check_scalars(whose: str, losses: Mapping[str, Loss]) -> None:
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


def _weighted(loss: Loss, weight: Array | None) -> Loss:
    if weight is None:
        return loss
    if isinstance(loss, Mapping):
        return {name: value * weight for name, value in loss.items()}
    return loss * weight


def _add(total: ArrayTree, new: ArrayTree) -> ArrayTree:
    """Sum of two trees of the same structure; an empty total is the other."""
    if isinstance(new, Mapping):
        return {key: _add(total[key], value) if key in total else value for key, value in new.items()}
    return total + new
