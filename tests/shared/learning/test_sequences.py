"""Batches of sequences: gradients against a plain loop, padding, burn-in, rows folded, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

import learner_core as lc
from learner_core_algorithms import PPOConfig

from support.learners import assert_states_equal
from support.rings import ThreadRing
from support.sequences import LENGTH, loss_by_loops, recurrent_config, sequence_batch

MID = "default_policy"


def _initial_state(learner: Any) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = learner.module[MID].initial_state()
    return state


def _weights(learner: Any) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in learner.get_module_state()[MID].items()}


def _gradient(learner: Any, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """Of one step at rate 1 without clipping."""
    before = _weights(learner)
    learner.update_from_batch(batch)
    after = _weights(learner)
    return {name: before[name] - after[name] for name in before}


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(("burn_in", "pad"), [(0, False), (0, True), (2, False)])
def test_gradients_are_those_of_a_loop_over_single_sequences(
    training_backend_name: str, kind: str, burn_in: int, pad: bool
) -> None:
    """Central differences in float64; a padded step or a step of the burn-in that counted would show at 1e-3."""
    learner = recurrent_config(training_backend_name, model={"recurrent": kind}, burn_in=burn_in).build_learner()
    batch = sequence_batch(8, _initial_state(learner), pad=pad)
    params = _weights(learner)
    gradient = _gradient(learner, batch)
    rng = np.random.default_rng(1)
    step = 1e-5
    for name in sorted(params):
        direction = rng.normal(size=params[name].shape)
        moved = [{**params, name: params[name] + sign * step * direction} for sign in (1.0, -1.0)]
        losses = [loss_by_loops(one, batch, burn_in=burn_in, frozen=params) for one in moved]
        expected = (losses[0] - losses[1]) / (2.0 * step)
        assert float((gradient[name] * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-8), name


def test_what_stands_in_padding_does_not_matter(training_backend_name: str) -> None:
    one, other = (recurrent_config(training_backend_name).build_learner() for _ in range(2))
    batch = sequence_batch(8, _initial_state(one), pad=True)
    junk = sequence_batch(8, _initial_state(one), seed=9)
    real = batch["loss_mask"] > 0
    filled = {
        name: np.where(real.reshape(*real.shape, *[1] * (column.ndim - 2)), column, junk[name])
        for name, column in batch.items()
        if name not in ("state_in", "loss_mask")
    }
    one.update_from_batch(batch)
    other.update_from_batch({**batch, **filled})
    assert_states_equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("burn_in", [0, 2])
def test_micro_batches_and_short_minibatches_add_up(training_backend_name: str, burn_in: int) -> None:
    one = recurrent_config(training_backend_name, burn_in=burn_in).build_learner()
    parts = recurrent_config(training_backend_name, burn_in=burn_in, accumulate=3).build_learner()
    batch = sequence_batch(7, _initial_state(one), pad=True)
    one.update_from_batch(batch)
    parts.update_from_batch(batch)
    assert_states_equal(one.get_state(), parts.get_state(), atol=1e-12)


@pytest.mark.fast_on_torch
def test_learners_of_a_ring_compute_what_one_computes(training_backend_name: str) -> None:
    settings = {"minibatch_size": 3 * LENGTH, "num_epochs": 2, "lr": 0.05, "burn_in": 1}
    config = recurrent_config(training_backend_name, **settings).freeze()
    alone = config.copy().build_learner()
    ring = ThreadRing(2, lambda place: config.get_learner_class()(config, ranks=place))
    for seed in range(2):
        batch = sequence_batch(8, _initial_state(alone), pad=True, seed=seed)
        alone.update_from_batch(batch)
        ring.each(lambda learner, batch=batch: learner.update_from_batch(batch))
    for learner in ring.learners:
        assert_states_equal(alone.get_state(), learner.get_state(), atol=1e-12)


@dataclass(kw_only=True, repr=False, eq=False)
class SequencePPO(PPOConfig):
    """PPO whose rows are sequences whatever the module."""

    uses_sequences: ClassVar[bool] = True


@pytest.mark.parametrize("observations", ["vector", "dict"])
def test_a_module_without_memory_sees_the_timesteps_of_sequences_as_rows(
    training_backend_name: str, observations: str
) -> None:
    vector = Box(-9, 9, (3,), np.float32)
    space = vector if observations == "vector" else Dict(a=vector, b=Discrete(4))
    learners = []
    for kind in (SequencePPO, PPOConfig):
        config = kind().environment(observation_space=space, action_space=Discrete(3))
        config.framework(training_backend_name, compile=False, precision="float64")
        config.training(train_batch_size=40, minibatch_size=20, shuffle_batch_per_epoch=False, num_epochs=2)
        if kind is SequencePPO:
            config.training(max_seq_len=LENGTH)
        learners.append(config.rl_module(model={"hidden": [4]}).build_learner())
    batch = sequence_batch(8, {}, pad=True)
    del batch["state_in"], batch["resets"]
    if observations == "dict":
        batch["obs"] = {"a": batch["obs"], "b": np.random.default_rng(0).integers(0, 4, (8, LENGTH))}
    assert learners[0].batch_spec()["advantages"].shape == (LENGTH,)
    learners[0].update_from_batch(batch)
    learners[1].update_from_batch(_flat(batch))
    assert_states_equal(learners[0].get_state(), learners[1].get_state(), atol=1e-12)


def _flat(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: _flat(value) for key, value in batch.items()}
    return batch.reshape(-1, *batch.shape[2:])


def _bad(batch: dict[str, Any], change: str) -> dict[str, Any]:
    batch = {**batch, "state_in": dict(batch["state_in"])}
    if change == "length":
        batch["advantages"] = batch["advantages"][:, :-1]
    elif change == "rows":
        batch["obs"] = batch["obs"].reshape(-1, 3)
    elif change == "state missing":
        del batch["state_in"]
    elif change == "state shape":
        batch["state_in"]["vf_c"] = batch["state_in"]["vf_c"][:, :-1]
    elif change == "state per step":
        batch["state_in"]["pi_h"] = np.repeat(batch["state_in"]["pi_h"][:, None], LENGTH, axis=1)
    elif change == "resets missing":
        del batch["resets"]
    elif change == "mask":
        batch["loss_mask"] = np.ones(len(batch["obs"]))
    return batch


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    ("change", "column", "text"),
    [
        ("length", "advantages", r"expected shape \[B, T=5\], got \[8, 4\]"),
        ("rows", "obs", r"expected shape \[B, T=5, 3\], got \[40, 3\]"),
        ("state missing", "state_in/", r"missing; expected \[B, 3\]"),
        ("state shape", "state_in/vf_c", r"expected shape \[B, 3\], got \[8, 2\]"),
        ("state per step", "state_in/pi_h", r"expected shape \[B, 3\], got \[8, 5, 3\]"),
        ("resets missing", "resets", "missing"),
        ("mask", "loss_mask", r"expected shape \[B, T=5\], got \[8\]"),
    ],
)
def test_bad_sequences_are_refused_and_nothing_changes(
    training_backend_name: str, change: str, column: str, text: str
) -> None:
    learner = recurrent_config(training_backend_name).build_learner()
    batch = sequence_batch(8, _initial_state(learner))
    before = learner.get_state()
    with pytest.raises(lc.BatchError, match=text) as refused:
        learner.update_from_batch(_bad(batch, change))
    assert str(refused.value.column).startswith(column)
    with pytest.raises(lc.BatchError, match=r"minibatch_size=12 counts timesteps and must be a multiple of .* 5"):
        learner.update_from_batch(batch, minibatch_size=12)
    assert_states_equal(before, learner.get_state())
    learner.update_from_batch(batch, minibatch_size=10)


@pytest.mark.parametrize(
    ("training", "text"),
    [({"minibatch_size": 12}, "as 10 is"), ({"burn_in": LENGTH}, "leaves nothing to learn from")],
)
def test_settings_that_make_no_sequences_are_refused(
    training_backend_name: str, training: dict[str, Any], text: str
) -> None:
    with pytest.raises(lc.ConfigError, match=text):
        recurrent_config(training_backend_name, **training).build_learner()


def test_an_unknown_memory_is_refused(training_backend_name: str) -> None:
    with pytest.raises(lc.ConfigError, match="Did you mean 'lstm'"):
        recurrent_config(training_backend_name, model={"recurrent": "lstn"}).build_learner()


# ---- masks of actions ------------------------------------------------------------------------------------------------


def _masked_learner(backend: str) -> Any:
    config = recurrent_config(backend)
    space = Dict(observations=config.observation_space, action_mask=MultiBinary(3))
    return config.environment(observation_space=space, action_space=Discrete(3)).build_learner()


def _masked_batch(learner: Any) -> dict[str, Any]:
    batch = sequence_batch(8, _initial_state(learner), pad=True)
    mask = np.random.default_rng(2).uniform(size=(8, LENGTH, 3)) < 0.6
    np.put_along_axis(mask, batch["actions"][..., None], True, axis=-1)
    return {**batch, "action_mask": mask}


def test_forbidden_actions_have_no_part_in_the_loss(training_backend_name: str) -> None:
    learner = _masked_learner(training_backend_name)
    assert learner.batch_spec()["action_mask"].shape == (LENGTH, 3)
    batch, params = _masked_batch(learner), _weights(learner)
    gradient = _gradient(learner, batch)
    direction = np.random.default_rng(1).normal(size=params["pi_head.0.weight"].shape)
    moved = [
        {**params, "pi_head.0.weight": params["pi_head.0.weight"] + sign * 1e-5 * direction} for sign in (1.0, -1.0)
    ]
    losses = [loss_by_loops(one, batch, frozen=params) for one in moved]
    expected = (losses[0] - losses[1]) / 2e-5
    assert float((gradient["pi_head.0.weight"] * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_the_divergence_is_that_of_allowed_actions(training_backend_name: str) -> None:
    """Where one action alone is allowed, neither policy can differ from the other."""
    config = recurrent_config(training_backend_name, use_kl_loss=True)
    space = Dict(observations=config.observation_space, action_mask=MultiBinary(3))
    learner = config.environment(observation_space=space, action_space=Discrete(3)).build_learner()
    batch = sequence_batch(8, _initial_state(learner))
    batch["action_mask"] = np.arange(3) == batch["actions"][..., None]
    batch["action_dist_inputs"] = np.where(batch["action_mask"], batch["action_dist_inputs"], -1e9)
    results = learner.update_from_batch(batch)[MID]
    assert results["mean_kl"] == 0.0 and results["entropy"] == 0.0


@pytest.mark.parametrize(
    ("change", "column", "text"),
    [
        ("none allowed", "action_mask", "allows no action in 1 row.* sequence 2, step 0"),
        ("forbidden", "actions", "holds an action that action_mask forbids in 1 row.* sequence 3, step 0"),
        ("absent", "action_mask", "missing"),
    ],
)
def test_bad_masks_are_refused_and_nothing_changes(
    training_backend_name: str, change: str, column: str, text: str
) -> None:
    learner = _masked_learner(training_backend_name)
    batch = _masked_batch(learner)
    mask = batch["action_mask"].copy()
    if change == "none allowed":
        mask[2, 0] = False
    elif change == "forbidden":
        mask[3, 0] = np.arange(3) != batch["actions"][3, 0]
    bad = {**batch, "action_mask": mask}
    if change == "absent":
        del bad["action_mask"]
    before = learner.get_state()
    with pytest.raises(lc.BatchError, match=text) as refused:
        learner.update_from_batch(bad)
    assert refused.value.column == column
    assert_states_equal(before, learner.get_state())
    # Where a row is no experience its mask may say anything.
    padding = batch["loss_mask"] == 0
    learner.update_from_batch({**batch, "action_mask": batch["action_mask"] & ~padding[..., None]})
