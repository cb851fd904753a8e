"""Training batches: which columns there are, and the checks that stand before any change.

A batch is a dict of numpy arrays with the sample axis first. Everything a Learner cannot train on is refused here, by
module and column; what differs only in representation (float64, Fortran order, big-endian, read-only) is converted.

Types, shapes, numbers of rows and the memory that a batch would take come first, for all columns; only then are values
looked at, so that an array which says it is huge is refused untouched. Taken are numpy arrays, memory maps and other
subclasses (their memory as it lies; nothing of the subclass is called), and lists of numbers or arrays. Refused by name
are masked arrays, which mean more than their memory says, and whatever merely can become an array: its ``__array__`` is
never called.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import spaces
from ..errors import BatchError, did_you_mean
from ..maths.action_masks import ActionMask
from ..spaces import AnySpace
from ..xp import Array, Arrays, ArrayTree, Columns
from .plain_arrays import as_plain, check_memory
from .rl_module import RLModuleSpec

__all__ = [
    "ColumnSpec",
    "check_batch",
    "column_name",
    "column_of",
    "flatten_columns",
    "nested_columns",
    "split_modules",
    "standard_columns",
]

_MAX_DEPTH = 32


@dataclass(frozen=True)
class ColumnSpec:
    """One column of a batch.

    Attributes:
        shape: shape of one row, the sample axis left out.
        dtype: numpy dtype name that the column is converted to; ``"float"`` follows the learner's precision.
        required: the update reads it.
        check: ``"actions"`` when values must lie in the action space, else ``""``.
        sequence: a row is a sequence: the first axis of ``shape`` is time.
    """

    shape: tuple[int, ...]
    dtype: str
    required: bool = True
    check: str = ""
    sequence: bool = False


def standard_columns(
    observation_space: AnySpace,
    action_space: AnySpace,
    dist_input_size: int | None,
    *,
    length: int | None = None,
    state: Mapping[str, np.ndarray] | None = None,
) -> dict[str, ColumnSpec]:
    """Column path -> specification of every standard column, for one module's spaces.

    Observation leaves keep their integer and uint8 dtypes; floats follow the precision.

    Args:
        observation_space: of the module.
        action_space: of the module.
        dist_input_size: numbers that describe an action distribution; ``None``: unknown.
        length: T where a row is a sequence: all columns are [B, T, ...] then, but for ``state_in``.
        state: recurrent state of one sequence by leaf.
    """
    columns: dict[str, ColumnSpec] = {}
    for column in ("obs", "next_obs"):
        for path, (shape, dtype) in spaces.leaves(observation_space).items():
            name = np.dtype(dtype).name
            kind = np.dtype(dtype).kind
            columns["/".join((column, *path))] = ColumnSpec(tuple(shape), "float" if kind == "f" else name)
    shape, dtype = spaces.action_spec(action_space)
    columns["actions"] = ColumnSpec(tuple(shape), "float" if np.dtype(dtype).kind == "f" else "int64", check="actions")
    for name in ("rewards", "action_logp", "vf_preds", "advantages", "value_targets", "loss_mask"):
        columns[name] = ColumnSpec((), "float")
    for name in ("terminateds", "truncateds", "resets"):
        columns[name] = ColumnSpec((), "bool")
    if dist_input_size is not None:
        columns["action_dist_inputs"] = ColumnSpec((dist_input_size,), "float")
        columns["action_mask"] = ColumnSpec((dist_input_size,), "bool")
    if length is not None:
        columns = {
            name: dataclasses.replace(spec, shape=(length, *spec.shape), sequence=True)
            for name, spec in columns.items()
        }
    for leaf, value in (state or {}).items():
        columns[f"state_in/{leaf}"] = ColumnSpec(tuple(value.shape), "float")
    return columns


def flatten_columns(batch: Mapping[object, object], prefix: str = "") -> dict[str, object]:
    """Nested dict observations as ``"obs/position"`` paths.

    Raises:
        BatchError: a name is no string, two columns have one path, or dicts are nested more than 32 deep.
    """
    if prefix.count("/") > _MAX_DEPTH:
        raise BatchError(f"dicts are nested more than {_MAX_DEPTH} deep", column=prefix[:100])
    out: dict[str, Any] = {}
    for key, value in batch.items():
        if not isinstance(key, str):
            raise BatchError(f"column names are strings, got {key!r} ({type(key).__name__})")
        inside = flatten_columns(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value}
        twice = sorted(out.keys() & inside.keys())
        if twice:
            raise BatchError("is there twice, by its path and as a dict", column=twice[0])
        out.update(inside)
    return out


def nested_columns(columns: Arrays) -> dict[str, ArrayTree]:
    """``{"obs/x": a}`` as ``{"obs": {"x": a}}``."""
    out: dict[str, Any] = {}
    for path, value in columns.items():
        *parents, leaf = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return out


def column_of(batch: Columns, path: str) -> Array:
    """The column of nested columns that stands at that path."""
    found: Any = batch
    for key in path.split("/"):
        found = found[key]
    return found


def column_name(path: str) -> str:
    """The column that a path is in: ``"obs"`` for ``"obs/x"``."""
    return path.split("/", 1)[0]


def split_modules(batch: object, specs: Mapping[str, RLModuleSpec]) -> dict[str, dict[str, object]]:
    """module id -> flat columns.

    A batch is multi-module when every key is a known module id; a plain batch belongs to the only module that has rows
    of its own.

    Args:
        batch: what came.
        specs: module id -> RLModuleSpec.

    Raises:
        BatchError: no dict, an empty one, a plain batch where there are several modules, or rows of a module that
            learns from those of another.
    """
    if not isinstance(batch, Mapping):
        raise BatchError(f"a batch is a dict of numpy arrays, got {type(batch).__name__}")
    if not batch:
        raise BatchError("the batch is empty: it has no column")
    module_ids = [mid for mid, spec in specs.items() if spec.acts]
    if all(key in specs for key in batch):
        for mid, columns in batch.items():
            if mid not in module_ids:
                whose = specs[mid].rows_of or " and ".join(specs[mid].shared_by)
                raise BatchError(
                    f"it has no rows of its own, and learns from those of {whose}: leave it out of the batch",
                    module_id=mid,
                )
            if not isinstance(columns, Mapping):
                raise BatchError(f"expected a dict of columns, got {type(columns).__name__}", module_id=mid)
        return {mid: flatten_columns(columns) for mid, columns in batch.items()}
    if len(module_ids) == 1:
        return {module_ids[0]: flatten_columns(batch)}
    unknown = sorted(str(key) for key in batch if key not in module_ids)
    raise BatchError(
        f"there are {len(module_ids)} modules, so the batch must be {{module_id: columns}}; "
        f"not module ids: {', '.join(unknown)}.{did_you_mean(unknown[0], module_ids)}"
    )


def check_batch(
    columns: Mapping[str, object],
    specs: Mapping[str, ColumnSpec],
    *,
    module_id: str,
    action_space: AnySpace,
    float_dtype: npt.DTypeLike,
) -> dict[str, np.ndarray]:
    """The columns an update reads, as C-contiguous native arrays of the dtypes it expects.

    Args:
        columns: flat columns as they came.
        specs: column -> what is expected.
        module_id: for messages.
        action_space: that ``actions`` must lie in; ``None``: any value.
        float_dtype: numpy dtype for ``"float"`` columns.

    Raises:
        BatchError: a column is missing, has the wrong shape, number of rows or dtype, holds NaN or an infinity, or
            actions lie outside their space. Nothing has changed by then.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, spec in specs.items():
        if name in columns:
            arrays[name] = _shaped(columns[name], spec, module_id, name)
        elif spec.required:
            meant = did_you_mean(name, set(columns) - set(specs), nearest_only=True)
            raise BatchError(
                f"missing; expected {_shape(spec)} {spec.dtype}.{meant}",
                module_id=module_id,
                column=name,
            )
    _check_rows({name: len(array) for name, array in arrays.items()}, module_id)
    sizes = {name: array.size * _target(specs[name], float_dtype).itemsize for name, array in arrays.items()}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        try:
            check_memory(arrays[name], sizes[name], sum(sizes.values()))
        except BatchError as error:
            raise BatchError(str(error), module_id=module_id, column=name) from None
    out = {name: _convert(array, specs[name], float_dtype, module_id, name) for name, array in arrays.items()}
    if "loss_mask" in out and not bool(np.all((out["loss_mask"] == 0) | (out["loss_mask"] == 1))):
        raise BatchError("expected 0 and 1: a row counts or it does not", module_id=module_id, column="loss_mask")
    for name, spec in specs.items():
        if spec.check == "actions" and name in out and action_space is not None:
            actions = out[name].reshape(-1, *spec.shape[1:]) if spec.sequence else out[name]
            try:
                spaces.check_actions(action_space, actions, bounds=True)
            except BatchError as error:
                raise BatchError(str(error.args[0]), module_id=module_id, column=name) from None
    if "action_mask" in out and action_space is not None:
        _check_masks(out, specs, action_space, module_id)
    return out


