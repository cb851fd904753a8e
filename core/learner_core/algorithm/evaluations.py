"""What an evaluation is asked for, and what it comes to.

Needs a config and the episodes that were played. Refuses sizes that are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from ..config.algorithm_settings import AlgorithmSettings
from ..sampling.episodes import Episode
from ..state.tree import Plain, Tree
from .agents import agent_means

__all__ = ["Results", "evaluation_results", "evaluation_size", "plain_episodes"]

#: What an iteration, an update or an evaluation has to say: numbers by name, nested.
Results: TypeAlias = dict[str, Any]


def evaluation_size(
    config: AlgorithmSettings, num_episodes: int | None, max_episode_steps: int | None
) -> tuple[int, int | None]:
    """How many episodes, and how long at most: what is given, else the settings.

    Raises:
        ConfigError: What is given is no such number.
    """
    given = {"evaluation_num_episodes": num_episodes, "evaluation_max_episode_steps": max_episode_steps}
    wanted, most = (
        getattr(config, name) if value is None else config.validate_setting(name, value)
        for name, value in given.items()
    )
    return int(wanted), most


def plain_episodes(episodes: Sequence[Episode]) -> dict[str, Plain]:
    """Episodes of an evaluation as plain data, and how many of them were cut."""
    plain = [episode.to_plain() for episode in episodes]
    return {"episodes": plain, "num_unfinished": sum(episode.is_cut for episode in episodes)}


def evaluation_results(played: Tree) -> Results:
    """Figures of an evaluation, over all of its episodes, those that were cut included.

    Args:
        played: What ``plain_episodes`` returned.

    Returns:
        ``episode_return_mean _std _min _max``, ``episode_len_mean``, ``num_episodes``, ``num_episodes_unfinished``, and
        with several agents the mean returns by agent and by module.
    """
    episodes = [Episode.from_plain(episode) for episode in played["episodes"]]
    returns = np.array([episode.episode_return for episode in episodes], np.float64)
    return {
        "episode_return_mean": float(returns.mean()),
        "episode_return_std": float(returns.std()),
        "episode_return_min": float(returns.min()),
        "episode_return_max": float(returns.max()),
        "episode_len_mean": float(np.mean([episode.episode_length for episode in episodes])),
        "num_episodes": len(episodes),
        "num_episodes_unfinished": int(played["num_unfinished"]),
        **agent_means(episodes),
    }
