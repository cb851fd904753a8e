"""Everything a state may hold comes back exactly; everything else is refused by path."""

from __future__ import annotations

import collections
import decimal
import enum
import io
import json
import math
import runpy
import struct
import time
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, strategies as st

from learner_core import FormatError, StateError, load_state, save_state
from learner_core.state import dtypes
from learner_core.state.atomic import write_atomically
from learner_core.state.format import decode, encode
from learner_core.state.wire import MAX_DEPTH, MAX_NODES

from support.states import ML_DTYPES, NATIVE_DTYPES, assert_identical, nan, random_array, sample_tree

ROOT = Path(__file__).resolve().parents[3]


def through(tree, **options):
    """The tree by every way there is: copied, viewed."""
    data = encode(tree, **options).tobytes()
    viewed = decode(data, copy=False)
    copied = decode(data)
    assert_identical(viewed, copied)
    return copied


def test_a_whole_state_by_every_way(tmp_path, rng):
    tree = sample_tree(rng)
    for chunk_nbytes in (4096, 1 << 30):
        assert_identical(tree, through(tree, chunk_nbytes=chunk_nbytes))
    save_state(tmp_path / "a", tree)
    assert_identical(tree, load_state(tmp_path / "a"))
    assert_identical(tree, load_state(str(tmp_path / "a"), mmap=True))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


PLAIN = [None, True, False, 0, 127, 128, -32, -33, -128, -129, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32]
PLAIN += [(1 << 64) - 1, 1 << 64, -(1 << 63), -(1 << 63) - 1, 1 << 127, -(1 << 127), -(1 << 128), 3**5000, -(3**5000)]
PLAIN += [0.0, -0.0, 1e-320, math.inf, -math.inf, "", "a" * 31, "a" * 32, "ä" * 128, "x" * 1024, "y" * 1025, "\0"]
PLAIN += [b"", b"a" * 255, b"b" * 256, b"c" * 1024, b"d" * 1025, b"e" * 70000, "z" * 70000, [], {}, [[]], [{}], {"": 1}]
PLAIN += [list(range(20)), {str(i): i for i in range(20)}, {i: str(i) for i in range(-10, 10)}, {1: "int", "1": "str"}]


@pytest.mark.parametrize("leaf", PLAIN, ids=lambda leaf: f"{type(leaf).__name__} {leaf!r:.20}" if leaf != 0 else None)
def test_plain_leaves(leaf):
    assert_identical(leaf, through(leaf))
    assert_identical({"a": [leaf]}, through({"a": [leaf]}))


def test_every_nan_keeps_its_bits():
    signalling = struct.unpack("<d", (0x7FF0_0000_0000_0001).to_bytes(8, "little"))[0]
    for value in (nan(0), nan(1), nan(0x5_5555_5555_5555), -nan(3), signalling):
        assert_identical([value], through([value]))


@pytest.mark.parametrize("dtype", NATIVE_DTYPES + ML_DTYPES)
def test_arrays_of_every_dtype_in_every_form(dtype, rng):
    if dtype in ML_DTYPES:
        pytest.importorskip("ml_dtypes")
    forms = {}
    for shape in [(), (1,), (0,), (3, 0, 2), (5,), (2, 3), (3, 1, 4), (1,) * 32]:
        array = random_array(rng, dtype, shape)
        forms[f"plain{shape}"] = array
        forms[f"fortran{shape}"] = np.asfortranarray(array)
        forms[f"flipped{shape}"] = np.flip(array)
        forms[f"broadcast{shape}"] = np.broadcast_to(array, (2, *shape)[:32] if len(shape) < 32 else shape)
        frozen = array.copy()
        frozen.flags.writeable = False
        forms[f"read-only{shape}"] = frozen
        if dtype in NATIVE_DTYPES:
            forms[f"big-endian{shape}"] = array.astype(array.dtype.newbyteorder(">"))
    forms["strided"] = random_array(rng, dtype, (6, 8))[::-2, 1::3]
    forms["transposed"] = random_array(rng, dtype, (2, 3, 4)).transpose(1, 2, 0)
    forms["scalar"] = random_array(rng, dtype, (1,))[0]
    assert_identical(forms, through(forms))


