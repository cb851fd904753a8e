"""Run one function under each framework, in a process of its own, and bring the arrays back.

Torch and TensorFlow never share a process in these tests. Each framework is imported once, by a process that computes
nothing; every program is a fork of it, and as fresh as a process of its own. A parity test names a module-level
function of its own file:

    def program(backend_name, arrays, settings):
        xp = learner_core backend's namespace ...
        return {"loss": ..., "grads": {"pi.0.weight": ...}}     # arrays; nested dicts are flattened with "/"

    def test_same_loss():
        torch, tf = in_both(__file__, "program", arrays={"x": x}, settings={"lr": 3e-4})
        np.testing.assert_allclose(torch["loss"], tf["loss"], rtol=1e-6)
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

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


#: What a server imports before it forks, so that no program has to: a framework and what is written for it.
_PRELOADED = {
    "torch": ("learner_core_torch.backend", "learner_core_algorithms"),
    "tf": ("learner_core_tf.backend", "keras", "learner_core_algorithms"),
    "numpy": ("learner_core",),
}


#: What the server has settled by importing.
_FIXED = ("OMP_NUM_THREADS", "TF_CPP_MIN_LOG_LEVEL", "PYTHONPATH")


class _Server:
    """A process that has imported a framework and computed nothing: every program is a fork of it."""

    def __init__(self, backend_name: str) -> None:
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path}
        self.backend_name = backend_name
        self._environment = environment
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.both", backend_name],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def start(self, file: str, function: str, folder: Path, arrays: Arrays, settings: Mapping[str, Any]) -> None:
        """Begin a program; one at a time."""
        np.savez(folder / f"{self.backend_name}-in.npz", **{k.replace("/", "|"): v for k, v in arrays.items()})
        (folder / f"{self.backend_name}-in.json").write_text(json.dumps(dict(settings)))
        own = {k: v for k, v in os.environ.items() if k not in _FIXED and self._environment.get(k) != v}
        order = {"file": str(file), "function": function, "folder": str(folder), "environment": own}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def finish(self, folder: Path, timeout: float) -> Arrays:
        """Wait for the program's end; its arrays."""
        assert self._process.stdout is not None
        log = folder / f"{self.backend_name}.log"
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        answer = self._process.stdout.readline() if ready else ""
        output = log.read_text(errors="replace") if log.exists() else ""
        if not ready:
            self.close()
            raise AssertionError(f"{self.backend_name}: still running after {timeout} s\n{output}")
        if answer.strip() != "0":
            raise AssertionError(f"{self.backend_name}: exit code {answer.strip() or 'unknown'}\n{output}")
        with np.load(folder / f"{self.backend_name}-out.npz", allow_pickle=False) as file:
            return {name.replace("|", "/"): file[name] for name in file.files}

    def close(self) -> None:
        """End it, and a program that still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


_SERVERS: dict[str, _Server] = {}


def _server(backend_name: str) -> _Server:
    if not _SERVERS:
        atexit.register(_close_all)
    server = _SERVERS.get(backend_name)
    if server is None or not server.alive:
        server = _SERVERS[backend_name] = _Server(backend_name)
    return server


def _close_all() -> None:
    for server in _SERVERS.values():
        server.close()


def run_in(
    backend_name: str,
    file: str,
    function: str,
    *,
    arrays: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    timeout: float = 300.0,
) -> Arrays:
    """Call `function(backend_name, arrays, settings)` of `file` in a process of its own.

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
        servers = [_server(backend_name) for backend_name in backend_names]
        for server in servers:
            server.start(file, function, folder, flat, settings or {})
        results, problems = [], []
        for server in servers:
            try:
                results.append(server.finish(folder, timeout))
            except AssertionError as error:
                problems.append(error)
        if problems:
            raise problems[0]
        return results


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


def _serve(backend_name: str) -> None:
    """Fork a program for each line of standard input, and say how it ended; one after the other."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what is printed while modules are imported is no answer
    for module in _PRELOADED[backend_name]:
        importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            _run_order(backend_name, order)
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _run_order(backend_name: str, order: Mapping[str, Any]) -> NoReturn:
    code = 1
    try:
        log = os.open(Path(order["folder"]) / f"{backend_name}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(order["folder"])
        os.environ.update(order["environment"])
        _child(backend_name, order["file"], order["function"], order["folder"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
