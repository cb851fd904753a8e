"""The usual networks of RLlib, CleanRL and Stable-Baselines3 in torch, by their own names, and what they answer.

``python -m support.peer_networks FILE`` writes them: torch is in that process alone. Built from what their
documentation says of layers and names; weights are drawn far from those that training begins with.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np

#: Cases -> (environment's observation, actions): as ``spaces_of`` makes them.
CASES = (
    "cleanrl_discrete", "cleanrl_box", "cleanrl_image", "cleanrl_image_lstm", "rllib_shared", "rllib_apart",
    "rllib_box", "rllib_free", "rllib_image", "rllib_lstm", "rllib_gru_apart", "rllib_sac", "sb3_discrete", "sb3_box",
    "sb3_image", "sb3_sac",
)  # fmt: skip
LOW, HIGH = np.array([-2.0, 0.5], np.float32), np.array([1.0, 4.0], np.float32)
SIZE, IMAGE, HIDDEN = 5, (20, 24, 2), (7, 6)


def make(case: str, torch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(name -> tensor, what is expected of it) of one case."""
    nn = torch.nn
    torch.manual_seed(sum(map(ord, case)))
    rng = np.random.default_rng(1)
    source, kind = case.split("_", 1)
    is_image = "image" in kind
    if is_image:
        obs = rng.integers(0, 256, (3, *IMAGE), dtype=np.uint8)
    else:
        obs = rng.normal(size=(3, SIZE)).astype(np.float32)
    x = torch.as_tensor(obs).float()
    if is_image:
        x = x.permute(0, 3, 1, 2) if source != "rllib" else x
    actions = torch.as_tensor(LOW + (HIGH - LOW) * rng.random((3, 2), np.float32))
    names, answers = globals()[f"_{source}"](kind, torch, nn, x, actions)
    return names, {"obs": obs, "actions": actions.numpy(), **answers}


def _stack(nn: Any, sizes: list[int], activation: Any, *, last: bool) -> Any:
    """Linear layers with an activation between them, and after the last one if so."""
    layers: list[Any] = []
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(before, after))
        if last or number < len(sizes) - 2:
            layers.append(activation())
    return nn.Sequential(*layers)


def _convolutions(nn: Any) -> list[Any]:
    return [nn.Conv2d(2, 4, 4, stride=2), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2), nn.ReLU()]


#: Numbers after the convolutions: 3 channels of 4 x 5.
FLAT = 3 * 4 * 5


def _names(torch: Any, **parts: Any) -> dict[str, Any]:
    found = {}
    for prefix, part in parts.items():
        start = prefix.replace("__", ".")
        if hasattr(part, "state_dict"):
            found.update({f"{start}.{name}": value for name, value in part.state_dict().items()})
        else:
            found[start] = part
    return found


def _cleanrl(kind: str, torch: Any, nn: Any, x: Any, actions: Any) -> Any:
    if kind.startswith("image"):
        network = nn.Sequential(*_convolutions(nn), nn.Flatten(), nn.Linear(FLAT, 6), nn.ReLU())
        hidden, parts = network(x / 255.0), {"network": network}
        size = 6
        if kind == "image_lstm":
            core = nn.LSTM(6, 8)
            hidden, parts, size = core(hidden[None])[0][0], {**parts, "lstm": core}, 8
        actor, critic = nn.Linear(size, 3), nn.Linear(size, 1)
        answers = {"inputs": actor(hidden), "values": critic(hidden)[:, 0]}
        return _names(torch, **parts, actor=actor, critic=critic), answers
    critic = _stack(nn, [SIZE, *HIDDEN, 1], nn.Tanh, last=False)
    actor = _stack(nn, [SIZE, *HIDDEN, 3 if kind == "discrete" else 2], nn.Tanh, last=False)
    if kind == "discrete":
        return _names(torch, actor=actor, critic=critic), {"inputs": actor(x), "values": critic(x)[:, 0]}
    spread = torch.randn(1, 2)
    inputs = torch.cat([actor(x), spread.expand(3, 2)], 1)
    names = _names(torch, actor_mean=actor, actor_logstd=spread, critic=critic)
    return names, {"inputs": inputs, "values": critic(x)[:, 0]}


