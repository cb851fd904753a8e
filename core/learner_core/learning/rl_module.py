"""Networks and their three forward passes, as pure functions of named parameters over ``xp``.

Needs: a bound namespace ``xp`` (the backend's for training, numpy for sampling). Refuses: unknown module ids and
specs without spaces. A module object holds structure only; its parameters are passed to every call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeGuard, TypeVar

import numpy as np

from ..backend import Backend
from ..errors import ConfigError, SpaceError, did_you_mean
from ..maths.action_masks import split_mask
from ..maths.distribution_base import Distribution
from ..spaces import AnySpace
from ..xp import Arrays, Columns, Namespace, Outputs

__all__ = [
    "DEFAULT_MODULE_ID",
    "MultiRLModuleSpec",
    "RLModule",
    "RLModuleSpec",
    "SharedParameters",
    "acting",
    "check_module_id",
    "check_references",
    "with_spaces_of",
]

DEFAULT_MODULE_ID = "default_policy"
_Spec = TypeVar("_Spec", "RLModuleSpec", "RLModuleSpec | None")


class RLModule:
    """Base of every policy, value and Q network.

    Subclasses build their networks in ``setup()`` and implement ``init`` and the forward passes. All of them must be
    pure: what they compute depends on the arguments alone, so that one module trains compiled on any backend and
    answers through numpy in an environment runner.

    Args:
        observation_space: gymnasium space of one observation.
        action_space: gymnasium space of one action.
        model: plain settings of the networks (``hidden``, ``activation``, ``conv_filters``, ...).
        xp: array namespace that the forward passes compute with.
    """

    #: Patterns over parameter names that get a target copy (``self.module[id].target`` in a Learner).
    targets: tuple[str, ...] = ()
    #: Whether it computes over any ``xp``, numpy's too, so that policies need no framework.
    portable: ClassVar[bool] = True

    def __init__(
        self, observation_space: AnySpace, action_space: AnySpace, model: Mapping[str, Any] | None, xp: Namespace
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.model: dict[str, Any] = dict(model or {})
        self.xp = xp
        self.setup()

    def setup(self) -> None:
        """Build the structure (no arrays). Called once, at construction."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Initial parameters: canonical name -> float32 array in Torch layout (Linear ``(out, in)``, conv OIHW)."""
        raise NotImplementedError(f"{type(self).__name__} must implement init(rng) -> {{name: array}}")

    def init_buffers(self) -> dict[str, np.ndarray]:
        """Initial buffers (arrays that change without a gradient); none by default."""
        return {}

    @property
    def frozen_parameters(self) -> tuple[str, ...]:
        """Names of parameters that no optimizer may move, whatever its patterns say; none by default."""
        return ()

    def initial_state(self) -> dict[str, np.ndarray]:
        """Recurrent state of one environment before its first step; empty for feed-forward modules.

        Leaves ``prev_action`` and ``prev_reward`` are filled in by whoever steps the environment
        (``learner_core.maths.action_inputs``).
        """
        return {}

    def forward_train(self, params: Arrays, batch: Columns) -> Outputs:
        """Outputs for the loss. ``batch["obs"]``: [B, ...]; returns at least what the algorithm's loss reads."""
        hint = ""
        if any(hasattr(self, name) for name in ("_forward", "_forward_train", "forward")):
            hint = ": _forward_train(batch) of RLlib and forward(obs) of Torch have no parameters; here they come in"
        raise NotImplementedError(f"{type(self).__name__} must implement forward_train(params, batch){hint}")

    def forward_exploration(self, params: Arrays, batch: Columns) -> Outputs:
        """Outputs to sample training actions from; by default ``forward_train``.

        ``action_dist_inputs``, from which actions are drawn; or ``actions`` [N, *shape], which are taken as they are,
        with ``action_logp`` float[N] (else the distribution's, where there are ``action_dist_inputs`` as well).
        """
        return self.forward_train(params, batch)

    def forward_inference(self, params: Arrays, batch: Columns) -> Outputs:
        """Outputs to act greedily with, as of ``forward_exploration``, which it is by default."""
        return self.forward_exploration(params, batch)

    def get_train_action_dist_cls(self) -> type[Distribution]:
        """Action distribution class bound to ``self.xp``, used by losses: ``cls.from_logits(inputs)``."""
        from ..maths.distributions import distribution_for

        return distribution_for(self.action_space, self.xp)

    @property
    def actions_in_space(self) -> bool:
        """Whether training actions lie in the action space; an unsquashed Gaussian's are clipped at the env's door."""
        from ..maths.distributions import DiagGaussian, Joint, SquashedGaussian

        kind = self.get_train_action_dist_cls()
        kinds = [part.kind for part in kind.parts] if issubclass(kind, Joint) else [kind]
        return not any(issubclass(one, DiagGaussian) and not issubclass(one, SquashedGaussian) for one in kinds)

    def get_exploration_action_dist_cls(self) -> type[Distribution]:
        """Distribution that environment runners sample from; by default the training one."""
        return self.get_train_action_dist_cls()

    def get_inference_action_dist_cls(self) -> type[Distribution]:
        """Distribution whose mode evaluation takes; by default the training one."""
        return self.get_train_action_dist_cls()


