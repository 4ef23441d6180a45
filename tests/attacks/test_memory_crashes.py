"""Nothing that was acknowledged is lost, and nothing that was forgotten comes back, whatever happens to the process."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aios.errors import BadInput, MemoryCorrupt, MemoryStopped, MemoryStoreError
from aios.memory.record import NewMemory
from aios.memory.vector_memory import ArrowStorage

DIM = 4
KILLS = 6
SEED = 11
BUSY = """
import random, sys
from aios.memory.record import NewMemory
from aios.memory.vector_memory import ArrowStorage
rng = random.Random(int(sys.argv[2]))
def tell(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()
with ArrowStorage.open(sys.argv[1], 4) as store:
    live = store.select()
    while True:
        group = [NewMemory(text=f"text {rng.getrandbits(40)}", vector=[1.0, 2.0, 3.0, rng.random()])
                 for _ in range(rng.randint(1, 5))]
        ids = store.remember_many(group)
        tell("kept", *(f"{number}:{one.text[5:]}" for number, one in zip(ids, group)))
        live += ids
        if rng.random() < 0.3:
            gone = [live.pop(rng.randrange(len(live)))]
            tell("going", *gone)
            store.forget(gone)
            tell("gone", *gone)
        if rng.random() < 0.1:
            store.flush()
        if rng.random() < 0.1:
            store.compact()
"""


def vector(value: float = 1.0) -> list[float]:
    return [value, 2.0, 3.0, 4.0]


def test_kill_9_loses_nothing_acknowledged_and_brings_nothing_back(tmp_path: Path) -> None:
    rng, home = random.Random(SEED), tmp_path / "memory"
    kept: dict[int, str] = {}
    going: set[int] = set()
    gone: set[int] = set()
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", BUSY, str(home), str(rng.getrandbits(30))],
                                   stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        last = rng.randint(5, 60)
        for count, line in enumerate(process.stdout):
            if count == last:
                process.send_signal(signal.SIGKILL)     # the rest was told before it died
            word, *numbers = line.split()
            if not line.endswith("\n"):
                continue
            if word == "kept":
                kept |= {int(number): f"text {text}" for number, _, text in (one.partition(":") for one in numbers)}
            else:
                (going if word == "going" else gone).update(map(int, numbers))
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        with ArrowStorage.open(home, DIM) as store:
            found = {number: store.read(number).text for number in store.select()}
            assert store.verify() == len(found)
            assert {number for number in kept if number not in found} <= going
            assert not gone & found.keys() and all(store.was_forgotten(number) for number in gone)
            assert all(found[number] == text for number, text in kept.items() if number in found)
            going &= found.keys() ^ kept.keys()
            gone |= {number for number in kept if number not in found}
            kept = found                                # an unacknowledged group may have been kept too
    assert len(gone) > 5 and len(found) > 50


def test_a_torn_tail_is_cut_wherever_it_is_torn_and_written_on(tmp_path: Path) -> None:
    home, rng = tmp_path / "memory", random.Random(SEED)
    with ArrowStorage.open(home, DIM) as store:
        store.remember("before", vector=vector())
        (log,) = home.glob("log-*")
        before = log.read_bytes()
        store.remember_many([NewMemory(text=f"torn {n}", vector=vector(n)) for n in range(3)])
        whole = log.read_bytes()
    for _ in range(30):
        copy = tmp_path / "copy"
        shutil.copytree(home, copy)
        cut = rng.randrange(len(before), len(whole))
        tail = bytearray(whole[len(before):])
        if rng.random() < 0.5:                          # pages reach the disk in any order
            hole = rng.randrange(len(tail))
            tail[hole:hole + 64] = bytes(len(tail[hole:hole + 64]))
            cut = len(whole)
        (copy / log.name).write_bytes((before + tail)[:cut])     # with the mark of the first
        with ArrowStorage.open(copy, DIM) as store:
            found = store.select()
            assert found == list(range(1, len(found) + 1)) and store.read(1).text == "before"
            number = store.remember("after", vector=vector())
        with ArrowStorage.open(copy, DIM) as store:
            assert store.read(number).text == "after" and len(store.select()) == len(found) + 1
        shutil.rmtree(copy)


def test_damage_in_what_was_acknowledged_is_told_and_never_cut(tmp_path: Path) -> None:
    home = tmp_path / "memory"
    with ArrowStorage.open(home, DIM) as store:
        store.remember_many([NewMemory(text=f"text {n}", vector=vector(n)) for n in range(3)])
    (log,) = home.glob("log-*")
    whole = log.read_bytes()
    for at in range(128, len(whole), 17):
        log.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:])
        with pytest.raises(MemoryCorrupt):
            ArrowStorage.open(home, DIM)
    log.write_bytes(whole)
    with ArrowStorage.open(home, DIM) as store:
        assert store.verify() == 3


def replace_descriptor(name: str, path: str) -> int:
    """Put another file under this process's descriptor of a file; returns a copy of the old one."""
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and link.readlink().name.startswith(name):
            saved = os.dup(int(link.name))
            other = os.open(path, os.O_RDWR)
            os.dup2(other, int(link.name))
            os.close(other)
            return saved
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["log-", "keys"])
def test_after_a_failed_sync_nothing_is_written_until_the_store_is_opened_again(tmp_path: Path, name: str) -> None:
    home = tmp_path / "memory"
    with ArrowStorage.open(home, DIM) as store:
        store.remember("safe", vector=vector())
        store.prepare()
        # /dev/null takes every write and refuses to sync, as a disk does that lost its cable.
        os.close(replace_descriptor(name, "/dev/null"))
        with pytest.raises(MemoryStopped, match="syncing"):
            store.remember("lost", vector=vector())
        for _ in range(2):
            with pytest.raises(MemoryStopped, match="writing stopped"):
                store.remember("refused", vector=vector())
            with pytest.raises(MemoryStopped):
                store.forget(1)
            with pytest.raises(MemoryStopped):
                store.compact()
    with ArrowStorage.open(home, DIM) as store:
        assert [store.read(number).text for number in store.select()] == ["safe"]
        store.remember("works again", vector=vector())


