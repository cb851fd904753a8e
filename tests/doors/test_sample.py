"""Short runs with default settings, as users type them: a sample of the grid that ``test_full_grid`` goes through."""

from __future__ import annotations

from pathlib import Path

import pytest

from .book import BOOK, read_book, write_book
from .grid import AXES, PAIRS, Case, covering_sample, covers, every_case, expected_refusal
from .start import Door, missing, problem_with

#: Uneven rows of compiled learners that each have their own: what once ended every default run on TensorFlow.
FIXED = [
    Case("ppo", "tf", "spmd", "auto", "None", "discrete"),
    Case("ppo", "torch", "spmd", "auto", "True", "discrete"),
]
TRAINING = [case for case in every_case() if not expected_refusal(case)]
SAMPLE = covering_sample(TRAINING, FIXED)
#: One of every kind of refusal.
REFUSED = [
    *(Case("sac", "torch", "0", "auto", "None", environment) for environment in ("discrete", "memory", "agents")),
    *(Case("bc", "torch", "0", "auto", "None", environment) for environment in ("agents", "memory")),
    Case("ppo", "tf", "2", "torch", "None", "discrete"),
]


def test_the_sample_takes_every_value_and_every_pair_of_backend_and_launcher() -> None:
    assert len(every_case()) == 5 * 2 * 7 * 3 * 2 * 6
    covered = {what for case in SAMPLE for what in covers(case)}
    for axis, values in AXES.items():
        assert {((axis, value),) for value in values} <= covered
    for one, other in PAIRS:
        pairs = {((one, a), (other, b)) for a in AXES[one] for b in AXES[other]}
        # No run sums TensorFlow's arrays by torch.distributed; that it is refused is below.
        assert pairs - covered <= {(("backend", "tf"), ("collective", "torch"))}
    assert len(SAMPLE) < 20


def test_the_book_says_of_no_case_that_it_failed_or_ended_otherwise_than_it_should(tmp_path: Path) -> None:
    book = read_book(BOOK)
    assert {case: letter for case, letter in book.items() if letter != ("r" if expected_refusal(case) else "t")} == {}
    write_book(tmp_path / "book", book)
    assert read_book(tmp_path / "book") == book
    (tmp_path / "book").write_text("ppo torch 0 ttt\n")
    with pytest.raises(ValueError, match="expected 36 of the letters"):
        read_book(tmp_path / "book")


@pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in SAMPLE])
def test_a_short_run(door: Door, case: Case) -> None:
    if reason := missing(case.launcher):
        pytest.skip(reason)
    (said,) = door.run([case], timeout_s=550).values()
    problem = problem_with(case, said)
    assert not problem, problem


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([case for case in REFUSED if (case.backend, case.launcher) == place], id="-".join(place))
        for place in dict.fromkeys((case.backend, case.launcher) for case in REFUSED)
    ],
)
def test_what_does_not_go_together_is_refused_in_words(door: Door, cases: list[Case]) -> None:
    found = door.run(cases, timeout_s=300)
    assert sorted(found) == sorted(cases)
    for case, said in found.items():
        problem = problem_with(case, said)
        assert not problem, problem
