"""Build Horovod for the frameworks that are installed, keep the wheel, install it.

The order, and why:

1. A wheel that fits is installed already: nothing to do. Its version says what it was built for.
2. The cache has one: install it.
3. A virtual environment of its own gets the build's tools, older setuptools among them, and sees the frameworks of the
   running one through a path file: the user's environment gets nothing but the finished wheel.
4. pip downloads the source and compares its checksum before it runs any of it; then it is compared again, unpacked,
   changed and built.
5. The wheel is moved into the cache in one step, so a build that was cut off leaves nothing that looks finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

from learner_core.errors import LearnerGroupError
from learner_core.state.private import make_private_folder, why_not_private

from .source import ARCHIVE, SHA256, VERSION, check_archive, unpack
from .tools import Target, cache_folder, cmake_version, find_target, missing_tools, num_jobs

__all__ = ["BUILD_COMMAND", "build", "cached_wheel", "installed_version"]

BUILD_COMMAND = "learner-core horovod build"

_BUILD_TOOLS = ["setuptools<81", "wheel", "packaging", "cloudpickle", "psutil", "pyyaml", "cffi"]
Say = Callable[[str], None]


def installed_version() -> str | None:
    """Version of the installed Horovod, or ``None``."""
    try:
        return importlib.metadata.version("horovod")
    except importlib.metadata.PackageNotFoundError:
        return None


def cached_wheel(target: Target, say: Say = lambda text: None) -> Path | None:
    """The cache's wheel for a target; ``None`` if there is none, or one that another user may have put there.

    Args:
        target: what it is for.
        say: told of a wheel that is passed over.
    """
    wheels = sorted((cache_folder() / target.key).glob("horovod-*.whl"))
    if not wheels:
        return None
    problem = why_not_private(wheels[-1])
    if problem:
        say(f"the wheel in the cache is not used: {problem}.")
        return None
    return wheels[-1]


def build(
    frameworks: list[str] | None = None, *, gpu: bool = False, force: bool = False, say: Say = lambda text: None
) -> str:
    """Make Horovod importable here.

    Args:
        frameworks: ``"torch"``, ``"tf"``; ``None``: those installed.
        gpu: with NCCL.
        force: build even where the cache has a wheel.
        say: told, line by line, what is going on.

    Returns:
        The installed version.

    Raises:
        LearnerGroupError: a framework or a tool is missing, the source is not the pinned one, or it does not compile.
    """
    target = find_target(frameworks, gpu=gpu)
    if installed_version() == target.version and not force:
        say(f"Horovod {target.version} is installed.")
        return target.version
    with _trusted_folder(say) as folder, _locked(folder / "lock", say):
        wheel = None if force else cached_wheel(target, say)
        if wheel is None:
            wheel = _build_wheel(target, folder, say)
        else:
            say(f"using the wheel in the cache: {wheel}")
        # Dependencies too: a wheel built elsewhere may come to an environment without psutil.
        install = [sys.executable, "-m", "pip", "install"]
        _run([*install, "--force-reinstall", "--no-deps", str(wheel)], "installing the wheel")
        _run([*install, str(wheel)], "installing what Horovod needs")
    importlib.invalidate_caches()
    say(f"installed Horovod {target.version}.")
    return target.version


@contextlib.contextmanager
def _trusted_folder(say: Say) -> Iterator[Path]:
    """The cache, made if need be; where others may write to it, a folder for this build alone.

    What lies in it is installed, which is to run it.
    """
    folder = cache_folder()
    problem = make_private_folder(folder)
    if not problem:
        yield folder
        return
    say(f"the cache is not used: {problem}. Building in a folder of its own, and the wheel is not kept ...")
    with tempfile.TemporaryDirectory(prefix="learner-core-horovod-") as name:
        yield Path(name)


@contextlib.contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """One build at a time; the operating system lets go of the lock whenever its holder ends."""
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another build of Horovod on this machine ...")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _build_wheel(target: Target, folder: Path, say: Say) -> Path:
    missing = missing_tools(gpu=target.gpu)
    if missing:
        lines = "\n".join(f"  - {line}" for line in missing)
        raise LearnerGroupError(
            f"Horovod cannot be built on this machine; missing:\n{lines}\n"
            f'Then run again: {BUILD_COMMAND}. Without a compiler, a group runs on collective="torch" (Torch only).'
        )
    names = " and ".join(f"{name} {version}" for name, version in target.frameworks.items())
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as name:
        work = Path(name)
        say(f"building Horovod {VERSION} for {names}; this takes minutes, once ...")
        python = _build_environment(work / "env")
        archive = _download(python, folder)
        source = unpack(archive, work / "source", gpu=target.gpu)
        log = folder / f"{target.key}.log"
        out = work / "wheel"
        _compile(python, source, out, target, log)
        wheels = list(out.glob("horovod-*.whl"))
        if len(wheels) != 1:
            raise LearnerGroupError(f"horovod build: expected one wheel, got {[w.name for w in wheels]}; log: {log}")
        final = folder / target.key
        final.mkdir(mode=0o700, exist_ok=True)
        wheels[0].chmod(0o600)  # whatever the umask is
        return wheels[0].replace(final / wheels[0].name)


def _build_environment(folder: Path) -> Path:
    """A virtual environment with the build's tools that sees this one's packages after its own; returns its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    own = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    seen = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (Path(own) / "frameworks.pth").write_text("".join(f"{path}\n" for path in seen))
    tools = [*_BUILD_TOOLS, *([] if cmake_version() else ["cmake>=3.25"])]
    # A user's constraints pin the setuptools of their environment, not of this one.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    command = [str(python), "-m", "pip", "install", "--ignore-installed", "--disable-pip-version-check", *tools]
    _run(command, "installing the build's tools (setuptools<81, wheel, ...)", environment=environment)
    return python


