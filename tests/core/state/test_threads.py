"""Work on several processors: the same results and the same error as one thread gives, and nothing left behind."""

from __future__ import annotations

import os
import threading
import warnings

import numpy as np
import pytest

from learner_core import FormatError, load_state, save_state
from learner_core.state import threads
from learner_core.state.files import damaged_payloads
from learner_core.state.format import decode, encode
from learner_core.state.threads import batches, for_each

from support.states import assert_identical

MANY = 1 << 30


@pytest.fixture(autouse=True)
def several_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four, on any machine."""
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_every_item_is_worked_on_once_and_by_several_threads():
    done: list[int] = []
    meeting = threading.Barrier(4, timeout=60)  # passes only when four threads are here at once

    def work(item: int) -> None:
        if item < 4:
            meeting.wait()
        done.append(item)

    for_each(work, range(100), nbytes=MANY)
    assert sorted(done) == list(range(100))


@pytest.mark.parametrize(("processors", "nbytes"), [({0}, MANY), ({0, 1}, 1000)], ids=["one processor", "little data"])
def test_no_thread_is_started_where_it_would_not_pay(monkeypatch, processors, nbytes):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: processors)
    where: set[int] = set()
    order: list[int] = []

    def work(item: int) -> None:
        where.add(threading.get_ident())
        order.append(item)

    for_each(work, range(50), nbytes=nbytes)
    assert where == {threading.get_ident()} and order == list(range(50))


def test_the_first_failure_in_order_is_raised_whoever_fails_first():
    """Item 7 fails only after item 30 has: still it is the one that is told."""
    thirty = threading.Event()

    def work(item: int) -> None:
        if item == 30:
            thirty.set()
            raise ValueError("30")
        if item == 7:
            assert thirty.wait(60)
            raise ValueError("7")

    with pytest.raises(ValueError, match=r"^7$"):
        for_each(work, range(60), nbytes=MANY)


def test_nothing_new_is_begun_after_a_failure():
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        raise ValueError(str(item))

    with pytest.raises(ValueError, match=r"^0$"):
        for_each(work, range(1000), nbytes=MANY)
    assert len(begun) <= 4


def test_an_interrupt_comes_out_and_waits_for_the_threads():
    main = threading.get_ident()
    here, others = threading.Event(), threading.Event()

    def work(item: int) -> None:
        if threading.get_ident() == main:
            here.set()
            assert others.wait(60)
            raise KeyboardInterrupt
        assert here.wait(60)
        others.set()
        raise ValueError("an error of an item does not hide it")

    with pytest.raises(KeyboardInterrupt):
        for_each(work, range(1000), nbytes=MANY)


def test_where_no_thread_can_be_started_the_caller_does_all(monkeypatch):
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for_each(done.append, range(20), nbytes=MANY)
    assert done == list(range(20))


def test_numpy_settings_of_the_caller_hold_in_every_thread():
    """They are of a context, not of the process: 1e300 does not fit float32, which the caller does not mind."""
    big = np.full(4, 1e300)
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")
        for_each(lambda item: big.astype(np.float32), range(50), nbytes=MANY)


def test_batches_are_runs_of_about_a_megabyte():
    sizes = [10, 1 << 20, 1 << 19, 1 << 19, 5]
    assert list(batches(sizes, lambda size: size)) == [[10, 1 << 20], [1 << 19, 1 << 19], [5]]
    assert list(batches([], len)) == []


# What it is for ----------------------------------------------------------------------------------------------------


def large() -> dict[str, object]:
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.standard_normal((600, 1024)).astype(np.float32) for i in range(6)}
    return {**arrays, "fortran": np.asfortranarray(arrays["w0"]), "big": arrays["w1"].astype(">f4"), "s": "x" * 70_000}


@pytest.mark.parametrize("chunk_nbytes", [1 << 30, 1 << 20])
def test_large_states_are_the_same_bytes_and_values_with_one_thread_and_with_four(monkeypatch, tmp_path, chunk_nbytes):
    tree = large()
    data = encode(tree, chunk_nbytes=chunk_nbytes).tobytes()
    path = tmp_path / "a"
    path.write_bytes(data)
    for read in (lambda: decode(data), lambda: decode(data, copy=False), lambda: load_state(path)):
        with_four = read()
        with monkeypatch.context() as patch:
            patch.setattr(threads, "_MOST", 1)
            assert encode(tree, chunk_nbytes=chunk_nbytes).tobytes() == data
            assert_identical(with_four, read())
    copies = decode(data)
    assert all(copies[f"w{i}"].flags.writeable for i in range(6))
    assert_identical(tree["w3"], copies["w3"])


def test_of_several_damaged_arrays_the_first_is_named_every_time(tmp_path):
    path = tmp_path / "a"
    save_state(path, large())
    data = bytearray(path.read_bytes())
    intact = decode(bytes(data), copy=False)
    for name in ("w5", "w2", "w4", "w3"):
        offset = bytes(data).index(intact[name].tobytes())
        data[offset + 1000] ^= 4
    path.write_bytes(data)
    for _ in range(5):
        for read in (lambda: decode(data), lambda: decode(data, copy=False), lambda: load_state(path)):
            with pytest.raises(FormatError, match="chunk 0 of its data is damaged") as caught:
                read()
            assert caught.value.path == "w2"
    layout, damaged = damaged_payloads(path)
    assert sorted(layout.paths()[index] for index in damaged) == ["w2", "w3", "w4", "w5"]


def test_a_process_forked_after_large_work_can_do_it_too(tmp_path):
    path = tmp_path / "a"
    save_state(path, large())
    load_state(path)
    child = os.fork()
    if child == 0:
        try:
            assert_identical(large()["w0"], load_state(path)["w0"])
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