def test_large_arrays_are_converted_in_blocks(monkeypatch, rng):
    monkeypatch.setattr(dtypes, "BLOCK_NBYTES", 256)
    base = random_array(rng, "float32", (7, 40, 11))
    forms = [np.asfortranarray(base), base[:, ::-1], base.T, base[:1, :, ::2], base.astype(">f4"), base[::3, 5:6]]
    assert_identical(forms, through(forms, chunk_nbytes=4096))
    for array in forms:
        assert max(map(len, dtypes.blocks(array))) <= 256 + 40 * 11 * 4


def test_memory_maps_are_arrays(tmp_path):
    mapped = np.memmap(tmp_path / "m", np.float32, "w+", shape=(4,))
    mapped[:] = 1.5
    assert_identical(np.full(4, 1.5, np.float32), through(mapped))


def test_loaded_arrays_are_independent_and_writable(tmp_path):
    save_state(tmp_path / "a", {"x": np.zeros(3), "y": np.zeros(3)})
    tree = load_state(tmp_path / "a")
    tree["x"] += 1
    assert tree["y"].tolist() == [0, 0, 0]
    assert load_state(tmp_path / "a")["x"].tolist() == [0, 0, 0]


def test_mapped_arrays_are_views_of_the_file(tmp_path):
    save_state(tmp_path / "a", {"x": np.arange(3.0)})
    x = load_state(tmp_path / "a", mmap=True)["x"]
    assert not x.flags.writeable
    assert not x.flags.owndata
    assert x.ctypes.data % 64 == 0
    save_state(tmp_path / "a", {"x": np.zeros(3)})  # a new file: the old one lives on under the map
    assert x.tolist() == [0, 1, 2]


_plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50) | st.binary(max_size=50)
_keys = st.text(max_size=10) | st.integers(-(1 << 63), (1 << 64) - 1)
_trees = st.recursive(
    _plain, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_keys, inner, max_size=5), max_leaves=40
)


@given(_trees)
def test_any_plain_tree(tree):
    assert_identical(tree, through(tree))


def test_any_buffer_can_be_decoded():
    data = encode([1.5]).tobytes()
    for buffer in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert decode(buffer) == [1.5]
    with pytest.raises(FormatError, match="the file is empty"):
        decode(np.zeros(0))


def test_the_same_tree_gives_the_same_bytes(rng):
    tree = sample_tree(rng)
    assert encode(tree).tobytes() == encode(decode(encode(tree).tobytes())).tobytes()


def test_encoded_may_be_iterated_again_and_knows_its_size(rng):
    encoded = encode(sample_tree(rng))
    assert encoded.tobytes() == b"".join(encoded)
    assert encoded.nbytes == len(encoded.tobytes())


def test_an_array_changed_while_it_is_written_is_noticed(tmp_path):
    array = np.zeros(3_000_000)
    encoded = encode({"w": array})
    save_state(tmp_path / "a", 1)
    array[7] = 1
    with pytest.raises(StateError, match=r"float64 \(3000000,\) was changed while it was being written"):
        write_atomically(tmp_path / "a", encoded)
    assert load_state(tmp_path / "a") == 1
    assert len(list(tmp_path.iterdir())) == 1


class _Color(enum.IntEnum):
    RED = 1


class _Sub(np.ndarray):
    pass


