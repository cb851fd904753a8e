"""What is trained, with every setting; imported by both libraries' runners, so it needs neither.

Settings of ours are the configuration's own names. Tasks with a ``peer`` are trained by stable-baselines3 as well, with
the same numbers under its names; what must differ is said beside it. docs/decisions/measurements.md says why.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

__all__ = ["SEEDS", "TASKS", "Task"]

SEEDS = (1, 2, 3)
#: Fields of a task that change no result of ours.
_NO_SETTINGS = ("name", "target", "ceiling", "seeds", "peer", "peer_normalize", "note")


@dataclasses.dataclass(frozen=True)
class Task:
    """One learning problem.

    Attributes:
        name: as it appears in tables and file names.
        algorithm: name of a registered algorithm.
        env: Gymnasium id.
        steps: environment steps to train for; for offline algorithms 0.
        target: mean return that the final policy has to reach; None: a share of the peer's.
        ceiling: mean return that it must stay under: the task needs what this algorithm lacks.
        env_runners, training, model: settings of the configuration.
        iterations: ``train()`` calls, where environment steps do not say.
        compile: as the configuration has it; True where Torch would not by itself, on runs this short.
        episodes: episodes of the final evaluation.
        peer: settings of stable-baselines3's class of the same name; None: no comparison.
        peer_normalize: the peer's environments are wrapped in VecNormalize.
        env_config: settings of the environment.
        policies: for environments of several agents: the modules, each an agent's of that name.
        recorded: for offline algorithms: task whose policy is recorded, and how many episodes.
        note: what a reader of the results has to know of these settings, a sentence or two without figures of results,
            which would go stale.
        seeds: each is one run on each backend.
    """

    name: str
    algorithm: str
    env: str
    steps: int
    target: float | None
    training: dict[str, Any]
    env_runners: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=lambda: {"hidden": [64, 64], "activation": "tanh"})
    iterations: int = 0
    compile: bool | None = None
    episodes: int = 100
    peer: dict[str, Any] | None = None
    peer_normalize: bool = False
    recorded: tuple[str, int] | None = None
    env_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    policies: tuple[str, ...] = ()
    ceiling: float | None = None
    note: str = ""
    seeds: tuple[int, ...] = SEEDS

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a result depends on, in JSON's types: kept with it, and compared by the report."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in _NO_SETTINGS]
        settings: dict[str, Any] = json.loads(json.dumps({name: getattr(self, name) for name in names}))
        return settings


#: Adam as stable-baselines3 and CleanRL set it for PPO.
_ADAM = {"kind": "adam", "eps": 1e-5}

_PPO = {
    "use_kl_loss": False,
    "normalize_advantages": "minibatch",
    "clip_param": 0.2,
    "vf_loss_coeff": 0.5,
    "grad_clip": 0.5,
    "optimizer": _ADAM,
}

#: CartPole without its velocities, with a memory and without.
_MEMORY = {
    **_PPO, "lr": [[0, 1e-3], [250_000, 0.0]], "gamma": 0.99, "lambda_": 0.95, "train_batch_size": 1024,
    "minibatch_size": 256, "num_epochs": 10,
}  # fmt: skip

TASKS = {
    task.name: task
    for task in (
        Task(
            name="cartpole",
            algorithm="ppo",
            env="CartPole-v1",
            steps=100_000,
            target=475.0,
            env_runners={"num_envs_per_env_runner": 8},
            training={
                **_PPO, "lr": [[0, 1e-3], [100_000, 0.0]], "gamma": 0.98, "lambda_": 0.8, "train_batch_size": 1024,
                "minibatch_size": 256, "num_epochs": 10,
            },
        ),
        Task(
            name="cartpole-memory-lstm",
            note="Velocities are hidden, so they have to be remembered. With gamma 0.98 and 120,000 steps one seed "
            "of three fell short on either backend; both were changed, for all seeds.",
            algorithm="ppo",
            env="environments:CartPoleHidden-v1",
            steps=250_000,
            target=400.0,
            env_runners={"num_envs_per_env_runner": 8, "normalize_observations": True},
            training={**_MEMORY, "max_seq_len": 16},
            model={"hidden": [64], "activation": "tanh", "recurrent": "lstm", "recurrent_size": 32},
        ),
        Task(
            name="cartpole-memory-mlp",
            note="The same task and settings without a memory: it must stay under the line.",
            algorithm="ppo",
            env="environments:CartPoleHidden-v1",
            steps=250_000,
            target=None,
            ceiling=200.0,
            env_runners={"num_envs_per_env_runner": 8, "normalize_observations": True},
            training=_MEMORY,
        ),
        Task(
            name="masked-grid",
            note="The environment raises when a forbidden action is taken and is not rebuilt, so a run that "
            "ended has taken none.",
            algorithm="ppo",
            env="environments:MaskedGrid-v0",
            steps=25_000,
            target=0.7,
            env_runners={"num_envs_per_env_runner": 8},
            training={
                **_PPO, "lr": 1e-3, "gamma": 0.98, "lambda_": 0.95, "train_batch_size": 1024, "minibatch_size": 256,
                "num_epochs": 10, "entropy_coeff": 0.01,
            },
        ),
        Task(
            name="cartpole-impala",
            algorithm="impala",
            env="CartPole-v1",
            steps=150_000,
            target=475.0,
            env_runners={"num_envs_per_env_runner": 8, "rollout_fragment_length": 25},
            training={
                "lr": [[0, 2e-3], [150_000, 0.0]], "gamma": 0.98, "entropy_coeff": 0.01, "train_batch_size": 200,
                "grad_clip": 5.0,
            },
        ),
        Task(
            name="cartpole-appo",
            algorithm="appo",
            env="CartPole-v1",
            steps=150_000,
            target=475.0,
            env_runners={"num_envs_per_env_runner": 8, "rollout_fragment_length": 50},
            training={
                "lr": [[0, 1e-3], [150_000, 0.0]], "gamma": 0.98, "entropy_coeff": 0.0, "train_batch_size": 400,
                "grad_clip": 5.0, "clip_param": 0.2, "target_network_update_freq": 0.25,
                "circular_buffer_num_batches": 4, "circular_buffer_iterations_per_batch": 4,
            },
        ),
        Task(
            name="signals",
            note="Two agents of different spaces, a policy each, that can only learn together; 18 is all there is, at "
            "random it is 6.",
            algorithm="ppo",
            env="pettingzoo:signals:learner_core/signals-v0",
            policies=("speaker", "listener"),
            steps=25_000,
            target=17.0,
            env_runners={"num_envs_per_env_runner": 8},
            training={
                **_PPO, "lr": 5e-3, "gamma": 0.9, "train_batch_size": 512, "minibatch_size": 128, "num_epochs": 8,
                "entropy_coeff": 0.01,
            },
            model={"hidden": [16], "activation": "tanh"},
        ),
        Task(
            name="pursuit",
            note="PettingZoo's task on a small map: two pursuers, a policy each, catch four evaders. The return is the "
            "sum of both; at random it is -3.3.",
            algorithm="ppo",
            env="pettingzoo:sisl/pursuit-v5",
            env_config={
                "x_size": 8, "y_size": 8, "n_pursuers": 2, "n_evaders": 4, "obs_range": 5, "n_catch": 1,
                "surround": False, "max_cycles": 60, "tag_reward": 0.01, "catch_reward": 1.0, "urgency_reward": -0.05,
            },
            policies=("pursuer_0", "pursuer_1"),
            steps=50_000,
            target=1.0,
            env_runners={"num_envs_per_env_runner": 8, "inference": "numpy"},
            training={
                **_PPO, "lr": [[0, 1e-3], [50_000, 2e-4]], "gamma": 0.95, "lambda_": 0.9, "train_batch_size": 1024,
                "minibatch_size": 256, "num_epochs": 6, "entropy_coeff": 0.01,
            },
        ),
        Task(
            name="acrobot",
            note="Reward scaling and an entropy bonus were added once, after a seed without them had failed; all runs "
            "were made again.",
            algorithm="ppo",
            env="Acrobot-v1",
            steps=200_000,
            target=-100.0,
            env_runners={"num_envs_per_env_runner": 16, "normalize_observations": True, "normalize_rewards": True},
            training={
                **_PPO, "lr": [[0, 1e-3], [200_000, 0.0]], "gamma": 0.99, "lambda_": 0.95, "train_batch_size": 2048,
                "minibatch_size": 256, "num_epochs": 4, "entropy_coeff": 0.01,
            },
        ),
        Task(
            name="lunarlander",
            note="The least reliable of the targets: seeds that pass differ widely.",
            algorithm="ppo",
            env="LunarLander-v3",
            steps=600_000,
            target=200.0,
            env_runners={"num_envs_per_env_runner": 16},
            training={
                **_PPO, "lr": [[0, 1e-3], [600_000, 0.0]], "gamma": 0.999, "lambda_": 0.98, "train_batch_size": 4096,
                "minibatch_size": 256, "num_epochs": 8, "entropy_coeff": 0.01,
            },
        ),
        Task(
            name="pendulum",
            algorithm="sac",
            env="Pendulum-v1",
            steps=10_000,
            target=-200.0,
            training={
                "actor_lr": 1e-3, "critic_lr": 1e-3, "alpha_lr": 1e-3, "gamma": 0.99, "train_batch_size": 256,
                "learning_starts": 500, "buffer_capacity": 10_000, "tau": 5e-3, "timesteps_per_iteration": 500,
            },
            model={"hidden": [64, 64], "activation": "relu"},
            compile=True,
        ),
        Task(
            name="halfcheetah-ppo",
            note="A few seeds find a far better gait, in both libraries, so there are forty; which ones, and what "
            "decides, was written down before they were run (halfcheetah-forty-seeds.md), after five others had told "
            "too little.",
            seeds=tuple(range(6, 46)),
            algorithm="ppo",
            env="HalfCheetah-v5",
            steps=300_000,
            target=None,
            env_runners={
                "num_envs_per_env_runner": 4, "normalize_observations": True, "normalize_rewards": True,
            },
            training={
                **_PPO, "lr": 3e-4, "gamma": 0.99, "lambda_": 0.95, "train_batch_size": 2048, "minibatch_size": 64,
                "num_epochs": 10,
            },
            compile=True,
            episodes=20,
            peer={
                "num_envs": 4, "n_steps": 512, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4, "gamma": 0.99,
                "gae_lambda": 0.95, "clip_range": 0.2, "ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5,
                "hidden": [64, 64], "activation": "tanh",
            },
            peer_normalize=True,
        ),
        Task(
            name="halfcheetah-sac",
            note="Settings are the same in all three. It had 20,000 steps at first, where seeds differ by more than "
            "libraries.",
            algorithm="sac",
            env="HalfCheetah-v5",
            steps=100_000,
            target=None,
            training={
                "actor_lr": 1e-3, "critic_lr": 1e-3, "alpha_lr": 1e-3, "gamma": 0.99, "train_batch_size": 256,
                "learning_starts": 1000, "buffer_capacity": 100_000, "tau": 5e-3, "timesteps_per_iteration": 1000,
            },
            model={"hidden": [128, 128], "activation": "relu"},
            compile=True,
            episodes=20,
            peer={
                "num_envs": 1, "learning_rate": 1e-3, "gamma": 0.99, "batch_size": 256, "learning_starts": 1000,
                "buffer_size": 100_000, "tau": 5e-3, "train_freq": 1, "gradient_steps": 1, "hidden": [128, 128],
                "activation": "relu",
            },
        ),
        Task(
            name="cartpole-bc",
            algorithm="bc",
            env="CartPole-v1",
            steps=0,
            target=475.0,
            training={"lr": 1e-3, "train_batch_size": 2000, "minibatch_size": 100, "updates_per_iteration": 10},
            iterations=10,
            recorded=("cartpole", 20),
        ),
    )
}  # fmt: skip
