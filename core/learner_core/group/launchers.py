"""Who starts the learners: the interfaces between a LearnerGroup, a launcher, and the processes it starts.

A launcher is chosen by name (entry-point group ``learner_core.launchers``). ``make_learners`` gives the group what it
talks to, a ``Learners``. A launcher that starts processes from the driver need not write one: it writes a ``Fleet``
(start the members, bring a batch to them, wait for their answers) and returns ``RemoteLearners(config, env, fleet)``,
which holds everything else: the order of building and meeting, losses, rescue, restarts, the end. In the process that
it starts, ``learner_core.group.worker.LearnerWorker`` does the work: one ``handle(operation, argument)`` per request.

Needs no framework; refuses unknown names with the nearest one. docs/decisions/launchers.md says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeVar, Unpack

from ..plugins import discovery
from ..xp import Columns
from .collectives import Place
from .results import Results

if TYPE_CHECKING:
    from ..config.algorithm_settings import AlgorithmSettings
    from ..learning.learner import Learner
    from ..learning.plan import ShardRows

__all__ = ["Answer", "Ending", "Fleet", "Launcher", "Learners", "Member", "UpdateOptions", "load_launcher"]


T = TypeVar("T")
Answer: TypeAlias = Any
"""What a learner answers to a request: whatever was asked for."""


class UpdateOptions(TypedDict, total=False):
    """Arguments of ``Learner.update_from_batch`` beside the batch."""

    timesteps: Mapping[str, int] | None
    num_epochs: int | None
    minibatch_size: int | None
    shuffle_batch_per_epoch: bool | None
    shard_rows: ShardRows | None


class Learners(Protocol):
    """What a LearnerGroup talks to: one learner or several that compute one update together.

    An attribute ``shares_files = False`` says that rank 0 has another file system than the driver, which then writes;
    an attribute ``collective`` is the name of what sums their gradients.
    """

    def update(self, *, batch: Columns, **arguments: Unpack[UpdateOptions]) -> Results:
        """One update; ``arguments`` are those of ``Learner.update_from_batch``. Returns its reduced results."""

    def foreach(self, function: Callable[[Learner], T], ranks: Sequence[int] | None = None) -> list[T]:
        """``[function(learner)]`` of these ranks (``None``: all), in rank order."""

    def close(self) -> None:
        """Release everything in bounded time; may be called twice."""


class Launcher(Protocol):
    """What the hook ``learner_core_launcher()`` returns."""

    name: str

    def make_learners(self, config: AlgorithmSettings, env: object) -> Learners:
        """Start ``config.num_learners`` learners; with 0 that is a ``LocalLearners``, in this process.

        Args:
            config: frozen AlgorithmSettings; ``config.launcher_options`` is this launcher's own, to be checked by it.
            env: environment to take the spaces from, or ``None``.

        Raises:
            LearnerGroupError: something is missing; the text has the command that brings it.
        """


@dataclass(frozen=True)
class Ending:
    """How a member ended.

    Attributes:
        exitcode: negative for a signal; ``None`` where it cannot be known.
        reason: the same in words, for the error: "exit code -9, SIGKILL". Empty: nothing is known.
    """

    exitcode: int | None = None
    reason: str = ""


class Member(Protocol):
    """The driver's end of one learner process.

    It may also have ``rescue()``, which asks it, past its main thread, for its state before the update that it is held
    up in, and neither waits nor raises. ``receive`` then gives ``LearnerWorker.rescue``'s answer under the key
    ``worker.RESCUED``, before the request's own or after it; without, a loss is repaired only from those that come out
    of the broken ring in time.

    Where members are on several machines it has ``unheard``, a rank that it does not hear any more, or ``None``, and
    ``address``, of its machine, for messages.

    Attributes:
        rank: its place among the others.
        pid: its process id on its own machine, 0 while that is unknown.
        waiting: a request was sent whose answer has not been taken. Whoever takes it clears this.
        last_sign: ``time.monotonic()`` of the last sign of life, as of the last ``hear()``. Signs come at least once a
            second while the process runs, whatever its learner is doing.
    """

    rank: int
    pid: int
    waiting: bool
    last_sign: float

    def send(self, operation: str, argument: Mapping[str, object]) -> None:
        """Make a request and set ``waiting``; never raises, never waits for the member.

        Args:
            operation, argument: for ``LearnerWorker.handle`` on the other side; plain values, arrays and bytes.
        """

    def receive(self) -> tuple[bool, Answer]:
        """Take the answer that ``Fleet.wait`` has announced: what ``LearnerWorker.handle`` returned.

        Raises:
            EOFError: there is none: the member has ended.
        """

    def hear(self) -> None:
        """Bring ``last_sign`` up to date."""

    def ending(self, timeout_s: float) -> Ending | None:
        """How it ended; ``None`` if it has not within the timeout."""

    def kill(self) -> None:
        """End it now, even one that is stopped; does not wait, never raises."""

    def close(self) -> None:
        """Let go of what the driver holds; a member that still lives ends by that. May be called twice."""


class Fleet(Protocol):
    """The members of one group, and the way of a batch to them."""

    def start(self, frameworks: Sequence[str], collective: str) -> Sequence[Member]:
        """Start one member per entry, in rank order. It need not be able to answer yet, only to give signs of life.

        Called at build and again after a loss, when all earlier members have been killed and closed.

        Args:
            frameworks: a backend's name per rank.
            collective: that will join them; ``""`` for a single learner.

        Raises:
            LearnerGroupError: there is no room for them; says what was asked for and what there is.
        """

    def build_arguments(self, rank: int) -> dict[str, object]:
        """``environment`` (variables to set first) and ``num_threads`` for ``LearnerWorker.build``."""

    def places(self) -> Sequence[Place] | None:
        """Where the members are, ``host`` and ``address``, in rank order, so that they can meet.

        ``None``: all on this host, by the loopback interface and files.
        """

    def put_batch(self, batch: Columns) -> Mapping[str, object]:
        """Bring a batch within reach of all members.

        Returns:
            What is added to every member's ``update`` request. It stays valid, also for members that are started
            afterwards, until the next call.
        """

    def wait(self, members: Sequence[Member], timeout_s: float) -> Sequence[Member]:
        """Those of ``members`` that have an answer to take, or have ended; as soon as there is one."""

    def close(self) -> None:
        """Release what the members shared, when all are gone; may be called twice."""


def load_launcher(name: str) -> Launcher:
    """Load a launcher by name.

    Raises:
        PluginNotFoundError: no such launcher; the text has the nearest name.
        PluginError: its plugin is broken.
    """
    launcher: Launcher = discovery.load("learner_core.launchers", name)
    return launcher
