"""Rows 7 and 8 of the reliability plan: hostile files are refused quickly, in little memory, and run no code."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import pytest
import xxhash

from learner_core import FormatError, load_state
from learner_core.state.format import decode, encode
from learner_core.state.inspect import inspect_file, render
from learner_core.state.layout import header
from learner_core.state.wire import MAX_NODES

from support.states import entry, forge, manifest_of, reference, sample_tree

ext = msgpack.ExtType


class Canary:
    """Unpickling this makes a file."""

    path = ""

    def __reduce__(self):
        return (open, (self.path, "w"))


def with_version(data: bytes, version: int) -> bytes:
    front = data[:21] + version.to_bytes(4, "big") + data[25:48]
    return front + b"\xcf" + xxhash.xxh3_64_digest(front) + data[57:]


GOOD = encode({"w": np.ones(3)}).tobytes()


def foreign_files() -> dict[str, bytes]:
    """Files that are something else, by what their refusal must say."""
    archive, arrays = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", b"")
    np.save(arrays, np.ones(3))
    return {
        "the file is empty": b"",
        "it looks like a zip archive": archive.getvalue(),
        "it looks like a pickle": pickle.dumps({"a": 1}),
        "it looks like an .npy file": arrays.getvalue(),
        "it looks like a gzip archive": gzip.compress(b"x"),
        "it looks like an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "not a learner-core state file": msgpack.packb({"a": 1}),
        "format version 2; this learner-core reads up to 1. Upgrade": with_version(GOOD, 2),
        "format version 4294967295": with_version(GOOD, (1 << 32) - 1),
    }


@pytest.mark.parametrize("reason", foreign_files())
def test_foreign_files_are_named(tmp_path, reason):
    path = tmp_path / "a"
    path.write_bytes(foreign_files()[reason])
    for load in (load_state, lambda path: load_state(path, mmap=True), inspect_file):
        with pytest.raises(FormatError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert reason in str(caught.value)


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(FormatError, match=r"not a regular file|a folder, not a file"):
            load_state(path)


def deep(levels: int, opening: bytes) -> bytes:
    return opening * levels + b"\xc0"


def raw(tree: bytes) -> bytes:
    """A manifest with these bytes as its tree."""
    front = b"\x84" + b"".join(map(msgpack.packb, ["info", {}, "chunk_nbytes", 4096, "tree"]))
    return front + tree + msgpack.packb("arrays") + b"\x90"


TWO = [entry("uint8", [1], b"a"), entry("uint8", [1], b"b")]
MANIFESTS: dict[str, tuple[object, list[bytes]]] = {
    "no map": ([1, 2], []),
    "nothing": (b"", []),
    "keys in another order": ({"tree": 1, "info": {}, "chunk_nbytes": 4096, "arrays": []}, []),
    "a key too many": (manifest_of(1) | {"extra": 1}, []),
    "a key too few": ({"info": {}, "chunk_nbytes": 4096, "tree": 1}, []),
    "info is no map": (manifest_of(1, info=[]), []),
    "info with int keys": (manifest_of(1, info={1: 2}), []),
    "info with an array": (manifest_of(1, [entry("uint8", [1], b"a")], info={"a": reference(0)}), [b"a"]),
    "reference in arrays": (manifest_of(1, [reference(0)]), []),
    "bytes after the object": (raw(b"\x01") + b"\x01", []),
    "chunk of 0": (manifest_of(1, chunk_nbytes=0), []),
    "chunk negative": (manifest_of(1, chunk_nbytes=-4096), []),
    "chunk of 5000": (manifest_of(1, chunk_nbytes=5000), []),
    "chunk of 2 GiB": (manifest_of(1, chunk_nbytes=1 << 31), []),
    "chunk is a float": (manifest_of(1, chunk_nbytes=4096.0), []),
    "chunk is true": (manifest_of(1, chunk_nbytes=True), []),
    "arrays is a map": (manifest_of(1, arrays={}), []),
    "entry is a map": (manifest_of(reference(0), [{}]), []),
    "entry too short": (manifest_of(reference(0), [["uint8", [1]]]), []),
    "shape is an int": (manifest_of(reference(0), [["uint8", 1, []]]), []),
    "shape of floats": (manifest_of(reference(0), [["uint8", [1.0], [0]]]), [b"a"]),
    "shape of true": (manifest_of(reference(0), [["uint8", [True], [0]]]), [b"a"]),
    "shape negative": (manifest_of(reference(0), [["uint8", [-1], []]]), []),
    "shape twice negative": (manifest_of(reference(0), [["uint8", [-1, -1], [0]]]), [b"a"]),
    "shape overflows 64 bits to 0": (manifest_of(reference(0), [["uint8", [1 << 32, 1 << 32], []]]), []),
    "shape huge": (manifest_of(reference(0), [["float64", [1 << 47], [0]]]), []),
    "shape huge but empty": (manifest_of(reference(0), [["float64", [0, 1 << 40, 1 << 40], []]]), []),
    "dimension of 2^49": (manifest_of(reference(0), [["uint8", [0, 1 << 49], []]]), []),
    "33 dimensions": (manifest_of(reference(0), [entry("uint8", [1] * 33, b"a")]), [b"a"]),
    "more bytes stated": (manifest_of(reference(0), [entry("uint8", [2], b"a")]), [b"a"]),
    "fewer bytes stated": (manifest_of(reference(0), [entry("uint8", [1], b"ab")]), [b"ab"]),
    "terabytes stated": (manifest_of(reference(0), [["uint8", [1 << 40], [0]]]), [b"a"]),
    "checksum too many": (manifest_of(reference(0), [entry("uint8", [1], b"a", b"")]), [b"a"]),
    "no checksum": (manifest_of(reference(0), [["uint8", [1], []]]), [b"a"]),
    "checksum is text": (manifest_of(reference(0), [["uint8", [1], ["0"]]]), [b"a"]),
    "checksum wrong": (manifest_of(reference(0), [["uint8", [1], [0]]]), [b"a"]),
    "array not referred to": (manifest_of(1, TWO), [b"a", b"b"]),
    "array referred to twice": (manifest_of([reference(0), reference(0)], TWO[:1]), [b"a"]),
    "references out of order": (manifest_of([reference(1), reference(0)], TWO), [b"a", b"b"]),
    "reference beyond": (manifest_of([reference(0), reference(1)], TWO[:1]), [b"a"]),
    "reference of 8 bytes": (manifest_of(ext(1, bytes(8)), TWO[:1]), [b"a"]),
    "dtype object": (manifest_of(reference(0), [entry("object", [1], bytes(8))]), [bytes(8)]),
    "dtype O": (manifest_of(reference(0), [entry("O", [1], bytes(8))]), [bytes(8)]),
    "dtype V8": (manifest_of(reference(0), [entry("V8", [1], bytes(8))]), [bytes(8)]),
    "dtype structured": (manifest_of(reference(0), [entry("f8,O", [1], bytes(16))]), [bytes(16)]),
    "dtype >f8": (manifest_of(reference(0), [entry(">f8", [1], bytes(8))]), [bytes(8)]),
    "dtype float": (manifest_of(reference(0), [entry("float", [1], bytes(8))]), [bytes(8)]),
    "dtype datetime64[s]": (manifest_of(reference(0), [entry("datetime64[s]", [1], bytes(8))]), [bytes(8)]),
    "dtype is a number": (manifest_of(reference(0), [entry(8, [1], bytes(8))]), [bytes(8)]),
    "dtype is a list": (manifest_of(reference(0), [entry(["uint8"], [1], b"a")]), [b"a"]),
    "dtype is a module's name": (manifest_of(reference(0), [entry("finfo", [1], b"a")]), [b"a"]),
    "bool of 2": (manifest_of(reference(0), [entry("bool", [1], b"\2")]), [b"\2"]),
    "str not UTF-8": (manifest_of(reference(0), [entry("str", [1], b"\xff")]), [b"\xff"]),
    "str with two dimensions": (manifest_of(reference(0), [entry("str", [1, 1], b"a")]), [b"a"]),
    "scalar without a name": (manifest_of(ext(2, b"")), []),
    "scalar of object": (manifest_of(ext(2, b"object\0" + bytes(8))), []),
    "scalar too short": (manifest_of(ext(2, b"int64\0" + bytes(7))), []),
    "scalar too long": (manifest_of(ext(2, b"int64\0" + bytes(9))), []),
    "scalar bool of 7": (manifest_of(ext(2, b"bool\0\7")), []),
    "scalar not ASCII": (manifest_of(ext(2, b"\xff\xff\0\7")), []),
    "integer empty": (manifest_of(ext(3, b"")), []),
    "integer short": (manifest_of(ext(3, b"\1")), []),
    "integer padded": (manifest_of(ext(3, bytes(20) + b"\1")), []),
    "unknown extension": (manifest_of(ext(42, b"abcd")), []),
    "timestamp": (raw(b"\xd6\xff\0\0\0\0"), []),
    "negative extension": (raw(b"\xd4\x80\0"), []),
    "float 32": (raw(b"\xca\0\0\0\0"), []),
    "byte c1": (raw(b"\xc1"), []),
    "text not UTF-8": (raw(b"\xa1\xff"), []),
    "text with a surrogate": (raw(b"\xa3\xed\xa0\x80"), []),
    "key twice": (raw(b"\x82\xa1a\1\xa1a\2"), []),
    "int key twice, written differently": (raw(b"\x82\1\1\xcc\1\2"), []),
    "key is nil": (raw(b"\x81\xc0\1"), []),
    "key is true": (raw(b"\x81\xc3\1"), []),
    "key is a float": (raw(b"\x81\xcb" + bytes(8) + b"\1"), []),
    "key is bytes": (raw(b"\x81\xc4\1a\1"), []),
    "key is an array": (raw(b"\x81\x90\1"), []),
    "key is a map": (raw(b"\x81\x80\1"), []),
    "key is an extension": (raw(b"\x81\xd4\1\0\1"), []),
    "key of 5000 bytes": (manifest_of({"k" * 5000: 1}), []),
    "key of 5000 bytes stated": (raw(b"\x81\xdb\xff\xff\xff\xffabc"), []),
    "array of 4e9 stated": (raw(b"\xdd\xff\xff\xff\xff"), []),
    "map of 4e9 stated": (raw(b"\xdf\xff\xff\xff\xff"), []),
    "bin of 4e9 stated": (raw(b"\xc6\xff\xff\xff\xff"), []),
    "ext of 4e9 stated": (raw(b"\xc9\xff\xff\xff\xff\1"), []),
    "arrays within arrays, each stating much": (raw(b"\xdd\0\0\x10\0" * 3000), []),
    "65 arrays deep": (raw(deep(65, b"\x91")), []),
    "100,000 arrays deep": (raw(deep(100_000, b"\x91")), []),
    "100,000 maps deep": (raw(deep(100_000, b"\x81\xa1a")), []),
    "a million empty maps": (raw(b"\xdd" + (1 << 20).to_bytes(4, "big") + b"\x80" * (1 << 20)), []),
    "half a million empty maps, then damage": (raw(b"\xdd\0\7\xff\xe0" + b"\x80" * 0x7FFDF + b"\xc1"), []),
    "half a million integers": (raw(b"\xdd\0\7\xff\xe0" + b"\xd4\3\0" * 0x7FFE0), []),
    "half a million scalars": (raw(b"\xdd\0\7\xff\xe0" + b"\xc7\6\2int8\0\1" * 0x7FFE0), []),
    "a long text that Python stores wide": (raw(b"\xdb\0\xf0\0\0" + b"a" * 0xEFFFFC + "😀".encode() + b"\xc1"), []),
    "many payloads": (manifest_of([reference(i) for i in range(70_000)], [["uint8", [0], []]] * 70_000), []),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_hostile_manifests_are_refused_within_a_second(what):
    data = forge(*MANIFESTS[what])
    start = time.process_time()
    with pytest.raises(FormatError):
        decode(data)
    assert time.process_time() - start < 1


LIMITED = """
import resource, sys, time
from learner_core import FormatError, load_state
from learner_core.state.inspect import inspect_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    for read in (load_state, lambda path: load_state(path, mmap=True), inspect_file):
        start = time.process_time()
        try:
            report = read(path)  # inspect_file lists damaged arrays instead of refusing them
            if read is not inspect_file:
                raise SystemExit(f"{path} was accepted")
        except FormatError as error:
            assert len(str(error)) < 1000, len(str(error))
        assert time.process_time() - start < 1, (path, time.process_time() - start)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_hostile_files_take_less_than_256_megabytes(tmp_path):
    paths = []
    for number, (document, payloads) in enumerate(MANIFESTS.values()):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(forge(document, payloads))
    # A manifest of 4 GiB, stated by a sparse file that really is as long:
    stated = header(file_nbytes=(1 << 32) + 100, manifest=b"")
    front = stated[:35] + struct.pack(">I", (1 << 32) - 1) + stated[39:48]
    paths.append(tmp_path / "sparse")
    with paths[-1].open("wb") as file:
        file.write(front + b"\xcf" + xxhash.xxh3_64_digest(front) + stated[57:])
        file.truncate((1 << 32) + 100)
    done = subprocess.run([sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"row 7: {len(paths)} hostile files, {done.stdout.strip()} MB at most")
    assert int(done.stdout) < 256


# Row 7: fuzz --------------------------------------------------------------------------------------------------


class Fuzz:
    """Makes manifests and files that are nearly right, checksums included."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        tree = sample_tree(rng, rows=2)
        self.base = encode(tree, info={"writer": "x"}, chunk_nbytes=4096).tobytes()
        size = int.from_bytes(self.base[35:39], "big")
        self.manifest = self.base[64 : 64 + size]
        self.rest = self.base[64 + size :]
        self.header_fields = [(0, 20), (20, 25), (25, 34), (34, 39), (39, 48), (48, 57), (57, 64)]

    def integer(self) -> int:
        choices = [0, 1, 2, 64, 127, 255, 4096, 1 << 16, 1 << 31, 1 << 32, 1 << 48, (1 << 63) - 1, (1 << 64) - 1, -1]
        return choices[int(self.rng.integers(len(choices)))]

    def value(self, depth: int = 0) -> object:
        """Any msgpack object, mostly of the kind that occurs in manifests."""
        rng = self.rng
        names = ["float32", "bool", "object", "str", "bytes", "bfloat16", "V8", "", "uint8", "longdouble", "int64"]
        kind = int(rng.integers(12 if depth < 4 else 8))
        if kind == 0:
            return self.integer()
        if kind == 1:
            return names[int(rng.integers(len(names)))]
        if kind == 2:
            return rng.bytes(int(rng.integers(9)))
        if kind == 3:
            return ext(int(rng.integers(0, 5)), rng.bytes(int(rng.integers(10))))
        if kind == 4:
            return reference(int(rng.integers(3)))
        if kind == 5:
            return [None, True, False, 1.5, float("nan")][int(rng.integers(5))]
        if kind == 6:
            name = names[int(rng.integers(len(names)))]
            return ext(2, name.encode() + b"\0" + rng.bytes(int(rng.integers(9))))
        if kind == 7:
            return entry(names[int(rng.integers(len(names)))], [int(rng.integers(4))], rng.bytes(int(rng.integers(9))))
        if kind < 10:
            return [self.value(depth + 1) for _ in range(int(rng.integers(4)))]
        keys = [self.integer() if rng.random() < 0.3 else names[int(rng.integers(len(names)))] for _ in range(3)]
        return {key: self.value(depth + 1) for key in keys}

    def document(self) -> bytes:
        """A manifest from nothing."""
        rng = self.rng
        chunks = [rng.bytes(int(rng.integers(20))) for _ in range(int(rng.integers(4)))]
        arrays: list[object] = [entry("uint8", [len(chunk)], *([chunk] if chunk else [])) for chunk in chunks]
        tree: object = [reference(index) for index in range(len(chunks))]
        document = manifest_of(tree, arrays)
        for _ in range(int(rng.integers(3))):
            key = list(document)[int(rng.integers(4))]
            place = document[key]
            if isinstance(place, list) and place and rng.random() < 0.7:
                at = int(rng.integers(len(place)))
                if isinstance(place[at], list) and place[at] and rng.random() < 0.7:
                    place[at][int(rng.integers(len(place[at])))] = self.value()
                else:
                    place[at] = self.value()
            else:
                document[key] = self.value()
        return forge(document, [chunk for chunk in chunks if chunk])

    def mutated(self) -> bytes:
        """A real manifest, some bytes replaced, inserted or removed, and every checksum put right."""
        rng = self.rng
        manifest = bytearray(self.manifest)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(manifest)))
            how = int(rng.integers(4))
            if how == 0:
                manifest[at] = int(rng.integers(256))
            elif how == 1:
                manifest[at] ^= 1 << int(rng.integers(8))
            elif how == 2:
                manifest[at:at] = msgpack.packb(self.value())
            else:
                del manifest[at : at + int(rng.integers(1, 6))]
        front = header(file_nbytes=64 + len(manifest) + len(self.rest), manifest=bytes(manifest))
        return front + bytes(manifest) + self.rest

    def header(self) -> bytes:
        """A header with some field replaced, its own checksum put right most of the time."""
        rng = self.rng
        data = bytearray(self.base)
        for _ in range(int(rng.integers(1, 3))):
            start, end = self.header_fields[int(rng.integers(7))]
            if end - start in (5, 9) and rng.random() < 0.7:
                value = self.integer() % (1 << 8 * (end - start - 1))
                data[start + 1 : end] = value.to_bytes(end - start - 1, "big")
            else:
                data[int(rng.integers(start, end))] = int(rng.integers(256))
        if rng.random() < 0.8:
            data[48:57] = b"\xcf" + xxhash.xxh3_64_digest(bytes(data[:48]))
        return bytes(data)


def test_fuzz(rng, full):
    fuzz = Fuzz(rng)
    assert decode(fuzz.base)["kl_coeff"] == 0.2
    count = 1_000_000 if full else 6_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    accepted = refused = 0
    makers = (fuzz.document, fuzz.mutated, fuzz.header)
    for number in range(count):
        data = makers[number % 3]()
        start = time.process_time()
        try:
            decode(data)
            accepted += 1
        except FormatError:
            refused += 1
        slowest = max(slowest, time.process_time() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"row 7: {refused} refused, {accepted} valid, slowest {slowest * 1000:.0f} ms, {grown} MB at most")
    assert slowest < 1
    assert grown < 256
    assert refused > accepted


# Row 8: pickles -----------------------------------------------------------------------------------------------


def canary_files(canary: bytes) -> dict[str, bytes]:
    """Thirty ways to get a pickle near a loader."""
    files = {f"protocol {number}": pickle.dumps(Canary(), protocol=number) for number in range(6)}
    objects = np.array([Canary()], dtype=object)
    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    files["npy"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, x=objects)
    files["npz"] = buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", canary)
        archive.writestr("archive/version", "3")
    files["torch zip"] = buffer.getvalue()
    files["gzip"] = gzip.compress(canary)
    files["after the header"] = GOOD[:64] + canary
    files["before the header"] = canary + GOOD
    files["after the end"] = GOOD + canary
    files["as the manifest"] = forge(canary)
    files["msgpack-numpy"] = msgpack.packb({b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": canary})
    tagged = {"nd": True, "type": "|O", "kind": "O", "shape": [1], "data": canary}
    files["msgpack-numpy in a tree"] = forge(manifest_of(tagged))
    files["bytes in a tree"] = forge(manifest_of({"a": canary}))
    files["bytes in info"] = forge(manifest_of(1, info={"a": canary}))
    files["key"] = forge(manifest_of({"__reduce__": canary, "__class__": "os.system", "py/object": "os.system"}))
    for code in (1, 2, 3, 5, 42, 78, 127):
        files[f"extension {code}"] = forge(manifest_of(ext(code, canary)))
    for name in ("object", "O", "|O", "bytes", "str", "uint8", "V8", "builtins.eval"):
        files[f"payload {name}"] = forge(manifest_of(reference(0), [entry(name, [len(canary)], canary)]), [canary])
    return files


def test_pickles_are_never_executed(tmp_path, monkeypatch):
    monkeypatch.setattr(Canary, "path", str(tmp_path / "executed"))
    files = canary_files(pickle.dumps(Canary()))
    assert len(files) >= 30
    for name, data in files.items():
        path = tmp_path / "a"
        path.write_bytes(data)
        for read in (load_state, lambda path: load_state(path, mmap=True), lambda path: render(inspect_file(path))):
            with contextlib.suppress(FormatError):  # bytes that happen to be a pickle are bytes
                read(path)
            assert not (tmp_path / "executed").exists(), name
    pickle.loads(pickle.dumps(Canary())).close()
    assert (tmp_path / "executed").exists()  # the canary does sing


def test_no_module_of_ours_can_unpickle():
    """Nothing below state/ names pickle, eval, exec or allow_pickle=True."""
    folder = Path(load_state.__code__.co_filename).parent
    for path in folder.glob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("#")[0]
            assert not any(word in code for word in ("import pickle", "eval(", "exec(", "allow_pickle")), (path, number)


def test_the_node_limit_counts_what_the_specification_says():
    just = raw(b"\xdd" + (MAX_NODES - 8).to_bytes(4, "big") + b"\1" * (MAX_NODES - 8))
    assert len(decode(forge(just))) == MAX_NODES - 8
    with pytest.raises(FormatError, match="more than 524288 nodes"):
        decode(forge(raw(b"\xdd" + (MAX_NODES - 7).to_bytes(4, "big") + b"\1" * (MAX_NODES - 7))))
