"""Makes the environment a config names, and answers names that there are not. Gymnasium is imported on the first call.

Needs a config with ``env``. Refuses environments that do not exist or cannot be made. An environment that is an object
is handed out as it is; whoever only looks at one (``opened``) leaves it open.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from learner_core.errors import ConfigError, EnvError, did_you_mean
from learner_core.plugins.containment import said

from .agents import PETTINGZOO, is_environment
from .foreign import closed

__all__ = ["check_name", "make_env", "opened", "wrapped"]

# What an environment's module path or namespace needs -> the extra that brings it.
_EXTRAS = {"ale": "atari", "atari": "atari", "mujoco": "mujoco", "box2d": "box2d", "pettingzoo": "multi-agent"}


def check_name(config: Any) -> None:
    """Answer a name that no environment has, before anything costly is done: no environment of a known name is made.

    Args:
        config: As for ``make_env``; functions, objects and None are not looked at.

    Raises:
        EnvError: There is no such environment; says the nearest name.
    """
    if isinstance(config.env, str) and not _is_known(config.env):
        with opened(config):  # making it has the words; some names are in no registry and can be made all the same
            pass


@contextlib.contextmanager
def opened(config: Any) -> Iterator[Any]:
    """The config's environment, to look at: made for a moment, or the object itself, which stays open.

    Raises:
        ConfigError, EnvError: As ``make_env`` raises them.
    """
    made = make_env(config)
    try:
        yield made
    finally:
        if not is_environment(config.env):
            closed(made.close, whose=lambda: f"the environment {type(made).__name__}")


def make_env(config: Any, **kwargs: Any) -> Any:
    """Make one environment from ``config.env`` and ``config.env_config``; one that is an object is that object.

    Args:
        config: An AlgorithmConfig, or anything with ``env`` and ``env_config``; with ``action_mask_in_info``, masks
            are moved into the observations.
        kwargs: More keywords for ``gymnasium.make`` of a named environment (``render_mode``).

    Returns:
        What ``gymnasium.make``, PettingZoo or the callable returned.

    Raises:
        ConfigError: No environment was configured.
        EnvError: It does not exist, needs an extra, or raised.
    """
    return wrapped(_make(config, **kwargs), config)


def wrapped(env: Any, config: Any) -> Any:
    """An environment with what the config adds to its observations: masks of actions, what the critic sees.

    Args:
        env: As it was made, or given.
        config: An AlgorithmConfig, or anything with some of its fields.

    Raises:
        ConfigError: It cannot have them.
    """
    if getattr(config, "action_mask_in_info", False):
        from .info_masks import with_info_masks

        env = with_info_masks(env)
    if getattr(config, "critic_observes", None) not in (None, "own"):
        from .central_observations import with_central_observations

        env = with_central_observations(env, config.critic_observes)
    return env


def _make(config: Any, **kwargs: Any) -> Any:
    env, env_config = config.env, dict(config.env_config)
    if env is None:
        raise ConfigError("No environment: set .environment(env) with a name or a callable, or hand one over as env=.")
    if is_environment(env):
        return env
    if not isinstance(env, str):
        try:
            return env(env_config)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            name = getattr(env, "__qualname__", repr(env))
            raise EnvError(
                f"The environment callable {name}(env_config={env_config!r}) raised {said(error)}."
            ) from error
    return _make_named(env, env_config, **kwargs)


def _is_known(env: str) -> bool:
    """Whether an environment of this name is registered; False also where only making it can say."""
    if env.startswith(PETTINGZOO):
        return _is_known_to_pettingzoo(env.removeprefix(PETTINGZOO))
    import gymnasium

    module, _, name = env.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception:
            return False  # making it says what is missing
    _register_extensions(env)
    return name in gymnasium.registry


def _is_known_to_pettingzoo(name: str) -> bool:
    try:
        pettingzoo: Any = importlib.import_module("pettingzoo")
        if ":" in name or "." not in name:
            return ":" not in name and (_is_registered(pettingzoo, name) or name in pettingzoo.aec_registry)
        return importlib.util.find_spec(name) is not None
    except Exception:
        return False  # making it says what is missing


def _make_named(env: str, env_config: dict[str, Any], **kwargs: Any) -> Any:
    if env.startswith(PETTINGZOO):
        return _make_pettingzoo(env, {**env_config, **kwargs})
    import gymnasium

    _register_extensions(env)
    try:
        return gymnasium.make(env, **{**env_config, **kwargs})
    except Exception as error:
        raise EnvError(_explain(env, env_config, error)) from error
    except (SystemExit, GeneratorExit) as error:
        raise EnvError(f"The environment {env!r} cannot be made: {said(error)}.") from error


def _make_pettingzoo(env: str, settings: dict[str, Any]) -> Any:
    """The environment of a name in PettingZoo's registry, or of a module's path.

    A parallel one where there is one of the name (a module's ``parallel_env(**settings)``), else a turn-based one
    (``env(**settings)``). Other packages are laid out as PettingZoo's were: ``pettingzoo:mpe2.simple_spread_v3``. Those
    that register what they have are imported first by ``pettingzoo:package:name``.
    """
    name = env.removeprefix(PETTINGZOO)
    try:
        pettingzoo: Any = importlib.import_module("pettingzoo")
    except ImportError as error:
        raise EnvError(f"The environment {env!r} cannot be made: {error}.{_install('multi-agent')}") from error
    try:
        package, _, name = name.rpartition(":")
        if package:
            importlib.import_module(package)
        elif "." in name:
            module = importlib.import_module(name)
            return (module.parallel_env if hasattr(module, "parallel_env") else module.env)(**settings)
        return pettingzoo.make("parallel" if _is_registered(pettingzoo, name) else "aec", name, **settings)
    except Exception as error:
        text = str(error)
        if isinstance(error, ModuleNotFoundError) and error.name is not None and env.find(error.name) >= 0:
            text += ". Install the package that has it"
        if type(error).__name__ == "NameNotFound":
            known = {**pettingzoo.parallel_registry, **pettingzoo.aec_registry}
            text = f"PettingZoo has no environment {name!r}.{did_you_mean(name, known)}"
        text = _sentence(f"The environment {env!r} cannot be made: {type(error).__name__}: {text}")
        raise EnvError(text + (f" env_config={settings!r}" if settings else "")) from error


def _is_registered(pettingzoo: Any, name: str) -> bool:
    """Whether there is a parallel environment of that name, which may be written as its module is: ``rps_v2``."""
    head, mark, version = name.rpartition("_v")
    return name in pettingzoo.parallel_registry or (bool(mark) and f"{head}-v{version}" in pettingzoo.parallel_registry)


def _register_extensions(env: str) -> None:
    """Register Atari's environments, which gymnasium does not do by itself."""
    if not env.startswith("ALE/") and not env.endswith(("NoFrameskip-v4", "-v0", "-v4")):
        return
    import gymnasium

    if env in gymnasium.registry:
        return
    try:
        import ale_py
    except ImportError:
        return  # gymnasium.make says that the environment is unknown, and _explain which extra has it
    gymnasium.register_envs(ale_py)


def _explain(env: str, env_config: dict[str, Any], error: Exception) -> str:
    import gymnasium

    said = str(error)
    spec = gymnasium.registry.get(env)
    nearest = did_you_mean(env, gymnasium.registry) if spec is None else ""
    if nearest.startswith(" Did"):
        said = said.partition(" Did you mean")[0]  # gymnasium's own suggestion has no version: ours can be typed
    text = _sentence(f"The environment {env!r} cannot be made: {type(error).__name__}: {said}")
    if spec is None:
        if env.startswith("ALE/"):
            return text + _install("atari")
        return text + (nearest if nearest.startswith(" Did") else " List the names with gymnasium.pprint_registry().")
    entry = str(spec.entry_point).lower()
    if isinstance(error, (ImportError, gymnasium.error.DependencyNotInstalled)):
        for key, extra in _EXTRAS.items():
            if key in entry or key in str(error).lower():
                return text + _install(extra)
    return text + (f" env_config={env_config!r}" if env_config else "")


def _sentence(text: str) -> str:
    """With one mark at its end, whatever other libraries' messages end with."""
    text = text.rstrip(". ")
    return text if text.endswith("?") else f"{text}."


def _install(extra: str) -> str:
    return f' Install what it needs: pip install "learner-core[{extra}]".'
