"""SAC's four losses and all their gradients against numpy, with every stop-gradient where it belongs.

A learner moves each loss by its own parameters alone, which would hide a missing stop-gradient. Here all parameters
belong to one optimizer and the losses are summed, so that every gradient that leaks shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from learner_core.errors import BatchError, SpaceError
from learner_core.maths import noise
from learner_core.maths.optimizers import OptimizerSpec
from learner_core_algorithms import SACConfig
from learner_core_algorithms.sac.learner import SACLearner

from support.learners import OBS, build_on_spaces, sac_batch, states_differ
from support.mutants import mutated
from support.oracles import adam, finite_differences, sac_losses

ACTIONS = Box(-1.0, 1.0, (2,), np.float32)
MID = "default_policy"


def in_one(learner_class: Any) -> Any:
    """The learner with one optimizer over everything and the sum of its losses."""

    class InOne(learner_class):
        def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
            self.register_optimizer(
                module_id=module_id, optimizer_name="all", optimizer=OptimizerSpec("adam"), lr_or_lr_schedule=1e-2
            )

        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            losses = super().compute_loss_for_module(**kwargs)
            for name, loss in losses.items():
                self.log(f"loss/{name}", loss)
            return {"all": sum(losses.values())}

        def compute_gradients(self, loss_fn: Any, params: Any) -> Any:
            gradients, aux = super().compute_gradients(loss_fn, params)
            self.kept = gradients
            return gradients, aux

    return InOne


def build(backend: str, learner_class: Any = SACLearner, *, model: Any = None, **training: Any) -> Any:
    settings = {"train_batch_size": 8, "grad_clip": None, "initial_alpha": 0.7, "tau": 0.1, **training}
    config = SACConfig().framework(backend, compile=False, precision="float64").training(**settings)
    config.rl_module(model={"hidden": [4], "activation": "tanh", **(model or {})})
    config.learners(learner_class=learner_class)
    learner = build_on_spaces(config, OBS, ACTIONS)
    rng = np.random.default_rng(11)
    state = learner.get_state()
    for part in ("rl_module", "targets"):
        state[part][MID] = {n: 0.5 * rng.normal(size=v.shape) for n, v in state[part][MID].items()}
    learner.set_state(state)
    return learner


def oracle(learner: Any, batch: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
    """(losses of live parameters, parameters) for the learner's next step."""
    state, config = learner.get_state(), learner.config
    params = {**state["rl_module"][MID], "log_alpha": state["variables"][MID]["log_alpha"]}
    draws = {
        name: noise.normals(0, 0, noise.stream_id(f"{MID}/{name}"), len(batch["obs"]), (2,), dtype=np.float64)
        for name in ("actions", "next_actions")
    }
    target_entropy = -2.0 if config.target_entropy == "auto" else config.target_entropy
    settings = {
        "gamma": config.gamma,
        "q_loss": config.q_loss,
        "twin_q": config.twin_q,
        "target_entropy": target_entropy,
    }
    targets = state["targets"][MID]
    return (lambda live: sac_losses(live, params, targets, batch, draws, settings)), params


def check(backend: str, learner_class: Any = SACLearner, rows: int = 6, **training: Any) -> None:
    learner = build(backend, in_one(learner_class), **training)
    batch = sac_batch(rows)
    if learner.config.n_step > 1:
        batch["discounts"] = learner.config.gamma ** np.arange(1, rows + 1)
    losses, params = oracle(learner, batch)
    results = learner.update_from_batch(batch=batch, shuffle_batch_per_epoch=False)[MID]
    for name, value in losses(params).items():
        assert results[f"loss/{name}"] == pytest.approx(value, abs=1e-12), name
    kept = learner.backend.to_numpy(learner.kept[MID])
    for name, gradient in finite_differences(lambda p: sum(losses(p).values()), params).items():
        np.testing.assert_allclose(kept[name], gradient, rtol=0, atol=2e-8, err_msg=name)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"q_loss": "huber"},
    {"n_step": 3},
    {"twin_q": False},
    {"target_entropy": -0.5},
    {"gamma": 0.5, "initial_alpha": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=[",".join(o) or "defaults" for o in OPTIONS])
