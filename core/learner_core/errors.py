"""Every refusal that learner-core raises, in one tree.

::

    LearnerCoreError
    ├── ConfigError              a setting: unknown name, wrong type, out of range, frozen
    ├── UnknownNameError         a method or attribute that there is not; also an AttributeError
    ├── SpaceError               an observation or action space that does not fit
    ├── BatchError               a training batch; ``.module_id`` and ``.column`` say where
    ├── StateError               a state tree; ``.path`` says where
    │   ├── FormatError          a state file: damaged, foreign, hostile or from the future
    │   └── StateIOError         the operating system would not read or write one; also an OSError
    ├── PluginError              a plugin; ``.plugin`` and ``.distribution`` say whose
    │   ├── PluginNotFoundError  no plugin of that name
    │   └── BackendNotInstalledError   the backend is known, its framework is not installed
    ├── CompileError             ``compile=True`` and the step cannot be traced
    ├── NonFiniteError           NaN or infinity in a loss, a gradient or a parameter
    ├── EnvError                 an environment that cannot be made, raises, or breaks its spaces
    │   ├── EnvOutputError       what an environment returned is not what its spaces and its interface say
    │   └── EnvRunnerLostError   runner processes died or hung too often; ``.worker_index``, ``.exitcode``
    └── LearnerGroupError        a group that cannot be built or has been shut down
        ├── NetworkError         a network interface that will not do, or learners that do not reach each other
        └── WorkerLostError      a learner process died; ``.rank`` and ``.exitcode`` say which

Where a standard exception says the same (``ValueError`` for a wrong value, say), the class inherits from it
as well, so ``except ValueError`` goes on working for people who write that.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendNotInstalledError",
    "BatchError",
    "CompileError",
    "ConfigError",
    "EnvError",
    "EnvOutputError",
    "EnvRunnerLostError",
    "FormatError",
    "LearnerCoreError",
    "LearnerGroupError",
    "NetworkError",
    "NonFiniteError",
    "PluginError",
    "PluginNotFoundError",
    "SpaceError",
    "StateError",
    "StateIOError",
    "UnknownNameError",
    "WorkerLostError",
    "did_you_mean",
]


class LearnerCoreError(Exception):
    """Base of every error that learner-core raises on purpose."""


class ConfigError(LearnerCoreError, ValueError):
    """A setting that is unknown, ill-typed, out of range, or may not change any more."""


class UnknownNameError(LearnerCoreError, AttributeError):
    """There is no such method or attribute; of a name that another library has, the text says what it is called here.

    It is an AttributeError, so that ``hasattr``, ``copy`` and ``pickle`` find what they expect.
    """


class SpaceError(LearnerCoreError, ValueError):
    """An observation or action space that the module, distribution or algorithm does not support."""


class BatchError(LearnerCoreError, ValueError):
    """A training batch that is refused before anything changes.

    Args:
        message: What was wrong, what was expected, what to do.
        module_id: The module whose batch it is, if known.
        column: The column at fault, as a path (``"obs/position"``), if one column is.
    """

    def __init__(self, message: str, *, module_id: str | None = None, column: str | None = None) -> None:
        where = "".join(
            [f"module {module_id!r}: " if module_id is not None else "", f"column {column!r}: " if column else ""]
        )
        super().__init__(where + message)
        self.module_id = module_id
        self.column = column


class StateError(LearnerCoreError, ValueError):
    """A state tree that does not fit.

    Args:
        message: What was expected, what came.
        path: Where in the tree (``"rl_module/default_policy/pi.0.weight"``), if one place is at fault.
    """

    def __init__(self, message: str, *, path: str | None = None) -> None:
        # One line, whatever it quotes of the state: numpy shows an array in several.
        message = " ".join(line.strip() for line in message.splitlines())
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class FormatError(StateError):
    """A state file that is damaged, foreign, hostile, or written by a newer version."""


class StateIOError(StateError, OSError):
    """The operating system would not read or write a state file; ``errno`` and ``filename`` are those of the cause."""

    @classmethod
    def of(cls, cause: OSError, doing: str) -> StateIOError:
        """Wrap an operating-system error.

        Args:
            cause: The error.
            doing: What failed, with the file's path: "cannot save /runs/a".

        Returns:
            The error to raise, with the errno of the cause.
        """
        error = cls(f"{doing}: {cause.strerror or cause}")
        error.errno = cause.errno
        error.filename = cause.filename
        return error

    def __str__(self) -> str:
        return str(self.args[0])  # OSError would print errno and filename instead of the message


class PluginError(LearnerCoreError):
    """A plugin that cannot be loaded, clashes with another, or breaks its contract.

    Args:
        message: What happened.
        plugin: The plugin's entry-point name.
        distribution: The installed distribution it came from.
    """

    def __init__(self, message: str, *, plugin: str | None = None, distribution: str | None = None) -> None:
        super().__init__(message)
        self.plugin = plugin
        self.distribution = distribution


class PluginNotFoundError(PluginError, LookupError):
    """No plugin of that name is installed; the message names the nearest one."""


class BackendNotInstalledError(PluginError, ImportError):
    """The backend is known but its framework cannot be imported; the message names the extra to install."""


class CompileError(LearnerCoreError, RuntimeError):
    """``compile=True`` was asked for and the training step cannot be traced; the message says file and line."""


class NonFiniteError(LearnerCoreError, ArithmeticError):
    """NaN or infinity where ``nonfinite_gradients="raise"`` forbids it; the message names module and optimizer."""


class EnvError(LearnerCoreError, RuntimeError):
    """An environment that cannot be made, that raised (``max_env_restarts`` says how often it may), or that breaks its
    own spaces. An exception of the environment's own is its ``__cause__``, or among its notes."""


class EnvOutputError(EnvError):
    """An environment returned what its spaces or its interface do not allow: a value, a shape, a type, a key.

    Making the environment anew would not mend that, so it ends the run at once.
    """


class EnvRunnerLostError(EnvError):
    """Environment-runner processes died or stopped answering more often than ``max_env_runner_restarts`` allows.

    Args:
        message: What happened to the last one.
        worker_index: Which one that was; the first is 1.
        exitcode: Its exit code (negative: the signal that killed it), if it has one.
    """

    def __init__(self, message: str, *, worker_index: int | None = None, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.worker_index = worker_index
        self.exitcode = exitcode


class LearnerGroupError(LearnerCoreError, RuntimeError):
    """A learner group that cannot be built, or is used after ``shutdown()``."""


class NetworkError(LearnerGroupError):
    """The network between learners: an interface that is missing or down, or machines that do not reach each other."""


class WorkerLostError(LearnerGroupError):
    """A learner worker died or stopped answering.

    Args:
        message: What was being done.
        rank: The rank of the lost worker.
        exitcode: Its exit code (negative: the signal that killed it), if it has one.

    Attributes:
        rebuilt: The group has been built again from the others' state and goes on; only the call was not answered.
    """

    rebuilt: bool = False

    def __init__(self, message: str, *, rank: int | None = None, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank
        self.exitcode = exitcode


def did_you_mean(name: object, known: Iterable[str], *, nearest_only: bool = False) -> str:
    """Suggest the nearest known name.

    Args:
        name: What was asked for.
        known: The names that exist.
        nearest_only: Whether to say nothing where no name is near: the others would be no help.

    Returns:
        ``" Did you mean 'x'?"``, or a list of what there is when nothing is near, or ``""`` when nothing exists.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" There is: {', '.join(names)}." if names and not nearest_only else ""
