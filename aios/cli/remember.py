"""`aios remember`, `aios recall` and `aios forget`: single memories."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aios.cli import render
from aios.cli.ask import text_argument, whole
from aios.cli.options import Json, Yes
from aios.errors import BadInput
from aios.messages import MemoryFilter, to_wire

if TYPE_CHECKING:
    from aios.ipc.client import Client
    from aios.messages import Memory

FILE_BYTES_MAX = 1 << 20      # of one memory, as the store has it
EXAMPLES = 5                  # of what will be forgotten, shown before the question
SHOWN_CHARS = 200             # of a memory in a table
_AGO = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Tags = Annotated[list[str] | None, typer.Option("--tag", "-t", help="A tag; may be given several times.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="A namespace of memories.")]
Source = Annotated[str | None, typer.Option(help="Where it comes from: a path, an address.")]
Provenance = Annotated[str | None, typer.Option(help="What may be believed of it: owner, document, peer, tool.")]
Since = Annotated[str | None, typer.Option(help="Not older: 2026-11-22, 2026-11-22T18:00, or 7d, 12h, 30m ago.")]
Until = Annotated[str | None, typer.Option(help="Older than this.")]


def remember(
    text: Annotated[str | None, typer.Argument(help="What to keep; - reads standard input.")] = None,
    tag: Tags = None, namespace: Namespace = None, source: Source = None, provenance: Provenance = "owner",
    metadata: Annotated[str | None, typer.Option(help="A JSON object that is kept, sealed, with the text.")] = None,
    file: Annotated[Path | None, typer.Option(help="Keep the text of this file as one memory.")] = None,
    json: Json = False,
) -> None:
    """Keep a memory.

    The command ends when the memory is safely on the disk, and prints its id.
    """
    if (text is None) == (file is None):
        raise BadInput("there is nothing to remember, or too much", remedy="give a text, or --file FILE")
    kept = text_argument(text) if text is not None else _file(file)
    told = {"text": kept, "tags": [whole(one) for one in tag or ()], "metadata": _metadata(metadata),
            "namespace": namespace or "default", "provenance": provenance or "",
            "source": source if source is not None else str(file) if file else ""}
    from aios.ipc.client import connect

    with connect() as client:
        ids = client.call("memory.remember", memories=[told])
    render.emit({"ids": ids}, json, lambda: render.say(f"remembered as {ids[0]}"))


def recall(
    query: Annotated[str, typer.Argument(help="What to look for; - reads standard input.")],
    k: Annotated[int, typer.Option("-k", help="How many.")] = 5,
    tag: Tags = None, namespace: Namespace = None, source: Source = None, provenance: Provenance = None,
    since: Since = None, until: Until = None, json: Json = False,
) -> None:
    """Find the memories nearest in meaning.

    With conditions only memories that fulfil all of them are looked at; several tags must all be there.
    """
    asked = text_argument(query)
    found_of = conditions(tag, namespace, source, provenance, since, until)
    from aios.ipc.client import connect

    with connect() as client:
        found = client.recall(asked, k, found_of)
    render.emit({"memories": to_wire(found)}, json, lambda: _show(found))


def forget(
    ids: Annotated[list[int] | None, typer.Argument(help="Ids, as recall shows them.")] = None,
    tag: Tags = None, namespace: Namespace = None, source: Source = None, provenance: Provenance = None,
    since: Since = None, until: Until = None, yes: Yes = False, json: Json = False,
) -> None:
    """Forget memories for good, by id or by conditions.

    Text, metadata and vector cannot be read any more as soon as this returns; `aios memory compact` takes their bytes
    off the disk.
    """
    filter = conditions(tag, namespace, source, provenance, since, until)
    named = filter != MemoryFilter()
    if bool(ids) == named:
        raise BadInput("what is forgotten is named by ids or by conditions", remedy="give ids, or --tag and its like")
    from aios.ipc.client import connect

    with connect() as client:
        if not yes and not _agreed(client, ids or [], filter if named else None):
            render.emit({"forgotten": []}, json, lambda: render.say("no memory is meant by that"))
            return
        gone = client.forget(filter if named else ids or [])
    render.emit({"forgotten": gone}, json, lambda: render.say(
        f"forgotten: {', '.join(map(str, gone[:EXAMPLES]))}{' …' if len(gone) > EXAMPLES else ''} ({len(gone)})"
        if gone else "no memory is meant by that"))


def conditions(tag: list[str] | None, namespace: str | None, source: str | None, provenance: str | None,
               since: str | None, until: str | None) -> MemoryFilter:
    """The options as a filter; raises BadInput."""
    def one(value: str | None) -> tuple[str, ...]:
        return () if value is None else (whole(value),)

    return MemoryFilter(namespaces=one(namespace), tags=tuple(whole(name) for name in tag or ()), sources=one(source),
                        provenances=one(provenance), since=_moment(since), until=_moment(until))


def row(memory: Memory) -> list[object]:
    """A memory as a line of a table."""
    text = " ".join(memory.text.split())
    return [memory.id, None if memory.score is None else f"{memory.score:.3f}",
            memory.time.astimezone().strftime("%Y-%m-%d %H:%M"),
            text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS - 1] + "…", ", ".join(memory.tags), memory.source]


def _show(found: list[Memory]) -> None:
    columns = ["id", "score", "time", "text", "tags", "source"]
    render.table(columns, [row(one) for one in found], "nothing comes to mind")


def _agreed(client: Client, ids: list[int], filter: MemoryFilter | None) -> bool:
    """Say what is meant and ask; False when nothing is. typer.Abort after a no."""
    if filter is None:
        render.confirm(f"Forget {'memory' if len(ids) == 1 else 'memories'} {', '.join(map(str, ids))} for good?")
        return True
    page = client.memory_page(filter, limit=EXAMPLES)
    if not page.memories:
        return False
    for memory in page.memories:
        render.remark("  ".join(str(cell) for cell in row(memory)[:1] + row(memory)[3:4]))
    if page.total > len(page.memories):
        render.remark(f"… and {page.total - len(page.memories)} more")
    render.confirm(f"Forget {page.total} {'memory' if page.total == 1 else 'memories'} for good?")
    return True


def _file(path: Path | None) -> str:
    assert path is not None
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}", remedy="check the path") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no UTF-8 text", remedy="convert it, for example with iconv") from error
    if len(raw) > FILE_BYTES_MAX:
        raise BadInput(f"{path} is larger than {FILE_BYTES_MAX} bytes", remedy="aios memory notes FOLDER cuts files up")
    return text


def _metadata(text: str | None) -> dict[str, Any]:
    import msgspec

    if text is None:
        return {}
    try:
        return msgspec.json.decode(whole(text), type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadInput(f"--metadata is no JSON object: {error}", remedy="""for example '{"page": 3}'""") from error


def _moment(text: str | None) -> datetime | None:
    """A date, a time or a length of time ago; a time without its zone is this machine's."""
    if text is None:
        return None
    try:
        if ago := _AGO.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise BadInput(f"{text[:40]!r} is no time", remedy="2026-11-22, 2026-11-22T18:00, or 7d, 12h, 30m") from error
