"""Horovod's source: which release, its checksum, and what must change for today's compilers and frameworks.

Needs the network once (through pip, whose indexes and proxies apply). Refuses a source that is not the pinned one, and
a substitution whose text is not there exactly as often as expected: then the release is not the one they are for.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path

from learner_core.errors import LearnerGroupError

__all__ = ["ARCHIVE", "PATCH", "SHA256", "VERSION", "Substitution", "check_archive", "substitutions", "unpack"]

VERSION = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
ARCHIVE = f"horovod-{VERSION}.tar.gz"

PATCH = 1
"""Number of the list below; part of the cache's key, so a changed list builds anew."""


@dataclass(frozen=True)
class Substitution:
    """Replace ``old`` by ``new`` in ``file``, where it must occur ``count`` times."""

    file: str
    old: str
    new: str
    count: int = 1


def substitutions(*, gpu: bool) -> list[Substitution]:
    """What changes in the source.

    Args:
        gpu: for a build with NCCL.

    Returns:
        The substitutions, in order.
    """
    changes = [
        # torch's headers are C++20 now.
        Substitution("CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 20)"),
        Substitution("horovod/torch/CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 20)"),
        # Python 3.12 has no distutils.
        Substitution(
            "horovod/torch/CMakeLists.txt",
            "from distutils.sysconfig import get_python_inc; print(get_python_inc())",
            "import sysconfig; print(sysconfig.get_path('include'))",
        ),
        # Debugging symbols double the time and the memory of the build.
        Substitution("setup.py", "'RelWithDebInfo'", "'Release'"),
    ]
    if gpu:
        # CUDA 12's and 13's own headers want C++17.
        changes.append(
            Substitution(
                "horovod/common/ops/cuda/CMakeLists.txt",
                "set(CMAKE_CUDA_STANDARD 11)",
                "set(CMAKE_CUDA_STANDARD 17)",
            )
        )
    else:
        # All of this file is for the GPU, and TensorFlow's XLA headers have moved.
        changes.append(
            Substitution(
                "horovod/tensorflow/CMakeLists.txt",
                'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")',
                "",
            )
        )
        # A torch that knows CUDA would ask for the CUDA toolkit even where only the CPU is wanted.
        changes.append(
            Substitution("horovod/torch/CMakeLists.txt", "elseif (Pytorch_CUDA AND NOT HAVE_CUDA)", "elseif (FALSE)")
        )
    return changes


def check_archive(path: Path) -> None:
    """Compare an archive with the pinned checksum.

    Raises:
        LearnerGroupError: it is another file.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise LearnerGroupError(
            f"{path} is not the source of Horovod {VERSION} that learner-core builds: sha256={found}, expected {SHA256}"
        )


def unpack(archive: Path, folder: Path, *, gpu: bool) -> Path:
    """Unpack the checked archive and apply the substitutions.

    Args:
        archive: the sdist.
        folder: where to put it.
        gpu: as in :func:`substitutions`.

    Returns:
        The root of the source tree.

    Raises:
        LearnerGroupError: the checksum differs, or a text to replace is not there.
    """
    check_archive(archive)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    root = folder / f"horovod-{VERSION}"
    for change in substitutions(gpu=gpu):
        path = root / change.file
        text = path.read_text()
        found = text.count(change.old)
        if found != change.count:
            raise LearnerGroupError(
                f"horovod build: {change.file} has {change.old!r} {found} times, expected {change.count}: "
                f"these substitutions are for Horovod {VERSION}"
            )
        path.write_text(text.replace(change.old, change.new))
    return root
