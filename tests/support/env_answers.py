"""Environments that answer in every way an environment can: right, out of the same arrays each time, or wrong.

All take a space (of any structure) and show values drawn from a generator of their own, three steps an episode, so that
one that reuses its arrays can be compared with one that makes new ones. ``spoil`` puts one mistake into an observation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from .parallel_envs import Parallel

__all__ = [
    "FLAGS",
    "REWARDS",
    "AnswerEnv",
    "AnswerGame",
    "AnswerTurns",
    "AnswerVector",
    "draw_space",
    "observe",
    "spoil",
]

#: Rewards that are no finite number, and words that the error has.
REWARDS: list[tuple[Any, str]] = [
    (None, "None"),
    (np.array([1.0]), r"\(1,\)"),
    ([1.0], r"list \[1.0\]"),
    (1e39, "beyond float32: float 1e"),
    (-(10**400), "beyond float32"),
    (np.nan, "not finite: float nan"),
    (np.float32(-np.inf), "not finite"),
    ("1.0", "str '1.0'"),
    ({"agent": 1.0}, "dict"),
]
#: Values of terminated or truncated that are neither.
FLAGS: list[Any] = [None, 2, "yes", np.array([True]), 0.5, [False]]

_LEAVES: list[Callable[[np.random.Generator], Any]] = [
    lambda rng: spaces.Box(-9.0, 9.0, _shape(rng), np.float32),
    lambda rng: spaces.Box(-9.0, 9.0, _shape(rng), np.float64),
    lambda rng: spaces.Box(0, 255, _shape(rng), np.uint8),
    lambda rng: spaces.Box(-100, 100, _shape(rng), np.int8),
    lambda rng: spaces.Discrete(int(rng.integers(2, 6)), start=int(rng.integers(-2, 3))),
    lambda rng: spaces.MultiDiscrete(rng.integers(2, 5, int(rng.integers(1, 4)))),
    lambda rng: spaces.MultiBinary(int(rng.integers(1, 4))),
]


def _shape(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(size) for size in rng.integers(2, 4, int(rng.integers(1, 3))))


def draw_space(rng: np.random.Generator, depth: int = 2) -> Any:
    """A space of any kind and structure; keys of dicts are text or ints."""
    kind = rng.integers(3) if depth else 2
    if kind == 0:
        names: list[Any] = ["b", "a", "c"] if rng.random() < 0.5 else [10, 9, 2]
        return spaces.Dict({name: draw_space(rng, depth - 1) for name in names[: int(rng.integers(1, 4))]})
    if kind == 1:
        return spaces.Tuple([draw_space(rng, depth - 1) for _ in range(int(rng.integers(1, 3)))])
    return _LEAVES[int(rng.integers(len(_LEAVES)))](rng)


def observe(space: Any, rng: np.random.Generator) -> Any:
    """One observation; the same draws whatever happens to it."""
    if isinstance(space, spaces.Dict):
        return {key: observe(inner, rng) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(observe(inner, rng) for inner in space.spaces)
    if isinstance(space, spaces.Box):
        return rng.integers(0, 9, space.shape).astype(space.dtype)
    if isinstance(space, spaces.Discrete):
        return np.array(space.start + rng.integers(space.n))
    high = 2 if isinstance(space, spaces.MultiBinary) else space.nvec
    return rng.integers(0, high, space.shape).astype(space.dtype)


def _into(kept: Any, new: Any) -> Any:
    """The same objects as before with other values in them."""
    if isinstance(kept, dict):
        for key, value in new.items():
            kept[key] = _into(kept[key], value)
    elif isinstance(kept, tuple):
        for old, value in zip(kept, new, strict=True):
            _into(old, value)
    else:
        kept[...] = new
    return kept


def spoil(space: Any, obs: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """An observation with one mistake, and the path (as in an error) of what is wrong."""
    if isinstance(space, spaces.Dict):
        if rng.random() < 0.4:
            return _spoilt_dict(space, obs, rng), ""
        keys = list(space.spaces)
        key = keys[int(rng.integers(len(keys)))]
        bad, path = spoil(space.spaces[key], obs[key], rng)
        return {**obs, key: bad}, f"{key}/{path}".rstrip("/")
    if isinstance(space, spaces.Tuple):
        if rng.random() < 0.4:
            return [obs[:-1], (*obs, obs[0]), None, {"0": obs[0]}][int(rng.integers(4))], ""
        index = int(rng.integers(len(space.spaces)))
        bad, path = spoil(space.spaces[index], obs[index], rng)
        return (*obs[:index], bad, *obs[index + 1 :]), f"{index}/{path}".rstrip("/")
    wrong = _wrong_leaves(space, np.array(obs))
    return wrong[int(rng.integers(len(wrong)))], ""


def _spoilt_dict(space: Any, obs: dict[Any, Any], rng: np.random.Generator) -> Any:
    first = next(iter(obs))
    without = {key: value for key, value in obs.items() if key != first}
    other = str(first) if isinstance(first, int) else 0
    kinds = [{**obs, "extra": obs[first]}, without, {**without, other: obs[first]}, list(obs.values()), None]
    return kinds[int(rng.integers(len(kinds)))]


def _wrong_leaves(space: Any, obs: np.ndarray) -> list[Any]:
    wrong: list[Any] = [None, "text", obs[np.newaxis], {"a": obs}, np.full(obs.shape, None), np.zeros((7, 7))]
    if obs.shape:
        wrong += [obs.flat[0], np.array(1), obs[..., :-1]]
    if obs.size > 1:
        wrong += [obs.reshape(-1)[:1]]
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        return [
            *wrong,
            np.full(obs.shape, np.nan),
            _one(obs, np.inf),
            _one(obs, 1j),
            _one(obs.astype(np.float64), 1e300),
        ]
    wrong += [_one(obs.astype(np.float64), 0.7), _one(obs.astype(np.float64), np.nan), _one(obs.astype(np.int64), 300)]
    if space.dtype.kind == "u" or not isinstance(space, spaces.Box):
        wrong += [_one(obs.astype(np.int64), -7)]
    if isinstance(space, spaces.Discrete):
        wrong += [int(space.start + space.n), int(space.start) - 1, float(space.start) + 0.5, 2**70]
    if isinstance(space, spaces.MultiDiscrete):
        wrong += [np.asarray(space.nvec)]
    if isinstance(space, spaces.MultiBinary):
        wrong += [np.full(obs.shape, 2, obs.dtype)]
    return wrong


def _one(obs: np.ndarray, value: Any) -> np.ndarray:
    spoilt = obs.astype(np.complex128) if isinstance(value, complex) else obs.copy()
    spoilt[(0,) * spoilt.ndim] = value
    return spoilt


class _Answers:
    """What environments of a space show, one after the other."""

    def __init__(self, space: Any, *, reuse: bool) -> None:
        self.space, self.reuse = space, reuse
        self.kept: Any = None
        self.rng = np.random.default_rng(0)

    def next(self) -> Any:
        new = observe(self.space, self.rng)
        if not self.reuse:
            return new
        self.kept = new if self.kept is None else _into(self.kept, new)
        return self.kept


class AnswerEnv(gym.Env):  # type: ignore[misc]
    """One agent.

    Args:
        space: Of its observations.
        reuse: It keeps its arrays and dicts and writes into them.
        spoilt: What ``step`` returns in the third step instead of its answer: answer -> answer.
        action_space: Box by default; the environment writes into the actions it is given.
    """

    def __init__(
        self, space: Any, *, reuse: bool = False, spoilt: Callable[[Any], Any] | None = None, action_space: Any = None
    ) -> None:
        self.observation_space = space
        self.action_space = action_space or spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.answers = _Answers(space, reuse=reuse)
        self.spoilt = spoilt
        self.clock = self.total = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.answers.rng = np.random.default_rng(seed)
        self.clock = 0
        return self.answers.next(), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        self.total += 1
        if isinstance(action, np.ndarray) and action.shape:
            action[...] = 77.0
        done = self.clock == 3
        answer = (
            self.answers.next(),
            float(self.total),
            done and self.total % 2 == 0,
            done and self.total % 2 == 1,
            {},
        )
        return self.spoilt(answer) if self.spoilt is not None and self.total == 3 else answer


class AnswerGame(Parallel):
    """Two agents of the same space; dicts are kept, too. Arguments as of ``AnswerEnv``; ``spoilt`` is agent b's."""

    def __init__(self, space: Any, *, reuse: bool = False, spoilt: Callable[[Any], Any] | None = None) -> None:
        super().__init__(dict.fromkeys(("a", "b"), (space, spaces.Discrete(2))))
        self.answers = {agent: _Answers(space, reuse=reuse) for agent in self.possible_agents}
        self.reuse, self.spoilt = reuse, spoilt
        self.kept: list[dict[str, Any]] = [{}, {}, {}, {}]
        self.clock = self.total = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        for number, one in enumerate(self.answers.values()):
            if seed is not None:
                one.rng = np.random.default_rng([seed, number])
        self.agents = list(self.possible_agents)
        self.clock = 0
        return self._kept(0, {agent: one.next() for agent, one in self.answers.items()}), {}

    def step(self, actions: dict[str, Any]) -> Any:
        self.clock += 1
        self.total += 1
        done = self.clock == 3
        agents, self.agents = self.agents, [] if done else self.agents
        terminated, truncated = done and self.total % 2 == 0, done and self.total % 2 == 1
        rows = {agent: (self.answers[agent].next(), float(self.total), terminated, truncated, {}) for agent in agents}
        if self.spoilt is not None and self.total == 3:
            rows["b"] = self.spoilt(rows["b"])
        columns = [{agent: row[place] for agent, row in rows.items()} for place in range(4)]
        return (*(self._kept(place, column) for place, column in enumerate(columns)), {})

    def _kept(self, place: int, values: dict[str, Any]) -> dict[str, Any]:
        if not self.reuse:
            return values
        self.kept[place].clear()
        self.kept[place].update(values)
        return self.kept[place]


