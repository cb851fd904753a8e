"""The learning curve as a PNG; needs matplotlib (extra "plot") and opens no window."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from learner_core.state.atomic import write_atomically
from learner_core.state.tree import Tree

__all__ = ["draw_curve"]


def draw_curve(rows: Iterable[Tree], path: Path, *, title: str, goal: float | None = None) -> bool:
    """Draw mean episode return over environment steps, a colour per backend.

    Args:
        rows: What ``metrics.jsonl`` holds.
        path: The PNG to write; a symbolic link is refused.
        title: Above the curve.
        goal: A line at this return.

    Returns:
        Whether it was drawn: False without matplotlib or without a finished episode.

    Raises:
        StateIOError: It cannot be written.
    """
    points = [
        (row["num_env_steps_sampled_lifetime"], row["env_runners/episode_return_mean"], _plain(row.get("backend", "")))
        for row in rows
        if isinstance(row.get("env_runners/episode_return_mean"), (int, float))
    ]
    if not points:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7.0, 4.2), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    runs: list[list[tuple[float, float, str]]] = []
    for point in points:
        if not runs or runs[-1][0][2] != point[2]:
            # A new backend takes the line up where the last one left it.
            runs.append([(*runs[-1][-1][:2], point[2])] if runs else [])
        runs[-1].append(point)
    colours: dict[str, str] = {}
    for run in runs:
        name = run[0][2]
        new = name not in colours
        colours.setdefault(name, f"C{len(colours)}")
        axes.plot([p[0] for p in run], [p[1] for p in run], color=colours[name], label=name if new and name else None)
    if goal is not None:
        axes.axhline(goal, color="0.5", linestyle="--", linewidth=1.0, label=f"goal {goal:g}")
    if any(colours) or goal is not None:
        axes.legend(loc="lower right", frameon=False)
    axes.set(title=_plain(title), xlabel="environment steps", ylabel="mean episode return")
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    canvas.print_png(picture)
    write_atomically(path, [picture.getvalue()], follow=False)
    return True


def _plain(text: object) -> str:
    """Text that matplotlib does not take for a formula."""
    return "".join(letter for letter in str(text)[:100] if letter.isprintable()).replace("$", r"\$")
