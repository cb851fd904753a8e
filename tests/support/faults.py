"""Faults of learners: drawn from a seed, and a learner that does them to itself. See ``campaign``."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from learner_core_algorithms.ppo.learner import PPOLearner

__all__ = ["NUMBERS", "NUM_UPDATES", "SIGNALS", "Fault", "FaultyLearner", "claim", "draw"]

NUM_UPDATES = 4
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
#: Where in the life of a group; the last five are struck from outside, at a random moment.
INSIDE = (
    "build",
    "join",
    "batch",
    "before",
    "gradient",
    "allreduce",
    "apply",
    "after",
    "state",
    "checkpoint",
    "shutdown",
)
OUTSIDE = ("start", "transport", "update", "waiting", "stopping")
IN_GRAPH = ("gradient", "allreduce", "apply")
NUMBERS = ("nan", "inf")


@dataclass(frozen=True)
class Fault:
    """What happens, where and when; ``number`` of ``seed`` draws it again."""

    seed: int
    number: int
    backend: str
    collective: str
    size: int
    rank: int
    kind: str
    phase: str
    update: int
    step: int
    asynchronous: bool
    restart: bool
    compile: bool | None
    delay_s: float

    def __str__(self) -> str:
        return f"--backend {self.backend} --seed {self.seed} --only {self.number}: {asdict(self)}"


def draw(seed: int, number: int, backend: str) -> Fault:
    """Fault ``number`` of a campaign; the first ones go through all phases and kinds in turn."""
    rng = np.random.default_rng([seed, number, backend == "tf"])
    every = [(kind, phase) for phase in (*INSIDE, *OUTSIDE) for kind in ("kill", "stop", "raise")]
    every = [(k, p) for k, p in every if k != "raise" or p in INSIDE]
    every += [("nan", "gradient"), ("inf", "gradient")]
    kind, phase = every[(number * 7) % len(every)]  # 7 and their number have no common divisor
    size = int(rng.choice([2, 2, 3, 4]))
    return Fault(
        seed=seed,
        number=number,
        backend=backend,
        collective="horovod" if backend == "tf" else str(rng.choice(["torch", "horovod"])),
        size=size,
        # State is read and written by rank 0.
        rank=0 if phase in ("state", "checkpoint") else int(rng.integers(size)),
        kind=kind,
        phase=phase,
        update=int(rng.integers(NUM_UPDATES)),
        step=int(rng.integers(2)),
        asynchronous=bool(rng.integers(2)),
        restart=bool(rng.integers(3)),
        # Hooks inside a compiled TensorFlow step would only run while it is traced.
        compile=False if backend == "torch" or kind in ("nan", "inf") or phase in IN_GRAPH else None,
        delay_s=float(rng.uniform(0, 0.1)),
    )


class FaultyLearner(PPOLearner):
    """Does to itself what ``config.env_config["fault"]`` says."""

    _updating = False
    _saving = False
    _step = 0

    def _strike(self, phase: str, *, update: int | None = None, step: int | None = None) -> None:
        fault = self.config.env_config.get("fault")
        if fault is None or fault["phase"] != phase or fault["rank"] != self.ranks.rank or fault["kind"] in NUMBERS:
            return
        if update is not None and (update != fault["update"] or step not in (None, fault["step"])):
            return
        if not claim(fault["once"]):
            return
        if fault["kind"] == "raise":
            raise RuntimeError(f"struck in {phase}")
        os.kill(os.getpid(), SIGNALS[fault["kind"]])

    def build(self) -> None:
        super().build()
        self._strike("build")
        if self.ranks.size == 1 or self.ranks.reduce.__name__ == "reduce":
            return
        collective = self.ranks.reduce.__self__
        init, allreduce, close = collective.init, collective.allreduce_flat_, collective.close

        def join(**arguments: Any) -> None:
            self._strike("join")
            init(**arguments)

        def reduce(flat: Any) -> Any:
            if self._updating:
                self._strike("allreduce", update=self.train_state.num_updates, step=self._step)
            return allreduce(flat)

        def leave() -> None:
            self._strike("shutdown")
            close()

        collective.init, collective.close = join, leave
        object.__setattr__(self.ranks, "reduce", reduce)

    def update_from_batch(self, *arguments: Any, **named: Any) -> Any:
        self._strike("batch", update=self.train_state.num_updates)
        return super().update_from_batch(*arguments, **named)

    def before_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        self._strike("before", update=self.train_state.num_updates)
        self._updating, self._step = True, -1

    def compute_gradients(self, loss_fn: Any, params: Any) -> Any:
        if not self._updating:
            return super().compute_gradients(loss_fn, params)
        self._step += 1
        self._strike("gradient", update=self.train_state.num_updates, step=self._step)
        gradients, aux = super().compute_gradients(loss_fn, params)
        fault = self.config.env_config.get("fault") or {}
        here = (fault.get("rank"), fault.get("update"), fault.get("step"))
        if fault.get("kind") in NUMBERS and here == (self.ranks.rank, self.train_state.num_updates, self._step):
            claim(fault["once"])
            bad = float(fault["kind"])
            gradients = {m: {n: value * bad for n, value in arrays.items()} for m, arrays in gradients.items()}
        return gradients, aux

    def after_step(self, **arguments: Any) -> None:
        super().after_step(**arguments)
        if self._updating:
            self._strike("apply", update=self.train_state.num_updates, step=self._step)

    def after_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        self._updating = False
        super().after_gradient_based_update(timesteps=timesteps)
        self._strike("after", update=self.train_state.num_updates - 1)

    def _state(self, **arguments: Any) -> Any:
        if not self._saving:
            self._strike("state")
        return super()._state(**arguments)

    def save_state(self, path: Any) -> None:
        # In the middle: all is written, nothing is renamed.
        sync = os.fsync

        def struck(descriptor: int) -> None:
            self._strike("checkpoint")
            sync(descriptor)

        os.fsync, self._saving = struck, True
        try:
            super().save_state(path)
        finally:
            os.fsync, self._saving = sync, False


def claim(path: str) -> bool:
    """True for the first caller; the file has the time."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    os.write(descriptor, repr(time.time()).encode())
    os.close(descriptor)
    return True
