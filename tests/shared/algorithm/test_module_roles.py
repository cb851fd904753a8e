"""Runs with modules that are no trained policy: at the door, with runner processes, checkpoints and exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core.algorithm.on_policy import OnPolicyAlgorithm
from learner_core.errors import ConfigError
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig
from learner_core_algorithms.ppo.learner import PPOLearner

from support.learners import states_differ
from support.parallel_envs import make_crossing
from support.turn_envs import MaskedDuel


class Forecast(lc.RLModule):
    """The squared error of a linear forecast of what is seen next, float[B]."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"weight": rng.normal(scale=0.1, size=(4, 4)).astype(np.float32)}

    def forward_train(self, params: Any, batch: Any) -> dict[str, Any]:
        xp = self.xp
        return {"error": xp.sum(xp.square(xp.linear(batch["obs"], params["weight"]) - batch["next_obs"]), axis=-1)}


class ForecastLearner(PPOLearner):
    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        if module_id == "forecast":
            return self.mean(fwd_out["error"])
        return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)


class Seen:
    """What the algorithm below has been shown; a class attribute, so that a test reads it."""

    fragments: list[tuple[str, int]] = []


class PaidByErrors(OnPolicyAlgorithm):
    def process_rollout(self, rollout: Any, *, module_id: str) -> Any:
        columns = rollout.columns
        rows = {name: columns[name].reshape(-1, 4) for name in ("obs", "next_obs")}
        errors = self.module_outputs("forecast", rows)["error"]
        expected = np.square(rows["obs"] @ self.learner_group.get_weights()["forecast"]["weight"].T - rows["next_obs"])
        np.testing.assert_allclose(errors, expected.sum(-1), rtol=1e-4)
        columns["rewards"] += errors.reshape(columns["rewards"].shape)
        Seen.fragments.append((module_id, rollout.num_env_steps))
        return rollout


@dataclass(kw_only=True, repr=False, eq=False)
class ForecastConfig(PPOConfig):
    algorithm_name = "ppo_with_forecast"
    algorithm_class = PaidByErrors
    default_learner_class = ForecastLearner


FORECAST = lc.MultiRLModuleSpec(
    {"default_policy": lc.RLModuleSpec(), "forecast": lc.RLModuleSpec(Forecast, rows_of="default_policy")}
)


def _short(config: Any, backend: str, **settings: Any) -> Any:
    config.framework(backend, compile=False).rl_module(model={"hidden": [8]})
    return config.training(train_batch_size=64, minibatch_size=32, num_epochs=2, **settings)


@pytest.fixture
def backend(training_backend_name: str) -> str:
    return training_backend_name


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.fast_on_torch)])
def test_a_model_learns_beside_the_policy_of_a_single_agent(backend: str, num_env_runners: int, tmp_path: Path) -> None:
    config = _short(ForecastConfig().environment("CartPole-v1"), backend).rl_module(rl_module_spec=FORECAST)
    config.env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=4)
    Seen.fragments = []
    with config.build() as algo:
        results = algo.train()
        assert results["learners"]["forecast"]["num_minibatch_steps"] == 4.0
        assert results["learners"]["__all__"]["num_modules_updated"] == 2.0
        assert Seen.fragments == [("default_policy", 32)] * 2 if num_env_runners else [("default_policy", 64)]
        assert set(algo.learner_group.get_weights()) == {"default_policy", "forecast"}
        algo.evaluate(num_episodes=1)
        algo.save(tmp_path / "run")
        results = algo.train()
        lc.export(algo, tmp_path / "policy.onnx", to="onnx") if num_env_runners == 0 else None
    with lc.Algorithm.from_checkpoint(tmp_path / "run", import_modules=[__name__]) as again:
        resumed = again.train()
        assert resumed["learners"]["forecast"] == pytest.approx(results["learners"]["forecast"], rel=1e-6)
        weights = again.learner_group.get_weights()["forecast"]["weight"]
        with pytest.raises(ConfigError, match=r"there is no module 'forecasts'.* mean 'forecast'"):
            again.module_outputs("forecasts", {})
    assert weights.shape == (4, 4)


