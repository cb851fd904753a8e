"""Plugins that misbehave in every way we could think of, as installed distributions: folders with a dist-info.

``install(folder)`` writes all of them; with the folder on ``sys.path`` they are installed. Each knows at which step it
fails and what has to be said of it. Some of them cannot be held by the process that loads them (``DEADLY``): those are
for processes of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["CASES", "DEADLY", "GOOD", "Hostile", "install", "make"]

#: When it fails: its metadata cannot be read; two claim the name; it cannot be loaded by name; what it returned cannot
#: be used; never, although it tries; in a hook, later.
Stage = Literal["index", "duplicate", "load", "use", "never", "hook"]

_HOOKIMPL = "from learner_core.plugins.hookspecs import hookimpl\n"
_BACKEND = (
    f"{_HOOKIMPL}\nclass Thing:\n    name = 'thing'\n\n@hookimpl\ndef learner_core_backend():\n    return Thing\n"
)


@dataclass(frozen=True)
class Hostile:
    """One distribution with one plugin.

    Attributes:
        name: of the distribution and of its plugin.
        group: its entry-point group, without "learner_core.".
        source: of its module.
        stage: when it fails.
        says: words that the complaint must contain, beside the distribution's name.
        value: of its entry point; the default is its module.
        entry_points: the whole file, instead.
        metadata: the whole METADATA; None: there is none.
        special: of a file: what takes its place.
    """

    name: str
    group: str = "backends"
    source: str | bytes = ""
    stage: Stage = "load"
    says: str = ""
    value: str = ""
    entry_points: bytes | None = None
    metadata: bytes | None = b"standard"
    special: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return f"hostile_{self.name.replace('-', '_')}"


def _raising(name: str, statement: str, says: str) -> list[Hostile]:
    """Raised by the import, by the hook that registers, and by what that returned."""
    hook = f"{_HOOKIMPL}\n@hookimpl\ndef learner_core_backend():\n    {statement}\n"
    made = f"{_HOOKIMPL}\nclass Thing:\n    def __init__(self, **settings):\n        {statement}\n"
    made += "\n@hookimpl\ndef learner_core_backend():\n    return Thing\n"
    return [
        Hostile(f"import-{name}", source=f"{statement}\n", says=says),
        Hostile(f"hook-{name}", source=hook, says=says),
        Hostile(f"made-{name}", source=made, stage="use", says=says),
    ]


def _listener(name: str, statement: str, says: str, hook: str = "learner_update_end") -> Hostile:
    """Told everything; does something whenever an update ends."""
    source = f"{_HOOKIMPL}\n@hookimpl\ndef {hook}():\n    {statement}\n"
    return Hostile(f"told-{name}", "plugins", source, "hook", says)


_MUTE = "class Mute(Exception):\n    def __str__(self):\n        raise SystemExit\nraise Mute"

CASES: list[Hostile] = [
    # ---- metadata ------------------------------------------------------------------------------------------------
    Hostile("points-latin1", entry_points=b"[learner_core.backends]\npoints-latin1 = caf\xe9\n", stage="index"),
    Hostile("points-utf16", entry_points="[learner_core.backends]\nx = y\n".encode("utf-16"), stage="never"),
    Hostile("points-folder", special={"entry_points.txt": "folder"}, stage="index", says="no regular file"),
    Hostile("points-fifo", special={"entry_points.txt": "fifo"}, stage="index", says="no regular file"),
    Hostile("points-dangling", special={"entry_points.txt": "dangling"}, stage="never"),
    Hostile("points-huge", entry_points=b"#" * (2 << 20), stage="index", says="2097152 bytes"),
    Hostile("points-no-value", entry_points=b"[learner_core.backends]\nonly-a-name\n", stage="index", says="line 2"),
    Hostile("points-nul", entry_points=b"[learner_core.backends]\na\0b = c\n", stage="index", says="printable"),
    Hostile("points-escape", entry_points=b"[learner_core.backends]\n\x1b[31mred = c\n", stage="index", says="x1b"),
    Hostile("points-long", entry_points=b"[learner_core.backends]\n" + b"n" * 5000 + b" = c\n", stage="index"),
    Hostile("points-bom", entry_points=b"\xef\xbb\xbf[learner_core.backends]\npoints-bom = nowhere_at_all\n"),
    Hostile(
        "points-twice",
        entry_points=b"[learner_core.backends]\npoints-twice = a\npoints-twice = b\n",
        stage="duplicate",
        says="claimed by",
    ),
    Hostile(
        "points-builtin",
        entry_points=b"[learner_core.algorithms]\nmarwil-or-so = m\nbc = hostile_bc\n",
        stage="never",
    ),
    Hostile("metadata-missing", source=_BACKEND, metadata=None, stage="never"),
    Hostile("metadata-latin1", source=_BACKEND, metadata=b"Name: caf\xe9\nVersion: 1\n", stage="never"),
    Hostile("metadata-nameless", source=_BACKEND, metadata=b"Version: \n", stage="never"),
    Hostile("metadata-huge", source=_BACKEND, metadata=b"Name: x\n\n" + b"y" * (2 << 20), stage="never"),
    Hostile("metadata-folder", source=_BACKEND, special={"METADATA": "folder"}, stage="never"),
    Hostile("metadata-escape", source="1 / 0", metadata=b"Name: \x1b]0;pwned\x07\nVersion: 1\n", says="ZeroDivision"),
    # ---- values --------------------------------------------------------------------------------------------------
    Hostile("value-garbage", value="!!!", says="names no module"),
    Hostile("value-empty-parts", value="..", says="importing it"),
    Hostile("value-nul", value="a\0b", says="names no module"),
    Hostile("value-no-module", value="hostile_that_is_not_there", says="hostile_that_is_not_there"),
    Hostile("value-no-object", source="", value="hostile_value_no_object:missing", says="missing"),
    Hostile("value-exit", value="os:_exit", says="learner_core_backend"),
    Hostile("value-popen", value="subprocess:Popen", says="importing it"),
    Hostile("value-none", source="plugin = None", value="hostile_value_none:plugin", says="is None"),
    # ---- raised --------------------------------------------------------------------------------------------------
    *_raising("exit", "raise SystemExit('gone')", "SystemExit: gone"),
    *_raising("sys-exit", "import sys; sys.exit(0)", "SystemExit: 0"),
    *_raising("ctrl-c", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    *_raising("generator-exit", "raise GeneratorExit", "GeneratorExit"),
    *_raising("own-base", "raise type('Own', (BaseException,), {})('mine')", "Own: mine"),
    *_raising("group", "raise BaseExceptionGroup('many', [SystemExit(1)])", "many"),
    *_raising("recursion", "f = lambda: f(); f()", "RecursionError"),
    *_raising("memory", "raise MemoryError('none left')", "MemoryError: none left"),
    *_raising("stop", "raise StopIteration('over')", "StopIteration: over"),
    *_raising("escapes", r"raise ValueError('\x1b[2J\x07')", r"\x1b[2J\x07"),
    *_raising("long", "raise ValueError('x' * 10**6)", "xxxxx..."),
    Hostile("import-mute", source=_MUTE, says="it cannot be printed"),
    Hostile("import-syntax", source="def (:", says="SyntaxError"),
    Hostile("import-nul", source=b"x = '\0'\n", says="importing it"),
    Hostile("import-not-utf8", source=b"x = '\xff'\n", says="importing it"),
    Hostile("import-nested", source="(" * 100_000, says="importing it"),
    Hostile("import-circle", source="from hostile_import_circle import missing", says="missing"),
    Hostile("import-gone", source="import sys; del sys.modules[__name__]", says="importing it"),
    # ---- what an import may not change for everybody ---------------------------------------------------------------
    Hostile(
        "import-streams", source=f"import io, sys; sys.stdout = sys.stderr = io.StringIO()\n{_BACKEND}", stage="never"
    ),
    Hostile("import-warnings", source=f"import warnings; warnings.simplefilter('error')\n{_BACKEND}", stage="never"),
    Hostile("import-signals", source=f"import signal; signal.signal(2, signal.SIG_IGN)\n{_BACKEND}", stage="never"),
    Hostile("import-folder", source=f"import os; os.chdir('/')\n{_BACKEND}", stage="never"),
    # ---- versions --------------------------------------------------------------------------------------------------
    Hostile("api-old", source="PLUGIN_API = 0\n", says="PLUGIN_API 0"),
    Hostile("api-new", source="PLUGIN_API = 99\n", says="PLUGIN_API 99"),
    Hostile("api-text", source="PLUGIN_API = '1'\n", says="PLUGIN_API"),
    Hostile(
        "api-equal", source="class A:\n    def __eq__(self, other): return True\nPLUGIN_API = A()\n", says="PLUGIN_API"
    ),
    # ---- hooks and what they return --------------------------------------------------------------------------------
    Hostile("hook-none-at-all", source="", says="has no function learner_core_backend()"),
    Hostile(
        "hook-returns-none", source=f"{_HOOKIMPL}@hookimpl\ndef learner_core_backend(): pass", says="returned None"
    ),
    Hostile("hook-misspelt", source=f"{_HOOKIMPL}@hookimpl\ndef learner_core_backnd(): pass", says="Did you mean"),
    Hostile(
        "hook-arguments", source=f"{_HOOKIMPL}@hookimpl\ndef learner_core_backend(gpu): pass", says="Its signature"
    ),
    Hostile(
        "hook-wrapper",
        source=f"{_HOOKIMPL}@hookimpl(wrapper=True)\ndef learner_core_backend(): return (yield)",
        says="hook wrapper",
    ),
    Hostile("returns-number", source=f"{_HOOKIMPL}@hookimpl\ndef learner_core_backend(): return 5", says="must return"),
    Hostile(
        "returns-dict",
        "algorithms",
        f"{_HOOKIMPL}@hookimpl\ndef learner_core_algorithm(): return dict",
        says="subclass of AlgorithmConfig",
    ),
    Hostile(
        "returns-text",
        "launchers",
        f"{_HOOKIMPL}@hookimpl\ndef learner_core_launcher(): return 'x'",
        says="make_learners",
    ),
    Hostile(
        "returns-unreadable",
        "collectives",
        f"{_HOOKIMPL}\nclass Thing:\n    def __getattr__(self, name): raise SystemExit(name)\n"
        "@hookimpl\ndef learner_core_collective(): return Thing()",
        says="SystemExit",
    ),
    Hostile(
        "returns-mute",
        "launchers",
        f"{_HOOKIMPL}\nclass Thing:\n    def __repr__(self): raise SystemExit\n"
        "@hookimpl\ndef learner_core_launcher(): return Thing()",
        says="must return an object with make_learners()",
    ),
    Hostile(
        "returns-no-class",
        "algorithms",
        f"{_HOOKIMPL}\nclass Thing:\n    @property\n    def __class__(self): raise OSError('which?')\n"
        "@hookimpl\ndef learner_core_algorithm(): return Thing()",
        says="",
    ),
    Hostile(
        "config-exits",
        "algorithms",
        f"{_HOOKIMPL}\nclass Thing:\n    algorithm_name = 'config-exits'\n    def __init__(self): raise SystemExit(4)\n"
        "@hookimpl\ndef learner_core_algorithm(): return Thing",
        stage="use",
        says="SystemExit: 4",
    ),
    Hostile(
        "object-eq",
        source=f"{_HOOKIMPL}\nclass P:\n    def __eq__(self, other): raise SystemExit\n    @hookimpl\n"
        "    def learner_core_backend(self): return dict\nplugin = P()\n",
        value="hostile_object_eq:plugin",
        stage="never",
    ),
    Hostile(
        "object-dir",
        source="class P:\n    def __dir__(self): raise SystemExit\nplugin = P()\n",
        value="hostile_object_dir:plugin",
        says="SystemExit",
    ),
    Hostile(
        "object-property",
        source=f"{_HOOKIMPL}\nclass P:\n    @property\n    def lazy(self): raise OSError\n    @hookimpl\n"
        "    def learner_core_backend(self): return dict\nplugin = P()\n",
        value="hostile_object_property:plugin",
        stage="never",
    ),
    Hostile(
        "object-init",
        source="class P:\n    def __init__(self): raise SystemExit(7)\n",
        value="hostile_object_init:P",
        says="SystemExit: 7",
    ),
    # ---- told everything -------------------------------------------------------------------------------------------
    Hostile("left-out", "plugins", "raise SystemExit('not today')", "load", "SystemExit: not today"),
    Hostile("left-out-misspelt", "plugins", f"{_HOOKIMPL}@hookimpl\ndef learner_updated(): pass", "load", "no hook"),
    _listener("raises", "1 / 0", "ZeroDivisionError"),
    _listener("exits", "raise SystemExit(5)", "SystemExit: 5"),
    _listener("interrupts", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    _listener("recurses", "(f := lambda g: g(g))(f)", "RecursionError"),
    _listener("begin", "raise GeneratorExit", "GeneratorExit", "learner_update_begin"),
    _listener("build", "raise SystemExit(6)", "SystemExit: 6", "learner_build_end"),
    _listener("iteration", "raise SystemExit(6)", "SystemExit: 6", "algorithm_iteration_end"),
    _listener("saved", "raise SystemExit(6)", "SystemExit: 6", "learner_checkpoint_saved"),
    _listener("state-object", "return object()", "cannot be kept", "learner_checkpoint_collect"),
    _listener("state-tuple", "return {'a': (1, 2)}", "cannot be kept", "learner_checkpoint_collect"),
    _listener("state-circle", "d = {}; d['d'] = d; return d", "cannot be kept", "learner_checkpoint_collect"),
    _listener("state-key", "return {None: 1}", "cannot be kept", "learner_checkpoint_collect"),
    _listener("state-exit", "raise SystemExit(8)", "SystemExit: 8", "learner_checkpoint_collect"),
]

#: What no process survives that loads it: (what it is, in words that say so).
DEADLY: list[Hostile] = [
    Hostile("deadly-exit", "algorithms", "import os; os._exit(0)", says="exit code 0"),
    Hostile("deadly-abort", "collectives", "import os; os.abort()", says="exit code -6"),
    Hostile("deadly-kill", "launchers", "import os; os.kill(os.getpid(), 9)", says="exit code -9"),
    Hostile("deadly-segfault", "algorithms", "import ctypes; ctypes.string_at(0)", says="exit code -11"),
    Hostile("deadly-hang", "plugins", "import time; time.sleep(10**6)", says="takes longer than"),
]

#: One of each kind that works, among all the others.
GOOD: list[Hostile] = [
    Hostile("good-backend", source=_BACKEND, stage="never"),
    Hostile(
        "good-algorithm",
        "algorithms",
        f"{_HOOKIMPL}from dataclasses import dataclass\nimport learner_core\n"
        "@dataclass(kw_only=True, repr=False, eq=False)\n"
        "class Config(learner_core.AlgorithmConfig):\n    algorithm_name = 'good-algorithm'\n"
        "@hookimpl\ndef learner_core_algorithm(): return Config\n",
        "never",
    ),
    Hostile(
        "good-listener",
        "plugins",
        f"{_HOOKIMPL}TOLD = []\n@hookimpl\ndef learner_update_end(update): TOLD.append(update)\n"
        "@hookimpl\ndef learner_checkpoint_collect(): return {'told': len(TOLD)}\n",
        "never",
    ),
]


def make(case: Hostile, folder: Path) -> None:
    """Install one distribution into a folder: its module and its dist-info."""
    source = case.source if isinstance(case.source, bytes) else case.source.encode()
    (folder / f"{case.module}.py").write_bytes(source)
    info = folder / f"{case.name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    points = f"[learner_core.{case.group}]\n{case.name} = {case.value or case.module}\n".encode()
    metadata = case.metadata
    if metadata == b"standard":
        metadata = f"Metadata-Version: 2.1\nName: {case.name}\nVersion: 1.0\n".encode()
    for name, content in (("entry_points.txt", case.entry_points or points), ("METADATA", metadata)):
        kind = case.special.get(name, "")
        if kind == "folder":
            (info / name).mkdir()
        elif kind == "fifo":
            os.mkfifo(info / name)
        elif kind == "dangling":
            (info / name).symlink_to("nowhere")
        elif content is not None:
            (info / name).write_bytes(content)


def install(folder: Path, *, deadly: bool = False) -> list[Hostile]:
    """Install all of them and the good ones; returns the hostile ones."""
    cases = [*CASES, *(DEADLY if deadly else [])]
    for case in (*cases, *GOOD):
        make(case, folder)
    (folder / "not_a_folder-1.0.dist-info").write_text("a file")
    (folder / "empty-1.0.dist-info").mkdir()
    return cases
