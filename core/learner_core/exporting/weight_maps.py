"""How RLlib and CleanRL name the layers of their usual networks, and what else is different about them.

Needs arrays by their names, as ``module.state_dict()`` has them. Refuses what has no counterpart in our modules by what
it is. Activations are in no array: whoever imports gives the learner those of the network.

References:
    https://docs.ray.io/en/latest/rllib, DefaultPPOTorchRLModule and DefaultSACTorchRLModule of 2.60
    https://github.com/vwxyzjn/cleanrl, ppo.py, ppo_continuous_action.py, ppo_atari.py, ppo_atari_lstm.py
"""

from __future__ import annotations

import numpy as np

from ..errors import StateError
from ..learning.rl_module import RLModuleSpec
from ..spaces import AnySpace
from .foreign_arrays import Arrays, ForeignArrays, channels_last

__all__ = ["CLEANRL_HARMLESS", "RLLIB_HARMLESS", "convert_cleanrl", "convert_rllib"]

#: Buffers that hold a bound, of +-20, on a logarithm that never comes near it.
RLLIB_HARMLESS = frozenset({".log_std_clip_param_const"})
CLEANRL_HARMLESS: frozenset[str] = frozenset()
_CORE_PARTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


# ---- RLlib -----------------------------------------------------------------------------------------------------------


def convert_rllib(given: ForeignArrays, spec: RLModuleSpec, *, policy_only: bool, normalize_actions: bool) -> Arrays:
    """RLlib's default PPO (IMPALA, APPO) or SAC module as ours name theirs.

    Its first convolution takes bytes as they are, ours divides them by 255: the weights are multiplied by it. Where
    the environment's bounds are finite, PPO's policy gives actions on [-1, 1] (``normalize_actions``): its head is
    scaled to the environment's unit.

    Args:
        given: arrays by RLlib's names.
        spec: complete ``RLModuleSpec`` of the module that takes them.
        policy_only: there are no critics.
        normalize_actions: RLlib's setting of that name, True by default.
    """
    out: Arrays = {}
    if given.has("pi_encoder."):
        count = _rllib_encoder(given, "pi_encoder", out, "pi", spec)
        _rllib_head(given, "pi", out, f"pi.{count}")
        _rllib_critics(given, out)
        return out
    if given.has("encoder.encoder."):
        _rllib_encoder(given, "encoder.encoder", out, "encoder", spec)
        heads = {"pi": "pi.0"} if policy_only else {"pi": "pi.0", "vf": "vf.0"}
    else:
        heads = {}
        for theirs, own in (("actor", "pi"), ("critic", "vf"))[: 1 if policy_only else 2]:
            count = _rllib_encoder(given, f"encoder.{theirs}_encoder", out, own, spec)
            is_apart = any(name.startswith((f"{own}.conv.", f"{own}_core.")) for name in out)
            heads[own] = f"{own}_head.0" if is_apart else f"{own}.{count}"
    for theirs, own in heads.items():
        _rllib_head(given, theirs, out, own)
    if "pi.log_std" in given.arrays:
        out["log_std"] = given.take("pi.log_std")
    if normalize_actions:
        _scale_actions(out, heads["pi"], spec.action_space)
    return out


def _rllib_encoder(given: ForeignArrays, theirs: str, out: Arrays, own: str, spec: RLModuleSpec) -> int:
    """Hidden layers, a memory, or convolutions; returns the number of hidden layers."""
    if given.has(f"{theirs}.net.0.cnn."):
        indices = given.indices(f"{theirs}.net.0.cnn")
        if indices != list(range(0, 2 * len(indices), 2)):
            raise StateError(
                "its convolutions pad as TensorFlow's 'same' does, more on one side than on the other, or have "
                "LayerNorm, which has no counterpart here: conv_filters of RLlib whose entries end in 'valid' can be "
                "imported",
                path=f"{theirs}.net.0.cnn.{indices[0]}.weight",
            )
        given.layers(f"{theirs}.net.0.cnn", out, f"{own}.conv")
        if np.dtype(spec.observation_space.dtype) == np.uint8:
            out[f"{own}.conv.0.weight"] = out[f"{own}.conv.0.weight"] * np.float32(255.0)
        return 0
    tokenizer = f"{theirs}.tokenizer" if given.has(f"{theirs}.tokenizer.") else theirs
    count = given.layers(f"{tokenizer}.net.mlp", out, own)
    _core(given, theirs, out, own)
    if not count and not given.has(f"{theirs}.lstm.", f"{theirs}.gru."):
        raise StateError(f"missing in {given.whose}", path=f"{theirs}.net.mlp.0.weight")
    return count


def _rllib_head(given: ForeignArrays, theirs: str, out: Arrays, own: str) -> None:
    indices = given.indices(f"{theirs}.net.mlp")
    if len(indices) > 1:
        raise StateError(
            "the head has hidden layers of its own (head_fcnet_hiddens), with an activation of their own, which have "
            "no counterpart here",
            path=f"{theirs}.net.mlp.{indices[0]}.weight",
        )
    given.layer(f"{theirs}.net.mlp.0", out, own)


