"""Returns and advantages: GAE, V-trace and n-step sums, all by one linear recurrence.

Needs arrays with time on axis 0 (or the given axis), any further axes behind it. Refuses nothing: shapes are
the caller's affair, and a mismatch surfaces as the backend's own broadcasting error.

Time is in the names: at t the agent sees observation t, worth ``v_t``; it acts, is paid ``r_t``, and sees the
next observation, worth ``v_tp1``. ``v_tp1[t]`` is not ``v_t[t+1]`` where an episode ends: there it is the value of
the episode's own last observation.
"""

from __future__ import annotations

from ..errors import ConfigError
from ..xp import Array, Namespace

__all__ = ["gae", "linear_recurrence", "n_step_returns", "vtrace"]


def linear_recurrence(xp: Namespace, a: Array, b: Array, reverse: bool = True, axis: int = 0) -> Array:
    """Solve y_t = b_t + a_t * y_{t+1} with y = 0 beyond the end, in log2(T) array operations.

    By doubling: after k rounds (a_t, b_t) stands for 2**k steps taken at once, and two such maps compose to
    y -> b_t + a_t * b_{t+2**k} + a_t * a_{t+2**k} * y. No loop over time, so it compiles to little and runs fast.

    Args:
        xp: The array namespace.
        a: float[..., T, ...], coefficients.
        b: float[..., T, ...], same shape.
        reverse: True: from the end backwards as above; False: y_t = b_t + a_t * y_{t-1} from the start.
        axis: The time axis.

    Returns:
        y: float[..., T, ...].
    """
    length = xp.shape(b)[axis]
    distance = 1
    while distance < length:
        b = b + a * _shift(xp, b, distance, reverse, axis)
        if 2 * distance < length:
            a = a * _shift(xp, a, distance, reverse, axis)
        distance *= 2
    return b


def gae(
    xp: Namespace,
    *,
    r_t: Array,
    v_t: Array,
    v_tp1: Array,
    terminated_t: Array,
    done_t: Array,
    gamma: Array | float,
    lambda_: Array | float,
) -> tuple[Array, Array]:
    """Generalised advantage estimation, bootstrapping where an episode is cut off and not where it ends.

    ::

        delta_t = r_t + gamma * (1 - terminated_t) * v_tp1 - v_t
        A_t     = delta_t + gamma * lambda * (1 - done_t) * A_{t+1}

    Args:
        xp: The array namespace.
        r_t: float[T, ...], rewards.
        v_t: float[T, ...], values of the observations acted on.
        v_tp1: float[T, ...], values of the true next observations; ignored, NaN included, where terminated.
        terminated_t: bool (or 0/1) [T, ...], the episode ended here: nothing follows, it is worth 0.
        done_t: bool (or 0/1) [T, ...], the next row does not continue this one: terminated, truncated, or the end
            of a fragment. The last row is treated as one.
        gamma: Discount, a number or float[].
        lambda_: In [0, 1]: 0 is the one-step error, 1 the whole return; a number or float[].

    Returns:
        Advantages float[T, ...], and value targets ``advantages + v_t``; no gradient flows through either.

    References:
        Schulman et al., https://arxiv.org/abs/1506.02438
    """
    terminated = xp.astype(terminated_t, xp.bool)
    done = xp.logical_or(xp.astype(done_t, xp.bool), terminated)
    zeros = xp.zeros_like(v_t)
    delta_t = r_t + gamma * xp.where(terminated, zeros, v_tp1) - v_t
    decay_t = xp.where(done, zeros, xp.ones_like(v_t)) * (gamma * lambda_)
    advantages = xp.stop_gradient(linear_recurrence(xp, decay_t, delta_t))
    return advantages, xp.stop_gradient(advantages + v_t)


