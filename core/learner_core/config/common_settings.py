"""The settings that every algorithm has: name, type, range, default and meaning of each.

One list. Each field stands under the heading of the method that sets it (``AlgorithmConfig`` has the methods); fields
that ``_METHODS`` does not name are set by ``.training()``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from .agents import Environment
from .settings import Settings
from .validation import FloatOrSchedule, Range

__all__ = ["CommonSettings"]


@dataclass(kw_only=True, repr=False, eq=False)
class CommonSettings(Settings):
    """The fields; an algorithm's config adds its own to them."""

    _METHODS: ClassVar[dict[str, dict[str, str]]] = {
        "environment": {
            "env": "env",
            "env_config": "env_config",
            "observation_space": "observation_space",
            "action_space": "action_space",
            "action_mask_in_info": "action_mask_in_info",
            "max_env_restarts": "max_env_restarts",
        },
        "framework": {
            "name": "framework_name",
            "compile": "compile",
            "precision": "precision",
            "device": "device",
            "debug": "debug",
        },
        "learners": {
            name: name
            for name in (
                "num_learners", "num_cpus_per_learner", "num_gpus_per_learner", "launcher", "launcher_options",
                "collective", "max_requests_in_flight_per_learner", "queue_full", "restart_failed_learners",
                "timeout_s", "learner_class", "data_shards", "check_parameters_every",
            )
        },
        "env_runners": {
            name: name
            for name in (
                "num_env_runners", "num_envs_per_env_runner", "rollout_fragment_length", "inference", "vectorization",
                "max_env_runner_restarts", "env_runner_timeout_s", "env_step_timeout_s",
                "max_requests_in_flight_per_env_runner", "normalize_observations", "normalize_rewards",
            )
        },
        "rl_module": {"model": "model", "rl_module_spec": "rl_module_spec"},
        "multi_agent": {
            "policies": "policies",
            "policy_mapping_fn": "policy_mapping_fn",
            "policies_to_train": "policies_to_train",
            "settings": "policy_settings",
            "critic_observes": "critic_observes",
        },
        "evaluation": {
            "interval": "evaluation_interval",
            "num_episodes": "evaluation_num_episodes",
            "max_episode_steps": "evaluation_max_episode_steps",
        },
        "checkpointing": {"every": "checkpoint_every", "keep": "checkpoint_keep", "folder": "checkpoint_folder"},
        "debugging": {"seed": "seed"},
    }  # fmt: skip

    # ---- environment ---------------------------------------------------------------------------------------------
    env: str | Callable[..., Any] | Environment | None = None
    """A Gymnasium id ("CartPole-v1"), a PettingZoo module ("pettingzoo:sisl/multiwalker-v9"), a callable that takes
    env_config and returns a gymnasium.Env or VectorEnv (or, for several agents, a PettingZoo environment), or such an
    environment itself: one copy, sampled in this process."""

    env_config: dict[str, Any] = field(default_factory=dict)
    """Handed to the callable, or as keywords to gymnasium.make or parallel_env for a named environment."""

    observation_space: Any = None
    """A gymnasium space, for learning without an environment (offline data); None: the environment's."""

    action_space: Any = None
    """A gymnasium space, for learning without an environment (offline data); None: the environment's."""

    action_mask_in_info: bool = False
    """The environment says which discrete actions it allows under info["action_mask"], as Taxi-v4 does, or by a method
    action_masks(); forbidden ones are never taken then. A mask in the observation needs no setting."""

    max_env_restarts: Annotated[int, Range(0)] = 0
    """How many times in a run each runner makes an environment that raised anew, its episode given up, with a warning
    and a count in the results. 0: its exception ends the run at once."""

    # ---- framework -----------------------------------------------------------------------------------------------
    framework_name: str = "torch"
    """The backend: "torch", "tf", or any other registered one; `learner-core plugins list` shows them."""

    compile: bool | None = None
    """None: the backend compiles when it pays (TensorFlow at once, Torch after 20,000 minibatch steps); if that fails,
    run eagerly and warn once. True: compile at once; a failed compilation raises. False: eager."""

    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """float32; bfloat16: forward and backward in bfloat16, parameters and optimizer in float32; float64: for tests."""

    device: str = "auto"
    """"auto": the accelerator where there is one, else the CPU; or "cpu", "cuda", "cuda:1", ..."""

    debug: bool = False
    """Everything eager, on either framework, so that print and breakpoints work inside the loss."""

    # ---- learners ------------------------------------------------------------------------------------------------
    num_learners: Annotated[int, Range(0)] = 0
    """0: one learner in this process. N >= 1: N worker processes that together compute what one would."""

    num_cpus_per_learner: Annotated[int, Range(1)] = 1
    """CPU threads of each learner process; with num_learners=0, of the Algorithm's. More pay for large networks."""

    num_gpus_per_learner: Annotated[float, Range(0)] = 0.0
    """GPUs of each learner process; a fraction shares one."""

    launcher: str = "local"
    """Who starts the learner processes: "local", "ray", "spmd", or any registered launcher."""

    launcher_options: dict[str, Any] = field(default_factory=dict)
    """The launcher's own settings, which it checks when a group is built; each launcher's page lists them."""

    collective: str = "auto"
    """Who sums gradients over learners: "horovod", "torch" (``torch.distributed``), or any registered collective.
    "auto": Horovod where it is installed for the framework, else what else the framework's backend offers, for Torch
    ``torch.distributed``; where there is neither, an error with the command. ``group.collective`` says which it is."""

    max_requests_in_flight_per_learner: Annotated[int, Range(1)] = 3
    """How many asynchronous updates may wait before queue_full applies. Typical: 1 to 8."""

    queue_full: Literal["block", "drop"] = "block"
    """What an asynchronous update does when the queue is full: wait, or drop the batch and count it in the results."""

    restart_failed_learners: bool = False
    """Rebuild the group after a lost worker, from the newest applied state, and retry the update."""

    timeout_s: Annotated[float, Range(above=0)] = 10.0
    """Seconds without a heartbeat after which a learner counts as lost. Not the duration of an update."""

    learner_class: type | None = None
    """The Learner subclass; None: the algorithm's own."""

    data_shards: Annotated[int, Range(1)] = 1
    """Fixed number of shards the rows belong to; the minibatch plan depends on it and never on num_learners."""

    check_parameters_every: Annotated[int, Range(0)] = 100
    """Learners compare a hash of their parameters every so many updates and repair a difference. 0: never."""

    # ---- env runners ---------------------------------------------------------------------------------------------
    num_env_runners: Annotated[int, Range(0)] = 0
    """0: sample in this process. N >= 1: N sampling processes."""

    num_envs_per_env_runner: Annotated[int, Range(1)] = 8
    """Environments stepped together by each runner. Typical: 1 to 64; more makes inference cheaper per step. Where it
    is not set, an environment object is 1, and a vector environment as many as it is."""

    rollout_fragment_length: Literal["auto"] | Annotated[int, Range(1)] = "auto"
    """Steps per environment and sample() call. "auto": what fills train_batch_size."""

    inference: Literal["auto", "numpy", "backend"] = "auto"
    """Who computes actions: numpy (imports no framework), the backend, or what a measurement of the module says."""

    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    """How environments are stepped together. "auto": native where the environment has it, else sync."""

    max_env_runner_restarts: Annotated[int, Range(0)] = 10
    """How many times in a run an environment-runner process that died or hung is started anew, before the run ends."""

    env_runner_timeout_s: Annotated[float, Range(1)] = 30.0
    """Seconds without a sign of life after which a runner process counts as hung. Not the duration of a step, unless
    an environment's native code keeps all of Python waiting."""

    env_step_timeout_s: Annotated[float, Range(1)] = 120.0
    """Seconds one step of a runner's environments may take, or making them, before the runner counts as hung. Only
    for runners that are processes: nobody can interrupt an environment in this process."""

    max_requests_in_flight_per_env_runner: Annotated[int, Range(1)] = 1
    """Fragments an asynchronous runner may sample ahead of the learner. 2: it never waits, on older weights."""

    normalize_observations: bool = False
    """Standardise observations by their running mean and variance."""

    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""

    # ---- training ------------------------------------------------------------------------------------------------
    lr: Annotated[FloatOrSchedule, Range(0)] = 3e-4
    """Learning rate. Typical: 1e-5 to 1e-3."""

    gamma: Annotated[float, Range(0, 1)] = 0.99
    """Discount per environment step. Typical: 0.95 to 0.999."""

    train_batch_size: Annotated[int, Range(1)] = 2048
    """Timesteps per update, over all learners and environments."""

    minibatch_size: Annotated[int, Range(1)] | None = 128
    """Timesteps per gradient step, over all learners. None: train_batch_size."""

    num_epochs: Annotated[int, Range(1)] = 10
    """Passes over the batch per update."""

    max_seq_len: Annotated[int, Range(1)] = 16
    """Timesteps of a recurrent module's sequences, burn_in included; minibatch_size is a multiple of it. Gradients
    reach no further back. Typical: 8 to 64."""

    burn_in: Annotated[int, Range(0)] = 0
    """First timesteps of each sequence that only warm the recurrent state up: no loss, no gradient. Typical: 0 to a
    half of max_seq_len, where batches are used many times."""

    shuffle_batch_per_epoch: bool = True
    """Draw a new permutation of the rows for every epoch."""

    accumulate: Annotated[int, Range(1)] = 1
    """Parts that a minibatch is split into, their gradients added up: the same step in less memory."""

    grad_clip: Annotated[FloatOrSchedule, Range(above=0)] | None = 0.5
    """Bound on the gradients in the sense of grad_clip_by. None: no clipping. Typical: 0.5 to 40 for a norm."""

    grad_clip_by: Literal["global_norm", "norm", "value"] = "global_norm"
    """global_norm: over all parameters of one optimizer. norm: per parameter. value: per element."""

    optimizer: str | dict[str, Any] = "adam"
    """A kind ("adam", "adamw", "sgd", "rmsprop") or {"kind": ..., hyperparameter: value}, as lc.OptimizerSpec takes."""

    nonfinite_gradients: Literal["skip", "raise"] = "skip"
    """What a NaN or an infinity in the gradients does: skip that step and count it, or raise NonFiniteError."""

    # ---- module, agents ------------------------------------------------------------------------------------------
    model: dict[str, Any] = field(default_factory=lambda: {"hidden": [64, 64], "activation": "tanh"})
    """The network: hidden, activation, image_layout, ...; docs/networks.md has the table. Given at all, it replaces the
    default as a whole; a module class of your own gets it as it is."""

    rl_module_spec: Any = None
    """An RLModuleSpec or MultiRLModuleSpec; None: the algorithm's module with `model`."""

    policies: dict[str, Any] | list[str] | None = None
    """Module ids, or {module_id: RLModuleSpec or None}. None: one module, "default_policy"."""

    policy_mapping_fn: Callable[..., Any] | None = None
    """Callable (agent_id) or (agent_id, episode) -> module_id, asked when an agent first appears in an episode, whose
    number is told. None: agents map to the module of their own id, or to the only module."""

    policies_to_train: list[str] | None = None
    """Module ids that learn; the others only act. None: all."""

    policy_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{module_id: {setting: value}}: training settings of one module alone, lr for instance; the others keep those of
    .training()."""

    critic_observes: Literal["own", "all", "state"] = "own"
    """What value functions see of an environment of several agents: what the module's agent does; "all": what all of
    them do; "state": what env.state() says. Policies see their own agent's observation."""

    # ---- evaluation, checkpoints, seed ---------------------------------------------------------------------------
    evaluation_interval: Annotated[int, Range(0)] = 0
    """Evaluate after every so many iterations. 0: only when asked."""

    evaluation_num_episodes: Annotated[int, Range(1)] = 10
    """Episodes per evaluation."""

    evaluation_max_episode_steps: Annotated[int, Range(1)] | None = None
    """An evaluation cuts episodes that are longer, and reports them as unfinished. None: those of 100,000 steps, or of
    the environment's own time limit if that is longer."""

    checkpoint_every: Annotated[int, Range(1)] | None = None
    """Save a checkpoint every so many iterations. None: only when asked."""

    checkpoint_keep: Annotated[int, Range(2)] = 2
    """Checkpoints kept on disk; older ones are removed. At least two: the newest may turn out damaged."""

    checkpoint_folder: str | None = None
    """Where train() saves every so many iterations, as checkpoint-00000012.lcstate; made if need be. None: train()
    saves nothing by itself. The command line has the run's folder instead."""

    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of everything: parameters, minibatch order, noise, environments."""
