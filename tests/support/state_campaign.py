"""Mutated states against every door that takes one: accepted with a meaning, or refused in words, and nothing changed.

    PYTHONPATH=tests python -m support.state_campaign --backend torch --count 1000 [--seed S] [--case NAME] [--only N]

One process, warm: each algorithm is built and trained once, and given one mutant after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import learner_core as lc
from learner_core.cli.main import main
from learner_core.cli.run_folder import RunFolder
from learner_core.cli.settings import to_toml
from learner_core.sampling.recording import RECORDING_FORMAT
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig

from .leftovers import deadline
from .parallel_envs import make_crossing
from .states import state_bytes
from .tree_mutants import mutant
from .turn_envs import make_duel

__all__ = ["CASES", "DOORS", "Campaign", "MutantError", "Tally", "run_all"]

#: Most that a refusal may take: seconds of processor time, bytes over the process.
SECONDS, BYTES = 1.0, 256 << 20
#: Most that an iteration takes after a state was accepted, where it takes a part of one before: seconds.
_TRAINING_SECONDS = 120.0
#: Of the doors, how often each.
DOORS = {
    "set_state": 50, "restore": 25, "learner": 6, "learner, not strict": 6, "from_checkpoint": 5, "evaluate": 3,
    "resume": 2, "export": 2, "inspect": 1,
}  # fmt: skip
_COMMANDS = ("evaluate", "resume", "export", "inspect")


class MutantError(AssertionError):
    """A mutant that broke a promise."""


def _everybody_m(agent: str) -> str:
    return "m"


def _small(config: Any, backend: str, env: Any = "CartPole-v1", **training: Any) -> Any:
    return (
        config.environment(env)
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=2)
        .training(**training)
        .rl_module(model={"hidden": [4]})
    )


def _ppo(backend: str, folder: Path) -> Any:
    config = _small(PPOConfig(), backend, train_batch_size=16, minibatch_size=8, num_epochs=1)
    return config.env_runners(normalize_observations=True, normalize_rewards=True)


def _ppo_recurrent(backend: str, folder: Path) -> Any:
    config = _small(PPOConfig(), backend, train_batch_size=16, minibatch_size=8, num_epochs=1, max_seq_len=4)
    return config.rl_module(model={"hidden": [4], "recurrent": "lstm", "recurrent_size": 3})


def _ppo_agents(backend: str, folder: Path) -> Any:
    config = _small(PPOConfig(), backend, make_crossing, train_batch_size=16, minibatch_size=8, num_epochs=1)
    config.env_runners(normalize_observations=True)
    return config.multi_agent(policies=["m", "old"], policy_mapping_fn=_everybody_m, policies_to_train=["m"])


def _ppo_turns(backend: str, folder: Path) -> Any:
    config = _small(PPOConfig(), backend, make_duel, train_batch_size=16, minibatch_size=8, num_epochs=1)
    return config.environment(make_duel, env_config={"length": 5}).multi_agent(policies=["a", "b"])


def _sac(backend: str, folder: Path, **more: Any) -> Any:
    sizes = {"train_batch_size": 4, "learning_starts": 6, "timesteps_per_iteration": 8, "buffer_capacity": 30, **more}
    return _small(SACConfig(), backend, "Pendulum-v1", **sizes)


def _sac_prioritized(backend: str, folder: Path) -> Any:
    return _sac(backend, folder, prioritized_replay=True, n_step=3)


def _bc(backend: str, folder: Path) -> Any:
    path = folder / "recording"
    rng = np.random.default_rng(0)
    columns = {"obs": rng.normal(size=(24, 4)).astype(np.float32), "actions": rng.integers(0, 2, 24)}
    lc.save_state(path, {"format": RECORDING_FORMAT, "columns": columns})
    return _small(BCConfig(), backend, train_batch_size=8, minibatch_size=8, input_path=str(path))


def _impala(backend: str, folder: Path) -> Any:
    config = _small(IMPALAConfig(), backend, train_batch_size=20, timesteps_per_iteration=30, broadcast_interval=3)
    return config.env_runners(num_envs_per_env_runner=3, rollout_fragment_length=5)


def _appo(backend: str, folder: Path) -> Any:
    sizes = {"train_batch_size": 20, "timesteps_per_iteration": 30, "circular_buffer_num_batches": 3}
    config = _small(APPOConfig(), backend, **sizes, use_kl_loss=True, target_network_update_freq=0.5, tau=0.5)
    return config.env_runners(num_envs_per_env_runner=3, rollout_fragment_length=5)


CASES: dict[str, Callable[[str, Path], Any]] = {
    "ppo": _ppo,
    "ppo recurrent": _ppo_recurrent,
    "ppo, several agents": _ppo_agents,
    "ppo, turns": _ppo_turns,
    "sac": _sac,
    "sac prioritized": _sac_prioritized,
    "bc": _bc,
    "impala": _impala,
    "appo": _appo,
    "appo of two ranks": _appo,
}
#: What is given again where environments have no name: a checkpoint alone does not open.
_GIVEN_AGAIN: dict[str, dict[str, Any]] = {
    "ppo, several agents": {"env": make_crossing, "policy_mapping_fn": _everybody_m},
    "ppo, turns": {"env": make_duel},
}


@dataclass
class Tally:
    """What became of the mutants."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    most_seconds: float = 0.0
    most_bytes: int = 0

    def text(self) -> str:
        """A table: case, door, accepted, refused."""
        rows = sorted({(case, door) for case, door, _ in self.counts})
        lines = [f"{'case':20} {'door':16} {'accepted':>8} {'refused':>8}"]
        for case, door in rows:
            accepted, refused = (self.counts[case, door, what] for what in ("accepted", "refused"))
            lines.append(f"{case:20} {door:16} {accepted:8} {refused:8}")
        total = sum(self.counts.values())
        lines.append(f"{total} in all; a refusal took at most {self.most_seconds:.2f} s of processor time and ")
        lines[-1] += f"{self.most_bytes / 2**20:.0f} MB"
        return "\n".join(lines)


