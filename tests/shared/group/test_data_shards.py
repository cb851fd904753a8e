"""Rows in fixed shards: one learner that has them all, and learners that have some each, compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import learner_core as lc
from learner_core.learning.plan import RowOrder, even_shards, make_plan, shares_of
from learner_core.learning.rank_exchange import RankExchange
from learner_core.learning.ranks import OwnRows
from learner_core.maths import noise
from learner_core_algorithms import PPOConfig, SACConfig

from support.learners import (
    OBS,
    ToyConfig,
    ToyLearner,
    assert_states_equal,
    ppo_batch,
    regression_batch,
    sac_batch,
    tiny,
    two_modules,
)
from support.rings import ThreadRing

TOLERANCE = 1e-10
TWO = Discrete(2)
BOX = Box(-1.0, 1.0, (2,), np.float32)


def _group(size: int, config: Any, space: Any, shards: int) -> tuple[Any, ThreadRing]:
    config.environment(observation_space=OBS, action_space=space).learners(data_shards=shards)
    frozen = config.copy().freeze()
    learner_class = frozen.get_learner_class()
    return learner_class(frozen), ThreadRing(size, lambda ring: learner_class(frozen, ranks=ring), sharded=True)


def _rows(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, dict):
        return {name: _rows(column, start, stop) for name, column in batch.items()}
    return batch[start:stop]


def _train(one: Any, ring: ThreadRing, batch: dict[str, Any], shard_rows: Sequence[int]) -> None:
    """One update of both: the whole batch on one, each learner's shards on the others."""
    size = len(ring.learners)
    each = len(shard_rows) // size
    starts = np.concatenate([[0], np.cumsum(shard_rows)])
    alone = one.update_from_batch(batch=batch, shard_rows=shard_rows)

    def update(learner: Any) -> Any:
        first, last = learner.ranks.rank * each, (learner.ranks.rank + 1) * each
        own = _rows(batch, starts[first], starts[last])
        return learner.update_from_batch(batch=own, shard_rows=shard_rows[first:last])

    for results in ring.each(update):
        for name, value in alone["default_policy"].items():
            if name != "vf_explained_variance":  # no mean over rows, so not the mean of the learners'
                assert results["default_policy"][name] == pytest.approx(value, rel=1e-9, abs=TOLERANCE), name
    for learner in ring.learners:
        assert_states_equal(one.get_state(), learner.get_state(), atol=TOLERANCE)
    assert_states_equal(ring.learners[0].get_state(), ring.learners[-1].get_state(), atol=0)


@pytest.mark.parametrize(
    ("size", "normalize"), [(2, "minibatch"), pytest.param(4, "batch", marks=pytest.mark.fast_on_torch)]
)
def test_four_shards_on_one_two_and_four_learners(training_backend_name: str, size: int, normalize: str) -> None:
    """Even shards, uneven ones, empty ones; fewer rows than shards, all in one."""
    config = tiny(PPOConfig(), training_backend_name, lr=0.01, normalize_advantages=normalize, num_epochs=2)
    one, ring = _group(size, config, TWO, 4)
    for shard_rows in ([4, 4, 4, 4], [9, 1, 0, 4], [0, 0, 3, 0]):
        _train(one, ring, ppo_batch(sum(shard_rows), TWO, seed=sum(shard_rows)), shard_rows)


@pytest.mark.fast_on_torch
def test_masked_rows_where_one_learner_has_a_mask(training_backend_name: str) -> None:
    config = tiny(PPOConfig(), training_backend_name, lr=0.01, accumulate=2, normalize_advantages="minibatch")
    one, ring = _group(2, config, TWO, 2)
    rng = np.random.default_rng(0)
    batch = {**ppo_batch(16, TWO, seed=1), "loss_mask": np.concatenate([(rng.random(9) < 0.6) * 1.0, np.ones(7)])}
    one.update_from_batch(batch=batch, shard_rows=[9, 7])
    own = [_rows(batch, 0, 9), _rows(batch, 9, 16)]
    own[1].pop("loss_mask")
    ring.each(lambda learner: learner.update_from_batch(batch=own[learner.ranks.rank]))
    for learner in ring.learners:
        assert_states_equal(one.get_state(), learner.get_state(), atol=TOLERANCE)


def test_sac_step_by_step(training_backend_name: str) -> None:
    one, ring = _group(2, tiny(SACConfig(), training_backend_name), BOX, 2)
    for seed, shard_rows in enumerate(([4, 4], [5, 3], [8, 0], [1, 2])):
        _train(one, ring, sac_batch(sum(shard_rows), seed=seed), shard_rows)


@pytest.fixture
def toys(training_backend_name: str) -> tuple[Any, ThreadRing]:
    """A learner of two modules, and two in a ring."""
    config = ToyConfig().framework(training_backend_name, compile=False, precision="float64")
    config.training(lr=0.05, minibatch_size=4, train_batch_size=8, num_epochs=1, grad_clip=None)
    frozen = config.learners(learner_class=ToyLearner, data_shards=2).freeze()
    one = ToyLearner(frozen, module_spec=two_modules())
    ring = ThreadRing(2, lambda place: ToyLearner(frozen, module_spec=two_modules(), ranks=place), sharded=True)
    return one, ring


