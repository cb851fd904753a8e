"""Several modules in one run: added, removed, frozen and given to other agents while it goes on.

Needs an Algorithm on a multi-agent environment. Refuses mappings to unknown modules, the removal of the last module or
of one that an agent still maps to; nothing has changed then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from ..config import references
from ..config.agents import AgentMapping, is_multi_agent
from ..config.algorithm_settings import AlgorithmSettings
from ..config.values import same
from ..errors import ConfigError, StateError
from ..group.learner_group import LearnerGroup
from ..learning.rl_module import RLModuleSpec, acting
from ..learning.shared_parameters import completed
from ..sampling.episodes import Episode
from ..sampling.runner_group import EnvRunnerGroup
from ..state.tree import Plain, Tree
from .stored_modules import KEEP, MODULE_SETTINGS, Opening, read_modules

__all__ = ["KEEP", "AgentModules", "agent_means"]


class AgentModules:
    """The part of an Algorithm that changes who learns and who plays whom."""

    config: AlgorithmSettings
    env_runners: EnvRunnerGroup | None
    #: What the user said of the state that is being taken over.
    _opening = Opening()

    @property
    def learner_group(self) -> LearnerGroup:
        """The learners."""
        raise NotImplementedError

    def use_config(self, config: AlgorithmSettings) -> None:
        """Go by these settings from now on; learners and runners have them."""
        raise NotImplementedError

    def add_module(
        self,
        *,
        module_id: str,
        module_spec: RLModuleSpec | None = None,
        like: str | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
        settings: Mapping[str, object] | None = None,
        policy_mapping_fn: Callable[..., str] | None = KEEP,
        policies_to_train: Collection[str] | None = KEEP,
    ) -> None:
        """Add a module; the others and the running episodes go on.

        It learns if ``policies_to_train`` has it or is None; with the setting left as it is, a list, it only plays.

        Args:
            module_id: its id.
            module_spec: RLModuleSpec, what is missing taken from the configuration and the first module; ``None``:
                that of ``like``.
            like: module whose weights and statistics of observations it begins with, as a snapshot of it.
            weights: {name: array} to begin with instead.
            settings: training settings of it alone, as ``multi_agent(settings=...)`` has them.
            policy_mapping_fn: who plays whom from now on; agents in running episodes keep their module.
            policies_to_train: who learns from now on; ``None``: all.

        Raises:
            ConfigError: the id is taken or not valid, an agent would map to no module; nothing has changed.
        """
        runners, group = self.agent_runners(), self.learner_group
        before = group.module_specs
        if module_id in before:
            raise ConfigError(f"module {module_id!r} exists already")
        if like is not None and like not in before:
            raise ConfigError(f"like={like!r}: there is no such module among {', '.join(before)}")
        spec = module_spec if module_spec is not None or like is None else before[like]
        own = {} if settings is None else {module_id: dict(settings)}
        config = self._changed({**before, module_id: spec}, own, policy_mapping_fn, policies_to_train)
        self._check_mapping(runners, config)
        group.add_module(module_id=module_id, module_spec=spec, settings=settings)
        try:
            first = weights
            if weights is None and like is not None:
                first = completed(before, group.get_weights())[like]
            if first is not None:
                group.set_weights({module_id: dict(first)})
            self._take_over(config, {} if like is None else {module_id: like})
        except BaseException:
            group.remove_module(module_id)
            raise

    def remove_module(
        self,
        module_id: str,
        *,
        policy_mapping_fn: Callable[..., str] | None = KEEP,
        policies_to_train: Collection[str] | None = KEEP,
    ) -> None:
        """Remove a module with all that it has learned; agents that it plays get another from the mapping at once.

        Args:
            module_id: which.
            policy_mapping_fn: who plays whom from now on.
            policies_to_train: who learns from now on; ``None``: all.

        Raises:
            ConfigError: no such module, the last one, or an agent still maps to it; nothing has changed.
        """
        runners, group = self.agent_runners(), self.learner_group
        specs = group.module_specs
        if module_id not in specs:
            raise ConfigError(f"there is no module {module_id!r}; there are {', '.join(specs)}")
        if len(specs) == 1:
            raise ConfigError(f"module {module_id!r} is the only one and cannot be removed")
        del specs[module_id]
        config = self._changed(specs, {}, policy_mapping_fn, policies_to_train)
        self._check_mapping(runners, config)
        group.remove_module(module_id)
        self._take_over(config, {})

    def set_policies_to_train(self, policies_to_train: Collection[str] | None) -> None:
        """Say who learns from now on; the other modules only play. ``None``: all of them; []: nobody.

        Raises:
            ConfigError: no such module; nothing has changed.
        """
        self.agent_runners()
        self._take_over(self._changed(self.learner_group.module_specs, {}, KEEP, policies_to_train), {})

    def set_policy_mapping_fn(self, policy_mapping_fn: Callable[..., str] | None) -> None:
        """Say who plays whom in episodes, and for agents, that begin from now on.

        Raises:
            ConfigError: an agent would map to no module; nothing has changed.
        """
        runners = self.agent_runners()
        config = self._changed(self.learner_group.module_specs, {}, policy_mapping_fn, KEEP)
        self._check_mapping(runners, config)
        self._take_over(config, {})

    # ------------------------------------------------------------------ inside

    def agent_runners(self) -> EnvRunnerGroup:
        """The runners of a run with several agents.

        Raises:
            ConfigError: there are none, or it has one agent.
        """
        if not is_multi_agent(self.config):
            raise ConfigError(
                "this run has one agent and one module: .multi_agent(policies=...) on a PettingZoo environment has more"
            )
        if self.env_runners is None:
            raise ConfigError("there is no environment: set .environment(...)")
        return self.env_runners

    def _changed(
        self,
        specs: Mapping[str, RLModuleSpec | None],
        settings: Mapping[str, Mapping[str, object]],
        mapping: Callable[..., str] | None,
        trained: Collection[str] | None,
    ) -> AlgorithmSettings:
        """The configuration with other modules, checked."""
        now = self.config
        if trained is KEEP and now.policies_to_train is not None:
            trained = [module_id for module_id in now.policies_to_train if module_id in specs]
        own = {module_id: values for module_id, values in now.policy_settings.items() if module_id in specs}
        return now.replaced(
            policies=dict(specs),
            policy_mapping_fn=now.policy_mapping_fn if mapping is KEEP else mapping,
            policies_to_train=None if trained is KEEP or trained is None else list(trained),
            policy_settings={**own, **settings},
        )

    def _check_mapping(self, runners: EnvRunnerGroup, config: AlgorithmSettings) -> None:
        mapping = AgentMapping(config.policy_mapping_fn, list(acting(_specs_of(config))))
        for agent in runners.possible_agents:
            mapping.module_of(agent, 0)

    def _take_over(self, config: AlgorithmSettings, statistics_of: Mapping[str, str]) -> None:
        """Bring learners and runners to a configuration whose modules the learners have already."""
        group = self.learner_group
        config = config.replaced(policies=group.module_specs)
        if config.policies_to_train != self.config.policies_to_train:
            group.set_config(policies_to_train=config.policies_to_train)
        self.agent_runners().set_modules(
            config, group.module_specs, weights=group.get_weights(), statistics_of=dict(statistics_of)
        )
        self.use_config(config)

    # ------------------------------------------------------------------ checkpoints

    def modules_state(self) -> dict[str, Plain] | None:
        """Which modules there are, who learns and who plays whom, as plain data; ``None`` with one agent."""
        if not is_multi_agent(self.config):
            return None
        config = self.config.replaced(policies=self.learner_group.module_specs)
        return {name: references.to_plain(getattr(config, name)) for name in MODULE_SETTINGS}

    @property
    def overrides_spaces(self) -> bool:
        """Whether the state that is taken over may be of an environment of other spaces."""
        return self._opening.override_spaces

    @contextlib.contextmanager
    def opened(self, opening: Opening) -> Iterator[None]:
        """In the block, a state is taken over as the user said."""
        self._opening = opening
        try:
            yield
        finally:
            self._opening = Opening()

    @contextlib.contextmanager
    def modules_of(self, state: Tree | None) -> Iterator[ModuleChange | None]:
        """What it takes to have the modules of a state; ``None``: they are here.

        In the block the learners have new ones beside those there were; the rest is up to the block. If it fails, the
        learners have those there were, and know what they knew.

        The mapping is a function, and stays the one that is here unless the user gives another.

        Raises:
            StateError: it is of a run of the other kind, or a module of the same id is another here.
            ConfigError: it names what is not trusted, or an agent would map to no module.
        """
        config = self._config_of(state)
        if config is None:
            yield None
            return
        group, added = self.learner_group, list[str]()
        before = group.module_specs
        try:
            for module_id, spec in _specs_of(config).items():
                if module_id not in group.module_specs:
                    own = config.policy_settings.get(module_id)
                    group.add_module(module_id=module_id, module_spec=spec, settings=own)
                    added.append(module_id)
            config = config.replaced(policies={mid: group.module_specs[mid] for mid in _specs_of(config)})
            yield ModuleChange(self, config, before)
        except BaseException:
            for module_id in added:
                group.remove_module(module_id)
            raise

    def _config_of(self, state: Tree | None) -> AlgorithmSettings | None:
        """The configuration with the modules of a state, checked; ``None``: it has them. Nothing has changed."""
        if (state is None) != (not is_multi_agent(self.config)):
            here = "several agents" if state is None else "one agent"
            raise StateError(f"this run has {here} and the state's has not", path="algorithm/modules")
        mine = self.modules_state()
        if state is None or mine is None or same(state, mine):
            return None
        specs = self.learner_group.module_specs
        saved = read_modules(state, mine=mine, config=self.config, specs=specs, opening=self._opening)
        for module_id in saved["policies"]:
            if module_id in specs and not same(mine["policies"][module_id], state["policies"][module_id]):
                raise StateError("the module here is another", path=f"algorithm/modules/policies/{module_id}")
        config = self.config.replaced(**saved)
        self._check_mapping(self.agent_runners(), config)
        return config


def _specs_of(config: AlgorithmSettings) -> Mapping[str, RLModuleSpec]:
    """{module_id: spec} of a configuration whose modules are complete."""
    assert isinstance(config.policies, Mapping)
    return config.policies


def agent_means(episodes: Sequence[Episode]) -> dict[str, dict[str, float]]:
    """Mean returns of these episodes by agent and by module; {} if they had one agent.

    Returns:
        ``agent_episode_return_mean`` {agent: mean over the episodes it was in} and ``module_episode_return_mean``
        {module: mean over the agents that it played}.
    """
    by_agent: dict[str, list[float]] = {}
    by_module: dict[str, list[float]] = {}
    for episode in episodes:
        for agent in episode.agents:
            by_agent.setdefault(agent.agent_id, []).append(agent.episode_return)
            by_module.setdefault(agent.module_id, []).append(agent.episode_return)
    if not by_agent:
        return {}
    return {
        name: {key: float(np.mean(values)) for key, values in sorted(groups.items())}
        for name, groups in (("agent_episode_return_mean", by_agent), ("module_episode_return_mean", by_module))
    }


class ModuleChange:
    """Other modules, on their way into a run whose learners have them already.

    Args:
        run: the run.
        config: its configuration from then on.
        specs_before: {module_id: spec} of those that the runners have.

    Attributes:
        specs: {module_id: spec} of the modules that it will have.
    """

    def __init__(self, run: AgentModules, config: AlgorithmSettings, specs_before: Mapping[str, RLModuleSpec]) -> None:
        self._run, self._before, self._config = run, run.config, config
        self._specs_before = specs_before
        self.specs: dict[str, RLModuleSpec] = dict(_specs_of(config))

    def runners(self) -> None:
        """The runners have the new modules."""
        self._give(self._config, self.specs)

    def undo_runners(self) -> None:
        """The runners have the modules that they had; their state is to be set again."""
        self._give(self._before, self._specs_before)

    def learners(self) -> None:
        """The learners have the new modules alone, and the run the new configuration."""
        group = self._run.learner_group
        for module_id in group.module_specs:
            if module_id not in self.specs:
                group.remove_module(module_id)
        if self._config.policies_to_train != self._before.policies_to_train:
            group.set_config(policies_to_train=self._config.policies_to_train)
        self._run.use_config(self._config)

    def _give(self, config: AlgorithmSettings, specs: Mapping[str, RLModuleSpec]) -> None:
        weights = self._run.learner_group.get_weights()
        self._run.agent_runners().set_modules(config, specs, weights={mid: weights[mid] for mid in specs})
