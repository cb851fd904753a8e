"""Run one function under each framework, in a process of its own, and bring the arrays back.

Torch and TensorFlow never share a process in these tests. A parity test names a module-level function of its own file:

    def program(backend_name, arrays, settings):
        xp = learner_core backend's namespace ...
        return {"loss": ..., "grads": {"pi.0.weight": ...}}     # arrays; nested dicts are flattened with "/"

    def test_same_loss():
        torch, tf = in_both(__file__, "program", arrays={"x": x}, settings={"lr": 3e-4})
        np.testing.assert_allclose(torch["loss"], tf["loss"], rtol=1e-6)
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["in_both", "run_in"]

Arrays = dict[str, np.ndarray]
TESTS = Path(__file__).resolve().parents[1]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Arrays:
    """Nested dicts of array-likes -> {"a/b": array}."""
    flat: Arrays = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = np.asarray(value)
    return flat


def _start(
    backend_name: str, file: str, function: str, folder: Path, arrays: Arrays, settings: Mapping[str, Any]
) -> subprocess.Popen[str]:
    np.savez(folder / f"{backend_name}-in.npz", **{k.replace("/", "|"): v for k, v in arrays.items()})
    (folder / f"{backend_name}-in.json").write_text(json.dumps(dict(settings)))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    command = [sys.executable, "-m", "support.both", backend_name, str(file), function, str(folder)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )


def _finish(process: subprocess.Popen[str], backend_name: str, folder: Path, timeout: float) -> Arrays:
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"{backend_name}: still running after {timeout} s\n{output}") from None
    if process.returncode != 0:
        raise AssertionError(f"{backend_name}: exit code {process.returncode}\n{output}")
    with np.load(folder / f"{backend_name}-out.npz", allow_pickle=False) as file:
        return {name.replace("|", "/"): file[name] for name in file.files}


def run_in(
    backend_name: str,
    file: str,
    function: str,
    *,
    arrays: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    timeout: float = 300.0,
) -> Arrays:
    """Call `function(backend_name, arrays, settings)` of `file` in a fresh process.

    Args:
        backend_name: Passed on to the function ("torch", "tf" or "numpy").
        file: The Python file that defines it, usually the test's own `__file__`.
        function: Its name.
        arrays: Input arrays (nested dicts allowed; they arrive flattened).
        settings: JSON-able settings.
        timeout: Seconds until the process is killed and the test fails.

    Returns:
        What it returned, flattened: {"a/b": array}.
    """
    return _run([backend_name], file, function, arrays, settings, timeout)[0]


def in_both(
    file: str,
    function: str,
    *,
    arrays: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    timeout: float = 300.0,
) -> tuple[Arrays, Arrays]:
    """As `run_in`, under Torch and under TensorFlow side by side; returns (torch's arrays, tf's arrays)."""
    torch, tf = _run(["torch", "tf"], file, function, arrays, settings, timeout)
    return torch, tf


def _run(
    backend_names: list[str],
    file: str,
    function: str,
    arrays: Mapping[str, Any] | None,
    settings: Mapping[str, Any] | None,
    timeout: float,
) -> list[Arrays]:
    with tempfile.TemporaryDirectory(prefix="lc-both-") as name:
        folder = Path(name)
        flat = flatten(arrays or {})
        processes = [_start(b, file, function, folder, flat, settings or {}) for b in backend_names]
        try:
            return [
                _finish(process, backend_name, folder, timeout)
                for process, backend_name in zip(processes, backend_names, strict=True)
            ]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                if process.stdout is not None:
                    process.stdout.close()


def _child(backend_name: str, file: str, function: str, folder_name: str) -> None:
    folder = Path(folder_name)
    spec = importlib.util.spec_from_file_location("parity_program", file)
    if spec is None or spec.loader is None:
        raise ImportError(file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity_program"] = module
    spec.loader.exec_module(module)
    with np.load(folder / f"{backend_name}-in.npz", allow_pickle=False) as stored:
        arrays = {name.replace("|", "/"): stored[name] for name in stored.files}
    settings = json.loads((folder / f"{backend_name}-in.json").read_text())
    result = flatten(getattr(module, function)(backend_name, arrays, settings))
    np.savez(folder / f"{backend_name}-out.npz", **{k.replace("/", "|"): v for k, v in result.items()})


if __name__ == "__main__":
    _child(*sys.argv[1:])
