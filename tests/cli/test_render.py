"""Output: JSON for programs, aligned words for pipes, and nothing that commands a terminal."""

from __future__ import annotations

import json
import sys
from io import StringIO

import pytest

from aios.cli import render
from aios.messages import Part, Response, Usage, Verdict


class Terminal(StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\x00", "\x08"])
def test_control_characters_never_reach_a_terminal(hostile: str) -> None:
    assert not set(render.printable(f"a{hostile}b")) & set("\x1b\x07\x9b\r\x00\x08")
    assert render.printable("a\n\tb") == "a\n\tb"


def test_json_is_one_object_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    response = Response(parts=(Part(mime="text/plain", text="né\n"), Part(mime="x/y", data=b"\x00\xff")),
                        modality=frozenset({"text"}), usage=Usage(steps=3), seed=7,
                        verdict=Verdict(model="m", release="r", instruction_set="avx2", threads=2))
    render.print_json(response.to_json())
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert found["text"] == "né\n"
    assert found["seed"] == 7
    assert found["usage"]["steps"] == 3
    assert found["verdict"]["model"] == "m"


def test_a_piped_table_keeps_each_row_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(["name", "count", ""], [["a" * 300, 7, "x\ny"], ["b", 1234, None]], "none")
    head, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["a" * 300, "7", "x", "y"]
    assert second == "b" + " " * 299 + "   1234"
    assert head.index("count") == len("a" * 300) + 2


def test_a_table_on_a_terminal_shows_its_cells_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    render.table(["name"], [["[bold]not markup[/] :smile:"]], "none")
    assert "[bold]not markup[/] :smile:" in sys.stdout.getvalue()   # type: ignore[attr-defined]


def test_an_empty_table_says_so_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(["name"], [], "nothing here")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "nothing here\n")


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert render.paint("a", "31", Terminal()) == "\x1b[31ma\x1b[0m"
    assert render.paint("a", "31", StringIO()) == "a"
    monkeypatch.setenv("NO_COLOR", "1")
    assert render.paint("a", "31", Terminal()) == "a"


def test_facts_leave_out_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    render.facts({"a": None, "bb": 0, "c": "", "d": [], "e": True})
    assert capsys.readouterr().out == "bb  0\ne   yes\n"


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (83_506_384, "83.5 MB"),
                                              (2.5e9, "2.50 GB"), (1e13, "10000.00 GB")])
def test_sizes_are_decimal(count: float, words: str) -> None:
    assert render.size(count) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.0123, "12 ms"), (5, "5.0 s"), (125, "2 min 5 s"),
                                                (3 * 3600 + 60, "3 h 1 min"), (50 * 3600, "2 d 2 h")])
def test_durations_have_two_units_at_most(seconds: float, words: str) -> None:
    assert render.duration(seconds) == words


@pytest.mark.parametrize("unit", ["bytes", "steps", "share"])
def test_a_bar_is_drawn_for_people_only(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, as_json, drawn in ((Terminal(), False, True), (Terminal(), True, False), (StringIO(), False, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with render.progress("pulling", as_json, unit=unit) as move:   # type: ignore[arg-type]
            move(1, 2, "half")
            move(2, 2, "")
        assert bool(stream.getvalue()) is drawn
