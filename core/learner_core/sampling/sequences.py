"""Cuts fragments [T, N] into sequences [B, length], as learners of sequences take them.

Needs a ``Rollout``; of a recurrent policy with the columns ``state_in`` and ``resets``. Refuses lengths that leave
nothing to learn from. An episode may end inside a sequence: ``resets`` says where the state begins anew, so sequences
are full whatever the lengths of episodes. docs/decisions/recurrent-modules.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import ConfigError
from .columns import Columns, tree_map
from .rollout import Rollout

__all__ = ["rollout_to_sequences"]


def rollout_to_sequences(
    rollout: Rollout, length: int, extra: Mapping[str, Columns] | None = None, *, burn_in: int = 0
) -> dict[str, Columns]:
    """A fragment as a batch of sequences.

    Each lane is cut at every ``length - burn_in`` steps. A sequence begins with the ``burn_in`` steps that end its
    predecessor, so that every step but the first ``burn_in`` of the fragment counts once. What a last, short sequence
    lacks is filled with its last step, which does not count.

    Args:
        rollout: columns [T, N, ...].
        length: timesteps of a sequence, burn-in included.
        extra: more columns [T, N, ...] (advantages, say) to cut in the same way.
        burn_in: first steps of each sequence that do not count.

    Returns:
        Columns [B, length, ...] without ``valid``, B = N * ceil((T - burn_in) / (length - burn_in)), all lanes'
        first sequences before the second ones; ``loss_mask`` float32[B, length], 1 where a step is experience and
        counts; ``state_in`` [B, ...] before each sequence, if the rollout has it.

    Raises:
        ConfigError: ``burn_in`` is not below ``length``.
    """
    if not 0 <= burn_in < length:
        raise ConfigError(f"burn_in={burn_in}: expected at least 0 and less than the length of sequences, {length}")
    columns = {**rollout.columns, **(extra or {})}
    valid = columns.pop("valid")
    state = columns.pop("state_in", None)
    num_steps, stride = rollout.num_steps, length - burn_in
    starts = np.arange(max(1, -(-(num_steps - burn_in) // stride))) * stride
    places = starts[:, None] + np.arange(length)
    inside = places < num_steps
    places = np.minimum(places, num_steps - 1)

    def cut(leaf: np.ndarray) -> np.ndarray:
        if len(starts) == 1 and length == num_steps:
            return np.ascontiguousarray(leaf.swapaxes(0, 1))
        pieces = leaf[places].swapaxes(1, 2)
        return np.asarray(pieces.reshape((-1, *pieces.shape[2:])))

    batch = {name: tree_map(cut, column) for name, column in columns.items()}
    mask = cut(valid).astype(np.float32)
    mask *= np.repeat(inside, rollout.num_envs, axis=0)
    mask[:, :burn_in] = 0.0
    batch["loss_mask"] = mask
    if state is not None:
        batch["state_in"] = tree_map(lambda leaf: leaf[starts].reshape((-1, *leaf.shape[2:])), state)
    return batch
