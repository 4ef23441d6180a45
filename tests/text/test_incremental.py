"""A text that grows by tokens shows whole characters, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aios.text.incremental import PENDING_TOKENS_MAX, GrowingText, StopTexts


class Bytes:
    """One token a byte."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


class Words:
    """A space before every word but the first of a text, as word-piece vocabularies write."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in ids)


@given(st.text(max_size=30))
def test_deltas_are_whole_characters_and_make_up_the_text(text: str) -> None:
    raw = text.encode("utf-8", "replace")
    growing = GrowingText(Bytes())
    deltas = [growing.add(byte) for byte in raw]
    assert all("\ufffd" not in delta for delta in deltas) or "\ufffd" in text
    assert "".join(deltas) + growing.finish() == raw.decode()


@example(b"\x80\x80\x80\x80\x80\x80\xe0\xa0\x80")
@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_are_shown_in_the_end(raw: bytes) -> None:
    growing = GrowingText(Bytes())
    deltas = [growing.add(byte) for byte in raw]
    shown = "".join(deltas) + growing.finish()
    assert shown.replace("\ufffd", "") == raw.decode("utf-8", "replace").replace("\ufffd", "")


def test_endless_bytes_that_are_no_text_do_not_pile_up() -> None:
    growing = GrowingText(Bytes())
    assert any(growing.add(0x80) for _ in range(2 * PENDING_TOKENS_MAX))


def test_spaces_between_words_survive() -> None:
    growing = GrowingText(Words())
    assert [growing.add(token) for token in (1, 2, 3)] == ["w1", " w2", " w3"]


@given(st.text("ab.", max_size=30), st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
       st.lists(st.integers(1, 4), min_size=30, max_size=30))
def test_a_stop_text_ends_the_text_wherever_its_pieces_lie(text: str, stops: list[str], cuts: list[int]) -> None:
    gate, shown, at = StopTexts(stops), "", 0
    for cut in cuts:
        shown += gate.add(text[at:at + cut])
        at += cut
        assert not any(stop in shown for stop in stops)
        if gate.found:
            break
    else:
        shown += gate.finish()
    first = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    assert gate.found == any(stop in text for stop in stops)
    if not gate.found:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert len(shown) >= first


def test_what_cannot_become_a_stop_text_is_shown_at_once() -> None:
    gate = StopTexts(["\n\nUser:"])
    assert [gate.add(piece) for piece in ("Hi\n", "there", ".\n\nUs", "ing", "\n", "\nUser", ": no")] == [
        "Hi", "\nthere", ".", "\n\nUsing", "", "", ""]
    assert gate.found and gate.finish() == ""


@pytest.mark.parametrize("held", ["", "\n", "\n\nUser"])
def test_what_was_held_back_comes_in_the_end(held: str) -> None:
    gate = StopTexts(["\n\nUser:"])
    assert gate.add("x" + held) + gate.finish() == "x" + held
