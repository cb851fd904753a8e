"""Variables, schedules and settings of a live learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

import learner_core as lc
from learner_core.errors import BatchError, ConfigError, StateError

from support.learners import (
    OBS,
    TWO_ACTIONS,
    ToyConfig,
    ToyLearner,
    assert_states_equal,
    build,
    build_on_spaces,
    regression_batch,
    states_differ,
    tiny,
)


@pytest.fixture(scope="module")
def _toy(backend: str) -> tuple[Any, Any]:
    learner = build(backend)
    return learner, learner.get_state()


@pytest.fixture
def toy(_toy: tuple[Any, Any]) -> Any:
    learner, start = _toy
    learner.set_state(start)
    learner.set_config(lr=0.05, scale=1.0, shift=0.0)
    return learner


def test_host_variables_are_floats_that_hooks_may_assign(toy: Any) -> None:
    variables = toy.variables["default_policy"]
    assert variables["kl_coeff"] == 0.25 and isinstance(variables["kl_coeff"], float)
    variables["kl_coeff"] = 3
    assert toy.get_state()["variables"]["default_policy"]["kl_coeff"] == 3.0
    for value in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="not finite"):
            variables["kl_coeff"] = value
    with pytest.raises(ConfigError, match="kl_coeff"):
        variables["kl_coef"] = 1.0
    with pytest.raises(ConfigError, match="may assign"):
        variables["log_alpha"] = 1.0
    assert variables["kl_coeff"] == 3.0


def test_trainable_variables_learn_and_are_read_as_floats(toy: Any) -> None:
    assert toy.variables["default_policy"]["log_alpha"] == 0.5
    toy.update_from_batch(batch=regression_batch(8))
    value = toy.variables["default_policy"]["log_alpha"]
    state = toy.get_state()
    assert value != 0.5 and value == state["variables"]["default_policy"]["log_alpha"]
    assert "log_alpha" not in toy.get_module_state()["default_policy"]
    assert "log_alpha" in state["optimizer"]["default_policy"]["alpha"]["slots"]["v"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda self: self.register_variable(module_id="default_policy", name="v.bias", value=1.0), "has 'v.bias'"),
        (lambda self: self.register_variable(module_id="default", name="x", value=1.0), "default_policy"),
        (lambda self: self.register_variable(module_id="default_policy", name="x", value="one"), "not a number"),
        (lambda self: self.register_variable(module_id="default_policy", name="x", value=np.nan), "not finite"),
        (lambda self: self.register_variable(module_id="default_policy", name="x", value=[1.0]), "trainable"),
        (lambda self: self.register_optimizer(module_id="default_policy", params=["vv.*"]), "matches no parameter"),
        (lambda self: self.register_optimizer(module_id="default_policy", optimizer="adam"), "OptimizerSpec"),
        (lambda self: self.register_optimizer(module_id="default_policy", lr_or_lr_schedule="lrr"), "'lr'"),
        (lambda self: self.register_optimizer(module_id="default_policy", lr_or_lr_schedule=[[0]]), "default"),
        (lambda self: [self.register_optimizer(module_id="default_policy") for _ in range(2)], "of that name"),
        (
            lambda self: [
                self.register_optimizer(module_id="default_policy", optimizer_name=n, params=["v.*"]) for n in "ab"
            ],
            "'v.bias' belongs to optimizer 'a'",
        ),
    ],
)  # fmt: skip
def test_registrations_that_are_refused(backend: str, call: Any, message: str) -> None:
    class Wrong(ToyLearner):
        def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
            call(self)

    with pytest.raises(ConfigError, match=message):
        build(backend, Wrong)


def test_rates_schedules_and_names(toy: Any) -> None:
    """A setting's name, a schedule, a plain number: all at their value now, all in the results."""
    expected = {0: (0.05, 0.1, 0.01), 50: (0.05, 0.05, 0.01), 100: (0.05, 0.0, 0.01), 10**9: (0.05, 0.0, 0.01)}
    for steps, (v, q, alpha) in expected.items():
        metrics = toy.update_from_batch(batch=regression_batch(4), timesteps={"num_env_steps_sampled_lifetime": steps})[
            "default_policy"
        ]
        assert metrics["learning_rate/v"] == pytest.approx(v)
        assert metrics["learning_rate/q"] == pytest.approx(q)
        assert metrics["learning_rate/alpha"] == pytest.approx(alpha)
    toy.set_config(lr=[[0, 1.0], [2 * 10**9, 0.0]])
    metrics = toy.update_from_batch(batch=regression_batch(4), timesteps={})["default_policy"]
    assert metrics["learning_rate/v"] == pytest.approx(0.5)