class SharedParameters(RLModule):
    """Holds parameters for other modules; it computes nothing."""

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """None of its own: they begin as those of the first module that shares them."""
        return {}

    def forward_train(self, params: Arrays, batch: Columns) -> Outputs:
        """Refused."""
        raise ConfigError("a module that holds parameters for others (shares=...) computes nothing by itself")


@dataclass(frozen=True)
class RLModuleSpec:
    """What is needed to build a module anywhere: class, spaces and plain settings.

    Args:
        module_class: ``RLModule`` subclass, or a user's own network: a ``torch.nn.Module`` or ``keras.Model``, its
            class or a function that makes one (docs/interop.md). ``None`` takes the algorithm's default.
        observation_space: gymnasium space; ``None`` is filled in from the environment.
        action_space: gymnasium space; ``None`` is filled in from the environment.
        model: plain settings of the networks; merged over the algorithm's.
        masked: whether batches say which actions are allowed (column ``action_mask``); found in the observation space,
            out of which the mask is taken (``maths.action_masks``).
        rows_of: id of the module whose rows this one learns from. It then plays nobody and has no rows of its own: a
            model of the environment, a reward model, a critic of its own. ``None``: it acts, and learns from its rows.
        shares: patterns over parameter names that the modules of ``shared_by`` have in common: one set of weights,
            which this module holds for them. It computes nothing, and learns from the gradients of all their losses.
        shared_by: ids of these modules, two at least.
    """

    module_class: Any = None
    observation_space: AnySpace = None
    action_space: AnySpace = None
    model: Mapping[str, Any] = field(default_factory=dict)
    masked: bool = False
    rows_of: str | None = field(default=None, metadata={"later": True})
    shares: Sequence[str] = field(default=(), metadata={"later": True})
    shared_by: Sequence[str] = field(default=(), metadata={"later": True})

    @property
    def acts(self) -> bool:
        """Whether it plays, and has rows of its own."""
        return self.rows_of is None and not self.shares

    @property
    def spaces_of(self) -> str | None:
        """The module whose spaces it has, where it does not play."""
        return self.shared_by[0] if self.shares and self.shared_by else self.rows_of

    def filled(
        self, *, module_class: Any, observation_space: AnySpace, action_space: AnySpace, model: Any
    ) -> RLModuleSpec:
        """A copy in which every missing part comes from the arguments."""
        chosen = self.module_class if self.module_class is not None else module_class
        if self.shares:
            chosen, model = SharedParameters, None
        if not _is_neutral(chosen):
            # The algorithm's settings are of its own networks; a user's may mean something else by the same names.
            model = None
        actions = self.action_space if self.action_space is not None else action_space
        seen, mask = split_mask(observation_space, actions)
        if self.observation_space is not None:
            seen, own = split_mask(self.observation_space, actions)
            mask = mask or own
        return RLModuleSpec(
            module_class=chosen,
            observation_space=seen,
            action_space=actions,
            model={**dict(model or {}), **dict(self.model)},
            masked=self.masked or mask is not None,
            rows_of=self.rows_of,
            shares=tuple(self.shares),
            shared_by=tuple(self.shared_by),
        )

    def build(self, xp: Namespace, backend: Backend | None = None) -> RLModule:
        """Build the module over the namespace ``xp``.

        Args:
            xp: the backend's namespace.
            backend: the backend, which adapts a network of its framework; ``None``: the one that ``xp`` belongs to.

        Raises:
            SpaceError: a space is missing.
            ConfigError: no module class, or one that is neither an ``RLModule``, with ``init`` and the arguments that
                it is made of, nor a network of this backend.
        """
        if self.observation_space is None or self.action_space is None:
            raise SpaceError(
                "a module needs an observation_space and an action_space; pass env= to the build call, set "
                ".environment(...), or give both to RLModuleSpec"
            )
        if self.module_class is None:
            raise ConfigError("RLModuleSpec: no module_class, and the algorithm has no default")
        if self.is_neutral:
            _check_class(self.module_class)
            module: RLModule = self.module_class(self.observation_space, self.action_space, self.model, xp)
            return module
        if backend is None:
            from ..plugins.discovery import load

            backend = load("learner_core.backends", xp.name)()
        adapted: RLModule = backend.adapt_module(self)
        return adapted

    @property
    def is_neutral(self) -> bool:
        """Whether the module is written over ``xp``, not a network of one framework."""
        return _is_neutral(self.module_class)


