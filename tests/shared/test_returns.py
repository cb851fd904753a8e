"""Returns: values by hand, then loops over time; the same on every backend, traced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner_core.errors import ConfigError
from learner_core.maths.returns import gae, linear_recurrence, n_step_returns, vtrace

from support.tracing import to_numpy, traced

Floats = np.ndarray[Any, np.dtype[np.float64]]


def column(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


# ---- linear_recurrence ----------------------------------------------------------------------------------------------


def test_recurrence_by_hand(xp: Any) -> None:
    a, b = xp.asarray(column(2, 3, 5)), xp.asarray(column(1, 10, 100))
    # Backwards: 100, 10 + 3*100, 1 + 2*310 (a's last is not used); forwards: 1, 10 + 3*1, 100 + 5*13.
    assert to_numpy(linear_recurrence(xp, a, b)).tolist() == [621, 310, 100]
    assert to_numpy(linear_recurrence(xp, a, b, reverse=False)).tolist() == [1, 13, 165]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 50])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_recurrence_is_a_loop(xp: Any, length: int, reverse: bool, axis: int) -> None:
    rng = np.random.default_rng(length)
    a, b = rng.uniform(-1, 1, size=(2, length, 3, 2))
    a[:, 1] = 0.0
    expected = np.zeros_like(b)
    y = np.zeros_like(b[0])
    for t in reversed(range(length)) if reverse else range(length):
        y = expected[t] = b[t] + a[t] * y
    a, b, expected = (np.moveaxis(x, 0, axis) for x in (a, b, expected))
    got = to_numpy(linear_recurrence(xp, xp.asarray(a.copy()), xp.asarray(b.copy()), reverse=reverse, axis=axis))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_recurrence_traces(xp: Any, backend_name: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 13, 4)).astype(np.float32)
    (got,) = traced(backend_name, lambda a, b: [linear_recurrence(xp, a, b)], a, b)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, to_numpy(linear_recurrence(xp, xp.asarray(a), xp.asarray(b))), rtol=1e-5)


# ---- GAE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminated", "done", "v_tp1", "expected"),
    [
        # delta = 0.75, 1.75, 4.5; A_1 = 1.75 + 0.25*4.5, A_0 = 0.75 + 0.25*2.875.
        ([0, 0, 0], [0, 0, 1], [0.5, 0.5, 4], [1.46875, 2.875, 4.5]),
        # The end of the fragment is cut off whether it is marked or not.
        ([0, 0, 0], [0, 0, 0], [0.5, 0.5, 4], [1.46875, 2.875, 4.5]),
        # Terminated at 1: nothing follows, whatever stands there: delta_1 = 2 - 0.5.
        ([0, 1, 0], [0, 1, 1], [0.5, float("nan"), 4], [1.125, 1.5, 4.5]),
        # Truncated at 1: the value of the last observation counts, the next episode does not: 2 + 0.5*10 - 0.5.
        ([0, 0, 0], [0, 1, 1], [0.5, 10, 4], [2.375, 6.5, 4.5]),
    ],
)
@pytest.mark.parametrize("flags", [np.bool_, np.float64])
def test_gae_by_hand(xp: Any, terminated: Any, done: Any, v_tp1: Any, expected: Any, flags: Any) -> None:
    v_t = column(0.5, 0.5, 0.5)
    advantages, targets = gae(
        xp,
        r_t=xp.asarray(column(1, 2, 3)),
        v_t=xp.asarray(v_t),
        v_tp1=xp.asarray(column(*v_tp1)),
        terminated_t=xp.asarray(np.array(terminated, flags)),
        done_t=xp.asarray(np.array(done, flags)),
        gamma=0.5,
        lambda_=0.5,
    )
    np.testing.assert_array_equal(to_numpy(advantages), expected)
    np.testing.assert_array_equal(to_numpy(targets), np.array(expected) + v_t)


def test_gae_is_a_sum_over_the_rest_of_the_episode(xp: Any, backend_name: str) -> None:
    rng = np.random.default_rng(3)
    shape, gamma, lambda_ = (40, 3), 0.97, 0.9
    r, v, v_next = rng.normal(size=(3, *shape))
    terminated = rng.uniform(size=shape) < 0.1
    done = terminated | (rng.uniform(size=shape) < 0.1)
    delta = r + gamma * np.where(terminated, 0, v_next) - v
    expected = np.zeros(shape)
    for t in range(shape[0]):
        for n in range(shape[1]):
            for k in range(t, shape[0]):
                expected[t, n] += (gamma * lambda_) ** (k - t) * delta[k, n]
                if done[k, n]:
                    break

    def advantages(r: Any, v: Any, v_next: Any, terminated: Any, done: Any, gamma: Any) -> Any:
        return list(
            gae(xp, r_t=r, v_t=v, v_tp1=v_next, terminated_t=terminated, done_t=done, gamma=gamma, lambda_=lambda_)
        )

    got, targets = traced(backend_name, advantages, r, v, v_next, terminated, done, np.asarray(gamma))
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(targets, expected + v, rtol=1e-11, atol=1e-12)


def test_lambda_one_is_the_return_and_zero_one_step(xp: Any) -> None:
    r, v = column(1, 2, 4), column(7, 8, 9)
    no = np.zeros(3, bool)
    last = {"r_t": r, "v_t": v, "v_tp1": column(8, 9, 16), "terminated_t": no, "done_t": no}
    arrays = {k: xp.asarray(x) for k, x in last.items()}
    _, targets = gae(xp, **arrays, gamma=0.5, lambda_=1.0)
    # 1 + 0.5*(2 + 0.5*(4 + 0.5*16)).
    np.testing.assert_array_equal(to_numpy(targets), [5, 8, 12])
    _, targets = gae(xp, **arrays, gamma=0.5, lambda_=0.0)
    np.testing.assert_array_equal(to_numpy(targets), [5, 6.5, 12])


# ---- V-trace --------------------------------------------------------------------------------------------------------


def test_vtrace_by_hand(xp: Any) -> None:
    arrays = {
        "log_rhos": xp.asarray(np.log(column(2, 0.5))),
        "discounts": xp.asarray(column(0.5, 0.5)),
        "rewards": xp.asarray(column(1, 2)),
        "values": xp.asarray(column(1, 2)),
    }
    # delta_1 = 0.5*(2 + 2 - 2) = 1, vs_1 = 3; delta_0 = 1*(1 + 1 - 1) = 1, vs_0 = 1 + 1 + 0.5*1*(3 - 2);
    # A_1 = 0.5*(2 + 2 - 2), A_0 = 1*(1 + 0.5*3 - 1).
    vs, advantages = vtrace(xp, **arrays, bootstrap_value=xp.asarray(np.array(4.0)))
    np.testing.assert_allclose(to_numpy(vs), [2.5, 3], rtol=1e-14)
    np.testing.assert_allclose(to_numpy(advantages), [1.5, 1], rtol=1e-14)
    # Without bounds: delta_0 = 2, c_0 = 2: vs_0 = 1 + 2 + 0.5*2*1; A_0 = 2*1.5.
    vs, advantages = vtrace(
        xp,
        **arrays,
        bootstrap_value=xp.asarray(np.array(4.0)),
        clip_rho_threshold=None,
        clip_pg_rho_threshold=None,
        clip_c_threshold=None,
    )
    np.testing.assert_allclose(to_numpy(vs), [4, 3], rtol=1e-14)
    np.testing.assert_allclose(to_numpy(advantages), [3, 1], rtol=1e-14)
    # Truncated after row 0, whose next observation is worth 6: delta_0 = 1 + 3 - 1 = 3 and nothing travels back.
    vs, advantages = vtrace(
        xp, **arrays, values_tp1=xp.asarray(column(6, 4)), done_t=xp.asarray(np.array([True, False]))
    )
    np.testing.assert_allclose(to_numpy(vs), [4, 3], rtol=1e-14)
    np.testing.assert_allclose(to_numpy(advantages), [3, 1], rtol=1e-14)


@pytest.mark.parametrize("bounds", [(1.0, 1.0, 1.0), (1.5, 0.7, 0.9), (None, None, None)])
def test_vtrace_is_its_papers_double_sum(xp: Any, backend_name: str, bounds: tuple[float | None, ...]) -> None:
    rng = np.random.default_rng(5)
    length, columns = 12, 3
    log_rhos, rewards, values = rng.normal(size=(3, length, columns))
    discounts = 0.95 * (rng.uniform(size=(length, columns)) > 0.15)
    bootstrap = rng.normal(size=columns)
    rho_bound, pg_bound, c_bound = (np.inf if bound is None else bound for bound in bounds)
    rhos = np.exp(log_rhos)
    rho, c = np.minimum(rho_bound, rhos), np.minimum(c_bound, rhos)
    after = np.concatenate([values[1:], bootstrap[None]])
    delta = rho * (rewards + discounts * after - values)
    vs = values.copy()
    for s in range(length):
        for t in range(s, length):
            vs[s] += np.prod(discounts[s:t] * c[s:t], axis=0) * delta[t]
    vs_after = np.concatenate([vs[1:], bootstrap[None]])
    advantages = np.minimum(pg_bound, rhos) * (rewards + discounts * vs_after - values)

    def f(log_rhos: Any, discounts: Any, rewards: Any, values: Any, bootstrap: Any) -> Any:
        return list(
            vtrace(
                xp,
                log_rhos=log_rhos,
                discounts=discounts,
                rewards=rewards,
                values=values,
                bootstrap_value=bootstrap,
                clip_rho_threshold=bounds[0],
                clip_pg_rho_threshold=bounds[1],
                clip_c_threshold=bounds[2],
            )
        )

    got = traced(backend_name, f, log_rhos, discounts, rewards, values, bootstrap)
    np.testing.assert_allclose(got[0], vs, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got[1], advantages, rtol=1e-11, atol=1e-12)


def test_vtrace_along_another_axis(xp: Any) -> None:
    """[B, T] as sequence batches have it, with the bootstrap and with values of next observations."""
    rng = np.random.default_rng(8)
    arrays = dict(zip(("log_rhos", "discounts", "rewards", "values"), rng.normal(size=(4, 7, 3)), strict=True))
    last, following, done = rng.normal(size=3), rng.normal(size=(7, 3)), rng.uniform(size=(7, 3)) < 0.3
    first = {name: xp.asarray(value) for name, value in arrays.items()}
    second = {name: xp.asarray(value.T.copy()) for name, value in arrays.items()}
    for one, other in (
        ({"bootstrap_value": last}, {"bootstrap_value": last}),
        ({"values_tp1": following, "done_t": done}, {"values_tp1": following.T.copy(), "done_t": done.T.copy()}),
    ):
        expected = vtrace(xp, **first, **{name: xp.asarray(value) for name, value in one.items()})
        got = vtrace(xp, **second, **{name: xp.asarray(value) for name, value in other.items()}, axis=1)
        for left, right in zip(expected, got, strict=True):
            np.testing.assert_allclose(to_numpy(left).T, to_numpy(right), rtol=1e-13)


def test_vtrace_on_policy_is_the_return(xp: Any) -> None:
    rng = np.random.default_rng(6)
    rewards, values = rng.normal(size=(2, 9, 2))
    bootstrap, expected = rng.normal(size=2), np.zeros((9, 2))
    following = bootstrap
    for t in reversed(range(9)):
        following = expected[t] = rewards[t] + 0.9 * following
    vs, _ = vtrace(
        xp,
        log_rhos=xp.asarray(np.zeros((9, 2))),
        discounts=xp.asarray(np.full((9, 2), 0.9)),
        rewards=xp.asarray(rewards),
        values=xp.asarray(values),
        bootstrap_value=xp.asarray(bootstrap),
    )
    np.testing.assert_allclose(to_numpy(vs), expected, rtol=1e-12)


def test_vtrace_wants_one_kind_of_next_value(xp: Any) -> None:
    x = xp.zeros(3)
    arrays = {"log_rhos": x, "discounts": x, "rewards": x, "values": x}
    for values in ({}, {"bootstrap_value": xp.zeros(()), "values_tp1": x}):
        with pytest.raises(ConfigError, match="exactly one"):
            vtrace(xp, **arrays, **values)
    with pytest.raises(ConfigError, match="done_t"):
        vtrace(xp, **arrays, bootstrap_value=xp.zeros(()), done_t=x)


def test_no_gradient_flows_through_targets(xp: Any, training_backend_name: str) -> None:
    def total(x: Any) -> Any:
        v, no = x["v"], xp.zeros(3)
        vs, advantages = vtrace(xp, log_rhos=v, discounts=no, rewards=v, values=v, bootstrap_value=xp.sum(v))
        out, targets = gae(xp, r_t=v, v_t=v, v_tp1=v, terminated_t=no, done_t=no, gamma=0.9, lambda_=0.9)
        return xp.sum(v + vs + advantages + out + targets)

    _, gradients = xp.value_and_grad(total)({"v": xp.ones(3)})
    np.testing.assert_array_equal(to_numpy(gradients["v"]), [1, 1, 1])


# ---- n steps --------------------------------------------------------------------------------------------------------


def test_n_steps_by_hand(xp: Any) -> None:
    returns, discounts, lengths = n_step_returns(
        xp,
        r_t=xp.asarray(column(1, 2, 4, 8, 16)),
        discount_t=xp.asarray(column(0.5, 0.5, 0.5, 0.5, 0.5)),
        done_t=xp.asarray(np.array([False, True, False, False, False])),
        n=2,
    )
    np.testing.assert_array_equal(to_numpy(returns), [2, 2, 8, 16, 16])
    np.testing.assert_array_equal(to_numpy(discounts), [0.25, 0.5, 0.25, 0.25, 0.5])
    np.testing.assert_array_equal(to_numpy(lengths), [1, 0, 1, 1, 0])
    assert to_numpy(lengths).dtype == np.int64


@pytest.mark.parametrize("n", [1, 2, 3, 5, 100])
def test_n_steps_are_a_loop(xp: Any, backend_name: str, n: int) -> None:
    rng = np.random.default_rng(n)
    shape = (11, 3)
    r, done = rng.normal(size=shape), rng.uniform(size=shape) < 0.2
    d = rng.uniform(0.5, 1, size=shape) * (rng.uniform(size=shape) > 0.1)
    returns, discounts, lengths = np.zeros(shape), np.ones(shape), np.zeros(shape, np.int64)
    for index in np.ndindex(shape):
        t, i = index
        for k in range(t, min(t + n, shape[0])):
            returns[index] += discounts[index] * r[k, i]
            discounts[index] *= d[k, i]
            lengths[index] = k - t
            if done[k, i]:
                break

    def f(r: Any, d: Any, done: Any) -> Any:
        return list(n_step_returns(xp, r_t=r, discount_t=d, done_t=done, n=n))

    got = traced(backend_name, f, r, d, done)
    np.testing.assert_allclose(got[0], returns, rtol=1e-12)
    np.testing.assert_allclose(got[1], discounts, rtol=1e-12)
    np.testing.assert_array_equal(got[2], lengths)