def test_jumps_forms_and_functions_in_a_run(backend: str) -> None:
    """Each at its value in every update, changed in a run, and the same after a restore."""
    half = lc.schedule(lambda progress: 0.5 * progress, timesteps=200, of="progress_remaining")
    learner = build(backend, lr=[[100, 0.25], [100, 0.125]], scale=half)
    batch = regression_batch(8)

    def rate(of: Any, timestep: int) -> float:
        timesteps = {"num_env_steps_sampled_lifetime": timestep}
        return of.update_from_batch(batch=batch, timesteps=timesteps)["default_policy"]["learning_rate/v"]

    assert [rate(learner, timestep) for timestep in (0, 99, 100, 5000)] == [0.25, 0.25, 0.125, 0.125]
    learner.set_config(lr={"kind": "exponential", "start": 0.1, "end": 0.001, "timesteps": 200})
    again = build(backend, lr=learner.config.lr, scale=half)
    again.set_state(learner.get_state())
    for one in (learner, again):
        assert [rate(one, t) for t in (0, 100, 200)] == pytest.approx([0.1, 0.01, 0.001], rel=1e-6)
    assert_states_equal(learner.get_state(), again.get_state())


def test_a_rate_of_zero_moves_nothing(toy: Any) -> None:
    before = toy.get_module_state()["default_policy"]["q.weight"]
    toy.update_from_batch(batch=regression_batch(4), timesteps={"num_env_steps_sampled_lifetime": 100})
    assert np.array_equal(before, toy.get_module_state()["default_policy"]["q.weight"])


@pytest.mark.parametrize("timesteps", [250, {"n": -1}, {"n": 1.5}, {"n": True}, {"n": "1"}])
def test_bad_timesteps_change_nothing(toy: Any, timesteps: Any) -> None:
    before = toy.get_state()
    with pytest.raises(BatchError, match="timesteps"):
        toy.update_from_batch(batch=regression_batch(4), timesteps=timesteps)
    assert not states_differ(before, toy.get_state())


@pytest.mark.parametrize(
    "arguments",
    [{"minibatch_size": 0}, {"minibatch_size": 2.0}, {"num_epochs": 0}, {"num_epochs": "2"}],
)
def test_bad_sizes_change_nothing(toy: Any, arguments: dict[str, Any]) -> None:
    before = toy.get_state()
    with pytest.raises(BatchError, match=next(iter(arguments))):
        toy.update_from_batch(batch=regression_batch(4), timesteps={"num_env_steps_sampled_lifetime": 7}, **arguments)
    assert not states_differ(before, toy.get_state())


def test_a_larger_minibatch_than_the_setting(backend: str) -> None:
    wide, plain = build(backend, minibatch_size=7), build(backend, minibatch_size=4)
    results = [
        wide.update_from_batch(batch=regression_batch(7)),
        plain.update_from_batch(batch=regression_batch(7), minibatch_size=7),
    ]
    assert results[1]["default_policy"]["num_minibatch_steps"] == 1
    assert not states_differ(wide.get_state(), plain.get_state())


def test_timesteps_may_be_missing_and_are_kept(toy: Any) -> None:
    toy.update_from_batch(batch=regression_batch(4), timesteps={"num_env_steps_sampled_lifetime": 7, "mine": 3})
    toy.update_from_batch(batch=regression_batch(4), timesteps=None)
    toy.update_from_batch(batch=regression_batch(4))
    assert toy.get_state()["timesteps"] == {"num_env_steps_sampled_lifetime": 7, "mine": 3}


