"""Policy weights of Stable-Baselines3's PPO and SAC into a learner.

Needs a saved model (the zip that ``model.save`` writes) and a learner whose networks have the same sizes. Only the
tensors in ``policy.pth`` (and ``pytorch_variables.pth``) are read, by a reader of our own that unpickles nothing and
needs no Torch (torch_tensors.py), and no more of them than a few times what the learner's module has; and the plain
JSON of the model's settings, which is compared with the module (sb3_settings.py). What has no place here is refused,
for a policy without it would be another one. Optimizers start anew.

What is converted: Stable-Baselines3 flattens images channels first. SAC's critics see actions scaled to [-1, 1] there
as here.

References:
    Raffin et al., Stable-Baselines3: Reliable Reinforcement Learning Implementations, JMLR 22, 2021
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import ConfigError, StateError
from ..state.atomic import PathLike
from ..state.regular import open_regular
from .bounded_zip import UNREADABLE, member, open_archive
from .sb3_settings import Settings, algorithm_of, check_settings, parse_settings
from .torch_tensors import read_tensors

__all__ = ["convert_ppo", "convert_sac", "import_sb3", "read_sb3"]

Arrays = dict[str, np.ndarray]
#: Bytes of a model's zip file, at most; all but the policy's tensors is passed over.
_FILE_LIMIT = 1 << 36
#: Bytes that are read for each number in the learner's module: four copies of float32, for image policies hold some
#: layers three times. And what small models may have besides.
_NBYTES_PER_NUMBER = 16
_NBYTES_BESIDES = 1 << 20
#: Bytes of a model's settings, at most: they hold the last observations, pickled, which are not looked at.
_SETTINGS_LIMIT = 1 << 24
#: Tensors that say how a model learns, and nothing about what it answers.
_HARMLESS = frozenset({"log_ent_coef", "ent_coef_tensor"})


def import_sb3(path: Any, learner: Any, *, module_id: str | None = None) -> dict[str, Any]:
    """Load a Stable-Baselines3 PPO or SAC policy into a learner.

    Args:
        path: the zip file that ``model.save(path)`` wrote.
        learner: a Learner or LearnerGroup, for the same spaces and network sizes: PPO's ``MlpPolicy`` is
            ``model={"hidden": [64, 64], "activation": "tanh"}``, its ``CnnPolicy`` ``model={"vf_share_layers": True}``,
            SAC's ``MlpPolicy`` ``model={"hidden": [256, 256], "activation": "relu"}``; ``net_arch=dict(pi=...,
            vf=...)`` is ``hidden={"pi": ..., "vf": ...}``, behind a CnnPolicy's features ``{"encoder": [512], ...}``.
        module_id: which module; the only one if left out.

    Returns:
        ``{"algorithm": "ppo" or "sac", "parameters": number of arrays taken, "ignored": names not used}``; what is not
        used is of the temperature that SAC learns by.

    Raises:
        StateError: no such file; a model of another algorithm; sizes, an activation, spaces or another setting that
            differ from the learner's; tensors or settings that have no place in it (a features extractor, an LSTM,
            shared layers, state-dependent exploration); NaN or an infinity. Says which. Nothing has changed.
        ConfigError: the module is not the kind that the algorithm trains.
    """
    specs = learner.module_specs
    if module_id is None:
        if len(specs) != 1:
            raise ConfigError(f"say which module by module_id=: {', '.join(specs)}")
        module_id = next(iter(specs))
    if module_id not in specs:
        raise ConfigError(f"module_id={module_id!r}: there is {', '.join(specs)}")
    space = specs[module_id].action_space
    state = learner.get_state()
    own_arrays = [*state["rl_module"][module_id].values(), *state["targets"].get(module_id, {}).values()]
    numbers = sum(np.size(array) for array in own_arrays)
    settings, tensors = _read(path, limit=_NBYTES_PER_NUMBER * numbers + _NBYTES_BESIDES, with_settings=True)
    with _under_path(path):
        is_sac = algorithm_of(settings, tensors) == "sac"
    used: set[str] = set()
    if is_sac != bool(state["targets"].get(module_id)):
        theirs, own = ("SAC", "has no critics of actions") if is_sac else ("PPO (or A2C)", "has critics of actions")
        raise ConfigError(
            f"{path} is a model of {theirs}, and module {module_id!r} {own}: import it into a learner of "
            f"{'SACConfig' if is_sac else 'PPOConfig'}"
        )
    with _under_path(path):
        hidden = any(name.startswith(("mlp_extractor.", "actor.latent_pi.")) for name in tensors)
        check_settings(settings, "sac" if is_sac else "ppo", specs[module_id], has_hidden=hidden)
        if is_sac:
            weights, targets, log_alpha = convert_sac(tensors, space, used)
        else:
            weights, targets, log_alpha = convert_ppo(tensors, used), {}, None
        ignored = _leftovers(tensors, used)
    path_of = f"rl_module/{module_id}"
    _take(state["rl_module"][module_id], weights, path_of)
    if targets:
        _take(state["targets"][module_id], targets, f"targets/{module_id}")
    if log_alpha is not None and "log_alpha" in state["variables"][module_id]:
        if not np.isfinite(log_alpha):
            raise StateError("holds NaN or an infinity", path="log_ent_coef")
        state["variables"][module_id]["log_alpha"] = log_alpha
    for entry in state["optimizer"][module_id].values():
        entry["step"] = 0
        for slot in entry["slots"].values():
            for array in slot.values():
                array[...] = 0
    learner.set_state(state)
    return {
        "algorithm": "sac" if is_sac else "ppo",
        "parameters": len(weights) + len(targets),
        "ignored": ignored,
    }


def _leftovers(tensors: Mapping[str, np.ndarray], used: set[str]) -> list[str]:
    """What has no place in the learner and needs none; the rest is refused."""
    left = sorted(set(tensors) - used)
    foreign = [name for name in left if name not in _HARMLESS]
    if foreign:
        shown = ", ".join(name[:100] for name in foreign[:4]) + (", ..." if len(foreign) > 4 else "")
        raise StateError(
            f"the model has {len(foreign)} tensors that have no place in the learner's module ({shown}): without them "
            "its policy would be another one",
            path=foreign[0],
        )
    return left


@contextlib.contextmanager
def _under_path(path: PathLike) -> Iterator[None]:
    """Refusals in the block name the file."""
    try:
        yield
    except StateError as error:
        raise StateError(f"{path}: {error}") from error


def read_sb3(path: PathLike, *, limit: int) -> Arrays:
    """The tensors of a saved model, by Stable-Baselines3's names.

    Args:
        path: the zip file, of at most 64 GiB.
        limit: bytes that its policy's tensors may take; no more is read or unpacked.

    Raises:
        StateError: it is no such file, or larger. Nothing in it is ever unpickled.
    """
    return _read(path, limit=limit, with_settings=False)[1]


def _read(path: PathLike, *, limit: int, with_settings: bool) -> tuple[Settings, Arrays]:
    """(settings, tensors) of a saved model; with settings: one of another algorithm is refused before it is read."""
    tensors: Arrays = {}
    settings: Settings = {}
    with open_regular(path, limit=_FILE_LIMIT) as stream:
        try:
            archive, members = open_archive(stream)
            if "policy.pth" not in members:
                raise StateError("has no policy.pth; is it a model saved by Stable-Baselines3?")
            if with_settings and "data" in members:
                settings = parse_settings(member(archive, members["data"], limit=_SETTINGS_LIMIT))
                algorithm_of(settings)
            # tensors.pth: what pytorch_variables.pth was called before 1.0.
            for name in ("policy.pth", "pytorch_variables.pth", "tensors.pth"):
                if name not in members:
                    continue
                # Of numbers alone as much as the limit; their names and the archive around them are small.
                content = member(archive, members[name], limit=limit + _NBYTES_BESIDES)
                if name != "policy.pth" and not content:
                    continue
                try:
                    tensors.update(read_tensors(content, limit=limit))
                except StateError as error:
                    raise StateError(f"{name}: {error}") from error
            if with_settings and "data" not in members:
                raise StateError("has no data: what its settings are is not known")
        except StateError as error:
            raise StateError(f"{path}: {error}") from error
        except UNREADABLE as error:
            raise StateError(f"{path}: cannot be read as a model of Stable-Baselines3 ({error})") from error
    return settings, tensors


def convert_ppo(tensors: Mapping[str, np.ndarray], used: set[str]) -> Arrays:
    """PPO's (A2C's) policy as ``ActorCriticModule`` names it.

    Args:
        tensors: by Stable-Baselines3's names.
        used: names are added as they are taken.
    """
    take = _taker(tensors, used)
    out: Arrays = {}
    if "log_std" in tensors:
        out["log_std"] = take("log_std")
    if any(name.startswith("features_extractor.cnn.") for name in tensors):
        _layers(take, tensors, "features_extractor.cnn", out, "encoder.conv")
        _layers(take, tensors, "features_extractor.linear", out, "encoder")
        last = max((int(name.split(".")[2]) for name in out if name.startswith("encoder.conv.")), default=0)
        if "encoder.0.weight" not in out or f"encoder.conv.{last}.weight" not in out:
            raise StateError("missing in the model of Stable-Baselines3", path="features_extractor.linear.0.weight")
        channels = out[f"encoder.conv.{last}.weight"].shape[0]
        out["encoder.0.weight"] = _channels_last(out["encoder.0.weight"], channels)
        _same_twice(tensors, used)
    number = _layers(take, tensors, "mlp_extractor.policy_net", out, "pi")
    number_vf = _layers(take, tensors, "mlp_extractor.value_net", out, "vf")
    heads = {f"pi.{number}": "action_net", f"vf.{number_vf}": "value_net"}
    for own, theirs in heads.items():
        for part in ("weight", "bias"):
            out[f"{own}.{part}"] = take(f"{theirs}.{part}")
    return out


def _same_twice(tensors: Mapping[str, np.ndarray], used: set[str]) -> None:
    """The features extractor appears once more for each of policy and value, unless each has one of its own."""
    for name in tensors:
        for start in ("pi_features_extractor.", "vf_features_extractor."):
            if name.startswith(start):
                shared = tensors.get(name.replace(start, "features_extractor.", 1))
                if shared is None or not np.array_equal(shared, tensors[name], equal_nan=True):
                    raise StateError("policy and value have features extractors of their own", path=name)
                used.add(name)


def convert_sac(
    tensors: Mapping[str, np.ndarray], action_space: Any, used: set[str]
) -> tuple[Arrays, Arrays, float | None]:
    """SAC's networks as ``SACModule`` names them: (parameters, targets, logarithm of alpha or None)."""
    take = _taker(tensors, used)
    params: Arrays = {}
    number = _layers(take, tensors, "actor.latent_pi", params, "pi")
    for part in ("weight", "bias"):
        mean, spread = take(f"actor.mu.{part}"), take(f"actor.log_std.{part}")
        if not mean.ndim or mean.shape != spread.shape:
            raise StateError(f"has shape {spread.shape}, actor.mu.{part} {mean.shape}", path=f"actor.log_std.{part}")
        params[f"pi.{number}.{part}"] = np.concatenate([mean, spread], 0)
    targets: Arrays = {}
    for source, into in (("critic", params), ("critic_target", targets)):
        for theirs, own in (("qf0", "qf"), ("qf1", "qf_twin")):
            if any(name.startswith(f"{source}.{theirs}.") for name in tensors):
                _layers(take, tensors, f"{source}.{theirs}", into, own)
                _check_critic(into, own, action_space)
    log_alpha = take("log_ent_coef") if "log_ent_coef" in tensors else None
    if log_alpha is not None and log_alpha.size != 1:
        raise StateError(f"expected one number, got shape {log_alpha.shape}", path="log_ent_coef")
    return params, targets, None if log_alpha is None else float(log_alpha.reshape(()))


