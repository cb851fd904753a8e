"""Action distributions over ``xp``: log-probability, entropy, divergence, sampling from given noise.

Needs arrays on the last axis and noise from the host; draws nothing itself. Refuses spaces it cannot act in.

A distribution class is bound to an array namespace once, at build::

    Dist = distribution_for(action_space, xp)                # or Categorical.bind(xp)
    dist = Dist.from_logits(inputs)                          # inputs: float[..., Dist.input_size(action_space)]
    actions = dist.sample(noise)                             # noise: float[..., *Dist.noise_shape(action_space)]
"""

from __future__ import annotations

from typing import Any

from ..action_parts import ActionPart, action_parts, has_parts
from ..errors import SpaceError
from ..spaces import AnySpace
from ..xp import Namespace
from .distribution_base import Distribution
from .distributions_discrete import Bernoulli, Categorical, MultiCategorical
from .distributions_joint import Joint, JointPart
from .distributions_normal import DiagGaussian, SquashedGaussian

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiagGaussian",
    "Distribution",
    "Joint",
    "MultiCategorical",
    "SquashedGaussian",
    "distribution_for",
]


def distribution_for(
    space: AnySpace,
    xp: Namespace,
    squash: bool = False,
    log_std_range: tuple[float, float] | None = None,
    *,
    unit_density: bool = False,
) -> type[Distribution]:
    """The distribution of a gymnasium action space.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, Box of floats, or a Dict or Tuple of these.
        xp: The array namespace to bind it to.
        squash: For a Box: tanh onto its bounds (which must be finite) instead of an unbounded normal.
        log_std_range: For a Box: clip the logarithm of the standard deviation. None: (-20, 2) when squashed, else
            no clipping.
        unit_density: When squashed: log-probabilities are those of the action scaled to [-1, 1], so that they do not
            depend on the action's unit. Actions are in the space's unit in any case.

    Returns:
        The bound class; the same one each time.

    Raises:
        SpaceError: For any other space, for integer boxes, and for squashing onto infinite or empty bounds.
    """
    import numpy as np
    from gymnasium import spaces

    if has_parts(space):
        if squash:
            raise SpaceError(f"action space {space!r}: squashing needs a Box of actions")
        return Joint.bind(xp, parts=tuple(_joint_part(part, xp, log_std_range) for part in action_parts(space)))
    if isinstance(space, spaces.Discrete):
        return Categorical.bind(xp, start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        start = np.asarray(getattr(space, "start", np.zeros_like(space.nvec)))
        return MultiCategorical.bind(
            xp,
            nvec=tuple(int(n) for n in space.nvec.ravel()),
            start=tuple(int(s) for s in start.ravel()),
            event_shape=space.nvec.shape,
        )
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli.bind(xp, event_shape=tuple(space.shape))
    if not isinstance(space, spaces.Box):
        raise SpaceError(
            f"action space {space!r} has no distribution: expected Discrete, MultiDiscrete, MultiBinary, Box, or a "
            "Dict or Tuple of these"
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise SpaceError(f"action space {space!r}: a Box of {space.dtype} has no distribution; use MultiDiscrete")
    options: dict[str, Any] = {"event_shape": tuple(int(size) for size in space.shape)}
    if log_std_range is not None:
        options["log_std_range"] = tuple(float(bound) for bound in log_std_range)
    if not squash:
        return DiagGaussian.bind(xp, **options)
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise SpaceError(f"action space {space!r}: squashing needs finite bounds with low < high in every dimension")
    if unit_density:
        options["unit_density"] = True
    return SquashedGaussian.bind(xp, low=tuple(low.tolist()), high=tuple(high.tolist()), **options)


def _joint_part(part: ActionPart, xp: Namespace, log_std_range: tuple[float, float] | None) -> JointPart:
    kind = distribution_for(part.space, xp, log_std_range=log_std_range if part.is_box else None)
    noise = tuple(kind.noise_shape(part.space))
    return JointPart(kind, part.size, part.shape, part.is_box, kind.input_size(part.space), noise)
