"""OptimizerSpec as a value: what it accepts, refuses, and how it travels. Its steps: tests/shared."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from learner_core.errors import ConfigError
from learner_core.maths.optimizers import OptimizerSpec

SPECS = [
    OptimizerSpec(),
    OptimizerSpec("adamw", weight_decay=0.1, betas=[0.5, 0.9]),
    OptimizerSpec("sgd", momentum=0.9, nesterov=True),
    OptimizerSpec("rmsprop", alpha=0.9, centered=np.bool_(True), momentum=np.float32(0.5)),
]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_travels_as_plain_data_and_pickled(spec: OptimizerSpec) -> None:
    for again in (OptimizerSpec.from_dict(spec.to_dict()), pickle.loads(pickle.dumps(spec)), eval(repr(spec))):
        assert again == spec
        assert hash(again) == hash(spec)
    assert all(type(v) in (str, float, bool, list) for v in spec.to_dict().values())


def test_specs_differ_by_kind_and_constants() -> None:
    assert len(set(SPECS)) == len(SPECS)
    assert OptimizerSpec("adam", eps=1e-8) == OptimizerSpec("adam")
    assert OptimizerSpec("adam") != OptimizerSpec("adamw")
    assert OptimizerSpec("adam") != "adam"


def test_defaults_are_those_of_torch() -> None:
    assert dict(OptimizerSpec("adam").hyper) == {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    assert OptimizerSpec("adamw").hyper["weight_decay"] == 0.01
    assert OptimizerSpec("rmsprop").hyper["alpha"] == 0.99


def test_is_immutable() -> None:
    spec = OptimizerSpec()
    with pytest.raises(AttributeError, match="immutable"):
        spec.kind = "sgd"
    with pytest.raises(AttributeError, match="immutable"):
        del spec.kind
    with pytest.raises(TypeError):
        spec.hyper["eps"] = 1.0


@pytest.mark.parametrize(
    ("kind", "hyper", "slots", "num_corrections"),
    [
        ("adam", {}, ("m", "v"), 2),
        ("adamw", {}, ("m", "v"), 2),
        ("sgd", {}, (), 0),
        ("sgd", {"momentum": 0.9}, ("momentum",), 0),
        ("sgd", {"momentum": 0.9, "dampening": 0.1}, ("momentum",), 1),
        ("rmsprop", {}, ("v",), 0),
        ("rmsprop", {"centered": True}, ("m", "v"), 0),
        ("rmsprop", {"centered": True, "momentum": 0.9}, ("m", "momentum", "v"), 0),
    ],
)
def test_slots_and_corrections(
    kind: str, hyper: dict[str, float], slots: tuple[str, ...], num_corrections: int
) -> None:
    spec = OptimizerSpec(kind, **hyper)
    assert spec.slot_names == slots
    assert spec.num_corrections == num_corrections
    assert spec.corrections(1).shape == (num_corrections,)
    assert spec.corrections(np.arange(1, 7).reshape(2, 3)).shape == (2, 3, num_corrections)


def test_corrections_are_literal() -> None:
    spec = OptimizerSpec("adam", betas=(0.5, 0.75))
    got = spec.corrections([1, 2, 3])
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [[2.0, 0.5], [4 / 3, np.sqrt(0.4375)], [8 / 7, np.sqrt(0.578125)]], rtol=1e-15)
    np.testing.assert_array_equal(spec.corrections(2), got[1])
    # Far into a run they are 1, and a step that float32 could not count is exact.
    np.testing.assert_array_equal(OptimizerSpec().corrections(2**24 + 1), [1.0, 1.0])
    np.testing.assert_array_equal(
        OptimizerSpec("sgd", momentum=0.9, dampening=0.25).corrections([1, 2, 3]), [[1.0], [0.75], [0.75]]
    )


@pytest.mark.parametrize("step", [0, -1, [1, 0]])
def test_steps_count_from_one(step: object) -> None:
    with pytest.raises(ConfigError, match="1-based"):
        OptimizerSpec().corrections(step)


@pytest.mark.parametrize(
    ("kind", "hyper", "words"),
    [
        ("adm", {}, "'adm' does not exist. Did you mean 'adam'"),
        (3, {}, "kind=3"),
        ([], {}, r"kind=\[\]"),
        ("adam", {"beta": (0.9, 0.99)}, "Did you mean 'betas'"),
        ("adam", {"momentum": 0.9}, "no setting 'momentum'"),
        ("adam", {"lr": 0.1}, "lr_or_lr_schedule"),
        ("adam", {"betas": (0.9, 1.0)}, "betas"),
        ("adam", {"betas": 0.9}, "two numbers"),
        ("adam", {"eps": -1e-8}, "eps"),
        ("adam", {"eps": float("nan")}, "eps"),
        ("adam", {"weight_decay": float("inf")}, "weight_decay"),
        ("adam", {"eps": "small"}, "expected a number"),
        ("adam", {"eps": True}, "expected a number"),
        ("rmsprop", {"centered": 1}, "not a bool"),
        ("rmsprop", {"alpha": 1.0}, "< 1"),
        ("sgd", {"nesterov": True}, "momentum > 0"),
        ("sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening == 0"),
    ],
)
def test_refusals(kind: str, hyper: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OptimizerSpec(kind, **hyper)