def test_set_config_scales_the_loss(toy: Any) -> None:
    start = toy.get_state()
    one = toy.update_from_batch(batch=regression_batch(4))["default_policy"]["vf_loss"]
    toy.set_state(start)
    toy.set_config(scale=4.0)
    four = toy.update_from_batch(batch=regression_batch(4))["default_policy"]["vf_loss"]
    assert four == pytest.approx(4 * one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scael": 1.0}, "'scale'"),
        ({"scale": "big"}, "scale"),
        ({"scale": -1.0}, "scale"),
        ({"lr": [[5, 1.0], [0, 2.0]]}, "lr"),
        ({"model": {}}, "fixed when the learner was built"),
        ({"seed": 3}, "fixed"),
        ({"lr": 0.1, "framework_name": "tf"}, "fixed"),
    ],
)
def test_set_config_refuses_and_changes_nothing(toy: Any, settings: dict[str, Any], message: str) -> None:
    before = toy.config
    with pytest.raises(ConfigError, match=message):
        toy.set_config(**settings)
    assert toy.config is before


def test_a_value_that_learning_started_from_says_what_to_assign_instead(backend: str) -> None:
    """``kl_coeff`` and ``initial_alpha`` are variables once the learner is built: setting them would do nothing."""
    from learner_core_algorithms import PPOConfig, SACConfig

    box = Box(-1.0, 1.0, (1,), np.float32)
    ppo = build_on_spaces(tiny(PPOConfig(), backend), OBS, TWO_ACTIONS)
    sac = build_on_spaces(tiny(SACConfig(), backend), OBS, box)
    for learner, setting, variable in ((ppo, "kl_coeff", "kl_coeff"), (sac, "initial_alpha", "log_alpha")):
        before, state = learner.config, learner.get_state()
        with pytest.raises(ConfigError, match=f"{setting}=0.5 is only where learning started.*{variable}"):
            learner.set_config(**{setting: 0.5})
        assert learner.config is before and not states_differ(state, learner.get_state())
    # What the two messages say to do.
    ppo.variables["default_policy"]["kl_coeff"] = 0.5
    sac.update_parameters(lambda module_id, params: {**params, "log_alpha": params["log_alpha"] * 0.0 - 1.5})
    assert ppo.get_state()["variables"]["default_policy"]["kl_coeff"] == 0.5
    assert sac.get_state()["variables"]["default_policy"]["log_alpha"] == -1.5
    # Where there is no such variable yet, the setting is what a rebuild starts from.
    without = build_on_spaces(tiny(PPOConfig(), backend, use_kl_loss=False), OBS, TWO_ACTIONS)
    without.set_config(use_kl_loss=True, kl_coeff=0.5)
    assert without.get_state()["variables"]["default_policy"]["kl_coeff"] == 0.5


def test_a_static_setting_rebuilds_and_keeps_the_state(backend: str) -> None:
    learner, fresh = build(backend), build(backend, minibatch_size=2)
    learner.update_from_batch(batch=regression_batch(8))
    learner.variables["default_policy"]["kl_coeff"] = 2.0
    before = learner.get_state()
    learner.set_config(minibatch_size=2)
    assert not states_differ(before, learner.get_state())
    fresh.set_state(before)
    for one in (learner, fresh):
        assert one.update_from_batch(batch=regression_batch(8))["default_policy"]["num_minibatch_steps"] == 4
    assert not states_differ(learner.get_state(), fresh.get_state())


def test_a_rebuild_that_fails_leaves_the_learner_as_it_was(backend: str) -> None:
    class Fragile(ToyLearner):
        def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
            if config.power == 3:
                raise ValueError("cubes are not implemented")
            return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)

    learner, twin = build(backend, Fragile), build(backend, Fragile)
    learner.update_from_batch(batch=regression_batch(8))
    before = learner.get_state()
    with pytest.raises(ValueError, match="cubes"):
        learner.set_config(power=3)
    assert learner.config.power == 2 and not states_differ(before, learner.get_state())
    twin.set_state(before)
    for one in (learner, twin):
        one.update_from_batch(batch=regression_batch(8))
    assert_states_equal(learner.get_state(), twin.get_state())