class AnswerVector(gym.vector.VectorEnv):  # type: ignore[misc]
    """Two environments of float observations in one, in any autoreset mode; ``spoilt`` as of ``AnswerEnv``."""

    def __init__(self, mode: str, *, reuse: bool = False, spoilt: Callable[[Any], Any] | None = None) -> None:
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode(mode)}
        self.num_envs = 2
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, 2)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, 2)
        self.reuse, self.spoilt = reuse, spoilt
        self.kept: list[Any] = [None] * 5
        self.clock, self.total = np.zeros(2, np.int64), 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = np.ones(2, np.bool_) if not options else options["reset_mask"]
        self.clock[mask] = 0
        for place in (1, 2, 3):
            if self.reuse and self.kept[place] is not None:
                self.kept[place][...] = 0
        return self._kept(0, self._shown()), {}

    def step(self, actions: Any) -> Any:
        actions[...] = 0
        self.total += 1
        mode = self.metadata["autoreset_mode"].value
        over = self.clock >= np.array([3, 4])
        self.clock = np.where(over, 0, self.clock + 1)
        done = self.clock >= np.array([3, 4])
        truncated = done & np.array([True, False])
        rewards, infos = self.total + np.array([0.25, 0.5]), {}
        obs = self._shown()
        if mode == "SameStep" and done.any():
            infos["final_obs"] = self._kept(4, obs)
            self.clock[done] = 0
            obs = self._shown()
        values = [obs, rewards, done & ~truncated, truncated]
        answer = (*(self._kept(place, value) for place, value in enumerate(values)), infos)
        return self.spoilt(answer) if self.spoilt is not None and self.total == 3 else answer

    def _shown(self) -> np.ndarray:
        return np.stack([self.clock, np.full(2, self.total)], axis=1).astype(np.float32)

    def _kept(self, place: int, values: np.ndarray) -> np.ndarray:
        if not self.reuse:
            return values
        if self.kept[place] is None:
            self.kept[place] = np.array(values)
        self.kept[place][...] = values
        return self.kept[place]


