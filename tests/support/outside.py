"""A place outside the repository: a fresh environment with the built wheel, where the checkout is not importable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Outside", "make_outside"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outside:
    """The environment; `python(code)` and `run(*command)` start there, with nothing of the checkout on the path."""

    folder: Path
    wheel: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def run(self, *command: str | Path, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def python(self, code: str, *arguments: str) -> str:
        return self.run(self.bin / "python", "-c", code, *arguments).stdout

    def install(self, what: Path) -> None:
        """Install without touching the network: build tools and dependencies are those of the tests' environment."""
        self.run(
            *(sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet", "--no-deps"),
            *("--no-index", "--no-build-isolation", "--disable-pip-version-check", what),
            timeout=600,
        )


def make_outside(folder: Path) -> Outside:
    """Build the wheel and install it into a new environment under `folder`."""
    # Build from a copy, so that the test leaves nothing in the checkout and sees no build leftovers.
    source = folder / "source"
    source.mkdir()
    for name in ("core", "backends", "plugins"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(source)],
        check=True,
        capture_output=True,
        timeout=600,
    )
    shutil.rmtree(source)
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    place = Outside(folder, wheel)
    # Dependencies come from the tests' environment by a path file. Path files of a folder added in this way are not
    # read in turn, so the editable install's own path file, which leads to the checkout, has no effect.
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    place.install(wheel)
    return place
