"""Which formats ``lc.export`` writes: two of the core's, and those that backends say they have.

Imports backends' plugins, no framework; a plugin that is broken has no formats here.
"""

from __future__ import annotations

from ..backend import Backend, FileFormat
from ..errors import ConfigError, PluginError, did_you_mean
from ..plugins import discovery

__all__ = ["backend_for", "default_suffix", "export_formats"]

_OWN = {"onnx": FileFormat(policies=(".onnx",)), "safetensors": FileFormat(weights=(".safetensors",))}


def export_formats() -> dict[str, FileFormat]:
    """The formats by name, sorted."""
    found = dict(_OWN)
    for _, exports in _of_backends():
        for name, file_format in exports.items():
            found.setdefault(name, file_format)
    return dict(sorted(found.items()))


def default_suffix(file_format: FileFormat) -> str:
    """The suffix of a file whose name does not say one."""
    return [*file_format.weights, *file_format.policies][0]


def backend_for(name: str) -> Backend:
    """A new backend that writes and reads files of a format.

    Raises:
        ConfigError: no backend has it.
        BackendNotInstalledError: its framework is not installed.
    """
    names = [backend for backend, exports in _of_backends() if name in exports]
    if not names:
        raise ConfigError(f"no installed backend has the format {name!r}.{did_you_mean(name, export_formats())}")
    backend: Backend = discovery.make_backend(names[0])
    return backend


def _of_backends() -> list[tuple[str, dict[str, FileFormat]]]:
    found = []
    for backend in dict.fromkeys(map(str, discovery.list_backends())):
        try:
            found.append((backend, dict(discovery.backend_facts(backend).exports)))
        except PluginError:
            continue  # `learner-core plugins doctor` says why; the others' formats are not the worse for it
    return found
