"""Rows 1 and 2 of the reliability plan: no damaged file is accepted, whatever the damage."""

from __future__ import annotations

import numpy as np
import pytest

from learner_core import FormatError, load_state, save_state
from learner_core.state.format import decode, encode

from support.states import assert_identical, random_array, sample_tree


def refuse(data) -> None:
    with pytest.raises(FormatError):
        decode(data, copy=False)


def test_every_single_bit_of_a_small_file(rng, full):
    data = bytearray(encode(sample_tree(rng, rows=190 if full else 16), chunk_nbytes=4096).tobytes())
    bits = 8 * len(data)
    step = 1 if full else max(1, bits // 8_000)
    tried = accepted = 0
    for bit in range(int(rng.integers(step)), bits, step):
        data[bit >> 3] ^= 1 << (bit & 7)
        try:
            decode(data, copy=False)
            accepted += 1
        except FormatError:
            pass
        data[bit >> 3] ^= 1 << (bit & 7)
        tried += 1
    decode(data, copy=False)
    print(f"row 1: {tried} flips in a file of {len(data)} bytes, {accepted} accepted")
    assert accepted == 0
    assert not full or tried >= 200_000


def test_random_bits_of_a_file_of_4_megabytes(rng, full):
    tree = {f"layer.{i}": random_array(rng, "float32", (250, 100 + i)) for i in range(40)}
    data = bytearray(encode(tree).tobytes())
    assert len(data) > 4_000_000
    count = 10_000 if full else 200
    accepted = 0
    for bit in rng.integers(0, 8 * len(data), count).tolist():
        data[bit >> 3] ^= 1 << (bit & 7)
        try:
            decode(data, copy=False)
            accepted += 1
        except FormatError:
            pass
        data[bit >> 3] ^= 1 << (bit & 7)
    print(f"row 1: {count} random flips in {len(data)} bytes, {accepted} accepted")
    assert accepted == 0


def damaged_copies(data: bytes, rng: np.random.Generator, count: int):
    """Truncations, appended bytes, swapped chunks, zeroed pages: (what, bytes)."""
    cuts = range(len(data)) if count >= 10_000 else rng.integers(0, len(data), count // 4).tolist()
    for cut in cuts:
        yield "truncated", data[:cut]
    for _ in range(count // 4):
        yield "appended", data + rng.bytes(int(rng.integers(1, 5000)))
    for tail in (b"\0", b"\xc0", b"\xc0" * 64, b"\xc6\0\0\0\0", data):
        yield "appended", data + tail
    for _ in range(count // 4):
        size = int(rng.choice([1, 64, 512, 4096]))
        first, second = (int(x) * size for x in rng.integers(0, len(data) // size, 2))
        swapped = bytearray(data)
        swapped[first : first + size], swapped[second : second + size] = (
            data[second : second + size],
            data[first : first + size],
        )
        yield "swapped", bytes(swapped)
    for _ in range(count // 4):
        size = int(rng.choice([1, 16, 512, 4096]))
        start = int(rng.integers(0, len(data) // size)) * size
        yield "zeroed", data[:start] + bytes(len(data[start : start + size])) + data[start + size :]


def test_truncated_appended_swapped_zeroed(rng, full):
    tree = [random_array(rng, "int32", (2048,)) for _ in range(3)] + [sample_tree(rng)]
    data = encode(tree, chunk_nbytes=4096).tobytes()
    tried: dict[str, int] = {}
    for what, damaged in damaged_copies(data, rng, 10_000 if full else 800):
        if damaged == data:  # two equal pieces swapped, zeros zeroed
            continue
        tried[what] = tried.get(what, 0) + 1
        refuse(damaged)
    print(f"row 2: {tried}, none accepted")


def test_files_are_refused_like_buffers(tmp_path, rng, full):
    path = tmp_path / "a"
    tree = sample_tree(rng)
    save_state(path, tree)
    data = path.read_bytes()
    assert_identical(tree, load_state(path))
    for _ in range(1000 if full else 40):
        damaged = bytearray(data)
        bit = int(rng.integers(8 * len(data)))
        damaged[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(damaged)
        for mmap in (False, True):
            with pytest.raises(FormatError, match=f"^{path}: "):
                load_state(path, mmap=mmap)
        path.write_bytes(data[: bit >> 3])
        for mmap in (False, True):
            with pytest.raises(FormatError, match=f"^{path}: "):
                load_state(path, mmap=mmap)


def test_damage_is_located(tmp_path):
    tree = {"rl_module": {"p": {"w": np.arange(100.0), "b": np.ones(3)}}}
    data = bytearray(encode(tree).tobytes())
    data[bytes(data).index(np.arange(100.0).tobytes()) + 9] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        load_state(tmp_path / "a")
    assert str(caught.value) == f"{tmp_path}/a: rl_module/p/w: chunk 0 of its data is damaged: wrong checksum"
    assert caught.value.path == "rl_module/p/w"


def test_reasons_are_told():
    data = encode({"w": np.ones(100)}).tobytes()
    for damaged, reason in [
        (b"", "the file is empty"),
        (data[:10], "truncated: 10 bytes"),
        (data[:100], "truncated: the file has 100 bytes, its header states"),
        (data + b"\xc0", "bytes follow the end"),
        (data[:50] + b"x" + data[51:], "the header is damaged"),
        (data[:70] + b"x" + data[71:], "the manifest is damaged"),
        (data[:-820] + b"x" + data[-819:], "w: the bytes before its data are damaged"),
        (data[:-1] + b"x", "w: chunk 0 of its data is damaged"),
    ]:
        with pytest.raises(FormatError) as caught:
            decode(damaged)
        assert reason in str(caught.value)
