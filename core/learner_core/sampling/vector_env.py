"""Makes N environment lanes in the fastest way the environment allows.

Needs gymnasium (imported when lanes are made). Refuses environments that cannot be made. Three ways to step:

- the environment's own vectorised form (``vector_entry_point``), where it has one of the same spaces: by far the
  fastest;
- one by one in this process (``SyncLanes``), resetting in the same step, so that no step is spent on a reset;
- one process each (gymnasium's ``AsyncVectorEnv``), for environments that are slow themselves: on cheap ones the
  messages cost ten times the step.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import TypeVar

from ..config.agents import EnvSource, is_environment, is_vector
from ..config.algorithm_settings import AlgorithmSettings
from ..config.environments import make_env
from ..config.foreign import closed, failure
from ..config.info_masks import InfoMasks, with_info_masks
from ..errors import ConfigError, EnvError
from ..plugins.containment import said, shown
from .checked_env import CheckedEnv
from .gym_lanes import GymLanes
from .lanes import AnyEnv, AnyVectorEnv, Lanes
from .rebuilding import Tell
from .sync_lanes import SyncLanes

__all__ = ["make_lanes"]

_Made = TypeVar("_Made")


def make_lanes(
    env: EnvSource | None,
    config: AlgorithmSettings,
    *,
    num_envs: int,
    whose: Callable[[int], str] | None = None,
    tell: Tell | None = None,
) -> Lanes:
    """Make N environments of one kind.

    Args:
        env: A gymnasium id; a callable ``env_config -> gymnasium.Env`` (or ``VectorEnv``); an ``Env`` (one lane, or
            the pattern for more if it was made by its id) or a ``VectorEnv``, as it is, whatever ``num_envs`` says.
        config: ``env_config``, passed to the callable, or as keywords to ``gymnasium.make``; ``vectorization``, "auto"
            (native where there is one of the same spaces, else "sync"), "native" (whatever its spaces), "sync" or
            "async"; ``max_env_restarts``, rebuilds allowed before ``EnvError``; ``action_mask_in_info``, masks of
            actions are moved into the observations, of single environments only; ``env_step_timeout_s`` of
            environments in processes of their own.
        num_envs: Number of lanes.
        whose: Lane -> the environment's name in an error.
        tell: Told of every rebuild; by default the user of this process.

    Returns:
        Lanes, not reset yet.

    Raises:
        ConfigError: Unknown ``vectorization``, or one that this environment cannot have.
        EnvError: The environment cannot be made.
    """
    vectorization, settings = config.vectorization, dict(config.env_config)
    if vectorization not in ("auto", "native", "sync", "async"):
        raise ConfigError(f"vectorization={vectorization!r}: expected 'auto', 'native', 'sync' or 'async'")
    if num_envs < 1:
        raise ConfigError(f"num_envs={num_envs}: expected at least 1")
    if config.action_mask_in_info and is_environment(env):
        env = with_info_masks(env)
    gym_lanes = partial(GymLanes, max_restarts=config.max_env_restarts, whose=whose, tell=tell)
    if is_vector(env):
        return gym_lanes(_first_then([env], None))
    import gymnasium as gym

    ready: list[AnyEnv] = []
    if isinstance(env, gym.Env | InfoMasks):
        given: AnyEnv = env
        if num_envs == 1 and vectorization in ("auto", "sync"):
            ready, make = [given], None
        elif given.spec is None:
            raise ConfigError(
                f"num_envs={num_envs}, vectorization={vectorization!r}: one environment object was given that was not "
                "made by gymnasium.make; give its id, or a callable that makes it"
            )
        else:
            env, settings = _same_again, {"spec": given.spec}
    if not ready:
        made_from = SimpleNamespace(env=env, env_config=settings, action_mask_in_info=config.action_mask_in_info)
        make = partial(make_env, made_from)
    by_name = env if isinstance(env, str) and not config.action_mask_in_info else None
    native = _native(by_name, settings, num_envs)
    if vectorization == "native" and native is None:
        raise ConfigError(f"vectorization='native', but {env!r} has no vectorised form of its own")
    try:
        if native is not None and vectorization == "native":
            return gym_lanes(native)
        if native is not None and vectorization == "auto" and make is not None:
            vector = _like_single(native, make, num_envs)
            if vector is not None:
                return gym_lanes(_first_then([vector], native))
        if not ready and make is not None and not isinstance(env, str):
            ready = [make()]
            if is_vector(ready[0]):
                return gym_lanes(_first_then(ready, make))
        if vectorization == "async" and make is not None:
            for made in ready:
                closed(made.close, whose=partial("the environment {}".format, type(made).__name__))
            mode, makers = gym.vector.AutoresetMode.SAME_STEP, [partial(_checked, make)] * num_envs

            def start() -> AnyVectorEnv:
                with _without_ctrl_c():
                    return gym.vector.AsyncVectorEnv(makers, autoreset_mode=mode, copy=False)

            return gym_lanes(start, step_timeout_s=config.env_step_timeout_s)
        return SyncLanes(
            _first_then(ready, make), num_envs, max_restarts=config.max_env_restarts, whose=whose, tell=tell
        )
    except (ConfigError, EnvError):
        raise
    except BaseException as error:
        raise EnvError(f"environment {shown(env)} cannot be made: {said(failure(error))}") from error


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that are started here do not hear the terminal's Ctrl-C: this process does, and ends them in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _checked(make: Callable[[], AnyEnv]) -> CheckedEnv:
    """One environment of a process of gymnasium's."""
    return CheckedEnv(make())


def _same_again(settings: Mapping[str, object]) -> AnyEnv:
    """Another environment like one that gymnasium.make made."""
    import gymnasium as gym

    return gym.make(settings["spec"])


def _native(env_id: str | None, settings: Mapping[str, object], num_envs: int) -> Callable[[], AnyVectorEnv] | None:
    """A maker of the environment's own vectorised form, where it has one.

    gymnasium's phys2d environments have one in JAX; theirs is left alone, it needs JAX and answers in JAX arrays.
    """
    import gymnasium as gym

    if env_id is None:
        return None
    try:
        spec = gym.spec(env_id)
    except Exception:
        return None  # unknown here: making the single environment says what is wrong
    if spec.vector_entry_point is None or spec.additional_wrappers or "phys2d" in env_id:
        return None
    return partial(gym.make_vec, env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **settings)


def _like_single(native: Callable[[], AnyVectorEnv], make: Callable[[], AnyEnv], num_envs: int) -> AnyVectorEnv | None:
    """The vectorised form of an environment, if it is one of the environment as it is alone; None: it is another.

    Modules are made for the single environment. Atari's vectorised form, for one, shows four small grey frames where
    the environment shows one in colour.
    """
    single = make()
    vector = None
    try:
        vector = native()
        pairs = [(vector.num_envs, num_envs)]
        for name in ("observation_space", "action_space"):
            pairs.append((getattr(vector, f"single_{name}"), getattr(single, name)))
        alike = all(one == other for one, other in pairs)
    except Exception:  # it takes other settings than the environment, or needs what is not installed
        alike = False
    finally:
        closed(single.close, whose=partial("the environment {}".format, type(single).__name__))
    if alike:
        return vector
    if vector is not None:
        closed(vector.close, whose=partial("the environment {}".format, type(vector).__name__))
    return None


def _first_then(ready: list[_Made], make: Callable[[], _Made] | None) -> Callable[[], _Made]:
    """A maker that hands out what is ready, then makes new ones; without ``make``, what is ready again and again."""
    if make is None:
        return lambda: ready[0]
    return lambda: ready.pop() if ready else make()
