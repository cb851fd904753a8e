"""What a user's script does, once for every case: ``python program.py CASES OUT``.

CASES is a file of JSON lines; what became of each is appended, as such a line, to OUT, or to OUT.RANK where there are
ranks. Needs learner_core as it is installed, and nothing of this project's tests. DOORS_PATIENCE=SECONDS makes learners
wait so long for each other, on a machine that does much else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

import learner_core as lc

#: What makes a run short; everything else is as it comes.
SHORT: dict[str, dict[str, Any]] = {
    "ppo": {"train_batch_size": 256},
    "sac": {"learning_starts": 40, "timesteps_per_iteration": 48, "train_batch_size": 64},
    "bc": {"updates_per_iteration": 3, "train_batch_size": 256},
    "impala": {"timesteps_per_iteration": 500},
    "appo": {"timesteps_per_iteration": 500},
}


class Scene(gym.Env[Any, Any]):
    """Ten steps; shows an image or a dict, and takes one of three actions or two numbers."""

    def __init__(self, config: dict[str, Any]) -> None:
        image = spaces.Box(0, 255, (12, 12, 3), np.uint8)
        parts = spaces.Dict({"speed": spaces.Box(-1.0, 1.0, (2,), np.float32), "gear": spaces.Discrete(3)})
        self.observation_space = image if config["shows"] == "image" else parts
        self.action_space = (
            spaces.Box(-1.0, 1.0, (2,), np.float32) if config["takes"] == "numbers" else spaces.Discrete(3)
        )
        self._step = 0

    def _seen(self) -> Any:
        self.observation_space.seed(self._step)
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self._seen(), float(np.sum(action)), False, self._step == 10, {}


class Pair:
    """Two agents, one of whom leaves earlier; PettingZoo's parallel interface."""

    metadata = {"name": "pair"}
    render_mode = None

    def __init__(self, config: dict[str, Any]) -> None:
        self._takes = config["takes"]
        self.possible_agents = ["long", "short"]
        self.agents: list[str] = []
        self._step = 0

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-10.0, 10.0, (3,), np.float32)

    def action_space(self, agent: str) -> Any:
        number = 2 if agent == "long" else 3
        return spaces.Box(-1.0, 1.0, (number,), np.float32) if self._takes == "numbers" else spaces.Discrete(number)

    def _seen(self) -> dict[str, Any]:
        return {agent: np.full(3, self._step, np.float32) for agent in self.agents}

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.agents, self._step = list(self.possible_agents), 0
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        self._step += 1
        ended = {agent: agent == "short" and self._step == 3 for agent in self.agents}
        cut = {agent: agent == "long" and self._step == 9 for agent in self.agents}
        rewards = {agent: float(np.sum(actions[agent])) for agent in self.agents}
        seen, infos = self._seen(), {agent: {} for agent in self.agents}
        self.agents = [agent for agent in self.agents if not (ended[agent] or cut[agent])]
        return seen, rewards, ended, cut, infos

    def close(self) -> None:
        self.agents = []


def set_environment(config: Any, kind: str, *, numbers: bool) -> None:
    """``numbers``: the algorithm takes continuous actions only."""
    takes = "numbers" if numbers else "choice"
    if kind == "discrete":
        config.environment("CartPole-v1")
    elif kind == "continuous":
        config.environment("Pendulum-v1")
    elif kind in ("image", "dict"):
        config.environment(Scene, env_config={"shows": kind, "takes": takes})
    elif kind == "agents":
        config.environment(Pair, env_config={"takes": takes}).multi_agent(policies=["long", "short"])
    else:
        config.environment("Pendulum-v1" if numbers else "CartPole-v1").rl_module(model={"recurrent": "lstm"})


