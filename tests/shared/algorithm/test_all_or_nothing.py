"""What takes a state over does so whole or not at all: whichever part of the tree is wrong, no bit changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import learner_core as lc
from learner_core.errors import StateError
from learner_core_algorithms import IMPALAConfig, PPOConfig, SACConfig

from support.parallel_envs import make_crossing
from support.states import state_bytes
from support.told import told

MID = "default_policy"


def ppo(backend: str, env: Any = "CartPole-v1") -> Any:
    return (
        PPOConfig()
        .environment(env)
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=2, normalize_observations=True)
        .training(train_batch_size=16, minibatch_size=8, num_epochs=1, use_kl_loss=True)
        .rl_module(model={"hidden": [4]})
    )


def sac(backend: str) -> Any:
    return (
        SACConfig()
        .environment("Pendulum-v1")
        .framework(backend, compile=False)
        .training(train_batch_size=4, learning_starts=6, timesteps_per_iteration=8, buffer_capacity=30)
        .training(prioritized_replay=True)
        .rl_module(model={"hidden": [4]})
    )


def agents(backend: str) -> Any:
    config = ppo(backend, make_crossing)
    return config.multi_agent(policies=["m", "old"], policy_mapping_fn=everybody_m, policies_to_train=["m"])


def impala(backend: str) -> Any:
    return (
        IMPALAConfig()
        .environment("CartPole-v1")
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=3, rollout_fragment_length=5)
        .training(train_batch_size=20, timesteps_per_iteration=30)
        .rl_module(model={"hidden": [4]})
    )


def everybody_m(agent: str) -> str:
    return "m"


def changed(state: Any, path: str, change: Any) -> Any:
    """A copy of a state in which one place is another."""
    result = copy.deepcopy(state)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = result
    for part in parents:
        place = place[part]
    place[last] = change(place[last]) if callable(change) else change
    return result


BAD: list[tuple[Callable[[str], Any], str, Any, str]] = [
    (ppo, "algorithm/iteration", -4, "algorithm/iteration: expected a non-negative int below 2**52, got -4"),
    (ppo, "algorithm/iteration", "3", "algorithm/iteration: expected a non-negative int below 2**52, got '3'"),
    (ppo, "algorithm/iteration", 0.5, "algorithm/iteration: expected a non-negative int below 2**52, got 0.5"),
    (ppo, "learner/counters/num_updates", 2**62, "num_updates: expected a non-negative int below 2**52"),
    (ppo, "algorithm/num_env_steps_sampled_lifetime", 2**70, "below 2**52, got 1180591620717411303424"),
    (ppo, "algorithm/recent_episodes", [[1.0]], "algorithm/recent_episodes/[0]: expected [a finite number, a non-"),
    (
        ppo,
        f"learner/variables/{MID}/kl_coeff",
        float("nan"),
        "kl_coeff: expected a finite number of at least 0, got nan",
    ),
    (ppo, f"learner/optimizer/{MID}/default/slots/v/pi.0.weight", lambda v: v - 1, "v/pi.0.weight: expected values of"),
    (ppo, f"learner/rl_module/{MID}/pi.0.weight", lambda w: w * np.nan, "pi.0.weight: expected finite values, got nan"),
    (ppo, "env_runner/lanes/kind", 7, 'env_runner/lanes/kind: expected a kind of environments: "sync", "parallel"'),
    (ppo, "env_runner/episodes/returns", np.zeros((1, 2)), "episodes/returns: expected shape (2,), got (1, 2)"),
    (ppo, "env_runner/observations/moments/obs/m2", lambda m: -m - 1, "moments/obs/m2: expected values of at least 0"),
    (ppo, "env_runner/obs", lambda obs: obs * 1j, "env_runner/obs: expected an array of float32"),
    (ppo, "env_runner/envs/0/layers/0/class", "gym", "env_runner/envs/[0]: expected the environment"),
    (ppo, "env_runner/envs/0/layers/0/attributes/length", "long", "attributes/length: expected a number, got a text"),
    (ppo, "env_runner/envs/0/layers/0/attributes/step", 1, "attributes/step: expected nothing: no state is kept there"),
    (ppo, "env_runners/counts/weights_version", None, "counts/weights_version: expected an int from -1 to"),
    (ppo, "extra", {"replay": 1}, "extra/replay: unknown entry"),
    (sac, "extra/replay/storage/columns/actions", lambda a: a[np.newaxis], "columns/actions: expected shape (?, 1)"),
    (sac, "extra/replay/storage/columns/actions", lambda a: a * 0 + 99, "actions must be in Box(-2.0, 2.0"),
    (sac, "extra/replay/storage/columns/obs", lambda a: a[:-1], "columns/obs: expected 24 rows, got shape (23, 3)"),
    (sac, "extra/replay/storage/position", 7, "storage/position: expected the place behind 24 rows of 30, got 7"),
    (sac, "extra/replay/priorities", lambda p: p * 0, "extra/replay/priorities: expected a positive one of every row"),
    (sac, "extra/owed", 1e300, "extra/owed: expected a number from 0 to below 1, got 1e+300"),
    (sac, f"learner/targets/{MID}/qf.0.weight", None, "qf.0.weight: expected an array of float32 of shape (4, 4), got"),
    (ppo, "algorithm/spaces/default_policy/action_space", np.full(3, np.nan), "algorithm/spaces/default_policy"),
    (
        ppo,
        "algorithm/spaces/default_policy/observation_space/high",
        np.zeros((2, 2)),
        "algorithm/spaces/default_policy",
    ),
    (agents, "env_runner/game/copies/0/length", "x", "game/copies/[0]/length: expected a non-negative int"),
    (agents, "env_runner/game/copies/0/obs", [], "game/copies/[0]/obs: expected at least one agent that acts next"),
    (agents, "env_runner/game/agents", ["a", "a"], "game/agents: expected every agent once"),
    (agents, "algorithm/modules/policies", 3, "algorithm/modules/policies: expected a dict"),
    (impala, "extra/throughput/num_updates_lifetime", True, "num_updates_lifetime: expected a non-negative int"),
    (impala, "extra/num_submitted", -1, "extra/num_submitted: expected a non-negative int"),
    (impala, "extra/sent", [3, {MID: {"x": 1}}], f"extra/sent/[1]/rl_module/{MID}"),
    (impala, "extra/sent", [3, {}], "extra/sent/[1]/rl_module: expected the weights of one module at least"),
]


@pytest.mark.parametrize("make", [ppo, pytest.param(sac, marks=pytest.mark.fast_on_torch), agents, impala])
def test_a_refused_state_changes_no_bit(training_backend_name: str, make: Any, tmp_path: Path) -> None:
    with make(training_backend_name).build() as algo:
        for _ in range(3):
            algo.train()
        good = algo.get_state()
        algo.train()
        before = state_bytes(algo.get_state())
        for maker, path, change, words in BAD:
            if maker is not make:
                continue
            bad = changed(good, path, change)
            lc.save_state(
                tmp_path / "bad", {"format": "learner_core/algorithm", "schema": 1, "config": {}, "state": bad}
            )
            for take in (lambda bad=bad: algo.set_state(bad), lambda: algo.restore(tmp_path / "bad")):
                with pytest.raises(StateError) as caught:
                    take()
                assert words in str(caught.value), (path, str(caught.value))
                assert state_bytes(algo.get_state()) == before, path
        algo.set_state(good)
        assert state_bytes(algo.get_state()) == state_bytes(good)
        algo.train()


class Stubborn(gym.Env[Any, Any]):
    """Saves itself; takes back no state that was saved after its third step, and says so in a way of its own."""

    def __init__(self, env_config: Any = None) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.clock = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.clock = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.clock += 1
        return np.full(2, self.clock, np.float32), 1.0, False, False, {}

    def get_state(self) -> int:
        return self.clock

    def set_state(self, clock: int) -> None:
        if clock == 16:
            raise KeyError("sixteen")
        self.clock = clock


@pytest.mark.parametrize("processes", [0, 2])
def test_what_an_environment_raises_is_undone(training_backend_name: str, processes: int) -> None:
    """Two environments: the first has taken the state over by the time the second refuses it."""
    config = ppo(training_backend_name, Stubborn).env_runners(num_env_runners=processes)
    with config.training(train_batch_size=16 * max(1, processes)).build() as algo:
        algo.train()
        algo.train()
        state = algo.get_state()
        algo.train()
        before = state_bytes(algo.get_state())
        # Of the last environment of the last runner.
        runner = state["env_runners"]["runners"][-1]["runner"] if processes else state["env_runner"]
        assert runner["envs"][-1]["layers"][0]["own"] == 16
        for other in (state["env_runner"], *(part["runner"] for part in state["env_runners"]["runners"])):
            for env in other["envs"]:
                env["layers"][0]["own"] = 5
        runner["envs"][-1]["layers"][0]["own"] = 16
        with pytest.raises(StateError, match=r"env_runner: cannot be taken over: KeyError: 'sixteen'"):
            algo.set_state(state)
        assert state_bytes(algo.get_state()) == before
        algo.train()


@pytest.mark.fast_on_torch
def test_a_state_of_other_modules_is_refused_before_any_comes_or_goes(training_backend_name: str) -> None:
    with agents(training_backend_name).build() as algo:
        algo.train()
        good = algo.get_state()
        algo.add_module(module_id="new", like="m")
        algo.remove_module("old")
        algo.train()
        more = algo.get_state()
        before = state_bytes(more)
        for path, change in (
            ("learner/rl_module/old/pi.0.weight", None),
            ("env_runner/normalizers/old/moments/obs/count", -1.0),
            ("algorithm/num_env_steps_sampled_lifetime", 1.5),
        ):
            with pytest.raises(StateError, match=path):
                algo.set_state(changed(good, path, change))
            assert state_bytes(algo.get_state()) == before
            assert list(algo.learner_group.module_specs) == ["m", "new"]
        algo.set_state(good)
        assert list(algo.learner_group.module_specs) == ["m", "old"] == list(algo.config.policies)
        assert state_bytes(algo.get_state()) == state_bytes(good)
        algo.set_state(more)
        assert state_bytes(algo.get_state()) == before
        algo.train()


@pytest.mark.fast_on_torch
def test_a_module_that_cannot_be_added_changes_nothing(training_backend_name: str) -> None:
    with agents(training_backend_name).build() as algo:
        algo.train()
        before = state_bytes(algo.get_state())
        good = algo.learner_group.get_weights()["m"]
        tries: list[dict[str, Any]] = [
            {"module_spec": 3},
            {"module_spec": lc.RLModuleSpec(model={"hiden": [4]})},
            {"module_spec": lc.RLModuleSpec(model={"hidden": [-1]})},
            {"module_spec": lc.RLModuleSpec(module_class=dict)},
            {"like": "nobody"},
            {"like": "m", "settings": {"lr": -1.0}},
            {"like": "m", "weights": {**good, "pi.0.weight": np.zeros(3)}},
            {"like": "m", "weights": {**good, "pi.0.weight": good["pi.0.weight"] * np.nan}},
            {"like": "m", "weights": {"x": good}},
            {"like": "m", "policies_to_train": ["nobody"]},
            {"like": "m", "policy_mapping_fn": lambda agent: "nobody"},
        ]
        for arguments in tries:
            with pytest.raises(lc.LearnerCoreError):
                algo.add_module(module_id="new", **arguments)
            assert list(algo.learner_group.module_specs) == ["m", "old"], arguments
            assert state_bytes(algo.get_state()) == before, arguments
        algo.train()


def test_files_of_another_kind_say_what_they_are(training_backend_name: str, tmp_path: Path) -> None:
    with ppo(training_backend_name).build() as algo:
        algo.train()
        group = algo.learner_group
        algo.save(tmp_path / "algorithm")
        group.save_state(tmp_path / "learner")
        lc.save_state(tmp_path / "weights", group.get_weights())
        lc.save_state(tmp_path / "one", group.get_weights()[MID])
        lc.save_state(tmp_path / "state", algo.get_state())
        lc.save_state(tmp_path / "runners", algo.env_runners.get_state())
        lc.save_state(tmp_path / "recording", {"format": "learner_core/recording", "columns": {"obs": np.zeros(3)}})
        lc.save_state(tmp_path / "else", {"what": 1})
        before = state_bytes(algo.get_state())
        kinds = {
            "algorithm": "a checkpoint of an Algorithm, not .*Algorithm.restore",
            "weights": "weights, not .*set_module_state",
            "one": "weights of one module, not",
            "state": "the state of an Algorithm, not .*Algorithm.set_state",
            "runners": "the state of environment runners, not",
            "recording": "a recording, not .*input_path",
            "else": "nothing in it is of a learner's state|what: unknown entry|missing",
        }
        for name, words in kinds.items():
            for strict in (True, False):
                with pytest.raises(StateError, match=words):
                    group.load_state(tmp_path / name, strict=strict)
        (learner,) = [group._learners.learner]
        with pytest.raises(StateError, match=kinds["algorithm"]):
            learner.load_state(tmp_path / "algorithm", strict=False)
        for name in ("learner", "weights", "one", "state", "runners", "recording", "else"):
            for read in (algo.restore, lc.Algorithm.from_checkpoint):
                with pytest.raises(StateError, match="no checkpoint of an Algorithm"):
                    read(tmp_path / name)
        with pytest.raises(StateError, match="a learner's state, not the state of an Algorithm: load_state and"):
            algo.set_state(group.get_state())
        with pytest.raises(StateError, match="a learner's state, not weights"):
            group.set_weights(group.get_state())
        assert state_bytes(algo.get_state()) == before


def test_a_subclass_that_keeps_more_and_checks_less(training_backend_name: str) -> None:
    """Its own ``set_extra_state`` raises half-way: it is given back what it had."""
    from learner_core.algorithm.on_policy import OnPolicyAlgorithm

    class Counting(OnPolicyAlgorithm):
        def setup(self) -> None:
            self.seen, self.kept = 0, 0

        def get_extra_state(self) -> dict[str, Any]:
            return {"seen": self.seen, "kept": self.kept}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state["seen"]
            self.kept = state["kept"]

    class Config(PPOConfig):
        algorithm_class = Counting

    config = Config().environment("CartPole-v1").framework(training_backend_name, compile=False)
    with config.training(train_batch_size=8, minibatch_size=8).rl_module(model={"hidden": [4]}).build() as algo:
        algo.train()
        algo.seen = 5
        state = algo.get_state()
        algo.train()
        algo.seen = 7
        before = state_bytes(algo.get_state())
        with pytest.raises(StateError, match=r"extra: cannot be taken over: KeyError: 'kept'"):
            algo.set_state({**state, "extra": {"seen": 6}})
        assert algo.seen == 7 and state_bytes(algo.get_state()) == before
        algo.set_state(state)
        assert algo.seen == 5 and state_bytes(algo.get_state()) == state_bytes(state)


def test_a_stored_batch_of_nobody_is_refused(training_backend_name: str) -> None:
    """Of the rows of several ranks one may have none; all together have some."""
    uses = {"circular_buffer_num_batches": 2, "circular_buffer_iterations_per_batch": 3}
    with told("appo", training_backend_name, **uses).build() as algo:
        algo.train()
        state = algo.get_state()
        before = state_bytes(state)
        assert state["extra"]["replay"]["batches"]
        with pytest.raises(lc.StateError, match="batches/\\[0\\]/\\[0\\]: expected the rows of one module at least"):
            algo.set_state(changed(state, "extra/replay/batches/0/0", {}))
        assert state_bytes(algo.get_state()) == before
        algo.set_state(state)
        algo.train()
