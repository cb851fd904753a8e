"""NaN and infinity on one rank alone: in the loss, a gradient, a parameter, a metric, a column of the batch.

Every rank has to decide alike: the step is skipped by all or raised by all, and their states stay equal to the bit.
The groups are built once and used again: the fault is an input of the step (a variable that one rank sets), so that a
compiled step meets it as an uncompiled one does.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core_algorithms import PPOConfig
from learner_core_algorithms.ppo.learner import PPOLearner

from .learners import OBS, ppo_batch, states_differ
from .outcomes import LostError

__all__ = ["GROUPS", "NumberFault", "draw", "groups", "play", "table"]

MID = "default_policy"
#: What a variable's code stands for.
VALUES = {1: float("nan"), 2: float("inf"), 3: float("-inf")}
PLACES = ("loss", "gradient", "parameter", "metric", "column")
#: How a group is built: (what a step that is not finite does, the compile setting).
GROUPS: dict[str, tuple[str, bool | None]] = {
    "skip": ("skip", False),
    "raise": ("raise", False),
    "compiled": ("skip", True),
}


class PoisonedLearner(PPOLearner):
    """PPO whose loss, gradients and a metric take up a poison, 0 but where a fault has set its code."""

    def build(self) -> None:
        super().build()
        for place in ("loss", "gradient", "metric"):
            self.register_variable(module_id=MID, name=f"poison_{place}", value=0.0)

    def _poison(self, place: str) -> Any:
        code, xp = self.variables[MID][f"poison_{place}"], self.xp
        value = xp.zeros_like(code)
        for number, bad in VALUES.items():
            value = xp.where(code == float(number), xp.zeros_like(code) + bad, value)
        return value

    def compute_loss_for_module(self, **arguments: Any) -> Any:
        loss = super().compute_loss_for_module(**arguments)
        self.log("poisoned", self._poison("metric"))
        return loss + self._poison("loss")

    def compute_gradients(self, loss_fn: Any, params: Any) -> Any:
        """This rank's own, before they are summed: what hooks do afterwards, each rank does to the same numbers."""
        gradients, aux = super().compute_gradients(loss_fn, params)
        name = sorted(gradients[MID])[0]
        own = {**gradients[MID], name: gradients[MID][name] + self._poison("gradient")}
        return {**gradients, MID: own}, aux


@dataclass(frozen=True)
class NumberFault:
    """One fault: where, which value, on which rank, in which group."""

    seed: int
    number: int
    place: str
    code: int
    rank: int
    group: str
    rows: int


def draw(seed: int, number: int, size: int, kinds: tuple[str, ...]) -> NumberFault:
    """The fault of this number; the first ones go through all places in turn."""
    rng = random.Random(seed * 100_003 + number)
    return NumberFault(
        seed, number, PLACES[number % len(PLACES)], rng.choice([1, 2, 3]), rng.randrange(size), rng.choice(kinds),
        rng.choice([16, 24, 29]),
    )  # fmt: skip


