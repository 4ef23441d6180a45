"""`aios memory`: the store of memories as a whole. Files are opened here, never by the daemon."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aios.cli import render
from aios.cli.options import Json, group
from aios.cli.remember import Namespace, Provenance, Since, Source, Tags, Until, conditions
from aios.errors import BadInput
from aios.messages import MEMORIES_PER_PAGE_MAX, Memory, MemoryDraft, MemoryFilter, to_wire

if TYPE_CHECKING:
    from aios.ipc.client import Client
    from aios.memory.record import Floats, NewMemory

app = group("The store of memories: see, move, compact, and import notes.")

GROUP = 256                   # memories of one request
GROUP_CHARS = 1 << 20         # of their texts
TIMEOUT_SECONDS = 3600.0      # of a request that encodes many texts or compacts a large store
DIM = 384                     # of a store that is not there yet: the default encoder's


@app.command()
def stats(json: Json = False) -> None:
    """Show how many memories there are and what they take."""
    from aios.ipc.client import connect

    with connect() as client:
        found = client.memory_stats()
    shown = {"memories": found.memories, "forgotten": found.forgotten, "to compact": found.to_compact,
             "on disk": render.size(found.bytes), "dimensions": found.dim or None, "vectors": found.vector}
    render.emit(to_wire(found), json, lambda: render.facts(shown))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The file to write: one JSON object a line.")],
    tag: Tags = None, namespace: Namespace = None, source: Source = None, provenance: Provenance = None,
    since: Since = None, until: Until = None, json: Json = False,
) -> None:
    """Write memories with their vectors into a file, readable for its owner only.

    The file is as readable as the memories are, and forgetting does not touch it.
    """
    filter = conditions(tag, namespace, source, provenance, since, until)
    if file.exists():
        raise BadInput(f"{file} is there already", remedy="choose another name")
    from aios.ipc.client import connect
    from aios.memory import exchange

    with connect() as client, render.progress("exporting", json, unit="steps") as move:
        dim = client.memory_stats().dim or DIM
        try:
            count = exchange.write(file, dim, _paged(client, filter, move))
        except OSError as error:
            raise BadInput(f"cannot write {file}: {error.strerror}", remedy="choose another place") from error
    render.emit({"exported": count, "file": str(file)}, json, lambda: render.say(f"{count} memories in {file}"))


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="What `aios memory export` wrote.")],
    encode: Annotated[bool, typer.Option("--encode", help="Make the vectors anew, for another encoder.")] = False,
    json: Json = False,
) -> None:
    """Add the memories of a file, under new ids; those that are here already are left alone.

    An import that was interrupted can simply be repeated.
    """
    from aios.ipc.client import connect
    from aios.memory import exchange

    count = 0
    with connect(timeout=TIMEOUT_SECONDS) as client, render.progress("importing", json, unit="share") as move:
        before = client.memory_stats()
        for some in _grouped(exchange.read(file, before.dim or DIM, lambda share: move(share, 1.0, ""))):
            drafts = [_draft(one, encode) for one in some]
            client.remember_many(drafts, once=all(one.time is not None for one in drafts),
                                 deadline_ms=int(TIMEOUT_SECONDS * 1e3))
            count += len(drafts)
        new = client.memory_stats().memories - before.memories
    render.emit({"read": count, "added": new}, json,
                lambda: render.say(f"{new} memories added, {count - new} were here already"))


@app.command()
def notes(
    folder: Annotated[Path, typer.Argument(help="A folder of Markdown and text files.")],
    tag: Tags = None, namespace: Namespace = None,
    prune: Annotated[bool, typer.Option("--prune", help="Forget the passages of files that are gone.")] = False,
    json: Json = False,
) -> None:
    """Remember a folder of notes, cut into passages; again, and only what changed is remembered anew.

    Links, hidden files and folders, and files above 4 MiB are left out.
    """
    from aios.ipc.client import connect
    from aios.memory.notes import import_folder

    with connect(timeout=TIMEOUT_SECONDS) as client, render.progress("reading notes", json, unit="steps") as move:
        done = import_folder(folder, DaemonShelf(client), namespace=namespace or "default", tags=tag or (),
                             prune=prune, progress=lambda at, total, name: move(at, total, name))
    shown = {"files": done.files, "added": done.added, "changed": done.replaced, "unchanged": done.unchanged,
             "passages": done.passages, "forgotten": done.forgotten}
    render.emit(to_wire(done), json, lambda: render.facts(shown))
    if not json:
        for name, why in done.skipped.items():
            render.remark(f"left out: {name} ({why})")


@app.command()
def compact(json: Json = False) -> None:
    """Take what was forgotten off the disk."""
    from aios.ipc.client import connect

    with connect(timeout=TIMEOUT_SECONDS) as client, render.progress("compacting", json, unit="share"):
        before = client.memory_stats()
        done = client.call("memory.compact", deadline_ms=int(TIMEOUT_SECONDS * 1e3))
        after = client.memory_stats()
    freed = max(0, before.bytes - after.bytes)
    said = f"compacted; {render.size(freed)} freed" if done else "there was nothing to compact"
    render.emit({"compacted": done, "freed_bytes": freed}, json, lambda: render.say(said))


@app.command()
def unlock(json: Json = False) -> None:
    """Open the store of memories with its passphrase, until the daemon ends.

    The passphrase is asked for; without a terminal it is the first line of standard input. Where nothing was remembered
    yet it becomes the passphrase of the store.
    """
    if render.is_terminal(sys.stdin):
        passphrase = typer.prompt("Passphrase", hide_input=True, err=True)
    else:
        passphrase = sys.stdin.readline().rstrip("\n")
    from aios.ipc.client import connect

    with connect() as client:
        client.call("memory.unlock", passphrase=passphrase)
    render.emit({"unlocked": True}, json, lambda: render.say("the memories are open until the daemon ends"))


class DaemonShelf:
    """The daemon's memories, as an import of notes keeps them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def of_source(self, source: str) -> Sequence[Memory]:
        """The memories of a source."""
        return list(self._every(MemoryFilter(sources=[source])))

    def of_provenance(self, provenance: str) -> Iterator[Memory]:
        """The memories of a provenance."""
        return self._every(MemoryFilter(provenances=[provenance]))

    def remember(self, drafts: Sequence[MemoryDraft]) -> Sequence[int]:
        """Keep all of them or none; their ids."""
        return self._client.remember_many(drafts, deadline_ms=int(TIMEOUT_SECONDS * 1e3))

    def forget(self, ids: Sequence[int]) -> Sequence[int]:
        """Forget them; those that were there."""
        gone: list[int] = []
        for start in range(0, len(ids), GROUP):
            gone += self._client.forget(ids[start:start + GROUP])
        return gone

    def _every(self, filter: MemoryFilter) -> Iterator[Memory]:
        after: int | None = 0
        while after is not None:
            page = self._client.memory_page(filter, after=after, limit=MEMORIES_PER_PAGE_MAX)
            yield from page.memories
            after = page.next


