"""Where text written into Python breaks its grammar."""

from __future__ import annotations

import pytest

from aios.text.python_syntax import UNIT_CHARS_MAX, flaw

METHOD = "class Box:\n    def size(self, unit):"
NEXT = "\n\n    def grow(self"


@pytest.mark.parametrize(("before", "written", "after"), [
    ("def f(x):", "\n    return x + 1", "\n\nprint(f(2))\n"),
    (METHOD, "\n        return self.width * unit", NEXT),
    (METHOD, "\n        # nothing\n        pass", "\n\n    @property\n    def grow(self):\n"),
    ("        return left\n\n    @property\n    @cached\n    def right(self):", "\n        return self.a", "\n"),
    ("def f(x):\n    if x:", "\n        y = 1", "\n    else:\n        y = 2\n    return y"),
    ("def f(x):", "\n    for y in x:", "\n        print(y)\n        if y"),
    ("    total = (", "1 + 2", ")\n"),
    ("x = ", "[1, 2]", " + [3]\nprint(x"),
    ("async def f(x):", "\n    return await x(", "1)\n"),
    ("", "print(1)", "\n"),
])
def test_what_keeps_the_grammar_has_no_flaw(before: str, written: str, after: str) -> None:
    assert flaw(before, written, after) is None


@pytest.mark.parametrize(("before", "written", "after", "place"), [
    ("def f(x):", "\n    return x +", "\n\nprint(f(2))\n", 15),
    ("def f(x):", "\n    y = 1\n  return y", "\n", 21),
    (METHOD, "\n        return (self.width", NEXT, 16),
    (METHOD, "\n        x = 1 1\n        return x", NEXT, 15),
    ("def f(x):\n    if x:", "\n    y = 1", "\n    return y", 5),
    ("def f(x):", "\n    y = 1", "\n        z = 2\n", 10),
    ("def f(x):", "\n    # nothing", "\n\nprint(1)\n", 14),
])
def test_a_flaw_is_found_where_the_parser_stops(before: str, written: str, after: str, place: int) -> None:
    assert flaw(before, written, after) == place


def test_what_cannot_be_judged_is_not_blamed() -> None:
    assert flaw("def f(x):", "\n    return " + "(" * UNIT_CHARS_MAX, "\n") is None
    assert flaw("def f(\0x):", "\n    return )", "\n") is None


@pytest.mark.parametrize("written", ["(" * 5000, "\ud800", "-" * 8000, "\n" + "    " * 200 + "x", "f'{" * 100, "\x0c"])
def test_hostile_text_is_judged_without_a_fall(written: str) -> None:
    place = flaw("def f(x):", written, "\n")
    assert place is None or 0 <= place <= len(written)
