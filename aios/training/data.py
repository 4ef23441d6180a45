"""Token streams, held out by document, and training windows that depend on seed and step alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from aios.training.sources import Document
from aios.training.vocabulary import EOT_ID

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENCODE_BATCH = 1024  # documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One source's documents end to end, an end-of-text token behind each.

    tokens: uint16 ids. starts: index of the first token of every line. bytes: UTF-8 length of the text.
    """

    tokens: np.ndarray
    starts: np.ndarray
    bytes: int

    def windows(self, first: np.ndarray, length: int) -> np.ndarray:
        """Return the (len(first), length) windows that begin at `first`, running round at the end."""
        index = (first[:, None] + np.arange(length)) % len(self.tokens)
        return self.tokens[index].astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The training mixture and its held-out documents, tokenised."""

    train: Mapping[str, Stream]
    held_out: Mapping[str, Stream]
    weights: Mapping[str, float]

    def batch(self, *, seed: int, step: int, rows: int, length: int) -> Int[Tensor, "b s"]:
        """Return the windows of training step `step`: each begins at a line of a source drawn by weight."""
        rng = np.random.default_rng((seed, step))
        names = list(self.weights)
        chosen = rng.choice(len(names), size=rows, p=np.array([self.weights[name] for name in names]))
        windows = np.empty((rows, length), dtype=np.int64)
        for index, name in enumerate(names):
            mine = np.flatnonzero(chosen == index)
            stream = self.train[name]
            windows[mine] = stream.windows(
                stream.starts[rng.integers(len(stream.starts), size=len(mine))], length
            )
        return torch.from_numpy(windows)

    def held_out_windows(self, name: str, *, rows: int, length: int) -> Int[Tensor, "b s"]:
        """Return at most `rows` windows of held-out text, evenly spread and never overlapping."""
        stream = self.held_out[name]
        count = max(1, len(stream.tokens) // length)
        first = np.unique(np.linspace(0, count - 1, min(rows, count)).astype(np.int64)) * length
        return torch.from_numpy(stream.windows(first, length))


def line_breaks(tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids behind which a line begins: line breaks, with or without indentation."""
    newline = "\u010a"  # how byte-level tokenizers spell a line feed
    return np.array(
        sorted(index for token, index in tokenizer.get_vocab().items() if newline in token), dtype=np.uint16
    )


def tokenise(documents: Sequence[Document], tokenizer: Tokenizer) -> Stream:
    """Return the documents as one stream; lines are joined by line feeds."""
    pieces, size = [], 0
    for begin in range(0, len(documents), ENCODE_BATCH):
        texts = ["\n".join(document.lines) for document in documents[begin : begin + ENCODE_BATCH]]
        size += sum(len(text.encode()) for text in texts)
        for encoding in tokenizer.encode_batch_fast(texts):
            pieces.append(np.array([*encoding.ids, EOT_ID], dtype=np.uint16))
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.uint16)
    behind = np.append(line_breaks(tokenizer), EOT_ID).astype(np.uint16)
    starts = np.flatnonzero(np.isin(tokens, behind)) + 1
    starts = np.append(0, starts[starts < len(tokens)]).astype(np.int64)
    return Stream(tokens=tokens, starts=starts, bytes=size)


def save_stream(stream: Stream, path: Path) -> None:
    """Write a stream, compressed."""
    steps = np.diff(stream.starts, prepend=0).astype(np.uint32)  # small numbers compress well
    np.savez_compressed(path, tokens=stream.tokens, steps=steps, bytes=np.int64(stream.bytes))


def load_stream(path: Path) -> Stream:
    """Read what `save_stream` wrote, or an earlier version of it with the starts themselves."""
    with np.load(path, allow_pickle=False) as stored:
        starts = stored["starts"] if "starts" in stored else np.cumsum(stored["steps"], dtype=np.int64)
        return Stream(tokens=stored["tokens"], starts=starts, bytes=int(stored["bytes"]))


def open_corpus(folder: Path) -> Corpus:
    """Open what `build` wrote; the test split stays closed, `aios eval` alone opens it."""
    index = json.loads((folder / "corpus.json").read_text())
    weights: dict[str, float] = index["weights"]
    return Corpus(
        train={name: load_stream(folder / f"{name}.train.npz") for name in weights},
        held_out={
            name: load_stream(folder / f"{name}.held_out.npz")
            for name, sizes in index["sizes"].items()
            if "held_out_tokens" in sizes
        },
        weights=weights,
    )
