"""A random walk through what can be changed in a run, beside a model of it; after each step all parts must agree.

The walk sets weights and settings through the Algorithm, the group and the learners, adds, removes and freezes modules,
trains, saves, restores and opens files anew. What the model says by then, learners, samplers, evaluation and the file
must say, too.
"""

from __future__ import annotations

import copy
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np

import learner_core as lc

from .learners import states_differ
from .parallel_envs import make_signals
from .told import make_told, told

#: What a step may set, by kind of run.
VALUES: dict[str, list[Any]] = {
    "lr": [0.0, 1e-3, 1e-2, [[0, 1e-2], [200, 1e-3]]],
    "gamma": [0.5, 0.9, 0.99],
    "entropy_coeff": [0.0, 0.1],
    "clip_param": [0.1, 0.3],
    "grad_clip": [None, 0.5],
    "evaluation_num_episodes": [2, 3],
    "evaluation_interval": [0, 3],
    "evaluation_max_episode_steps": [None, 2],
    "max_requests_in_flight_per_learner": [1, 2],
}
PPO_VALUES: dict[str, list[Any]] = {"lambda_": [0.5, 0.95], "num_epochs": [1, 2], "minibatch_size": [5, 10]}
#: Those that the group takes by itself, and a learner.
_OF_GROUP = ("lr", "gamma", "entropy_coeff", "clip_param", "grad_clip", "lambda_", "num_epochs", "minibatch_size")


def walk_config(kind: str, backend: str) -> Any:
    """A run of "one" agent, of "several", or an asynchronous one ("appo")."""
    if kind == "appo":
        return told("appo", backend, broadcast_interval=2)
    config = told("ppo", backend)
    if kind == "several":
        config.environment(make_signals, env_config={}).multi_agent(policies=["speaker", "listener"])
    return config.env_runners(normalize_rewards=kind == "one")


