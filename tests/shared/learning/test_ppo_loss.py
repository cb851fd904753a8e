"""PPO's loss, gradients and one optimizer step against numpy and finite differences, option by option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner_core.errors import ConfigError
from learner_core.maths import optimizers
from learner_core_algorithms import PPOConfig
from learner_core_algorithms.ppo.kl import adapted_kl_coeff
from learner_core_algorithms.ppo.learner import PPOLearner

from support.learners import OBS, build_on_spaces, flat_state, ppo_batch, states_differ
from support.loss_checks import MID, SPACES, check_step, keeping_gradients
from support.mutants import mutated
from support.oracles import adam, adaptive_kl, ppo_loss, standardise


def build(backend: str, space: Any, learner_class: Any = PPOLearner, **training: Any) -> Any:
    """A learner with weights away from their initial values: zero biases hide swapped terms."""
    settings = {
        "lr": 1e-2, "minibatch_size": 16, "train_batch_size": 16, "num_epochs": 1, "grad_clip": None,
        "clip_param": 0.2, "entropy_coeff": 0.01, "vf_loss_coeff": 0.5, **training,
    }  # fmt: skip
    config = PPOConfig().framework(backend, compile=False, precision="float64").training(**settings)
    config.rl_module(model={"hidden": [4], "activation": "tanh"}).learners(
        learner_class=keeping_gradients(learner_class)
    )
    learner = build_on_spaces(config, OBS, space)
    rng = np.random.default_rng(7)
    weights = learner.get_module_state()[MID]
    learner.set_module_state({MID: {n: 0.4 * rng.normal(size=v.shape) for n, v in weights.items()}})
    return learner


def check(backend: str, space: Any, learner_class: Any = PPOLearner, rows: int = 9, **training: Any) -> None:
    """Loss, gradient and the Adam step of one minibatch."""
    learner = build(backend, space, learner_class, **training)
    config = learner.config
    batch = ppo_batch(rows, space, spread=0.7)
    params = learner.get_module_state()[MID]
    settings = {name: getattr(config, name) for name in config.settings()}
    settings["start"] = getattr(space, "start", 0)
    ready = dict(batch)
    if config.normalize_advantages == "batch":
        ready["advantages"] = standardise(batch["advantages"])
    check_step(learner, batch, params, lambda p: ppo_loss(p, ready, settings), atol=1e-13)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"normalize_advantages": "minibatch"},
    {"normalize_advantages": "off"},
    {"vf_clip_range": 0.3},
    {"vf_clip_param": 1.0},
    {"vf_clip_range": 0.3, "vf_clip_param": 1.0},
    {"use_kl_loss": False},
    {"kl_coeff": 2.0, "entropy_coeff": 0.0},
    {"use_critic": False},
    {"clip_param": 0.05, "vf_loss_coeff": 1.5},
]


CASES = [(space, options) for space in ("discrete", "continuous") for options in OPTIONS] + [("shifted", {})]


@pytest.mark.parametrize(("space", "options"), CASES, ids=[f"{s}-{','.join(o) or 'defaults'}" for s, o in CASES])
def test_against_numpy(backend: str, space: str, options: dict[str, Any]) -> None:
    check(backend, SPACES[space], **options)


MUTANTS = {
    "sample standard deviation": (
        "/ max(std, _STD_FLOOR)",
        "/ (std * (len(advantages) / (len(advantages) - 1)) ** 0.5)",
    ),
    "entropy coefficient off by 1e-4": ("config.entropy_coeff * entropy", "(config.entropy_coeff + 1e-4) * entropy"),
    "ratio turned round": ('- batch["action_logp"]', '* 0 + batch["action_logp"]'),
    "clip without minimum": ("xp.minimum(advantages * ratio, advantages * clipped)", "advantages * clipped"),
    "value loss halved": ("config.vf_loss_coeff * vf_loss", "0.5 * config.vf_loss_coeff * vf_loss"),
    "KL the other way": ("old.kl(dist)", "dist.kl(old)"),
    "entropy's sign": ("- config.entropy_coeff", "+ config.entropy_coeff"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_check_notices(backend: str, name: str) -> None:
    module = mutated("learner_core_algorithms.ppo.learner", MUTANTS[name])
    with pytest.raises(AssertionError):
        check(backend, SPACES["continuous"], module.PPOLearner)


def test_the_check_notices_eps_inside_the_root(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mutated(
        "learner_core.maths.optimizers",
        ('(xp.sqrt(v) / corrections[1] + self.hyper["eps"])', 'xp.sqrt(v / corrections[1] ** 2 + self.hyper["eps"])'),
    )
    monkeypatch.setattr(optimizers.OptimizerSpec, "_adam", module.OptimizerSpec._adam)
    with pytest.raises(AssertionError):
        check(backend, SPACES["discrete"])


def test_several_adam_steps_with_a_clip(backend: str) -> None:
    """Five steps with the learner's own gradients: moments, bias corrections and the global norm."""
    learner = build(backend, SPACES["continuous"], grad_clip=0.05)
    expected: Any = learner.get_module_state()[MID]
    state: dict[str, Any] = {}
    for step in range(5):
        learner.update_from_batch(batch=ppo_batch(7, SPACES["continuous"], seed=step))
        gradients = learner.backend.to_numpy(learner.kept[MID])
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        assert norm > 0.05
        expected = adam(expected, {n: g * 0.05 / (norm + 1e-6) for n, g in gradients.items()}, state, lr=1e-2)
    for name, value in learner.get_module_state()[MID].items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-14, err_msg=name)
    entry = learner.get_state()["optimizer"][MID]["default"]
    assert entry["step"] == 5
    np.testing.assert_allclose(entry["slots"]["v"]["log_std"], state["log_std", "v"], rtol=1e-12)


