"""The tensors in a file of ``torch.save``, without Torch and without unpickling.

The pickled part is taken to pieces by ``pickletools``, which runs nothing, and only the dozen operations that a dict of
tensors is written with are followed, on data: nothing that the file names is looked up, imported or called. All sizes
are known, and compared with the caller's limit, before an array is made.

Needs a state_dict, or any dict of tensors, of dense tensors of Torch's own dtypes but bfloat16 and complex ones, in the
zip format or the one that Torch had before 1.6. Refuses everything else.

References:
    https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import StateError
from .bounded_zip import UNREADABLE, member, open_archive

__all__ = ["read_tensors"]

_Order = Literal["<", ">"]
#: Bytes of a pickled tree, at most.
_PICKLE_LIMIT = 1 << 20
_MAX_NDIM = 32
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DTYPES = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}


def read_tensors(content: bytes, *, limit: int) -> dict[str, np.ndarray]:
    """The tensors of a file.

    Args:
        content: the file.
        limit: bytes that all of its tensors together may take, those that share memory counted each.

    Returns:
        name -> array with memory of its own; ``{}`` for a file that holds nothing.

    Raises:
        StateError: it is no such file, or its tensors are larger.
    """
    try:
        if content.startswith(b"PK"):
            return _from_zip(content, limit)
        return _from_legacy(io.BytesIO(content), limit)
    except StateError:
        raise
    except UNREADABLE as error:
        raise StateError(f"it is no file of tensors alone ({type(error).__name__}: {error})") from error


# ---- the two formats -------------------------------------------------------------------------------------------------


def _from_zip(content: bytes, limit: int) -> dict[str, np.ndarray]:
    archive, members = open_archive(io.BytesIO(content))
    places = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(places) != 1:
        raise StateError("it has no data.pkl, which files of torch.save have")
    prefix = places[0].removesuffix("data.pkl")
    order: _Order = "<"
    if prefix + "byteorder" in members:
        said = member(archive, members[prefix + "byteorder"], limit=64)
        if said not in (b"little", b"big"):
            raise StateError(f"its byte order is {said!r}")
        order = "<" if said == b"little" else ">"
    tensors = _tensors_of(_Reading(io.BytesIO(member(archive, members[places[0]], limit=_PICKLE_LIMIT))).tree(), limit)

    def bytes_of(storage: _Storage) -> bytes:
        name = f"{prefix}data/{storage.key}"
        if name not in members or members[name].compress_type != zipfile.ZIP_STORED:
            raise StateError(f"it has no member {name[:100]!r}, or a compressed one")
        return member(archive, members[name], limit=limit)

    return _arrays(tensors, bytes_of, order)


def _from_legacy(stream: io.BytesIO, limit: int) -> dict[str, np.ndarray]:
    """Four pickles, then of every storage its length and its bytes."""
    if _Reading(stream).tree() != _LEGACY_MAGIC or _Reading(stream).tree() != _LEGACY_PROTOCOL:
        raise StateError("it is no file of torch.save")
    system = _Reading(stream).tree()
    order: _Order = ">" if isinstance(system, dict) and system.get("little_endian") is False else "<"
    tensors = _tensors_of(_Reading(stream).tree(), limit)
    keys = _Reading(stream).tree()
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise StateError("the memory that it lists is not that of its tensors")
    found: dict[str, bytes] = {}
    for key in map(str, keys):
        (count,) = struct.unpack(f"{order}q", stream.read(8))
        if count != storages[key].numel:
            raise StateError(f"memory {key[:100]!r} has {count} elements, its tensors say {storages[key].numel}")
        found[key] = stream.read(storages[key].nbytes)
    return _arrays(tensors, lambda storage: found[storage.key], order)


# ---- what the pickled part says --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_MARK = _Global("mark")


class _Reading:
    """One pickle, followed on data; every operation that is not here is refused by name.

    Args:
        stream: read up to the pickle's end.
    """

    def __init__(self, stream: io.BytesIO) -> None:
        self._stream = stream
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def tree(self) -> object:
        """What it builds: plain values, dicts, lists, tuples, and tensors' descriptions."""
        for operation, argument, _ in pickletools.genops(self._stream):
            name = operation.name
            if name == "STOP":
                return self._pop()
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _LITERALS:
                self._stack.append(argument)
            elif name not in _IGNORED:
                follow = _OPERATIONS.get(name)
                if follow is None:
                    raise StateError(f"it is no file of tensors alone: it asks for {name}")
                follow(self, argument)
        raise StateError("its pickled part has no end")

    def _pop(self) -> object:
        if not self._stack or self._stack[-1] is _MARK:
            raise StateError("its pickled part is damaged")
        return self._stack.pop()

    def _to_mark(self) -> list[object]:
        taken: list[object] = []
        while self._stack:
            value = self._stack.pop()
            if value is _MARK:
                return taken[::-1]
            taken.append(value)
        raise StateError("its pickled part is damaged")

    def mark(self, _: object) -> None:
        self._stack.append(_MARK)

    def put(self, index: int | None) -> None:
        value = self._pop()
        self._stack.append(value)
        self._memo[len(self._memo) if index is None else index] = value

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise StateError("its pickled part is damaged")
        self._stack.append(self._memo[index])

    def tuple1(self, _: object) -> None:
        self._stack.append((self._pop(),))

    def tuple2(self, _: object) -> None:
        second = self._pop()
        self._stack.append((self._pop(), second))

    def tuple3(self, _: object) -> None:
        third, second = self._pop(), self._pop()
        self._stack.append((self._pop(), second, third))

    def tuple(self, _: object) -> None:
        self._stack.append(tuple(self._to_mark()))

    def items(self, values: list[object]) -> None:
        into = self._pop()
        keys = values[::2]
        if not isinstance(into, dict) or len(values) % 2 or not all(type(key) in (str, int) for key in keys):
            raise StateError("expected a dict with names for keys")
        into.update(zip(keys, values[1::2], strict=True))
        self._stack.append(into)

    def set_item(self, _: object) -> None:
        value = self._pop()
        self.items([self._pop(), value])

    def set_items(self, _: object) -> None:
        self.items(self._to_mark())

    def extend(self, values: list[object]) -> None:
        into = self._pop()
        if not isinstance(into, list):
            raise StateError("its pickled part is damaged")
        into.extend(values)
        self._stack.append(into)

    def append(self, _: object) -> None:
        self.extend([self._pop()])

    def appends(self, _: object) -> None:
        self.extend(self._to_mark())

    def name(self, argument: str) -> None:
        self._stack.append(_Global(argument.replace(" ", ".", 1)))

    def stack_name(self, _: object) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise StateError("its pickled part is damaged")
        self._stack.append(_Global(f"{module}.{name}"))

    def persistent(self, _: object) -> None:
        self._stack.append(_storage_of(self._pop()))

    def reduce(self, _: object) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise StateError("its pickled part is damaged")
        self._stack.append(_result_of(function.name, arguments))

    def build(self, _: object) -> None:
        """Attributes of a dict: Torch's notes on versions, which nothing needs."""
        self._pop()
        if not isinstance(self._stack[-1] if self._stack else None, dict):
            raise StateError("it is no file of tensors alone: it sets an object's attributes")


