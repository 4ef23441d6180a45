"""Notes become passages that lose nothing, and importing them again changes what changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.errors import BadInput, LimitExceeded
from aios.memory import notes
from aios.memory.notes import PASSAGE_CHARS_MAX, files, import_folder, passages
from aios.memory.record import Filter, Memory, NewMemory
from aios.messages import MemoryDraft
from tests.memory.conftest import encode


class Shelf:
    """A real store behind the import."""

    def __init__(self, store, breaks_after: int | None = None) -> None:
        self.store, self.left = store, breaks_after

    def of_source(self, source: str) -> Sequence[Memory]:
        return [self.store.read(number) for number in self.store.select(Filter(sources=[source]))]

    def of_provenance(self, provenance: str) -> Iterator[Memory]:
        return iter([self.store.read(number) for number in self.store.select(Filter(provenances=[provenance]))])

    def remember(self, drafts: Sequence[MemoryDraft]) -> Sequence[int]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return self.store.remember_many([
            NewMemory(text=one.text, metadata=one.metadata, vector=encode([one.text])[0], namespace=one.namespace,
                      tags=one.tags, time=one.time, source=one.source, provenance=one.provenance) for one in drafts])

    def forget(self, ids: Sequence[int]) -> Sequence[int]:
        return self.store.forget(list(ids))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    (root / "sub").mkdir(parents=True)
    (root / "garden.md").write_text("# Garden\n\nThree apple trees.\n\n## Tools\nThe scythe is with Ilmari.\n")
    (root / "sub" / "list.txt").write_text("# no heading here\n\noats\n")
    return root


def texts(store) -> list[tuple[str, str]]:
    return sorted((one.source, one.text) for one in map(store.read, store.select()))


def test_every_piece_of_markdown_stands_below_its_headings():
    text = "intro\n# A\none\n\ntwo\n## B ##\nthree\n```\n# no heading\n```\n# C\n### D\nfour\n##\nfive"
    assert passages(text, markdown=True) == [
        "intro", "A\none\n\ntwo", "A > B\nthree\n```\n# no heading\n```", "C > D\nfour\n##\nfive"]
    assert passages("# A\none", markdown=False) == ["# A\none"]


@given(st.text(alphabet=st.sampled_from("ab .\n#`é"), max_size=3000), st.booleans())
def test_passages_are_short_and_lose_no_word(text, markdown):
    cut = passages(text, markdown=markdown)
    assert all(piece.strip() and len(piece) <= PASSAGE_CHARS_MAX for piece in cut)
    if not markdown:
        assert "".join("".join(cut).split()) == "".join(text.split())


def test_a_long_paragraph_is_cut_between_sentences_then_words_then_anywhere():
    sentence = "word " * 30 + "end. "
    assert all(piece.endswith("end.") for piece in passages(sentence * 20, markdown=False))
    assert all(set(piece.split()) == {"word"} for piece in passages("word " * 500, markdown=False))
    assert [len(piece) for piece in passages("x" * 2000, markdown=False)] == [900, 900, 200]


def test_an_import_remembers_where_passages_come_from(store, folder):
    done = import_folder(folder, Shelf(store), namespace="n", tags=["note"])
    assert (done.files, done.added, done.passages) == (2, 2, 3)
    assert texts(store) == [("garden.md", "Garden\nThree apple trees."),
                            ("garden.md", "Garden > Tools\nThe scythe is with Ilmari."),
                            ("sub/list.txt", "# no heading here\n\noats")]
    one = store.read(store.select(Filter(sources=["sub/list.txt"]))[0])
    assert (one.namespace, one.tags, one.provenance) == ("n", ("note",), "document")
    assert one.metadata["folder"] == str(folder) and abs(one.time.timestamp() - folder.stat().st_mtime) < 60


def test_a_second_import_changes_what_changed(store, folder):
    import_folder(folder, Shelf(store))
    before = store.select(Filter(sources=["sub/list.txt"]))
    (folder / "garden.md").write_text("# Garden\n\nFour apple trees.\n")
    done = import_folder(folder, Shelf(store))
    assert (done.unchanged, done.replaced, done.added, done.passages, done.forgotten) == (1, 1, 0, 1, 2)
    assert texts(store) == [("garden.md", "Garden\nFour apple trees."), ("sub/list.txt", "# no heading here\n\noats")]
    assert store.select(Filter(sources=["sub/list.txt"])) == before
    assert import_folder(folder, Shelf(store), tags=["new"]).replaced == 2, "other tags are a change"


def test_what_is_gone_stays_until_it_is_pruned(store, folder):
    store.remember("mine", source="sub/list.txt", provenance="owner")
    import_folder(folder, Shelf(store))
    (folder / "sub" / "list.txt").unlink()
    assert import_folder(folder, Shelf(store)).forgotten == 0
    assert import_folder(folder, Shelf(store), prune=True).forgotten == 1
    assert ("sub/list.txt", "mine") in texts(store)


def test_two_folders_with_the_same_names_do_not_replace_each_other(store, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "garden.md").write_text("Another garden.\n")
    import_folder(folder, Shelf(store))
    import_folder(other, Shelf(store), prune=True)
    assert import_folder(folder, Shelf(store)).unchanged == 2
    assert len(texts(store)) == 4


@pytest.mark.parametrize("after", range(4))
def test_an_interrupted_import_is_mended_by_the_next_one(store, folder, after, monkeypatch):
    monkeypatch.setattr(notes, "GROUP", 1)
    (folder / "garden.md").write_text("# Garden\n\nOld.\n\n## Tools\nOld too.\n")
    import_folder(folder, Shelf(store))
    (folder / "garden.md").write_text("# Garden\n\nNew.\n\n## Tools\nNew too.\n\n## More\nNewest.\n")
    try:
        import_folder(folder, Shelf(store, breaks_after=after))
    except KeyboardInterrupt:
        assert ("garden.md", "Garden\nOld.") in texts(store), "nothing is lost before its successor is there"
    import_folder(folder, Shelf(store))
    assert [text for source, text in texts(store) if source == "garden.md"] == [
        "Garden\nNew.", "Garden > More\nNewest.", "Garden > Tools\nNew too."]
    assert import_folder(folder, Shelf(store)).unchanged == 2


def test_links_and_hidden_and_other_files_are_left_alone(folder, tmp_path):
    (tmp_path / "secret.md").write_text("secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.md").write_text("secret")
    (folder / "link.md").symlink_to(tmp_path / "secret.md")
    (folder / "away").symlink_to(tmp_path / "outside")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.md").write_text("hidden")
    (folder / ".draft.md").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    os.mkfifo(folder / "pipe.md")
    assert list(files(folder)) == ["garden.md", "sub/list.txt"]


def test_what_cannot_be_read_is_named_and_the_rest_is_imported(store, folder, monkeypatch):
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "large.md").write_text("x" * 200)
    monkeypatch.setattr(notes, "FILE_BYTES_MAX", 100)
    done = import_folder(folder, Shelf(store))
    assert done.skipped == {"bytes.txt": "no UTF-8 text", "large.md": "larger than 0 MiB"}
    assert done.files == 2


def test_a_folder_is_bounded_and_must_be_one(folder, monkeypatch, store):
    with pytest.raises(BadInput):
        import_folder(folder / "garden.md", Shelf(store))
    monkeypatch.setattr(notes, "FILES_MAX", 1)
    with pytest.raises(LimitExceeded):
        import_folder(folder, Shelf(store))