def _check_class(module_class: type[RLModule]) -> None:
    """Refuse a base that is no module yet, and a class that is made of something else."""
    name = f"{module_class.__module__}.{module_class.__qualname__}"
    if module_class.init is RLModule.init:
        raise ConfigError(f"module_class={name} must implement init(rng) -> {{name: array}}")
    try:
        inspect.signature(module_class).bind(None, None, None, None)
    except TypeError as error:
        raise ConfigError(
            f"module_class={name} is not made of (observation_space, action_space, model, xp), as an RLModule is: "
            f"{error}"
        ) from error


def _is_neutral(module_class: object) -> TypeGuard[type[RLModule]]:
    return inspect.isclass(module_class) and issubclass(module_class, RLModule)


@dataclass(frozen=True)
class MultiRLModuleSpec:
    """Several modules by id.

    Args:
        rl_module_specs: module id -> spec. Ids are non-empty strings without ``/``, and not ``__all__``.
    """

    rl_module_specs: Mapping[str, RLModuleSpec]

    def __post_init__(self) -> None:
        if not self.rl_module_specs:
            raise ConfigError("MultiRLModuleSpec needs at least one module")
        for module_id in self.rl_module_specs:
            check_module_id(module_id)

    def __getitem__(self, module_id: str) -> RLModuleSpec:
        try:
            return self.rl_module_specs[module_id]
        except KeyError:
            raise ConfigError(
                f"unknown module id {module_id!r}.{did_you_mean(module_id, self.rl_module_specs)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.rl_module_specs)


def check_module_id(module_id: object) -> None:
    """Refuse ids that could not name a folder in a state tree."""
    if not isinstance(module_id, str) or not module_id or "/" in module_id or module_id == "__all__":
        raise ConfigError(f"module id {module_id!r}: must be a non-empty string without '/', and not '__all__'")


def acting(specs: Mapping[str, _Spec]) -> dict[str, _Spec]:
    """The modules that act, without those that are there for others (``rows_of``, ``shares``)."""
    return {module_id: spec for module_id, spec in specs.items() if not isinstance(spec, RLModuleSpec) or spec.acts}


def check_references(specs: Mapping[str, RLModuleSpec]) -> None:
    """Refuse modules that are there for modules that there are not: ``rows_of`` and ``shared_by``.

    Raises:
        ConfigError: names both.
    """
    own = acting(specs)
    for module_id, spec in specs.items():
        if spec.shares or spec.shared_by:
            _check_sharing(module_id, spec, specs)
            continue
        if spec.rows_of is not None and spec.rows_of not in own:
            why = "has no rows of its own" if spec.rows_of in specs else "is no module"
            raise ConfigError(
                f"module {module_id!r}: rows_of={spec.rows_of!r} {why}; expected one of those that act: "
                f"{', '.join(own) or 'there is none'}.{did_you_mean(str(spec.rows_of), own)}"
            )
        if spec.rows_of is not None and spec.module_class is None:
            raise ConfigError(
                f"module {module_id!r} learns from the rows of {spec.rows_of!r} (rows_of) and is no policy: say what "
                "it is by RLModuleSpec(module_class=...)"
            )


def with_spaces_of(specs: Mapping[str, RLModuleSpec]) -> dict[str, RLModuleSpec]:
    """The same; modules that are there for others have the spaces of these, where they have none of their own."""
    out = {}
    for module_id, spec in specs.items():
        whose = spec if spec.spaces_of is None else specs[spec.spaces_of]
        out[module_id] = replace(
            spec,
            observation_space=whose.observation_space if spec.observation_space is None else spec.observation_space,
            action_space=whose.action_space if spec.action_space is None else spec.action_space,
        )
    return out


def _check_sharing(module_id: str, spec: RLModuleSpec, specs: Mapping[str, RLModuleSpec]) -> None:
    for name, values in (("shares", spec.shares), ("shared_by", spec.shared_by)):
        listed = isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values)
        if not listed or not values:
            raise ConfigError(
                f"module {module_id!r}: {name}={values!r}: expected a list of "
                f"{'patterns over parameter names' if name == 'shares' else 'module ids'}; shares and shared_by belong "
                "together"
            )
    if (spec.module_class is not None and spec.module_class.__name__ != "SharedParameters") or spec.rows_of is not None:
        raise ConfigError(
            f"module {module_id!r} holds parameters for others (shares=...): it has no module_class and no rows_of"
        )
    if len(set(spec.shared_by)) < 2 or len(set(spec.shared_by)) < len(spec.shared_by):
        raise ConfigError(
            f"module {module_id!r}: shared_by={list(spec.shared_by)!r}: expected two modules at least, each once"
        )
    for other in spec.shared_by:
        if other not in specs or specs[other].shares:
            raise ConfigError(
                f"module {module_id!r}: shared_by names {other!r}, which is no module that computes."
                f"{did_you_mean(other, [mid for mid, one in specs.items() if not one.shares])}"
            )