@pytest.mark.fast_on_torch
def test_a_module_that_a_learner_has_no_rows_of(toys: tuple[Any, ThreadRing]) -> None:
    one, ring = toys
    left, right = regression_batch(9), regression_batch(3, seed=1)
    empty = _rows(right, 0, 0)
    for own in (
        [{"left": left}, {"right": right}],
        [{"left": _rows(left, 0, 2)}, {"left": _rows(left, 2, 9), "right": right}],
        [{}, {"left": left}],
        [{"left": left, "right": empty}, {"right": right}],
    ):
        counts = {
            mid: [len(rows[mid]["obs"]) if mid in rows else 0 for rows in own]
            for mid in ("left", "right")
            if any(mid in rows for rows in own)
        }
        whole = {mid: left if mid == "left" else right for mid in counts}
        one.update_from_batch(batch=whole, shard_rows=counts)
        ring.each(lambda learner, own=own: learner.update_from_batch(batch=own[learner.ranks.rank]))
        for learner in ring.learners:
            assert_states_equal(one.get_state(), learner.get_state(), atol=TOLERANCE)


def test_a_batch_that_one_learner_refuses_is_refused_by_all(toys: tuple[Any, ThreadRing]) -> None:
    _, ring = toys
    before = ring.learners[0].get_state()
    good, bad = {"left": regression_batch(4)}, {"left": {**regression_batch(4), "value_targets": np.full(4, np.nan)}}

    def update(learner: Any) -> Any:
        with pytest.raises(lc.LearnerCoreError) as refused:
            learner.update_from_batch(batch=bad if learner.ranks.rank else good)
        return refused.value

    first, second = ring.each(update)
    assert isinstance(second, lc.BatchError)
    assert "refused on rank 1 of 2, so on all: rank 1: BatchError" in str(first) and "NaN" in str(first)
    for learner in ring.learners:
        assert_states_equal(before, learner.get_state(), atol=0)
    ring.each(lambda learner: learner.update_from_batch(batch=good))


def test_ranks_that_are_told_different_things_hear_of_it(toys: tuple[Any, ThreadRing]) -> None:
    _, ring = toys

    def update(learner: Any) -> str:
        with pytest.raises(lc.LearnerGroupError) as refused:
            learner.update_from_batch(batch={"left": regression_batch(4)}, timesteps={"n": learner.ranks.rank})
        return str(refused.value)

    assert "timesteps must be the same on all 2 ranks; rank 0 has {'n': 0}" in ring.each(update)[0]


def test_shard_rows_that_do_not_add_up_are_refused(toys: tuple[Any, ThreadRing]) -> None:
    one, _ = toys
    batch = {"left": regression_batch(4)}
    for wrong in ([1, 2], [4], [5, -1], "22", [2.0, 2.0], {"right": [1, 1]}):
        with pytest.raises(lc.BatchError, match="shard_rows"):
            one.update_from_batch(batch=batch, shard_rows=wrong)
    with pytest.raises(lc.BatchError, match=r"give \{module_id"):
        one.update_from_batch(batch={**batch, "right": regression_batch(4)}, shard_rows=[2, 2])


def test_shards_that_cannot_be_dealt_out_are_refused(training_backend_name: str) -> None:
    with pytest.raises(lc.ConfigError, match="data_shards=3: 2 learners"):
        _group(2, tiny(PPOConfig(), training_backend_name), TWO, 3)


@pytest.mark.parametrize("shard_rows", [[4, 4, 4, 4], [10, 1, 0, 6], [1, 0, 0, 0], [3, 3, 3, 2], [64, 1, 1, 31]])
def test_the_plan_takes_from_every_shard_in_proportion(shard_rows: list[int]) -> None:
    total = sum(shard_rows)
    shares = shares_of(tuple(shard_rows), 4)
    assert shares.sum(axis=0).tolist() == shard_rows
    assert shares.sum(axis=1).tolist() == [4] * (total // 4) + ([total % 4] if total % 4 else [])
    assert np.abs(np.cumsum(shares, axis=0) - np.outer(np.cumsum(shares.sum(axis=1)), shard_rows) / total).max() < 2
    plan = make_plan(shard_rows, minibatch=4, num_epochs=2, order=RowOrder(1, 2, 3))
    steps = plan.num_steps // 2
    for epoch in (slice(0, steps), slice(steps, None)):
        part = plan.lines(*epoch.indices(plan.num_steps)[:2])
        drawn = np.concatenate([line[:rows] for line, rows in zip(part.indices, part.rows, strict=True)])
        assert sorted(drawn.tolist()) == list(range(total))
    for size in (2, 4):  # what learners see of it, who hold some shards each
        each = 4 // size
        parts = []
        for rank in range(size):
            held = (rank * each, (rank + 1) * each)
            own = make_plan(shard_rows, minibatch=4, num_epochs=2, order=RowOrder(1, 2, 3), own=held)
            share = OwnRows(rank, size, exchange=RankExchange(rank, size, lambda flat, name: flat)).share(own)
            parts.append((share, sum(shard_rows[: rank * each])))
        for step in range(plan.num_steps):
            line = np.concatenate([s.indices[step, : s.rows[step]] + offset for s, offset in parts])
            np.testing.assert_array_equal(line, plan.indices[step, : plan.rows[step]])


def test_a_batch_without_shards_is_drawn_by_seed_update_and_module() -> None:
    plan = make_plan([10], minibatch=4, num_epochs=2, order=RowOrder(1, 2, 3))
    drawn = np.concatenate([line[:rows] for line, rows in zip(plan.indices, plan.rows, strict=True)])
    expected = [noise.permutation(1, 2 * 4096 + epoch, 3, 10) for epoch in (0, 1)]
    np.testing.assert_array_equal(drawn, np.concatenate(expected))
    in_order = make_plan([10], minibatch=4, num_epochs=1, order=RowOrder(1, 2, 3, shuffle=False))
    assert in_order.indices.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]
    assert even_shards(10, 4) == [2, 3, 2, 3]
