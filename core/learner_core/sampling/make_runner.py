"""Which environment runner a configuration asks for: the one place where that is decided.

Needs a config and complete module specs. Refuses nothing itself. Runners in this process and in others are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..config.agents import ONLY_MODULE, is_multi_agent
from ..errors import ConfigError
from .env_runner import EnvRunner
from .evaluation import Watch
from .multi_agent_env_runner import MultiAgentEnvRunner
from .numpy_backend import Policy
from .rebuilding import Tell

__all__ = ["MakePolicy", "Runner", "Weights", "give_weights", "make_runner"]

#: (config, module spec) -> who answers observations for this module.
MakePolicy: TypeAlias = Callable[[Any, Any], Policy]
#: {module_id: {name: array}}.
Weights: TypeAlias = Mapping[str, Mapping[str, np.ndarray]]


class Runner(Protocol):
    """What a group of runners asks of each; ``EnvRunner`` says what the methods do."""

    num_envs: int

    @property
    def num_vector_steps(self) -> int:
        """Steps of all environments so far: it must grow while ``sample`` gets on, or the runner counts as hung."""

    def set_weights(self, weights: Any) -> None:
        """Of one module {name: array}, or of all {module_id: {name: array}}: see ``give_weights``."""

    def sample(self, num_steps: int, *, explore: bool = True, random_actions: bool = False) -> Any:
        """A ``Rollout``, or {module_id: Rollout}."""

    def evaluate(
        self,
        num_episodes: int,
        *,
        explore: bool = False,
        watch: Watch | None = None,
        max_episode_steps: int | None = None,
    ) -> list[Any]:
        """Whole episodes in environments of their own."""

    def metrics(self) -> dict[str, Any]:
        """``episodes`` since the last call; every other entry is a lifetime count, to be summed over runners."""

    def take_statistics(self) -> dict[str, Any]:
        """What the normalisers saw since the last call: {name: moments}."""

    def get_statistics(self) -> dict[str, Any]:
        """All that the normalisers know: {name: moments}."""

    def set_statistics(self, statistics: Mapping[str, Any]) -> None:
        """Normalise by these from now on."""

    def get_state(self, *, environments: bool = True) -> dict[str, Any]:
        """Plain data, ``num_vector_steps`` and ``env_state`` ("exact" or "restarted") among them."""

    def set_state(self, state: Mapping[str, Any]) -> str:
        """Go on from there; with ``env_state`` "restarted", in new episodes seeded by ``num_vector_steps``."""

    def close(self) -> None:
        """Release everything."""


def make_runner(
    config: Any,
    module_specs: Mapping[str, Any],
    *,
    worker_index: int = 0,
    env: Any = None,
    make_policy: MakePolicy | None = None,
    tell: Tell | None = None,
) -> Runner:
    """Make an environment runner.

    Args:
        config: frozen configuration.
        module_specs: {module_id: RLModuleSpec}, complete.
        worker_index: 0 for the one in the driver; those of other processes count from 1.
        env: takes the place of ``config.env``.
        make_policy: who answers observations; by default the modules in numpy.
        tell: told of every environment that is made anew; by default the user of this process.

    Returns:
        The runner; it needs weights before it samples.

    Raises:
        ConfigError: several modules act where there is one agent, or the one that does has another name than
            "default_policy".
    """
    given: dict[str, Any] = {
        "seed": int(getattr(config, "seed", 0)),
        "env": env,
        "worker_index": worker_index,
        "tell": tell,
    }
    if is_multi_agent(config):
        return MultiAgentEnvRunner(config, module_specs, make_policy=make_policy, **given)
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
    return EnvRunner(config, spec, policy=policy, raw=config.samples_raw, **given)


def give_weights(runner: Runner, weights: Weights) -> None:
    """Set a runner's weights, whether it has one module or several.

    Args:
        runner: any runner.
        weights: {module_id: {name: array}}.
    """
    runner.set_weights(next(iter(weights.values())) if isinstance(runner, EnvRunner) else weights)
