"""N learner processes as one: started, fed, watched, ended in bounded time, whoever starts them.

Everything a learner says arrives as an answer to a request, in order. While answers are awaited three things are
watched: the answers, the ends of the processes and their signs of life. The duration of an update is never limited: a
compilation may take a minute. How processes are started and reached is the fleet's affair (``launchers``).
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar, Unpack

import cloudpickle

from ..config.agents import is_environment
from ..errors import EnvError, LearnerCoreError, LearnerGroupError, NetworkError, WorkerLostError
from ..learning.plain_arrays import shareable
from ..learning.resolve import resolve_modules
from ..learning.rl_module import MultiRLModuleSpec
from ..plugins.manager import notify
from ..plugins.registry import get_manager
from ..state.tree import Tree
from ..xp import Columns
from .collectives import Place, choose_collective, load_collective
from .launchers import Answer, Fleet, Member, UpdateOptions
from .links import check_reach
from .results import Results
from .salvage import Saved, salvage
from .worker import Updated, parameter_digest

if TYPE_CHECKING:
    from ..config.algorithm_settings import AlgorithmSettings
    from ..learning.learner import Learner

__all__ = ["RemoteLearners"]

#: Seconds that learners have to end by themselves before they are killed.
_GRACE_S = 2.0
#: Seconds, beyond the timeout for signs of life, that survivors have to give their state: a busy machine is slow.
_RESCUE_S = 10.0
_MOST_RESTARTS = 3
#: All that takes time is done before learners meet; sockets that do not answer may be tried more than once.
_MEETING_TIMEOUTS = 4


T = TypeVar("T")


class _NotMetError(NetworkError):
    """All learners live, and they have not become a ring."""


class RemoteLearners:
    """The learners of ``num_learners >= 1``.

    Args:
        config: frozen configuration.
        env: environment to take the spaces from.
        fleet: starts the processes; closed with the group, also when it cannot be built.
        frameworks: a backend per rank instead of the configured one; rings of mixed frameworks are for tests.

    Raises:
        LearnerGroupError: something is missing or a learner cannot be built; says what.
    """

    def __init__(
        self, config: AlgorithmSettings, env: object, fleet: Fleet, *, frameworks: Sequence[str] | None = None
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._frameworks = list(frameworks or [config.framework_name] * config.num_learners)
        self._size = len(self._frameworks)
        #: Its name; "" where there is one learner.
        self.collective: str = ""
        self._collective = None
        if self._size > 1:
            gpus = config.num_gpus_per_learner > 0
            self.collective = choose_collective(config.collective, self._frameworks, gpus=gpus)
            self._collective = load_collective(self.collective)
            for framework in dict.fromkeys(self._frameworks):
                self._collective.check(framework)
        self._specs = MultiRLModuleSpec(rl_module_specs=resolve_modules(config, env, None))
        self._members: list[Member] = []
        self._broken: str | None = None
        self._updates = 0
        #: Ranks lost that have not been replaced yet; and how many were replaced of which no result has told yet.
        self._lost_ranks: list[int] = []
        self._restarts = 0
        self._started = False
        self._answers: dict[int, Answer] = {}
        self._salvage: Saved | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        self._finalizer = weakref.finalize(self, _abandon, self._members, self._fleet)

    # ------------------------------------------------------------------ starting

    def _start(self, state: Tree | None = None) -> None:
        """Start all learners, with this state.

        Where losses are repaired, one that is lost on the way is started again, and so are all that did not meet.
        """
        attempts = _MOST_RESTARTS if self._config.restart_failed_learners else 0
        self._started = False
        for attempt in range(attempts + 1):
            try:
                self._start_once()
                if state is not None:
                    self._request("call", [{"function": cloudpickle.dumps(_setter(state))}] * self._size)
                break
            except (WorkerLostError, _NotMetError) as error:
                if attempt == attempts:
                    if isinstance(error, _NotMetError):
                        raise NetworkError(str(error)) from error.__cause__
                    raise
                self._clear(error)
        self._started = True
        for rank in self._lost_ranks:
            notify(get_manager(), "learner_group_worker_restarted", rank=rank, update=self._updates)
        self._restarts += len(self._lost_ranks)
        self._lost_ranks.clear()

    def _clear(self, error: LearnerGroupError) -> None:
        """Make room for a new ring after a loss, or after learners that did not meet."""
        if isinstance(error, WorkerLostError) and error.rank is not None:
            self._lost_ranks.append(error.rank)
        for member in self._members:
            member.ending(_GRACE_S)
        self._broken = None

    def _start_once(self) -> None:
        self._members[:] = self._fleet.start(self._frameworks, self.collective)
        specs = cloudpickle.dumps(self._specs)
        self._request(
            "build",
            [
                {
                    "config": _pickled_config(self._config, framework, self.collective),
                    "module_spec": specs,
                    "rank": rank,
                    "size": self._size,
                    **self._fleet.build_arguments(rank),
                }
                for rank, framework in enumerate(self._frameworks)
            ],
        )
        if self._collective is None:
            return
        # Everything is imported and built; now all meet at once.
        timeout_s = self._config.timeout_s
        places = self._fleet.places()
        if places is not None:
            locating = [
                {"host": place.host, "address": place.address, "rank": rank, "size": self._size, "timeout_s": timeout_s}
                for rank, place in enumerate(places)
            ]
            places = self._request("locate", locating)
            self._check_reach(places)
        with self._collective.open_rendezvous(self._size, timeout_s=timeout_s, places=places) as meeting:
            joining: list[dict[str, object]] = [
                {"rank": rank, "size": self._size, "rendezvous": meeting.for_rank(rank), "timeout_s": timeout_s}
                for rank in range(self._size)
            ]
            self._request("join", joining)

    def _check_reach(self, places: Sequence[Place]) -> None:
        """All try the way to all others, before a library does that would end their processes.

        Raises:
            NetworkError: some do not reach each other.
        """
        timeout_s = self._config.timeout_s
        trying = [
            {"others": {r: place.reach for r, place in enumerate(places) if r != rank}, "timeout_s": timeout_s}
            for rank in range(self._size)
        ]
        found = self._request("reach", trying)
        names = [f"learner {rank} of {self._size} ({place.address})" for rank, place in enumerate(places)]
        try:
            check_reach(names, found, [place.reach["address"] for place in places])
        except NetworkError as error:
            self._break(str(error))
            raise _NotMetError(str(error)) from None

    # ------------------------------------------------------------------ what a group asks for

    @property
    def shares_files(self) -> bool:
        """Whether rank 0 writes to the folders that the driver sees."""
        return bool(getattr(self._fleet, "shares_files", True))

    def update(self, *, batch: Columns, **arguments: Unpack[UpdateOptions]) -> Results:
        """One update of all learners; returns rank 0's results, which every rank has."""
        self._settle()  # nobody may still be reading the last batch
        argument = {**self._fleet.put_batch(shareable(batch)), "arguments": arguments}
        answer: Updated | None = None
        num_lost = 0
        while answer is None:
            try:
                answer = self._request("update", [argument] * self._size)[0]
            except WorkerLostError as error:
                num_lost += 1
                answer = self._restart(error, num_lost)
        self._updates = answer["num_updates"]
        self._compare()
        results = dict(answer["results"])
        if self._restarts:
            results["__all__"] = {**results["__all__"], "num_learners_restarted": float(self._restarts)}
            self._restarts = 0
        return results

    def foreach(self, function: Callable[[Learner], T], ranks: Sequence[int] | None = None) -> list[T]:
        """``[function(learner)]`` of these ranks (all), in rank order.

        Raises:
            LearnerGroupError: the function cannot be pickled.
            WorkerLostError: where ``rebuilt`` is set the group goes on, and the call may be repeated if it can be.
        """
        try:
            pickled = cloudpickle.dumps(function)
        except Exception as error:
            raise LearnerGroupError(
                f"foreach_learner: {function!r} cannot be sent to the learners: {type(error).__name__}: {error}"
            ) from error
        chosen = range(self._size) if ranks is None else ranks
        try:
            return self._request("call", [{"function": pickled}] * len(chosen), ranks=chosen)
        except WorkerLostError as error:
            # The group lives on; whether the call may be repeated is for the caller to say.
            self._restart(error, 1)
            error.rebuilt = True
            error.add_note("the group was rebuilt from the others' state and goes on; repeat the call if it may be")
            raise

    def _compare(self) -> None:
        """Every so many updates: have the learners stayed in step? If not, all take rank 0's state."""
        every = self._config.check_parameters_every
        if self._size == 1 or not every or self._updates % every:
            return
        try:
            self._make_equal()
        except WorkerLostError as error:
            if not error.rebuilt:
                raise
            # All have the same state now, that of one who had applied the update.

    def _make_equal(self) -> None:
        if len(set(self._frameworks)) > 1:
            equal = False
        else:
            equal = len(set(self.foreach(parameter_digest))) == 1
        if not equal:
            (state,) = self.foreach(lambda learner: learner.get_state(), ranks=[0])
            self.foreach(lambda learner: learner.set_state(state), ranks=range(1, self._size))
            if len(set(self._frameworks)) == 1:
                warnings.warn(
                    f"after update {self._updates} the learners' parameters differed; all have rank 0's state now",
                    RuntimeWarning,
                    stacklevel=5,
                )

    # ------------------------------------------------------------------ requests and answers

    def _request(
        self, operation: str, arguments: Sequence[Mapping[str, object]], *, ranks: Sequence[int] | None = None
    ) -> list[Answer]:
        """Ask the learners; returns their answers in rank order.

        Raises:
            WorkerLostError: one died or gave no sign of life; the group is of no more use.
            LearnerCoreError, or what a hook raised: every learner refused; the group goes on as before.
        """
        if self._broken is not None:
            raise LearnerGroupError(f"this group is of no more use: {self._broken}; build a new one")
        self._settle()
        members = self._members if ranks is None else [self._members[rank] for rank in ranks]
        for member, argument in zip(members, arguments, strict=True):
            member.last_sign = time.monotonic()
            member.send(operation, argument)
        answers: dict[int, Answer] = {}
        self._answers = answers if operation == "update" else {}
        failures: dict[int, tuple[Exception, str]] = {}
        failed_at: float | None = None
        meet_until = time.monotonic() + _MEETING_TIMEOUTS * self._config.timeout_s + _GRACE_S
        while any(member.waiting for member in members):
            self._take(members, answers, failures, operation)
            if operation == "join" and time.monotonic() > meet_until:
                self._cannot_meet(members)
            if not failures or operation == "call":
                continue
            failed_at = failed_at or time.monotonic()
            # Learners refuse together; one that fails alone leaves the others waiting for it in the ring. Where the
            # ring itself broke, whoever broke it will be found dead or silent.
            ring = all(isinstance(error, LearnerGroupError) for error, _ in failures.values())
            if time.monotonic() - failed_at > _GRACE_S + (self._config.timeout_s if ring else 0.0):
                break
        if failures:
            self._raise(operation, members, failures)
        return [answers[member.rank] for member in members]

    def _cannot_meet(self, members: Sequence[Member]) -> NoReturn:
        late = [member.rank for member in members if member.waiting]
        text = (
            f"learners {late} of {self._size} live and do not reach the others within {_MEETING_TIMEOUTS} times "
            f"timeout_s={self._config.timeout_s:g} s: is a firewall between their machines, or between them and here?"
        )
        self._break(text)
        raise _NotMetError(text)

    def _settle(self) -> None:
        """Somebody may have interrupted the driver while it waited; those answers are nobody's any more."""
        while self._broken is None and any(member.waiting for member in self._members):
            self._answers = {}
            try:
                self._take(self._members, {}, {}, "an interrupted request")
            except WorkerLostError as error:
                self._restart(error, 1)

    def _take(
        self,
        members: Sequence[Member],
        answers: dict[int, Answer],
        failures: dict[int, tuple[Exception, str]],
        operation: str,
    ) -> None:
        waiting = [member for member in members if member.waiting]
        ready = self._fleet.wait(waiting, 0.25)
        for member in waiting:
            member.hear()
            if member in ready:
                try:
                    good, answer = member.receive()
                except EOFError:
                    self._lost(member, operation, "died")
                member.waiting = False
                if good:
                    answers[member.rank] = answer
                else:
                    failures[member.rank] = answer
                continue
            if time.monotonic() - member.last_sign > self._config.timeout_s:
                self._lost(member, operation, f"gave no sign of life for {self._config.timeout_s:g} s")
            unheard = getattr(member, "unheard", None)
            if unheard is not None:  # both live, and the ring is broken between them
                self._lost(self._members[unheard], operation, f"is no longer heard by learner {member.rank}")

    def _raise(self, operation: str, members: Sequence[Member], failures: dict[int, tuple[Exception, str]]) -> None:
        # Who failed in the ring may have done so because of another.
        rank, (error, trace) = min(failures.items(), key=lambda it: (isinstance(it[1][0], LearnerGroupError), it[0]))
        error.add_note(f"raised on learner {rank} of {self._size}; its traceback:\n{trace}")
        if operation == "call":
            raise error
        together = len(failures) == len(members) and len({type(e) for e, _ in failures.values()}) == 1
        broken = isinstance(error, LearnerGroupError)
        if together and not broken:
            raise error
        for member in members:
            if member.ending(0.5 if broken else 0.0) is not None:
                self._lost(member, operation, "died")
        what = f"failed in {operation} where the others did not: {type(error).__name__}: {error}"
        text = f"learner {rank} {what}"
        if not isinstance(error, LearnerCoreError):
            cause, error = error, LearnerGroupError(f"{text}\n{trace}")
            error.__cause__ = cause
        if self._config.restart_failed_learners and operation == "update" and broken:
            self._save_what_can_be(self._members)
            self._break(text)
            raise WorkerLostError(text) from error
        if self._config.restart_failed_learners and operation == "update":
            try:
                self._lost(self._members[rank], operation, what)
            except WorkerLostError as lost:
                try:
                    how = "with" if self._restart(lost, 1) is not None else "without"
                    error.add_note(f"the group was rebuilt from the others' state, {how} this update, and goes on")
                except LearnerGroupError:
                    error.add_note("the group could not be rebuilt from the others' state and is of no more use")
        else:
            self._break(text)
            if operation == "join" and broken and not isinstance(error, NetworkError):
                raise _NotMetError(f"{text}\n{trace}") from error
        raise error

    # ------------------------------------------------------------------ losses and the end

    def _lost(self, member: Member, operation: str, what: str) -> NoReturn:
        """Tell who wants to know, save what can be saved, end the others, raise."""
        silent = what != "died"
        if silent:
            member.kill()
        ending = member.ending(_GRACE_S)
        if ending is None and not silent:  # its channel ended, it did not
            member.kill()
            ending, silent, what = member.ending(_GRACE_S), True, "stopped in the middle of an answer"
        code = None if ending is None else ending.exitcode
        cause = f" ({ending.reason})" if ending is not None and ending.reason and not silent else ""
        address = getattr(member, "address", "")
        where = f", on {address}" if address else ""
        text = f"learner {member.rank} of {self._size} {what}{cause} during {operation}{where}"
        notify(get_manager(), "learner_group_worker_lost", rank=member.rank, exitcode=code, reason=text)
        if self._config.restart_failed_learners and self._started:
            self._save_what_can_be([m for m in self._members if m is not member])
        self._break(text)
        raise WorkerLostError(text, rank=member.rank, exitcode=code)

    def _save_what_can_be(self, survivors: Sequence[Member]) -> None:
        self._salvage = salvage(self._fleet, survivors, self._answers, self._config.timeout_s + _RESCUE_S)

    def _restart(self, error: WorkerLostError, attempt: int) -> Updated | None:
        """A new ring from the highest applied state.

        Returns:
            What the interrupted update had to say if a survivor had applied it; else ``None``: it must be repeated.

        Raises:
            WorkerLostError: ``error``, where restarting is not wanted, nobody survived, or it happens again and again.
        """
        saved, self._salvage = self._salvage, None
        if saved is None or attempt > _MOST_RESTARTS:
            if self._config.restart_failed_learners:
                error.add_note("it could not be restarted: no learner survived, or too many were lost in a row")
            raise error
        self._updates = saved["num_updates"]
        self._config, self._specs = saved["config"], MultiRLModuleSpec(rl_module_specs=saved["module_specs"])
        self._clear(error)
        try:
            self._start(saved["state"])
        except BaseException as failure:
            self._break("it could not be restarted")
            failure.add_note(f"this befell the group while it was being rebuilt, because {error}")
            raise
        if error.rank is None:
            warnings.warn(f"no learner was lost, and yet the ring broke; it was rebuilt ({error})", RuntimeWarning, 4)
        return saved["answer"]

    def _break(self, reason: str) -> None:
        self._broken = reason
        for member in self._members:
            member.kill()
            member.close()

    def close(self) -> None:
        """End all learners: in order where they answer, by force where they do not. Bounded; may be called twice."""
        members, self._members[:] = list(self._members), []
        if self._broken is None:
            self._broken = "it has been shut down"
            for member in members:
                member.send("stop", {})
            deadline = time.monotonic() + _GRACE_S
            for member in members:
                if member.ending(max(deadline - time.monotonic(), 0.0)) is None:
                    member.kill()
        for member in members:
            member.close()
            member.ending(_GRACE_S)
        self._fleet.close()


def _abandon(members: list[Member], fleet: Fleet) -> None:
    for member in members:
        member.kill()
    fleet.close()


def _setter(state: Tree) -> Callable[[Learner], None]:
    def set_state(learner: Learner) -> None:
        learner.set_state(state)

    return set_state


def _of_the_driver(env_config: Mapping[str, object]) -> NoReturn:
    """Stands for an environment object where it is not."""
    raise EnvError("the environment is an object in the process that started this learner")


def _pickled_config(config: AlgorithmSettings, framework: str, collective: str) -> bytes:
    """The configuration for a learner: what only environments need stays here if it cannot be pickled."""
    config = config.replaced(collective=collective) if collective else config
    own = config if framework == config.framework_name else config.replaced(framework_name=framework)
    if is_environment(own.env):
        own = own.replaced(env=_of_the_driver)  # learners get the modules with their spaces
    try:
        return bytes(cloudpickle.dumps(own))
    except Exception as first:
        own = config.replaced(framework_name=framework, env=None, policy_mapping_fn=None)
        try:
            return bytes(cloudpickle.dumps(own))
        except Exception:
            raise LearnerGroupError(
                f"the configuration cannot be sent to the learners: {type(first).__name__}: {first}"
            ) from first
