"""Running mean and variance of observations, and the running scale of rewards.

Needs float observations (an array or nested dict of arrays); integer and boolean leaves (images, one-hot indices)
pass through untouched. Refuses: shapes that change, states of another structure. Statistics are kept in float64 and
combined exactly in parallel, so that runners can be merged in any grouping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from ..errors import StateError
from ..state.schema import Array, Real, Record, Schema
from ..state.tree import Plain, Tree
from .columns import Columns, tree_paths

__all__ = [
    "MOMENTS",
    "NO_STATISTICS",
    "RewardScaler",
    "RunningMoments",
    "RunningNormalizer",
    "merge_moments",
    "moments_schema",
]


#: {name: what ``RunningMoments.get_state`` returned}.
Statistics: TypeAlias = dict[str, dict[str, Plain]]


class RunningMoments:
    """Count, mean and sum of squared deviations of a stream of vectors.

    Two sets of moments combine exactly (Chan, Golub and LeVeque)::

        n = n_a + n_b        delta = mean_b - mean_a
        mean = mean_a + delta * n_b / n
        m2   = m2_a + m2_b + delta^2 * n_a * n_b / n

    Args:
        shape: Shape of one sample.

    Attributes:
        fresh: Where it is not None, what ``update`` takes in is added there as well: what one of several runners has
            to say to the others.

    References:
        Chan, Golub, LeVeque: "Algorithms for computing the sample variance" (1983).
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.fresh: RunningMoments | None = None
        self.count: float = 0.0
        self.mean: np.ndarray = np.zeros(shape, np.float64)
        self.m2: np.ndarray = np.zeros(shape, np.float64)

    def update(self, samples: np.ndarray) -> None:
        """Take in samples.

        Args:
            samples: float[B, *shape]; B may be zero.
        """
        rows = samples.shape[0]
        if rows == 0:
            return
        samples = samples.astype(np.float64, copy=False)
        mean = samples.sum(axis=0) / rows
        deviation = samples - mean
        m2 = np.einsum("b...,b...->...", deviation, deviation)
        self.combine(float(rows), mean, m2)
        if self.fresh is not None:
            self.fresh.combine(float(rows), mean, m2)

    def combine(self, count: float, mean: np.ndarray, m2: np.ndarray) -> None:
        """Take in another set of moments (formula above)."""
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.m2 = self.m2 + m2 + delta * delta * (self.count * count / total)
        self.count = total

    def take_fresh(self) -> dict[str, Plain]:
        """The state of what was taken in since the last call, or, at the first, of everything so far."""
        taken = self if self.fresh is None else self.fresh
        state = taken.get_state()
        self.fresh = RunningMoments(self.mean.shape)
        return state

    @property
    def variance(self) -> np.ndarray:
        """Population variance, float64[*shape]; ones until there is a sample."""
        if self.count == 0:
            return np.ones_like(self.m2)
        return self.m2 / self.count

    def get_state(self) -> dict[str, Plain]:
        """``{"count": float, "mean": float64[*shape], "m2": float64[*shape]}``, copies."""
        return {"count": float(self.count), "mean": np.array(self.mean), "m2": np.array(self.m2)}

    def set_state(self, state: Tree, *, path: str = "") -> None:
        """Take a state back.

        Raises:
            StateError: A part is missing, its shape differs, or the values are no moments.
        """
        moments_schema(self.mean.shape).check(state, path)
        self.count = float(state["count"])
        self.mean, self.m2 = np.array(state["mean"], np.float64), np.array(state["m2"], np.float64)


class _NoStatistics(Schema):
    """Nothing, for there is no normaliser."""

    @property
    def expected(self) -> str:
        """In words."""
        return "None"

    def check(self, value: object, path: str) -> None:
        """As ``Schema.check``."""
        if value is not None:
            raise StateError("normalisation is off here and not in the state; build with the same settings", path=path)


