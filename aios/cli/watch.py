"""`--watch`: the canvas while it is denoised, drawn on standard error so that standard output stays clean."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aios.cli import render
from aios.messages import Response, State

if TYPE_CHECKING:
    from rich.text import Text

MASK = "░░ "   # about as wide as a token, with a place to break the line


def watched(states: Iterable[State | Response]) -> Response:
    """Draw every state as it arrives, the given text included; returns the response that ends the stream.

    Without a terminal each state is one plain line.
    """
    if not render.is_terminal(sys.stderr):
        return _as_lines(states)
    from rich.live import Live

    before: State | None = None
    with Live(console=render.console(sys.stderr), auto_refresh=False, transient=True,
              vertical_overflow="ellipsis") as live:
        for state in states:
            if isinstance(state, Response):
                return state
            live.update(drawn(state, before), refresh=True)
            before = state
    raise AssertionError("a stream ends with its response")


def drawn(state: State, before: State | None) -> Text:
    """The canvas with masks dim, what this step wrote bright, and what was there plain."""
    from rich.text import Text

    text = Text(overflow="fold")
    for index, piece in enumerate(state.pieces):
        if piece is None:
            text.append(MASK, style="bright_black")
        elif before is not None and index < len(before.pieces) and before.pieces[index] is None:
            text.append(render.printable(piece), style="bold green")
        else:
            text.append(render.printable(piece))
    text.append(f"\nstep {state.step} of {state.steps}", style="dim")
    return text


def _as_lines(states: Iterable[State | Response]) -> Response:
    for state in states:
        if isinstance(state, Response):
            return state
        line = render.printable(state.rendered()).replace("\n", "⏎")
        print(f"{state.step}/{state.steps}\t{line}", file=sys.stderr)
    raise AssertionError("a stream ends with its response")