class AnswerTurns(Parallel):
    """The two agents in turns, by PettingZoo's AEC interface; six turns an episode. Arguments as of ``AnswerEnv``.

    ``spoilt`` changes what ``last()`` tells agent b at its second turn of the first episode.
    """

    def __init__(self, space: Any, *, reuse: bool = False, spoilt: Callable[[Any], Any] | None = None) -> None:
        super().__init__(dict.fromkeys(("a", "b"), (space, spaces.Discrete(2))))
        self.answers = _Answers(space, reuse=reuse)
        self.spoilt = spoilt
        self.agent_selection = ""
        self.clock = self.total = 0

    def agent_iter(self) -> Any:
        raise AssertionError("nobody asks for it")

    def reset(self, *, seed: int | None = None, options: Any = None) -> None:
        if seed is not None:
            self.answers.rng = np.random.default_rng(seed)
        self.agents, self.clock = list(self.possible_agents), 0
        self.agent_selection = "a"

    def step(self, action: Any) -> None:
        self.total += 1
        if self.clock == 6:
            self.agents.remove(self.agent_selection)
        else:
            self.clock += 1
        if self.agents:
            other = "b" if self.agent_selection == "a" else "a"
            self.agent_selection = other if other in self.agents else self.agents[0]

    def last(self, observe: bool = True) -> Any:
        answer = (self.answers.next(), float(self.total), self.clock == 6, False, {})
        return self.spoilt(answer) if self.spoilt is not None and self.total == 3 else answer