NO_STATISTICS = _NoStatistics()


def moments_schema(shape: tuple[int, ...] | None) -> Record:
    """What the state of moments of samples of this shape (``None``: any) must be."""
    # Two sets of moments must combine without an overflow.
    fields = {
        "count": Real(0.0, 1e18),
        "mean": Array(shape, most=1e100),
        "m2": Array(shape, least=0.0, most=1e250),
    }
    return Record(fields, what="moments")


def _one_shape(moments: Tree, path: str) -> None:
    Array(np.shape(moments["mean"])).check(moments["m2"], f"{path}/m2")


#: Moments of samples of any shape.
MOMENTS = Record(moments_schema(None).fields, rule=_one_shape, what="moments")


def merge_moments(*states: Mapping[str, Tree]) -> Statistics:
    """Combine states of moments exactly, in this order.

    Args:
        states: {name: what ``RunningMoments.get_state`` returned}; a name may be missing from some of them.

    Returns:
        {name: state}, sharing nothing with the arguments.
    """
    merged: dict[str, RunningMoments] = {}
    for state in states:
        for name, part in state.items():
            moments = merged.setdefault(name, RunningMoments(np.shape(part["mean"])))
            moments.combine(float(part["count"]), np.asarray(part["mean"]), np.asarray(part["m2"]))
    return {name: moments.get_state() for name, moments in merged.items()}


