"""The demonstration with the frameworks exchanged: first TensorFlow, then Torch (`make demo` has the other order)."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.examples import run_example


@pytest.mark.parametrize("first", ["tf"])
def test_the_demonstration_reaches_475_on_both_frameworks(first: str, tmp_path: Path) -> None:
    text = run_example("demo", "--first", first, "--out", str(tmp_path / "run"), folder=tmp_path, timeout=580)
    assert "goal        reached" in text
    returns = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(("trained", "taken up"))]
    assert len(returns) == 3
    assert min(returns) >= 475
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000