def recording(folder: Path, kind: str) -> str:
    """What ``learner-core record`` would have written, of random play."""
    path = folder / f"{kind}.lcstate"
    if not path.exists():
        rng, rows = np.random.default_rng(0), 400
        spaces_of = {
            "discrete": (spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)),
            "continuous": (spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-2.0, 2.0, (1,), np.float32)),
            "memory": (spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)),
            "agents": (spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)),
        }
        scene = None if kind in spaces_of else Scene({"shows": kind, "takes": "choice"})
        seen, taken = spaces_of[kind] if scene is None else (scene.observation_space, scene.action_space)
        seen.seed(0)
        taken.seed(0)
        obs = [seen.sample() for _ in range(rows)]
        columns: dict[str, Any] = {
            "obs": {name: np.stack([o[name] for o in obs]) for name in obs[0]}
            if isinstance(obs[0], dict)
            else np.stack(obs),
            "actions": np.stack([taken.sample() for _ in range(rows)]),
            "rewards": rng.normal(size=rows).astype(np.float32),
        }
        own = path.with_suffix(f".{os.getpid()}")
        lc.save_state(own, {"format": "learner_core/recording", "columns": columns})
        own.rename(path)
    return str(path)


def digest(learner: Any) -> str:
    weights = learner.get_module_state()
    sha = hashlib.sha256()
    for module_id in sorted(weights):
        for name in sorted(weights[module_id]):
            sha.update(name.encode() + np.ascontiguousarray(weights[module_id][name]).tobytes())
    return sha.hexdigest()[:16]


def train(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    config = lc.get_config(case["algorithm"])
    set_environment(config, case["environment"], numbers=case["algorithm"] == "sac")
    config.framework(case["backend"], **({"compile": True} if case["compile"] == "True" else {}))
    config.training(**SHORT[case["algorithm"]])
    if case["algorithm"] == "bc":
        config.training(input_path=recording(folder, case["environment"]))
    way = case["launcher"]
    learners: dict[str, Any] = {"num_learners": int(way)} if way.isdigit() else {"launcher": "spmd"}
    if way == "ray":
        learners = {"num_learners": 2, "launcher": "ray"}
    if case["collective"] != "auto":
        learners["collective"] = case["collective"]
    if patience := float(os.environ.get("DOORS_PATIENCE", 0)):
        learners["timeout_s"] = patience
        if not way.isdigit():
            learners["launcher_options"] = {"start_timeout_s": patience}
    config.learners(**learners)
    with config.build() as algo:
        for _ in range(5):  # asynchronous algorithms learn while the next iteration is sampled
            results = algo.train()
            if any(values.get("num_minibatch_steps") for values in results["learners"].values()):
                break
        learned = {mid: values for mid, values in results["learners"].items() if mid != "__all__"}
        digests = algo.learner_group.foreach_learner(digest)
        steps = sum(values.get("num_minibatch_steps", 0.0) for values in learned.values())
        finite = all(math.isfinite(v) for values in learned.values() for v in values.values() if isinstance(v, float))
        return {
            "compiled": results["learners"]["__all__"].get("compiled"),
            "collective": algo.learner_group.collective,
            "learners": len(digests),
            "same": len(set(digests)) == 1,
            "modules": sorted(learned),
            "trained": steps > 0,
            "finite": finite,
            "digest": digests[0],
        }


def main() -> None:
    cases, out = sys.argv[1:]
    place = Path(out)
    rank = next((os.environ[n] for n in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "RANK") if n in os.environ), None)
    place = place if rank is None else place.with_name(f"{place.name}.{rank}")
    for line in Path(cases).read_text().splitlines():
        case, start, cpu = json.loads(line), time.monotonic(), time.process_time()
        try:
            found = train(case, Path(cases).parent)
        except lc.LearnerCoreError as error:
            found = {"refused": f"{type(error).__name__}: {error}"}
        except Exception:
            found = {"crashed": traceback.format_exc()}
        found["seconds"] = round(time.monotonic() - start, 1)
        found["cpu"] = round(time.process_time() - cpu, 1)
        with place.open("a") as file:
            file.write(json.dumps({"case": case, **found}) + "\n")
        if rank is not None and ("crashed" in found or found.get("refused", "").startswith("LearnerGroupError: rank")):
            sys.exit(1)  # the ranks may be out of step now


if __name__ == "__main__":
    main()
