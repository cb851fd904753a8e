"""IMPALA on CartPole with environment runners as processes; prints its figures as JSON.

python benchmarks/throughput/ours.py --backend torch --seconds 20
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

for _name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def build_config(backend: str, env_runners: int, envs: int) -> Any:
    """The settings that both libraries run with."""
    from learner_core_algorithms import IMPALAConfig

    return (
        IMPALAConfig()
        .environment("CartPole-v1")
        .framework(backend)
        .env_runners(num_env_runners=env_runners, num_envs_per_env_runner=envs, rollout_fragment_length=50)
        .training(lr=5e-4, train_batch_size=500, grad_clip=40.0, entropy_coeff=0.01, vf_loss_coeff=0.5)
        .rl_module(model={"hidden": [64, 64], "activation": "tanh"})
        .debugging(seed=0)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warmup", type=float, default=10.0)
    parser.add_argument("--env-runners", type=int, default=2)
    parser.add_argument("--envs", type=int, default=8)
    given = parser.parse_args()
    with build_config(given.backend, given.env_runners, given.envs).build() as algorithm:

        def counts(results: dict[str, Any]) -> tuple[float, float, float]:
            trained = float(results["throughput"]["num_env_steps_trained_lifetime"])
            return float(results["num_env_steps_sampled_lifetime"]), trained, time.perf_counter()

        began = time.perf_counter()
        results = algorithm.train()
        while time.perf_counter() - began < given.warmup:
            results = algorithm.train()
        start, rows = counts(results), []
        while True:
            results = algorithm.train()
            rows.append(results["throughput"])
            now = counts(results)
            if now[2] - start[2] >= given.seconds:
                break
        seconds = now[2] - start[2]
    figures = {
        "env_steps_sampled_per_second": (now[0] - start[0]) / seconds,
        "env_steps_trained_per_second": (now[1] - start[1]) / seconds,
        "policy_lag_mean": sum(row.get("policy_lag_mean", 0.0) for row in rows) / len(rows),
        "policy_lag_max": max(row.get("policy_lag_max", 0.0) for row in rows),
        "learner_utilization": sum(row["learner_utilization"] for row in rows) / len(rows),
        "queue_depth": sum(row["queue_depth"] for row in rows) / len(rows),
        "num_updates_dropped": sum(row["num_updates_dropped"] for row in rows),
        "episode_return_mean": float(results["env_runners"].get("episode_return_mean", float("nan"))),
        "env_steps_sampled": now[0],
        "seconds": seconds,
    }
    print("FIGURES " + json.dumps(figures), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
