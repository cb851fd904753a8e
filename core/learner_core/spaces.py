"""Gymnasium spaces as arrays: flattening for networks, columns for batches, checks of actions, plain data for files.

Needs Gymnasium only once a space is at hand. Supports Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of
them, nested at will; a Tuple is treated as a Dict with the keys "0", "1", ... Refuses all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .action_parts import action_parts, has_parts
from .errors import BatchError, SpaceError, StateError
from .xp import Array, ArrayTree, DType, Namespace

if TYPE_CHECKING:
    from gymnasium import Space

__all__ = [
    "AnySpace",
    "ResetResult",
    "SpaceEncoder",
    "SpaceValue",
    "StepResult",
    "action_spec",
    "alike",
    "blank",
    "check_actions",
    "encode",
    "encoded_size",
    "from_plain",
    "leaves",
    "parts",
    "to_columns",
    "to_plain",
]

Path = tuple[str, ...]
#: A gymnasium space of whatever values.
AnySpace: TypeAlias = "Space[Any]"
#: What a space holds: an observation, an action.
SpaceValue: TypeAlias = Any
#: What ``reset`` of an environment answers: observation and infos, of one agent or by agent.
ResetResult: TypeAlias = tuple[Any, Any]
#: What ``step`` answers: observation, reward, terminated, truncated and infos, of one agent or by agent.
StepResult: TypeAlias = tuple[Any, Any, Any, Any, Any]

#: Elements of a space in a file: more than any observation has, and less than fills a machine.
_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class _Leaf:
    """One leaf of a space in plain Python: a compiled step must not meet gymnasium's objects or numpy's arrays."""

    path: Path
    kind: str  # box, discrete, multi_discrete, multi_binary
    shape: tuple[int, ...]
    dtype: str
    sizes: tuple[int, ...] = ()  # number of values of each element; discrete kinds only
    starts: tuple[int, ...] = ()

    @property
    def encoded_size(self) -> int:
        return sum(self.sizes) if self.sizes else math.prod(self.shape)

    def encode(self, xp: Namespace, values: Array, dtype: DType) -> Array:
        shape = xp.shape(values)
        lead = shape[: len(shape) - len(self.shape)]
        if shape[len(lead) :] != self.shape:
            raise SpaceError(f"observation {_text(self.path)}: expected [..., {self.shape}], got shape {list(shape)}")
        if self.kind == "discrete":
            return xp.one_hot(values - self.starts[0], self.sizes[0], dtype)
        flat = xp.reshape(values, (*lead, math.prod(self.shape)))
        if self.kind == "multi_discrete":
            parts = [
                xp.one_hot(flat[..., index] - start, size, dtype)
                for index, (size, start) in enumerate(zip(self.sizes, self.starts, strict=True))
            ]
            return xp.concat(parts, -1)
        return flat if flat.dtype == dtype else xp.astype(flat, dtype)


class SpaceEncoder:
    """Flattens observations of a space into one float vector each.

    Box and MultiBinary are reshaped, Discrete and MultiDiscrete become one-hots, Dict and Tuple are concatenated in the
    space's order. It holds plain Python only, so a network keeps one and calls it inside a compiled step.

    Args:
        space: The observation space.

    Attributes:
        size: Length F of the vector.

    Raises:
        SpaceError: A space that is not supported, or one without elements.
    """

    def __init__(self, space: AnySpace) -> None:
        self._leaves = _leaves(space)
        self.size: int = sum(leaf.encoded_size for leaf in self._leaves)
        if not self.size:
            raise SpaceError(f"observation space {space}: it has no elements")

    def __call__(self, xp: Namespace, obs: ArrayTree, dtype: DType = None) -> Array:
        """Flatten a batch of observations.

        Args:
            xp: The namespace of the arrays.
            obs: An array [..., *shape], or for Dict and Tuple spaces a nested dict of them with equal leading axes.
            dtype: The result's dtype; None: that of the first leaf that is floating-point, else float32.

        Returns:
            dtype[..., F].

        Raises:
            SpaceError: A key is missing or a shape does not fit.
        """
        arrays = [_get(obs, leaf.path) for leaf in self._leaves]
        if dtype is None:
            floating = (xp.float32, xp.float64, getattr(xp, "bfloat16", xp.float32))
            dtype = next((array.dtype for array in arrays if array.dtype in floating), xp.float32)
        parts = [leaf.encode(xp, array, dtype) for leaf, array in zip(self._leaves, arrays, strict=True)]
        return parts[0] if len(parts) == 1 else xp.concat(parts, -1)


def encode(xp: Namespace, space: AnySpace, obs: ArrayTree, dtype: DType = None) -> Array:
    """Flatten observations once; inside a compiled step keep a :class:`SpaceEncoder` and call that. Same arguments."""
    encoded: Array = SpaceEncoder(space)(xp, obs, dtype)
    return encoded


def encoded_size(space: AnySpace) -> int:
    """Length of the vector that :func:`encode` makes of one observation.

    Raises:
        SpaceError: As :class:`SpaceEncoder`.
    """
    return SpaceEncoder(space).size


def leaves(space: AnySpace) -> dict[Path, tuple[tuple[int, ...], np.dtype]]:
    """The arrays that one observation consists of.

    Args:
        space: The observation space.

    Returns:
        {path: (shape, dtype)} in the space's order; the path of a space without keys is ``()``.

    Raises:
        SpaceError: A space that is not supported.
    """
    return {leaf.path: (leaf.shape, np.dtype(leaf.dtype)) for leaf in _leaves(space)}


def alike(first: AnySpace, second: AnySpace) -> bool:
    """Whether one network fits both spaces: the same parts, Boxes of the same shapes whatever their bounds and dtype.

    Args:
        first: A space.
        second: Another one.
    """
    ours, theirs = parts(first), parts(second)
    if list(ours) != list(theirs):
        return False
    pairs = [(space, theirs[path]) for path, space in ours.items()]
    return all(
        one.shape == other.shape if type(one).__name__ == type(other).__name__ == "Box" else one == other
        for one, other in pairs
    )


def parts(space: AnySpace) -> dict[Path, AnySpace]:
    """The spaces without keys that a space consists of.

    Args:
        space: Any space.

    Returns:
        {path: space} in the space's order; a space that is neither Dict nor Tuple is its only part, with path ``()``.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        inside = [(str(key), inner) for key, inner in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        inside = [(str(i), inner) for i, inner in enumerate(space.spaces)]
    else:
        return {(): space}
    return {(key, *path): part for key, inner in inside for path, part in parts(inner).items()}


