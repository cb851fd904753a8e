"""What a saved model of Stable-Baselines3 says about itself, compared with the module that is to take its weights.

Needs the JSON member ``data`` of the model's zip. Only what stands there as plain JSON is read; what is pickled inside
of it is passed over. Weights of fitting sizes are no proof: another activation, another features extractor or another
algorithm answers otherwise, so whatever is said and not known here is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from ..errors import StateError
from ..learning.network_settings import NetworkSettings
from ..learning.rl_module import RLModuleSpec
from ..maths.images import byte_image, image_layouts
from ..spaces import AnySpace

__all__ = ["algorithm_of", "check_settings", "parse_settings"]

Settings = Mapping[str, Any]

#: Module of the policy's class -> what its classes are policies of here, or the algorithm's name.
_POLICIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "stable_baselines3.common.policies": ("ppo", ("ActorCriticPolicy", "ActorCriticCnnPolicy")),
    "sb3_contrib.common.maskable.policies": ("ppo", ("MaskableActorCriticPolicy", "MaskableActorCriticCnnPolicy")),
    "stable_baselines3.sac.policies": ("sac", ("SACPolicy",)),
}
_OTHERS = {
    "dqn": "DQN",
    "td3": "TD3 or DDPG",
    "tqc": "TQC",
    "qrdqn": "QR-DQN",
    "ars": "ARS",
    "crossq": "CrossQ",
    "recurrent": "RecurrentPPO",
}
#: Start of a tensor's name -> the algorithm that has such.
_BY_TENSOR = {
    "q_net.": "DQN",
    "quantile_net.": "QR-DQN",
    "lstm_actor.": "RecurrentPPO",
    "actor_target.": "TD3 or DDPG",
}
#: Settings of the policy that say how it starts to learn, and nothing about what it answers.
_HARMLESS = frozenset({"ortho_init", "log_std_init", "optimizer_class", "optimizer_kwargs", "device"})
#: Those of state-dependent exploration, which is refused if it is used.
_OF_SDE = frozenset({"full_std", "sde_net_arch", "use_expln", "clip_mean", "use_sde"})
#: Those that show in the number and shapes of the weights.
_IN_SHAPES = frozenset({"net_arch", "n_critics", "share_features_extractor"})
_CHECKED = frozenset(
    {"activation_fn", "normalize_images", "squash_output", "features_extractor_class", "features_extractor_kwargs"}
)
_ACTIVATIONS = {
    "Tanh": "tanh",
    "ReLU": "relu",
    "ELU": "elu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "LeakyReLU": "leaky_relu",
}
_EXTRACTORS = ("FlattenExtractor", "NatureCNN")
_PLACE = "data/policy_kwargs"


def parse_settings(content: bytes) -> Settings:
    """The settings as JSON has them.

    Raises:
        StateError: it is no JSON, or no object.
    """
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StateError(f"data: the model's settings are no JSON ({type(error).__name__})") from None
    if not isinstance(settings, dict):
        raise StateError(f"data: the model's settings are no JSON object, but {type(settings).__name__}")
    return settings


def algorithm_of(settings: Settings, tensors: Mapping[str, np.ndarray] | None = None) -> str:
    """``"ppo"`` or ``"sac"``, by the policy's class, or, where that is not said, by its tensors; "" if neither tells.

    Raises:
        StateError: a model of another algorithm, or a policy of another class; named.
    """
    said = settings.get("policy_class")
    if isinstance(said, dict) and isinstance(said.get("__module__"), str):
        return _algorithm_of_class(said)
    for start, name in _BY_TENSOR.items():
        if any(tensor.startswith(start) for tensor in tensors or {}):
            _other(name)
    if tensors is None:
        return ""
    return "sac" if any(name.startswith("critic.") for name in tensors) else "ppo"


def _algorithm_of_class(said: Settings) -> str:
    module = said["__module__"]
    maker = re.match(r"<function (\w+)\.", str(said.get("__init__", "")))
    kind = maker[1] if maker else ""
    algorithm, known = _POLICIES.get(module, ("", ()))
    if algorithm and kind in known:
        return algorithm
    if module.startswith(("stable_baselines3.", "sb3_contrib.")):
        for part, name in _OTHERS.items():
            if part in module.split("."):
                _other(name)
    raise StateError(
        f"the policy is a {kind or 'class'} of {module[:100]}; MlpPolicy and CnnPolicy of PPO and A2C and MlpPolicy of "
        "SAC can be imported",
        path="data/policy_class",
    )


def _other(name: str) -> NoReturn:
    raise StateError(f"it is a model of {name}; models of PPO, A2C and SAC can be imported")


def check_settings(settings: Settings, algorithm: str, spec: RLModuleSpec, *, has_hidden: bool) -> None:
    """Compare with the module that is to take the weights.

    Args:
        settings: of the model.
        algorithm: ``"ppo"`` or ``"sac"``.
        spec: the ``RLModuleSpec`` of the module.
        has_hidden: the model has hidden layers of its own, beside those of a features extractor.

    Raises:
        StateError: says the setting, what the model has and what the module has.
    """
    said = settings.get("policy_kwargs") or {}
    if not isinstance(said, dict):
        _refuse(_PLACE, f"expected a JSON object, got {type(said).__name__}")
    said = {key: value for key, value in said.items() if key not in (":type:", ":serialized:")}
    if settings.get("use_sde") or said.get("use_sde"):
        _refuse("data/use_sde", "the model uses state-dependent exploration (use_sde), which has no counterpart here")
    known = _HARMLESS | _OF_SDE | _IN_SHAPES | _CHECKED
    for key in said:
        if key not in known:
            _refuse(f"{_PLACE}/{key[:100]}", f"{_shown(said[key])}: a setting that has no counterpart here")
    if said.get("squash_output"):
        _refuse(f"{_PLACE}/squash_output", "the model squashes its actions, the module does not")
    image = bool(image_layouts(spec.observation_space, spec.model))
    _check_extractor(said, image=image)
    networks = _networks(algorithm, spec)
    if has_hidden:
        _check_activation(said, algorithm, networks, image=image)
    if image:
        _check_images(networks)
    elif byte_image(spec.observation_space) and said.get("normalize_images", True) is not False:
        _refuse(f"{_PLACE}/normalize_images", "the model divides images by 255, the module takes flat ones as they are")
    _check_log_std_range(algorithm, spec)
    _check_spaces(settings, spec)


def _networks(algorithm: str, spec: RLModuleSpec) -> NetworkSettings:
    """The settings of the module's networks; those of the policy are ``of("pi")``."""
    if algorithm == "sac":
        return NetworkSettings(spec.model, ("pi", "qf"))
    heads = ("pi", "vf")
    if spec.model.get("vf_share_layers"):
        return NetworkSettings(spec.model, ("encoder", *heads), heads)
    return NetworkSettings(spec.model, heads)


