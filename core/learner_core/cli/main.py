"""The ``learner-core`` command.

Needs nothing but the standard library until a subcommand runs, so that help appears at once. A subcommand is a module
with ``run(arguments: list[str]) -> int``. Exit codes: 0 done, 1 a check failed, 2 refused (one paragraph says why),
130 stopped by Ctrl-C or SIGTERM after saving.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from learner_core import __version__
from learner_core.errors import LearnerCoreError, did_you_mean

from .interrupt import Leaving

__all__ = ["main"]

# Subcommand -> what it does; its module has the same name, an underscore after it where a standard module is shadowed.
_COMMANDS = {
    "train": "train an algorithm on an environment, or go on with an earlier run",
    "evaluate": "play episodes with a checkpoint and report their returns",
    "record": "play episodes with a checkpoint and keep them in a file, for offline algorithms",
    "inspect": "show what a state file or a checkpoint holds, or how two differ",
    "export": "write a checkpoint's policy as safetensors, Torch, Keras or ONNX",
    "plugins": "list, diagnose and check backends, algorithms and other plugins",
    "horovod": "build Horovod for this environment, or say what it lacks",
    "bench": "measure the speed of an update on this machine",
}
_MODULES = {"inspect": "inspect_"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the command's name; None: those of this process.

    Returns:
        The exit code.
    """
    if arguments is not None:
        return _run(list(arguments), None)
    # This process is ours: no signal may come between the command's end and the interpreter's.
    leaving = Leaving()
    try:
        leaving.install()
        code = _run(sys.argv[1:], leaving)
        leaving.ignore()
    except KeyboardInterrupt:
        leaving.ignore()
        code = 130
    return code


def _run(given: list[str], leaving: Leaving | None) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if given else 2
    if given[0] in ("-V", "--version"):
        print(f"learner-core {__version__}")
        return 0
    command = given.pop(0)
    if command not in _COMMANDS:
        from learner_core.config.foreign_names import known_command  # brings numpy, and is for mistakes alone

        meant = known_command(command) or did_you_mean(command, _COMMANDS)
        print(f"learner-core: there is no command {command!r}.{meant}", file=sys.stderr)
        return 2
    debug = "--debug" in given
    if not debug:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up messages would bury ours
    try:
        module = importlib.import_module(f"learner_core.cli.{_MODULES.get(command, command)}")
        code: int = module.run([argument for argument in given if argument != "--debug"])
        sys.stdout.flush()
        return code
    except LearnerCoreError as error:
        if debug:
            raise
        if leaving is not None and leaving.left:
            return _stopped(command)  # what was interrupted failed in its own words
        print(f"learner-core {command}: {error}", file=sys.stderr)  # unwrapped: paths and commands stay whole
        return 2
    except KeyboardInterrupt:
        return _stopped(command)
    except BrokenPipeError:  # `learner-core inspect FILE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        if leaving is not None and leaving.left:
            return _stopped(command)
        if not isinstance(error, OSError):
            raise
        # A path that cannot be looked at, a full disk under standard output.
        print(f"learner-core {command}: the operating system refuses: {error} (--debug shows where)", file=sys.stderr)
        return 2


def _stopped(command: str) -> int:
    print(f"learner-core {command}: stopped.", file=sys.stderr)
    return 130


def _usage() -> str:
    lines = [
        "usage: learner-core COMMAND ...",
        "",
        "Reinforcement learning written once, on Torch, TensorFlow and other backends.",
        "",
        "commands:",
        *(f"  {name:10} {text}" for name, text in _COMMANDS.items()),
        "",
        "  learner-core train ppo --env CartPole-v1 --stop-return 475 --out runs/cartpole",
        "  learner-core train --resume runs/cartpole --backend tf --stop-timesteps 500k",
        "",
        "`learner-core COMMAND --help` says more; `learner-core train ALGORITHM --help` lists its settings.",
        "--debug with any command: a traceback instead of one paragraph.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
