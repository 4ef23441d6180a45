"""`aios remember`, `recall`, `forget` and `memory` against a store that is played by the verbs' own types."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from aios.cli import render
from aios.ipc.calls import Calls
from aios.ipc.conversation import Exchange
from aios.ipc.protocol import VERBS
from aios.memory.keeper import Keeper, conditions
from aios.memory.record import NewMemory
from aios.messages import check_memory, from_wire, to_wire
from tests.cli.conftest import Run
from tests.memory.conftest import DIM, encode


class Played(Calls):
    """A daemon's memory verbs, in this process."""

    def __init__(self, folder: Path) -> None:
        self.keeper = Keeper(folder)
        self.store = self.keeper.open(dim=DIM)
        self.asked: list[str] = []
        self.encoded = 0
        self.passphrase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def perform(self, exchange: Exchange[Any], /) -> Any:
        params = {name: value for name, value in exchange.params.items() if value is not None and name != "deadline_ms"}
        given = from_wire(to_wire(params), VERBS[exchange.verb].params)
        if exchange.verb not in ("memory.stats", "memory.compact", "memory.unlock"):
            check_memory(given)
        self.asked.append(exchange.verb)
        return exchange.result(to_wire(getattr(self, exchange.verb.replace("memory.", "on_"))(given)))

    def on_remember(self, given: Any) -> Any:
        drafts = [NewMemory(text=one.text, metadata=one.metadata, namespace=one.namespace, tags=one.tags,
                            time=one.time, source=one.source, provenance=one.provenance,
                            vector=self._vector(one.text, one.vector)) for one in given.memories]
        return self.keeper.remember_once(drafts) if given.once else self.store.remember_many(drafts)

    def on_recall(self, given: Any) -> Any:
        return self.store.recall(self._vector(given.query, given.vector), given.k, conditions(given.filter))

    def on_forget(self, given: Any) -> Any:
        return self.store.forget(conditions(given.filter) if given.filter else list(given.ids))

    def on_list(self, given: Any) -> Any:
        return self.store.page(given)

    def on_stats(self, given: Any) -> Any:
        return self.store.stats()

    def on_compact(self, given: Any) -> Any:
        return self.store.compact()

    def on_unlock(self, given: Any) -> Any:
        self.passphrase = given.passphrase
        return True

    def _vector(self, text: str, vector: bytes | None) -> Any:
        import numpy as np

        self.encoded += vector is None
        return encode([text])[0] if vector is None else np.frombuffer(vector, "<f4")


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    played = Played(tmp_path / "store")
    monkeypatch.setattr("aios.ipc.client.connect", lambda **_: played)
    yield played
    played.keeper.close()


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_what_is_remembered_is_recalled_with_everything_that_was_said(run: Run, daemon: Played) -> None:
    done = run("remember", "the key hangs behind the barometer", "--tag", "house", "-t", "keys", "--source", "diary",
               "--namespace", "home", "--metadata", '{"page": 3}', "--json")
    assert (done.code, done.json) == (0, {"ids": [1]})
    run("remember", "Tomas is allergic to hazelnuts")
    [found] = run("recall", "where is the key?", "-k", "1", "--json").json["memories"]
    assert [found[name] for name in ("id", "tags", "source", "namespace", "metadata", "provenance")] == [
        1, ["house", "keys"], "diary", "home", {"page": 3}, "owner"]
    table = run("recall", "where is the key?").out
    assert "the key hangs behind the barometer" in table and "house, keys" in table and "hazelnuts" in table


def test_a_memory_comes_from_standard_input_or_a_file(run: Run, daemon: Played, stdin, tmp_path: Path) -> None:
    stdin(b"from a pipe\n")
    assert run("remember", "-").code == 0
    (tmp_path / "note.txt").write_text("from a file")
    assert run("remember", "--file", str(tmp_path / "note.txt")).code == 0
    texts = [(one.text, one.source) for one in map(daemon.store.read, daemon.store.select())]
    assert texts == [("from a pipe\n", ""), ("from a file", str(tmp_path / "note.txt"))]


@pytest.mark.parametrize("words", [
    ["remember"], ["remember", "x", "--file", "y"], ["remember", "x", "--metadata", "[1]"],
    ["remember", "x", "--metadata", "{"], ["remember", "--file", "/no/such/file"], ["recall", "x", "--since", "soon"],
    ["recall", "x", "-k", "0"], ["forget"], ["forget", "1", "--tag", "a"], ["memory", "export", "/"],
    ["memory", "import", "/no/such/file"], ["memory", "notes", "/no/such/folder"]])
def test_wrong_words_are_told_before_anything_is_changed(run: Run, daemon: Played, words: list[str]) -> None:
    done = run(*words)
    assert done.code == 65 and done.err.count("\n") >= 2, "the error and its remedy"
    assert daemon.store.select() == [] and "memory.forget" not in daemon.asked


