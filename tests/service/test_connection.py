"""What a connection keeps for a client that does not read."""

from __future__ import annotations

from aios.service.connection import _joined


def test_a_skipped_state_leaves_its_text_to_the_next() -> None:
    states = [{"step": step, "delta": delta} for step, delta in enumerate(("a", None, "b", "c"))]
    kept = None
    for state in states:
        kept = _joined(kept, state)
    assert kept == {"step": 3, "delta": "abc"}


def test_states_without_text_are_replaced() -> None:
    assert _joined({"step": 1, "pieces": ["a"]}, {"step": 2, "pieces": ["b"]}) == {"step": 2, "pieces": ["b"]}
    assert _joined({"step": 1, "delta": None}, {"step": 2}) == {"step": 2}
