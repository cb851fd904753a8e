"""All steps of an update in one TensorFlow function.

The loop over minibatches is a ``tf.while_loop`` inside the function, so an update is one call: 3 to 5 times less a step
than calling a compiled step from Python. Small networks run under XLA, which is 4 times faster again; convolutions run
in the plain graph, where XLA's CPU kernels are the slower ones (28 against 37 ms,
docs/decisions/tensorflow-update-loop.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from learner_core.backend import ArrayDict, Body, Gradient, Reduce
from learner_core.errors import LearnerGroupError

__all__ = ["CompiledLoop", "SplitLoop", "traced"]


def traced(
    function: Callable[..., object], *, jit_compile: bool | None = None
) -> tf.types.experimental.PolymorphicFunction:
    """A ``tf.function`` whose traces TensorFlow counts apart from those of other learners.

    It counts by code object, which all learners of a process share, and from the fifth trace on warns of "retracing".
    A partial has none, so it stands for itself alone; one function traced again and again is still warned of.

    Args:
        function: takes tensors, and lists of them.
        jit_compile: whether XLA compiles it; ``None``: in whatever calls it.

    Returns:
        The function, not traced yet.
    """
    return tf.function(functools.partial(function), jit_compile=jit_compile, autograph=False)


class CompiledLoop:
    """One ``tf.function`` around the loop, traced once.

    Args:
        body: ``body(s, carry, inputs) -> carry``.
        example: carry and inputs with the shapes of every later call.
        device: where they live.
        xla: compile by XLA; ``None``: unless there is a convolution.
    """

    compiled = True

    def __init__(
        self, body: Body, example: tuple[ArrayDict, ArrayDict], *, device: str, xla: bool | None = None
    ) -> None:
        carry, inputs = example
        self._carry_names = list(carry)
        self._input_names = list(inputs)
        self.xla = not _has_convolution(body, carry, inputs) if xla is None else xla

        def loop(start: tf.Tensor, stop: tf.Tensor, state: list[tf.Tensor], fixed: list[tf.Tensor]) -> list[tf.Tensor]:
            given = dict(zip(self._input_names, fixed, strict=True))

            def advance(step: tf.Tensor, *now: tf.Tensor) -> tuple[tf.Tensor, ...]:
                out = body(step, dict(zip(self._carry_names, now, strict=True)), given)
                return (step + 1, *(tf.ensure_shape(out[name], carry[name].shape) for name in self._carry_names))

            final = tf.while_loop(lambda step, *_: step < stop, advance, (start, *state), parallel_iterations=1)
            return list(final[1:])

        zero = tf.constant(0, tf.int64)
        self._function = traced(loop, jit_compile=self.xla)
        self._device = device
        # No step is taken, everything is traced and compiled.
        with tf.device(self._device):
            self._function(zero, zero, list(carry.values()), list(inputs.values()))
            concrete = self._function.get_concrete_function(zero, zero, list(carry.values()), list(inputs.values()))
        self._concrete = concrete
        # The same call without sorting the arguments out by name and type each time: 0.7 ms less, half of an update
        # that has one small step. It is not public, so it may be missing one day.
        self._call_flat = getattr(concrete, "_call_flat", None)

    def _call(
        self, start: tf.Tensor, stop: tf.Tensor, state: list[tf.Tensor], fixed: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        with tf.device(self._device):
            if self._call_flat is None:
                return list(self._function(start, stop, state, fixed))
            return list(self._call_flat([start, stop, *state, *fixed], self._concrete.captured_inputs))

    @property
    def num_traces(self) -> int:
        """How many times the function was traced; more than one is a defect."""
        return int(self._function.experimental_get_tracing_count())

    def __call__(self, carry: ArrayDict, inputs: ArrayDict, start: int, stop: int) -> ArrayDict:
        state = [carry[name] for name in self._carry_names]
        fixed = [inputs[name] for name in self._input_names]
        first, last = tf.constant(start, tf.int64), tf.constant(stop, tf.int64)
        return dict(zip(self._carry_names, self._call(first, last, state, fixed), strict=True))


class SplitLoop(CompiledLoop):
    """The loop of several learners: two compiled halves a step, and the sum over the learners between them.

    XLA cannot compile the sum on the CPU, so the loop itself is a plain graph that calls compiled functions.

    Args:
        gradient: ``gradient(s, carry, inputs) -> flat``.
        apply: ``apply(s, carry, inputs, flat) -> carry``.
        reduce: ``reduce(flat) -> flat``, put into the graph once.
        example, device: as for :class:`CompiledLoop`.
    """

    def __init__(
        self,
        gradient: Gradient,
        apply: Body,
        reduce: Reduce,
        example: tuple[ArrayDict, ArrayDict],
        *,
        device: str,
    ) -> None:
        carry, inputs = example
        names, fixed_names = list(carry), list(inputs)

        def first(step: tf.Tensor, state: list[tf.Tensor], fixed: list[tf.Tensor]) -> tf.Tensor:
            return gradient(step, dict(zip(names, state, strict=True)), dict(zip(fixed_names, fixed, strict=True)))

        def second(step: tf.Tensor, state: list[tf.Tensor], fixed: list[tf.Tensor], flat: tf.Tensor) -> list[tf.Tensor]:
            now, given = dict(zip(names, state, strict=True)), dict(zip(fixed_names, fixed, strict=True))
            out = apply(step, now, given, flat)
            return [out[name] for name in names]

        zero = tf.constant(0, tf.int64)
        halves = [traced(half, jit_compile=True) for half in (first, second)]
        # Not a trace more than the loop needs: this one it calls.
        trial = halves[0].get_concrete_function(zero, list(carry.values()), list(inputs.values()))
        if any("Conv" in operation.type for operation in trial.graph.get_operations()):
            halves = [traced(half, jit_compile=False) for half in (first, second)]
        length = trial.output_shapes

        def body(step: tf.Tensor, now: ArrayDict, given: ArrayDict) -> ArrayDict:
            state, fixed = [now[name] for name in names], [given[name] for name in fixed_names]
            flat = reduce(tf.ensure_shape(halves[0](step, state, fixed), length))
            return dict(zip(names, halves[1](step, state, fixed, flat), strict=True))

        super().__init__(body, example, device=device, xla=False)

    def _call(
        self, start: tf.Tensor, stop: tf.Tensor, state: list[tf.Tensor], fixed: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        try:
            return super()._call(start, stop, state, fixed)
        except tf.errors.OpError as error:
            if "orovod" not in str(error):
                raise
            raise LearnerGroupError(f"another rank has left the ring: {error.message}") from error


def _has_convolution(body: Body, carry: ArrayDict, inputs: ArrayDict) -> bool:
    """Whether the step contains a convolution: read off a trace of one step."""

    def one(state: list[tf.Tensor], fixed: list[tf.Tensor]) -> list[tf.Tensor]:
        out = body(
            tf.constant(0, tf.int64),
            dict(zip(carry, state, strict=True)),
            dict(zip(inputs, fixed, strict=True)),
        )
        return [out[name] for name in carry]

    graph = traced(one).get_concrete_function(list(carry.values()), list(inputs.values())).graph
    return any("Conv" in operation.type for operation in graph.get_operations())
