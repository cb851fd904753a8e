"""One Learner in this process: the group of ``num_learners=0``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .devices import check_gpus

__all__ = ["LocalLearners"]


class LocalLearners:
    """One Learner, called directly.

    Args:
        config: frozen configuration.
        env: environment to take the spaces from.
    """

    def __init__(self, config: Any, env: Any) -> None:
        check_gpus(config, 1)
        self.learner = config.get_learner_class()(config=config, env=env)

    def update(self, **arguments: Any) -> dict[str, Any]:
        """Update now and return the results."""
        return dict(self.learner.update_from_batch(**arguments))

    def foreach(self, function: Callable[[Any], Any], ranks: Sequence[int] | None = None) -> list[Any]:
        """``[function(learner)]``."""
        return [function(self.learner)]

    def close(self) -> None:
        """Nothing to release."""
