"""From a data recipe to one folder: read, drop duplicates, split by document, cut into tokens, write a manifest.

The folder holds `manifest.json` (what came from where), `tokenizer.json`, `corpus.json` (shares and sizes) and, for
every source, `NAME.train.npz`, `NAME.held_out.npz` (validation) and `NAME.test.npz`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from aios.errors import BadInput
from aios.training.data import load_stream, save_stream, tokenise
from aios.training.duplicates import Seen
from aios.training.recipes.catalogue import ORIGINS, Origin
from aios.training.recipes.mixtures import Mixture, Share
from aios.training.sources import Document
from aios.training.vocabulary import file_sha256, train_vocabulary, vocabulary_path

FORMAT: Final = 1
SEED: Final = 7                              # of the order of documents
VOCABULARY_BYTES: Final = 30_000_000         # enough text to settle 3,600 merges
Split = Literal["train", "held_out", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "held_out", "test")
Progress = Callable[[str, float], None]      # what is being done, how much of everything is done


def _silent(_what: str, _share: float) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """One source, read: its documents by split, and what is told about it in the manifest."""

    documents: Mapping[Split, Sequence[Document]]
    facts: Mapping[str, Any]


def place(name: str) -> float:
    """Return where a document's name falls in 0..1: the same for every source, order and count of documents."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def shortened(document: Document, kilobytes: float) -> Document:
    """Return the document's first lines, of this many kilobytes at most."""
    room, kept = int(kilobytes * 1000), []
    for line in document.lines:
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.append(line)
    return replace(document, lines=tuple(kept))


def gather(origin: Origin, share: Share, mixture: Mixture, paths: Sequence[Path], seen: Seen) -> Gathered:
    """Read one source, without what repeats, and split it by the documents' names."""
    counts = {"read": 0, "exact": 0, "near": 0}
    kept: list[Document] = []
    for document in (document for path in paths for document in origin.read(path)):
        counts["read"] += 1
        cut = shortened(document, share.document_kilobytes_max) if share.document_kilobytes_max else document
        repeats = seen.repeats(cut)
        if repeats:
            counts[repeats] += 1
        elif cut.lines:
            kept.append(cut)
    kept.sort(key=lambda document: place(document.name))
    kept = _within(kept, share.megabytes_max)
    facts = {"origin": origin.origin, "licence": origin.licence, "files": origin.hashes(paths), **counts,
             "share": share.share}
    return Gathered(documents=splits(kept, share, mixture), facts=facts)


def _within(documents: list[Document], megabytes: float) -> list[Document]:
    """Return documents in an order of their own until so many megabytes are full."""
    if not megabytes:
        return documents
    order = sorted(documents, key=lambda document: place(f"kept {document.name}"))
    room, kept = int(megabytes * 1e6), []
    for document in order:
        room -= sum(len(line.encode()) + 1 for line in document.lines)
        if room < 0:
            break
        kept.append(document)
    return sorted(kept, key=lambda document: place(document.name))


def splits(documents: Sequence[Document], share: Share, mixture: Mixture) -> dict[Split, list[Document]]:
    """Give each document to a split by the place of its name; a measured source is all validation."""
    if not share.share:
        return {"train": [], "held_out": list(documents), "test": []}
    test, held_out = mixture.test_percent / 100, (mixture.test_percent + mixture.validation_percent) / 100
    split: dict[Split, list[Document]] = {"train": [], "held_out": [], "test": []}
    for document in documents:
        at = place(document.name)
        split["test" if at < test else "held_out" if at < held_out else "train"].append(document)
    for which in ("held_out", "test"):   # a few books: the next one in line, so that no split is empty
        if not split[which] and len(split["train"]) > 1:
            split[which].append(split["train"].pop(0))
    return split


def collect(mixture: Mixture, folders: Sequence[Path], progress: Progress = _silent) -> dict[str, Gathered]:
    """Read every source of the mixture; optional ones that are not there are left out."""
    located: dict[str, tuple[Path, ...]] = {}
    for name, share in mixture.every.items():
        try:
            located[name] = ORIGINS[name].locate(folders)
        except BadInput:
            if not share.optional:
                raise
    gathered: dict[str, Gathered] = {}
    for done, (name, paths) in enumerate(located.items()):
        progress(f"reading {name}", 0.5 * done / len(located))
        # Two readings of one file (a dialogue, and the calls it leads to) are meant to overlap.
        gathered[name] = gather(ORIGINS[name], mixture.every[name], mixture, paths, Seen())
    return gathered


