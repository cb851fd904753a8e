"""A Ray cluster with a raylet on every host of our own, and a driver on the first.

As a script it is the driver, which prints lines of JSON: ``python ray_hosts.py SCENARIO ...``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

import learner_core as lc
from learner_core.plugins.hookspecs import hookimpl
from learner_core.plugins.registry import get_manager
from learner_core_algorithms import IMPALAConfig, PPOConfig

from support.hosts import Host, Network
from support.learners import OBS, ppo_batch
from support.ranks import TESTS

__all__ = ["TIMEOUT_S", "join", "start_driver"]

TIMEOUT_S = 10.0
_PORT = 6379
_MOST = 100_000
_ATTEMPTS = 3
_SCRIPT = str(TESTS / "support" / "ray_hosts.py")
#: Ray's own defaults are for a machine that is not busy.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_raylet_start_wait_time_s": "300",
}


def join(network: Network, folder: Path, *, num_cpus: int = 3) -> None:
    """Start a raylet on every host; the first has the head, and all others room for learners."""
    ray = str(Path(sys.executable).parent / "ray")
    for host in network.hosts:
        where = ["--head", f"--port={_PORT}", "--include-dashboard=false", f"--temp-dir={folder}"]
        if host is not network.hosts[0]:
            where = [f"--address={network.hosts[0].address}:{_PORT}", '--resources={"learner": 9}']
        size = [f"--num-cpus={num_cpus}", "--num-gpus=0", "--object-store-memory=100000000"]
        command = [ray, "start", f"--node-ip-address={host.address}", "--disable-usage-stats", *size, *where]
        _start(host, command)


def _start(host: Host, command: list[str]) -> None:
    """Ray gives a node half a minute to start, whatever it is told, which a busy machine may need three times."""
    for attempt in range(_ATTEMPTS):
        try:
            host.run(command, _QUIET, timeout_s=120)
            return
        except subprocess.SubprocessError:
            for pid in host.processes():
                host.end(pid)
            if attempt == _ATTEMPTS - 1:
                raise


def start_driver(host: Host, *arguments: str) -> subprocess.Popen[str]:
    """Start this script's scenario on a host."""
    environment = {**_QUIET, "RAY_ADDRESS": f"{host.address}:{_PORT}"}
    return host.start([sys.executable, _SCRIPT, *arguments], environment)


def _say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def _ppo(backend: str, collective: str, **learners: Any) -> Any:
    config = PPOConfig().framework(backend, compile=False)
    config.training(train_batch_size=384, minibatch_size=64, num_epochs=2)
    config.environment(observation_space=OBS, action_space=Discrete(2)).rl_module(model={"hidden": [16, 16]})
    options = {"placement": "SPREAD", "resources": {"learner": 1}, "start_timeout_s": 300.0}
    given = {"num_learners": 2, "timeout_s": TIMEOUT_S, "launcher": "ray", "launcher_options": options, **learners}
    return config.learners(collective=collective, **given)


class _Told:
    @hookimpl
    def learner_group_worker_lost(self, rank: int, exitcode: int | None, reason: str) -> None:
        _say(lost=rank, reason=reason, time=time.time())

    @hookimpl
    def learner_group_worker_restarted(self, rank: int, update: int) -> None:
        _say(restarted=rank, update=update, time=time.time())


def updates(backend: str, collective: str, enough: str, restart: str) -> None:
    """Updates, told of one by one, until there is a file ``enough``; then the difference to one learner's weights."""
    config = _ppo(backend, collective, restart_failed_learners=restart == "restart")
    one = config.copy().learners(num_learners=0, launcher="local", launcher_options={}).build_learner()
    get_manager().register(_Told())
    with config.build_learner_group() as group:
        _say(places=[member.address for member in group._learners._members])
        for number in range(_MOST):
            if os.path.exists(enough):
                break
            batch = ppo_batch(384, Discrete(2), seed=number % 16)
            begin = time.time()
            group.update_from_batch(batch=batch)
            _say(update=number, seconds=time.time() - begin)
            one.update_from_batch(batch=batch)
        weights = group.get_weights()["default_policy"]
        alone = one.get_module_state()["default_policy"]
        difference = max(float(np.abs(array - weights[name]).max()) for name, array in alone.items())
        _say(places=[member.address for member in group._learners._members], difference=difference, updates=number)


def runners(backend: str, kind: str, enough: str) -> None:
    """A learner in the driver, environment runners on the other hosts, until there is a file ``enough``."""
    config = {"ppo": PPOConfig, "impala": IMPALAConfig}[kind]().environment("CartPole-v1").framework(backend)
    config.rl_module(model={"hidden": [16]})
    if kind == "ppo":
        config.training(train_batch_size=128, minibatch_size=64, num_epochs=1)
    else:
        config.training(train_batch_size=50, timesteps_per_iteration=200)
    options = {"start_timeout_s": 300.0, "env_runner_resources": {"learner": 1}}
    config.learners(launcher="ray", launcher_options=options, timeout_s=TIMEOUT_S)
    config.env_runners(num_env_runners=3, num_envs_per_env_runner=2, rollout_fragment_length=10)
    with config.build() as algorithm:
        import ray

        for number in range(_MOST):
            if os.path.exists(enough):
                break
            results = algorithm.train()
            _say(iteration=number, steps=results["num_env_steps_sampled_lifetime"])
            if results["env_runners"].get("num_env_runner_restarts_lifetime"):
                _say(replaced=results["env_runners"]["num_env_runner_restarts_lifetime"])
        actors = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
        _say(places=sorted(actor["Address"]["IPAddress"] for actor in actors))


def main() -> None:
    begin = time.time()
    try:
        {"updates": updates, "runners": runners}[sys.argv[1]](*sys.argv[2:])
    except lc.LearnerCoreError as error:
        _say(
            error=f"{type(error).__name__}: {error}", notes=getattr(error, "__notes__", []), seconds=time.time() - begin
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
