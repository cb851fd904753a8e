"""What a rank does in tests of ``launcher="spmd"``: ``python rank_script.py SCENARIO BACKEND COLLECTIVE [...]``.

Prints one line of JSON: what the test compares. RANKS_COMPILE=true or false sets ``compile``; else it is left alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

import learner_core as lc
from learner_core.group.horovod import plugin as horovod_plugin
from learner_core.group.learner_group import LearnerGroup
from learner_core_algorithms import PPOConfig, SACConfig
from learner_core_algorithms.ppo.learner import PPOLearner

from support.learners import OBS, ToyConfig, ToyLearner, flat_state, ppo_batch, regression_batch, sac_batch, two_modules
from support.listening import listening_addresses
from support.row_networks import norm_network
from support.states import state_bytes

TWO = Discrete(2)
BOX = Box(-1.0, 1.0, (2,), np.float32)
_PORT = int(os.environ.get("MASTER_PORT", 0))
COMPILE = {"": None, "true": True, "false": False}[os.environ.get("RANKS_COMPILE", "")]


class Faulty(PPOLearner):
    """On rank 1 something happens within a step of the second update."""

    def compute_gradients(self, loss_fn: Any, params: Any) -> Any:
        if self.train_state.num_updates == 1 and self.ranks.rank == 1:
            kind = self.config.env_config["fault"]
            if kind == "raise":
                raise RuntimeError("a hook of rank 1 failed")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])
        return super().compute_gradients(loss_fn, params)


def ppo(backend: str, precision: str = "float32") -> Any:
    """12 steps an update, two data shards."""
    config = PPOConfig().framework(backend, compile=COMPILE, precision=precision)
    config.training(lr=3e-4, train_batch_size=192, minibatch_size=64, num_epochs=2)
    return config.environment(observation_space=OBS, action_space=TWO).rl_module(model={"hidden": [16, 16]})


def eager(config: Any) -> Any:
    """The same, uncompiled: whatever is compiled is held against that."""
    return config.copy().framework(config.framework_name, compile=False, precision=config.precision)


def _rows(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, dict):
        return {name: _rows(column, start, stop) for name, column in batch.items()}
    return batch[start:stop]


def _difference(one: Any, group: LearnerGroup) -> float:
    """Largest difference to the learner's state; infinite where the ranks differ among themselves."""
    states = group.foreach_learner(lambda learner: flat_state(learner.get_state()))
    alone = flat_state(one.get_state())
    for state in states[1:]:
        if any(not np.array_equal(state[path], value) for path, value in states[0].items()):
            return float("inf")
    largest = 0.0
    for path, value in alone.items():
        if isinstance(value, str):
            assert states[0][path] == value, path
        elif np.size(value):
            largest = max(largest, float(np.max(np.abs(np.subtract(value, states[0][path], dtype=np.float64)))))
    return largest


def equal(config: Any, collective: str, make_batch: Any, rows: list[list[int]]) -> float:
    """Largest difference of the ranks to one learner with the same shards, over updates of these rows."""
    size = int(os.environ["WORLD_SIZE"])
    config.learners(data_shards=size)
    one = eager(config).build_learner()
    config.learners(launcher="spmd", collective=collective, launcher_options=next_place())
    with config.build_learner_group() as group:
        assert group.ranks is not None
        rank = group.ranks.rank
        for update, counts in enumerate(rows):
            batch = make_batch(sum(counts), update)
            first = sum(counts[:rank])
            timesteps = {"num_env_steps_sampled_lifetime": 100 * update}
            own = _rows(batch, first, first + counts[rank]) if counts[rank] else {}
            alone = one.update_from_batch(batch=batch, timesteps=timesteps, shard_rows=counts)
            results = group.update_from_batch(batch=own, timesteps=timesteps)
            for name, value in alone["default_policy"].items():
                if name != "vf_explained_variance":
                    assert np.isclose(results["default_policy"][name], value, rtol=1e-4, atol=1e-5), name
        return _difference(one, group)


