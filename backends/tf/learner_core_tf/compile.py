"""All steps of an update in one TensorFlow function.

The loop over minibatches is a ``tf.while_loop`` inside the function, so an update is one call: 3 to 5 times less a step
than calling a compiled step from Python. Small networks run under XLA, which is 4 times faster again; convolutions run
in the plain graph, where XLA's CPU kernels are the slower ones (28 against 37 ms, docs/decisions/0004-tf-loop.md).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from learner_core.backend import Body

__all__ = ["CompiledLoop"]


class CompiledLoop:
    """One ``tf.function`` around the loop, traced once.

    Args:
        body: ``body(s, carry, inputs) -> carry``.
        example: carry and inputs with the shapes of every later call.
        device: where they live.
    """

    compiled = True

    def __init__(self, body: Body, example: tuple[dict[str, Any], dict[str, Any]], *, device: str) -> None:
        carry, inputs = example
        self._carry_names = list(carry)
        self._input_names = list(inputs)
        self.xla = not _has_convolution(body, carry, inputs)

        def loop(start: Any, stop: Any, state: list[Any], fixed: list[Any]) -> list[Any]:
            given = dict(zip(self._input_names, fixed, strict=True))

            def advance(step: Any, *now: Any) -> tuple[Any, ...]:
                out = body(step, dict(zip(self._carry_names, now, strict=True)), given)
                return (step + 1, *(tf.ensure_shape(out[name], carry[name].shape) for name in self._carry_names))

            final = tf.while_loop(lambda step, *_: step < stop, advance, (start, *state), parallel_iterations=1)
            return list(final[1:])

        zero = tf.constant(0, tf.int64)
        self._function = tf.function(loop, jit_compile=self.xla, autograph=False)
        self._device = device
        # No step is taken, everything is traced and compiled.
        self._call(zero, zero, list(carry.values()), list(inputs.values()))

    def _call(self, start: Any, stop: Any, state: list[Any], fixed: list[Any]) -> list[Any]:
        with tf.device(self._device):
            return list(self._function(start, stop, state, fixed))

    @property
    def num_traces(self) -> int:
        """How many times the function was traced; more than one is a defect."""
        return int(self._function.experimental_get_tracing_count())

    def __call__(self, carry: dict[str, Any], inputs: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
        state = [carry[name] for name in self._carry_names]
        fixed = [inputs[name] for name in self._input_names]
        first, last = tf.constant(start, tf.int64), tf.constant(stop, tf.int64)
        return dict(zip(self._carry_names, self._call(first, last, state, fixed), strict=True))


def _has_convolution(body: Body, carry: dict[str, Any], inputs: dict[str, Any]) -> bool:
    """Whether the step contains a convolution: read off a trace of one step."""

    def one(state: list[Any], fixed: list[Any]) -> list[Any]:
        out = body(
            tf.constant(0, tf.int64),
            dict(zip(carry, state, strict=True)),
            dict(zip(inputs, fixed, strict=True)),
        )
        return [out[name] for name in carry]

    graph = tf.function(one, autograph=False).get_concrete_function(list(carry.values()), list(inputs.values())).graph
    return any("Conv" in operation.type for operation in graph.get_operations())