def test_a_schedule_in_the_configuration(backend: str) -> None:
    learner = build(backend, config=ToyConfig().training(scale=[[0, 0.0], [10, 2.0]]))
    losses = [
        learner.update_from_batch(
            batch=regression_batch(4), timesteps={"num_env_steps_sampled_lifetime": steps}, num_epochs=1
        )["default_policy"]["vf_loss"]
        for steps in (0, 10)
    ]
    assert losses[0] == 0.0 and losses[1] > 0.0


def test_a_shared_seed_gives_the_same_learner_and_another_one_does_not(backend: str) -> None:
    def weights(seed: int) -> np.ndarray:
        learner = build(backend, config=ToyConfig().debugging(seed=seed))
        learner.update_from_batch(batch=regression_batch(8))
        return learner.get_module_state()["default_policy"]["q.weight"]

    assert np.array_equal(weights(1), weights(1)) and not np.array_equal(weights(1), weights(2))


def test_optimizer_setting(backend: str) -> None:
    """The default hook follows the ``optimizer`` setting."""

    class Default(ToyLearner):
        configure_optimizers_for_module = lc.Learner.configure_optimizers_for_module

        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            return super().compute_loss_for_module(**kwargs)["v"]

    learner = build(backend, Default, optimizer={"kind": "sgd", "momentum": 0.5})
    learner.update_from_batch(batch=regression_batch(4))
    entry = learner.get_state()["optimizer"]["default_policy"]["default"]
    assert entry["kind"] == "sgd" and list(entry["slots"]) == ["momentum"] and entry["step"] == 1


def test_values_beyond_a_variables_bounds_are_refused_in_states_and_assignments(backend: str) -> None:
    from learner_core_algorithms import PPOConfig, SACConfig

    box = Box(-1.0, 1.0, (1,), np.float32)
    ppo = build_on_spaces(tiny(PPOConfig(), backend), OBS, TWO_ACTIONS)
    sac = build_on_spaces(tiny(SACConfig(), backend), OBS, box)
    for learner, variable, value, expected in (
        (ppo, "kl_coeff", -0.25, "a finite number of at least 0, got -0.25"),
        (sac, "log_alpha", 88.0, "values from -80 to 80, got values from 88 to 88"),
        (sac, "log_alpha", -(2.0**31), "values from -80 to 80"),
    ):
        before = learner.get_state()
        state = {**before, "variables": {"default_policy": {variable: value}}}
        with pytest.raises(StateError, match=f"variables/default_policy/{variable}: expected {expected}"):
            learner.set_state(state)
        assert not states_differ(before, learner.get_state())
    with pytest.raises(ConfigError, match=r"'kl_coeff' of module 'default_policy': -0\.25 is not from 0 to inf"):
        ppo.variables["default_policy"]["kl_coeff"] = -0.25
    with pytest.raises(ConfigError, match=r"'log_alpha'.*not within bounds=\(-80.0, 80.0\)"):
        build_on_spaces(tiny(SACConfig(), backend, initial_alpha=1e40), OBS, box)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("name", ["num_env_steps_sampled", "num_env_steps_sampled_lifetme"])
def test_a_counter_that_schedules_do_not_move_by_is_refused(backend: str, name: str) -> None:
    learner = build(backend, lr=[[0, 0.1], [100, 0.2]])
    before = learner.get_state()
    with pytest.raises(
        BatchError, match=f"timesteps\\['{name}'\\]: schedules move by 'num_env_steps_sampled_lifetime'"
    ):
        learner.update_from_batch(batch=regression_batch(4), timesteps={name: 50})
    assert not states_differ(before, learner.get_state())
    learner.update_from_batch(batch=regression_batch(4), timesteps={"rounds": 3})
    learner.update_from_batch(batch=regression_batch(4), timesteps={"num_env_steps_sampled_lifetime": 50, name: 50})
