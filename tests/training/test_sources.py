"""Readers of training text."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import Table, parquet

from aios.errors import BadInput
from aios.training.sources import (
    CHITCHAT_WHEEL,
    clean,
    find,
    paragraphs,
    read_articles,
    read_chitchat,
    read_dialogues,
    read_novels,
)


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    parquet.write_table(Table.from_pylist(rows), path)
    return path


def test_text_becomes_plain() -> None:
    assert clean("\u201cIt\u2019s\u201d\t_so_ \u2014\n fine") == '"It\'s" so - fine'


def test_wrapped_lines_are_joined_and_unwrapped_ones_are_not() -> None:
    wrapped = "The first line of a paragraph that goes on\nand ends.\n\nThe next.\n"
    assert list(paragraphs(wrapped)) == ["The first line of a paragraph that goes on and ends.", "The next."]
    long = "A paragraph in one line. " * 5
    assert list(paragraphs(f"{long}\n{long}\n")) == [long.strip()] * 2
    tight = "A line as long as any other of this book\nends here.\nAnother line, also as long as the others\n"
    assert list(paragraphs(tight)) == [
        "A line as long as any other of this book ends here.",
        "Another line, also as long as the others",
    ]


def test_dialogues_are_split_where_the_dialogue_or_the_split_changes(tmp_path: Path) -> None:
    turns = [("train", "1", "Hi."), ("train", "1", ""), ("train", "1", "Bye."), ("dev", "1", "Yes.")]
    rows = [{"split": s, "dialogue": d, "utterance": u} for s, d, u in turns]
    read = list(read_dialogues(table(tmp_path / "turns.parquet", rows)))
    assert [(d.name, d.lines) for d in read] == [("train/1", ("Hi.", "Bye.")), ("dev/1", ("Yes.",))]


def test_only_late_novels_are_read(tmp_path: Path) -> None:
    text = "CHAPTER I\n\nIt was a bright cold day in April, and late.\n"
    rows = [{"author": "A", "title": year, "year": year, "text": text} for year in ("1850", "1900")]
    (novel,) = read_novels(table(tmp_path / "novels.parquet", rows))
    assert novel.name == "A/1900"
    assert novel.lines == ("It was a bright cold day in April, and late.",)


def test_articles_are_lines_without_headings(tmp_path: Path) -> None:
    texts = [{"text": text} for text in (" = Heading = ", "", " A line . ")]
    (article,) = read_articles(table(tmp_path / "a.parquet", texts))
    assert article.lines == ("A line .",)


def test_a_missing_file_names_its_origin(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        find("tales.txt", [tmp_path], "a public place")
    assert "tales.txt" in caught.value.message and str(tmp_path) in caught.value.message
    assert "a public place" in caught.value.remedy


def test_the_first_folder_that_has_the_file_wins(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").touch()
    assert find("x", [tmp_path / "a", tmp_path / "b"], "origin") == tmp_path / "b" / "x"


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / CHITCHAT_WHEEL
    wheel.write_bytes(b"something else")
    with pytest.raises(BadInput, match="sha256"):
        next(read_chitchat(wheel))
