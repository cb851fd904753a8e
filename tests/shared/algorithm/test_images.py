"""Images in every layout through the public door: what is recognised, asked for and refused, and the same numbers.

The oracle is the image of height, width, channels: the same pictures in another layout, behind the same first weights,
must train the same network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core.errors import ConfigError, LearnerCoreError, SpaceError
from learner_core_algorithms import PPOConfig, SACConfig

MID = "default_policy"
#: Two frames of 6 x 5 pixels, two colours.
FRAMES, HEIGHT, WIDTH, COLOURS = 2, 6, 5, 2
#: Axes of the frames, and of a lone grey one.
AXES = {"SHWC": (0, 1, 2, 3), "SCHW": (0, 3, 1, 2)}


def laid_out(frames: np.ndarray, layout: str) -> np.ndarray:
    """Frames [frame, height, width, colour] as an environment shows them."""
    if layout in AXES:
        return frames.transpose(AXES[layout])
    stacked = np.concatenate(list(frames), -1)
    if layout == "HW":
        return stacked[..., 0]
    if layout == "HW1":
        return stacked[..., :1]
    return stacked.transpose({"HWC": (0, 1, 2), "CHW": (2, 0, 1)}[layout])


class Pictures(gym.Env[Any, Any]):
    """Shows random pictures in a layout, as bytes or floats; pays the first pixel's brightness times the action."""

    def __init__(self, layout: str, numbers: str = "bytes", inside: bool = False, continuous: bool = False) -> None:
        self.layout, self.numbers, self.inside = layout, numbers, inside
        shape = laid_out(np.zeros((FRAMES, HEIGHT, WIDTH, COLOURS)), layout).shape
        high, dtype = {
            "bytes": (255, np.uint8), "int": (255, np.int32), "255": (255, np.float32), "1": (1, np.float32),
            "bool": (1, np.bool_),
        }[numbers]  # fmt: skip
        space: Any = spaces.Box(0, high, shape, dtype)
        if inside:
            space = spaces.Dict({"camera": space, "speed": spaces.Box(-1, 1, (2,), np.float32)})
        self.observation_space = space
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if continuous else spaces.Discrete(2)

    def _obs(self) -> Any:
        frames = self.np_random.integers(0, 256, (FRAMES, HEIGHT, WIDTH, COLOURS)).astype(np.uint8)
        self.shown = frames
        picture = laid_out(frames, self.layout)
        if self.numbers == "bool":
            picture = picture > 127
        elif self.numbers != "bytes":
            picture = picture.astype(np.int32 if self.numbers == "int" else np.float32)
        picture = picture / np.float32(255) if self.numbers == "1" else picture
        return (
            {"camera": picture, "speed": np.full(2, frames[0, 0, 0, 0] / 255, np.float32)} if self.inside else picture
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        reward = float(self.shown[0, 0, 0, 0]) / 255 * float(np.sum(action))
        return self._obs(), reward, self.clock == 4, False, {}


def make_pictures(env_config: dict[str, Any]) -> Pictures:
    return Pictures(**env_config)


FILTERS = [[3, 3, 1], [4, [2, 1], 2]]


def ppo(backend: str, model: dict[str, Any] | None = None, **env: Any) -> Any:
    config = PPOConfig().environment(make_pictures, env_config=env).framework(backend, compile=False)
    config.env_runners(num_envs_per_env_runner=2, rollout_fragment_length=4)
    config.training(train_batch_size=16, minibatch_size=8, num_epochs=2, lr=1e-2)
    return config.rl_module(model={"hidden": [6], "conv_filters": FILTERS, **(model or {})}).debugging(seed=3)


def trained(config: Any) -> dict[str, np.ndarray]:
    with config.build() as algo:
        algo.train()
        weights: dict[str, np.ndarray] = algo.learner_group.get_weights()[MID]
        return weights


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray], atol: float = 1e-6) -> None:
    assert list(first) == list(second)
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, atol=atol, err_msg=name)


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    ("env", "layout"),
    [
        ({"layout": "CHW"}, "CHW"),
        ({"layout": "SHWC"}, "SHWC"),
        ({"layout": "SCHW"}, "SCHW"),
        ({"layout": "HWC", "numbers": "255"}, "HWC"),
        ({"layout": "CHW", "numbers": "255"}, None),
        ({"layout": "CHW", "numbers": "1"}, None),
        ({"layout": "CHW", "numbers": "int"}, None),
    ],
)
def test_a_layout_trains_as_height_width_channels(
    training_backend_name: str, env: dict[str, Any], layout: str | None
) -> None:
    expected = trained(ppo(training_backend_name, layout="HWC"))
    assert expected["pi.conv.0.weight"].shape == (3, FRAMES * COLOURS, 3, 3)
    model = {} if layout is None else {"image_layout": layout}
    got = trained(ppo(training_backend_name, model, **env))
    # 1/255 in float32 and the division after it round apart.
    same(expected, got, atol=1e-6 if env.get("numbers") != "1" else 1e-4)


