"""Held-out text that comes with the package: test documents of the sources whose licence lets us pass them on.

The set is made by `aios train data held-out`. A document goes to a split by a hash of its name, so that no model
trained on a build of the recipe has seen these, and bits per byte can be measured from a clone alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from aios.errors import BadInput
from aios.training.vocabulary import RESERVED

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from aios.training.build import Gathered, Progress
    from aios.training.sources import Document

RECIPE: Final = "small"
PATH: Final = Path(__file__).parent / "sets" / "heldout_text.parquet"
COLUMNS: Final = ("source", "name", "origin", "licence", "text")
SOURCE_BYTES_MAX: Final = 100_000       # about 30,000 tokens: bits per byte within a percent or two
# Left out: files under several licences, sentences out of few templates, and text that is only measured.
LEFT_OUT: Final = frozenset({"packages", "facts", "articles"})
NAMES_KEPT_MAX: Final = 200             # of a source so small that its split depends on all of its names
NAMES_KEY: Final = b"names"             # of the file's metadata: source -> names of all its documents
COMPRESSION_LEVEL: Final = 19

_RESERVED = re.compile("|".join(map(re.escape, RESERVED)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """One document of the set."""

    source: str
    name: str
    origin: str
    licence: str
    text: str


def plain(text: str) -> str:
    """The text as every model is judged on it: a reserved token (a role, the beginning of code) is a line break."""
    return _RESERVED.sub("\n", text)


def read(path: Path = PATH) -> list[HeldOut]:
    """The documents of the set, source after source; BadInput where pyarrow is missing."""
    rows: list[dict[str, str]] = _parquet().read_table(path, columns=list(COLUMNS)).to_pylist()
    return [HeldOut(**row) for row in rows]


def names_of_small_sources(path: Path = PATH) -> dict[str, list[str]]:
    """The names of all documents of those sources that are too few to fill every split by their hashes."""
    told: dict[str, list[str]] = json.loads(_parquet().read_schema(path).metadata[NAMES_KEY])
    return told


def make(folders: Sequence[Path], path: Path = PATH, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write the set from the recipe's sources in `folders`; return how much of each source is in it."""
    from aios.training.build import collect
    from aios.training.recipes.mixtures import read_mixture

    mixture = read_mixture(RECIPE)
    told = {name: share for name, share in mixture.sources.items() if name not in LEFT_OUT}
    mixture = replace(mixture, sources=told, measured={})
    gathered = collect(mixture, folders, *(() if progress is None else (progress,)))
    rows = [row for name, source in gathered.items() for row in _rows(name, source)]
    names = {name: sorted(document.name for documents in source.documents.values() for document in documents)
             for name, source in gathered.items() if source.facts["read"] <= NAMES_KEPT_MAX}
    _write(rows, names, path)
    return {"file": str(path), "bytes": path.stat().st_size, "documents": len(rows),
            "sources": {name: sum(len(row.text.encode()) for row in rows if row.source == name) for name in gathered}}


def _rows(name: str, source: Gathered) -> list[HeldOut]:
    """Test documents until the source's room is full; the last one may be its beginning only."""
    rows, room = [], SOURCE_BYTES_MAX
    for document in source.documents["test"]:
        text = _beginning(document, room)
        if not text:
            break
        room -= len(text.encode())
        rows.append(HeldOut(source=name, name=document.name, origin=source.facts["origin"],
                            licence=source.facts["licence"], text=text))
    return rows


def _beginning(document: Document, room: int) -> str:
    from aios.training.build import shortened

    return "\n".join(shortened(document, room / 1000).lines)


def _write(rows: Sequence[HeldOut], names: Mapping[str, Sequence[str]], path: Path) -> None:
    import pyarrow

    from aios.training.checkpoints import publish

    table = pyarrow.table({column: [getattr(row, column) for row in rows] for column in COLUMNS})
    table = table.replace_schema_metadata({NAMES_KEY: json.dumps(names)})
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".partial")
    _parquet().write_table(table, staged, compression="zstd", compression_level=COMPRESSION_LEVEL)
    publish(staged, path)


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise BadInput("the evaluation sets are Parquet files", remedy="pip install 'aios-daemon[bench]'") from None
    return parquet


@dataclass(frozen=True)
class Cut:
    """One source's documents as one model's tokens, an end of text behind each, and the bytes of text in each token."""

    source: str
    tokens: NDArray[np.uint16]
    token_bytes: NDArray[np.int64]      # by token id
    weight: float                       # of the source in the recipe, all sources of the set adding up to 1

    @cached_property
    def bytes(self) -> int:
        """Of the whole source; a reserved token counts as one line break."""
        return int(self.token_bytes[self.tokens].sum())

    def windows(self, length: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Where at most `count` windows begin that do not overlap, in their order, drawn by `rng`."""
        there = max(len(self.tokens) // length, 1)
        chosen = np.sort(rng.permutation(there)[:count])
        found: NDArray[np.int64] = chosen * length
        return found


def cuts(documents: Sequence[HeldOut], tokenizer: Tokenizer, eot: int) -> list[Cut]:
    """The set by source, cut by a model's tokenizer."""
    from aios.training.recipes.mixtures import read_mixture

    shares = read_mixture(RECIPE).sources
    names = sorted({document.source for document in documents}, key=list(shares).index)
    total = sum(shares[name].share for name in names)
    sizes = token_sizes(tokenizer)
    found = []
    for name in names:
        texts = [document.text for document in documents if document.source == name]
        ids = [token for encoding in tokenizer.encode_batch_fast(texts) for token in (*encoding.ids, eot)]
        found.append(Cut(source=name, tokens=np.array(ids, dtype=np.uint16), token_bytes=sizes,
                         weight=shares[name].share / total))
    return found


def token_sizes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """How many bytes of text each token of a byte-level tokenizer stands for; 1 for reserved tokens."""
    special = tokenizer.get_added_tokens_decoder()
    sizes = np.ones(tokenizer.get_vocab_size(with_added_tokens=True), dtype=np.int64)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index not in special:
            sizes[index] = len(token)   # one character a byte, whichever
    return sizes


def spelled(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of tokens with a line break for every reserved one."""
    special, runs = tokenizer.get_added_tokens_decoder(), [list[int]()]
    for token in ids:
        if token in special:
            runs.append([])
        else:
            runs[-1].append(int(token))
    return "\n".join(tokenizer.decode(run) for run in runs)