_IGNORED = {"PROTO", "FRAME"}
_LITERALS = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_OPERATIONS: dict[str, Callable[[_Reading, Any], None]] = {
    "MARK": _Reading.mark,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Reading.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Reading.get),
    "TUPLE1": _Reading.tuple1,
    "TUPLE2": _Reading.tuple2,
    "TUPLE3": _Reading.tuple3,
    "TUPLE": _Reading.tuple,
    "SETITEM": _Reading.set_item,
    "SETITEMS": _Reading.set_items,
    "APPEND": _Reading.append,
    "APPENDS": _Reading.appends,
    "GLOBAL": _Reading.name,
    "STACK_GLOBAL": _Reading.stack_name,
    "BINPERSID": _Reading.persistent,
    "REDUCE": _Reading.reduce,
    "BUILD": _Reading.build,
}


def _result_of(name: str, arguments: tuple[Any, ...]) -> object:
    """What the three functions of a file of tensors would return, as data."""
    if name == "collections.OrderedDict" and not arguments:
        return {}
    if name == "torch._utils._rebuild_tensor_v2" and len(arguments) >= 4:
        storage, offset, size, stride = arguments[:4]
        sizes_fit = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= _MAX_NDIM
        if isinstance(storage, _Storage) and sizes_fit and _are_counts(offset, *size, *stride):
            return _Tensor(storage, offset, size, stride)
    if name == "torch._utils._rebuild_parameter" and arguments and isinstance(arguments[0], _Tensor):
        return arguments[0]
    raise StateError(f"it is no file of tensors alone: it asks for {name[:200]!r}")