def to_columns(space: AnySpace, obs: object) -> ArrayTree:
    """Bring observations as gymnasium gives them, batched or single, into the form of a batch.

    Args:
        space: The space of one observation.
        obs: What ``reset`` or ``step`` returned: an array, or dicts and tuples of arrays.

    Returns:
        An array, or for Dict and Tuple spaces a nested dict of arrays, of the space's dtypes. Arrays that have the
        dtype already are not copied: copy the result of a vector environment that reuses its buffers.

    Raises:
        SpaceError: The observation does not have the space's structure.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
            came = sorted(map(str, obs)) if isinstance(obs, Mapping) else type(obs).__name__
            raise SpaceError(f"observation: expected a dict with the keys {sorted(map(str, space.spaces))}, got {came}")
        return {str(key): to_columns(inner, obs[key]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, (tuple, list)) or len(obs) != len(space.spaces):
            raise SpaceError(f"observation: expected a tuple of {len(space.spaces)}, got {type(obs).__name__}")
        return {str(i): to_columns(inner, item) for i, (inner, item) in enumerate(zip(space.spaces, obs, strict=True))}
    (leaf,) = _leaves(space)
    return np.asarray(obs, dtype=leaf.dtype)


def blank(space: AnySpace) -> ArrayTree:
    """One observation in the form of ``to_columns`` with nothing but zeros: for its structure, shapes and dtypes.

    Args:
        space: The space; it is not sampled from, which would draw from a generator of the environment's.

    Returns:
        An array, or for Dict and Tuple spaces a nested dict of arrays.

    Raises:
        SpaceError: A space that is not supported.
    """
    tree: dict[str, Any] = {}
    for path, (shape, dtype) in leaves(space).items():
        if not path:
            return np.zeros(shape, dtype)
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = np.zeros(shape, dtype)
    return tree


def action_spec(space: AnySpace) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one action in a batch.

    Args:
        space: The action space: Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple of these.

    Returns:
        (shape, dtype): a Box's own dtype, int64 for the others; of a Dict or Tuple one row of float32 numbers.

    Raises:
        SpaceError: Any other space.
    """
    if has_parts(space):
        return (sum(part.size for part in action_parts(space)),), np.dtype(np.float32)
    leaf = _action_leaf(space)
    return leaf.shape, np.dtype(leaf.dtype if leaf.kind == "box" else np.int64)


