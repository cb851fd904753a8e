"""The hooks of learner-core: who calls them, when, how often, on which rank.

Rule: a thing chosen by name is an entry point whose plugin answers a registration hook; an event that everybody may
want to know of is one of the notification hooks below; what is computed inside a step is a method, never a hook.

A plugin implements a hook with any subset of its arguments, positionally and without defaults::

    from learner_core.plugins.hookspecs import hookimpl

    @hookimpl
    def learner_update_end(update, results):
        print(update, results["__all__"])

Notification hooks see copies (arrays are read-only), their return value is ignored unless the text says otherwise, and
one that raises is quarantined: its whole plugin is told nothing more, a warning names it, training goes on.
"""

from __future__ import annotations

from typing import Any

import pluggy

from learner_core.backend import BackendFacts

__all__ = ["PLUGIN_API", "PROJECT", "hookimpl", "hookspec"]

PROJECT = "learner_core"

PLUGIN_API = 1
"""Version of the hooks and of the Backend and Learner interfaces. A plugin module may say ``PLUGIN_API = 1`` at its top
level; another number is refused before the module is imported."""

hookspec: pluggy.HookspecMarker = pluggy.HookspecMarker(PROJECT)
hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT)


# ---- registration: asked by learner_core.plugins.discovery, of the plugin of one entry point only --------------------


@hookspec
def learner_core_backend() -> type:  # type: ignore[empty-body]  # a specification has no body
    """Return the Backend class. Group ``learner_core.backends``; the framework may be imported here, not before.

    Called by discovery, once per process, when ``.framework(name)`` is first built; on the driver and on every worker.

    Returns:
        A subclass of ``learner_core.backend.Backend``.

    Raises:
        ImportError: The framework is not installed; reported as BackendNotInstalledError.
    """


@hookspec
def learner_core_backend_facts() -> BackendFacts:  # type: ignore[empty-body]  # a specification has no body
    """Say what the backend can do, importing no framework. Group ``learner_core.backends``; optional.

    Called by discovery, once per process, when a collective or an exporter asks for it; on the driver, which imports no
    framework, and on workers.

    Returns:
        A ``learner_core.backend.BackendFacts``. Without the hook nothing is known beforehand: Horovod finds out in the
        learners whether the backend has an end for it, and ``lc.export`` has no formats of this backend's.
    """


@hookspec
def learner_core_algorithm() -> type:  # type: ignore[empty-body]  # a specification has no body
    """Return the config class. Group ``learner_core.algorithms``.

    Called by discovery, once per process, at the first ``get_config(name)``; on the driver, and on workers that rebuild
    their config.

    Returns:
        A subclass of ``learner_core.AlgorithmConfig``.
    """


@hookspec
def learner_core_launcher() -> object:
    """Return the launcher, which starts learner processes. Group ``learner_core.launchers``.

    Called by discovery, once per process, when a group with ``launcher=name`` is first built; on the driver only.

    Returns:
        A ``learner_core.group.launchers.Launcher``: an object with ``name`` and ``make_learners``.
    """


@hookspec
def learner_core_collective() -> object:
    """Return the collective, which reduces over learners. Group ``learner_core.collectives``.

    Called by discovery, once per process, when a group with ``collective=name`` is built; on the driver, which opens
    the meeting point, and on every learner.

    Returns:
        A ``learner_core.group.collectives.CollectivePlugin``: an object with ``name``, ``check``, ``preload``,
        ``open_rendezvous`` and ``create``.
    """


# ---- life of a learner ---------------------------------------------------------------------------------------------


@hookspec
def learner_build_end(
    config: dict[str, Any], module_ids: list[str], backend: str, compiled: bool, rank: int, world_size: int
) -> None:
    """A learner is built and may update now.

    Called by the Learner, once, at the end of its build (again after ``add_module`` or ``remove_module``), on every
    rank.

    Args:
        config: ``config.to_dict()``.
        module_ids: The modules, sorted.
        backend: The backend's name.
        compiled: Whether the step runs compiled.
        rank: This learner's rank; 0 where there is one learner.
        world_size: Number of learners.
    """


@hookspec
def learner_update_begin(update: int, timesteps: dict[str, int], num_rows: dict[str, int], rank: int) -> None:
    """An update is about to start; the batch has been accepted.

    Called by the Learner, once per ``update_from_batch``, before the first minibatch, on every rank.

    Args:
        update: Index of the update, 0 for the first of the run; it goes on across checkpoints.
        timesteps: As given to ``update_from_batch``; ``{}`` if none.
        num_rows: {module_id: rows of the whole batch}.
        rank: This learner's rank.
    """


