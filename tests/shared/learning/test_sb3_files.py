"""import_sb3 and files that are not what they say: typed, within memory, nothing changed; on every backend."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

import learner_core as lc
from learner_core.exporting.sb3 import read_sb3
from learner_core_algorithms import PPOConfig

from support.learners import states_differ
from support.torch_files import policy_file, state_dict_pickle, tensor, text, zip_of

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "sb3_ppo_discrete.zip"
CORPUS = Path(__file__).resolve().parents[4] / "shared" / "corpus" / "sb3"
NAME = "mlp_extractor.policy_net.0.weight"


@pytest.fixture(scope="module")
def learner(backend: str) -> Any:
    config = PPOConfig().framework(backend, compile=False).rl_module(model={"hidden": [16, 8], "activation": "tanh"})
    spec = lc.RLModuleSpec(observation_space=Box(-3.0, 3.0, (5,), np.float32), action_space=Discrete(3))
    return config.rl_module(rl_module_spec=spec).build_learner()


@pytest.fixture(scope="module")
def good() -> dict[str, np.ndarray]:
    return read_sb3(GOLDEN, limit=1 << 20)


def model(policy: bytes, **more: bytes) -> bytes:
    return zip_of({"data": b"{}", "policy.pth": policy, **more})


def one(arrays: dict[str, np.ndarray], value: bytes) -> bytes:
    return model(policy_file(arrays, change={NAME: value}))


def value(arrays: dict[str, np.ndarray], number: Any, dtype: Any = np.float32) -> bytes:
    other = arrays[NAME].astype(dtype)
    other[3, 1] = number
    return model(policy_file({**arrays, NAME: other}))


def patched(content: bytes, name: bytes, place: int, form: str, *values: int) -> bytes:
    """A field of a member's entry in the directory of an archive, made to lie."""
    out = bytearray(content)
    start = out.rindex(b"PK\x01\x02", 0, out.rindex(name))
    struct.pack_into(form, out, start + place, *values)
    return bytes(out)


