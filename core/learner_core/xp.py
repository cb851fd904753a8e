"""The array namespace ``xp``: the functions that training logic is written over, once, for every framework.

A namespace is a module. ``learner_core.numpy_xp`` is the reference one; each backend package ships its own ``xp`` with
exactly these names. Most entries are the framework's own function under its Python array-API name, so that a compiled
step costs the same as one written in the framework itself. What is pinned here, so that every framework computes the
same numbers:

- **dtypes.** Python numbers take the dtype of the array they meet. Alone they become ``float32``, ``int64`` or
  ``bool``. Arrays of different dtypes are never mixed: TensorFlow raises on ``int * float``, and so should your tests;
  :meth:`Namespace.astype` is the way. ``sum``, ``prod`` and ``cumulative_sum`` of integers and booleans are ``int64``.
  Namespaces of training backends also have ``bfloat16``.
- **Subgradients at ties.** ``maximum`` and ``minimum``: half to either side, also against a Python number. ``max``
  and ``min``: equal shares to all that attain it. ``clip``: 1 at its bounds. ``abs`` and ``relu`` at 0: 0.
- **Shapes are static**: :meth:`Namespace.shape` gives Python numbers, also while tracing.
- **Indices** are in range and not negative (compiled code cannot check); ``one_hot`` alone accepts others.
- **Randomness is data.** No function draws random numbers: ``dropout`` is given its noise.

A namespace may have two functions more, kernels of its framework for recurrent layers without resets:
``lstm(x, h, c, w_ih, w_hh, b_ih, b_hh) -> (outputs, h, c)`` and ``gru(x, h, w_ih, w_hh, b_ih, b_hh) -> (outputs, h)``,
with ``x`` ``[B, T, input]``, the state ``[B, hidden]`` and the weights of ``torch.nn.LSTM`` and ``torch.nn.GRU``. Where
one is missing, or answers ``NotImplemented``, :mod:`learner_core.maths.recurrent` computes by :meth:`Namespace.scan`.

Operators (``+ - * / ** @ < <= == != >= >``, basic slicing, ``...`` and ``None`` in an index) are the arrays' own.
Array methods (``x.mean()``) and fancy indexing (``x[indices]``) are not: TensorFlow has neither.

References:
    Python array API standard, https://data-apis.org/array-api/latest/
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from .nested import map_tree

__all__ = ["Array", "Axis", "DType", "Namespace", "Operand", "Shape", "map_tree"]

Array: TypeAlias = Any
"""An array of the namespace at hand: ``numpy.ndarray``, ``torch.Tensor``, ``tf.Tensor``, ..."""
DType: TypeAlias = Any
"""A dtype of the namespace at hand, such as ``xp.float32``."""
#: Arrays by name: parameters, for instance.
Arrays: TypeAlias = Mapping[str, Array]
#: An array, or dicts of them, nested: an observation, for instance.
ArrayTree: TypeAlias = Any
#: Columns of a batch by name.
Columns: TypeAlias = Mapping[str, ArrayTree]
#: What a module answers, by name.
Outputs: TypeAlias = dict[str, ArrayTree]
Operand: TypeAlias = Any
"""What an elementwise function takes: an array, or a Python number beside one."""
Axis: TypeAlias = builtins.int | tuple[builtins.int, ...] | None
"""One axis, several, or ``None`` for all."""
Shape: TypeAlias = builtins.int | Sequence[builtins.int]
"""A shape; a lone integer is a shape of one axis."""


@runtime_checkable
class Namespace(Protocol):
    """What every ``xp`` offers. All positional arguments are positional-only by convention (use the order given).

    Shapes in the docstrings: ``...`` is any number of leading axes.
    """

    name: str
    """``"numpy"``, ``"torch"``, ``"tf"`` or a third party's name."""
    float32: DType
    float64: DType
    int32: DType
    int64: DType
    uint8: DType
    bool: DType

    # ---- creation and conversion ------------------------------------------------------------------------------------

    def asarray(self, x: object, /, dtype: DType = None) -> Array:
        """Turn arrays of the namespace, numpy arrays, numbers and nested lists of numbers into an array.

        Args:
            x: What to convert. Nested lists are of numbers: join arrays by :meth:`stack`, which keeps gradients.
            dtype: The dtype wanted; ``None`` keeps that of arrays and makes numbers float32, int64 or bool.

        Returns:
            The array. Its memory may be ``x``'s own: nothing is copied without need.
        """
        ...

    def zeros(self, shape: Shape, /, dtype: DType = ...) -> Array:
        """An array of zeros, float32 unless told otherwise."""
        ...

    def ones(self, shape: Shape, /, dtype: DType = ...) -> Array:
        """An array of ones, float32 unless told otherwise."""
        ...

    def full(self, shape: Shape, value: Operand, /, dtype: DType = ...) -> Array:
        """An array filled with ``value`` (a number or a 0-d array), float32 unless told otherwise."""
        ...

    def zeros_like(self, x: Array, /, dtype: DType = None) -> Array:
        """Zeros of ``x``'s shape and, unless ``dtype`` is given, dtype."""
        ...

    def ones_like(self, x: Array, /, dtype: DType = None) -> Array:
        """Ones of ``x``'s shape and, unless ``dtype`` is given, dtype."""
        ...

    def full_like(self, x: Array, value: Operand, /, dtype: DType = None) -> Array:
        """``value`` (a number or a 0-d array) in ``x``'s shape and, unless ``dtype`` is given, dtype."""
        ...

    def arange(self, n: builtins.int, /, dtype: DType = ...) -> Array:
        """``[0, 1, ..., n - 1]``, int64 unless told otherwise."""
        ...

    def astype(self, x: Array, dtype: DType, /) -> Array:
        """Convert to ``dtype``; floats are truncated towards zero on their way to integers. Differentiable."""
        ...

    def shape(self, x: Array, /) -> tuple[builtins.int, ...]:
        """The shape as Python numbers. (An axis that TensorFlow does not know yet comes as a 0-d int32 tensor.)"""
        ...

    # ---- elementwise ------------------------------------------------------------------------------------------------

    def abs(self, x: Array, /) -> Array:
        """Absolute value; its derivative at 0 is 0."""
        ...

    def exp(self, x: Array, /) -> Array:
        """Exponential."""
        ...

    def log(self, x: Array, /) -> Array:
        """Natural logarithm; ``-inf`` at 0 (numpy warns)."""
        ...

    def log1p(self, x: Array, /) -> Array:
        """``log(1 + x)``, exact for small ``x``."""
        ...

    def expm1(self, x: Array, /) -> Array:
        """``exp(x) - 1``, exact for small ``x``."""
        ...

    def sqrt(self, x: Array, /) -> Array:
        """Square root; its derivative at 0 is infinite: add an epsilon before, not after."""
        ...

    def square(self, x: Array, /) -> Array:
        """``x * x``."""
        ...

    def sign(self, x: Array, /) -> Array:
        """-1, 0 or 1, without a gradient."""
        ...

    def floor(self, x: Array, /) -> Array:
        """Largest whole number not above ``x``, without a gradient."""
        ...

    def sin(self, x: Array, /) -> Array:
        """Sine (radians)."""
        ...

    def cos(self, x: Array, /) -> Array:
        """Cosine (radians)."""
        ...

    def tanh(self, x: Array, /) -> Array:
        """Hyperbolic tangent."""
        ...

    def sigmoid(self, x: Array, /) -> Array:
        """``1 / (1 + exp(-x))``, without overflow."""
        ...

    def softplus(self, x: Array, /) -> Array:
        """``log(1 + exp(x))``, without overflow and exact at both ends."""
        ...

    def erf(self, x: Array, /) -> Array:
        """Error function."""
        ...

    def relu(self, x: Array, /) -> Array:
        """``x`` where positive, else 0; its derivative at 0 is 0 (unlike ``maximum(x, 0)``, whose is 1/2)."""
        ...

    def elu(self, x: Array, /) -> Array:
        """``x`` where positive, else ``exp(x) - 1``."""
        ...

    def gelu(self, x: Array, /) -> Array:
        """``x * Phi(x)`` with the exact normal distribution function, not the tanh approximation."""
        ...

    def silu(self, x: Array, /) -> Array:
        """``x * sigmoid(x)``."""
        ...

    def leaky_relu(self, x: Array, /, negative_slope: float = 0.01) -> Array:
        """``x`` where positive, else ``negative_slope * x`` (the slope's derivative at 0)."""
        ...

    def pow(self, x: Array, y: Operand, /) -> Array:
        """``x`` to the power ``y``; either may be a Python number."""
        ...

    def maximum(self, x: Operand, y: Operand, /) -> Array:
        """Elementwise larger of two, at least one an array; at a tie each gets half of the gradient. NaN wins."""
        ...

    def minimum(self, x: Operand, y: Operand, /) -> Array:
        """Elementwise smaller of two, at least one an array; at a tie each gets half of the gradient. NaN wins."""
        ...

    def clip(self, x: Array, /, lo: Operand = None, hi: Operand = None) -> Array:
        """Clamp into ``[lo, hi]``; the derivative is 1 inside and at the bounds, 0 outside.

        Args:
            x: Any shape.
            lo: Lower bound: a number, a 0-d array, an array that broadcasts to ``x``, or ``None`` for no bound.
            hi: Upper bound, likewise.

        Returns:
            An array of ``x``'s shape and dtype.
        """
        ...

    def where(self, condition: Array, x: Operand, y: Operand, /) -> Array:
        """``x`` where ``condition`` (bool) holds, else ``y``; all three broadcast, ``x`` and ``y`` may be numbers.

        The branch not taken still takes part in the backward pass: where its derivative is not finite the result's is
        NaN. Make its input harmless by a first ``where``.
        """
        ...

    def isfinite(self, x: Array, /) -> Array:
        """Whether neither infinite nor NaN; bool. Floating dtypes only."""
        ...

    def isnan(self, x: Array, /) -> Array:
        """Whether NaN; bool. Floating dtypes only."""
        ...

    def logical_and(self, x: Array, y: Array, /) -> Array:
        """Elementwise and of two bool arrays."""
        ...

    def logical_or(self, x: Array, y: Array, /) -> Array:
        """Elementwise or of two bool arrays."""
        ...

    def logical_not(self, x: Array, /) -> Array:
        """Elementwise not of a bool array."""
        ...

    # ---- reductions -------------------------------------------------------------------------------------------------

    def sum(self, x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
        """Sum over ``axis``; integers and booleans are summed in int64."""
        ...

    def mean(self, x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
        """Mean over ``axis``. Floating dtypes only: booleans and integers go through :meth:`astype` first."""
        ...

    def max(self, x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
        """Largest over ``axis``; all that attain it share the gradient equally."""
        ...

    def min(self, x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
        """Smallest over ``axis``; all that attain it share the gradient equally."""
        ...

    def prod(self, x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
        """Product over ``axis``; integers and booleans are multiplied in int64."""
        ...

    def any(self, x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
        """Whether any of ``x`` (bool) holds."""
        ...

    def all(self, x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
        """Whether all of ``x`` (bool) hold."""
        ...

    def logsumexp(self, x: Array, /, axis: Axis = None, keepdims: builtins.bool = False) -> Array:
        """``log(sum(exp(x)))`` without overflow."""
        ...

    def argmax(self, x: Array, /, axis: builtins.int) -> Array:
        """Index of the (first) largest along ``axis``; int64."""
        ...

    def cumulative_sum(self, x: Array, /, axis: builtins.int) -> Array:
        """Running sum along ``axis``, the first element included."""
        ...

    # ---- shape ------------------------------------------------------------------------------------------------------

    def reshape(self, x: Array, shape: Shape, /) -> Array:
        """The same elements, row-major, in another shape; one length may be -1."""
        ...

    def permute_dims(self, x: Array, axes: Sequence[builtins.int], /) -> Array:
        """Reorder the axes: axis ``i`` of the result is axis ``axes[i]`` of ``x``."""
        ...

    def expand_dims(self, x: Array, /, axis: builtins.int) -> Array:
        """Insert an axis of length 1 so that it is axis ``axis`` of the result."""
        ...

    def squeeze(self, x: Array, /, axis: builtins.int | tuple[builtins.int, ...]) -> Array:
        """Remove axes of length 1; any other length is an error."""
        ...

    def concat(self, arrays: Sequence[Array], /, axis: builtins.int) -> Array:
        """Join along an axis that is there."""
        ...

    def stack(self, arrays: Sequence[Array], /, axis: builtins.int) -> Array:
        """Join along a new axis."""
        ...

    def split(self, x: Array, sizes: Sequence[builtins.int], /, axis: builtins.int) -> list[Array]:
        """Cut along ``axis`` into pieces of the given sizes, which add up to its length."""
        ...

    def broadcast_to(self, x: Array, shape: Shape, /) -> Array:
        """Repeat axes of length 1 and add leading ones; the result may share memory: do not write to it."""
        ...

    def flip(self, x: Array, /, axis: builtins.int) -> Array:
        """Reverse the order along ``axis``."""
        ...

    def take(self, x: Array, indices: Array, /, axis: builtins.int) -> Array:
        """Pick along ``axis``: its length is replaced by the shape of ``indices`` (int32 or int64, any shape)."""
        ...

    def take_along_axis(self, x: Array, indices: Array, /, axis: builtins.int) -> Array:
        """Pick along ``axis`` by row: ``out[i, j] = x[i, indices[i, j]]``.

        Args:
            x: ``[..., n]`` (for the last axis).
            indices: int32 or int64 ``[..., k]``: as many axes as ``x``, the other axes equal.
            axis: The axis that ``indices`` counts along.

        Returns:
            An array of ``indices``' shape.
        """
        ...

    # ---- linear algebra and layers ----------------------------------------------------------------------------------

    def matmul(self, x: Array, y: Array, /) -> Array:
        """Matrix product of the last two axes; both have at least two."""
        ...

    def einsum(self, equation: str, /, *operands: Array) -> Array:
        """Sum of products after Einstein, with an explicit ``->``."""
        ...

    def linear(self, x: Array, w: Array, b: Array | None = None, /) -> Array:
        """``x @ w.T + b``.

        Args:
            x: ``[..., num_inputs]``.
            w: ``[num_outputs, num_inputs]``.
            b: ``[num_outputs]`` or ``None``.

        Returns:
            ``[..., num_outputs]``.
        """
        ...

    def conv2d(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        /,
        stride: builtins.int | Sequence[builtins.int] = 1,
        padding: builtins.int | Sequence[builtins.int] = 0,
    ) -> Array:
        """Two-dimensional cross-correlation.

        Args:
            x: Floating ``[num_rows, height, width, num_inputs]`` (NHWC).
            w: ``[num_outputs, num_inputs, kernel_height, kernel_width]`` (OIHW).
            b: ``[num_outputs]`` or ``None``.
            stride: Step, or (vertical, horizontal) steps.
            padding: Zeros added on both sides, or (vertical, horizontal). There is no ``"SAME"``: frameworks differ.

        Returns:
            ``[num_rows, (height + 2 * padding - kernel_height) // stride + 1, ..., num_outputs]``.
        """
        ...

    def layer_norm(self, x: Array, w: Array | None, b: Array | None, /, eps: float = 1e-5) -> Array:
        """Normalise the last axis: ``(x - mean) / sqrt(variance + eps) * w + b``, the variance divided by n.

        Args:
            x: ``[..., num_features]``.
            w: Scale ``[num_features]``, or ``None`` for 1.
            b: Offset ``[num_features]``, or ``None`` for 0.
            eps: Added to the variance.

        Returns:
            An array of ``x``'s shape.
        """
        ...

    def embedding(self, indices: Array, w: Array, /) -> Array:
        """Rows of a table, with a dense gradient.

        Args:
            indices: int32 or int64 ``[...]``, each in ``0 .. num_embeddings - 1``.
            w: ``[num_embeddings, num_features]``.

        Returns:
            ``[..., num_features]``.
        """
        ...

    def softmax(self, x: Array, /, axis: builtins.int) -> Array:
        """``exp(x) / sum(exp(x))`` along ``axis``, without overflow."""
        ...

    def log_softmax(self, x: Array, /, axis: builtins.int) -> Array:
        """Logarithm of the softmax along ``axis``, without overflow."""
        ...

    def one_hot(self, x: Array, n: builtins.int, /, dtype: DType = ...) -> Array:
        """``[..., n]`` with a one at each index of ``x`` (integers); an index outside ``0 .. n - 1`` gives zeros."""
        ...

    def dropout(self, x: Array, rate: Operand, noise_uniform: Array, /) -> Array:
        """Zero each element with probability ``rate`` and scale the others by ``1 / (1 - rate)``.

        Args:
            x: Any shape.
            rate: A number or 0-d array in ``[0, 1)``.
            noise_uniform: Uniform on ``[0, 1)``, of ``x``'s shape and dtype: elements below ``rate`` are zeroed.

        Returns:
            An array of ``x``'s shape.
        """
        ...

    # ---- control ----------------------------------------------------------------------------------------------------

    def stop_gradient(self, x: Array, /) -> Array:
        """``x`` as a constant: no gradient flows through it."""
        ...

    def scan(
        self,
        f: Callable[[ArrayTree, ArrayTree], tuple[ArrayTree, ArrayTree]],
        init: ArrayTree,
        xs: ArrayTree,
        /,
        reverse: builtins.bool = False,
    ) -> tuple[ArrayTree, ArrayTree]:
        """Carry a value along the leading axis: ``carry, ys[t] = f(carry, xs[t])``.

        Args:
            f: Called with the carry and one slice of ``xs``; returns the next carry (same shapes and dtypes) and one
                slice of the result.
            init: The first carry: an array, or dicts, tuples and lists of arrays.
            xs: An array ``[T, ...]`` with ``T >= 1``, or dicts, tuples and lists of such.
            reverse: Go from ``T - 1`` to 0; ``ys`` still has result ``t`` at place ``t``.

        Returns:
            The last carry and ``ys``, each leaf ``[T, ...]``.
        """
        ...

    def value_and_grad(
        self, f: Callable[[dict[str, Array]], Array], /
    ) -> Callable[[Mapping[str, Array]], tuple[Array, dict[str, Array]]]:
        """Differentiate a scalar function of named arrays.

        Args:
            f: Takes a dict of floating arrays, returns a 0-d array.

        Returns:
            A function of the same dict that returns ``f``'s value and its gradients, which are zero for arrays that
            ``f`` does not use. Only what goes through ``f``'s argument counts.

        Raises:
            LearnerCoreError: The namespace does not differentiate (numpy).
        """
        ...
