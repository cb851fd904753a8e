"""tools/structure: what it counts, by small sources whose counts are known."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from structure import counts, floors  # noqa: E402
from structure.imports import circles  # noqa: E402
from structure.sources import Source  # noqa: E402
from structure.traces import trace  # noqa: E402


def source(text: str) -> list[Source]:
    """One file of that text."""
    text = textwrap.dedent(text)
    return [Source("one", Path("one.py"), ast.parse(text), text.count("\n"), False)]


def test_private_reads_are_those_of_other_objects() -> None:
    found = counts.private_reads(source("self._a\ncls._b\nother._c\nother.__d__\nself.inner._e\n"))
    assert [line.split()[1] for line in found] == ["other._c", "self.inner._e"]


def test_any_counts_in_signatures_also_within_types_and_text() -> None:
    text = """
    def f(a: Any, b: dict[str, Any], c: "list[Any]" = ()) -> Any:
        d: Any = a
        return d
    """
    assert counts.any_per_1000_lines(source(text)) == pytest.approx(1000 * 4 / 4)


@pytest.mark.parametrize(("parameters", "found"), [("self, a, b, c, d, e, f", 0), ("a, b, c, *d, e, f, **g", 1)])
def test_long_signatures(parameters: str, found: int) -> None:
    assert len(counts.long_signatures(source(f"def f({parameters}): ...\n"))) == found


def test_keys_joined_and_split() -> None:
    text = """
    f"params/{module}"
    f"{module}/params"
    key.split("/")
    key.split(",")
    key.startswith("noise/")
    """
    assert len(counts.joined_keys(source(text))) == 3


def test_settings_read_with_a_default() -> None:
    text = 'getattr(config, "a", None)\ngetattr(self.config, "a", 1)\ngetattr(config, "a")\ngetattr(env, "a", 0)\n'
    assert counts.defaulted_settings(source(text)) == ["one.py:1", "one.py:2"]


def test_statements_leave_docstrings_out() -> None:
    assert counts.statements(source('"""Text."""\n# a comment\ndef f():\n    """More."""\n    return 1\n')) == 2


def test_circles() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f"}, "f": {"e"}}
    assert circles(graph) == [["a", "b", "c"], ["e", "f"]]


def test_a_trace_knows_files_and_moves() -> None:
    from learner_core.schedules import value_at

    found = trace(lambda: value_at([[0, 1.0], [10, 2.0]], 5))
    assert found.files[0] == "learner_core/schedules.py" and found.calls[0] == (0, "learner_core/schedules.py:value_at")
    assert not [move for move in found.moves if move[0].split(":")[0] == move[1].split(":")[0]]


def test_the_code_is_within_its_limits() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "measure_structure.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_floors_and_direct_imports() -> None:
    imports = {"top": {"left", "right", "ground"}, "left": {"ground"}, "right": {"left"}, "ground": set()}
    assert floors.floors(imports) == [["ground"], ["left"], ["right"], ["top"]]
    assert floors.direct(imports) == {"top": {"right"}, "right": {"left"}, "left": {"ground"}, "ground": set()}
    with pytest.raises(ValueError, match="circle"):
        floors.floors({"a": {"b"}, "b": {"a"}})


def test_the_picture_of_the_floors_is_of_now() -> None:
    drawn = (ROOT / "docs" / "floors.svg").read_text()
    assert drawn == floors.draw(), "python tools/draw_floors.py draws it anew"


def test_the_page_names_files_that_there_are() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([\w/]+/[\w]+\.(?:py|md))`", page))
    assert len(named) > 40
    missing = [name for name in named if not any((ROOT / base / name).exists() for base in ("", "core/learner_core"))]
    assert not missing
