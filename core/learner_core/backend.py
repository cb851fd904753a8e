"""What a backend has to provide: a namespace, two conversions, gradients, and a loop.

The rest has defaults here. Built-in backends and third parties' register through the entry-point group
``learner_core.backends``; the hook ``learner_core_backend()`` returns the class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np

from .errors import CompileError, ConfigError, did_you_mean
from .xp import Array, Arrays, ArrayTree, DType, Namespace

if TYPE_CHECKING:
    from .spaces import AnySpace

__all__ = [
    "ArrayDict",
    "Backend",
    "BackendFacts",
    "FileFormat",
    "Loop",
    "NetworkSpec",
    "OptimizerRule",
    "Params",
    "PythonLoop",
    "PythonSplitLoop",
    "RunSettings",
    "loss_groups",
]

ArrayDict: TypeAlias = dict[str, Array]
"""New arrays by name, such as what a loop carries from step to step."""
Params: TypeAlias = Mapping[str, Arrays]
"""module -> name -> array."""
Groups: TypeAlias = Mapping[str, Mapping[str, list[str]]]
"""module -> optimizer -> names of its parameters."""
Loss: TypeAlias = Array | Mapping[str, Array]
"""A scalar, or {optimizer: scalar}."""
Loop: TypeAlias = Callable[[ArrayDict, ArrayDict, int, int], ArrayDict]
"""``loop(carry, inputs, start, stop) -> carry``: the steps start..stop-1 of the tables in ``inputs``."""
Body: TypeAlias = Callable[..., ArrayDict]
"""``body(s, carry, inputs) -> carry``, pure."""
Gradient: TypeAlias = Callable[..., Array]
"""``gradient(s, carry, inputs) -> flat``: one learner's addend of a step's gradients."""
Reduce: TypeAlias = Callable[[Array], Array]
"""``reduce(flat) -> flat``: the sum over all learners."""

Aux = TypeVar("Aux")
Function = TypeVar("Function", bound=Callable[..., object])


class RunSettings(Protocol):
    """What a backend may read of the algorithm's configuration; it is a whole ``AlgorithmConfig``."""

    @property
    def model(self) -> Mapping[str, object]:
        """Plain settings of the networks."""


class NetworkSpec(Protocol):
    """What a backend reads of an ``RLModuleSpec`` when it adapts a network of its framework."""

    @property
    def module_class(self) -> object:
        """The network, its class or a function that makes one."""

    @property
    def observation_space(self) -> AnySpace | None:
        """What it sees."""

    @property
    def action_space(self) -> AnySpace | None:
        """What it answers."""

    @property
    def model(self) -> Mapping[str, object]:
        """Plain settings of the networks."""


class OptimizerRule(Protocol):
    """What a backend reads of ``learner_core.maths.optimizers.OptimizerSpec``."""

    @property
    def kind(self) -> str:
        """``"adam"``, ``"adamw"``, ``"sgd"`` or ``"rmsprop"``."""

    @property
    def hyper(self) -> Mapping[str, Any]:
        """Its constants, by Torch's names."""

    def update(
        self,
        xp: Namespace,
        *,
        params: Array,
        gradients: Array,
        slots: Mapping[str, Array],
        lr: Array,
        corrections: Sequence[Array],
    ) -> tuple[Array, Mapping[str, Array]]:
        """One step: new parameters and new slots."""


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """Files that ``lc.export(..., to=name)`` writes.

    Attributes:
        policies: Suffixes of files that hold one whole policy.
        weights: Suffixes of files that hold weights. Where there are such, a file of any other suffix is one of them.
    """

    policies: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BackendFacts:
    """What a backend's plugin says of it while its framework is not imported: in the driver, say, which never does.

    Attributes:
        collectives: Collectives that sum this backend's arrays (``make_collective`` makes each), and the module that
            each of them needs for that: it is imported in the process from which learners are forked.
        exports: Formats of files that the backend writes, by the name that ``to=`` takes. Of two backends that have one
            format, the first by name writes it.
    """

    collectives: Mapping[str, str] = field(default_factory=dict)
    exports: Mapping[str, FileFormat] = field(default_factory=dict)


