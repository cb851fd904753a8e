"""Recordings: a policy's episodes in a file, for algorithms that learn without an environment.

The file is a state file (docs/format.md) of ``{"format": "learner_core/recording", "schema": 1, "columns": {name:
[B, ...]}, "episode_lengths": int64[E], "info": {...}}``; ``read_recording`` opens it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config.agents import is_environment
from ..sampling.recording import RECORDING_FORMAT, EpisodeRecorder
from ..state.atomic import PathLike
from ..state.files import save_state
from .algorithm import Algorithm
from .evaluations import Results, evaluation_size

__all__ = ["record"]

_SCHEMA = 1


def record(
    algorithm: Algorithm,
    path: PathLike,
    *,
    num_episodes: int,
    explore: bool = False,
    max_episode_steps: int | None = None,
) -> Results:
    """Play whole episodes with an algorithm's policy and write them to a file.

    Training is not disturbed. Columns: ``obs`` (not normalised), ``actions``, ``action_logp``,
    ``action_dist_inputs``, ``rewards`` (raw), ``terminateds``, ``truncateds``, ``next_obs`` (true ones, also where an
    episode ended).

    Args:
        algorithm: Whose policy.
        path: File to write, atomically; its folder must exist.
        num_episodes: How many.
        explore: Sample actions instead of taking the most likely ones.
        max_episode_steps: As for ``Algorithm.evaluate``; an episode that is cut ends with a truncated row.

    Returns:
        ``num_episodes``, ``num_episodes_unfinished`` (those that were cut), ``num_rows``, ``episode_return_mean _std
        _min _max``.

    Raises:
        ConfigError: The algorithm has no environment.
        EnvError: The environment fails.
    """
    recorder = EpisodeRecorder()
    algorithm.sync_weights()
    wanted, most = evaluation_size(algorithm.config, num_episodes, max_episode_steps)
    episodes = algorithm.runner.evaluate(wanted, explore=explore, watch=recorder, max_episode_steps=most)
    returns = np.array([episode.episode_return for episode in episodes], np.float64)
    lengths = recorder.lengths
    summary: dict[str, Any] = {
        "num_episodes": len(episodes),
        "num_episodes_unfinished": sum(episode.is_cut for episode in episodes),
        "num_rows": int(lengths.sum()),
        "episode_return_mean": float(returns.mean()),
        "episode_return_std": float(returns.std()),
        "episode_return_min": float(returns.min()),
        "episode_return_max": float(returns.max()),
    }
    config = algorithm.config
    info = {
        **summary,
        "env": _name(config.env),
        "algorithm": str(config.algorithm_name),
        "explore": explore,
        "num_env_steps_sampled_lifetime": algorithm.num_env_steps_sampled_lifetime,
    }
    tree = {
        "format": RECORDING_FORMAT,
        "schema": _SCHEMA,
        "columns": recorder.columns(),
        "episode_lengths": lengths,
        "info": info,
    }
    save_state(path, tree, info={"recording_of": info["algorithm"], "num_rows": summary["num_rows"]})
    return summary


def _name(env: object) -> str:
    """Of an environment, for whoever reads the recording."""
    if isinstance(env, str):
        return env
    return type(env).__name__ if is_environment(env) else str(getattr(env, "__name__", env))