class Campaign:
    """One algorithm, trained for a moment, and what is done to it.

    Args:
        case: of ``CASES``.
        backend: a backend's name.
        folder: for checkpoints.
        tally: where it is counted.
    """

    def __init__(self, case: str, backend: str, folder: Path, tally: Tally) -> None:
        self.case, self.folder, self.tally = case, folder, tally
        self.path = folder / "mutant.lcstate"
        self.algo = CASES[case](backend, folder).build()
        for _ in range(2):
            self.algo.train()
        self.algo.save(folder / "good")
        self.tree = lc.load_state(folder / "good")
        if case.endswith("two ranks"):
            part = {name: self.tree["state"][name] for name in ("env_runner", "env_runners", "extra")}
            self.tree["state"]["ranks"] = [part, part]
        self.algo.set_state(self.tree["state"])
        self.good = state_bytes(self.algo.get_state())
        # Where it stands when mutants come is not where the checkpoint was made.
        self.algo.train()
        self.now = self.algo.get_state()
        self.before = state_bytes(self.now)

    def close(self) -> None:
        """Release the algorithm."""
        with _quietly():
            self.algo.stop()

    def run(self, seed: int, number: int, door: str | None = None) -> str:
        """One mutant; returns what became of it, in words.

        Raises:
            MutantError: a promise did not hold; says what repeats it.
        """
        rng = np.random.default_rng([seed, number, len(self.case)])
        names = list(DOORS)
        shares = np.array(list(DOORS.values()), np.float64)
        door = door or names[int(rng.choice(len(names), p=shares / shares.sum()))]
        if door in _COMMANDS and self.case in _GIVEN_AGAIN:
            door = "restore"
        of_learner = door.startswith("learner")
        tree, what = mutant(self.tree["state"]["learner"] if of_learner else self.tree["state"], rng)
        label = f"{self.case}, {door}, seed {seed}, number {number}: {what}"
        try:
            outcome = self._through(door, tree if of_learner else {**self.tree, "state": tree}, what)
        except MutantError as error:
            raise MutantError(f"{label}: {error}") from error
        self.tally.counts[self.case, door, outcome.partition(":")[0]] += 1
        return f"{label}: {outcome}"

    # ------------------------------------------------------------------ doors

    def _through(self, door: str, tree: dict[str, Any], what: str) -> str:
        if door != "set_state":
            lc.save_state(self.path, tree)
        if door == "set_state":
            return self._in_place(lambda: self.algo.set_state(tree["state"]), what)
        if door == "learner":
            return self._in_place(lambda: self.algo.learner_group.load_state(self.path), what)
        if door == "learner, not strict":
            return self._in_place(lambda: self.algo.learner_group.load_state(self.path, strict=False), what)
        if door == "restore":
            return self._in_place(lambda: self.algo.restore(self.path), what)
        if door == "from_checkpoint":
            return self._opened(what)
        return self._by_command(door)

    def _in_place(self, take: Callable[[], Any], what: str) -> str:
        refusal = self._measured(take)
        if refusal is None:
            self._use(self.algo, what)
            self._back()
            return "accepted"
        if state_bytes(self.algo.get_state()) != self.before:
            raise MutantError(f"refused ({refusal}), and the state has changed")
        return f"refused: {refusal}"

    def _back(self) -> None:
        """The good state loads, whatever came before; then on from where mutants come."""
        self.algo.set_state(self.tree["state"])
        if state_bytes(self.algo.get_state()) != self.good:
            raise MutantError("the good state does not come back bit for bit")
        self.algo.set_state(self.now)
        if state_bytes(self.algo.get_state()) != self.before:
            raise MutantError("the state before does not come back bit for bit")

    def _opened(self, what: str) -> str:
        found: list[Any] = []
        more = _GIVEN_AGAIN.get(self.case, {})
        refusal = self._measured(lambda: found.append(lc.Algorithm.from_checkpoint(self.path, **more)))
        if refusal is not None:
            return f"refused: {refusal}"
        # An environment of which a part is missing may raise when it is closed, which is a warning.
        with _quietly(), found[0] as algo:
            self._use(algo, what)
        return "accepted"

    def _by_command(self, door: str) -> str:
        if door == "evaluate":
            arguments = ["evaluate", str(self.path), "--episodes", "1"]
        elif door == "export":
            out = self.folder / "out.safetensors"
            out.unlink(missing_ok=True)
            arguments = ["export", str(self.path), "--to", "safetensors", "--out", str(out)]
        elif door == "inspect":
            arguments = ["inspect", str(self.path)]
        else:
            arguments = ["train", "--resume", str(self._run_folder()), "--stop-iterations", "4", "--quiet"]
        code, said_out, err = -1, io.StringIO(), io.StringIO()

        def call() -> None:
            nonlocal code
            with contextlib.redirect_stdout(said_out), contextlib.redirect_stderr(err):
                code = main(arguments)

        rss, began = _reset_peak(), time.process_time()
        self._measured(call)
        said = err.getvalue().strip()
        if code == 0:
            return "accepted"
        self._held_to(rss, began, said)
        if code != 2 or "Traceback" in said or not said.startswith("learner-core ") or said.count("\n"):
            raise MutantError(f"exit code {code}, said {said!r}")
        return f"refused: {said}"

    def _run_folder(self) -> Path:
        """A run whose newest checkpoint is the mutant."""
        folder = RunFolder(self.folder / "run")
        if folder.path.exists():
            shutil.rmtree(folder.path)
        lock = folder.claim(new=True)
        folder.write_info({"algorithm": self.algo.config.algorithm_name, "sessions": [], "stop": {}})
        folder.config_file.write_text(to_toml(self.algo.config))
        lock.release()
        self.path.rename(folder.checkpoint_path(2))
        return folder.path

    # ------------------------------------------------------------------ what is promised

    def _use(self, algo: Any, what: str) -> None:
        """What was accepted has a meaning: the run goes on, and can be saved."""
        try:
            with _quietly(), deadline(_TRAINING_SECONDS):
                algo.train()
            algo.save(self.folder / "accepted")
        except lc.LearnerCoreError as error:
            # What an environment keeps is its own affair, and huge weights are weights: what comes of it is said.
            own = isinstance(error, lc.EnvError) and "/envs/" in what
            if not own and not ("1e30" in what and "learner/" in what):
                raise MutantError(f"accepted, and the run does not go on: {_last(error)}") from error
        except Exception as error:
            raise MutantError(f"accepted, and the run does not go on: {_last(error)}") from error

    def _measured(self, call: Callable[[], Any]) -> str | None:
        """None, or the refusal; held to its time and memory."""
        rss = _reset_peak()
        began = time.process_time()
        refusal: str | None = None
        try:
            with _quietly():
                call()
        except lc.LearnerCoreError as error:
            refusal = f"{type(error).__name__}: {error}"
        except (Exception, SystemExit) as error:
            raise MutantError(f"untyped: {_last(error)}") from error
        if refusal is not None:
            self._held_to(rss, began, refusal)
        return refusal

    def _held_to(self, rss: int, began: float, refusal: str) -> None:
        seconds, grown = time.process_time() - began, _peak() - rss
        self.tally.most_seconds = max(self.tally.most_seconds, seconds)
        self.tally.most_bytes = max(self.tally.most_bytes, grown)
        if seconds > SECONDS or grown > BYTES:
            raise MutantError(f"the refusal took {seconds:.2f} s, {grown >> 20} MB: {refusal}")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _last(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__}: {error!s:.300} ({where})"


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0