REFUSED = [
    ((1, 2), "a state may not hold tuples, which would come back as lists: make it a list"),
    (collections.OrderedDict(), "collections.OrderedDict would come back as dict: convert it"),
    (_Color.RED, "_Color would come back as int: convert it"),
    (np.str_("a"), "numpy.str_ scalar"),
    (np.bytes_(b"a"), "dtype |S1"),
    (np.datetime64("2020-01-01"), "dtype datetime64[D]"),
    (np.timedelta64(1, "s"), "dtype timedelta64[s]"),
    (np.longdouble(1), "dtype float128"),
    (np.array(["text"]), "dtype <U4"),
    (np.array([b"bytes"]), "dtype |S5"),
    (np.array([object()]), "dtype object"),
    (np.zeros(1, "V3"), "dtype |V3"),
    (np.zeros(1, [("f", "i4")]), "dtype [('f', '<i4')]"),
    (np.zeros(2, "datetime64[s]"), "dtype datetime64[s]"),
    (np.ma.masked_array([1], [True]), "numpy.ma.MaskedArray would come back as ndarray"),
    (np.zeros(1).view(_Sub), "_Sub would come back as ndarray"),
    (np.array([2], np.uint8).view(bool), "this array of bool holds bytes other than 0 and 1"),
    (bytearray(b"x"), "a state may not hold builtins.bytearray"),
    ({1, 2}, "a state may not hold builtins.set"),
    (1j, "a state may not hold builtins.complex"),
    (decimal.Decimal(1), "a state may not hold decimal.Decimal"),
    (len, "a state may not hold builtins.builtin_function_or_method"),
    ("\ud800", "this string has no UTF-8 form"),
    ({None: 1}, "a key must be a str or a 64-bit int, not None (NoneType)"),
    ({True: 1}, "a key must be a str or a 64-bit int, not True (bool)"),
    ({1.0: 1}, "a key must be a str or a 64-bit int, not 1.0 (float)"),
    ({1 << 64: 1}, "a key must be a str or a 64-bit int"),
    ({"k" * 4097: 1}, "is longer than 4096 bytes"),
    ({"\udfff": 1}, "has no UTF-8 form"),
]


@pytest.mark.parametrize(("leaf", "message"), REFUSED, ids=lambda value: f"{value!r:.25}")
def test_what_a_state_may_not_hold_is_refused_by_path(leaf, message):
    with pytest.raises(StateError) as caught:
        encode({"optimizer": [0, {"x": leaf}]})
    assert caught.value.path == "optimizer/[1]/x"
    if "scalar" not in message:
        assert message in str(caught.value)