class Walk:
    """One run and its model.

    Args:
        kind: As of ``walk_config``.
        config: The configuration, maybe with runner or learner processes.
        seed: Of the steps.
        folder: For files.
    """

    def __init__(self, kind: str, config: Any, seed: int, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.rng = np.random.default_rng(seed)
        self.algo = config.build()
        self.env = make_signals if kind == "several" else make_told
        self.values = {**VALUES, **(PPO_VALUES if kind != "appo" else {})}
        self.settings = {name: getattr(self.algo.config, name) for name in self.values}
        self.modules = list(self.algo.learner_group.module_specs)
        self.frozen: list[str] = []
        self.weights: dict[str, Any] = self.algo.learner_group.get_weights()
        self.files: list[tuple[Path, dict[str, Any]]] = []
        self.log: list[str] = []

    def close(self) -> None:
        """Release the run."""
        self.algo.stop()

    def step(self) -> None:
        """One change, then everything compared."""
        names = ["train", "set_weights", "group_set_weights", "set_config", "group_set_config", "learner_set_config"]
        names += ["save", "save"] + (["restore", "reopen"] if self.files else [])
        if self.kind == "several":
            names += ["freeze", "add_module"] + (["remove_module"] if len(self.modules) > 2 else [])
        name = str(self.rng.choice(names))
        self.log.append(name)
        getattr(self, f"_{name}")()
        self.check()

    def check(self) -> None:
        """Learners, samplers, evaluation and a new file say what the model says."""
        algo, said = self.algo, " > ".join(self.log)
        group = algo.learner_group
        weights = group.get_weights()
        assert not states_differ(self.weights, weights), f"weights after {said}"
        self._check_samplers(weights, said)
        algo.evaluate(1)
        # Between two broadcasts asynchronous runners go on with what they had; evaluation has put it back.
        assert not states_differ(weights, _acting(algo.runner)) or self.kind == "appo", f"evaluation after {said}"
        for name, value in self.settings.items():
            assert getattr(algo.config, name) == value, f"{name} after {said}"
            if name in _OF_GROUP:
                assert group.learner_settings()[name] == value, f"{name} of the learners after {said}"
        assert sorted(group.module_specs) == sorted(self.modules), said
        trained = None if not self.frozen else [mid for mid in self.modules if mid not in self.frozen]
        mine = algo.config.policies_to_train
        assert (mine is None) == (trained is None) and sorted(mine or ()) == sorted(trained or ()), said
        path = self.folder / "now.lcstate"
        algo.save(path)
        tree = lc.load_state(path)
        assert tree["config"]["settings"] == algo.config.to_dict()["settings"], said
        for mid, arrays in tree["state"]["learner"]["rl_module"].items():
            assert all(np.array_equal(value, self.weights[mid][name]) for name, value in arrays.items()), said
        rates = group.foreach_learner(lambda learner: learner.config.lr)
        assert all(rate == self.settings["lr"] for rate in rates), f"a learner's lr after {said}"
        algo.notice_changes()  # foreach_learner counts as a change: the next one is to be noticed by itself

    def _check_samplers(self, weights: Any, said: str) -> None:
        algo = self.algo
        state = algo.get_state()  # what is sampled here is taken back
        algo.env_runners.sample(1)
        behind = self.kind == "appo" and self.log[-1] == "train"
        for acting, gamma in algo.env_runners.foreach_runner(_what_samples):
            assert behind or not states_differ(weights, acting), f"a sampler's weights after {said}"
            assert gamma in (None, self.settings["gamma"]), f"a sampler's gamma after {said}"
        algo.set_state(state)

    # ------------------------------------------------------------------------------------------------------- steps

    def _train(self) -> None:
        before = self.weights
        self.algo.train()
        self.weights = self.algo.learner_group.get_weights()
        for mid in self.frozen:
            assert not states_differ(before[mid], self.weights[mid]), f"{mid} is frozen and learned"

    def _set_weights(self) -> None:
        self.weights = self._other_weights()
        self.algo.set_weights(self.weights)

    def _group_set_weights(self) -> None:
        self.weights = self._other_weights()
        self.algo.learner_group.set_weights(self.weights)

    def _other_weights(self) -> Any:
        weights = copy.deepcopy(self.weights)
        for arrays in weights.values():
            for value in arrays.values():
                value += self.rng.normal(scale=0.01, size=value.shape).astype(value.dtype)
        return weights

    def _draw(self, names: list[str]) -> dict[str, Any]:
        chosen = self.rng.choice(names, size=2, replace=False)
        return {name: self.values[name][int(self.rng.integers(len(self.values[name])))] for name in map(str, chosen)}

    def _set_config(self) -> None:
        given = self._draw(list(self.values))
        self.algo.set_config(**given)
        self._now(given)

    def _group_set_config(self) -> None:
        given = self._draw([name for name in self.values if name in _OF_GROUP])
        self.algo.learner_group.set_config(**given)
        self._now(given)

    def _learner_set_config(self) -> None:
        given = self._draw([name for name in self.values if name in _OF_GROUP])
        self.algo.learner_group.foreach_learner(methodcaller("set_config", **given))
        self._now(given)

    def _now(self, given: dict[str, Any]) -> None:
        for name, value in given.items():
            self.settings[name] = [[float(t), v] for t, v in value] if isinstance(value, list) else value

    def _freeze(self) -> None:
        frozen = [mid for mid in self.modules if self.rng.random() < 0.4]
        self.frozen = frozen if len(frozen) < len(self.modules) else []
        self.algo.set_policies_to_train([m for m in self.modules if m not in self.frozen] if self.frozen else None)

    def _add_module(self) -> None:
        number = 1 + max([int(mid.partition("_")[2]) for mid in self.modules if "_" in mid], default=0)
        mid = f"speaker_{number}"
        self.algo.add_module(module_id=mid, like="speaker")
        self.modules.append(mid)
        if self.frozen:
            self.frozen.append(mid)
        self.weights = {**self.weights, mid: self.weights["speaker"]}

    def _remove_module(self) -> None:
        mid = self.modules.pop()
        self.algo.remove_module(mid)
        self.weights = {name: value for name, value in self.weights.items() if name != mid}
        self.frozen = [name for name in self.frozen if name != mid]
        trained = self.algo.config.policies_to_train
        if trained is not None and not self.frozen:
            self.algo.set_policies_to_train(None)

    def _save(self) -> None:
        path = self.folder / f"{len(self.log)}.lcstate"
        self.algo.save(path)
        said = {"settings": self.settings, "modules": self.modules, "frozen": self.frozen, "weights": self.weights}
        self.files.append((path, copy.deepcopy(said)))

    def _file(self) -> tuple[Path, dict[str, Any]]:
        path, said = self.files[int(self.rng.integers(len(self.files)))]
        return path, copy.deepcopy(said)

    def _restore(self) -> None:
        """Weights and modules are the file's; settings stay."""
        path, said = self._file()
        self.algo.restore(path)
        self.modules, self.frozen, self.weights = said["modules"], said["frozen"], said["weights"]

    def _reopen(self) -> None:
        """All is the file's."""
        path, said = self._file()
        self.algo.stop()
        self.algo = lc.Algorithm.from_checkpoint(path, env=self.env)
        self.settings, self.modules = said["settings"], said["modules"]
        self.frozen, self.weights = said["frozen"], said["weights"]


def _acting(runner: Any) -> dict[str, Any]:
    players = getattr(runner, "players", None)
    if players is None:
        return {"default_policy": dict(runner.policy._params)}
    return {module_id: dict(player.policy._params) for module_id, player in players.items()}


def _what_samples(runner: Any) -> tuple[dict[str, Any], float | None]:
    scaler = getattr(runner, "_scaler", None)
    return _acting(runner), None if scaler is None else scaler.gamma