@contextmanager
def groups(backend: str, size: int, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """A group of each kind, built once."""
    with ExitStack() as stack:
        made = {}
        for kind in kinds:
            nonfinite, compiled = GROUPS[kind]
            config = PPOConfig().framework(backend, compile=compiled)
            config.training(train_batch_size=32, minibatch_size=16, num_epochs=1, nonfinite_gradients=nonfinite)
            config.environment(observation_space=OBS, action_space=Discrete(2)).rl_module(model={"hidden": [4]})
            collective = "torch" if backend == "torch" else "horovod"
            config.learners(num_learners=size, learner_class=PoisonedLearner, collective=collective)
            made[kind] = stack.enter_context(config.build_learner_group())
        yield made


def play(fault: NumberFault, group: Any) -> str:
    """Run one fault; returns what came of it: "skipped", "raised", "refused", or "left out" (a metric).

    Raises:
        LostError: ranks decided differently, or something changed that may not; says the fault.
    """
    try:
        outcome = _play(fault, group)
        if fault.place == "parameter":
            return outcome
        _healthy(group)
    except LostError as error:
        raise LostError(f"{error}\n  again: {fault}") from error
    return outcome


def _play(fault: NumberFault, group: Any) -> str:
    states = group.foreach_learner(_state)
    before = _alike(states)
    batch = ppo_batch(fault.rows, Discrete(2), seed=fault.number)
    _set(group, fault)
    if fault.place == "column":
        batch["advantages"][fault.rows - 1 if fault.rank else 0] = VALUES[fault.code]
    raised: Exception | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            group.update_from_batch(batch=batch)
        except lc.LearnerCoreError as error:
            raised = error
    results = group.foreach_learner(_results)
    _unset(group, fault)
    after = group.foreach_learner(_state)
    if fault.place == "parameter":
        after = [_without(state, "rl_module") for state in after]
        before = _without(before, "rl_module")
        group.foreach_learner(_setter(states[0]))
    _alike(after)
    steps = -(-fault.rows // 16)
    if fault.place == "column":
        if not isinstance(raised, lc.BatchError) or states_differ(before, after[0]):
            raise LostError(f"a column that is not finite: {raised!r}")
        return "refused"
    if any(repr(one) != repr(results[0]) for one in results):
        raise LostError(f"ranks report differently: {results}")
    bad = results[0][MID]["num_nonfinite_steps"]
    if fault.place == "metric":
        if raised is not None or bad or "poisoned" in results[0][MID]:
            raise LostError(f"a metric that is not finite: {raised!r}, {results[0][MID]}")
        if not states_differ(before["rl_module"], after[0]["rl_module"]):
            raise LostError("the step was not taken")
        return "left out"
    if bad != steps:
        raise LostError(f"{bad} of {steps} steps were not finite")
    for part in ("rl_module", "optimizer", "variables"):
        if part in before and states_differ(before[part], after[0][part]):
            raise LostError(f"a step that was not finite changed {part}: {states_differ(before[part], after[0][part])}")
    wanted = GROUPS[fault.group][0]
    if wanted == "raise" and not isinstance(raised, lc.NonFiniteError):
        raise LostError(f"not raised but {raised!r}")
    if wanted == "skip" and raised is not None:
        raise LostError(f"raised {raised!r}")
    return {"raise": "raised", "skip": "skipped"}[wanted]


def _healthy(group: Any) -> None:
    """The group goes on, all alike."""
    group.update_from_batch(batch=ppo_batch(16, Discrete(2), seed=1))
    results = group.foreach_learner(_results)
    if results[0][MID]["num_nonfinite_steps"]:
        raise LostError("the step after the fault is not finite")
    _alike(group.foreach_learner(_state))


def _alike(states: list[Any]) -> Any:
    for state in states[1:]:
        if different := states_differ(states[0], state):
            raise LostError(f"ranks differ in {different[:5]}")
    return states[0]


def _without(state: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != part}


def _set(group: Any, fault: NumberFault) -> None:
    group.foreach_learner(_poisoner(fault.place, fault.code, fault.rank))


def _unset(group: Any, fault: NumberFault) -> None:
    if fault.place != "parameter":
        group.foreach_learner(_poisoner(fault.place, 0, fault.rank))


def _poisoner(place: str, code: int, rank: int) -> Callable[[Any], None]:
    def poison(learner: Any) -> None:
        if learner.ranks.rank != rank or place == "column":
            return
        if place != "parameter":
            learner.variables[MID][f"poison_{place}"] = float(code)
            return

        def spoil(module_id: str, params: dict[str, Any]) -> dict[str, Any]:
            name = sorted(params)[0]
            return {**params, name: params[name] * VALUES[code] * 0.0}

        learner.update_parameters(spoil)

    return poison


def _setter(state: Any) -> Callable[[Any], None]:
    return lambda learner: learner.set_state(state) and None


def _state(learner: Any) -> Any:
    return learner.get_state()


def _results(learner: Any) -> Any:
    return {mid: dict(sorted(metrics.items())) for mid, metrics in learner.results.items()}


def table(outcomes: Counter[tuple[str, str]]) -> str:
    """Lines of what came of which place."""
    return "\n".join(f"{place:10} {outcome:8} {count}" for (place, outcome), count in sorted(outcomes.items()))
