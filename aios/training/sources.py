"""Where training text comes from: one reader a source, each yielding whole documents of clean lines."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios.errors import BadInput

NOVEL_YEAR_MIN = 1880  # later prose is nearer to today's English
LINE_WRAPPED_CHARS_MAX = 90  # files whose lines are shorter on average are hard-wrapped
PARAGRAPH_END_SHARE = 0.8  # in hard-wrapped text without blank lines, a line this much shorter ends one
PARAGRAPH_CHARS_MIN = 25  # drops chapter headings and page numbers
CHITCHAT_WHEEL = "chitchat_dataset-0.9.0-py3-none-any.whl"
CHITCHAT_SHA256 = "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e"

_TYPOGRAPHY = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "`": "'", "\u2013": "-", "\u2014": " - "}
    | {"_": "", "\xa0": " ", "\t": " ", "\x0c": " "}
)
_SPACES = re.compile(r"\s+")
_WORDY = re.compile(r"[ -~\xa3\xc0-\xff]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One dialogue, problem or book: its stable name and its lines of text."""

    name: str
    lines: tuple[str, ...]


def clean(text: str) -> str:
    """Return `text` in plain quotes and single spaces."""
    return _SPACES.sub(" ", text.translate(_TYPOGRAPHY)).strip()


def find(file: str, data_dirs: Sequence[Path], origin: str) -> Path:
    """Return the first `file` in `data_dirs`; raise `BadInput` with its origin."""
    for folder in data_dirs:
        if (folder / file).is_file():
            return folder / file
    folders = ", ".join(map(str, data_dirs)) or "no folder at all"
    raise BadInput(
        f"training data {file} was not found in {folders}",
        remedy=f"put it there (docs/data.md tells how it was made; origin: {origin}) or name its folder with --data",
    )


def rows_of(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    """Return these columns of a Parquet file, row by row."""
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(path, columns=columns).to_pylist()
    return rows


def read_dialogues(path: Path) -> Iterator[Document]:
    """Yield task dialogues, one utterance a line, speakers in turn."""
    name, lines = "", list[str]()
    for row in rows_of(path, ["split", "dialogue", "utterance"]):
        row_name = f"{row['split']}/{row['dialogue']}"
        if row_name != name:
            if lines:
                yield Document(name=name, lines=tuple(lines))
            name, lines = row_name, []
        if utterance := clean(row["utterance"]):
            lines.append(utterance)
    if lines:
        yield Document(name=name, lines=tuple(lines))


def conversations(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name and the turns (the messages one person sends in a row) of open-domain conversations."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != CHITCHAT_SHA256:
        raise BadInput(
            f"{path.name} has sha256 {found}, not {CHITCHAT_SHA256}",
            remedy="delete it and fetch it again: pip download --no-deps chitchat-dataset==0.9.0",
        )
    with zipfile.ZipFile(path) as wheel:
        stored = json.loads(wheel.read("chitchat_dataset/dataset.json"))
    for name, conversation in stored.items():
        turns = (clean(" ".join(message["text"] for message in turn)) for turn in conversation["messages"])
        lines = tuple(turn for turn in turns if turn and "http" not in turn and _WORDY.fullmatch(turn))
        if lines:
            yield name, lines


def read_chitchat(path: Path) -> Iterator[Document]:
    """Yield open-domain conversations, one turn a line."""
    for name, lines in conversations(path):
        yield Document(name=name, lines=lines)


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a book, whether its lines are wrapped or not."""
    lines = text.splitlines()
    filled = [len(line) for line in lines if line.strip()]
    wrapped = bool(filled) and sum(filled) / len(filled) < LINE_WRAPPED_CHARS_MAX
    full = sorted(filled)[int(len(filled) * 0.9)] if filled else 0
    held: list[str] = []
    for line in (*lines, ""):
        if line.strip():
            held.append(line)
        ends = not line.strip() or not wrapped
        ends = ends or (line.rstrip()[-1:] in '.!?"' and len(line) < full * PARAGRAPH_END_SHARE)
        if held and ends:
            yield clean(" ".join(held))
            held = []


def read_novels(path: Path) -> Iterator[Document]:
    """Yield whole novels of `NOVEL_YEAR_MIN` and later, one paragraph a line."""
    for row in rows_of(path, ["author", "title", "year", "text"]):
        if int(row["year"]) < NOVEL_YEAR_MIN:
            continue
        lines = tuple(
            line
            for line in paragraphs(row["text"])
            if len(line) >= PARAGRAPH_CHARS_MIN and _WORDY.fullmatch(line)
        )
        yield Document(name=f"{row['author']}/{row['title']}", lines=lines)


def read_articles(path: Path) -> Iterator[Document]:
    """Yield encyclopedia lines as one document; held out only, never trained on."""
    lines = (clean(row["text"]) for row in rows_of(path, ["text"]))
    yield Document(name="all", lines=tuple(line for line in lines if line and not line.startswith("=")))
