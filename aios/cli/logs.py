"""`aios logs`: the daemon's events, one line each."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from aios.cli import render
from aios.cli.options import Json
from aios.config import Places

FOLLOW_SECONDS = 0.25
COLOURS = {"debug": "2", "info": "0", "warning": "33", "error": "31"}


def logs(follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events until Ctrl-C.")] = False,
         lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last events.")] = 50,
         json: Json = False) -> None:
    """Show the daemon's log.

    With --json one object with the events; with --json --follow one object a line for each event.
    """
    path = Places.find().log_file
    offset, last = _tail(path, lines)
    if json and not follow:
        render.print_json({"log": str(path), "events": last})
        return
    if not last and not follow:
        render.remark(f"no events in {path}")
    for event in last:
        _show(event, as_json=json)
    if follow:
        for event in _following(path, offset):
            _show(event, as_json=json)


def _tail(path: Path, count: int) -> tuple[int, list[dict[str, Any]]]:
    """The last `count` events, and where in the file they end."""
    try:
        with path.open("rb") as file:
            last = deque((line for line in file if line.endswith(b"\n")), maxlen=count)
            return file.tell(), [_event(line) for line in last]
    except FileNotFoundError:
        return 0, []


def _following(path: Path, offset: int) -> Iterator[dict[str, Any]]:
    """Events written from now on; a log that was rotated or made anew is read from its beginning."""
    inode = path.stat().st_ino if path.exists() else None
    while True:
        if path.exists():
            info = path.stat()
            if info.st_ino != inode or info.st_size < offset:
                inode, offset = info.st_ino, 0
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break   # the rest of it is still to come
                    offset += len(line)
                    yield _event(line)
        time.sleep(FOLLOW_SECONDS)


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = jsonlib.loads(line)
    except ValueError:
        event = None
    return event if isinstance(event, dict) else {"event": line.decode("utf-8", errors="replace").strip()}


def _show(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(jsonlib.dumps(event, ensure_ascii=False), flush=True)
        return
    moment, level = event.get("time"), str(event.get("level", ""))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if isinstance(moment, int | float) else ""
    rest = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("time", "level", "event", "pid"))
    words = render.printable(f"{when} {level:7} {event.get('event', '')} {rest}".strip())
    print(render.paint(words, COLOURS.get(level, "0"), sys.stdout), flush=True)
