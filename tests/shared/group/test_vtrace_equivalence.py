"""N learners compute what one computes, on sequences: IMPALA and APPO in threads, in float64."""

from __future__ import annotations

from typing import Any

import pytest
from gymnasium.spaces import Discrete

from learner_core_algorithms import APPOConfig, IMPALAConfig

from support.learners import OBS, assert_states_equal
from support.rings import ThreadRing
from support.vtrace_learners import sequence_batch, tiny_sequences

TWO = Discrete(2)


@pytest.mark.parametrize("algorithm", [pytest.param("impala", marks=pytest.mark.fast_on_torch), "appo"])
def test_sequences_over_two_learners(training_backend_name: str, algorithm: str) -> None:
    """Five, one and four sequences in minibatches of two: a learner may have none. Targets and KL move alike."""
    config: Any = IMPALAConfig() if algorithm == "impala" else APPOConfig().training(use_kl_loss=True)
    tiny_sequences(config, training_backend_name, lr=0.01, grad_clip=0.3)
    frozen = config.environment(observation_space=OBS, action_space=TWO).copy().freeze()
    learner_class = frozen.get_learner_class()
    one = learner_class(frozen)
    ring = ThreadRing(2, lambda place: learner_class(frozen, ranks=place))
    for seed, sequences in enumerate((5, 1, 4)):
        batch = sequence_batch(sequences, TWO, seed=seed)
        alone = one.update_from_batch(batch=batch)
        for results in ring.each(lambda learner, b=batch: learner.update_from_batch(batch=b)):
            for name, value in alone["default_policy"].items():
                if name != "vf_explained_variance":  # no mean over rows, so not the mean of the learners'
                    assert results["default_policy"][name] == pytest.approx(value, rel=1e-9, abs=1e-10), name
        for learner in ring.learners:
            assert_states_equal(one.get_state(), learner.get_state(), atol=1e-10)
