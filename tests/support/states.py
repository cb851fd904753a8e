"""State trees to test with, and an equality that sees every bit, type and byte order."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
import xxhash

from learner_core.state.format import encode
from learner_core.state.layout import gap, header

NATIVE_DTYPES = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()
)
ML_DTYPES = (
    "bfloat16 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz "
    "float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
).split()


def random_array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array of random bits: every value of the dtype may occur, NaN payloads too."""
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    kind = np.dtype(dtype)
    count = math.prod(shape) * kind.itemsize
    return np.frombuffer(rng.bytes(count), kind).reshape(shape).copy() if count else np.zeros(shape, kind)


def nan(payload: int) -> float:
    """A float NaN with a payload of its own."""
    return float(struct.unpack("<d", (0x7FF8_0000_0000_0000 | payload).to_bytes(8, "little"))[0])


def sample_tree(rng: np.random.Generator, *, rows: int = 16) -> dict[str, Any]:
    """A small tree with every kind of leaf and the shape of a learner's state."""
    weights = {f"pi.{i}.weight": random_array(rng, "float32", (rows, 3)) for i in range(3)}
    moments = {slot: {name: np.zeros_like(w) for name, w in weights.items()} for slot in ("m", "v")}
    return {
        "rl_module": {"default_policy": weights},
        "optimizer": {"default_policy": {"main": {"kind": "adam", "step": 1 << 40, "slots": moments}}},
        "kl_coeff": 0.2,
        "plain": [None, True, False, 0, -1, 1 << 63, -(1 << 63), 1 << 200, -(1 << 64), 1.5, -0.0, math.inf, "", b""],
        "nan": [math.nan, nan(12345)],
        "text": "räksmörgås",
        "long": ["x" * 1025, b"\x00" * 2000],
        "empty": [{}, [], np.zeros((0, 3), np.float64), np.zeros((2, 0), np.int8)],
        "by_number": {0: "zero", -7: "minus seven", 1 << 40: [1]},
        "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.complex64(1 + 2j), np.uint8(255)],
        "zero_d": np.array(3, np.int64),
        "fortran": np.asfortranarray(random_array(rng, "float64", (4, 5))),
        "big_endian": rng.integers(-9, 9, 7).astype(">i4"),
        "strided": random_array(rng, "int16", (8, 6))[::2, ::-3],
        "flags": random_array(rng, "bool", (9,)),
        "image": random_array(rng, "uint8", (2, 4, 4, 3)),
    }


def assert_identical(expected: Any, got: Any, path: str = "") -> None:
    """Same types, keys in the same order, dtype names, shapes and bits; arrays come back little-endian, C order."""
    if isinstance(expected, np.ndarray):
        assert type(got) is np.ndarray, path
        assert (got.dtype.name, got.shape) == (expected.dtype.name, expected.shape), path
        assert got.dtype.byteorder in "=|<", path
        assert got.flags.c_contiguous, path
        little = np.ascontiguousarray(expected, dtype=expected.dtype.newbyteorder("<"))
        assert got.tobytes() == little.tobytes(), path
        return
    assert type(got) is type(expected), path
    if isinstance(expected, dict):
        assert list(got) == list(expected), path
        for key, value in expected.items():
            assert_identical(value, got[key], f"{path}/{key}")
    elif isinstance(expected, list):
        assert len(got) == len(expected), path
        for index, value in enumerate(expected):
            assert_identical(value, got[index], f"{path}/[{index}]")
    elif isinstance(expected, float):
        assert struct.pack("<d", got) == struct.pack("<d", expected), path
    elif isinstance(expected, np.generic):
        assert got.tobytes() == expected.tobytes(), path
    else:
        assert got == expected, path


def forge(document: Any, payloads: Sequence[bytes] = ()) -> bytes:
    """A file whose checksums all match, around any manifest: what an attacker would send.

    Args:
        document: The manifest as an object, or as bytes that need not even be msgpack.
        payloads: The bytes of its chunks.
    """
    manifest = document if isinstance(document, bytes) else msgpack.packb(document, use_bin_type=True)
    body = bytearray()
    for payload in payloads:
        body += gap(64 + len(manifest) + len(body), len(payload)) + payload
    return header(file_nbytes=64 + len(manifest) + len(body), manifest=manifest) + manifest + bytes(body)


def manifest_of(tree: Any, arrays: Any = (), **changes: Any) -> dict[str, Any]:
    """A manifest with the usual keys."""
    return {"info": {}, "chunk_nbytes": 4096, "tree": tree, "arrays": arrays} | changes


def entry(name: Any, shape: Any, *chunks: bytes) -> list[Any]:
    """An entry of the manifest's arrays, checksums right."""
    return [name, shape, [xxhash.xxh3_64_intdigest(chunk) for chunk in chunks]]


def reference(index: int) -> msgpack.ExtType:
    """What stands in the tree for a payload."""
    return msgpack.ExtType(1, index.to_bytes(4, "big"))


def state_bytes(state: Any) -> bytes:
    """Every bit of a state; equal for states that are."""
    return bytes(encode(_sorted(state)).tobytes())


def _sorted(tree: Any) -> Any:
    """Entries in one order: an attribute that an environment has lost and got back stands last."""
    if isinstance(tree, dict):
        return {key: _sorted(tree[key]) for key in sorted(tree, key=lambda key: (isinstance(key, int), key))}
    return [_sorted(item) for item in tree] if isinstance(tree, list) else tree
