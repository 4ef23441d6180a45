"""The memory verbs of a daemon process: who may use them, what they leave behind, and what ends with the daemon."""

from __future__ import annotations

import base64
import os
import signal
import struct
import time
from pathlib import Path

import pytest

from aios.errors import AuthError, BadInput, DeadlineExceeded, ModelMissing
from aios.ipc.client import Client, connect
from aios.lab.scratch_home import ScratchDaemon
from aios.messages import MemoryDraft, MemoryFilter

ONE, OTHER = [1.0, 0.0, 0.5], [0.0, 1.0, -0.5]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_memories_are_kept_found_forgotten_and_outlive_the_daemon(scratch: ScratchDaemon) -> None:
    scratch.start()
    with scratch.connect() as client:
        assert client.status().memory.state == "off"
        assert client.recall(ONE) == [] and client.memory_stats().memories == 0
        assert client.status().memory.state == "off" and not scratch.places.memory.exists()
        first = client.remember("the first memory", {"page": 1}, vector=ONE, tags=["a"], source="s")
        second = client.remember_many([MemoryDraft(text="the second memory", vector=bytes(8) + b"\0\0\x80?")])[0]
        found = client.recall(ONE, k=1, filter=MemoryFilter(tags=["a"]))
        assert [(one.id, one.text, one.metadata, one.source) for one in found] == [
            (first, "the first memory", {"page": 1}, "s")]
        status = client.status().memory
        assert status.state == "ready" and status.pid is not None
    assert scratch.stop() == 0
    assert gone(status.pid)
    scratch.start()
    with scratch.connect() as client:
        assert [one.id for one in client.recall(ONE, k=5)] == [first, second]
        assert client.forget([first, 99]) == [first]
        assert client.forget(MemoryFilter(sources=["s"])) == []
        assert client.compact_memory() and not client.compact_memory()
        page = client.memory_page(vectors=True)
        assert [one.id for one in page.memories] == [second] and len(page.vectors[0]) == 12
    assert scratch.stop() == 0
    left = [path for path in scratch.places.data.parent.rglob("*") if path.is_file()]
    assert not [path for path in left if b"the first memory" in path.read_bytes()], "logs and all"
    assert all(path.stat().st_mode & 0o077 == 0 for path in scratch.places.memory.iterdir())


@pytest.mark.parametrize("encrypts", ["texts", "all"])
def test_after_forgetting_and_compacting_no_file_of_the_home_says_it(scratch: ScratchDaemon, encrypts: str) -> None:
    """Text, metadata, columns and vector, in the store, its index, the logs and whatever else there is."""
    home = scratch.places.data.parent
    scratch.places.config_file.write_text(
        f'[daemon]\nlog_level = "debug"\n[memory]\nencrypts = "{encrypts}"\n', encoding="utf-8")
    secret, words = [3.25, -1.75, 0.625], ["dentist", "molar", "clinic", "teeth", "letter", "aunt"]
    vector = struct.pack("<3f", *secret)
    needles = [*(word.encode() for word in words), vector, base64.b64encode(vector)]

    def said() -> set[tuple[str, bytes]]:
        files = [path for path in home.rglob("*") if path.is_file()]
        assert scratch.places.log_file in files, "the logs are looked through as well"
        return {(path.name, one) for path in files for one in needles if one in path.read_bytes()}

    def keep(client: Client) -> int:
        return client.remember("Mira's dentist", {"molar": "second"}, vector=secret, namespace="clinic",
                               tags=["teeth"], source="letter", provenance="aunt")

    scratch.start()
    with scratch.connect() as client:
        client.remember("stays", vector=ONE)
        first = keep(client)
        assert client.recall(secret, k=1)[0].text == "Mira's dentist"
    assert scratch.stop() == 0                  # the index is saved, the next start makes a segment of the log
    scratch.start()
    with scratch.connect() as client:
        second = keep(client)
        with pytest.raises(BadInput):
            client.recall([1.0], filter=MemoryFilter(tags=["teeth"]))
        assert client.recall(secret, k=2, filter=MemoryFilter(sources=["letter"]))[0].metadata == {"molar": "second"}
        assert bool(said()) == (encrypts == "texts"), "columns and vectors are clear unless all is encrypted"
        assert client.forget([first, second]) == [first, second]
        assert client.compact_memory()
        assert said() == set()
    assert scratch.stop() == 0
    assert said() == set()
    scratch.start()
    with scratch.connect() as client:
        assert [one.text for one in client.recall(secret, k=5)] == ["stays"]
        stats = client.memory_stats()
    assert (stats.memories, stats.forgotten) == (1, 2), "ids stay as tombstones"
    assert said() == set()


