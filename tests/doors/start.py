"""Starts the user's program in the environment outside, by every launcher, and reads what it has written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .grid import Case, expected_refusal, reads_collective
from support.outside import Outside, make_outside
from support.ranks import free_port

__all__ = ["PROGRAM", "Door", "make_door", "missing", "problem_with"]

PROGRAM = Path(__file__).with_name("program.py")
_RANK_VARIABLES = re.compile(r"RANK$|WORLD_SIZE$|^LOCAL_|^MASTER_|^(HOROVOD|OMPI|PMIX|PMI|SLURM)_")


_HOROVODRUN = """#!{python}
import sys
from horovod.runner.launch import run_commandline

if __name__ == "__main__":  # it starts processes by spawn, which import this file
    sys.exit(run_commandline())
"""


def make_door(folder: Path) -> Door:
    """Build and install the wheel under ``folder``, with the scripts that its dependencies would have brought."""
    outside = make_outside(folder)
    script = outside.bin / "horovodrun"
    script.write_text(_HOROVODRUN.format(python=outside.bin / "python"))
    script.chmod(0o755)
    check_origin(outside)
    return Door(outside)


def check_origin(outside: Outside) -> None:
    """What is imported there is the wheel's, its entry points among it."""
    code = """
import importlib.metadata, importlib.util, json
names = ["learner_core", "learner_core_torch", "learner_core_tf", "learner_core_algorithms"]
found = [importlib.util.find_spec(name).origin for name in names]
points = importlib.metadata.entry_points(group="learner_core.backends")
print(json.dumps([found, [str(point.dist.locate_file("")) for point in points]]))
"""
    origins, places = json.loads(outside.python(code))
    for path in origins + places:
        assert path.startswith(str(outside.folder)), f"{path} is not of the wheel"


def missing(launcher: str) -> str:
    """Why this launcher cannot be tried here; "": it can."""
    if launcher == "mpirun" and shutil.which("mpirun") is None:
        return "there is no mpirun (apt-get install openmpi-bin)"
    return ""


@dataclass(frozen=True)
class Door:
    """The installed wheel, and the program beside it.

    Args:
        outside: the environment.
        environment: variables besides those that any user has.
    """

    outside: Outside
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, cases: Sequence[Case], *, timeout_s: float) -> dict[Case, list[dict[str, Any]]]:
        """Try cases of one backend and one launcher, one after the other in one program.

        Returns:
            What every rank said of each case, in rank order; of a program that ended early or has said nothing new for
            ``timeout_s``, what there is, with its last words as "crashed" for the first case that it did not come to.
        """
        folder = Path(tempfile.mkdtemp(dir=self.outside.folder, prefix="run-"))
        shutil.copy(PROGRAM, folder / "program.py")
        (folder / "cases").write_text("".join(json.dumps(asdict(case)) + "\n" for case in cases))
        launcher = cases[0].launcher
        log = folder / "log"
        with log.open("w") as stream:
            processes = [
                subprocess.Popen(command, cwd=folder, env=env, stdout=stream, stderr=subprocess.STDOUT, text=True)
                for command, env in self.commands(launcher, ["program.py", "cases", "out"])
            ]
            code = _wait(processes, folder, timeout_s)
        found: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
        for path in sorted(folder.glob("out*")):
            for line in path.read_text().splitlines():
                said = json.loads(line)
                found[Case(**said.pop("case"))].append(said)
        size = 2 if launcher in ("spmd", "horovodrun", "mpirun") else 1
        for case in cases:
            if len(found[case]) < size:
                tail = log.read_text(errors="replace")[-4000:]
                found[case].append({"crashed": f"{code}\n{tail}"})
                break
        return {case: said for case, said in found.items() if said}

    def commands(
        self, launcher: str, line: Sequence[str], *, script: bool = True
    ) -> list[tuple[list[str], dict[str, str]]]:
        """Commands to start at once, with their environments.

        Args:
            launcher: a value of that axis.
            line: what every rank runs.
            script: of Python; else a command.
        """
        own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not _RANK_VARIABLES.search(k)}
        own |= {"VIRTUAL_ENV": str(self.outside.folder / "venv"), **self.environment}
        own["PATH"] = f"{self.outside.bin}{os.pathsep}{own['PATH']}"  # as in an activated environment
        program = [str(self.outside.bin / "python"), *line] if script else list(line)
        if launcher == "spmd":
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
            return [(program, {**own, **place, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
        if launcher == "horovodrun":
            return [([str(self.outside.bin / "horovodrun"), "-np", "2", "--gloo", *program], own)]
        if launcher == "mpirun":
            root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
            return [(["mpirun", *root, "--oversubscribe", "-np", "2", *program], own)]
        return [(program, own)]


def _wait(processes: Sequence[subprocess.Popen[str]], folder: Path, timeout_s: float) -> str:
    """Wait for all to end; returns how, in words."""
    written, since = -1, time.monotonic()
    while any(process.poll() is None for process in processes):
        now = sum(path.stat().st_size for path in folder.glob("out*"))
        if now != written:
            written, since = now, time.monotonic()
        if time.monotonic() - since > timeout_s:
            for process in processes:
                process.terminate()
            time.sleep(5)
            for process in processes:
                process.kill()
                process.wait()
            return f"nothing new for {timeout_s:g} s"
        time.sleep(0.1)
    return f"exit codes {[process.returncode for process in processes]}"


def problem_with(case: Case, said: Sequence[dict[str, Any]]) -> str:
    """What is wrong with what the ranks said; "": it is as it should be."""
    ranks = 2 if case.launcher in ("spmd", "horovodrun", "mpirun") else 1
    crashed = [answer["crashed"] for answer in said if "crashed" in answer]
    if crashed:
        return f"{case}: {crashed[0]}"
    if len(said) != ranks:
        return f"{case}: {len(said)} of {ranks} ranks answered: {said}"
    pattern = expected_refusal(case)
    for answer in said:
        if pattern is not None or "refused" in answer:
            text = answer.get("refused", "nothing was refused")
            if pattern is None or not re.match(pattern, text, re.DOTALL):
                return f"{case}: expected {pattern or 'no refusal'}, got: {text}"
            continue
        compiled = 1.0 if case.compile == "True" or case.backend == "tf" else 0.0
        collective = "horovod" if case.collective == "auto" else case.collective
        expected = {
            "compiled": compiled,
            "collective": collective if reads_collective(case) else "",
            "learners": 2 if reads_collective(case) else 1,
            "same": True,
            "modules": ["long", "short"] if case.environment == "agents" else ["default_policy"],
            "trained": True,
            "finite": True,
            "digest": said[0]["digest"],
        }
        wrong = {name: answer[name] for name, value in expected.items() if answer[name] != value}
        if wrong:
            return f"{case}: {wrong}, expected { ({name: expected[name] for name in wrong}) }"
    return ""
