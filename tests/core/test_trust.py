"""Whom a file's names are trusted to: where a class may be defined, of which base, and what a refusal advises."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import learner_core as lc
from learner_core.cli.main import main
from learner_core.config.trust import Trust
from learner_core.plugins import claims, discovery

from support.hostile import Lair, make_lair

Install = Callable[..., Path]


@pytest.fixture
def lair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lair:
    return make_lair(tmp_path, monkeypatch)


def _plain(**settings: Any) -> dict[str, Any]:
    plain = lc.get_config("ppo").to_dict()
    plain["settings"].update(settings)
    return plain


def _network(name: str) -> dict[str, Any]:
    """Settings whose network is of that class."""
    fields = {"module_class": {"__reference__": name}, "model": {}, "masked": False}
    fields.update(observation_space=None, action_space=None)
    return {"rl_module_spec": {"__object__": "learner_core.learning.rl_module:RLModuleSpec", "fields": fields}}


def test_a_trusted_module_is_imported_and_gives_classes_of_the_right_base(lair: Lair) -> None:
    config = lc.AlgorithmConfig.from_dict(_plain(**_network("canary:Module")), import_modules=["canary"])
    import canary  # type: ignore[import-not-found]  # it is now

    assert config.rl_module_spec.module_class is canary.Module
    assert lair.sang() == "import\nimported canary\n"  # imported, nothing called
    for name, setting, attribute in (
        ("canary_here:Outer.Inner", _network("canary_here:Outer.Inner"), "rl_module_spec"),
        ("canary_here:MyLearner", {"learner_class": {"__reference__": "canary_here:MyLearner"}}, "learner_class"),
        ("canary_here:Env", {"env": {"__reference__": "canary_here:Env"}}, "env"),
        ("canary_here:Env", {"env_config": {"inner": {"__reference__": "canary_here:Env"}}}, "env_config"),
    ):
        config = lc.AlgorithmConfig.from_dict(_plain(**setting), import_modules=["canary_here"])
        assert getattr(config, attribute), name
        with pytest.raises(lc.ConfigError, match=r'import_modules=\["canary_here"\] .*--trust canary_here'):
            lc.AlgorithmConfig.from_dict(_plain(**setting))
    assert not lair.sang()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (_network("canary_here:touch"), "no class that is defined there, and functions and all else"),
        (_network("canary_here:anything"), "There is no such class"),  # __getattr__ would have made one up
        (_network("canary_here:RLModule"), "no class that is defined there"),  # reachable, not defined there
        (_network("canary_here:gymnasium.Env"), "no class that is defined there"),
        (_network("canary_here:Module.setup"), "no class that is defined there"),
        (_network("canary_here:Module.__class__"), "There is no such class"),
        (_network("canary_here:Data"), "which is not a class of RLModule, torch.nn.Module or keras.Model"),
        (_network("canary_here:Env"), "which is not a class of RLModule"),
        (_network("canary_here:MyLearner"), "which is not a class of RLModule"),
        ({"learner_class": {"__reference__": "canary_here:Module"}}, "which is not a subclass of Learner"),
        ({"env": {"__reference__": "canary_here:Module"}}, "which is not a class of gymnasium.Env"),
        ({"env": {"__reference__": "canary_here:make_env"}}, r"give the value yourself: env=\.\.\."),
        ({"model": {"x": {"__reference__": "canary_here:Data"}}}, "which is not a subclass of AlgorithmConfig or"),
        ({"policy_mapping_fn": {"__reference__": "canary_here:mapping"}}, r"yourself: policy_mapping_fn=\.\.\."),
        ({"env_config": {"x": {"__object__": "canary_here:Fields", "fields": {}}}}, "only module specs are made"),
        ({"env": {"__reference__": "canary_here:Env", "more": 1}}, "is not understood"),
        ({"env": {"__reference__": 3}}, "malformed"),
        ({"env": {"__reference__": "canary_here"}}, "malformed"),
        ({"env": {"__reference__": "canary_here:"}}, "malformed"),
        ({"env": {"__reference__": ":x"}}, "malformed"),
        ({"env": {"__reference__": "../canary:x"}}, "malformed"),
        ({"env": {"__reference__": "canary_here:f.<locals>.g"}}, "malformed"),
        ({"env": {"__reference__": "canary_here:" + "x" * 1000}}, "malformed"),
    ],
)
def test_trust_is_for_classes_of_the_right_base_that_are_defined_there(
    lair: Lair, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(lc.ConfigError, match=text):
        lc.AlgorithmConfig.from_dict(_plain(**settings), import_modules=["canary_here"])
    assert not lair.sang()


def test_nothing_is_imported_before_all_is_settled(lair: Lair) -> None:
    """One name is trusted and not imported yet; another, further down, is not trusted."""
    settings = {**_network("canary:Module"), "learner_class": {"__reference__": "elsewhere:MyLearner"}}
    for order in (settings, dict(reversed(settings.items()))):
        with pytest.raises(lc.ConfigError, match="elsewhere"):
            lc.AlgorithmConfig.from_dict(_plain(**order), import_modules=["canary"])
        with pytest.raises(lc.ConfigError, match="pettingzoo:elsewhere:x"):
            lc.AlgorithmConfig.from_dict(_plain(**order, env="pettingzoo:elsewhere:x"), import_modules=["canary"])
    assert not lair.sang()


@pytest.mark.parametrize(
    "change",
    [
        {"module_class": "canary_here:Module"},
        {"module_class": {"a": 1}},
        {"model": []},
        {"model": {1: 2}},
        {"masked": 1},
        {"observation_space": "CartPole"},
        {"action_space": {"kind": "Discrete"}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_specification_holds_what_it_is_to_hold(lair: Lair, change: dict[str, Any]) -> None:
    settings = _network("canary_here:Module")
    settings["rl_module_spec"]["fields"].update(change)
    with pytest.raises(lc.ConfigError, match=r"rl_module_spec: .*cannot be made from what was stored"):
        lc.AlgorithmConfig.from_dict(_plain(**settings), import_modules=["canary_here"])
    several = {"__object__": "learner_core.learning.rl_module:MultiRLModuleSpec", "fields": {"rl_module_specs": change}}
    with pytest.raises(lc.ConfigError, match=r"rl_module_spec: .*cannot be made from what was stored"):
        lc.AlgorithmConfig.from_dict(_plain(rl_module_spec=several))
    for space in ("observation_space", "action_space"):
        with pytest.raises(lc.ConfigError, match=f"{space}: the file has .* there, which describes no space"):
            lc.AlgorithmConfig.from_dict(_plain(**{space: change}))
    assert not lair.sang()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (True, r'import_modules=\["mine"\]'),
        ("mine", r'import_modules=\["mine"\]'),
        (None, "expected a list"),
        (["mine", 3], "no module's name"),
        (["mine.py/x"], "no module's name"),
        (["os"], "of os, whose own classes"),
        (["subprocess"], "of subprocess"),
        (["torch"], "of torch, whose own classes act on what they are given"),
        (["torch.fx"], "of torch"),
        (["keras.layers"], "of keras"),
        (["gymnasium.wrappers"], "of gymnasium"),
    ],
)
def test_what_cannot_be_trusted(given: Any, text: str) -> None:
    with pytest.raises(lc.ConfigError, match=text):
        Trust.of(given)
    with pytest.raises(lc.ConfigError, match=text):
        lc.AlgorithmConfig.from_dict(_plain(), import_modules=given)


def test_what_lies_below_a_package_belongs_to_it() -> None:
    trust = Trust.of(["mine"])
    assert trust.allows("mine") and trust.allows("mine.networks") and not trust.allows("mine2")
    assert not Trust.of(["mine.networks"]).allows("mine")
    assert trust.allows("__main__") and trust.allows("learner_core_algorithms.sac.module")
    assert not any(trust.allows(name) for name in ("torch", "torch.nn", "keras", "numpy", "os", "support.hostile"))


@pytest.mark.parametrize(
    ("env", "module"),
    [
        ("mine:Maze-v0", "mine"),
        ("mine.deep:Maze-v0", "mine.deep"),
        ("mine:other:Maze-v0", None),
        ("../mine:Maze-v0", None),
        ("pettingzoo:mine:maze-v0", "mine"),
        ("pettingzoo:mine.maze_v0", "mine.maze_v0"),
        ("pettingzoo:mine:other.maze_v0", "mine"),
    ],
)
def test_environments_that_import_their_module(env: str, module: str | None) -> None:
    with pytest.raises(lc.ConfigError, match="a file chooses no code"):
        lc.AlgorithmConfig.from_dict(_plain(env=env))
    if module is None:
        with pytest.raises(lc.ConfigError):
            lc.AlgorithmConfig.from_dict(_plain(env=env), import_modules=["mine", "mine.other"])
        return
    assert lc.AlgorithmConfig.from_dict(_plain(env=env), import_modules=[module]).env == env
    assert lc.AlgorithmConfig.from_dict(_plain(env="x:y"), env=env).env == env  # typed by the user
    assert lc.AlgorithmConfig().environment(env).env == env


@pytest.mark.parametrize("env", ["GymV21Environment-v0", "GymV26Environment-v0", "mine:GymV26Environment-v0"])
def test_environments_that_make_another_by_name(env: str) -> None:
    plain = _plain(env=env, env_config={"env_id": "canary:Evil-v0"})
    with pytest.raises(lc.ConfigError, match="makes another environment by a name in env_config"):
        lc.AlgorithmConfig.from_dict(plain, import_modules=["mine"])
    assert lc.AlgorithmConfig.from_dict(plain, env="CartPole-v1").env == "CartPole-v1"


@pytest.mark.parametrize("env", ["CartPole-v1", "ALE/Pong-v5", "pettingzoo:sisl/pursuit-v5", "pettingzoo:rps-v2"])
def test_registered_environments_need_no_trust(env: str) -> None:
    assert lc.AlgorithmConfig.from_dict(_plain(env=env)).env == env


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on the path that registers a collective; files are {path: source}."""
    monkeypatch.setattr(claims, "INDEX", claims.Index())
    before = set(sys.modules)

    def put(module: str, files: dict[str, str]) -> Path:
        folder = tmp_path / "installed"
        info = folder / "toy_dist-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-dist\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[learner_core.collectives]\ntoy = {module}\n")
        for name, source in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(source)
        monkeypatch.syspath_prepend(str(folder))
        discovery.refresh()
        return folder

    yield put
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("toy_networks", "company"):
            del sys.modules[name]


