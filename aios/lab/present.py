"""A report for the eye: a rich table, and one PNG with every row against its must."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aios.errors import BadInput
from aios.lab.report import Report, Row

if TYPE_CHECKING:
    from rich.table import Table

VERDICTS = {True: "[green]ok[/]", False: "[red]missed[/]", None: ""}


def number(value: float | None) -> str:
    """A figure with the digits that matter."""
    if value is None:
        return "—"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def table(report: Report) -> Table:
    """The report as a table; reasons and peers stand under their row."""
    from rich.markup import escape
    from rich.table import Table

    machine = report.machine
    title = f"{report.name}{' (quick)' if report.quick else ''} · {report.commit or 'no commit'} · seed {report.seed}"
    caption = f"{machine['cpu']} · {machine['isa']} · {machine['threads']} threads · {machine['memory_gb']} GB"
    shown = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    shown.add_column("metric")
    for heading in ("value", "must", "aim"):
        shown.add_column(heading, justify="right")
    shown.add_column("verdict")
    shown.add_column("n", justify="right")
    shown.add_column("beside it")
    for row in report.rows:
        name = row.metric if row.kind == "live" else f"{row.metric} [dim](ledger)[/]"
        shown.add_row(name, f"{number(row.value)} {row.unit}", number(row.must), number(row.aim),
                      VERDICTS[row.ok if row.must is not None or row.ok is None else None],
                      number(row.n) if row.n else "", escape(_beside(row)))
    return shown


def _beside(row: Row) -> str:
    words = []
    if row.interval:
        words.append(f"95%: {number(row.interval[0])} to {number(row.interval[1])}")
    if row.peer:
        words.append(f"{row.peer} {row.peer_version or ''}: {number(row.peer_value)}".replace(" :", ":"))
    if row.ratio is not None:
        words.append(f"{row.ratio:.2f}x")
    if row.reason:
        words.append(row.reason)
    if row.kind == "ledger" and row.run:
        words.append(row.run)
    return "; ".join(words)


def plot(report: Report, folder: Path) -> Path:
    """Write NAME.png: each row whose must is above 0, as a share of that must; raises BadInput without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise BadInput("pictures need matplotlib", remedy="pip install 'aios-daemon[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in report.rows if row.value is not None and row.must]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.4 * max(len(rows), 1)), layout="constrained")
    shares = [row.value / row.must for row in rows if row.value is not None and row.must]
    axes.barh([f"{row.metric} ({row.unit}, {row.better} is better)" for row in rows], shares,
              color=["tab:green" if row.ok else "tab:red" for row in rows])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("value / must")
    axes.set_title(f"{report.name} · {report.commit or 'no commit'} · {report.date}", fontsize=9)
    axes.invert_yaxis()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.name}.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
