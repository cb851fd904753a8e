"""N learners compute what one computes: the arithmetic, in threads, in float64, where any mistake shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import learner_core as lc
from learner_core.learning.plan import MinibatchPlan, RowOrder, make_plan
from learner_core.learning.ranks import WholeBatch
from learner_core.learning.rl_module import RLModuleSpec
from learner_core_algorithms import PPOConfig, SACConfig

from support.learners import (
    OBS,
    LinearModule,
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


def _group(size: int, config: Any, observation_space: Any, action_space: Any) -> tuple[Any, ThreadRing]:
    """One learner, and ``size`` of the same in a ring."""
    frozen = config.environment(observation_space=observation_space, action_space=action_space).copy().freeze()
    learner_class = frozen.get_learner_class()
    return learner_class(frozen), ThreadRing(size, lambda ring: learner_class(frozen, ranks=ring))


def _train(
    one: Any, ring: ThreadRing, batches: list[dict[str, Any]], *, tolerance: float = TOLERANCE, **how: Any
) -> None:
    """The same updates on both; afterwards every state and the linear metrics agree."""
    for step, batch in enumerate(batches):
        timesteps = {"num_env_steps_sampled_lifetime": 100 * step}
        alone = one.update_from_batch(batch=batch, timesteps=timesteps, **how)
        together = ring.each(
            lambda learner, b=batch, t=timesteps: learner.update_from_batch(batch=b, timesteps=t, **how)
        )
        for results in together:
            for module_id, metrics in alone.items():
                assert sorted(metrics) == sorted(results[module_id])
                for name, value in metrics.items():
                    if name != "vf_explained_variance":  # no mean over rows, so not the mean of the learners'
                        assert results[module_id][name] == pytest.approx(value, rel=1e-9, abs=tolerance), name
    for learner in ring.learners:
        assert_states_equal(one.get_state(), learner.get_state(), atol=tolerance)


@pytest.mark.parametrize("size", [2, *(pytest.param(size, marks=pytest.mark.fast_on_torch) for size in (3, 4))])
def test_uneven_batches_smaller_than_the_ring(training_backend_name: str, size: int) -> None:
    """17 rows in minibatches of 8, then 7, 3 and 1: some learners have no row in a step."""
    config = tiny(PPOConfig(), training_backend_name, lr=0.01, use_kl_loss=True)
    one, ring = _group(size, config, OBS, TWO)
    _train(one, ring, [ppo_batch(rows, TWO, seed=rows) for rows in (17, 7, 3, 1)])


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("normalize", ["batch", "minibatch", "off"])
@pytest.mark.parametrize("space", [TWO, BOX], ids=["discrete", "continuous"])
def test_ppo_with_every_normalisation(training_backend_name: str, normalize: str, space: Any) -> None:
    config = tiny(PPOConfig(), training_backend_name, lr=0.01, normalize_advantages=normalize, num_epochs=2)
    one, ring = _group(2, config, OBS, space)
    _train(one, ring, [ppo_batch(rows, space, seed=rows) for rows in (16, 13)])


@pytest.mark.parametrize(
    ("size", "space", "normalize", "precision", "updates"),
    [
        (3, BOX, "minibatch", "float64", 6),
        pytest.param(4, TWO, "batch", "float32", 6, marks=pytest.mark.fast_on_torch),
        *(
            pytest.param(size, space, normalize, precision, 50, marks=pytest.mark.slow)
            for size in (2, 3, 4)
            for space in (TWO, BOX)
            for normalize in ("batch", "minibatch")
            for precision in ("float32", "float64")
        ),
    ],
)
def test_many_updates_of_ppo_on_odd_batches(
    training_backend_name: str, size: int, space: Any, normalize: str, precision: str, updates: int
) -> None:
    """Batches of 128, 385, 7 and 1 rows in minibatches of 64 at the usual learning rate; all of 50 in the long tier."""
    config = tiny(PPOConfig(), training_backend_name, precision=precision, lr=3e-4, normalize_advantages=normalize)
    one, ring = _group(size, config.training(minibatch_size=64, train_batch_size=128), OBS, space)
    for update in range(updates):
        batch = ppo_batch((128, 385, 7, 1)[update % 4], space, seed=update)
        one.update_from_batch(batch=batch)
        ring.each(lambda learner, b=batch: learner.update_from_batch(batch=b))
    bound = 1e-10 if precision == "float64" else 2e-6
    for learner in ring.learners:
        assert_states_equal(one.get_module_state(), learner.get_module_state(), atol=bound)
        assert_states_equal(ring.learners[0].get_state(), learner.get_state())


@pytest.mark.slow
@pytest.mark.fast_on_torch
@pytest.mark.parametrize("size", [3, 4])
def test_sac_step_by_step_on_more_learners(training_backend_name: str, size: int) -> None:
    one, ring = _group(size, tiny(SACConfig(), training_backend_name), OBS, BOX)
    _train(one, ring, [sac_batch(rows, seed=i) for i, rows in enumerate((8, 7, 1, 3) * 5)])


@pytest.mark.fast_on_torch
def test_early_stop_and_norm_clipping_by_parameter(training_backend_name: str) -> None:
    config = tiny(PPOConfig(), training_backend_name, lr=0.05, target_kl=0.02, grad_clip=0.3, grad_clip_by="norm")
    one, ring = _group(2, config.training(num_epochs=4), OBS, TWO)
    _train(one, ring, [ppo_batch(24, TWO, seed=seed) for seed in range(2)])


def test_sac_step_by_step(training_backend_name: str) -> None:
    """Three optimizers, target networks, noise by place in the minibatch."""
    one, ring = _group(2, tiny(SACConfig(), training_backend_name), OBS, BOX)
    _train(one, ring, [sac_batch(rows, seed=rows) for rows in (8, 8, 5, 1)])


@pytest.mark.fast_on_torch
def test_targets_that_move_now_and_then(training_backend_name: str) -> None:
    config = tiny(SACConfig(), training_backend_name, target_network_update_interval=3, tau=0.5)
    one, ring = _group(2, config, OBS, BOX)
    _train(one, ring, [sac_batch(8, seed=seed) for seed in range(5)])


@pytest.mark.fast_on_torch
def test_masked_rows_and_micro_batches(training_backend_name: str) -> None:
    config = tiny(PPOConfig(), training_backend_name, lr=0.01, accumulate=2, normalize_advantages="minibatch")
    one, ring = _group(2, config, OBS, TWO)
    rng = np.random.default_rng(0)
    batches = [{**ppo_batch(rows, TWO, seed=rows), "loss_mask": (rng.random(rows) < 0.6) * 1.0} for rows in (16, 11, 3)]
    _train(one, ring, batches)


@pytest.mark.fast_on_torch
def test_modules_of_which_one_falls_to_one_learner(training_backend_name: str) -> None:
    """``right`` has a single row: only the last learner sees it. Then it has none, then ``left`` has none."""
    config = ToyConfig().framework(training_backend_name, compile=False, precision="float64")
    config.training(lr=0.05, minibatch_size=4, train_batch_size=8, num_epochs=1, grad_clip=None)
    frozen = config.learners(learner_class=ToyLearner).freeze()
    one = ToyLearner(frozen, module_spec=two_modules())
    ring = ThreadRing(2, lambda place: ToyLearner(frozen, module_spec=two_modules(), ranks=place))
    _train(
        one,
        ring,
        [
            {"left": regression_batch(8), "right": regression_batch(1, seed=1)},
            {"left": regression_batch(5, seed=2)},
            {"right": regression_batch(7, seed=3)},
        ],
    )


@pytest.mark.fast_on_torch
def test_modules_of_different_spaces_with_settings_of_their_own(training_backend_name: str) -> None:
    config = tiny(PPOConfig(), training_backend_name, lr=0.01, num_epochs=2)
    own = {"lr": 0.03, "clip_param": 0.05, "grad_clip": 0.1, "use_kl_loss": False, "normalize_advantages": "minibatch"}
    specs = {"a": RLModuleSpec(None, OBS, TWO, {"hidden": [3]}), "b": RLModuleSpec(None, OBS, BOX)}
    frozen = config.multi_agent(policies=specs, settings={"b": own}).copy().freeze()
    learner_class = frozen.get_learner_class()
    one, ring = learner_class(frozen), ThreadRing(2, lambda place: learner_class(frozen, ranks=place))
    a, b = (lambda rows: ppo_batch(rows, TWO, seed=rows)), (lambda rows: ppo_batch(rows, BOX, seed=rows))
    _train(one, ring, [{"a": a(16), "b": b(5)}, {"b": b(13)}, {"a": a(1), "b": b(9)}])
    assert one.results["a"]["learning_rate"] == 0.01 and one.results["b"]["learning_rate"] == 0.03
    assert "kl_coeff" in one.get_state()["variables"]["a"] and not one.get_state()["variables"]["b"]


class PlainMeans(ToyLearner):
    """A loss that averages by itself: it may not be padded."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        error = fwd_out["vf_preds"] - batch["value_targets"]
        return {"v": self.xp.mean(self.xp.square(error))}


