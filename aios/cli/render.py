"""How the command line speaks: one JSON object, or words, tables and bars for people.

With --json standard output carries exactly one object, an error included, and the exit code tells which.
Without it answers go to standard output, and remarks, bars and errors to standard error.
Rich is imported when the first table, bar or live view is drawn.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO

from aios.errors import AiosError, BadInput

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[float, float, str], None]   # done, total (0 = unknown), what is being done

PIPE_WIDTH = 4096   # what rich draws into a pipe is not wrapped
# Everything that moves the cursor or changes the terminal: text from models and plugins must not.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def never_fail_on_encoding() -> None:
    """A terminal that cannot show a character shows a substitute instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def emit(value: Any, as_json: bool, human: Callable[[], None]) -> None:
    """Print `value` as one JSON object, or let `human` print it."""
    if as_json:
        print_json(value)
    else:
        human()


def print_json(value: Any) -> None:
    """One JSON object: indented for a terminal, one line for a program."""
    import msgspec

    plain = msgspec.to_builtins(value, str_keys=True)
    print(json.dumps(plain, ensure_ascii=False, indent=2 if is_terminal(sys.stdout) else None))


def failure(error: AiosError, *, as_json: bool) -> None:
    """`error: message` and the remedy below it on standard error, or the error object on standard output."""
    if as_json:
        code, message, remedy, details = error.to_wire()
        print_json({"error": {"code": code, "message": message, "remedy": remedy, "details": details}})
        return
    sys.stdout.flush()
    print(paint(f"error: {printable(error.message)}", "31", sys.stderr), file=sys.stderr)
    if error.remedy:
        print(paint(f"  {printable(error.remedy)}", "2", sys.stderr), file=sys.stderr)


def remark(text: str) -> None:
    """A dim line on standard error: true, useful, and not part of the answer."""
    print(paint(printable(text), "2", sys.stderr), file=sys.stderr)


def say(text: str) -> None:
    """A line of the answer."""
    print(printable(text))


def confirm(question: str) -> None:
    """Go on after a yes; typer.Abort after a no, BadInput when nobody is there to answer."""
    if not is_terminal(sys.stdin):
        raise BadInput(f"nobody is there to answer: {question}", remedy="give --yes")
    import typer

    typer.confirm(question, abort=True, err=True)


def printable(text: str) -> str:
    """The text without characters that command a terminal; line ends and tabs stay."""
    return _CONTROL.sub("", text)


def paint(text: str, style: str, stream: TextIO) -> str:
    """The text in an ANSI style when the stream is a terminal that wants colours."""
    return f"\x1b[{style}m{text}\x1b[0m" if is_terminal(stream) and not os.environ.get("NO_COLOR") else text


def is_terminal(stream: TextIO) -> bool:
    """Whether a person is likely to look at this stream."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: TextIO | None = None, *, markup: bool = False) -> Console:
    """Rich's console on a stream; without a terminal it neither colours nor wraps."""
    from rich.console import Console

    stream = stream or sys.stdout
    return Console(file=stream, width=None if is_terminal(stream) else PIPE_WIDTH, highlight=False, markup=markup,
                   emoji=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Rows under their headings; `empty` is said on standard error when there are none."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        remark(empty)
        return
    rights = [all(re.fullmatch(r"[-+]?[\d,.]*", row[index]) for row in cells) for index in range(len(columns))]
    if is_terminal(sys.stdout):
        _draw(columns, cells, rights)
    else:
        _write(columns, cells, rights)


def _draw(columns: Sequence[str], cells: list[list[str]], rights: list[bool]) -> None:
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, right in zip(columns, rights, strict=True):
        drawn.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*row)
    console().print(drawn)


def _write(columns: Sequence[str], cells: list[list[str]], rights: list[bool]) -> None:
    """Aligned, never wrapped: grep and awk see whole rows."""
    lines = [list(columns), *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        words = (f"{word:>{width}}" if right else f"{word:<{width}}"
                 for word, width, right in zip(line, widths, rights, strict=True))
        print("  ".join(words).rstrip())


def facts(pairs: Mapping[str, object]) -> None:
    """One `name  value` line each; what is None or empty is left out."""
    shown = {name: _cell(value) for name, value in pairs.items() if value not in (None, "", (), [], {})}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(paint(f"{name:<{width}}", "2", sys.stdout) + f"  {value}")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(_cell(inner) for inner in value)
    return printable(str(value)).replace("\n", " ")


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def duration(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@contextmanager
def progress(title: str, as_json: bool, unit: Literal["bytes", "steps", "share"]) -> Iterator[Progress]:
    """A bar on standard error, drawn only for a person; yields the function that moves it."""
    if as_json or not is_terminal(sys.stderr):
        yield lambda done, total, phase: None
        return
    from rich import progress as parts

    counted: dict[str, tuple[parts.ProgressColumn, ...]] = {
        "bytes": (parts.DownloadColumn(), parts.TransferSpeedColumn()),
        "steps": (parts.MofNCompleteColumn(),),
        "share": (parts.TaskProgressColumn(),),
    }
    columns = (parts.TextColumn("{task.description}", markup=False), parts.BarColumn(), *counted[unit],
               parts.TimeElapsedColumn())
    with parts.Progress(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task(printable(title), total=None)

        def move(done: float, total: float, phase: str) -> None:
            bar.update(task, completed=done, total=total or None, description=printable(phase or title))

        yield move
