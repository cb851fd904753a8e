"""What a configuration means: its backend, and complete specifications of its modules.

Needs a configuration. Refuses backends that cannot train, classes written for another framework, and modules whose
spaces nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ..backend import Backend
from ..config.agents import has_agents, is_multi_agent
from ..config.algorithm_settings import AlgorithmSettings
from ..config.environments import opened, wrapped
from ..errors import ConfigError, SpaceError
from ..maths.images import could_be_image, has_image, image_layouts
from ..spaces import AnySpace, parts
from .actor_critic import PolicyModule
from .agent_specs import agent_specs
from .earlier_models import as_it_was_built
from .rl_module import DEFAULT_MODULE_ID, MultiRLModuleSpec, RLModuleSpec, check_references, with_spaces_of

__all__ = ["refuse_agents", "resolve_backend", "resolve_modules"]


#: Of one module or of several.
AnyModuleSpec = RLModuleSpec | MultiRLModuleSpec
#: (observations, actions), None where it is not known.
Spaces = Sequence["AnySpace | None"]


def resolve_backend(config: AlgorithmSettings, learner_class: type) -> Backend:
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
    backend: Backend = make_backend(config.framework_name, device=config.device, precision=config.precision)
    if not backend.trains:
        raise ConfigError(
            f"backend {backend.name!r} serves policies and cannot train; use .framework('torch') or ('tf')"
        )
    return backend


def resolve_modules(
    config: AlgorithmSettings,
    env: object,
    module_spec: AnyModuleSpec | None,
    *,
    like: Mapping[str, RLModuleSpec] | None = None,
) -> dict[str, RLModuleSpec]:
    """module id -> complete specification, from an explicit one, the configuration's, or the algorithm's default.

    Args:
        config: the configuration.
        env: environment (or vector environment) whose single spaces are taken; ``None``: the configured one.
        module_spec: RLModuleSpec, MultiRLModuleSpec or ``None``.
        like: specifications to take missing spaces from.
    """
    if env is not None:
        env = wrapped(env, config)
    if module_spec is None and (is_multi_agent(config) or has_agents(env)):
        module_spec = MultiRLModuleSpec(agent_specs(config, env))
        env = None
    spec = module_spec if module_spec is not None else config.rl_module_spec
    masked = False
    given = spaces = [config.observation_space, config.action_space]
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
    check_references({**(like or {}), **specs})
    specs = {module_id: with_spaces_of({**(like or {}), **specs})[module_id] for module_id in specs}
    complete = all(one.observation_space is not None and one.action_space is not None for one in specs.values())
    masks = config.action_mask_in_info and env is None and not like
    if not complete and (masks or None in spaces):
        if config.env is None and None not in spaces:
            raise ConfigError(
                "action_mask_in_info=True: the spaces are given by hand, and no environment says how its masks look: "
                "give an observation_space that is a Dict with an 'action_mask' instead"
            )
        if config.env is None:
            raise SpaceError(
                "the spaces are not known: pass env= to the build call, set .environment(...), or give "
                "observation_space and action_space"
            )
        with opened(config) as made:
            refuse_agents(made)
            spaces = _spaces_of(made)
    _refuse_others(given, spaces)
    specs = {module_id: replace(one, masked=one.masked or masked) for module_id, one in specs.items()}
    full = {
        module_id: one.filled(
            module_class=config.get_module_class() if one.module_class is None and one.acts else None,
            observation_space=spaces[0],
            action_space=spaces[1],
            model=_common_model(config),
        )
        for module_id, one in specs.items()
    }
    if like is None:
        _refuse_unused_model(config, full)
    full = _each_its_own(specs, full)
    stored = like is None and "model" not in config.news
    for module_id, one in full.items():
        if not _is_ours(one.module_class):
            continue
        if stored:
            model = as_it_was_built(one.model, one.observation_space, one.action_space)
            full[module_id] = replace(one, model=model)
        else:
            _refuse_beside(config, module_id, one)
    return full


def refuse_agents(env: object) -> None:
    """Refuse an environment of several agents where nobody is said to play them.

    Raises:
        ConfigError: It is one.
    """
    if has_agents(env):
        raise ConfigError(
            f"{type(env).__name__} is an environment of several agents: say who plays them, by "
            '.multi_agent(policies=["shared"]) for one module, or a module for each'
        )


def _refuse_others(given: Spaces, spaces: Spaces) -> None:
    """Refuse spaces that were given and are not those that the modules get."""
    for name, one, other in zip(("observation_space", "action_space"), given, spaces, strict=True):
        if one is not None and one != other:
            raise SpaceError(
                f"environment({name}={one}): the environment has {other}, which counts: leave {name} out, or give both "
                "spaces and no environment"
            )


def _refuse_unused_model(config: AlgorithmSettings, specs: Mapping[str, RLModuleSpec]) -> None:
    """Refuse ``rl_module(model=...)`` where no module is the algorithm's own kind, which alone reads it."""
    default = config.settings()["model"].default
    if not config.model or config.model == default or any(spec.is_neutral for spec in specs.values()):
        return
    raise ConfigError(
        f"rl_module(model={config.model!r}) is for modules written over xp, and there is none here: give a network of "
        "your own its settings by RLModuleSpec(model=...)"
    )


