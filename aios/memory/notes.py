"""A folder of notes as memories: Markdown and text files, cut into passages, brought up to date by importing it again.

Every passage remembers its file (`source`: the path inside the folder), the folder, what the file looked like and its
place in it. A file that changed is remembered anew before its old passages are forgotten, so that an import that was
interrupted has lost nothing and is mended by the next one.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol

from aios.errors import BadInput, LimitExceeded
from aios.messages import Memory, MemoryDraft

SUFFIXES: Final = {".md": True, ".markdown": True, ".txt": False, ".text": False}     # whether # begins a heading
FILE_BYTES_MAX: Final = 4 << 20          # a thousand pages; larger ones are logs and dumps, no notes
FILES_MAX: Final = 100_000
DEPTH_MAX: Final = 32
PASSAGE_CHARS_MAX: Final = 900           # of the 256 tokens that the encoder reads
GROUP: Final = 32                        # passages of one request: a second or two of encoding
PROVENANCE: Final = "document"
VERSION: Final = "1"                     # of the way files are cut: another one cuts all of them anew
_HEADING: Final = re.compile(r"(#{1,6})[ \t]+(.*?)[ \t#]*")
_FENCE: Final = re.compile(r"[ ]{0,3}(```|~~~)")
_BLANK: Final = re.compile(r"\n[ \t]*\n")
_SENTENCE: Final = re.compile(r"(?<=[.!?:;])\s+")


class Shelf(Protocol):
    """Where passages are kept."""

    def of_source(self, source: str) -> Sequence[Memory]:
        """The memories of a source."""

    def of_provenance(self, provenance: str) -> Iterator[Memory]:
        """The memories of a provenance."""

    def remember(self, drafts: Sequence[MemoryDraft]) -> Sequence[int]:
        """Keep all of them or none; their ids."""

    def forget(self, ids: Sequence[int]) -> Sequence[int]:
        """Forget them; those that were there."""


@dataclass(slots=True, kw_only=True)
class Imported:
    """What an import did."""

    files: int = 0
    added: int = 0                       # files that were not there
    replaced: int = 0                    # files that had changed
    unchanged: int = 0
    passages: int = 0                    # remembered
    forgotten: int = 0                   # passages of what changed or went
    skipped: dict[str, str] = field(default_factory=dict)     # file -> why


def import_folder(folder: Path, shelf: Shelf, *, namespace: str = "default", tags: Sequence[str] = (),
                  prune: bool = False, progress: Callable[[int, int, str], None] = lambda done, total, name: None,
                  ) -> Imported:
    """Bring the memories of a folder up to date; raises BadInput where it is none, LimitExceeded where it is too large.

    prune: forget the passages of files that are gone. progress: files done, files in all, the next one's name.
    """
    root = folder.resolve()
    report, found = Imported(), list(files(root))
    for done, source in enumerate(found):
        progress(done, len(found), source)
        try:
            text, changed = _read(root / source)
        except (BadInput, OSError) as error:
            report.skipped[source] = error.message if isinstance(error, BadInput) else str(error.strerror)
            continue
        report.files += 1
        _update(root, source, text, changed, shelf, namespace, tags, report)
    if prune:
        here = set(found)
        gone = [one.id for one in shelf.of_provenance(PROVENANCE)
                if one.metadata.get("folder") == str(root) and one.source not in here]
        report.forgotten += len(shelf.forget(gone)) if gone else 0
    progress(len(found), len(found), "")
    return report


def files(root: Path) -> Iterator[str]:
    """Paths of the notes inside a folder, in order; links and hidden files and folders are left out."""
    if not root.is_dir():
        raise BadInput(f"{root} is no folder", remedy="give the folder with your notes")
    count, todo = 0, [(root, 0)]
    while todo:
        folder, depth = todo.pop()
        with os.scandir(folder) as entries:
            ordered = sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)
        for entry in ordered:
            if entry.is_file(follow_symlinks=False) and Path(entry.name).suffix.lower() in SUFFIXES:
                if (count := count + 1) > FILES_MAX:
                    raise LimitExceeded(f"{root} holds more than {FILES_MAX} notes", remedy="import its folders singly")
                yield Path(entry.path).relative_to(root).as_posix()
        if depth < DEPTH_MAX:
            todo += [(Path(one.path), depth + 1) for one in reversed(ordered) if one.is_dir(follow_symlinks=False)]


def passages(text: str, *, markdown: bool) -> list[str]:
    """A note cut at its headings and between its paragraphs, each piece below its headings, none too long."""
    cut: list[str] = []
    for heading, body in _sections(text) if markdown else [("", text)]:
        room = PASSAGE_CHARS_MAX - (len(heading) + 1 if heading else 0)
        pieces = _joined(_BLANK.split(body), room)
        cut += [f"{heading}\n{piece}" if heading else piece for piece in pieces]
    return cut


def _update(root: Path, source: str, text: str, changed: datetime, shelf: Shelf, namespace: str, tags: Sequence[str],
            report: Imported) -> None:
    """Remember a file's passages unless they are all there, then forget what they replace."""
    told = "\0".join((VERSION, namespace, *tags, "", text))
    digest = blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    cut = passages(text, markdown=SUFFIXES[Path(source).suffix.lower()])
    known = [one for one in shelf.of_source(source)
             if one.provenance == PROVENANCE and one.metadata.get("folder") == str(root)]
    same = [one.metadata.get("passage") for one in known if one.metadata.get("digest") == digest]
    if len(same) == len(known) == len(cut) and set(same) == set(range(len(cut))):
        report.unchanged += 1
        return
    drafts = [MemoryDraft(text=piece, namespace=namespace, tags=tuple(tags), time=changed, source=source,
                          provenance=PROVENANCE, metadata={"folder": str(root), "digest": digest, "passage": number})
              for number, piece in enumerate(cut)]
    for start in range(0, len(drafts), GROUP):
        report.passages += len(shelf.remember(drafts[start:start + GROUP]))
    if known:
        report.forgotten += len(shelf.forget([one.id for one in known]))
    report.replaced += 1 if known else 0
    report.added += 0 if known else 1


