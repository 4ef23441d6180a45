"""`aios api`: the table of verbs, from the package itself, so that it needs no daemon."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from aios.cli import render
from aios.cli.options import Json
from aios.ipc.protocol import PROTOCOL_VERSION, VERBS, Call, Verb
from aios.messages import State


def api(json: Json = False) -> None:
    """Print every verb of the daemon with its types."""
    verbs = [_described(verb) for verb in VERBS.values()]
    kinds = dict.fromkeys(kind for verb in VERBS.values() for kind in _dataclasses(verb.result))
    types = {kind.__name__: _members(kind) for kind in (*kinds, *_dataclasses(State))}
    render.emit({"protocol": PROTOCOL_VERSION, "verbs": verbs, "types": types}, json, lambda: _show(verbs, types))


def _show(verbs: list[dict[str, Any]], types: dict[str, dict[str, str]]) -> None:
    for verb in verbs:
        streams = ", streams State" if verb["streams"] else ""
        print(f"{verb['name']}({_written(verb['params'])}) -> {verb['result']}")
        print(render.paint(f"    {verb['doc']} [scope {verb['scope']}{streams}]", "2", sys.stdout))
    print()
    for name, members in types.items():
        print(f"{name}({_written(members)})")


def _described(verb: Verb) -> dict[str, Any]:
    """One verb as data; what every worker verb accepts beside its own parameters is included."""
    params = _members(verb.params) | (_members(Call) if verb.place == "worker" else {})
    return {"name": verb.name, "scope": verb.scope, "params": params, "result": _name(verb.result),
            "streams": verb.streams, "doc": verb.doc}


def _members(kind: type) -> dict[str, str]:
    """Field name -> its type, and its default if it has one, as Python writes them; required ones first."""
    hints = get_type_hints(kind)
    ordered = sorted(fields(kind), key=lambda field: bool(_default(field)))
    return {field.name: _name(hints[field.name]) + _default(field) for field in ordered}


def _default(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return f" = {field.default_factory()!r}"
    return "" if field.default is MISSING else f" = {field.default!r}"


def _written(members: dict[str, str]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in members.items())


def _name(kind: Any) -> str:
    if isinstance(kind, type) and not get_args(kind):
        return kind.__name__ if kind is not type(None) else "None"
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", str(kind))   # without module names


def _dataclasses(kind: Any) -> Iterator[type]:
    """The dataclasses that a type consists of, itself included."""
    if isinstance(kind, type) and is_dataclass(kind):
        yield kind
        for inner in get_type_hints(kind).values():
            yield from _dataclasses(inner)
    for inner in get_args(kind):
        yield from _dataclasses(inner)
