"""`--watch`: what is still masked, what this step wrote, what was there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aios.cli.watch import MASK, drawn, watched
from aios.messages import Part, Response, State, Usage, Verdict

BEFORE = State(step=1, steps=2, pieces=("Good", None, None))
AFTER = State(step=2, steps=2, pieces=("Good", None, " day\x1b[2J"))
RESPONSE = Response(parts=(Part(mime="text/plain", text=" day"),), modality=frozenset({"text"}), usage=Usage(),
                    verdict=Verdict(model="m", release="r", instruction_set="avx2", threads=1))


def stream() -> Iterator[State | Response]:
    yield BEFORE
    yield AFTER
    yield RESPONSE


def test_new_pieces_stand_out_and_masks_stay_dim() -> None:
    text = drawn(AFTER, BEFORE)
    styles = {text.plain[span.start:span.end]: span.style for span in text.spans}
    assert styles[MASK] == "bright_black"
    assert styles[" day[2J"] == "bold green"
    assert "Good" not in styles
    assert text.plain.endswith("step 2 of 2")


def test_a_first_state_has_nothing_new_in_it() -> None:
    assert all(span.style != "bold green" for span in drawn(AFTER, None).spans)


def test_without_a_terminal_every_state_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert watched(stream()) is RESPONSE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "1/2\tGood░░\n2/2\tGood░ day[2J\n"


def test_on_a_terminal_the_canvas_is_drawn_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from io import StringIO

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert watched(stream()) is RESPONSE
    assert "step 1 of 2" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()