@pytest.mark.fast_on_torch
def test_images_of_bits(training_backend_name: str) -> None:
    """As MinAtar's: zeros and ones, which are not divided."""
    same(
        trained(ppo(training_backend_name, layout="HWC", numbers="bool")),
        trained(ppo(training_backend_name, layout="CHW", numbers="bool")),
    )


def test_one_grey_image(training_backend_name: str) -> None:
    got = trained(ppo(training_backend_name, {"image_layout": "HW"}, layout="HW"))
    same(trained(ppo(training_backend_name, layout="HW1")), got)


@pytest.mark.fast_on_torch
def test_a_part_of_a_dict(training_backend_name: str) -> None:
    expected = trained(ppo(training_backend_name, layout="HWC", inside=True))
    assert expected["pi.camera.conv.0.weight"].shape == (3, 4, 3, 3)
    model = {"image_layout": {"camera": "SCHW"}}
    same(expected, trained(ppo(training_backend_name, model, layout="SCHW", inside=True)))
    same(expected, trained(ppo(training_backend_name, {"image_layout": "CHW"}, layout="CHW", inside=True)))


@pytest.mark.fast_on_torch
def test_replayed_images(training_backend_name: str) -> None:
    def sac(**env: Any) -> Any:
        config = SACConfig().environment(make_pictures, env_config={**env, "continuous": True})
        config.framework(training_backend_name, compile=False)
        config.training(train_batch_size=4, learning_starts=8, timesteps_per_iteration=12, buffer_capacity=64)
        return config.rl_module(model={"hidden": [5], "conv_filters": FILTERS})

    expected = trained(sac(layout="HWC"))
    same(expected, trained(sac(layout="CHW")))
    same(expected, trained(sac(layout="SHWC")))


def test_flat_is_no_image(training_backend_name: str) -> None:
    config = ppo(training_backend_name, layout="CHW").rl_module(model={"hidden": [6], "image_layout": "flat"})
    weights = trained(config)
    assert weights["pi.0.weight"].shape == (6, FRAMES * HEIGHT * WIDTH * COLOURS) and "pi.1.weight" in weights


