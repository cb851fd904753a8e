"""Taking over a state: checked whole, by one schema, before anything changes; then done in an order that can be undone.

Needs an Algorithm. What a schema cannot know is what code that is not ours does: an environment's own ``set_state``, a
subclass's ``set_extra_state``. These come first, and if one fails, what has changed by then is put back.

1. The outline: what kind of tree it is, counters and episodes, which modules there were, in which spaces.
2. Modules that the state has and the run has not are added to the learners; what they know of others stays.
3. Every part is checked: the learners', the runners', the algorithm's own, of each rank on its own rank.
4. Runners take over, and parts that a subclass has not described. All until here is undone if anything fails.
5. Modules that the state has not are removed; the learners and the algorithm's own parts take over, then counters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from ..errors import LearnerCoreError, StateError
from ..learning.rl_module import RLModuleSpec
from ..sampling.episodes import EPISODE
from ..sampling.runner_group import EnvRunnerGroup
from ..state.kinds import ALGORITHM_STATE, refuse_other_kinds
from ..state.schema import COUNT, Anything, ListOf, MapOf, Nullable, Record, Schema, refuse, under
from ..state.tree import Plain, Tree, join
from .agents import AgentModules, ModuleChange
from .ranks import RankedRun
from .stored_spaces import SPACES, check_spaces, in_new_episodes, with_own_spaces

__all__ = ["RestoredRun", "check_outline", "take_state"]

_MODULES = Record(
    {
        "policies": MapOf(Anything()),
        "policy_mapping_fn": Anything(),
        "policies_to_train": Nullable(ListOf(Anything())),
        "policy_settings": MapOf(MapOf(Anything())),
    }
)
_COUNTERS = Record(
    {
        "iteration": COUNT,
        "num_env_steps_sampled_lifetime": COUNT,
        "recent_episodes": ListOf(EPISODE),
        "modules": Nullable(_MODULES),
        "spaces": SPACES,
    },
    optional=("modules", "spaces"),
)
_PART: dict[str, Schema] = {
    "env_runner": Nullable(MapOf(Anything())),
    "env_runners": Nullable(MapOf(Anything())),
    "extra": MapOf(Anything()),
}


class RestoredRun(AgentModules, RankedRun):
    """The part of an Algorithm that goes on from a state."""

    def get_extra_state(self) -> dict[str, Plain]:
        """State of what ``Algorithm.setup`` made, as arrays and plain values."""
        return {}

    def set_extra_state(self, state: Tree) -> None:
        """Take over what ``get_extra_state`` returned."""

    def extra_state_schema(self) -> Schema:
        """What ``set_extra_state`` takes: declared by whoever overrides these two, to be checked before anything
        changes. Without it, ``set_extra_state`` is called first, and given the old state back if it raises."""
        return Record({})

    def state_fragment_length(self) -> int | None:
        """Steps of the fragments that wait in a state; ``None``: any."""
        return None


def check_outline(state: object, *, is_open: bool = False) -> None:
    """Refuse what is no state of an Algorithm, whatever Algorithm: before one is built, and before modules change.

    Args:
        state: what came.
        is_open: a subclass keeps entries of its own.

    Raises:
        StateError: says the path.
    """
    refuse_other_kinds(state, ALGORITHM_STATE)
    fields = {"learner": MapOf(Anything()), **_PART, "ranks": ListOf(Record(_PART), rule=_some), "algorithm": _COUNTERS}
    Record(fields, ("ranks",), is_open=is_open, what=ALGORITHM_STATE).check(state, "")


def _some(parts: Plain, path: str) -> None:
    if not parts:
        refuse(path, "the parts of one rank or more", "none")


def take_state(run: RestoredRun, state: Tree, *, is_open: bool) -> None:
    """Go on from a state; the runners still have other weights then.

    Args:
        run: which goes on.
        state: of a run.
        is_open: a subclass keeps entries of its own.

    Raises:
        StateError: it does not fit; says the path, and nothing has changed.
    """
    run.on_each(lambda: check_outline(state, is_open=is_open))
    saved, override = state["algorithm"].get("spaces"), run.overrides_spaces
    anew = run.on_each(lambda: check_spaces(run, saved, override=override))
    group = run.learner_group
    modules = state["algorithm"].get("modules")
    if anew:
        modules = with_own_spaces(modules, run.modules_state())
    with run.modules_of(modules) as change:
        specs = None if change is None else change.specs
        with under("learner"):
            group.check_state(state["learner"], modules=None if specs is None else list(specs))
        part = run.on_each(lambda: _checked_part(run, state, specs, anew=anew))
        _take_part(run, part, change, lambda: _take_learners(run, state["learner"], change), anew=anew)


def _checked_part(run: RestoredRun, state: Tree, specs: Mapping[str, RLModuleSpec] | None, *, anew: bool) -> Tree:
    """This rank's part of a state, checked with all that it is made of."""
    ranks = state.get("ranks")
    schema = _extra_schema(run)
    for index, part in enumerate(ranks or [state]):
        if schema is not None:
            schema.check(part["extra"], f"ranks/[{index}]/extra" if ranks else "extra")
    part = run.part_of(state)
    runners = _runners(run, part)
    if runners is not None:
        length = run.state_fragment_length()
        place = f"ranks/[{run.rank}]" if ranks else ""
        whole = runners.state_schema(specs, fragment_length=length, local_path=join(place, "env_runner"))
        whole.check(_runner_state(part, runners, anew=anew), join(place, "env_runners"))
    return part


