"""The conformance kit of ``learner-core plugins check NAME``: each promise of an interface as one small trial.

A trial is (label, function); the function returns None, or what is wrong, or raises.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import learner_core as lc
from learner_core import numpy_xp
from learner_core.errors import LearnerCoreError
from learner_core.plugins import discovery
from learner_core.xp import Array, Arrays, Namespace

if TYPE_CHECKING:
    from learner_core.backend import Backend
    from learner_core.learning.batch import ColumnSpec
    from learner_core.learning.learner import Learner
    from learner_core.spaces import AnySpace

__all__ = ["check_plugin"]

Trial = tuple[str, Callable[[], str | None]]

_FRAMEWORKS = ["torch", "tensorflow", "keras", "jax"]

_IMPORT_ALONE = """
import json, sys
group, name, frameworks = json.loads(sys.argv[1])
for framework in frameworks:
    sys.modules[framework] = None
from learner_core.plugins import discovery
discovery.load(group, name)
"""


def check_plugin(group: str, name: str, *, backend: str | None) -> Iterator[Trial]:
    """The trials of one plugin, to be run in order.

    Args:
        group: Its entry-point group.
        name: Its name.
        backend: For an algorithm: also train one update on this backend.

    Yields:
        (label, trial).
    """
    yield "one distribution claims the name", lambda: _claimed_once(group, name)
    if discovery.GROUPS[group] is None:
        yield "its hooks are known and have the documented signatures", lambda: _registers(group, name)
        return
    yield "it loads", lambda: _nothing(discovery.load(group, name))
    if group == "learner_core.algorithms":
        yield from _algorithm_trials(group, name, backend)
    elif group == "learner_core.backends":
        yield from _backend_trials(group, name)


def _nothing(_: object) -> None:
    return None


def _claimed_once(group: str, name: str) -> str | None:
    claims = [info for info in discovery.list_plugins(group) if info.name == name]
    owners = " and ".join(sorted({info.distribution for info in claims}))
    return None if len(claims) == 1 else f"it is claimed by {owners}; uninstall all but one"


def _registers(group: str, name: str) -> str | None:
    # This one alone: another that never ends, or ends its process, is not what was asked about.
    (info,) = discovery.list_plugins(group, only=name, try_loading=True)
    return info.error


# ---- algorithms ------------------------------------------------------------------------------------------------------


def _algorithm_trials(group: str, name: str, backend: str | None) -> Iterator[Trial]:
    yield "it imports no framework", lambda: _imports_alone(group, name)
    yield "its config class names it", lambda: _named_alike(name)
    yield "every setting of its own is documented", lambda: _documented(name)
    yield "the default settings are valid together", lambda: _nothing(lc.get_config(name).freeze())
    yield "settings survive being stored", lambda: _survives(name)
    yield "its Learner and Algorithm classes can be found", lambda: _classes(name)
    if backend is not None:
        yield f"a Learner of it updates on {backend} and its state round-trips", lambda: _updates(name, backend)


def _imports_alone(group: str, name: str) -> str | None:
    argument = json.dumps([group, name, _FRAMEWORKS])
    command = [sys.executable, "-c", _IMPORT_ALONE, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return [f"it ends the process with exit code {done.returncode}", *done.stderr.strip().splitlines()][-1]


def _named_alike(name: str) -> str | None:
    config = lc.get_config(name)
    if not isinstance(config, lc.AlgorithmConfig):
        return f"{type(config).__name__} does not inherit from AlgorithmConfig"
    return None if config.algorithm_name == name else f"algorithm_name is {config.algorithm_name!r}, expected {name!r}"


def _documented(name: str) -> str | None:
    bare = [item.name for item in lc.get_config(name).describe() if not item.doc]
    return f"no docstring under {', '.join(bare)}" if bare else None


def _survives(name: str) -> str | None:
    config = lc.get_config(name)
    twin = type(config).from_dict(config.to_dict())
    return None if twin == config else f"stored and read back: {twin!r}"


def _classes(name: str) -> str | None:
    config = lc.get_config(name)
    learner_class = config.get_learner_class()
    if not issubclass(learner_class, lc.Learner):
        return f"{learner_class.__name__} does not inherit from Learner"
    if type(config).default_module_class is not None and not issubclass(config.get_module_class(), lc.RLModule):
        return f"{config.get_module_class().__name__} does not inherit from RLModule"
    return None


def _updates(name: str, backend: str) -> str | None:
    import gymnasium

    box = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    problems = []
    for action_space in (gymnasium.spaces.Discrete(2), gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)):
        config = lc.get_config(name).framework(backend, compile=False)
        config.environment(None, observation_space=box, action_space=action_space)
        config.training(train_batch_size=16, minibatch_size=8, num_epochs=1)
        try:
            learner = config.build_learner()
        except LearnerCoreError as error:  # an algorithm may be made for one kind of action only
            problems.append(str(error))
            continue
        batch = _random_batch(learner.batch_spec(), action_space, num_rows=16)
        learner.update_from_batch(batch=batch, timesteps={})
        return _round_trips(learner)
    return "; ".join(problems)


def _round_trips(learner: Learner) -> str | None:
    from learner_core.state.tree import diff

    state = learner.get_state()
    learner.set_state(state)
    found = diff(state, learner.get_state())
    return f"set_state(get_state()) changes {found[0].path}: {found[0].message}" if found else None


def _random_batch(spec: Mapping[str, ColumnSpec], action_space: AnySpace, *, num_rows: int) -> dict[str, np.ndarray]:
    """Rows that fit a ``batch_spec()``: small normal numbers, zeros for flags and whole numbers, ones for masks."""
    rng = np.random.default_rng(0)
    batch: dict[str, Any] = {}
    for column, entry in spec.items():
        if not entry.required:
            continue
        shape = (num_rows, *entry.shape)
        dtype = np.dtype(np.float32 if entry.dtype == "float" else entry.dtype)
        if column == "actions":
            batch[column] = np.stack([action_space.sample() for _ in range(num_rows)])
        elif dtype.kind == "f":
            batch[column] = (0.1 * rng.normal(size=shape)).astype(dtype)
        else:
            batch[column] = np.zeros(shape, dtype)
    return batch


# ---- backends --------------------------------------------------------------------------------------------------------


def _backend_trials(group: str, name: str) -> Iterator[Trial]:
    yield "it has the parts of a backend", lambda: _parts(group, name)
    yield "its xp has every function of the namespace", lambda: _names(group, name)
    yield "arrays go there and back unchanged, and are copies", lambda: _there_and_back(group, name)
    yield "its xp computes what numpy computes", lambda: _computes(group, name)
    yield "gradients go to each loss's own parameters", lambda: _gradients(group, name)


def _backend(group: str, name: str) -> Backend:
    backend: Backend = discovery.load(group, name)(device="cpu", precision="float32")
    return backend


def _parts(group: str, name: str) -> str | None:
    backend = _backend(group, name)
    missing = [
        part for part in ("xp", "from_numpy", "to_numpy", "gradients", "make_loop") if not hasattr(backend, part)
    ]
    if missing:
        return f"it lacks {', '.join(missing)}"
    return None if backend.name == name else f"its name is {backend.name!r}, expected {name!r}"


def _names(group: str, name: str) -> str | None:
    xp = _backend(group, name).xp
    names = {part for part in (*vars(Namespace), *Namespace.__annotations__) if not part.startswith("_")}
    missing = sorted(part for part in names if not hasattr(xp, part))
    return f"xp lacks {', '.join(missing)}" if missing else None


def _there_and_back(group: str, name: str) -> str | None:
    backend = _backend(group, name)
    rng = np.random.default_rng(0)
    tree: dict[str, np.ndarray[Any, Any]] = {
        "float32": rng.normal(size=(3, 2)).astype(np.float32),
        "float64": rng.normal(size=4),
        "int64": np.arange(5),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(1.5, np.float32),
    }
    kept = {key: value.copy() for key, value in tree.items()}
    there = backend.from_numpy(tree)
    for value in tree.values():
        value[...] = 0  # a backend that aliases the caller's memory shows it here
    back = backend.to_numpy(there)
    for key, value in kept.items():
        if back[key].dtype != value.dtype or back[key].shape != value.shape:
            return f"{key}: expected {value.dtype} {value.shape}, got {back[key].dtype} {back[key].shape}"
        if not np.array_equal(back[key], value):
            return f"{key}: the values changed, or from_numpy shares memory with its input"
    return None


def _computes(group: str, name: str) -> str | None:
    backend = _backend(group, name)
    xp = backend.xp
    rng = np.random.default_rng(0)
    x, w, i = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), np.array([2, 0, 1, 2])
    trials: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
        "linear": lambda xp, x, w, i: xp.linear(x, w),
        "matmul": lambda xp, x, w, i: xp.matmul(w, xp.permute_dims(x, (1, 0))),
        "logsumexp": lambda xp, x, w, i: xp.logsumexp(x, axis=1),
        "log_softmax": lambda xp, x, w, i: xp.log_softmax(x, -1),
        "take_along_axis": lambda xp, x, w, i: xp.take_along_axis(x, xp.expand_dims(i, 1), 1),
        "one_hot": lambda xp, x, w, i: xp.one_hot(i, 3),
        "mean": lambda xp, x, w, i: xp.mean(x, axis=0, keepdims=True),
        "clip": lambda xp, x, w, i: xp.clip(x, -0.5, 0.5),
        "where": lambda xp, x, w, i: xp.where(x > 0, x, xp.zeros_like(x)),
        "softplus": lambda xp, x, w, i: xp.softplus(x),
        "tanh": lambda xp, x, w, i: xp.tanh(x),
        "concat": lambda xp, x, w, i: xp.concat([x, w], 0),
        "cumulative_sum": lambda xp, x, w, i: xp.cumulative_sum(x, 1),
    }
    arrays = backend.from_numpy({"x": x, "w": w, "i": i})
    for label, trial in trials.items():
        got = backend.to_numpy({"y": trial(xp, arrays["x"], arrays["w"], arrays["i"])})["y"]
        expected = trial(numpy_xp, x, w, i)
        if got.shape != expected.shape or not np.allclose(got, expected, rtol=1e-6, atol=1e-7):
            return f"xp.{label}: expected {expected!r}, got {got!r}"
    return None


def _gradients(group: str, name: str) -> str | None:
    backend = _backend(group, name)
    if not backend.trains:  # it answers only
        return None
    params = {"m": backend.from_numpy({"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])})}

    def loss_fn(tree: Mapping[str, Arrays]) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
        product = backend.xp.sum(tree["m"]["a"] * tree["m"]["b"])
        return {"m": {"first": product, "second": 2.0 * product}}, {}

    gradients, _ = backend.gradients(loss_fn, params, {"m": {"first": ["a"], "second": ["b"]}})
    got = backend.to_numpy(gradients)["m"]
    if not np.allclose(got["a"], [3.0, 4.0]) or not np.allclose(got["b"], [2.0, 4.0]):
        return f"expected a: [3, 4] (first loss), b: [2, 4] (second loss), got {got!r}"
    return None
