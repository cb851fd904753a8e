"""The random generators of an environment's spaces: an environment that samples from its spaces draws from them.

Needs wrappers and environments as ``env_state`` finds them. A space has a generator once it has been seeded or sampled
from; gymnasium seeds one that has none from the operating system. ``SpaceSeeds`` seeds those that nobody has seeded, so
that a run is a function of its seed, and a run that goes on draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..spaces import AnySpace

__all__ = ["SpaceSeeds", "generator_of", "set_generator", "spaces_of"]


def spaces_of(layers: Sequence[object]) -> list[dict[str, list[AnySpace]]]:
    """The spaces of wrappers and their environment, those inside of others among them.

    Args:
        layers: The wrappers from the outside in, then the environment.

    Returns:
        Of each {where: spaces, in the same order each time}: by attribute, and by agent where it is asked for its
        agents' spaces. One that is found in two places is in the first alone.
    """
    seen: set[int] = set()

    def new(value: object) -> list[AnySpace]:
        spaces = {id(space): space for space in _inside(value) if id(space) not in seen}
        seen.update(spaces)
        return list(spaces.values())

    found = []
    for layer in layers:
        places = [*getattr(layer, "__dict__", {}).items(), *_by_agent(layer)]
        found.append({where: spaces for where, value in places if (spaces := new(value))})
    return found


def generator_of(space: AnySpace) -> np.random.Generator | None:
    """Its generator; None: it has none yet. Asking ``np_random`` would make one."""
    return getattr(space, "_np_random", None)


def set_generator(space: AnySpace, generator: np.random.Generator | None) -> None:
    """Let a space draw from this generator from now on."""
    space._np_random = generator  # gymnasium has no other way


class SpaceSeeds:
    """Seeds the spaces of one environment that have no generator of their own, whenever the environment is seeded."""

    def __init__(self) -> None:
        self._env: object = None
        self._spaces: list[AnySpace] = []

    def seed(self, layers: Sequence[object], seed: int) -> None:
        """Seed them.

        Args:
            layers: The wrappers from the outside in, then the environment. Of another environment than the last time,
                the spaces without a generator become those that are seeded here.
            seed: What the environment is seeded with.
        """
        if self._env is not layers[-1]:
            self._env = layers[-1]
            every = [space for found in spaces_of(layers) for spaces in found.values() for space in spaces]
            self._spaces = [space for space in every if generator_of(space) is None]
        for number, space in enumerate(self._spaces):
            set_generator(space, np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number]))))


def _by_agent(layer: object) -> Iterator[tuple[str, object]]:
    """PettingZoo's: spaces that an environment is asked for, if it gives the same ones each time."""
    for name in ("observation_space", "action_space"):
        method = getattr(type(layer), name, None)
        if not callable(method):
            continue
        for agent in getattr(layer, "possible_agents", ()):
            try:
                space = method(layer, agent)
                if method(layer, agent) is space:
                    yield f"{name}/{agent}", space
            except Exception:  # an agent that it does not know yet
                continue


def _inside(value: object) -> Iterator[AnySpace]:
    """A space and those inside of it, or those in a dict or list of spaces."""
    from gymnasium import Space

    if isinstance(value, Space):
        yield value
        items = list(vars(value).values())
    elif isinstance(value, Mapping | list | tuple):
        items = list(value.values() if isinstance(value, Mapping) else value)
        if not items or not isinstance(items[0], Space):
            return  # a table, perhaps a large one
    else:
        return
    for item in items:
        yield from _inside(item)
