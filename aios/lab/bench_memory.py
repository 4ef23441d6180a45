"""`aios bench memory`: how fast memories are acknowledged, recalled through the daemon, and a large store is opened.

Texts are short notes, vectors random; both are made before the clock starts. An acknowledgement is a memory that is
sealed, written and synced. A recall is what a client of the daemon waits for: from the vector of a question to ten
memories with their texts. Opening is done by a process of its own, from the call to the answer of its first question.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from aios.errors import MemoryStoreError
from aios.ipc.client import Client
from aios.lab.report import LabOptions, Report, Row
from aios.lab.scratch_home import scratch_daemon
from aios.memory.record import Floats, NewMemory
from aios.memory.vector_memory import DIM, ArrowStorage
from aios.messages import MemoryDraft
from aios.security.sealing import Encrypts

GROUP: Final = 256                        # memories that share a sync
ACKS, ACKS_QUICK = 50_000, 5_000
THREADS: Final = 16
ALONE_S, ALONE_QUICK_S = 3.0, 1.0         # of one memory after another
RECALLED, RECALLED_QUICK = 100_000, 10_000
RECALLS, RECALLS_QUICK = 5_000, 500
K: Final = 10
WARM_UP: Final = 50
IMPORTED: Final = 16_384                  # in groups, while somebody asks
REMEMBER_PAUSE_S: Final = 0.02            # of the client that remembers meanwhile
MEMORIES, MEMORIES_QUICK = 1_000_000, 10_000
ENCRYPTED, ENCRYPTED_QUICK = 100_000, 10_000     # of a store that is encrypted as a whole
FILL_GROUP: Final = 8192
OPENS, OPENS_QUICK = 7, 3
SYNCS: Final = 50
SECONDS_MAX: Final = 600.0
SPACE: Final = 5.0                        # times the vectors: segments, the index and its successor
PROGRAM: Final = """
import json, os, sys, time
import numpy as np
from aios.memory.vector_memory import ArrowStorage
def private():
    lines = open("/proc/self/smaps_rollup").read()
    return sum(int(lines.split(key + ":")[1].split()[0]) for key in ("Private_Clean", "Private_Dirty")) * 1024
import aios._native, cryptography.hazmat.primitives.ciphers.aead, msgspec
query = np.ones(int(sys.argv[2]), np.float32)
before, began = private(), time.perf_counter()
store = ArrowStorage.open(sys.argv[1], int(sys.argv[2]))
opened = time.perf_counter()
store.prepare()
ready, grown = time.perf_counter(), private() - before
found = store.recall(query, 10)
answered = time.perf_counter()
assert len(found) == 10 and store.stats().memories == int(sys.argv[3])
print(json.dumps([opened - began, ready - began, answered - began, grown]))
os._exit(0)     # without saving anything
"""


def run(options: LabOptions) -> Report:
    """All rows; a few minutes, most of them filling the large store."""
    with TemporaryDirectory(prefix="aios-memory-") as scratch:
        rows = [*_acks(Path(scratch), options), *_recalling(options), *_opening(Path(scratch), options),
                _opening_encrypted(Path(scratch), options)]
    return Report.of("memory", rows, options)


def _acks(scratch: Path, options: LabOptions) -> list[Row]:
    """Memories acknowledged a second: in groups, from many threads, one after another."""
    count, seconds = (ACKS_QUICK, ALONE_QUICK_S) if options.quick else (ACKS, ALONE_S)
    options.progress("acknowledging", 0.0)
    memories = list(_notes(count, options.seed))
    sync = f"fdatasync of 4 kB takes {_sync_ms(scratch):.2f} ms here"
    with ArrowStorage.open(scratch / "groups") as store:
        began = time.perf_counter()
        for start in range(0, count, GROUP):
            store.remember_many(memories[start:start + GROUP])
        groups = count / (time.perf_counter() - began)
    with ArrowStorage.open(scratch / "threads") as store:
        many = _from_threads(store, memories, seconds)
        alone = _alone(store, memories, seconds)
    return [
        Row(metric="append_acks_per_s", value=round(groups), unit="acks/s", better="higher", must=2000, aim=20_000,
            n=count, reason=f"groups of {GROUP} by remember_many, sealed, {DIM} dimensions; {sync}"),
        Row(metric="append_threads_acks_per_s", value=round(many), unit="acks/s", better="higher",
            reason=f"{THREADS} threads, each one memory after another; their syncs are shared"),
        Row(metric="append_single_acks_per_s", value=round(alone), unit="acks/s", better="higher",
            reason="one thread, one memory after another: two syncs each, of the key and of the log")]


def _from_threads(store: ArrowStorage, memories: list[NewMemory], seconds: float) -> float:
    """Acknowledgements a second to several threads."""
    counts, began = [0] * THREADS, time.perf_counter()

    def remember(lane: int) -> None:
        while time.perf_counter() - began < seconds:
            store.remember_many([memories[(lane + counts[lane] * THREADS) % len(memories)]])
            counts[lane] += 1

    lanes = [threading.Thread(target=remember, args=(lane,)) for lane in range(THREADS)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    return sum(counts) / (time.perf_counter() - began)


def _alone(store: ArrowStorage, memories: list[NewMemory], seconds: float) -> float:
    """Acknowledgements a second to one caller."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        store.remember_many([memories[count % len(memories)]])
        count += 1
    return count / (time.perf_counter() - began)