@hookspec
def learner_update_end(update: int, timesteps: dict[str, int], results: dict[str, dict[str, float]], rank: int) -> None:
    """An update is done and its results are reduced.

    Called by the Learner, once per ``update_from_batch``, after ``after_gradient_based_update``, on every rank.

    Args:
        update: Index of the update.
        timesteps: As given to ``update_from_batch``.
        results: {module_id: {metric: float}, "__all__": {...}}; the same on every rank.
        rank: This learner's rank.
    """


# ---- life of a learner group ---------------------------------------------------------------------------------------


@hookspec
def learner_group_worker_lost(rank: int, exitcode: int | None, reason: str) -> None:
    """A learner process died or went silent.

    Called by the LearnerGroup, once per lost worker, before the error is raised or the ring rebuilt; on the driver
    only.

    Args:
        rank: The rank of the lost worker.
        exitcode: Its exit code, negative for a signal; None if it has not ended.
        reason: What was noticed, with the remote traceback where there is one.
    """


@hookspec
def learner_group_worker_restarted(rank: int, update: int) -> None:
    """A lost worker was replaced (``restart_failed_learners=True``).

    Called by the LearnerGroup, once per replaced worker, after the ring works again and before the update is retried;
    on the driver only.

    Args:
        rank: The rank that was replaced.
        update: Index of the update the group goes on from.
    """


# ---- life of environment runners -----------------------------------------------------------------------------------


@hookspec
def env_runner_lost(worker_index: int, exitcode: int | None, reason: str) -> None:
    """An environment-runner process died or hung; what it was sampling is lost.

    Called by the EnvRunnerGroup, once per lost process, before it is replaced or the error is raised; on the driver
    only.

    Args:
        worker_index: Which one; the first is 1.
        exitcode: Its exit code, negative for a signal; None if it is not known.
        reason: What was noticed.
    """


@hookspec
def env_runner_restarted(worker_index: int, num_restarts: int) -> None:
    """A lost environment runner has been replaced; its environments start new episodes.

    Called by the EnvRunnerGroup, once per replacement, when the new process has been asked to build; on the driver
    only.

    Args:
        worker_index: Which one; the first is 1.
        num_restarts: Replacements in this run so far, over all runners.
    """


# ---- checkpoints ---------------------------------------------------------------------------------------------------


@hookspec
def learner_checkpoint_collect(rank: int) -> dict[str, Any] | None:
    """A state is being collected: return what this plugin wants to find again.

    Called by the Learner, once per ``get_state``, ``save_state`` or checkpoint, on rank 0 only.

    Args:
        rank: 0.

    Returns:
        A state tree (dicts of arrays and plain values), stored under ``plugins/<plugin name>``; None for nothing.
    """


@hookspec
def learner_checkpoint_restore(state: dict[str, Any], rank: int) -> None:
    """A state was set: here is what this plugin returned from ``learner_checkpoint_collect``.

    Called by the Learner, once per ``set_state``, ``load_state`` or restore that holds something for this plugin, after
    the learner's own state is in place; on every rank. Each plugin sees its own state only.

    Args:
        state: The plugin's tree; arrays are read-only.
        rank: This learner's rank.
    """


@hookspec
def learner_checkpoint_saved(path: str, update: int, rank: int) -> None:
    """A state file or checkpoint folder is complete and durable on disk.

    Called by the Learner, LearnerGroup or Algorithm that was told to save, once per save, after the rename; on rank 0
    (the driver of a group) only.

    Args:
        path: The file or folder.
        update: Number of updates done so far.
        rank: 0.
    """


# ---- life of an algorithm ------------------------------------------------------------------------------------------


@hookspec
def algorithm_iteration_end(iteration: int, results: dict[str, Any], timesteps: dict[str, int]) -> None:
    """An iteration of training, its evaluation and checkpoint included, is done: the place for experiment trackers.

    Called by the Algorithm, once per ``train()``, on the driver only (with ``launcher="spmd"``, on rank 0).

    Args:
        iteration: Index of the iteration, 1 for the first of the run; it goes on across checkpoints.
        results: What ``train()`` returns.
        timesteps: Lifetime counters, ``num_env_steps_sampled_lifetime`` among them.
    """