PACKAGE = {f"toy_networks/{name}.py": "raise SystemExit('it ran')" for name in ("__init__", "plugin", "mine")}
TOY_MODULE = """
from learner_core import RLModule

class Toy(RLModule):
    pass
"""


def test_an_installed_plugins_package_needs_no_trust(install: Install) -> None:
    files = {"toy_networks/__init__.py": "", "toy_networks/plugin.py": "", "toy_networks/mine.py": TOY_MODULE}
    install("toy_networks.plugin", files)
    config = lc.AlgorithmConfig.from_dict(_plain(**_network("toy_networks.mine:Toy")))
    assert config.rl_module_spec.module_class.__qualname__ == "Toy"


def test_a_namesake_in_the_working_directory_is_no_plugin(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install("toy_networks.plugin", PACKAGE)
    beside = tmp_path / "beside"
    shutil.copytree(folder / "toy_networks", beside / "toy_networks")
    monkeypatch.chdir(beside)
    monkeypatch.syspath_prepend("")
    assert not discovery.is_of_plugin("toy_networks.mine")
    with pytest.raises(lc.ConfigError, match="a file chooses no code"):
        lc.AlgorithmConfig.from_dict(_plain(**_network("toy_networks.mine:Toy")))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(beside))])
    assert discovery.is_of_plugin("toy_networks.mine")
    monkeypatch.chdir(folder)  # it is installed here
    assert discovery.is_of_plugin("toy_networks.mine")