def _check_log_std_range(algorithm: str, spec: RLModuleSpec) -> None:
    """SAC's is clipped there, too; PPO's is not."""
    own, theirs = spec.model.get("log_std_range"), [-20, 2] if algorithm == "sac" else None
    if own is not None and (theirs is None or [float(bound) for bound in own] != theirs):
        _refuse(_PLACE, f"the module has log_std_range={list(own)}, the model {theirs}: another policy")


def _check_extractor(said: Settings, *, image: bool) -> None:
    path = f"{_PLACE}/features_extractor_class"
    if "features_extractor_class" in said:
        found = re.search(r"stable_baselines3\.common\.torch_layers\.(\w+)", str(said["features_extractor_class"]))
        if found is None or found[1] not in _EXTRACTORS:
            _refuse(path, f"{_shown(said['features_extractor_class'])}: a features extractor with no counterpart here")
        if (found[1] == "NatureCNN") != image:
            _refuse(path, f"the model has a {found[1]}, the learner's observations are {'' if image else 'no '}images")
    settings = said.get("features_extractor_kwargs") or {}
    if not isinstance(settings, dict):
        _refuse(f"{_PLACE}/features_extractor_kwargs", f"{_shown(settings)}: no JSON object")
    for key, value in settings.items():
        if key not in ("features_dim", ":type:", ":serialized:") and not (key == "normalized_image" and not value):
            _refuse(f"{_PLACE}/features_extractor_kwargs/{key[:100]}", f"{_shown(value)}: has no counterpart here")
    if image and said.get("normalize_images", True) is not True:
        _refuse(f"{_PLACE}/normalize_images", "the model takes images as they are, the module divides them by 255")


