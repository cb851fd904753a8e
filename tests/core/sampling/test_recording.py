"""Episodes collected while they are played: whole ones, in order, with their true next observations."""

from __future__ import annotations

import numpy as np
import pytest

from learner_core.errors import BatchError
from learner_core.sampling.recording import EpisodeRecorder

from support.sampling import CountEnv, NestedEnv, make_runner


def test_whole_episodes_with_the_true_next_observation() -> None:
    recorder = EpisodeRecorder()
    runner = make_runner(lambda config: CountEnv(), 2)
    episodes = runner.evaluate(5, watch=recorder)
    runner.close()
    columns = recorder.columns()
    assert len(episodes) == 5
    assert recorder.lengths.tolist() == [3] * 5
    assert columns["obs"].shape == (15, 2)
    assert columns["rewards"].sum() == sum(episode.episode_return for episode in episodes)
    steps = columns["obs"][:, 1].reshape(5, 3)
    assert steps.tolist() == [[0, 1, 2]] * 5
    # The last row shows what the episode ended with, not what the next one began with.
    assert columns["next_obs"][:, 1].reshape(5, 3).tolist() == [[1, 2, 3]] * 5
    assert (columns["next_obs"][:, 0] == columns["obs"][:, 0]).all()
    ends = (columns["terminateds"] | columns["truncateds"]).reshape(5, 3)
    assert ends.tolist() == [[False, False, True]] * 5
    # CountEnv truncates every other episode.
    truncated = columns["truncateds"].reshape(5, 3)[:, -1]
    assert (truncated == (columns["obs"][::3, 0] % 2 == 1)).all()


def test_nested_observations_and_outputs_keep_their_structure() -> None:
    recorder = EpisodeRecorder()
    runner = make_runner(lambda config: NestedEnv(), 1)
    runner.evaluate(2, explore=True, watch=recorder)
    runner.close()
    columns = recorder.columns()
    rows = int(recorder.lengths.sum())
    assert columns["obs"]["image"].shape == (rows, 4, 4, 1)
    assert columns["obs"]["image"].dtype == np.uint8
    assert set(columns["next_obs"]["pair"]) == {"0", "1"}
    assert columns["actions"].shape == (rows, 2)
    assert columns["action_dist_inputs"].shape == (rows, 5)


def test_observations_are_recorded_as_the_environment_gives_them() -> None:
    recorder = EpisodeRecorder()
    runner = make_runner(lambda config: CountEnv(), 1, normalize_observations=True)
    runner.sample(4)
    runner.evaluate(1, watch=recorder)
    runner.close()
    assert recorder.columns()["obs"][:, 1].tolist() == [0, 1, 2]


def test_nothing_recorded_is_refused() -> None:
    with pytest.raises(BatchError, match="no episode has finished"):
        EpisodeRecorder().columns()
