"""What there is for Horovod on this machine, what is missing, and whether a ring works."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

from learner_core.errors import LearnerCoreError
from learner_core.group.ring_check import check_ring
from learner_core.plugins.discovery import backend_facts

from .build import BUILD_COMMAND, cached_wheel, installed_version
from .tools import cmake_version, find_target, missing_tools

__all__ = ["Finding", "examine"]

#: (good, what, said)
Finding = tuple[bool, str, str]


def examine(*, timeout_s: float = 60.0) -> Iterator[Finding]:
    """Look at everything in turn; yields ``(good, what, said)``, the quick looks first.

    Args:
        timeout_s: for each ring that is tried.
    """
    yield True, "python", f"{sys.version.split()[0]} at {sys.executable}"
    try:
        target = find_target()
    except LearnerCoreError as error:
        yield False, "frameworks", str(error)
        return
    yield True, "frameworks", ", ".join(f"{name} {version}" for name, version in target.frameworks.items())
    for line in missing_tools():
        yield False, "missing", line
    for tool in ("g++", "make"):
        if (path := shutil.which(tool)) is not None:
            yield True, tool, path
    yield True, "cmake", cmake_version() or "none here; the build takes pip's"
    wheel = cached_wheel(target)
    yield True, "cached wheel", str(wheel) if wheel else f"none for {target.key}"
    version = installed_version()
    if version is None:
        yield False, "horovod", f"not installed: {BUILD_COMMAND}"
    elif version != target.version and "+lc" in version:
        yield False, "horovod", f"{version} is installed, {target.version} would fit: {BUILD_COMMAND}"
    else:
        yield True, "horovod", version
    names = list(target.frameworks)
    rings = [("horovod", [name, name]) for name in names] if version else []
    if version and len(names) > 1:
        rings.append(("horovod", names))
    for name in names:
        rings += [(other, [name, name]) for other in backend_facts(name).collectives if other != "horovod"]
    for collective, backends in rings:
        what = f"{collective}: {' + '.join(backends)}"
        try:
            report = check_ring(collective, backends, timeout_s=timeout_s)
        except LearnerCoreError as error:
            yield False, what, str(error)
        else:
            yield True, what, f"works; started in {report.start_s:.1f} s, 1000 floats in {report.allreduce_ms:.2f} ms"