def test_conditions_narrow_what_is_recalled(run: Run, daemon: Played) -> None:
    old = datetime.now(UTC) - timedelta(days=10)
    daemon.store.remember("an old note", vector=encode(["note"])[0], time=old, tags=["a"])
    daemon.store.remember("a new note", vector=encode(["note"])[0], tags=["a", "b"], namespace="n")

    def texts(*words: str) -> set[str]:
        return {one["text"] for one in run("recall", "note", *words, "--json").json["memories"]}

    assert texts("--since", "7d") == {"a new note"} == texts("--tag", "a", "--tag", "b") == texts("-n", "n")
    assert texts("--until", "1w") == {"an old note"}
    assert texts("--since", (old - timedelta(days=1)).date().isoformat()) == {"an old note", "a new note"}
    assert "nothing comes to mind" in run("recall", "note", "--tag", "c").err


def test_forgetting_asks_and_a_no_changes_nothing(run: Run, daemon: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        daemon.store.remember(f"note {number}", vector=encode(["x"])[0], tags=["a"])
    assert run("forget", "--tag", "a").code == 65, "nobody is there to answer"
    asked: list[str] = []
    monkeypatch.setattr(render, "confirm", asked.append)
    assert run("forget", "1").out == "forgotten: 1 (1)\n"
    assert "note 1" in run("forget", "--tag", "a").err
    assert asked == ["Forget memory 1 for good?", "Forget 6 memories for good?"]
    assert run("forget", "--tag", "a").out == "no memory is meant by that\n" and len(asked) == 2
    assert run("forget", "1", "--yes", "--json").json == {"forgotten": []}


def test_an_export_is_imported_once_and_vectors_travel(run: Run, daemon: Played, tmp_path: Path) -> None:
    for number in range(300):
        daemon.store.remember(f"note {number}", {"n": number}, vector=encode([f"note {number}"])[0], tags=["a"])
    file = tmp_path / "x.jsonl"
    assert run("memory", "export", str(file), "--json").json["exported"] == 300
    assert file.stat().st_mode & 0o077 == 0
    assert run("memory", "import", str(file), "--json").json == {"read": 300, "added": 0}
    daemon.store.forget(daemon.store.select()[:120])
    assert run("memory", "import", str(file)).out == "120 memories added, 180 were here already\n"
    assert daemon.encoded == 0
    assert run("recall", "note 5", "-k", "1", "--json").json["memories"][0]["metadata"] == {"n": 5}
    assert run("memory", "export", str(file)).code == 65, "no file is replaced"
    daemon.store.forget(daemon.store.select())
    encoded = daemon.encoded
    assert run("memory", "import", str(file), "--encode", "--json").json["added"] == 300
    assert daemon.encoded == encoded + 300


def test_notes_are_brought_up_to_date(run: Run, daemon: Played, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# A\nthe scythe is with Ilmari")
    (folder / "b.txt").write_bytes(b"\xff")
    first = run("memory", "notes", str(folder), "--tag", "note")
    assert first.code == 0 and "left out: b.txt (no UTF-8 text)" in first.err
    (folder / "a.md").write_text("# A\nthe scythe is with Tomas")
    done = run("memory", "notes", str(folder), "--tag", "note", "--json").json
    assert (done["replaced"], done["forgotten"], done["passages"]) == (1, 1, 1)
    (folder / "a.md").unlink()
    assert run("memory", "notes", str(folder), "--prune", "--json").json["forgotten"] == 1
    assert daemon.store.select() == []


def test_the_store_tells_what_it_holds_and_compacts(run: Run, daemon: Played) -> None:
    number = daemon.store.remember("x" * 100_000, vector=encode(["x"])[0])
    assert "memories    1" in run("memory", "stats").out
    daemon.store.forget(number)
    assert run("memory", "compact").out.startswith("compacted; ")
    assert run("memory", "compact").out == "there was nothing to compact\n"
    assert run("memory", "stats", "--json").json["forgotten"] == 1


def test_a_passphrase_is_read_from_a_pipe_and_never_printed(run: Run, daemon: Played, stdin) -> None:
    stdin(b"correct horse battery\n")
    done = run("memory", "unlock")
    assert daemon.passphrase == "correct horse battery" and "horse" not in done.out + done.err


def test_text_from_memory_cannot_command_the_terminal(run: Run, daemon: Played) -> None:
    daemon.store.remember("before\x1b[2Jafter", vector=encode(["x"])[0], source="\x1b]0;title\x07")
    out = run("recall", "x").out
    assert "\x1b" not in out and "\x07" not in out and "before[2Jafter" in out


def test_help_of_memory_commands_loads_neither_arrays_nor_the_store() -> None:
    import subprocess

    code = ("import sys; from aios.cli.main import main; main(['memory', '--help']); main(['remember', '--help']);"
            "sys.exit(bool({'numpy', 'torch', 'aios._native'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "NO_COLOR": "1"},
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
