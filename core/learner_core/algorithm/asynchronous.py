"""The loop of asynchronous algorithms: runners sample, learners learn, and neither waits for the other.

With ``num_env_runners`` >= 1 runners are processes that go on with the newest weights they were sent, however old;
updates go through the learners' queue. With ``num_env_runners=0`` the same steps are taken one after the other, so that
a run is a function of its seed and resumes bit for bit.

With ranks (``launcher="spmd"``) every rank cuts its own fragments, and all of them take every step of a round together:
they tell each other how many sequences wait, so that each knows its part of the next batch, and an update is made at
once by all. Runner processes, if there are any, sample on meanwhile.

One round, in the order that matters:

1. Fragments that have come are cut into sequences, which wait with the version of the weights that acted. A version is
   the number of updates that the weights had seen.
2. Enough sequences make a batch, the oldest first. It goes into the circular buffer, and batches come out of it: each
   is used as often as configured.
3. Every use is an update. A full queue blocks, which lets the runners run dry, or drops it, which is counted.
4. After every ``broadcast_interval`` updates the runners are sent the learners' weights.

docs/decisions/asynchronous-algorithms.md says why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..group.results import merge_results
from ..learning.batch_rule import BatchRule
from ..sampling.circular_replay import CircularReplay
from ..sampling.fragments import WaitingSequences, fragment_to_sequences, join_sequences
from ..sampling.make_runner import Weights
from ..sampling.rollout import Rollout, per_module
from ..state.schema import COUNT, Anything, Items, MapOf, Record, refuse, under
from ..state.tree import Plain, Tree
from ..xp import ArrayTree
from .algorithm import Algorithm
from .evaluations import Results
from .throughput import Throughput

__all__ = ["AsynchronousAlgorithm"]

#: Seconds to wait for a fragment before looking after the learners again.
_WAIT_S = 0.05
#: {module_id: columns}.
_Batch: TypeAlias = dict[str, dict[str, ArrayTree]]


class AsynchronousAlgorithm(Algorithm):
    """Samples and learns side by side; an iteration is ``timesteps_per_iteration`` environment steps."""

    def setup(self) -> None:
        config: Any = self.config
        self._asynchronous = config.num_env_runners > 0
        self._length = int(config.sequence_length)
        self._wanted: dict[str, set[str]] = {}
        self._waiting: dict[str, WaitingSequences] = {}
        self._learn_modules()
        self._replay = CircularReplay(
            config.circular_buffer_num_batches, config.circular_buffer_iterations_per_batch, config.seed
        )
        #: Versions and timesteps of the updates that are queued, in order.
        self._in_flight: deque[tuple[np.ndarray, int]] = deque()
        self._num_submitted = 0
        #: Weights that the runners act with, and their version.
        self._sent: tuple[int, Any] = (0, None)
        self._learner_results: list[dict[str, Any]] = []
        self._throughput = Throughput()

    def _learn_modules(self) -> None:
        """Sequences wait for the modules that learn now, with the columns that their updates read."""
        rules = self.learner_group.batch_rules()
        self._wanted = {mid: _columns(rule) for mid, rule in rules.items() if rule.is_read}
        waiting = self._waiting
        self._waiting = {mid: waiting[mid] if mid in waiting else WaitingSequences() for mid in self._wanted}

    def settings_changed(self) -> None:
        config: Any = self.config
        self._learn_modules()
        self._replay.set_size(config.circular_buffer_num_batches, config.circular_buffer_iterations_per_batch)
        self._replay.keep(self._wanted)

    # ------------------------------------------------------------------ an iteration

    def training_step(self) -> Results:
        config: Any = self.config
        goal = self.num_env_steps_sampled_lifetime + config.timesteps_per_iteration
        self._throughput.begin(self.num_env_steps_sampled_lifetime, self.learner_group.busy_seconds)
        while self.num_env_steps_sampled_lifetime < goal:
            with self.timed("sample"):
                for version, rollout in self._fragments():
                    self._take(rollout, version)
                self.count_episodes()
            while (ready := self._next_batch()) is not None:
                for batch, info in self._uses(*ready):
                    self._learn(batch, info)
            if self._asynchronous:
                self._absorb(self.learner_group.poll())
        self._throughput.end(
            self.num_env_steps_sampled_lifetime, self.learner_group.busy_seconds, self.learner_group.queue_depth
        )
        results, self._learner_results = merge_results(self._learner_results), []
        return results or {"__all__": {"num_modules_updated": 0.0}}

    def iteration_results(self) -> Results:
        """``throughput``: rates, utilisation, policy lag, queue depth and drops of this iteration."""
        return {
            **super().iteration_results(),
            "throughput": {**self._throughput.results(), "replay_depth": float(len(self._replay))},
        }

    def _fragments(self) -> Iterable[tuple[int, Rollout | Mapping[str, Rollout]]]:
        """(version of the weights, rollout) of fragments that have come."""
        if not self._asynchronous:
            return [(self._sent[0], rollout) for rollout in self._runners.sample(self._length)]
        self._runners.request(self._length)
        return [(max(f.weights_version, 0), f.rollout) for f in self._runners.ready(_WAIT_S)]

    def _take(self, rollout: Rollout | Mapping[str, Rollout], version: int) -> None:
        """Cut a fragment into sequences, which wait for their batch."""
        for module_id, part in per_module(self.processed(rollout)).items():
            if module_id in self._wanted:
                sequences = fragment_to_sequences(part, self._wanted[module_id])
                if sequences["loss_mask"].any():
                    self._waiting[module_id].add(sequences, version)

    def _next_batch(self) -> tuple[_Batch, dict[str, Plain]] | None:
        """The oldest sequences as a batch, once one module has enough of them; (batch, what is known of it)."""
        enough = self.config.train_batch_size // self._length
        everybodys = self.gather([len(waiting) for waiting in self._waiting.values()])
        counts = dict(zip(self._waiting, zip(*everybodys, strict=True), strict=True))  # of every rank
        if all(sum(of_module) < enough for of_module in counts.values()):
            return None
        batch: dict[str, Any] = {}
        versions = []
        for module_id, waiting in self._waiting.items():
            own = _deal(enough, counts[module_id])[self.rank]
            if own:
                batch[module_id], part = waiting.take(own)
                versions.append(part)
        timesteps = sum(int(columns["loss_mask"].sum()) for columns in batch.values())
        parts = self.gather((timesteps, np.concatenate([np.zeros(0, np.int64), *versions])))
        return batch, {
            "versions": np.concatenate([part for _, part in parts]),
            "num_timesteps": sum(n for n, _ in parts),
        }

    def _uses(self, batch: _Batch, info: dict[str, Plain]) -> list[tuple[_Batch, dict[str, Plain]]]:
        """What is to be learned from, now that this batch has come."""
        config: Any = self.config
        uses = []
        evicted = self._replay.add(batch, info)
        if evicted is not None and config.queue_full == "block":
            uses += [evicted] * evicted.uses_left
        elif evicted is not None:
            self._throughput.drop(evicted.info["num_timesteps"] * evicted.uses_left, evicted.uses_left)
        for _ in range(config.circular_buffer_iterations_per_batch):
            drawn = self._replay.draw()
            if drawn is not None:
                uses.append(drawn)
        return [(stored.batch, stored.info) for stored in uses]

    # ------------------------------------------------------------------ learning

    def _learn(self, batch: _Batch, info: dict[str, Plain]) -> None:
        """One update: now, or queued."""
        config: Any = self.config
        group = self.learner_group
        dropping = self._asynchronous and config.queue_full == "drop"
        if dropping and group.queue_depth >= config.max_requests_in_flight_per_learner:
            self._throughput.drop(info["num_timesteps"], 1)
            return
        self._num_submitted += 1
        due = self._num_submitted % config.broadcast_interval == 0
        self._in_flight.append((info["versions"], info["num_timesteps"]))
        with self.timed("wait_for_learners" if self._asynchronous else "learn"):
            results = group.update_from_batch(
                batch, timesteps=self.timesteps, async_update=self._asynchronous, return_weights=due
            )
        self._absorb(results)

    def _absorb(self, results: Results) -> None:
        """Take in the results of updates that are done: metrics, lag, and weights to send on."""
        if not results:
            return
        weights = results.pop("_weights", None)
        done = int(results["__all__"].pop("num_updates_reduced", 1))
        for name in ("num_updates_dropped", "queue_depth"):  # of the whole iteration under "throughput"
            results["__all__"].pop(name, None)
        for _ in range(done):
            self._throughput.trained(*self._in_flight.popleft())
        self._learner_results.append(results)
        if weights is not None:
            self._send(*weights)

    def _send(self, version: int, weights: Weights) -> None:
        with self.timed("sync_weights"):
            self._sent = (version, weights)
            self._runners.set_weights(weights, version=version)
            self._throughput.num_broadcasts_lifetime += 1

    def sync_weights(self) -> None:
        """Give the runners the learners' newest weights, whatever ``broadcast_interval`` says."""
        if self.env_runners is None:
            return
        weights = self.learner_group.get_weights()  # waits for queued updates
        self._absorb(self.learner_group.poll())
        version = self._throughput.num_updates_lifetime
        if self._sent[1] is None:
            self._sent = (version, weights)
        self.env_runners.set_weights(weights, version=version)
        self._know_changes()

    def bring_weights(self) -> None:
        """Send the runners the learners' weights, which somebody has set, whatever ``broadcast_interval`` says."""
        if self.env_runners is None:
            return
        with self.timed("sync_weights"):
            weights = self.learner_group.get_weights()  # waits for queued updates
            self._absorb(self.learner_group.poll())
            self._sent = (self._throughput.num_updates_lifetime, weights)
            self.env_runners.set_weights(weights, version=self._sent[0])

    def evaluate(self, num_episodes: int | None = None, *, max_episode_steps: int | None = None) -> Results:
        results = super().evaluate(num_episodes, max_episode_steps=max_episode_steps)
        version, weights = self._sent
        if not self._asynchronous and version != self._throughput.num_updates_lifetime:
            # Between two broadcasts the runner goes on with the weights that it had.
            self._runners.set_weights(weights, version=version)
        return results

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> dict[str, Plain]:
        # The learners' state was taken first, which waited for all updates.
        self._absorb(self.learner_group.poll())
        version, weights = self._sent
        behind = version != self._throughput.num_updates_lifetime
        return {
            "waiting": {mid: waiting.get_state() for mid, waiting in self._waiting.items()},
            "replay": self._replay.get_state(),
            "throughput": self._throughput.get_state(),
            "num_submitted": self._num_submitted,
            # The newest are the learners' own.
            "sent": [version, weights if behind else None],
        }

    def extra_state_schema(self) -> Record:
        rules = self.learner_group.batch_rules()
        modules = {mid: MapOf(Anything(), _columns(rule), rule=rule.check) for mid, rule in rules.items()}
        # Of a module that does not learn here nothing is taken over; of a batch a rank may have no rows.
        waiting = {mid: WaitingSequences.state_schema(module) for mid, module in modules.items()}
        batch = Record(modules, tuple(modules))
        return Record(
            {
                "waiting": Record(waiting, tuple(waiting), is_open=True),
                "replay": self._replay.state_schema(batch),
                "throughput": Throughput.state_schema(),
                "num_submitted": COUNT,
                "sent": Items([COUNT, Anything()]),
            },
            rule=self._check_sent,
        )

    def _check_sent(self, state: Tree, path: str) -> None:
        weights = state["sent"][1]
        if weights is not None:
            with under(f"{path}/sent/[1]"):
                self.learner_group.check_weights(weights)

    def state_fragment_length(self) -> int:
        return self._length

    def extra_state_of(self, states: Sequence[Tree]) -> Tree:
        """Of another number of ranks: what theirs had sampled is dealt out, nothing twice."""
        first = states[0]
        for index, state in enumerate(states):
            if set(state["waiting"]) != set(first["waiting"]):
                refuse(f"ranks/[{index}]/extra/waiting", "the modules of the first rank", "others")
            if len(state["replay"]["batches"]) != len(first["replay"]["batches"]):
                refuse(f"ranks/[{index}]/extra/replay/batches", "as many as the first rank has", "another number")
        if len(states) == self.num_ranks:
            if self.ranks is None:
                _refuse_empty(first["replay"]["batches"])
            return states[self.rank]
        own = states[self.rank :: self.num_ranks]
        waiting = {}
        for module_id in states[0]["waiting"]:
            parts = [state["waiting"][module_id] for state in own]
            parts = [part for part in parts if len(part["versions"])]
            waiting[module_id] = {
                "batch": join_sequences([part["batch"] for part in parts]) if parts else None,
                "versions": np.concatenate([np.zeros(0, np.int64), *(part["versions"] for part in parts)]),
            }
        # Batches are everybody's, and each rank has its rows of them.
        batches = []
        for place, (_, info, uses_left) in enumerate(states[0]["replay"]["batches"]):
            rows = [state["replay"]["batches"][place][0] for state in own]
            names = dict.fromkeys(name for part in rows for name in part)
            joined = {name: join_sequences([part[name] for part in rows if name in part]) for name in names}
            batches.append([joined, info, uses_left])
        if self.ranks is None:
            _refuse_empty(batches)
        return {**states[0], "waiting": waiting, "replay": {**states[0]["replay"], "batches": batches}}

    def set_extra_state(self, state: Tree) -> None:
        self._absorb(self.learner_group.poll())
        self._in_flight.clear()
        self._learner_results = []
        for module_id, waiting in state["waiting"].items():
            if module_id in self._waiting:
                self._waiting[module_id].set_state(waiting)
        self._replay.set_state(state["replay"])
        self._throughput.set_state(state["throughput"])
        self._num_submitted = int(state["num_submitted"])
        version, weights = state["sent"]
        self._sent = (int(version), weights)

    def _show_weights(self) -> None:
        version, weights = self._sent
        if weights is None:  # the learners' own, which are those of the state by now
            self._sent = (version, self.learner_group.get_weights())
        if self.env_runners is not None:
            self.env_runners.set_weights(self._sent[1], version=version)


def _refuse_empty(batches: Sequence[Plain]) -> None:
    """Of a batch one rank may have no rows, and all of them together have some."""
    for place, (batch, _, _) in enumerate(batches):
        if not batch:
            refuse(f"extra/replay/batches/[{place}]/[0]", "the rows of one module at least", "none")


def _deal(wanted: int, have: Sequence[int]) -> list[int]:
    """Up to ``wanted`` of what each has, as evenly as can be, the first before the last."""
    taken = [0] * len(have)
    left = min(wanted, sum(have))
    while left:
        some = [rank for rank, count in enumerate(have) if taken[rank] < count]
        each = max(1, left // len(some))
        for rank in some:
            number = min(each, have[rank] - taken[rank], left)
            taken[rank] += number
            left -= number
    return taken


def _columns(rule: BatchRule) -> set[str]:
    """Names of the columns that a module's update reads."""
    return {name.split("/", 1)[0] for name in rule.specs} | {"loss_mask"}
