"""What a Learner would refuse in a batch, apart from the Learner: for batches that wait in a state.

Needs the columns that a Learner reads. Plain data, so that it can be sent from a learner's process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BatchError, StateError
from ..spaces import AnySpace, check_actions
from ..state.memory import in_blocks
from .batch import ColumnSpec, check_batch, column_name, flatten_columns

__all__ = ["BatchRule"]


@dataclass(frozen=True)
class BatchRule:
    """What batches of one module must be.

    Attributes:
        module_id: whose.
        specs: column -> what the update reads.
        action_space: that actions must lie in; ``None``: any value.
        float_dtype: of "float" columns.
        is_read: whether the update reads rows of the module; it may rest now.
    """

    module_id: str
    specs: Mapping[str, ColumnSpec]
    action_space: AnySpace
    float_dtype: Any
    is_read: bool = True

    def reads(self, column: str) -> bool:
        """Whether the update reads a column, or a part of it."""
        return any(column_name(path) == column for path in self.specs)

    def check(self, batch: Any, path: str) -> None:
        """Refuse columns [B, ...] that the learner would refuse.

        Raises:
            StateError: says the path.
        """
        try:
            columns = flatten_columns(batch)
            check_batch(
                columns,
                self.specs,
                module_id=self.module_id,
                action_space=self.action_space,
                float_dtype=self.float_dtype,
            )
        except BatchError as error:
            place = f"{path}/{error.column}" if error.column else path
            raise StateError(f"cannot be learned from: {error}", path=place) from None

    def check_actions(self, actions: np.ndarray, path: str) -> None:
        """Refuse actions [B, ...] outside their space.

        Raises:
            StateError: says the path.
        """
        if self.action_space is None:
            return
        try:
            for block in in_blocks(actions):
                check_actions(self.action_space, block, bounds=True)
        except BatchError as error:
            raise StateError(str(error.args[0]), path=path) from None
