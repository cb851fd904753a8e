"""Files of torch.save and zip archives of every bad kind, written by hand; imports no framework and pickles nothing."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["policy_file", "state_dict_pickle", "tensor", "text", "zip_of"]

STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage", "bool": "BoolStorage"}


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8 or 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def tensor(key: str, *, dtype: str = "FloatStorage", numel: int, size: Any, stride: Any, offset: int = 0) -> bytes:
    """torch._utils._rebuild_tensor_v2 of a stored tensor, as torch.save writes it."""
    storage = tuple_of(text("storage"), f"ctorch\n{dtype}\n".encode(), text(key), text("cpu"), integer(numel)) + b"Q"
    sizes, strides = tuple_of(*map(integer, size)), tuple_of(*map(integer, stride))
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + tuple_of(storage, integer(offset), sizes, strides, b"\x89", hooks)
        + b"R"
    )


def state_dict_pickle(tensors: Mapping[str, bytes]) -> bytes:
    items = b"".join(text(name) + value for name, value in tensors.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def zip_of(members: Mapping[str, bytes], *, deflate: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def policy_file(arrays: Mapping[str, np.ndarray], *, change: Mapping[str, bytes] | None = None) -> bytes:
    """A policy.pth of these arrays; ``change``: name -> another pickled value."""
    described, memory = {}, {}
    for number, (name, array) in enumerate(arrays.items()):
        strides = [step // array.itemsize for step in np.ascontiguousarray(array).strides]
        kind = STORAGES[array.dtype.name]
        described[name] = tensor(str(number), dtype=kind, numel=array.size, size=array.shape, stride=strides)
        memory[f"archive/data/{number}"] = np.ascontiguousarray(array).tobytes()
    pickled = state_dict_pickle({**described, **(change or {})})
    return zip_of({"archive/data.pkl": pickled, "archive/byteorder": b"little", **memory})
