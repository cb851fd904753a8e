"""Row 17 of the reliability plan: a file of every format version ever released loads, for ever."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import xxhash

from learner_core import load_state
from learner_core.state.format import encode
from learner_core.state.layout import VERSION

from support.states import assert_identical

pytest.importorskip("ml_dtypes")

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
# Checksums of the golden files themselves: nobody may "refresh" one.
FILES = {"v1.lcstate": 0xB7BFC9C725CD7017}


def tree():
    return runpy.run_path(str(GOLDEN / "make_golden.py"))["tree"]()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mmap", [True, False])
def test_every_golden_file_loads(name, mmap):
    path = GOLDEN / name
    assert xxhash.xxh3_64_intdigest(path.read_bytes()) == FILES[name]
    assert_identical(tree(), load_state(path, mmap=mmap))


def test_there_is_one_for_every_version():
    assert sorted(FILES) == sorted(path.name for path in GOLDEN.glob("*.lcstate"))
    assert [f"v{version}.lcstate" for version in range(1, VERSION + 1)] == sorted(FILES)


def test_the_same_version_is_still_written_the_same_way():
    data = encode(tree(), info={"writer": "golden"}, chunk_nbytes=4096).tobytes()
    assert data == (GOLDEN / f"v{VERSION}.lcstate").read_bytes()
