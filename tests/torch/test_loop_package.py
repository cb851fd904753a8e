"""The compiled loop: what it computes, what is carried, and what the next process finds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from learner_core_torch import loop_package
from learner_core_torch.compile import CompiledLoop
from learner_core_torch.loop_package import LoopPackage, cache_folder

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEARNER_CORE_CACHE", str(tmp_path))
    return tmp_path / "torch"


def body(s: torch.Tensor, carry: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Walk by a table's lines; ``still`` never changes, ``twin`` is the same array as ``x``, ``view`` a part of it."""
    line = inputs["table"].index_select(0, s.reshape(1)).squeeze(0)
    x = carry["x"] + line * torch.tensor([1.0, 10.0]) + carry["still"]
    return {**carry, "x": x, "twin": x, "view": x[:1], "count": carry["count"] + 1}


def example() -> tuple[dict[str, Any], dict[str, Any]]:
    carry = {
        "still": torch.tensor([0.5, 0.25]),
        "x": torch.zeros(2),
        "twin": torch.zeros(2),
        "view": torch.zeros(1),
        "count": torch.zeros((), dtype=torch.int64),
    }
    return carry, {"table": torch.arange(8.0).reshape(4, 2)}


def test_the_loop_its_inputs_and_what_the_next_process_finds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry, inputs = example()
    loop = CompiledLoop(body, (carry, inputs), device=CPU)
    assert loop.fallback == ""
    given = {name: value.clone() for name, value in {**carry, **inputs}.items()}

    for start, stop in ((0, 4), (1, 3), (2, 2)):
        expected = dict(carry)
        for s in range(start, stop):
            expected = body(torch.tensor(s), expected, inputs)
        found = loop(carry, inputs, start, stop)
        assert list(found) == list(carry)
        for name, value in expected.items():
            assert torch.equal(found[name], value), (name, start, stop)
    for name, value in given.items():
        assert torch.equal({**carry, **inputs}[name], value), name
    assert len(list(cache.glob("*.pt2"))) == 1

    # The same step again: nothing is compiled. Carried arrays go in again as they came out.
    again = CompiledLoop(body, (carry, inputs), device=CPU)
    assert again._package is not None
    assert again._package.from_cache
    twice = again(again(carry, inputs, 0, 2), inputs, 2, 4)
    assert torch.equal(twice["x"], loop(carry, inputs, 0, 4)["x"])

    # A damaged package is compiled anew (here by handing out the first one again).
    (path,) = cache.glob("*.pt2")
    good = path.read_bytes()
    path.write_bytes(good[:1000])
    monkeypatch.setattr(loop_package, "_compile", lambda step, num_carried, arguments, path: path.write_bytes(good))
    healed = CompiledLoop(body, (carry, inputs), device=CPU)
    assert healed._package is not None
    assert not healed._package.from_cache
    assert torch.equal(healed(carry, inputs, 0, 4)["x"], loop(carry, inputs, 0, 4)["x"])


@pytest.mark.slow  # the step is compiled by Inductor: twenty seconds
def test_where_the_loop_cannot_be_compiled_the_step_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("no loop today")

    monkeypatch.setattr(loop_package, "_compile", refuse)
    carry, inputs = example()
    loop = CompiledLoop(body, (carry, inputs), device=CPU)
    assert "no loop today" in loop.fallback
    expected = dict(carry)
    for s in range(4):
        expected = body(torch.tensor(s), expected, inputs)
    for name, value in loop(carry, inputs, 0, 4).items():
        assert torch.equal(value, expected[name]), name


