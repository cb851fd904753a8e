"""Playing whole episodes of several agents to measure their policies.

Needs a game of its own. Refuses nothing; what the environments raise beyond their allowance comes out. An episode that
is longer than a limit (``evaluation.StepLimit``) is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .actions import EnvActions
from .agent_game import AgentGame, Lane
from .agent_noise import AgentNoise
from .columns import Columns
from .episodes import Episode
from .evaluation import EpisodeQuota, StepLimit

__all__ = ["evaluate_agents"]


def evaluate_agents(
    game: AgentGame,
    num_episodes: int,
    *,
    observed: Callable[[str, Sequence[Lane]], Columns],
    seeds: Sequence[int],
    noise: AgentNoise | None,
    limit: StepLimit,
) -> list[Episode]:
    """Play a fixed number of episodes in each copy, its quota: the same ones, whatever was evaluated before.

    Args:
        game: Whose copies are played in; they are reset.
        num_episodes: How many episodes in all.
        observed: (module, its lanes) -> what the module's policy sees.
        seeds: One per copy.
        noise: Samples actions; None takes the most likely ones.
        limit: How long an episode may be.

    Returns:
        The episodes: every copy's first, then every copy's second, ...
    """
    quota = EpisodeQuota(num_episodes, len(game.copies))
    game.renumber()
    game.reset(seeds)
    step_number = 0
    while quota.open.any():
        groups = game.groups()
        actions: dict[str, EnvActions] = {}
        for module_id, lanes in groups.items():
            player = game.players[module_id]
            obs = observed(module_id, lanes)
            row = None if noise is None else noise.at(step_number, module_id, player, lanes)
            state, _ = game.memory(module_id, lanes)
            answer = player.ask(obs, noise=row, explore=noise is not None, allowed=game.allowed(lanes), state=state)
            state_out = answer.get("state_out")
            game.remember(lanes, None if state_out is None else player.after(state_out, answer["actions"]))
            actions[module_id] = player.door.to_env(answer["actions"])
        step_number += 1
        for copy, step in enumerate(game.step(groups, actions)):
            episode = step.episode
            if episode is None and not step.lost and quota.open[copy] and limit.cuts(game.copies[copy].length):
                episode = game.cut(copy)
            if episode is not None:
                quota.add(copy, episode)
    return quota.episodes()
