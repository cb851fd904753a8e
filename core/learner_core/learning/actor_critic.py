"""The modules that most algorithms share: a policy, and a policy with a value function.

Networks follow the observation space: images go through convolutions, also inside a Dict, everything else is encoded
to one vector (``learner_core.spaces.encode``) and through an MLP. What is an image, and how it lies,
``learner_core.maths.images`` says. The setting ``encoders`` gives parts of a Dict networks of their own
(``learner_core.maths.space_encoder``); ``recurrent`` gives the module a memory (``learner_core.learning.recurrent``).
docs/networks.md has a table of all settings; those without a use are refused (``learning.network_settings``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .. import spaces
from ..errors import ConfigError
from ..maths.distributions import DiagGaussian, distribution_for
from ..maths.images import byte_image, image_layouts
from ..maths.networks import MLP, Encoder, make_encoder, make_image_encoder
from ..maths.space_encoder import DictEncoder, needs_encoders
from ..spaces import AnySpace
from ..xp import Arrays, ArrayTree, Columns, Namespace, Outputs
from .network_settings import NETWORK_KEYS, NetworkSettings, check_kinds, check_model, given
from .recurrent import RECURRENT_KEYS, Memory
from .rl_module import RLModule
from .shown_parts import ShownParts, policy_reads

__all__ = ["ActorCriticModule", "PolicyModule", "Trunk", "check_model"]


class Trunk:
    """An observation to ``output_size`` numbers: encoder and head.

    Vector observations make one MLP, ``{name}.0`` to the head ``{name}.n``; images make ``{name}.conv.*``, hidden
    layers ``{name}.*`` and the head ``{name}_head.0``. Where parts of a Dict have encoders, ``{name}.{part}.*`` come
    before the MLP.

    Args:
        name: prefix of the parameter names.
        space: observation space.
        model: network settings, of this network alone.
        output_size: size of the head; ``None``: features only.
        output_gain: scale of the head's initial weights.
        extra: further inputs, concatenated to vector observations (actions of a Q network).
        reads: entries of a Dict observation that it is shown; ``None``: all.
    """

    def __init__(
        self,
        name: str,
        space: AnySpace,
        model: Mapping[str, Any],
        output_size: int | None,
        *,
        output_gain: float = 1.0,
        extra: int = 0,
        reads: Sequence[str] | None = None,
    ) -> None:
        self.shown: ShownParts = ShownParts(
            reads, {key: value for key, value in given(model).items() if key in NETWORK_KEYS}
        )
        settings, space = given(self.shown.settings), self.shown.of(space)
        layout = image_layouts(space, settings).get("")
        # With conv_filters=[], bytes of three axes lie flat and have a head beside the hidden layers, as an image has.
        self.is_image: bool = layout is not None or (byte_image(space) and settings.get("image_layout") is None)
        self.parts: DictEncoder | None = DictEncoder(name, space, settings) if needs_encoders(space, settings) else None
        self.encode: spaces.SpaceEncoder = spaces.SpaceEncoder(space)
        self.extra = extra
        self.head: MLP | None = None
        self.body: Encoder
        init = settings.get("init", "orthogonal")
        if self.is_image:
            if layout is None:
                self.body = make_encoder(name, space.shape, {**settings, "conv_filters": []})
            else:
                self.body = make_image_encoder(name, layout, settings)
            if output_size is not None:
                size = self.body.output_size + extra
                self.head = MLP(f"{name}_head", size, [], output_size, output_gain=output_gain, init=init)
        else:
            size = self.encode.size if self.parts is None else self.parts.output_size
            pixels = self.parts is not None and self.parts.has_images
            self.body = MLP(
                name,
                size + extra,
                settings.get("hidden", [512] if pixels else [64, 64]),
                output_size,
                activation=settings.get("activation", "relu" if pixels else "tanh"),
                output_gain=output_gain,
                init=init,
                layer_norm=settings.get("layer_norm", False),
            )
        self.sees_images: bool = layout is not None or (self.parts is not None and self.parts.has_images)
        self.output_size: int = self.head.output_size if self.head is not None else self.body.output_size

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Initial parameters.

        Raises:
            ConfigError: a part of the observations is called as a layer of the trunk is.
        """
        params: dict[str, np.ndarray] = {} if self.parts is None else self.parts.init(rng)
        for network in (self.body, *(() if self.head is None else (self.head,))):
            for name, value in network.init(rng).items():
                if name in params:
                    raise ConfigError(f"{name!r} would be a layer of the network and of a part: rename the part")
                params[name] = value
        return params

    def apply(self, xp: Namespace, params: Arrays, obs: ArrayTree, extra: Any = None) -> Any:
        """float[B, output_size] from observations (and ``extra`` float[B, n])."""
        obs = self.shown.of(obs)
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

    Settings (``model``): ``hidden``, ``activation``, ``layer_norm``, ``init``, ``conv_filters``, ``conv_activation``,
    ``image_layout``, ``encoders``; for continuous actions ``free_log_std`` (True: one learned log standard deviation
    per action dimension, ``log_std``; False: the network gives it), ``log_std_init`` and ``log_std_range``; for a
    memory ``recurrent`` ("lstm" or "gru"; None: none), ``recurrent_size`` (64), ``use_prev_action`` and
    ``use_prev_reward``. ``policy_reads``: entries of a Dict observation that the policy's network is shown; value
    networks are shown all of it (an asymmetric actor and critic). By default all.
    """

    model_keys: ClassVar[tuple[str, ...]] = (
        *NETWORK_KEYS, *RECURRENT_KEYS, "free_log_std", "log_std_init", "log_std_range", "policy_reads"
    )  # fmt: skip

    def setup(self) -> None:
        check_model(self.model, self.model_keys, type(self).__name__)
        check_kinds(self.model)
        self.networks: NetworkSettings = NetworkSettings(self.model, *self._network_names())
        kind = self.get_train_action_dist_cls()
        size = kind.input_size(self.action_space)
        self.free_log_std = issubclass(kind, DiagGaussian) and self._chosen("free_log_std", True)
        self._refuse_unused(kind)
        self.networks.refuse_idle(self.observation_space)
        self.num_policy_outputs: int = size // 2 if self.free_log_std else size
        self.dist_input_size = size
        self._setup_networks()

    def _network_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(names of all networks that settings may speak of, those that have no hidden layers of themselves)."""
        return ("pi",), ()

    def _chosen(self, key: str, default: Any) -> Any:
        """A setting's value; ``None`` is its default."""
        value = self.model.get(key)
        return default if value is None else value

    def _refuse_unused(self, kind: Any) -> None:
        """Refuse settings that would be without effect beside the others."""
        model = self.model
        if not issubclass(kind, DiagGaussian):
            for key in ("free_log_std", "log_std_init", "log_std_range"):
                if model.get(key) is not None:
                    raise ConfigError(
                        f"model={{{key!r}: {model[key]!r}}} needs continuous actions: those of {self.action_space} "
                        "have no log_std"
                    )
        if model.get("log_std_init") is not None and not self.free_log_std:
            raise ConfigError("model={'log_std_init': ...} needs 'free_log_std': True, and continuous actions")
        for key in ("recurrent_size", "use_prev_action", "use_prev_reward"):
            if model.get(key) and model.get("recurrent") is None:
                raise ConfigError(f"model={{{key!r}: ...}} needs 'recurrent': 'lstm' or 'gru'")

    def get_train_action_dist_cls(self) -> Any:
        return distribution_for(self.action_space, self.xp, log_std_range=self._log_std_range())

    def _log_std_range(self) -> tuple[float, float] | None:
        bounds = self.model.get("log_std_range")
        return None if bounds is None else (float(bounds[0]), float(bounds[1]))

    def _setup_networks(self) -> None:
        reads = policy_reads(self.model, self.observation_space)
        self.pi: Trunk | Memory = self._trunk("pi", self.num_policy_outputs, output_gain=0.01, reads=reads)

    def _trunk(
        self, name: str, output_size: int | None, *, output_gain: float = 1.0, reads: Sequence[str] | None = None
    ) -> Trunk | Memory:
        """A network over observations, with a memory if the settings say so."""
        space, model = self.observation_space, self.networks.of(name)
        if model.get("recurrent") is None:
            return Trunk(name, space, model, output_size, output_gain=output_gain, reads=reads)
        encoder = Trunk(name, space, model, None, reads=reads)
        actions = self.action_space
        return Memory(name, space, model, encoder, output_size, output_gain=output_gain, action_space=actions)

    def _answer(self, network: Trunk | Memory, params: Arrays, batch: Columns, state: dict[str, Any]) -> Any:
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
        start = float(self._chosen("log_std_init", 0.0))
        return {"log_std": np.full(self.num_policy_outputs, start, np.float32)}

    def _dist_inputs(self, params: Arrays, outputs: Any) -> Any:
        """What the distribution is of, from the network's outputs; ``log_std`` clipped to ``log_std_range``."""
        xp, bounds = self.xp, self._log_std_range()
        if self.free_log_std:
            mean = outputs
            log_std = xp.broadcast_to(xp.astype(params["log_std"], outputs.dtype), xp.shape(outputs))
        elif bounds is None:
            return outputs
        else:
            size = self.dist_input_size // 2
            mean, log_std = xp.split(outputs, [size, size], -1)
        return xp.concat([mean, log_std if bounds is None else xp.clip(log_std, *bounds)], -1)

    def forward_train(self, params: Arrays, batch: Columns) -> Outputs:
        state: dict[str, Any] = {}
        out = {"action_dist_inputs": self._dist_inputs(params, self._answer(self.pi, params, batch, state))}
        return {**out, "state_out": state} if state else out


