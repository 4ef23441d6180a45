"""`aios bench tokenizer`: FastTokenizer beside plain Python, the tokenizers library and tiktoken; ids compared.

Every pass begins with tokenizers that have seen no text, so that no cache knows the words; making them is not timed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from aios.config import Places
from aios.errors import AiosError
from aios.lab import heldout
from aios.lab.plain_bpe import PlainBpe
from aios.lab.report import LabOptions, Report, Row, sha256_file
from aios.lab.token_ids import Compared, corpora, hostile
from aios.store import models
from aios.text.tokenizer import TextTokenizer
from aios.training.vocabulary import SIZES, vocabulary_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SUBJECT: Final = vocabulary_path(SIZES[-1])
REPEATS, REPEATS_QUICK = 21, 5
PLAIN_BYTES: Final = 150_000           # plain Python takes a quarter of a second for them
WORD_PIECES: Final = 8_000             # of the vocabulary trained here where MiniLM is not installed
PARALLELISM: Final = "TOKENIZERS_PARALLELISM"
INSTALL: Final = "install the peer: pip install 'aios-daemon[bench]'"

Prepare = Callable[[], Callable[[], object]]


def run(options: LabOptions) -> Report:
    """All rows; about five minutes in full, most of them the library's on the texts that are compared."""
    texts = [document.text for document in heldout.read()]
    with tempfile.TemporaryDirectory() as folder:
        options.progress("beside plain Python", 0.0)
        rows = [_beside_python(texts, options)]
        options.progress("beside tokenizers", 0.1)
        rows += _beside_library("bpe", SUBJECT, texts, options, must=1.5, aim=4)
        rows.append(_batch(texts, options))
        options.progress("beside tiktoken", 0.2)
        rows.append(_beside_tiktoken(texts, options))
        options.progress("WordPiece beside tokenizers", 0.25)
        words, name = _word_pieces(Path(folder), texts)
        rows += _beside_library("wordpiece", words, texts, options, must=1.5, aim=4, note=name)
        rows.append(_mismatches(words, options))
    return Report.of("tokenizer", rows, options, data={heldout.PATH.name: sha256_file(heldout.PATH)})


def _ours(path: Path, texts: Sequence[str]) -> Prepare:
    """One text after the other on one thread."""
    def prepare() -> Callable[[], object]:
        tokenizer = TextTokenizer.open(path)
        return lambda: [tokenizer.encode(text) for text in texts]
    return prepare


def _library(path: Path, texts: Sequence[str], *, batch: bool) -> Prepare:
    """The library, one text after the other or all at once without offsets, which is faster."""
    def prepare() -> Callable[[], object]:
        library = _opened(path)
        if batch:
            return lambda: [one.ids for one in library.encode_batch_fast(texts, add_special_tokens=False)]
        return lambda: [library.encode(text, add_special_tokens=False).ids for text in texts]
    return prepare