def next_place() -> dict[str, Any]:
    """A meeting point of its own for every group of this process."""
    global _PORT
    _PORT += 1
    return {"rendezvous": f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{_PORT}", "start_timeout_s": 90}


def equality(backend: str, collective: str, updates: str) -> dict[str, float]:
    """Largest differences, by what is trained."""
    size = int(os.environ["WORLD_SIZE"])
    even, uneven = [[96] * size] * int(updates), [[120, 72], [1, 64], [0, 130], [7, 0]]
    found = {"ppo float32": equal(ppo(backend), collective, lambda n, u: ppo_batch(n, TWO, seed=u), even)}
    if int(updates) >= 10:
        wide = ppo(backend, "float64")
        found["ppo float64"] = equal(wide, collective, lambda n, u: ppo_batch(n, TWO, seed=u), even)
    if size == 2:
        config = ppo(backend, "float64").training(normalize_advantages="minibatch")
        found["uneven"] = equal(config, collective, lambda n, u: ppo_batch(n, TWO, seed=u), uneven)
        sac = SACConfig().framework(backend, compile=COMPILE, precision="float64").rl_module(model={"hidden": [16]})
        sac.training(train_batch_size=16, minibatch_size=16)
        sac.environment(observation_space=OBS, action_space=BOX)
        found["sac"] = equal(sac, collective, lambda n, u: sac_batch(n, seed=u), [[8, 8], [11, 5], [0, 16]])
        found["modules"] = modules(backend, collective)
        if not COMPILE and int(updates) >= 10:
            found["norms"] = norms(backend, collective)
    return found


def norms(backend: str, collective: str) -> float:
    """A network with BatchNorm, whose running statistics are part of what is compared."""
    network = lc.RLModuleSpec(norm_network(backend), OBS, TWO)
    config = ppo(backend, "float64").rl_module(rl_module_spec=network, model={})
    rows = [[40, 40], [33, 7], [1, 16]]
    return equal(config, collective, lambda n, u: ppo_batch(n, TWO, seed=u), rows)


def modules(backend: str, collective: str) -> float:
    """``right`` has rows on rank 1 alone, then on nobody, and rank 0 has none of anything."""
    config = (
        ToyConfig().framework(backend, compile=COMPILE, precision="float64").rl_module(rl_module_spec=two_modules())
    )
    config.training(lr=0.05, minibatch_size=4, train_batch_size=8, num_epochs=1, grad_clip=None)
    config.learners(learner_class=ToyLearner, data_shards=2)
    one = eager(config).build_learner()
    config.learners(launcher="spmd", collective=collective, launcher_options=next_place())
    left, right = regression_batch(9), regression_batch(3, seed=1)
    with config.build_learner_group() as group:
        assert group.ranks is not None
        for own in ([{"left": left}, {"right": right}], [{}, {"left": left}], [{"right": right}, {"left": left}]):
            counts = {
                mid: [len(rows[mid]["obs"]) if mid in rows else 0 for rows in own]
                for mid in ("left", "right")
                if any(mid in rows for rows in own)
            }
            one.update_from_batch(batch={m: left if m == "left" else right for m in counts}, shard_rows=counts)
            group.update_from_batch(batch=own[group.ranks.rank])
        return _difference(one, group)


def group_calls(backend: str, collective: str, path: str) -> dict[str, Any]:
    """Everything a group is asked for besides updates, and refusals that all ranks share."""
    config = ppo(backend).learners(launcher="spmd", collective=collective, launcher_options=next_place())
    with config.build_learner_group() as group:
        ranks = group.ranks
        assert ranks is not None
        own = ppo_batch(40 + ranks.rank, TWO, seed=ranks.rank)
        group.update_from_batch(batch=own)
        group.save_state(path)
        saved = group.get_state()
        group.update_from_batch(batch=own, async_update=True)
        group.load_state(path)
        restored = flat_state(group.get_state())
        same = all(np.array_equal(restored[name], value) for name, value in flat_state(saved).items())
        refused = []
        bad = {**own, "advantages": np.full(len(own["obs"]), np.nan)}
        for call in (
            lambda: group.update_from_batch(batch=bad if ranks.rank else own),
            lambda: group.update_from_batch(batch=own, minibatch_size=16 + ranks.rank),
            lambda: group.foreach_learner(lambda learner: 1 // learner.ranks.rank),
        ):
            try:
                call()
            except Exception as error:
                refused.append(f"{type(error).__name__}: {error}")
        group.update_from_batch(batch=own)
        return {
            "pids": group.foreach_learner(lambda learner: os.getpid()),
            "same": same,
            "refused": refused,
            "updates": group.get_state()["counters"]["num_updates"],
            "gathered": ranks.gather(ranks.rank * 10),
            "first": ranks.on_first(lambda: os.getpid()),
        }


def fault(backend: str, collective: str, kind: str) -> dict[str, Any]:
    """Two updates; within the second something happens to rank 1."""
    config = ppo(backend).learners(launcher="spmd", collective=collective, learner_class=Faulty, timeout_s=4.0)
    config.environment(env_config={"fault": kind})
    with config.build_learner_group() as group:
        assert group.ranks is not None
        for update in range(2):
            if update:
                print("second", flush=True)
            group.update_from_batch(batch=ppo_batch(96, TWO, seed=group.ranks.rank))
    return {}


def alone(backend: str, collective: str) -> dict[str, Any]:
    """Rank 0 waits for one that never comes."""
    options = {"start_timeout_s": 1.5}
    ppo(backend).learners(launcher="spmd", collective=collective, launcher_options=options).build_learner_group()
    return {}


def _refused(algorithm: Any, path: str) -> tuple[str, bool]:
    """What is said of a checkpoint whose part of rank 1 is wrong, and whether this rank is as it was."""
    tree = lc.load_state(path)
    tree["state"]["ranks"][1]["env_runner"]["episodes"]["lengths"][0] = -1
    before = state_bytes(algorithm.get_state())
    try:
        algorithm.set_state(tree["state"])
    except lc.LearnerCoreError as error:
        return f"{type(error).__name__}: {error}", state_bytes(algorithm.get_state()) == before
    return "", False


def samples(backend: str, collective: str, path: str) -> dict[str, Any]:
    """Two iterations, a checkpoint, one more iteration; then back to the checkpoint and the same iteration again."""
    config = (
        PPOConfig().environment("CartPole-v1").framework(backend, compile=COMPILE).rl_module(model={"hidden": [16]})
    )
    config.training(train_batch_size=128, minibatch_size=64, num_epochs=1)
    config.env_runners(num_envs_per_env_runner=2, normalize_observations=True)
    config.learners(launcher="spmd", collective=collective, launcher_options=next_place())
    with config.build() as algorithm:
        for _ in range(2):
            results = algorithm.train()
        algorithm.save(path)
        before = algorithm.train()
        weights = algorithm.learner_group.get_weights()["default_policy"]
        algorithm.restore(path)
        refusal, unchanged = _refused(algorithm, path)
        after = algorithm.train()
        again = algorithm.learner_group.get_weights()["default_policy"]
        return {
            "results": {name: results[name] for name in ("env_runners", "learners", "num_env_steps_sampled_lifetime")},
            "same": all(np.array_equal(weights[name], value) for name, value in again.items()),
            "refusal": refusal,
            "unchanged": unchanged,
            "counts": [before["num_env_steps_sampled_lifetime"], after["num_env_steps_sampled_lifetime"]],
            "evaluated": algorithm.evaluate(2),
            "seed": algorithm.seed,
            "seen": {name: float(part["count"]) for name, part in algorithm.runner.get_statistics().items()},
            "means": {name: part["mean"].tolist() for name, part in algorithm.runner.get_statistics().items()},
        }


def exits(backend: str, collective: str) -> dict[str, Any]:
    """Rank 1 leaves between two updates, while the others go on."""
    config = ppo(backend).learners(launcher="spmd", collective=collective, timeout_s=4.0)
    with config.build_learner_group() as group:
        assert group.ranks is not None
        group.update_from_batch(batch=ppo_batch(96, TWO, seed=0))
        if group.ranks.rank == 1:
            threading.Timer(0.5, os._exit, [3]).start()
            threading.Event().wait()
        group.update_from_batch(batch=ppo_batch(96, TWO, seed=0))
    return {}


def drift(backend: str, collective: str) -> dict[str, Any]:
    """Rank 1's parameters come to differ, which the check after the next update finds."""
    config = ppo(backend).learners(launcher="spmd", collective=collective, check_parameters_every=1)
    with config.build_learner_group() as group, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert group.ranks is not None
        if group.ranks.rank == 1:
            learner = group._learners.learner
            moved = {name: value + 1 for name, value in learner.get_module_state()["default_policy"].items()}
            learner.set_module_state({"default_policy": moved})
        group.update_from_batch(batch=ppo_batch(64, TWO, seed=0))
        weights = group.foreach_learner(lambda learner: learner.get_module_state()["default_policy"])
        same = all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())
    return {"same": same, "warned": [str(warning.message) for warning in heard]}


def as_typed(backend: str, collective: str, *doing: str) -> dict[str, Any]:
    """Default settings alone: ranks meet, ask each other, and ``train`` if told to."""
    config = PPOConfig().environment("CartPole-v1").framework(backend).learners(launcher="spmd")
    if collective != "default":
        config.learners(collective=collective)
    with warnings.catch_warnings(record=True) as heard, config.build() as algorithm:
        if "train" in doing:
            algorithm.train()
        return {
            "pids": algorithm.learner_group.foreach_learner(lambda learner: os.getpid()),
            "gathered": algorithm.gather((algorithm.rank, {"x": np.arange(2.0)}))[1][1]["x"].tolist(),
            "warned": [str(warning.message) for warning in heard if "refused" in str(warning.message)],
            "listening": sorted(listening_addresses(os.getpid())),
        }


def twice(backend: str, collective: str) -> dict[str, Any]:
    """Two groups one after the other, at the same place."""
    pids = []
    for _ in range(2):
        with ppo(backend).learners(launcher="spmd", collective=collective).build_learner_group() as group:
            pids += group.foreach_learner(lambda learner: os.getpid())
    return {"pids": pids}


def choice(backend: str, hidden: str) -> dict[str, Any]:
    """What ``collective="auto"`` comes to, where Horovod is hidden from these ranks: "" or "01", say."""
    if os.environ["RANK"] in hidden:
        horovod_plugin.importlib.util = SimpleNamespace(find_spec=lambda name: None)
    config = ppo(backend).learners(launcher="spmd", launcher_options=next_place())
    with config.build_learner_group() as group:
        assert group.ranks is not None
        group.update_from_batch(batch=ppo_batch(96, TWO, seed=group.ranks.rank))
        return {"collective": group.collective}


def main() -> None:
    scenarios = (equality, group_calls, fault, exits, alone, samples, drift, as_typed, twice, choice)
    scenario: Any = {function.__name__: function for function in scenarios}[sys.argv[1]]
    try:
        print(json.dumps(scenario(*sys.argv[2:])), flush=True)
    except lc.LearnerCoreError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
