"""Single layers over ``xp``: layer normalisation, embeddings, multi-head attention.

Needs parameters in Torch's form and under Torch's names, so that a ``state_dict`` fits. Objects hold structure only.

References:
    Ba et al., Layer normalization, https://arxiv.org/abs/1607.06450
    Vaswani et al., Attention is all you need, https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..errors import ConfigError
from ..xp import Array, Namespace
from .initialisers import Parameters

__all__ = ["Embedding", "LayerNorm", "MultiHeadAttention"]


class LayerNorm:
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it.

    Parameters are ``{name}.weight`` and ``{name}.bias``, both ``[size]``, and start at 1 and 0.

    Args:
        name: Prefix of the parameter names.
        size: Length of the last axis.
        eps: Added to the variance. Torch's default; Keras has 1e-3.

    Raises:
        ConfigError: For a size that is not a positive integer.
    """

    def __init__(self, name: str, size: int, *, eps: float = 1e-5) -> None:
        self.name = name
        self.size: int = _positive(name, "size", size)
        self.eps = eps

    @property
    def output_size(self) -> int:
        """Length of the last axis: the input's."""
        return self.size

    def init(self, rng: np.random.Generator) -> Parameters:
        """Ones and zeros, float32; nothing is drawn."""
        ones = np.ones(self.size, np.float32)
        return {f"{self.name}.weight": ones, f"{self.name}.bias": np.zeros(self.size, np.float32)}

    def apply(self, xp: Namespace, params: Mapping[str, Array], x: Array) -> Array:
        """Normalise.

        Args:
            xp: The array namespace.
            params: Arrays by parameter name; others are ignored.
            x: Floating ``[..., size]``.

        Returns:
            An array of ``x``'s shape.
        """
        weight = params[f"{self.name}.weight"]
        return xp.layer_norm(xp.astype(x, weight.dtype), weight, params[f"{self.name}.bias"], eps=self.eps)

    def __repr__(self) -> str:
        return f"LayerNorm({self.name!r}, {self.size})"


class Embedding:
    """A learned vector for each of ``num_embeddings`` indices.

    The parameter ``{name}.weight`` ``[num_embeddings, size]`` starts standard normal.

    Args:
        name: Prefix of the parameter name.
        num_embeddings: How many indices there are.
        size: Length of a vector.

    Raises:
        ConfigError: For a count or size that is not a positive integer.
    """

    def __init__(self, name: str, num_embeddings: int, size: int) -> None:
        self.name = name
        self.num_embeddings: int = _positive(name, "num_embeddings", num_embeddings)
        self.size: int = _positive(name, "size", size)

    @property
    def output_size(self) -> int:
        """Length of a vector."""
        return self.size

    def init(self, rng: np.random.Generator) -> Parameters:
        """Sample the table, float32."""
        return {f"{self.name}.weight": rng.standard_normal((self.num_embeddings, self.size), np.float32)}

    def apply(self, xp: Namespace, params: Mapping[str, Array], indices: Array) -> Array:
        """Look up.

        Args:
            xp: The array namespace.
            params: Arrays by parameter name; others are ignored.
            indices: int32 or int64 ``[...]``, each in ``0 .. num_embeddings - 1``.

        Returns:
            ``[..., size]``.
        """
        return xp.embedding(indices, params[f"{self.name}.weight"])

    def __repr__(self) -> str:
        return f"Embedding({self.name!r}, {self.num_embeddings} x {self.size})"


