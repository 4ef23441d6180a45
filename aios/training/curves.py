"""A run's loss and held-out bounds as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PICTURE = "curves.png"


def draw_curves(folder: Path) -> Path | None:
    """Draw `curves.png` from a run's log; None where there is no log yet or matplotlib is not installed."""
    path = folder / "log.jsonl"
    try:
        import matplotlib
    except ImportError:
        return None
    if not path.exists():
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    _line(axes, rows, "loss", "training loss", alpha=0.35, linewidth=0.8)
    _line(axes, rows, "mixture", "held out, mixture", linewidth=2.0)
    for source in sorted({name for row in rows for name in row.get("held_out", ())}):
        points = [(row["tokens"], row["held_out"][source]) for row in rows if source in row.get("held_out", ())]
        axes.plot(*zip(*points, strict=True), label=source, linewidth=0.9)
    axes.set_xlabel("tokens")
    axes.set_ylabel("nats per token")
    axes.set_title(folder.name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(folder / PICTURE, dpi=120)
    pyplot.close(figure)
    return folder / PICTURE


def _line(axes: Any, rows: list[dict[str, Any]], name: str, label: str, **style: Any) -> None:
    points = [(row["tokens"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)