@pytest.mark.fast_on_torch
def test_two_learners_compute_what_one_does(backend: str) -> None:
    found = []
    for num_learners in (0, 2):
        config = _short(ForecastConfig().environment("CartPole-v1"), backend).rl_module(rl_module_spec=FORECAST)
        with config.learners(num_learners=num_learners).build() as algo:
            algo.train()
            found.append(algo.learner_group.get_weights())
    for mid, arrays in found[0].items():
        for name, value in arrays.items():
            np.testing.assert_allclose(found[1][mid][name], value, atol=2e-6)


@pytest.mark.fast_on_torch
def test_several_that_act_where_there_is_one_agent_are_refused(backend: str) -> None:
    specs = {"default_policy": lc.RLModuleSpec(), "other": lc.RLModuleSpec()}
    config = _short(PPOConfig().environment("CartPole-v1"), backend)
    with pytest.raises(ConfigError, match=r"2 modules act \(default_policy, other\).*rows_of"):
        config.rl_module(rl_module_spec=lc.MultiRLModuleSpec(specs)).build()
    with pytest.raises(ConfigError, match="'main': give it that name"):
        config.rl_module(rl_module_spec=lc.MultiRLModuleSpec({"main": lc.RLModuleSpec()})).build()


class AlwaysRight(lc.RLModule):
    """A script: no parameters, no distribution."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {}

    def forward_exploration(self, params: Any, batch: Any) -> dict[str, Any]:
        return {"actions": np.ones(len(batch["obs"]), np.int64)}


class Foreign(lc.RLModule):
    """Parameters, and no output that a loss would read."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"taste": rng.normal(size=(1,)).astype(np.float32)}

    def forward_exploration(self, params: Any, batch: Any) -> dict[str, Any]:
        return {"actions": np.full(len(batch["obs"]), int(params["taste"][0] > 0), np.int64)}