def _opened(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    library = Tokenizer.from_buffer(path.read_bytes())
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    return library


def _beside_library(kind: str, path: Path, texts: Sequence[str], options: LabOptions, *, must: float, aim: float,
                    note: str = SUBJECT.name) -> list[Row]:
    """One thread each; the library as fast as it goes on one."""
    with _parallelism(on=False):
        mine, *theirs = _interleaved([_ours(path, texts), _library(path, texts, batch=False),
                                      _library(path, texts, batch=True)], _repeats(options))
    facts: dict[str, Any] = {"peer": "tokenizers", "peer_version": version("tokenizers"), "n": _repeats(options)}
    size = _megabytes(texts)
    return [Row(metric=f"{kind}_vs_tokenizers", value=min(theirs) / mine, unit="x", better="higher", must=must, aim=aim,
                reason=f"{note}, {size:.2f} MB in {len(texts)} texts, 1 thread each, no word known before", **facts),
            Row(metric=f"{kind}_mb_per_s", value=size / mine, unit="MB/s", better="higher",
                peer_value=size / min(theirs), **facts)]


def _batch(texts: Sequence[str], options: LabOptions) -> Row:
    """All texts at once on every core; the library also on one thread, if that is faster."""
    threads = len(os.sched_getaffinity(0))

    def ours() -> Callable[[], object]:
        tokenizer = TextTokenizer.open(SUBJECT)
        return lambda: tokenizer.encode_batch(texts, threads)

    with _parallelism(on=True):
        mine, parallel = _interleaved([ours, _library(SUBJECT, texts, batch=True)], _repeats(options))
    with _parallelism(on=False):
        again, alone = _interleaved([ours, _library(SUBJECT, texts, batch=True)], _repeats(options))
    ratio = min(parallel / mine, alone / again)
    return Row(metric="bpe_batch_vs_tokenizers", value=ratio, unit="x", better="higher", must=1.2, aim=3,
               peer="tokenizers", peer_version=version("tokenizers"), n=_repeats(options),
               reason=f"{SUBJECT.name}, {threads} threads each: {_megabytes(texts) / mine:.1f} MB/s")


def _beside_python(texts: Sequence[str], options: LabOptions) -> Row:
    """Plain Python on a part of the texts; the same ids, or no value."""
    shape: dict[str, Any] = {"metric": "bpe_vs_python", "unit": "x", "better": "higher", "must": 10, "aim": 100,
                             "peer": "plain Python"}
    try:
        plain = PlainBpe(SUBJECT)
    except ImportError as error:
        return Row(**shape, value=None, reason=f"{INSTALL} ({error})")
    part = _beginning(texts, PLAIN_BYTES)
    if [plain.encode(text) for text in part] != TextTokenizer.open(SUBJECT).encode_batch(part):
        return Row(**shape, value=None, reason="plain Python has other ids")
    mine, theirs = _interleaved([_ours(SUBJECT, part), lambda: lambda: [plain.encode(text) for text in part]],
                                _repeats(options))
    note = f"{SUBJECT.name}, {_megabytes(part):.2f} MB, 1 thread each, ids equal"
    return Row(**shape, value=theirs / mine, n=_repeats(options), reason=note)


def _beside_tiktoken(texts: Sequence[str], options: LabOptions) -> Row:
    """tiktoken with the same pattern and merges, on one thread; the same ids, or no value."""
    shape: dict[str, Any] = {"metric": "bpe_vs_tiktoken", "unit": "x", "better": "higher", "must": 1.0, "aim": 1.5,
                             "peer": "tiktoken"}
    try:
        release, tiktoken, plain = version("tiktoken"), import_module("tiktoken"), PlainBpe(SUBJECT)
    except (PackageNotFoundError, ImportError) as error:
        return Row(**shape, value=None, reason=f"{INSTALL} ({error})")
    ranks = plain.bytes_by_rank()

    def theirs() -> Callable[[], list[list[int]]]:
        encoding = tiktoken.Encoding("aios", pat_str=plain.pattern, mergeable_ranks=ranks, special_tokens={})
        return lambda: [encoding.encode_ordinary(text) for text in texts]

    if theirs()() != TextTokenizer.open(SUBJECT).encode_batch(texts):
        return Row(**shape, value=None, peer_version=release, reason="tiktoken has other ids")
    mine, peer = _interleaved([_ours(SUBJECT, texts), theirs], _repeats(options))
    note = f"{SUBJECT.name}, {_megabytes(texts):.2f} MB, 1 thread each, ids equal, no word known before"
    return Row(**shape, value=peer / mine, peer_version=release, n=_repeats(options), reason=note)


def _word_pieces(folder: Path, texts: Sequence[str]) -> tuple[Path, str]:
    """MiniLM's tokenizer where it is installed, else one trained on the texts, and what it is."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers.models import WordPiece

    found = _installed("minilm")
    if found is not None:
        return found, "MiniLM"
    library = Tokenizer(WordPiece(unk_token="[UNK]"))    # noqa: S106  not that kind of token
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=WORD_PIECES, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
                                        show_progress=False)
    library.train_from_iterator(texts, trainer)
    library.save(str(folder / "words.json"))
    return folder / "words.json", "a WordPiece vocabulary trained on the texts (MiniLM is not installed)"


def _mismatches(words: Path, options: LabOptions) -> Row:
    """Texts of all corpora at hand, and hostile ones, for which any vocabulary at hand has other ids or other text."""
    paths = {f"aios-{size}": vocabulary_path(size) for size in SIZES} | {"words": words}
    smollm2 = _installed("smollm2")
    if smollm2 is not None:
        paths["smollm2"] = smollm2
    sets, compared = corpora(options), Compared()
    for at, (name, path) in enumerate(paths.items()):
        options.progress(f"ids of {name}", 0.35 + 0.65 * at / len(paths))
        ours, library = TextTokenizer.open(path), _opened(path)
        for texts in (*sets.values(), hostile(options, ours.reserved)):
            for text in texts:
                compared.compare(name, ours, library, text)
    note = (f"{compared.characters / 1e6:.1f} million characters, ids and decoded text; {', '.join(paths)}; "
            f"{', '.join(sets)}, hostile texts")
    return Row(metric="id_mismatches", value=len(compared.differing), unit="texts", better="lower", must=0,
               peer="tokenizers", peer_version=version("tokenizers"), n=compared.texts,
               reason="; ".join(compared.differing[:3]) or note)


def _installed(name: str) -> Path | None:
    """The tokenizer of a model, if it is installed."""
    try:
        path = models.find(name, Places.find()).path / "tokenizer.json"
    except AiosError:
        return None
    return path if path.is_file() else None


def _interleaved(arms: Sequence[Prepare], repeats: int) -> list[float]:
    """Median seconds of each arm, which take turns, after a warm-up; every pass is made anew."""
    seconds: list[list[float]] = [[] for _ in arms]
    for turn in range(repeats + 1):
        for prepare, taken in zip(arms, seconds, strict=True):
            work = prepare()
            began = time.perf_counter()
            work()
            if turn:
                taken.append(time.perf_counter() - began)
    return [median(taken) for taken in seconds]


@contextmanager
def _parallelism(*, on: bool) -> Iterator[None]:
    """The library on all cores or on one thread meanwhile."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = str(on).lower()
    try:
        yield
    finally:
        del os.environ[PARALLELISM]
        if before is not None:
            os.environ[PARALLELISM] = before


def _beginning(texts: Sequence[str], size: int) -> list[str]:
    """The first texts that have so many bytes together."""
    part: list[str] = []
    for text in texts:
        if size <= 0:
            break
        part.append(text)
        size -= len(text.encode())
    return part


def _megabytes(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def _repeats(options: LabOptions) -> int:
    return REPEATS_QUICK if options.quick else REPEATS
