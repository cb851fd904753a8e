"""One Learner in this process: the group of ``num_learners=0``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, Unpack

from ..xp import Columns
from .devices import check_gpus
from .launchers import UpdateOptions
from .results import Results

if TYPE_CHECKING:
    from ..config.algorithm_settings import AlgorithmSettings
    from ..learning.learner import Learner

__all__ = ["LocalLearners"]


T = TypeVar("T")


class LocalLearners:
    """One Learner, called directly.

    Args:
        config: frozen configuration.
        env: environment to take the spaces from.
    """

    def __init__(self, config: AlgorithmSettings, env: object) -> None:
        check_gpus(config, 1)
        self.learner: Learner = config.get_learner_class()(config=config, env=env)

    def update(self, *, batch: Columns, **arguments: Unpack[UpdateOptions]) -> Results:
        """Update now and return the results."""
        return dict(self.learner.update_from_batch(batch, **arguments))

    def foreach(self, function: Callable[[Learner], T], ranks: Sequence[int] | None = None) -> list[T]:
        """``[function(learner)]``."""
        return [function(self.learner)]

    def close(self) -> None:
        """Nothing to release."""