class ActorCriticModule(PolicyModule):
    """A policy and a state-value function, on separate networks or on a shared one.

    Adds the setting ``vf_share_layers`` (False): one encoder ``encoder`` (and one memory) under the heads ``pi`` and
    ``vf``, which have hidden layers of their own if ``hidden`` is ``{"encoder": [...], "pi": [...], "vf": [...]}``.
    """

    model_keys: ClassVar[tuple[str, ...]] = (*PolicyModule.model_keys, "vf_share_layers")

    def _network_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        heads = ("pi", "vf")
        return (("encoder", *heads), heads) if self._chosen("vf_share_layers", False) else (heads, ())

    def _setup_networks(self) -> None:
        self.shared: Trunk | Memory | None = None
        if self._chosen("vf_share_layers", False):
            self.shared = self._trunk("encoder", None)
            self.pi_head: MLP = self._head("pi", self.num_policy_outputs, output_gain=0.01)
            self.vf_head: MLP = self._head("vf", 1)
        else:
            super()._setup_networks()
            self.vf: Trunk | Memory = self._trunk("vf", 1)

    def _head(self, name: str, output_size: int, *, output_gain: float = 1.0) -> MLP:
        """A network over the features of the shared encoder."""
        assert self.shared is not None
        own = self.networks.of(name)
        default = "relu" if isinstance(self.shared, Trunk) and self.shared.sees_images else "tanh"
        return MLP(
            name,
            self.shared.output_size,
            own.get("hidden", []),
            output_size,
            activation=own.get("activation", default),
            output_gain=output_gain,
            init=own.get("init", "orthogonal"),
            layer_norm=own.get("layer_norm", False),
        )

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

    def forward_train(self, params: Arrays, batch: Columns) -> Outputs:
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

    def forward_inference(self, params: Arrays, batch: Columns) -> Outputs:
        if self.shared is None and isinstance(self.pi, Trunk):
            return {"action_dist_inputs": self._dist_inputs(params, self.pi.apply(self.xp, params, batch["obs"]))}
        return {name: value for name, value in self.forward_train(params, batch).items() if name != "vf_preds"}
