"""Recurrent layers over ``xp``: LSTM and GRU over sequences in which episodes may begin and end.

Needs parameters in Torch's form, under Torch's names: gates in the order i f g o (LSTM) and r z n (GRU), and two bias
vectors, which have equal values of their gradients in an LSTM and different ones in a GRU. Both are kept: folding them
into one would double the bias's learning rate. Where the namespace has a kernel of its own (``xp.lstm``, ``xp.gru``) it
computes sequences without resets; all else is a scan.
docs/decisions/recurrent-modules.md says why.

References:
    Hochreiter and Schmidhuber, Long short-term memory, Neural Computation 9(8), 1997
    Cho et al., Learning phrase representations using RNN encoder-decoder, https://arxiv.org/abs/1406.1078
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError
from ..xp import Array, Namespace
from .initialisers import Parameters, init_name, sample_recurrent

__all__ = ["GRU", "LSTM"]


class _Recurrent:
    """What LSTM and GRU share: parameters, the state's layout, resets, and the choice between kernel and scan."""

    #: Blocks of rows in the weights, and leaves of the state.
    num_gates: ClassVar[int]
    state_names: ClassVar[tuple[str, ...]]
    kernel: ClassVar[str]

    def __init__(self, name: str, input_size: int, hidden_size: int, *, init: str = "orthogonal") -> None:
        self._init = init_name(init)
        for what, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
                raise ConfigError(f"{name}: {what}={size!r}: expected an int of at least 1")
        self.name = name
        self.input_size: int = int(input_size)
        self.hidden_size: int = int(hidden_size)
        self._names = [f"{name}.{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    @property
    def output_size(self) -> int:
        """Length of the last axis of the outputs: the hidden size."""
        return self.hidden_size

    def init(self, rng: np.random.Generator) -> Parameters:
        """Sample the parameters.

        Args:
            rng: Where the numbers come from.

        Returns:
            ``{name}.weight_ih_l0`` float32 ``[gates * hidden, input]``, ``{name}.weight_hh_l0`` ``[gates * hidden,
            hidden]``, ``{name}.bias_ih_l0`` and ``{name}.bias_hh_l0`` ``[gates * hidden]``, as
            :func:`~learner_core.maths.initialisers.sample_recurrent` has them.
        """
        arrays = sample_recurrent(rng, self.num_gates, self.input_size, self.hidden_size, init=self._init)
        return dict(zip(self._names, arrays, strict=True))

    def initial_state(self) -> dict[str, np.ndarray]:
        """The state of one sequence before its first step: zeros float32 ``[hidden]`` by leaf."""
        return {leaf: np.zeros(self.hidden_size, np.float32) for leaf in self.state_names}

    def apply(
        self,
        xp: Namespace,
        params: Mapping[str, Array],
        x: Array,
        state: Mapping[str, Array] | None = None,
        *,
        resets: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Run over sequences.

        Args:
            xp: The array namespace.
            params: Arrays by parameter name; others are ignored.
            x: ``[B, T, input]``; converted to the parameters' dtype.
            state: Leaves ``[B, hidden]`` before the first step; ``None`` is all zeros.
            resets: bool ``[B, T]``, True where the step is the first of an episode: the state is zero before it.

        Returns:
            ``(outputs [B, T, hidden], state after the last step)``.
        """
        weights = [params[name] for name in self._names]
        dtype = weights[0].dtype
        x = xp.astype(x, dtype)
        if state is None:
            zeros = xp.zeros((xp.shape(x)[0], self.hidden_size), dtype)
            carry = [zeros for _ in self.state_names]
        else:
            carry = [xp.astype(state[leaf], dtype) for leaf in self.state_names]
        native: Callable[..., Any] | None = getattr(xp, self.kernel, None)
        if native is not None and resets is None:
            answer = native(x, *carry, *weights)
            if answer is not NotImplemented:
                outputs, *last = answer
                return outputs, dict(zip(self.state_names, last, strict=True))
        # One product for the inputs of all steps; only what depends on the state is left to the scan.
        inputs = xp.permute_dims(xp.linear(x, weights[0], self._input_bias(weights)), (1, 0, 2))
        xs: dict[str, Array] = {"x": inputs}
        if resets is not None:
            keep = 1.0 - xp.astype(resets, dtype)
            xs["keep"] = xp.expand_dims(xp.permute_dims(keep, (1, 0)), -1)

        def step(now: list[Array], slices: Mapping[str, Array]) -> tuple[list[Array], Array]:
            if "keep" in slices:
                now = [slices["keep"] * leaf for leaf in now]
            now = self._cell(xp, now, slices["x"], weights)
            return now, now[0]

        carry, outputs = xp.scan(step, carry, xs)
        return xp.permute_dims(outputs, (1, 0, 2)), dict(zip(self.state_names, carry, strict=True))

    def step(
        self, xp: Namespace, params: Mapping[str, Array], x: Array, state: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """One step of every sequence, for acting: no scan, so that every namespace and format has it.

        Args:
            xp: The array namespace.
            params: Arrays by parameter name; others are ignored.
            x: ``[B, input]``; converted to the parameters' dtype.
            state: Leaves ``[B, hidden]`` before the step.

        Returns:
            ``(outputs [B, hidden], state after it)``.
        """
        weights = [params[name] for name in self._names]
        dtype = weights[0].dtype
        carry = [xp.astype(state[leaf], dtype) for leaf in self.state_names]
        inputs = xp.linear(xp.astype(x, dtype), weights[0], self._input_bias(weights))
        carry = self._cell(xp, carry, inputs, weights)
        return carry[0], dict(zip(self.state_names, carry, strict=True))

    def _input_bias(self, weights: list[Array]) -> Array:
        """What can be added for all steps at once."""
        raise NotImplementedError

    def _cell(self, xp: Namespace, state: list[Array], x: Array, weights: list[Array]) -> list[Array]:
        """One step: the next state, the output first; ``x`` [B, gates * hidden] is the projected input."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.input_size} -> {self.hidden_size})"


class LSTM(_Recurrent):
    """A long short-term memory of one layer, as ``torch.nn.LSTM`` computes it::

        i, f, o = sigmoid(...), g = tanh(...)  of  W_ih x_t + b_ih + W_hh h_tm1 + b_hh, in blocks i f g o
        c_t = f c_tm1 + i g
        h_t = o tanh(c_t)

    The state has the leaves ``h`` and ``c``.

    Args:
        name: Prefix of the parameter names.
        input_size: Length of the last axis of the input.
        hidden_size: Size of the state and the output.
        init: A name in ``initialisers.INITS``; see :meth:`init`.

    Raises:
        ConfigError: For an unknown init, or a size that is not a positive integer.
    """

    num_gates = 4
    state_names: ClassVar[tuple[str, ...]] = ("h", "c")
    kernel = "lstm"

    def _input_bias(self, weights: list[Array]) -> Array:
        return weights[2] + weights[3]

    def _cell(self, xp: Namespace, state: list[Array], x: Array, weights: list[Array]) -> list[Array]:
        h, c = state
        i, f, g, o = xp.split(x + xp.linear(h, weights[1]), [self.hidden_size] * 4, -1)
        c = xp.sigmoid(f) * c + xp.sigmoid(i) * xp.tanh(g)
        return [xp.sigmoid(o) * xp.tanh(c), c]


class GRU(_Recurrent):
    """A gated recurrent unit of one layer, as ``torch.nn.GRU`` computes it (``reset_after`` in Keras)::

        r, z = sigmoid(...)  of  W_ih x_t + b_ih + W_hh h_tm1 + b_hh, in blocks r z n
        n = tanh(W_in x_t + b_in + r (W_hn h_tm1 + b_hn))
        h_t = (1 - z) n + z h_tm1

    The state has the leaf ``h``. Arguments and errors are :class:`LSTM`'s.
    """

    num_gates = 3
    state_names: ClassVar[tuple[str, ...]] = ("h",)
    kernel = "gru"

    def _input_bias(self, weights: list[Array]) -> Array:
        return weights[2]

    def _cell(self, xp: Namespace, state: list[Array], x: Array, weights: list[Array]) -> list[Array]:
        (h,) = state
        sizes = [2 * self.hidden_size, self.hidden_size]
        from_x, new_x = xp.split(x, sizes, -1)
        from_h, new_h = xp.split(xp.linear(h, weights[1], weights[3]), sizes, -1)
        r, z = xp.split(xp.sigmoid(from_x + from_h), [self.hidden_size] * 2, -1)
        n = xp.tanh(new_x + r * new_h)
        return [n + z * (h - n)]
