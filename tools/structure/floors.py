"""The core's floors, drawn from its imports: what each package imports from those below it.

A package's floor is one above the highest that it imports from, so the picture is what the code says and nothing else.
Lines that follow from others are left out: who imports the algorithms may import what these import.
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from .imports import import_graph

__all__ = ["direct", "draw", "floors", "package_imports"]

_PACKAGE = "learner_core"
_BOX, _GAP, _ROW, _MARGIN = 150, 26, 92, 20


def package_imports() -> dict[str, set[str]]:
    """package or file right below the core -> which others it imports."""
    found: dict[str, set[str]] = {}
    for module, imported in import_graph(_PACKAGE).items():
        here = _top(module)
        if here:
            found.setdefault(here, set()).update(there for there in map(_top, imported) if there and there != here)
    return found


def _top(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floors(imports: dict[str, set[str]]) -> list[list[str]]:
    """Packages by floor, the ground first.

    Raises:
        ValueError: packages import each other in a circle.
    """
    level: dict[str, int] = {}
    while len(level) < len(imports):
        ready = [name for name, below in imports.items() if name not in level and all(b in level for b in below)]
        if not ready:
            raise ValueError(f"a circle among {sorted(set(imports) - set(level))}")
        level.update({name: max((level[b] + 1 for b in imports[name]), default=0) for name in ready})
    return [sorted(name for name in level if level[name] == floor) for floor in range(max(level.values()) + 1)]


def direct(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """What a package imports that none of its other imports imports as well, over any number of steps."""

    def reached(name: str) -> set[str]:
        return imports[name].union(*(reached(other) for other in imports[name])) if imports[name] else set()

    return {name: below - set().union(*(reached(other) for other in below)) for name, below in imports.items()}


def draw() -> str:
    """The picture as SVG: a row for each floor, a line for each direct import."""
    imports = package_imports()
    rows = floors(imports)
    width = 2 * _MARGIN + max(len(row) for row in rows) * (_BOX + _GAP) - _GAP
    height = 2 * _MARGIN + len(rows) * _ROW - (_ROW - 44)
    at: dict[str, tuple[float, float]] = {}
    for floor, row in enumerate(reversed(rows)):
        left = (width - len(row) * (_BOX + _GAP) + _GAP) / 2
        at.update({name: (left + i * (_BOX + _GAP), _MARGIN + floor * _ROW) for i, name in enumerate(row)})
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        "<title>The floors of learner_core: who imports whom, drawn from the code</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for name, below in sorted(direct(imports).items()):
        for other in sorted(below):
            (x1, y1), (x2, y2) = at[name], at[other]
            lines.append(
                f'<line x1="{x1 + _BOX / 2:g}" y1="{y1 + 44:g}" x2="{x2 + _BOX / 2:g}" y2="{y2:g}" stroke="#9db2c9" '
                'stroke-width="1"/>'
            )
    for name, (x, y) in sorted(at.items()):
        lines += [
            f'<rect x="{x:g}" y="{y:g}" width="{_BOX}" height="44" rx="6" fill="#eef3f9" stroke="#3b5b7e"/>',
            f'<text x="{x + _BOX / 2:g}" y="{y + 27:g}" text-anchor="middle" font-size="15">{escape(name)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
