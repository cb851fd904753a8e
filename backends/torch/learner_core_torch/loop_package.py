"""The loop over minibatches inside one compiled Torch call, kept on disk for the next process.

The recorded step becomes the body of ``torch.while_loop``; AOTInductor compiles loop and step to one library. An
update is then one call without Python between its steps, and what was compiled once is loaded in milliseconds by
whoever records the same step again: same graph, shapes, threads, processor and version of torch. Needs a CPU, and a
C++ compiler the first time.

A package is machine code. It is loaded only from a folder, and as a file, that belong to the user and that nobody else
may write (state/private.py); where they do not, it is compiled anew in a folder of this process, with one warning.
docs/decisions/torch-update-loop.md says why.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from learner_core.state.private import make_private_folder, why_not_private

__all__ = ["LoopPackage", "cache_folder", "trusted_folder", "use_trusted_inductor_cache"]

#: Part of every key: raise it when what is compiled changes and the graph does not show it.
_VERSION = 1
#: Packages that stay, the most recently used ones; each takes about two megabytes.
_KEPT = 64


class LoopPackage:
    """A compiled ``while start < stop`` around a recorded step.

    Args:
        step: graph of ``step(s, *carried, *fixed) -> (s + 1, *carried)``; what it returns shares no memory with what
            it is given.
        num_carried: how many arrays are carried, ``s`` left out.
        arguments: ``s``, carried and fixed arrays of the shapes of every later call.

    Raises:
        Exception: anything at all, of torch or of the C++ compiler, where this cannot be compiled.
    """

    def __init__(self, step: torch.fx.GraphModule, num_carried: int, arguments: Sequence[torch.Tensor]) -> None:
        self._constants = _lift_constants(step)
        stop = torch.ones((), dtype=torch.int64)
        everything = [stop, *arguments, *self._constants]
        path = trusted_folder() / f"{_key(step, num_carried, everything)}.pt2"
        self.from_cache = False
        if path.exists() and _is_trusted(path):
            with contextlib.suppress(Exception):
                self._load(path, step, num_carried, arguments)
                self.from_cache = True
                path.touch()
        if not self.from_cache:
            _compile(step, num_carried, everything, path)
            self._load(path, step, num_carried, arguments)
            _sweep(path.parent)

    def __call__(
        self, start: int, stop: int, carried: list[torch.Tensor], fixed: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The carried arrays after the steps ``start`` to ``stop - 1``."""
        bounds = [torch.tensor(stop, dtype=torch.int64), torch.tensor(start, dtype=torch.int64)]
        out: list[torch.Tensor] = self._loader.boxed_run([*bounds, *carried, *fixed, *self._constants])
        return out[1:]

    def _load(
        self, path: Path, step: torch.fx.GraphModule, num_carried: int, arguments: Sequence[torch.Tensor]
    ) -> None:
        """Load, and see for one step that it computes what the graph computes uncompiled."""
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
        carried, fixed = list(arguments[1 : 1 + num_carried]), list(arguments[1 + num_carried :])
        found = self(0, 1, carried, fixed)
        with torch.no_grad():
            expected = step(*arguments, *self._constants)[1:]
        for ours, theirs in zip(found, expected, strict=True):
            if not _close(ours, theirs):
                path.unlink(missing_ok=True)
                raise RuntimeError("the compiled loop does not compute what the uncompiled step does")


def cache_folder() -> Path:
    """Where packages are to be kept: ``$LEARNER_CORE_CACHE``, or the user's cache folder, and ``torch`` in it."""
    own = os.environ.get("LEARNER_CORE_CACHE")
    if own:
        return Path(own).expanduser() / "torch"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "learner-core" / "torch"


def trusted_folder() -> Path:
    """The cache folder, made if need be; where others may write to it, one that lives as long as this process.

    Warns once per process of a folder that is not used.

    Raises:
        PermissionError: there is no folder that others may not write to.
    """
    folder = cache_folder()
    problem = make_private_folder(folder)
    if not problem:
        return folder
    _warn_once(f"{problem}. Compiled loops are not kept in {folder}, but compiled anew in every process")
    return private_folder()


