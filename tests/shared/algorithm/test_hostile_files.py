"""A file chooses no code: checkpoints that name some go through every loader and every command, and nothing runs.

The last test opens the door, and every canary sings: so each of these files would have run code. Which files there are
is in ``support.hostile``; what is refused, and how it is said, in ``tests/core/test_trust.py``.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pettingzoo
import pytest

import learner_core as lc
from learner_core.cli.main import main
from learner_core.cli.settings import to_toml
from learner_core.state.tree import diff
from learner_core_algorithms import PPOConfig

from support.hostile import HOSTILE, Lair, hostile_names, make_lair, open_door
from support.parallel_envs import Crossing

#: Those that go through every door in ``make test``; all of them do in the long tier.
COVERING = (
    "network: a function that nobody imported",
    "network: a network that is imported",
    "network: numpy.load",
    "network: torch.fx",
    "network: tensorflow",
    "policy: a function that is imported",
    "state: a network that is imported",
    "state: torch.fx",
    "state: tensorflow",
    "learner: canary_here:MyLearner",
    "env: canary_here:make_env",
    "env: an environment of a module",
    "env: agents of a module",
    "model: an object that is imported",
    "mapping: canary_here:mapping",
    "state, mapping: canary_here:mapping",
    "class: canary_here:Config",
)
FORMATS = {"torch": ("safetensors", "onnx", "torch", "pt2"), "tf": ("safetensors", "onnx", "keras")}
SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch": ".pt", "pt2": ".pt2", "keras": ".keras"}


def _one(backend: str) -> Any:
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=1)
        .training(train_batch_size=8, minibatch_size=8, num_epochs=1)
    )


class Lone(Crossing, pettingzoo.ParallelEnv):
    """An environment of several agents that has one, ``"a"``."""

    def __init__(self, **env_config: Any) -> None:
        super().__init__({"a": (0, 4, "terminated")})


def _several(backend: str) -> Any:
    return _one(backend).environment("pettingzoo:lone-v0").multi_agent(policies={"m": None})


ENVS = {"one": "CartPole-v1", "several": lambda env_config: Lone()}
CONFIGS = {"one": _one, "several": _several}


class Runs:
    """Two good runs, and what hostile files are made of."""

    def __init__(self, backend: str, folder: Path) -> None:
        self.backend = backend
        pettingzoo.register("parallel", "lone-v0", entry_point=Lone)
        self.algos = {name: config(backend).build() for name, config in CONFIGS.items()}
        self.trees, self.states = {}, {}
        for name, algo in self.algos.items():
            algo.train()
            algo.save(folder / name)
            self.trees[name] = lc.load_state(folder / name)
            self.states[name] = algo.get_state()

    def write(self, name: str, lair: Lair) -> Path:
        """The hostile file of that name."""
        hostile = HOSTILE[name]
        tree = copy.deepcopy(self.trees[hostile.kind])
        hostile.change(tree, lair)
        path = lair.folder / "hostile.lcstate"
        lc.save_state(path, tree)
        return path

    def run_folder(self, path: Path, folder: Path, *, kind: str = "one", env: str | None = None) -> Path:
        """A run whose newest checkpoint is that file."""
        config = CONFIGS[kind](self.backend)
        (folder / "checkpoints").mkdir(parents=True)
        checkpoint = folder / "checkpoints" / "checkpoint-00000001.lcstate"
        shutil.copy(path, checkpoint)
        if env is not None:  # the checkpoint's settings count, and config.toml is read as well
            config = config.environment(env)
            tree = lc.load_state(path)
            tree["config"]["settings"]["env"] = env
            lc.save_state(checkpoint, tree)
        (folder / "config.toml").write_text(to_toml(config))
        (folder / "run.json").write_text('{"algorithm": "ppo", "sessions": [], "stop": {"iterations": 1}}')
        return folder


@pytest.fixture(scope="module")
def runs(training_backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(training_backend_name, tmp_path_factory.mktemp("runs"))
    yield runs
    for algo in runs.algos.values():
        algo.stop()


@pytest.fixture
def lair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lair:
    return make_lair(tmp_path, monkeypatch)


def _names(runs: Runs, given: Any) -> list[str]:
    mine = hostile_names(runs.backend)
    return [name for name in given if name in mine]


def _open(path: Path, **more: Any) -> None:
    lc.Algorithm.from_checkpoint(path, **more).stop()


def _loaders(runs: Runs, path: Path, kind: str) -> dict[str, Callable[[], Any]]:
    algo = runs.algos[kind]
    group = algo.learner_group
    (learner,) = group.foreach_learner(lambda learner: learner)
    tree = lc.load_state(path)
    return {
        "load_state": lambda: lc.load_state(path, mmap=True),
        "from_checkpoint": lambda: _open(path),
        "from_checkpoint, an environment given": lambda: _open(path, env=ENVS[kind]),
        "from_dict": lambda: lc.AlgorithmConfig.from_dict(tree["config"]),
        "from_dict, of the algorithm": lambda: PPOConfig.from_dict(tree["config"]),
        "restore": lambda: algo.restore(path),
        "set_state": lambda: algo.set_state(tree["state"]),
        "Learner": lambda: learner.load_state(path),
        "Learner, not strict": lambda: learner.load_state(path, strict=False),
        "LearnerGroup": lambda: group.load_state(path),
        **({"import_sb3": lambda: lc.import_sb3(path, learner)} if runs.backend == "torch" else {}),
        **{
            f"export, {name}": lambda name=name: lc.export(path, path.with_suffix(SUFFIXES[name]))
            for name in FORMATS[runs.backend]
        },
    }


def _commands(runs: Runs, path: Path, kind: str) -> dict[str, list[str]]:
    out = path.parent
    run = runs.run_folder(path, out / "run", kind=kind)
    return {
        "inspect": ["inspect", str(path), "--values"],
        "inspect --diff": ["inspect", "--diff", str(path), str(path)],
        "evaluate": ["evaluate", str(path), "--episodes", "1"],
        "record": ["record", str(path), "--episodes", "1", "--out", str(out / "rows.lcstate"), "--overwrite"],
        "resume": ["train", "--resume", str(run), "--quiet"],
        "evaluate, the run": ["evaluate", str(run), "--episodes", "1"],
        **{
            f"export, {name}": ["export", str(path), "--out", str(path.with_suffix(SUFFIXES[name]))]
            for name in FORMATS[runs.backend]
        },
    }


def _nothing_runs(runs: Runs, name: str, lair: Lair, capsys: pytest.CaptureFixture[str]) -> None:
    """Through every loader and command: typed refusals or no harm, and the run that is asked stays what it was."""
    kind = HOSTILE[name].kind
    path = runs.write(name, lair)
    for door, load in _loaders(runs, path, kind).items():
        with contextlib.suppress(lc.LearnerCoreError):
            load()
        assert not lair.sang(), door
    for door, arguments in _commands(runs, path, kind).items():
        code = main(arguments)
        assert code in (0, 2), f"{door}: {code}"
        assert not lair.sang(), door
    assert "Traceback" not in capsys.readouterr().err
    assert not diff(runs.states[kind], runs.algos[kind].get_state())


@pytest.mark.parametrize("name", HOSTILE)
def test_none_is_opened(runs: Runs, lair: Lair, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By default, and when the user trusts somebody else."""
    if name not in hostile_names(runs.backend):
        pytest.skip("abuses the other framework")
    path = runs.write(name, lair)
    if name.startswith("state, mapping"):  # the user's own mapping counts, and the file's is not looked at
        _open(path, policy_mapping_fn=lambda agent: "m")
        assert not lair.sang()
        return
    words = r"the file (names|describes)|state/algorithm/modules"
    for more in ({}, {"import_modules": ["support.parallel_envs"]}):
        with pytest.raises((lc.ConfigError, lc.StateError), match=words):
            _open(path, **more)
        assert not lair.sang()
    assert main(["evaluate", str(path)]) == 2
    assert "learner-core evaluate: " in capsys.readouterr().err
    assert not lair.sang()


