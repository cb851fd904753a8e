"""Settings that change no number of a small run, seen in this process: what a user sees of two values of each."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import learner_core as lc
from learner_core.errors import (
    ConfigError,
    LearnerGroupError,
    NonFiniteError,
)
from learner_core.learning.actor_critic import ActorCriticModule
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig
from learner_core_algorithms.ppo.learner import PPOLearner

from .effects import MID, OF_BC, batch, ppo, shows
from .told import Told, Watched, told

# ---- the environment and its spaces ----------------------------------------------------------------------------------


class Masked(Told):
    """Forbids action 0, which ``info`` says."""

    def reset(self, **arguments: Any) -> Any:
        obs, _ = super().reset(**arguments)
        return obs, {"action_mask": np.array([0, 1], np.int8)}

    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], {"action_mask": np.array([0, 1], np.int8)})


@shows("action_mask_in_info")
def _masks(backend: str, folder: Path) -> None:
    taken = {}
    for heard in (False, True):
        config = told("ppo", backend).environment(lambda settings: Masked(), env_config={}, action_mask_in_info=heard)
        with config.build() as algo:
            watched = Watched(algo)
            algo.train()
            taken[heard] = set(watched.take().tolist())
    assert taken == {False: {0.0, 1.0}, True: {1.0}}


@shows("observation_space", "action_space")
def _spaces(backend: str, folder: Path) -> None:
    def shapes(size: int, actions: int) -> tuple[Any, Any]:
        config = told("ppo", backend).environment(
            None, observation_space=spaces.Box(-1, 1, (size,)), action_space=spaces.Discrete(actions)
        )
        weights = config.build_learner().get_module_state()[MID]
        return weights["pi.0.weight"].shape, weights["pi.1.weight"].shape

    assert shapes(2, 3) == ((4, 2), (3, 4))
    assert shapes(5, 3) == ((4, 5), (3, 4))
    assert shapes(2, 6) == ((4, 2), (6, 4))


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@shows("checkpoint_every", "checkpoint_keep", "checkpoint_folder", neutral=True)
def _checkpoints(backend: str, folder: Path) -> None:
    def files(name: str, **settings: Any) -> list[int]:
        config = told("ppo", backend).checkpointing(folder=folder / name, **settings)
        with config.build() as algo:
            for _ in range(6):
                algo.train()
        return [int(file[11:-8]) for file in sorted(os.listdir(folder / name))]

    assert files("one", every=1, keep=2) == [5, 6]
    assert files("two", every=2, keep=2) == [4, 6]
    assert files("three", every=1, keep=3) == [4, 5, 6]
    assert sorted(os.listdir(folder)) == ["one", "three", "two"]


# ---- the framework ---------------------------------------------------------------------------------------------------


@shows("framework_name")
def _frameworks(backend: str, folder: Path) -> None:
    assert told("ppo", backend).build_learner().backend.name == backend
    with pytest.raises(ConfigError, match="backend 'numpy' serves policies and cannot train"):
        told("ppo", "numpy").build_learner()


@shows("device")
def _devices(backend: str, folder: Path) -> None:
    told("ppo", backend).framework(device="cpu").build_learner()
    with pytest.raises(ConfigError, match="device='cuda:99'"):
        told("ppo", backend).framework(device="cuda:99").build_learner()


@shows("compile", slow=True)
def _compiled(backend: str, folder: Path) -> None:
    for compile_ in (True, False):
        learner = told("ppo", backend).framework(compile=compile_).build_learner()
        assert learner.update_from_batch(batch())["__all__"]["compiled"] == float(compile_)


@shows("compile", "debug", neutral=True)
def _debug_is_eager(backend: str, folder: Path) -> None:
    told("ppo", backend).framework(compile=False, debug=True).freeze()
    told("ppo", backend).framework(compile=True, debug=False).freeze()
    with pytest.raises(ConfigError, match="debug runs everything eagerly"):
        told("ppo", backend).framework(compile=True, debug=True).build()


@shows("debug", slow=True)
def _debug_never_compiles(backend: str, folder: Path) -> None:
    """Of a run that is old enough for every backend to compile by itself."""
    for debug in (False, True):
        learner = told("ppo", backend).framework(compile=None, debug=debug).build_learner()
        state = learner.get_state()
        state["counters"]["num_minibatch_steps"] = 10**6
        learner.set_state(state)
        assert learner.update_from_batch(batch())["__all__"]["compiled"] == float(not debug)


# ---- updates ---------------------------------------------------------------------------------------------------------


class Counting(PPOLearner):
    """Knows how many rows its loss was given."""

    rows: list[int]

    def compute_loss_for_module(self, **arguments: Any) -> Any:
        self.rows = [*getattr(self, "rows", []), int(self.xp.shape(arguments["batch"]["advantages"])[0])]
        return super().compute_loss_for_module(**arguments)


@shows("accumulate")
def _parts(backend: str, folder: Path) -> None:
    """The same step, of parts of the rows."""
    seen, weights = {}, {}
    for parts in (1, 3):
        config = told("ppo", backend, lr=0.1, accumulate=parts, minibatch_size=12).learners(learner_class=Counting)
        learner = config.framework(precision="float64").build_learner()
        learner.rows = []
        learner.update_from_batch(batch())
        seen[parts], weights[parts] = learner.rows, learner.get_module_state()[MID]
    assert seen == {1: [12], 3: [4, 4, 4]}
    for name, value in weights[1].items():
        np.testing.assert_allclose(weights[3][name], value, atol=1e-9)


class Infinite(PPOLearner):
    """Has no finite loss."""

    def compute_loss_for_module(self, **arguments: Any) -> Any:
        return super().compute_loss_for_module(**arguments) * float("inf")


@shows("nonfinite_gradients")
def _infinities(backend: str, folder: Path) -> None:
    def learner(what: str) -> Any:
        return told("ppo", backend, nonfinite_gradients=what).learners(learner_class=Infinite).build_learner()

    with pytest.raises(NonFiniteError):
        learner("raise").update_from_batch(batch())
    with pytest.warns(RuntimeWarning, match="skipped"):
        learner("skip").update_from_batch(batch())


class Marked(PPOLearner):
    """Says that it is another class."""

    def after_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        self.results[MID]["mark"] = 1.0


@shows("learner_class")
def _learner_classes(backend: str, folder: Path) -> None:
    for own in (None, Marked):
        with ppo(backend, learner_class=own).build() as algo:
            assert ("mark" in algo.train()["learners"][MID]) == (own is not None)
    for kind in (PPOConfig, SACConfig, IMPALAConfig, APPOConfig, BCConfig):
        default = kind().get_learner_class()
        own = type("Own", (default,), {})
        config = kind().learners(learner_class=own)
        assert (default, config.get_learner_class()) == (kind().get_learner_class(), own)


# ---- learners --------------------------------------------------------------------------------------------------------


@shows("launcher", "launcher_options", neutral=True)
def _launchers(backend: str, folder: Path) -> None:
    ppo(backend, launcher="local", launcher_options={}).build_learner_group().shutdown()
    with pytest.raises(ConfigError, match=r"launcher='locall'\): no such plugin.*Did you mean 'local'"):
        ppo(backend, launcher="locall")
    with pytest.raises(LearnerGroupError, match='launcher "local" has no options'):
        ppo(backend, launcher_options={"rendezvous": "a:1"}).build_learner_group()
    with pytest.raises(LearnerGroupError, match="launcher_options of \"spmd\": no option 'rendezvos'"):
        ppo(backend, launcher="spmd", launcher_options={"rendezvos": "a:1"}).build_learner_group()
    for seconds in (0.5, -1):  # a launcher other than "local" reads its own
        with pytest.raises(LearnerGroupError) as error:
            options = {"rendezvous": "127.0.0.1:1", "start_timeout_s": seconds}
            ppo(backend, launcher="spmd", launcher_options=options).build_learner_group()
        assert ("start_timeout_s=-1" in str(error.value)) == (seconds < 0)


@shows("num_gpus_per_learner", neutral=True)
def _gpus(backend: str, folder: Path) -> None:
    ppo(backend, num_gpus_per_learner=0).build_learner_group().shutdown()
    for num_learners in (0, 1):
        with pytest.raises(LearnerGroupError, match="need 64 GPUs, this machine shows"):
            ppo(backend, num_learners=num_learners, num_gpus_per_learner=64).build_learner_group()


@shows("collective", neutral=True)
def _collectives(backend: str, folder: Path) -> None:
    with pytest.raises(LearnerGroupError, match="reduces Torch's arrays only"):
        ppo("tf", num_learners=2, collective="torch").build_learner_group()
    with pytest.raises(ConfigError, match=r"collective='horovd'\): no such plugin.*Did you mean 'horovod'"):
        ppo(backend, collective="horovd")


class Gated(PPOLearner):
    """Updates when it is let."""

    gate = threading.Event()

    def before_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        assert self.gate.wait(60)


@shows("queue_full", "max_requests_in_flight_per_learner")
def _queues(backend: str, folder: Path) -> None:
    """Of six updates that come while none is done, how many are dropped; blocking drops none."""
    dropped = {}
    for full, limit in (("drop", 1), ("drop", 3), ("block", 1)):
        Gated.gate.clear()
        settings = {"queue_full": full, "max_requests_in_flight_per_learner": limit}
        with ppo(backend, learner_class=Gated, **settings).build_learner_group() as group:
            release = threading.Timer(0.2 if full == "block" else 60, Gated.gate.set)
            release.start()
            taken: list[dict[str, Any]] = []
            for _ in range(6):
                taken.append(group.update_from_batch(batch(), async_update=True))
            release.cancel()
            Gated.gate.set()
            taken.append(group.wait())
        totals = [result["__all__"] for result in taken if result]
        dropped[full, limit] = sum(total["num_updates_dropped"] for total in totals)
        assert sum(total["num_updates_reduced"] for total in totals) == 6 - dropped[full, limit]
    assert dropped == {("drop", 1): 5, ("drop", 3): 3, ("block", 1): 0}


# ---- sampling --------------------------------------------------------------------------------------------------------


class Reporting(ActorCriticModule):
    """Knows which namespace it acts over."""

    seen: set[str] = set()

    def forward_exploration(self, params: Any, batch: Any) -> dict[str, Any]:
        self.seen.add(self.xp.__name__ if hasattr(self.xp, "__name__") else type(self.xp).__name__)
        return self.forward_train(params, batch)


@shows("inference")
def _inference(backend: str, folder: Path) -> None:
    seen = []
    for who in ("numpy", "backend"):
        config = told("ppo", backend).rl_module(rl_module_spec=lc.RLModuleSpec(Reporting)).env_runners(inference=who)
        with config.build() as algo:
            Reporting.seen.clear()
            algo.runner.sample(2)
            seen.append(set(Reporting.seen))
    assert seen[0] != seen[1] and all(len(names) == 1 for names in seen)


# ---- several agents --------------------------------------------------------------------------------------------------


def _two(backend: str, **multi_agent: Any) -> Any:
    from .parallel_envs import PARTS, make_crossing

    assert {"a"} < set(PARTS)
    return told("ppo", backend).environment(make_crossing, env_config={}).multi_agent(**multi_agent)


def _first_module(agent: str) -> str:
    return "one"


def _by_name(agent: str) -> str:
    return "two" if agent == "a" else "one"


@shows("policies", "policy_mapping_fn")
def _modules(backend: str, folder: Path) -> None:
    learned = []
    for ids, mapping in ((["one"], None), (["one", "two"], _first_module), (["one", "two"], _by_name)):
        with _two(backend, policies=ids, policy_mapping_fn=mapping).build() as algo:
            assert set(algo.learner_group.get_weights()) == set(ids)
            results = algo.train()["learners"]
            learned.append({mid for mid in ids if "total_loss" in results.get(mid, {})})
    assert learned == [{"one"}, {"one"}, {"one", "two"}]


@shows("critic_observes")
def _critics(backend: str, folder: Path) -> None:
    from .parallel_envs import PARTS

    inputs = {}
    for kind in ("own", "all"):
        with _two(backend, policies=["one"], policy_mapping_fn=_first_module, critic_observes=kind).build() as algo:
            weights = algo.learner_group.get_weights()["one"]
            inputs[kind] = (weights["pi.0.weight"].shape[1], weights["vf.0.weight"].shape[1])
    seen, _ = inputs["own"]
    everything = seen + len(PARTS) * (seen + 1)  # its own, all agents' and who of them is there
    assert inputs == {"own": (seen, seen), "all": (seen, everything)}


# ---- sequences of behaviour cloning ----------------------------------------------------------------------------------


def _bc(backend: str, **training: Any) -> Any:
    config = BCConfig().framework(backend, compile=False, precision="float64")
    config.environment(None, observation_space=spaces.Box(-9, 9, (3,)), action_space=spaces.Discrete(3))
    config.rl_module(model={"hidden": [4], "recurrent": "gru", "recurrent_size": 3})
    return config.training(train_batch_size=12, minibatch_size=12, optimizer="sgd", lr=1.0, **training).build_learner()


@shows("max_seq_len", table=OF_BC)
def _lengths(backend: str, folder: Path) -> None:
    for length in (3, 6):
        assert _bc(backend, max_seq_len=length).batch_spec()["actions"].shape == (length,)


@shows("burn_in", table=OF_BC)
def _warm_up(backend: str, folder: Path) -> None:
    from .sequences import sequence_batch

    weights = []
    for burn_in in (0, 2):
        learner = _bc(backend, max_seq_len=6, burn_in=burn_in)
        state = learner.module[MID].unwrapped.initial_state()
        batch = sequence_batch(2, state, length=6)
        columns = {name.split("/")[0] for name in learner.batch_spec()}
        learner.update_from_batch({name: value for name, value in batch.items() if name in columns})
        weights.append(learner.get_module_state()[MID])
    assert not all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