def loss_groups(
    losses: Mapping[str, Loss], params: Params, groups: Groups
) -> list[tuple[Array, list[tuple[str, str]]]]:
    """Which scalar is differentiated by which parameters: for backends' ``gradients``.

    Args:
        losses: module -> scalar, or {optimizer: scalar}.
        params: module -> name -> array.
        groups: module -> optimizer -> names of its parameters.

    Returns:
        (scalar, [(module, name), ...]) pairs over disjoint parameters. Modules with one loss each share a pair, their
        losses added up: modules share no parameters, so one backward pass serves all of them.

    Raises:
        ConfigError: a loss for an optimizer that is not registered.
    """
    pairs: list[tuple[Array, list[tuple[str, str]]]] = []
    total: Array = None
    names: list[tuple[str, str]] = []
    for mid, loss in losses.items():
        if not isinstance(loss, Mapping):
            total = loss if total is None else total + loss
            names += [(mid, name) for name in params[mid]]
            continue
        for optimizer, value in loss.items():
            if optimizer not in groups[mid]:
                raise ConfigError(
                    f"module {mid!r}: a loss for optimizer {optimizer!r}, which is not registered."
                    f"{did_you_mean(optimizer, groups[mid])}"
                )
            pairs.append((value, [(mid, name) for name in groups[mid][optimizer] if name in params[mid]]))
    return pairs if total is None else [*pairs, (total, names)]


class PythonLoop:
    """The steps of an update one after the other from Python, uncompiled, each at its true number of rows.

    ``inputs["sizes"]`` is no array: module id -> list of the rows of every step.
    """

    def __init__(self, body: Body) -> None:
        self._body = body

    def __call__(self, carry: ArrayDict, inputs: ArrayDict, start: int, stop: int) -> ArrayDict:
        arrays = {name: value for name, value in inputs.items() if name != "sizes"}
        for s in range(start, stop):
            sizes = {mid: rows[s] for mid, rows in inputs["sizes"].items()}
            carry = self._body(s, carry, arrays, masked=False, sizes=sizes)
        return carry


class PythonSplitLoop:
    """As :class:`PythonLoop`, for several learners: each step's gradients are summed over all of them."""

    def __init__(self, gradient: Gradient, apply: Body, reduce: Reduce) -> None:
        self._gradient = gradient
        self._apply = apply
        self._reduce = reduce

    def __call__(self, carry: ArrayDict, inputs: ArrayDict, start: int, stop: int) -> ArrayDict:
        arrays = {name: value for name, value in inputs.items() if name != "sizes"}
        for s in range(start, stop):
            sizes = {mid: rows[s] for mid, rows in inputs["sizes"].items()}
            flat = self._reduce(self._gradient(s, carry, arrays, masked=False, sizes=sizes))
            carry = self._apply(s, carry, arrays, flat, eager=True)
        return carry


