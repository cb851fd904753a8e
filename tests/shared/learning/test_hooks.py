"""Every hook of the Contract: called when it should be, with the keyword arguments exactly as written."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.errors import ConfigError

from support.learners import ToyLearner, build, regression_batch, two_modules

TRACED = {
    "compute_losses": {"fwd_out", "batch"},
    "compute_loss_for_module": {"module_id", "config", "batch", "fwd_out"},
    "postprocess_gradients_for_module": {"module_id", "config", "gradients"},
    "after_step": {"module_id", "params", "targets", "config"},
}
POSITIONAL = {
    "compute_gradients": ("loss_fn", "params"),
    "postprocess_gradients": ("gradients",),
    "apply_gradients": ("gradients",),
}
HOST = {
    "configure_optimizers_for_module": {"module_id", "config"},
    "preprocess_batch": {"module_id", "batch"},
    "should_module_be_updated": {"module_id", "batch"},
    "before_gradient_based_update": {"timesteps"},
    "after_gradient_based_update": {"timesteps"},
}


def spy(backend: str, **options: Any) -> tuple[Any, list[tuple[str, tuple[Any, ...], dict[str, Any]]]]:
    """A learner whose every hook notes its call and passes it on."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def noting(name: str) -> Any:
        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append((name, args, kwargs))
            return getattr(super(Spy, self), name)(*args, **kwargs)

        return hook

    class Spy(ToyLearner):
        pass

    for name in (*TRACED, *POSITIONAL, *HOST):
        setattr(Spy, name, noting(name))
    return build(backend, Spy, **options), calls


@pytest.mark.parametrize("options", [{}, {"debug": True, "compile": None}], ids=["eager", "debug"])
def test_calls_and_keywords(backend: str, options: dict[str, Any]) -> None:
    learner, calls = spy(backend, module_spec=two_modules(), **options)
    assert [kwargs["module_id"] for name, _, kwargs in calls if name == "configure_optimizers_for_module"] == [
        "left",
        "right",
    ]
    del calls[:]
    learner.update_from_batch(
        batch={"left": regression_batch(8), "right": regression_batch(8)},
        timesteps={"num_env_steps_sampled_lifetime": 250},
    )
    count = {name: sum(call[0] == name for call in calls) for name in (*TRACED, *POSITIONAL, *HOST)}
    assert count == {
        "configure_optimizers_for_module": 0,
        "should_module_be_updated": 2,
        "preprocess_batch": 2,
        "before_gradient_based_update": 1,
        "after_gradient_based_update": 1,
        "compute_losses": 2,
        "compute_loss_for_module": 4,
        "compute_gradients": 2,
        "postprocess_gradients": 2,
        "postprocess_gradients_for_module": 4,
        "apply_gradients": 2,
        "after_step": 4,
    }
    for name, args, kwargs in calls:
        if name in POSITIONAL:
            assert len(args) + len(kwargs) == len(POSITIONAL[name])
        else:
            assert not args and set(kwargs) == {**TRACED, **HOST}[name], name
    names = [name for name, _, _ in calls]
    assert names.index("before_gradient_based_update") > names.index("preprocess_batch")
    assert names[-1] == "after_gradient_based_update"
    assert next(kwargs for name, _, kwargs in calls if name == "before_gradient_based_update") == {
        "timesteps": {"num_env_steps_sampled_lifetime": 250}
    }


def test_host_hooks_see_numpy_and_traced_hooks_the_backends_arrays(backend: str) -> None:
    learner, calls = spy(backend)
    del calls[:]
    learner.update_from_batch(batch=regression_batch(8))
    for name, _, kwargs in calls:
        if name in ("preprocess_batch", "should_module_be_updated"):
            assert all(type(value) is np.ndarray for value in kwargs["batch"].values())
        elif name == "compute_loss_for_module":
            assert not any(isinstance(value, np.ndarray) for value in kwargs["batch"].values())
            assert set(kwargs["batch"]) == {"obs", "value_targets", "loss_mask"}
            assert "vf_preds" in kwargs["fwd_out"]
            config = kwargs["config"]
            assert learner.xp.shape(config.scale) == () and not isinstance(config.scale, float)
            assert config.power == 2 and type(config.power) is int
            with pytest.raises(ConfigError, match="set_config"):
                config.scale = 2.0
        elif name == "after_step":
            assert set(kwargs["params"]) == {"v.weight", "v.bias", "q.weight", "log_alpha"}
            assert set(kwargs["targets"]) == {"q.weight"}


