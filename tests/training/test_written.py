"""Text written by a teacher: what is asked, what is kept, and how the writer goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aios.training.prompts import Ask, ask
from aios.training.written import Writer, fault, read_written, trimmed, write_until

GOOD = "The old sailor walked down to the harbour. He looked at the grey water and smiled at the morning."
WORDS = [f"{a}{b}" for a in ("ba", "lo", "mi", "ru", "se", "ta") for b in ("nd", "st", "rk", "lm", "ps", "tch")]


def teacher(asked: Sequence[Ask]) -> Iterator[tuple[Ask, str, bool]]:
    """Answers that depend on the request alone and come in another order; every fifth is too short."""
    for one in reversed(asked):
        words = random.Random(one.number).choices(WORDS, k=30)
        yield one, "Ok." if one.number % 5 == 4 else " ".join(words).capitalize() + ".", True


def test_a_number_is_a_request_and_neighbours_differ() -> None:
    asked = [ask(number) for number in range(400)]
    assert asked == [ask(number) for number in range(400)]
    assert len({one.prompt for one in asked}) > 380
    assert {one.kind for one in asked} == {"story", "explanation", "dialogue", "how_to", "small_talk", "description"}


def test_an_answer_that_was_cut_ends_with_its_last_whole_sentence() -> None:
    assert trimmed('He said "Go." Then he wal', ended=False) == 'He said "Go."'
    assert trimmed("No end in sight", ended=False) == ""
    assert trimmed(" **Bold** end \n", ended=True) == "Bold end"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (GOOD, None),
        ("Too short.", "short"),
        (GOOD + " As an AI I have no feelings.", "refusal"),
        ("and then he said it " * 12, "repetition"),
        ("One good line of words here.\nAnother line.\nOne good line of words here.", "repetition"),
        (GOOD + " \u4f60\u597d\u4f60\u597d\u4f60\u597d", "odd characters"),
        (" ".join(f"the {word}" for word in WORDS), "one word"),
    ],
)
def test_faults_are_found(text: str, why: str | None) -> None:
    assert fault(text) == why


def test_the_writer_keeps_good_answers_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    told = write_until(writer, teacher, batch=10, bytes_max=10_000, go_on=lambda state: state["next"] < 30)
    rows = [json.loads(line) for line in writer.path.read_text().splitlines()]
    assert [row["number"] for row in rows] == [number for number in range(30) if number % 5 != 4]
    assert told == {"next": 30, "kept": 24, "bytes": writer.path.stat().st_size, "dropped": {"short": 6}}


def test_a_stopped_writer_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = Writer(tmp_path / "whole")
    write_until(whole, teacher, batch=10, bytes_max=10**6, go_on=lambda state: state["next"] < 40)
    part = Writer(tmp_path / "part")
    write_until(part, teacher, batch=10, bytes_max=10**6, go_on=lambda state: state["next"] < 20)
    with part.path.open("ab") as stream:
        stream.write(b'{"name": "torn')
    again = Writer(tmp_path / "part")
    write_until(again, teacher, batch=10, bytes_max=10**6, go_on=lambda state: state["next"] < 40)
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert again.told() == whole.told()


def test_a_crash_between_file_and_state_repeats_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.write(teacher, batch=10)
    (tmp_path / "written.state.json").unlink()
    again = Writer(tmp_path)
    assert again.next == 9, "behind the last kept answer"
    again.write(teacher, batch=10)
    numbers = [json.loads(line)["number"] for line in again.path.read_text().splitlines()]
    assert numbers == sorted(set(numbers))


def test_repeated_answers_and_common_openings_are_dropped(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    assert writer.judge(GOOD) is None
    assert writer.judge(GOOD) == "exact duplicate"
    found = [writer.judge("Once upon a time " + " ".join(random.Random(n).choices(WORDS, k=30))) for n in range(40)]
    assert found == [None] * 20 + ["common opening"] * 20


def test_the_size_is_a_limit(tmp_path: Path) -> None:
    told = write_until(Writer(tmp_path), teacher, batch=5, bytes_max=1, go_on=lambda state: True)
    assert told["next"] == 5


def test_written_text_becomes_documents_with_roles(tmp_path: Path) -> None:
    rows = [{"name": "written/1", "prompt": "Say  hi.", "text": "Hi.\n\nHow <|eot|> are you?"}]
    path = tmp_path / "w.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    (found,) = read_written(path)
    assert found.lines == ("<|user|>Say hi.<|assistant|>Hi.", "How < |eot|> are you?")