def vocabulary_text(gathered: Mapping[str, Gathered], weights: Mapping[str, float]) -> Iterator[str]:
    """Yield training documents in the proportions of the mixture."""
    for name, weight in weights.items():
        documents = list(gathered[name].documents["train"])
        random.Random(SEED).shuffle(documents)
        room = int(VOCABULARY_BYTES * weight)
        for document in documents:
            if room <= 0:
                break
            text = "\n".join(document.lines)[:room]
            room -= len(text)
            yield text


def weights_of(mixture: Mixture, present: Mapping[str, Gathered]) -> dict[str, float]:
    """Return the shares of the sources that are there, adding up to 1."""
    shares = {name: share.share for name, share in mixture.sources.items()
              if name in present and present[name].documents["train"]}
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def build(mixture: Mixture, folders: Sequence[Path], out: Path, *, new_vocabulary: bool = False,
          progress: Progress = _silent) -> dict[str, Any]:
    """Build the recipe into `out`, whole or not at all; return the manifest.

    Without `new_vocabulary` the frozen tokenizer of the recipe's size is used.
    """
    from tokenizers import Tokenizer

    gathered = collect(mixture, folders, progress)
    weights = weights_of(mixture, gathered)
    staged = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    if new_vocabulary:
        progress("training the tokenizer", 0.5)
        train_vocabulary(vocabulary_text(gathered, weights), mixture.vocabulary).save(str(staged / "tokenizer.json"))
    else:
        shutil.copyfile(frozen(mixture.vocabulary), staged / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(staged / "tokenizer.json"))
    sizes = {}
    for done, (name, source) in enumerate(gathered.items()):
        progress(f"cutting {name} into tokens", 0.6 + 0.4 * done / len(gathered))
        sizes[name] = _write(name, source, tokenizer, staged)
    manifest = {
        "format": FORMAT, "recipe": mixture.name, "mixture": _plain(mixture),
        "tokenizer_sha256": file_sha256(staged / "tokenizer.json"),
        "sources": {name: {**source.facts, **sizes[name]} for name, source in gathered.items()},
        "streams": {path.name: stream_sha256(path) for path in sorted(staged.glob("*.npz"))},
    }
    _write_json(staged / "manifest.json", manifest)
    _write_json(staged / "corpus.json", {"weights": weights, "sizes": sizes})
    shutil.rmtree(out, ignore_errors=True)
    staged.rename(out)
    progress("done", 1.0)
    return manifest


def frozen(size: int) -> Path:
    """Return the frozen tokenizer of `size` entries; BadInput if there is none yet."""
    path = vocabulary_path(size)
    if not path.is_file():
        raise BadInput(f"no frozen tokenizer of {size} entries", remedy="build with --new-vocabulary")
    return path


def _write(name: str, source: Gathered, tokenizer: Any, folder: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for split in SPLITS:
        documents = list(source.documents[split])
        if not documents:
            continue
        random.Random(SEED).shuffle(documents)
        stream = tokenise(documents, tokenizer)
        save_stream(stream, folder / f"{name}.{split}.npz")
        sizes |= {f"{split}_tokens": len(stream.tokens), f"{split}_bytes": stream.bytes,
                  f"{split}_documents": len(documents)}
    return sizes


def stream_sha256(path: Path) -> str:
    """Return the SHA-256 of a stream's tokens, whatever the compression of its file."""
    return hashlib.sha256(load_stream(path).tokens.astype("<u2").tobytes()).hexdigest()


def data_sha256(folder: Path) -> str:
    """Return one hash for what a run reads: tokenizer, shares and streams, as the manifest names them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = json.loads((folder / "corpus.json").read_text())["weights"]
    told = json.dumps([manifest["tokenizer_sha256"], weights, manifest["streams"]], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _plain(mixture: Mixture) -> dict[str, Any]:
    told = {name: getattr(mixture, name) for name in ("description", "vocabulary", "validation_percent",
                                                      "test_percent")}
    return {**told, "sources": {name: asdict(share) for name, share in mixture.every.items()}}


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