def _unit(torch: Any, actions: Any) -> Any:
    """Actions on [-1, 1], as the Q networks of both take them."""
    return (actions - torch.as_tensor((HIGH + LOW) / 2)) / torch.as_tensor((HIGH - LOW) / 2)


def _unit_to_environment(torch: Any, inputs: Any) -> Any:
    """[mean, log_std] of actions on [-1, 1] as of actions in the environment's unit."""
    half, centre = torch.as_tensor((HIGH - LOW) / 2), torch.as_tensor((HIGH + LOW) / 2)
    mean, log_std = inputs[:, :2], inputs[:, 2:]
    return torch.cat([mean * half + centre, log_std + torch.log(half)], 1)


def _rllib(kind: str, torch: Any, nn: Any, x: Any, actions: Any) -> Any:
    bound = {"pi__log_std_clip_param_const": torch.tensor([20.0]), "vf__log_std_clip_param_const": torch.tensor([20.0])}
    box = kind in ("box", "free")
    outputs = 2 if kind == "free" else 4 if box else 3
    if kind == "sac":
        encoder, head = _stack(nn, [SIZE, *HIDDEN], nn.ReLU, last=True), nn.Linear(HIDDEN[-1], 4)
        parts = {"pi_encoder__net__mlp": encoder, "pi__net__mlp__0": head}
        unit, q = _unit(torch, actions), []
        for name in ("qf", "qf_twin"):
            below, above = _stack(nn, [SIZE + 2, *HIDDEN], nn.ReLU, last=True), nn.Linear(HIDDEN[-1], 1)
            parts |= {f"{name}_encoder__net__mlp": below, f"{name}__net__mlp__0": above}
            q.append(above(below(torch.cat([x, unit], 1)))[:, 0])
        return _names(torch, **parts, **bound), {"inputs": head(encoder(x)), "q": torch.stack(q)}
    if kind == "image":
        stack = nn.Sequential(*_convolutions(nn))
        features = stack(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1)
        pi, vf = nn.Linear(FLAT, outputs), nn.Linear(FLAT, 1)
        names = _names(torch, encoder__encoder__net__0__cnn=stack, pi__net__mlp__0=pi, vf__net__mlp__0=vf, **bound)
        return names, {"inputs": pi(features), "values": vf(features)[:, 0]}
    if kind == "apart":
        actor, critic = (_stack(nn, [SIZE, *HIDDEN], nn.Tanh, last=True) for _ in range(2))
        pi, vf = nn.Linear(HIDDEN[-1], outputs), nn.Linear(HIDDEN[-1], 1)
        encoders = {"encoder__actor_encoder__net__mlp": actor, "encoder__critic_encoder__net__mlp": critic}
        names = _names(torch, **encoders, pi__net__mlp__0=pi, vf__net__mlp__0=vf, **bound)
        return names, {"inputs": pi(actor(x)), "values": vf(critic(x))[:, 0]}
    if kind == "gru_apart":
        encoders, answers = {}, []
        for own in ("actor", "critic"):
            below, core = _stack(nn, [SIZE, HIDDEN[0]], nn.Tanh, last=True), nn.GRU(HIDDEN[0], 8)
            encoders |= {f"encoder__{own}_encoder__tokenizer__net__mlp": below, f"encoder__{own}_encoder__gru": core}
            answers.append(core(below(x)[None])[0][0])
        pi, vf = nn.Linear(8, outputs), nn.Linear(8, 1)
        names = _names(torch, **encoders, pi__net__mlp__0=pi, vf__net__mlp__0=vf, **bound)
        return names, {"inputs": pi(answers[0]), "values": vf(answers[1])[:, 0]}
    sizes = [SIZE, HIDDEN[0]] if kind == "lstm" else [SIZE, *HIDDEN]
    encoder = _stack(nn, sizes, nn.Tanh, last=True)
    features = encoder(x)
    parts = {"encoder__encoder__tokenizer__net__mlp" if kind == "lstm" else "encoder__encoder__net__mlp": encoder}
    if kind == "lstm":
        core = nn.LSTM(HIDDEN[0], 8)
        features, parts = core(features[None])[0][0], {**parts, "encoder__encoder__lstm": core}
    pi, vf = nn.Linear(features.shape[1], outputs), nn.Linear(features.shape[1], 1)
    inputs = pi(features)
    if kind == "free":
        spread = torch.randn(2)
        inputs, parts = torch.cat([inputs, spread.expand(3, 2)], 1), {**parts, "pi__log_std": spread}
    names = _names(torch, **parts, pi__net__mlp__0=pi, vf__net__mlp__0=vf, **bound)
    return names, {"inputs": _unit_to_environment(torch, inputs) if box else inputs, "values": vf(features)[:, 0]}


