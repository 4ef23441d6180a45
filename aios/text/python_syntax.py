"""Where text written into a Python file breaks its grammar; parsed in memory, never compiled or run.

What is given is often a piece of a file, cut anywhere. So the judged unit is the innermost definition or statement that
the writing stands in, and of what follows only lines that belong to it count, as many of them as make sense.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from typing import Final

UNIT_CHARS_MAX: Final = 16_384    # of a unit with what follows in it; deep nesting needs length
# What the parser says of bad source: grammar, null bytes and lone surrogates, nesting.
NOT_PYTHON: Final = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)
_UNIT: Final = re.compile(r"^([ \t]*)(?:@|def\b|async\b|class\b)", re.MULTILINE)
_BEGINNING: Final = re.compile(r"^([ \t]*)(?=[^\s#)\]}])", re.MULTILINE)


def flaw(before: str, written: str, after: str) -> int | None:
    """Return the place in `written`, in characters, at which the grammar is broken first; None where it is kept.

    Where the break lies in what is given, the writing is blamed at the end that is nearer. None also for what cannot
    be judged: a unit that is broken without the writing, or too long.
    """
    unit, indented = _unit(before)
    following = list(_following(after, indented))
    if len(unit) + len(written) + len(following[0]) > UNIT_CHARS_MAX or "\0" in unit:
        return None
    places = [_broken(unit + written + rest, indented) for rest in following]
    if None in places:
        return None
    place = max(place for place in places if place is not None) - len(unit)
    return min(max(place, 0), len(written))


def _unit(before: str) -> tuple[str, str]:
    """The source from the last definition's first line on, decorators included, and its indentation.

    Where nothing is defined, from the last of the lines that are indented least.
    """
    begins = list(_UNIT.finditer(before))
    if not begins:
        lines = list(_BEGINNING.finditer(before))
        last = min(reversed(lines), key=lambda line: len(line[1]), default=None)
        return (before[last.start():], last[1]) if last else (before, "")
    at = len(begins) - 1
    while at and begins[at - 1][0].lstrip() == "@" and begins[at - 1][1] == begins[at][1]:
        at -= 1
    return before[begins[at].start():], begins[at][1]


def _following(after: str, indented: str) -> Iterator[str]:
    """What may follow in the unit: the rest of the line and whole lines within, fewer and fewer of them."""
    first, *lines = after.split("\n")
    inside: list[str] = []
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) <= len(indented) and line.strip()[0] not in ")]}":
            break
        inside.append(line)
    while inside and not inside[-1].strip():
        inside.pop()
    fewest = 1 if any(line.strip() for line in inside) else 0
    for count in range(len(inside), max(fewest, 1) - 1, -1):
        rest = "\n".join([first, *inside[:count]])
        yield f"{rest} pass" if rest.rstrip().endswith(":") else rest
    if not fewest:
        yield first


def _broken(source: str, indented: str) -> int | None:
    """Where the source stops being Python, in characters; None where it does not."""
    head = "if 1:\n" if indented else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(head + source)
    except SyntaxError as error:
        lines = (head + source).split("\n")
        row = min(max((error.lineno or len(lines)) - 1, 0), len(lines) - 1)
        column = min(max((error.offset or 1) - 1, 0), len(lines[row]))
        return max(sum(len(line) + 1 for line in lines[:row]) + column - len(head), 0)
    except NOT_PYTHON:
        return 0
    return None