def _check_activation(said: Settings, algorithm: str, networks: NetworkSettings, *, image: bool) -> None:
    path = f"{_PLACE}/activation_fn"
    default = {"sac": "ReLU", "ppo": "Tanh"}[algorithm]
    text = str(said.get("activation_fn", f"torch.nn.modules.activation.{default}"))
    found = re.search(r"torch\.nn\.modules\.activation\.(\w+)", text)
    theirs = _ACTIVATIONS.get(found[1]) if found else None
    if theirs is None:
        _refuse(path, f"{_shown(text)}: an activation that has no counterpart here")
    for name in networks.networks:
        if name == "encoder" and image:
            continue  # NatureCNN's own, which _check_images compares
        own = networks.of(name).get("activation", "relu" if image else "tanh")
        if own != theirs:
            whose = f"{{{name!r}: {theirs!r}, ...}}" if "encoder" in networks.networks and image else repr(theirs)
            _refuse(
                path, f"the model has {theirs!r}, the learner's module {own!r}: give it model={{'activation': {whose}}}"
            )


def _check_images(networks: NetworkSettings) -> None:
    """NatureCNN's convolutions: what shapes do not tell."""
    own = networks.of("encoder" if "encoder" in networks.networks else "pi")
    filters = own.get("conv_filters")
    strides = [entry[2] for entry in filters] if filters is not None else [4, 2, 1]
    if strides != [4, 2, 1]:
        _refuse("data/policy_class", f"the model's convolutions have strides [4, 2, 1], the module's {strides}")
    for key in ("activation", "conv_activation"):
        if own.get(key, "relu") != "relu":
            _refuse("data/policy_class", f"the model's convolutions have 'relu', the module has {key}={own[key]!r}")


def _check_spaces(settings: Settings, spec: RLModuleSpec) -> None:
    for name in ("observation_space", "action_space"):
        said, own = settings.get(name), getattr(spec, name)
        if not isinstance(said, dict):
            continue
        path = f"data/{name}"
        kind = re.search(r"(\w+)'>", str(said.get(":type:", "")))
        if kind and kind[1] != type(own).__name__:
            _refuse(path, f"the model has a {kind[1]}, the learner {own}")
        shape = said.get("_shape", said.get("shape"))
        # Images: Stable-Baselines3 has channels first.
        if isinstance(shape, list) and sorted(map(str, shape)) != sorted(map(str, own.shape or ())):
            _refuse(path, f"the model's has shape {tuple(shape)}, the learner's {tuple(own.shape)}")
        if name == "action_space":
            _check_actions(said, own, path)


def _check_actions(said: Settings, own: AnySpace, path: str) -> None:
    for bound in ("low", "high"):
        theirs = _numbers(said.get(bound))
        if hasattr(own, bound) and theirs is not None and len(theirs) == np.size(getattr(own, bound)):
            ours = np.ravel(getattr(own, bound)).astype(np.float64)
            if not np.allclose(theirs, ours, rtol=1e-4, atol=1e-6):
                _refuse(path, f"the model's {bound} is {_shown(said[bound])}, the learner's {ours.tolist()}")
    start = _numbers(said.get("start"))
    if type(own).__name__ == "Discrete" and start is not None and start.tolist() != [float(own.start)]:
        _refuse(path, f"the model's actions start at {_shown(said['start'])}, the learner's at {own.start}")


def _numbers(text: object) -> np.ndarray | None:
    """The numbers of an array as numpy prints it; ``None`` where it leaves some out, or it is something else."""
    words = re.sub(r"[\[\],]", " ", str(text)).split()
    try:
        return np.array([float(word) for word in words]) if words else None
    except ValueError:
        return None


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse(path: str, reason: str) -> NoReturn:
    raise StateError(reason, path=path)