def vtrace(
    xp: Namespace,
    *,
    log_rhos: Array,
    discounts: Array,
    rewards: Array,
    values: Array,
    bootstrap_value: Array | None = None,
    values_tp1: Array | None = None,
    done_t: Array | None = None,
    clip_rho_threshold: Array | float | None = 1.0,
    clip_pg_rho_threshold: Array | float | None = 1.0,
    clip_c_threshold: Array | float | None = 1.0,
    axis: int = 0,
) -> tuple[Array, Array]:
    """V-trace: value targets and policy-gradient advantages from another policy's experience.

    ::

        rho_t = min(clip_rho, pi/mu),   c_t = min(clip_c, pi/mu)
        delta_t = rho_t * (r_t + discount_t * V_{t+1} - V_t)
        vs_t - V_t = delta_t + discount_t * c_t * (vs_{t+1} - V_{t+1})
        A_t = min(clip_pg_rho, pi/mu) * (r_t + discount_t * vs_{t+1} - V_t)

    Args:
        xp: The array namespace.
        log_rhos: float[T, ...], log pi(a|x) - log mu(a|x): the learned policy over the one that acted.
        discounts: float[T, ...], gamma, and 0 where the episode terminated.
        rewards: float[T, ...].
        values: float[T, ...], V of the observations acted on, by the learned value function.
        bootstrap_value: float[...], V of the observation after the last row.
        values_tp1: float[T, ...], V of the true next observations, instead of ``bootstrap_value``: needed when
            episodes may be truncated inside the fragment.
        done_t: bool (or 0/1) [T, ...], with ``values_tp1``: rows that the next one does not continue.
        clip_rho_threshold: Bound of rho: which value function is learned; a number, float[] or None.
        clip_pg_rho_threshold: Bound of the weight in the advantage; a number, float[] or None.
        clip_c_threshold: Bound of c: how far errors travel back; a number, float[] or None.
        axis: The time axis.

    Returns:
        vs float[T, ...] and advantages float[T, ...]; no gradient flows through either.

    Raises:
        ConfigError: If not exactly one of ``bootstrap_value`` and ``values_tp1`` is given, or ``done_t`` without the
            latter.

    References:
        Espeholt et al., IMPALA, https://arxiv.org/abs/1802.01561
    """
    if (bootstrap_value is None) == (values_tp1 is None):
        raise ConfigError("vtrace: give exactly one of bootstrap_value and values_tp1")
    if done_t is not None and bootstrap_value is not None:
        raise ConfigError("vtrace: done_t needs values_tp1, the values of the observations that episodes ended with")
    if values_tp1 is None:
        before = (slice(None),) * (axis % len(xp.shape(values)))
        values_tp1 = xp.concat([values[(*before, slice(1, None))], xp.expand_dims(bootstrap_value, axis)], axis=axis)
    rhos = xp.exp(log_rhos)
    trace = discounts * _bounded(xp, rhos, clip_c_threshold)
    if done_t is not None:
        trace = xp.where(xp.astype(done_t, xp.bool), xp.zeros_like(trace), trace)
    deltas = _bounded(xp, rhos, clip_rho_threshold) * (rewards + discounts * values_tp1 - values)
    corrections = linear_recurrence(xp, trace, deltas, axis=axis)
    vs = values + corrections
    # vs_{t+1} = V_{t+1} + its correction, which is 0 after the last row and across an episode's end.
    following = _shift(xp, corrections, 1, True, axis)
    if done_t is not None:
        following = xp.where(xp.astype(done_t, xp.bool), xp.zeros_like(following), following)
    advantages = _bounded(xp, rhos, clip_pg_rho_threshold) * (rewards + discounts * (values_tp1 + following) - values)
    return xp.stop_gradient(vs), xp.stop_gradient(advantages)


def n_step_returns(
    xp: Namespace, *, r_t: Array, discount_t: Array, done_t: Array, n: int
) -> tuple[Array, Array, Array]:
    """Sum up to n rewards, never across an episode's end or the end of the fragment.

    ::

        G_t = r_t + d_t r_{t+1} + ... + (d_t ... d_{l-1}) r_l,   D_t = d_t ... d_l,   l = the last row used

    so the target of a value function is ``G_t + D_t * V(next observation of row l)``.

    Args:
        xp: The array namespace.
        r_t: float[T, ...], rewards.
        discount_t: float[T, ...], gamma, and 0 where the episode terminated.
        done_t: bool (or 0/1) [T, ...], rows that the next one does not continue; the last row is treated as one.
        n: How many rewards at most, at least 1; static.

    Returns:
        G float[T, ...]; D float[T, ...]; l - t int64[T, ...], from 0 to n-1: how many rows after t the last one is.
    """
    continues = xp.where(xp.astype(done_t, xp.bool), xp.zeros_like(r_t), xp.ones_like(r_t))
    last_row = xp.zeros_like(continues[:1])
    continues = xp.concat([continues[:-1], last_row], axis=0)
    returns, discounts, lengths = r_t, discount_t, xp.zeros_like(r_t)
    for _ in range(min(n, xp.shape(r_t)[0]) - 1):
        goes_on = continues > 0
        next_return = _shift(xp, returns, 1, True, 0)
        next_discount = _shift(xp, discounts, 1, True, 0)
        next_length = _shift(xp, lengths, 1, True, 0)
        returns = r_t + xp.where(goes_on, discount_t * next_return, xp.zeros_like(r_t))
        discounts = xp.where(goes_on, discount_t * next_discount, discount_t)
        lengths = xp.where(goes_on, next_length + 1.0, xp.zeros_like(lengths))
    return returns, discounts, xp.astype(lengths, xp.int64)


def _bounded(xp: Namespace, x: Array, bound: Array | float | None) -> Array:
    return x if bound is None else xp.minimum(x, bound)


def _shift(xp: Namespace, x: Array, distance: int, reverse: bool, axis: int) -> Array:
    """x_{t+distance} (reverse) or x_{t-distance}, with zeros from beyond the end."""
    length, ndim = xp.shape(x)[axis], len(xp.shape(x))
    axis %= ndim
    before = (slice(None),) * axis
    if reverse:
        kept, lost = x[(*before, slice(distance, length))], x[(*before, slice(0, distance))]
        return xp.concat([kept, xp.zeros_like(lost)], axis=axis)
    kept, lost = x[(*before, slice(0, length - distance))], x[(*before, slice(length - distance, length))]
    return xp.concat([xp.zeros_like(lost), kept], axis=axis)