def test_against_numpy(backend: str, options: dict[str, Any]) -> None:
    check(backend, **options)


MUTANTS = {
    "alpha not stopped": (("alpha = xp.stop_gradient(xp.exp(log_alpha))", "alpha = xp.exp(log_alpha)"),),
    "log-probability not stopped in alpha's loss": (
        ("xp.stop_gradient(logp + target_entropy)", "(logp + target_entropy)"),
    ),
    "target not stopped": (
        ("return xp.stop_gradient(batch", "return (batch"),
        ('module.frozen.forward_train({"obs": batch["next_obs"]})', 'module.forward_train({"obs": batch["next_obs"]})'),
    ),
    "Q not frozen for the policy": (("_q(module.frozen,", "_q(module,"),),
    "live Q for the target": (('_q(module.target, batch["next_obs"]', '_q(module.frozen, batch["next_obs"]'),),
    "target through terminated": (("1.0 - xp.astype", "1.0 - 0.0 * xp.astype"),),
    "no entropy in the target": (("- alpha * next_logp", ""),),
    "entropy's sign in the policy": (("alpha * logp -", "-alpha * logp -"),),
    "larger Q": (("xp.minimum(values[0], values[1])", "xp.maximum(values[0], values[1])"),),
    "alpha instead of its logarithm": (("self.mean(-log_alpha *", "self.mean(-xp.exp(log_alpha) *"),),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_check_notices(backend: str, name: str) -> None:
    module = mutated("learner_core_algorithms.sac.learner", *MUTANTS[name])
    with pytest.raises(AssertionError):
        check(backend, module.SACLearner)


def test_four_optimizers_each_at_its_own_rate_and_targets_after_them(backend: str) -> None:
    """Two steps of the learner as it is: Adam on each loss's own gradient, then polyak averaging of the new weights."""
    learner = build(backend, actor_lr=1e-2, critic_lr=2e-2, alpha_lr=3e-2)
    optimizers = learner.get_state()["optimizer"][MID]
    assert set(optimizers) == {"policy", "qf", "qf_twin", "alpha"}
    assert set(optimizers["alpha"]["slots"]["m"]) == {"log_alpha"}
    batch = sac_batch(5)
    losses, params = oracle(learner, batch)
    targets = learner.get_state()["targets"][MID]
    results = learner.update_from_batch(batch=batch, shuffle_batch_per_epoch=False)[MID]
    after = learner.get_state()
    own = {
        "policy": (1e-2, [n for n in params if n.startswith("pi.")]),
        "qf": (2e-2, [n for n in params if n.startswith("qf.")]),
        "qf_twin": (2e-2, [n for n in params if n.startswith("qf_twin.")]),
        "alpha": (3e-2, ["log_alpha"]),
    }
    new = {**after["rl_module"][MID], "log_alpha": after["variables"][MID]["log_alpha"]}
    for name, (rate, names) in own.items():
        gradients = finite_differences(lambda p, n=name: losses({**params, **p})[n], {k: params[k] for k in names})
        expected = adam(params, gradients, {}, lr=rate)
        for key, value in expected.items():
            np.testing.assert_allclose(new[key], value, rtol=0, atol=1e-8, err_msg=key)
        assert after["optimizer"][MID][name]["step"] == 1
        assert results[f"learning_rate/{name}"] == rate
    for name, value in targets.items():
        np.testing.assert_allclose(after["targets"][MID][name], 0.1 * new[name] + 0.9 * value, rtol=0, atol=1e-15)


EVERY_THIRD = {"tau": 0.25, "target_network_update_interval": 3, "train_batch_size": 24, "minibatch_size": 8}


@pytest.mark.parametrize("restored_after", [0, 1, 2])
def test_targets_move_every_so_many_gradient_steps(backend: str, restored_after: int) -> None:
    """Counted over the run, through a restore in the middle of an interval as well; the first step moves them."""
    learner, batch = build(backend, **EVERY_THIRD), sac_batch(8)
    expected = learner.get_state()["targets"][MID]
    for step in range(7):
        learner.update_from_batch(batch=batch)
        if step in (0, 3, 6):
            new = learner.get_module_state()[MID]
            expected = {name: 0.25 * new[name] + 0.75 * old for name, old in expected.items()}
        found = learner.get_state()["targets"][MID]
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-15, err_msg=f"{step} {name}")
        if step + 1 == restored_after:
            state = learner.get_state()
            learner = build(backend, **EVERY_THIRD)
            learner.set_state(state)


