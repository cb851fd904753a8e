"""Whole runs of ``launcher="spmd"``: ``python rank_runs.py train|go_on BACKEND COLLECTIVE FOLDER [LAUNCHER]``.

``settings BACKEND COLLECTIVE FOLDER`` changes settings and weights in a run, on all ranks alike and not.

``train`` makes a checkpoint of every kind of algorithm in the folder, ``go_on`` takes them up on any number of ranks.
Prints one line of JSON: {kind: what the test looks at}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import learner_core as lc
from learner_core.sampling.recording import RECORDING_FORMAT
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig

from support.learners import flat_state
from support.parallel_envs import make_signals
from support.rank_script import COMPILE, eager, next_place
from support.told import Batches, told, told_to

_SIGNALS = {"policies": {"speaker": lc.RLModuleSpec(model={"hidden": [4]}), "listener": None}}


def ppo_agents(folder: Path) -> Any:
    config = PPOConfig().environment(make_signals).multi_agent(**_SIGNALS)
    return config.training(train_batch_size=46, minibatch_size=16, num_epochs=2)


def sac(folder: Path) -> Any:
    config = SACConfig().environment("Pendulum-v1")
    config.training(train_batch_size=9, learning_starts=6, timesteps_per_iteration=8, buffer_capacity=30)
    return config.training(prioritized_replay=True, n_step=2)


def bc(folder: Path) -> Any:
    path = folder / "recording"
    if not path.exists():
        rng = np.random.default_rng(0)
        columns = {"obs": rng.normal(size=(37, 4)).astype(np.float32), "actions": rng.integers(0, 2, 37)}
        lc.save_state(path, {"format": RECORDING_FORMAT, "columns": columns})
    config = BCConfig().environment("CartPole-v1")
    return config.training(input_path=str(path), train_batch_size=16, minibatch_size=6, updates_per_iteration=3)


def impala(folder: Path) -> Any:
    config = IMPALAConfig().environment("CartPole-v1").training(train_batch_size=25, timesteps_per_iteration=120)
    return config.training(broadcast_interval=2).env_runners(rollout_fragment_length=5, num_envs_per_env_runner=3)


def appo_agents(folder: Path) -> Any:
    config = APPOConfig().environment(make_signals).multi_agent(**_SIGNALS)
    config.training(train_batch_size=15, timesteps_per_iteration=60, circular_buffer_num_batches=2, use_kl_loss=True)
    return config.env_runners(rollout_fragment_length=5, num_envs_per_env_runner=3)


KINDS: dict[str, Any] = {"ppo_agents": ppo_agents, "sac": sac, "bc": bc, "impala": impala, "appo_agents": appo_agents}


class _Listener:
    """Writes down what one rank gives to every update."""

    def __init__(self, algorithm: Any) -> None:
        self.heard: list[dict[str, Any]] = []
        self._group = algorithm.learner_group
        self._update = self._group.update_from_batch
        self._group.update_from_batch = self

    def __call__(self, batch: Any, **arguments: Any) -> Any:
        names = set(self._group.module_specs)
        modules = batch if set(batch) <= names else {next(iter(names)): batch}
        kept = {name: arguments[name] for name in ("timesteps", "minibatch_size") if name in arguments}
        self.heard.append({"batch": {mid: dict(columns) for mid, columns in modules.items()}, **kept})
        return self._update(batch, **arguments)


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def _alone(config: Any, state: Any, heard: list[list[dict[str, Any]]]) -> Any:
    """What one learner makes of all ranks' rows: its state."""
    one = eager(config).learners(launcher="local", data_shards=len(heard)).build_learner()
    one.set_state(state)
    for updates in zip(*heard, strict=True):
        modules = dict.fromkeys(mid for update in updates for mid in update["batch"])
        batch, rows = {}, {}
        for mid in modules:
            parts = [update["batch"].get(mid) for update in updates]
            batch[mid] = _joined([part for part in parts if part is not None])
            rows[mid] = [0 if part is None else len(part["actions"]) for part in parts]
        arguments = {name: value for name, value in updates[0].items() if name != "batch"}
        if batch:
            one.update_from_batch(batch=batch, shard_rows=rows, **arguments)
    return one.get_state()


def _difference(one: Any, other: Any) -> float:
    a, b = flat_state(one), flat_state(other)
    assert sorted(a) == sorted(b), sorted(set(a) ^ set(b))
    numbers = {path: value for path, value in a.items() if np.size(value) and not isinstance(value, str)}
    return max(float(np.max(np.abs(np.subtract(value, b[path], dtype=np.float64)))) for path, value in numbers.items())


def _unaccounted(algorithm: Any) -> int:
    """Steps of all ranks that an asynchronous algorithm has neither learned from nor still has."""
    state = algorithm.get_state()
    parts = state.get("ranks") or [state]
    uses = int(algorithm.config.circular_buffer_iterations_per_batch)
    left = 0
    for part in parts:
        for waiting in part["extra"]["waiting"].values():
            left += 0 if waiting["batch"] is None else uses * int(waiting["batch"]["loss_mask"].sum())
        for batch, _, uses_left in part["extra"]["replay"]["batches"]:
            left += uses_left * sum(int(columns["loss_mask"].sum()) for columns in batch.values())
    trained = parts[0]["extra"]["throughput"]["num_env_steps_trained_lifetime"]
    agents = max(1, len(algorithm.learner_group.module_specs))  # everybody acts in every step
    return uses * agents * algorithm.num_env_steps_sampled_lifetime - trained - left


