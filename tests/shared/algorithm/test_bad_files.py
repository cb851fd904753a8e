"""Bad input: whatever is at a path, every loader says what it is, at once, and leaves what it had as it was."""

from __future__ import annotations

import io
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import learner_core as lc
from learner_core.state.tree import diff
from learner_core_algorithms import PPOConfig, SACConfig


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"")
    return file.getvalue()


def _version(data: bytes, version: int) -> bytes:
    front = data[:21] + version.to_bytes(4, "big") + data[25:48]
    return front + b"\xcf" + xxhash.xxh3_64_digest(front) + data[57:]


def _flipped(data: bytes, byte: int) -> bytes:
    return data[:byte] + bytes([data[byte] ^ 1]) + data[byte + 1 :]


#: name -> (the bytes there in place of the good ones; ``None``: a folder, what the refusal says)
BAD: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "truncated": (lambda good: good[:-1], "truncated"),
    "cut to the header": (lambda good: good[:40], "truncated"),
    "bytes appended": (lambda good: good + b"\0", "bytes follow the end"),
    "header flipped": (lambda good: _flipped(good, 30), "header is damaged"),
    "manifest flipped": (lambda good: _flipped(good, 90), "manifest is damaged"),
    "array flipped": (lambda good: _flipped(good, len(good) - 1), "wrong checksum"),
    "a pickle": (lambda good: pickle.dumps({"state": 1}), "a pickle"),
    "a zip": (lambda good: _zip(), "a zip archive"),
    "text": (lambda good: b"hello\n" * 100, "not a learner-core state file"),
    "empty": (lambda good: b"", "empty"),
    "a folder": (lambda good: None, "a folder"),
    "a future version": (lambda good: _version(good, 2), "format version 2"),
}


@pytest.fixture(scope="module")
def algo(training_backend_name: str) -> Iterator[Any]:
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .framework(training_backend_name, compile=False)
        .env_runners(num_envs_per_env_runner=2, normalize_observations=True)
        .training(train_batch_size=16, minibatch_size=8, num_epochs=1)
        .rl_module(model={"hidden": [8]})
    )
    with config.build() as algo:
        algo.train()
        yield algo


def _loaders(algo: Any) -> dict[str, Callable[[Path], Any]]:
    group = algo.learner_group
    (learner,) = group.foreach_learner(lambda learner: learner)
    return {
        "load_state": lc.load_state,
        "load_state, mapped": lambda path: lc.load_state(path, mmap=True),
        "Learner": learner.load_state,
        "Learner, not strict": lambda path: learner.load_state(path, strict=False),
        "LearnerGroup": group.load_state,
        "Algorithm": algo.restore,
        "from_checkpoint": lc.Algorithm.from_checkpoint,
        "export": lambda path: lc.export(path, path.parent / "out.safetensors"),
    }


@pytest.mark.parametrize("bad", BAD)
def test_every_loader_refuses_it_by_path_and_reason(algo: Any, tmp_path: Path, bad: str) -> None:
    good, path = tmp_path / "good", tmp_path / "bad"
    algo.save(good)
    change, reason = BAD[bad]
    data = change(good.read_bytes())
    path.mkdir() if data is None else path.write_bytes(data)
    before = algo.get_state()
    for name, load in _loaders(algo).items():
        start = time.process_time()
        with pytest.raises(lc.StateError) as caught:
            load(path)
        assert time.process_time() - start < 1.0, name
        assert str(path) in str(caught.value) and reason in str(caught.value), f"{name}: {caught.value}"
    assert not diff(before, algo.get_state())
    assert not (tmp_path / "out.safetensors").exists()


def test_a_missing_file(algo: Any, tmp_path: Path) -> None:
    for name, load in _loaders(algo).items():
        with pytest.raises(lc.LearnerCoreError) as caught:
            load(tmp_path / "nothing")
        assert str(tmp_path / "nothing") in str(caught.value), name


def _others(algo: Any) -> dict[str, Callable[[], Any]]:
    """Checkpoints and states of something else, each intact."""

    def changed(**settings: Any) -> Any:
        return lambda: algo.config.copy().replaced(**settings).build()

    return {
        "another network": changed(model={"hidden": [9]}),
        "another number of environments": changed(num_envs_per_env_runner=3),
        "without normalisers": changed(normalize_observations=False),
    }


@pytest.mark.parametrize("other", ["another network", "another number of environments", "without normalisers"])
def test_a_checkpoint_of_another_run_changes_nothing(algo: Any, tmp_path: Path, other: str) -> None:
    with _others(algo)[other]() as different:
        different.train()
        different.train()
        different.save(tmp_path / "other")
    before = algo.get_state()
    with pytest.raises(lc.StateError):
        algo.restore(tmp_path / "other")
    assert not diff(before, algo.get_state())


def test_a_state_file_that_is_no_checkpoint(algo: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    lc.save_state(path, {"pi.weight": np.ones(3)})
    before = algo.get_state()
    for load in (algo.restore, lc.Algorithm.from_checkpoint):
        with pytest.raises(lc.StateError, match="no checkpoint of an Algorithm"):
            load(path)
    with pytest.raises(lc.StateError, match="weights of one module"):
        algo.learner_group.load_state(path)
    assert not diff(before, algo.get_state())


def test_a_replay_buffer_of_another_size_changes_nothing(training_backend_name: str, tmp_path: Path) -> None:
    def sac(capacity: int) -> Any:
        config = SACConfig().environment("Pendulum-v1").framework(training_backend_name, compile=False)
        config.training(train_batch_size=4, learning_starts=100, buffer_capacity=capacity, timesteps_per_iteration=1)
        return config.rl_module(model={"hidden": [8]}).build()

    with sac(50) as one, sac(60) as other:
        one.train()
        other.train()
        other.train()
        other.save(tmp_path / "other")
        before = one.get_state()
        with pytest.raises(lc.StateError, match="capacity"):
            one.restore(tmp_path / "other")
        assert not diff(before, one.get_state())
