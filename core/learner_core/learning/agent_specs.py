"""The modules of a multi-agent configuration, with the spaces of the agents that they play.

Needs a config with ``policies`` or a PettingZoo environment. Refuses agents of different spaces in one module, spaces
given by hand that are not the agents', and modules whose spaces nobody knows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config.agents import ONLY_MODULE, AgentMapping, check_agents
from ..config.algorithm_settings import AlgorithmSettings
from ..errors import ConfigError, SpaceError
from ..spaces import AnySpace
from .rl_module import MultiRLModuleSpec, RLModuleSpec, acting, check_module_id, check_references, with_spaces_of

__all__ = ["agent_specs"]

#: Episodes that a mapping is asked about beforehand: those that tell episodes apart mostly alternate.
_EPISODES = range(4)


def agent_specs(config: AlgorithmSettings, env: object = None) -> dict[str, RLModuleSpec]:
    """module id -> specification with both spaces.

    Args:
        config: frozen configuration.
        env: a PettingZoo parallel environment to take spaces from; ``None`` makes the configured one for a moment,
            if one is needed.

    Raises:
        ConfigError: an agent maps to no module.
        SpaceError: spaces that do not fit, or that are not known.
    """
    specs = _named(config)
    check_references(specs)
    specs = with_spaces_of(specs)
    if all(spec.observation_space is not None and spec.action_space is not None for spec in specs.values()):
        return specs
    if config.observation_space is not None and config.action_space is not None and env is None:
        given = (config.observation_space, config.action_space)
        return {module_id: _filled(spec, *given) for module_id, spec in specs.items()}
    for name in ("observation_space", "action_space"):
        if getattr(config, name) is not None:
            raise SpaceError(
                f"environment({name}=...): the environment has the spaces of its agents, which count: leave {name} "
                "out, or give both spaces and no environment"
            )
    if env is not None:
        return _from_env(config, specs, env)
    if config.env is None:
        raise SpaceError(
            "the spaces are not known: pass env= to the build call, set .environment(...), or give the policies specs "
            "with an observation_space and an action_space"
        )
    from ..config.environments import opened

    with opened(config) as made:
        return _from_env(config, specs, made)


def _named(config: AlgorithmSettings) -> dict[str, RLModuleSpec]:
    """What the configuration says of each module."""
    template = config.rl_module_spec
    several = dict(template.rl_module_specs) if isinstance(template, MultiRLModuleSpec) else {}
    policies = config.policies
    if policies is None:
        policies = several or {ONLY_MODULE: None}
    given = dict(policies) if isinstance(policies, dict) else dict.fromkeys(policies)
    given.update({mid: spec for mid, spec in several.items() if mid not in given and not spec.acts})
    unknown = sorted(set(several) - set(given))
    if unknown:
        raise ConfigError(f"rl_module_spec has a module {unknown[0]!r}, which is not among the policies {list(given)}")
    specs = {}
    for module_id, named in given.items():
        check_module_id(module_id)
        spec = named if named is not None else several.get(module_id) if several else template
        specs[module_id] = RLModuleSpec() if spec is None else spec
        if not isinstance(specs[module_id], RLModuleSpec):
            raise ConfigError(
                f"multi_agent(policies={{{module_id!r}: {named!r}}}): expected an RLModuleSpec or None; training "
                "settings of one module belong in multi_agent(settings={module_id: {...}})"
            )
    return specs


def _from_env(config: AlgorithmSettings, specs: dict[str, RLModuleSpec], env: Any) -> dict[str, RLModuleSpec]:
    check_agents(env)
    agents = list(getattr(env, "possible_agents", ()))
    players = acting(specs)
    mapping = AgentMapping(config.policy_mapping_fn, list(players))
    spaces = {agent: (env.observation_space(agent), env.action_space(agent)) for agent in agents}
    plays: dict[str, list[Any]] = {module_id: [] for module_id in players}
    for agent in agents:
        for module_id in {mapping.module_of(agent, episode) for episode in _EPISODES}:
            plays[module_id].append(agent)
    alike = len(agents) > 0 and all(pair == spaces[agents[0]] for pair in spaces.values())
    out = {}
    for module_id, spec in players.items():
        if not plays[module_id] and not alike:
            if spec.observation_space is None or spec.action_space is None:
                raise SpaceError(
                    f"module {module_id!r} plays none of the agents {agents}, so its spaces are not known: give "
                    f"policies={{{module_id!r}: RLModuleSpec(observation_space=..., action_space=...)}}"
                )
            out[module_id] = spec
            continue
        played = plays[module_id] or agents
        for agent in played[1:]:
            for kind, ours, theirs in zip(("observation", "action"), spaces[played[0]], spaces[agent], strict=True):
                if ours != theirs:
                    raise SpaceError(
                        f"module {module_id!r} is to play the agents {played[0]!r} and {agent!r}, whose {kind} spaces "
                        f"differ: {ours} and {theirs}; give them modules of their own"
                    )
        out[module_id] = _filled(spec, *spaces[played[0]])
    return with_spaces_of({**specs, **out})


def _filled(spec: RLModuleSpec, observation_space: AnySpace, action_space: AnySpace) -> RLModuleSpec:
    return replace(
        spec,
        observation_space=observation_space if spec.observation_space is None else spec.observation_space,
        action_space=action_space if spec.action_space is None else spec.action_space,
    )