#: What is said where the rest of a file is taken: of mappings that are not, of weights without their network.
SAID = "ignore:(who plays whom stays|the weights are written under canonical names):UserWarning"


@pytest.mark.filterwarnings(SAID)
@pytest.mark.parametrize(
    "name",  # on TensorFlow what is its own; test_none_is_opened has all on both
    [name if "tensorflow" in name else pytest.param(name, marks=pytest.mark.fast_on_torch) for name in COVERING],
)
def test_a_covering_few_through_every_door(
    runs: Runs, lair: Lair, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name not in hostile_names(runs.backend):
        pytest.skip("abuses the other framework")
    _nothing_runs(runs, name, lair, capsys)


@pytest.mark.slow
@pytest.mark.filterwarnings(SAID)
@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in COVERING])
def test_every_one_through_every_door(runs: Runs, lair: Lair, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name not in hostile_names(runs.backend):
        pytest.skip("abuses the other framework")
    _nothing_runs(runs, name, lair, capsys)


@pytest.mark.parametrize(
    "name",
    [
        "learner_core.learning.rl_module:RLModule",
        "learner_core.learning.framework_modules:FrameworkModule",
        "learner_core.learning.framework_modules:UnboundNetwork",
        "learner_core_BACKEND.modules:NetworkModule",
        "learner_core.learning.learner:Learner",
        "learner_core.sampling.env_runner:EnvRunner",
        "learner_core.nothing:Nothing",
        "learner_core_BACKEND.backend:Nothing",
    ],
)
def test_our_own_classes_that_are_no_networks(runs: Runs, tmp_path: Path, name: str) -> None:
    """They are in a plugin's package, and no less refused in words."""
    tree = copy.deepcopy(runs.trees["one"])
    fields = {"module_class": {"__reference__": name.replace("BACKEND", runs.backend)}, "model": {}, "masked": False}
    tree["config"]["settings"]["rl_module_spec"] = {
        "__object__": "learner_core.learning.rl_module:RLModuleSpec",
        "fields": {**fields, "observation_space": None, "action_space": None},
    }
    lc.save_state(tmp_path / "checkpoint", tree)
    with pytest.raises(lc.ConfigError, match=r"rl_module_spec|module_class"):
        _open(tmp_path / "checkpoint")


@pytest.mark.parametrize("env", ["canary:Evil-v0", "this:x-v0", "pettingzoo:canary:evil-v0", "pettingzoo:canary.evil"])
def test_settings_files(runs: Runs, lair: Lair, env: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's config.toml and a file of --config are files, too; what the user types is the user's."""
    good = lair.folder / "good.lcstate"
    lc.save_state(good, runs.trees["one"])
    run = runs.run_folder(good, lair.folder / "run", env=env)
    assert main(["train", "--resume", str(run), "--quiet"]) == 2
    told = capsys.readouterr().err
    assert repr(env) in told and "a file chooses no code" in told
    new = ["--out", str(lair.folder / "new"), "--quiet", "--stop-iterations", "1"]
    assert main(["train", "--config", str(run / "config.toml"), *new]) == 2
    assert "a file chooses no code" in capsys.readouterr().err
    assert not lair.sang()
    # Another environment of the user's choice, and the file's is not asked for.
    assert main(["train", "--resume", str(run), "--quiet", "--env", "CartPole-v1"]) == 0
    assert main(["train", "--resume", str(run), "--quiet", "--set", "environment.env=CartPole-v1"]) == 0
    assert not lair.sang()
    capsys.readouterr()


def test_what_the_user_types_is_imported(runs: Runs, lair: Lair, capsys: pytest.CaptureFixture[str]) -> None:
    good = lair.folder / "good.lcstate"
    lc.save_state(good, runs.trees["one"])
    run = runs.run_folder(good, lair.folder / "run", env="canary:Evil-v0")
    for more in (["--trust", "canary"], ["--env", "canary:Evil-v0"], ["--set", "env=canary:Evil-v0"]):
        assert main(["train", "--resume", str(run), "--quiet", *more]) == 2  # the canary raises
        assert "imported canary" in lair.sang(), more
    capsys.readouterr()


def _sings(runs: Runs, name: str, lair: Lair) -> None:
    path = runs.write(name, lair)
    with open_door():
        try:
            _open(path)
        except Exception as error:
            said = repr(error)
        else:
            said = "it was opened"
    assert lair.sang(), said


@pytest.mark.parametrize("name", COVERING)
def test_with_the_door_open_a_few_run(runs: Runs, lair: Lair, name: str) -> None:
    if name not in hostile_names(runs.backend):
        pytest.skip("abuses the other framework")
    _sings(runs, name, lair)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in COVERING])
def test_with_the_door_open_every_one_runs(runs: Runs, lair: Lair, name: str) -> None:
    if name not in hostile_names(runs.backend):
        pytest.skip("abuses the other framework")
    _sings(runs, name, lair)


def test_there_are_enough(runs: Runs) -> None:
    assert len(hostile_names(runs.backend)) >= 60 and set(COVERING) <= set(HOSTILE)
