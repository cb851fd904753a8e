"""The loop of offline algorithms: minibatches out of a recording, the environment only to evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import numpy_xp
from ..errors import BatchError, ConfigError
from ..group.results import merge_results
from ..maths import noise
from ..sampling.recording import RECORDING_FORMAT
from ..state.atomic import PathLike
from ..state.files import load_state
from ..state.schema import COUNT, Record
from ..state.tree import Plain, Tree
from ..xp import ArrayTree
from .algorithm import Algorithm
from .evaluations import Results

__all__ = ["OfflineAlgorithm", "read_recording"]


class OfflineAlgorithm(Algorithm):
    """Passes over a recording in an order drawn from the seed; ``train_batch_size`` rows an update."""

    def check_config(self) -> None:
        config: Any = self.config
        if config.input_path is None:
            raise ConfigError(
                f"{type(config).__name__}: set .training(input_path=...) to a recording, or use build_learner() "
                "and give batches yourself; `learner-core record` writes recordings"
            )
        self._columns = read_recording(config.input_path)

    def setup(self) -> None:
        config: Any = self.config
        for module_id, spec in self.learner_group.module_specs.items():
            if "state_in" not in self._columns and spec.is_neutral and spec.build(numpy_xp).initial_state():
                raise ConfigError(
                    f"module {module_id!r} has a memory and learns from sequences [B, T, ...] with state_in; "
                    f"{config.input_path} holds single steps. Learn without model={{'recurrent': ...}}, or give "
                    "sequences to build_learner()'s update_from_batch yourself"
                )
        self._num_rows = len(_first(self._columns))
        self._num_rows_trained = 0

    def training_step(self) -> Results:
        config: Any = self.config
        size = min(config.train_batch_size, self._num_rows)
        results = []
        for _ in range(config.updates_per_iteration):
            epoch, position = divmod(self._num_rows_trained, self._num_rows)
            order = noise.permutation(config.seed, epoch, "offline/order", self._num_rows)
            rows = order[position : position + size]
            # Every rank has the whole recording and takes its part of these rows.
            own = np.array_split(rows, self.num_ranks)[self.rank]
            with self.timed("learn"):
                results.append(
                    self.learner_group.update_from_batch(_take(self._columns, own), timesteps=self.timesteps)
                )
            self._num_rows_trained += len(rows)
        merged = merge_results(results)
        merged["__all__"]["num_rows_trained_lifetime"] = float(self._num_rows_trained)
        return merged

    def get_extra_state(self) -> dict[str, Plain]:
        return {"num_rows_trained": self._num_rows_trained}

    def extra_state_schema(self) -> Record:
        return Record({"num_rows_trained": COUNT})

    def set_extra_state(self, state: Tree) -> None:
        self._num_rows_trained = int(state["num_rows_trained"])


def read_recording(path: PathLike) -> dict[str, ArrayTree]:
    """The columns [B, ...] of a recording.

    Args:
        path: state file with ``format`` "learner_core/recording" and ``columns``.

    Raises:
        StateError: no such file, or damaged.
        BatchError: no recording, or columns of different lengths.
    """
    tree = load_state(path)
    if not isinstance(tree, dict) or tree.get("format") != RECORDING_FORMAT:
        raise BatchError(f"{path} is no recording; `learner-core record` writes them")
    columns: Any = tree.get("columns")
    leaves = _leaves(columns)
    if not isinstance(columns, dict) or not all(isinstance(leaf, np.ndarray) and leaf.ndim for leaf in leaves):
        raise BatchError(f"{path}: expected columns, a dict of arrays [B, ...]")
    lengths = {len(leaf) for leaf in leaves}
    if len(lengths) != 1 or not min(lengths):
        raise BatchError(f"{path}: expected columns of one length, got {sorted(lengths)}")
    checked: dict[str, Any] = columns
    return checked


def _leaves(columns: ArrayTree) -> list[np.ndarray]:
    if isinstance(columns, Mapping):
        return [leaf for value in columns.values() for leaf in _leaves(value)]
    return [columns]


def _first(columns: ArrayTree) -> np.ndarray:
    return _leaves(columns)[0]


def _take(columns: ArrayTree, rows: np.ndarray) -> ArrayTree:
    if isinstance(columns, Mapping):
        return {name: _take(value, rows) for name, value in columns.items()}
    return columns[rows]
