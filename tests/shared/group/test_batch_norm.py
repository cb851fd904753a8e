"""BatchNorm over the rows of all learners: N of them compute what one computes, statistics too; or it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core_algorithms import PPOConfig

from support.learners import OBS, assert_states_equal, ppo_batch
from support.rings import ThreadRing
from support.row_networks import coupled_network, norm_network

TWO = Discrete(2)
MID = "default_policy"
#: Before BatchNorm a bias has no gradient but rounding, which Adam makes steps of: up to 1e-9 here.
TOLERANCE = 1e-8

pytestmark = pytest.mark.filterwarnings("ignore:.*is not portable:UserWarning")


def config_for(backend: str, network: Any, **training: Any) -> Any:
    settings = {"train_batch_size": 16, "minibatch_size": 8, "num_epochs": 1, "lr": 0.01, **training}
    config = PPOConfig().framework(backend, compile=False, precision="float64").training(**settings)
    return config.rl_module(rl_module_spec=lc.RLModuleSpec(network, OBS, TWO))


def group_of(size: int, config: Any, *, sharded: bool = False) -> tuple[Any, ThreadRing]:
    """One learner, and ``size`` of the same in a ring; all begin with one state, for a network has its own start."""
    frozen = config.copy().freeze()
    learner_class = frozen.get_learner_class()
    one = learner_class(frozen)
    ring = ThreadRing(size, lambda place: learner_class(frozen, ranks=place), sharded=sharded)
    for learner in ring.learners:
        learner.set_state(one.get_state())
    return one, ring


def check(one: Any, ring: ThreadRing) -> None:
    for learner in ring.learners:
        assert_states_equal(one.get_state(), learner.get_state(), atol=TOLERANCE)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_weights_and_statistics_are_those_of_one_learner(training_backend_name: str, size: int) -> None:
    """13 rows, then 7 and 2 in minibatches of 8: uneven shares, and learners that have no row of a minibatch."""
    one, ring = group_of(size, config_for(training_backend_name, norm_network(training_backend_name)))
    start = one.get_state()["buffers"][MID]
    for rows in (13, 7, 2):
        batch = ppo_batch(rows, TWO, seed=rows)
        alone = one.update_from_batch(batch=batch)[MID]
        for results in ring.each(lambda learner, b=batch: learner.update_from_batch(batch=b)):
            for name in ("policy_loss", "vf_loss", "entropy"):
                assert results[MID][name] == pytest.approx(alone[name], abs=TOLERANCE), name
        check(one, ring)
    moved = one.get_state()["buffers"][MID]
    assert max(np.abs(moved[name] - start[name]).max() for name in moved) > 0.1


@pytest.mark.fast_on_torch
def test_learners_that_have_rows_of_their_own(training_backend_name: str) -> None:
    config = config_for(training_backend_name, norm_network(training_backend_name)).learners(data_shards=2)
    one, ring = group_of(2, config, sharded=True)
    for seed, (first, second) in enumerate([(9, 3), (0, 6)]):
        batch = ppo_batch(first + second, TWO, seed=seed)
        one.update_from_batch(batch=batch, shard_rows=[first, second])
        own = [{n: c[:first] for n, c in batch.items()}, {n: c[first:] for n, c in batch.items()}]
        ring.each(lambda learner, own=own: learner.update_from_batch(batch=own[learner.ranks.rank]))
        check(one, ring)


def test_a_compiled_share_is_refused_and_the_default_says_that_it_is_none(training_backend_name: str) -> None:
    config = config_for(training_backend_name, norm_network(training_backend_name))
    words = r"normalises by a whole minibatch, of which each of 2 learners has a part"
    frozen = config.copy().framework(training_backend_name, compile=True).freeze()
    with pytest.raises(lc.CompileError, match=rf"compile=True, but .*{words}"):
        ThreadRing(2, lambda place: frozen.get_learner_class()(frozen, ranks=place))
    if training_backend_name == "tf":  # Torch would compile after many more steps
        frozen = config.copy().framework(training_backend_name, compile=None).freeze()
        with pytest.warns(RuntimeWarning, match=rf"runs uncompiled .*{words}"):
            ring = ThreadRing(2, lambda place: frozen.get_learner_class()(frozen, ranks=place))
        results = ring.each(lambda learner: learner.update_from_batch(batch=ppo_batch(8, TWO)))
        assert [found["__all__"]["compiled"] for found in results] == [0.0, 0.0]


def test_parts_of_a_minibatch_are_refused(training_backend_name: str) -> None:
    config = config_for(training_backend_name, norm_network(training_backend_name), accumulate=2)
    with pytest.raises(
        lc.ConfigError, match=r"accumulate=2 with 2 learners: .* would normalise by the rows of one part"
    ):
        group_of(2, config)


def test_rows_that_know_of_each_other_by_something_else_are_refused(training_backend_name: str) -> None:
    config = config_for(training_backend_name, coupled_network(training_backend_name))
    frozen = config.copy().freeze()
    learner_class = frozen.get_learner_class()
    learner_class(frozen)  # alone, everything is there
    with pytest.raises(lc.ConfigError, match=r"2 learners cannot train module 'default_policy'.*action_dist_inputs"):
        group_of(2, config)


class CountingModule(lc.RLModule):
    """A linear policy and values, and a count of forward passes that begins with more than float32 can tell apart."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"pi.weight": rng.normal(size=(2, 3)), "vf.weight": rng.normal(size=(1, 3))}

    def init_buffers(self) -> dict[str, np.ndarray]:
        return {"count": np.array(3_000_000_001, np.int64), "pair": np.array([7, -5], np.int64)}

    def forward_train(self, params: Any, batch: Any) -> Any:
        xp, obs = self.xp, batch["obs"]
        values = xp.squeeze(xp.linear(obs, params["vf.weight"]), -1)
        buffers = {"count": params["count"] + 1, "pair": params["pair"] - 1}
        return {"action_dist_inputs": xp.linear(obs, params["pi.weight"]), "vf_preds": values, "buffers": buffers}


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_whole_numbers_in_buffers_stay_whole(training_backend_name: str, compile: bool) -> None:
    config = config_for(training_backend_name, CountingModule)
    config.framework(training_backend_name, compile=compile, precision="float32")
    _, ring = group_of(3, config)
    for rows in (7, 5, 2):
        ring.each(lambda learner, rows=rows: learner.update_from_batch(batch=ppo_batch(rows, TWO)))
    for learner in ring.learners:
        buffers = learner.get_state()["buffers"][MID]
        assert buffers["count"].dtype == np.int64 and buffers["count"] == 3_000_000_004
        assert buffers["pair"].tolist() == [4, -8]


class CentredModule(lc.RLModule):
    """Written over xp, and coupled: observations less their mean."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"pi.weight": rng.normal(size=(2, 3)), "vf.weight": rng.normal(size=(1, 3))}

    def forward_train(self, params: Any, batch: Any) -> Any:
        xp, obs = self.xp, batch["obs"]
        centred = obs - xp.mean(obs, axis=0, keepdims=True)
        values = xp.squeeze(xp.linear(obs, params["vf.weight"]), -1)
        return {"action_dist_inputs": xp.linear(centred, params["pi.weight"]), "vf_preds": values}


def test_of_a_neutral_module_as_well(training_backend_name: str) -> None:
    with pytest.raises(lc.ConfigError, match="2 learners cannot train module 'default_policy'"):
        group_of(2, config_for(training_backend_name, CentredModule))