def _check_critic(out: Arrays, name: str, space: Any) -> None:
    """Refuse a critic that cannot take the action space's numbers besides an observation."""
    if not hasattr(space, "low"):
        raise StateError(f"the critic is one of continuous actions, the learner's are {space}", path=name)
    weight, bias = out[f"{name}.0.weight"], out[f"{name}.0.bias"]
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise StateError(f"has shapes {weight.shape} and {bias.shape}", path=f"{name}.0.weight")
    if weight.shape[1] <= space.low.size:
        raise StateError(f"the critic takes {weight.shape[1]} numbers, fewer than the action space has", path=name)


def _taker(tensors: Mapping[str, np.ndarray], used: set[str]) -> Any:
    def take(name: str) -> np.ndarray:
        if name not in tensors:
            raise StateError("missing in the model of Stable-Baselines3", path=name)
        used.add(name)
        return np.array(tensors[name])

    return take


def _layers(take: Any, tensors: Mapping[str, np.ndarray], theirs: str, out: Arrays, own: str) -> int:
    """Copy ``theirs.<i>.weight/bias``, i with gaps for activations, to ``own.0, 1, ...``; returns how many."""
    layer = re.compile(rf"{re.escape(theirs)}\.([0-9]{{1,6}})\.")
    found = {int(match[1]) for match in map(layer.match, tensors) if match}
    for number, index in enumerate(sorted(found)):
        for part in ("weight", "bias"):
            out[f"{own}.{number}.{part}"] = take(f"{theirs}.{index}.{part}")
    return len(found)


