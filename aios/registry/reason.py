"""Why a plugin failed, in one printable line: what a stranger's code says may hold anything."""

from __future__ import annotations

REASON_CHARS_MAX = 300     # fits a terminal's width a few times over


def one_line(text: str) -> str:
    """`text` in one line without control characters and lone surrogates, cut to a readable length."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}"
                    for c in text[:4 * REASON_CHARS_MAX])
    return " ".join(shown.split())[:REASON_CHARS_MAX]


def describe(error: BaseException) -> str:
    """`ValueError: no luck`; the type alone when there is no message or not even that can be had."""
    try:
        text = one_line(str(error))
    except Exception:   # __str__ is the plugin's own code too
        text = ""
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)
