"""Read a learner-core state file with nothing but a stock msgpack library and numpy (docs/format.md).

    python examples/read_state.py checkpoint.lcstate

Any language with a msgpack library can do the same. This reader trusts the file: it checks no checksums.
"""

import sys

import msgpack
import numpy as np


def read_state(path):
    """The tree of a state file. bfloat16 is widened to float32; float8 is left as its codes, uint8."""
    with open(path, "rb") as file:
        stream = msgpack.Unpacker(file, max_buffer_size=0, strict_map_key=False)
        objects = (item for item in stream if item is not None)  # nil is padding
        magic, version, *_ = next(objects)
        if (magic, version) != ("learner-core/state", 1):
            raise ValueError(f"not a state file of version 1: {magic} {version}")
        manifest = next(objects)
        payloads = []
        for name, shape, checksums in manifest["arrays"]:
            data = b"".join(next(objects) for _ in checksums)
            payloads.append(data if name == "bytes" else data.decode() if name == "str" else array(data, name, shape))
    return resolve(manifest["tree"], payloads)


def array(data, name, shape):
    if name == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    dtype = np.dtype("uint8" if name.startswith("float8") else name).newbyteorder("<")
    return np.frombuffer(data, dtype).reshape(shape)


def resolve(node, payloads):
    if isinstance(node, dict):
        return {key: resolve(value, payloads) for key, value in node.items()}
    if isinstance(node, list):
        return [resolve(value, payloads) for value in node]
    if not isinstance(node, msgpack.ExtType):
        return node
    if node.code == 1:  # array, long str or long bytes
        return payloads[int.from_bytes(node.data, "big")]
    if node.code == 2:  # numpy scalar
        name, _, data = node.data.partition(b"\0")
        return array(data, name.decode(), ())[()]
    return int.from_bytes(node.data, "big", signed=True)  # 3: an int beyond 64 bits


if __name__ == "__main__":
    print(read_state(sys.argv[1]))
