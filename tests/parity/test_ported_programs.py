"""The programs of examples/ that people bring from other libraries: short, on both frameworks, to the same numbers.

Each is run as it stands, its ``main(backend)``; what it prints behind a colon is compared, and says that it learned.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from typing import Any

import numpy as np
import pytest

from support.both import in_both
from support.examples import EXAMPLES

#: script -> what its numbers must be.
PORTED: dict[str, Any] = {
    "own_learner": lambda n: n[-1] != n[0],
    "two_optimizers": lambda n: n[0] > n[-2] > 0 and n[-1] < n[1],
    "curiosity": lambda n: n[-1] < n[0],
    "scripted_opponent": lambda n: n[5] > n[0] + 1.0 and n[-1] == 1.0,
    "central_critic": lambda n: n[5] > n[0] + 2.0 and n[-1] == 8.0,  # a policy reads 2 numbers, a critic 8
    "shared_encoder": lambda n: bool(np.all((n > 0) & (n < 10))),
    "autoregressive_actions": lambda n: n[0] < 0.6 and n[-1] > 0.9,
    "curriculum": lambda n: n[-1] > 0.5,
    "imitation_then_ppo": lambda n: n[0] > 150 and n[1] < 50 and n[2] > 150 and n[3] > 50,
    "frame_stacks": lambda n: n[-1] > n[0] + 1.0,
    "features_extractor": lambda n: n[-1] > n[0] + 0.2,
    "action_mask": lambda n: n[-1] > n[0] + 1.5,
}
#: In the long tier alone. Their parts are tested one by one: networks of one's own, critics that see more, opponents
#: that do not learn, masks.
LONG = ("features_extractor", "central_critic", "scripted_opponent", "action_mask")
#: What learns by chance as well: frameworks agree in the beginning, and float32 alone decides later on.
LINES_THAT_AGREE = 4


def program(backend_name: str, arrays: Any, settings: dict[str, Any]) -> dict[str, Any]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(EXAMPLES / f"{settings['name']}.py"))["main"](backend_name)
    found = re.findall(r": [^:\n]*?(-?\d+\.?\d*)$", printed.getvalue(), re.MULTILINE)
    assert found, printed.getvalue()
    return {"numbers": np.array([float(number) for number in found])}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in PORTED]
)
def test_a_ported_program_runs_on_both(name: str) -> None:
    torch, tf = (found["numbers"] for found in in_both(__file__, "program", settings={"name": name}))
    assert torch.shape == tf.shape
    np.testing.assert_allclose(torch[:LINES_THAT_AGREE], tf[:LINES_THAT_AGREE], rtol=0.02, atol=0.02)
    for numbers in (torch, tf):
        assert PORTED[name](numbers), numbers


def test_each_is_short() -> None:
    for name in PORTED:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 60, name