def test_steps_of_one_call_count_as_those_of_several(backend: str) -> None:
    batch = sac_batch(24)
    apart, together = build(backend, **EVERY_THIRD), build(backend, **EVERY_THIRD)
    for _ in range(2):
        for start in (0, 8, 16):
            apart.update_from_batch(batch={name: column[start : start + 8] for name, column in batch.items()})
        together.update_from_batch(batch=batch)
    for part in ("rl_module", "targets"):
        for name, value in apart.get_state()[part][MID].items():
            np.testing.assert_allclose(together.get_state()[part][MID][name], value, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_a_compiled_loop_counts_alike(backend: str) -> None:
    states = []
    for compile_ in (False, True):
        config = SACConfig().framework(backend, compile=compile_, precision="float64").training(**EVERY_THIRD)
        learner = build_on_spaces(config.rl_module(model={"hidden": [4]}), OBS, ACTIONS)
        for seed in range(3):
            results = learner.update_from_batch(batch=sac_batch(24, seed=seed))
        assert results["__all__"]["compiled"] == float(compile_)
        states.append(learner.get_state()["targets"][MID])
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=0, atol=1e-12, err_msg=name)


def test_an_interval_of_one_is_the_rule_of_the_paper(backend: str) -> None:
    states = []
    for interval in (1, 2):
        learner = build(backend, tau=0.25, target_network_update_interval=interval)
        learner.update_from_batch(batch=sac_batch(8))
        states.append(learner.get_state())
        learner.update_from_batch(batch=sac_batch(8))
        states.append(learner.get_state())
    assert not states_differ(states[0]["targets"], states[2]["targets"])
    assert states_differ(states[1]["targets"], states[3]["targets"])
    assert not states_differ(states[2]["targets"], states[3]["targets"])


def test_a_single_q_network_has_no_twin(backend: str) -> None:
    learner = build(backend, twin_q=False)
    state = learner.get_state()
    assert not [name for name in state["rl_module"][MID] if "twin" in name]
    assert set(state["optimizer"][MID]) == {"policy", "qf", "alpha"}


def test_columns(backend: str) -> None:
    base = {"obs", "next_obs", "actions", "rewards", "terminateds"}
    assert set(build(backend).batch_spec()) == base
    several = build(backend, n_step=3)
    assert set(several.batch_spec()) == {*base, "discounts"}
    with pytest.raises(BatchError, match="column 'discounts': missing"):
        several.update_from_batch(batch=sac_batch(4))


def test_a_module_without_rows_keeps_its_targets(backend: str) -> None:
    from learner_core.learning.rl_module import MultiRLModuleSpec, RLModuleSpec

    config = SACConfig().framework(backend, compile=False).training(train_batch_size=8)
    config.rl_module(
        model={"hidden": [4]}, rl_module_spec=MultiRLModuleSpec({"a": RLModuleSpec(), "b": RLModuleSpec()})
    )
    learner = build_on_spaces(config, OBS, ACTIONS)
    before = learner.get_state()
    learner.update_from_batch(batch={"a": sac_batch(8)})
    after = learner.get_state()
    for part in ("rl_module", "targets", "optimizer", "variables"):
        assert not states_differ(before[part]["b"], after[part]["b"])
        assert states_differ(before[part]["a"], after[part]["a"])


def test_discrete_actions_are_refused(backend: str) -> None:
    with pytest.raises(SpaceError, match="Box"):
        build_on_spaces(SACConfig().framework(backend, compile=False), OBS, Discrete(2))