class RunningNormalizer:
    """Observations shifted and scaled to mean 0, variance 1 over everything seen so far.

    ``x' = clip((x - mean) / sqrt(variance + epsilon), -clip, clip)`` as float32, for each float leaf on its own.

    Args:
        example: One observation, or any tree of arrays with the leaves' shapes and dtypes (no batch axis).
        clip: Bound of the result, in standard deviations.
        epsilon: Added to the variance.

    References:
        stable-baselines3's ``VecNormalize`` (same formula and bound). Unlike it, final observations count as well.
    """

    def __init__(self, example: Columns, *, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        self.clip: float = float(clip)
        self.epsilon: float = float(epsilon)
        self.moments: dict[str, RunningMoments] = {
            path: RunningMoments(np.shape(leaf))
            for path, leaf in tree_paths(example, "obs")
            if np.issubdtype(np.asarray(leaf).dtype, np.floating)
        }
        self._affine: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def refresh(self) -> None:
        """Somebody has changed ``moments`` from outside."""
        self._affine.clear()

    def update(self, obs: Columns) -> None:
        """Take in observations.

        Args:
            obs: Tree of arrays [B, ...].
        """
        for path, leaf in tree_paths(obs, "obs"):
            moments = self.moments.get(path)
            if moments is not None:
                moments.update(leaf)
        self._affine.clear()

    def normalize(self, obs: Columns) -> Columns:
        """Normalised copy.

        Args:
            obs: Tree of arrays [..., *shape].

        Returns:
            The same structure; float leaves as float32, the others as they came.
        """
        return self._nested(obs, "obs")

    def _nested(self, obs: Columns, path: str) -> Columns:
        if isinstance(obs, Mapping):
            return {key: self._nested(value, f"{path}/{key}") for key, value in obs.items()}
        return self._leaf(path, obs)

    def _leaf(self, path: str, leaf: np.ndarray) -> np.ndarray:
        moments = self.moments.get(path)
        if moments is None:
            return leaf
        affine = self._affine.get(path)
        if affine is None:
            affine = self._affine[path] = (moments.mean, 1.0 / np.sqrt(moments.variance + self.epsilon))
        scaled = (leaf - affine[0]) * affine[1]
        np.minimum(scaled, self.clip, out=scaled)
        np.maximum(scaled, -self.clip, out=scaled)
        result: np.ndarray = scaled.astype(np.float32)
        return result

    def get_state(self) -> dict[str, Plain]:
        """``{"moments": {leaf path: {"count", "mean", "m2"}}}``: copies, plain arrays. Paths: "obs", "obs/position"."""
        return {"moments": {path: moments.get_state() for path, moments in self.moments.items()}}

    def state_schema(self) -> Record:
        """What ``set_state`` takes."""
        moments = {path: moments_schema(moments.mean.shape) for path, moments in self.moments.items()}
        return Record({"moments": Record(moments)}, what="statistics of observations")

    def set_state(self, state: Tree) -> None:
        """Take a state back; all of it or nothing.

        Raises:
            StateError: Another structure or shape, or no moments.
        """
        self.state_schema().check(state, "")
        saved = state["moments"]
        fresh = {path: RunningMoments(moments.mean.shape) for path, moments in self.moments.items()}
        for path, moments in fresh.items():
            moments.set_state(saved[path], path=f"moments/{path}")
            if self.moments[path].fresh is not None:
                moments.fresh = RunningMoments(moments.mean.shape)
        self.moments = fresh
        self._affine.clear()


class RewardScaler:
    """Rewards divided by the running standard deviation of the discounted return.

    Each environment lane keeps ``g_t = gamma * g_{t-1} + r_t`` (zero after an episode's end); a reward becomes
    ``clip(r_t / sqrt(var(g) + epsilon), -clip, clip)``, with the variance over all lanes and steps so far, this step
    included. Rewards are not shifted: that would change what is optimal.

    Args:
        num_envs: Number of lanes.
        gamma: Discount.
        clip: Bound of a scaled reward.
        epsilon: Added to the variance.

    References:
        stable-baselines3's ``VecNormalize``; Engstrom et al., "Implementation Matters in Deep RL" (2020).
    """

    def __init__(self, num_envs: int, gamma: float, *, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        self.gamma: float = float(gamma)
        self.clip: float = float(clip)
        self.epsilon: float = float(epsilon)
        self.moments: RunningMoments = RunningMoments()
        self.returns: np.ndarray = np.zeros(num_envs, np.float64)

    def scale(self, rewards: np.ndarray, done: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Take in one step of all lanes and scale its rewards.

        Args:
            rewards: float[N], of this step.
            done: bool[N], the episode ends with this step.
            rows: bool[N], lanes that really stepped (autoreset rows did not); ``None`` for all.

        Returns:
            float32[N].
        """
        returns = self.returns * self.gamma + rewards
        if rows is None:
            self.returns = returns
            self.moments.update(returns)
        else:
            self.returns = np.where(rows, returns, self.returns)
            self.moments.update(returns[rows])
        self.returns[done] = 0.0
        return self.scaled(rewards)

    def scaled(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards by the statistics as they are; nothing is taken in.

        Args:
            rewards: float[...].

        Returns:
            float32[...].
        """
        scale = np.sqrt(self.moments.variance + self.epsilon)
        return np.clip(rewards / scale, -self.clip, self.clip).astype(np.float32)

    def drop(self, lanes: np.ndarray) -> None:
        """Forget the running return of lanes (bool[N]) whose episode was given up."""
        self.returns[lanes] = 0.0

    def get_state(self) -> dict[str, Plain]:
        """``{"moments": {...}, "returns": float64[N]}``: copies."""
        return {"moments": self.moments.get_state(), "returns": self.returns.copy()}

    def set_state(self, state: Tree) -> None:
        """Take a state back.

        Raises:
            StateError: Another number of lanes, or no moments.
        """
        self.state_schema().check(state, "")
        moments = RunningMoments()
        moments.set_state(state["moments"], path="moments")
        if self.moments.fresh is not None:
            moments.fresh = RunningMoments()
        self.moments, self.returns = moments, np.array(state["returns"], np.float64)

    def state_schema(self) -> Record:
        """What ``set_state`` takes."""
        fields = {"moments": moments_schema(()), "returns": Array(self.returns.shape)}
        return Record(fields, what="statistics of rewards")
