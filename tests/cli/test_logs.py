"""`aios logs`: the last events, new ones, and files that are rotated meanwhile."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aios.cli import logs
from aios.config import Places
from aios.log import EventLog

if TYPE_CHECKING:
    from tests.cli.conftest import Run


@pytest.fixture
def log(home: Path) -> Path:
    places = Places.find()
    places.create()
    return places.log_file


def test_the_last_events_are_shown_in_order(run: Run, log: Path) -> None:
    event = EventLog(log)
    for number in range(5):
        event("request.done", number=number)
    event("worker.died", "error", reason="out\x1b[2Jof memory")
    event.close()
    lines = run("logs", "-n", "2").out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("info    request.done number=4")
    assert "error   worker.died reason=out[2Jof memory" in lines[1]
    assert [one["event"] for one in run("logs", "--json").json["events"]] == ["request.done"] * 5 + ["worker.died"]


def test_no_log_is_no_error(run: Run) -> None:
    done = run("logs")
    assert (done.code, done.out) == (0, "")
    assert "no events" in done.err
    assert run("logs", "--json").json["events"] == []


def test_a_line_that_is_no_event_is_shown_as_it_is(run: Run, log: Path) -> None:
    log.write_bytes(b"Traceback (most recent call last):\n[1]\n\xff\xfe\n")
    assert run("logs").out.splitlines()[0].endswith("Traceback (most recent call last):")


def test_following_goes_on_over_rotation_and_half_written_lines(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_text('{"event": "old"}\n')

    def append(text: str) -> None:
        with log.open("a") as file:
            file.write(text)

    steps = iter([
        lambda: append('{"event": "a"}\n{"eve'),
        lambda: append('nt": "b"}\n'),
        lambda: (log.rename(log.with_suffix(".1")), log.write_text('{"event": "c"}\n')),
        lambda: log.write_text('{"event":"d"}\n'),
    ])
    monkeypatch.setattr(logs.time, "sleep", lambda seconds: next(steps)())
    found = islice(logs._following(log, log.stat().st_size), 4)
    assert [event["event"] for event in found] == ["a", "b", "c", "d"]


def test_following_with_json_prints_one_object_a_line(
        run: Run, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_text('{"event": "a"}\n')

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(logs.time, "sleep", interrupt)
    done = run("logs", "-f", "--json")
    assert done.code == 130
    assert [json.loads(line) for line in done.out.splitlines()] == [{"event": "a"}]
