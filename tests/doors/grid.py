"""Every way to start a short run: the axes, what is refused and in which words, and a sample that covers them.

A case is one value of every axis. Imports no framework, and nothing of learner_core.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["AXES", "PAIRS", "Case", "covering_sample", "covers", "every_case", "expected_refusal", "reads_collective"]

AXES: dict[str, tuple[str, ...]] = {
    "algorithm": ("ppo", "sac", "bc", "impala", "appo"),
    "backend": ("torch", "tf"),
    # num_learners; two ranks started by hand with torchrun's variables, or by a launcher's command; two Ray actors.
    "launcher": ("0", "1", "2", "spmd", "horovodrun", "mpirun", "ray"),
    "collective": ("auto", "horovod", "torch"),
    "compile": ("None", "True"),
    "environment": ("discrete", "continuous", "image", "dict", "agents", "memory"),
}
#: Axes of which every pair of values is in a sample; of the others every value is.
PAIRS = (("backend", "launcher"), ("backend", "collective"))


@dataclass(frozen=True, order=True)
class Case:
    """One value of every axis."""

    algorithm: str
    backend: str
    launcher: str
    collective: str
    compile: str
    environment: str

    def __str__(self) -> str:
        return "-".join(asdict(self).values())


def every_case() -> list[Case]:
    """The whole grid."""
    return [Case(*values) for values in itertools.product(*AXES.values())]


def reads_collective(case: Case) -> bool:
    """Whether there are several learners, so that something sums their gradients."""
    return case.launcher not in ("0", "1")


#: (what it matches, what is said): the first that matches is how a run is refused; each is checked in words.
_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"algorithm": "sac", "environment": "discrete"}, r"SpaceError: SAC needs a bounded Box of actions, got Discrete"),
    (
        {"algorithm": "sac", "environment": "memory"},
        r"ConfigError: model={'recurrent': 'lstm'}: SAC learns from single",
    ),
    ({"algorithm": "sac", "environment": "agents"}, r"ConfigError: .*several agents"),
    (
        {"algorithm": "bc", "environment": "memory"},
        r"ConfigError: module 'default_policy' has a memory and learns from",
    ),
    ({"algorithm": "bc", "environment": "agents"}, r"BatchError: there are 2 modules, so the batch must be"),
]
_TORCH_ON_TF = r"LearnerGroupError: collective=\"torch\" reduces Torch's arrays only, and the framework is 'tf'"


def expected_refusal(case: Case) -> str | None:
    """A pattern that the refusal's type and text match; ``None``: the case trains."""
    # Several learners are put together before anything of the algorithm's is looked at, or after; either will do.
    texts = [text for values, text in _REFUSALS if all(getattr(case, axis) == value for axis, value in values.items())]
    if reads_collective(case) and (case.backend, case.collective) == ("tf", "torch"):
        texts.append(_TORCH_ON_TF)
    return "|".join(texts) or None


def covers(case: Case) -> Iterator[tuple[tuple[str, str], ...]]:
    """What a case covers: values of its axes, and its pairs of ``PAIRS``; a collective, where there is one at work."""
    asleep = () if reads_collective(case) else ("collective",)
    for axes in [*((axis,) for axis in AXES), *PAIRS]:
        if not set(axes) & set(asleep):
            yield tuple((axis, getattr(case, axis)) for axis in axes)


def cost_of(case: Case) -> float:
    """About how many seconds of a processor a case takes: what a sample should spend where it says nothing new."""
    learner = {"bc": 1.0, "ppo": 1.1, "impala": 1.3, "appo": 1.5, "sac": 2.5}[case.algorithm]
    network = {"image": 2.0, "memory": 1.5, "agents": 1.5}.get(case.environment, 1.0)
    processes = {"0": 1.0, "1": 1.2, "ray": 3.0}.get(case.launcher, 2.0)
    compiled = 6.0 if case.backend == "tf" else {"None": 0.5, "True": 12.0}[case.compile]
    return processes * (3.0 + learner * network * compiled)


def covering_sample(cases: Sequence[Case], fixed: Sequence[Case] = ()) -> list[Case]:
    """These, and cases that cover every value and pair besides: each in turn the one that covers most for its cost."""
    wanted = {what for case in cases for what in covers(case)} - {what for case in fixed for what in covers(case)}
    chosen: list[Case] = []
    while wanted:
        best = max(sorted(cases), key=lambda case: len(wanted & set(covers(case))) / cost_of(case))
        chosen.append(best)
        wanted -= set(covers(best))
    # What the others cover as well need not be there.
    for case in sorted(chosen, key=cost_of, reverse=True):
        others = [other for other in (*fixed, *chosen) if other != case]
        if {what for other in others for what in covers(other)} >= set(covers(case)):
            chosen.remove(case)
    return [*fixed, *chosen]
