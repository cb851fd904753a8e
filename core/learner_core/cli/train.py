"""``learner-core train``: one run in one folder, which can be stopped and taken up again on any backend."""

from __future__ import annotations

import argparse
import datetime
import io
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import learner_core as lc
from learner_core.config.environments import check_name
from learner_core.config.foreign_names import known_option
from learner_core.config.trust import Trust
from learner_core.errors import ConfigError, FormatError, StateError
from learner_core.group.spmd.world import SpmdOptions, find_world
from learner_core.state.lock import FolderLock
from learner_core.state.tree import Plain, Tree

from .console import add_override_spaces, add_trust, count, duration, number, parse_count, parse_duration, table
from .curve import draw_curve
from .interrupt import Interrupt
from .metric_files import MetricFiles, read_rows
from .quiet import without_startup_messages
from .report import Moment, Report, StopConditions, flatten, make_report, moment_of, rows_of
from .run_folder import RunFolder, find_checkpoints
from .settings import (
    ENVIRONMENT_KEYS,
    apply_assignments,
    apply_file,
    describe_settings,
    read_file,
    settle_file,
    to_toml,
)

if TYPE_CHECKING:
    from learner_core.algorithm.algorithm import Algorithm
    from learner_core.config.algorithm_settings import AlgorithmSettings

__all__ = ["run"]

T = TypeVar("T")

_SAVE_EVERY_SECONDS = 300.0  # where checkpointing(every=...) says nothing