def test_documented_signatures() -> None:
    """The base class has the very signatures that the documentation names."""
    for name, expected in {**TRACED, **HOST}.items():
        parameters = [p for p in inspect.signature(getattr(lc.Learner, name)).parameters if p != "self"]
        assert set(parameters) == expected
        assert inspect.getdoc(getattr(lc.Learner, name)), name
    for name, expected_names in POSITIONAL.items():
        parameters = [p for p in inspect.signature(getattr(lc.Learner, name)).parameters if p != "self"]
        assert tuple(parameters) == expected_names


def test_each_loss_moves_only_its_own_parameters(backend: str) -> None:
    class OnlyQ(ToyLearner):
        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            losses = super().compute_loss_for_module(**kwargs)
            # The same total under "q": if it were differentiated by all parameters, "v" would move.
            return {"q": losses["q"] + losses["v"]}

    learner = build(backend, OnlyQ)
    before = learner.get_module_state()["default_policy"]
    learner.update_from_batch(batch=regression_batch(8))
    after = learner.get_module_state()["default_policy"]
    assert np.array_equal(before["v.weight"], after["v.weight"])
    assert not np.array_equal(before["q.weight"], after["q.weight"])


def test_a_loss_for_an_unregistered_optimizer_is_refused(backend: str) -> None:
    class Wrong(ToyLearner):
        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            return {"vee": super().compute_loss_for_module(**kwargs)["v"]}

    with pytest.raises(ConfigError, match=r"'vee'.*not registered"):
        build(backend, Wrong)


def test_compute_gradients_and_the_two_that_follow(backend: str) -> None:
    """Overrides take part: doubled, then clipped, then applied with the sign turned, equal minus twice the step."""
    steps: list[str] = []

    class Turned(ToyLearner):
        def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
            self.register_optimizer(
                module_id=module_id, optimizer=lc.OptimizerSpec("sgd"), params=["v.*"], lr_or_lr_schedule=1e-3
            )

        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            return super().compute_loss_for_module(**kwargs)["v"]

    class Override(Turned):
        def compute_gradients(self, loss_fn: Any, params: Any) -> Any:
            gradients, aux = super().compute_gradients(loss_fn, params)
            steps.append("compute")
            return {mid: {n: 2.0 * g for n, g in arrays.items()} for mid, arrays in gradients.items()}, aux

        def postprocess_gradients(self, gradients: Any) -> Any:
            steps.append("postprocess")
            return super().postprocess_gradients(gradients)

        def apply_gradients(self, gradients: Any) -> None:
            steps.append("apply")
            super().apply_gradients({mid: {n: -g for n, g in arrays.items()} for mid, arrays in gradients.items()})

    plain, turned = build(backend, Turned), build(backend, Override)
    start = plain.get_module_state()["default_policy"]["v.weight"]
    del steps[:]
    for learner in (plain, turned):
        learner.update_from_batch(batch=regression_batch(4))
    assert steps == ["compute", "postprocess", "apply"]
    moved = plain.get_module_state()["default_policy"]["v.weight"] - start
    np.testing.assert_allclose(turned.get_module_state()["default_policy"]["v.weight"] - start, -2 * moved, rtol=1e-9)


def test_compute_losses_may_couple_modules(backend: str) -> None:
    class Coupled(lc.Learner):
        def compute_losses(self, *, fwd_out: Any, batch: Any) -> Any:
            difference = fwd_out["left"]["vf_preds"] - fwd_out["right"]["vf_preds"]
            loss = self.mean(self.xp.square(difference), module_id="left")
            self.log("distance", loss, module_id="__all__")
            return {"left": loss, "right": 0.0 * loss}

    learner = build(backend, Coupled, module_spec=two_modules(), lr=0.01)
    batch = {"left": regression_batch(4), "right": regression_batch(4)}
    first = learner.update_from_batch(batch=batch, shuffle_batch_per_epoch=False)
    for _ in range(5):
        last = learner.update_from_batch(batch=batch, shuffle_batch_per_epoch=False)
    assert last["__all__"]["distance"] < first["__all__"]["distance"]