def _extra_schema(run: RestoredRun) -> Schema | None:
    """What the algorithm's own part must be; ``None``: a subclass keeps something else and checks it itself."""
    for kind in type(run).__mro__:
        if "extra_state_schema" in vars(kind):
            return run.extra_state_schema()
        if "get_extra_state" in vars(kind) or "set_extra_state" in vars(kind):
            return None
    return None


def _runners(run: RestoredRun, part: Tree) -> EnvRunnerGroup | None:
    return run.env_runners if part["env_runner"] is not None else None


def _runner_state(part: Tree, runners: EnvRunnerGroup, *, anew: bool) -> dict[str, Plain]:
    state = {"local": part["env_runner"], **(part["env_runners"] or {})}
    return in_new_episodes(runners.local, state) if anew else state


def _take_part(
    run: RestoredRun,
    part: Tree,
    change: ModuleChange | None,
    then: Callable[[], None],
    *,
    anew: bool,
) -> None:
    """Let runners and the algorithm's own parts take over, then the learners; all of it or nothing."""
    runners = _runners(run, part)
    before = None if runners is None else runners.get_state()
    extra = run.get_extra_state() if _extra_schema(run) is None else None
    learners = None if run.learner_group.copies_states else run.learner_group.get_state()

    def take_runners() -> None:
        with _heard("env_runner"):
            if change is not None:
                change.runners()
            if runners is not None:
                runners.set_state(_runner_state(part, runners, anew=anew))

    def take_extra() -> None:
        with _heard("extra"):
            run.set_extra_state(part["extra"])

    try:
        run.on_each(take_runners)
        if extra is not None:
            run.on_each(take_extra)
        then()
    except BaseException:
        if change is not None:
            change.undo_runners()
        if runners is not None and before is not None:
            runners.set_state(before)
        if extra is not None:
            run.set_extra_state(extra)
        if learners is not None:
            run.learner_group.set_state(learners)
        raise
    if extra is None:  # it has been checked, and may be too large to be kept twice
        run.set_extra_state(part["extra"])


@contextlib.contextmanager
def _heard(path: str) -> Iterator[None]:
    """What code that is not ours raises over a part of a state is a refusal of it."""
    try:
        yield
    except LearnerCoreError:
        raise
    except Exception as error:
        raise StateError(
            f"cannot be taken over: {type(error).__name__}: {error}; everything is as it was before", path=path
        ) from error


def _take_learners(run: RestoredRun, state: Tree, change: ModuleChange | None) -> None:
    with under("learner"):
        if change is not None:
            change.learners()
        run.learner_group.set_state(state)
