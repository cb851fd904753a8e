"""A runner in another process: what its group may ask of it, however the requests come.

Needs a setup (``make_setup``) and a way to the newest weights. Requests are answered one at a time, in order; an
exception is an answer, too. Processes of this machine serve it over sockets (``runner_process``), actors by calls.
"""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import cloudpickle

from ..config.algorithm_settings import AlgorithmSettings
from ..errors import ConfigError, EnvError
from ..learning.rl_module import RLModuleSpec
from ..state.tree import Plain, Tree
from .make_runner import Runner, Weights, give_weights, make_runner
from .normalize import Statistics, merge_moments
from .numpy_backend import MakePolicy

__all__ = ["RunnerServer", "for_processes", "make_setup", "restart"]


def make_setup(
    config: AlgorithmSettings, module_specs: Mapping[str, RLModuleSpec], make_policy: MakePolicy | None
) -> bytes:
    """Everything a runner is made from, pickled by value where it has to be (lambdas, classes of a script).

    Args:
        config, module_specs, make_policy: as for ``make_runner``.

    Raises:
        ConfigError: something in it cannot be pickled.
    """
    setup = {
        "config": for_processes(config, module_specs),
        "module_specs": dict(module_specs),
        "make_policy": make_policy,
        "registered": _registered(config.env),
    }
    try:
        return bytes(cloudpickle.dumps(setup))
    except Exception as error:
        raise ConfigError(
            f"num_env_runners={config.num_env_runners}: the environment or the module cannot be sent to runner "
            f"processes: {type(error).__name__}: {error}. Configure the environment's id, or a callable that makes it "
            "and holds nothing that cannot be pickled; or take num_env_runners=0"
        ) from error


def for_processes(config: AlgorithmSettings, module_specs: Mapping[str, RLModuleSpec]) -> AlgorithmSettings:
    """The configuration without what only learners need: unpickling that might import a framework.

    With ``device="auto"`` runners compute on the CPU: the accelerator, and its memory, are the learners'.
    """
    own = config.copy() if hasattr(config, "copy") else copy.copy(config)
    own.learner_class = None
    own.rl_module_spec = None
    if own.device == "auto":
        own.device = "cpu"
    if own.policies is not None:
        own.policies = list(module_specs)
    if hasattr(own, "freeze"):
        own = own.freeze()
    return own


def _registered(env: object) -> object:
    """gymnasium's entry of an id: a script may have registered it, and nobody runs the script in the other process."""
    if not isinstance(env, str):
        return None
    import gymnasium

    return gymnasium.registry.get(env.rpartition(":")[2])


#: Keyword arguments of a request.
Argument: TypeAlias = Mapping[str, Any]
#: (True, what the operation returned), or (False, (the exception, its traceback)).
Answer: TypeAlias = tuple[bool, Any]