FULL = """
import resource, signal, sys
from aios.errors import MemoryStoreError
from aios.memory.vector_memory import ArrowStorage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = ArrowStorage.open(sys.argv[1], 4)
kept = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))     # as a full disk: a write is refused half way
try:
    while True:
        store.remember(f"text {kept}" * 20, vector=[1, 2, 3, 4])
        kept += 1
except MemoryStoreError as error:
    assert "File too large" in error.message, error.message
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
""".replace("(20_000, 20_000)", "(20_000, resource.RLIM_INFINITY)") + """
assert len(store.select()) == kept > 5
store.remember("space again", vector=[1, 2, 3, 4])
store.close()
print(kept + 1)
"""


def test_a_full_disk_refuses_a_memory_and_takes_the_next_one_when_there_is_space(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "memory")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with ArrowStorage.open(tmp_path / "memory", DIM) as store:
        assert store.verify() == int(done.stdout)


def test_a_full_descriptor_table_is_an_error_and_nothing_worse(tmp_path: Path) -> None:
    home = tmp_path / "memory"
    with ArrowStorage.open(home, DIM) as store:
        store.remember("one", vector=vector())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(link.name) for link in Path("/proc/self/fd").iterdir())
        taken = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
            while True:
                try:
                    taken.append(os.dup(0))
                except OSError:
                    break
            with pytest.raises(MemoryStoreError, match="open files"):
                store.flush()
            assert store.remember("two", vector=vector()) == 2, "what is open goes on"
        finally:
            for number in taken:
                os.close(number)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        store.flush()
        assert store.verify() == 2


def test_links_and_strange_files_in_the_place_of_its_own_are_refused(tmp_path: Path) -> None:
    home = tmp_path / "memory"
    with ArrowStorage.open(home, DIM) as store:
        store.remember("one", vector=vector())
        store.flush()
    for name in ("manifest.json", "keys", "lock", next(home.glob("log-*")).name, next(home.glob("segment-*")).name):
        path, aside = home / name, tmp_path / "aside"
        path.rename(aside)
        for kind in ("link", "pipe", "folder"):
            if kind == "link":
                path.symlink_to(aside)
            elif kind == "pipe":
                os.mkfifo(path)
            else:
                path.mkdir()
            with pytest.raises((MemoryStoreError, BadInput)):
                ArrowStorage.open(home, DIM).close()
            path.rmdir() if kind == "folder" else path.unlink()
        aside.rename(path)
    with ArrowStorage.open(home, DIM) as store:
        assert store.verify() == 1


def test_native_calls_refuse_numbers_that_do_not_fit(tmp_path: Path) -> None:
    from aios import _native

    folder = tmp_path / "raw"
    _native.MemoryStore.create(folder, DIM, False, bytes(16))
    store = _native.MemoryStore(folder, True)
    first = store.reserve(1)
    good = ([first], [0], [("", [], "", "")], np.ones((1, DIM), np.float32), [b"x"], [b"k" * 60])
    for place, wrong in ((0, [99]), (0, []), (1, [0, 0]), (3, np.ones(3, np.float32)), (5, [b"short"])):
        arguments = (*good[:place], wrong, *good[place + 1:])
        with pytest.raises((ValueError, _native.StorageError)):
            store.append(*arguments)
    for count in (1 << 40, 65_537):
        with pytest.raises((ValueError, _native.StorageError)):
            store.reserve(count)
    with pytest.raises(ValueError, match="at once"):
        store.scan(0, 1 << 60, 0)
    assert store.scan(1 << 60, 4, 0) == (b"", b"", 0)
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.stats()