def _check_masks(
    columns: Mapping[str, np.ndarray], specs: Mapping[str, ColumnSpec], action_space: AnySpace, module_id: str
) -> None:
    """Refuse rows that count in which no action is allowed, or in which a forbidden one was taken."""
    mask = ActionMask(action_space)
    allowed = columns["action_mask"].reshape(-1, mask.size)
    counted = np.ones(len(allowed), np.bool_)
    if "loss_mask" in columns:
        counted = columns["loss_mask"].reshape(-1) > 0
    length = specs["action_mask"].shape[0] if specs["action_mask"].sequence else 0

    def refuse(bad: np.ndarray, column: str, text: str) -> None:
        rows = np.flatnonzero(bad & counted)
        if rows.size:
            first = int(rows[0])
            where = f"sequence {first // length}, step {first % length}" if length else f"row {first}"
            raise BatchError(
                f"{text} in {rows.size} row(s), the first is {where}; set loss_mask 0 where a row is no experience",
                module_id=module_id,
                column=column,
            )

    refuse(mask.forbidden(allowed), "action_mask", "allows no action")
    if "actions" in columns:
        actions = columns["actions"].reshape(len(allowed), -1)
        refuse(~mask.allows(allowed, actions), "actions", "holds an action that action_mask forbids")


def _shape(spec: ColumnSpec) -> str:
    sizes = [str(size) for size in spec.shape]
    if spec.sequence:
        sizes[0] = f"T={sizes[0]}"
    return f"[{', '.join(['B', *sizes])}]"