def _read(path: Path) -> tuple[str, datetime]:
    """A note's text and when it was changed; raises BadInput or OSError for what is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise BadInput("no plain file", remedy="")
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise BadInput(f"larger than {FILE_BYTES_MAX >> 20} MiB", remedy="")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput("no UTF-8 text", remedy="") from None
    return text.replace("\r\n", "\n"), datetime.fromtimestamp(info.st_mtime, UTC)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """(headings from the outermost on, text below them); what stands inside a fence of code is no heading."""
    path: list[tuple[int, str]] = []
    body: list[str] = []
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1] == fence):
            fence = "" if fence else mark[1]
        if not fence and (heading := _HEADING.fullmatch(line)):
            yield _title(path), "\n".join(body)
            level, body = len(heading[1]), []
            path = [*(one for one in path if one[0] < level), (level, heading[2])]
        else:
            body.append(line)
    yield _title(path), "\n".join(body)


def _title(path: Sequence[tuple[int, str]]) -> str:
    return " > ".join(name for _, name in path if name)[:PASSAGE_CHARS_MAX // 3]


def _joined(paragraphs: Sequence[str], room: int) -> list[str]:
    """Neighbouring paragraphs together as far as they fit; one that is too long by itself is cut."""
    pieces: list[str] = []
    for paragraph in (one.strip() for one in paragraphs):
        if not paragraph:
            continue
        if pieces and len(pieces[-1]) + 2 + len(paragraph) <= room:
            pieces[-1] += "\n\n" + paragraph
        else:
            pieces += _cut(paragraph, room)
    return pieces


def _cut(paragraph: str, room: int) -> list[str]:
    """A paragraph in pieces: between sentences, else between words, else anywhere."""
    pieces: list[str] = []
    for sentence in _SENTENCE.split(paragraph) if len(paragraph) > room else [paragraph]:
        rest = sentence
        while len(rest) > room:
            at = rest.rfind(" ", 1, room)
            pieces.append(rest[:at if at > 0 else room].rstrip())
            rest = rest[at if at > 0 else room:].lstrip()
        if pieces and len(pieces[-1]) + 1 + len(rest) <= room:
            pieces[-1] += " " + rest
        elif rest:
            pieces.append(rest)
    return pieces