def test_kl_coefficient_follows_the_rule(backend: str) -> None:
    """Up by half above twice the target, down by half under half of it, else as it is; part of the state."""
    learner = build(backend, SPACES["discrete"], kl_target=0.01)
    far, near = ppo_batch(16, SPACES["discrete"], spread=2.0), ppo_batch(16, SPACES["discrete"])
    coefficient = 0.2
    for batch in (far, far, near, far):
        if batch is near:
            # An old policy that is the current one: KL near 0.
            params = learner.get_module_state()[MID]
            logits = np.tanh(batch["obs"] @ params["pi.0.weight"].T + params["pi.0.bias"])
            batch = {**batch, "action_dist_inputs": logits @ params["pi.1.weight"].T + params["pi.1.bias"]}
        results = learner.update_from_batch(batch=batch)[MID]
        coefficient = adaptive_kl(coefficient, results["mean_kl"], 0.01)
        assert results["kl_coeff"] == coefficient == learner.get_state()["variables"][MID]["kl_coeff"]
    assert coefficient == pytest.approx(0.2 * 1.5 * 1.5 * 0.5 * 1.5)


def test_without_a_target_the_coefficient_is_held(backend: str) -> None:
    """It still weighs the KL term, is reported and is restored; a target that is set later moves it."""
    far = ppo_batch(16, SPACES["discrete"], spread=2.0)
    learner = build(backend, SPACES["discrete"], kl_coeff=0.7, kl_target=None)
    for _ in range(3):
        results = learner.update_from_batch(batch=far)[MID]
        assert results["kl_coeff"] == 0.7 and results["mean_kl"] > 0.1
    again = build(backend, SPACES["discrete"], kl_coeff=0.1, kl_target=None)
    again.set_state(learner.get_state())
    assert again.update_from_batch(batch=far)[MID]["kl_coeff"] == 0.7
    again.variables[MID]["kl_coeff"] = 0.3
    assert again.update_from_batch(batch=far)[MID]["kl_coeff"] == 0.3


@pytest.mark.slow
def test_a_target_that_is_set_in_a_run_moves_the_coefficient_until_it_is_taken_away(backend: str) -> None:
    far = ppo_batch(16, SPACES["discrete"], spread=2.0)
    learner = build(backend, SPACES["discrete"], kl_coeff=0.3, kl_target=None)
    for kl_target, coefficient in ((None, 0.3), (0.01, 0.45), (None, 0.45)):
        learner.set_config(kl_target=kl_target)
        assert learner.update_from_batch(batch=far)[MID]["kl_coeff"] == pytest.approx(coefficient)


def test_what_the_coefficient_is_steered_by(backend: str) -> None:
    """The mean over the minibatches of the update: of all of them, where RLlib takes the last one's."""
    batch = ppo_batch(16, SPACES["discrete"])
    settings = {"minibatch_size": 8, "shuffle_batch_per_epoch": False, "normalize_advantages": "minibatch"}
    apart = build(backend, SPACES["discrete"], kl_target=None, **settings)
    one = build(backend, SPACES["discrete"], kl_target=1e-7, **settings)
    kls = [
        apart.update_from_batch(batch={name: column[rows] for name, column in batch.items()})[MID]["mean_kl"]
        for rows in (slice(0, 8), slice(8, 16))
    ]
    results = one.update_from_batch(batch=batch)[MID]
    assert results["mean_kl"] == pytest.approx(sum(kls) / 2, rel=1e-12)
    assert kls[0] != pytest.approx(kls[1], rel=1e-3)


def test_the_kl_coefficient_has_two_ends(backend: str) -> None:
    """Without an upper one the loss overflows, after 220 updates far from the target, and no step is taken again."""
    assert adapted_kl_coeff(9e9, mean_kl=1.0, kl_target=0.01) == 1e10
    assert adapted_kl_coeff(1e10, mean_kl=1.0, kl_target=0.01) == 1e10
    assert adapted_kl_coeff(5e12, mean_kl=1.0, kl_target=0.01) == 5e12  # given so; it goes no further
    assert adapted_kl_coeff(1.5e-10, mean_kl=0.0, kl_target=0.01) == 1e-10
    assert adapted_kl_coeff(0.0, mean_kl=0.0, kl_target=0.01) == 0.0
    assert adapted_kl_coeff(0.2, mean_kl=0.01, kl_target=0.01) == 0.2
    learner = build(backend, SPACES["discrete"], kl_target=0.01)
    far = ppo_batch(16, SPACES["discrete"], spread=2.0)
    learner.variables[MID]["kl_coeff"] = 9e9
    for _ in range(2):
        results = learner.update_from_batch(batch=far)[MID]
        assert results["kl_coeff"] == 1e10 and results["num_nonfinite_steps"] == 0.0