def test_a_loss_with_means_of_its_own(training_backend_name: str) -> None:
    config = ToyConfig().framework(training_backend_name, compile=False, precision="float64")
    config.training(lr=0.05, minibatch_size=4, train_batch_size=8, num_epochs=1, grad_clip=None)
    frozen = config.learners(learner_class=PlainMeans).freeze()
    spec = lc.RLModuleSpec(LinearModule, OBS, TWO)
    one = PlainMeans(frozen, module_spec=spec)
    assert not one.executor.tried.mask_safe
    ring = ThreadRing(3, lambda place: PlainMeans(frozen, module_spec=spec, ranks=place))
    _train(one, ring, [regression_batch(rows, seed=rows) for rows in (8, 5, 2, 1)])


class OneBadLearner(ToyLearner):
    """On rank 1 the gradients of one step are not finite."""

    bad_step = -1

    def compute_gradients(self, loss_fn: Any, params: Any) -> Any:
        gradients, aux = super().compute_gradients(loss_fn, params)
        if self.ranks.rank == 1 and self.train_state.num_updates == self.bad_step:
            mid = next(iter(gradients))
            gradients[mid] = {name: value * float("nan") for name, value in gradients[mid].items()}
        return gradients, aux


def test_nan_on_one_learner_is_the_same_decision_on_all(training_backend_name: str) -> None:
    config = ToyConfig().framework(training_backend_name, compile=False, precision="float64")
    config.training(lr=0.05, minibatch_size=4, train_batch_size=8, num_epochs=1, grad_clip=None)
    frozen = config.learners(learner_class=OneBadLearner).freeze()
    spec = lc.RLModuleSpec(LinearModule, OBS, TWO)
    ring = ThreadRing(2, lambda place: OneBadLearner(frozen, module_spec=spec, ranks=place))
    before = ring.learners[0].get_module_state()
    for learner in ring.learners:
        learner.bad_step = 0
    with pytest.warns(RuntimeWarning, match=r"skipped 2 step\(s\)"):
        results = ring.each(lambda learner: learner.update_from_batch(batch=regression_batch(8)))
    assert [r["default_policy"]["num_nonfinite_steps"] for r in results] == [2.0, 2.0]
    for learner in ring.learners:
        assert_states_equal(before, learner.get_module_state())
    ring.each(lambda learner: learner.update_from_batch(batch=regression_batch(8)))
    assert_states_equal(ring.learners[0].get_state(), ring.learners[1].get_state())


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 4, 7, 16])
def test_the_slices_of_a_plan_are_the_plan(size: int, rows: int) -> None:
    plan = make_plan([rows], minibatch=4, num_epochs=2, order=RowOrder(1, 2, 3))
    shares = [WholeBatch(rank, size).share(plan) for rank in range(size)]
    for step in range(plan.num_steps):
        rows_of = [share.indices[step, : share.rows[step]] for share in shares]
        np.testing.assert_array_equal(np.concatenate(rows_of), plan.indices[step, : plan.rows[step]])
        assert max(map(len, rows_of)) <= WholeBatch(0, size).width(4)
    empty = WholeBatch(0, size).share(MinibatchPlan(np.zeros((0, 4), np.int64), np.zeros(0, np.int64)))
    assert empty.num_steps == 0
