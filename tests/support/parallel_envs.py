"""Environments of several agents whose every number can be told beforehand, and one that two policies can learn.

They follow PettingZoo's parallel interface without needing PettingZoo, so that the suites of the core can use them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from learner_core.learning.rl_module import RLModuleSpec

from .sampling import LinearModule, runner_config

__all__ = ["Crossing", "Parallel", "Signals", "make_agents_runner", "make_crossing", "make_signals", "specs_for"]


class Parallel:
    """What PettingZoo's ParallelEnv has, as far as runners ask for it."""

    metadata = {"name": "test"}

    def __init__(self, agents: dict[str, tuple[Any, Any]]) -> None:
        self.possible_agents = list(agents)
        self.agents: list[str] = []
        self.observation_spaces = {agent: spaces[0] for agent, spaces in agents.items()}
        self.action_spaces = {agent: spaces[1] for agent, spaces in agents.items()}

    def observation_space(self, agent: str) -> Any:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Any:
        return self.action_spaces[agent]

    def close(self) -> None:
        self.agents = []


class Crossing(Parallel):
    """Agents cross the scene, each from its own step to its own step; shows [episode, step, agent], all floats.

    Pays 100 * (agent's number) + 10 * episode + step. The episode ends with the last agent's part.

    Args:
        parts: {agent: (first step it is there, step that ends its part, "terminated" | "truncated" | "vanished")}.
        raises: (episode, step) in which ``step`` raises, once over all copies of ``memory``.
    """

    def __init__(
        self,
        parts: dict[str, tuple[int, int, str]],
        *,
        raises: tuple[int, int] | None = None,
        memory: dict[str, Any] | None = None,
        width: int = 3,
    ) -> None:
        box = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        super().__init__({agent: (box, spaces.Discrete(2)) for agent in parts})
        self.parts = dict(parts)
        self.raises = list(raises) if raises else None
        self.memory = memory
        self.episode = -1
        self.clock = 0
        self.rng = np.random.default_rng(0)

    def _obs(self, agent: str) -> np.ndarray:
        out = np.zeros(self.observation_spaces[agent].shape, np.float32)
        out[:3] = [self.episode, self.clock, self.possible_agents.index(agent)]
        return out

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.episode += 1
        self.clock = 0
        self.agents = [agent for agent, (first, _, _) in self.parts.items() if first == 0]
        return {agent: self._obs(agent) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        assert set(actions) == set(self.agents), (actions, self.agents)
        self.clock += 1
        if self.raises == [self.episode, self.clock] and self.memory is not None and not self.memory.get("raised"):
            self.memory["raised"] = True
            raise RuntimeError("the scene fell over")
        acting = list(self.agents)
        rewards = {
            agent: 100.0 * self.possible_agents.index(agent) + 10.0 * self.episode + self.clock for agent in acting
        }
        how = {agent: self.parts[agent][2] for agent in acting if self.parts[agent][1] == self.clock}
        joining = [agent for agent, (first, _, _) in self.parts.items() if first == self.clock]
        self.agents = [agent for agent in acting if agent not in how] + joining
        seen = [agent for agent in acting + joining if how.get(agent) != "vanished"]
        obs = {agent: self._obs(agent) for agent in seen}
        terminateds = {agent: how.get(agent) == "terminated" for agent in seen}
        truncateds = {agent: how.get(agent) == "truncated" for agent in seen}
        return obs, rewards, terminateds, truncateds, {agent: {} for agent in seen}


class Signals(Parallel):
    """A speaker sees a number and says one; a listener hears what was said the step before and must repeat the number.

    Both are paid 1 where the listener is right (from the second step on), so both have to learn. Their spaces differ.
    Ten steps an episode, ended by truncation.
    """

    SIZE = 3

    def __init__(self, length: int = 10) -> None:
        size = self.SIZE
        super().__init__(
            {
                "speaker": (spaces.Discrete(size), spaces.Discrete(size)),
                "listener": (spaces.Box(0, 1, (size + 1,), np.float32), spaces.Discrete(size)),
            }
        )
        self.length = length
        self.clock = 0
        self.number = 0
        self.said = size
        self.asked = 0
        self.rng = np.random.default_rng(0)

    def _obs(self) -> dict[str, Any]:
        return {"speaker": np.int64(self.number), "listener": np.eye(self.SIZE + 1, dtype=np.float32)[self.said]}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents = ["speaker", "listener"]
        self.clock, self.said = 0, self.SIZE
        self.number = int(self.rng.integers(self.SIZE))
        return self._obs(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        right = self.said < self.SIZE and int(actions["listener"]) == self.asked
        self.said, self.asked = int(actions["speaker"]), self.number
        self.number = int(self.rng.integers(self.SIZE))
        self.clock += 1
        agents = list(self.agents)
        over = self.clock == self.length
        if over:
            self.agents = []
        reward = float(right)
        return (
            self._obs(),
            dict.fromkeys(agents, reward),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, over),
            {agent: {} for agent in agents},
        )


#: Whole parts, late and leaving ones, of every kind.
PARTS = {"a": (0, 4, "truncated"), "b": (0, 2, "terminated"), "c": (1, 3, "vanished")}


def make_crossing(env_config: dict[str, Any]) -> Crossing:
    """Crossing with ``PARTS``, or ``{"parts": ...}``."""
    return Crossing(env_config.get("parts", PARTS))


def make_signals(env_config: dict[str, Any]) -> Signals:
    """Signals, ``{"length": ...}`` steps long."""
    return Signals(**env_config)


def specs_for(env: Any, modules: dict[str, str], **model: Any) -> dict[str, RLModuleSpec]:
    """{module_id: linear module with the spaces of the agent named}."""
    return {
        module_id: RLModuleSpec(LinearModule, env.observation_space(agent), env.action_space(agent), model)
        for module_id, agent in modules.items()
    }


def make_agents_runner(
    env: Any, modules: dict[str, str], num_envs: int = 2, *, seed: int = 7, worker_index: int = 0, **settings: Any
) -> Any:
    """A multi-agent runner with weights; ``env`` is a callable."""
    from learner_core.sampling.multi_agent_env_runner import MultiAgentEnvRunner

    config = runner_config(env, num_envs, **settings)
    specs = specs_for(env({}), modules)
    runner = MultiAgentEnvRunner(config, specs, seed=seed, worker_index=worker_index)
    runner.set_weights(
        {
            module_id: player.policy.module.init(np.random.default_rng(i))
            for i, (module_id, player) in enumerate(runner.players.items())
        }
    )
    return runner
