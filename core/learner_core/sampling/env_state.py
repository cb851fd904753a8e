"""Saving a running environment as plain data, where that can be done exactly.

Gymnasium has no such operation, so this looks at the objects. An environment is saved ``exact``-ly if it offers
``get_state()`` and ``set_state(state)`` itself, or if every attribute of it and of its wrappers is plain: numbers,
strings, arrays, containers of those, random generators (classic control, toy text, MuJoCo, most environments written
for research). The generators of its spaces are part of that: an environment may sample from them. One opaque attribute
(a Box2D world, a window, a socket) and it is ``restarted`` instead: the run goes on from a reset with a seed of its
own, and the report says which attribute stood in the way.

Refuses to restore a state into wrappers or environments of other classes. docs/decisions/restoring.md says why.
"""

from __future__ import annotations

import enum
import sys
import types
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeGuard

import numpy as np

from ..errors import StateError
from ..spaces import AnySpace
from ..state.dtypes import name_of
from ..state.schema import TEXT, Anything, Array, ListOf, MapOf, Record, refuse
from ..state.tree import Plain, Tree, describe, join
from .space_generators import generator_of, set_generator, spaces_of

__all__ = ["check_env", "layers_of", "restore_env", "save_env"]

# Attributes that gymnasium's own classes keep and that no step changes.
_INERT_NAMES = frozenset(
    {
        "env",
        "aec_env",
        "possible_agents",
        "envs",
        "env_fns",
        "spec",
        "metadata",
        "_metadata",
        "_cached_spec",
        "_saved_kwargs",
        "mujoco_renderer",
    }
)
# Rows of tables (an environment's transition probabilities, say) are as plain as anything, but not a state.
_MAX_BYTES = 16 << 20


class _OpaqueError(Exception):
    """An attribute that cannot be saved; its text says which."""


def save_env(env: object) -> tuple[dict[str, Plain] | None, str]:
    """Save one environment (or one vector environment that steps in this process).

    Args:
        env: A gymnasium environment, wrapped or not.

    Returns:
        The state as plain data and ``""``; or None and the reason why it cannot be saved.
    """
    try:
        seen = _Seen()
        layers = []
        every = layers_of(env)
        for layer, spaces in zip(every, spaces_of(every), strict=True):
            generators = _save_spaces(layer, spaces, seen)
            if _has_own_methods(layer):
                own = _encode(layer.get_state(), _name(layer), _Seen())
                layers.append({"class": _name(layer), "own": own, "spaces": generators})
                continue
            attributes = {}
            if not hasattr(layer, "__dict__"):
                raise _OpaqueError(f"{_name(layer)} keeps its attributes in __slots__")
            for name, value in vars(layer).items():
                if name not in _INERT_NAMES and not _is_inert(value):
                    attributes[name] = _encode(value, f"{_name(layer)}.{name}", seen)
            layers.append({"class": _name(layer), "attributes": attributes, "spaces": generators})
        seen.check()
        return {"layers": layers}, ""
    except _OpaqueError as reason:
        return None, str(reason)


def restore_env(env: object, state: Tree) -> None:
    """Bring an environment, which has been reset at least once, to a saved state.

    Args:
        env: An environment made in the same way as the saved one.
        state: What ``save_env`` returned.

    What the environment's own ``set_state`` raises comes out as it is.

    Raises:
        StateError: As ``check_env``; nothing has changed.
    """
    check_env(env, state)
    layers = layers_of(env)
    for layer, own_spaces, entry in zip(layers, spaces_of(layers), state["layers"], strict=True):
        for name, spaces in own_spaces.items():
            for space, saved in zip(spaces, entry.get("spaces", {}).get(name, ()), strict=False):
                set_generator(space, _decode(saved, None))
        if _has_own_methods(layer):
            layer.set_state(_decode(entry["own"], None))
            continue
        current = vars(layer)
        for name in [name for name in current if name not in _INERT_NAMES and name not in entry["attributes"]]:
            if not _is_inert(current[name]):
                del current[name]  # did not exist yet when the state was saved
        for name, value in entry["attributes"].items():
            if isinstance(value, dict) and "mujoco" in value:
                _restore_mujoco(layer, name, value["mujoco"])
            else:
                current[name] = _decode(value, current.get(name))