def _common_model(config: AlgorithmSettings) -> dict[str, Any]:
    """``model`` of the configuration; without hidden layers, the default's activation is not what a user has said."""
    model = dict(config.module_settings())
    default = config.settings()["model"].default
    hidden = model.get("hidden")
    if isinstance(hidden, (list, tuple)) and not hidden and model.get("activation") == default.get("activation"):
        model.pop("activation", None)
    return model


def _refuse_beside(config: AlgorithmSettings, module_id: str, spec: RLModuleSpec) -> None:
    """Refuse settings of a network that other settings of the configuration leave without a use, or without a meaning.

    Raises:
        ConfigError: shared layers or sizes of a value function that is not learned; pixels divided by 255 after they
            were normalised.
    """
    model = spec.model
    if not config.use_critic:
        by_network = [key for key, value in model.items() if isinstance(value, Mapping) and value.get("vf") is not None]
        idle = next((key for key in ("vf_share_layers", *by_network) if model.get(key) and key != "encoders"), None)
        if idle is not None:
            raise ConfigError(
                f"module {module_id!r}: model={{{idle!r}: {model[idle]!r}}} needs use_critic=True: without it no value "
                "function is learned"
            )
    if config.normalize_observations:
        for path, layout in image_layouts(spec.observation_space, model).items():
            if layout.scale:
                raise ConfigError(
                    f"normalize_observations=True beside the image {path or 'observation'} of numbers from 0 to 255: "
                    "its network divides them by 255, which normalised ones must not be. Leave one out: give it as "
                    "uint8, which has no statistics, divide it in a wrapper (bounds 0 and 1), or do not normalise"
                )


def _each_its_own(own: Mapping[str, RLModuleSpec], full: dict[str, RLModuleSpec]) -> dict[str, RLModuleSpec]:
    """Of several modules, each has those of the common settings that its spaces have a use for, if another has it."""
    for keys, has_use in _SPACE_SETTINGS:
        ours = {mid: spec for mid, spec in full.items() if _is_ours(spec.module_class)}
        if not any(has_use(spec) for spec in ours.values()):
            continue
        for mid, spec in ours.items():
            if not has_use(spec):
                model = {key: value for key, value in spec.model.items() if key not in keys or key in own[mid].model}
                full[mid] = replace(spec, model=model)
    return full


def _is_ours(module_class: object) -> bool:
    return isinstance(module_class, type) and issubclass(module_class, PolicyModule)


def _sees_images(spec: RLModuleSpec) -> bool:
    return has_image(spec.observation_space)


def _may_see_images(spec: RLModuleSpec) -> bool:
    return any(map(could_be_image, parts(spec.observation_space).values()))


def _acts_continuously(spec: RLModuleSpec) -> bool:
    return type(spec.action_space).__name__ == "Box"


#: Settings of ``model`` that some spaces alone have a use for.
_SPACE_SETTINGS: Final = (
    (("conv_filters", "conv_activation"), _sees_images),
    (("image_layout",), _may_see_images),
    (("free_log_std", "log_std_init", "log_std_range"), _acts_continuously),
)


def _spaces_of(env: object) -> list[AnySpace | None]:
    """An environment's observation and action space; of a vector environment those of a single one."""
    found = []
    for name in ("observation_space", "action_space"):
        space = getattr(env, f"single_{name}", None)
        space = getattr(env, name, None) if space is None else space
        if space is None:
            raise SpaceError(f"{type(env).__name__} has no {name}: is it a gymnasium environment?")
        found.append(space)
    return found
