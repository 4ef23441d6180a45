"""`aios eval encode`: our sentence encoder beside sentence-transformers, on the same files and sentences.

Equality on 1,000 sentences, quality on the STS-B development set, speed side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np

from aios.config import Config, Places
from aios.errors import AiosError
from aios.lab.report import LabOptions, Report, Row, sha256_file
from aios.lab.statistics import Floats, bootstrap, spearman
from aios.store import models
from aios.store.record import ModelRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aios.lab.peer_encoder import PeerEncoder

MODEL = "minilm"
STSB = "stsb_en.parquet"
MIN_COSINE: Final = Row(metric="min_cosine", value=None, unit="", better="higher", must=0.9999, reason="not run")
STS: Final = Row(metric="sts_dev_spearman", value=None, unit="", better="higher", must=0.866, reason="not run")
SENTENCES = 1000
SENTENCES_QUICK = 200
TOKENS_PER_SENTENCE = 16        # of the speed rows
SPEED_SENTENCES = 256
SPEED_SENTENCES_QUICK = 128
REPEATS = 9
REPEATS_QUICK = 3
# What a person may send and a list of sentences does not hold: nothing, blanks, emoji, control characters, length.
ODD: Final = ("", " ", "\n\t", "a", "ä ö ü ß", "日本語の文です。", "🙂🙃", "\x00\x01", "...!!!???", "word " * 400)

Encode = Callable[[Sequence[str]], "NDArray[np.float32]"]


def run(options: LabOptions) -> Report:
    """Measure all rows; what cannot be measured here is null with the reason."""
    try:
        record = models.find(MODEL, Places.find())
    except AiosError as error:
        reason = f"{error.message}: {error.remedy}"
        return Report.of("encode", [replace(MIN_COSINE, reason=reason), replace(STS, reason=reason)], options)
    from aios.engine.arrow import ArrowEngine
    from aios.lab.peer_encoder import open_peer

    file = options.find_data(STSB)
    engine = ArrowEngine.open(Config())
    with open_peer(record) as peer:
        rows = [_equality(engine.encode, peer, _sentences(record, file, options), options)]
        rows += _quality(engine.encode, peer, file, options)
        rows += _speed(engine.encode, peer, record, options)
    return Report.of("encode", rows, options, data={STSB: sha256_file(file)} if file else {},
                     checkpoints={record.name: record.release})


def _equality(encode: Encode, peer: PeerEncoder | None, texts: list[str], options: LabOptions) -> Row:
    from aios.lab.peer_encoder import INSTALL, PEER

    if peer is None:
        return replace(MIN_COSINE, peer=PEER, reason=INSTALL)
    options.progress("equality with the peer", 0.1)
    ours, theirs = encode(texts).astype(np.float64), peer.encode(texts).astype(np.float64)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / norms
    return replace(MIN_COSINE, value=float(cosines.min()), n=len(texts), peer=PEER, peer_version=peer.version,
                   reason=f"mean {cosines.mean():.7f}")


def _quality(encode: Encode, peer: PeerEncoder | None, file: Path | None, options: LabOptions) -> list[Row]:
    from aios.lab.peer_encoder import PEER

    if file is None:
        return [replace(STS, reason=f"no {STSB}: name its folder with --data or AIOS_DATA (docs/data.md)")]
    pairs = _pairs(file, "dev")
    first, second = [a for a, _, _ in pairs], [b for _, b, _ in pairs]
    gold = np.array([score for _, _, score in pairs])
    options.progress("STS-B development set", 0.2)
    values = _cosines(encode, first, second)
    row = replace(STS, value=spearman(values, gold), n=len(pairs), reason=None,
                  interval=bootstrap(spearman, values, gold, options.seed))
    if peer is not None and not options.quick:
        options.progress("STS-B development set, peer", 0.4)
        row = replace(row, peer=PEER, peer_version=peer.version,
                      peer_value=spearman(_cosines(peer.encode, first, second), gold))
    overlap = np.array([_overlap(a, b) for a, b in zip(first, second, strict=True)])
    floor = Row(metric="sts_dev_spearman_floor", value=spearman(overlap, gold), unit="", better="higher", n=len(pairs),
                interval=bootstrap(spearman, overlap, gold, options.seed), reason="the share of words in common")
    return [row, floor]


def _speed(encode: Encode, peer: PeerEncoder | None, record: ModelRecord, options: LabOptions) -> list[Row]:
    """One sentence and many, of 16 tokens each, in the order A B A B; medians after a warm-up."""
    from aios.lab.peer_encoder import INSTALL, PEER

    options.progress("speed", 0.6)
    texts = _sixteen_tokens(record, options.seed, SPEED_SENTENCES_QUICK if options.quick else SPEED_SENTENCES)
    arms: list[Encode] = [encode]
    note = INSTALL
    if peer is not None:
        peer.tune(texts)
        arms.append(peer.encode)
        note = peer.settings
    repeats = REPEATS_QUICK if options.quick else REPEATS
    many = [len(texts) / seconds for seconds in _interleaved(arms, texts, repeats)]
    one = [seconds * 1e3 for seconds in _interleaved(arms, texts[:1], repeats * 10)]
    version = peer.version if peer is not None else None
    return [
        Row(metric="encode_one_ms", value=one[0], unit="ms", better="lower", n=repeats * 10, peer=PEER,
            peer_version=version, peer_value=one[1] if peer is not None else None, reason=note),
        Row(metric="encode_sentences_per_s", value=many[0], unit="/s", better="higher", n=repeats, peer=PEER,
            peer_version=version, peer_value=many[1] if peer is not None else None, reason=note)]


def _interleaved(arms: Sequence[Encode], texts: Sequence[str], repeats: int) -> list[float]:
    """Median seconds of each arm, which take turns."""
    for arm in arms:
        arm(texts)
    seconds: list[list[float]] = [[] for _ in arms]
    for _ in range(repeats):
        for arm, taken in zip(arms, seconds, strict=True):
            began = time.perf_counter()
            arm(texts)
            taken.append(time.perf_counter() - began)
    return [median(taken) for taken in seconds]


def _sentences(record: ModelRecord, file: Path | None, options: LabOptions) -> list[str]:
    """The odd ones, then sentences of STS-B drawn by seed; random words of the vocabulary where it is absent."""
    count = SENTENCES_QUICK if options.quick else SENTENCES
    rng = np.random.default_rng(options.seed)
    if file is None:
        words = _words(record)
        drawn = [" ".join(rng.choice(words, size=rng.integers(1, 40))) for _ in range(count - len(ODD))]
    else:
        known = sorted({text for split in ("train", "dev") for a, b, _ in _pairs(file, split) for text in (a, b)})
        drawn = [known[i] for i in rng.choice(len(known), size=count - len(ODD), replace=False)]
    return [*ODD, *drawn]


def _pairs(file: Path, split: str) -> list[tuple[str, str, float]]:
    from pyarrow import parquet

    rows = parquet.read_table(file, columns=["split", "a", "b", "score"]).to_pylist()
    return [(row["a"], row["b"], row["score"]) for row in rows if row["split"] == split]


def _words(record: ModelRecord) -> list[str]:
    """Whole words of the model's vocabulary, one token each."""
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(record.path / "tokenizer.json")).get_vocab()
    return sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 1)


def _sixteen_tokens(record: ModelRecord, seed: int, count: int) -> list[str]:
    """Sentences of exactly 16 tokens, [CLS] and [SEP] included."""
    words, rng = _words(record), np.random.default_rng(seed)
    return [" ".join(rng.choice(words, size=TOKENS_PER_SENTENCE - 2)) for _ in range(count)]


def _cosines(encode: Encode, first: Sequence[str], second: Sequence[str]) -> Floats:
    vectors = encode([*first, *second]).astype(np.float64)
    products: Floats = (vectors[:len(first)] * vectors[len(first):]).sum(axis=1)
    return products


def _overlap(a: str, b: str) -> float:
    x, y = set(a.lower().split()), set(b.lower().split())
    return len(x & y) / len(x | y) if x | y else 0.0