def test_a_refused_tree_leaves_the_old_file(tmp_path):
    save_state(tmp_path / "a", {"x": 1})
    with pytest.raises(StateError, match=r"^x: a state may not hold builtins\.object"):
        save_state(tmp_path / "a", {"x": object()})
    assert load_state(tmp_path / "a") == {"x": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_tree_that_holds_itself_is_refused():
    tree: dict[str, object] = {}
    tree["again"] = tree
    with pytest.raises(StateError, match="more than 64 containers"):
        encode(tree)


def nested(levels):
    tree: object = 1
    for _ in range(levels):
        tree = [tree]
    return tree


def test_the_limits_are_the_same_on_both_sides(full):
    assert_identical(nested(MAX_DEPTH), through(nested(MAX_DEPTH)))
    with pytest.raises(StateError):
        encode(nested(MAX_DEPTH + 1))
    long = [0] * (MAX_NODES - 9)
    with pytest.raises(StateError, match=r"too finely divided.*Put long lists into arrays"):
        encode(long + [0] * 2)
    assert len(decode(encode(long).tobytes())) == len(long)
    many = {f"{i}": np.full((1, 1), i % 100, np.int8) for i in range(40_000 if full else 4_000)}
    assert len(decode(encode(many, info={"a": [1, 2]}).tobytes())) == len(many)
    mixed = [1 << 70, np.int8(1), "x" * 1100, {}, {"a": []}] * (15_000 if full else 1_500)
    assert len(decode(encode(mixed).tobytes())) == len(mixed)


def test_info_holds_plain_values_only():
    with pytest.raises(StateError, match="info"):
        encode(1, info={"a": np.zeros(3)})
    with pytest.raises(StateError, match="info"):
        encode(1, info={1: 2})


# What stock parts make of a file ------------------------------------------------------------------------------


def test_a_stock_msgpack_library_reads_it_object_by_object(rng):
    tree = {"w": random_array(rng, "float32", (3, 4)), "n": 3}
    data = encode(tree, info={"writer": "test"}).tobytes()
    objects = [item for item in msgpack.Unpacker(io.BytesIO(data)) if item is not None]
    assert objects[0][:3] == ["learner-core/state", 1, len(data)]
    assert objects[1]["info"] == {"writer": "test"}
    assert objects[1]["tree"] == {"w": msgpack.ExtType(1, b"\0\0\0\0"), "n": 3}
    assert objects[2:] == [tree["w"].tobytes()]


def test_every_array_starts_at_a_multiple_of_64(rng):
    arrays = [random_array(rng, "uint8", (size,)) for size in range(1, 200, 7)]
    data = encode(arrays).tobytes()
    for array in arrays:
        if array.size > 15:
            assert data.index(array.tobytes()) % 64 == 0


def test_the_example_reader_needs_only_stock_parts(tmp_path, rng):
    source = ROOT / "examples" / "read_state.py"
    assert len(source.read_text().splitlines()) <= 60
    assert "learner_core" not in source.read_text()
    read_state = runpy.run_path(str(source))["read_state"]
    tree = sample_tree(rng)
    save_state(tmp_path / "a", tree)
    assert_identical(tree, read_state(tmp_path / "a"))
    (tmp_path / "b").write_bytes(encode(tree, chunk_nbytes=4096).tobytes())
    assert_identical(tree, read_state(tmp_path / "b"))


def test_the_example_reader_widens_bfloat16(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    read_state = runpy.run_path(str(ROOT / "examples" / "read_state.py"))["read_state"]
    save_state(tmp_path / "a", {"x": np.array([1.5, -2], ml_dtypes.bfloat16), "s": ml_dtypes.bfloat16(3)})
    assert_identical({"x": np.array([1.5, -2], np.float32), "s": np.float32(3)}, read_state(tmp_path / "a"))


def test_the_specification_lists_the_dtypes_there_are():
    text = (ROOT / "docs" / "format.md").read_text()
    for name in dtypes.DTYPE_NAMES:
        assert name in text
    assert sorted(dtypes.DTYPE_NAMES) == sorted(NATIVE_DTYPES + ML_DTYPES)


def test_the_examples_of_the_specification_are_true():
    """Every ```hex block that follows a ```json block (a tree) is the file of that tree."""
    text = (ROOT / "docs" / "format.md").read_text()
    blocks = [block for block in text.split("```") if block.startswith(("json\n", "hex\n"))]
    pairs = list(zip(blocks[::2], blocks[1::2], strict=True))
    assert pairs
    for tree, listing in pairs:
        expected = json.loads(tree.removeprefix("json\n"))
        if isinstance(expected, dict):
            expected = {key: np.array(value, np.int16) for key, value in expected.items()}
        stated = b"".join(
            bytes.fromhex(line.split("|")[1]) for line in listing.removeprefix("hex\n").splitlines() if "|" in line
        )
        assert stated == encode(expected).tobytes()
        assert_identical(expected, decode(stated))


def test_a_gigabyte_and_more_in_one_array(tmp_path, full):
    """Chunks of the real size; the array spans two of them."""
    if not full:
        pytest.skip("needs 2.2 GB of memory and disk: LC_FULL=1")
    array = np.zeros((1 << 30) + 12345, np.uint8)
    array[:: 1 << 20] = 7
    start = time.monotonic()
    save_state(tmp_path / "a", array)
    assert (load_state(tmp_path / "a") == array).all()
    assert (load_state(tmp_path / "a", mmap=True) == array).all()
    print(f"{time.monotonic() - start:.1f} s")
