"""The bench of tokenizers compares what is the same, and notices what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios.errors import ModelMissing
from aios.lab import bench_tokenizer
from aios.lab.plain_bpe import PlainBpe, alphabet
from aios.lab.report import LabOptions
from aios.lab.token_ids import Compared, hostile
from aios.text.tokenizer import TextTokenizer
from aios.training.vocabulary import PATTERN, SIZES, vocabulary_path

PATH = vocabulary_path(SIZES[0])
TEXTS = ["def f(x):\n    return {\"a\": [1, 22]}", "It's naïve, isn't it?  Привет 😀\r\n", ""]


def test_plain_python_has_the_ids_of_the_fast_path() -> None:
    plain = PlainBpe(PATH)
    assert plain.pattern == PATTERN
    assert [plain.encode(text) for text in TEXTS] == TextTokenizer.open(PATH).encode_batch(TEXTS)


def test_the_bytes_of_merged_tokens_are_what_they_decode_to() -> None:
    tokenizer, ranks = TextTokenizer.open(PATH), PlainBpe(PATH).bytes_by_rank()
    assert len(set(alphabet().values())) == 256 == sum(len(one) == 1 for one in ranks)
    assert all(tokenizer.decode([token]) == raw.decode(errors="replace") for raw, token in ranks.items())


def test_hostile_texts_are_those_of_the_seed() -> None:
    options = LabOptions(quick=True, seed=5)
    texts = list(hostile(options, ["<|eot|>"]))
    assert texts == list(hostile(options, ["<|eot|>"]))
    assert any("<|eot|>" in text for text in texts)
    assert any("\ud800" in text for text in texts)


def test_a_text_with_other_ids_is_counted_and_shown() -> None:
    library, compared = bench_tokenizer._opened(PATH), Compared()
    for path in (PATH, vocabulary_path(SIZES[1])):
        compared.compare(path.stem, TextTokenizer.open(path), library, "some words \ud800")
    assert (compared.texts, len(compared.differing)) == (2, 1)
    assert compared.differing[0].startswith(vocabulary_path(SIZES[1]).stem)


def test_without_minilm_a_vocabulary_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, places: object) -> None:
        raise ModelMissing(name)

    monkeypatch.setattr(bench_tokenizer.models, "find", absent)
    path, name = bench_tokenizer._word_pieces(tmp_path, TEXTS)
    assert "not installed" in name
    library = bench_tokenizer._opened(path)
    assert TextTokenizer.open(path).encode(TEXTS[1]) == library.encode(TEXTS[1], add_special_tokens=False).ids


def test_a_passing_peer_is_faster_or_slower_by_medians_of_fresh_passes() -> None:
    made: list[str] = []
    arms = [lambda: lambda: made.append("a"), lambda: lambda: made.append("b")]
    assert len(bench_tokenizer._interleaved(arms, 2)) == 2
    assert made == ["a", "b"] * 3      # a warm-up, then two in turns