def run(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code."""
    parser = _parser()
    # Intermixed: an optional ALGORITHM may stand before or after the options.
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}. {_meant_by(unknown, given.algorithm)}")
    if given.help:
        print(_help(parser, given.algorithm))
        return 0
    if given.resume is not None:
        return _resume(given)
    return _start(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="learner-core train",
        description="Train an algorithm on an environment, or go on with an earlier run (--resume), on any backend.",
        add_help=False,
    )
    add = parser.add_argument
    add("algorithm", nargs="?", help="a registered algorithm: ppo, sac, bc, ...; `learner-core plugins list` shows all")
    add("-h", "--help", action="store_true", help="this text; with ALGORITHM, all of its settings too")
    names = '"CartPole-v1", "module:Name-v0" to import a module first, "pettingzoo:sisl/pursuit-v5" for several agents'
    add("--env", metavar="NAME", help=f"a Gymnasium id: {names}")
    add("--backend", metavar="NAME", help="torch, tf or another registered backend")
    add("--launcher", metavar="NAME", help="who starts the learners: local, ray, or spmd under horovodrun and the like")
    add("--seed", type=int, metavar="N", help="seed of everything (default 0)")
    add("--config", type=Path, metavar="FILE", help="a TOML file of settings, a run's config.toml for instance")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; repeat. --set model.hidden=[256]")
    add("--out", type=Path, metavar="DIR", help="the run's folder (default runs/ALGORITHM-ENV-TIME)")
    add("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    add("--stop-return", type=float, metavar="R", help="stop at this mean episode return")
    add("--stop-timesteps", type=parse_count, metavar="N", help="stop after N environment steps (200k and 1e6 work)")
    add("--stop-seconds", type=parse_duration, metavar="S", help="stop after S seconds of training (15m and 2h work)")
    add("--stop-iterations", type=parse_count, metavar="N", help="stop after N iterations")
    add("--evaluate", type=parse_count, metavar="N", help="at the end, evaluate over N episodes")
    add("--quiet", action="store_true", help="no progress, only the closing table")
    add_override_spaces(parser)
    add_trust(parser)
    add("--debug", action="store_true", help="a traceback instead of one paragraph when something is refused")
    return parser


def _meant_by(unknown: Sequence[str], algorithm: str | None) -> str:
    """What arguments that the parser does not know were probably meant to be: an environment, or settings."""
    name = algorithm if algorithm in lc.list_algorithms() else "ppo"
    config = lc.get_config(name)
    answers = []
    for place, argument in enumerate(unknown):
        if argument.startswith("-"):
            following = [text for text in unknown[place + 1 : place + 2] if not text.startswith("-")]
            answers.append(_meant(argument, *following, config=config))
        elif place == 0:
            answers.append(f"An environment is given by --env {argument}.")
    return " ".join(dict.fromkeys(answers))


def _meant(argument: str, following: str = "VALUE", *, config: AlgorithmSettings) -> str:
    name, _, value = argument.lstrip("-").partition("=")
    if answer := known_option(name, config, value or following):
        return answer
    return f"A setting is given by --set {name.replace('-', '_')}={value or following}."


def _help(parser: argparse.ArgumentParser, algorithm: str | None) -> str:
    text = parser.format_help()
    if algorithm is None:
        return text + "\n`learner-core train ALGORITHM --help` lists the algorithm's settings."
    config = lc.get_config(algorithm)
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    settings = describe_settings(config, width=width)
    return f"{text}\nSettings of {algorithm}, for --set NAME=VALUE and for the tables of --config:\n{settings}"


# ---- what is to be run -----------------------------------------------------------------------------------------------


def _start(given: argparse.Namespace) -> int:
    tables = read_file(given.config) if given.config is not None else {}
    name = given.algorithm or tables.get("algorithm")
    if not isinstance(name, str):
        raise ConfigError("Which algorithm? `learner-core train ppo --env CartPole-v1`, or --resume DIR.")
    config = lc.get_config(name)
    _apply(config, given, tables)
    _refuse_folder(config)
    if config.env is None and config.observation_space is None:
        raise ConfigError("Which environment? --env CartPole-v1, or env in the [environment] table of --config.")
    check_name(config)
    stop = _stop_conditions(given)
    place = given.out or _default_folder(name, config.env)
    folder = RunFolder.new(place) if _is_first(config) else RunFolder(place)
    return _Run(folder, config, stop, given, info={"algorithm": name, "sessions": []}).go()


def _resume(given: argparse.Namespace) -> int:
    if given.out is not None:
        raise ConfigError("--out names a new run's folder; a resumed run stays where it is.")
    folder = RunFolder.open(given.resume)
    info = folder.read_info()
    if given.algorithm is not None and given.algorithm != info["algorithm"]:
        raise ConfigError(f"The run in {folder.path} is one of {info['algorithm']}, not of {given.algorithm}.")
    config, said = _settings_of(folder, given)
    config.checkpoint_folder = None
    stored = config.copy()
    _apply(config, given, read_file(given.config) if given.config is not None else {})
    _refuse_folder(config)
    check_name(config)
    notes = [
        f"config.toml says {name}={value!r}; the checkpoint was saved with {getattr(stored, name)!r}, which counts. "
        f"To change it: --set {name}=..."
        for name, value in said.items()
        if getattr(config, name) == getattr(stored, name)
    ]
    asked = _stop_conditions(given)
    stop = StopConditions(**info.get("stop", {})) if asked.is_empty else asked
    return _Run(folder, config, stop, given, info=info, notes=notes).go()


def _settings_of(folder: RunFolder, given: argparse.Namespace) -> tuple[AlgorithmSettings, dict[str, Plain]]:
    """What a resumed run goes by: the settings of the newest checkpoint that can be read, as they were by then.

    Returns:
        The config, and what ``config.toml`` says of settings that are others there: {field name: its value}.
    """
    from learner_core.algorithm.algorithm import stored_config  # not for --help: it brings all of sampling

    tables = read_file(folder.config_file)
    file = lc.get_config(folder.read_info()["algorithm"])
    apply_file(file, tables, source=str(folder.config_file), skips_missing=True)
    # What is typed takes the place of what is stored, which need not be trusted, or there, then; ``_apply`` reads it.
    typed = [
        value for name, _, value in (text.partition("=") for text in given.set) if name.strip() in ENVIRONMENT_KEYS
    ]
    instead = {"env": typed[-1] if typed else given.env} if typed or given.env is not None else {}
    if not instead:
        settle_file(file, Trust.of(given.trust))
    for path in _checkpoints_of(folder):
        try:
            config = stored_config(path, import_modules=given.trust, **instead)
        except StateError:
            continue  # damaged, or of an algorithm that saves in its own way: restoring it will say so
        break
    else:
        return file, {}
    said = [item for item in config.settings().values() if item.keyword in tables.get(item.method, {})]
    return config, {s.name: getattr(file, s.name) for s in said if getattr(file, s.name) != getattr(config, s.name)}


def _checkpoints_of(folder: RunFolder) -> list[Path]:
    """The checkpoints that a resumed run may start from, newest first; refuses where there is none."""
    found = find_checkpoints(folder.path)
    if not found:
        raise StateError(f"The run in {folder.path} was stopped before its first checkpoint: start it anew.")
    return found


def _apply(config: AlgorithmSettings, given: argparse.Namespace, tables: Tree) -> None:
    """Settings from the weakest source to the strongest: file, options, --set; what files alone name is settled."""
    options = {"env": given.env, "framework_name": given.backend, "launcher": given.launcher, "seed": given.seed}
    typed = [name for name, value in options.items() if value is not None]
    apply_file(
        config,
        tables,
        source=str(given.config),
        trust=Trust.of(given.trust),
        given=[*typed, *(text.partition("=")[0].strip().rpartition(".")[2] for text in given.set)],
    )
    if given.env is not None:
        config.environment(given.env)
    if given.backend is not None:
        config.framework(given.backend)
    if given.launcher is not None:
        config.learners(launcher=given.launcher)
    if given.seed is not None:
        config.debugging(seed=given.seed)
    if "env" not in apply_assignments(config, given.set) and given.env is None:
        settle_file(config, Trust.of(given.trust))


def _refuse_folder(config: AlgorithmSettings) -> None:
    if config.checkpoint_folder is not None:
        raise ConfigError(
            f"checkpoint_folder={config.checkpoint_folder!r}: the command line saves into the run's folder, which "
            "--out names."
        )


def _stop_conditions(given: argparse.Namespace) -> StopConditions:
    return StopConditions(
        episode_return=given.stop_return,
        timesteps=given.stop_timesteps,
        seconds=given.stop_seconds,
        iterations=given.stop_iterations,
    )


def _is_first(config: AlgorithmSettings) -> bool:
    """Whether this process writes and prints: of the ranks of launcher="spmd", rank 0 alone does."""
    if config.launcher != "spmd":
        return True
    return find_world(os.environ, SpmdOptions.of(config.launcher_options)).rank == 0


def _default_folder(name: str, env: object) -> Path:
    env_name = str(env).replace("/", "-").replace(":", "-") if isinstance(env, str) else "offline"
    return Path("runs") / f"{name}-{env_name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


# ---- running it ------------------------------------------------------------------------------------------------------


class _Run:
    """One session of a run: build, claim the folder, maybe restore, train until a condition holds, save, report."""

    def __init__(
        self,
        folder: RunFolder,
        config: AlgorithmSettings,
        stop: StopConditions,
        given: argparse.Namespace,
        *,
        info: dict[str, Plain],
        notes: Sequence[str] = (),
    ) -> None:
        self._folder, self._config, self._stop, self._given = folder, config, stop, given
        self._info, self._notes = info, notes
        self._checkpoints: list[Path] = []
        self._resumes = given.resume is not None
        self._first = _is_first(config)
        self._lock: FolderLock | None = None
        self._trouble = ""
        self._settings = ""
        self._saved: Path | None = None
        self._moment: Moment | None = None

    def go(self) -> int:
        try:
            return self._go()
        finally:
            if self._lock is not None:
                self._lock.release()

    def _go(self) -> int:
        config, folder = self._config, self._folder
        title = f"{config.algorithm_name} on {config.env}"
        with (
            self._make_report(f"{title}, {config.framework_name}") as report,
            Interrupt(lambda: report.say("Saving after this iteration; again to leave at once.")) as interrupt,
        ):
            for note in self._notes:
                report.say(note)
            if self._stop.is_empty:
                report.say("No stop condition: trains until Ctrl-C, which saves.")
            if config.launcher not in ("local", "spmd") and not config.num_learners + config.num_env_runners:
                here = "learner and environments are in this process: give --set num_learners=N or num_env_runners=N"
                report.say(f"--launcher {config.launcher} has nothing to start; {here}.")
            # Of a resumed run at once; a new one's folder is not made before it is known to start, and of several ranks
            # rank 0 can tell the others of a refusal only once they have met.
            if self._resumes and config.launcher != "spmd":
                self._claim(report)
            with without_startup_messages():
                from learner_core.algorithm.algorithm import (
                    build_algorithm,
                )  # not for --help: it brings all of sampling

                algorithm = build_algorithm(config)
            algorithm.saves_itself = False  # this session saves, into the run's folder
            try:
                if summed_by := algorithm.learner_group.collective:
                    report.say(f"Gradients are summed over the learners by {summed_by}.")
                self._check_that_it_can_stop(algorithm)
                _on_first(algorithm, lambda: self._claim(report))
                self._checkpoints = _checkpoints_of(folder) if self._resumes else []
                restored = self._restore(algorithm, report)
                self._remember(restored)
                _on_first(algorithm, lambda: self._write_folder(algorithm.config))
                interrupt.at_once = False
                done = self._loop(algorithm, report, interrupt, restored)
                evaluation = None
                if self._given.evaluate and not interrupt.requested:
                    evaluation = algorithm.evaluate(self._given.evaluate)
                    if self._first:
                        self._info["sessions"][-1]["evaluation"] = flatten(evaluation)
                        folder.write_info(self._info)
            finally:
                interrupt.end()
                algorithm.stop()
        if self._first:
            print(self._closing(done, evaluation, self._draw(title)))
        return 130 if interrupt.requested else 0

    def _claim(self, report: Report) -> None:
        """Take the folder for this process, unless it has been; what was read of it before may have changed."""
        if self._lock is not None:
            return
        self._lock = self._folder.claim(new=not self._resumes)
        if self._lock.trouble:
            report.say(
                f"Warning: {self._lock.trouble}. Nothing keeps a second process out of this run: see that none is "
                "started."
            )
        if self._resumes:
            self._info = self._folder.read_info()

    def _draw(self, title: str) -> bool:
        """Draw the curve; a finished run is no failure because that cannot be done."""
        rows = read_rows(self._folder.jsonl_file)
        try:
            return draw_curve(rows, self._folder.curve_file, title=title, goal=self._stop.episode_return)
        except (StateError, OSError) as error:
            print(f"Warning: the learning curve is not drawn: {error}")
            return False

    def _check_that_it_can_stop(self, algorithm: Algorithm) -> None:
        """Refuse a condition that an offline algorithm, which steps no environment, can never meet."""
        from learner_core.algorithm.offline import OfflineAlgorithm  # not for --help: it brings all of sampling

        if not isinstance(algorithm, OfflineAlgorithm):
            return
        instead = "--stop-iterations or --stop-seconds"
        if self._stop.timesteps is not None:
            raise ConfigError(f"--stop-timesteps: {self._config.algorithm_name} steps no environment; give {instead}.")
        if self._stop.episode_return is not None and not self._config.evaluation_interval:
            raise ConfigError(
                f"--stop-return: {self._config.algorithm_name} plays no training episodes; let it evaluate every N "
                f"iterations by --set evaluation.interval=N, or give {instead}."
            )

    def _make_report(self, title: str) -> Report:
        if self._first:
            return make_report(title, self._stop, quiet=self._given.quiet)
        return make_report(title, self._stop, stream=io.StringIO(), quiet=True)

    def _write_folder(self, config: AlgorithmSettings) -> None:
        self._write_info()
        self._write_settings(config)

    def _write_settings(self, config: AlgorithmSettings) -> None:
        """``config.toml``, of which a change in the run makes a new one."""
        text = to_toml(config)
        if text != self._settings:
            self._folder.write(self._folder.config_file, text)
            self._settings = text

    def _restore(self, algorithm: Algorithm, report: Report) -> int:
        """Restore the newest checkpoint that can be read; returns its iteration, 0 for a new run."""
        for position, path in enumerate(self._checkpoints):
            try:
                options = {"import_modules": self._given.trust, "override_spaces": self._given.override_spaces}
                algorithm.restore(str(path), **options)
            except StateError as error:
                if (changed := self._changed()) and not isinstance(error, FormatError):
                    # The settings do not fit what was saved, whichever checkpoint is taken.
                    raise StateError(f"{error} (this run was started with {changed})") from error
                if position == len(self._checkpoints) - 1:
                    raise
                report.say(f"{path.name} cannot be used, trying the one before: {error}")
                continue
            report.say(f"Going on from {path}.")
            self._saved = path
            iteration: int = algorithm.iteration
            return iteration
        return 0

    def _changed(self) -> str:
        """Which settings that decide what a state looks like are not those of the run so far."""
        before = lc.get_config(self._config.algorithm_name)
        file = self._folder.config_file
        apply_file(before, read_file(file), source=str(file), skips_missing=True)
        names = ("env", "env_config", "model", "policies")
        differing = [name for name in names if getattr(before, name) != getattr(self._config, name)]
        return ", ".join(f"{name}={getattr(before, name)!r}" for name in differing)

    def _write_info(self) -> None:
        session = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "backend": self._config.framework_name,
            "from": self._saved.name if self._saved else None,
            "learner_core": lc.__version__,
            "python": platform.python_version(),
        }
        self._info["sessions"] = [*self._info.get("sessions", []), session]
        self._info["stop"] = asdict(self._stop)
        self._folder.write_info(self._info)

    def _remember(self, restored: int) -> None:
        """Where the run was at the restored checkpoint, from its last row of metrics."""
        last = None
        for row in read_rows(self._folder.jsonl_file) if self._resumes else ():
            if row["training_iteration"] <= restored:
                last = row
        if last is None:
            return
        self._moment = Moment(
            iteration=int(last["training_iteration"]),
            timesteps=int(last["num_env_steps_sampled_lifetime"]),
            seconds=float(last.get("seconds", 0.0)),
            steps_per_second=float(last.get("steps_per_second", 0.0)),
            episode_return=last.get("env_runners/episode_return_mean"),
            episode_length=last.get("env_runners/episode_len_mean"),
            rows=rows_of(last),
        )

    def _loop(self, algorithm: Algorithm, report: Report, interrupt: Interrupt, restored: int) -> str:
        """Train until something ends it; returns what, in words."""
        before = self._moment
        reached = _on_first(algorithm, lambda: None if before is None else self._stop.reached(before))
        if reached is not None:
            return f"{reached}, reached before; give a further --stop-... to go on"
        earlier = before.seconds if before is not None else 0.0
        first = before.progress[1] if before is not None else 0
        start = last_save = time.monotonic()
        files = MetricFiles(self._folder, after_iteration=restored, say=report.say) if self._first else None
        try:
            while True:
                results = algorithm.train()
                seconds = time.monotonic() - start
                moment = moment_of(results, seconds=earlier + seconds, steps_per_second=0.0)
                speed = (moment.progress[1] - first) / max(seconds, 1e-9)
                moment = self._moment = replace(moment, steps_per_second=speed)
                report.update(moment)
                done = "stopped by the user" if interrupt.requested else self._stop.reached(moment)
                every = self._config.checkpoint_every
                due = moment.iteration % every == 0 if every else time.monotonic() - last_save >= _SAVE_EVERY_SECONDS
                if (ranks := getattr(algorithm, "ranks", None)) is not None:
                    # Clocks and signals differ: rank 0 decides, and a signal to any rank counts.
                    said = ranks.gather((done, due, interrupt.requested))
                    done, due, _ = said[0]
                    if any(stopped for _, _, stopped in said):
                        done = "stopped by the user"
                saves = done is not None or due
                try:  # the checkpoint first: a disk that takes no more rows must not keep it from being tried
                    if saves:
                        self._save(algorithm, moment.iteration)
                        last_save = time.monotonic()
                finally:
                    if files is not None:
                        files.write(flatten(results) | self._row_of(moment))
                if saves and self._first:
                    self._folder.prune(moment.iteration, self._config.checkpoint_keep)
                if done is not None:
                    return done
        finally:
            if files is not None:
                files.close()
                self._trouble = files.trouble

    def _row_of(self, moment: Moment) -> dict[str, float | str]:
        """What a row of metrics holds besides an iteration's results."""
        return {
            "seconds": moment.seconds,
            "steps_per_second": moment.steps_per_second,
            "backend": str(self._config.framework_name),
        }

    def _save(self, algorithm: Algorithm, iteration: int) -> None:
        path = self._folder.checkpoint_path(iteration)
        algorithm.save(str(path))
        self._saved = path
        if self._first:
            self._write_settings(algorithm.config)

    def _closing(self, done: str, evaluation: Tree | None, drawn: bool) -> str:
        moment = self._moment
        rows: list[tuple[str, object]] = [("stopped", done)]
        if moment is not None:
            unit, progress = moment.progress
            rows += [
                ("iterations", moment.iteration),
                ("timesteps" if unit == "steps" else unit, count(progress)),
                ("mean return", number(moment.episode_return)),
                ("time", f"{duration(moment.seconds)} ({count(moment.steps_per_second)} {unit}/s)"),
            ]
        if evaluation is not None:
            spread = f" +- {number(evaluation.get('episode_return_std'))}"
            shown = number(evaluation["episode_return_mean"]) + spread
            cut = evaluation.get("num_episodes_unfinished")
            unfinished = f", {cut} of them cut (evaluation.max_episode_steps)" if cut else ""
            rows.append(("evaluation", f"{shown} over {evaluation['num_episodes']} episodes{unfinished}"))
        rows.append(("metrics", f"{self._folder.csv_file} {self._trouble}".rstrip()))
        if drawn:
            rows.append(("curve", self._folder.curve_file))
        rows.append(("checkpoint", self._saved or "none"))
        rows.append(("go on", f"learner-core train --resume {self._folder.path}"))
        return table(rows)


def _on_first(algorithm: Algorithm, function: Callable[[], T]) -> T:
    """``function()`` of rank 0, on every rank; without ranks, of this process."""
    ranks = getattr(algorithm, "ranks", None)
    return function() if ranks is None else ranks.on_first(function)