def _channels_last(weight: np.ndarray, channels: int) -> np.ndarray:
    """Columns in the order [channels, height * width] to columns in the order [height * width, channels]."""
    if weight.ndim != 2 or not channels or weight.shape[1] % channels:
        raise StateError(f"has shape {weight.shape}, no multiple of {channels} channels", path="encoder.0.weight")
    rows = weight.shape[0]
    return np.ascontiguousarray(weight.reshape(rows, channels, -1).transpose(0, 2, 1).reshape(rows, -1))


def _take(into: dict[str, np.ndarray], given: Arrays, path: str) -> None:
    """Replace the arrays of one module, every one, shapes checked."""
    for name, value in given.items():
        if name not in into:
            raise StateError(
                "the learner's module has no such parameter; are its layers as many?", path=f"{path}/{name}"
            )
        if into[name].shape != value.shape:
            raise StateError(
                f"the learner has shape {into[name].shape}, the model {value.shape}", path=f"{path}/{name}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            converted = value.astype(into[name].dtype)
        if converted.dtype.kind == "f" and not np.isfinite(converted).all():
            raise StateError("the model holds NaN or an infinity there", path=f"{path}/{name}")
        into[name] = converted
    missing = sorted(set(into) - set(given))
    if missing:
        raise StateError("missing in the model of Stable-Baselines3", path=f"{path}/{missing[0]}")
