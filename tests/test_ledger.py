"""What was measured stays readable: after a crash, by older readers, from several processes at once."""

from __future__ import annotations

import json
import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aios import ledger
from aios.errors import BadInput
from aios.ledger import Entry, Ledger, new_id

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def entry(minute: int = 0, command: str = "bench toy", **changes: object) -> Entry:
    moment = START + timedelta(minutes=minute)
    fields = {"id": new_id(moment), "command": command, "argv": ("aios", *command.split(), "--seed", "7"),
              "commit": "abc", "seed": 7, "quick": False, "machine": {"cpu": "x", "isa": "avx2"},
              "started": moment.isoformat(), "duration_s": 1.5, "rows": ({"metric": "m", "value": 1.0},),
              "data": {"d.parquet": "00"}, "checkpoints": {"minilm": "11"}}
    return Entry(**(fields | changes))  # type: ignore[arg-type]


def test_entries_come_back_as_written_in_order_of_time(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "experiments")
    written = [entry(2), entry(1, "eval toy"), entry(0)]
    for one in written:
        book.append(one)
    assert list(book.entries()) == written[::-1]
    assert book.torn == []
    assert {path.name for path in book.folder.iterdir()} == {"bench-toy.jsonl", "eval-toy.jsonl"}


def test_an_empty_or_absent_folder_is_an_empty_ledger(tmp_path: Path) -> None:
    assert list(Ledger(tmp_path / "absent").entries()) == []


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_skipped_with_a_note_and_the_next_one_is_whole(tmp_path: Path, cut: int) -> None:
    book = Ledger(tmp_path)
    first, torn, after = entry(0), entry(1), entry(2)
    book.append(first)
    path = book.append(torn)
    path.write_bytes(path.read_bytes()[:-cut])
    whole = [first] if cut > 1 else [first, torn]   # without its newline only, the line is still complete
    assert list(book.entries()) == whole
    book.append(after)
    assert list(book.entries()) == [*whole, after]
    assert [note.line for note in book.torn] == ([2] if cut > 1 else [])


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[]", b"{}", b'{"id": 3}', b"null", b"[" * 5000])
def test_a_line_that_is_no_entry_is_noted_and_hides_no_other(tmp_path: Path, line: bytes) -> None:
    book = Ledger(tmp_path)
    path = book.append(entry(0))
    with path.open("ab") as file:
        file.write(line + b"\n\n")
    book.append(entry(1))
    assert len(list(book.entries())) == 2
    assert [(note.path, note.line) for note in book.torn] == [(path, 2)]


def test_a_field_of_a_newer_version_is_ignored(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    path = book.append(entry())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"joules": 3}) + "\n")
    assert len(list(book.entries())) == 1


def test_a_run_is_found_by_the_beginning_of_its_id_or_as_the_latest_of_its_command(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    old, new = entry(0), entry(1)
    book.append(old)
    book.append(new)
    assert book.find(old.id[:16]) == old
    assert book.find("bench toy") == new
    assert book.rerun(old.id) == ("aios", "bench", "toy", "--seed", "7")
    for key, why in (("2026", "2 runs"), ("eval toy", "no run")):
        with pytest.raises(BadInput, match=why):
            book.find(key)


def test_a_line_beyond_the_limit_is_refused_before_it_is_written(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    with pytest.raises(BadInput, match="limit"):
        book.append(entry(rows=({"text": "x" * ledger.LINE_BYTES_MAX},)))
    assert list(tmp_path.iterdir()) == []


def test_the_ledger_never_writes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("")
    (tmp_path / "bench-toy.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        Ledger(tmp_path).append(entry())
    assert (tmp_path / "victim").read_text() == ""


def append_many(folder: str, count: int) -> None:
    for minute in range(count):
        Ledger(Path(folder)).append(entry(minute))


def test_several_processes_append_at_once_and_no_line_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if not multiprocessing.active_children() else "spawn")
    workers = [context.Process(target=append_many, args=(str(tmp_path), 20)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    book = Ledger(tmp_path)
    assert len(list(book.entries())) == 60
    assert book.torn == []


def test_the_ledger_is_found_by_environment_then_checkout_then_home(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_EXPERIMENTS", str(tmp_path / "named"))
    assert Ledger.here().folder == tmp_path / "named"
    monkeypatch.delenv("AIOS_EXPERIMENTS")
    monkeypatch.setenv("AIOS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ledger, "checkout", lambda: tmp_path / "source")
    assert Ledger.here().folder == tmp_path / "source" / "experiments"
    monkeypatch.setattr(ledger, "checkout", lambda: None)
    assert Ledger.here().folder == tmp_path / "home" / "state" / "experiments"