def _reset_peak() -> int:
    """Start to measure; returns the memory that the process has now, 0 where that cannot be measured."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 1 << 60
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def run_all(
    backend: str,
    count: int,
    seed: int,
    *,
    cases: list[str],
    doors: list[str] | None = None,
    seconds: float = float("inf"),
    numbers: list[int] | None = None,
) -> list[str]:
    """So many mutants over the cases, or these, or what there is time for; prints the tally, returns what broke."""
    tally, broken = Tally(), list[str]()
    end = time.monotonic() + seconds
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            campaign = Campaign(case, backend, Path(folder), tally)
            case_end = time.monotonic() + (end - time.monotonic()) / (len(cases) - cases.index(case))
            for number in numbers or range(-(-count // len(cases))):
                if time.monotonic() > case_end:
                    break
                try:
                    campaign.run(seed, number, doors[number % len(doors)] if doors else None)
                except MutantError as error:
                    broken.append(str(error))
                    print(f"BROKEN {error}", flush=True)
                    campaign.close()
                    campaign = Campaign(case, backend, Path(folder), tally)
            campaign.close()
        print(f"{case}: {sum(tally.counts.values())} so far", flush=True)
    print(f"{backend}, seed {seed}\n{tally.text()}; {len(broken)} broke a promise", flush=True)
    return broken


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--door", action="append", choices=list(DOORS))
    parser.add_argument("--only", action="append", type=int, help="the mutant of this number alone, of each case")
    given = parser.parse_args()
    cases = given.case or list(CASES)
    found = run_all(
        given.backend, given.count, given.seed,
        cases=cases, doors=given.door, seconds=given.seconds, numbers=given.only,
    )  # fmt: skip
    sys.exit(bool(found))