def test_a_package_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def wrong(step: Any, num_carried: int, arguments: list[torch.Tensor], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    class Loader:
        def __init__(self, *arguments: Any) -> None:
            pass

        def boxed_run(self, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
            return [arguments[0], arguments[2] + 1.0]

    monkeypatch.setattr(loop_package, "_compile", wrong)
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", Loader)
    arguments = [torch.zeros((), dtype=torch.int64), torch.ones(3)]
    graph = make_fx(lambda s, x: (s + 1, x * 2.0 + 5.0), tracing_mode="fake")(*arguments)
    with pytest.raises(RuntimeError, match="does not compute"):
        LoopPackage(graph, 1, arguments)
    assert not list(cache.glob("*.pt2"))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Compiling writes a mark and takes no time; loading tells of what it loads. Returns what was compiled, where."""
    made: list[Path] = []

    def mark(step: Any, num_carried: int, arguments: list[torch.Tensor], path: Path) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(b"ours")
        path.chmod(0o600)
        made.append(path)

    class Loader:
        def __init__(self, path: str, *arguments: Any) -> None:
            assert Path(path).read_bytes() == b"ours", "code of somebody else was loaded"

        def boxed_run(self, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
            return [arguments[0], arguments[2] * 2.0]

    monkeypatch.setattr(loop_package, "_compile", mark)
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", Loader)
    for function in (loop_package.private_folder, loop_package._warn_once):
        function.cache_clear()
    return made


def package() -> LoopPackage:
    arguments = [torch.zeros((), dtype=torch.int64), torch.ones(3)]
    return LoopPackage(make_fx(lambda s, x: (s + 1, x * 2.0), tracing_mode="fake")(*arguments), 1, arguments)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
@pytest.mark.parametrize("level", ["folder", "above"])
def test_a_cache_that_others_may_write_is_not_used(
    compiled: list[Path], cache: Path, mode: int, level: str, tmp_path: Path
) -> None:
    """One warning with the command that helps, and code compiled in a folder of this process alone."""
    assert not package().from_cache
    (planted,) = compiled
    assert package().from_cache
    (cache if level == "folder" else tmp_path).chmod(mode)
    if (level, mode) == ("above", 0o1777):  # sticky: what is in it stays ours, as in /tmp
        assert package().from_cache
        return
    planted.write_bytes(b"theirs")
    with pytest.warns(RuntimeWarning, match="chmod go-w .* compiled anew in every process") as warned:
        assert not package().from_cache
    assert len(warned) == 1
    assert compiled[1].parent != cache
    assert compiled[1].parent.stat().st_mode & 0o777 == 0o700
    assert package().from_cache  # the process's own
    assert planted.read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", ["writable", "link", "foreign"])
def test_a_package_that_others_may_have_written_is_compiled_anew(
    compiled: list[Path], cache: Path, kind: str, tmp_path: Path
) -> None:
    package()
    (path,) = compiled
    (tmp_path / "theirs").write_bytes(b"theirs")
    if kind == "link":
        path.unlink()
        path.symlink_to(tmp_path / "theirs")
    else:
        path.write_bytes(b"theirs")
        path.chmod(0o666 if kind == "writable" else 0o600)
    if kind == "foreign":
        if os.geteuid():
            pytest.skip("only root may give files away")
        os.chown(path, 12, -1)
    with pytest.warns(RuntimeWarning, match="This compiled loop is not loaded, but compiled anew") as warned:
        assert not package().from_cache
    assert len(warned) == 1
    assert compiled == [path, path]
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert package().from_cache


def test_without_any_safe_place_nothing_is_compiled(
    compiled: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    temporary.chmod(0o777)
    monkeypatch.setattr(loop_package.tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("LEARNER_CORE_CACHE", str(temporary / "cache"))
    with (
        pytest.warns(RuntimeWarning, match="others may write to"),
        pytest.raises(PermissionError, match="no place for compiled code: others may write to"),
    ):
        package()
    assert not compiled


def test_inductor_keeps_its_code_where_the_user_alone_may_write(
    compiled: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    own = tmp_path / "inductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(own))
    loop_package.use_trusted_inductor_cache()
    assert cache_dir() == str(own)
    assert own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)
    with pytest.warns(
        RuntimeWarning, match=f"{own}. Torch's own cache of compiled code .* is not used by this process"
    ):
        loop_package.use_trusted_inductor_cache()
    assert cache_dir() != str(own)
    loop_package.use_trusted_inductor_cache()  # the one that it chose is good
    monkeypatch.setattr(loop_package.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("LOGNAME", "somebody")
    (tmp_path / "torchinductor_somebody").mkdir()
    (tmp_path / "torchinductor_somebody").chmod(0o777)  # made by someone else before
    with pytest.warns(RuntimeWarning, match="torchinductor_somebody is not used"):
        loop_package.use_trusted_inductor_cache()


def test_the_key_tells_graphs_shapes_and_threads_apart() -> None:
    def key(function: Any, *arguments: torch.Tensor) -> str:
        s = torch.zeros((), dtype=torch.int64)
        graph = make_fx(function, tracing_mode="fake")(s, *arguments)
        return loop_package._key(graph, 1, [s, *arguments])

    x = torch.ones(3)
    one = key(lambda s, x: (s + 1, x * 2.0), x)
    assert one == key(lambda s, x: (s + 1, x * 2.0), x + 5)
    assert one != key(lambda s, x: (s + 1, x * np.nextafter(2.0, 3.0)), x)
    assert one != key(lambda s, x: (s + 1, x * 2.0), torch.ones(4))
    assert one != key(lambda s, x: (s + 1, x * 2.0), x.double())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert one != key(lambda s, x: (s + 1, x * 2.0), x)
    finally:
        torch.set_num_threads(threads)


def test_the_folder_is_the_users_and_keeps_what_was_used_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LEARNER_CORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "learner-core" / "torch"
    monkeypatch.setattr(loop_package, "_KEPT", 2)
    folder = cache_folder()
    folder.mkdir(parents=True)
    for index, name in enumerate(("old", "new", "newest")):
        path = folder / f"{name}.pt2"
        path.write_bytes(b"")
        os.utime(path, (index, index))
    loop_package._sweep(folder)
    assert sorted(path.stem for path in folder.iterdir()) == ["new", "newest"]
