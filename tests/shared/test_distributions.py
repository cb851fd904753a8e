"""Distributions: values by hand, then scipy and integrals; the same on every backend, traced."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

from learner_core.errors import SpaceError
from learner_core.maths import noise
from learner_core.maths.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    SquashedGaussian,
    distribution_for,
)

from support.tracing import to_numpy, traced

LOG_2, LOG_3 = math.log(2.0), math.log(3.0)


def wide(*values: Any) -> Any:
    return np.array(values, dtype=np.float64)


# ---- one of K -------------------------------------------------------------------------------------------------------


def test_categorical_by_hand(xp: Any) -> None:
    dist = Categorical.bind(xp).from_logits(xp.asarray(wide([0, LOG_3], [5, 5])))  # p = 1/4, 3/4 and 1/2, 1/2
    np.testing.assert_allclose(to_numpy(dist.logp(xp.asarray(np.array([1, 0])))), [math.log(0.75), -LOG_2], rtol=1e-14)
    np.testing.assert_allclose(to_numpy(dist.entropy()), [2 * LOG_2 - 0.75 * LOG_3, LOG_2], rtol=1e-14)
    other = Categorical.bind(xp).from_logits(xp.asarray(wide([0, 0], [0, LOG_3])))
    np.testing.assert_allclose(
        to_numpy(dist.kl(other)), [0.75 * LOG_3 - LOG_2, 0.5 * math.log(4 / 3)], rtol=1e-13, atol=1e-16
    )
    mode = to_numpy(dist.mode())
    assert mode[0] == 1
    assert mode.dtype == np.int64


def test_categorical_samples_by_hand(xp: Any) -> None:
    # Exponentials (n1^2 + n2^2)/2: 2 and 8. 2/p_0 against 8/p_1: with p_1 = 3/4, 8 against 10.67; with 9/10, 20
    # against 8.89: the smaller wins.
    dist = Categorical.bind(xp, start=5).from_logits(xp.asarray(wide([0, LOG_3], [0, math.log(9)])))
    drawn = dist.sample(xp.asarray(wide([2, 4, 0, 0], [0, 0, -2, 4])))
    assert to_numpy(drawn).tolist() == [5, 6]
    assert to_numpy(drawn).dtype == np.int64


def test_an_action_count_may_start_anywhere(xp: Any) -> None:
    dist = Categorical.bind(xp, start=-3).from_logits(xp.asarray(wide([0, LOG_3])))
    assert to_numpy(dist.mode()) == -2
    np.testing.assert_allclose(to_numpy(dist.logp(xp.asarray(np.array([-3])))), [math.log(0.25)], rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_have_the_probabilities(xp: Any, dtype: str) -> None:
    p = np.array([0.5, 0.3, 0.15, 0.05])
    rows = 20_000
    dist = Categorical.bind(xp).from_logits(xp.asarray(np.tile(np.log(p), (rows, 1)).astype(dtype)))
    drawn, logp = dist.sample_with_logp(xp.asarray(noise.normals(0, 0, "test", rows, (8,), dtype)))
    counts = np.bincount(to_numpy(drawn), minlength=4)
    assert stats.chisquare(counts, p * rows).pvalue > 1e-3
    np.testing.assert_allclose(to_numpy(logp), np.log(p)[to_numpy(drawn)], rtol=1e-5)


def test_a_mask_forbids_without_nan(xp: Any) -> None:
    rows = 2000
    logits = np.tile(np.float32([3, 0, LOG_3, 0]), (rows, 1))
    mask = np.tile([False, True, True, False], (rows, 1))
    dist = Categorical.bind(xp).from_logits(xp.asarray(logits), xp.asarray(mask))
    drawn = to_numpy(dist.sample(xp.asarray(noise.normals(1, 0, "test", rows, (8,)))))
    assert set(drawn.tolist()) == {1, 2}
    assert to_numpy(dist.mode())[0] == 2
    np.testing.assert_allclose(to_numpy(dist.entropy())[0], 2 * LOG_2 - 0.75 * LOG_3, rtol=1e-6)
    assert to_numpy(dist.logp(xp.asarray(np.zeros(rows, np.int64))))[0] < -1e8
    free = Categorical.bind(xp).from_logits(xp.asarray(logits))
    np.testing.assert_allclose(to_numpy(dist.kl(dist)), 0, atol=1e-7)
    for divergence in (to_numpy(dist.kl(free)), to_numpy(free.kl(dist))):
        assert np.isfinite(divergence).all()
        assert (divergence > 0).all()


def test_zero_noise_is_harmless(xp: Any) -> None:
    mask = xp.asarray(np.array([[False, True, True]]))
    dist = Categorical.bind(xp).from_logits(xp.asarray([[9.0, 1.0, 2.0]]), mask)
    assert to_numpy(dist.sample(xp.zeros((1, 6)))).tolist() == [2]
    noise_of_forbidden_only = xp.asarray([[0.0, 1, 1, 0, 1, 1]])
    assert to_numpy(dist.sample(noise_of_forbidden_only)).tolist() == [2]


def test_a_mask_that_forbids_everything_leaves_every_action(xp: Any) -> None:
    dist = Categorical.bind(xp).from_logits(xp.asarray([[1.0, 2.0]]), xp.asarray(np.array([[False, False]])))
    np.testing.assert_allclose(to_numpy(dist.entropy()), [LOG_2], rtol=1e-6)


def test_gradients_stay_finite_under_a_mask(xp: Any, training_backend_name: str) -> None:
    mask = xp.asarray(np.array([[True, False, True]]))

    def total(x: Any) -> Any:
        dist = Categorical.bind(xp).from_logits(x["logits"], mask)
        return xp.sum(dist.entropy() + dist.logp(xp.asarray(np.array([2]))))

    _, gradients = xp.value_and_grad(total)({"logits": xp.asarray([[0.5, 100.0, -0.5]])})
    got = to_numpy(gradients["logits"])
    assert np.isfinite(got).all()
    assert got[0, 1] == 0
    assert got[0, 0] != 0


# ---- several choices, bits ------------------------------------------------------------------------------------------


def test_several_choices_add_up(xp: Any) -> None:
    dist_class = MultiCategorical.bind(xp, nvec=(2, 3), start=(0, 10), event_shape=(2,))
    dist = dist_class.from_logits(xp.asarray(wide([0, LOG_3, 0, 0, LOG_2])))  # 1/4 3/4, 1/4 1/4 1/2
    np.testing.assert_allclose(to_numpy(dist.logp(xp.asarray(np.array([[1, 12]])))), [math.log(0.375)], rtol=1e-14)
    np.testing.assert_allclose(to_numpy(dist.entropy()), [(2 * LOG_2 - 0.75 * LOG_3) + 1.5 * LOG_2], rtol=1e-14)
    np.testing.assert_allclose(to_numpy(dist.kl(dist_class.from_logits(xp.zeros((1, 5), xp.float64)))),
                               [0.75 * LOG_3 - LOG_2 + (LOG_3 - 1.5 * LOG_2)], rtol=1e-13)  # fmt: skip
    assert to_numpy(dist.mode()).tolist() == [[1, 12]]


def test_a_mask_over_several_choices(xp: Any) -> None:
    dist_class = MultiCategorical.bind(xp, nvec=(2, 3), event_shape=(2,))
    mask = np.array([[False, True, True, False, False]])
    dist = dist_class.from_logits(xp.zeros((1, 5)), xp.asarray(mask))
    assert to_numpy(dist.sample(xp.asarray(noise.normals(0, 0, 0, 1, (10,))))).tolist() == [[1, 0]]
    np.testing.assert_allclose(to_numpy(dist.entropy()), [0], atol=1e-6)


def test_bits_by_hand(xp: Any) -> None:
    dist_class = Bernoulli.bind(xp)
    dist = dist_class.from_logits(xp.asarray(wide([LOG_3, 0])))  # 3/4, 1/2
    np.testing.assert_allclose(to_numpy(dist.logp(xp.asarray(np.array([[1, 0]])))), [math.log(0.375)], rtol=1e-14)
    np.testing.assert_allclose(to_numpy(dist.entropy()), [3 * LOG_2 - 0.75 * LOG_3], rtol=1e-14)
    other = dist_class.from_logits(xp.asarray(wide([0, LOG_3])))
    np.testing.assert_allclose(to_numpy(dist.kl(other)), [0.75 * LOG_3 - LOG_2 + 0.5 * math.log(4 / 3)], rtol=1e-13)
    assert to_numpy(dist.mode()).tolist() == [[1, 0]]
    # One where (n1^2 + n2^2)/2 > -log p: 0.29 for 3/4, 0.69 for 1/2.
    assert to_numpy(dist.sample(xp.asarray(wide([0.6, 0.6, 0.6, 0.6])))).tolist() == [[1, 0]]


def test_bits_have_their_probabilities(xp: Any) -> None:
    rows, p = 20_000, np.array([0.9, 0.5, 0.02])
    dist = Bernoulli.bind(xp).from_logits(xp.asarray(np.tile(np.log(p / (1 - p)), (rows, 1)).astype(np.float32)))
    counts = to_numpy(dist.sample(xp.asarray(noise.normals(0, 0, "bits", rows, (6,))))).sum(axis=0)
    for count, probability in zip(counts, p, strict=True):
        assert stats.binomtest(int(count), rows, probability).pvalue > 1e-3


def test_certain_bits_stay_finite(xp: Any) -> None:
    dist = Bernoulli.bind(xp).from_logits(xp.asarray([[200.0, -200.0]]))
    assert to_numpy(dist.sample(xp.asarray(noise.normals(0, 0, 0, 1, (4,))))).tolist() == [[1, 0]]
    assert to_numpy(dist.logp(xp.asarray(np.array([[0, 1]])))).tolist() == [-400]
    assert to_numpy(dist.entropy()).tolist() == [0]
    masked = Bernoulli.bind(xp).from_logits(xp.asarray([[9.0]]), xp.asarray(np.array([[False]])))
    assert to_numpy(masked.mode()).tolist() == [[0]]


# ---- normal ---------------------------------------------------------------------------------------------------------


def test_normal_by_hand(xp: Any) -> None:
    dist_class = DiagGaussian.bind(xp)
    dist = dist_class.from_logits(xp.asarray(wide([1, 0, LOG_2, 0])))  # N(1, 2), N(0, 1)
    log_2pi = math.log(2 * math.pi)
    np.testing.assert_allclose(to_numpy(dist.logp(xp.asarray(wide([3, 0])))), [-0.5 - LOG_2 - log_2pi], rtol=1e-14)
    np.testing.assert_allclose(to_numpy(dist.entropy()), [1 + log_2pi + LOG_2], rtol=1e-14)
    standard = dist_class.from_logits(xp.zeros((1, 4), xp.float64))
    np.testing.assert_allclose(to_numpy(dist.kl(standard)), [2 - LOG_2], rtol=1e-14)
    np.testing.assert_allclose(to_numpy(standard.kl(dist)), [LOG_2 + 0.25 - 0.5], rtol=1e-14)
    sample, logp = dist.sample_with_logp(xp.asarray(wide([1, -2])))
    assert to_numpy(sample).tolist() == [[3, -2]]
    np.testing.assert_allclose(to_numpy(logp), [-2.5 - LOG_2 - log_2pi], rtol=1e-14)
    assert to_numpy(dist.mode()).tolist() == [[1, 0]]


def test_the_range_of_the_deviation_is_an_option(xp: Any) -> None:
    inputs = xp.asarray(wide([0, 0, 50, -50]))
    assert to_numpy(DiagGaussian.bind(xp).from_logits(inputs).log_std).tolist() == [[50, -50]]
    assert to_numpy(DiagGaussian.bind(xp, log_std_range=(-5, 2)).from_logits(inputs).log_std).tolist() == [[2, -5]]
    assert to_numpy(SquashedGaussian.bind(xp).from_logits(inputs).log_std).tolist() == [[2, -20]]
    unclipped = SquashedGaussian.bind(xp, log_std_range=None)
    assert to_numpy(unclipped.from_logits(inputs).log_std).tolist() == [[50, -50]]


def test_continuous_actions_have_no_mask(xp: Any) -> None:
    with pytest.raises(SpaceError, match="discrete"):
        DiagGaussian.bind(xp).from_logits(xp.zeros((1, 2)), xp.asarray(np.array([[True]])))


# ---- squashed normal ------------------------------------------------------------------------------------------------


def test_squashed_by_hand(xp: Any) -> None:
    dist = SquashedGaussian.bind(xp, low=0.0, high=4.0).from_logits(xp.asarray(wide([0, 0], [0, 0])))
    sample, logp = dist.sample_with_logp(xp.asarray(wide([0], [1])))
    # centre 2, half 2; slope of tanh at 1: 1 - 0.7615941559557649^2.
    np.testing.assert_allclose(to_numpy(sample), [[2], [2 + 2 * 0.7615941559557649]], rtol=1e-15)
    base = -0.5 * math.log(2 * math.pi) - LOG_2
    expected = [base, base - 0.5 - math.log(1 - 0.7615941559557649**2)]
    np.testing.assert_allclose(to_numpy(logp), expected, rtol=1e-14)
    np.testing.assert_allclose(to_numpy(dist.logp(sample)), expected, rtol=1e-13)
    np.testing.assert_allclose(to_numpy(dist.mode()), [[2], [2]], rtol=1e-15)


@pytest.mark.parametrize("mean", [0.0, 1.5])
@pytest.mark.parametrize("log_std", [-1.0, 0.3])
def test_squashed_density_integrates_to_one_and_gives_the_divergence(xp: Any, mean: float, log_std: float) -> None:
    low, high = -1.0, 3.0
    # Gauss-Legendre nodes, which crowd at the bounds as the density does; float64.
    nodes, weights = np.polynomial.legendre.leggauss(2000)
    x = 0.5 * (low + high) + 0.5 * (high - low) * nodes
    weights = weights * 0.5 * (high - low)
    dist_class = SquashedGaussian.bind(xp, low=low, high=high)
    p, q = (dist_class.from_logits(xp.asarray(np.tile(row, (2000, 1)))) for row in (wide(mean, log_std), wide(0.2, 0)))
    log_p, log_q = (to_numpy(d.logp(xp.asarray(x[:, None]))) for d in (p, q))
    assert (weights * np.exp(log_p)).sum() == pytest.approx(1, abs=1e-6)
    assert to_numpy(p.kl(q))[0] == pytest.approx((weights * np.exp(log_p) * (log_p - log_q)).sum(), abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squashed_logp_holds_where_tanh_has_rounded_to_one(xp: Any, dtype: str) -> None:
    u = np.array([0.1, 3.0, 9.0, 18.0, 40.0, -40.0])
    inputs = np.zeros((6, 2), dtype)
    dist = SquashedGaussian.bind(xp).from_logits(xp.asarray(inputs))
    sample, logp = dist.sample_with_logp(xp.asarray(u[:, None].astype(dtype)))
    # log(1 - tanh^2) = log 4 - 2|u| - 2 log(1 + exp(-2|u|)).
    log_slope = 2 * LOG_2 - 2 * np.abs(u) - 2 * np.log1p(np.exp(-2 * np.abs(u)))
    expected = stats.norm.logpdf(u) - log_slope
    np.testing.assert_allclose(to_numpy(logp), expected, rtol=2e-6 if dtype == "float32" else 1e-14, atol=1e-6)
    # From the action alone: exact where tanh can be undone, finite beyond.
    again = to_numpy(dist.logp(sample))
    np.testing.assert_allclose(again[:2], expected[:2], rtol=1e-4 if dtype == "float32" else 1e-12)
    assert np.isfinite(again).all()
    assert np.isfinite(to_numpy(dist.logp(xp.asarray(np.array([[-5.0]] * 6, dtype))))).all()


def test_squashed_entropy_is_an_estimate_or_an_error(xp: Any) -> None:
    rows = 20_000
    dist = SquashedGaussian.bind(xp, low=0.0, high=4.0).from_logits(xp.zeros((rows, 2)))
    with pytest.raises(SpaceError, match="noise"):
        dist.entropy()
    draws = xp.asarray(noise.normals(0, 0, "entropy", rows, (1,)))
    # H(tanh u) = H(u) + E log(1 - tanh^2), by a fine sum.
    u = np.linspace(-8, 8, 20001)
    exact = (
        0.5 * math.log(2 * math.pi * math.e)
        + LOG_2
        + np.average(np.log(1 - np.tanh(u) ** 2), weights=stats.norm.pdf(u))
    )
    assert to_numpy(dist.entropy(draws)).mean() == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize(("low", "high"), [(0.0, 4.0), (-0.01, 0.01), ([3.0, -100.0], [3.5, 100.0])], ids=str)
def test_a_unit_density_is_that_of_the_unit_box(xp: Any, low: Any, high: Any) -> None:
    inputs = xp.asarray(wide([0.3, -0.2], [0.5, -1.0])[:, [0, 0, 1, 1]])
    draws = xp.asarray(wide([0.1], [-0.7])[:, [0, 0]])
    unit = SquashedGaussian.bind(xp).from_logits(inputs)
    own = SquashedGaussian.bind(xp, low=low, high=high).from_logits(inputs)
    free = SquashedGaussian.bind(xp, low=low, high=high, unit_density=True).from_logits(inputs)
    actions, logp = free.sample_with_logp(draws)
    np.testing.assert_array_equal(to_numpy(actions), to_numpy(own.sample(draws)))
    np.testing.assert_array_equal(to_numpy(logp), to_numpy(unit.sample_with_logp(draws)[1]))
    np.testing.assert_allclose(to_numpy(free.logp(actions)), to_numpy(logp), rtol=0, atol=1e-11)
    np.testing.assert_array_equal(to_numpy(free.entropy(draws)), -to_numpy(logp))
    half = np.broadcast_to((np.asarray(high) - np.asarray(low)) / 2, (2,))
    np.testing.assert_allclose(
        to_numpy(own.sample_with_logp(draws)[1]), to_numpy(logp) - np.log(half).sum(), rtol=1e-14
    )


def test_unequal_bounds_per_dimension(xp: Any) -> None:
    dist = SquashedGaussian.bind(xp, low=[0, -1], high=[4, 1]).from_logits(xp.zeros((3, 5, 4), xp.float64))
    sample, logp = dist.sample_with_logp(xp.zeros((3, 5, 2), xp.float64))
    assert to_numpy(sample)[0, 0].tolist() == [2, 0]
    np.testing.assert_allclose(to_numpy(logp), np.full((3, 5), -math.log(2 * math.pi) - LOG_2), rtol=1e-14)


# ---- spaces ---------------------------------------------------------------------------------------------------------

SPACES: list[tuple[gym.Space[Any], bool, int, tuple[int, ...]]] = [
    (gym.spaces.Discrete(3), False, 3, (6,)),
    (gym.spaces.Discrete(3, start=-1), True, 3, (6,)),
    (gym.spaces.MultiDiscrete([2, 3]), False, 5, (10,)),
    (gym.spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 1], [-2, 0]]), False, 11, (22,)),
    (gym.spaces.MultiBinary(3), False, 3, (6,)),
    (gym.spaces.MultiBinary([2, 2]), False, 4, (8,)),
    (gym.spaces.Box(-2, 2, (3,)), True, 6, (3,)),
    (gym.spaces.Box(np.float32([-1, 0]), np.float32([1, 5])), True, 4, (2,)),
    (gym.spaces.Box(-1, 1, (2, 2), np.float64), True, 8, (4,)),
    (gym.spaces.Box(-1, 1, ()), True, 2, (1,)),
    (gym.spaces.Box(-np.inf, np.inf, (2,)), False, 4, (2,)),
]


@pytest.mark.parametrize(("space", "squash", "input_size", "noise_shape"), SPACES, ids=str)
@pytest.mark.parametrize("batch", [(), pytest.param((4,), marks=pytest.mark.fast_on_torch), (3, 2)])
def test_samples_lie_in_their_space(
    xp: Any,
    backend_name: str,
    space: gym.Space[Any],
    squash: bool,
    input_size: int,
    noise_shape: tuple[int, ...],
    batch: tuple[int, ...],
) -> None:
    dist_class = distribution_for(space, xp, squash)
    assert dist_class is distribution_for(space, xp, squash)
    assert dist_class.input_size(space) == input_size
    assert dist_class.noise_shape(space) == noise_shape
    rows = math.prod(batch)
    rng = np.random.default_rng(0)
    inputs, others = (0.3 * rng.normal(size=(2, *batch, input_size))).astype(np.float32)
    draws = noise.normals(0, 0, "x", rows, noise_shape).reshape(*batch, *noise_shape)

    def everything(inputs: Any, others: Any, draws: Any) -> Any:
        dist, other = dist_class.from_logits(inputs), dist_class.from_logits(others)
        sample, logp = dist.sample_with_logp(draws)
        entropy = dist.entropy(draws) if issubclass(dist_class, SquashedGaussian) else dist.entropy()
        return [sample, logp, dist.sample(draws), dist.mode(), dist.logp(sample), entropy, dist.kl(other)]

    got = traced(backend_name, everything, inputs, others, draws)
    for actions in (got[0], got[2], got[3]):
        assert actions.shape == (*batch, *(space.shape or ()))
        assert actions.dtype == (np.float32 if isinstance(space, gym.spaces.Box) else np.int64)
        for action in actions.reshape(rows, *(space.shape or ())):
            assert space.contains(np.asarray(action, space.dtype))
    np.testing.assert_array_equal(got[0], got[2])
    for values in (got[1], *got[4:]):
        assert values.shape == batch
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    np.testing.assert_allclose(got[1], got[4], rtol=1e-3, atol=1e-4)
    assert (got[6] >= 0).all()
    eager = to_numpy(everything(xp.asarray(inputs), xp.asarray(others), xp.asarray(draws)))
    for one, same in zip(got, eager, strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("space", "squash", "words"),
    [
        (gym.spaces.Dict({"a": gym.spaces.Text(2)}), False, "a: expected Box"),
        (gym.spaces.Text(3), False, "no distribution"),
        (gym.spaces.Box(0, 255, (2,), np.uint8), False, "MultiDiscrete"),
        (gym.spaces.Box(-np.inf, np.inf, (2,)), True, "finite bounds"),
        (gym.spaces.Box(0, 0, (2,)), True, "low < high"),
    ],
    ids=str,
)
def test_other_spaces_are_refused(xp: Any, space: gym.Space[Any], squash: bool, words: str) -> None:
    with pytest.raises(SpaceError, match=words):
        distribution_for(space, xp, squash)


def test_unknown_options_are_refused(xp: Any) -> None:
    with pytest.raises(SpaceError, match="no option 'hgih'"):
        SquashedGaussian.bind(xp, hgih=3)


def test_binding_is_remembered(xp: Any) -> None:
    assert Categorical.bind(xp) is Categorical.bind(xp)
    assert Categorical.bind(xp) is not Categorical.bind(xp, start=1)
    assert SquashedGaussian.bind(xp, low=np.zeros(2)) is SquashedGaussian.bind(xp, low=[0.0, 0.0])


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squash", [True, False])
def test_reparametrised_gradients_are_finite_differences(xp: Any, training_backend_name: str, squash: bool) -> None:
    dist_class = (SquashedGaussian if squash else DiagGaussian).bind(xp)
    rng = np.random.default_rng(2)
    inputs, draws, weight = (
        rng.normal(size=(3, 4)),
        xp.asarray(rng.normal(size=(3, 2))),
        xp.asarray(rng.normal(size=(3, 2))),
    )

    def total(x: Any) -> Any:
        sample, logp = dist_class.from_logits(x["inputs"]).sample_with_logp(draws)
        return xp.sum(logp) + xp.sum(weight * sample)

    _, gradients = xp.value_and_grad(total)({"inputs": xp.asarray(inputs)})
    for index in np.ndindex(inputs.shape):
        step = np.zeros_like(inputs)
        step[index] = 1e-6
        ahead, behind = (to_numpy(total({"inputs": xp.asarray(inputs + s)})) for s in (step, -step))
        assert to_numpy(gradients["inputs"])[index] == pytest.approx((ahead - behind) / 2e-6, abs=1e-7)
