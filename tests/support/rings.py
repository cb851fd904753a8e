"""Rings of learners in threads of one process: the arithmetic of a group without its processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from learner_core.learning.rank_exchange import RankExchange
from learner_core.learning.ranks import OwnRows, Ranks, WholeBatch

__all__ = ["ThreadRing"]

_DEADLINE_S = 120.0


class ThreadRing:
    """``size`` learners that meet at a barrier.

    Args:
        size: number of learners.
        build: ``build(ranks) -> learner``.
        sharded: every learner has rows of its own.
    """

    def __init__(self, size: int, build: Callable[[Ranks], Any], *, sharded: bool = False) -> None:
        self._barrier = threading.Barrier(size)
        self._vectors: list[Any] = [None] * size
        self.learners = []
        for rank in range(size):
            reduce = self._reducer(rank)
            place: Ranks = WholeBatch(rank, size, reduce)
            if sharded:
                place = OwnRows(rank, size, reduce, exchange=RankExchange(rank, size, self._total(reduce)))
            self.learners.append(build(place))

    @staticmethod
    def _total(reduce: Callable[[Any], Any]) -> Callable[[np.ndarray, str], np.ndarray]:
        return lambda vector, name: reduce(vector)

    def _reducer(self, rank: int) -> Callable[[Any], Any]:
        def reduce(flat: Any, *, name: str = "") -> Any:
            if hasattr(flat, "graph"):  # TensorFlow puts the sum into its graph
                import tensorflow as tf

                return tf.numpy_function(reduce, [flat], flat.dtype)
            self._vectors[rank] = flat
            self._barrier.wait(_DEADLINE_S)
            total = self._vectors[0]
            for vector in self._vectors[1:]:
                total = total + vector
            self._barrier.wait(_DEADLINE_S)
            return total

        return reduce

    def each(self, function: Callable[[Any], Any]) -> list[Any]:
        """``[function(learner)]``, all at once; the first exception is raised."""
        answers: list[Any] = [None] * len(self.learners)
        errors: list[BaseException] = []

        def run(rank: int) -> None:
            try:
                answers[rank] = function(self.learners[rank])
            except threading.BrokenBarrierError as error:
                errors.append(error)
            except BaseException as error:
                errors.insert(0, error)
                self._barrier.abort()

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(self.learners))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            self._barrier.reset()
            raise errors[0]
        return answers
