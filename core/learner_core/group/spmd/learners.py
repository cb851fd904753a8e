"""The learners of ``launcher="spmd"``, as one rank sees them: its own, and the others through the ring.

Every rank makes the same calls in the same order. An update gives the learners this rank's rows; a question to all is
answered by each rank for its own learner, and every rank has all the answers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, Unpack

import cloudpickle
import numpy as np

from learner_core.errors import LearnerGroupError, NetworkError, NonFiniteError
from learner_core.group.collectives import (
    Collective,
    CollectivePlugin,
    Place,
    Rendezvous,
    choose_collective,
    load_collective,
)
from learner_core.group.devices import gpu_environment, visible_gpus
from learner_core.group.launchers import UpdateOptions
from learner_core.group.links import Links, check_reach
from learner_core.group.network import address_towards, host_identity
from learner_core.group.results import Results
from learner_core.group.worker import parameter_digest
from learner_core.learning.rank_exchange import RankExchange
from learner_core.learning.ranks import OwnRows
from learner_core.learning.resolve import resolve_backend
from learner_core.state.format import decode, encode
from learner_core.state.tree import Plain
from learner_core.xp import Columns

from .gathering import Gathering
from .plain import from_bytes, to_bytes
from .seal import Seal
from .watch import Watch
from .world import SpmdOptions, World, find_world

if TYPE_CHECKING:
    from learner_core.config.algorithm_settings import AlgorithmSettings
    from learner_core.learning.learner import Learner

__all__ = ["SpmdLearners"]

_LOOPBACK = "127.0.0.1"
#: Seconds by which a rank that is gone is noticed by its signs of life before others say that they do not hear it.
_FIRST_SAY_S = 1.0
#: Of ``timeout_s``, for ranks that have met to try the ways between them: sockets may be tried more than once.
_TRYING_TIMEOUTS = 4


T = TypeVar("T")


class SpmdLearners:
    """This process's learner, in a ring with those of the other ranks.

    Args:
        config: frozen configuration.
        env: environment to take the spaces from.

    Raises:
        LearnerGroupError: this process is no rank, the others did not come, or something is missing; says what.
    """

    def __init__(self, config: AlgorithmSettings, env: object) -> None:
        self._config = config
        options = SpmdOptions.of(config.launcher_options)
        world = find_world(os.environ, options)
        self.world: World = world
        if config.num_learners not in (0, world.size):
            raise LearnerGroupError(
                f"num_learners={config.num_learners}, but {world.launcher} has started {world.size} ranks: leave it out"
            )
        self.rank: int = world.rank
        self.size: int = world.size
        self._who = f"rank {world.rank} of {world.size}"
        self._broken: str | None = None
        self._watch = Watch(world.rank, world.size, timeout_s=config.timeout_s, about=_about(world))
        #: Its name; "" where there is one rank.
        self.collective: str = ""
        self._collective: Collective | None = None
        self._links: Links | None = None
        self._seal: Seal | None = None
        self._updates = 0
        self._open = True
        os.environ.update(_gpus(config, world))
        learner_class = config.get_learner_class()
        self._backend = resolve_backend(config, learner_class)
        if world.size > 1:
            gpus = config.num_gpus_per_learner > 0
            self.collective = choose_collective(config.collective, [config.framework_name], gpus=gpus)
            plugin = load_collective(self.collective)
            plugin.check(config.framework_name)
            self._collective = plugin.create(self._backend)
            self._collective.prepare()
        try:
            if self._collective is not None:
                self._meet(plugin, options)
            exchange = RankExchange(world.rank, world.size, self._total, self._seal)
            ranks = OwnRows(world.rank, world.size, exchange=exchange)
            if self._collective is not None:
                ranks = replace(ranks, reduce=self._collective.allreduce_flat_)
            self.exchange = exchange
            with self._together("join"):
                # Whoever has come into the ring in a rank's place is found before it has said anything else.
                exchange.gather_bytes("join", b"")
            self.learner: Learner = self._build(learner_class, env, ranks)
        except BaseException:
            self.close()
            raise

    def _build(self, learner_class: type[Learner], env: object, ranks: OwnRows) -> Learner:
        """The learner; a rank that cannot have one says so before anybody waits for it."""
        problem: Exception | None = None
        learner: Learner | None = None
        try:
            learner = learner_class(config=self._config, env=env, backend=self._backend, ranks=ranks)
        except Exception as error:
            problem = error
        with self._together("build"):
            facts = {} if learner is None else _alike(learner)
            self.exchange.check_equal("build", facts, error=problem)
        assert learner is not None  # what it raised has been raised again
        # A network of the user's own need not be initialised from the seed.
        self._make_equal(learner)
        return learner

    # ------------------------------------------------------------------ the ring

    def _meet(self, plugin: CollectivePlugin, options: SpmdOptions) -> None:
        """Come together, begin with signs of life, then join the ring by the collective's own meeting."""
        world, collective = self.world, self._collective
        assert collective is not None
        deadline = time.monotonic() + options.start_timeout_s
        said = {"size": world.size, "about": self._watch.about[world.rank], "host": socket.gethostname()}
        said["collective"] = self.collective
        with Gathering(os.environ, world, said, deadline=deadline) as ranks:
            rendezvous: Rendezvous | None = None
            try:
                if world.rank == 0:
                    rendezvous = self._open_rendezvous(plugin, ranks, options)
                    ranks.send_orders([rendezvous.for_rank(rank) for rank in range(world.size)])
                self._try_links(ranks)
                self._seal = Seal(ranks.key, world.rank)
                self._watch.begin(ranks.take_connections(), ranks.about)
                timeout_s = self._config.timeout_s
                with self._together("join"):
                    collective.init(rank=world.rank, size=world.size, rendezvous=ranks.order, timeout_s=timeout_s)
                    collective.barrier()
            finally:
                if rendezvous is not None:
                    rendezvous.close()
        assert self._links is not None
        self._links.watch(self._watch.tell_unheard, silence_s=timeout_s + _FIRST_SAY_S)

    def _try_links(self, ranks: Gathering) -> None:
        """Settle the network interface, and try the way to every other rank before the collective does.

        Raises:
            NetworkError: an interface will not do, or some ranks do not reach each other; the same on all ranks.
        """
        assert self._collective is not None
        deadline = time.monotonic() + _TRYING_TIMEOUTS * self._config.timeout_s
        own: dict[str, str]
        try:
            address = self._collective.choose_interface(_LOOPBACK if ranks.share_files else ranks.address)
            self._links = Links(address, self.size)
            own = dict(self._links.where)
        except NetworkError as error:
            own = {"problem": str(error)}
        places = ranks.exchange(own, deadline=deadline)
        names = [f"rank {rank} of {self.size} ({ranks.about[rank]})" for rank in range(self.size)]
        problems = [f"{names[rank]}: {where['problem']}" for rank, where in enumerate(places) if "problem" in where]
        if problems or self._links is None:
            raise NetworkError("; ".join(problems))
        others = {rank: where for rank, where in enumerate(places) if rank != self.rank}
        found = self._links.reach(others, timeout_s=self._config.timeout_s)
        every = ranks.exchange(found, deadline=deadline)
        check_reach(names, every, [where["address"] for where in places])

    def _open_rendezvous(self, plugin: CollectivePlugin, ranks: Gathering, options: SpmdOptions) -> Rendezvous:
        """On rank 0, what the collective's ranks meet at, for this group alone."""
        refusal = _differing([str(said["collective"]) for said in ranks.said])
        if refusal:
            raise LearnerGroupError(f"{self._who}: {refusal}")
        timeout_s = self._config.timeout_s
        if ranks.share_files:
            return plugin.open_rendezvous(self.size, timeout_s=timeout_s)
        assert self._collective is not None
        offer = self._collective.offer(ranks.address, timeout_s=options.start_timeout_s)
        places = [
            Place(host_identity(said["host"], said["address"]), said["address"], offer=offer if rank == 0 else {})
            for rank, said in enumerate(ranks.said)
        ]
        return plugin.open_rendezvous(self.size, timeout_s=timeout_s, places=places)

    def _total(self, vector: np.ndarray, name: str) -> np.ndarray:
        """The sum of a float64 vector over all ranks."""
        assert self._collective is not None
        flat = self._backend.from_numpy({"x": vector})["x"]
        total: np.ndarray = self._backend.to_numpy({"x": self._collective.allreduce_flat_(flat, name=name)})["x"]
        return total

    @contextlib.contextmanager
    def _together(self, doing: str) -> Iterator[None]:
        """A call that all ranks make; one that fails here alone ends the ring for all."""
        if self._broken is not None:
            raise LearnerGroupError(f"{self._who}: this group is of no more use: {self._broken}")
        try:
            with self._watch.during(doing, self._is_agreed):
                yield
        except Exception as error:
            if not self._is_agreed(error):
                self._broken = f"{type(error).__name__}: {error}"
                self._watch.tell_broken(error)
            raise

    def _is_agreed(self, error: BaseException) -> bool:
        exchange = getattr(self, "exchange", None)
        # Every rank has seen the same sums, so every rank skips the same steps.
        return isinstance(error, NonFiniteError) or (exchange is not None and exchange.refusal is error)

    # ------------------------------------------------------------------ what a group asks for

    def update(self, *, batch: Columns, **arguments: Unpack[UpdateOptions]) -> Results:
        """One update of all ranks' learners on all ranks' rows; the results are the same on every rank."""
        with self._together("update_from_batch"):
            results = dict(self.learner.update_from_batch(batch, **arguments))
        self._updates += 1
        every = self._config.check_parameters_every
        if every and self._updates % every == 0:
            self._compare()
        return results

    def foreach(self, function: Callable[[Learner], T], ranks: Sequence[int] | None = None) -> list[T]:
        """``[function(learner)]`` in rank order, on every rank; of rank 0 alone, which stands for all: this rank's."""
        if ranks is not None:
            return [function(self.learner) for _ in ranks]
        problem: Exception | None = None
        answer = b""
        with self._together("foreach_learner"):
            try:
                answer = cloudpickle.dumps(function(self.learner))
            except Exception as error:
                problem = error
            return [pickle.loads(data) for data in self.exchange.gather_bytes("foreach_learner", answer, error=problem)]

    def gather(self, value: Plain) -> list[Plain]:
        """Every rank's ``value``, in rank order, on every rank: plain values and arrays, in lists, tuples and dicts."""
        with self._together("gather"):
            problem: Exception | None = None
            data = b""
            try:
                data = to_bytes(value, "gather")
            except LearnerGroupError as error:
                problem = error
            return [from_bytes(part) for part in self.exchange.gather_bytes("gather", data, error=problem)]

    def on_first(self, function: Callable[[], Plain]) -> Plain:
        """``function()`` of rank 0, on every rank; the others wait. What it raises is raised on all.

        What it returns is of the kinds that :meth:`gather` takes.
        """
        problem: Exception | None = None
        answer = b""
        if self.rank == 0:
            try:
                answer = to_bytes(function(), "on_first")
            except Exception as error:
                problem = error
        with self._together("on_first"):
            return from_bytes(self.exchange.gather_bytes("on_first", answer, error=problem)[0])

    def on_each(self, function: Callable[[], T]) -> T:
        """``function()`` of this rank, once every rank has done its own; what one raises ends it on all."""
        problem: Exception | None = None
        answers: list[T] = []
        try:
            answers.append(function())
        except Exception as error:
            problem = error
        with self._together("on_each"):
            self.exchange.gather("on_each", np.zeros(0), error=problem)
        return answers[0]

    def _compare(self) -> None:
        """Have the ranks stayed in step? If not, all take rank 0's state."""
        if not self._make_equal(self.learner):
            warnings.warn(
                f"after update {self._updates} the ranks' parameters differed; all have rank 0's state now",
                RuntimeWarning,
                stacklevel=5,
            )

    def _make_equal(self, learner: Learner) -> bool:
        """Give all ranks rank 0's state unless their parameters are equal; returns whether they were."""
        with self._together("compare"):
            if len(set(self.exchange.gather_bytes("compare", parameter_digest(learner).encode()))) == 1:
                return True
            # A state travels as a state file does: checked, and nothing in it is executed.
            own = encode(learner.get_state()).tobytes() if self.rank == 0 else b""
            state = self.exchange.gather_bytes("take rank 0's state", own)[0]
            if self.rank:
                learner.set_state(decode(state))
            return False

    def close(self) -> None:
        """Leave the ring. Bounded; may be called twice."""
        if not self._open:
            return
        self._open = False
        if self._links is not None:
            self._links.close()
        if self._broken is None:
            self._broken = "it has been shut down"
            self._watch.close()
            if self._collective is not None:
                self._collective.close()
        else:
            # The others are told by the signs of life; a collective that is broken may wait for them for ever.
            self._watch.close()


