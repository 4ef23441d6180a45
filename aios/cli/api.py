"""`aios api`: the table of verbs, from the package itself, so that it needs no daemon."""

from __future__ import annotations

import sys
from typing import Any

from aios.cli import render
from aios.cli.options import Json
from aios.ipc import description
from aios.ipc.protocol import PROTOCOL_VERSION


def api(json: Json = False) -> None:
    """Print every verb of the daemon with its types."""
    verbs, types = description.verbs(), description.types()
    render.emit({"protocol": PROTOCOL_VERSION, "verbs": verbs, "types": types}, json, lambda: _show(verbs, types))


def _show(verbs: list[dict[str, Any]], types: dict[str, dict[str, str]]) -> None:
    for verb in verbs:
        streams = ", streams State" if verb["streams"] else ""
        print(f"{verb['name']}({_written(verb['params'])}) -> {verb['result']}")
        print(render.paint(f"    {verb['doc']} [scope {verb['scope']}{streams}]", "2", sys.stdout))
    print()
    for name, members in types.items():
        print(f"{name}({_written(members)})")


def _written(members: dict[str, str]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in members.items())
