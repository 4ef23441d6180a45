"""From a recipe to a folder of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from aios.errors import BadInput
from aios.training import build as building
from aios.training.build import build, data_sha256, place, shortened
from aios.training.data import load_stream, open_corpus
from aios.training.recipes import mixtures
from aios.training.recipes.catalogue import ORIGINS, Origin
from aios.training.recipes.mixtures import Mixture, Share, read_mixture
from aios.training.sources import Document
from aios.training.vocabulary import EOT_ID

COUNT = 300


def tales(path: Path) -> Iterator[Document]:
    for index in range(COUNT):
        yield Document(name=str(index), lines=(f"Tale {index} of {path.stem}.", "The end."))
    yield Document(name="again", lines=("Tale 1 of tales.", "The end."))


def books(path: Path) -> Iterator[Document]:
    for index in range(3):
        yield Document(name=f"book {index}", lines=(f"<|user|>Read book {index}.", *["A line of a book."] * 400))


@pytest.fixture
def mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mixture:
    (tmp_path / "tales.txt").write_text("tales")
    (tmp_path / "books.txt").write_text("books")
    origins = {
        "tales": Origin(files={"tales.txt": ""}, origin="here", licence="CC0", read=tales),
        "books": Origin(files={"books.txt": ""}, origin="there", licence="MIT", read=books),
        "absent": Origin(files={"absent.txt": ""}, origin="nowhere", licence="MIT", read=books),
        "looked_at": Origin(files={"tales.txt": ""}, origin="here", licence="CC0", read=tales),
    }
    monkeypatch.setattr(building, "ORIGINS", origins)
    return Mixture(
        name="m", description="", vocabulary=2048, validation_percent=10.0, test_percent=10.0,
        sources={"tales": Share(share=0.5), "books": Share(share=0.3, document_kilobytes_max=1.0),
                 "absent": Share(share=0.2, optional=True)},
        measured={"looked_at": Share()},
    )  # fmt: skip


def texts(folder: Path, name: str, split: str) -> list[str]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = load_stream(folder / f"{name}.{split}.npz").tokens
    parts = np.split(tokens, np.flatnonzero(tokens == EOT_ID) + 1)[:-1]
    return [tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in parts]


def test_every_document_is_in_one_split_and_repetitions_in_none(mixture: Mixture, tmp_path: Path) -> None:
    manifest = build(mixture, [tmp_path], tmp_path / "out")
    found = {split: texts(tmp_path / "out", "tales", split) for split in ("train", "held_out", "test")}
    every = [text for one in found.values() for text in one]
    assert sorted(every) == sorted(f"Tale {index} of tales.\nThe end." for index in range(COUNT))
    assert 0.05 < len(found["test"]) / COUNT < 0.15
    told = manifest["sources"]["tales"]
    assert (told["read"], told["exact"], told["licence"]) == (COUNT + 1, 1, "CC0")
    assert len(told["files"]["tales.txt"]) == 64


def test_the_corpus_opens_without_its_test_split(mixture: Mixture, tmp_path: Path) -> None:
    build(mixture, [tmp_path], tmp_path / "out")
    corpus = open_corpus(tmp_path / "out")
    assert corpus.weights == pytest.approx({"tales": 0.625, "books": 0.375}), "the absent source's share is spread"
    assert set(corpus.train) == {"tales", "books"}
    assert set(corpus.held_out) == {"tales", "books", "looked_at"}
    starts = corpus.train["tales"].starts
    assert len(starts) == 2 * manifest_documents(tmp_path / "out", "tales")
    assert (corpus.train["tales"].tokens[starts[2::2] - 1] == EOT_ID).all()


def manifest_documents(folder: Path, name: str) -> int:
    documents: int = json.loads((folder / "manifest.json").read_text())["sources"][name]["train_documents"]
    return documents


def test_a_few_books_have_every_split_and_begin_with_a_role(mixture: Mixture, tmp_path: Path) -> None:
    build(mixture, [tmp_path], tmp_path / "out")
    for split in ("train", "held_out", "test"):
        (book,) = texts(tmp_path / "out", "books", split)
        assert book.startswith("<|user|>Read book") and len(book) <= 1000


def test_building_again_gives_the_same_data(mixture: Mixture, tmp_path: Path) -> None:
    first, again = build(mixture, [tmp_path], tmp_path / "a"), build(mixture, [tmp_path], tmp_path / "b")
    assert first == again
    assert data_sha256(tmp_path / "a") == data_sha256(tmp_path / "b")


def test_a_new_vocabulary_is_trained_on_the_mixture(mixture: Mixture, tmp_path: Path) -> None:
    frozen = build(mixture, [tmp_path], tmp_path / "a")
    fresh = build(mixture, [tmp_path], tmp_path / "b", new_vocabulary=True)
    assert fresh["tokenizer_sha256"] != frozen["tokenizer_sha256"]
    assert data_sha256(tmp_path / "a") != data_sha256(tmp_path / "b")
    assert sorted(texts(tmp_path / "b", "tales", "test")) == sorted(texts(tmp_path / "a", "tales", "test"))


def test_a_missing_source_ends_the_build_with_its_origin_and_leaves_nothing(mixture: Mixture, tmp_path: Path) -> None:
    (tmp_path / "books.txt").unlink()
    with pytest.raises(BadInput, match=r"books\.txt was not found") as caught:
        build(mixture, [tmp_path], tmp_path / "out")
    assert "there" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("other")
    with pytest.raises(BadInput, match="sha256"):
        Origin(files={"x": "0" * 64}, origin="here", licence="", read=tales).locate([tmp_path])


def test_places_are_spread_evenly_and_depend_on_the_name_alone() -> None:
    places = [place(f"dialogue/{index}") for index in range(4000)]
    assert sum(at < 0.02 for at in places) / 4000 == pytest.approx(0.02, abs=0.006)
    assert place("a") == place("a") != place("b")


def test_a_shortened_document_keeps_whole_lines() -> None:
    document = Document(name="", lines=("four", "four", "four"))
    assert shortened(document, 0.011).lines == ("four", "four")


@pytest.mark.parametrize("name", mixtures.names())
def test_the_recipes_that_aios_brings_are_sound(name: str) -> None:
    found = read_mixture(name)
    assert set(found.every) <= set(ORIGINS)
    assert all(ORIGINS[source].origin and ORIGINS[source].licence for source in found.every)


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ("[sources]\nnovels = { share = 0.5 }", "add up to 0.5"),
        ("[sources]\nnowhere = { share = 1.0 }", "'nowhere'"),
        ("[sources]\nnovels = { share = 1.0, bytes = 3 }", "'bytes'"),
        ("[sources]\nnovels = { share = 'all' }", "Expected `float`"),
        ("[sources", "Expected"),
        ("[sources]", "no sources"),
        ("more = 1\n[sources]", "'more'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_the_reason(told: str, wrong: str, tmp_path: Path) -> None:
    head = 'description = ""\nvocabulary = 2048\nvalidation_percent = 1\ntest_percent = 1\n'
    (tmp_path / "r.toml").write_text(head + told + "\n")
    with pytest.raises(BadInput, match=wrong):
        read_mixture(str(tmp_path / "r.toml"))


def test_an_unknown_recipe_names_those_that_exist() -> None:
    with pytest.raises(BadInput) as caught:
        read_mixture("nonsense")
    assert "nano" in caught.value.remedy