def _rllib_critics(given: ForeignArrays, out: Arrays) -> None:
    """SAC's Q networks, where they are one network of observation and action."""
    for own in ("qf", "qf_twin"):
        if not given.has(f"{own}_encoder.", f"{own}."):
            continue
        if given.has(f"{own}_encoder.base_encoders."):
            raise StateError(
                "RLlib's Q networks of this version encode observation and action apart (TorchMultiStreamEncoder), "
                "which has no counterpart here; policy_only=True takes the policy alone",
                path=next(name for name in given if name.startswith(f"{own}_encoder.base_encoders.")),
            )
        count = given.layers(f"{own}_encoder.net.mlp", out, own)
        _rllib_head(given, own, out, f"{own}.{count}")
        # They take actions on [-1, 1], as ours do: what the environment is given is scaled after that.


def _scale_actions(out: Arrays, head: str, space: AnySpace) -> None:
    """A policy head of actions on [-1, 1] as one of actions in the environment's unit, where there are bounds."""
    if not hasattr(space, "low"):
        return
    low, high = np.ravel(space.low).astype(np.float64), np.ravel(space.high).astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return  # RLlib leaves such actions alone
    half, centre = (high - low) / 2.0, (high + low) / 2.0
    weight, bias = out[f"{head}.weight"].astype(np.float64), out[f"{head}.bias"].astype(np.float64)
    spread = out.get("log_std")
    rows = half.size if spread is not None else 2 * half.size
    if bias.shape != (rows,) or weight.shape[:1] != (rows,) or (spread is not None and spread.shape != half.shape):
        raise StateError(
            f"has shape {weight.shape}, expected {rows} rows for {space}"
            + ("" if spread is None else f", and pi.log_std one of {half.shape}, not {spread.shape}"),
            path=f"{head}.weight",
        )
    scale, shift = np.ones(rows), np.zeros(rows)
    scale[: half.size], shift[: half.size] = half, centre
    if spread is None:
        shift[half.size :] = np.log(half)
    else:
        out["log_std"] = spread.astype(np.float64) + np.log(half)
    out[f"{head}.weight"], out[f"{head}.bias"] = weight * scale[:, None], bias * scale + shift


# ---- CleanRL ---------------------------------------------------------------------------------------------------------


def convert_cleanrl(given: ForeignArrays, *, policy_only: bool) -> Arrays:
    """The agents of CleanRL's PPO scripts as ``ActorCriticModule`` names its networks.

    ``actor.<i>`` or ``actor_mean.<i>`` with ``actor_logstd``, and ``critic.<i>``; or one ``network.<i>`` (convolutions
    flattened channels first, then layers), maybe an ``lstm``, under ``actor`` and ``critic``.

    Args:
        given: arrays by CleanRL's names.
        policy_only: there are no critics.
    """
    out: Arrays = {}
    number = 1 if policy_only else 2
    if given.has("fc_mean.", "fc_logstd.", "actor.fc_mean.", "actor.fc_logstd."):
        raise StateError(
            "it is CleanRL's SAC: its spread of actions is exp(-5 + 3.5 (tanh(x) + 1)), which has no counterpart here, "
            "so that the policy would be another one; PPO's networks can be imported",
            path=next(name for name in given if "fc_mean." in name or "fc_logstd." in name),
        )
    if given.has("network."):
        _cleanrl_network(given, out)
        for theirs, own in (("actor", "pi.0"), ("critic", "vf.0"))[:number]:
            given.layer(theirs, out, own)
        return out
    actor = "actor_mean" if given.has("actor_mean.") else "actor"
    for theirs, own in ((actor, "pi"), ("critic", "vf"))[:number]:
        if not given.layers(theirs, out, own):
            raise StateError(f"missing in {given.whose}", path=f"{theirs}.0.weight")
    if "actor_logstd" in given.arrays:
        spread = given.take("actor_logstd")
        if spread.ndim != 2 or spread.shape[0] != 1:
            raise StateError(f"has shape {spread.shape}, expected (1, number of actions)", path="actor_logstd")
        out["log_std"] = spread[0]
    return out


def _cleanrl_network(given: ForeignArrays, out: Arrays) -> None:
    """Convolutions and layers of one ``nn.Sequential``, told apart by their weights."""
    convolutions, layers, channels = 0, 0, 0
    for index in given.indices("network"):
        weight = given.arrays.get(f"network.{index}.weight")
        if weight is None:
            raise StateError(
                "a layer with parts of its own (a residual block) has no counterpart here", path=f"network.{index}"
            )
        if weight.ndim == 4 and not layers:
            given.layer(f"network.{index}", out, f"encoder.conv.{convolutions}")
            convolutions, channels = convolutions + 1, weight.shape[0]
            continue
        own = f"encoder.{layers}"
        given.layer(f"network.{index}", out, own)
        if channels and not layers:
            out[f"{own}.weight"] = channels_last(out[f"{own}.weight"], channels, f"network.{index}.weight")
        layers += 1
    _core(given, "", out, "encoder")


def _core(given: ForeignArrays, theirs: str, out: Arrays, own: str) -> None:
    """A recurrent layer of one level, ``<theirs>.lstm`` or ``<theirs>.gru``."""
    start = f"{theirs}." if theirs else ""
    for kind in ("lstm", "gru"):
        if given.has(f"{start}{kind}."):
            for part in _CORE_PARTS:
                out[f"{own}_core.{part}"] = given.take(f"{start}{kind}.{part}")