def check_actions(space: AnySpace, actions: np.ndarray, *, bounds: bool = False) -> None:
    """Refuse actions that are not in their space.

    Args:
        space: The action space.
        actions: [B, *shape].
        bounds: Also hold a Box's bounds, up to rounding. A Gaussian policy samples outside of them and its batches must
            say what it sampled; a squashed one never does.

    Raises:
        BatchError: The text names the first bad row, its value and how many there are.
        SpaceError: A space that has no actions of this kind.
    """
    actions = np.asarray(actions)
    if has_parts(space):
        _check_parts(space, actions, bounds=bounds)
        return
    leaf = _action_leaf(space)
    if actions.shape[1:] != leaf.shape:
        raise BatchError(f"expected actions of shape {['B', *leaf.shape]}, got {list(actions.shape)}")
    flat = actions.reshape(len(actions), math.prod(leaf.shape))
    if leaf.kind == "box":
        good = np.isfinite(flat)
        if bounds:
            low, high = (np.asarray(bound, np.float64).reshape(1, -1) for bound in (space.low, space.high))
            # In proportion to the bounds: an absolute slack would mean more in one unit of the actions than in another.
            scale = np.maximum(np.abs(low), np.abs(high))
            slack = 1e-6 * np.where(np.isfinite(scale), scale, 1.0)
            good &= (flat >= low - slack) & (flat <= high + slack)
        where = "finite" if not bounds else f"in {space}"
    else:
        starts = np.array(leaf.starts or (0,) * flat.shape[1])
        sizes = np.array(leaf.sizes or (2,) * flat.shape[1])
        good = (flat >= starts) & (flat < starts + sizes) & (flat == np.floor(flat))
        where = f"in {space}"
    bad = np.flatnonzero(~good.all(axis=1))
    if len(bad):
        first = actions[bad[0]].tolist()
        raise BatchError(f"actions must be {where}; row {bad[0]} is {first} ({len(bad)} of {len(actions)} rows)")


