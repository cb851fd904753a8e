"""Policies and weights in Torch's own files.

A ``state_dict`` holds tensors alone and is read with ``weights_only=True``; a ``.pt2`` program holds the policy's
graph. Neither needs anything of this library to be read. Nothing is ever unpickled here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["export_policy", "save_state_dict"]


def save_state_dict(arrays: Mapping[str, np.ndarray], path: Path, backend: Any) -> None:
    """Write ``{name: tensor}``; ``torch.load(path, weights_only=True)`` reads it."""
    torch.save({name: tensor.cpu() for name, tensor in backend.from_numpy(dict(arrays)).items()}, path)


def export_policy(policy: Any, path: Path, backend: Any) -> None:
    """Write the policy as an exported program: ``torch.export.load(path).module()(obs)`` -> {output: tensor}.

    A policy with a memory is called with ``(obs, state_in)``, and ``state_out`` is among its outputs.

    Args:
        policy: ``learner_core.exporting.source.ExportedPolicy``.
        path: ends in ``.pt2``.
        backend: the Torch backend.
    """
    from learner_core.exporting.source import sample_state
    from learner_core.learning.framework_modules import dummy_observations

    module = policy.spec.build(backend.xp, backend)
    network = _Policy(policy, module, backend).eval()
    obs = backend.from_numpy(dummy_observations(policy.spec.observation_space, 2, np.float32))
    rows = torch.export.Dim("rows")
    state = {leaf: torch.from_numpy(value) for leaf, value in sample_state(module, 2).items()}
    arguments = (obs, state) if state else (obs,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, arguments, dynamic_shapes=_open_rows(arguments, rows))
        torch.export.save(program, path)


def _open_rows(tree: Any, rows: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _open_rows(value, rows) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_open_rows(value, rows) for value in tree)
    return {0: rows}


class _Policy(nn.Module):
    """Holds the weights under their names while the program is recorded; the program does not refer to it."""

    def __init__(self, policy: Any, module: Any, backend: Any) -> None:
        super().__init__()
        self._names: dict[str, str] = {}
        for name, value in backend.from_numpy(dict(policy.params)).items():
            owner: nn.Module = self
            *parents, leaf = name.split(".")
            for parent in parents:
                if parent not in owner._modules:
                    owner.add_module(parent, nn.Module())
                child = owner._modules[parent]
                assert child is not None
                owner = child
            if value.is_floating_point():
                owner.register_parameter(leaf, nn.Parameter(value))
            else:
                owner.register_buffer(leaf, value)
        self._policy = (policy, module)

    def forward(self, obs: Any, state_in: Any = None) -> dict[str, Any]:
        policy, module = self._policy
        params = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        answers: dict[str, Any] = policy.act(module, params, _normalized(policy, obs), state_in)
        return answers


def _normalized(policy: Any, obs: Any, path: str = "obs") -> Any:
    if isinstance(obs, Mapping):
        return {key: _normalized(policy, value, f"{path}/{key}") for key, value in obs.items()}
    if path not in policy.normalizer:
        return obs
    mean, scale, clip = policy.normalizer[path]
    as_tensor = [torch.tensor(value.astype(np.float32)) for value in (np.asarray(mean), np.asarray(scale))]
    return torch.clamp((obs.float() - as_tensor[0]) * as_tensor[1], -clip, clip)
