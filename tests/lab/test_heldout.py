"""The committed evaluation set: every document is of the test split, small, licensed, and counted in bytes rightly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from aios.lab import heldout
from aios.training import build
from aios.training.build import place, splits
from aios.training.recipes.catalogue import ORIGINS, Origin
from aios.training.recipes.mixtures import read_mixture
from aios.training.sources import Document
from aios.training.vocabulary import EOT_ID, RESERVED, vocabulary_path

FILE_BYTES_MAX = 1_500_000


@pytest.fixture(scope="module")
def documents() -> list[heldout.HeldOut]:
    return heldout.read()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(vocabulary_path(read_mixture(heldout.RECIPE).vocabulary)))


def test_every_document_is_of_the_test_split(documents: list[heldout.HeldOut]) -> None:
    mixture = read_mixture(heldout.RECIPE)
    few = heldout.names_of_small_sources()
    assert set(few) == {"novels"}, "of a few books the split needs every name"
    of_books = splits(sorted((Document(name=name, lines=("x",)) for name in few["novels"]),
                             key=lambda document: place(document.name)), mixture.sources["novels"], mixture)
    tests = {document.name for document in of_books["test"]}
    for document in documents:
        if document.source in few:
            assert document.name in tests
        else:
            assert place(document.name) < mixture.test_percent / 100


def test_the_set_is_small_and_every_document_has_an_origin_and_a_licence(documents: list[heldout.HeldOut]) -> None:
    assert heldout.PATH.stat().st_size < FILE_BYTES_MAX
    recipe = read_mixture(heldout.RECIPE)
    sources = {document.source for document in documents}
    assert sources <= set(recipe.sources) - heldout.LEFT_OUT and len(sources) >= 9
    for document in documents:
        origin = ORIGINS[document.source]
        assert (document.origin, document.licence) == (origin.origin, origin.licence)
        assert document.text.strip() and " or " not in document.licence
    sizes = [sum(len(one.text.encode()) for one in documents if one.source == name) for name in sources]
    assert max(sizes) <= heldout.SOURCE_BYTES_MAX


def test_the_bytes_of_tokens_are_those_of_the_text(documents: list[heldout.HeldOut], tokenizer: Tokenizer) -> None:
    cuts = heldout.cuts(documents, tokenizer, EOT_ID)
    assert sum(cut.weight for cut in cuts) == pytest.approx(1.0)
    for cut in cuts:
        text = heldout.spelled(cut.tokens.tolist(), tokenizer)
        assert cut.bytes == len(text.encode())
        told = "\n".join(heldout.plain(one.text) for one in documents if one.source == cut.source) + "\n"
        assert text == told, "what is coded is the text, with line breaks for reserved tokens and between documents"


def test_windows_do_not_overlap_and_follow_the_seed(documents: list[heldout.HeldOut], tokenizer: Tokenizer) -> None:
    cut = heldout.cuts(documents, tokenizer, EOT_ID)[0]
    drawn = [cut.windows(256, 20, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()
    assert (np.diff(drawn[0]) >= 256).all() and drawn[0][-1] + 256 <= len(cut.tokens)
    assert list(cut.windows(10**6, 20, np.random.default_rng(1))) == [0], "a short source has one window"


def test_reserved_tokens_are_line_breaks() -> None:
    assert heldout.plain("<|user|>Hi<|assistant|>Yes <|no") == "\nHi\nYes <|no"
    assert re.fullmatch(r"\n+", heldout.plain("".join(RESERVED)))


def test_the_set_is_made_of_test_documents_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(_path: Path) -> Iterator[Document]:
        for number in range(400):
            yield Document(name=f"d{number}", lines=(f"document {number} says {number * 7919 % 1000} and no more",) * 3)

    recipe = read_mixture(heldout.RECIPE)
    made = {name: Origin(files={f"{name}.txt": ""}, origin=f"of {name}", licence="MIT", read=lines)
            for name in recipe.sources}
    monkeypatch.setattr(build, "ORIGINS", made)
    for name in made:
        (tmp_path / f"{name}.txt").touch()
    told = heldout.make([tmp_path], tmp_path / "set" / "a.parquet")
    rows = heldout.read(tmp_path / "set" / "a.parquet")
    assert told["documents"] == len(rows) > 0
    assert all(place(row.name) < recipe.test_percent / 100 for row in rows)
    assert {row.source for row in rows} == set(recipe.sources) - heldout.LEFT_OUT
    assert heldout.names_of_small_sources(tmp_path / "set" / "a.parquet") == {}
