"""Fragments as sequences, sequences that wait, and batches that are used again: nothing is lost or used too often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner_core.sampling.circular_replay import CircularReplay
from learner_core.sampling.fragments import WaitingSequences, fragment_to_sequences
from learner_core.sampling.rollout import Rollout


def rollout(steps: int = 4, lanes: int = 3, **columns: Any) -> Rollout:
    """obs says where it is from: 100 * step + lane; next_obs is half a step further."""
    place = 100.0 * np.arange(steps)[:, None] + np.arange(lanes)
    no = np.zeros((steps, lanes), bool)
    return Rollout(
        {
            "obs": place[..., None].astype(np.float32),
            "next_obs": {"a": (place + 50)[..., None]},
            "actions": np.arange(steps * lanes).reshape(steps, lanes),
            "rewards": place.astype(np.float32),
            "terminateds": no.copy(),
            "truncateds": no.copy(),
            "vf_preds": place,
            "valid": ~no,
            **columns,
        },
        bootstrap_values=place.astype(np.float32) + 0.5,
    )


def test_a_lane_is_a_sequence() -> None:
    batch = fragment_to_sequences(rollout())
    assert batch["obs"].shape == (3, 4, 1)
    assert batch["obs"][1, :, 0].tolist() == [1, 101, 201, 301]
    assert batch["bootstrap_obs"]["a"][:, 0].tolist() == [350, 351, 352]
    assert batch["bootstrap_values"][2].tolist() == [2.5, 102.5, 202.5, 302.5]
    assert batch["loss_mask"].dtype == np.float32 and batch["loss_mask"].all()
    assert "next_obs" not in batch and "valid" not in batch


def test_only_what_is_wanted() -> None:
    batch = fragment_to_sequences(rollout(), {"obs", "rewards", "loss_mask"})
    assert sorted(batch) == ["loss_mask", "obs", "rewards"]


def test_what_is_no_experience_cuts_what_is_before_it() -> None:
    """Lane 0: a step without experience; lane 1: the same behind a termination; lane 2: at the fragment's end."""
    fragment = rollout()
    fragment.columns["valid"][[1, 1, 3], [0, 1, 2]] = False
    fragment.columns["terminateds"][0, 1] = True
    before = fragment.columns["truncateds"].copy()
    batch = fragment_to_sequences(fragment)
    assert batch["truncateds"][0].tolist() == [True, False, False, False]
    assert batch["truncateds"][1].tolist() == [False] * 4
    assert batch["truncateds"][2].tolist() == [False, False, True, False]
    assert batch["loss_mask"].tolist() == [[1, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]]
    np.testing.assert_array_equal(fragment.columns["truncateds"], before)


def test_waiting_sequences_leave_in_the_order_they_came() -> None:
    waiting = WaitingSequences()
    for version in (3, 4, 7):
        waiting.add(fragment_to_sequences(rollout(lanes=2 + version)), version)
    assert len(waiting) == 5 + 6 + 9
    again = WaitingSequences()
    again.set_state(waiting.get_state())
    for queue in (waiting, again):
        batch, versions = queue.take(8)
        assert versions.tolist() == [3] * 5 + [4] * 3
        assert batch["obs"][:, 0, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
        assert batch["bootstrap_obs"]["a"][:, 0].tolist() == [350, 351, 352, 353, 354, 350, 351, 352]
        batch, versions = queue.take(12)
        assert versions.tolist() == [4] * 3 + [7] * 9
        assert batch["obs"][:3, 0, 0].tolist() == [3, 4, 5]
        assert len(queue) == 0
        assert queue.get_state()["batch"] is None


# ---- circular replay -------------------------------------------------------------------------------------------------


def play(replay: CircularReplay, numbers: range, uses: int) -> list[int]:
    """Add batches and draw as an algorithm does; the numbers of what was used, leftovers of the evicted included."""
    used = []
    for number in numbers:
        evicted = replay.add({"n": number}, {})
        if evicted is not None:
            used += [evicted.batch["n"]] * evicted.uses_left
        for _ in range(uses):
            drawn = replay.draw()
            if drawn is not None:
                used.append(drawn.batch["n"])
    return used


def test_one_batch_one_use_is_no_replay() -> None:
    assert play(CircularReplay(1, 1, 0), range(5), 1) == [0, 1, 2, 3, 4]


def test_one_batch_is_used_in_a_row() -> None:
    assert play(CircularReplay(1, 3, 0), range(2), 3) == [0, 0, 0, 1, 1, 1]


def test_no_batch_is_used_too_often_and_none_is_lost() -> None:
    replay = CircularReplay(4, 2, 5)
    used = play(replay, range(40), 2)
    left = [stored.batch["n"] for stored in replay._stored for _ in range(stored.uses_left)]
    assert sorted(used + left) == sorted([*range(40)] * 2)
    assert used[0] in range(4), "nothing is drawn before four batches have come"
    assert used != sorted(used)


@pytest.mark.parametrize("stop", [2, 9])
def test_draws_go_on_from_a_state(stop: int) -> None:
    whole, first, second = CircularReplay(4, 2, 5), CircularReplay(4, 2, 5), CircularReplay(4, 2, 5)
    used = play(first, range(stop), 2)
    second.set_state(first.get_state())
    assert used + play(second, range(stop, 30), 2) == play(whole, range(30), 2)
