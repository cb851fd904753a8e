"""Names of other libraries: each is answered where it is typed, with names that exist here, and exists nowhere here."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from gymnasium.spaces import Box, Discrete

import learner_core as lc
import learner_core_algorithms
from learner_core import numpy_xp
from learner_core.algorithm.algorithm import Algorithm
from learner_core.cli import main as cli
from learner_core.config import foreign_table as table
from learner_core.config.foreign_names import as_markdown, known_option
from learner_core.errors import ConfigError, LearnerCoreError, UnknownNameError
from learner_core.group.learner_group import LearnerGroup
from learner_core.learning.actor_critic import ActorCriticModule
from learner_core.learning.learner import Learner
from learner_core_algorithms import PPOConfig, SACConfig

from support.typed_names import CONFIGS, OPTIONS, check_code

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
TABLES = (table.SETTINGS, table.METHODS, table.ALGORITHM, table.LEARNER, table.CLASSES, table.OPTIONS, table.COMMANDS)
ENTRIES = [(name, entry) for one in TABLES for name, entry in one.items()]


# ---- what an answer names exists -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "entry"), ENTRIES, ids=[name for name, _ in ENTRIES])
def test_an_answer_names_what_exists(name: str, entry: table.Known) -> None:
    assert entry.settings or entry.words
    for field in (*entry.settings, *entry.off_policy):
        setting, _, key = field.partition(".")
        assert any(setting in kind.settings() for kind in CONFIGS), field
        assert not key or key in ActorCriticModule.model_keys, field
    for code in re.findall(r"`([^`]+)`", entry.words):
        check_code(code)


def test_the_foreign_names_exist_nowhere_here() -> None:
    for name in table.SETTINGS:
        for kind in CONFIGS:
            for item in kind.settings().values():
                assert item.name == item.keyword or name != item.keyword, (name, kind)
                assert name != item.name, (name, kind)
    for name in table.METHODS:
        assert not any(name in dir(kind) for kind in CONFIGS), name
    for name in table.ALGORITHM:
        assert not hasattr(Algorithm, name), name
    for name in table.LEARNER:
        assert not hasattr(Learner, name) and not hasattr(LearnerGroup, name), name
    for name in table.CLASSES:
        assert name not in lc.__all__
        assert name not in learner_core_algorithms.__all__
    assert not {f"--{name}" for name in table.OPTIONS} & OPTIONS
    assert not table.COMMANDS.keys() & cli._COMMANDS.keys()


def test_the_page_has_the_table_as_it_is() -> None:
    text = PAGE.read_text()
    assert as_markdown().strip() in text, "put the table into docs/migrating.md: foreign_names.as_markdown()"


# ---- where it is typed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(table.SETTINGS))
@pytest.mark.parametrize("kind", [PPOConfig, SACConfig])
def test_a_setting_is_answered(kind: Any, name: str) -> None:
    for type_it in (
        lambda: kind().training(**{name: 1}),
        lambda: setattr(kind(), name, 1),
        lambda: kind(**{name: 1}),
        lambda: kind().env_runners(**{name: 1}),
    ):
        with pytest.raises(ConfigError, match=rf"has no setting '{name}'\. [\w, 3]+: {name}; here: .+"):
            type_it()


@pytest.mark.parametrize(
    ("kind", "name", "answer"),
    [
        (PPOConfig, "learning_rate", ".training(lr=...)."),
        (SACConfig, "learning_rate", ".training(actor_lr=..., critic_lr=..., alpha_lr=...)."),
        (PPOConfig, "batch_size", ".training(minibatch_size=...)."),
        (SACConfig, "batch_size", ".training(train_batch_size=...)."),
        (PPOConfig, "n_steps", ".training(train_batch_size=...): PPO: n_steps * n_envs timesteps."),
        (SACConfig, "n_steps", ".training(n_step=...): PPO: n_steps * n_envs timesteps."),
        (PPOConfig, "fcnet_hiddens", '.rl_module(model={"hidden": ...}).'),
        (SACConfig, "clip_range", "-: sac has none, clip_param is of other algorithms."),
        (PPOConfig, "num_workers", ".env_runners(num_env_runners=...)."),
        (SACConfig, "target_update_interval", ".training(target_network_update_interval=...)."),
    ],
)
def test_the_words_of_an_answer(kind: Any, name: str, answer: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kind().training(**{name: 1})
    assert str(refused.value).endswith(f"; here: {answer}")


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("fcnet_hiddens", "RLlib: fcnet_hiddens; here: 'hidden'."),
        ("net_arch", "SB3: net_arch; here: 'hidden'."),
        ("use_lstm", 'RLlib: use_lstm; here: \'recurrent\': "lstm" or "gru".'),
        ("hiden", "Did you mean 'hidden'?"),
    ],
)
def test_a_setting_of_a_network_is_answered(key: str, answer: str) -> None:
    spec = lc.RLModuleSpec(ActorCriticModule, Box(-1, 1, (3,)), Discrete(2), model={key: [8]})
    with pytest.raises(ConfigError) as refused:
        spec.build(numpy_xp)
    assert str(refused.value).endswith(answer)


@pytest.mark.parametrize("name", list(table.METHODS))
def test_a_method_is_answered(name: str) -> None:
    config: Any = PPOConfig()
    assert not hasattr(config, name)
    with pytest.raises(
        UnknownNameError, match=rf"PPOConfig has no attribute '{name}'\. RLlib: {name}; here: .+"
    ) as error:
        getattr(config, name)
    assert isinstance(error.value, LearnerCoreError) and isinstance(error.value, AttributeError)


def test_a_misspelt_method_and_one_that_no_library_has() -> None:
    config: Any = PPOConfig()
    with pytest.raises(UnknownNameError, match=r"no attribute 'trainning'\. Did you mean 'training'\?"):
        config.trainning(lr=1)
    with pytest.raises(UnknownNameError, match=r"no attribute 'zzz'\.$"):
        config.zzz()


def test_what_python_asks_of_a_configuration_still_works() -> None:
    config = PPOConfig().training(lr=0.5)
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config.copy()):
        assert twin == config and twin is not config
    assert not hasattr(config, "__len__") and not hasattr(config, "_ipython_canary_method_should_not_exist_")


def test_a_constructor_called_as_a_model_s() -> None:
    with pytest.raises(
        ConfigError, match=r"PPOConfig\('MlpPolicy', 'CartPole-v1'\).*PPOConfig\(\)\.environment\(env\)"
    ):
        PPOConfig("MlpPolicy", "CartPole-v1")  # type: ignore[misc]
    with pytest.raises(ConfigError, match="Did you mean 'gamma'"):
        PPOConfig(gama=0.9)  # type: ignore[call-arg]
    assert PPOConfig(gamma=0.9).gamma == 0.9


def test_a_configuration_with_arguments_of_its_own_is_made() -> None:
    class Own(lc.AlgorithmConfig):
        def __init__(self, size: int = 3, **settings: Any) -> None:
            super().__init__(**settings)
            object.__setattr__(self, "_size", size)

    assert [vars(one)["_size"] for one in (Own(7), Own(size=4, lr=0.5), Own())] == [7, 4, 3]


@pytest.mark.parametrize("name", list(table.CLASSES))
def test_a_class_of_a_model_is_answered(name: str) -> None:
    for package in (lc, learner_core_algorithms):
        model: Any = getattr(package, name)
        with pytest.raises(LearnerCoreError, match=rf"{name} is a class of .*; here: `\w+Config\(\)"):
            model("MlpPolicy", "CartPole-v1")
        with pytest.raises(LearnerCoreError, match=rf"{name} is a class of .*; here: `\w+Config\(\)"):
            model.load("model.zip")
        assert not hasattr(model, "__len__")
        with pytest.raises(AttributeError):
            _ = package.PPP  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(table.OPTIONS))
def test_an_option_is_answered(name: str) -> None:
    assert re.fullmatch(rf"[\w, 3]+: --{name}; here: .+\.", known_option(name, PPOConfig, "1"))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--timesteps 1000", "SB3: --timesteps; here: `--stop-timesteps N`."),
        ("--total-timesteps 1000 --num-envs 4", "here: --set num_envs_per_env_runner=4."),
        ("--n-timesteps=1000", "here: `--stop-timesteps N`."),
        ("--env-id CartPole-v1", "here: `--env NAME`."),
        ("--clip-coef=0.1", "CleanRL: --clip-coef; here: --set clip_param=0.1."),
        ("--nothing 3", "A setting is given by --set nothing=3."),
    ],
)
def test_a_command_line_of_another_program(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "ppo", *typed.split()])
    text = capsys.readouterr().err
    assert said in text and ".." not in text


def test_the_algorithm_as_an_option_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--algo", "sac", "--learning-rate", "1"])
    text = capsys.readouterr().err
    assert "`learner-core train ALGORITHM`" in text and "--set actor_lr=1 --set critic_lr=1 --set alpha_lr=1" in text
    assert cli.main(["enjoy"]) == 2
    assert "no command 'enjoy'. SB3: enjoy; here: `learner-core evaluate PATH`." in capsys.readouterr().err


def test_the_stack_of_rllib_is_the_only_one() -> None:
    """The API page switches it on."""
    config = PPOConfig()
    assert config.api_stack(enable_rl_module_and_learner=True) is config
    assert config.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True) is config
    with pytest.raises(ConfigError, match="there is one stack here"):
        config.api_stack(enable_rl_module_and_learner=False)