def _shaped(value: object, spec: ColumnSpec, module_id: str, name: str) -> np.ndarray:
    """A column as an array of the right shape and a dtype to train on; its values are not looked at."""
    try:
        array = as_plain(value, axes=1 + len(spec.shape))
    except BatchError as error:
        raise BatchError(str(error), module_id=module_id, column=name) from None
    if array.ndim < 1 or array.shape[1:] != spec.shape:
        hint = ""
        if spec.sequence and array.shape[2:] == spec.shape[1:]:
            hint = f": sequences are {spec.shape[0]} timesteps long, pad shorter ones and set loss_mask 0 there"
        raise BatchError(
            f"expected shape {_shape(spec)}, got {list(array.shape)}{hint}", module_id=module_id, column=name
        )
    if array.dtype.kind not in "fiub":
        raise BatchError(
            f"dtype {array.dtype} cannot be trained on; expected {spec.dtype}", module_id=module_id, column=name
        )
    return array


def _check_rows(rows: Mapping[str, int], module_id: str) -> None:
    # The column that differs from most of the others is the one to look at.
    usual = Counter(rows.values()).most_common(1)[0][0] if rows else 0
    for name, count in rows.items():
        if count != usual:
            other = next(n for n, c in rows.items() if c == usual)
            raise BatchError(f"has {count} rows where column {other!r} has {usual}", module_id=module_id, column=name)
    if not usual:
        raise BatchError("the batch has no rows", module_id=module_id, column=next(iter(rows), None))


def _target(spec: ColumnSpec, float_dtype: npt.DTypeLike) -> np.dtype[Any]:
    return np.dtype(float_dtype if spec.dtype == "float" else spec.dtype)


def _convert(array: np.ndarray, spec: ColumnSpec, float_dtype: npt.DTypeLike, module_id: str, name: str) -> np.ndarray:
    """The column's values in the dtype that the update reads; refuses those that it cannot hold."""
    kind = array.dtype.kind
    target = _target(spec, float_dtype)
    if spec.dtype != "float":
        if target.kind in "iu" and kind == "f":
            with np.errstate(invalid="ignore"):
                whole = bool(np.all(np.isfinite(array)) and np.all(array == np.floor(array)))
            if not whole:
                raise BatchError(
                    f"holds fractions or non-finite values; expected {spec.dtype}", module_id=module_id, column=name
                )
        if target.kind in "iu" and kind in "iuf" and array.size:
            limits = np.iinfo(target)
            low, high = int(array.min()), int(array.max())
            if low < limits.min or high > limits.max:
                raise BatchError(f"values {low}..{high} do not fit {spec.dtype}", module_id=module_id, column=name)
        if target.kind == "b" and kind != "b" and not bool(np.all((array == 0) | (array == 1))):
            raise BatchError("expected booleans (or 0 and 1)", module_id=module_id, column=name)
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype=target).reshape(array.shape)
    if kind == "f" and target.kind == "f" and not bool(np.isfinite(converted.sum())):
        # The sum is one pass without a temporary; only when it is not finite does the exact check run.
        bad = ~np.isfinite(converted)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            raise BatchError(
                f"holds {int(bad.sum())} NaN or infinite value(s), the first in row {row}",
                module_id=module_id,
                column=name,
            )
    return converted
