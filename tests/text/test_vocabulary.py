"""The fast path of tokenizer.json files has the ids of the tokenizers library, or leaves the file to it."""

from __future__ import annotations

import copy
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from aios._native import FastTokenizer
from aios.errors import ModelCorrupt
from aios.text.tokenizer import SentenceTokenizer, TextTokenizer
from aios.text.vocabulary import LibraryVocabulary, fast_vocabulary, open_vocabulary
from aios.training.vocabulary import SIZES, vocabulary_path

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
READ = ("It's 1999, don't WE'LL go?  A  line\n\n  of   code(x): return {\"k\": [1, 2]}\r\n\tend. "
        "naïve Straße Привет мир 中文字 日本 한국어 😀👍🏽 ½ ٣٤")
BYTES = "gpt2", "prefixed", "digits", "runs of digits", "llama", "qwen", "composed", "whole", "gaps", "aios"
WORDS = "bert", "cased", "raw"
SPECIALS = ("<|eot|>", "<|eot|>x", "[MASK]")
HOSTILE = st.lists(st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from([*SPECIALS, "plain", "'s", "'LL", "'\u017f", "'re", " ", "  ", "\n", "\r\n", "\t", "\u3000", "\xa0",
                     "\u0301", "e\u0301", "\u1100\u1161", "\x00", "\x1c", "\u200b", "\ufffd", "1", "23", "٣", "½",
                     "中", "İ", "ς", "😀", "_", "__a", "{", '"', "!", "-" * 120, "a" * 150, "\U00010d41", "##a"])),
    max_size=30).map("".join)


def byte_level(name: str) -> Tokenizer:
    """A BPE of one of the kinds there are, trained on a line."""
    incomplete = name == "gaps"
    library = Tokenizer(models.BPE(ignore_merges=name in ("whole", "llama")))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=name == "prefixed")
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = {"llama": LLAMA3, "qwen": LLAMA3.replace("{1,3}", "")}.get(name)
    library.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=name == "digits"), whole])
        if "digits" in name
        else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), behavior="isolated"), bare]) if split
        else whole)
    if name in ("composed", "qwen"):
        library.normalizer = normalizers.NFC()
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=list(SPECIALS), show_progress=False,
                                  initial_alphabet=[] if incomplete else pre_tokenizers.ByteLevel.alphabet())
    library.train_from_iterator([READ] * 3, trainer)
    library.add_tokens(["plain"])
    library.post_processor = processors.TemplateProcessing(
        single="<|eot|> $A [MASK]", special_tokens=[("<|eot|>", 0), ("[MASK]", 2)])
    return library


def word_piece(name: str) -> Tokenizer:
    """A BERT of one of the kinds there are, trained on a line."""
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(
        clean_text=name != "raw", handle_chinese_chars=name != "raw", lowercase=name == "bert")
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[PAD]", "[UNK]", *SPECIALS],
                                        show_progress=False)
    library.train_from_iterator([READ] * 3, trainer)
    library.post_processor = processors.BertProcessing(("<|eot|>", 2), ("[MASK]", 4))
    return library


@cache
def both(name: str) -> tuple[FastTokenizer, LibraryVocabulary]:
    if name == "aios":
        library = Tokenizer.from_file(str(vocabulary_path(SIZES[0])))
    else:
        library = byte_level(name) if name in BYTES else word_piece(name)
    fast = FastTokenizer(library.to_str().encode())
    return fast, LibraryVocabulary(library)


def alike(name: str, text: str) -> None:
    fast, library = both(name)
    for special in (False, True):
        for framed in (False, True):
            ids = library.encode(text, special=special, framed=framed)
            assert fast.encode(text, special=special, framed=framed) == ids
    for skip in (False, True):
        assert fast.decode(ids, skip_special=skip) == library.decode(ids, skip_special=skip)


@pytest.mark.parametrize("name", [*BYTES, *WORDS])
@settings(max_examples=30, deadline=None)
@given(text=HOSTILE)
def test_hostile_text_has_the_library_s_ids(name: str, text: str) -> None:
    alike(name, text)


@pytest.mark.parametrize("name", ["digits", "llama", "bert"])
def test_every_character_of_small_blocks_has_the_library_s_ids(name: str) -> None:
    fast, library = both(name)
    large = *range(0x3400, 0xA000), *range(0xAC00, 0xD7A4), *range(0x17000, 0x18D00), *range(0x20000, 0x32000)
    codes = sorted({*range(0x32000)} - {*range(0xD800, 0xE000)} - {code for code in large if code % 64})
    for begin in range(0, len(codes), 0x800):
        text = "".join(f"a{chr(code)}1 {chr(code)}" for code in codes[begin:begin + 0x800])
        assert fast.encode(text) == library.encode(text)


@pytest.mark.parametrize("name", [*BYTES, *WORDS])
@settings(max_examples=20, deadline=None)
@given(ids=st.lists(st.integers(0, 450), max_size=12))
def test_any_ids_have_the_library_s_text(name: str, ids: list[int]) -> None:
    fast, library = both(name)
    for skip in (False, True):
        assert fast.decode(ids, skip_special=skip) == library.decode(ids, skip_special=skip)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen", "aios", "bert"])