def to_plain(space: AnySpace) -> dict[str, object]:
    """A space as plain data for a file: None, bool, int, float, str, list, dict.

    Args:
        space: A supported space.

    Returns:
        Data that :func:`from_plain` turns back into an equal space.

    Raises:
        SpaceError: A space that is not supported.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": [[_plain_key(key), to_plain(inner)] for key, inner in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "spaces": [to_plain(inner) for inner in space.spaces]}
    (leaf,) = _leaves(space)
    plain: dict[str, Any] = {"kind": type(space).__name__, "shape": list(leaf.shape), "dtype": leaf.dtype}
    if leaf.kind == "box":
        plain.update(kind="Box", low=_bound(space.low), high=_bound(space.high))
    elif leaf.kind != "multi_binary":
        plain.update(sizes=list(leaf.sizes), starts=list(leaf.starts))
    return plain


def from_plain(plain: Mapping[str, Any]) -> AnySpace:
    """The inverse of :func:`to_plain`.

    Args:
        plain: Its result.

    Returns:
        A gymnasium space.

    Raises:
        StateError: Not such data.
    """
    from gymnasium import spaces

    try:
        kind = plain["kind"]
        if kind == "Dict":
            return spaces.Dict([(key, from_plain(inner)) for key, inner in plain["spaces"]])
        if kind == "Tuple":
            return spaces.Tuple([from_plain(inner) for inner in plain["spaces"]])
        shape, dtype = tuple(int(size) for size in plain["shape"]), np.dtype(plain["dtype"])
        if min(shape, default=0) < 0 or math.prod(shape) > _MAX_ELEMENTS:
            raise StateError(f"this does not describe a space: shape={shape}, of {_MAX_ELEMENTS} elements at most")
        if kind == "Box":
            low, high = (np.broadcast_to(np.asarray(plain[name], dtype), shape) for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        if kind == "MultiBinary":
            return spaces.MultiBinary(shape if len(shape) > 1 else shape[0])
        if kind == "Discrete":
            return spaces.Discrete(plain["sizes"][0], start=plain["starts"][0])
        if kind == "MultiDiscrete":
            sizes, starts = (np.asarray(plain[name], dtype).reshape(shape) for name in ("sizes", "starts"))
            return spaces.MultiDiscrete(sizes, dtype=dtype.type, start=starts)
    except (KeyError, TypeError, ValueError, IndexError, AssertionError, OverflowError) as error:
        raise StateError(f"this does not describe a space ({error!r}): {plain!r:.200}") from error
    raise StateError(f"this does not describe a space: kind={kind!r}")


def _leaves(space: AnySpace, path: Path = ()) -> list[_Leaf]:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return [leaf for key, inner in space.spaces.items() for leaf in _leaves(inner, (*path, str(key)))]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, inner in enumerate(space.spaces) for leaf in _leaves(inner, (*path, str(i)))]
    if isinstance(space, spaces.Box):
        return [_Leaf(path, "box", tuple(space.shape), np.dtype(space.dtype).name)]
    if isinstance(space, spaces.Discrete):
        return [_Leaf(path, "discrete", (), np.dtype(space.dtype).name, (int(space.n),), (int(space.start),))]
    if isinstance(space, spaces.MultiDiscrete):
        starts = np.asarray(getattr(space, "start", np.zeros_like(space.nvec)))
        sizes = tuple(int(size) for size in space.nvec.ravel())
        return [
            _Leaf(
                path,
                "multi_discrete",
                tuple(space.nvec.shape),
                np.dtype(space.dtype).name,
                sizes,
                tuple(int(start) for start in starts.ravel()),
            )
        ]
    if isinstance(space, spaces.MultiBinary):
        return [_Leaf(path, "multi_binary", tuple(space.shape), np.dtype(space.dtype).name)]
    raise SpaceError(
        f"space {_text(path)}: expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple, got {space!r}"
    )


def _check_parts(space: AnySpace, rows: np.ndarray, *, bounds: bool) -> None:
    """Refuse rows of numbers of which a part is not in its space."""
    parts = action_parts(space)
    width = sum(part.size for part in parts)
    if rows.shape[1:] != (width,):
        raise BatchError(f"expected actions of shape {['B', width]}, one row of numbers each, got {list(rows.shape)}")
    for part in parts:
        piece = rows[:, part.start : part.start + part.size].reshape((len(rows), *part.shape))
        try:
            check_actions(part.space, piece, bounds=bounds)
        except BatchError as error:
            raise BatchError(f"{'/'.join(map(str, part.path))} of the {error.args[0]}") from None


def _action_leaf(space: AnySpace) -> _Leaf:
    found = _leaves(space)
    if len(found) != 1 or found[0].path:
        raise SpaceError(f"action space {space}: expected Box, Discrete, MultiDiscrete or MultiBinary")
    return found[0]


def _get(obs: ArrayTree, path: Path) -> Array:
    for depth, key in enumerate(path):
        if not isinstance(obs, Mapping) or key not in obs:
            raise SpaceError(f"observation: {_text(path[: depth + 1])} is missing")
        obs = obs[key]
    return obs


def _text(path: Path) -> str:
    return repr("/".join(path)) if path else "(the whole)"


def _plain_key(key: object) -> str | int:
    """A key as a file has it; those that are neither text nor int are text in batches, too."""
    return key if isinstance(key, str | int) else str(key)


def _bound(values: np.ndarray) -> object:
    """One number where all are equal, as for images, else nested lists."""
    same = values.size > 0 and bool((values == values.flat[0]).all())
    return values.flat[0].item() if same else values.tolist()