class Choice:
    """Two agents see a number each and choose among two; ten steps. PettingZoo's parallel interface."""

    metadata = {"name": "choice"}
    render_mode = None
    state_space = spaces.Box(-1.0, 1.0, (5,), np.float32)

    def __init__(self, config: Any = None) -> None:
        self.possible_agents, self.agents, self._step = ["a", "b"], list[str](), 0

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-1.0, 1.0, (3,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2)

    def state(self) -> np.ndarray:
        return np.full(5, self._step / 10, np.float32)

    def _seen(self) -> dict[str, Any]:
        return {agent: np.full(3, (self._step - ord(agent)) / 100, np.float32) for agent in self.agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self._step = ["a", "b"], 0
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        self._step += 1
        agents = self.agents
        over = {agent: self._step == 10 or (agent == "b" and self._step == 6) for agent in agents}
        seen = self._seen()
        self.agents = [agent for agent in agents if not over[agent]]
        rewards = {agent: float(actions[agent]) for agent in agents}
        return seen, rewards, over, dict.fromkeys(agents, False), {agent: {} for agent in agents}

    def close(self) -> None:
        self.agents = []


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("make", [PPOConfig, IMPALAConfig, APPOConfig])
@pytest.mark.parametrize("opponent", [AlwaysRight, Foreign])
def test_an_opponent_that_does_not_learn(backend: str, make: Any, opponent: Any) -> None:
    config = make().environment(Choice).framework(backend, compile=False).rl_module(model={"hidden": [8]})
    if make is PPOConfig:
        config.training(train_batch_size=64, minibatch_size=32, num_epochs=1)
    else:
        config.training(train_batch_size=80, minibatch_size=80, timesteps_per_iteration=160)
        config.env_runners(rollout_fragment_length=10, num_envs_per_env_runner=4)
    trained = None if opponent is AlwaysRight else ["a"]
    config.multi_agent(policies={"a": None, "b": lc.RLModuleSpec(opponent)}, policies_to_train=trained)
    with config.build() as algo:
        for _ in range(5):
            results = algo.train()
            if results["learners"].get("a", {}).get("num_minibatch_steps"):
                break
        assert results["learners"]["a"]["num_minibatch_steps"] > 0 and not results["learners"].get("b")
        played = algo.evaluate(num_episodes=2)["agent_episode_return_mean"]["b"]
        assert played == 6.0 if opponent is AlwaysRight else played in (0.0, 6.0)


@pytest.mark.fast_on_torch
def test_policies_share_an_encoder_wherever_they_are(backend: str, tmp_path: Path) -> None:
    """In runner processes, after a checkpoint, in a snapshot of one and in exports each has all of its parameters."""
    specs = {
        "a": lc.RLModuleSpec(model={"vf_share_layers": True}),
        "b": lc.RLModuleSpec(model={"vf_share_layers": True}),
        "trunk": lc.RLModuleSpec(shares=["encoder.*"], shared_by=["a", "b"]),
    }
    config = _short(PPOConfig().environment(Choice), backend).multi_agent(policies=["a", "b"])
    config.rl_module(rl_module_spec=lc.MultiRLModuleSpec(specs)).env_runners(num_env_runners=1)
    with config.build() as algo:
        algo.train()
        weights = algo.learner_group.get_weights()
        assert sorted(weights["trunk"]) == ["encoder.0.bias", "encoder.0.weight"]
        assert not any(name.startswith("encoder") for mid in "ab" for name in weights[mid])
        algo.env_runners.sample(2)  # runners take the newest weights before a fragment
        given = algo.env_runners.foreach_runner(_weights_of_players)[0]
        for mid in "ab":
            assert not states_differ(given[mid], {**weights[mid], **weights["trunk"]})
        algo.save(tmp_path / "run")
        algo.add_module(module_id="old", like="a", policy_mapping_fn=_old_plays_b)
        assert "encoder.0.weight" in algo.learner_group.get_weights()["old"]
        expected = algo.evaluate(num_episodes=2)
    lc.export(tmp_path / "run", tmp_path / "a.safetensors", to="safetensors", module_id="a")
    from safetensors.numpy import load_file

    assert sorted(load_file(tmp_path / "a.safetensors")) == sorted([*weights["a"], *weights["trunk"]])
    with lc.Algorithm.from_checkpoint(tmp_path / "run", env=Choice, num_env_runners=0) as again:
        again.add_module(module_id="old", like="a", policy_mapping_fn=_old_plays_b)
        assert again.evaluate(num_episodes=2) == expected


def _weights_of_players(runner: Any) -> dict[str, Any]:
    return {mid: dict(player.policy._params) for mid, player in runner.players.items()}


def _old_plays_b(agent: str) -> str:
    return "a" if agent == "a" else "old"


# ---- critics that see more


@pytest.mark.fast_on_torch
@pytest.mark.parametrize(("kind", "more"), [("all", 3 + 3 + 2), ("state", 5)])
@pytest.mark.parametrize("num_env_runners", [0, 1])
def test_a_critic_sees_what_the_policy_does_not(
    backend: str, kind: str, more: int, num_env_runners: int, tmp_path: Path
) -> None:
    config = _short(PPOConfig().environment(Choice), backend).env_runners(num_env_runners=num_env_runners)
    config.multi_agent(policies=["a", "b"], critic_observes=kind)
    with config.build() as algo:
        weights = algo.learner_group.get_weights()["a"]
        assert weights["pi.0.weight"].shape == (8, 3) and weights["vf.0.weight"].shape == (8, 3 + more)
        before = weights["vf.0.weight"]
        algo.train()
        assert np.abs(algo.learner_group.get_weights()["a"]["vf.0.weight"] - before).min() > 0
        algo.save(tmp_path / "run")
        expected = algo.train()["learners"]["a"]
        algo.evaluate(num_episodes=1)
    with lc.Algorithm.from_checkpoint(tmp_path / "run", env=Choice) as again:
        assert again.train()["learners"]["a"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.fast_on_torch
def test_all_observations_are_those_of_the_step(backend: str) -> None:
    """Literal rows: own, all and present, also where an agent has left, and what is seen last."""
    config = _short(PPOConfig().environment(Choice), backend).env_runners(num_envs_per_env_runner=1)
    config.multi_agent(policies=["a", "b"], critic_observes="all")
    with config.build() as algo:
        rollout = algo.runner.sample(10)["a"].columns
    step = np.arange(10)
    a, b = ((step - ord(agent)) / 100 for agent in "ab")
    there = step < 6
    np.testing.assert_allclose(rollout["obs"]["own"][:, 0, 0], a, atol=1e-6)
    np.testing.assert_allclose(rollout["obs"]["all"]["a"][:, 0, 0], a, atol=1e-6)
    np.testing.assert_allclose(rollout["obs"]["all"]["b"][:, 0, 0], np.where(step <= 6, b, 0.0), atol=1e-6)
    assert rollout["obs"]["present"][:, 0].tolist() == [[1, int(here or at == 6)] for at, here in enumerate(there)]
    np.testing.assert_allclose(rollout["next_obs"]["all"]["a"][-1, 0, 0], (10 - ord("a")) / 100, atol=1e-6)


@pytest.mark.fast_on_torch
def test_turns_and_masks_with_a_central_critic(backend: str) -> None:
    config = PPOConfig().environment(lambda env_config: MaskedDuel(), action_mask_in_info=True)
    config = _short(config, backend).multi_agent(policies=["shared"], critic_observes="all")
    with config.build() as algo:
        results = algo.train()
    assert results["learners"]["shared"]["num_minibatch_steps"] > 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PPOConfig().environment("CartPole-v1").multi_agent(critic_observes="all"), "needs several agents"),
        (
            PPOConfig().environment(make_crossing).multi_agent(policies=["x"], critic_observes="state"),
            "no state_space",
        ),
        (
            PPOConfig().environment("CartPole-v1").rl_module(model={"policy_reads": ["own"]}),
            "policy_reads.*needs a Dict observation",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(backend: str, config: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.framework(backend, compile=False).build()


def test_algorithms_without_such_a_critic_say_so() -> None:
    for make, words in ((BCConfig, "no value function"), (SACConfig, "one agent's")):
        with pytest.raises(ConfigError, match=words):
            make().multi_agent(critic_observes="all")


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("make", [PPOConfig, SACConfig])
def test_a_policy_reads_a_part_of_a_dict_observation(backend: str, make: Any) -> None:
    """Privileged observations: of the critic's, of V as of Q."""
    parts = {"seen": spaces.Box(-1, 1, (2,), np.float32), "hidden": spaces.Box(-1, 1, (3,), np.float32)}
    config = make().environment(
        observation_space=spaces.Dict(parts), action_space=spaces.Box(-1.0, 1.0, (1,), np.float32)
    )
    learner = config.framework(backend, compile=False).rl_module(model={"policy_reads": ["seen"]}).build_learner()
    weights = learner.get_module_state()["default_policy"]
    critic = "vf.0.weight" if make is PPOConfig else "qf.0.weight"
    assert weights["pi.0.weight"].shape[1] == 2 and weights[critic].shape[1] == (5 if make is PPOConfig else 6)
    for bad, words in (([], "expected a list"), (["sen"], "has no 'sen'. Did you mean 'seen'"), ("seen", "a list")):
        with pytest.raises(ConfigError, match=words):
            config.copy().rl_module(model={"policy_reads": bad}).build_learner()