def check_env(env: object, state: Plain, path: str = "envs") -> None:
    """Refuse a state of another kind of environment, or one that cannot be taken back; nothing is changed.

    What an environment's own ``set_state`` makes of its part is known only when it is called.

    Args:
        env: An environment made in the same way as the saved one.
        state: What came instead of what ``save_env`` returned.
        path: Where it is.

    Raises:
        StateError: Environment or wrappers are of other classes than the saved ones, an attribute is of another kind,
            or what is there cannot be read.
    """
    fields = {"class": TEXT, "attributes": MapOf(Anything()), "own": Anything(), "spaces": MapOf(ListOf(Anything()))}
    entry = Record(fields, ("attributes", "own", "spaces"))
    Record({"layers": ListOf(entry)}, what="an environment's state").check(state, path)
    layers = layers_of(env)
    expected, saved = [_name(layer) for layer in layers], [entry["class"] for entry in state["layers"]]
    if expected != saved:
        raise StateError(f"expected the environment {expected}, got one of {saved}", path=path)
    for index, (layer, spaces, entry) in enumerate(zip(layers, spaces_of(layers), state["layers"], strict=True)):
        place = f"{path}/layers/[{index}]"
        if "spaces" in entry:  # states of earlier versions do not have it
            _check_spaces(spaces, entry["spaces"], f"{place}/spaces")
        if _has_own_methods(layer):
            _check_keys(entry, {"class", "own"}, place)
            _decoded(entry["own"], None, f"{place}/own")
            continue
        _check_keys(entry, {"class", "attributes"}, place)
        for name, value in entry["attributes"].items():
            _check_attribute(layer, name, value, join(f"{place}/attributes", name))


def _save_spaces(layer: object, own: Mapping[str, list[AnySpace]], seen: _Seen) -> dict[str, list[Plain]]:
    """The generators of its spaces."""
    return {
        name: [_encode(generator_of(space), f"{_name(layer)}.{name}", seen) for space in spaces]
        for name, spaces in own.items()
    }


def _check_spaces(own: Mapping[str, list[AnySpace]], saved: Tree, path: str) -> None:
    """Refuse generators of other spaces than the layer has."""
    if set(saved) != set(own):
        refuse(path, f"generators of {', '.join(sorted(own)) or 'no space'}", ", ".join(sorted(saved)) or "none")
    for name, states in saved.items():
        place = join(path, name)
        if len(states) != len(own[name]):
            refuse(place, f"generators of {len(own[name])} spaces", f"{len(states)}")
        for index, state in enumerate(states):
            decoded = _decoded(state, None, join(place, index, index=True))
            if decoded is not None and not isinstance(decoded, np.random.Generator):
                refuse(join(place, index, index=True), "a random generator, or None", describe(decoded))


def _check_keys(entry: Tree, names: set[str], path: str) -> None:
    if set(entry) - {"spaces"} != names:
        refuse(path, f"{' and '.join(sorted(names))}", " and ".join(sorted(entry)))


def _check_attribute(layer: object, name: str, value: Plain, path: str) -> None:
    """Refuse what a wrapper or an environment cannot have under that name."""
    current, inherited = vars(layer).get(name), getattr(type(layer), name, None)
    is_code = callable(inherited) or isinstance(inherited, property) or name.startswith("__")
    if is_code or name in _INERT_NAMES or (type(current) is not dict and _is_inert(current)):
        refuse(path, "nothing: no state is kept there", describe(value))
    if isinstance(value, dict) and "mujoco" in value:
        _check_mujoco(current, value["mujoco"], f"{path}/mujoco")
        return
    decoded = _decoded(value, current, path)
    own, got = _family(current), _family(decoded)
    if "nothing" not in (own, got) and own != got and {own, got} not in _ALIKE:
        refuse(path, own, got)


def _decoded(value: Plain, current: object, path: str) -> object:
    try:
        return _decode(value, current)
    except StateError:
        raise
    except Exception as error:  # numpy's and Python's own refusals are of many types
        refuse(path, "an attribute as it was saved", f"{describe(value)} ({type(error).__name__}: {error})")


#: What an environment may keep one for the other from step to step.
_ALIKE = ({"a number", "an array"}, {"an array", "a list"})


def _family(value: object) -> str:
    """What kind of thing an attribute is."""
    if value is None:
        return "nothing"
    if isinstance(value, enum.Enum):
        return f"a member of {type(value).__name__}"
    if isinstance(value, (str, bytes, np.str_, np.bytes_)) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "SU"
    ):
        return "a text"
    if isinstance(value, (bool, int, float, np.generic)):
        return "a number"
    if isinstance(value, (np.ndarray, list, tuple, deque)):
        return "an array" if isinstance(value, np.ndarray) else "a list"
    return "a dict" if type(value) is dict else type(value).__name__


