"""Several modules in one run: trained side by side, frozen, added, removed, saved and taken up."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import learner_core as lc
from learner_core.errors import ConfigError, EnvError, SpaceError, StateError
from learner_core_algorithms import PPOConfig

from support.learners import states_differ
from support.parallel_envs import PARTS, Crossing, make_crossing, make_signals


def small(backend: str, env: Any = make_signals, **multi_agent: Any) -> Any:
    """PPO on a speaker and a listener, each with a module of its own size and rate."""
    settings: dict[str, Any] = {
        "policies": {
            "speaker": lc.RLModuleSpec(model={"hidden": [4]}),
            "listener": None,
        },
        "settings": {"speaker": {"lr": 0.02, "clip_param": 0.1, "grad_clip": None, "use_kl_loss": False}},
    }
    return (
        PPOConfig()
        .environment(env)
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=2)
        .training(train_batch_size=40, minibatch_size=16, num_epochs=1, lr=0.01)
        .rl_module(model={"hidden": [8]})
        .multi_agent(**{**settings, **multi_agent})
    )


def crossing(backend: str, **multi_agent: Any) -> Any:
    """PPO on agents that come and go; ``old`` is there and plays nobody."""
    given = {"policies": ["m", "old"], "policy_mapping_fn": everybody_m, "policies_to_train": ["m"], **multi_agent}
    return small(backend, make_crossing, settings={}, **given)


def everybody_m(agent: str) -> str:
    return "m"


def sides(agent: str, episode: int) -> str:
    """``a`` is played by the snapshot in every other episode."""
    return "old" if agent == "a" and episode % 2 else "m"


def weights(algo: Any) -> Any:
    return algo.learner_group.get_weights()


def same(left: Any, right: Any) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in right)


def test_two_modules_train_side_by_side_with_settings_of_their_own(training_backend_name: str) -> None:
    with small(training_backend_name).build() as algo:
        before = weights(algo)
        results = algo.train()
        after = weights(algo)
    learners = results["learners"]
    assert learners["speaker"]["learning_rate"] == 0.02 and learners["listener"]["learning_rate"] == 0.01
    assert "mean_kl" in learners["listener"] and "mean_kl" not in learners["speaker"]
    assert learners["__all__"]["num_modules_updated"] == 2
    assert results["num_env_steps_sampled_lifetime"] == 40
    shown = results["env_runners"]
    assert shown["num_agent_steps_sampled_lifetime"] == 80
    assert (
        set(shown["agent_episode_return_mean"]) == set(shown["module_episode_return_mean"]) == {"speaker", "listener"}
    )
    assert shown["episode_return_mean"] == pytest.approx(sum(shown["agent_episode_return_mean"].values()))
    assert after["speaker"]["pi.0.weight"].shape == (4, 3) and after["listener"]["pi.0.weight"].shape == (8, 4)
    assert not any(same(after[mid], before[mid]) for mid in after)


def test_a_modules_own_settings_are_what_a_learner_of_those_settings_does(training_backend_name: str) -> None:
    """clip_param, lr and grad_clip of one module alone: its weights are those of a run in which everybody has them."""
    own = {"lr": 0.02, "clip_param": 0.1, "grad_clip": 0.01, "entropy_coeff": 0.1, "gamma": 0.5}
    with (
        small(training_backend_name, settings={"speaker": own}).build() as one,
        small(training_backend_name, settings={}).training(**own).build() as everybody,
    ):
        one.train()
        everybody.train()
        assert same(weights(one)["speaker"], weights(everybody)["speaker"])
        assert not same(weights(one)["listener"], weights(everybody)["listener"])


def test_one_module_may_play_everybody(training_backend_name: str) -> None:
    with crossing(
        training_backend_name, policies=["shared"], policy_mapping_fn=None, policies_to_train=None
    ).build() as algo:
        results = algo.train()
        assert list(results["env_runners"]["module_episode_return_mean"]) == ["shared"]
        assert sorted(results["env_runners"]["agent_episode_return_mean"]) == ["a", "b", "c"]
        played = algo.evaluate(2)
        assert played["num_episodes"] == 2 and played["agent_episode_return_mean"]["b"] == 203


def test_frozen_modules_play_and_do_not_learn(training_backend_name: str) -> None:
    with small(training_backend_name, policies_to_train=["listener"]).build() as algo:
        before = algo.learner_group.get_state()
        results = algo.train()
        after = algo.learner_group.get_state()
        assert results["learners"]["__all__"]["num_modules_updated"] == 1
        for part in ("rl_module", "optimizer", "variables"):
            assert not states_differ(before[part]["speaker"], after[part]["speaker"])
            assert states_differ(before[part]["listener"], after[part]["listener"])
        # All of them: nothing happens, and it is said.
        algo.set_policies_to_train([])
        results = algo.train()
        assert results["learners"]["__all__"] == {"num_modules_updated": 0.0}
        assert same(weights(algo)["listener"], after["rl_module"]["listener"])
        assert results["env_runners"]["num_env_steps_sampled"] == 40
        algo.set_policies_to_train(None)
        assert algo.train()["learners"]["__all__"]["num_modules_updated"] == 2
        with pytest.raises(ConfigError, match=r"'speakr' is not a policy\. Did you mean 'speaker'"):
            algo.set_policies_to_train(["speakr"])
        assert algo.config.policies_to_train is None


def test_a_snapshot_is_added_played_and_removed(training_backend_name: str) -> None:
    config = crossing(training_backend_name, policies=["m"], policies_to_train=["m"])
    with config.env_runners(normalize_observations=True).build() as algo:
        algo.train()
        trained = algo.learner_group.get_state()
        algo.add_module(module_id="old", like="m", policy_mapping_fn=sides)
        assert same(weights(algo)["old"], weights(algo)["m"])
        state = algo.learner_group.get_state()
        assert not states_differ(state["optimizer"]["m"], trained["optimizer"]["m"])  # goes on as if nothing happened
        statistics = algo.runner.get_statistics()
        assert statistics["observations/old/obs"]["count"] == statistics["observations/m/obs"]["count"] > 0
        old = weights(algo)["old"]
        for _ in range(2):
            results = algo.train()
        assert "policy_loss" not in results["learners"]["old"]
        assert results["learners"]["__all__"]["num_modules_updated"] == 1
        assert set(results["env_runners"]["module_episode_return_mean"]) == {"m", "old"}
        assert same(weights(algo)["old"], old) and not same(weights(algo)["m"], old)
        algo.remove_module("old", policy_mapping_fn=everybody_m)
        assert list(algo.config.policies) == ["m"] and algo.config.policies_to_train == ["m"]
        results = algo.train()
        assert set(results["learners"]) == {"m", "__all__"}
        # With settings, a spec and weights of its own, and learning.
        spec = lc.RLModuleSpec(model={"hidden": [3]})
        algo.add_module(
            module_id="new",
            module_spec=spec,
            settings={"lr": 0.5},
            policies_to_train=None,
            policy_mapping_fn=lambda agent: "new" if agent == "b" else "m",
        )
        algo.train()
        results = algo.train()["learners"]
        assert results["new"]["learning_rate"] == 0.5 and results["m"]["learning_rate"] == 0.01
        assert weights(algo)["new"]["pi.0.weight"].shape == (3, 3)


@pytest.mark.fast_on_torch
def test_refused_changes_change_nothing(training_backend_name: str) -> None:
    with crossing(training_backend_name).build() as algo:
        algo.train()
        before = algo.get_state()
        for change, words in (
            (lambda: algo.add_module(module_id="m"), "exists already"),
            (lambda: algo.add_module(module_id="x", like="q"), "there is no such module among m, old"),
            (lambda: algo.add_module(module_id="x", policy_mapping_fn=lambda agent: "y"), "maps agent 'a' to 'y'"),
            (lambda: algo.add_module(module_id="x", settings={"train_batch_size": 3}), "all modules share it"),
            (lambda: algo.add_module(module_id="a/b"), "without '/'"),
            (lambda: algo.remove_module("q"), "there is no module 'q'"),
            (lambda: algo.remove_module("m"), "maps agent 'a' to 'm'"),
            (lambda: algo.set_policy_mapping_fn(lambda agent: "gone"), "to 'gone'"),
            (lambda: algo.set_policies_to_train(["gone"]), "'gone' is not a policy"),
            (lambda: algo.add_module(module_id="x", like="m", weights={"pi": np.zeros(3)}), "pi.0.weight"),
        ):
            with pytest.raises((ConfigError, StateError), match=words):
                change()
        assert not states_differ(plain(algo.get_state()), plain(before))
        algo.remove_module("old")
        with pytest.raises(ConfigError, match="only one"):
            algo.remove_module("m")
    single = PPOConfig().environment("CartPole-v1").framework(training_backend_name, compile=False)
    with single.build() as algo, pytest.raises(ConfigError, match="one agent and one module"):
        algo.add_module(module_id="x")


def plain(tree: Any) -> Any:
    """Lists as dicts, for ``states_differ``, and numbers as what they are, however long."""
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return {str(i): plain(value) for i, value in enumerate(tree)}
    return str(tree) if type(tree) is int else tree


def test_a_checkpoint_holds_the_modules_there_are_and_goes_on_to_the_last_bit(
    training_backend_name: str, tmp_path: Any
) -> None:
    config = crossing(training_backend_name, policies=["m"], policies_to_train=["m"])
    with config.env_runners(normalize_observations=True).build() as algo:
        algo.train()
        algo.add_module(module_id="old", like="m", policy_mapping_fn=sides, settings={"lr": 0.3})
        algo.train()
        algo.save(tmp_path / "checkpoint")
        results = algo.train()
        expected = algo.get_state()
        given = {"env": make_crossing, "policy_mapping_fn": sides}  # no function is taken from a file
        with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", **given) as again:
            assert again.config.policies_to_train == ["m"] and again.config.policy_settings == {"old": {"lr": 0.3}}
            assert again.train()["learners"] == results["learners"]
            assert not states_differ(plain(again.get_state()), plain(expected))
        # Into a run that has never heard of the module, and back into one that has another.
        with config.build() as other:
            before = plain(other.get_state())
            with pytest.warns(
                UserWarning, match=r"who plays whom stays as it is here \(.*everybody_m\).*restore\(path"
            ):
                other.restore(tmp_path / "checkpoint")
            assert other.config.policy_mapping_fn is everybody_m
            assert states_differ(plain(other.get_state()), before)
            other.restore(tmp_path / "checkpoint", policy_mapping_fn=sides)
            other.train()
            assert not states_differ(plain(other.get_state()), plain(expected))
        algo.add_module(module_id="third", like="m")
        algo.remove_module("old", policy_mapping_fn=everybody_m)
        algo.train()
        algo.restore(tmp_path / "checkpoint", policy_mapping_fn=sides)
        algo.train()
        assert not states_differ(plain(algo.get_state()), plain(expected))


@pytest.mark.fast_on_torch
def test_a_mapping_without_a_name_has_to_be_given_again(training_backend_name: str, tmp_path: Any) -> None:
    mapping = lambda agent: "m"  # noqa: E731 - it is to have no name
    with crossing(training_backend_name, policy_mapping_fn=mapping).build() as algo:
        algo.save(tmp_path / "checkpoint")
        with pytest.raises(ConfigError, match="policy_mapping_fn"):
            lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", env=make_crossing)
        given = {"env": make_crossing, "policy_mapping_fn": everybody_m}
        with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint", **given) as again:
            assert again.train()["learners"] == algo.train()["learners"]


def test_a_checkpoint_of_the_other_kind_is_refused(training_backend_name: str, tmp_path: Any) -> None:
    with crossing(training_backend_name).build() as algo:
        algo.save(tmp_path / "several")
        state = algo.learner_group.get_state()
        saved = lc.load_state(tmp_path / "several")
        saved["state"]["learner"]["rl_module"]["m"]["pi.0.weight"] = np.zeros((1, 1))
        saved["state"]["algorithm"]["modules"]["policies"].pop("old")
        lc.save_state(tmp_path / "damaged", saved)
        with pytest.raises(StateError):
            algo.restore(tmp_path / "damaged")
        assert not states_differ(algo.learner_group.get_state(), state)  # "old" and what it learned is there
    single = PPOConfig().environment("CartPole-v1").framework(training_backend_name, compile=False)
    with single.build() as algo, pytest.raises(StateError, match="algorithm/modules"):
        algo.restore(tmp_path / "several")


def test_what_is_wrong_with_a_configuration_is_said_at_once(training_backend_name: str) -> None:
    backend = training_backend_name
    box = gym.spaces.Box(-1, 1, (7,), np.float32)
    for config, error, words in (
        (small(backend, policies=["shared"], settings={}), SpaceError, "'speaker' and 'listener', whose observation"),
        (
            small(backend, policies=["speaker", "other"], settings={}),
            ConfigError,
            "agent 'listener': there is no module",
        ),
        (small(backend, policy_mapping_fn=lambda agent: "lstener"), ConfigError, "Did you mean 'listener'"),
        (
            small(backend, policies={"speaker": None, "listener": lc.RLModuleSpec(observation_space=box)}),
            SpaceError,
            r"agent 'listener' has observation_space .*, but module 'listener'.*\(7,\)",
        ),
        (small(backend, policies={"speaker": None, "listener": {"lr": 1}}), ConfigError, "expected an RLModuleSpec"),
        (small(backend, policies=["speaker", "listener", "extra"], settings={}), SpaceError, "'extra' plays none of"),
        (small(backend).env_runners(normalize_rewards=True), ConfigError, "normalize_rewards"),
        (small(backend, "CartPole-v1"), EnvError, "no PettingZoo environment"),
        (PPOConfig().environment(make_signals).framework(backend), ConfigError, r"multi_agent\(policies="),
    ):
        with pytest.raises(error, match=words):
            config.build()
    for settings, words in (
        ({"speakr": {"lr": 1.0}}, "'speakr' is not a policy"),
        ({"speaker": {"lrr": 1.0}}, "Did you mean 'lr'"),
        ({"speaker": {"lr": "fast"}}, "lr="),
        ({"speaker": {"seed": 3}}, "belongs to .debugging"),
        ({"speaker": {"minibatch_size": 3}}, "all modules share it"),
    ):
        with pytest.raises(ConfigError, match=words):
            small(backend, settings=settings).copy().freeze()


@pytest.mark.fast_on_torch
def test_an_agent_that_appears_with_an_unknown_module_loses_its_fragment_only(training_backend_name: str) -> None:
    known = {"a": "m", "b": "m"}
    config = crossing(training_backend_name, policy_mapping_fn=lambda agent: known[agent]).environment(
        lambda env_config: Late(PARTS)
    )
    with config.build() as algo:
        before = algo.learner_group.get_state()
        with pytest.raises(ConfigError, match=r"policy_mapping_fn .*raised KeyError\('c'\)"):
            algo.train()
        assert not states_differ(algo.learner_group.get_state(), before)
        algo.set_policy_mapping_fn(everybody_m)
        assert algo.train()["learners"]["__all__"]["num_modules_updated"] == 1


class Late(Crossing):
    """Says beforehand nothing of the agent that comes late."""

    @property
    def possible_agents(self) -> list[str]:
        return self._names if self.agents else self._names[:2]

    @possible_agents.setter
    def possible_agents(self, names: list[str]) -> None:
        self._names, self.agents = names, []


def test_pettingzoos_own_environments_run(training_backend_name: str, tmp_path: Any) -> None:
    config = small(training_backend_name, "pettingzoo:classic/rps-v2", policies=None, settings={})
    with config.build() as algo:
        results = algo.train()
        assert sorted(results["env_runners"]["agent_episode_return_mean"]) == ["player_0", "player_1"]
        assert list(weights(algo)) == ["default_policy"]
        assert algo.evaluate(2)["episode_return_mean"] == 0.0
        algo.save(tmp_path / "checkpoint")
    with lc.Algorithm.from_checkpoint(tmp_path / "checkpoint") as again:
        again.train()
