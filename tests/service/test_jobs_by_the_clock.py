"""Scheduler, watcher, housekeeping, and how processes are started."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable

import pytest
from apscheduler.triggers.date import DateTrigger

from aios.config import Config, DaemonSection, Places, ScheduleSection
from aios.errors import ConfigError, DaemonError, KeyRefused
from aios.lab.campaign_kill import campaign
from aios.lab.report import silent
from aios.log import EventLog
from aios.service import housekeeping, launch, scheduler, watcher
from aios.service.daemon import Daemon
from aios.service.housekeeping import Housekeeping
from aios.service.scheduler import Scheduler
from aios.service.spawn import python_command, python_environ
from aios.service.watcher import Watcher


@pytest.mark.parametrize("expression", ["daily", "61 * * * *", "* * * *", "17 3 * * * *"])
def test_a_cron_expression_that_cannot_be_read_is_named(expression: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.housekeeping"):
        Scheduler.check(ScheduleSection(housekeeping=expression))


def test_an_empty_expression_means_never_and_times_are_told_in_utc() -> None:
    async def scene() -> None:
        async def housekeep() -> None:
            raise AssertionError("it is not due")

        clock = Scheduler({"housekeeping": housekeep})
        clock.start(ScheduleSection(housekeeping="17 3 * * *"))
        assert str(clock.next_run("housekeeping")).endswith("+00:00")
        clock.reschedule(ScheduleSection(housekeeping=""))
        assert clock.next_run("housekeeping") is None
        clock.stop()

    asyncio.run(scene())


def test_what_is_due_runs_in_the_loop_of_the_daemon(monkeypatch: pytest.MonkeyPatch, places: Places) -> None:
    async def scene() -> None:
        ran = asyncio.Event()

        async def housekeep() -> None:
            ran.set()

        monkeypatch.setattr(scheduler, "_trigger", lambda name, expression: DateTrigger())    # once, now
        daemon = Daemon(places, Config(daemon=DaemonSection(watch=False)), EventLog(level="error"))
        monkeypatch.setattr(daemon, "_housekeep", housekeep)
        daemon._start_services()
        try:
            await asyncio.wait_for(ran.wait(), 10)
        finally:
            daemon._stop_services()

    asyncio.run(scene())


def test_the_night_compacts_memories_and_a_locked_store_waits_for_another(monkeypatch: pytest.MonkeyPatch,
                                                                           places: Places) -> None:
    async def nothing() -> None:
        """The models are somebody else's test."""

    async def compacted() -> bool:
        return True

    async def locked() -> bool:
        raise KeyRefused("locked", remedy="unlock")

    async def scene() -> None:
        daemon = Daemon(places, Config(), EventLog(places.log_file))
        monkeypatch.setattr(daemon.housekeeping, "run", nothing)
        for compact in (compacted, locked):
            monkeypatch.setattr(daemon.memories, "compact", compact)
            await daemon._housekeep()
        daemon.log.close()

    asyncio.run(scene())
    said = places.log_file.read_text()
    assert '"memory.compacted"' in said and '"memory.not_compacted"' in said and "locked" in said


def watched(places: Places, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None], seconds: float) -> int:
    """How often the watcher called within so many seconds after a change."""
    monkeypatch.setattr(watcher, "QUIET_SECONDS", 0.15)

    async def scene() -> int:
        calls: list[float] = []
        one = Watcher(lambda: calls.append(time.monotonic()))
        one.start([places.config_file], [places.plugins])
        try:
            await asyncio.to_thread(change)
            await asyncio.sleep(seconds)
        finally:
            one.stop()
        return len(calls)

    return asyncio.run(scene())


def test_many_changes_in_a_row_are_one_reload(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def change() -> None:
        for number in range(5):
            places.config_file.write_text(f"# {number}")
            (places.plugins / f"p{number}").mkdir()
            (places.plugins / f"p{number}" / "plugin.toml").write_text("x")

    assert watched(places, monkeypatch, change, 0.8) == 1


def test_a_file_that_replaces_daemon_toml_is_a_change(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def change() -> None:
        (places.config / "new").write_text("")
        (places.config / "new").rename(places.config_file)

    assert watched(places, monkeypatch, change, 0.8) == 1


def test_reading_caches_and_other_files_are_no_change(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    places.config_file.write_text("")
    (places.plugins / "p").mkdir()

    def change() -> None:
        places.config_file.read_text()
        (places.config / "notes.txt").write_text("x")
        (places.plugins / "p" / "__pycache__").mkdir()
        (places.plugins / "p" / "__pycache__" / "a.pyc").write_bytes(b"")
        (places.plugins / "p" / ".swap").write_text("")

    assert watched(places, monkeypatch, change, 0.6) == 0


def test_housekeeping_tells_what_it_found_and_remembers_it(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"models": {"good": None, "bad": "its hash is wrong"}, "removed": ["left"]}
    code = f"print({json.dumps(found)!r})"
    monkeypatch.setattr(housekeeping, "python_command", lambda module: [sys.executable, "-c", code])
    log = EventLog(places.log_file)
    keeper = Housekeeping(places, log)
    asyncio.run(keeper.run())
    assert keeper.last["outcome"] == "broken models"
    assert (keeper.last["broken"], keeper.last["removed"]) == ({"bad": "its hash is wrong"}, ["left"])
    assert Housekeeping(places, log).last == keeper.last
    log.close()


def test_housekeeping_that_fails_is_an_outcome_not_an_accident(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "python_command", lambda module: [sys.executable, "-c", "print('no json')"])
    log = EventLog(places.log_file)
    keeper = Housekeeping(places, log)
    asyncio.run(keeper.run())
    assert keeper.last["outcome"].startswith("failed")
    log.close()


def test_children_never_import_from_the_working_directory_nor_take_our_place_with_systemd() -> None:
    environ = python_environ({"NOTIFY_SOCKET": "/run/x", "LISTEN_FDS": "1", "PYTHONPATH": "relative:/absolute"})
    assert not {"NOTIFY_SOCKET", "LISTEN_FDS"} & environ.keys()
    assert "relative" not in environ["PYTHONPATH"].split(os.pathsep)
    assert "-P" in python_command("m")


def test_a_daemon_that_dies_before_it_answers_is_told_with_its_last_words(places: Places,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; print('no luck', file=sys.stderr); sys.exit(3)"
    monkeypatch.setattr(launch, "python_command", lambda module, *arguments: [sys.executable, "-c", code])
    with pytest.raises(DaemonError, match="status 3") as caught:
        launch.launch(places)
    assert "no luck" in caught.value.details["log"]


def test_two_kills_at_random_moments_leave_clean_starts() -> None:
    outcome = campaign(2, seed=7, progress=silent)
    assert (outcome.kills, outcome.unclean) == (2, [])
