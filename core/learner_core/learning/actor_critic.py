"""The modules that most algorithms share: a policy, and a policy with a value function.

Networks follow the observation space: images go through convolutions, also inside a Dict, everything else is encoded
to one vector (``learner_core.spaces.encode``) and through an MLP. The setting ``encoders`` gives parts of a Dict
networks of their own (``learner_core.maths.space_encoder``); ``recurrent`` gives the module a memory
(``learner_core.learning.recurrent``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .. import spaces
from ..config.foreign_names import known_in_model
from ..errors import ConfigError, did_you_mean
from ..maths.distributions import DiagGaussian
from ..maths.networks import MLP, Encoder, make_encoder
from ..maths.space_encoder import DictEncoder, needs_encoders
from .recurrent import RECURRENT_KEYS, Memory
from .rl_module import RLModule

__all__ = ["ActorCriticModule", "PolicyModule", "Trunk", "check_model"]

_NETWORK_KEYS = ("hidden", "activation", "conv_filters", "conv_activation", "encoders", "init")


def check_model(model: Mapping[str, Any], known: tuple[str, ...], owner: str) -> None:
    """Refuse settings that the module does not have.

    Raises:
        ConfigError: names the nearest setting.
    """
    for key in model:
        if key not in known:
            hint = known_in_model(str(key)) or did_you_mean(key, known)
            raise ConfigError(f"{owner}: model={{{key!r}: ...}} is no setting of it.{hint}")


def _refuse_convolutions_of_nothing(name: str, space: Any, model: Mapping[str, Any]) -> None:
    """Refuse settings of convolutions where there are none.

    Raises:
        ConfigError: no part of the observations is an image, or the image is flattened.
    """
    given = [key for key in ("conv_filters", "conv_activation") if model.get(key)]
    parts = spaces.parts(space).values()
    if given and not any(map(spaces.is_image, parts)):
        raise ConfigError(
            f"{name}: model={{{given[0]!r}: {model[given[0]]!r}}} needs an image (height, width, channels), and "
            f"there is none in {space}"
        )
    if given == ["conv_activation"] and model.get("conv_filters") is not None:
        raise ConfigError(f"{name}: model={{'conv_activation': ...}}: with conv_filters=[] there are no convolutions")


class Trunk:
    """An observation to ``output_size`` numbers: encoder and head.

    Vector observations make one MLP, ``{name}.0`` to the head ``{name}.n``; images make ``{name}.conv.*``, hidden
    layers ``{name}.*`` and the head ``{name}_head.0``. Where parts of a Dict have encoders, ``{name}.{part}.*`` come
    before the MLP.

    Args:
        name: prefix of the parameter names.
        space: observation space.
        model: network settings.
        output_size: size of the head; ``None``: features only.
        output_gain: scale of the head's initial weights.
        extra: further inputs, concatenated to vector observations (actions of a Q network).
    """

    def __init__(
        self,
        name: str,
        space: Any,
        model: Mapping[str, Any],
        output_size: int | None,
        *,
        output_gain: float = 1.0,
        extra: int = 0,
    ) -> None:
        self.is_image = spaces.is_image(space)
        _refuse_convolutions_of_nothing(name, space, model)
        self.parts = DictEncoder(name, space, model) if needs_encoders(space, model) else None
        self.encode = spaces.SpaceEncoder(space)
        self.extra = extra
        settings = {key: value for key, value in model.items() if key in _NETWORK_KEYS}
        self.head: MLP | None = None
        self.body: Encoder
        activation = settings.get("activation", "tanh")
        init = settings.get("init", "orthogonal")
        if self.is_image:
            self.body = make_encoder(name, space.shape, settings)
            if output_size is not None:
                size = self.body.output_size + extra
                self.head = MLP(f"{name}_head", size, [], output_size, output_gain=output_gain, init=init)
        else:
            size = self.encode.size if self.parts is None else self.parts.output_size
            pixels = self.parts is not None and any(map(spaces.is_image, spaces.parts(space).values()))
            self.body = MLP(
                name,
                size + extra,
                settings.get("hidden", [512] if pixels else [64, 64]),
                output_size,
                activation=settings.get("activation", "relu") if pixels else activation,
                output_gain=output_gain,
                init=init,
            )
        self.output_size = self.head.output_size if self.head is not None else self.body.output_size

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Initial parameters."""
        params: dict[str, np.ndarray] = {} if self.parts is None else self.parts.init(rng)
        params.update(self.body.init(rng))
        if self.head is not None:
            params.update(self.head.init(rng))
        return params

    def apply(self, xp: Any, params: Mapping[str, Any], obs: Any, extra: Any = None) -> Any:
        """float[B, output_size] from observations (and ``extra`` float[B, n])."""
        if self.is_image:
            x = obs
        else:
            x = self.encode(xp, obs) if self.parts is None else self.parts.apply(xp, params, obs)
        if extra is not None and not self.is_image:
            x = xp.concat([xp.astype(x, extra.dtype), extra], -1)
        x = self.body.apply(xp, params, x)
        if extra is not None and self.is_image:
            x = xp.concat([x, extra], -1)
        return x if self.head is None else self.head.apply(xp, params, x)


