"""Every value that a setting may have goes through a checkpoint and a settings file, and comes back as it was.

What cannot is converted or refused when it is set; functions and objects are named where they are missing.
"""

from __future__ import annotations

import enum
import math
import types
import typing
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

import learner_core as lc
from learner_core.cli.settings import apply_file, parse_toml, read_file, to_toml
from learner_core.config.validation import Range, is_schedule_type
from learner_core.errors import ConfigError
from learner_core.state.format import decode, encode
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig

CONFIGS = [PPOConfig, SACConfig, IMPALAConfig, APPOConfig, BCConfig]
#: Values of settings whose type says less than what they take.
CHOSEN: dict[str, list[Any]] = {
    "env": ["CartPole-v1", "none", None],
    "framework_name": ["torch", "tf"],
    "launcher": ["local", "spmd"],
    "collective": ["auto", "horovod"],
    "optimizer": ["sgd", {"kind": "adamw", "weight_decay": 0.1}],
    "observation_space": [None],
    "action_space": [None],
    "rl_module_spec": [None, lc.RLModuleSpec(model={"hidden": (4, 4), "conv_filters": None})],
    "policies": [None, ["a", "b"], {"a": lc.RLModuleSpec(model={"hidden": [3]}), "b": None}],
    "policy_settings": [{}, {"a": {"grad_clip": None}}],
    "policy_mapping_fn": [None],
    "learner_class": [None],
}


class Color(enum.IntEnum):
    """A number."""

    RED = 3


class Word(enum.StrEnum):
    """A text."""

    NONE = "none"


class Plain(enum.Enum):
    """Neither."""

    ONE = 1


_TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["none", "None", "NONE", "", '"', "\\", "a.b" * 40, "\x7f\x00\n\r\t", "__reference__", "inf", "true", "[1]"]
)
_ARRAYS = st.sampled_from(
    [
        np.zeros((2, 3), np.float32), np.array(3), np.array([True, False]), np.array([[1.5, math.inf, math.nan]]),
        np.zeros((0, 4), np.int8), np.array(["ab", "none"]), np.arange(3, dtype=">i4"),
    ]
)  # fmt: skip
_LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | _TEXT | st.binary(max_size=4)
    | st.sampled_from([Path("a/b"), Path("."), Path("none")]) | _ARRAYS
)  # fmt: skip
_KEYS = _TEXT | st.integers(-9, 9) | st.booleans() | st.none() | st.tuples(st.integers(0, 3), _TEXT)
_DATA: Any = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_KEYS, inner, max_size=3)
        | st.sets(st.integers(0, 9) | _TEXT, max_size=3)
        | st.frozensets(st.integers(0, 9), max_size=3)
    ),
    max_leaves=8,
)


