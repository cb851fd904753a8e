"""Settings that ``test_every_setting`` cannot see in the numbers of a run: two values of each show its effect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import process_effects, setting_effects
from support.effects import EFFECTS, OF_BC

FILLED_BY = (process_effects, setting_effects)


def _marked() -> Iterator[Any]:
    """What no backend has a part in is left to Torch in the fast tier; in the long tier each runs everything."""
    for table in (EFFECTS, OF_BC):
        shown = {effect.function: effect for effects in table.values() for effect in effects}
        for function, effect in shown.items():
            name = "-".join([setting for setting, effects in table.items() if effect in effects])
            mark = pytest.mark.slow if effect.slow else pytest.mark.fast_on_torch if effect.neutral else ()
            yield pytest.param(function, marks=mark, id=f"{name}:{function.__name__.strip('_')}")


@pytest.mark.parametrize("effect", list(_marked()))
def test_a_setting_has_its_effect(training_backend_name: str, tmp_path: Path, effect: Any) -> None:
    effect(training_backend_name, tmp_path)
