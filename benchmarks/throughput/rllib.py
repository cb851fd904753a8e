"""RLlib's IMPALA on CartPole with environment runners as processes; prints its figures as JSON. Runs in .venv-rllib.

.venv-rllib/bin/python benchmarks/throughput/rllib.py --seconds 20
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Ray makes its workers nicer than everything else on the machine by default; ours are not.
os.environ.update(
    RAY_worker_niceness="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
)
warnings.filterwarnings("ignore")


def lag_of(results: dict[str, Any]) -> float | None:
    """Updates between the policy that acted and the one that learned, as RLlib tells it."""
    module = results.get("learners", {}).get("default_policy", {})
    value = module.get("diff_num_grad_updates_vs_sampler_policy")
    return None if value is None else float(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warmup", type=float, default=10.0)
    parser.add_argument("--env-runners", type=int, default=2)
    parser.add_argument("--envs", type=int, default=8)
    given = parser.parse_args()
    import ray
    from ray.rllib.algorithms.impala import IMPALAConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    ray.init(address="local", include_dashboard=False, num_cpus=2, logging_level=logging.ERROR, log_to_driver=False)
    config = (
        IMPALAConfig()
        .environment("CartPole-v1")
        .framework("torch")
        .env_runners(num_env_runners=given.env_runners, num_envs_per_env_runner=given.envs, rollout_fragment_length=50)
        .learners(num_learners=0, num_aggregator_actors_per_learner=0)
        .training(lr=5e-4, train_batch_size_per_learner=500, grad_clip=40.0, entropy_coeff=0.01, vf_loss_coeff=0.5)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh"))
        .reporting(min_time_s_per_iteration=1)
        .debugging(seed=0)
    )
    algorithm = config.build_algo()

    def counts(results: dict[str, Any]) -> tuple[float, float, float]:
        sampled = float(results["env_runners"].get("num_env_steps_sampled_lifetime", 0.0))
        learners = results.get("learners", {}).get("__all_modules__", {})
        return sampled, float(learners.get("num_env_steps_trained_lifetime", 0.0)), time.perf_counter()

    began = time.perf_counter()
    results = algorithm.train()
    while time.perf_counter() - began < given.warmup:
        results = algorithm.train()
    start, lags = counts(results), []
    while True:
        results = algorithm.train()
        lags.append(lag_of(results))
        now = counts(results)
        if now[2] - start[2] >= given.seconds:
            break
    seconds = now[2] - start[2]
    known = [lag for lag in lags if lag is not None]
    figures = {
        "env_steps_sampled_per_second": (now[0] - start[0]) / seconds,
        "env_steps_trained_per_second": (now[1] - start[1]) / seconds,
        "policy_lag_mean": sum(known) / len(known) if known else None,
        "episode_return_mean": float(results["env_runners"].get("episode_return_mean", float("nan"))),
        "env_steps_sampled": now[0],
        "seconds": seconds,
    }
    print("FIGURES " + json.dumps(figures), flush=True)
    algorithm.stop()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
