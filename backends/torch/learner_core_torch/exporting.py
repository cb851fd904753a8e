"""Policies and weights in Torch's own files.

A ``state_dict`` holds tensors alone and is read with ``weights_only=True``; a ``.pt2`` program holds the policy's
graph. Neither needs anything of this library to be read. Nothing is ever unpickled here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import nn

from learner_core.backend import Backend
from learner_core.xp import ArrayTree, Outputs

if TYPE_CHECKING:
    from learner_core.exporting.source import ExportedPolicy
    from learner_core.learning.rl_module import RLModule

__all__ = ["export_policy", "save_state_dict"]

_Dims: TypeAlias = "dict[str, _Dims] | dict[int, torch.export.Dim]"


def save_state_dict(arrays: Mapping[str, np.ndarray], path: Path, backend: Backend) -> None:
    """Write ``{name: tensor}``; ``torch.load(path, weights_only=True)`` reads it."""
    torch.save({name: tensor.cpu() for name, tensor in backend.from_numpy(dict(arrays)).items()}, path)


def export_policy(policy: ExportedPolicy, path: Path, backend: Backend) -> None:
    """Write the policy as an exported program: ``torch.export.load(path).module()(obs)`` -> {output: tensor}.

    A policy with a memory is called with ``(obs, state_in)``, and ``state_out`` is among its outputs.

    Args:
        policy: ``learner_core.exporting.source.ExportedPolicy``.
        path: ends in ``.pt2``.
        backend: the Torch backend.
    """
    from learner_core.exporting.source import sample_state
    from learner_core.learning.framework_modules import dummy_observations

    spec = policy.require_spec("torch")
    module = spec.build(backend.xp, backend)
    network = _Policy(policy, module, backend).eval()
    obs = backend.from_numpy(dummy_observations(spec.observation_space, 2, np.float32))
    rows = torch.export.Dim("rows")
    state = {leaf: torch.from_numpy(value) for leaf, value in sample_state(module, 2).items()}
    arguments = (obs, state) if state else (obs,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            network, arguments, dynamic_shapes=tuple(_open_rows(value, rows) for value in arguments)
        )
        torch.export.save(program, path)


def _open_rows(tree: ArrayTree, rows: torch.export.Dim) -> _Dims:
    if isinstance(tree, Mapping):
        return {key: _open_rows(value, rows) for key, value in tree.items()}
    return {0: rows}


class _Policy(nn.Module):
    """Holds the weights under their names while the program is recorded; the program does not refer to it."""

    def __init__(self, policy: ExportedPolicy, module: RLModule, backend: Backend) -> None:
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

    def forward(self, obs: ArrayTree, state_in: dict[str, torch.Tensor] | None = None) -> Outputs:
        policy, module = self._policy
        params = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        answers: Outputs = policy.act(module, params, _normalized(policy, obs), state_in)
        return answers


def _normalized(policy: ExportedPolicy, obs: ArrayTree, path: str = "obs") -> ArrayTree:
    if isinstance(obs, Mapping):
        return {key: _normalized(policy, value, f"{path}/{key}") for key, value in obs.items()}
    if path not in policy.normalizer:
        return obs
    mean, scale, clip = policy.normalizer[path]
    as_tensor = [torch.tensor(value.astype(np.float32)) for value in (np.asarray(mean), np.asarray(scale))]
    return torch.clamp((obs.float() - as_tensor[0]) * as_tensor[1], -clip, clip)