class RunnerServer:
    """Does what a group asks for, by the method's name.

    Args:
        newest_weights: returns (version, weights) if there are newer ones than at the last call, else None.
    """

    def __init__(self, newest_weights: Callable[[], tuple[int, Weights] | None]) -> None:
        self._newest_weights = newest_weights
        self._runner: Runner | None = None
        self._version = -1
        # {fragment: statistics} that went to the group; its next broadcast may have been sent before they came.
        self._told: dict[int, Statistics] = {}
        #: Warnings that the group has not been told.
        self._warnings: list[str] = []
        self._untold: Statistics = {}

    @property
    def runner(self) -> Runner:
        """The runner, once it is built."""
        if self._runner is None:
            raise EnvError("this runner has not been built")
        return self._runner

    @property
    def progress(self) -> int:
        """A number that changes as long as the environments step."""
        return -1 if self._runner is None else self._runner.num_vector_steps

    def handle(self, operation: str, argument: Argument) -> Answer:
        """Do what a request says.

        Args:
            operation: "build", "sample", "get_state", "set_state", "restart" or "call".
            argument: its keyword arguments.

        Returns:
            (True, the answer), or (False, (the exception, its traceback)): never raises an Exception.
        """
        try:
            return True, getattr(self, operation)(**argument)
        except Exception as error:
            sent, trace = _portable(error), traceback.format_exc()
            for text in self._take_warnings():
                sent.add_note(f"before that: {text}")
            return False, (sent, trace)

    def build(self, *, setup: bytes, worker_index: int) -> None:
        """Make the runner, environments and all."""
        parts = cloudpickle.loads(setup)
        if parts["registered"] is not None:
            import gymnasium

            gymnasium.registry.setdefault(parts["registered"].id, parts["registered"])
        self._runner = make_runner(
            parts["config"],
            parts["module_specs"],
            worker_index=worker_index,
            make_policy=parts["make_policy"],
            tell=self._warnings.append,
        )
        self._untold = self._runner.take_statistics()

    def sample(
        self,
        *,
        number: int,
        num_steps: int,
        explore: bool,
        random_actions: bool,
        statistics: Mapping[str, Tree] | None,
        includes: int,
    ) -> dict[str, Plain]:
        """One fragment, with the newest weights.

        Args:
            number: of the fragment, among this runner's.
            num_steps, explore, random_actions: as for ``EnvRunner.sample``.
            statistics: of all runners together, if they are news.
            includes: number of this runner's last fragment whose statistics are among those.

        Returns:
            ``rollout``, ``weights_version``, ``episodes`` (finished ones), ``metrics`` (lifetime counts),
            ``statistics`` (new ones of this runner alone), ``state`` (without environments: what a replacement would
            go on from) and ``warnings``, which are for the user.
        """
        runner = self.runner
        newest = self._newest_weights()
        if newest is not None:
            self._version, weights = newest
            give_weights(runner, weights)
        untold = self._take_untold()
        if statistics is not None:
            self._told = {n: moments for n, moments in self._told.items() if n > includes}
            runner.set_statistics(merge_moments(statistics, *self._told.values(), untold))
        rollout = runner.sample(num_steps, explore=explore, random_actions=random_actions)
        own = merge_moments(untold, runner.take_statistics())
        self._untold = {}
        if own:
            self._told[number] = own
        return {"rollout": rollout, "weights_version": self._version, "statistics": own, **self._news()}

    def get_state(self) -> dict[str, Plain]:
        """The runner's whole state, and what it has not told yet."""
        return {"runner": self.runner.get_state(), "untold": self._take_untold()}

    def set_state(self, *, state: Tree) -> dict[str, Plain]:
        """Go on from what ``get_state`` returned; ``how``: "exact" or "restarted", and what ``sample`` says of it."""
        how = self.runner.set_state(state["runner"])
        self._told, self._untold = {}, dict(state["untold"])
        return {"how": how, **self._news()}

    def restart(self, *, state: Tree | None, num_vector_steps: int, seed: int | None = None) -> dict[str, Plain]:
        """Start new episodes: see the function ``restart``; answers as ``set_state`` does."""
        restart(self.runner, state, num_vector_steps=num_vector_steps, seed=seed)
        self._told, self._untold = {}, {}
        return {"how": "restarted", **self._news()}

    def call(self, *, function: bytes) -> object:
        """``function(runner)``."""
        return cloudpickle.loads(function)(self.runner)

    def close(self) -> None:
        """Release the environments."""
        if self._runner is not None:
            self._runner.close()

    def _news(self) -> dict[str, Plain]:
        metrics = self.runner.metrics()
        episodes = metrics.pop("episodes")
        state = self.runner.get_state(environments=False)
        return {"episodes": episodes, "metrics": metrics, "state": state, "warnings": self._take_warnings()}

    def _take_warnings(self) -> list[str]:
        taken = list(self._warnings)
        self._warnings.clear()
        return taken

    def _take_untold(self) -> Statistics:
        self._untold = merge_moments(self._untold, self.runner.take_statistics())
        return self._untold


def restart(runner: Runner, state: Tree | None, *, num_vector_steps: int, seed: int | None = None, **more: int) -> None:
    """Let a runner start new episodes, as the replacement of one that was lost, or of another number of runners.

    Args:
        runner: any runner.
        state: the lost runner's last one, whose counters go on; None: its own.
        num_vector_steps: where noise and the environments' seeds go on; a number not used before.
        seed: the run's; None: the state's.
        more: other entries of the state.
    """
    base = dict(state) if state is not None else runner.get_state(environments=False)
    base.update(env_state="restarted", envs=None, num_vector_steps=num_vector_steps, **more)
    if seed is not None:
        base["seed"] = seed
    runner.set_state(base)


def _portable(error: Exception) -> Exception:
    """The exception if it can be sent, else one with its text."""
    try:
        sent = pickle.loads(cloudpickle.dumps(error))
        return sent if isinstance(sent, Exception) else EnvError(str(error))
    except Exception:
        return EnvError(f"{type(error).__name__}: {error}")