class PolicyModule(RLModule):
    """A policy alone: ``action_dist_inputs`` from observations.

    Settings (``model``): ``hidden``, ``activation``, ``conv_filters``, ``conv_activation``, ``encoders``, ``init``; for
    continuous actions ``free_log_std`` (True: one learned log standard deviation per action dimension, ``log_std``;
    False: the network gives it) and ``log_std_init``; for a memory ``recurrent`` ("lstm" or "gru"; None: none) and
    ``recurrent_size`` (64).
    """

    model_keys: ClassVar[tuple[str, ...]] = (*_NETWORK_KEYS, *RECURRENT_KEYS, "free_log_std", "log_std_init")

    def setup(self) -> None:
        check_model(self.model, self.model_keys, type(self).__name__)
        kind = self.get_train_action_dist_cls()
        size = kind.input_size(self.action_space)
        self.free_log_std = issubclass(kind, DiagGaussian) and bool(self.model.get("free_log_std", True))
        self._refuse_unused(kind)
        self.num_policy_outputs = size // 2 if self.free_log_std else size
        self.dist_input_size = size
        self._setup_networks()

    def _refuse_unused(self, kind: Any) -> None:
        """Refuse settings that would be without effect beside the others."""
        model = self.model
        if model.get("free_log_std") and not issubclass(kind, DiagGaussian):
            raise ConfigError(f"model={{'free_log_std': True}}: actions of {self.action_space} have no log_std")
        if model.get("log_std_init") is not None and not self.free_log_std:
            raise ConfigError("model={'log_std_init': ...} needs 'free_log_std': True, and continuous actions")
        if model.get("recurrent_size") is not None and model.get("recurrent") is None:
            raise ConfigError("model={'recurrent_size': ...} needs 'recurrent': 'lstm' or 'gru'")

    def _setup_networks(self) -> None:
        self.pi = self._trunk("pi", self.num_policy_outputs, output_gain=0.01)

    def _trunk(self, name: str, output_size: int | None, *, output_gain: float = 1.0) -> Trunk | Memory:
        """A network over observations, with a memory if the settings say so."""
        space, model = self.observation_space, self.model
        if model.get("recurrent") is None:
            return Trunk(name, space, model, output_size, output_gain=output_gain)
        encoder = Trunk(name, space, model, None)
        return Memory(name, space, model, encoder, output_size, output_gain=output_gain)

    def _answer(
        self, network: Trunk | Memory, params: Mapping[str, Any], batch: Mapping[str, Any], state: dict[str, Any]
    ) -> Any:
        """A network's outputs; what it remembers goes into ``state``."""
        if isinstance(network, Trunk):
            return network.apply(self.xp, params, batch["obs"])
        outputs, after = network.apply(self.xp, params, batch)
        state.update(after)
        return outputs

    def initial_state(self) -> dict[str, np.ndarray]:
        return self.pi.initial_state() if isinstance(self.pi, Memory) else {}

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {**self.pi.init(rng), **self._init_log_std()}

    def _init_log_std(self) -> dict[str, np.ndarray]:
        if not self.free_log_std:
            return {}
        start = float(self.model.get("log_std_init", 0.0))
        return {"log_std": np.full(self.num_policy_outputs, start, np.float32)}

    def _dist_inputs(self, params: Mapping[str, Any], outputs: Any) -> Any:
        if not self.free_log_std:
            return outputs
        log_std = self.xp.broadcast_to(self.xp.astype(params["log_std"], outputs.dtype), self.xp.shape(outputs))
        return self.xp.concat([outputs, log_std], -1)

    def forward_train(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = {}
        out = {"action_dist_inputs": self._dist_inputs(params, self._answer(self.pi, params, batch, state))}
        return {**out, "state_out": state} if state else out


class ActorCriticModule(PolicyModule):
    """A policy and a state-value function, on separate networks or on a shared one.

    Adds the setting ``vf_share_layers`` (False): one encoder ``encoder`` (and one memory) under the heads ``pi`` and
    ``vf``.
    """

    model_keys: ClassVar[tuple[str, ...]] = (*PolicyModule.model_keys, "vf_share_layers")

    def _setup_networks(self) -> None:
        self.shared: Trunk | Memory | None = None
        if self.model.get("vf_share_layers", False):
            self.shared = self._trunk("encoder", None)
            size = self.shared.output_size
            self.pi_head = MLP("pi", size, [], self.num_policy_outputs, output_gain=0.01)
            self.vf_head = MLP("vf", size, [], 1)
        else:
            super()._setup_networks()
            self.vf = self._trunk("vf", 1)

    def initial_state(self) -> dict[str, np.ndarray]:
        networks = (self.pi, self.vf) if self.shared is None else (self.shared,)
        return {
            leaf: value
            for network in networks
            if isinstance(network, Memory)
            for leaf, value in network.initial_state().items()
        }

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self.shared is None:
            return {**self.pi.init(rng), **self._init_log_std(), **self.vf.init(rng)}
        return {**self.shared.init(rng), **self.pi_head.init(rng), **self._init_log_std(), **self.vf_head.init(rng)}

    def forward_train(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.shared is None:
            outputs = self._answer(self.pi, params, batch, state)
            values = self._answer(self.vf, params, batch, state)
        else:
            features = self._answer(self.shared, params, batch, state)
            outputs = self.pi_head.apply(self.xp, params, features)
            values = self.vf_head.apply(self.xp, params, features)
        out = {"action_dist_inputs": self._dist_inputs(params, outputs), "vf_preds": self.xp.squeeze(values, -1)}
        return {**out, "state_out": state} if state else out

    def forward_inference(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        if self.shared is None and isinstance(self.pi, Trunk):
            return {"action_dist_inputs": self._dist_inputs(params, self.pi.apply(self.xp, params, batch["obs"]))}
        return {name: value for name, value in self.forward_train(params, batch).items() if name != "vf_preds"}
