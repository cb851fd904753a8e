"""Draw the core's floors anew, docs/floors.svg: ``python tools/draw_floors.py``; a test holds it to the code."""

from __future__ import annotations

from structure.floors import draw
from structure.sources import ROOT

if __name__ == "__main__":
    (ROOT / "docs" / "floors.svg").write_text(draw())
