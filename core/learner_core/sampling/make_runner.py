"""Which environment runner a configuration asks for: the one place where that is decided.

Needs a config and complete module specs. Refuses nothing itself. Runners in this process and in others are made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from ..config.agents import ONLY_MODULE, is_multi_agent
from ..config.algorithm_settings import AlgorithmSettings
from ..errors import ConfigError
from ..learning.rl_module import RLModuleSpec
from .env_runner import EnvRunner
from .multi_agent_env_runner import MultiAgentEnvRunner
from .numpy_backend import MakePolicy
from .rebuilding import Tell

__all__ = ["Runner", "Weights", "change_modules", "give_weights", "make_runner"]

#: {module_id: {name: array}}.
Weights: TypeAlias = Mapping[str, Mapping[str, np.ndarray]]
#: What a group of runners has of each.
Runner: TypeAlias = EnvRunner | MultiAgentEnvRunner


def make_runner(
    config: AlgorithmSettings,
    module_specs: Mapping[str, RLModuleSpec],
    *,
    worker_index: int = 0,
    make_policy: MakePolicy | None = None,
    tell: Tell | None = None,
) -> Runner:
    """Make an environment runner.

    Args:
        config: frozen configuration.
        module_specs: {module_id: RLModuleSpec}, complete.
        worker_index: 0 for the one in the driver; those of other processes count from 1.
        make_policy: who answers observations; by default the modules in numpy.
        tell: told of every environment that is made anew; by default the user of this process.

    Returns:
        The runner; it needs weights before it samples.

    Raises:
        ConfigError: several modules act where there is one agent, or the one that does has another name than
            "default_policy".
    """
    if is_multi_agent(config):
        return MultiAgentEnvRunner(
            config, module_specs, seed=int(config.seed), worker_index=worker_index, make_policy=make_policy, tell=tell
        )
    if len(module_specs) > 1:
        raise ConfigError(
            f"{len(module_specs)} modules act ({', '.join(module_specs)}), and the environment has one agent: name the "
            "module whose rows the others learn from, by RLModuleSpec(rows_of=...), or say who plays whom, by "
            ".multi_agent(policies=..., policy_mapping_fn=...)"
        )
    ((module_id, spec),) = module_specs.items()
    if module_id != ONLY_MODULE:
        raise ConfigError(
            f"an environment of one agent is played by the module {ONLY_MODULE!r}, and the only one that acts is "
            f"{module_id!r}: give it that name"
        )
    policy = None if make_policy is None else make_policy(config, spec)
    return EnvRunner(config, spec, seed=int(config.seed), worker_index=worker_index, policy=policy, tell=tell)


def give_weights(runner: Runner, weights: Weights) -> None:
    """Set a runner's weights, whether it has one module or several.

    Args:
        runner: any runner.
        weights: {module_id: {name: array}}.
    """
    if isinstance(runner, EnvRunner):
        runner.set_weights(next(iter(weights.values())))
    else:
        runner.set_weights(weights)


def change_modules(
    runner: Runner,
    config: AlgorithmSettings,
    module_specs: Mapping[str, RLModuleSpec],
    weights: Weights,
    statistics_of: Mapping[str, str],
) -> None:
    """Change the modules of a runner of several agents; see ``MultiAgentEnvRunner.set_modules``."""
    assert isinstance(runner, MultiAgentEnvRunner)  # one agent has one module, and no other
    runner.set_modules(config, module_specs, weights=weights, statistics_of=statistics_of)
