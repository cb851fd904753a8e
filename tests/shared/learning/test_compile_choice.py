"""compile=None, True, False and debug: who compiles, who warns, who raises."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest

from learner_core.errors import CompileError, ConfigError

from support.learners import ToyLearner, build, regression_batch


class Branches(ToyLearner):
    """A Python ``if`` on the value of an array."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        losses = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        if losses["v"] > 1e9:
            return {**losses, "v": 0.5 * losses["v"]}
        return losses


class BranchesOnSetting(ToyLearner):
    """A Python ``if`` on a float setting, which is an array in a step."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        losses = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        return losses if config.shift >= 0 else {**losses, "v": -losses["v"]}


def line_of(cls: type, text: str) -> int:
    lines, start = inspect.getsourcelines(cls)
    return start + next(i for i, line in enumerate(lines) if text in line)


@pytest.mark.parametrize(("cls", "text"), [(Branches, "if losses"), (BranchesOnSetting, "if config.shift")])
def test_none_runs_eagerly_and_says_why_once(backend: str, cls: type, text: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner = build(backend, cls, compile=None)
        for _ in range(2):
            results = learner.update_from_batch(batch=regression_batch(8))
    ours = [str(w.message) for w in caught if "uncompiled" in str(w.message)]
    assert len(ours) == 1 and "compiled: 0" in ours[0]
    assert f"{__file__}:{line_of(cls, text)}: " in ours[0]
    assert results["__all__"]["compiled"] == 0.0
    twin = build(backend, cls, compile=False)
    for _ in range(2):
        twin.update_from_batch(batch=regression_batch(8))
    a, b = (one.get_module_state()["default_policy"]["v.weight"] for one in (learner, twin))
    assert np.array_equal(a, b)


def test_true_raises(backend: str) -> None:
    with pytest.raises(CompileError, match=f"test_compile_choice.py:{line_of(Branches, 'if losses')}: "):
        build(backend, Branches, compile=True)


@pytest.mark.parametrize("options", [{"compile": False}, {"compile": None, "debug": True}], ids=["false", "debug"])
def test_false_and_debug_are_eager_without_a_word(backend: str, options: dict[str, Any]) -> None:
    learner = build(backend, Branches, **options)
    assert learner.update_from_batch(batch=regression_batch(8))["__all__"]["compiled"] == 0.0


def test_true_and_debug_exclude_each_other(backend: str) -> None:
    with pytest.raises(ConfigError, match="debug"):
        build(backend, compile=True, debug=True)


def test_the_choice_follows_the_lifetime_step_count(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed learner compiles where the uninterrupted one did: the state alone decides."""
    loops: list[int] = []

    class Loop:
        def __init__(self, body: Any) -> None:
            self._body = body

        def __call__(self, carry: Any, inputs: Any, start: int, stop: int) -> Any:
            for s in range(start, stop):
                carry = self._body(s, carry, inputs)
            return carry

    def make_loop(self: Any, body: Any, *, example: Any, config: Any) -> Any:
        loops.append(learner.train_state.num_steps)
        return Loop(body)

    learner = build(backend, compile=False)
    kind = type(learner.backend)
    monkeypatch.setattr(kind, "make_loop", make_loop)
    monkeypatch.setattr(kind, "compile_after", lambda self, config: 4)
    learner = build(backend, compile=None)
    seen = [learner.update_from_batch(batch=regression_batch(8))["__all__"]["compiled"] for _ in range(4)]
    assert seen == [0.0, 0.0, 1.0, 1.0] and loops == [4]
    state = learner.get_state()
    learner = build(backend, compile=None)
    learner.set_state(state)
    assert learner.update_from_batch(batch=regression_batch(8))["__all__"]["compiled"] == 1.0


def test_print_in_a_loss_with_debug(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Prints(ToyLearner):
        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            losses = super().compute_loss_for_module(**kwargs)
            print("v is", self.backend.to_numpy({"v": losses["v"]})["v"])
            return losses

    learner = build(backend, Prints, compile=None, debug=True)
    capsys.readouterr()
    learner.update_from_batch(batch=regression_batch(8), num_epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and len(set(lines)) == 4


def test_breakpoints_in_a_loss_with_debug(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[float] = []

    class Breaks(ToyLearner):
        def compute_loss_for_module(self, **kwargs: Any) -> Any:
            losses = super().compute_loss_for_module(**kwargs)
            self.here = losses["v"]
            breakpoint()
            return losses

    learner: Any = None

    def hook() -> None:
        if learner is not None:
            values.append(float(learner.backend.to_numpy({"v": learner.here})["v"]))

    monkeypatch.setattr("sys.breakpointhook", hook)
    learner = build(backend, Breaks, debug=True, compile=None)
    learner.update_from_batch(batch=regression_batch(8))
    assert len(values) == 2 and values[0] != values[1]