def _download(python: Path, folder: Path) -> Path:
    """The checked source archive, downloaded unless it is there."""
    archive = folder / ARCHIVE
    if archive.is_file():
        try:
            check_archive(archive)
            return archive
        except LearnerGroupError:
            archive.unlink()
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as name:
        wanted = Path(name) / "requirements.txt"
        wanted.write_text(f"horovod=={VERSION} --hash=sha256:{SHA256}\n")
        # With the hash in the file pip refuses another archive before it runs its setup.py for the metadata.
        command = [str(python), "-m", "pip", "download", "--no-deps", "--no-binary", "horovod", "--no-build-isolation"]
        command += ["--require-hashes", "--disable-pip-version-check", "-r", str(wanted), "-d", name]
        _run(command, f"downloading Horovod {VERSION}")
        check_archive(Path(name) / ARCHIVE)
        return (Path(name) / ARCHIVE).replace(archive)


def _compile(python: Path, source: Path, out: Path, target: Target, log: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HOROVOD_WITH", "PIP_C"))}
    environment.update(
        HOROVOD_WITH_GLOO="1",
        HOROVOD_WITHOUT_MPI="1",
        HOROVOD_WITHOUT_MXNET="1",
        HOROVOD_LOCAL_VERSION=target.version.partition("+")[2],
        MAKEFLAGS=f"-j{num_jobs()}",
        CMAKE_POLICY_VERSION_MINIMUM="3.5",  # CMake 4 refuses the scripts of the bundled libraries otherwise
        PATH=os.pathsep.join([str(python.parent), os.environ.get("PATH", "")]),
        TF_CPP_MIN_LOG_LEVEL="3",
    )
    for framework, word in (("torch", "PYTORCH"), ("tf", "TENSORFLOW")):
        wanted = framework in target.frameworks
        environment[f"HOROVOD_WITH_{word}" if wanted else f"HOROVOD_WITHOUT_{word}"] = "1"
    if target.gpu:
        environment["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    command = [str(python), "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-cache-dir", "-v"]
    command += ["--disable-pip-version-check", "-w", str(out), str(source)]
    with log.open("w") as stream:
        done = subprocess.run(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        lines = log.read_text(errors="replace").splitlines()
        telling = [line for line in lines if "error" in line.lower()][:12] or lines[-12:]
        raise LearnerGroupError(
            "horovod build: it does not compile.\n" + "\n".join(telling) + f"\nThe whole log: {log}"
        )


def _run(command: list[str], doing: str, *, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise LearnerGroupError(f"horovod build: {doing} failed: {error}") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise LearnerGroupError(f"horovod build: {doing} failed (exit code {done.returncode}):\n{tail}")