def _sb3(kind: str, torch: Any, nn: Any, x: Any, actions: Any) -> Any:
    if kind == "sac":
        body = _stack(nn, [SIZE, *HIDDEN], nn.ReLU, last=True)
        mean, spread = nn.Linear(HIDDEN[-1], 2), nn.Linear(HIDDEN[-1], 2)
        parts: dict[str, Any] = {"actor__latent_pi": body, "actor__mu": mean, "actor__log_std": spread}
        unit = _unit(torch, actions)
        answers: dict[str, Any] = {"inputs": torch.cat([mean(body(x)), spread(body(x))], 1)}
        for where, what in (("critic", "q"), ("critic_target", "target_q")):
            critics = [_stack(nn, [SIZE + 2, *HIDDEN, 1], nn.ReLU, last=False) for _ in range(2)]
            parts |= {f"{where}__qf{number}": critic for number, critic in enumerate(critics)}
            answers[what] = torch.stack([critic(torch.cat([x, unit], 1))[:, 0] for critic in critics])
        return _names(torch, **parts), answers
    if kind == "image":
        cnn = nn.Sequential(*_convolutions(nn), nn.Flatten())
        linear = nn.Sequential(nn.Linear(FLAT, 6), nn.ReLU())
        features = linear(cnn(x / 255.0))
        action, value = nn.Linear(6, 3), nn.Linear(6, 1)
        parts = {}
        for start in ("features_extractor", "pi_features_extractor", "vf_features_extractor"):
            parts |= {f"{start}__cnn": cnn, f"{start}__linear": linear}
        names = _names(torch, **parts, action_net=action, value_net=value)
        return names, {"inputs": action(features), "values": value(features)[:, 0]}
    policy, critic = (_stack(nn, [SIZE, *HIDDEN], nn.Tanh, last=True) for _ in range(2))
    action, value = nn.Linear(HIDDEN[-1], 3 if kind == "discrete" else 2), nn.Linear(HIDDEN[-1], 1)
    bodies = {"mlp_extractor__policy_net": policy, "mlp_extractor__value_net": critic}
    names = _names(torch, **bodies, action_net=action, value_net=value)
    inputs = action(policy(x))
    if kind == "box":
        spread = torch.randn(2)
        inputs, names = torch.cat([inputs, spread.expand(3, 2)], 1), {**names, "log_std": spread}
    return names, {"inputs": inputs, "values": value(critic(x))[:, 0]}


def main(path: str) -> None:
    """Write all cases into one file: ``case|arrays|name`` and ``case|answers|name``."""
    import torch

    written: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for case in CASES:
            names, answers = make(case, torch)
            for group, values in (("arrays", names), ("answers", answers)):
                written.update({f"{case}|{group}|{name}": np.asarray(value) for name, value in values.items()})
    np.savez(path, **written)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1])
