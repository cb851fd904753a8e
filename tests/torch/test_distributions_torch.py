"""Our distributions against torch.distributions, values and gradients, and under torch.compile without a break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributions as td

from learner_core.maths.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
)
from learner_core_torch import xp

ROWS = 50
LOW, HIGH = (-2.0, 0.0, 1.0), (2.0, 5.0, 1.5)


def gaussian(inputs: torch.Tensor) -> Any:
    mean, log_std = inputs.chunk(2, -1)
    return td.Independent(td.Normal(mean, log_std.exp()), 1)


def squashed(inputs: torch.Tensor) -> Any:
    low, high = torch.tensor(LOW, dtype=torch.float64), torch.tensor(HIGH, dtype=torch.float64)
    affine = td.AffineTransform((low + high) / 2, (high - low) / 2, event_dim=1)
    return td.TransformedDistribution(gaussian(inputs), [td.TanhTransform(), affine])


class Several:
    """Independent choices out of 2, 3 and 4."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self.parts = [td.Categorical(logits=part) for part in inputs.split([2, 3, 4], -1)]

    def log_prob(self, x: torch.Tensor) -> Any:
        return sum(part.log_prob(x[..., i]) for i, part in enumerate(self.parts))

    def entropy(self) -> Any:
        return sum(part.entropy() for part in self.parts)

    def kl(self, other: Several) -> Any:
        return sum(td.kl_divergence(a, b) for a, b in zip(self.parts, other.parts, strict=True))


CASES: dict[str, tuple[type[Distribution], Any, int, int]] = {
    "categorical": (Categorical.bind(xp), lambda x: td.Categorical(logits=x), 5, 10),
    "several": (MultiCategorical.bind(xp, nvec=(2, 3, 4), event_shape=(3,)), Several, 9, 18),
    "bits": (Bernoulli.bind(xp), lambda x: td.Independent(td.Bernoulli(logits=x), 1), 4, 8),
    "gaussian": (DiagGaussian.bind(xp), gaussian, 6, 3),
    "squashed": (SquashedGaussian.bind(xp, low=LOW, high=HIGH, log_std_range=None), squashed, 6, 3),
}


def draw(name: str) -> tuple[type[Distribution], Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    dist_class, theirs, size, noise_size = CASES[name]
    rng = np.random.default_rng(0)
    inputs, others = (torch.from_numpy(0.5 * rng.normal(size=(ROWS, size))).requires_grad_() for _ in range(2))
    return dist_class, theirs, inputs, others, torch.from_numpy(rng.normal(size=(ROWS, noise_size)))


def same(ours: Any, theirs: Any, *inputs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    weight = torch.linspace(1, 2, ROWS, dtype=torch.float64)
    gradients = (torch.autograd.grad((values * weight).sum(), inputs) for values in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_logp(name: str) -> None:
    dist_class, theirs, inputs, _, noise = draw(name)
    dist = dist_class.from_logits(inputs)
    actions = dist.sample(noise).detach()
    assert len(torch.unique(actions)) > 1
    expected = theirs(inputs).log_prob(actions.double() if name == "bits" else actions)
    same(dist.logp(actions), expected, inputs)
    if actions.is_floating_point():
        fresh, logp = dist_class.from_logits(inputs).sample_with_logp(noise)
        torch.testing.assert_close(fresh.detach(), actions, rtol=0, atol=0)
        # Through the action as well: reparametrised. Torch finds u again through atanh.
        same(logp, theirs(inputs).log_prob(dist_class.from_logits(inputs).sample(noise)), inputs)


@pytest.mark.parametrize("name", ["categorical", "several", "bits", "gaussian"])
def test_entropy(name: str) -> None:
    dist_class, theirs, inputs, _, _ = draw(name)
    same(dist_class.from_logits(inputs).entropy(), theirs(inputs).entropy(), inputs)


@pytest.mark.parametrize("name", CASES)
def test_kl(name: str) -> None:
    dist_class, theirs, inputs, others, _ = draw(name)
    if name == "squashed":  # the divergence is that of the normals under the common map
        theirs = gaussian
    p, q = theirs(inputs), theirs(others)
    expected = p.kl(q) if name == "several" else td.kl_divergence(p, q)
    same(dist_class.from_logits(inputs).kl(dist_class.from_logits(others)), expected, inputs, others)


#: In the fast tier the two that are made of others: of several categoricals, and of a Gaussian behind tanh.
COMPOSED = ("several", "squashed")


@pytest.mark.parametrize(
    "name", [name if name in COMPOSED else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_compiles_without_a_break(name: str) -> None:
    dist_class, _, inputs, others, noise = draw(name)
    mask = None if name in ("gaussian", "squashed") else torch.ones_like(inputs, dtype=torch.bool)

    def f(inputs: torch.Tensor, others: torch.Tensor, noise: torch.Tensor) -> Any:
        dist = dist_class.from_logits(inputs, mask)
        sample, logp = dist.sample_with_logp(noise)
        entropy = logp if name == "squashed" else dist.entropy()
        return sample, logp, dist.mode(), dist.logp(sample), entropy, dist.kl(dist_class.from_logits(others))

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(inputs, others, noise), f(inputs, others, noise), strict=True):
        torch.testing.assert_close(one, other)