class MultiHeadAttention:
    """Scaled dot-product attention in several subspaces, as ``torch.nn.MultiheadAttention`` computes it::

        softmax(q k' / sqrt(size / num_heads)) v   for each head, then one linear layer

    Parameters are ``{name}.in_proj_weight`` ``[3 size, size]`` (queries, keys and values, packed in this order),
    ``{name}.in_proj_bias`` ``[3 size]``, ``{name}.out_proj.weight`` ``[size, size]`` and ``{name}.out_proj.bias``.

    Args:
        name: Prefix of the parameter names.
        size: Length of the last axis of inputs and outputs.
        num_heads: How many heads share it.

    Raises:
        ConfigError: ``size`` is not a multiple of ``num_heads``, or either is not a positive integer.
    """

    def __init__(self, name: str, size: int, num_heads: int) -> None:
        self.name = name
        self.size: int = _positive(name, "size", size)
        self.num_heads: int = _positive(name, "num_heads", num_heads)
        if size % num_heads:
            raise ConfigError(f"{name}: size={size} must be a multiple of num_heads={num_heads}")
        self._packed = (f"{name}.in_proj_weight", f"{name}.in_proj_bias")
        self._out = (f"{name}.out_proj.weight", f"{name}.out_proj.bias")

    @property
    def output_size(self) -> int:
        """Length of the last axis of the output."""
        return self.size

    def init(self, rng: np.random.Generator) -> Parameters:
        """Sample the parameters as Torch does: Glorot-uniform packed weight, fan-in output weight, zero biases."""
        size = self.size
        bound = math.sqrt(6.0 / (4 * size))
        return {
            self._packed[0]: rng.uniform(-bound, bound, (3 * size, size)).astype(np.float32),
            self._packed[1]: np.zeros(3 * size, np.float32),
            self._out[0]: rng.uniform(-1, 1, (size, size)).astype(np.float32) / np.float32(math.sqrt(size)),
            self._out[1]: np.zeros(size, np.float32),
        }

    def apply(
        self,
        xp: Namespace,
        params: Mapping[str, Array],
        query: Array,
        memory: Array | None = None,
        *,
        mask: Array | None = None,
    ) -> Array:
        """Attend.

        Args:
            xp: The array namespace.
            params: Arrays by parameter name; others are ignored.
            query: Floating ``[B, Q, size]``.
            memory: What keys and values are made of, ``[B, K, size]``; ``None``: the queries (self-attention).
            mask: bool ``[Q, K]`` or ``[B, Q, K]``, True where a query may look (Torch's ``attn_mask`` is the
                opposite). A query that may look nowhere gets the output layer's bias.

        Returns:
            ``[B, Q, size]``.
        """
        weight, bias = (params[name] for name in self._packed)
        sizes, dtype = [self.size] * 3, weight.dtype
        query = xp.astype(query, dtype)
        if memory is None:
            q, k, v = xp.split(xp.linear(query, weight, bias), sizes, -1)
        else:
            memory = xp.astype(memory, dtype)
            of_query, of_memory = xp.split(weight, [self.size, 2 * self.size], 0)
            query_bias, memory_bias = xp.split(bias, [self.size, 2 * self.size], 0)
            q = xp.linear(query, of_query, query_bias)
            k, v = xp.split(xp.linear(memory, of_memory, memory_bias), sizes[1:], -1)
        per_head = self.size // self.num_heads
        q, k, v = (self._heads(xp, part) for part in (q, k, v))
        scores = xp.matmul(q * (1.0 / math.sqrt(per_head)), xp.permute_dims(k, (0, 1, 3, 2)))  # [B, heads, Q, K]
        if mask is not None:
            mask = xp.expand_dims(mask, -3)  # of every head; [Q, K] broadcasts over B too
            scores = xp.where(mask, scores, -1e30)
        attention = xp.softmax(scores, -1)
        if mask is not None:
            attention = xp.where(mask, attention, 0.0)
        mixed = xp.permute_dims(xp.matmul(attention, v), (0, 2, 1, 3))
        mixed = xp.reshape(mixed, (*xp.shape(mixed)[:2], self.size))
        return xp.linear(mixed, *(params[name] for name in self._out))

    def _heads(self, xp: Namespace, x: Array) -> Array:
        """``[B, T, size]`` as ``[B, heads, T, size / heads]``."""
        rows, steps = xp.shape(x)[:2]
        split = xp.reshape(x, (rows, steps, self.num_heads, self.size // self.num_heads))
        return xp.permute_dims(split, (0, 2, 1, 3))

    def __repr__(self) -> str:
        return f"MultiHeadAttention({self.name!r}, {self.size}, {self.num_heads} heads)"


def _positive(name: str, what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigError(f"{name}: {what}={value!r}: expected an int of at least 1")
    return int(value)
