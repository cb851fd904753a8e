"""Modules that are no trained policy: they rest, learn from the rows of another, or share parameters.

The oracles are learners of one module each: what a module learns from its rows does not depend on who else is there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.errors import BatchError, ConfigError, StateError
from learner_core.learning.rl_module import MultiRLModuleSpec, RLModule, RLModuleSpec

from support.learners import (
    OBS,
    TWO_ACTIONS,
    LinearModule,
    ToyConfig,
    build,
    regression_batch,
    states_differ,
)
from support.rings import ThreadRing


class NoParameters(RLModule):
    """Has nothing to learn, and fails where it is traced."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {}

    def forward_train(self, params: Any, batch: Any) -> Any:
        raise AssertionError("a module that does not learn is not traced")


class Stranger(RLModule):
    """Has parameters, and outputs that no loss knows."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"table": rng.normal(size=(2, 2)).astype(np.float32)}

    def forward_train(self, params: Any, batch: Any) -> Any:
        return {"nothing that the loss reads": params["table"]}


class TwoLayers(RLModule):
    """``vf_preds = head . tanh(encoder obs)``."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {
            "encoder.weight": rng.normal(size=(4, 3)).astype(np.float32),
            "head.weight": rng.normal(size=(1, 4)).astype(np.float32),
        }

    def forward_train(self, params: Any, batch: Any) -> dict[str, Any]:
        xp = self.xp
        hidden = xp.tanh(xp.linear(batch["obs"], params["encoder.weight"]))
        return {"vf_preds": xp.squeeze(xp.linear(hidden, params["head.weight"]), -1)}


class Squares(lc.Learner):
    """Least squares of ``vf_preds``, in plain gradient descent."""

    def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
        self.register_optimizer(module_id=module_id, optimizer=lc.OptimizerSpec("sgd"), params=["*"])

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        loss = self.mean(self.xp.square(fwd_out["vf_preds"] - batch["value_targets"]))
        self.log("squares", loss)
        return loss


