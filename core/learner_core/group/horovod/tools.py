"""What a build of Horovod needs and what this machine has: frameworks, compiler, make, CMake, CUDA.

Nothing is imported to find out: versions come from installed metadata, tools from PATH.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from learner_core.errors import LearnerGroupError
from learner_core.state.threads import num_processors

from .source import PATCH, VERSION

__all__ = ["Target", "cache_folder", "cmake_version", "find_target", "framework_of", "missing_tools", "num_jobs"]

_DISTRIBUTIONS = {"torch": ("torch",), "tf": ("tensorflow", "tensorflow-cpu", "tensorflow-gpu")}
_MODULES = {"torch": "torch", "tf": "tensorflow"}
_OLDEST_CMAKE = (3, 13)


@dataclass(frozen=True)
class Target:
    """What one wheel of Horovod is for.

    Args:
        frameworks: framework (``"torch"``, ``"tf"``) -> installed version.
        gpu: with NCCL.
    """

    frameworks: dict[str, str]
    gpu: bool = False

    @property
    def version(self) -> str:
        """The wheel's version: the release, then everything its binary depends on as a local version."""
        parts = [f"lc{PATCH}", *(f"{name}{text}" for name, text in sorted(self.frameworks.items()))]
        if self.gpu:
            parts.append("nccl")
        return f"{VERSION}+" + ".".join(re.sub(r"[^a-z0-9]+", ".", part.lower()).strip(".") for part in parts)

    @property
    def key(self) -> str:
        """Name of the cache's folder: the version, the Python and the processor."""
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        return f"{self.version}-{python}-{platform.system().lower()}-{platform.machine()}"


def find_target(frameworks: list[str] | None = None, *, gpu: bool = False) -> Target:
    """Look which frameworks are installed.

    Args:
        frameworks: those wanted; ``None``: all that are there.
        gpu: build with NCCL.

    Raises:
        LearnerGroupError: none is installed, or one of those wanted is not; the text has the command.
    """
    found: dict[str, str] = {}
    for name in frameworks or list(_MODULES):
        version = _installed(name)
        if version is not None:
            found[name] = version
        elif frameworks is not None:
            raise LearnerGroupError(
                f"horovod build: {_MODULES[name]} is not installed in {sys.prefix}: "
                f"{sys.executable} -m pip install 'learner-core[{name}]'"
            )
    if not found:
        raise LearnerGroupError(
            f"horovod build: neither torch nor tensorflow is installed in {sys.prefix}: "
            f"{sys.executable} -m pip install 'learner-core[torch]'"
        )
    return Target(found, gpu)


def framework_of(module: str) -> str | None:
    """The framework that a module of Horovod is for (``horovod.tensorflow``: ``"tf"``); ``None`` for any other."""
    return next((name for name, top in _MODULES.items() if module == f"horovod.{top}"), None)


def _installed(framework: str) -> str | None:
    if importlib.util.find_spec(_MODULES[framework]) is None:
        return None
    for distribution in _DISTRIBUTIONS[framework]:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def cache_folder() -> Path:
    """Where sources and wheels are kept: ``$LEARNER_CORE_CACHE``, or the user's cache folder, and ``horovod`` in it."""
    own = os.environ.get("LEARNER_CORE_CACHE")
    if own:
        return Path(own).expanduser() / "horovod"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "learner-core" / "horovod"


def missing_tools(*, gpu: bool = False) -> list[str]:
    """What is missing and only the user can install, each as one line with the command that does."""
    missing = []
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        missing.append(f"a C++ compiler ({os.environ.get('CXX', 'g++')}): apt-get install g++")
    if shutil.which("make") is None:
        missing.append("make: apt-get install make")
    if not (Path(_include()) / "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        missing.append(f"Python's headers ({_include()}/Python.h): apt-get install python{version}-dev")
    if gpu:
        if shutil.which("nvcc") is None and not (Path(_cuda_home()) / "bin" / "nvcc").is_file():
            missing.append("the CUDA compiler nvcc: install the CUDA toolkit that your framework was built for")
        if not any((Path(folder) / "nccl.h").is_file() for folder in _nccl_includes()):
            missing.append("NCCL's headers (nccl.h): apt-get install libnccl-dev, or set HOROVOD_NCCL_HOME")
    return missing


def _include() -> str:
    import sysconfig

    return sysconfig.get_path("include")


def _cuda_home() -> str:
    return os.environ.get("HOROVOD_CUDA_HOME") or os.environ.get("CUDA_HOME") or "/usr/local/cuda"


def _nccl_includes() -> list[str]:
    homes = [os.environ[name] for name in ("HOROVOD_NCCL_HOME", "NCCL_HOME") if os.environ.get(name)]
    return [*(f"{home}/include" for home in homes), "/usr/include", "/usr/local/include", f"{_cuda_home()}/include"]


def cmake_version() -> str | None:
    """Version of the CMake on PATH, or ``None`` where there is none that is new enough (pip brings one then)."""
    try:
        text = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"version\s*(\d+)\.(\d+)[.\d]*", text)
    if match is None or (int(match[1]), int(match[2])) < _OLDEST_CMAKE:
        return None
    return match[0].split()[-1]


def num_jobs() -> int:
    """Compilers to run side by side: one per core, and one per 2 GB of memory (TensorFlow's headers need that)."""
    cores = num_processors()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return cores
    return max(1, min(cores, memory // 2_000_000_000))