def train(backend: str, collective: str, folder: str) -> dict[str, Any]:
    """Two iterations, a checkpoint, a third iteration; then back to the checkpoint, and the third again."""
    found = {}
    for kind, make in KINDS.items():
        config = make(Path(folder)).framework(backend, compile=COMPILE, precision="float64")
        config.rl_module(model={"hidden": [8]})
        # Ranks that compile on a busy machine may be silent for longer than the default.
        config.learners(launcher="spmd", collective=collective, launcher_options=next_place(), timeout_s=60.0)
        path = Path(folder) / kind
        with config.build() as algorithm:
            for _ in range(2):
                algorithm.train()
            algorithm.save(path)
            before = algorithm.learner_group.get_state()
            listener = _Listener(algorithm)
            results = algorithm.train()
            after = algorithm.learner_group.get_state()
            heard = algorithm.ranks.gather(listener.heard)
            every = algorithm.ranks.gather((after, results["learners"], results["env_runners"]))
            algorithm.restore(path)
            again = algorithm.train()
            found[kind] = {
                "updates": len(listener.heard),
                "alone": _difference(_alone(config, before, heard), after),
                "ranks": max(_difference(every[0][0], state) for state, _, _ in every),
                "results": all(part[1:] == every[0][1:] for part in every) and again["learners"] == results["learners"],
                "again": _difference(algorithm.learner_group.get_state(), after),
                "steps": algorithm.num_env_steps_sampled_lifetime,
            }
            if kind in ("impala", "appo_agents"):
                found[kind]["unaccounted"] = _unaccounted(algorithm)
                throughput = again["throughput"]
                found[kind]["lag"] = algorithm.ranks.gather(throughput["policy_lag_mean"])
    return found


def go_on(backend: str, collective: str, folder: str, launcher: str = "spmd") -> dict[str, Any]:
    """Take up every checkpoint, whatever number of ranks it is of, and train on."""
    found = {}
    for kind in KINDS:
        path = Path(folder) / kind
        saved = lc.load_state(path)["state"]
        options = next_place() if launcher == "spmd" else {}
        settings = {"launcher": launcher, "launcher_options": options, "collective": collective}
        if kind.endswith("agents"):
            settings["env"] = make_signals
        with lc.Algorithm.from_checkpoint(path, framework=backend, **settings) as algorithm:
            difference = _difference(algorithm.learner_group.get_state(), saved["learner"])
            begun = algorithm.num_env_steps_sampled_lifetime
            algorithm.train()
            states = algorithm.learner_group.foreach_learner(lambda learner: learner.get_state())
            found[kind] = {
                "difference": difference,
                "ranks": max(_difference(states[0], state) for state in states),
                "size": algorithm.num_ranks,
                "steps": [begun, algorithm.num_env_steps_sampled_lifetime],
                "updates": states[0]["counters"]["num_updates"] - saved["learner"]["counters"]["num_updates"],
            }
            if kind in ("impala", "appo_agents"):
                found[kind]["unaccounted"] = _unaccounted(algorithm)
    return found


def settings(backend: str, collective: str, folder: str) -> dict[str, Any]:
    """Value targets as ``gamma`` changes, and what is said where the ranks are given different things."""
    config = told("ppo", backend, use_critic=False, normalize_advantages="off")
    config.learners(launcher="spmd", collective=collective, launcher_options=next_place(), timeout_s=60.0)
    targets, refused = [], []
    with config.build() as algorithm:
        rank = algorithm.rank
        batches = Batches(algorithm)
        group, weights = algorithm.learner_group, told_to(algorithm.learner_group.get_weights(), 1.0)
        algorithm.set_weights(weights)
        path = f"{folder}/state"
        group.save_state(path)
        for gamma in (0.5, 0.25):
            algorithm.set_config(gamma=gamma)
            algorithm.train()
            targets.append(batches.targets())
        before = flat_state(group.get_state())
        for call in (
            lambda: algorithm.set_config(gamma=0.75 if rank else 0.5),
            lambda: algorithm.set_config(**{"evaluation_interval": 1} if rank else {}),
            lambda: algorithm.set_config(**{"gama" if rank else "gamma": 0.5}),
            lambda: group.set_config(lr=0.5 if rank else 0.25),
            lambda: algorithm.set_weights(told_to(weights, float(rank))),
            lambda: group.set_state({**group.get_state(), "noise": {"seed": rank}}),
            lambda: group.load_state(f"{path}{rank or ''}"),
            lambda: group.add_module(module_id="a" if rank else "b", module_spec=group.module_specs["default_policy"]),
        ):
            try:
                call()
                refused.append("")
            except lc.LearnerCoreError as error:
                refused.append(f"{type(error).__name__}: {error}")
        after = flat_state(group.get_state())
        algorithm.train()
        algorithm.save(Path(folder) / "checkpoint")
        return {
            "targets": targets,
            "refused": refused,
            "unchanged": before.keys() == after.keys() and all(np.array_equal(after[k], v) for k, v in before.items()),
            "settings": [algorithm.config.gamma, group.learner_settings()["gamma"], algorithm.config.lr],
            "stored": lc.load_state(Path(folder) / "checkpoint")["config"]["settings"]["gamma"],
        }


if __name__ == "__main__":
    print(json.dumps({"train": train, "go_on": go_on, "settings": settings}[sys.argv[1]](*sys.argv[2:])), flush=True)
