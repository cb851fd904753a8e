"""What an environment decides among the other settings: one that is given as an object, or that is several at once.

Needs a config and, for what only the environment knows, the environment. An object is one copy, or one vector, in the
process that it was made in; everything that needs another is refused with the advice to give a function that makes it.
Evaluation, which must not disturb training, makes it again where gymnasium knows how. Refuses numbers of environments
that are not the vector's (docs/decisions/environments.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from learner_core.errors import ConfigError
from learner_core.plugins.containment import said

from .agents import has_agents, is_environment, is_vector
from .foreign import closed, failure

__all__ = ["check_object", "check_vector", "maker_of", "with_num_envs"]


def check_object(config: Any) -> None:
    """Refuse settings that one environment object cannot serve.

    Args:
        config: Any config; one whose ``env`` is a name, a function or None is not looked at.

    Raises:
        ConfigError: More environments than there are, other processes, restarts, or an evaluation of its own that
            nobody could make it for.
    """
    env = config.env
    if not is_environment(env):
        return
    name = type(env).__name__
    if config.env_config:
        raise ConfigError(
            f"environment(env_config={config.env_config!r:.80}): {name} is made already, and nobody would read that; "
            + _advice(name)
        )
    if config.num_env_runners:
        raise ConfigError(
            f"env_runners(num_env_runners={config.num_env_runners}): {name} is one object, which cannot be in other "
            f"processes; {_advice(name)}"
        )
    if config.max_env_restarts:
        raise ConfigError(
            f"environment(max_env_restarts={config.max_env_restarts}): {name} is one object, and nobody knows how to "
            f"make it anew; {_advice(name)}"
        )
    if is_vector(env):
        check_vector(config, env)
    else:
        number = config.num_envs_per_env_runner
        if "num_envs_per_env_runner" in config.given and number != 1:
            raise ConfigError(
                f"env_runners(num_envs_per_env_runner={number}): {name} is one object, and one environment; "
                + _advice(name)
            )
        if config.vectorization in ("async", "native"):
            raise ConfigError(
                f"env_runners(vectorization={config.vectorization!r}): {name} is one object, which is stepped as it "
                f"is; {_advice(name)}"
            )
    if config.evaluation_interval:
        maker_of(env)


def check_vector(config: Any, env: Any) -> None:
    """Refuse settings that a vector environment answers otherwise.

    Args:
        config: Any config.
        env: The vector environment.

    Raises:
        ConfigError: Another number of environments, or another way to step them together, was set.
    """
    name, number = type(env).__name__, config.num_envs_per_env_runner
    if "num_envs_per_env_runner" in config.given and number != env.num_envs:
        raise ConfigError(
            f"env_runners(num_envs_per_env_runner={number}): {name} is {env.num_envs} environments; leave the setting "
            "out, or make a vector of as many"
        )
    if config.vectorization != "auto":
        raise ConfigError(
            f"env_runners(vectorization={config.vectorization!r}): {name} steps its environments itself; leave the "
            "setting out, or give a function that makes one environment"
        )


def with_num_envs(config: Any, env: Any) -> Any:
    """The config with as many environments a runner as the environment is.

    Args:
        config: Frozen.
        env: The environment that ``config.env`` names, makes or is.

    Returns:
        The config itself where its number counts; else a changed copy, frozen.

    Raises:
        ConfigError: Another number was set, or what a vector cannot have.
    """
    if is_vector(env):
        check_vector(config, env)
        number = int(env.num_envs)
    elif is_environment(config.env):
        number = 1
    else:
        return config
    if number < 1:
        raise ConfigError(f"{type(env).__name__}.num_envs is {number}: expected at least 1 environment")
    return config if number == config.num_envs_per_env_runner else config.replaced(num_envs_per_env_runner=number)


def maker_of(env: Any) -> Callable[[dict[str, Any]], Any]:
    """What makes another environment like an object that gymnasium made.

    Args:
        env: The object.

    Returns:
        A callable(env_config), which makes one of the same spaces.

    Raises:
        ConfigError: Nobody knows how it was made.
    """
    spec, reason = _spec_of(env)
    if spec is None:
        raise ConfigError(
            f"evaluation plays in environments of its own, and nobody knows how {type(env).__name__} was made "
            f"({reason}); {_advice(type(env).__name__)}"
        )
    return functools.partial(_made_again, env, spec)


def _spec_of(env: Any) -> tuple[Any, str]:
    """gymnasium's specification of how an object was made; None, and why there is none."""
    if has_agents(env):
        return None, "PettingZoo's objects do not say it"
    try:
        spec = env.spec
    except Exception as error:
        return None, f"asked for its spec, it raised {said(error)}"
    if spec is None or not hasattr(spec, "kwargs"):
        return None, "it has no spec of gymnasium.make"
    if is_vector(env):
        if "vectorization_mode" not in spec.kwargs:
            return None, "its spec is not one of gymnasium.make_vec"
        if env is not env.unwrapped:
            return None, "wrappers of vector environments are in no spec"
    elif any(wrapper.kwargs is None for wrapper in spec.additional_wrappers):
        return None, "a wrapper around it does not record its arguments"
    return spec, ""


def _made_again(env: Any, spec: Any, env_config: dict[str, Any]) -> Any:
    """Another environment of a specification, compared with the one that it came from."""
    import gymnasium as gym

    try:
        made = gym.make_vec(spec) if is_vector(env) else gym.make(spec)
    except BaseException as error:
        text = said(failure(error))
        raise ConfigError(
            f"evaluation plays in environments of its own, and making {type(env).__name__} again by its spec raised "
            f"{text}; {_advice(type(env).__name__)}"
        ) from error
    for name in ("observation_space", "action_space"):
        ours, theirs = getattr(env, name), getattr(made, name)
        if ours != theirs:
            closed(made.close, whose=lambda: f"the environment {type(made).__name__}")
            raise ConfigError(
                f"evaluation plays in environments of its own; {type(env).__name__}, made again by its spec, has "
                f"{name} {theirs}, not {ours}; {_advice(type(env).__name__)}"
            )
    return made


def _advice(name: str) -> str:
    return f"give a function that makes it, .environment(lambda env_config: {name}(...))"