def _recalling(options: LabOptions) -> list[Row]:
    """What clients of the daemon wait for: alone, and while another one keeps remembering."""
    count, recalls = (RECALLED_QUICK, RECALLS_QUICK) if options.quick else (RECALLED, RECALLS)
    rng = np.random.default_rng(options.seed + 1)
    questions: Floats = rng.standard_normal((recalls, DIM), dtype=np.float32)
    with scratch_daemon(start=False) as daemon:
        options.progress(f"remembering {count:,}", 0.1)
        _fill(daemon.places.memory, count, options.seed)
        daemon.start()
        with daemon.connect() as client, daemon.connect() as other:
            options.progress("recalling", 0.15)
            client.recall(questions[0].tobytes(), K)           # starts the process, which opens the index
            alone = _recall_ms(client, questions)
            beside = _while(partial(_keep_remembering, other, options.seed), client, questions)
            groups = [[_draft(one) for one in group] for group in _groups(_notes(IMPORTED, options.seed + 3), GROUP)]
            importing = _while(partial(_keep_importing, other, groups), client, questions[:recalls // 5])
            rss_mb = client.status().memory.rss_mb
    said = f"{count:,} memories, k = {K}, one client, vectors given"
    return [
        Row(metric="recall_p99_ms", value=round(float(np.percentile(alone, 99)), 3), unit="ms", better="lower", must=10,
            aim=3, n=recalls, reason=f"{said}; median {median(alone):.2f} ms"),
        Row(metric="recall_p99_ms_while_remembering", value=round(float(np.percentile(beside, 99)), 3), unit="ms",
            better="lower", n=recalls, reason=f"{said}; median {median(beside):.2f} ms; another client remembers one "
                                              f"after another, {REMEMBER_PAUSE_S * 1e3:.0f} ms apart"),
        Row(metric="recall_p99_ms_while_importing", value=round(float(np.percentile(importing, 99)), 3), unit="ms",
            better="lower", n=len(importing), reason=f"{said}; median {median(importing):.2f} ms; another client sends "
                                                     f"groups of {GROUP} without a pause"),
        Row(metric="memory_process_rss_mb", value=rss_mb, unit="MB", better="lower",
            reason=f"{said}; mapped files that were read are counted")]


def _recall_ms(client: Client, questions: Floats) -> list[float]:
    took = []
    for index, question in enumerate(questions.tolist()):
        vector = np.asarray(question, "<f4").tobytes()
        began = time.perf_counter()
        found = client.recall(vector, K)
        if index >= WARM_UP:
            took.append((time.perf_counter() - began) * 1e3)
        assert len(found) == K
    return took


def _while(meanwhile: Callable[[threading.Event], None], client: Client, questions: Floats) -> list[float]:
    """`_recall_ms` while another client does something."""
    stop = threading.Event()
    writer = threading.Thread(target=meanwhile, args=(stop,))
    writer.start()
    try:
        return _recall_ms(client, questions)
    finally:
        stop.set()
        writer.join()


def _keep_importing(client: Client, groups: list[list[MemoryDraft]], stop: threading.Event) -> None:
    for group in groups:
        if stop.is_set():
            return
        client.remember_many(group)


def _draft(memory: NewMemory) -> MemoryDraft:
    return MemoryDraft(text=memory.text, vector=np.asarray(memory.vector, "<f4").tobytes())


def _keep_remembering(client: Client, seed: int, stop: threading.Event) -> None:
    for memory in _notes(FILL_GROUP, seed + 2):
        if stop.wait(REMEMBER_PAUSE_S):
            return
        client.remember(memory.text, vector=np.asarray(memory.vector, "<f4").tobytes(), tags=("bench",))


def _fill(folder: Path, count: int, seed: int, encrypts: Encrypts = "texts") -> None:
    """A store with its index saved."""
    with ArrowStorage.open(folder, encrypts=encrypts) as store:
        store.prepare()
        for group in _groups(_notes(count, seed), FILL_GROUP):
            store.remember_many(group)
        store.flush()


def _opening(scratch: Path, options: LabOptions) -> list[Row]:
    """From the call to the first answer, and the memory that the open store takes."""
    count = MEMORIES_QUICK if options.quick else MEMORIES
    names = (("open_1m_s", "s"), ("open_1m_cold_s", "s"), ("open_1m_private_mb", "MB"))
    needed = SPACE * count * DIM * 4
    if shutil.disk_usage(scratch).free < needed:
        reason = f"{scratch.parent} has no space for {needed / 1e9:.1f} GB; set TMPDIR"
        return [Row(metric=name, value=None, unit=unit, better="lower", reason=reason) for name, unit in names]
    folder = scratch / "large"
    options.progress(f"remembering {count:,}", 0.2)
    _fill(folder, count, options.seed)
    size = sum(file.stat().st_size for file in folder.iterdir())
    options.progress("opening", 0.9)
    opens = OPENS_QUICK if options.quick else OPENS
    warm = [_open(folder, count) for _ in range(opens + 1)][1:]
    cold = [_open(folder, count) for _ in range(opens) if _evict(folder)]
    said = f"{count:,} memories, {DIM} dimensions, {size / 1e9:.2f} GB; from open to the first answer"
    stages = f"the store after {median(one[0] for one in warm):.3f} s, the index after " \
             f"{median(one[1] for one in warm):.3f} s"
    return [
        Row(metric="open_1m_s", value=round(median(one[2] for one in warm), 4), unit="s", better="lower", must=1.0,
            aim=0.2, n=len(warm), reason=f"{said}; {stages}"),
        Row(metric="open_1m_cold_s", value=round(median(one[2] for one in cold), 4), unit="s", better="lower",
            n=len(cold), reason=f"{said}, which scans; out of the page cache: POSIX_FADV_DONTNEED"),
        Row(metric="open_1m_private_mb", value=round(median(one[3] for one in warm) / 1e6, 1), unit="MB",
            better="lower", n=len(warm), reason="private memory that the open store with its index takes; the rest is "
                                                "mapped files")]


def _opening_encrypted(scratch: Path, options: LabOptions) -> Row:
    """From the call to the first answer of a store that says nothing without its key, its index included."""
    count, opens = (ENCRYPTED_QUICK, OPENS_QUICK) if options.quick else (ENCRYPTED, OPENS)
    options.progress(f"remembering {count:,}, encrypted", 0.95)
    folder = scratch / "encrypted"
    _fill(folder, count, options.seed, "all")
    opened = [_open(folder, count) for _ in range(opens + 1)][1:]
    return Row(metric="open_100k_encrypted_s", value=round(median(one[2] for one in opened), 4), unit="s",
               better="lower", n=len(opened),
               reason=f"{count:,} memories, all of them encrypted; from open to the first answer; the store after "
                      f"{median(one[0] for one in opened):.3f} s, the index, decrypted into memory, after "
                      f"{median(one[1] for one in opened):.3f} s; {median(one[3] for one in opened) / 1e6:.0f} MB of "
                      "private memory")


def _open(folder: Path, count: int) -> tuple[float, float, float, float]:
    """Seconds until the store is open, the index is there, and the first question is answered; private bytes."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder), str(DIM), str(count)], capture_output=True,
                          text=True, timeout=SECONDS_MAX, check=False)
    if done.returncode != 0:
        raise MemoryStoreError(f"the store did not open: {done.stderr.strip()[-300:]}", remedy="run it alone")
    opened, ready, answered, grown = json.loads(done.stdout)
    return opened, ready, answered, grown


def _evict(folder: Path) -> bool:
    """Ask the kernel to forget the files; true, so that it can be a condition."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


def _notes(count: int, seed: int) -> Iterator[NewMemory]:
    """Short notes with random vectors of length one."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, FILL_GROUP):
        rows: Floats = rng.standard_normal((min(FILL_GROUP, count - start), DIM), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        for index, vector in enumerate(rows, start):
            text = f"Note {index}: on day {index % 365} the garden had {index % 97} apples and {index % 89} pears."
            yield NewMemory(text=text, metadata={"kind": "note", "page": index % 50}, vector=vector,
                            namespace=f"room-{index % 10}", tags=("note", f"day-{index % 365}"),
                            source="bench", provenance="owner")


def _groups(memories: Iterator[NewMemory], size: int) -> Iterator[list[NewMemory]]:
    group: list[NewMemory] = []
    for memory in memories:
        group.append(memory)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _sync_ms(scratch: Path) -> float:
    """The median time that this disk takes to sync a page that was appended."""
    took = []
    with (scratch / "sync").open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return median(took) * 1000