class Stopping(Squares):
    """The left module stops before its second step."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        loss = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        if module_id == "left":
            self.stop_update(self.mean(batch["value_targets"] * 0.0 + 1.0) - 0.5)
        return loss


def _spec(module_class: Any = TwoLayers, **fields: Any) -> RLModuleSpec:
    return RLModuleSpec(module_class, OBS, TWO_ACTIONS, **fields)


def _of(learner: Any, module_id: str, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    weights = learner.get_module_state()[module_id]
    return {name: value for name, value in weights.items() if names is None or name in names}


SHARED = RLModuleSpec(shares=["encoder.*"], shared_by=["left", "right"])


def _sharing(backend: str, learner_class: type = Squares, **training: Any) -> Any:
    spec = MultiRLModuleSpec({"left": _spec(), "right": _spec(), "encoder": SHARED})
    return build(backend, learner_class, module_spec=spec, **training)


# ---- modules that rest


@pytest.mark.parametrize("module_class", [pytest.param(NoParameters, marks=pytest.mark.fast_on_torch), Stranger])
def test_a_module_that_does_not_learn_is_not_traced(backend: str, module_class: Any) -> None:
    """Neither its forward pass nor the loss; its rows are left aside, and the other learns what it would alone."""
    config = ToyConfig() if module_class is NoParameters else ToyConfig().multi_agent(policies_to_train=["left"])
    spec = MultiRLModuleSpec({"left": _spec(), "scripted": _spec(module_class)})
    learner = build(backend, Squares, module_spec=spec, config=config, compile=None)
    alone = build(backend, Squares, module_spec=MultiRLModuleSpec({"left": _spec()}), compile=None)
    batch = regression_batch(7)
    results = learner.update_from_batch(batch={"left": batch, "scripted": {"obs": np.zeros((30, 3))}})
    alone.update_from_batch(batch={"left": batch})
    assert results["scripted"] == {} and results["__all__"]["num_modules_updated"] == 1.0
    assert not states_differ(_of(learner, "left"), _of(alone, "left"))
    assert learner.get_state()["counters"] == {"num_updates": 1, "num_minibatch_steps": 2}
    assert learner.batch_spec("scripted") == {} and set(learner.batch_spec("left")) == {"obs", "value_targets"}


@pytest.mark.fast_on_torch
def test_who_rests_is_changed_between_updates(backend: str) -> None:
    spec = MultiRLModuleSpec({"left": _spec(), "right": _spec()})
    learner = build(backend, Squares, module_spec=spec)
    batch = {"left": regression_batch(8), "right": regression_batch(8, 1)}
    learner.set_config(policies_to_train=["left"])
    before = learner.get_module_state()
    learner.update_from_batch(batch=batch)
    assert set(states_differ(before, learner.get_module_state())) == {"left/encoder.weight", "left/head.weight"}
    learner.set_config(policies_to_train=["right"])
    between = learner.get_module_state()
    learner.update_from_batch(batch=batch)
    assert set(states_differ(between, learner.get_module_state())) == {"right/encoder.weight", "right/head.weight"}
    # What the optimizer knew is there again.
    state = learner.get_state()["optimizer"]
    assert {mid: entry["default"]["step"] for mid, entry in state.items()} == {"left": 2, "right": 2}


@pytest.mark.fast_on_torch
def test_hooks_compute_with_the_parameters_of_a_module_that_rests(backend: str) -> None:
    """As constants: it does not move."""

    class Distilling(Squares):
        def compute_losses(self, *, fwd_out: Any, batch: Any) -> Any:
            teacher = self.module["teacher"].forward_train(batch["student"])["vf_preds"]
            return {"student": self.mean(self.xp.square(fwd_out["student"]["vf_preds"] - teacher), "student")}

    spec = MultiRLModuleSpec({"student": _spec(), "teacher": _spec()})
    config = ToyConfig().multi_agent(policies_to_train=["student"])
    learner = build(backend, Distilling, module_spec=spec, config=config, lr=0.2)
    obs, before = np.random.default_rng(0).normal(size=(8, 3)), _of(learner, "teacher")
    losses = [learner.update_from_batch(batch={"student": {"obs": obs}})["student"]["total_loss"] for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    assert not states_differ(before, _of(learner, "teacher"))


# ---- modules that learn from the rows of another


def test_a_module_learns_from_the_rows_of_another(backend: str) -> None:
    """To the bit what it learns from the same rows as its own, and in the other's order of them."""
    spec = MultiRLModuleSpec({"policy": _spec(), "model": _spec(LinearModule, rows_of="policy")})
    learner = build(backend, Squares, module_spec=spec, num_epochs=2)
    batch = regression_batch(7)
    results = learner.update_from_batch(batch=batch)  # one module has rows: the batch needs no name
    assert results["__all__"]["num_modules_updated"] == 2.0
    policy = build(backend, Squares, module_spec=MultiRLModuleSpec({"policy": _spec()}), num_epochs=2)
    policy.update_from_batch(batch=batch)
    assert not states_differ(_of(learner, "policy"), _of(policy, "policy"))

    class AsItsOwn(Squares):
        """The order of rows goes by the module's name."""

    other = build(backend, AsItsOwn, module_spec=MultiRLModuleSpec({"policy": _spec(LinearModule)}), num_epochs=2)
    other.set_module_state({"policy": build(backend, Squares, module_spec=spec).get_module_state()["model"]})
    other.update_from_batch(batch=batch)
    assert not states_differ(_of(learner, "model"), _of(other, "policy"))
    assert results["model"]["squares"] > 0 and results["model"]["num_minibatch_steps"] == 4.0