def test_the_memory_process_ends_with_a_daemon_that_is_killed(scratch: ScratchDaemon) -> None:
    scratch.start()
    with scratch.connect() as client:
        number = client.remember("kept", vector=ONE)
        memory = client.status().memory.pid
    assert memory is not None and scratch.launched is not None
    os.kill(scratch.pid, signal.SIGKILL)
    scratch.launched.process.wait()
    until = time.monotonic() + 20
    while not gone(memory):
        assert time.monotonic() < until
        time.sleep(0.01)
    scratch.start()
    with scratch.connect() as client:
        assert [one.id for one in client.recall(ONE)] == [number]


def test_what_memory_is_asked_is_checked_before_anything_is_started(scratch: ScratchDaemon) -> None:
    scratch.start()
    with scratch.connect() as client:
        secret = client.call("tokens.new", name="asker", scopes=["ask"])["token"]
        keeper = client.call("tokens.new", name="keeper", scopes=["memory"])["token"]
        for verb, params in {
            "memory.remember": {"memories": []}, "memory.recall": {"vector": b"12345"}, "memory.forget": {"filter": {}},
            "memory.list": {"limit": 100_000}, "diffuse": {"prompt": "x", "memory": "always"},
            "generate": {"prompt": "x", "memory": "auto", "passages": [{"text": "y"}]},
        }.items():
            with pytest.raises(BadInput):
                client.call(verb, **params)
        with pytest.raises(BadInput, match="once"):
            client.remember("x", vector=ONE, once=True)
        with pytest.raises(ModelMissing, match="minilm"):
            client.remember("a text without a vector")
        assert client.status().memory.state == "off" and not scratch.places.memory.exists()
        client.remember("kept", vector=ONE)
        with pytest.raises(ModelMissing):
            client.generate("what was kept?", memory="auto")
        worker = client.status().worker.pid
        assert worker is not None
        os.kill(worker, signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded):
            client.recall("a question", deadline_ms=20)
        os.kill(worker, signal.SIGCONT)
    with connect(scratch.places.socket, token=secret) as client:
        for attempt in (lambda: client.recall(ONE), lambda: client.remember("x", vector=ONE),
                        lambda: client.forget(1), client.memory_stats, client.memory_page, client.compact_memory,
                        lambda: client.diffuse("x", memory="auto"), lambda: client.generate("x", memory="auto")):
            with pytest.raises(AuthError, match="memory"):
                attempt()
    with connect(scratch.places.socket, token=keeper) as client:
        assert client.recall(OTHER)[0].text == "kept"
    assert "kept" not in scratch.places.log_file.read_text(), "the log holds no texts"


def test_a_store_may_encrypt_all_that_it_holds(scratch: ScratchDaemon) -> None:
    scratch.places.config_file.write_text('[memory]\nencrypts = "all"\n')
    scratch.start()
    with scratch.connect() as client:
        client.remember("a text", vector=ONE, tags=["unusual-tag"], source="unusual-source")
        [found] = client.recall(ONE, filter=MemoryFilter(tags=["unusual-tag"]))
        assert found.source == "unusual-source"
    assert scratch.stop() == 0
    held = b"".join(path.read_bytes() for path in scratch.places.memory.iterdir())
    assert b"unusual" not in held and len(held) > 0
