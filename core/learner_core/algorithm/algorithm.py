"""Algorithm: environments, a learner group and the loop that joins them.

What differs between algorithms is ``training_step``; everything a run needs around it is here: results, timers,
evaluation, checkpoints that any backend can open.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..config.agents import Environment, is_multi_agent
from ..config.algorithm_settings import AlgorithmSettings
from ..config.changes import QUEUE_SETTINGS, changed, is_of_learners
from ..config.environments import opened
from ..config.foreign_names import unknown_attribute
from ..config.foreign_table import ALGORITHM as ALGORITHM_NAMES
from ..config.given_environments import with_num_envs
from ..config.trust import Trust
from ..errors import ConfigError, EnvError, StateError
from ..group.learner_group import LearnerGroup
from ..learning.resolve import refuse_agents
from ..learning.rl_module import acting
from ..maths.initialisers import placeholders
from ..plugins.discovery import load
from ..plugins.manager import notify
from ..plugins.registry import get_manager
from ..sampling.episodes import Episode
from ..sampling.make_runner import Runner
from ..sampling.runner_group import EnvRunnerGroup
from ..state.atomic import PathLike
from ..state.files import load_mapping, save_state
from ..state.kinds import ALGORITHM, ALGORITHM_FORMAT, kind_of, refuse_other_kinds
from ..state.schema import COUNT, TEXT, Anything, MapOf, Record, under
from ..state.tree import Plain, Tree, copy_tree
from .agents import agent_means
from .evaluations import Results, evaluation_results, evaluation_size, plain_episodes
from .own_checkpoints import OwnCheckpoints, folder_of
from .policies import make_policy
from .restoring import RestoredRun, check_outline, take_state
from .rollouts import RolloutHooks
from .stored_modules import KEEP, Opening, named_by, settle_modules
from .stored_spaces import spaces_state

if TYPE_CHECKING:
    from ..group.spmd.learners import SpmdLearners

__all__ = ["Algorithm", "stored_config", "stored_tree"]

_SCHEMA = 1
#: Episodes that the mean return is taken over.
_WINDOW = 100
#: Where in a checkpoint the learners' arrays and the columns of replay buffers are.
_LARGE_PARTS = re.compile(r"state/(learner/|extra/(.*/)?storage/columns/)")


class Algorithm(RestoredRun, OwnCheckpoints, RolloutHooks):
    """A run: samples, learns, evaluates, saves.

    Args:
        config: frozen configuration; ``config.build()`` passes it.

    Raises:
        ConfigError, EnvError, SpaceError: the configuration cannot be built.
    """

    def _begin(self, config: AlgorithmSettings) -> None:
        """Counters of a run that has done nothing, without learners and environments."""
        self.config: AlgorithmSettings = config
        self.iteration: int = 0
        self.num_env_steps_sampled_lifetime: int = 0
        self._recent: deque[Episode] = deque(maxlen=_WINDOW)
        self._num_episodes = 0
        self._num_env_steps = 0
        self._lifetimes: dict[str, int] = {}
        self._timers: dict[str, float] = {}
        self._stopped = False
        #: The group's counters of changes and of updates, as of the weights that the runners have; see notice_changes.
        self._known_changes = (0, 0)
        self._trains = False
        self.env_runners: EnvRunnerGroup | None = None
        self._group: LearnerGroup | None = None

    def __init__(self, config: AlgorithmSettings) -> None:
        self._begin(config)
        self.check_config()
        try:
            with self._environment_seen() as env:
                self._group = group = self._make_group(env)
            self.ranks: SpmdLearners | None = group.ranks
            if config.env is not None:
                specs = group.module_specs
                self.env_runners = EnvRunnerGroup(
                    self.runner_config(), specs, make_policy=make_policy, before_sampling=self.notice_changes
                )
            self.check_runners()
            self.setup()
            self.sync_weights()
        except BaseException:
            self.stop()
            raise

    @contextlib.contextmanager
    def _environment_seen(self) -> Iterator[Environment | None]:
        """The environment of one agent, to take the spaces from, seen before a framework is imported; what it decides
        among the settings is settled. ``None``: there is none, or several agents' modules say what they need."""
        config = self.config
        with contextlib.ExitStack() as stack:
            env = None
            if config.env is not None and not is_multi_agent(config):
                try:
                    env = stack.enter_context(opened(config))
                except EnvError:
                    if config.launcher != "spmd":
                        raise
                    # Ranks that have met tell each other what happened on one of them.
            if env is not None:
                refuse_agents(env)
            self.config = with_num_envs(config, config.env if env is None else env)
            yield env

    def _make_group(self, env: Environment | None) -> LearnerGroup:
        config = self.config
        if not config.num_learners:
            # An Algorithm has the process to itself; a bare Learner leaves threads as it finds them. Where learners are
            # processes of their own, this one may do without the framework.
            load("learner_core.backends", config.framework_name).limit_threads(config.num_cpus_per_learner)
        return LearnerGroup(config, env)

    # ------------------------------------------------------------------ what an algorithm overrides

    def check_config(self) -> None:
        """Refuse, by ``self.config`` alone, what this algorithm cannot do: before learners are made and compiled."""

    def setup(self) -> None:
        """Make what the algorithm needs beside runner and group: replay buffers, data sets."""

    def training_step(self) -> Results:
        """One iteration of sampling and learning; returns the learners' results."""
        raise NotImplementedError(f"{type(self).__name__} must implement training_step()")

    def iteration_results(self) -> Results:
        """More entries of the iteration's results, asked for after ``training_step``."""
        return {}

    def settings_changed(self) -> None:
        """``self.config`` has other settings: hand them to what ``setup`` made. Settings that cannot be changed belong
        in the config class's ``fixed_settings``."""

    # ------------------------------------------------------------------ a run

    @property
    def learner_group(self) -> LearnerGroup:
        """The learners."""
        if self._group is None:
            raise ConfigError("this Algorithm has been stopped")
        return self._group

    def train(self) -> Results:
        """One iteration.

        Returns:
            ``training_iteration``, ``num_env_steps_sampled_lifetime``, ``env_runners`` (``episode_return_mean`` and
            ``episode_len_mean`` over the last 100 episodes, ``num_episodes`` and ``num_env_steps_sampled`` in this
            iteration, and over the lifetime restarts of environments and runners, episodes and fragments lost),
            ``learners`` {module_id: {metric: float}}, ``timers`` (seconds), and ``evaluation`` where it is due. A
            checkpoint is saved where ``checkpointing(every=..., folder=...)`` says so. With
            several agents the mean returns by agent and by module as well; ``episode_return_mean`` is of their sum.
        """
        if self._stopped:
            raise ConfigError("this Algorithm has been stopped")
        self._timers = {}
        self._num_episodes = 0
        self._num_env_steps = 0
        began = time.perf_counter()
        self.check_checkpoints()
        self.notice_changes()
        learners = self._training_step()
        self.iteration += 1
        results: dict[str, Any] = {
            "training_iteration": self.iteration,
            "num_env_steps_sampled_lifetime": self.num_env_steps_sampled_lifetime,
            "env_runners": self._episode_results(),
            "learners": learners,
            **self.iteration_results(),
        }
        every = self.config.evaluation_interval
        if every and self.iteration % every == 0:
            results["evaluation"] = self.evaluate()
        self._timers["total"] = time.perf_counter() - began
        results["timers"] = dict(self._timers)
        if self.rank == 0:
            notify(
                get_manager(),
                "algorithm_iteration_end",
                iteration=self.iteration,
                results=results,
                timesteps=self.timesteps,
            )
        self.save_when_due()
        return results

    def _training_step(self) -> Results:
        """``training_step``, whose updates are this run's own: when runners are given their weights is its affair."""
        self._trains = True
        try:
            return self.training_step()
        finally:
            self._trains = False
            self._known_changes = (self._known_changes[0], self.learner_group.num_updates_asked)

    def evaluate(self, num_episodes: int | None = None, *, max_episode_steps: int | None = None) -> Results:
        """Play whole episodes greedily in environments of their own; training is not disturbed.

        Args:
            num_episodes: how many; ``None``: the setting.
            max_episode_steps: an episode that is longer is cut after so many steps, and counts with the return that it
                has by then; ``None``: the setting, and without it what :class:`~..sampling.evaluation.StepLimit` says.

        Returns:
            ``episode_return_mean _std _min _max`` and ``episode_len_mean`` over all episodes, those that were cut
            included, ``num_episodes``, and ``num_episodes_unfinished``, how many of them were cut; returns are of raw
            rewards.

        Raises:
            ConfigError: no such number; there is no environment, or it is an object and nobody knows how to make
                another.
            EnvError: the environment failed.
        """
        runners = self._runners
        self.notice_changes()
        runners.set_local_weights(self.learner_group.get_weights())
        runner = runners.local
        with self.timed("evaluate"):
            wanted, most = evaluation_size(self.config, num_episodes, max_episode_steps)
            played = self.on_first(lambda: plain_episodes(runner.evaluate(wanted, max_episode_steps=most)))
        return evaluation_results(played)

    def stop(self) -> None:
        """Release learners and environments. Safe to call twice."""
        self._stopped = True
        try:
            if self.env_runners is not None:
                self.env_runners.close()
        finally:
            if self._group is not None:
                self._group.shutdown()

    if not TYPE_CHECKING:  # for type checkers there are no more attributes than are written down

        def __getattr__(self, name: str) -> Any:
            raise unknown_attribute(self, name, ALGORITHM_NAMES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ what training steps use

    @property
    def runner(self) -> Runner:
        """The environment runner in this process: it evaluates, and samples where ``num_env_runners=0``.

        Raises:
            ConfigError: there is no environment.
        """
        runner: Runner = self._runners.local
        return runner

    @property
    def env_runner(self) -> Runner | None:
        """As :attr:`runner`; None where there is no environment."""
        return None if self.env_runners is None else self.env_runners.local

    @property
    def _runners(self) -> EnvRunnerGroup:
        if self.env_runners is None:
            raise ConfigError("there is no environment: set .environment(...)")
        return self.env_runners

    @property
    def timesteps(self) -> dict[str, int]:
        """Lifetime counters, as learners take them."""
        return {"num_env_steps_sampled_lifetime": self.num_env_steps_sampled_lifetime}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to this iteration's timer ``name``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._timers[name] = self._timers.get(name, 0.0) + time.perf_counter() - began

    def count_episodes(self) -> None:
        """Take the runners' finished episodes and counters into this run's."""
        metrics = self.metrics_of_all(self._runners.metrics())
        episodes, steps = metrics.pop("episodes"), int(metrics.pop("num_env_steps_sampled_lifetime"))
        self._recent.extend(episodes)
        self._num_episodes += len(episodes)
        self._num_env_steps += steps - self.num_env_steps_sampled_lifetime
        self.num_env_steps_sampled_lifetime = steps
        self._lifetimes = metrics

    def sync_weights(self) -> None:
        """Give the runners the learners' weights, as a new version."""
        if self.env_runners is not None:
            with self.timed("sync_weights"):
                version = self.env_runners.weights_version + 1
                self.env_runners.set_weights(self.learner_group.get_weights(), version=version)
        self._know_changes()

    def set_weights(self, weights: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Give learners and samplers these weights, or none of them; optimizers and target networks stay.

        The next fragment of every runner, and the next evaluation, is sampled with them.

        Args:
            weights: {module_id: {name: array}}, as ``learner_group.get_weights()`` returns them; modules that are not
                named keep theirs.

        Raises:
            StateError: they do not fit; says the path, and nothing has changed.
        """
        self.learner_group.set_weights(weights)
        self.notice_changes()

    def notice_changes(self) -> None:
        """Bring the runners what ``learner_group`` was told past this Algorithm: weights, states, settings, modules.

        Called before each fragment, evaluation and checkpoint; does nothing where nothing was told. Updates count
        unless ``training_step`` makes them.

        Raises:
            ConfigError: an agent maps to a module that was removed.
        """
        group = self._group
        if group is None or self._known_changes == self._changes(group):
            return
        has_others = self._known_changes[0] != group.num_changes
        if has_others:
            self.take_settings()
        self._know_changes()
        self.bring_weights()

    def set_config(self, **settings: object) -> None:
        """Change settings in the run, everywhere at once: learners, advantages, samplers, replay, evaluation, queues.

        They count from the next update, fragment or evaluation on, and are part of every later checkpoint.

        Args:
            settings: new values by field name (``gamma=0.9``, ``evaluation_interval=5``); numbers and schedules take
                effect at once, others recompile.

        Raises:
            ConfigError: unknown, ill-typed, or not to be changed in a run; says which, and nothing has changed.
        """
        self.notice_changes()
        group, before = self.learner_group, self.config
        group.agree("set_config", settings)
        config = changed(before, settings, by="algorithm")
        if "policy_mapping_fn" in settings:
            self._check_mapping(self.agent_runners(), config)
        own = [name for name in settings if name in QUEUE_SETTINGS or is_of_learners(config, name)]
        group.set_config(**{name: settings[name] for name in own})
        try:
            self._bring_settings(config)
        except BaseException:
            group.set_config(**{name: getattr(before, name) for name in own})
            raise
        self._know_changes()  # no weights

    def take_settings(self) -> None:
        """Take over settings and modules that ``learner_group`` was given by itself."""
        group, theirs = self.learner_group, self.learner_group.learner_settings()
        theirs.update({name: getattr(group.config, name) for name in QUEUE_SETTINGS})
        new = {name: value for name, value in theirs.items() if value != getattr(self.config, name)}
        if self.env_runners is not None and self.env_runners.module_ids not in (None, set(acting(group.module_specs))):
            new["policies"] = group.module_specs
        if not new:
            return
        config = self.config.replaced(**new).remember()
        if "policies" in new:
            self._check_mapping(self.agent_runners(), config)
            self._take_over(config, {})
        else:
            self._bring_settings(config)

    def _bring_settings(self, config: AlgorithmSettings) -> None:
        """Let runners and the algorithm go by settings that the learners have."""
        if self.env_runners is not None:
            self.env_runners.set_config(self.runner_config(config), self.learner_group.module_specs)
        self.use_config(config)

    def use_config(self, config: AlgorithmSettings) -> None:
        """Go by these settings from now on; learners and runners have them."""
        self.config = config
        self.settings_changed()

    def bring_weights(self) -> None:
        """Give the runners the learners' weights, which somebody has set; they keep their number."""
        if self.env_runners is not None:
            with self.timed("sync_weights"):
                version = max(self.env_runners.weights_version, 0)
                self.env_runners.set_weights(self.learner_group.get_weights(), version=version)

    def _changes(self, group: LearnerGroup) -> tuple[int, int]:
        return group.num_changes, self._known_changes[1] if self._trains else group.num_updates_asked

    def _know_changes(self) -> None:
        """The runners have, or are about to have, the learners' weights as they are now."""
        self._known_changes = self._changes(self.learner_group)

    def _episode_results(self) -> Results:
        out: dict[str, Any] = {"num_episodes": self._num_episodes, "num_env_steps_sampled": self._num_env_steps}
        out.update(self._lifetimes)
        if self._recent:
            out["episode_return_mean"] = float(np.mean([episode.episode_return for episode in self._recent]))
            out["episode_len_mean"] = float(np.mean([episode.episode_length for episode in self._recent]))
            out.update(agent_means(list(self._recent)))
        return out

    # ------------------------------------------------------------------ checkpoints

    def get_state(self) -> dict[str, Plain]:
        """Everything the run needs to go on: learners, environments, normalisers, replay, counters."""
        self.notice_changes()
        learner = self.learner_group.get_state()
        runners = {"local": None} if self.env_runners is None else self.env_runners.get_state()
        own = {"env_runner": runners.pop("local"), "env_runners": runners or None, "extra": self.get_extra_state()}
        parts = self.states_of_all(own)
        return {
            "learner": learner,
            **(own if parts is None else {**parts[0], "ranks": parts}),
            "algorithm": {
                "iteration": self.iteration,
                "num_env_steps_sampled_lifetime": self.num_env_steps_sampled_lifetime,
                "recent_episodes": [episode.to_plain() for episode in self._recent],
                "modules": self.modules_state(),
                "spaces": spaces_state(self),
            },
        }

    def set_state(self, state: Tree, *, override_spaces: bool = False) -> None:
        """Go on from a state of any backend.

        Args:
            state: what ``get_state`` returned.
            override_spaces: go on also if the environment here has other spaces than the one that it was saved in; all
                episodes begin anew then.

        Raises:
            StateError: it does not fit; says the path, and nothing has changed.
        """
        opening = replace(self._opening, override_spaces=override_spaces or self.overrides_spaces)
        with self.opened(opening):
            self._take_state(state)
        self._show_weights()

    @property
    def keeps_more_state(self) -> bool:
        """Whether a subclass puts entries of its own into the state."""
        return type(self).get_state is not Algorithm.get_state or type(self).set_state is not Algorithm.set_state

    def _go_on_from(self, checkpoint: dict[str, Plain]) -> None:
        """``set_state`` of the state in it, which is let go of before the runners' copies of the weights are made."""
        if type(self).set_state is not Algorithm.set_state:  # a subclass's own is heard
            self.set_state(checkpoint.pop("state"))
            return
        self._take_state(checkpoint.pop("state"))
        self._show_weights()

    def _take_state(self, state: Tree) -> None:
        """``set_state``, but that the runners still have other weights."""
        take_state(self, state, is_open=self.keeps_more_state)
        own = state["algorithm"]
        self.iteration = int(own["iteration"])
        self.num_env_steps_sampled_lifetime = int(own["num_env_steps_sampled_lifetime"])
        self._recent.clear()
        self._recent.extend(Episode.from_plain(episode) for episode in own["recent_episodes"])
        self._earlier_steps = 0
        self._know_changes()
        self._checked_folder = None  # it may hold what is being done again
        self.count_from(self.num_env_steps_sampled_lifetime)

    def _show_weights(self) -> None:
        """Give the runners what they had when the state was taken."""
        if self.env_runners is not None:
            version = max(self.env_runners.weights_version, 0)  # the same weights under their old number
            self.env_runners.forget_weights()
            self.env_runners.set_weights(self.learner_group.get_weights(), version=version)

    def save(self, path: PathLike) -> None:
        """Write a checkpoint: one file with the state and, beside it, the configuration. Atomic.

        Of several ranks all call it and rank 0 writes; it is there when the call returns on any of them.

        Args:
            path: of the file; its folder must exist.
        """
        self.notice_changes()  # settings among them, which stand beside the state
        tree = {
            "format": ALGORITHM_FORMAT,
            "schema": _SCHEMA,
            "config": self.config.to_dict(),
            "state": self.get_state(),
        }
        info = {"algorithm": str(self.config.algorithm_name), "iteration": self.iteration}
        self.on_first(lambda: save_state(path, tree, info=info))
        if self.rank == 0:
            notify(get_manager(), "learner_checkpoint_saved", path=str(path), update=self.iteration, rank=0)

    def restore(
        self,
        path: PathLike,
        *,
        import_modules: Iterable[str] = (),
        policy_mapping_fn: Callable[..., str] | None = KEEP,
        override_spaces: bool = False,
    ) -> None:
        """Go on from a checkpoint of any backend, in this Algorithm, whose settings stay what they are.

        Args:
            path: of the checkpoint.
            import_modules: modules whose classes the file may name, as in :meth:`from_checkpoint`.
            policy_mapping_fn: who plays whom from then on, with several agents; a function is never taken from a file.
            override_spaces: as for ``set_state``.

        Raises:
            StateError: no such file, damaged, of another run or of an environment of other spaces; nothing has
                changed.
            ConfigError: the file names what is not trusted; nothing has changed.
        """
        trust, mapped = Trust.of(import_modules), self._copies_states
        with self.opened(Opening(trust, policy_mapping_fn, override_spaces)):
            self._go_on_from(self.on_each(lambda: _read(path, mapped=mapped)))

    @property
    def _copies_states(self) -> bool:
        """Whether learners and replay buffers may be given views of a file: our own methods copy what they get."""
        own = type(self).set_state is not Algorithm.set_state
        extra = type(self).set_extra_state.__module__.partition(".")[0] != "learner_core"
        return not own and not extra and self.learner_group.copies_states

    @classmethod
    def from_checkpoint(
        cls,
        path: PathLike,
        *,
        framework: str | None = None,
        import_modules: Iterable[str] = (),
        override_spaces: bool = False,
        **settings: object,
    ) -> Algorithm:
        """Build the Algorithm that a checkpoint holds and go on from it. No code of the file's choice runs.

        What the file names is looked up among registered plugins and environments, or is a class of a network, a
        Learner or an environment that ``__main__``, an installed plugin's package or a module of ``import_modules``
        defines (docs/format.md, "Threats"). Functions are given again.

        Args:
            path: of the checkpoint.
            framework: backend to go on with; ``None``: the one it was saved by.
            import_modules: modules that you trust: the file may name their classes, and they are imported for it.
            override_spaces: as for ``set_state``, for an ``env=`` of other spaces.
            settings: settings to replace, by field name (``env=`` for an environment that could not be stored).

        Raises:
            StateError: no such file, damaged, no checkpoint, or one of an environment of other spaces.
            ConfigError: a stored setting cannot be restored here; says which to give, or which module to trust.
        """
        trust = Trust.of(import_modules)
        tree = _read(path, mapped=True)
        if framework is not None:
            settings["framework_name"] = framework
        with under("state"):
            check_outline(tree["state"], is_open=True)  # before anything costly
        settle_modules(tree["state"], trust.knowing(named_by(settings)))
        config = _config_in(tree, import_modules, settings)
        if "checkpoint_folder" not in settings:
            config.checkpoint_folder = folder_of(config, path)
        with placeholders():
            algorithm = build_algorithm(config)
        try:
            if not algorithm._copies_states:
                tree["state"] = copy_tree(tree["state"])
            elif algorithm.env_runners is not None:
                algorithm.env_runners.forget_weights()  # those that it was built with
            with algorithm.opened(Opening(trust, settings.get("policy_mapping_fn", KEEP), override_spaces)):
                algorithm._go_on_from(tree)
        except BaseException:
            algorithm.stop()
            raise
        return algorithm


def build_algorithm(config: AlgorithmSettings) -> Algorithm:
    """The Algorithm that a configuration describes, from a frozen copy of it."""
    kind = config.get_algorithm_class() or Algorithm
    algorithm: Algorithm = kind(config=config.frozen_copy())
    return algorithm


def stored_config(
    path: PathLike | Tree, *, import_modules: Iterable[str] = (), **settings: object
) -> AlgorithmSettings:
    """The settings that a checkpoint carries: those of its run when it was saved. The checkpoint is read as a whole.

    Args:
        path: as for ``Algorithm.from_checkpoint``, or what ``stored_tree`` returned.
        import_modules, settings: as for ``Algorithm.from_checkpoint``.

    Raises:
        StateError, ConfigError: as ``Algorithm.from_checkpoint`` raises them.
    """
    return _config_in(path if isinstance(path, Mapping) else stored_tree(path), import_modules, settings)


def stored_tree(path: PathLike) -> Tree:
    """A checkpoint as it is; large arrays are read when they are looked at.

    Raises:
        StateError: no such file, damaged, or no checkpoint.
    """
    return _read(path, mapped=True)


def _config_in(tree: Tree, import_modules: Iterable[str], settings: Mapping[str, object]) -> AlgorithmSettings:
    return AlgorithmSettings.from_dict(tree["config"], import_modules=import_modules, **settings)


def _read(path: PathLike, *, mapped: bool) -> dict[str, Plain]:
    """A checkpoint; if ``mapped``, what learners and replay buffers copy is views of the file."""
    tree = load_mapping(path, is_mapped=lambda place: mapped and _LARGE_PARTS.match(place) is not None)
    if kind_of(tree) != ALGORITHM:
        refuse_other_kinds(tree, ALGORITHM, where=f"{path}: no checkpoint of an Algorithm: it")
        raise StateError(f"{path}: is a state file but no checkpoint of an Algorithm")
    if type(tree.get("schema")) is not int or tree["schema"] != _SCHEMA:
        raise StateError(f"{path}: schema {tree.get('schema')!r:.60}, this version reads {_SCHEMA}", path="schema")
    Record({"format": TEXT, "schema": COUNT, "config": MapOf(Anything()), "state": MapOf(Anything())}).check(tree, "")
    return dict(tree)


def num_environments(config: AlgorithmSettings) -> int:
    """Environments that sample side by side, over all runners."""
    return max(1, int(config.num_env_runners)) * int(config.num_envs_per_env_runner)


def fragment_length(config: AlgorithmSettings, num_ranks: int = 1) -> int:
    """Steps of each environment per fragment: the setting, or what fills ``train_batch_size`` over all runners."""
    if config.rollout_fragment_length == "auto":
        return max(1, math.ceil(int(config.train_batch_size) / (num_environments(config) * num_ranks)))
    length: int = config.rollout_fragment_length
    return length
