"""A hundred misbehaving plugins at once: the process lives, the others work, and each is blamed on its distribution."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest

import learner_core as lc
from learner_core import PluginError
from learner_core.plugins import claims, discovery, manager, registry
from learner_core.plugins.containment import EscapedError, contained, said, shown
from learner_core.plugins.hookspecs import hookimpl

from support.hostile_plugins import CASES, GOOD, Hostile, install

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Hostile]]:
    """All of them on the path, and registries that have not seen anything yet."""
    folder = tmp_path_factory.mktemp("hostile")
    cases = install(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "INDEX", claims.Index())
        patch.setattr(registry, "_MANAGER", None)
        patch.syspath_prepend(str(folder))
        before = set(sys.modules)
        yield cases
        for name in set(sys.modules) - before:
            if name.startswith("hostile_"):
                del sys.modules[name]


def test_listing_names_all_that_can_be_read_and_blames_what_cannot(installed: list[Hostile]) -> None:
    assert {"torch", "tf", "numpy", "good-backend"} <= set(lc.list_backends())
    assert {"ppo", "sac", "good-algorithm"} <= set(lc.list_algorithms())
    status = {
        (info.name, info.distribution): info for group in discovery.GROUPS for info in discovery.list_plugins(group)
    }
    unreadable = {one.distribution: one.reason for one in discovery.unreadable()}
    for case in installed:
        if case.stage == "index":
            assert case.says in unreadable[case.name] and "entry_points.txt" in unreadable[case.name], case.name
        elif case.stage == "duplicate":
            assert case.says in str(status[case.name, case.name].error), case.name
    assert set(unreadable) == {case.name for case in installed if case.stage == "index"}
    assert all(name.isprintable() and source.isprintable() for name, source in status)
    assert ("metadata-latin1", "metadata-latin1") in status and ("metadata-missing", "metadata-missing") in status


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """What everybody in a process shares is afterwards what it was, and the built-in plugins work."""

    def shared() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return sys.stdin, sys.stdout, sys.stderr, handlers, os.getcwd(), list(warnings.filters)

    before = shared()
    yield
    assert shared() == before
    assert lc.get_config("ppo").algorithm_name == "ppo"


@pytest.mark.parametrize("name", [case.name for case in CASES if case.group != "plugins" and case.stage == "load"])
def test_what_cannot_be_loaded_is_blamed_on_its_distribution(installed: list[Hostile], name: str) -> None:
    case = BY_NAME[name]
    with _unchanged(), pytest.raises(PluginError) as caught:
        discovery.load(f"learner_core.{case.group}", name)
    text = str(caught.value)
    owner = shown("\x1b]0;pwned\x07") if name == "metadata-escape" else name
    assert case.says in text and owner in text and caught.value.distribution == owner
    assert len(text) < 5000 and all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("name", [case.name for case in CASES if case.stage == "use"])
def test_what_fails_when_it_is_used_is_blamed_too(installed: list[Hostile], name: str) -> None:
    case = BY_NAME[name]
    with pytest.raises(PluginError) as caught:
        lc.get_config(name) if case.group == "algorithms" else discovery.make_backend(name, device="cpu")
    assert case.says in str(caught.value) and name in str(caught.value) and caught.value.distribution == name


@pytest.mark.parametrize("name", [case.name for case in (*CASES, *GOOD) if case.stage == "never"])
def test_the_others_work(installed: list[Hostile], name: str) -> None:
    case = {**BY_NAME, **{good.name: good for good in GOOD}}[name]
    if case.group != "plugins" and not case.name.startswith("points"):
        with _unchanged():
            assert discovery.load(f"learner_core.{case.group}", name) is not None


def test_listeners_that_fail_are_left_out_or_quarantined_and_the_good_one_is_told(installed: list[Hostile]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pm = registry.get_manager()
        for update in range(3):
            manager.notify(pm, "learner_update_begin", update=update, timesteps={}, num_rows={}, rank=0)
            manager.notify(pm, "learner_update_end", update=update, timesteps={}, results={}, rank=0)
        manager.notify(pm, "algorithm_iteration_end", iteration=1, results={}, timesteps={})
        manager.notify(pm, "learner_checkpoint_saved", path="x", update=1, rank=0)
        build = {"config": {}, "module_ids": [], "backend": "x", "compiled": False, "rank": 0, "world_size": 1}
        manager.notify(pm, "learner_build_end", **build)
        from learner_core.state.writer import check_tree

        assert manager.checkpoint_collect(pm, check=check_tree) == {"good-listener": {"told": 3}}
    said = "\n".join(str(one.message) for one in caught)
    for case in installed:
        if case.group == "plugins":
            assert f"{case.name!r} of {case.name}" in said and case.says in pm.quarantined[case.name], case.name
    assert sys.modules["hostile_good_listener"].TOLD == [0, 1, 2]


def test_a_ctrl_c_of_the_users_goes_through_whatever_a_plugin_makes_of_it() -> None:
    for swallow in (lambda: None, lambda: (_ for _ in ()).throw(ValueError)):
        with pytest.raises(KeyboardInterrupt), contained():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait(10)
            except BaseException:
                for _ in swallow() or ():
                    pass
    with pytest.raises(EscapedError, match="KeyboardInterrupt"), contained():
        raise KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_wish_to_stop_that_was_noted_is_no_fault_of_the_plugin() -> None:
    """`learner-core train` notes the first Ctrl-C and finishes its iteration."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with contained():
            os.kill(os.getpid(), signal.SIGINT)
        assert heard == [signal.SIGINT]
        with pytest.raises(EscapedError), contained():
            raise SystemExit
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_a_plugin_is_contained_as_well() -> None:
    out: list[str] = []

    def work() -> None:
        try:
            with contained():
                raise SystemExit(3)
        except Exception as error:
            out.append(said(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert out == ["SystemExit: 3"]


def test_a_module_that_exits_does_not_end_a_process_that_asks_for_its_hooks() -> None:
    class Plugin:
        @hookimpl
        def learner_update_begin(self) -> None:
            raise SystemExit

    pm = manager.Manager()
    pm.register(Plugin(), "mine")
    with pytest.warns(manager.PluginQuarantineWarning, match="'mine'.*SystemExit"):
        manager.notify(pm, "learner_update_begin", update=0, timesteps={}, num_rows={}, rank=0)