@pytest.mark.fast_on_torch
def test_its_columns_are_those_that_either_reads(backend: str) -> None:
    class Reads(Squares):
        def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
            target = batch["rewards"] if module_id == "model" else batch["value_targets"]
            return self.mean(self.xp.square(fwd_out["vf_preds"] - target) * (1.0 + 0.0 * self.noise("n", ())))

    spec = MultiRLModuleSpec({"policy": _spec(), "model": _spec(rows_of="policy")})
    learner = build(backend, Reads, module_spec=spec)
    assert set(learner.batch_spec("policy")) == {"obs", "value_targets", "rewards"}
    with pytest.raises(BatchError, match="rewards"):
        learner.update_from_batch(batch=regression_batch(4))
    learner.update_from_batch(batch=regression_batch(4, rewards=np.ones(4)))


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("trained", [["policy"], ["model"], None])
def test_each_of_them_may_rest(backend: str, trained: list[str] | None) -> None:
    spec = MultiRLModuleSpec({"policy": _spec(), "model": _spec(LinearModule, rows_of="policy")})
    learner = build(
        backend, Squares, module_spec=spec, config=ToyConfig().multi_agent(policies_to_train=trained), compile=None
    )
    before = learner.get_module_state()
    learner.update_from_batch(batch=regression_batch(7))
    moved = {path.split("/")[0] for path in states_differ(before, learner.get_module_state())}
    assert moved == set(trained or ("policy", "model"))


