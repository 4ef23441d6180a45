"""The small version of `aios eval campaign memory`: fixed seeds, a few crashes of each kind, proof that it can fail."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections import Counter
from pathlib import Path

import pytest

from aios.lab import campaign_memory
from aios.lab.crashes import account, faults, flips, syscalls
from aios.lab.crashes.account import Account, recover
from aios.lab.crashes.disk import Disk
from aios.lab.crashes.faults import Faults
from aios.lab.crashes.nursery import Nursery, told
from aios.lab.crashes.syscalls import Event, Watcher, watch_me
from aios.lab.crashes.victim import Order
from aios.lab.report import LabOptions
from aios.memory.vector_memory import ArrowStorage

SEED = 7
watched = pytest.mark.skipif(syscalls.supported() is not None, reason=str(syscalls.supported()))


def silent(done: float) -> None:
    """Nobody looks."""


def test_kills_of_a_busy_writer_lose_nothing(tmp_path: Path) -> None:
    tally = campaign_memory.kills(8, SEED, tmp_path, silent)
    assert (tally.count, tally.errors, tally.findings) == (8, [], account.Findings())
    assert tally.busy >= 4 and tally.acknowledged > 8 and len(tally.seconds) == 8


@watched
def test_a_disk_that_lost_power_holds_all_that_was_acknowledged(tmp_path: Path) -> None:
    tally = campaign_memory.torn(24, SEED, tmp_path, silent)
    assert (tally.count, tally.errors, tally.findings) == (24, [], account.Findings())
    assert tally.acknowledged > 24


@watched
@pytest.mark.parametrize("lie", ["log-", "keys", "segment-", ""])
def test_a_store_that_did_not_sync_would_be_found_out(tmp_path: Path, lie: str) -> None:
    """Syncs of one kind of file, or all, are taken out of what the disk saw."""
    folder, events = tmp_path / "store", list[Event]()
    folder.mkdir()
    disk, heard, rng, wrong = Disk(folder), Account(), random.Random(SEED), 0

    def see(event: Event) -> int:
        events.append(event)
        return 0

    with Nursery(tmp_path) as nursery:
        assert nursery.watched(Order(folder=str(folder), seed=SEED, operations=20), see) == 0
    for event in events:
        for line in told(event) if event.kind == "tell" else ():
            heard.hear(line)
    assert len(heard.kept) > 10 and {event.kind for event in events} >= {"make", "write", "sync", "rename", "unlink"}
    disk.follow([event for event in events if event.kind != "sync" or not Path(event.path).name.startswith(lie)])
    for number in range(12):
        target = tmp_path / f"disk-{number}"
        target.mkdir()
        disk.crash(target, rng)
        after = recover(target, rng)
        wrong += bool(after.findings) or bool(heard.copy().settle(after))
    assert wrong > 0


@watched
def test_disks_that_refuse_are_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "OPERATIONS", 8)
    found = faults.suffer_all(2, SEED, tmp_path, silent)
    assert (found.failed, found.reasons) == (Counter(), [])
    assert set(found.cases) == set(faults.KINDS) and sum(found.refused.values()) > 0


def test_a_turned_bit_is_told_or_changes_nothing(tmp_path: Path) -> None:
    turned = flips.turn(40, SEED, tmp_path, silent)
    assert turned.count == 40 and turned.refused > 10 and turned.undetected == []


def test_a_bit_that_nobody_notices_would_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(range(100))
    monkeypatch.setattr(flips, "_content", lambda folder, read_only=True: next(answers))
    assert len(flips.turn(4, SEED, tmp_path, silent).undetected) == 4


def test_what_is_lost_doubled_back_or_another_is_told(tmp_path: Path) -> None:
    def settled(found: dict[int, str], forgotten: set[int]) -> account.Findings:
        heard = Account()
        for line in ("begin 0 keep aa bb", "end 0 1 2", "begin 0 keep cc", "end 0 3", "begin 0 forget 3", "end 0 3",
                     "begin 1 keep dd"):
            heard.hear(line)
        return heard.settle(account.Recovery(found=found, forgotten=forgotten, written={}, findings=account.Findings(),
                                             seconds=0))

    assert not settled({1: "aa", 2: "bb"}, {3}) and not settled({1: "aa", 2: "bb", 4: "dd"}, {3})
    assert settled({1: "aa"}, {3}).lost == ["memory 2 is gone"]
    assert len(settled({1: "aa", 2: "bb", 3: "cc"}, set()).lost) == 2
    assert settled({1: "aa", 2: "xx"}, {3}).corrupted == ["memory 2 is another one"]
    assert settled({1: "aa", 2: "bb", 4: "ee"}, {3}).corrupted == ["memory 4 was never asked for"]
    assert settled({1: "aa", 2: "bb", 4: "dd", 5: "dd"}, {3}).duplicated == ["one memory has two ids"]
    with ArrowStorage.open(tmp_path / "store", account.DIM) as store:
        store.remember_many([account.memory_of("1" * 15)])
        store.remember("fact " + "2" * 15, vector=account.vector_of("3"))
    after = recover(tmp_path / "store", random.Random(0))
    assert after.found == {1: "1" * 15, 2: "2" * 15}
    assert sorted(after.findings.corrupted) == ["memory 2 is not found by its vector",
                                                "the parts of memory 2 do not belong together"]


@watched
def test_calls_of_a_child_are_seen_and_answered(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    path = tmp_path / "file"
    if (pid := os.fork()) == 0:
        try:
            watch_me(theirs)
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, b"one")
            os.pwrite(descriptor, b"two", 1)
            os.fsync(descriptor)
            os.ftruncate(descriptor, 2)
            path.rename(tmp_path / "other")
            os.open(tmp_path.parent / "elsewhere", os.O_CREAT | os.O_WRONLY)
            try:
                (tmp_path / "other").unlink()
            except OSError as error:
                os._exit(error.errno)
        finally:
            os._exit(1)
    seen = list[Event]()

    def see(event: Event) -> int:
        seen.append(event)
        return errno.EROFS if event.kind == "unlink" else 0

    Watcher(ours, str(tmp_path)).watch(see, 20)
    ours.close()
    theirs.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EROFS
    assert [(event.kind, Path(event.path).name, event.offset, event.data) for event in seen] == [
        ("make", "file", 0, b""), ("write", "file", 0, b"one"), ("write", "file", 1, b"two"), ("sync", "file", 0, b""),
        ("truncate", "file", 2, b""), ("rename", "file", 0, b""), ("unlink", "other", 0, b"")]
    assert (tmp_path / "other").read_bytes() == b"ot"


def test_a_disk_keeps_what_was_synced_and_any_part_of_the_rest(tmp_path: Path) -> None:
    def crashes(events: list[Event]) -> set[tuple[tuple[str, bytes], ...]]:
        (tmp_path / "begin").mkdir(exist_ok=True)
        disk, found = Disk(tmp_path / "begin"), set()
        disk.follow(events)
        for number in range(200):
            target = tmp_path / "end"
            target.mkdir()
            disk.crash(target, random.Random(number))
            found.add(tuple(sorted((path.name, path.read_bytes()) for path in target.iterdir())))
            for path in target.iterdir():
                path.unlink()
            target.rmdir()
        return found

    folder = str(tmp_path / "begin")
    file, other = folder + "/a", folder + "/b"
    made = [Event(kind="make", path=file), Event(kind="write", path=file, data=b"x" * 600)]
    synced = [*made, Event(kind="sync", path=file), Event(kind="sync", path=folder)]
    assert crashes(synced) == {(("a", b"x" * 600),)}
    assert () in crashes(made) and (("a", b""),) in crashes(made) and len(crashes(made)) > 10
    assert crashes([*synced, Event(kind="rename", path=file, other=other)]) == {
        (("a", b"x" * 600),), (("b", b"x" * 600),)}
    grown = crashes([*synced, Event(kind="write", path=file, offset=600, data=b"y" * 600)])
    assert all(data.startswith(b"x" * 600) for ((_, data),) in grown)
    assert any(b"\0" in data for ((_, data),) in grown), "sizes run ahead of contents"
    assert crashes([*synced, Event(kind="unlink", path=file)]) == {(), (("a", b"x" * 600),)}


def test_a_long_log_is_read_again_in_one_go(tmp_path: Path) -> None:
    assert 0 < campaign_memory.full_log(300, tmp_path) < 10


def test_rows_count_what_was_found_and_quick_ones_have_no_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign_memory, "kills", lambda *_: campaign_memory.Tally(
        count=60, seconds=[0.01] * 60, findings=account.Findings(lost=["memory 1 is gone"])))
    monkeypatch.setattr(campaign_memory, "torn", lambda *_: campaign_memory.Tally(count=5, seconds=[3.0] * 5))
    monkeypatch.setattr(campaign_memory, "full_log", lambda *_: 0.1)
    refused = Faults(cases=Counter(dict.fromkeys(faults.KINDS, 2)), refused=Counter(dict.fromkeys(faults.KINDS, 1)),
                     failed=Counter(EIO=1), reasons=["EIO: it died"])
    monkeypatch.setattr(campaign_memory, "suffer_all", lambda *_: refused)
    monkeypatch.setattr(flips, "turn", lambda *_: flips.Turned(count=9, refused=8, undetected=["bit 1 of keys"]))
    monkeypatch.setattr(syscalls, "supported", lambda: None)
    rows = {row.metric: row for row in campaign_memory.run(LabOptions(quick=True, seed=1)).rows}
    assert (rows["lost_acked"].value, rows["lost_acked"].ok, rows["duplicated"].ok) == (1, False, True)
    assert (rows["faults_survived"].value, rows["faults_survived"].ok) == (3, False)
    assert rows["undetected_flips"].ok is False and rows["recovery_p99_s"].ok is False
    assert rows["kills"].must is None
    rows = {row.metric: row for row in campaign_memory.run(LabOptions(seed=1)).rows}
    assert rows["kills"].must == 5000 and rows["kills"].ok is False and rows["torn_prefixes"].ok is False
    monkeypatch.setattr(syscalls, "supported", lambda: "not here")
    rows = {row.metric: row for row in campaign_memory.run(LabOptions(quick=True, seed=1)).rows}
    assert rows["torn_prefixes"].value is None and rows["faults_survived"].reason == "not here"