@pytest.mark.parametrize("unit", ["a", " ", "\n", " \n", "é", "1", "'", "ab ", "\u0301", "中"])
def test_long_lines_have_the_library_s_ids(name: str, unit: str) -> None:
    fast, library = both(name)
    text = unit * (5_000 // len(unit))
    assert fast.encode(text) == library.encode(text)


def test_ten_megabytes_without_a_space_take_seconds() -> None:
    fast, _ = both("gpt2")
    text = "".join(random.Random(0).choices("the", k=1 << 20)) * 10
    assert fast.decode(fast.encode(text)) == text


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(HOSTILE, max_size=6), length_max=st.integers(3, 12))
def test_a_batch_is_its_texts_and_is_cut_as_the_library_cuts(texts: list[str], length_max: int) -> None:
    for name in ("gpt2", "bert"):
        fast, library = both(name)
        assert fast.encode_batch(texts, threads=2) == [fast.encode(text) for text in texts]
        for special in (False, True):
            wish: dict[str, Any] = {"framed": True, "special": special, "length_max": length_max}
            assert fast.encode_batch(texts, **wish) == library.encode_batch(texts, **wish)


def test_threads_change_nothing() -> None:
    fast, _ = both("aios")
    rng = random.Random(1)
    texts = ["".join(rng.choices(READ, k=rng.randrange(4000))) for _ in range(200)]
    assert fast.encode_batch(texts, threads=4) == [fast.encode(text) for text in texts]


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_names_and_sizes_are_the_library_s(name: str) -> None:
    fast, library = both(name)
    assert (fast.vocab_size, fast.frame_length) == (library.vocab_size, library.frame_length)
    assert sorted(fast.added()) == sorted(library.added())
    for spelling in ("<|eot|>", "Ġ", "[MASK]", "plain", "none"):
        assert fast.token_id(spelling) == library.token_id(spelling)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value but in vocabularies, as container and key."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            found += places(value[key]) if key not in ("vocab", "merges") else []
    return found


@pytest.mark.parametrize("name", ["gpt2", "digits", "llama", "bert"])
def test_a_changed_file_is_read_alike_or_left_to_the_library(name: str) -> None:
    described = json.loads(byte_level(name).to_str() if name in BYTES else word_piece(name).to_str())
    rng = random.Random(name)
    read = 0
    for _ in range(200):
        changed = copy.deepcopy(described)
        holder, key = rng.choice(places(changed))
        if rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = rng.choice([None, True, False, 0, 1, 3, 1 << 40, "", "x", "Ġ", "<|eot|>", [], {}])
        raw = json.dumps(changed).encode()
        fast = fast_vocabulary(raw)
        if fast is not None and key not in ("truncation", "padding"):      # which are the caller's matter
            library = LibraryVocabulary(Tokenizer.from_buffer(raw))
            read += 1
            for text in (READ, "x<|eot|> plain Ġ [MASK]"):
                for special in (False, True):
                    ids = library.encode(text, special=special, framed=True)
                    assert fast.encode(text, special=special, framed=True) == ids
                assert fast.decode(ids) == library.decode(ids)
    assert read > 3


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0), ("ab", -2.5)]
    library = Tokenizer(models.Unigram(pieces, 0, byte_fallback=False))
    library.add_special_tokens(["<eot>"])
    return library


def test_what_has_no_fast_path_is_read_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    unigram().save(str(path))
    with pytest.raises(NotImplementedError, match="Unigram"):
        FastTokenizer(path.read_bytes())
    assert isinstance(open_vocabulary(path), LibraryVocabulary)
    tokenizer = TextTokenizer.open(path)
    assert tokenizer.encode("ab\ud800") == tokenizer.encode("ab\ufffd") == tokenizer.encode_batch(["ab\udc00"])[0]
    assert tokenizer.encode_rendered("a<eot>") == [1, tokenizer.special("<eot>")]


@pytest.mark.parametrize(("change", "why"), [
    (lambda file: file["model"].update(dropout=0.5), "dropout"),
    (lambda file: file["model"].update(continuing_subword_prefix="##"), "ends of words"),
    (lambda file: file["pre_tokenizer"].update(type="Metaspace"), "Metaspace"),
    (lambda file: file.update(normalizer={"type": "NFKC"}), "NFKC"),
    (lambda file: file.update(decoder=None), "no decoder"),
    (lambda file: file["added_tokens"][0].update(single_word=True), "single words"),
    (lambda file: file["added_tokens"][0].update(id=77), "next one"),
    (lambda file: file["pre_tokenizer"].update(new=1), "with new"),
])
def test_a_refusal_says_what_has_no_fast_path(change: Any, why: str) -> None:
    file = json.loads(byte_level("gpt2").to_str())
    change(file)
    with pytest.raises(NotImplementedError, match=why):
        FastTokenizer(json.dumps(file).encode())


@pytest.mark.parametrize("raw", [
    b"", b"{}", b"[" * 100_000, b'{"version": "1.0", "model": 1}', b"\xff",
    b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}',
    b'{"version": "1.0", "decoder": {"type": "ByteLevel", "x": "' + b"a" * 70_000 + b'"}, "model": {}}',
])
def test_malformed_files_are_value_errors_and_cost_nothing(raw: bytes) -> None:
    with pytest.raises((ValueError, NotImplementedError)):
        FastTokenizer(raw)


def test_lone_surrogates_are_the_caller_s_to_replace() -> None:
    fast, library = both("gpt2")
    for vocabulary in (fast, library):
        with pytest.raises(UnicodeEncodeError):
            vocabulary.encode("a\ud800")
        with pytest.raises(UnicodeEncodeError):
            vocabulary.encode_batch(["a\ud800"])


def test_an_encoder_needs_room_for_a_text() -> None:
    fast, library = both("bert")
    for vocabulary in (fast, library):
        with pytest.raises(ModelCorrupt, match="no room"):
            SentenceTokenizer(vocabulary, 2)
    with pytest.raises(ValueError, match="no room"):
        fast.encode_batch(["a"], framed=True, length_max=2)
