"""Environment runners in this process or in N others, sampled together or each on its own.

Needs a config, complete module specs, and weights before the first fragment. Refuses states of other modules; those of
another number of runners are taken over as far as they can be (``set_state``).

What is exact: N runners sampled together are a function of the seed and of N. Their normalisers' statistics are merged
in runner order after each fragment and go back with the next request.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import cloudpickle

from ..config.algorithm_settings import AlgorithmSettings
from ..learning.rl_module import RLModuleSpec, acting
from ..learning.shared_parameters import completed
from ..state.schema import COUNT, SEED, Anything, Int, ListOf, MapOf, Nullable, Record, Schema, refuse
from ..state.tree import Plain, Tree, join
from .env_runner import EnvRunner
from .episodes import EPISODE, Episode
from .make_runner import Runner, Weights, change_modules, give_weights, make_runner
from .multi_agent_env_runner import MultiAgentEnvRunner
from .normalize import MOMENTS, Statistics, merge_moments, moments_schema
from .numpy_backend import MakePolicy, choose_inference
from .remote_runners import Remote, RemoteRunners, Request, kill_all, with_trace
from .rollout import Rollout, Sampled, rollout_schema
from .runner_handle import Fragment, RunnerLauncher, runner_launcher
from .runner_server import for_processes, make_setup, restart

__all__ = ["EnvRunnerGroup", "Fragment"]

_Answer = TypeVar("_Answer")


class EnvRunnerGroup:
    """All environment runners of a run.

    Args:
        config: frozen configuration; ``num_env_runners`` says how many processes, 0 samples in this one.
        module_specs: {module_id: RLModuleSpec}, complete; those with ``rows_of`` are left aside here and elsewhere.
        make_policy: who answers observations, in this process and in the others; by default the modules in numpy.
        before_sampling: called before fragments are asked for; may set newer weights.

    Attributes:
        num_runners: how many sample: at least 1.

    Raises:
        ConfigError: the environment cannot be sent to other processes.
        EnvError: it cannot be made.
        EnvRunnerLostError: the processes die while they are built.
    """

    def __init__(
        self,
        config: AlgorithmSettings,
        module_specs: Mapping[str, RLModuleSpec],
        *,
        make_policy: MakePolicy | None = None,
        before_sampling: Callable[[], None] | None = None,
    ) -> None:
        self._make_policy = make_policy
        self._before_sampling = before_sampling or (lambda: None)
        self._limit = int(config.max_requests_in_flight_per_env_runner)
        self._specs = dict(module_specs)
        module_specs = acting(module_specs)
        number = int(config.num_env_runners)
        self.num_runners: int = max(1, number)
        self._local: Runner = make_runner(config, module_specs, make_policy=make_policy)
        self._weights: Weights | None = None
        self._version = -1
        self._num_steps = 0
        self._arrived: deque[Fragment] = deque()
        self._episodes: list[Episode] = []
        self._statistics: Statistics = {}
        self._statistics_version = 0
        # Lifetime counts of runners that are no more: of a checkpoint of another number of them.
        self._earlier: dict[str, int] = {}
        self._launcher: RunnerLauncher | None = None
        self._elsewhere: RemoteRunners | None = None
        if number:
            framework = _framework(config, module_specs) if make_policy is not None else ""
            try:
                self._launcher = runner_launcher(config, make_setup(config, module_specs, make_policy), framework)
                self._elsewhere = RemoteRunners(
                    config, self._launcher, number, sampled=self._sampled, renewed=self._renewed
                )
            except BaseException:
                self._local.close()
                raise
            self._finalizer = weakref.finalize(self, kill_all, self._elsewhere.remotes)

    # ------------------------------------------------------------------------------------------------ for everybody

    @property
    def local(self) -> Runner:
        """The runner in this process, with the newest weights: spaces, evaluation, merged statistics."""
        if self._weights is not None:
            give_weights(self._local, self._weights)
            self._weights = None
        return self._local

    @property
    def module_ids(self) -> set[str] | None:
        """The modules that play several agents; ``None`` where there is one agent."""
        return set(self._local.players) if isinstance(self._local, MultiAgentEnvRunner) else None

    @property
    def possible_agents(self) -> list[str]:
        """Agents known beforehand; none where there is one agent."""
        return self._local.lanes.possible_agents() if isinstance(self._local, MultiAgentEnvRunner) else []

    @property
    def weights_version(self) -> int:
        """Number of the weights that were set last; -1 before the first."""
        return self._version

    def set_weights(self, weights: Weights, *, version: int) -> None:
        """Give all runners new weights; each takes them before its next fragment. Returns at once.

        Args:
            weights: {module_id: {name: array}}; must not change afterwards.
            version: their number, which fragments will carry.
        """
        weights = _of_players(self._specs, weights)
        self._version = int(version)
        self._weights = weights
        if self._launcher is not None:
            self._launcher.publish(weights, self._version)

    def forget_weights(self) -> None:
        """Let go of weights that the runner in this process has not taken yet, because others are about to come."""
        self._weights = None

    def set_local_weights(self, weights: Weights) -> None:
        """Give weights to the runner in this process alone, to evaluate them."""
        self._weights = _of_players(self._specs, weights)

    def sample(self, num_steps: int, *, explore: bool = True, random_actions: bool = False) -> list[Sampled]:
        """Sample together: every runner steps its environments with the newest weights.

        Args:
            num_steps: T, steps of each environment.
            explore: sample actions; False takes the most likely ones.
            random_actions: uniformly random actions instead of the policy's.

        Returns:
            One fragment of each runner, in runner order.

        Raises:
            EnvError: an environment failed; the fragments of the others are lost.
            EnvRunnerLostError: processes died or hung more often than allowed.
        """
        self._before_sampling()
        runners = self._elsewhere
        if runners is None:
            return [self.local.sample(num_steps, explore=explore, random_actions=random_actions)]
        runners.drain()
        asked = [self._ask(runners, remote, num_steps, explore, random_actions) for remote in runners.remotes]
        try:
            runners.wait_for(asked)
        finally:
            # What others have seen was seen, whoever fails. In runner order, whoever was first.
            came = [pair for pair in zip(runners.remotes, asked, strict=True) if pair[1].answer is not None]
            self._merge([request.answer["statistics"] for _, request in came])
            for remote, request in came:
                self._episodes.extend(request.answer["episodes"])
                remote.num_told = request.argument["number"]
        return [request.answer["rollout"] for request in asked]

    def request(self, num_steps: int) -> None:
        """Let every runner sample on its own, one fragment after the other; ``ready`` hands them out.

        As many fragments are under way for each as ``max_requests_in_flight_per_env_runner`` says. May be called again
        and again, with another length too.

        Args:
            num_steps: T of each fragment.
        """
        self._before_sampling()
        self._num_steps = int(num_steps)
        self._top_up()

    def ready(self, timeout_s: float) -> list[Fragment]:
        """The fragments that have come since the last call, in order of arrival.

        Each runner goes on at once, with the newest weights. Without processes, one fragment is sampled here.

        Args:
            timeout_s: how long to wait for the first one, at most.

        Raises:
            EnvError: an environment failed. What came before it is handed out first.
            EnvRunnerLostError: processes died or hung more often than allowed.
        """
        self._before_sampling()
        runners = self._elsewhere
        if runners is None:
            if not self._arrived and self._num_steps:
                self._arrived.append(Fragment(0, self._version, self.local.sample(self._num_steps)))
        else:
            deadline = time.monotonic() + timeout_s
            runners.pump(0.0)
            while runners.busy and not self._arrived and not runners.failures:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                runners.pump(left)
            if runners.failures and not self._arrived:
                raise with_trace(*runners.failures.pop(0))
            for remote in runners.remotes:
                remote.num_arrived = 0
        fragments = list(self._arrived)
        self._arrived.clear()
        self._top_up()
        return fragments

    def metrics(self) -> dict[str, Any]:
        """What happened since the last call, and over the lifetime.

        Returns:
            As ``EnvRunner.metrics``, summed over runners, and ``num_env_runner_restarts_lifetime`` and
            ``num_fragments_lost_lifetime``.
        """
        episodes, self._episodes = self._episodes, []
        own = self._local.metrics()
        episodes += own.pop("episodes")
        totals = dict.fromkeys(own, 0)
        lifetimes = [own] if self._elsewhere is None else [remote.metrics for remote in self._elsewhere.remotes]
        for counts in [*lifetimes, self._earlier]:
            for name, value in counts.items():
                if name in totals:
                    totals[name] += value
        return {"episodes": episodes, **totals, **self._losses()}

    def foreach_runner(self, function: Callable[[Runner], _Answer]) -> list[_Answer]:
        """``[function(runner)]`` of the runners that sample, in runner order; function and answers are pickled.

        The runner in this process is not among them where there are others: see ``local``.
        """
        if self._elsewhere is None:
            return [function(self.local)]
        self._elsewhere.drain()
        pickled = cloudpickle.dumps(function)
        return self._elsewhere.ask("call", [{"function": pickled}] * self.num_runners)

    def set_modules(
        self,
        config: AlgorithmSettings,
        module_specs: Mapping[str, RLModuleSpec],
        *,
        weights: Weights,
        statistics_of: Mapping[str, str] | None = None,
    ) -> None:
        """Change modules, who plays whom and who learns, in all runners: see ``MultiAgentEnvRunner.set_modules``.

        Fragments under way are waited for and handed out by ``ready``. Runners that start anew know the new modules.

        Raises:
            ConfigError: a possible agent maps to no module; nothing has changed.
        """
        specs, module_specs = dict(module_specs), acting(module_specs)
        weights = _of_players(specs, weights)
        sources = dict(statistics_of or {})
        change_modules(self._local, config, module_specs, weights, sources)
        self._weights, self._specs = None, specs
        for new, known in sources.items():
            parts = {name: part for name, part in self._statistics.items() if name.startswith(f"observations/{known}/")}
            for name, part in parts.items():
                self._statistics[name.replace(f"/{known}/", f"/{new}/", 1)] = part
        if self._launcher is not None:
            self._launcher.renew(make_setup(config, module_specs, self._make_policy))
            self._launcher.publish(weights, self._version)
            own = for_processes(config, module_specs)
            self.foreach_runner(lambda runner: change_modules(runner, own, module_specs, weights, sources))

    def set_config(self, config: AlgorithmSettings, module_specs: Mapping[str, RLModuleSpec]) -> None:
        """Let all runners go by these settings from their next fragment on; see ``EnvRunner.set_config``.

        Fragments under way are waited for and handed out by ``ready``. Runners that start anew know the new settings.
        """
        module_specs = acting(module_specs)
        self._local.set_config(config)
        if self._launcher is not None:
            self._launcher.renew(make_setup(config, module_specs, self._make_policy))
            own = for_processes(config, module_specs)
            self.foreach_runner(lambda runner: runner.set_config(own))

    def close(self) -> None:
        """Release everything in bounded time; may be called twice."""
        if self._elsewhere is not None:
            self._elsewhere.close()
            self._finalizer.detach()
        self._local.close()

    # -------------------------------------------------------------------------------------------------------- state

    def get_state(self) -> dict[str, Plain]:
        """Everything needed to go on, as plain data. Fragments under way are waited for and saved with the rest.

        Runners that are of no more use (``EnvRunnerLostError``) say what they said last: they go on in new episodes.

        Returns:
            ``local`` (state of the runner in this process), ``runners`` (of the others), ``fragments`` that nobody has
            taken, ``episodes`` that ``metrics`` has not told, ``statistics``, ``counts``.
        """
        runners = self._elsewhere
        states: list[dict[str, Any]] = []
        if runners is not None and runners.broken is not None:
            states = [{"runner": remote.state, "untold": {}} for remote in runners.remotes]
        elif runners is not None:
            runners.drain()
            states = runners.ask("get_state", [{}] * self.num_runners)
        metrics = self.metrics()
        self._episodes = list(metrics.pop("episodes"))
        state = {
            "local": self._local.get_state(),
            "runners": states,
            "fragments": [_plain_fragment(fragment) for fragment in self._arrived],
            "episodes": [episode.to_plain() for episode in self._episodes],
            "statistics": merge_moments(self._local.get_statistics() if runners is None else self._statistics),
            "counts": {**metrics, "weights_version": self._version},
            "earlier": dict(self._earlier),
        }
        if runners is None or runners.broken is None:
            self._top_up()
        return state

    def state_schema(
        self,
        module_specs: Mapping[str, RLModuleSpec] | None = None,
        *,
        fragment_length: int | None = None,
        local_path: str | None = None,
    ) -> Record:
        """What ``set_state`` takes. Runners elsewhere are like the one here, so that none of them is asked.

        Args:
            module_specs: of several agents, the modules that the runners will have by then; ``None``: those they have.
            fragment_length: steps of waiting fragments; ``None``: any.
            local_path: where the state of the runner in this process stands, if it does not stand with the others.
        """
        local = self._local
        moments = {name: moments_schema(part["mean"].shape) for name, part in local.get_statistics().items()}
        # Statistics of other modules come and go with them.
        statistics: Schema = MapOf(MOMENTS) if module_specs is not None else Record(moments, tuple(moments))
        names = {*local.count_names, "num_env_runner_restarts_lifetime", "num_fragments_lost_lifetime"}
        counts: dict[str, Schema] = dict.fromkeys(sorted(names), COUNT)

        def rule(state: Tree, path: str) -> None:
            whole = local.state_schema(module_specs) if self._is_same(state) else _COUNTERS
            whole.check(state["local"], local_path or join(path, "local"))
            for index, saved in enumerate(state["runners"]):
                if saved["runner"] is not None:
                    whole.check(saved["runner"], f"{join(path, 'runners')}/[{index}]/runner")
            for index, plain in enumerate(state["fragments"]):
                self._check_fragment(plain, f"{join(path, 'fragments')}/[{index}]", fragment_length)

        fields: dict[str, Schema] = {
            "local": Anything(),
            "runners": ListOf(Record({"runner": Anything(), "untold": statistics})),
            "fragments": ListOf(_FRAGMENT),
            "episodes": ListOf(EPISODE),
            "statistics": statistics,
            "counts": Record({**counts, "weights_version": Int(least=-1)}),
            "earlier": Record(counts | {"weights_version": Int(least=-1)}, (*counts, "weights_version")),
        }
        return Record(fields, rule=rule, what="the state of environment runners")

    def _is_same(self, state: Tree) -> bool:
        """Whether a state is of as many runners as there are here, and of all of them."""
        saved = state["runners"]
        number = 0 if self._elsewhere is None else self.num_runners
        return len(saved) == number and all(part["runner"] for part in saved)

    def _check_fragment(self, plain: Tree, path: str, length: int | None) -> None:
        """Refuse a waiting fragment that is not of these environments and modules."""
        modules, rollout = plain["modules"], plain["rollout"]
        if (modules is None) != isinstance(self._local, EnvRunner) or (rollout is None) != (modules is not None):
            refuse(path, "a rollout of one agent, or those of several by module", "another")
        for module_id, part in {"": rollout}.items() if modules is None else modules.items():
            place = f"{path}/rollout" if modules is None else f"{path}/modules/{module_id}"
            if module_id in getattr(self._local, "players", {"": None}):
                rollout_schema(self._local.rollout_columns(module_id), length).check(part, place)

    def set_state(self, state: Tree) -> str:
        """Go on from a state.

        One of another number of runners gives its counters, statistics and waiting fragments; every environment starts
        a new episode, with noise and seeds that were not used before.

        Weights are not part of it: set them, then sample or ``request``.

        Args:
            state: what ``get_state`` returned.

        Returns:
            "exact" if every environment goes on where it was, else "restarted".

        Raises:
            StateError: other environments, modules or normalisers.
        """
        runners, saved, local = self._elsewhere, state["runners"], state["local"]
        same = self._is_same(state)
        if runners is not None:
            runners.drain()
        self._arrived.clear()
        how = ["restarted"]
        if same:
            how = [self._local.set_state(local)]
            if runners is not None:
                how = [answer["how"] for answer in runners.ask("set_state", [{"state": part} for part in saved])]
            self._earlier = dict(state["earlier"])
        else:
            used = [int(part["num_vector_steps"]) for part in [local, *(s["runner"] for s in saved)] if part]
            start = {"num_vector_steps": 1 + max(used), "seed": int(local["seed"])}
            restart(self._local, None, **start, num_evaluations=int(local["num_evaluations"]))
            if runners is not None:
                runners.ask("restart", [{"state": None, **start}] * self.num_runners)
            self._earlier = dict(state["counts"])
        counts = state["counts"]
        self._version = int(counts["weights_version"])
        if runners is not None:
            runners.num_restarts = int(counts["num_env_runner_restarts_lifetime"])
            runners.num_lost = int(counts["num_fragments_lost_lifetime"])
            for remote in runners.remotes:
                remote.num_arrived, remote.num_told, remote.knows = 0, remote.num_requested, -1
        self._statistics = merge_moments(state["statistics"])
        self._statistics_version += 1
        if not (same and runners is None):
            self._local.set_statistics(self._statistics)
        self._episodes = [Episode.from_plain(episode) for episode in state["episodes"]]
        self._arrived.extend(_fragment(plain) for plain in state["fragments"])
        for fragment in self._arrived:
            if runners is not None and 0 < fragment.worker_index <= self.num_runners:
                runners.remotes[fragment.worker_index - 1].num_arrived += 1
        self._num_steps = 0  # nobody samples before the weights of this state have come
        return "exact" if set(how) == {"exact"} else "restarted"

    # ---------------------------------------------------------------------------------------------------- internals

    def _losses(self) -> dict[str, int]:
        runners = self._elsewhere
        return {
            "num_env_runner_restarts_lifetime": 0 if runners is None else runners.num_restarts,
            "num_fragments_lost_lifetime": 0 if runners is None else runners.num_lost,
        }

    def _ask(
        self,
        runners: RemoteRunners,
        remote: Remote,
        num_steps: int,
        explore: bool = True,
        random_actions: bool = False,
        alone: bool = False,
    ) -> Request:
        remote.num_requested += 1
        news = self._statistics and remote.knows != self._statistics_version
        remote.knows = self._statistics_version
        argument = {
            "number": remote.num_requested,
            "num_steps": num_steps,
            "explore": explore,
            "random_actions": random_actions,
            "statistics": self._statistics if news else None,
            "includes": remote.num_told,
        }
        return runners.send(remote, "sample", argument, alone=alone)

    def _top_up(self) -> None:
        """Have as many fragments under way, or waiting to be taken, as each runner may."""
        if self._elsewhere is None or not self._num_steps:
            return
        for remote in self._elsewhere.remotes:
            while len(remote.pending) + remote.num_arrived < self._limit:
                self._ask(self._elsewhere, remote, self._num_steps, alone=True)

    def _sampled(self, remote: Remote, request: Request) -> None:
        """A fragment has come."""
        answer = request.answer
        if request.alone or request.abandoned:
            self._episodes.extend(answer["episodes"])
            self._merge([answer["statistics"]])
            remote.num_told = request.argument["number"]
        if request.alone and not request.abandoned:
            index = remote.handle.worker_index
            self._arrived.append(Fragment(index, answer["weights_version"], answer["rollout"]))
            remote.num_arrived += 1

    def _renewed(self, remote: Remote, request: Request) -> None:
        """A fragment is asked for again, of a runner that knows nothing yet."""
        request.argument.update(statistics=self._statistics or None, includes=remote.num_told)

    def _merge(self, statistics: list[Statistics]) -> None:
        if any(statistics):
            self._statistics = merge_moments(self._statistics, *statistics)
            self._statistics_version += 1
            self._local.set_statistics(self._statistics)


_FRAGMENT = Record(
    {
        "worker_index": COUNT,
        "weights_version": Int(least=-1),
        "modules": Nullable(MapOf(Anything())),
        "rollout": Nullable(MapOf(Anything())),
    }
)
#: Of the states of another number of runners these alone are read.
_COUNTERS = Record({"num_vector_steps": COUNT, "num_evaluations": COUNT, "seed": SEED}, is_open=True)


def _framework(config: AlgorithmSettings, module_specs: Mapping[str, RLModuleSpec]) -> str:
    """The backend that answers observations, or "" if numpy does."""
    chosen = {choose_inference(spec, setting=config.inference) for spec in module_specs.values()}
    return str(config.framework_name) if "backend" in chosen else ""


def _plain_fragment(fragment: Fragment) -> dict[str, Plain]:
    rollout = fragment.rollout
    one, several = (rollout, None) if isinstance(rollout, Rollout) else (None, rollout)
    return {
        "worker_index": fragment.worker_index,
        "weights_version": fragment.weights_version,
        "modules": None if several is None else {name: part.to_plain() for name, part in several.items()},
        "rollout": None if one is None else one.to_plain(),
    }


def _fragment(plain: Tree) -> Fragment:
    one, several = plain["rollout"], plain["modules"]  # None where it is the other
    rollout = (
        {n: Rollout.from_plain(part) for n, part in several.items()} if several is not None else Rollout.from_plain(one)
    )
    return Fragment(int(plain["worker_index"]), int(plain["weights_version"]), rollout)


def _of_players(specs: Mapping[str, RLModuleSpec], weights: Weights) -> Weights:
    """The weights of the modules that act, with what others hold for them."""
    full, players = completed(specs, weights), acting(specs)
    return {module_id: arrays for module_id, arrays in full.items() if module_id in players}
