"""Real sentence vectors for `aios bench vector`: sentences from the data at hand, encoded once and kept in the cache.

The sentences do not depend on the run's seed, so that the cache serves every run; which vectors are queries does. A
quick run takes the first of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aios.config import Config, Places
from aios.lab import heldout
from aios.lab.report import LabOptions, sha256_file
from aios.store import models

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL: Final = "minilm"
CALL_TEXTS = 1024                       # sentences of one call of the encoder
WORDS_MIN, CHARACTERS_MAX = 3, 240      # of a sentence; longer ones are mostly tables and quotations
#: File, columns that hold text. The novels come last: they fill what the others leave.
SOURCES: Final[Sequence[tuple[str, tuple[str, ...]]]] = (
    ("stsb_en.parquet", ("a", "b")), ("clinc150.parquet", ("text",)), ("sgd_turns.parquet", ("utterance",)),
    ("wikitext2_valid.parquet", ("text",)), ("english_novels.parquet", ("text",)))
SHARE_MAX: Final = 0.3                  # of all sentences that one file but the last may give
SENTENCES = 104_000                     # 100,000 to be searched, queries, and some to spare for equal vectors
SAMPLING_SEED = 11
_ENDS: Final = re.compile(r"(?<=[.!?])[\"'”’)]*\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceVectors:
    """Distinct vectors (n, d) of distinct real sentences in random order, and where they come from."""

    vectors: NDArray[np.float32]
    release: str                # of the encoder
    origin: str                 # for the row
    data: dict[str, str]        # file name -> SHA-256


def sentence_vectors(count: int, options: LabOptions) -> SentenceVectors:
    """At most `count` of them: fewer where the data at hand has fewer sentences. ModelMissing without the encoder."""
    record = models.find(MODEL, Places.find())
    files = [(file, columns) for name, columns in SOURCES if (file := options.find_data(name))]
    data = {file.name: sha256_file(file) for file, _ in files}
    said = json.dumps([record.release, data, SENTENCES, SAMPLING_SEED])
    folder, key = Places.find().cache / "vectors", hashlib.sha256(said.encode()).hexdigest()[:16]
    kept = [path for size in (count, SENTENCES) if (path := folder / f"{key}-{size}.npy").is_file()]
    if not kept:
        kept = [folder / f"{key}-{count}.npy"]
        _keep(_encoded(_sentences(files, SENTENCES)[:count], options.progress), kept[0])
    vectors: NDArray[np.float32] = np.load(kept[0], allow_pickle=False)[:count]
    named = ", ".join(["the committed held-out texts", *(file.name for file, _ in files)])
    return SentenceVectors(vectors=vectors, release=record.release, origin=f"sentences of {named}", data=data)


def _sentences(files: list[tuple[Path, tuple[str, ...]]], count: int) -> list[str]:
    """`count` distinct sentences in random order, always the same ones for the same files."""
    rng = np.random.default_rng(SAMPLING_SEED)
    chosen: dict[str, None] = {}
    sources: list[Iterator[str]] = [_split(heldout.plain(document.text) for document in heldout.read())]
    sources += [_split(_column(file, columns)) for file, columns in files]
    for number, source in enumerate(sources):
        known = list(dict.fromkeys(source))
        most = count if number == len(sources) - 1 else int(count * SHARE_MAX)
        for index in rng.permutation(len(known))[:min(most, count - len(chosen))]:
            chosen.setdefault(known[index])
    texts = list(chosen)
    return [texts[index] for index in rng.permutation(len(texts))]


def _column(file: Path, columns: tuple[str, ...]) -> Iterator[str]:
    from pyarrow import parquet

    for column in columns:
        for text in parquet.read_table(file, columns=[column]).column(0):
            yield text.as_py() or ""


def _split(texts: Iterator[str]) -> Iterator[str]:
    """The sentences of texts, white space as single blanks."""
    for text in texts:
        for sentence in _ENDS.split(text):
            plain = " ".join(sentence.split())
            if len(plain) <= CHARACTERS_MAX and plain.count(" ") >= WORDS_MIN - 1:
                yield plain


def _encoded(texts: list[str], progress: Callable[[str, float], None]) -> NDArray[np.float32]:
    """One vector a sentence, those that are equal to an earlier one left out."""
    from aios.engine.arrow import ArrowEngine

    engine, order = ArrowEngine.open(Config()), sorted(range(len(texts)), key=lambda index: len(texts[index]))
    pieces = []
    for start in range(0, len(order), CALL_TEXTS):
        progress(f"encoding {len(texts)} sentences, once", 0.0)
        pieces.append(engine.encode([texts[index] for index in order[start:start + CALL_TEXTS]]))
    vectors = np.empty((len(texts), pieces[0].shape[1]), np.float32)
    vectors[order] = np.concatenate(pieces)
    _, first = np.unique(vectors, axis=0, return_index=True)
    distinct: NDArray[np.float32] = vectors[np.sort(first)]
    return distinct


def _keep(vectors: NDArray[Any], path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        np.save(file, vectors, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)

