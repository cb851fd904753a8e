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
from collections.abc import Iterator

import numpy as np

from ..errors import StateError
from ..spaces import AnySpace
from ..state.atomic import PathLike
from ..state.regular import open_regular
from .bounded_zip import UNREADABLE, member, open_archive
from .foreign_arrays import (
    AnyLearner,
    Arrays,
    Converted,
    ForeignArrays,
    channels_last,
    check_kind,
    load_into,
    module_of,
)
from .sb3_settings import Settings, algorithm_of, check_settings, parse_settings
from .torch_tensors import read_tensors

__all__ = ["HARMLESS", "WHOSE", "convert_ppo", "convert_sac", "import_sb3", "read_sb3"]

WHOSE = "the model of Stable-Baselines3"
#: Bytes of a model's zip file, at most; all but the policy's tensors is passed over.
_FILE_LIMIT = 1 << 36
#: Bytes that are read for each number in the learner's module: four copies of float32, for image policies hold some
#: layers three times. And what small models may have besides.
_NBYTES_PER_NUMBER = 16
_NBYTES_BESIDES = 1 << 20
#: Bytes of a model's settings, at most: they hold the last observations, pickled, which are not looked at.
_SETTINGS_LIMIT = 1 << 24
#: Tensors that say how a model learns, and nothing about what it answers.
HARMLESS = frozenset({"log_ent_coef", "ent_coef_tensor"})


def import_sb3(path: PathLike, learner: AnyLearner, *, module_id: str | None = None) -> dict[str, object]:
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
    module_id = module_of(learner, module_id)
    specs = learner.module_specs
    space = specs[module_id].action_space
    state = learner.get_state()
    own_arrays = [*state["rl_module"][module_id].values(), *state["targets"].get(module_id, {}).values()]
    numbers = sum(np.size(array) for array in own_arrays)
    settings, tensors = _read(path, limit=_NBYTES_PER_NUMBER * numbers + _NBYTES_BESIDES, with_settings=True)
    with _under_path(path):
        is_sac = algorithm_of(settings, tensors) == "sac"
    given = ForeignArrays(tensors, WHOSE)
    check_kind(state["rl_module"][module_id], is_sac=is_sac, what=f"{path} is a model", module_id=module_id)
    with _under_path(path):
        hidden = any(name.startswith(("mlp_extractor.", "actor.latent_pi.")) for name in tensors)
        check_settings(settings, "sac" if is_sac else "ppo", specs[module_id], has_hidden=hidden)
        converted = convert_sac(given, space) if is_sac else Converted(convert_ppo(given))
        ignored = given.leftovers(HARMLESS)
    load_into(learner, state, module_id, converted, whose=WHOSE)
    return {
        "algorithm": "sac" if is_sac else "ppo",
        "parameters": converted.num_arrays,
        "ignored": ignored,
    }


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


def convert_ppo(given: ForeignArrays, *, policy_only: bool = False) -> Arrays:
    """PPO's (A2C's) policy as ``ActorCriticModule`` names it.

    Args:
        given: arrays by Stable-Baselines3's names.
        policy_only: there is no critic.
    """
    out: Arrays = {}
    if "log_std" in given.arrays:
        out["log_std"] = given.take("log_std")
    if given.has("features_extractor.cnn."):
        given.layers("features_extractor.cnn", out, "encoder.conv")
        given.layers("features_extractor.linear", out, "encoder")
        last = max((int(name.split(".")[2]) for name in out if name.startswith("encoder.conv.")), default=0)
        if "encoder.0.weight" not in out or f"encoder.conv.{last}.weight" not in out:
            raise StateError(f"missing in {given.whose}", path="features_extractor.linear.0.weight")
        channels = out[f"encoder.conv.{last}.weight"].shape[0]
        out["encoder.0.weight"] = channels_last(out["encoder.0.weight"], channels, "encoder.0.weight")
        _same_twice(given)
    number = given.layers("mlp_extractor.policy_net", out, "pi")
    number_vf = 0 if policy_only else given.layers("mlp_extractor.value_net", out, "vf")
    heads = {f"pi.{number}": "action_net", f"vf.{number_vf}": "value_net"}
    for own, theirs in heads.items():
        if theirs != "value_net" or not policy_only:
            given.layer(theirs, out, own)
    return out


def _same_twice(given: ForeignArrays) -> None:
    """The features extractor appears once more for each of policy and value, unless each has one of its own."""
    for name in given:
        for start in ("pi_features_extractor.", "vf_features_extractor."):
            if name.startswith(start):
                shared = given.arrays.get(name.replace(start, "features_extractor.", 1))
                if shared is None or not np.array_equal(shared, given.arrays[name], equal_nan=True):
                    raise StateError("policy and value have features extractors of their own", path=name)
                given.mark(name)


def convert_sac(given: ForeignArrays, action_space: AnySpace) -> Converted:
    """SAC's networks as ``SACModule`` names them."""
    params: Arrays = {}
    number = given.layers("actor.latent_pi", params, "pi")
    for part in ("weight", "bias"):
        mean, spread = given.take(f"actor.mu.{part}"), given.take(f"actor.log_std.{part}")
        if not mean.ndim or mean.shape != spread.shape:
            raise StateError(f"has shape {spread.shape}, actor.mu.{part} {mean.shape}", path=f"actor.log_std.{part}")
        params[f"pi.{number}.{part}"] = np.concatenate([mean, spread], 0)
    targets: Arrays = {}
    for source, into in (("critic", params), ("critic_target", targets)):
        for theirs, own in (("qf0", "qf"), ("qf1", "qf_twin")):
            if given.has(f"{source}.{theirs}."):
                given.layers(f"{source}.{theirs}", into, own)
                _check_critic(into, own, action_space)
    log_alpha = given.take("log_ent_coef") if "log_ent_coef" in given.arrays else None
    if log_alpha is not None and log_alpha.size != 1:
        raise StateError(f"expected one number, got shape {log_alpha.shape}", path="log_ent_coef")
    return Converted(params, targets, None if log_alpha is None else float(log_alpha.reshape(())))


def _check_critic(out: Arrays, name: str, space: AnySpace) -> None:
    """Refuse a critic that cannot take the action space's numbers besides an observation."""
    if not hasattr(space, "low"):
        raise StateError(f"the critic is one of continuous actions, the learner's are {space}", path=name)
    weight, bias = out[f"{name}.0.weight"], out[f"{name}.0.bias"]
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise StateError(f"has shapes {weight.shape} and {bias.shape}", path=f"{name}.0.weight")
    if weight.shape[1] <= space.low.size:
        raise StateError(f"the critic takes {weight.shape[1]} numbers, fewer than the action space has", path=name)
