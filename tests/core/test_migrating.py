"""docs/migrating.md names settings that exist, and the defaults they have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import learner_core_algorithms
from learner_core.errors import ConfigError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
TEXT = PAGE.read_text()
CALL = re.compile(
    r"\.(environment|framework|learners|env_runners|training|rl_module|multi_agent|evaluation|checkpointing|debugging)\(([^`]*?)\)`"
)


def _rows() -> list[list[str]]:
    """Cells of every table row, headers left out."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in TEXT.splitlines() if line.startswith("| ")
    ]
    assert len(rows) > 60
    return rows


def _settings_named() -> list[tuple[str, str]]:
    """(method, setting) of every call in a column that says what things are called here."""
    found = []
    for row in _rows():
        here = row[1] if len(row) == 2 else ""
        # "the same" takes its names from the other library's cell.
        cell = f"{row[0]} {here}" if here.startswith("the same") else here
        for method, arguments in CALL.findall(cell):
            found += [(method, name) for name in re.findall(r"(?<![\w\"'])(\w+)=", arguments)]
    return found


def test_there_is_much_to_check() -> None:
    assert len(_settings_named()) > 50


@pytest.mark.parametrize(("method", "name"), sorted(set(_settings_named())))
def test_every_setting_exists(method: str, name: str) -> None:
    refusals = []
    kinds = (learner_core_algorithms.PPOConfig, learner_core_algorithms.SACConfig, learner_core_algorithms.APPOConfig)
    for kind in kinds:
        try:
            getattr(kind(), method)(**{name: _Nothing()})
        except ConfigError as error:
            refusals.append(str(error))
    # Somebody has it, and minds the value; nobody says that there is no such setting.
    assert any("expected" in text for text in refusals) or len(refusals) < len(kinds), refusals


class _Nothing:
    """No setting takes it."""


def _defaults() -> list[tuple[str, str, str]]:
    found = re.findall(r"^\| (\w+) `(\w+)` \| ([^|]+) \|", TEXT, re.M)
    assert len(found) > 12
    return found


@pytest.mark.parametrize(("algorithm", "name", "shown"), _defaults())
def test_every_default_is_the_one_shown(algorithm: str, name: str, shown: str) -> None:
    config: Any = getattr(learner_core_algorithms, f"{algorithm}Config")()
    assert str(getattr(config, name)) == shown.strip().strip("'")


def test_the_example_runs() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(code, PAGE.name, "exec"), names)
    assert names["config"].minibatch_size == 64
