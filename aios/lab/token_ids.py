"""Texts on which our token ids are compared with those of the tokenizers library: corpora and hostile ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aios.errors import BadInput
from aios.lab import functions, heldout
from aios.lab.report import LabOptions
from aios.text.tokenizer import TextTokenizer, well_formed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HOSTILE, HOSTILE_QUICK = 20_000, 1_500
LINE_CHARS, LINE_CHARS_QUICK = 10_000_000, 300_000
CORPUS_BYTES_MAX: Final = 8 << 20     # of one file: the library reads one or two megabytes a second
DATA: Final = ("clinc150", "english_novels", "gsm8k_train", "json_schemas", "python_algorithms", "sgd_turns",
               "stsb_en", "wikitext2_valid")
# What tokenizers get wrong: contractions, white space, numbers, accents, scripts without spaces, joined emoji,
# punctuation, control characters, surrogates without a partner.
_POOLS: Final = (
    "abc XYZ ", "'stredvml \u017fSTREDVML ", " \t\n\r\x0b\x0c\x1c\x85\xa0\u2003\u3000", "0123\u0663\u096b\u00bd\u2167",
    "\u00e9\u00e8\u00fc\u0301\u0308\u0327\u0130\u0131\u00df\u03a3\u03c2",
    "\u4e2d\u6587\u6f22\u5b57\u65e5\u672c\u304b\u306a\u30ab\u30ca\ud55c\uae00\u1100\u1161",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd\ufe0f", "{}[]:,\"_-+=<>|!?.\u2026\u2014",
    "\x00\x01\x7f\ufffd\ufeff\u200b\ufdd0\U00010d41\U0010ffff", "\ud800\udfff\udc00",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Compared:
    """How many texts were compared, and those whose ids or whose text decoded again differ."""

    texts: int = 0
    characters: int = 0
    differing: list[str] = field(default_factory=list)

    def compare(self, name: str, ours: TextTokenizer, library: Tokenizer, text: str) -> None:
        """Encode and decode one text both ways; the library replaces lone surrogates as our contract says."""
        expected = library.encode(well_formed(text), add_special_tokens=False).ids
        same = ours.encode(text) == expected and ours.decode(expected) == library.decode(expected)
        self.texts += 1
        self.characters += len(text)
        if not same:
            self.differing.append(f"{name}: {text[:60]!r}")


def corpora(options: LabOptions) -> Mapping[str, Sequence[str]]:
    """The sets that come with the package, and in a full run the files of the data folder."""
    found: dict[str, Sequence[str]] = {
        "heldout_text": [document.text for document in heldout.read()],
        "heldout_functions": list(_columns(functions.SET)),
    }
    if not options.quick:
        for name in DATA:
            path = options.find_data(f"{name}.parquet")
            if path is not None:
                found[name] = list(_columns(path))
    return found


def hostile(options: LabOptions, reserved: Sequence[str]) -> Iterator[str]:
    """Texts drawn by the run's seed, some with reserved tokens spelled out, and lines of megabytes."""
    rng = random.Random(options.seed)
    for _ in range(HOSTILE_QUICK if options.quick else HOSTILE):
        yield "".join(_piece(rng, reserved) for _ in range(rng.randrange(1, 40)))
    length = LINE_CHARS_QUICK if options.quick else LINE_CHARS
    yield "".join(rng.choices("etaoin shrdlu", k=length))
    yield "".join(rng.choices("etaoinshrdlu", k=length))
    yield " " * length
    yield "\u0301" * (length // 10)


def _piece(rng: random.Random, reserved: Sequence[str]) -> str:
    kind = rng.random()
    if kind < 0.1 and reserved:
        return rng.choice(reserved)
    if kind < 0.2:
        return chr(rng.randrange(0x110000))
    if kind < 0.3:
        return rng.choice(rng.choice(_POOLS)) * rng.randrange(1, 30)
    return rng.choice(rng.choice(_POOLS))


def _columns(path: Path) -> Iterator[str]:
    """The values of all columns of text, from the beginning of the file until there are enough."""
    try:
        from pyarrow import parquet, types
    except ImportError as error:
        raise BadInput("the sets are Parquet files", remedy="pip install 'aios-daemon[bench]'") from error
    room = CORPUS_BYTES_MAX
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
        for column in batch.columns:
            for value in column.to_pylist() if types.is_string(column.type) else ():
                room -= len(value or "")
                if value:
                    yield value
        if room < 0:
            return
