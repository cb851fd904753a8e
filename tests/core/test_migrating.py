"""docs/migrating.md, row by row: what it says is typed here exists, its defaults are those of here and of there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

import learner_core as lc
import learner_core_algorithms
from learner_core import numpy_xp

from support.peer_defaults import RLLIB, SB3
from support.typed_names import CONFIGS, check_code

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
#: What comes before the generated tables, which test_foreign_names has.
TEXT = PAGE.read_text().partition("## Every name")[0]
CALL = re.compile(r"`\.(\w+)\(([^`]*)\)`")
#: Of the other libraries, or data: code in a right cell that names nothing of ours.
DATA = re.compile(
    r'"[\w-]*"|\{module_id: \{name: array\}\}|results\[.*|n_steps \* n_envs|torch\.nn\.Module|keras\.Model|'
    r'gradient_steps=1|framework="tf"|action_mask|(build|train|copy)\(\)'
)


def _rows(text: str = TEXT) -> list[tuple[str, str]]:
    """(there, here) of every row of two cells."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("| ") and len(cells) == 2 and cells[1] != "here":
            found.append((cells[0], cells[1]))
    return found


def _code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_there_is_much_to_check() -> None:
    assert len(_rows()) > 90
    assert sum(len(_code(here)) for _, here in _rows()) > 100


@pytest.mark.parametrize(("there", "here"), _rows(), ids=[there[:40] for there, _ in _rows()])
def test_what_is_typed_here_exists(there: str, here: str) -> None:
    # "the same" takes its names from the other library's cell.
    same = here.startswith("the same")
    codes = [*(_code(there) if same else []), *_code(here)]
    assert codes or here[:1] == "-" or here.startswith(("in the checkpoint", "hooks", "on", "the default")), here
    for code in codes:
        if DATA.fullmatch(code) or code.startswith("get_state()"):
            continue
        check_code(_own(code))


def _own(code: str) -> str:
    """A typed call with what it stands for: ``class X(lc.Learner)`` for the base, ``for ...: f()`` for the call."""
    if match := re.match(r"class \w+\(([\w.]+)\)", code):
        return match[1]
    return code.rpartition(": ")[2] if code.startswith("for ") else code


@pytest.mark.parametrize(("there", "here"), [row for row in _rows() if not row[1].startswith("the same")])
def test_a_renamed_setting_has_its_old_name_nowhere(there: str, here: str) -> None:
    """A row that gives another name: the one there is no setting here, unless the row names it on both sides."""
    names = set(re.findall(r"(\w+)=", " ".join(_code(there)))) | {c for c in _code(there) if re.fullmatch(r"\w+", c)}
    algorithm = there.partition(":")[0].lower()
    kinds = [kind for kind in CONFIGS if kind.algorithm_name == algorithm] or CONFIGS
    ours = {item.keyword for kind in kinds for item in kind.settings().values()}
    for name in names & ours:
        assert re.search(rf"\b{name}\b", here), (there, name)


# ---- defaults --------------------------------------------------------------------------------------------------------


def _defaults() -> list[tuple[str, str, str, str, str]]:
    found = re.findall(r"^\| (\w+) `(\w+)` \| (.+?) \| (.+?) \| (.+?) \| .+ \|$", TEXT, re.M)
    assert len(found) > 28
    return found


@pytest.mark.parametrize(("algorithm", "name", "here", "rllib", "sb3"), _defaults())
def test_every_default_is_the_one_shown(algorithm: str, name: str, here: str, rllib: str, sb3: str) -> None:
    assert str(_default(algorithm, name)) == here.strip("'")
    assert rllib == RLLIB[algorithm, name]
    assert sb3 == SB3.get((algorithm, name), "none")
    assert len({here.strip("'"), rllib, sb3}) > 1  # where all agree there is no row


def test_no_sourced_default_is_left_out() -> None:
    assert {(algorithm, name) for algorithm, name, *_ in _defaults()} == RLLIB.keys()
    assert SB3.keys() <= RLLIB.keys()


def _default(algorithm: str, name: str) -> Any:
    """What a configuration, or a module that is made by it, has without being told."""
    config: Any = getattr(learner_core_algorithms, f"{algorithm}Config")()
    if name in config.settings():
        return getattr(config, name)
    if name in config.model:
        return config.model[name]
    if name == "eps":
        return config.optimizer_spec().hyper["eps"]
    spaces = {"observation_space": Box(-1, 1, (3,)), "action_space": Box(-1, 1, (2,))}
    module = lc.RLModuleSpec(config.get_module_class(), **spaces, model=config.module_settings()).build(numpy_xp)
    if name == "log_std":
        return module.get_train_action_dist_cls().log_std_range
    params = module.init(np.random.default_rng(0))
    return {"free_log_std": "log_std" in params, "vf_share_layers": any("encoder" in key for key in params)}[name]


# ---- the example -----------------------------------------------------------------------------------------------------


def test_the_example_runs() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(code, PAGE.name, "exec"), names)
    assert names["config"].minibatch_size == 64