def test_target_kl_stops_the_update(backend: str) -> None:
    """Two passes with a rate that moves far: the step after which KL is too large is the last one."""
    settings = {"lr": 0.5, "num_epochs": 4, "minibatch_size": 16, "use_kl_loss": False}
    free = build(backend, SPACES["discrete"], **settings)
    bound = build(backend, SPACES["discrete"], target_kl=0.05, **settings)
    batch = ppo_batch(16, SPACES["discrete"])
    params = free.get_module_state()[MID]
    logits = np.tanh(batch["obs"] @ params["pi.0.weight"].T + params["pi.0.bias"])
    logits = logits @ params["pi.1.weight"].T + params["pi.1.bias"]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    batch["action_logp"], batch["action_dist_inputs"] = logp[np.arange(16), batch["actions"]], logits
    assert free.update_from_batch(batch=batch)[MID]["num_minibatch_steps"] == 4
    results = bound.update_from_batch(batch=batch)[MID]
    assert results["num_minibatch_steps"] == 1
    assert results["approx_kl"] == pytest.approx(0.0, abs=1e-12)  # of the step that was taken
    assert bound.get_state()["optimizer"][MID]["default"]["step"] == 1


def test_metrics(backend: str) -> None:
    learner = build(backend, SPACES["discrete"], normalize_advantages="off")
    batch = ppo_batch(16, SPACES["discrete"], spread=1.0)
    params = learner.get_module_state()[MID]
    hidden = np.tanh(batch["obs"] @ params["pi.0.weight"].T + params["pi.0.bias"])
    logits = hidden @ params["pi.1.weight"].T + params["pi.1.bias"]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_ratio = logp[np.arange(16), batch["actions"]] - batch["action_logp"]
    hidden = np.tanh(batch["obs"] @ params["vf.0.weight"].T + params["vf.0.bias"])
    values = (hidden @ params["vf.1.weight"].T + params["vf.1.bias"])[:, 0]
    results = learner.update_from_batch(batch=batch)[MID]
    targets = batch["value_targets"]
    for name, value in {
        "entropy": -(np.exp(logp) * logp).sum(-1).mean(),
        "approx_kl": (np.exp(log_ratio) - 1 - log_ratio).mean(),
        "clip_fraction": (np.abs(np.exp(log_ratio) - 1) > 0.2).mean(),
        "vf_loss": ((values - targets) ** 2).mean(),
        "vf_explained_variance": 1 - (targets - values).var() / (targets.var() + 1e-8),
    }.items():
        assert results[name] == pytest.approx(value, abs=1e-12), name
    assert results["learning_rate"] == 1e-2 and results["num_minibatch_steps"] == 1.0


def test_equal_advantages_become_zeros(backend: str) -> None:
    learner = build(backend, SPACES["discrete"], use_critic=False, use_kl_loss=False, entropy_coeff=0.0)
    batch = {**ppo_batch(8, SPACES["discrete"]), "advantages": np.full(8, 3.0)}
    before = learner.get_module_state()
    assert learner.update_from_batch(batch=batch)[MID]["policy_loss"] == 0.0
    assert not states_differ(before, learner.get_module_state())


def test_advantages_are_standardised_over_the_rows_that_count(backend: str) -> None:
    keep = np.array([True] * 5 + [False] * 4)
    batch = ppo_batch(9, SPACES["discrete"])
    masked, alone = build(backend, SPACES["discrete"]), build(backend, SPACES["discrete"])
    masked.update_from_batch(batch={**batch, "loss_mask": keep})
    alone.update_from_batch(batch={name: column[keep] for name, column in batch.items()})
    a, b = flat_state(masked.get_module_state()), flat_state(alone.get_module_state())
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-12)


def test_shared_layers(backend: str) -> None:
    config = PPOConfig().framework(backend, compile=False, precision="float64").training(minibatch_size=8)
    config.rl_module(model={"hidden": [4], "activation": "tanh", "vf_share_layers": True})
    learner = build_on_spaces(config, OBS, SPACES["discrete"])
    names = set(learner.get_module_state()[MID])
    assert names == {f"{n}.0.{k}" for n in ("encoder", "pi", "vf") for k in ("weight", "bias")}
    assert learner.update_from_batch(batch=ppo_batch(8, SPACES["discrete"]), num_epochs=1)[MID]["total_loss"] != 0.0


def test_settings_that_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="use_critic"):
        PPOConfig().training(use_critic=False, vf_clip_param=1.0).freeze()


def test_without_critic_no_value_columns_are_asked_for(backend: str) -> None:
    learner = build(backend, SPACES["discrete"], use_critic=False, use_kl_loss=False)
    assert set(learner.batch_spec()) == {"obs", "actions", "action_logp", "advantages"}