@pytest.mark.fast_on_torch
def test_a_hook_says_who_is_updated_where_rows_are_shared(backend: str) -> None:
    class Alternating(Squares):
        def should_module_be_updated(self, module_id: str, batch: Any) -> bool:
            assert set(batch) >= {"obs", "value_targets"}
            return (module_id == "model") == bool(self.train_state.num_updates % 2)

    spec = MultiRLModuleSpec({"policy": _spec(), "model": _spec(LinearModule, rows_of="policy")})
    learner = build(backend, Alternating, module_spec=spec, compile=None)
    for expected in ("policy", "model", "policy"):
        before = learner.get_module_state()
        results = learner.update_from_batch(batch=regression_batch(8))
        moved = {path.split("/")[0] for path in states_differ(before, learner.get_module_state())}
        assert moved == {expected} and results["__all__"]["num_modules_updated"] == 1.0
        assert [mid for mid in ("policy", "model") if "learning_rate" in results[mid]] == [expected]


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ({"policy": _spec(), "model": _spec(rows_of="policies")}, "'policies' is no module"),
        ({"policy": _spec(rows_of="policy")}, "has no rows of its own"),
        ({"p": _spec(), "m": _spec(rows_of="n"), "n": _spec(rows_of="p")}, "'n' has no rows of its own"),
        ({"p": _spec(), "m": RLModuleSpec(rows_of="p")}, r"module_class"),
        ({"p": _spec(), "e": RLModuleSpec(shares=["encoder.*"])}, "shared_by="),
        ({"p": _spec(), "e": RLModuleSpec(shares=["encoder.*"], shared_by=["p"])}, "two modules at least"),
        ({"p": _spec(), "e": RLModuleSpec(shares=["encoder.*"], shared_by=["p", "q"])}, "'q', which is no module"),
        ({"p": _spec(), "q": _spec(), "e": RLModuleSpec(shares=["enc*", "x*"], shared_by=["p", "q"])}, r"'x\*'"),
        (
            {"p": _spec(), "q": _spec(), "e": _spec(shares=["encoder.*"], shared_by=["p", "q"])},
            "no module_class and no rows_of",
        ),
        (
            {"p": _spec(), "q": _spec(LinearModule), "e": RLModuleSpec(shares=["*weight"], shared_by=["p", "q"])},
            "same names and shapes",
        ),
    ],
)
def test_what_is_not_there_is_refused(backend: str, specs: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(backend, Squares, module_spec=MultiRLModuleSpec(specs))


@pytest.mark.fast_on_torch
def test_rows_of_a_module_without_rows_are_refused(backend: str) -> None:
    spec = MultiRLModuleSpec({"policy": _spec(), "model": _spec(LinearModule, rows_of="policy")})
    learner = build(backend, Squares, module_spec=spec)
    with pytest.raises(BatchError, match="no rows of its own, and learns from those of policy"):
        learner.update_from_batch(batch={"policy": regression_batch(4), "model": regression_batch(4)})
    with pytest.raises(ConfigError, match="'policy' is no module"):
        learner.remove_module("policy")
    learner.update_from_batch(batch=regression_batch(4))


# ---- modules that share parameters


def test_shared_parameters_move_by_the_gradients_of_all_losses(backend: str) -> None:
    """Against two learners that share nothing and begin with the same weights: the sum of their steps."""
    learner = _sharing(backend, minibatch_size=8, lr=0.05)
    start = learner.get_module_state()
    assert {mid: sorted(of) for mid, of in start.items()} == {
        "left": ["head.weight"],
        "right": ["head.weight"],
        "encoder": ["encoder.weight"],
    }
    batch = {"left": regression_batch(8), "right": regression_batch(5, 1)}
    steps = {}
    for mid in ("left", "right"):
        alone = build(backend, Squares, module_spec=MultiRLModuleSpec({mid: _spec()}), minibatch_size=8, lr=0.05)
        alone.set_module_state({mid: {**start[mid], **start["encoder"]}})
        alone.update_from_batch(batch={mid: batch[mid]})
        steps[mid] = _of(alone, mid)
    learner.update_from_batch(batch=batch)
    after = learner.get_module_state()
    for mid in ("left", "right"):
        np.testing.assert_allclose(after[mid]["head.weight"], steps[mid]["head.weight"], atol=1e-12)
    moved = sum(steps[mid]["encoder.weight"] - start["encoder"]["encoder.weight"] for mid in steps)
    np.testing.assert_allclose(
        after["encoder"]["encoder.weight"] - start["encoder"]["encoder.weight"], moved, atol=1e-12
    )
    assert np.abs(moved).max() > 1e-3


@pytest.mark.parametrize("compile", [False, None])
def test_a_module_without_rows_has_no_part_in_them(backend: str, compile: bool | None) -> None:
    learner = _sharing(backend, compile=compile, minibatch_size=8)
    start = learner.get_module_state()
    results = learner.update_from_batch(batch={"left": regression_batch(8)})
    alone = build(backend, Squares, module_spec=MultiRLModuleSpec({"left": _spec()}), minibatch_size=8)
    alone.set_module_state({"left": {**start["left"], **start["encoder"]}})
    alone.update_from_batch(batch={"left": regression_batch(8)})
    after = learner.get_module_state()
    np.testing.assert_allclose(after["encoder"]["encoder.weight"], _of(alone, "left")["encoder.weight"], atol=1e-12)
    assert not states_differ(start["right"], after["right"])
    assert results["encoder"]["num_minibatch_steps"] == 1.0 and results["__all__"]["num_modules_updated"] == 2.0


def test_a_module_that_has_stopped_has_no_part_in_them(backend: str) -> None:
    """Left stops at its first step of two; from then on right's loss alone moves what they share."""
    batch = {"left": regression_batch(8), "right": regression_batch(8, 1)}
    learner = _sharing(backend, Stopping)
    results = learner.update_from_batch(batch=batch, shuffle_batch_per_epoch=False)
    assert results["left"]["num_minibatch_steps"] == 0.0 and results["right"]["num_minibatch_steps"] == 2.0
    assert results["encoder"]["num_minibatch_steps"] == 2.0
    other = _sharing(backend)
    halves = [
        {mid: {n: c[part] for n, c in of.items()} for mid, of in batch.items()} for part in (slice(4), slice(4, 8))
    ]
    left = _of(other, "left")
    other.update_from_batch(batch=halves[0])  # the step at which it stops is the last with its gradient
    other.set_module_state({"left": left})
    other.update_from_batch(batch={"right": halves[1]["right"]})
    for mid in ("encoder", "right"):
        for name, value in _of(other, mid).items():
            np.testing.assert_allclose(_of(learner, mid)[name], value, atol=1e-12)


@pytest.mark.fast_on_torch
def test_losses_by_optimizer_move_them_as_well(backend: str) -> None:
    class ByOptimizer(Squares):
        def compute_loss_for_module(self, **arguments: Any) -> Any:
            return {"default": super().compute_loss_for_module(**arguments)}

    plain, named = (_sharing(backend, learner_class, minibatch_size=8) for learner_class in (Squares, ByOptimizer))
    batch = {"left": regression_batch(8), "right": regression_batch(8, 1)}
    for learner in (plain, named):
        learner.update_from_batch(batch=batch)
    for mid in ("left", "right", "encoder"):
        for name, value in _of(plain, mid).items():
            np.testing.assert_allclose(_of(named, mid)[name], value, atol=1e-12)


@pytest.mark.fast_on_torch
def test_accumulated_and_shared_among_learners_alike(training_backend_name: str) -> None:
    """Two learners, and a minibatch in parts, compute what one learner does of it whole."""
    spec = MultiRLModuleSpec({"left": _spec(), "right": _spec(), "encoder": SHARED, "model": _spec(rows_of="left")})
    batches = [
        {"left": regression_batch(8), "right": regression_batch(3, 1)},
        {"left": regression_batch(7, 2)},
        {"right": regression_batch(6, 3)},
    ]

    def made(accumulate: int = 1, ranks: Any = None) -> Any:
        config = ToyConfig().framework(training_backend_name, compile=False, precision="float64")
        config.training(lr=0.05, minibatch_size=4, train_batch_size=8, num_epochs=2, grad_clip=None)
        config.training(accumulate=accumulate).learners(learner_class=Squares)
        return Squares(config.freeze(), module_spec=spec, ranks=ranks)

    one, parts = made(), made(accumulate=2)
    ring = ThreadRing(2, lambda ranks: made(ranks=ranks))
    for batch in batches:
        expected = one.update_from_batch(batch=batch)
        in_parts = parts.update_from_batch(batch=batch)
        together = ring.each(lambda learner, rows=batch: learner.update_from_batch(batch=rows))
        for results in (in_parts, *together):
            for mid in ("left", "right", "encoder", "model"):
                assert results[mid] == pytest.approx(expected[mid], rel=1e-9), mid
    for other in (parts, *ring.learners):
        for mid, arrays in one.get_module_state().items():
            for name, value in arrays.items():
                np.testing.assert_allclose(_of(other, mid)[name], value, atol=1e-10)


@pytest.mark.fast_on_torch
def test_shared_parameters_stand_once_in_the_state(backend: str) -> None:
    learner = _sharing(backend)
    learner.update_from_batch(batch={"left": regression_batch(8), "right": regression_batch(8, 1)})
    state = learner.get_state()
    assert set(state["rl_module"]["encoder"]) == {"encoder.weight"} == set(state["rl_module"]["encoder"])
    other = _sharing(backend)
    other.set_state(state)
    assert not states_differ(state, other.get_state())
    bad = {**state["rl_module"], "left": {**state["rl_module"]["left"], **state["rl_module"]["encoder"]}}
    with pytest.raises(StateError, match="rl_module/left"):
        other.set_state({**state, "rl_module": bad})
    assert not states_differ(state, other.get_state())


@pytest.mark.fast_on_torch
def test_shared_parameters_neither_come_nor_go_in_a_run(backend: str) -> None:
    learner = _sharing(backend)
    before = learner.get_state()
    more = RLModuleSpec(shares=["head.*"], shared_by=["left", "right"])
    for change, words in (
        (lambda: learner.remove_module("encoder"), r"'encoder' holds the parameters encoder\.\* for left and right"),
        (lambda: learner.remove_module("left"), "shared_by names 'left'"),
        (lambda: learner.add_module(module_id="more", module_spec=more), "'more' holds the parameters"),
    ):
        with pytest.raises(ConfigError, match=words):
            change()
        assert not states_differ(before, learner.get_state())
    learner.add_module(module_id="third", module_spec=_spec())  # one that shares nothing may come


@pytest.mark.fast_on_torch
def test_targets_of_shared_parameters_are_each_modules_own(backend: str) -> None:
    class WithTarget(TwoLayers):
        targets = ("*",)

    class Averaging(Squares):
        def after_step(self, *, module_id: str, params: Any, targets: Any, config: Any) -> None:
            for name in targets:
                targets[name] = 0.5 * params[name] + 0.5 * targets[name]

    spec = MultiRLModuleSpec({"left": _spec(WithTarget), "right": _spec(), "encoder": SHARED})
    learner = build(backend, Averaging, module_spec=spec, minibatch_size=8)
    start = _of(learner, "encoder")["encoder.weight"]
    learner.update_from_batch(batch={"left": regression_batch(8), "right": regression_batch(8, 1)})
    target = learner.get_state()["targets"]["left"]["encoder.weight"]
    np.testing.assert_allclose(target, 0.5 * start + 0.5 * _of(learner, "encoder")["encoder.weight"], atol=1e-12)
