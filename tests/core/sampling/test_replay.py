"""Replay: literal rows, an oracle over whole histories, states, priorities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from learner_core.errors import BatchError, ConfigError, StateError
from learner_core.sampling.priorities import SumTree
from learner_core.sampling.replay import ReplayBuffer
from learner_core.state.format import decode, encode

from support.sampling import CountEnv, NestedEnv, make_runner, same_tree


def chain(start: int, count: int, lanes: int = 1, ends: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """Rows of lanes that count up: obs t, reward t, next_obs t + 1; at ``ends`` an episode is over, next_obs -t."""
    t = np.repeat(np.arange(start, start + count), lanes)
    lane = np.tile(np.arange(lanes), count)
    done = np.isin(t, ends)
    return {
        "obs": np.stack([t, lane], 1).astype(np.float32),
        "rewards": t.astype(np.float32),
        "next_obs": np.stack([np.where(done, -t, t + 1), lane], 1).astype(np.float32),
        "terminateds": done,
    }


def everything(buffer: ReplayBuffer, keys: int = 30, n: int = 64) -> dict[tuple[float, ...], dict[str, Any]]:
    """All rows that turn up in many draws, by observation."""
    rows = {}
    for key in range(keys):
        batch = buffer.sample(n, key)
        for i in range(n):
            rows[tuple(batch["obs"][i].tolist())] = {name: column[i] for name, column in batch.items()}
    return rows


def test_rows_come_back_with_their_dtypes() -> None:
    buffer = ReplayBuffer(10, seed=0)
    buffer.add({"obs": np.zeros((3, 2), np.uint8), "actions": np.array([1, 2, 3]), "weight": np.zeros(3, np.float64)})
    batch = buffer.sample(5, key=0)
    assert {name: (column.shape, column.dtype.name) for name, column in batch.items()} == {
        "obs": ((5, 2), "uint8"),
        "actions": ((5,), "int64"),
        "weight": ((5,), "float64"),
    }
    assert len(buffer) == buffer.num_added == 3


def test_the_oldest_rows_go_first() -> None:
    buffer = ReplayBuffer(5, seed=0)
    for start in range(0, 12, 3):
        buffer.add(chain(start, 3))
    assert sorted(everything(buffer)) == [(float(t), 0.0) for t in range(7, 12)]
    buffer.add(chain(12, 20))
    assert sorted(everything(buffer)) == [(float(t), 0.0) for t in range(27, 32)]
    assert len(buffer) == 5 and buffer.num_added == 32


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("capacity", [7, 12, 60])
def test_next_observations_are_true_however_they_are_stored(lanes: int, capacity: int) -> None:
    buffer = ReplayBuffer(capacity, seed=0)
    ends = (4, 9, 10, 17)
    start = 0
    for count in (1, 3, 5, 1, 1, 8):
        buffer.add(chain(start, count, lanes, ends), lanes=lanes)
        start += count
        for (t, lane), row in everything(buffer, keys=6).items():
            assert row["next_obs"].tolist() == [-t if t in ends else t + 1, lane]
            assert row["terminateds"] == (t in ends)


def test_memory_holds_next_observations_once() -> None:
    def rows(start: int) -> dict[str, np.ndarray]:
        images = (np.arange(start, start + 101) % 251).astype(np.uint8)[:, None].repeat(1000, axis=1)
        return {"obs": images[:-1], "next_obs": images[1:]}

    linked = ReplayBuffer(1000, seed=0)
    for start in range(0, 500, 100):
        linked.add(rows(start))
    assert linked.num_bytes == 500 * 1000
    apart = ReplayBuffer(1000, seed=0)
    apart.add({"obs": rows(0)["obs"], "next_obs": rows(50)["obs"][::-1]})
    assert 1.9 * 100 * 1000 < apart.num_bytes <= 2 * 100 * 1000


def test_n_step_rows_by_hand() -> None:
    buffer = ReplayBuffer(100, seed=0, n_step=3, gamma=0.5)
    buffer.add(chain(1, 6, ends=(4,)))
    rows = {int(obs[0]): row for obs, row in everything(buffer).items()}
    got = {
        t: (float(row["rewards"]), float(row["discounts"]), float(row["next_obs"][0]), bool(row["terminateds"]))
        for t, row in rows.items()
    }
    assert got == {
        1: (1 + 2 / 2 + 3 / 4, 1 / 8, 4.0, False),
        2: (2 + 3 / 2 + 4 / 4, 1 / 8, -4.0, True),
        3: (3 + 4 / 2, 1 / 4, -4.0, True),
        4: (4, 1 / 2, -4.0, True),
        5: (5 + 6 / 2, 1 / 4, 7.0, False),
        6: (6, 1 / 2, 7.0, False),
    }


@settings(max_examples=60)
@given(st.data())
def test_n_step_rows_against_a_walk_over_the_history(data: Any) -> None:
    lanes = data.draw(st.integers(1, 3))
    n_step = data.draw(st.integers(1, 4))
    capacity = data.draw(st.integers(lanes * 2, 24))
    gamma = 0.9
    buffer = ReplayBuffer(capacity, seed=1, n_step=n_step, gamma=gamma)
    history: list[list[dict[str, Any]]] = [[] for _ in range(lanes)]
    names = ("obs", "rewards", "next_obs", "terminateds", "truncateds")
    number = 0.0
    obs = -1000 - np.arange(lanes, dtype=np.float32)
    for _ in range(data.draw(st.integers(1, 6))):
        columns: dict[str, list[Any]] = {name: [] for name in names}
        valid = []
        for _ in range(data.draw(st.integers(1, 4))):
            for lane in range(lanes):
                number += 1
                kind = data.draw(st.sampled_from(["on", "on", "on", "terminated", "truncated", "invalid"]))
                row = {"obs": obs[lane], "rewards": np.float32(number), "next_obs": np.float32(number)}
                row |= {"terminateds": kind == "terminated", "truncateds": kind == "truncated"}
                obs[lane] = row["next_obs"] if kind in ("on", "invalid") else -number
                for name, values in columns.items():
                    values.append(row[name])
                valid.append(kind != "invalid")
                history[lane].append(row | {"valid": kind != "invalid"})
        buffer.add({name: np.array(values) for name, values in columns.items()}, lanes=lanes, valid=np.array(valid))
    kept = capacity // lanes
    expected = {}
    for rows in history:
        rows = rows[-kept:]
        for start, row in enumerate(rows):
            if not row["valid"]:
                continue
            total, discount, last = 0.0, 1.0, row
            for ahead in rows[start : start + n_step]:
                if not ahead["valid"]:
                    break
                total, discount, last = total + discount * ahead["rewards"], discount * gamma, ahead
                if ahead["terminateds"] or ahead["truncateds"]:
                    break
            expected[float(row["rewards"])] = (float(row["obs"]), total, discount, float(last["next_obs"]), last)
    if not expected:
        with pytest.raises(BatchError, match="empty"):
            buffer.sample(1, 0)
        return
    assert len(buffer) == len(expected)
    by_obs = {value[0]: value for value in expected.values()}
    for key in range(4):
        batch = buffer.sample(16, key)
        for i in range(16):
            _, total, discount, following, last = by_obs[float(batch["obs"][i])]
            np.testing.assert_allclose(batch["rewards"][i], total, rtol=1e-5)
            assert float(batch["next_obs"][i]) == following
            assert batch["terminateds"][i] == last["terminateds"] and batch["truncateds"][i] == last["truncateds"]
            if n_step > 1:
                np.testing.assert_allclose(batch["discounts"][i], discount, rtol=1e-6)


@pytest.mark.parametrize("env", [lambda config: CountEnv(), lambda config: NestedEnv()], ids=["count", "nested"])
def test_rollouts_of_a_runner_go_in_as_they_are(env: Any) -> None:
    runner = make_runner(env, num_envs=3)
    buffer = ReplayBuffer(500, seed=0)
    batches = []
    for length in (1, 4, 2, 9, 1):
        rollout = runner.sample(length, random_actions=length == 1)
        buffer.add_rollout(rollout)
        batches.append(rollout.rows())
    rewards = np.concatenate([batch["rewards"] for batch in batches])
    drawn = buffer.sample(200, key=3)
    assert set(drawn) == {"obs", "actions", "rewards", "next_obs", "terminateds", "truncateds"}
    if isinstance(drawn["obs"], dict):
        lookup = {float(reward): i for i, reward in enumerate(rewards)}
        for i in range(200):
            row = lookup[float(drawn["rewards"][i])]
            image = np.concatenate([batch["next_obs"]["image"] for batch in batches])[row]
            assert np.array_equal(drawn["next_obs"]["image"][i], image)
    else:
        # CountEnv: the next observation is always one step on, at an episode's end as well.
        assert np.array_equal(drawn["next_obs"], drawn["obs"] + [0, 1])


def test_draws_are_a_function_of_seed_and_key() -> None:
    def draw(seed: int, key: int, n: int = 50) -> np.ndarray:
        buffer = ReplayBuffer(1000, seed)
        buffer.add(chain(0, 900))
        return buffer.sample(n, key)["obs"][:, 0]

    assert np.array_equal(draw(0, 5), draw(0, 5))
    assert np.array_equal(draw(0, 5)[:20], draw(0, 5, n=20))
    assert not np.array_equal(draw(0, 5), draw(0, 6)) and not np.array_equal(draw(0, 5), draw(1, 5))


def test_draws_are_uniform_over_valid_rows() -> None:
    buffer = ReplayBuffer(50, seed=0)
    valid = np.arange(40) % 4 == 0
    buffer.add(chain(0, 40), valid=valid)
    counts = np.bincount(buffer.sample(20_000, key=0)["obs"][:, 0].astype(int), minlength=40)
    assert (counts[~valid] == 0).all()
    assert np.abs(counts[valid] / 2000 - 1).max() < 0.1
    assert len(buffer) == 10


def test_a_single_valid_row_among_many_is_found() -> None:
    buffer = ReplayBuffer(2000, seed=0)
    buffer.add(chain(0, 2000), valid=np.arange(2000) == 77)
    assert set(buffer.sample(9, key=0)["obs"][:, 0].tolist()) == {77.0}


@pytest.mark.parametrize("settings_", [{}, {"n_step": 3}, {"prioritized": True}], ids=str)
@pytest.mark.parametrize("count", [3, 40], ids=["filling", "full"])
def test_state_restores_the_very_same_draws(settings_: dict[str, Any], count: int) -> None:
    def fresh(seed: int) -> ReplayBuffer:
        return ReplayBuffer(31, seed, **settings_)

    first, second = fresh(1), fresh(2)
    for i in range(count):
        first.add(chain(2 * i, 2, 3, ends=(5, 20, 33, 60, 61)), lanes=3)
        if settings_.get("prioritized"):
            indices = first.sample(8, i)["indices"]
            first.update_priorities(indices, 0.1 + indices % 5)
    state = decode(encode(first.get_state()).tobytes())
    assert state["storage"]["columns"]["obs"].shape[0] == min(6 * count, 30)  # only what is filled
    second.add(chain(0, 1))
    second.set_state(state)
    assert encode(second.get_state()).tobytes() == encode(first.get_state()).tobytes()
    for i in range(count, count + 15):
        for buffer in (first, second):
            buffer.add(chain(2 * i, 2, 3, ends=(2 * i + 1,)), lanes=3)
        assert same_tree(first.sample(20, i), second.sample(20, i))


def test_state_shares_no_memory() -> None:
    buffer = ReplayBuffer(10, seed=0, prioritized=True)
    buffer.add(chain(0, 8))
    state = buffer.get_state()
    before = encode(state).tobytes()
    buffer.add(chain(8, 9))
    buffer.update_priorities(np.array([1]), np.array([9.0]))
    assert encode(state).tobytes() == before
    buffer.set_state(state)
    state["storage"]["columns"]["obs"][:] = 7
    assert buffer.get_state()["storage"]["columns"]["obs"][0, 0] == 0


def test_set_state_refuses_another_kind_of_buffer() -> None:
    buffer = ReplayBuffer(10, seed=0)
    buffer.add(chain(0, 3))
    with pytest.raises(StateError, match="capacity: expected 11, got 10"):
        ReplayBuffer(11, seed=0).set_state(buffer.get_state())
    with pytest.raises(StateError, match="priorities: expected prioritized=True"):
        ReplayBuffer(10, seed=0, prioritized=True).set_state(buffer.get_state())
    state = buffer.get_state()
    state["storage"]["columns"]["obs"] = state["storage"]["columns"]["obs"][:2]
    with pytest.raises(StateError, match="columns/obs: expected 3 rows"):
        ReplayBuffer(10, seed=0).set_state(state)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"obs": np.zeros((2, 3))}, {}, "expected the columns"),
        (
            chain(0, 2) | dict.fromkeys(("obs", "next_obs"), np.zeros((2, 5), np.float32)),
            {},
            "column .obs.: expected float32",
        ),
        (chain(0, 2) | {"terminateds": np.array([1.5, 2])}, {}, "column .terminateds.: expected bool"),
        (chain(0, 2) | {"next_obs": np.zeros((2, 5), np.float32)}, {}, "column .next_obs.: expected the shapes"),
        (chain(0, 2) | {"rewards": np.zeros(3, np.float32)}, {}, "one length"),
        (chain(0, 2), {"lanes": 2}, "lanes"),
    ],
)
def test_add_refuses_columns_that_changed(columns: Any, options: Any, message: str) -> None:
    buffer = ReplayBuffer(10, seed=0)
    buffer.add(chain(0, 3))
    before = encode(buffer.get_state()["storage"]).tobytes()
    with pytest.raises(BatchError, match=message):
        buffer.add(columns, **options)
    assert encode(buffer.get_state()["storage"]).tobytes() == before


def test_settings_and_empty_buffers_are_refused() -> None:
    for bad in ({"capacity": 0}, {"n_step": 0}, {"gamma": 1.1}, {"alpha": -1}, {"beta": 2}):
        with pytest.raises(ConfigError):
            ReplayBuffer(**{"capacity": 5, "seed": 0, **bad})
    with pytest.raises(BatchError, match="empty"):
        ReplayBuffer(5, seed=0).sample(1, 0)


def test_priorities_decide_how_often() -> None:
    buffer = ReplayBuffer(16, seed=0, prioritized=True, alpha=0.5, beta=1.0)
    buffer.add(chain(0, 4), valid=np.array([True, True, True, False]))
    assert (buffer.sample(100, 0)["weights"] == 1).all()  # all new rows are alike
    buffer.update_priorities(np.array([0, 1, 2, 3]), np.array([1.0, 4.0, 49.0, 9.0]))
    batch = buffer.sample(1000, 1)
    assert np.bincount(batch["indices"], minlength=4).tolist() == [100, 200, 700, 0]  # stratified: exact
    probability = np.array([0.1, 0.2, 0.7])[batch["indices"]]
    np.testing.assert_allclose(batch["weights"], 0.1 / probability, rtol=1e-6)
    np.testing.assert_allclose(
        buffer.sample(50, 2, beta=0.5)["weights"] ** 2, buffer.sample(50, 2)["weights"], rtol=1e-5
    )
    buffer.add(chain(4, 1))
    assert (buffer.sample(170, 0)["indices"] == 4).sum() == 70  # the highest priority so far


@pytest.mark.parametrize(
    ("indices", "priorities"), [([9], [1.0]), ([0], [0.0]), ([0], [np.nan]), ([-1], [1.0]), ([0, 1], [1.0])]
)
def test_bad_priorities_are_refused(indices: Any, priorities: Any) -> None:
    buffer = ReplayBuffer(16, seed=0, prioritized=True)
    buffer.add(chain(0, 4))
    with pytest.raises(BatchError):
        buffer.update_priorities(np.array(indices), np.array(priorities))
    with pytest.raises(BatchError, match="prioritized=True"):
        ReplayBuffer(16, seed=0).update_priorities(np.array([0]), np.array([1.0]))


@given(st.lists(st.tuples(st.integers(0, 12), st.floats(0, 1e6)), min_size=1, max_size=40), st.data())
def test_sum_tree_against_cumulative_sums(updates: list[tuple[int, float]], data: Any) -> None:
    tree = SumTree(13)
    flat = np.zeros(13)
    while updates:
        size = data.draw(st.integers(1, len(updates)))
        chunk, updates = updates[:size], updates[size:]
        indices, values = np.array([i for i, _ in chunk]), np.array([v for _, v in chunk])
        tree.set(indices, values)
        for i, value in chunk:
            flat[i] = value
    assert np.array_equal(tree[np.arange(13)], flat)
    np.testing.assert_allclose(tree.total, flat.sum(), rtol=1e-12)
    if flat.sum() > 0:
        positions = (
            np.array(data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5))) * tree.total
        )
        found = tree.find(positions)
        assert (flat[found] > 0).all()
        ends = np.cumsum(flat)
        slack = 1e-9 * tree.total
        assert (positions <= ends[found] + slack).all() and (positions >= ends[found] - flat[found] - slack).all()


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("prioritized", [False, True])
def test_rows_of_another_number_of_environments_go_on(lanes: int, prioritized: bool) -> None:
    """The old rows keep their next observations and priorities, and nothing continues them."""
    buffer = ReplayBuffer(30, seed=0, n_step=3, gamma=0.5, prioritized=prioritized)
    buffer.add(chain(0, 7, lanes=3, ends=(4,)), lanes=3)  # wraps around: 21 rows, then 15
    buffer.add(chain(7, 5, lanes=3), lanes=3)
    if prioritized:
        drawn = buffer.sample(200, 0)
        buffer.update_priorities(drawn["indices"], np.where(drawn["obs"][:, 0] == 9, 50.0, 0.01))
    buffer.set_lanes(lanes)
    assert len(buffer) == 30
    old = everything(buffer, keys=60)
    if prioritized:
        shares = buffer.sample(1000, 0)["obs"][:, 0]
        assert (shares == 9).mean() > 0.9
    for (t, lane), row in old.items():
        np.testing.assert_array_equal(row["next_obs"], [-t if t == 4 else t + 1, lane])
        assert row["rewards"] == t and row["discounts"] == 0.5
    # New rows look ahead along their own lanes, also where they happen to show what the old ones' next ones were.
    new = chain(12, 6, lanes=lanes)
    if lanes == 1:
        for name in ("obs", "next_obs"):
            new[name][:, 1] = 2.0  # goes on, to all appearances, from the last of the old rows
    buffer.add(new, lanes=lanes)
    for (t, lane), row in everything(buffer, keys=60).items():
        ahead = 1 if t < 12 else min(3, 18 - t)
        np.testing.assert_array_equal(row["next_obs"], [-t if t == 4 else t + ahead, lane])
        assert row["discounts"] == 0.5**ahead
    again = ReplayBuffer(30, seed=0, n_step=3, gamma=0.5, prioritized=prioritized)
    again.set_state(decode(encode(buffer.get_state()).tobytes()))
    assert same_tree(again.sample(20, 3), buffer.sample(20, 3))


def test_rollouts_of_several_runners_stand_side_by_side() -> None:
    from learner_core.sampling.rollout import join_lanes

    rollouts = [make_runner(lambda config: NestedEnv(), count, worker_index=count).sample(6) for count in (2, 3)]
    joined = join_lanes(rollouts)
    assert (joined.num_steps, joined.num_envs, joined.num_env_steps) == (6, 5, 30)
    assert joined.episodes == [*rollouts[0].episodes, *rollouts[1].episodes]
    for name, first, rest in (("left", slice(0, 2), 0), ("right", slice(2, 5), 1)):
        part = rollouts[rest]
        assert same_tree(joined.columns["obs"]["image"][:, first], part.columns["obs"]["image"]), name
        np.testing.assert_array_equal(joined.bootstrap_values[:, first], part.bootstrap_values)
    assert join_lanes(rollouts[:1]) is rollouts[0]