def _values(annotation: Any) -> Any:
    """Values of a type, its range kept."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *metadata = get_args(annotation)
        bounds = next((item for item in metadata if isinstance(item, Range)), Range())
        numbers = _numbers(float if is_schedule_type(annotation) else base, bounds)
        if not is_schedule_type(annotation):
            return numbers
        points = st.lists(st.tuples(st.integers(0, 99), numbers), min_size=2, max_size=3, unique_by=lambda p: p[0])
        return numbers | points.map(sorted).map(lambda found: [list(point) for point in found])
    if origin in (typing.Union, types.UnionType):
        return st.one_of([_values(option) for option in get_args(annotation)])
    if origin is Literal:
        return st.sampled_from(get_args(annotation))
    if annotation in (int, float):
        return _numbers(annotation, Range())
    if annotation in (None, type(None)):
        return st.none()
    simple = {bool: st.booleans(), str: _TEXT}
    if annotation in simple:
        return simple[annotation]
    if origin is list:
        return st.lists(_TEXT, max_size=2)
    return st.dictionaries(_TEXT, _DATA, max_size=3)


def _numbers(kind: Any, bounds: Range) -> Any:
    if kind is int:
        return st.integers(int(bounds.min or 0), int(bounds.max or 2**40))
    found = st.floats(bounds.min, bounds.max, allow_nan=False, allow_infinity=False)
    return found.filter(bounds.holds)


_ROWS = [(config, name) for config in CONFIGS for name in config.settings() if name not in config.unused_settings]


def _identical(left: Any, right: Any) -> bool:
    """Equal, of the same types all through, NaN equal to NaN."""
    if isinstance(left, lc.RLModuleSpec):
        return isinstance(right, lc.RLModuleSpec) and _identical(vars(left), vars(right))
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(_identical(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_identical, left, right))
    if isinstance(left, np.ndarray):
        same = left.dtype == right.dtype and left.shape == right.shape
        return same and (np.array_equal(left, right, equal_nan=left.dtype.kind == "f"))
    return bool(left == right) or left != left


def _through_file(config: Any) -> Any:
    again = type(config)()
    apply_file(again, parse_toml(to_toml(config)), source="config.toml")
    return again


def _through_checkpoint(config: Any) -> Any:
    return lc.AlgorithmConfig.from_dict(decode(encode(config.to_dict()).tobytes()))


@settings(max_examples=80, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.data())
def test_a_value_goes_through_and_comes_back(data: st.DataObject) -> None:
    _goes_through(data)


@pytest.mark.slow
@settings(max_examples=4000, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.data())
def test_every_value_goes_through_and_comes_back(data: st.DataObject) -> None:
    _goes_through(data)


def _goes_through(data: st.DataObject) -> None:
    config_class, name = data.draw(st.sampled_from(_ROWS))
    chosen, setting = CHOSEN.get(name), config_class.settings()[name]
    config = config_class()
    value = data.draw(st.sampled_from(chosen) if chosen is not None else _values(setting.annotation))
    try:
        setattr(config, name, value)
    except ConfigError:
        assume(False)
    kept = getattr(config, name)
    for way in (_through_file, _through_checkpoint):
        again = getattr(way(config), name)
        assert _identical(kept, again), f"{way.__name__}: {kept!r} came back as {again!r}"


@settings(max_examples=60)
@given(_DATA)
def test_data_are_kept_as_they_are_set(value: Any) -> None:
    config = PPOConfig().environment("CartPole-v1", env_config={"it": value})
    kept = config.env_config["it"]
    assert _identical(kept, _through_file(config).env_config["it"])
    assert _identical(kept, _through_checkpoint(config).env_config["it"])


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (Color.RED, 3),
        (Word.NONE, "none"),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (OrderedDict(a=Color.RED), {"a": 3}),
        (bytearray(b"x"), b"x"),
        ({Color.RED: 1}, {3: 1}),
    ],
)
def test_data_of_other_types_become_plain_when_they_are_set(value: Any, becomes: Any) -> None:
    config = PPOConfig().environment("CartPole-v1", env_config={"it": value})
    assert _identical(config.env_config["it"], becomes)
    assert _identical(_through_checkpoint(config).env_config["it"], becomes)
    # In a module's own settings, too, which are no setting themselves.
    config.rl_module(rl_module_spec=lc.RLModuleSpec(model={"it": value}))
    assert _identical(_through_checkpoint(config).rl_module_spec.model["it"], becomes)


_INSIDE: list[Any] = []
_INSIDE.append(_INSIDE)


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.array([1j]), np.datetime64("2026-01-01"), "\ud800", _INSIDE], ids=repr
)
def test_data_that_cannot_be_stored_are_refused_when_they_are_set(value: Any) -> None:
    config = PPOConfig()
    with pytest.raises(ConfigError, match=r"env_config: .*stored"):
        config.environment("CartPole-v1", env_config={"it": value})
    assert config.env_config == {} and config.env is None


@pytest.mark.parametrize("value", [lambda: 1, Plain.ONE, object(), 1j], ids=["function", "enum", "object", "complex"])
def test_objects_are_named_where_they_are_missing(value: Any) -> None:
    config = PPOConfig().environment("CartPole-v1", env_config={"size": 3, "it": value})
    data = decode(encode(config.to_dict()).tobytes())
    with pytest.raises(ConfigError, match=r"env_config: its value .* could not be stored .* give it again"):
        lc.AlgorithmConfig.from_dict(data)
    assert lc.AlgorithmConfig.from_dict(data, env_config={"size": 4}).env_config == {"size": 4}
    with pytest.raises(ConfigError, match=r"config.toml, \[environment\]: env_config: its value .* give it again"):
        _through_file(config)
    again = PPOConfig()
    apply_file(again, parse_toml(to_toml(config)), source="config.toml", given=["env_config"])
    assert again.env == "CartPole-v1" and again.env_config == {}


def test_a_setting_that_has_moved_is_found_in_a_runs_own_file() -> None:
    """``max_env_restarts`` was one of ``env_runners`` in earlier versions; a user's file is told where it is now."""
    tables = parse_toml("[env_runners]\nmax_env_restarts = 7\nnum_env_runners = 2")
    config = PPOConfig()
    apply_file(config, tables, source="config.toml", skips_missing=True)
    assert (config.max_env_restarts, config.num_env_runners) == (7, 2)
    with pytest.raises(ConfigError, match=r"mine.toml, \[env_runners\].*It belongs to \.environment\("):
        apply_file(PPOConfig(), tables, source="mine.toml")


def test_none_inside_a_table(tmp_path: Path) -> None:
    """One None made a comment of all of ``model``, and the run that was repeated trained another network."""
    config = PPOConfig().rl_module(model={"hidden": [8], "conv_filters": None, "activation": "none"})
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert read_file(path)["rl_module"]["model"] == {
        "hidden": [8], "conv_filters": "none", "activation": {"__text__": "none"}
    }  # fmt: skip
    assert _through_file(config).model == {"hidden": [8], "conv_filters": None, "activation": "none"}


def test_a_file_that_would_be_too_long_says_so() -> None:
    config = PPOConfig().environment("CartPole-v1", env_config={"it": "x" * 70_000})
    with pytest.raises(ConfigError, match="env_config: its value too long for a settings file"):
        _through_file(config)
    assert _through_checkpoint(config).env_config == config.env_config


@pytest.mark.parametrize(
    "plain",
    [
        {"__tuple__": 3}, {"__set__": [[1]]}, {"__bytes__": "zz"}, {"__path__": 3}, {"__items__": [[1]]},
        {"__items__": [[[1], 2]]}, {"__array__": ["<f4", [2], [1.0]]}, {"__array__": ["O", [1], [1]]},
        {"__array__": ["<f4", [-1], [1.0]]}, {"__array__": []}, {"__tuple__": [], "more": 1},
    ],
)  # fmt: skip
def test_marks_that_nobody_wrote_are_refused(plain: Any) -> None:
    data = PPOConfig().to_dict()
    data["settings"]["env_config"] = {"it": plain}
    with pytest.raises(ConfigError, match="env_config: what is stored"):
        lc.AlgorithmConfig.from_dict(data)
