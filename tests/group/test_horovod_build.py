"""The build of Horovod: its parts, on synthetic sources and machines. The true build runs before the tests, in make."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from learner_core.cli.main import main
from learner_core.errors import LearnerGroupError
from learner_core.group.horovod import build as build_module, source, tools

FILES = {change.file for gpu in (False, True) for change in source.substitutions(gpu=gpu)}


def _archive(path: Path, *, leave_out: str = "") -> None:
    """An archive with every text that is substituted, so often as is expected."""
    with tarfile.open(path, "w:gz") as tar:
        for name in sorted(FILES):
            changes = dict.fromkeys(c for gpu in (False, True) for c in source.substitutions(gpu=gpu) if c.file == name)
            text = "\n".join(c.old for c in changes for _ in range(c.count) if c.old != leave_out).encode()
            info = tarfile.TarInfo(f"horovod-{source.VERSION}/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))


def _trust(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(source, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("gpu", [False, True])
def test_every_substitution_is_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    _archive(tmp_path / "a.tar.gz")
    _trust(monkeypatch, tmp_path / "a.tar.gz")
    root = source.unpack(tmp_path / "a.tar.gz", tmp_path / "out", gpu=gpu)
    for change in source.substitutions(gpu=gpu):
        text = (root / change.file).read_text()
        assert change.old not in text
        assert change.new in text


def test_another_archive_is_refused(tmp_path: Path) -> None:
    _archive(tmp_path / "a.tar.gz")
    with pytest.raises(LearnerGroupError, match=f"sha256=.*expected {source.SHA256}"):
        source.unpack(tmp_path / "a.tar.gz", tmp_path / "out", gpu=False)
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_not_there_is_refused_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _archive(tmp_path / "a.tar.gz", leave_out="'RelWithDebInfo'")
    _trust(monkeypatch, tmp_path / "a.tar.gz")
    with pytest.raises(LearnerGroupError, match=r"setup\.py has .*RelWithDebInfo.* 0 times, expected 1"):
        source.unpack(tmp_path / "a.tar.gz", tmp_path / "out", gpu=False)


def test_the_version_says_what_the_wheel_was_built_for() -> None:
    target = tools.Target({"torch": "2.13.0+cpu", "tf": "2.21.0"})
    assert target.version == f"0.28.1+lc{source.PATCH}.tf2.21.0.torch2.13.0.cpu"
    assert tools.Target({"torch": "2.13.0"}, gpu=True).version.endswith(".torch2.13.0.nccl")
    assert target.key.startswith(target.version + "-cp3")


def test_the_cache_is_outside_the_tree_and_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEARNER_CORE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tools.cache_folder() == tmp_path / "xdg" / "learner-core" / "horovod"
    monkeypatch.setenv("LEARNER_CORE_CACHE", str(tmp_path / "own"))
    assert tools.cache_folder() == tmp_path / "own" / "horovod"


def test_a_missing_compiler_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEARNER_CORE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build_module, "installed_version", lambda: None)
    assert main(["horovod", "build"]) == 2
    said = capsys.readouterr().err
    assert "a C++ compiler (g++): apt-get install g++" in said
    assert "make: apt-get install make" in said
    assert "learner-core horovod build" in said


def test_a_framework_that_is_not_there_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LearnerGroupError, match=r"pip install 'learner-core\[tf\]'"):
        tools.find_target(["tf"])
    with pytest.raises(LearnerGroupError, match="neither torch nor tensorflow"):
        tools.find_target()


def test_what_fits_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    target = tools.find_target()
    monkeypatch.setattr(build_module, "installed_version", lambda: target.version)
    assert build_module.build(say=said.append) == target.version
    assert said == [f"Horovod {target.version} is installed."]


@pytest.mark.parametrize(
    ("open_to_others", "said"), [("", "using the wheel"), ("folder", "chmod go-w"), ("wheel", "chmod go-w")]
)
def test_a_wheel_that_others_may_have_put_there_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_to_others: str, said: str
) -> None:
    monkeypatch.setenv("LEARNER_CORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build_module, "installed_version", lambda: None)
    target = tools.find_target()
    wheel = tools.cache_folder() / target.key / "horovod-0.whl"
    wheel.parent.mkdir(parents=True, mode=0o700)
    wheel.write_bytes(b"")
    wheel.chmod(0o664 if open_to_others == "wheel" else 0o600)
    tools.cache_folder().chmod(0o777 if open_to_others == "folder" else 0o700)
    installed: list[str] = []
    lines: list[str] = []

    def built(target: tools.Target, folder: Path, say: object) -> Path:
        assert (folder == tools.cache_folder()) == (open_to_others == "wheel")
        return folder / "ours.whl"

    monkeypatch.setattr(build_module, "_build_wheel", built)
    monkeypatch.setattr(build_module, "_run", lambda command, doing, **more: installed.append(Path(command[-1]).name))
    build_module.build(say=lines.append)
    assert installed == (["ours.whl"] * 2 if open_to_others else ["horovod-0.whl"] * 2)
    assert said in lines[0]
