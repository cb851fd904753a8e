"""Rings of learners on GPUs: do they compute what one learner does, where are their arrays, and how do they scale?

    python benchmarks/gpu_ring.py [--backends torch tf] [--collectives torch horovod] [--updates 50] [--out FILE]
    python benchmarks/gpu_ring.py --cpu        the same checks on the CPU: what continuous integration can run

In this order, for every backend and collective that is installed:

1. One learner on one GPU: its parameters lie there, it computes what the CPU does, and no gradient visits the host.
2. Two and more learners, each on a GPU of its own: the updates of one learner, to 2e-6 in float32 and 1e-10 in float64.
3. Seconds per update of a 20-million-parameter network by number of learners. A figure, never a failure.

What cannot run here (too few GPUs, a collective that is not installed or has no NCCL) is listed with its reason. Exits
with 1 if a check failed, else with 0, also where nothing could run: read the list.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from learner_core.errors import LearnerCoreError
from learner_core.group.collectives import load_collective
from learner_core.group.devices import visible_gpus
from learner_core.plugins.discovery import load
from learner_core_algorithms import PPOConfig

OBS = Box(-1.0, 1.0, (8,), np.float32)
ROWS = 384
#: Largest difference of a ring to one learner, by precision.
BOUNDS = {"float32": 2e-6, "float64": 1e-10}
#: The same for a GPU against the CPU, whose sums are in another order and whose tanh is another one.
BOUNDS_OF_DEVICES = {"float32": 2e-4, "float64": 1e-9}


class Bench:
    """Runs checks and keeps their outcome.

    Args:
        on_cpu: no GPUs are asked for.
        updates: of every comparison.
    """

    def __init__(self, *, on_cpu: bool, updates: int) -> None:
        self.on_cpu = on_cpu
        self.updates = updates
        self.lines: list[dict[str, Any]] = []

    @property
    def failed(self) -> bool:
        """Whether a check has failed."""
        return any(line["outcome"] == "FAILED" for line in self.lines)

    def note(self, check: str, outcome: str, text: str) -> None:
        """Keep and print a line; ``outcome``: "ok", "FAILED", "figure" or "not run"."""
        self.lines.append({"check": check, "outcome": outcome, "text": text})
        print(f"{outcome:8} {check}: {text}", flush=True)

    def check(self, name: str, function: Callable[[], tuple[bool, str]]) -> None:
        """Run one: it says whether it holds, and the figure. What it raises is a failure."""
        try:
            good, text = function()
        except Exception as error:
            good, text = False, f"{type(error).__name__}: {error}"
        self.note(name, "ok" if good else "FAILED", text)

    # ---- one learner -----------------------------------------------------------------------------------------------

    def one_learner(self, backend: str) -> None:
        """Placement, the CPU's numbers, and what travels to the host."""
        self.check(f"{backend}: parameters on the device", lambda: self._placed(backend))
        if self.on_cpu:
            self.note(f"{backend}: a GPU's numbers are the CPU's", "not run", "--cpu")
        else:
            for precision, bound in BOUNDS_OF_DEVICES.items():
                name = f"{backend}: a GPU's numbers are the CPU's, {precision}"
                self.check(name, lambda p=precision, b=bound: self._like_the_cpu(backend, p, b))
        if backend == "torch":
            self.check("torch: no gradient visits the host", self._stays)
            self.check("torch/torch: the sum stays on the device", self._sums)
        else:
            self.note(f"{backend}: no gradient visits the host", "not run", "copies can be counted in Torch only")

    def _config(self, backend: str, size: int, *, precision: str = "float32", collective: str = "torch") -> Any:
        config = PPOConfig().framework(backend, compile=False, precision=precision)
        config.training(lr=3e-4, train_batch_size=ROWS, minibatch_size=64, num_epochs=2)
        config.environment(observation_space=OBS, action_space=Discrete(4)).rl_module(model={"hidden": [32, 32]})
        gpus = 0 if self.on_cpu else 1
        return config.learners(num_learners=size, num_gpus_per_learner=gpus, collective=collective, timeout_s=60.0)

    def _trained(self, config: Any, updates: int) -> list[dict[str, np.ndarray]]:
        """Weights of every learner after so many updates."""
        with config.build_learner_group() as group:
            for update in range(updates):
                group.update_from_batch(batch=batch(ROWS, seed=update))
            return list(group.foreach_learner(lambda learner: learner.get_module_state()["default_policy"]))

    def _placed(self, backend: str) -> tuple[bool, str]:
        with self._config(backend, 1).build_learner_group() as group:
            devices = sorted(set(group.foreach_learner(_devices)[0]))
        wanted = "cpu" if self.on_cpu else ("cuda" if backend == "torch" else "gpu")
        return all(wanted in device.lower() for device in devices), ", ".join(devices)

    def _like_the_cpu(self, backend: str, precision: str, bound: float) -> tuple[bool, str]:
        own = self._config(backend, 1, precision=precision)
        on_cpu = own.copy().learners(num_gpus_per_learner=0)
        (first,), (second,) = (self._trained(config, self.updates) for config in (own, on_cpu))
        return _compared([first, second], bound)

    def _stays(self) -> tuple[bool, str]:
        data = batch(ROWS, seed=0)

        def count(learner: Any) -> tuple[int, int]:
            return _bytes_to_host(learner, data)

        with self._config("torch", 1).build_learner_group() as group:
            ((copied, gradient),) = group.foreach_learner(count)
        return copied < gradient, f"{copied} bytes to the host in one update, a gradient is {gradient}"

    def _sums(self) -> tuple[bool, str]:
        """A ring of one: NCCL takes a single rank, so this much can be seen on one GPU."""
        with self._config("torch", 1).build_learner_group() as group:
            ((before, after, copied),) = group.foreach_learner(_reduced)
        return before == after and copied == 0, f"{before} to {after}, {copied} bytes to the host"

    # ---- rings -----------------------------------------------------------------------------------------------------

    def ring(self, backend: str, collective: str, size: int) -> None:
        """``size`` learners against one."""
        for precision, bound in BOUNDS.items():

            def compare(precision: str = precision, bound: float = bound) -> tuple[bool, str]:
                alone = self._trained(self._config(backend, 1, precision=precision), self.updates)
                how = {"precision": precision, "collective": collective}
                return _compared(alone + self._trained(self._config(backend, size, **how), self.updates), bound)

            self.check(f"{backend}/{collective}, n={size}, {precision}: one learner's updates", compare)

    def scaling(self, backend: str, collective: str, sizes: list[int], hidden: int, rows: int) -> None:
        """Seconds per update by number of learners."""
        for size in sizes:
            config = self._config(backend, size, collective=collective).framework(backend, compile=None)
            config.rl_module(model={"hidden": [hidden, hidden]})
            config.training(train_batch_size=rows, minibatch_size=rows // 4, num_epochs=1)
            name = f"{backend}/{collective}, n={size}: hidden [{hidden}, {hidden}], {rows} rows in 4 minibatches"
            data = batch(rows, seed=0)
            try:
                with config.build_learner_group() as group:
                    group.update_from_batch(batch=data)
                    times = []
                    for _ in range(5):
                        began = time.perf_counter()
                        group.update_from_batch(batch=data)
                        times.append(time.perf_counter() - began)
            except Exception as error:
                self.note(name, "FAILED", f"{type(error).__name__}: {error}")
                continue
            self.note(name, "figure", f"{min(times) * 1e3:.1f} ms per update (best of 5, median {_median(times):.1f})")


def batch(rows: int, *, seed: int) -> dict[str, np.ndarray]:
    """A PPO batch of random numbers."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 4)).astype(np.float32)
    actions = rng.integers(4, size=rows)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return {
        "obs": rng.uniform(-1, 1, (rows, 8)).astype(np.float32),
        "actions": actions,
        "action_logp": logp[np.arange(rows), actions],
        "action_dist_inputs": logits,
        "vf_preds": rng.normal(size=rows).astype(np.float32),
        "advantages": rng.normal(size=rows).astype(np.float32),
        "value_targets": rng.normal(size=rows).astype(np.float32),
    }


def _parameters(learner: Any) -> list[Any]:
    """Its parameters as flat vectors of the backend."""
    return [vector for arrays in learner.train_state.arrays.values() for vector in arrays.params.values()]


def _devices(learner: Any) -> list[str]:
    return [str(getattr(vector, "device", "cpu")) for vector in _parameters(learner)]


def _bytes_to_host(learner: Any, data: dict[str, np.ndarray]) -> tuple[int, int]:
    """(bytes copied from the device to the host in one update, bytes of one gradient); in the learner's process."""
    copied = _copied(lambda: learner.update_from_batch(batch=data))
    return copied, sum(vector.numel() * vector.element_size() for vector in _parameters(learner))


def _reduced(learner: Any) -> tuple[str, str, int]:
    """(device of a vector, device of its sum over a ring of this learner alone, bytes copied to the host)."""
    import tempfile

    collective = learner.backend.make_collective("torch")
    flat = learner.backend.from_numpy({"x": np.ones(1000, np.float32)})["x"]
    before, sums = str(flat.device), []
    with tempfile.TemporaryDirectory() as folder:
        collective.init(rank=0, size=1, rendezvous={"file": f"{folder}/store"}, timeout_s=60.0)
        copied = _copied(lambda: sums.append(collective.allreduce_flat_(flat)))
        collective.close()
    return before, str(sums[0].device), copied


def _copied(function: Callable[[], object]) -> int:
    """Bytes that Torch copies from the device to the host while the function runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        copied = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            first = args[0] if args else None
            source = args[1] if str(func).startswith("aten.copy_") and len(args) > 1 else first
            left = getattr(getattr(source, "device", None), "type", "cpu") != "cpu"
            if left and getattr(getattr(out, "device", None), "type", "") == "cpu":
                Count.copied += out.numel() * out.element_size()
            return out

    with Count():
        function()
    return Count.copied


def _compared(weights: list[dict[str, np.ndarray]], bound: float) -> tuple[bool, str]:
    first = weights[0]
    largest = max(float(np.abs(first[name] - other[name]).max()) for other in weights[1:] for name in first)
    apart = max((float(np.abs(weights[1][n] - w[n]).max()) for w in weights[2:] for n in first), default=0.0)
    text = f"largest difference {largest:.2g}, at most {bound:g}; learners among themselves {apart:.2g}"
    return largest <= bound and apart == 0.0, text


def _median(times: list[float]) -> float:
    return float(np.median(times) * 1e3)


def _missing(backend: str, collective: str) -> str | None:
    """Why this pair cannot run, if it cannot."""
    try:
        load("learner_core.backends", backend)
        if collective:
            load_collective(collective).check(backend)
    except (LearnerCoreError, ImportError) as error:
        return str(error)
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run everything that can run; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--backends", nargs="+", default=["torch", "tf"])
    parser.add_argument("--collectives", nargs="+", default=["torch", "horovod"])
    parser.add_argument("--sizes", nargs="+", type=int, help="numbers of learners (default: 2 to all GPUs; --cpu: 2)")
    parser.add_argument("--updates", type=int, default=50, help="of every comparison")
    parser.add_argument("--hidden", type=int, default=4400, help="width of the scaling check's two layers")
    parser.add_argument("--rows", type=int, default=8192, help="of the scaling check; 0 leaves it out")
    parser.add_argument("--cpu", action="store_true", help="no GPU: try the script itself")
    parser.add_argument("--out", type=Path, help="write the lines as JSON")
    given = parser.parse_args(arguments)
    gpus = visible_gpus()
    bench = Bench(on_cpu=given.cpu, updates=given.updates)
    print(f"{platform.node()}: {'CPU' if given.cpu else f'{len(gpus)} GPU(s)'}", flush=True)
    most = 2 if given.cpu else len(gpus)
    sizes = given.sizes or list(range(2, most + 1))
    for backend in given.backends:
        reason = _missing(backend, "") or (None if given.cpu or gpus else "there is no GPU")
        if reason is not None:
            bench.note(f"{backend}: everything", "not run", reason)
            continue
        bench.one_learner(backend)
        for collective in given.collectives:
            reason = _missing(backend, collective)
            fitting = [size for size in sizes if given.cpu or size <= len(gpus)]
            for size in sizes or [2]:
                if reason is None and size in fitting:
                    bench.ring(backend, collective, size)
                else:
                    text = reason or f"needs {size} GPUs, here {'is' if len(gpus) == 1 else 'are'} {len(gpus)}"
                    bench.note(f"{backend}/{collective}, n={size}", "not run", text)
            if reason is None and given.rows:
                bench.scaling(backend, collective, [1, *fitting], given.hidden, given.rows)
    if given.out is not None:
        given.out.write_text(json.dumps({"machine": platform.node(), "lines": bench.lines}, indent=2) + "\n")
    counts = {
        outcome: sum(line["outcome"] == outcome for line in bench.lines) for outcome in ("ok", "FAILED", "not run")
    }
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()), flush=True)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
