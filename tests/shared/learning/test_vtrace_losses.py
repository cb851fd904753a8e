"""IMPALA's and APPO's losses and gradients against numpy and finite differences, option by option; literal values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from learner_core_algorithms import APPOConfig, IMPALAConfig
from learner_core_algorithms.appo.learner import APPOLearner
from learner_core_algorithms.impala import learner as impala_module
from learner_core_algorithms.impala.learner import IMPALALearner

from support.learners import OBS, build_on_spaces
from support.loss_checks import MID, SPACES, check_step, keeping_gradients
from support.mutants import mutated
from support.vtrace_learners import sequence_batch, start_of, tiny_sequences
from support.vtrace_oracles import appo_loss, impala_loss


def build(config: Any, backend: str, space: Any, learner_class: Any, **training: Any) -> Any:
    """A learner with parameters and targets away from their initial values, one minibatch an update."""
    settings = {"lr": 1e-2, "minibatch_size": 60, "train_batch_size": 60, "grad_clip": None, **training}
    tiny_sequences(config, backend, **settings).rl_module(model={"hidden": [4], "activation": "tanh"})
    learner = build_on_spaces(config.learners(learner_class=keeping_gradients(learner_class)), OBS, space)
    rng = np.random.default_rng(7)
    state = learner.get_state()
    for part, size in (("rl_module", 0.4), ("targets", 0.45)):
        for name, value in state[part][MID].items():
            state[part][MID][name] = size * rng.normal(size=value.shape)
    learner.set_state(state)
    return learner


def check(
    algorithm: str, backend: str, space: Any, learner_class: Any = None, *, sequences: int = 7, **training: Any
) -> None:
    """Loss, gradient and the Adam step of one minibatch."""
    config: Any = IMPALAConfig() if algorithm == "impala" else APPOConfig()
    default = IMPALALearner if algorithm == "impala" else APPOLearner
    learner = build(config, backend, space, learner_class or default, **training)
    settings = {name: getattr(learner.config, name) for name in learner.config.settings()}
    settings["start"] = start_of(space)
    batch = sequence_batch(sequences, space)
    state = learner.get_state()
    params, target = state["rl_module"][MID], state["targets"][MID]

    def loss(p: Any) -> float:
        if algorithm == "impala":
            return impala_loss(p, params, batch, settings)
        return appo_loss(p, params, target, batch, settings)

    check_step(learner, batch, params, loss, atol=1e-12)


BOUNDS = {"vtrace_clip_rho_threshold": 0.9, "vtrace_clip_c_threshold": 0.7, "vtrace_clip_pg_rho_threshold": 1.2}
NO_BOUNDS = dict.fromkeys(BOUNDS)
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("impala", space, {}) for space in SPACES),
    ("impala", "discrete", BOUNDS),
    ("impala", "continuous", NO_BOUNDS),
    ("impala", "discrete", {"vf_loss_coeff": 1.5, "entropy_coeff": 0.0, "gamma": 0.8}),
    *(("appo", space, {}) for space in SPACES),
    ("appo", "discrete", {**BOUNDS, "clip_param": 0.1}),
    ("appo", "discrete", {"use_kl_loss": True}),
    ("appo", "continuous", {"use_kl_loss": True, "kl_coeff": 0.3, "clip_param": 0.2, "entropy_coeff": 0.0}),
]


@pytest.mark.parametrize(("algorithm", "space", "options"), CASES, ids=[f"{a}-{s}-{','.join(o)}" for a, s, o in CASES])
def test_against_numpy(backend: str, algorithm: str, space: str, options: dict[str, Any]) -> None:
    check(algorithm, backend, SPACES[space], **options)


IMPALA_MUTANTS = {
    "policy loss's sign": ("-self.mean(logp * advantages)", "self.mean(logp * advantages)"),
    "entropy's sign": ("- config.entropy_coeff * entropy", "+ config.entropy_coeff * entropy"),
    "value loss not halved": ("vf_loss = 0.5 * self.mean", "vf_loss = self.mean"),
    "ratio turned round": (
        'log_rhos = self._counted(logp - batch["action_logp"]',
        'log_rhos = self._counted(batch["action_logp"] - logp',
    ),
    "loss without its mask": (
        "policy_loss = -self.mean(logp * advantages)",
        "policy_loss = -self.xp.mean(logp * advantages)",
    ),
    "termination forgotten": ('(1.0 - xp.astype(batch["terminateds"], values.dtype))', "1.0"),
    "over an episode's end": ("xp.logical_or(ended, gap)", "gap"),
    "over rows that do not count": ("xp.logical_or(ended, gap)", "ended"),
    "truncation not bootstrapped": (
        'xp.where(batch["truncateds"][:, :-1], batch["bootstrap_values"][:, :-1], values[:, 1:])',
        "values[:, 1:]",
    ),
    "fragment's end not bootstrapped": (
        "xp.expand_dims(self._bootstrap(module_id, batch, fwd_out), 1)",
        "xp.zeros_like(values[:, :1])",
    ),
    "rho without its bound": ("clip_rho_threshold=config.vtrace_clip_rho_threshold", "clip_rho_threshold=None"),
    "c without its bound": ("clip_c_threshold=config.vtrace_clip_c_threshold", "clip_c_threshold=None"),
    "advantage without its bound": (
        "clip_pg_rho_threshold=config.vtrace_clip_pg_rho_threshold",
        "clip_pg_rho_threshold=None",
    ),
}


@pytest.mark.parametrize("name", IMPALA_MUTANTS)
def test_the_check_notices(backend: str, name: str) -> None:
    module = mutated("learner_core_algorithms.impala.learner", IMPALA_MUTANTS[name])
    with pytest.raises(AssertionError):
        check("impala", backend, SPACES["discrete"], module.IMPALALearner)


APPO_MUTANTS = {
    "policy loss's sign": ("policy_loss = -self.mean(", "policy_loss = self.mean("),
    "entropy's sign": ("- config.entropy_coeff * entropy", "+ config.entropy_coeff * entropy"),
    "clip without minimum": ("xp.minimum(advantages * ratio, advantages * clipped)", "advantages * clipped"),
    "no clip": ("xp.minimum(advantages * ratio, advantages * clipped)", "advantages * ratio"),
    "V-trace by the new policy": ("batch, fwd_out, target_log_rhos)", "batch, fwd_out, log_rhos)"),
    "target network forgotten": ("module.target.forward_train(batch)", "module.frozen.forward_train(batch)"),
    "weight without its bound": ("xp.minimum(xp.exp(-target_log_rhos), _MAX_WEIGHT)", "xp.exp(-target_log_rhos)"),
    "KL the other way": ("target.kl(dist)", "dist.kl(target)"),
    "KL's sign": (
        'loss + self.variables[module_id]["kl_coeff"] * kl',
        'loss - self.variables[module_id]["kl_coeff"] * kl',
    ),
}


@pytest.mark.parametrize("name", APPO_MUTANTS)
def test_the_check_notices_appo(backend: str, name: str) -> None:
    module = mutated("learner_core_algorithms.appo.learner", APPO_MUTANTS[name])
    with pytest.raises(AssertionError):
        check("appo", backend, SPACES["continuous"], module.APPOLearner, use_kl_loss=True, clip_param=0.2)


@pytest.mark.parametrize("what", ["vs", "advantages"])
def test_the_check_notices_a_gradient_through_targets(backend: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mutated("learner_core.maths.returns", (f"xp.stop_gradient({what})", what)) if what == "vs" else mutated(
        "learner_core.maths.returns",
        ("return xp.stop_gradient(vs), xp.stop_gradient(advantages)", "return xp.stop_gradient(vs), advantages"),
    )  # fmt: skip
    monkeypatch.setattr(impala_module, "vtrace", module.vtrace)
    with pytest.raises(AssertionError):
        check("impala", backend, SPACES["discrete"])


# ---- literal values --------------------------------------------------------------------------------------------------


def literal_batch() -> dict[str, Any]:
    """One fragment of two steps and one of which the second step does not count; log mu = log 1/2."""
    return {
        "obs": np.zeros((2, 2, 3)),
        "actions": np.zeros((2, 2), np.int64),
        "action_logp": np.log([[0.5, 0.5], [0.25, 0.5]]),
        "rewards": np.array([[1.0, 2.0], [3.0, 9.0]]),
        "terminateds": np.array([[False, False], [True, False]]),
        "truncateds": np.zeros((2, 2), bool),
        "bootstrap_obs": np.zeros((2, 3)),
        "bootstrap_values": np.zeros((2, 2)),
        "loss_mask": np.array([[1.0, 1.0], [1.0, 0.0]]),
    }


@pytest.mark.parametrize("algorithm", ["impala", "appo"])
def test_by_hand(backend: str, algorithm: str) -> None:
    """All weights 0 and V's bias 1: pi is 1/2 everywhere, V is 1.

    First fragment, gamma 1/2, ratios 1: delta_1 = 2 + 1/2 - 1 = 3/2, vs_1 = 5/2, A_1 = 3/2; delta_0 = 1 + 1/2 - 1 =
    1/2, vs_0 = 1 + 1/2 + 1/2 * 3/2 = 9/4, A_0 = 1 + 5/4 - 1 = 5/4. Second: the ratio 2 is bounded by 1, terminated:
    vs = 3, A = 2. IMPALA: -mean(log 1/2 * A) = log 2 * (5/4 + 3/2 + 2) / 3; value loss (25/16 + 9/4 + 4) / 6.
    APPO with a target network of the same weights: every ratio is 1, the policy loss -(5/4 + 3/2 + 2) / 3.
    """
    config: Any = IMPALAConfig() if algorithm == "impala" else APPOConfig()
    tiny_sequences(config, backend, length=2, gamma=0.5, vf_loss_coeff=0.5, entropy_coeff=0.01)
    learner = build_on_spaces(config, OBS, Discrete(2))
    state = learner.get_state()
    for part in ("rl_module", "targets"):
        for name, value in state[part][MID].items():
            value[...] = 1.0 if name == "vf.1.bias" else 0.0
    learner.set_state(state)
    results = learner.update_from_batch(batch=literal_batch())[MID]
    policy = {"impala": np.log(2) * 4.75 / 3, "appo": -4.75 / 3}[algorithm]
    assert results["policy_loss"] == pytest.approx(policy, abs=1e-14)
    assert results["vf_loss"] == pytest.approx((25 / 16 + 9 / 4 + 4) / 6, abs=1e-14)
    assert results["entropy"] == pytest.approx(np.log(2), abs=1e-14)
    total = policy + 0.5 * (25 / 16 + 9 / 4 + 4) / 6 - 0.01 * np.log(2)
    assert results["total_loss"] == pytest.approx(total, abs=1e-14)
    assert results["mean_rho"] == pytest.approx((1 + 1 + 2) / 3, abs=1e-14)
    assert results["rho_clip_fraction"] == pytest.approx(1 / 3, abs=1e-14)


def test_rows_that_do_not_count_do_not_count(backend: str) -> None:
    """Whatever stands in them, an overflowing ratio included: the same step."""
    batch = sequence_batch(4, SPACES["discrete"])
    states = []
    for filler in (0.0, -800.0):
        learner = build(APPOConfig(), backend, SPACES["discrete"], APPOLearner, use_kl_loss=True)
        out = batch["loss_mask"] == 0
        other = {**batch, "action_logp": np.where(out, filler, batch["action_logp"])}
        other["rewards"] = np.where(out, filler, batch["rewards"])
        results = learner.update_from_batch(batch=other)[MID]
        assert results["num_nonfinite_steps"] == 0
        states.append(learner.get_module_state()[MID])
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=0, atol=1e-15, err_msg=name)


# ---- the target network and the KL coefficient ----------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_the_target_moves_every_so_many_updates(backend: str, tau: float) -> None:
    learner = build(APPOConfig(), backend, SPACES["discrete"], APPOLearner, tau=tau, target_network_update_freq=3 / 16)
    expected = learner.get_state()["targets"][MID]
    for update in range(1, 8):
        learner.update_from_batch(batch=sequence_batch(4, SPACES["discrete"], seed=update))
        if update % 3 == 0:
            new = learner.get_module_state()[MID]
            expected = {name: tau * new[name] + (1 - tau) * old for name, old in expected.items()}
        got = learner.get_state()["targets"][MID]
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-15, err_msg=f"{update} {name}")


@pytest.mark.parametrize(("target", "factor"), [(1e-7, 1.5), (1e3, 0.5)])
def test_the_kl_coefficient_is_adapted_when_the_target_moves(backend: str, target: float, factor: float) -> None:
    learner = build(APPOConfig(), backend, SPACES["discrete"], APPOLearner, use_kl_loss=True, kl_target=target)
    seen = []
    for update in range(4):
        seen.append(
            learner.update_from_batch(batch=sequence_batch(4, SPACES["discrete"], seed=update))[MID]["kl_coeff"]
        )
    assert seen == [1.0, factor, factor, factor**2]
    again = build(APPOConfig(), backend, SPACES["discrete"], APPOLearner, use_kl_loss=True, kl_target=target)
    again.set_state(learner.get_state())
    assert again.variables[MID]["kl_coeff"] == factor**2


def test_without_a_target_the_coefficient_is_held(backend: str) -> None:
    learner = build(APPOConfig(), backend, SPACES["discrete"], APPOLearner, use_kl_loss=True, kl_target=None)
    for update in range(4):
        batch = sequence_batch(4, SPACES["discrete"], seed=update)
        assert learner.update_from_batch(batch=batch)[MID]["kl_coeff"] == 1.0


@pytest.mark.parametrize(
    ("freq", "batches", "uses", "updates"),
    [
        (None, 8, 2, 2),
        (None, 1, 1, 2),
        (2, 8, 2, 32),
        (0.125, 8, 2, 2),
        (0.25, 4, 4, 4),
        (0.7, 10, 1, 7),
        (0.01, 8, 2, 1),
        (1.1, 1, 1, 2),
    ],
)
def test_the_unit_of_the_frequency_is_that_of_rllib(freq: float | None, batches: int, uses: int, updates: int) -> None:
    """There: freq * circular_buffer_num_batches * circular_buffer_iterations_per_batch * train_batch_size timesteps."""
    config = APPOConfig().training(
        target_network_update_freq=freq,
        circular_buffer_num_batches=batches,
        circular_buffer_iterations_per_batch=uses,
    )
    assert config.updates_per_target == updates


def test_a_frequency_of_an_earlier_version_was_a_number_of_updates() -> None:
    data = APPOConfig().to_dict()
    assert APPOConfig.from_dict(data).updates_per_target == 2
    data["settings"] |= {"target_network_update_freq": 5, "circular_buffer_num_batches": 4}
    old = APPOConfig.from_dict(data)
    assert (old.target_network_update_freq, old.updates_per_target) == (0.625, 5)
    assert APPOConfig.from_dict(old.to_dict()).updates_per_target == 5


def test_settings_that_do_not_fit() -> None:
    from learner_core.errors import ConfigError

    with pytest.raises(ConfigError, match="multiple of rollout_fragment_length=50, as 100 is"):
        IMPALAConfig().training(train_batch_size=120).freeze()
    with pytest.raises(ConfigError, match="minibatch_size=70"):
        APPOConfig().training(minibatch_size=70).freeze()
