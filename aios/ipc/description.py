"""The table of verbs as data: what `aios api` prints and the verb `api` answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from aios.ipc.protocol import VERBS, Call, Verb
from aios.messages import State


def verbs() -> list[dict[str, Any]]:
    """Every verb: name, scope, parameters and result with their types, whether it streams, what it does."""
    return [_verb(verb) for verb in VERBS.values()]


def types() -> dict[str, dict[str, str]]:
    """Every type that answers and notifications are made of: field name -> type."""
    kinds = dict.fromkeys(kind for verb in VERBS.values() for kind in _dataclasses(verb.result))
    return {kind.__name__: _members(kind) for kind in (*kinds, *_dataclasses(State))}


def _verb(verb: Verb) -> dict[str, Any]:
    """One verb as data; what the verbs of worker and memory accept beside theirs is included."""
    params = _members(verb.params) | (_members(Call) if verb.place != "daemon" else {})
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
