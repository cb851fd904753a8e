"""What `learner-core inspect` prints."""

from __future__ import annotations

import numpy as np
import pytest

from learner_core import FormatError, save_state
from learner_core.state.inspect import compare_files, inspect_file, provenance, render, render_differences

TREE = {
    "rl_module": {
        "default_policy": {"pi.0.weight": np.zeros((64, 4), np.float32), "pi.0.bias": np.zeros(64, np.float32)},
    },
    "optimizer": {"step": 12, "kind": "adam", "big": 1 << 4000},
    "none": None,
    "history": [np.float32(1.5), {}],
    "note": "n" * 2000,
}


def test_a_file_as_text(tmp_path):
    path = tmp_path / "a"
    save_state(path, TREE, info={"writer": "test", "created": "2026-01-01T00:00:00Z", "env": "CartPole-v1"})
    report = inspect_file(path)
    assert report.intact
    assert render(report).splitlines() == [
        f"{path}: state file, format version 1, {path.stat().st_size / 1000:.1f} kB, intact",
        "  writer   test",
        "  created  2026-01-01T00:00:00Z",
        "  env      CartPole-v1",
        "rl_module",
        "  default_policy",
        "    pi.0.weight   float32 (64, 4)     1.0 kB  ok",
        "    pi.0.bias     float32 (64,)        256 B  ok",
        "optimizer",
        "  step            int 12",
        "  kind            str 'adam'",
        "  big             int of 4001 bits",
        "none              None",
        "history",
        "  [0]             float32 scalar 1.5",
        "  [1]             empty dict",
        "note              str of 2000 bytes   2.0 kB  ok",
        "9 leaves, 3 of them arrays with 3.3 kB",
    ]
    assert "arrays not checked" in render(inspect_file(path, verify=False))


def test_damaged_arrays_are_marked(tmp_path):
    path = tmp_path / "a"
    save_state(path, {"first": np.ones(10), "second": np.zeros(10)})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = inspect_file(path)
    assert not report.intact
    assert [(leaf.path, leaf.checksum) for leaf in report.leaves] == [("first", "ok"), ("second", "DAMAGED")]
    assert "DAMAGED in 1 places" in render(report)
    with pytest.raises(FormatError, match="second"):
        compare_files(path, path)


def test_damaged_padding_belongs_to_the_array_after_it(tmp_path):
    path = tmp_path / "a"
    save_state(path, {"first": np.ones(10), "second": np.zeros(10)})
    data = bytearray(path.read_bytes())
    data[-90] ^= 1
    path.write_bytes(data)
    assert [leaf.checksum for leaf in inspect_file(path).leaves] == ["ok", "DAMAGED"]


def test_a_damaged_header_is_refused(tmp_path):
    path = tmp_path / "a"
    save_state(path, TREE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=f"^{path}: truncated"):
        inspect_file(path)


def test_text_from_a_file_does_not_steer_the_terminal(tmp_path):
    save_state(tmp_path / "a", {"\x1b[31mred": "\x1b[0m", "line\nbreak": 1}, info={"\x07": "\x1b]0;title\x07"})
    text = render(inspect_file(tmp_path / "a"))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert r"line\nbreak" in text


def test_two_files_compared(tmp_path):
    save_state(tmp_path / "a", TREE)
    save_state(tmp_path / "b", TREE)
    assert render_differences(compare_files(tmp_path / "a", tmp_path / "b")) == "no difference"
    changed = {**TREE, "none": 1, "new": 2}
    del changed["note"]
    changed["rl_module"] = {"default_policy": {**TREE["rl_module"]["default_policy"], "pi.0.bias": np.ones(64, "f4")}}
    save_state(tmp_path / "b", changed)
    assert render_differences(compare_files(tmp_path / "a", tmp_path / "b")).splitlines() == [
        "~ rl_module/default_policy/pi.0.bias: 64 of 64 elements differ, by at most 1",
        "~ none: None against int",
        "- note: str only in the first",
        "+ new: int only in the second",
    ]


def test_plain_lists_take_one_line(tmp_path):
    """A hundred episodes are one line, a list with an array in it is shown entry by entry."""
    tree = {"episodes": [[11.0, 11], [13.0, 13]], "sizes": [64], "mixed": [1, np.zeros(2)], "after": 3}
    save_state(tmp_path / "a", tree)
    lines = [" ".join(line.split()) for line in render(inspect_file(tmp_path / "a")).splitlines()]
    assert "episodes list, 4 values: 11.0, 11, 13.0, 13" in lines and "sizes list, 1 value: 64" in lines
    assert "[1] float64 (2,) 16 B ok" in lines and "after int 3" in lines
    save_state(tmp_path / "b", {**tree, "episodes": [[11.0, 12], [13.0, 13], [9.0, 9], [8.0, 8]]})
    assert render_differences(compare_files(tmp_path / "a", tmp_path / "b")).splitlines() == [
        "~ episodes/[0]/[1]: 11 against 12",
        "+ episodes: 4 values of the list only in the second",
    ]


def test_a_leaf_alone(tmp_path):
    save_state(tmp_path / "a", np.zeros(3))
    assert "(the whole tree)  float64 (3,)  24 B  ok" in render(inspect_file(tmp_path / "a"))


def test_provenance(tmp_path):
    save_state(tmp_path / "a", 1)
    info = provenance(tmp_path / "a")
    assert info["writer"].startswith("learner-core ")
    assert info["created"].endswith("Z")
