"""Whether a piece of code in the documentation, or in an answer, names what exists."""

from __future__ import annotations

import importlib
import re
from typing import Any

import learner_core as lc
import learner_core_algorithms
from learner_core.algorithm.algorithm import Algorithm
from learner_core.cli import main as cli, train
from learner_core.group.learner_group import LearnerGroup
from learner_core.learning.learner import Learner
from learner_core.learning.rl_module import RLModule
from learner_core.plugins import hookspecs
from learner_core.sampling.runner_group import EnvRunnerGroup
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig

__all__ = ["CONFIGS", "OPTIONS", "check_code"]

CONFIGS: tuple[Any, ...] = (PPOConfig, SACConfig, IMPALAConfig, APPOConfig, BCConfig)
#: Options of ``learner-core train``.
OPTIONS = {option for action in train._parser()._actions for option in action.option_strings}
_METHODS = {item.method for kind in CONFIGS for item in kind.settings().values()}
#: Names of Torch's own backend, which is not imported here.
_MODULES = ("learner_core_torch.TorchLearner",)
_OF_ALGORITHM = {"iteration", "num_env_steps_sampled_lifetime", "env_runners"}


def check_code(code: str) -> None:
    """Fail unless what is typed exists: a method and its keywords, an attribute, a function, an option, a command.

    Args:
        code: as it is typed: ``.training(lr=)``, ``algo.save(path)``, ``lc.export(...)``, ``--set lr=1``.
    """
    if match := re.fullmatch(r"from (\w+) import (\w+)", code):
        assert hasattr(importlib.import_module(match[1]), match[2]), code
    elif code.startswith("learner-core "):
        _, command, *rest = code.split()
        assert command in cli._COMMANDS, code
        _check_options(rest)
    elif code.startswith("--"):
        _check_options(code.split())
    elif re.match(r"\w+Config\(\)", code):
        names = {name: getattr(learner_core_algorithms, name) for name in learner_core_algorithms.__all__}
        eval(code.replace(".build()", "").replace("=...", "='file'"), {**names, "env": "CartPole-v1"})
    elif code.startswith((".", "config.")):
        _check_method(code.removeprefix("config"))
    elif code.startswith("lc."):
        found: Any = lc
        for part in re.findall(r"\.(\w+)", code.split("(", maxsplit=1)[0]):
            found = getattr(found, part)
    elif "algo." in code:
        for path in re.findall(r"algo\.([\w.]+)", code):
            first, *rest = path.split(".")
            assert first in _OF_ALGORITHM or hasattr(Algorithm, first), path
            owners: dict[str, type] = {"learner_group": LearnerGroup, "env_runners": EnvRunnerGroup}
            assert not rest or hasattr(owners[first], rest[0]), path
    elif code.startswith(("self.", "learner.")):
        assert hasattr(Learner, name := re.findall(r"\.(\w+)", code)[0]) or name in ("variables", "xp"), code
    elif code.startswith("RLModule."):
        assert hasattr(RLModule, re.findall(r"\.(\w+)", code)[0]), code
    elif code.startswith("[[timestep, value]"):
        pass
    elif code.startswith("[["):
        PPOConfig().training(lr=eval(code.replace("N", "9")))
    elif re.match(r"\w+=", code):
        name = code.partition("=")[0]
        assert any(name in kind.settings() for kind in CONFIGS), code
    elif re.fullmatch(r"(\w+)\(.*\)", code):
        name = code.partition("(")[0]
        assert any(hasattr(owner, name) for owner in (Learner, RLModule)), code
    else:
        known = any(code in kind.settings() for kind in CONFIGS) or hasattr(hookspecs, code)
        assert known or hasattr(Learner, code) or hasattr(RLModule, code) or code in _MODULES, code


def _check_options(words: list[str]) -> None:
    for option in (word for word in words if word.startswith("--")):
        assert option in OPTIONS, option


def _check_method(code: str) -> None:
    (method,) = re.findall(r"^\.(\w+)", code)
    kinds = [kind for kind in CONFIGS if hasattr(kind, method)]
    assert kinds, code
    if method in _METHODS:
        inside = re.sub(r"\{.*?\}|\"[^\"]*\"|\[.*?\]", "", code)
        keywords = {item.keyword for kind in kinds for item in kind.settings().values() if item.method == method}
        for keyword in re.findall(r"(\w+)=", inside):
            assert keyword in keywords, (code, keyword)
