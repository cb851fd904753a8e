"""A run of minibatch steps on the host: the rows, the plans and what is known of every step before it runs.

Holds numpy arrays alone; a traced step never sees it, only the arrays that ``StepInputs`` makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..plan import MinibatchPlan

__all__ = ["Segment"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive steps of one update, or all of them.

    Attributes:
        data: module id -> column -> [rows, ...], the rows that this learner holds; modules without rows are absent.
        plans: module id -> this learner's share of every minibatch, all of one length.
        whole: module id -> every minibatch as all learners together see it, of the same length.
        counts: module id -> int64[steps], rows (timesteps) of every whole minibatch that count.
        statistics: (module id, column) -> float[steps, 2], mean and standard deviation over every whole one.
        first_step: lifetime minibatch step of the first line, which keys the noise.
        updated: module id -> whether it is, of those that share rows with others; one that is not named is.
    """

    data: Mapping[str, Mapping[str, np.ndarray]]
    plans: Mapping[str, MinibatchPlan]
    whole: Mapping[str, MinibatchPlan]
    counts: Mapping[str, np.ndarray]
    statistics: Mapping[tuple[str, str], np.ndarray]
    first_step: int = 0
    updated: Mapping[str, bool] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return next(iter(self.plans.values())).num_steps

    def sizes(self, step: int) -> dict[str, int]:
        """module id -> rows that this learner has of one step."""
        return {mid: int(plan.rows[step]) for mid, plan in self.plans.items()}

    def lines(self, start: int, stop: int) -> Segment:
        """The steps start..stop-1, over the same rows."""
        return replace(
            self,
            plans={mid: plan.lines(start, stop) for mid, plan in self.plans.items()},
            whole={mid: plan.lines(start, stop) for mid, plan in self.whole.items()},
            counts={mid: lines[start:stop] for mid, lines in self.counts.items()},
            statistics={key: lines[start:stop] for key, lines in self.statistics.items()},
            first_step=self.first_step + start,
        )
