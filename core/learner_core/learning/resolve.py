"""What a configuration means: its backend, and complete specifications of its modules.

Needs a configuration. Refuses backends that cannot train, classes written for another framework, and modules whose
spaces nobody knows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config.agents import has_agents, is_multi_agent
from ..config.foreign import closed
from ..config.info_masks import with_info_masks
from ..errors import ConfigError, SpaceError
from .agent_specs import agent_specs
from .rl_module import DEFAULT_MODULE_ID, MultiRLModuleSpec, RLModuleSpec

__all__ = ["resolve_backend", "resolve_modules"]


def resolve_backend(config: Any, learner_class: type) -> Any:
    """The configured backend, loaded and bound to device and precision.

    Raises:
        ConfigError: the class is written for another framework, or the backend only serves policies.
        PluginNotFoundError, BackendNotInstalledError: there is no such backend, or its framework is missing.
    """
    from ..plugins.discovery import make_backend

    wanted = getattr(learner_class, "framework", None)
    if wanted is not None and wanted != config.framework_name:
        raise ConfigError(
            f"{learner_class.__name__} is written for framework {wanted!r}, the config says "
            f"{config.framework_name!r}: set .framework({wanted!r})"
        )
    backend = make_backend(config.framework_name, device=config.device, precision=config.precision)
    if not backend.trains:
        raise ConfigError(
            f"backend {backend.name!r} serves policies and cannot train; use .framework('torch') or ('tf')"
        )
    return backend


def resolve_modules(config: Any, env: Any, module_spec: Any, *, like: Any = None) -> dict[str, RLModuleSpec]:
    """module id -> complete specification, from an explicit one, the configuration's, or the algorithm's default.

    Args:
        config: the configuration.
        env: environment (or vector environment) whose single spaces are taken; ``None``: the configured one.
        module_spec: RLModuleSpec, MultiRLModuleSpec or ``None``.
        like: specifications to take missing spaces from.
    """
    if env is not None and getattr(config, "action_mask_in_info", False):
        env = with_info_masks(env)
    if module_spec is None and (is_multi_agent(config) or has_agents(env)):
        module_spec = MultiRLModuleSpec(agent_specs(config, env))
        env = None
    spec = module_spec if module_spec is not None else config.rl_module_spec
    masked = False
    spaces = [config.observation_space, config.action_space]
    if env is not None:
        spaces = _spaces_of(env)
    elif like:
        first = next(iter(like.values()))
        spaces = [first.observation_space, first.action_space]
        masked = first.masked
    specs = (
        dict(spec.rl_module_specs)
        if isinstance(spec, MultiRLModuleSpec)
        else {DEFAULT_MODULE_ID: spec or RLModuleSpec()}
    )
    for module_id, one in specs.items():
        if not isinstance(one, RLModuleSpec):
            raise ConfigError(f"module {module_id!r}: {one!r} is not an RLModuleSpec")
    complete = all(one.observation_space is not None and one.action_space is not None for one in specs.values())
    if not complete and None in spaces:
        if config.env is None:
            raise SpaceError(
                "the spaces are not known: pass env= to the build call, set .environment(...), or give "
                "observation_space and action_space"
            )
        from ..config.environments import make_env

        made = make_env(config)
        try:
            if has_agents(made):
                raise ConfigError(
                    f"{type(made).__name__} is an environment of several agents: say who plays them, by "
                    '.multi_agent(policies=["shared"]) for one module, or a module for each'
                )
            spaces = _spaces_of(made)
        finally:
            closed(made.close, whose=lambda: f"the environment {type(made).__name__}")
    specs = {module_id: replace(one, masked=one.masked or masked) for module_id, one in specs.items()}
    return {
        module_id: one.filled(
            module_class=None if one.module_class is not None else config.get_module_class(),
            observation_space=spaces[0],
            action_space=spaces[1],
            model=config.module_settings(),
        )
        for module_id, one in specs.items()
    }


def _spaces_of(env: Any) -> list[Any]:
    """An environment's observation and action space; of a vector environment those of a single one."""
    found = []
    for name in ("observation_space", "action_space"):
        space = getattr(env, f"single_{name}", None)
        space = getattr(env, name, None) if space is None else space
        if space is None:
            raise SpaceError(f"{type(env).__name__} has no {name}: is it a gymnasium environment?")
        found.append(space)
    return found
