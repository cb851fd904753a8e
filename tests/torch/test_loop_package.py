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
