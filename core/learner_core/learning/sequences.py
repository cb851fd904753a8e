"""Batches of sequences [B, T]: how long they are, and what a module sees of them.

Needs arrays with the sequence axis first and time second. A recurrent module gets sequences as they are; any other
module gets their timesteps as rows [B * T, ...] and its answers are put back in order, so that every module works in an
algorithm of sequences.

The first ``burn_in`` steps of a sequence warm a recurrent state up: they are run without gradients, the state they end
in is a constant to the rest, and they do not count in the loss. docs/decisions/recurrent-modules.md says why.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .. import spaces
from ..errors import ConfigError
from ..spaces import AnySpace
from ..xp import Array, ArrayTree, Columns, Namespace, Outputs

__all__ = ["Sequences", "folded", "leading_axes", "obs_leaf", "warmed"]


@dataclass(frozen=True)
class Sequences:
    """What is fixed about one module's sequences.

    Attributes:
        length: T, timesteps of a sequence, burn-in included.
        burn_in: first timesteps that only warm the state up; 0 for modules that are not recurrent.
        recurrent: whether the module carries a state from step to step.
        obs_path: path of one leaf of the observation.
        obs_ndim: axes of that leaf in a single observation.
    """

    length: int
    burn_in: int = 0
    recurrent: bool = False
    obs_path: tuple[str, ...] = ()
    obs_ndim: int = 0

    def rows(self, timesteps: int) -> int:
        """Sequences that so many counted timesteps fill."""
        return max(1, -(-timesteps // (self.length - self.burn_in)))


def obs_leaf(observation_space: AnySpace) -> tuple[tuple[str, ...], int]:
    """(path, number of axes) of the first leaf of an observation: what tells a sequence from a row."""
    path, (shape, _) = next(iter(spaces.leaves(observation_space).items()))
    return path, len(shape)


def leading_axes(xp: Namespace, obs: ArrayTree, path: tuple[str, ...], ndim: int) -> tuple[int, ...]:
    """The axes before those of a single observation: (B,), or (B, T)."""
    for key in path:
        obs = obs[key]
    shape = tuple(xp.shape(obs))
    return shape[: len(shape) - ndim]


def folded(
    xp: Namespace, call: Callable[..., ArrayTree], sequences: Sequences, usual: tuple[int, ...]
) -> Callable[..., ArrayTree]:
    """``call`` on rows: arguments [B, T, ...] go in as [B * T, ...], answers come out as [B, T, ...].

    A batch is told by its observations, which have one axis more in a sequence; other arguments by ``usual``, the
    minibatch's (B, T). Arguments that are no sequences pass as they are.
    """

    def answer(*args: ArrayTree, **kwargs: ArrayTree) -> ArrayTree:
        lead = _lead(xp, [*args, *kwargs.values()], sequences, usual)
        if lead is None:
            return call(*args, **kwargs)

        def fold(leaf: Array) -> Array:
            shape = tuple(xp.shape(leaf))
            return xp.reshape(leaf, (lead[0] * lead[1], *shape[2:])) if shape[:2] == lead else leaf

        def unfold(leaf: Array) -> Array:
            shape = tuple(xp.shape(leaf))
            return xp.reshape(leaf, (*lead, *shape[1:])) if shape[:1] == (lead[0] * lead[1],) else leaf

        out = call(*[_map(fold, arg) for arg in args], **{key: _map(fold, arg) for key, arg in kwargs.items()})
        if not isinstance(out, dict):
            return _map(unfold, out)
        out = copy.copy(out)  # of the module's own type: some explain what is missing
        for key, value in out.items():
            if key != "buffers":
                out[key] = _map(unfold, value)
        return out

    return answer


def warmed(
    xp: Namespace, call: Callable[..., ArrayTree], frozen: Callable[..., ArrayTree], sequences: Sequences
) -> Callable[..., ArrayTree]:
    """``call(batch)`` of a recurrent module whose state is warmed up by the first ``burn_in`` steps without gradients.

    Args:
        xp: the namespace.
        call: the module's ``forward_train``, bound to parameters.
        frozen: the same, bound to parameters with gradients stopped.
        sequences: the module's.

    Raises:
        ConfigError: the module does not return ``state_out``.
    """

    def answer(batch: Columns) -> Outputs:
        lead = tuple(leading_axes(xp, batch["obs"], sequences.obs_path, sequences.obs_ndim))

        def part(take: slice) -> ArrayTree:
            return _map(lambda leaf: leaf[:, take] if tuple(xp.shape(leaf))[:2] == lead else leaf, batch)

        before = frozen(part(slice(None, sequences.burn_in)))
        if "state_out" not in before:
            raise ConfigError(f"burn_in={sequences.burn_in}: the module's forward_train must return 'state_out'")
        rest = part(slice(sequences.burn_in, None))
        rest["state_in"] = _map(xp.stop_gradient, before["state_out"])
        out = dict(call(rest))
        for key, value in out.items():
            if key not in ("buffers", "state_out"):
                out[key] = _joined(xp, before[key], value)
        return out

    return answer


def _joined(xp: Namespace, before: ArrayTree, after: ArrayTree) -> ArrayTree:
    if isinstance(after, Mapping):
        return {key: _joined(xp, before[key], value) for key, value in after.items()}
    return xp.concat([xp.stop_gradient(before), after], 1)


def _lead(xp: Namespace, args: list[ArrayTree], sequences: Sequences, usual: tuple[int, ...]) -> tuple[int, int] | None:
    """(B, T) of a call's arguments, or None if they are rows."""
    for arg in args:
        if isinstance(arg, Mapping) and "obs" in arg:
            lead = tuple(leading_axes(xp, arg["obs"], sequences.obs_path, sequences.obs_ndim))
            return (lead[0], lead[1]) if len(lead) == 2 else None
    found: list[tuple[int, ...]] = []
    for arg in args:
        _map(lambda leaf: found.append(tuple(xp.shape(leaf))), arg)
    return (usual[0], usual[1]) if len(usual) == 2 and found and found[0][:2] == usual else None


def _map(function: Callable[[Array], Array], tree: ArrayTree) -> ArrayTree:
    """Apply to every array; a batch that notes what is read goes on noting."""
    mapped = getattr(tree, "mapped", None)
    if mapped is not None:
        return mapped(lambda value: _map(function, value))
    if isinstance(tree, Mapping):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map(function, value) for value in tree)
    return function(tree) if hasattr(tree, "shape") else tree