def test_preprocess_batch_works_on_the_whole_batch(backend: str) -> None:
    sizes: list[int] = []

    class Centred(ToyLearner):
        def preprocess_batch(self, *, module_id: str, batch: dict[str, Any]) -> dict[str, Any]:
            sizes.append(len(batch["value_targets"]))
            return {**batch, "value_targets": batch["value_targets"] - batch["value_targets"].mean()}

    centred, plain = build(backend, Centred), build(backend)
    batch = regression_batch(7)
    centred.update_from_batch(batch=batch)
    plain.update_from_batch(batch={**batch, "value_targets": batch["value_targets"] - batch["value_targets"].mean()})
    assert sizes == [7]
    a, b = centred.get_module_state(), plain.get_module_state()
    np.testing.assert_allclose(a["default_policy"]["v.weight"], b["default_policy"]["v.weight"], rtol=1e-12)


def test_should_module_be_updated(backend: str) -> None:
    class OnlyRight(ToyLearner):
        def should_module_be_updated(self, module_id: str, batch: Any) -> bool:
            return module_id == "right" and len(batch["obs"]) > 2

    learner = build(backend, OnlyRight, module_spec=two_modules())
    before = learner.get_module_state()
    results = learner.update_from_batch(batch={"left": regression_batch(4), "right": regression_batch(4)})
    after = learner.get_module_state()
    assert results["__all__"]["num_modules_updated"] == 1.0
    assert np.array_equal(before["left"]["v.weight"], after["left"]["v.weight"])
    assert not np.array_equal(before["right"]["v.weight"], after["right"]["v.weight"])


def test_host_hooks_around_the_update(backend: str) -> None:
    """Noise on parameters before; after, this update's results to adapt a variable by, and to add to."""

    class Host(ToyLearner):
        def before_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
            self.seen = self.noise("parameters", (2,)), self.noise("parameters", (2,))
            self.update_parameters(lambda module_id, params: {**params, "v.bias": params["v.bias"] + 10.0})

        def after_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
            metrics = self.results["default_policy"]
            assert metrics["vf_loss"] > 0
            self.variables["default_policy"]["kl_coeff"] = self.variables["default_policy"]["kl_coeff"] * 1.5
            metrics["kl_coeff"] = self.variables["default_policy"]["kl_coeff"]

    learner = build(backend, Host, lr=0.0)
    start = learner.get_module_state()["default_policy"]["v.bias"]
    results = learner.update_from_batch(batch=regression_batch(4))
    assert results["default_policy"]["kl_coeff"] == pytest.approx(0.375)
    np.testing.assert_allclose(learner.get_module_state()["default_policy"]["v.bias"], start + 10.0)
    first = learner.seen[0]
    assert isinstance(first, np.ndarray) and first.shape == (2,) and np.array_equal(*learner.seen)
    learner.update_from_batch(batch=regression_batch(4))
    assert not np.array_equal(learner.seen[0], first)


def test_what_belongs_in_a_step_is_refused_outside(backend: str) -> None:
    learner = build(backend)
    for call in (
        lambda: learner.mean(np.zeros(3)),
        lambda: learner.log("x", 1.0),
        lambda: learner.stop_update(True),
        lambda: learner.apply_gradients({}),
    ):
        with pytest.raises(ConfigError, match="only inside a training step"):
            call()


def test_module_views(backend: str) -> None:
    """``module[id]`` binds parameters; outside a step, the current ones."""
    learner = build(backend)
    assert learner.module is not None and set(learner.module) == {"default_policy"}
    obs = learner.backend.from_numpy({"obs": np.ones((2, 3))})["obs"]
    view = learner._module["default_policy"]
    weights = learner.get_module_state()["default_policy"]
    for q in (view.q(obs), view.frozen.q(obs), view.target.q(obs)):
        np.testing.assert_allclose(learner.backend.to_numpy({"q": q})["q"], weights["q.weight"].sum(), rtol=1e-12)
    assert view.get_train_action_dist_cls().input_size(view.action_space) == 2
    with pytest.raises(ConfigError, match="default_policy"):
        learner.module["default_polisy"]


def test_frozen_and_target_views_stop_gradients(backend: str) -> None:
    class Stopped(ToyLearner):
        def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
            module = self.module[module_id]
            frozen = self.mean(self.xp.square(module.frozen.q(batch["obs"])))
            target = self.mean(self.xp.square(module.target.q(batch["obs"])))
            return {"q": frozen + target, "v": self.mean(self.xp.square(fwd_out["vf_preds"]))}

    learner = build(backend, Stopped)
    results = learner.update_from_batch(batch=regression_batch(4))
    assert results["default_policy"]["gradient_norm/q"] == 0.0
    assert results["default_policy"]["gradient_norm/v"] > 0.0