@pytest.mark.parametrize(
    "layout", ["CHW", *(pytest.param(layout, marks=pytest.mark.fast_on_torch) for layout in ("SHWC", "HW"))]
)
def test_acting_evaluation_and_checkpoints(training_backend_name: str, layout: str, tmp_path: Path) -> None:
    """Numpy and the backend answer alike, and a file goes on as the run does."""
    model = {"image_layout": layout}
    answers = []
    for inference in ("numpy", "backend"):
        config = ppo(training_backend_name, model, layout=layout).env_runners(inference=inference)
        with config.evaluation(num_episodes=2).build() as algo:
            algo.train()
            answers.append(algo.evaluate()["episode_return_mean"])
    assert answers[0] == pytest.approx(answers[1])
    with config.build() as algo:
        algo.train()
        algo.save(tmp_path / "run.lcstate")
        after = algo.train()
    with lc.Algorithm.from_checkpoint(tmp_path / "run.lcstate", env=make_pictures) as again:
        assert again.train()["learners"][MID]["policy_loss"] == after["learners"][MID]["policy_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["CHW", "SHWC"])
def test_compiled_is_eager(training_backend_name: str, layout: str) -> None:
    eager = trained(ppo(training_backend_name, {"layer_norm": True}, layout=layout))
    same(eager, trained(ppo(training_backend_name, {"layer_norm": True}, layout=layout).framework(compile=True)), 1e-4)


class Coloured(gym.Env[Any, Any]):
    """Random colour pictures."""

    observation_space = spaces.Box(0, 255, (12, 10, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self._obs(), {}

    def _obs(self) -> Any:
        return self.np_random.integers(0, 256, (12, 10, 3)).astype(np.uint8)

    def step(self, action: Any) -> Any:
        self.clock += 1
        return self._obs(), float(action), self.clock == 4, False, {}


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    ("grey", "keep_dim", "shape", "channels"),
    [(True, False, (2, 12, 10), 2), (True, True, (2, 12, 10, 1), 2), (False, False, (2, 12, 10, 3), 6)],
)
def test_gymnasiums_own_frame_stacks(
    training_backend_name: str, grey: bool, keep_dim: bool, shape: tuple[int, ...], channels: int
) -> None:
    def make(env_config: dict[str, Any]) -> Any:
        env: Any = Coloured()
        if grey:
            env = gym.wrappers.GrayscaleObservation(env, keep_dim=keep_dim)
        return gym.wrappers.FrameStackObservation(env, 2)

    with ppo(training_backend_name).environment(make, env_config={}).build() as algo:
        assert algo.runner.observation_space.shape == shape
        algo.train()
        assert algo.learner_group.get_weights()[MID]["pi.conv.0.weight"].shape == (3, channels, 3, 3)


# ---- what is recognised ----------------------------------------------------------------------------------------------


def box(shape: tuple[int, ...], low: float = 0, high: float = 255, dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


FLOAT = {"dtype": np.float32}


def learner(backend: str, space: Any, **model: Any) -> Any:
    config = PPOConfig().environment(observation_space=space, action_space=spaces.Discrete(2))
    return config.framework(backend, compile=False).rl_module(model={"hidden": [3], **model}).build_learner()


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    ("space", "first"),
    [
        (box((4, 84, 84)), (32, 4, 8, 8)),  # FrameStackObservation over AtariPreprocessing
        (box((84, 84)), (32, 1, 8, 8)),  # AtariPreprocessing
        (box((4, 84, 84, 1)), (32, 4, 8, 8)),  # with grayscale_newaxis
        (box((4, 84, 84, 3)), (32, 12, 8, 8)),
        (box((84, 84, 3)), (32, 3, 8, 8)),
        (box((84, 84, 4)), (32, 4, 8, 8)),
        (box((210, 160, 3)), (32, 3, 8, 8)),
        (box((84, 84, 3), high=1, **FLOAT), (32, 3, 8, 8)),
        (box((3, 84, 84), high=255, **FLOAT), (32, 3, 8, 8)),
        (box((84, 84), high=1, **FLOAT), (32, 1, 8, 8)),
        (box((7, 7, 3)), (16, 3, 3, 3)),  # MiniGrid
        (box((10, 10, 4), high=1, dtype=np.bool_), (16, 4, 3, 3)),  # MinAtar
        (box((4, 10, 10)), (16, 4, 3, 3)),
    ],
    ids=str,
)
def test_what_is_recognised(training_backend_name: str, space: Any, first: tuple[int, ...]) -> None:
    assert learner(training_backend_name, space).get_module_state()[MID]["pi.conv.0.weight"].shape == first


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    ("space", "words"),
    [
        (box((3, 3, 3)), "axes.*'HWC'.*'CHW'.*'flat'"),
        (box((8, 8, 8)), "axes.*'HWC'.*'CHW'.*'flat'"),
        (box((4, 5, 84)), "axes.*'HWC'.*'CHW'.*'flat'"),
        (box((10, 10, 10), high=1, dtype=np.bool_), "axes"),
        (box((84, 84, 3), low=-1, high=1, **FLOAT), "bounds.*'HWC'.*'flat'"),
        (box((3, 84, 84), low=-np.inf, high=np.inf, **FLOAT), "bounds.*'CHW'.*'flat'"),
        (box((4, 128)), "axes.*'HW'.*'flat'"),  # stacked bytes of Atari's memory
        (box((50, 40), high=1, **FLOAT), "axes.*'HW'.*'flat'"),
        (box((16, 16, 16, 1)), "axes.*'SHWC'.*'SCHW'.*'flat'"),
        (box((2, 3, 4, 4, 1)), "'flat'"),
        (spaces.Dict({"a": spaces.Discrete(2), "b": box((8, 8, 8))}), r"observation b .*\{'b': 'HWC'\}"),
    ],
    ids=str,
)
def test_what_is_asked_for(training_backend_name: str, space: Any, words: str) -> None:
    with pytest.raises(SpaceError, match=f"model={{'image_layout': .*{words}|{words}"):
        learner(training_backend_name, space)
    if isinstance(space, spaces.Box):
        weights = learner(training_backend_name, space, image_layout="flat").get_module_state()[MID]
        assert weights["pi.0.weight"].shape == (3, int(np.prod(space.shape)))


@pytest.mark.fast_on_torch
def test_what_is_no_image(training_backend_name: str) -> None:
    """A window of features, a table of kinds, bytes of memory: encoded as ever."""
    for space in (box((20, 30), -np.inf, np.inf, **FLOAT), box((5, 7), high=10), box((128,))):
        assert "pi.0.weight" in learner(training_backend_name, space).get_module_state()[MID]


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(
    ("space", "model", "words"),
    [
        (box((4,), -1, 1, **FLOAT), {"image_layout": "HWC"}, "needs an image, and there is none"),
        (box((84, 84)), {"image_layout": "CHW"}, r"3 axes \(channels.*expected 'HW', 'flat'"),
        (box((8, 8, 8)), {"image_layout": "hwc"}, "expected one of 'HWC'.*Did you mean 'HWC'"),
        (box((8, 8, 8)), {"image_layout": 3}, "expected one of"),
        (box((8, 8, 8)), {"image_layout": {"a": "HWC"}}, "the observations have no parts"),
        (box((8, 8, 8)), {"image_layout": "HWC", "conv_filters": []}, r"with conv_filters=\[\] there are no conv"),
        (box((84, 84, 3)), {"image_layout": "CHW"}, "reads as HWC .*not as CHW; if CHW is meant, give conv_filters"),
        (spaces.Dict({"cam": box((84, 84, 3))}), {"image_layout": {"kam": "HWC"}}, "no part 'kam'.*Did you mean 'cam'"),
        (
            spaces.Dict({"n": spaces.Discrete(2), "c": box((9, 9, 3))}),
            {"image_layout": {"n": "HW"}},
            "an image is a Box",
        ),
    ],
    ids=str,
)
def test_layouts_that_do_not_fit(training_backend_name: str, space: Any, model: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        learner(training_backend_name, space, **model)


@pytest.mark.fast_on_torch
def test_normalised_pixels_are_not_divided_again(training_backend_name: str) -> None:
    with pytest.raises(ConfigError, match="image observation of numbers from 0 to 255"):
        ppo(training_backend_name, layout="CHW", numbers="255").env_runners(normalize_observations=True).build()
    for numbers in ("bytes", "1"):
        config = ppo(training_backend_name, layout="CHW", numbers=numbers).env_runners(normalize_observations=True)
        with config.build() as algo:
            algo.train()


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("height", [1, 2, 3, 7, 20, 35, 36, 84])
def test_default_filters_fit_every_size(height: int) -> None:
    from learner_core.maths.images import ImageLayout
    from learner_core.maths.networks import default_filters, make_image_encoder

    for width in (1, 2, 5, 35, 36, 40, 300):
        assert make_image_encoder("pi", ImageLayout("HWC", (height, width, 1)), {"hidden": [2]}).output_size == 2
    assert default_filters(84, 84) == default_filters(36, 300) == ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    assert default_filters(20, 40) == ((32, 8, 4), (64, 4, 2), (64, (1, 3), 1))
    assert default_filters(10, 2) == ((16, (3, 2), 1),)


@pytest.mark.fast_on_torch
def test_a_file_from_before_layouts_opens_as_it_was_built(training_backend_name: str) -> None:
    """Bytes of three axes in doubt were height, width, channels, all else flat; typed anew, it is asked about."""

    def reopened(space: Any, **model: Any) -> dict[str, tuple[int, ...]]:
        config = PPOConfig().environment(observation_space=space, action_space=spaces.Discrete(2))
        config.framework(training_backend_name, compile=False).rl_module(model={"hidden": [3], **model})
        weights = PPOConfig.from_dict(config.to_dict()).build_learner().get_module_state()[MID]
        return {name: value.shape for name, value in weights.items() if name.startswith("pi.") and "weight" in name}

    assert reopened(box((8, 8, 8))) == {"pi.conv.0.weight": (16, 8, 3, 3), "pi.0.weight": (3, 576)}
    assert reopened(box((2, 2, 2), -1, 1, **FLOAT)) == {"pi.0.weight": (3, 8), "pi.1.weight": (2, 3)}
    assert reopened(box((4, 128))) == {"pi.0.weight": (3, 512), "pi.1.weight": (2, 3)}
    parts = spaces.Dict({"cube": box((8, 8, 8)), "map": box((2, 2, 2), -1, 1, **FLOAT)})
    assert reopened(parts)["pi.0.weight"] == (3, 576 + 8)
    vector = box((4,), -1, 1, **FLOAT)
    assert reopened(vector, hidden=[], activation="relu", conv_filters=[], free_log_std=False) == {
        "pi.0.weight": (2, 4)
    }


@pytest.mark.fast_on_torch
def test_every_refusal_is_ours(training_backend_name: str) -> None:
    for model in ({"image_layout": []}, {"image_layout": {}}, {"image_layout": {"": "HWC"}}, {"image_layout": True}):
        with pytest.raises(LearnerCoreError):
            learner(training_backend_name, box((84, 84, 3)), **model)
