"""Facts to look up: made the same way every time, never contradicting, and answerable from what stands there."""

from __future__ import annotations

import re
from pathlib import Path

from aios.training.fact_sources import DOCUMENTS, UNKNOWN, fact_document, here, read_facts
from aios.training.recipes.catalogue import ORIGINS

PARTS = re.compile(r"<\|memory\|>([^<]+)|<\|user\|>([^<]+)|<\|assistant\|>([^<]+)")


def parts(number: int) -> tuple[list[str], str, str]:
    (line,) = fact_document(number).lines
    found = PARTS.findall(line)
    assert "".join("<|memory|>" * bool(a) + a + "<|user|>" * bool(b) + b + "<|assistant|>" * bool(c) + c
                   for a, b, c in found) == line
    (question,), (answer,) = [b for _, b, _ in found if b], [c for _, _, c in found if c]
    return [a for a, _, _ in found if a], question, answer


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.lower().replace("your ", "my ")))


def test_a_document_is_the_same_every_time_and_no_two_are_alike() -> None:
    lines = [fact_document(number).lines for number in range(500)]
    assert lines == [fact_document(number).lines for number in range(500)]
    assert len(set(lines)) > 495
    assert sum(1 for _ in read_facts(Path())) == DOCUMENTS


def test_the_answer_stands_in_exactly_one_passage_or_is_not_known() -> None:
    unknown = 0
    for number in range(2_000):
        passages, question, answer = parts(number)
        assert 1 <= len(passages) <= 5 and question.endswith("?")
        if answer in UNKNOWN:
            unknown += 1
            continue
        value = words(answer) - {"it", "is", "called"}
        assert any(value <= words(passage) for passage in passages), (passages, answer)
    assert 0.05 < unknown / 2_000 < 0.15


def test_who_asks_and_who_answers_speak_of_themselves() -> None:
    for number in range(500):
        passages, question, answer = parts(number)
        assert not re.search(r"\bmy\b", answer, re.I)
        assert not re.search(r"\byour\b", " ".join((*passages, question)), re.I)


def test_the_manifest_keeps_the_hash_of_the_generator() -> None:
    origin = ORIGINS["facts"]
    assert origin.locate([]) == (here(),)
    assert list(origin.hashes(origin.locate([]))) == ["fact_sources.py"]