def layers_of(env: object) -> list[object]:
    """The wrappers from the outside in, then the environment itself."""
    layers = [env]
    while (inner := _inside(layers[-1])) is not None:
        layers.append(inner)
    return layers


def _inside(layer: object) -> object:
    """What a wrapper holds: gymnasium's under ``env``, PettingZoo's between its two interfaces under ``aec_env``."""
    attributes = getattr(layer, "__dict__", {})
    inner = attributes.get("env")
    return attributes.get("aec_env") if inner is None else inner


def _name(value: object) -> str:
    return type(value).__qualname__


def _has_own_methods(layer: object) -> TypeGuard[_KeepsState]:
    return callable(getattr(type(layer), "get_state", None)) and callable(getattr(type(layer), "set_state", None))


def _is_inert(value: object) -> bool:
    """Things that steps do not change: code, spaces, specs, models."""
    if isinstance(value, (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return True
    gymnasium = sys.modules.get("gymnasium")
    if gymnasium is not None and isinstance(value, (gymnasium.Space, gymnasium.envs.registration.EnvSpec)):
        return True
    if type(value) is dict:  # PettingZoo's spaces by agent
        return bool(value) and all(_is_inert(item) for item in value.values())
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(value, mujoco.MjModel)


class _KeepsState(Protocol):
    """An environment that saves itself."""

    def get_state(self) -> object:
        """What it goes on from."""

    def set_state(self, state: object) -> None:
        """Go on from there."""


class _Seen:
    """Finds memory that two attributes share: restored, they would be two, and drift apart."""

    def __init__(self) -> None:
        self.arrays: list[tuple[str, np.ndarray]] = []
        self.objects: dict[int, tuple[str, object]] = {}
        self.num_bytes = 0

    def add(self, value: object, path: str) -> None:
        if id(value) in self.objects:
            raise _OpaqueError(f"{path} and {self.objects[id(value)][0]} are one object")
        self.objects[id(value)] = (path, value)
        if isinstance(value, np.ndarray):
            self.arrays.append((path, value))
            self.num_bytes += value.nbytes
        self.num_bytes += 16
        if self.num_bytes > _MAX_BYTES:
            raise _OpaqueError(f"{path}: the environment holds more than {_MAX_BYTES >> 20} MiB")

    def check(self) -> None:
        for index, (path, array) in enumerate(self.arrays):
            for other_path, other in self.arrays[:index]:
                if np.may_share_memory(array, other):
                    raise _OpaqueError(f"{path} and {other_path} share memory")


def _encode(value: object, path: str, seen: _Seen) -> Plain:
    """Plain data that says what it was: scalars stand for themselves, all else is a dict with one telling key."""
    if isinstance(value, enum.Enum):
        return {"enum": value.name}
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return _encode_array(value, path, seen)
    if type(value) is list or type(value) is tuple:
        if type(value) is list:
            seen.add(value, path)
        return {type(value).__name__: [_encode(item, f"{path}[{i}]", seen) for i, item in enumerate(value)]}
    if type(value) is deque:
        seen.add(value, path)
        return {"deque": [_encode(item, f"{path}[{i}]", seen) for i, item in enumerate(value)], "maxlen": value.maxlen}
    if type(value) is dict:
        seen.add(value, path)
        pairs = [[_encode(k, path, seen), _encode(v, f"{path}[{k!r}]", seen)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, np.random.Generator):
        seen.add(value, path)
        return {"generator": _encode(dict(value.bit_generator.state), path, _Seen())}
    if isinstance(value, np.random.RandomState):
        seen.add(value, path)
        return {"random_state": _encode(dict(value.get_state(legacy=False)), path, _Seen())}
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and isinstance(value, mujoco.MjData):
        seen.add(value, path)
        return {"mujoco": _save_mujoco(mujoco, value)}
    raise _OpaqueError(f"{path} is a {type(value).__module__}.{_name(value)}")


def _encode_array(value: np.ndarray | np.generic, path: str, seen: _Seen) -> Plain:
    """Numbers as they are, text as the bytes it takes in memory."""
    if value.dtype.hasobject:
        raise _OpaqueError(f"{path} is an array of Python objects")
    if value.dtype.kind not in "SU" and name_of(value.dtype) is None:
        raise _OpaqueError(f"{path} is an array of {value.dtype}")
    if isinstance(value, np.ndarray):
        seen.add(value, path)
    if value.dtype.kind in "SU":
        dtype = value.dtype.newbyteorder("<")
        shape = list(value.shape) if isinstance(value, np.ndarray) else None
        return {"text": np.asarray(value, dtype).tobytes(), "dtype": dtype.str, "shape": shape}
    return {"array": value.copy()} if isinstance(value, np.ndarray) else value


def _decode(value: Plain, current: Any) -> Any:
    """The inverse; ``current`` gives the class of an enumeration."""
    if isinstance(value, list):
        raise StateError("a list without a word on what it was", path="envs")
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.array(value["array"])
    if "text" in value:
        text = np.frombuffer(value["text"], value["dtype"]).copy()
        return text[0] if value["shape"] is None else text.reshape(value["shape"])
    if "enum" in value:
        return type(current)[value["enum"]]
    if "list" in value or "tuple" in value:
        items = value["list"] if "list" in value else value["tuple"]
        same = isinstance(current, (list, tuple)) and len(current) == len(items)
        decoded = [_decode(item, current[i] if same else None) for i, item in enumerate(items)]
        return decoded if "list" in value else tuple(decoded)
    if "deque" in value:
        return deque((_decode(item, None) for item in value["deque"]), maxlen=value["maxlen"])
    if "dict" in value:
        olds: dict[Any, Any] = current if isinstance(current, dict) else {}
        decoded_pairs = ((_decode(key, None), item) for key, item in value["dict"])
        return {key: _decode(item, olds.get(key)) for key, item in decoded_pairs}
    if "generator" in value:
        return np.random.Generator(_bit_generator(_decode(value["generator"], None)))
    if "random_state" in value:
        old = np.random.RandomState(0)  # the environment's own choice of generator, given back to it
        old.set_state(_decode(value["random_state"], None))
        return old
    raise StateError(f"unknown entry {sorted(value)}", path="envs")


_BIT_GENERATORS: dict[str, Callable[[], np.random.BitGenerator]] = {
    name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
}


def _bit_generator(state: Tree) -> np.random.BitGenerator:
    name = state.get("bit_generator")
    if name not in _BIT_GENERATORS:
        raise StateError(f"unknown bit generator {name!r}", path="envs")
    generator = _BIT_GENERATORS[name]()
    generator.state = state
    return generator


def _save_mujoco(mujoco: types.ModuleType, data: Any) -> dict[str, Plain]:
    """Everything an ``MjData`` holds in arrays.

    The integration state alone is not enough: gymnasium's rewards difference positions of bodies (``xpos``), which lag
    one substep behind the state and are not part of it.
    """
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(data.model, kind), np.float64)
    mujoco.mj_getState(data.model, data, integration, kind)
    derived = {name: array.copy() for name, array in _mujoco_arrays(data)}
    return {"integration": integration, "derived": derived}


def _check_mujoco(data: object, saved: Plain, path: str) -> None:
    mujoco = sys.modules.get("mujoco")
    if mujoco is None or not isinstance(data, mujoco.MjData):
        refuse(path, "no state of MuJoCo", describe(saved))
    size = mujoco.mj_stateSize(data.model, mujoco.mjtState.mjSTATE_INTEGRATION)
    # Derived arrays of other shapes are those of another number of contacts: they are made anew.
    Record({"integration": Array((size,)), "derived": MapOf(Array(None, None, finite=False))}).check(saved, path)
    for name, array in _mujoco_arrays(data):
        source = saved["derived"].get(name)
        if source is not None and np.shape(source) == array.shape:
            Array(array.shape, array.dtype, finite=False).check(source, join(f"{path}/derived", name))


def _restore_mujoco(layer: object, name: str, saved: Tree) -> None:
    mujoco: Any = sys.modules["mujoco"]
    data = getattr(layer, name)
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.array(saved["integration"], np.float64)
    mujoco.mj_setState(data.model, data, integration, kind)
    for array_name, array in _mujoco_arrays(data):
        source = saved["derived"].get(array_name)
        if source is not None and np.shape(source) == array.shape:  # others are sized by the constraints of a step
            array[...] = source


def _mujoco_arrays(data: object) -> list[tuple[str, np.ndarray]]:
    """Its arrays. Those of contacts and constraints are made anew in each step and left out where told by name."""
    found = []
    for name in dir(data):
        if name.startswith(("_", "efc_", "iefc_", "island_", "map_")):
            continue
        value = getattr(data, name)
        if isinstance(value, np.ndarray) and value.size and value.flags.writeable:
            found.append((name, value))
    return found