class Backend:
    """Base of every backend: arrays of one framework on one device.

    Subclasses set ``name`` and ``xp`` and implement ``from_numpy``, ``to_numpy`` and ``gradients``; a backend that
    compiles overrides ``make_loop``.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"gpu:0"``.
        precision: ``"float32"``, ``"float64"``, or ``"bfloat16"`` (float32 parameters, forward passes in bfloat16).

    Raises:
        ConfigError: the device does not exist here, or the precision is not supported.
    """

    name: ClassVar[str]
    xp: Namespace
    #: Backends without gradients serve environment runners and policies only.
    trains: ClassVar[bool] = True
    #: Whether reading a value of an array in an uncompiled step costs next to nothing: nothing runs ahead of Python.
    reads_are_free: bool = False
    #: While it is a list (at build), ``gradients`` notes there the parameters of every loss that reaches none of them.
    unreached: list[list[tuple[str, str]]] | None = None

    def __init__(self, *, device: str = "auto", precision: str = "float32") -> None:
        self.device = device
        self.precision = precision
        #: numpy's dtype of parameters and losses.
        self.numpy_float_dtype: type[np.floating[Any]] = np.float64 if precision == "float64" else np.float32

    # -------------------------------------------------------------- what every backend implements

    def from_numpy(self, tree: ArrayTree) -> ArrayTree:
        """The tree (dicts of numpy arrays) as device arrays that share no memory with it."""
        raise NotImplementedError

    def to_numpy(self, tree: ArrayTree) -> ArrayTree:
        """The tree as numpy arrays that share no memory with it. The only place that waits for the device."""
        raise NotImplementedError

    def gradients(
        self,
        loss_fn: Callable[[dict[str, ArrayDict]], tuple[Mapping[str, Loss], Aux]],
        params: Params,
        groups: Groups,
    ) -> tuple[dict[str, ArrayDict], Aux]:
        """Differentiate one forward pass, each loss by its own parameters only.

        Args:
            loss_fn: ``loss_fn(params) -> ({module: scalar or {optimizer: scalar}}, aux)``.
            params: module -> name -> array.
            groups: module -> optimizer -> names of its parameters.

        Returns:
            ``(gradients, aux)``: gradients as {module: {name: array}}, zeros where a loss does not depend on a
            parameter; aux with every array detached.
        """
        raise NotImplementedError

    # -------------------------------------------------------------- defaults

    def view_numpy(self, tree: ArrayTree) -> ArrayTree:
        """The tree as numpy arrays to be read at once and not kept: they may share its memory. By default copies."""
        return self.to_numpy(tree)

    def adopt_numpy(self, array: np.ndarray) -> Array:
        """A device array of a numpy array that nobody else holds: it may keep the memory. By default it copies."""
        return self.from_numpy({"x": array})["x"]

    @classmethod
    def limit_threads(cls, num_threads: int) -> None:
        """Let computations on the CPU use so many threads in this process; called before the first one."""

    def value_reads(self) -> contextlib.AbstractContextManager[list[str]]:
        """While it is open, the list fills with ``file:line: reason`` where Python reads the value of an array.

        Lets a backend that compiles late say at build that it will not be able to. By default nothing is noted.
        """
        return contextlib.nullcontext([])

    def recording(self) -> contextlib.AbstractContextManager[object]:
        """Entered where arrays are made that are trained later, whatever mode the caller's own code runs in."""
        return contextlib.nullcontext()

    def why_not_recording(self) -> str:
        """Why no gradients can be taken where this is called; "" where they can. By default they always can."""
        return ""

    def note_reach(self, names: Sequence[tuple[str, str]], reached: Sequence[bool]) -> None:
        """Called by ``gradients`` for each loss: which of its parameters the loss depends on.

        Args:
            names: (module, parameter) of those that it is differentiated by.
            reached: for each, whether it depends on it.
        """
        if self.unreached is None:
            return
        for module_id in dict.fromkeys(module_id for module_id, _ in names):
            own = [(name, found) for name, found in zip(names, reached, strict=True) if name[0] == module_id]
            if not any(found for _, found in own):
                self.unreached.append([name for name, _ in own])

    def scope(self) -> contextlib.AbstractContextManager[object]:
        """Entered around every step: arrays that ``xp`` makes from nothing belong on this backend's device."""
        return contextlib.nullcontext()

    def compile_after(self, config: RunSettings) -> int | None:
        """With ``compile=None``: after how many minibatch steps of a run compiling pays; ``None``: never.

        The count is part of the state, so a resumed run compiles at the same step as one that never stopped.
        """
        return None

    def make_loop(self, body: Body, *, example: tuple[ArrayDict, ArrayDict], config: RunSettings) -> Loop:
        """A compiled loop over ``body``. Any exception means that the body cannot be compiled.

        Args:
            body: the step, ``body(s, carry, inputs) -> carry``.
            example: ``(carry, inputs)`` with the shapes and dtypes that every call will have.
            config: the algorithm's configuration (``model``, say).

        Raises:
            CompileError: this backend does not compile.
        """
        raise CompileError(f"backend {self.name!r} does not compile; use compile=None or compile=False")

    def adapt_module(self, spec: NetworkSpec) -> Any:
        """An RLModule around a network of this backend's framework.

        Args:
            spec: ``RLModuleSpec`` with its spaces; ``module_class`` is no ``RLModule`` subclass.

        Raises:
            ConfigError: it is no network of this framework; by default always.
        """
        raise ConfigError(
            f"module_class={spec.module_class!r} is not an RLModule subclass, and backend {self.name!r} takes no "
            "networks of a framework"
        )

    def export_policy(self, policy: Any, path: Path) -> None:
        """Write a policy as a file of this framework's own, which needs nothing of ours to be read.

        Args:
            policy: ``learner_core.exporting.source.ExportedPolicy``.
            path: the file; its suffix is one of ``FileFormat.policies``.

        Raises:
            ConfigError: this backend has no such format; by default always.
        """
        raise ConfigError(f"backend {self.name!r} exports no policies")

    def export_weights(self, arrays: Mapping[str, np.ndarray], path: Path) -> None:
        """Write named arrays as a file of this framework's own.

        Args:
            arrays: name -> array.
            path: the file.

        Raises:
            ConfigError: this backend has no such format; by default always.
        """
        raise ConfigError(f"backend {self.name!r} exports no weights")

    def compile_function(self, function: Function) -> Function:
        """A forward pass made fast for repeated calls without gradients; by default the function itself."""
        return function

    def make_split_loop(
        self,
        gradient: Gradient,
        apply: Body,
        reduce: Reduce,
        *,
        example: tuple[ArrayDict, ArrayDict],
        config: RunSettings,
    ) -> Loop:
        """A compiled loop for several learners: gradients, one sum over the learners, the rest of the step.

        Args:
            gradient: ``gradient(s, carry, inputs) -> flat``, this learner's addend.
            apply: ``apply(s, carry, inputs, flat) -> carry``, from the sum.
            reduce: ``reduce(flat) -> flat``, the sum over all learners; it is not traced.
            example: as in :meth:`make_loop`.
            config: as in :meth:`make_loop`.

        Raises:
            CompileError: this backend does not compile.
        """
        raise CompileError(f"backend {self.name!r} does not compile; use compile=None or compile=False")

    def make_collective(self, name: str) -> Any:
        """One rank's end of a ring for this backend's arrays.

        Args:
            name: the collective's; a third party's may bring its own end for these arrays instead.

        Returns:
            A ``learner_core.group.collectives.Collective``, or ``None``: this backend has none of that name.
        """
        return None

    def squared_norm(self, vector: Array) -> Array:
        """Sum of the squares of a flat vector, 0-d; a backend may spare itself the vector of squares."""
        return self.xp.sum(self.xp.square(vector))

    def optimizer_update(
        self,
        spec: OptimizerRule,
        *,
        params: Array,
        gradients: Array,
        slots: Mapping[str, Array],
        lr: Array,
        corrections: list[Array],
        clip: Callable[[Array], Array] | None = None,
    ) -> tuple[Array, ArrayDict]:
        """One optimizer step on flat vectors; a backend may offer a fused kernel for the same maths.

        Args:
            spec: The optimizer, ``learner_core.maths.optimizers.OptimizerSpec``.
            params: float[size].
            gradients: float[size].
            slots: slot name -> float[size].
            lr: 0-d.
            corrections: ``spec.num_corrections`` 0-d arrays.
            clip: Elementwise, of the gradients, before they are used.

        Returns:
            New parameters and new slots; what was given is as it was.
        """
        if clip is not None:
            gradients = clip(gradients)
        new, new_slots = spec.update(
            self.xp, params=params, gradients=gradients, slots=slots, lr=lr, corrections=corrections
        )
        return new, dict(new_slots)

    @property
    def float_dtype(self) -> DType:
        """dtype of parameters and losses in this backend."""
        return self.xp.float64 if self.precision == "float64" else self.xp.float32

    @property
    def compute_dtype(self) -> DType | None:
        """The narrower dtype that modules compute in, or ``None``."""
        xp: Any = self.xp  # that of a backend with this precision has the dtype, too
        return xp.bfloat16 if self.precision == "bfloat16" else None

    def check_precision(self, supported: tuple[str, ...] = ("float32", "float64", "bfloat16")) -> None:
        """Refuse a precision this backend does not have.

        Raises:
            ConfigError: names what there is.
        """
        if self.precision not in supported:
            raise ConfigError(f"precision={self.precision!r}: backend {self.name!r} has {', '.join(supported)}")
