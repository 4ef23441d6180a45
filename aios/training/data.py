"""Token streams, held out by document, and training windows that depend on seed and step alone."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from aios.training.sources import ELSEWHERE, MIXTURE, Document, Source, find
from aios.training.vocabulary import EOT_ID

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("<|pad|>", "<|mask|>", "<|eot|>", *(f"<|spare{index}|>" for index in range(3, 32)))
NEVER_WRITTEN = tuple(index for index in range(len(SPECIAL_TOKENS)) if index != EOT_ID)
HELD_OUT_PERCENT = 5  # 1 novel of 61, about 700 task dialogues and 350 conversations
TOKENIZER_BYTES = 12_000_000  # enough text to settle 1,760 merges; more changes few of them
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


def is_held_out(document: Document) -> bool:
    """Decide by the document's name alone, so that the split never depends on order or count."""
    digest = hashlib.sha256(document.name.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def mixture_text(
    documents: Mapping[str, Sequence[Document]], weights: Mapping[str, float], seed: int
) -> Iterator[str]:
    """Yield lines of training documents in the proportions of the mixture, for training the tokenizer."""
    for name, weight in weights.items():
        shuffled = list(documents[name])
        random.Random(seed).shuffle(shuffled)
        budget = int(TOKENIZER_BYTES * weight)
        for line in (line for document in shuffled for line in document.lines):
            if budget <= 0:
                break
            budget -= len(line)
            yield line


def train_tokenizer(lines: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer with single digits; ids 0 to 31 are reserved.

    Source: Sennrich et al. 2016; bytes as in Radford et al. 2019 ("Language models are unsupervised ...").
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


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


def read_split(source: Source, data_dirs: Sequence[Path]) -> tuple[list[Document], list[Document]]:
    """Return the source's training and held-out documents."""
    train: list[Document] = []
    held_out: list[Document] = []
    for document in source.read(find(source.file, data_dirs, source.origin)):
        (held_out if source.weight == 0 or is_held_out(document) else train).append(document)
    return train, held_out


def prepare(data_dirs: Sequence[Path], folder: Path, *, vocab_size: int, seed: int) -> None:
    """Write tokenizer.json and every stream to `folder`; `corpus.json`, written last, marks them complete."""
    folder.mkdir(parents=True, exist_ok=True)
    split = {source.name: read_split(source, data_dirs) for source in (*MIXTURE, ELSEWHERE)}
    weights = {source.name: source.weight for source in MIXTURE}
    train = {name: documents for name, (documents, _) in split.items()}
    tokenizer = train_tokenizer(mixture_text(train, weights, seed), vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes: dict[str, dict[str, int]] = {}
    for name, (kept, held_out) in split.items():
        sizes[name] = {}
        for which, documents in (("train", kept), ("held_out", held_out)):
            if documents:
                shuffled = list(documents)
                random.Random(seed).shuffle(shuffled)
                stream = tokenise(shuffled, tokenizer)
                save_stream(stream, folder / f"{name}.{which}.npz")
                sizes[name] |= {
                    f"{which}_tokens": len(stream.tokens),
                    f"{which}_bytes": stream.bytes,
                    f"{which}_documents": len(documents),
                }
    (folder / "corpus.json").write_text(json.dumps({"weights": weights, "sizes": sizes}, indent=2))


def open_corpus(folder: Path) -> Corpus:
    """Open what `prepare` or `build` wrote; the test split stays closed, `aios eval` alone opens it."""
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