def test_an_editable_installation_may_be_the_working_directory(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install("toy_networks.plugin", {})
    project = tmp_path / "my project"
    for name, source in PACKAGE.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(source)
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.chdir(project)
    assert not discovery.is_of_plugin("toy_networks.mine")
    origin = {"url": (project).as_uri(), "dir_info": {"editable": True}}
    (folder / "toy_dist-1.5.dist-info" / "direct_url.json").write_text(json.dumps(origin))
    assert discovery.is_of_plugin("toy_networks.mine")


def test_a_namespace_is_nobodys_package(install: Install) -> None:
    """Several distributions share ``company``: one without a plugin is not trusted for another's sake."""
    install(
        "company.toys.plugin", {f"company/{name}/__init__.py": "raise SystemExit('x')" for name in ("toys", "evil")}
    )
    assert discovery.is_of_plugin("company.toys.anything")
    assert not discovery.is_of_plugin("company.evil") and not discovery.is_of_plugin("company")


SCRIPT = """
import gymnasium, numpy as np
import learner_core as lc

class Maze(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

class Small(lc.RLModule):
    pass

if __name__ == "__main__":
    config = lc.get_config("ppo").environment(Maze).rl_module(rl_module_spec=lc.RLModuleSpec(Small))
    own = {"iteration": 0, "num_env_steps_sampled_lifetime": 0, "recent_episodes": [], "modules": None}
    state = {"learner": {}, "env_runner": None, "env_runners": None, "extra": {}, "algorithm": own}
    tree = {"format": "learner_core/algorithm", "schema": 1, "config": config.to_dict(), "state": state}
    lc.save_state("run.lcstate", tree)
    assert lc.AlgorithmConfig.from_dict(lc.load_state("run.lcstate")["config"]).env is Maze
"""


def test_a_script_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script reads its own file; another program is told which module to name, and then finds the class there."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(SCRIPT))
    subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "run.lcstate"]) == 2
    told = capsys.readouterr().err
    assert 'import_modules=["mine"] (on the command line: --trust mine)' in told and "The script that saved it" in told
    assert main(["evaluate", "run.lcstate", "--trust", "mine"]) == 2
    assert "PYTHONPATH=. before it" in capsys.readouterr().err  # Python does not look in this folder
    monkeypatch.syspath_prepend(str(tmp_path))
    stored = lc.load_state("run.lcstate")["config"]
    config = lc.AlgorithmConfig.from_dict(stored, import_modules=["mine"])
    assert (config.env.__module__, config.env.__qualname__) == ("mine", "Maze")
    assert config.rl_module_spec.module_class.__qualname__ == "Small"
    sys.modules.pop("mine")


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_one.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(lc.ConfigError, match="'broken_one' cannot be imported: SystemExit: 3"):
        lc.AlgorithmConfig.from_dict(_plain(**_network("broken_one:X")), import_modules=["broken_one"])
    with pytest.raises(lc.ConfigError, match="'no_such_one' cannot be imported: ModuleNotFoundError"):
        lc.AlgorithmConfig.from_dict(_plain(**_network("no_such_one:X")), import_modules=["no_such_one"])