def _storage_of(given: object) -> _Storage:
    """A tensor's memory, by its persistent id ("storage", type, key, device, number of elements, ...)."""
    if isinstance(given, tuple) and len(given) >= 5 and given[0] == "storage" and isinstance(given[1], _Global):
        dtype, key, numel = _DTYPES.get(given[1].name), given[2], given[4]
        if dtype is None:
            raise StateError(f"it holds tensors of {given[1].name[:200]}, which are not read")
        if isinstance(key, str) and _are_counts(numel):
            return _Storage(dtype, key, numel)
    raise StateError("its pickled part is damaged")


def _are_counts(*values: object) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _tensors_of(tree: object, limit: int) -> dict[str, _Tensor]:
    """The tensors of a dict by name, once all of their sizes are right and within the limit."""
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(value, _Tensor) for value in tree.values()):
        raise StateError("expected a state_dict, tensors under names")
    for name, tensor in tree.items():
        reach = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True)) + 1
        if math.prod(tensor.size) and reach > tensor.storage.numel:
            raise StateError(f"{str(name)[:100]!r} reaches beyond its memory")
    storages = {tensor.storage for tensor in tree.values()}
    copied = sum(math.prod(tensor.size) * np.dtype(tensor.storage.dtype).itemsize for tensor in tree.values())
    if max(copied, sum(storage.nbytes for storage in storages)) > limit:
        raise StateError(f"its tensors take more than the {limit} bytes that are needed")
    return {str(name): tensor for name, tensor in tree.items()}


def _arrays(tensors: dict[str, _Tensor], bytes_of: Callable[[_Storage], bytes], order: _Order) -> dict[str, np.ndarray]:
    memory: dict[str, np.ndarray] = {}
    out: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        dtype = np.dtype(storage.dtype).newbyteorder(order)
        if storage.key not in memory:
            content = bytes_of(storage)
            if len(content) != storage.nbytes:
                raise StateError(f"the memory of {name[:100]!r} has {len(content)} bytes, expected {storage.nbytes}")
            memory[storage.key] = np.frombuffer(content, np.uint8)
        flat = memory[storage.key]
        if len(flat) != storage.nbytes:
            raise StateError(f"the memory of {name[:100]!r} is used as two dtypes")
        if not math.prod(tensor.size):
            out[name] = np.zeros(tensor.size, dtype.newbyteorder("="))
            continue
        steps = tuple(step * dtype.itemsize for step in tensor.stride)
        view = np.ndarray(tensor.size, dtype, flat.data, tensor.offset * dtype.itemsize, steps)
        out[name] = view.astype(dtype.newbyteorder("="))
        if dtype.kind == "b" and not np.isin(flat, (0, 1)).all():
            raise StateError(f"{name[:100]!r} holds booleans that are neither 0 nor 1")
    return out
