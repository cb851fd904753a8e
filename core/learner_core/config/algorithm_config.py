"""The settings every algorithm has, and the methods that set them.

An algorithm subclasses :class:`AlgorithmConfig`, adds dataclass fields (each with a docstring under it) and names its
classes; ``.training()`` accepts the new fields at once::

    @dataclass
    class PPOConfig(AlgorithmConfig):
        algorithm_name: ClassVar[str] = "ppo"
        clip_param: Annotated[float, Range(above=0)] = 0.3
        \"\"\"Half-width of the interval the probability ratio is clipped to. Typical: 0.1 to 0.3.\"\"\"
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from learner_core.errors import ConfigError, did_you_mean
from learner_core.maths.optimizers import OptimizerSpec
from learner_core.plugins import discovery

from . import references
from .settings import Setting, Settings
from .validation import FloatOrSchedule, Range

__all__ = ["AlgorithmConfig"]

_UNSET: Any = object()

# Settings that name a registered plugin -> its group.
_PLUGINS = {
    "framework_name": "learner_core.backends",
    "launcher": "learner_core.launchers",
    "collective": "learner_core.collectives",
}


@dataclass(kw_only=True, repr=False, eq=False)
class AlgorithmConfig(Settings):
    """Settings of an algorithm. Each method checks and sets some of them and returns the config.

    Every setting is also an attribute of the field's name: ``config.lr = 1e-3`` is checked like
    ``config.training(lr=1e-3)``. Building something from a config freezes a copy, so the original stays yours.
    """

    algorithm_name: ClassVar[str] = "custom"
    default_learner_class: ClassVar[type | str | None] = None
    default_module_class: ClassVar[type | str | None] = None
    algorithm_class: ClassVar[type | str | None] = None
    #: Whether batches are sequences [B, T] whatever the module; those of a recurrent module always are.
    uses_sequences: ClassVar[bool] = False
    #: Setting that learning starts from -> the variable that it becomes: changing it later could have no effect.
    starting_values: ClassVar[Mapping[str, str]] = {}
    #: Training settings that ``multi_agent(settings=...)`` may not set: they are of the whole batch.
    shared_settings: ClassVar[frozenset[str]] = frozenset(
        {"train_batch_size", "minibatch_size", "num_epochs", "shuffle_batch_per_epoch", "accumulate",
         "nonfinite_gradients"}
    )  # fmt: skip

    _METHODS: ClassVar[dict[str, dict[str, str]]] = {
        "environment": {
            "env": "env",
            "env_config": "env_config",
            "observation_space": "observation_space",
            "action_space": "action_space",
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
                "max_env_restarts", "max_env_runner_restarts", "env_runner_timeout_s", "env_step_timeout_s",
                "max_requests_in_flight_per_env_runner", "normalize_observations", "normalize_rewards",
            )
        },
        "rl_module": {"model": "model", "rl_module_spec": "rl_module_spec"},
        "multi_agent": {
            "policies": "policies",
            "policy_mapping_fn": "policy_mapping_fn",
            "policies_to_train": "policies_to_train",
            "settings": "policy_settings",
        },
        "evaluation": {"interval": "evaluation_interval", "num_episodes": "evaluation_num_episodes"},
        "checkpointing": {"every": "checkpoint_every", "keep": "checkpoint_keep"},
        "debugging": {"seed": "seed"},
    }  # fmt: skip

    # ---- environment ---------------------------------------------------------------------------------------------
    env: str | Callable[..., Any] | None = None
    """A Gymnasium id ("CartPole-v1"), a PettingZoo module ("pettingzoo:sisl/multiwalker-v9"), or a callable that takes
    env_config and returns a gymnasium.Env (or, for multi-agent, a PettingZoo parallel environment)."""

    env_config: dict[str, Any] = field(default_factory=dict)
    """Handed to the callable, or as keywords to gymnasium.make or parallel_env for a named environment."""

    observation_space: Any = None
    """A gymnasium space, for learning without an environment (offline data); None: the environment's."""

    action_space: Any = None
    """A gymnasium space, for learning without an environment (offline data); None: the environment's."""

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

    collective: str = "horovod"
    """Who sums gradients over learners: "horovod", "torch", or any registered collective."""

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
    """Environments stepped together by each runner. Typical: 1 to 64; more makes inference cheaper per step."""

    rollout_fragment_length: Literal["auto"] | Annotated[int, Range(1)] = "auto"
    """Steps per environment and sample() call. "auto": what fills train_batch_size."""

    inference: Literal["auto", "numpy", "backend"] = "auto"
    """Who computes actions: numpy (imports no framework), the backend, or what a measurement of the module says."""

    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    """How environments are stepped together. "auto": native where the environment has it, else sync."""

    max_env_restarts: Annotated[int, Range(0)] = 10
    """How many times in a run an environment that raised is made anew, its episode given up, before the run ends."""

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
    """The network: hidden sizes, activation, conv_filters, ...; a module class of your own gets it as it is."""

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

    # ---- evaluation, checkpoints, seed ---------------------------------------------------------------------------
    evaluation_interval: Annotated[int, Range(0)] = 0
    """Evaluate after every so many iterations. 0: only when asked."""

    evaluation_num_episodes: Annotated[int, Range(1)] = 10
    """Episodes per evaluation."""

    checkpoint_every: Annotated[int, Range(1)] | None = None
    """Save a checkpoint every so many iterations. None: only when asked."""

    checkpoint_keep: Annotated[int, Range(2)] = 2
    """Checkpoints kept on disk; older ones are removed. At least two: the newest may turn out damaged."""

    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of everything: parameters, minibatch order, noise, environments."""

    # ---- methods -------------------------------------------------------------------------------------------------

    def environment(self, env: str | Callable[..., Any] | None = _UNSET, **settings: Any) -> Self:
        """Say where experience comes from: ``env``, ``env_config``, or the two spaces alone.

        Args:
            env: Name, or callable(env_config) -> environment.
            settings: ``env_config observation_space action_space``.

        Returns:
            This config.

        Raises:
            ConfigError: Unknown or ill-typed setting; nothing has changed then. So for all methods below.
        """
        return self._set("environment", settings if env is _UNSET else {"env": env, **settings})

    def framework(self, name: str = _UNSET, **settings: Any) -> Self:
        """Choose the backend: ``name``, ``compile``, ``precision``, ``device``, ``debug``; see :meth:`environment`."""
        return self._set("framework", settings if name is _UNSET else {"name": name, **settings})

    def learners(self, **settings: Any) -> Self:
        """Set how many learners there are and how they work together; see :meth:`environment`."""
        return self._set("learners", settings)

    def env_runners(self, **settings: Any) -> Self:
        """Set how experience is sampled; see :meth:`environment`."""
        return self._set("env_runners", settings)

    def training(self, **settings: Any) -> Self:
        """Set batch sizes, optimizer and the algorithm's own settings; see :meth:`environment`."""
        return self._set("training", settings)

    def rl_module(self, **settings: Any) -> Self:
        """Set the network: ``model`` for the algorithm's own module, or ``rl_module_spec``; see :meth:`environment`."""
        return self._set("rl_module", settings)

    def multi_agent(self, **settings: Any) -> Self:
        """Set which modules there are, who uses and who trains them; see :meth:`environment`."""
        return self._set("multi_agent", settings)

    def evaluation(self, **settings: Any) -> Self:
        """Set when to evaluate: ``interval``, ``num_episodes``; see :meth:`environment`."""
        return self._set("evaluation", settings)

    def checkpointing(self, **settings: Any) -> Self:
        """Set when to save: ``every``, ``keep``; see :meth:`environment`."""
        return self._set("checkpointing", settings)

    def debugging(self, **settings: Any) -> Self:
        """Set the ``seed``; see :meth:`environment`."""
        return self._set("debugging", settings)

    # ---- checks --------------------------------------------------------------------------------------------------

    @classmethod
    def validate_setting(cls, name: str, value: Any) -> Any:
        """Check one value, as the base class does, and names of optimizers and plugins against what exists."""
        value = super().validate_setting(name, value)
        if name == "optimizer":
            _optimizer_spec(value)
        elif name in _PLUGINS and value != cls.settings()[name].default:
            _check_registered(cls.settings()[name], value)
        return value

    def validate(self) -> None:
        """Check settings against each other; see the base class."""
        super().validate()
        if self.compile and self.debug:
            raise ConfigError(
                "framework(compile=True, debug=True): debug runs everything eagerly; take one of the two."
            )
        if self.policies is not None and not self.policies:
            raise ConfigError("multi_agent(policies=...): at least one module id; None is the single default_policy.")
        for keyword, named in (("policies_to_train", self.policies_to_train), ("settings", self.policy_settings)):
            unknown = sorted(set(named or ()) - set(self.policies or ()))
            if self.policies and unknown:
                nearest = did_you_mean(unknown[0], self.policies)
                raise ConfigError(f"multi_agent({keyword}=...): {unknown[0]!r} is not a policy.{nearest}")
        for module_id, settings in self.policy_settings.items():
            for name, value in settings.items():
                self._check_policy_setting(module_id, name, value)

    def _check_policy_setting(self, module_id: str, name: str, value: Any) -> None:
        setting = self.settings().get(name)
        where = f"multi_agent(settings={{{module_id!r}: {{{name!r}: ...}}}})"
        if setting is None:
            raise ConfigError(f"{where}: there is no such setting.{self._nearest(name, 'training')}")
        if setting.method != "training" or name in self.shared_settings:
            raise ConfigError(f"{where}: all modules share it; it belongs to .{setting.method}({setting.keyword}=...).")
        self.validate_setting(name, value)

    @property
    def sequence_length(self) -> int:
        """T, timesteps of a row where rows are sequences."""
        return self.max_seq_len

    @property
    def rows_per_update(self) -> int:
        """Timesteps of a usual ``update_from_batch``: what compiled loops are sized for."""
        return self.train_batch_size

    def for_module(self, module_id: str) -> Self:
        """The settings of one module: these, with what ``multi_agent(settings=...)`` says of it.

        Args:
            module_id: The module.

        Returns:
            This config if nothing is said; else a copy, the same one at every call once this config is frozen.
        """
        own = self.policy_settings.get(module_id)
        if not own:
            return self
        if not self.is_frozen:
            return self.replaced(**own)
        twins: dict[str, Self] = self.__dict__.setdefault("_twins", {})
        if module_id not in twins:
            twins[module_id] = self.replaced(**own)
        return twins[module_id]

    def with_modules(
        self, policies: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Self:
        """A copy for other modules: what was said of those that are gone is left out.

        Args:
            policies: {module_id: RLModuleSpec or None} of all modules.
            settings: Training settings of single modules to add.

        Returns:
            The copy, frozen when this config is; a config that names no policies goes on naming none.

        Raises:
            ConfigError: A setting is not valid.
        """
        trained = self.policies_to_train
        own = {mid: values for mid, values in {**self.policy_settings, **(settings or {})}.items() if mid in policies}
        return self.replaced(
            policies=None if self.policies is None else dict(policies),
            policies_to_train=None if trained is None else [mid for mid in trained if mid in policies],
            policy_settings={mid: dict(values) for mid, values in own.items()},
        )

    # ---- what is built from it -----------------------------------------------------------------------------------

    def module_settings(self) -> dict[str, Any]:
        """What modules are built with: ``model``, and what an algorithm's own settings add to it."""
        return self.model

    def optimizer_spec(self) -> OptimizerSpec:
        """The ``optimizer`` setting as an OptimizerSpec."""
        return _optimizer_spec(self.optimizer)

    def get_learner_class(self) -> type:
        """The class to build: ``learner_class`` if set, else the algorithm's, else ``learner_core.Learner``."""
        return self.learner_class or self._class_of("default_learner_class", "learner_core.learning.learner:Learner")

    def get_module_class(self) -> type:
        """The algorithm's default RLModule class.

        Raises:
            ConfigError: The algorithm has none, so ``rl_module_spec`` must be given.
        """
        return self._class_of("default_module_class", None)

    def build_learner(self, env: Any = None) -> Any:
        """Build one Learner in this process from a frozen copy of this config.

        Args:
            env: An environment to take the spaces from; None: the one named by :meth:`environment`.

        Returns:
            The Learner, built.
        """
        learner_class: Any = self.get_learner_class()
        return learner_class(config=self.copy().freeze(), env=env)

    def build_learner_group(self, env: Any = None) -> Any:
        """Build a LearnerGroup of ``num_learners`` learners from a frozen copy of this config.

        Args:
            env: As for :meth:`build_learner`.

        Returns:
            The LearnerGroup, ready.
        """
        group_class: Any = _load_class("learner_core.group.learner_group:LearnerGroup")
        return group_class(config=self.copy().freeze(), env=env)

    def build(self) -> Any:
        """Build the Algorithm from a frozen copy of this config.

        Returns:
            The Algorithm: ``train() evaluate() save(path) restore(path) stop()``.
        """
        algorithm_class: Any = self._class_of("algorithm_class", "learner_core.algorithm.algorithm:Algorithm")
        return algorithm_class(config=self.copy().freeze())

    def _class_of(self, attribute: str, fallback: str | None) -> type:
        found = getattr(type(self), attribute) or fallback
        if found is None:
            raise ConfigError(f"{type(self).__name__} has no {attribute}: set rl_module(rl_module_spec=...).")
        return _load_class(found) if isinstance(found, str) else found

    # ---- plain data ----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """This config as plain data for msgpack: None, bool, int, float, str, list, dict.

        Callables, classes and specs become references by name; what has none is marked as unportable and must be given
        again to :meth:`from_dict`.
        """
        values = {name: references.to_plain(getattr(self, name)) for name in self.settings()}
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        return {"schema": 1, "algorithm": self.algorithm_name, "class": kind, "settings": values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, import_modules: bool = False, **overrides: Any) -> Self:
        """Rebuild a config from :meth:`to_dict`'s data.

        Args:
            data: What :meth:`to_dict` returned.
            import_modules: Whether references may import modules. Without it only registered algorithms and names from
                modules that are imported already are resolved, so a hostile file cannot choose code to run.
            overrides: Settings by field name that replace the stored ones, unportable ones for instance.

        Returns:
            An unfrozen config, of the class the data names.

        Raises:
            ConfigError: Not such data, an unknown setting, or a reference that cannot be resolved.
        """
        config: Self = references.config_class(cls, data, import_modules=import_modules)()
        for name, value in data["settings"].items():
            if name not in overrides:
                setattr(config, name, references.from_plain(value, name=name, import_modules=import_modules))
        for name, value in overrides.items():
            setattr(config, name, value)
        return config


def _optimizer_spec(value: str | dict[str, Any]) -> OptimizerSpec:
    return OptimizerSpec(value) if isinstance(value, str) else OptimizerSpec(**value)


def _check_registered(setting: Setting, value: str) -> None:
    group = _PLUGINS[setting.name]
    names = discovery.list_plugins(group)
    # Without our own entry points (a source tree that was never installed) nothing can be said about other names.
    if setting.default in names and value not in names:
        nearest = discovery.nearest(group, value)
        raise ConfigError(f".{setting.method}({setting.keyword}={value!r}): no such plugin is registered.{nearest}")


def _load_class(reference: str) -> type:
    module, _, name = reference.partition(":")
    loaded: type = getattr(importlib.import_module(module), name)
    return loaded