@functools.cache
def private_folder() -> Path:
    """A folder of this process, removed at its end.

    Raises:
        PermissionError: others may write to the folder for temporary files, and it is not sticky.
    """
    folder = tempfile.mkdtemp(prefix="learner-core-torch-")
    atexit.register(_remove, folder, os.getpid())
    problem = why_not_private(Path(folder))
    if problem:
        raise PermissionError(f"no place for compiled code: {problem}")
    return Path(folder)


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # a forked process has this list, too
        shutil.rmtree(folder, ignore_errors=True)


def use_trusted_inductor_cache() -> None:
    """Have inductor keep its generated code where only the user may write.

    Its own choice, a folder in /tmp with the user's name in its own, may have been made by someone else before. A
    folder that the user chose by ``TORCHINDUCTOR_CACHE_DIR`` is held to the same.

    Raises:
        PermissionError: as :func:`private_folder`.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()
    problem = make_private_folder(Path(folder))
    if problem:
        _warn_once(f"{problem}. Torch's own cache of compiled code in {folder} is not used by this process")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private_folder() / "inductor")


def _is_trusted(path: Path) -> bool:
    problem = why_not_private(path)
    if problem:
        _warn_once(f"{problem}. This compiled loop is not loaded, but compiled anew")
    return not problem


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def _lift_constants(step: torch.fx.GraphModule) -> list[torch.Tensor]:
    """Make the graph's constants further inputs, so that they are neither in the package nor in its key."""
    graph = step.graph
    constants: list[torch.Tensor] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = functools.reduce(getattr, str(node.target).split("."), step)
            if not isinstance(value, torch.Tensor):
                continue
            with graph.inserting_after(last):
                last = graph.placeholder(f"constant_{len(constants)}")
            node.replace_all_uses_with(last)
            graph.erase_node(node)
            constants.append(value)
    step.recompile()
    return constants


def _compile(step: torch.fx.GraphModule, num_carried: int, arguments: list[torch.Tensor], path: Path) -> None:
    """Compile the loop and move the package to ``path`` in one piece."""
    from torch._higher_order_ops.while_loop import while_loop_op
    from torch._inductor.package.package import package_aoti
    from torch.fx.experimental.proxy_tensor import make_fx

    first_fixed = 1 + num_carried

    def more(s: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return s < rest[num_carried]

    def advance(s: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(step(s, *rest[:num_carried], *rest[first_fixed:]))

    def loop(stop: torch.Tensor, s: torch.Tensor, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        carried: Any = (s, *arrays[:num_carried])
        after: tuple[torch.Tensor, ...] = while_loop_op(more, advance, carried, (stop, *arrays[num_carried:]))
        return after

    use_trusted_inductor_cache()
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        warnings.simplefilter("ignore")
        graph = make_fx(loop, tracing_mode="fake")(*arguments)
        files: Any = torch._inductor.aot_compile(graph, tuple(arguments), options={"aot_inductor.package": True})
        package = package_aoti(str(Path(folder) / "loop.pt2"), files)
        os.chmod(str(package), 0o600)  # whatever the umask is
        os.replace(str(package), path)


def _key(step: torch.fx.GraphModule, num_carried: int, arguments: list[torch.Tensor]) -> str:
    """What decides the machine code, as a hash."""
    shapes = [(tuple(a.shape), tuple(a.stride()), str(a.dtype)) for a in arguments]
    machine = (platform.system(), platform.machine(), _processor(), torch.backends.cpu.get_cpu_capability())
    version = (_VERSION, torch.__version__, torch.version.git_version, torch.get_num_threads())
    return hashlib.sha256(repr((version, machine, num_carried, shapes, step.code)).encode()).hexdigest()[:32]


@functools.cache
def _processor() -> str:
    """The instructions this processor has: the compiler uses all of them."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return line.partition(":")[2].strip()
    return platform.processor()


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for rounding, which Adam's first step may turn into a small part of the rate."""
    if not found.is_floating_point():
        return torch.equal(found, expected)
    size = expected.nan_to_num().abs().max().item() if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * (1.0 + size), equal_nan=True)


def _sweep(folder: Path) -> None:
    """Remove the packages that were not used for longest."""
    with contextlib.suppress(OSError):
        packages = sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in packages[_KEPT:]:
            path.unlink(missing_ok=True)