def _differing(collectives: Sequence[str]) -> str:
    """What to say of ranks that do not all have the same collective; "" if they do."""
    if len(set(collectives)) == 1:
        return ""
    found = "; ".join(
        f"{name!r} on rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        for name in dict.fromkeys(collectives)
        if (ranks := [rank for rank, other in enumerate(collectives) if other == name])
    )
    return (
        f"the ranks have come to different collectives: {found}. Install the same on every machine, or name one that "
        'all have: .learners(collective="...")'
    )


def _gpus(config: AlgorithmSettings, world: World) -> dict[str, str]:
    """As ``gpu_environment``; a batch system may have shown this rank its own GPUs alone."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES") is not None and len(visible_gpus()) == config.num_gpus_per_learner
    if config.num_gpus_per_learner and shown and world.local_size > 1:
        return {}
    return gpu_environment(config, world.local_rank, world.local_size)


def _alike(learner: Learner) -> dict[str, object]:
    """What must be the same on every rank before the first update."""
    config = learner.config
    settings = {name: getattr(config, name) for name, item in config.settings().items() if item.method == "training"}
    return {
        "the set of modules": sorted(learner.blueprint.plans),
        "the training settings": sorted((name, repr(value)) for name, value in settings.items()),
        "data_shards": learner.num_shards,
        "the framework": learner.backend.name,
        "the precision": config.precision,
    }


def _about(world: World) -> str:
    """This process, for messages: machines may share a name, but not an address on the way to the others."""
    words = f"pid {os.getpid()} on {socket.gethostname()}"
    if world.size > 1:
        with contextlib.suppress(NetworkError):  # whoever goes there is told
            words += f", {address_towards(world.address, world.port)}"
    return words
