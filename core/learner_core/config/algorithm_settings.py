"""The settings of an algorithm: the methods that set them, what is checked between them, and their plain data.

Everything below an algorithm is written against :class:`AlgorithmSettings`. What users hold is an ``AlgorithmConfig``
(``learner_core.algorithm.algorithm_config``), which has the methods that build something, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from learner_core.errors import ConfigError, did_you_mean
from learner_core.maths.optimizers import OptimizerSpec
from learner_core.plugins import discovery
from learner_core.plugins.manager import OURS

from . import references
from .agents import Environment, is_multi_agent
from .central_observations import OWN
from .common_settings import CommonSettings
from .environments import check_name
from .given_environments import check_object
from .needs import ENVIRONMENT, MEMORY, SEQUENCES, Needs, needs, refuse_idle, refuse_idle_of_module
from .settings import Setting
from .trust import Trust
from .values import same, storable

__all__ = ["AlgorithmSettings"]

_UNSET: Any = object()

# Settings that name a registered plugin -> its group.
_PLUGINS = {
    "framework_name": "learner_core.backends",
    "launcher": "learner_core.launchers",
    "collective": "learner_core.collectives",
}


@dataclass(kw_only=True, repr=False, eq=False)
class AlgorithmSettings(CommonSettings):
    """Settings of an algorithm. Each method checks and sets some of them and returns the config.

    Every setting is also an attribute of the field's name: ``config.lr = 1e-3`` is checked like
    ``config.training(lr=1e-3)``.
    """

    algorithm_name: ClassVar[str] = "custom"
    default_learner_class: ClassVar[type | str | None] = None
    default_module_class: ClassVar[type | str | None] = None
    algorithm_class: ClassVar[type | str | None] = None
    #: Whether a value function is learned; algorithms that may do without one make it a setting.
    use_critic = True
    #: Whether batches are sequences [B, T] whatever the module; those of a recurrent module always are.
    uses_sequences: ClassVar[bool] = False
    #: Whether rollouts hold observations and rewards as environments gave them, to be normalised when they are used.
    samples_raw: ClassVar[bool] = False
    #: Setting that learning starts from -> the variable that it becomes: changing it later could have no effect.
    starting_values: ClassVar[Mapping[str, str]] = {}
    #: Settings of ``.training()``, and others, that no run can change: what was made from them has another shape, or is
    #: made once, by ``Algorithm.setup`` for instance. A subclass adds to its base's.
    fixed_settings: ClassVar[frozenset[str]] = frozenset()
    #: Settings that the algorithm has no use for -> why, or what to set instead: another value than the default is
    #: refused. A subclass adds to its base's.
    unused_settings: ClassVar[Mapping[str, str]] = {}
    #: Settings that count beside another one alone -> what they need: setting one to another value than the default
    #: while that is off is refused, whatever the order of the calls. A subclass adds to its base's.
    needed_settings: ClassVar[Mapping[str, Needs]] = {
        **dict.fromkeys(
            ("evaluation_interval", "evaluation_max_episode_steps", "evaluation_num_episodes"), ENVIRONMENT
        ),
        "vectorization": Needs(
            "an environment of one agent (those of several are stepped one after the other)",
            lambda config: not is_multi_agent(config),
        ),
        "critic_observes": Needs(
            "several agents, by .multi_agent(policies=...), and a value function",
            lambda config: is_multi_agent(config) and config.use_critic,
        ),
        "grad_clip_by": needs("grad_clip", "0.5"),
        "max_seq_len": SEQUENCES,
        "burn_in": MEMORY,
    }
    #: Training settings that ``multi_agent(settings=...)`` may not set: they are of the whole batch.
    shared_settings: ClassVar[frozenset[str]] = frozenset(
        {"train_batch_size", "minibatch_size", "num_epochs", "shuffle_batch_per_epoch", "accumulate",
         "nonfinite_gradients"}
    )  # fmt: skip

    # ---- methods -------------------------------------------------------------------------------------------------

    def environment(self, env: str | Callable[..., Any] | Environment | None = _UNSET, **settings: object) -> Self:
        """Say where experience comes from: ``env``, ``env_config``, or the two spaces alone.

        Args:
            env: Name; callable(env_config) -> environment or vector environment; or one of them itself, which stays
                yours: it is sampled in this process alone, and not closed.
            settings: ``env_config observation_space action_space action_mask_in_info max_env_restarts``.

        Returns:
            This config.

        Raises:
            ConfigError: Unknown or ill-typed setting; nothing has changed then. So for all methods below.
        """
        return self._set("environment", settings if env is _UNSET else {"env": env, **settings})

    def api_stack(
        self,
        *,
        enable_rl_module_and_learner: bool | None = True,
        enable_env_runner_and_connector_v2: bool | None = True,
    ) -> Self:
        """Nothing to choose: RLModules, Learners and environment runners are all there is. For programs of RLlib.

        Raises:
            ConfigError: one of them is to be switched off.
        """
        for name, value in (
            ("enable_rl_module_and_learner", enable_rl_module_and_learner),
            ("enable_env_runner_and_connector_v2", enable_env_runner_and_connector_v2),
        ):
            if value not in (True, None):
                raise ConfigError(f"api_stack({name}={value!r}): there is one stack here, RLModules and Learners")
        return self

    def framework(self, name: str = _UNSET, **settings: object) -> Self:
        """Choose the backend: ``name``, ``compile``, ``precision``, ``device``, ``debug``; see :meth:`environment`."""
        return self._set("framework", settings if name is _UNSET else {"name": name, **settings})

    def learners(self, **settings: object) -> Self:
        """Set how many learners there are and how they work together; see :meth:`environment`."""
        return self._set("learners", settings)

    def env_runners(self, **settings: object) -> Self:
        """Set how experience is sampled; see :meth:`environment`."""
        return self._set("env_runners", settings)

    def training(self, **settings: object) -> Self:
        """Set batch sizes, optimizer and the algorithm's own settings; see :meth:`environment`."""
        return self._set("training", settings)

    def rl_module(self, **settings: object) -> Self:
        """Set the network: ``model`` for the algorithm's own module, or ``rl_module_spec``; see :meth:`environment`."""
        return self._set("rl_module", settings)

    def multi_agent(self, **settings: object) -> Self:
        """Set which modules there are, who uses and who trains them; see :meth:`environment`."""
        return self._set("multi_agent", settings)

    def evaluation(self, **settings: object) -> Self:
        """Set when to evaluate: ``interval``, ``num_episodes``, ``max_episode_steps``; see :meth:`environment`."""
        return self._set("evaluation", settings)

    def checkpointing(self, **settings: object) -> Self:
        """Set when and where train() saves: ``every``, ``keep``, ``folder``; see :meth:`environment`."""
        return self._set("checkpointing", settings)

    def debugging(self, **settings: object) -> Self:
        """Set the ``seed``; see :meth:`environment`."""
        return self._set("debugging", settings)

    @classmethod
    def describe(cls) -> list[Setting]:
        """Every setting that the algorithm has a use for; see the base class."""
        return [setting for setting in super().describe() if setting.name not in cls.unused_settings]

    # ---- checks --------------------------------------------------------------------------------------------------

    @classmethod
    def validate_setting(cls, name: str, value: Any) -> Any:
        """Check one value, as the base class does, and names of optimizers and plugins against what exists."""
        value = super().validate_setting(name, storable(value, name=name))
        if name in cls.unused_settings and not same(value, cls.settings()[name].default):
            raise ConfigError(
                f"{cls.__name__}: {name}={value!r:.80} would have no effect: {cls.unused_settings[name]}."
            )
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
        if self.checkpoint_folder is not None and self.checkpoint_every is None:
            raise ConfigError(
                f"checkpointing(folder={self.checkpoint_folder!r}) says where to save and not when: add every=..., in "
                "iterations."
            )
        check_object(self)
        if self.policies is not None and not self.policies:
            raise ConfigError("multi_agent(policies=...): at least one module id; None is the single default_policy.")
        for keyword, named in (("policies_to_train", self.policies_to_train), ("settings", self.policy_settings)):
            # Those that learn from the rows of others stand in rl_module_spec alone.
            known = {*(self.policies or ()), *getattr(self.rl_module_spec, "rl_module_specs", ())}
            unknown = sorted(set(named or ()) - known)
            if self.policies and unknown:
                nearest = did_you_mean(unknown[0], known)
                raise ConfigError(f"multi_agent({keyword}=...): {unknown[0]!r} is not a policy.{nearest}")
        for module_id, settings in self.policy_settings.items():
            for name, value in settings.items():
                self._check_policy_setting(module_id, name, value)

    def validate_news(self) -> None:
        """Refuse settings that would have no effect beside the others; see the base class."""
        super().validate_news()
        refuse_idle(self, self.news)

    def _check_policy_setting(self, module_id: str, name: str, value: object) -> None:
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
        config = self.replaced(
            policies=None if self.policies is None else dict(policies),
            policies_to_train=None if trained is None else [mid for mid in trained if mid in policies],
            policy_settings={mid: dict(values) for mid, values in own.items()},
        )
        for module_id, values in (settings or {}).items():
            refuse_idle_of_module(config, module_id, values)
        return config.remember() if self.is_frozen else config

    # ---- what something is built from ----------------------------------------------------------------------------

    def module_settings(self) -> dict[str, Any]:
        """What modules are built with: ``model``, and what other settings add to it."""
        return self.model if self.critic_observes == "own" else {"policy_reads": [OWN], **self.model}

    def optimizer_spec(self) -> OptimizerSpec:
        """The ``optimizer`` setting as an OptimizerSpec."""
        return _optimizer_spec(self.optimizer)

    def get_learner_class(self) -> type:
        """The class to build: ``learner_class`` if set, else the algorithm's.

        Raises:
            ConfigError: The algorithm has none, so ``learner_class`` must be given.
        """
        return self.learner_class or self._class_of("default_learner_class", "learners(learner_class=...)")

    def get_module_class(self) -> type:
        """The algorithm's default RLModule class.

        Raises:
            ConfigError: The algorithm has none, so ``rl_module_spec`` must be given.
        """
        return self._class_of("default_module_class", "rl_module(rl_module_spec=...)")

    def get_algorithm_class(self) -> type | None:
        """The class that trains by these settings; None: ``learner_core.Algorithm``."""
        return None if self.algorithm_class is None else self._class_of("algorithm_class", "algorithm_class")

    def frozen_copy(self, env: object = None) -> Self:
        """What something is built from; a name that no environment has is answered before a framework is imported.

        Args:
            env: An environment that takes the place of the one named here.
        """
        config = self.copy().freeze()
        if env is None:
            check_name(config)
        return config

    def _class_of(self, attribute: str, remedy: str) -> type:
        """A class that the algorithm names: itself, or "module:Class", which is imported now."""
        found: type | str | None = getattr(type(self), attribute)
        if found is None:
            raise ConfigError(f"{type(self).__name__} has no {attribute}: set {remedy}.")
        return _load_class(found) if isinstance(found, str) else found

    # ---- plain data ----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """This config as plain data for msgpack: None, bool, int, float, str, list, dict.

        Callables, classes and specs become references by name; what has none is marked as unportable and must be given
        again to :meth:`from_dict`.
        """
        values = {name: references.to_plain(getattr(self, name)) for name in self.settings()}
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        plain = {
            "schema": references.schema_of(values),
            "algorithm": self.algorithm_name,
            "class": kind,
            "settings": values,
        }
        # Whoever opens it in another program is told which module the script was that defines what it names.
        return {**plain, "script": references.script_name()} if references.names_main(plain) else plain

    @classmethod
    def of_earlier(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Settings out of a file, as this version means them; a subclass whose setting changed its unit overrides it.

        Args:
            stored: Field name -> plain data, as a file of this or of an earlier version has it.

        Returns:
            The same for this version; ``stored`` is left as it is.
        """
        return stored

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, import_modules: Iterable[str] = (), **overrides: Any) -> Self:
        """Rebuild a config from :meth:`to_dict`'s data.

        What the data names is looked up among registered plugins, or is a class of the right base (RLModule,
        torch.nn.Module, keras.Model, Learner, an environment) that ``__main__``, an installed plugin's package or a
        module of ``import_modules`` defines. All names are settled before anything is imported or called.

        Args:
            data: What :meth:`to_dict` returned.
            import_modules: Names of the modules whose classes the data may name; they are imported when needed, and
                what lies below a package belongs to it.
            overrides: Settings by field name that replace the stored ones: functions, and what else has to be given
                again.

        Returns:
            An unfrozen config, of the class the data names.

        Raises:
            ConfigError: Not such data, an unknown setting, or a name that is not trusted.
        """
        config: Self = references.read_config(cls, data, trust=Trust.of(import_modules), overrides=overrides)
        for name, value in overrides.items():
            setattr(config, name, value)
        return config


def _optimizer_spec(value: str | dict[str, Any]) -> OptimizerSpec:
    return OptimizerSpec(value) if isinstance(value, str) else OptimizerSpec(**value)


def _check_registered(setting: Setting, value: str) -> None:
    group = _PLUGINS[setting.name]
    names = discovery.list_plugins(group)
    # Without our own entry points (a source tree that was never installed) nothing can be said about other names.
    if any(plugin.distribution == OURS for plugin in names) and value not in names:
        nearest = discovery.nearest(group, value)
        raise ConfigError(f".{setting.method}({setting.keyword}={value!r}): no such plugin is registered.{nearest}")


def _load_class(reference: str) -> type:
    module, _, name = reference.partition(":")
    loaded: type = getattr(importlib.import_module(module), name)
    return loaded
