"""LearnerGroup: the same calls for one learner in this process and for N."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from ..config.changes import QUEUE_SETTINGS, changed, is_of_learners
from ..config.foreign_names import unknown_attribute
from ..config.foreign_table import LEARNER as LEARNER_NAMES
from ..errors import LearnerGroupError, WorkerLostError
from ..learning.batch_rule import BatchRule
from ..learning.state_fitting import Skipped
from ..learning.state_tree import check_weights
from ..state.kinds import LEARNER, refuse_other_kinds
from ..xp import Columns
from .agreement import difference_of, words_of
from .launchers import Learners, UpdateOptions, load_launcher
from .requests import UpdateQueue
from .results import Results

if TYPE_CHECKING:
    import numpy as np

    from ..config.algorithm_settings import AlgorithmSettings
    from ..learning.learner import Learner
    from ..learning.rl_module import RLModuleSpec
    from ..state.tree import Plain, Tree
    from .spmd.learners import SpmdLearners

__all__ = ["LearnerGroup"]

T = TypeVar("T")

_MOST_REPEATS = 3


class LearnerGroup:
    """Learners with identical state that compute one update together.

    Args:
        config: frozen configuration; ``num_learners`` says how many.
        env: environment to take the spaces from; ``None`` makes the configured one for a moment.

    Raises:
        LearnerGroupError: the group cannot be built; says what is missing.
    """

    def __init__(self, config: AlgorithmSettings, env: object = None) -> None:
        self.config: AlgorithmSettings = config
        self._learners: Learners = load_launcher(config.launcher).make_learners(config, env)
        self._queue = UpdateQueue(
            self._update,
            limit=config.max_requests_in_flight_per_learner,
            block=config.queue_full == "block",
        )
        self._open = True
        self._num_changes = 0
        self._num_updates_asked = 0
        try:
            self._specs: Mapping[str, RLModuleSpec] = self._first(lambda learner: learner.module_specs)
        except BaseException:
            self.shutdown()
            raise

    if not TYPE_CHECKING:  # for type checkers there are no more attributes than are written down

        def __getattr__(self, name: str) -> Any:
            raise unknown_attribute(self, name, LEARNER_NAMES)

    def __enter__(self) -> LearnerGroup:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    def update_from_batch(
        self,
        batch: Columns,
        timesteps: Mapping[str, int] | None = None,
        *,
        async_update: bool = False,
        num_epochs: int | None = None,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool | None = None,
        shard_rows: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
        return_state: bool = False,
        return_weights: bool = False,
    ) -> Results:
        """Train on one batch.

        Args:
            batch: columns [B, ...] or {module_id: columns}; an asynchronous call copies them before it returns.
                With ``launcher="spmd"`` this rank's own rows, ``{}`` if it has none.
            timesteps: lifetime counters that move the schedules; ``None`` or ``{}`` leaves them.
            async_update: queue the update and return at once (``launcher="spmd"`` updates at once all the same).
            num_epochs: passes over the batch; ``None``: the setting.
            minibatch_size: rows of a step over all learners; ``None``: the setting.
            shuffle_batch_per_epoch: new order for every pass; ``None``: the setting.
            shard_rows: rows of each data shard; see ``Learner.update_from_batch``.
            return_state: add the learner's state under ``"_state"`` (blocking updates only).
            return_weights: once this update is done, its results hold ``"_weights"``: (number of updates that they are
                of, {module_id: {name: array}}), as they were right after it; of several updates, the newest.

        Returns:
            {module_id: {metric: float}, "__all__": {...}}. Asynchronous: the reduced results of earlier requests that
            have finished, ``{}`` if none has; drops and the queue's depth are counted in ``"__all__"``.

        Raises:
            BatchError: the batch does not fit; nothing has changed. Asynchronous: raised by the next call of the group.
        """
        queue = self._alive()
        self._num_updates_asked += 1
        arguments = {
            "batch": batch,
            "timesteps": timesteps,
            "num_epochs": num_epochs,
            "minibatch_size": minibatch_size,
            "shuffle_batch_per_epoch": shuffle_batch_per_epoch,
            "shard_rows": shard_rows,
            "return_weights": return_weights,
        }
        if async_update:
            if return_state:
                raise LearnerGroupError("return_state=True needs a blocking update; call get_state() when it is needed")
            if self.ranks is not None:
                # A thread of its own would meet the other ranks in another order than this one does.
                return dict(queue.run(**arguments))
            return queue.submit(**arguments)
        queue.drain()
        results = queue.run(**arguments)
        if return_state:
            results["_state"] = self.get_state()
        return results

    def _update(self, *, batch: Columns, return_weights: bool, **arguments: Unpack[UpdateOptions]) -> Results:
        results = self._learners.update(batch=batch, **arguments)
        if return_weights:
            weights = self._repeat(lambda learner: learner.get_module_state(), ranks=[0])[0]
            results["_weights"] = (int(results["__all__"].get("num_updates", 0)), weights)
        return results

    def poll(self) -> Results:
        """Reduced results of the asynchronous updates that have finished since the last call, without waiting."""
        return self._alive().take()

    @property
    def num_changes(self) -> int:
        """Calls so far that may have changed the learners otherwise than by an update, ``foreach_learner`` among them.

        Whoever keeps a copy of their weights or settings compares it with what it was when the copy was made.
        """
        return self._num_changes

    @property
    def num_updates_asked(self) -> int:
        """Calls of ``update_from_batch`` so far."""
        return self._num_updates_asked

    @property
    def queue_depth(self) -> int:
        """Asynchronous updates that wait or run."""
        return self._queue.depth

    @property
    def busy_seconds(self) -> float:
        """Seconds that updates have taken in all."""
        return self._queue.busy_seconds

    def wait(self) -> Results:
        """Wait for all queued updates and return their reduced results (``{}`` if there were none).

        Raises:
            LearnerCoreError: what the oldest of them raised; the others' results are there at the next call.
        """
        queue = self._alive()
        queue.drain()
        return queue.take()

    def drain(self) -> None:
        """Wait for all queued updates; their results come with a later call. Raises as ``wait`` does."""
        self._alive().drain()

    def get_state(self) -> dict[str, Plain]:
        """Complete state of the first learner; all have the same."""
        return dict(self._first(lambda learner: learner.get_state()))

    def set_state(self, state: Tree, strict: bool = True) -> list[Skipped]:
        """Give every learner this state, or none; see ``Learner.set_state``, also for what is returned."""
        self.check_state(state, strict=strict)
        self.agree("set_state", state)
        self._num_changes += 1
        # A learner of our own that has checked a state takes it; what another does is undone on all of them.
        before = None if self.copies_states else self.get_state()
        try:
            skipped: list[Skipped] = self._ask(lambda learner: learner.set_state(state, strict=strict))[0]
        except Exception:
            if before is not None:
                self._ask(lambda learner: learner.set_state(before))
            raise
        return skipped

    def check_state(self, state: Tree, strict: bool = True, *, modules: Collection[str] | None = None) -> None:
        """Would ``set_state`` take this state? Changes nothing; see ``Learner.check_state``."""
        self._check(lambda learner: learner.check_state(state, strict, modules=modules))

    def get_weights(self) -> dict[str, dict[str, np.ndarray]]:
        """Weights alone: module id -> name -> array."""
        return dict(self._first(lambda learner: learner.get_module_state()))

    def set_weights(self, weights: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Give every learner these weights, or none; optimizers stay."""
        self._check(lambda learner: check_weights(learner, weights))
        self.agree("set_weights", weights)
        self._num_changes += 1
        self._ask(lambda learner: learner.set_module_state(weights))

    def check_weights(self, weights: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Would ``set_weights`` take these? Changes nothing.

        Raises:
            StateError: it would not; says the path.
        """
        self._first(lambda learner: check_weights(learner, weights))

    def batch_rules(self) -> dict[str, BatchRule]:
        """{module_id: what a batch of it must be}."""
        return dict(self._first(lambda learner: learner.batch_rules()))

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the complete state to one file, atomically."""
        # Learner processes may have another working folder; one of them writes, unless it is on another machine.
        folder, name = os.path.split(os.fspath(path))  # abspath alone would forget a slash at the end, which is refused
        place = os.path.join(os.path.abspath(folder), name)
        if getattr(self._learners, "shares_files", True):
            self._ask(lambda learner: learner.save_state(place) if learner.ranks.rank == 0 else None)
            return
        from ..plugins.manager import notify
        from ..plugins.registry import get_manager
        from ..state.files import save_state

        state = self.get_state()
        save_state(place, state)
        notify(
            get_manager(), "learner_checkpoint_saved", path=place, update=int(state["counters"]["num_updates"]), rank=0
        )

    def load_state(self, path: str | os.PathLike[str], strict: bool = True) -> list[Skipped]:
        """Read a file that ``save_state`` of a group or a learner wrote, on any backend; see ``Learner.set_state``."""
        from ..state.files import load_state

        def read() -> dict[str, Plain]:
            state: dict[str, Plain] = load_state(path, mmap=copies)
            refuse_other_kinds(state, LEARNER, where=str(path))
            return state

        copies = self.copies_states
        return self.set_state(read() if self.ranks is None else self.ranks.on_each(read), strict=strict)

    @property
    def copies_states(self) -> bool:
        """Whether ``set_state`` may be given arrays that are read-only views of a file."""
        return bool(self._first(lambda learner: learner.copies_states))

    def set_config(self, **settings: object) -> None:
        """Change settings on every learner, and of the group's own queue, or none; queued updates come first.

        Inside an Algorithm, samplers, advantages and evaluation follow before the next fragment, and later checkpoints
        have the new settings, as with ``Algorithm.set_config``.

        Args:
            settings: by field name: those of ``.training()``, ``policies_to_train``, ``policy_settings``,
                ``queue_full`` and ``max_requests_in_flight_per_learner``.

        Raises:
            ConfigError: unknown, ill-typed, or fixed when the learners were built; says which, and nothing has changed.
        """
        self._alive().drain()
        self.agree("set_config", settings)
        config = changed(self.config, settings, by="group")
        before = {name: getattr(self.config, name) for name in settings}
        own = {name: value for name, value in settings.items() if name not in QUEUE_SETTINGS}
        self._num_changes += 1
        if own:
            try:
                self._ask(lambda learner: learner.set_config(**own))
            except Exception:
                with contextlib.suppress(LearnerGroupError):  # of a group that is broken
                    self._ask(lambda learner: _set_back(learner, before))
                raise
        self.config = config
        block = config.queue_full == "block"
        self._queue.set_limit(config.max_requests_in_flight_per_learner, block=block)

    def learner_settings(self) -> dict[str, object]:
        """{setting: value} of what learners go by and a run can change, as the first of them has it now."""
        return dict(self._first(_settings_of))

    def agree(self, call: str, given: object) -> None:
        """Refuse what the ranks of ``launcher="spmd"`` were not all given alike; one learner's group agrees at once.

        Args:
            call: which call it is, for the error.
            given: its argument: plain values, arrays, functions, in dicts, lists and tuples.

        Raises:
            LearnerGroupError: the ranks were given different values; says which ranks, and nothing has changed.
        """
        if self.ranks is None:
            return
        difference = difference_of(self.ranks.gather(words_of(given)))
        if difference:
            raise LearnerGroupError(f"{call}: every rank must be given the same; {difference}")

    def add_module(
        self, *, module_id: str, module_spec: RLModuleSpec | None, settings: Mapping[str, Plain] | None = None
    ) -> None:
        """Add a module on every learner, or on none; see ``Learner.add_module``."""
        self.agree("add_module", {"module_id": module_id, "module_spec": module_spec, "settings": settings})
        try:
            self.foreach_learner(
                lambda learner: learner.add_module(module_id=module_id, module_spec=module_spec, settings=settings)
            )
        except Exception:
            if module_id not in self._specs and self._open:
                self.foreach_learner(lambda learner: _without(learner, module_id))
            raise
        self._specs = self._first(lambda learner: learner.module_specs)
        self.config = self.config.with_modules(self._specs, {module_id: settings} if settings else None)

    def remove_module(self, module_id: str) -> None:
        """Remove a module on every learner; see ``Learner.remove_module``."""
        self.agree("remove_module", module_id)
        self.foreach_learner(lambda learner: learner.remove_module(module_id))
        self._specs = self._first(lambda learner: learner.module_specs)
        self.config = self.config.with_modules(self._specs)

    def foreach_learner(self, function: Callable[[Any], T]) -> list[T]:
        """``[function(learner) in rank order]``; asynchronous updates are waited for first.

        It counts as a change of the learners, whatever the function does: an Algorithm gives its environment runners
        the weights again before they sample on.
        """
        self._alive().drain()
        self._num_changes += 1
        return self._learners.foreach(function)

    def shutdown(self) -> None:
        """Wait for what is running and release everything. Safe to call twice."""
        if self._open:
            self._open = False
            self._queue.close()
            self._learners.close()

    @property
    def module_specs(self) -> dict[str, RLModuleSpec]:
        """module id -> complete RLModuleSpec."""
        return dict(self._specs)

    @property
    def collective(self) -> str:
        """Name of what sums the gradients, "auto" resolved; "" where there is one learner."""
        return str(getattr(self._learners, "collective", ""))

    @property
    def ranks(self) -> SpmdLearners | None:
        """With ``launcher="spmd"``, this rank's view of the others: ``rank``, ``size``, ``gather``, ``on_first``."""
        found = self._learners
        return cast("SpmdLearners", found) if hasattr(found, "on_first") else None

    def _check(self, function: Callable[[Learner], None]) -> None:
        """A check of what is to be set: of one learner where all are given the same, of every rank by itself."""
        self._ask(function, ranks=None if self.ranks is not None else [0])

    def _first(self, function: Callable[[Learner], T]) -> T:
        """``function(learner)`` of rank 0; all learners have the same state."""
        return self._ask(function, ranks=[0])[0]

    def _ask(self, function: Callable[[Learner], T], ranks: Sequence[int] | None = None) -> list[T]:
        self._alive().drain()
        return self._repeat(function, ranks)

    def _repeat(self, function: Callable[[Learner], T], ranks: Sequence[int] | None = None) -> list[T]:
        """A call that may be repeated: after a loss from which the group recovers it is."""
        for _ in range(_MOST_REPEATS):
            try:
                return self._learners.foreach(function, ranks)
            except WorkerLostError as error:
                if not error.rebuilt:
                    raise
        return self._learners.foreach(function, ranks)

    def _alive(self) -> UpdateQueue:
        if not self._open:
            raise LearnerGroupError("this LearnerGroup has been shut down; build a new one and give it the saved state")
        return self._queue


def _settings_of(learner: Learner) -> dict[str, object]:
    names = [name for name in learner.config.settings() if is_of_learners(learner.config, name)]
    return {name: getattr(learner.config, name) for name in names}


def _set_back(learner: Learner, before: Mapping[str, object]) -> None:
    """Take back settings that another learner refused."""
    learner.set_config(**{name: value for name, value in before.items() if getattr(learner.config, name) != value})


def _without(learner: Learner, module_id: str) -> None:
    """Take back a module that another learner could not add."""
    if module_id in learner.module_specs:
        learner.remove_module(module_id)
