"""The spaces of a run's environment in its state: a run goes on in an environment of the same ones, or is told to.

Needs an Algorithm. A network often fits another environment by its shapes alone, and would then go on with actions of
another unit or observations of another range. Refuses other spaces, in their own words, before anything changes;
``override_spaces=True`` goes on all the same, in new episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .. import spaces
from ..config.agents import ONLY_MODULE
from ..config.values import same
from ..errors import StateError
from ..state.schema import MapOf, Plain, Record, Schema, under
from ..state.tree import Tree, join

if TYPE_CHECKING:
    from ..learning.rl_module import RLModuleSpec
    from ..sampling.make_runner import Runner
    from .agents import AgentModules

__all__ = ["SPACES", "check_spaces", "in_new_episodes", "spaces_state", "with_own_spaces"]

_NAMES = ("observation_space", "action_space")
#: What ``spaces_state`` gives.
SPACES: Schema = MapOf(Record(dict.fromkeys(_NAMES, Plain())))


def spaces_state(run: AgentModules) -> dict[str, dict[str, object]]:
    """Observation and action space of each module, as plain data: the environment's, or without one the module's.

    An observation space is what the policy sees: without the mask of actions.
    """
    return {
        module_id: {name: spaces.to_plain(getattr(player, name)) for name in _NAMES}
        for module_id, player in _players(run).items()
    }


def check_spaces(run: AgentModules, saved: Tree | None, *, override: bool) -> bool:
    """Compare a state's spaces with those of the environment here.

    Args:
        run: The run.
        saved: What ``spaces_state`` returned where it was saved; None: the state does not say, as those of earlier
            versions.
        override: Go on with others.

    Returns:
        Whether they differ, which they may with ``override`` alone.

    Raises:
        StateError: They differ; says both.
    """
    if saved is None or run.env_runners is None:
        return False
    here = spaces_state(run)
    for module_id, name, theirs, ours in _pairs(saved, here):
        if same(theirs, ours):
            continue
        if override:
            return True
        path = join("algorithm/spaces", module_id) + f"/{name}"
        with under(path):
            before, now = spaces.from_plain(theirs), spaces.from_plain(ours)
        raise StateError(
            f"the environment of the saved run has {name} {before}, the one here has {now}; give the environment that "
            "it was saved with, or override_spaces=True (--override-spaces) if it is to go on in this one",
            path=path,
        )
    return False


def with_own_spaces(modules: Tree | None, own: Tree | None) -> Tree | None:
    """The modules of a state, as ``AgentModules.modules_state`` has them; those that are here too with our spaces."""
    if modules is None or own is None:
        return modules
    policies = dict(modules["policies"])
    for module_id, ours in own["policies"].items():
        theirs = policies.get(module_id)
        if isinstance(theirs, Mapping) and isinstance(theirs.get("fields"), Mapping):
            fields = {name: ours["fields"][name] for name in _NAMES}
            policies[module_id] = {**theirs, "fields": {**theirs["fields"], **fields}}
    return {**modules, "policies": policies}


def in_new_episodes(runner: Runner, saved: Tree) -> dict[str, object]:
    """The state of environment runners, with episodes that begin anew: those that were running are of other spaces.

    Args:
        runner: The runner here.
        saved: State of the runners; ``local`` and ``runners``.
    """
    own = runner.get_state(environments=False)

    def anew(state: Tree) -> dict[str, object]:
        shown: dict[str, object] = {name: own[name] for name in ("obs", "raw_obs") if name in state and name in own}
        return {**state, **shown, "env_state": "restarted", "envs": None}

    elsewhere = [{**part, "runner": part["runner"] and anew(part["runner"])} for part in saved.get("runners", ())]
    return {**saved, "local": anew(saved["local"]), **({"runners": elsewhere} if "runners" in saved else {})}


def _players(run: AgentModules) -> Mapping[str, Runner | RLModuleSpec]:
    """{module: what has its spaces}."""
    if run.env_runners is None:
        return run.learner_group.module_specs
    local = run.env_runners.local
    several: Mapping[str, Any] | None = getattr(local, "players", None)
    return {ONLY_MODULE: local} if several is None else several


def _pairs(saved: Tree, here: Tree) -> Iterator[tuple[str, str, Tree, Tree]]:
    """Spaces of the modules that both have; others come and go with the state."""
    for module_id, ours in here.items():
        for name in _NAMES:
            if module_id in saved:
                yield module_id, name, saved[module_id][name], ours[name]