def twice(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("policy.pth", content)
        archive.writestr("policy.pth", content)
    return stream.getvalue()


def compressed(method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("policy.pth", bytes(1 << 26))
    return stream.getvalue()


def shape(size: Any, stride: Any, *, numel: int = 80, **more: Any) -> bytes:
    return tensor("0", numel=numel, size=size, stride=stride, **more)


def asks_for(name: str, arguments: bytes = b")") -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n" + arguments + b"R"


def deflated(arrays: dict[str, np.ndarray]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(policy_file(arrays))) as archive:
        return zip_of({name: archive.read(name) for name in archive.namelist()}, deflate=True)


BAD: dict[str, tuple[Callable[[dict[str, np.ndarray]], bytes], str]] = {
    # numbers
    "NaN": (lambda good: value(good, np.nan), "holds NaN or an infinity"),
    "infinity": (lambda good: value(good, -np.inf), "holds NaN or an infinity"),
    "beyond float32": (lambda good: value(good, 1e300, np.float64), "holds NaN or an infinity"),
    # sizes
    "a bomb": (lambda good: zip_of({"policy.pth": bytes(1 << 28)}, deflate=True), "more than the"),
    "a bomb of bzip2": (lambda good: compressed(zipfile.ZIP_BZIP2), "method 12; deflate alone is read"),
    "a bomb of lzma": (lambda good: compressed(zipfile.ZIP_LZMA), "method 14; deflate alone is read"),
    "zero strides": (lambda good: one(good, shape((2**40,), (0,))), "more than the"),
    "huge memory": (lambda good: one(good, shape((16, 5), (5, 1), numel=2**40)), "more than the"),
    "beyond its memory": (lambda good: one(good, shape((16, 5), (5, 1), offset=1)), "reaches beyond its memory"),
    "negative sizes": (lambda good: one(good, shape((-16, 5), (5, 1))), "it asks for"),
    "negative strides": (lambda good: one(good, shape((16, 5), (-5, 1))), "it asks for"),
    "many axes": (lambda good: one(good, shape((1,) * 64, (1,) * 64)), "it asks for"),
    "memory too short": (lambda good: one(good, shape((16, 5), (5, 1), numel=81)), "320 bytes, expected 324"),
    "no such memory": (lambda good: one(good, tensor("x", numel=1, size=(1,), stride=(1,))), "no member"),
    "memory of a path": (lambda good: one(good, tensor("../../a", numel=1, size=(1,), stride=(1,))), "no member"),
    "compressed memory": (lambda good: model(deflated(good)), "or a compressed one"),
    "two dtypes": (lambda good: one(good, shape((16, 5), (5, 1), dtype="DoubleStorage")), "bytes"),
    "another shape": (lambda good: one(good, shape((5, 16), (16, 1))), "pi.0.weight"),
    # the pickled part
    "a call": (lambda good: one(good, asks_for("posix system", text("touch unpickled") + b"\x85")), "'posix.system'"),
    "torch.Tensor": (lambda good: one(good, asks_for("torch Tensor", b"J\xff\xff\xff\x7f\x85")), "'torch.Tensor'"),
    "bytearray": (lambda good: one(good, asks_for("builtins bytearray", b"J\xff\xff\xff\x7f\x85")), "bytearray"),
    "an object": (lambda good: one(good, b"cos\nPathLike\n)\x81"), "it asks for NEWOBJ"),
    "attributes": (lambda good: one(good, text("x") + b"}b"), "sets an object's attributes"),
    "bfloat16": (lambda good: one(good, shape((1,), (1,), dtype="BFloat16Storage")), "torch.BFloat16Storage, which"),
    "a number": (lambda good: one(good, b"K\x01"), "expected a state_dict"),
    "a list": (lambda good: model(zip_of({"archive/data.pkl": b"\x80\x02]."})), "expected a state_dict"),
    "no end": (lambda good: model(zip_of({"archive/data.pkl": b"\x80\x02}"})), "pickle"),
    "nothing on the stack": (lambda good: model(zip_of({"archive/data.pkl": b"\x80\x02R."})), "is damaged"),
    "from no memo": (lambda good: model(zip_of({"archive/data.pkl": b"\x80\x02h\x07."})), "is damaged"),
    "no mark": (lambda good: model(zip_of({"archive/data.pkl": b"\x80\x02t."})), "is damaged"),
    "a large pickle": (lambda good: model(zip_of({"archive/data.pkl": bytes(1 << 20) + b"."})), "more than the"),
    "a real pickle": (lambda good: model(pickle.dumps({NAME: Path("x")})), "policy.pth: it is no file"),
    "two pickles": (lambda good: model(zip_of({"a/data.pkl": b"N.", "b/data.pkl": b"N."})), "no data.pkl"),
    "half a policy": (lambda good: model(policy_file(good)[:-70]), "policy.pth: it is no file"),
    "a wrong byte order": (
        lambda good: model(zip_of({"a/data.pkl": state_dict_pickle({}), "a/byteorder": b"middle"})),
        "byte order",
    ),
    # the archive
    "encrypted": (lambda good: patched(model(policy_file(good)), b"policy.pth", 8, "<H", 1), "policy.pth is encrypted"),
    "a lie about its size": (
        lambda good: patched(model(policy_file(good)), b"policy.pth", 20, "<II", 2**31, 2**31),
        "more than the",
    ),
    "fewer bytes than said": (
        lambda good: patched(zip_of({"policy.pth": policy_file(good)}, deflate=True), b"policy.pth", 24, "<I", 20_000),
        "fewer bytes than",
    ),
    "a checksum that is wrong": (
        lambda good: patched(model(policy_file(good)), b"policy.pth", 16, "<I", 7),
        "cannot be read as a model",
    ),
    "twice": (lambda good: twice(policy_file(good)), "it holds 'policy.pth' twice"),
    "a path": (lambda good: zip_of({"../policy.pth": policy_file(good), "/policy.pth": b""}), "has no policy.pth"),
    "a wide directory": (lambda good: zip_of({f"{n:0200}": b"" for n in range(5000)}), "it has a directory of"),
    "another name": (lambda good: one({**good, "mlp_extractor.policy_net.x.weight": good[NAME]}, b"N"), "state_dict"),
    "nothing": (lambda good: b"", "cannot be read as a model"),
    "damaged variables": (
        lambda good: model(policy_file(good), **{"pytorch_variables.pth": b"x"}),
        "pytorch_variables",
    ),
}


@pytest.mark.fast_on_torch
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_such_model_is_refused(
    name: str, learner: Any, good: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, said = BAD[name]
    path = tmp_path / "model.zip"
    path.write_bytes(make(good))
    before = learner.get_state()
    tracemalloc.start()
    try:
        with pytest.raises(lc.StateError) as caught:
            lc.import_sb3(path, learner)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said in str(caught.value), str(caught.value)
    assert "model.zip" in str(caught.value) or "rl_module/default_policy" in str(caught.value)
    assert peak < 24 << 20
    assert not states_differ(before, learner.get_state())
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.zip"]


def test_the_files_that_the_bad_ones_are_made_of_are_good(learner: Any, good: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    other = {name: array + 1 for name, array in good.items()}
    for content in (
        model(policy_file(other)),
        model(policy_file({name: array.astype(np.float64) for name, array in other.items()})),
        model(policy_file(other), **{"pytorch_variables.pth": zip_of({"archive/data.pkl": b"\x80\x02N."})}),
        model(policy_file(other), **{"pytorch_variables.pth": b""}),
    ):
        path.write_bytes(content)
        lc.import_sb3(GOLDEN, learner)
        report = lc.import_sb3(path, learner)
        assert (report["algorithm"], report["ignored"]) == ("ppo", [])
        weights = learner.get_module_state()["default_policy"]
        np.testing.assert_array_equal(weights["pi.0.weight"], good[NAME] + 1)


@pytest.mark.parametrize("kind", ["pipe", "folder", "absent"])
def test_what_is_no_file(kind: str, learner: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(lc.StateError, match=r"model\.zip"):
        lc.import_sb3(path, learner)


def test_no_byte_of_a_model_matters_beyond_a_refusal(learner: Any, tmp_path: Path) -> None:
    """Each change of a byte is refused, or changes nothing but numbers."""
    content = GOLDEN.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "model.zip"
    refused = 0
    for place in rng.integers(0, len(content), 150):
        path.write_bytes(content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :])
        try:
            lc.import_sb3(path, learner)
        except lc.StateError:
            refused += 1
    assert refused > 100


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the collection of trained agents is not beside the checkout")
def test_trained_agents_are_read(backend: str) -> None:
    """Of the collection every file is read, the one in Torch's older format included; CartPole's is taken."""
    files = sorted(CORPUS.glob("*/*/*.zip"))
    for file in files:
        found = read_sb3(file, limit=1 << 24)
        assert len(found) >= 10
        assert all(np.isfinite(array).all() for array in found.values())
    config = PPOConfig().framework(backend, compile=False).environment("CartPole-v1")
    learner = config.rl_module(model={"hidden": [64, 64], "activation": "tanh"}).build_learner()
    for path in CORPUS.glob("ppo/CartPole*/*.zip"):
        assert lc.import_sb3(path, learner) == {"algorithm": "ppo", "parameters": 12, "ignored": []}