def _paged(client: Client, filter: MemoryFilter, move: render.Progress) -> Iterator[tuple[Memory, Floats]]:
    import numpy as np

    after: int | None = 0
    done = total = 0
    while after is not None:
        page = client.memory_page(filter, after=after, limit=MEMORIES_PER_PAGE_MAX, vectors=True)
        total = total or page.total
        for memory, vector in zip(page.memories, page.vectors, strict=True):
            yield memory, np.frombuffer(vector, "<f4")
        done += len(page.memories)
        move(done, total, "")
        after = page.next


def _grouped(memories: Iterator[NewMemory]) -> Iterator[list[NewMemory]]:
    """In requests that fit a frame; those without a time, which cannot be told from each other, by themselves."""
    some: list[NewMemory] = []
    chars = 0
    for memory in memories:
        chars += len(memory.text)
        if some and (len(some) == GROUP or chars > GROUP_CHARS or (memory.time is None) != (some[0].time is None)):
            yield some
            some, chars = [], len(memory.text)
        some.append(memory)
    if some:
        yield some


def _draft(memory: NewMemory, encode: bool) -> MemoryDraft:
    import numpy as np

    vector: Any = None if encode or memory.vector is None else np.asarray(memory.vector, "<f4").tobytes()
    return MemoryDraft(text=memory.text, metadata=dict(memory.metadata), vector=vector, namespace=memory.namespace,
                       tags=tuple(memory.tags), time=memory.time, source=memory.source, provenance=memory.provenance)
