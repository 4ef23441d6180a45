"""Passages from memory as models read them: as a system text, or as turns of their own where a model learned these.

`<|memory|>PASSAGE<|memory|>PASSAGE...<|user|>QUESTION<|assistant|>`. Beside its tokens a passage has traits: what each
token is in the eyes of the question, which a network that points at passages looks at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aios.contracts import Tokenizer
from aios.messages import Passage
from aios.text.tokenizer import TOKEN_CHARS_MAX

ROLE: Final = "memory"
#: Of each token of a passage; the first one is 0 at the token with which a passage begins.
TRAITS: Final = ("within", "weight", "asked", "shared", "begins", "mark", "figure", "capital")
SHARE_MAX: Final = 0.75          # of the room for a prompt that passages may take: a question is short
CONTEXT_CHARS_MAX: Final = 8192  # of all passages together: a quarter of what the smallest chat models read
CONTEXT: Final = "Here is what you remember:\n{notes}\nAnswer shortly, with what you remember."
_PIECE: Final = re.compile(r"\s*\S+|\s+$")
_WORD: Final = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text in one case, without the s of possession: what tells whether two texts share one."""
    return _WORD.findall(text.casefold().replace("\u2019s", "").replace("'s", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighted:
    """Passages as tokens, each passage behind its beginning token, with one row of `TRAITS` for every token."""

    ids: list[int]
    traits: list[tuple[float, ...]]


def context(passages: Sequence[Passage], system: str | None) -> str:
    """The system text of a chat model that has passages in sight, behind the one that the request brings."""
    each = CONTEXT_CHARS_MAX // max(1, len(passages))
    notes = "\n".join(f"- {' '.join(passage.text[:each].split())}" for passage in passages)
    told = CONTEXT.format(notes=notes)
    return told if system is None else f"{system}\n\n{told}"


def sighted(passages: Sequence[Passage], question: str, begin: int, tokenizer: Tokenizer, *, room: int) -> Sighted:
    """As many passages as fit into `room` tokens, best first in `passages`, the best one last among the tokens.

    The last word is what a network reads best. Of a passage that is too long by itself the end is cut.
    """
    cut = [_pieces(passage.text[:max(1, room) * TOKEN_CHARS_MAX], tokenizer) for passage in passages]
    kept: list[list[tuple[str, list[int]]]] = []
    for pieces in cut:
        room -= 1 + sum(len(ids) for _, ids in pieces)
        if room < 0 and kept:
            break
        while room < 0 and pieces:
            room += len(pieces.pop()[1])
        kept.append(pieces)
    weights = _weights(passages[:len(kept)])
    asked = frozenset(words(question))
    held = [frozenset(word for piece, _ in pieces for word in words(piece)) for pieces in kept]
    ids: list[int] = []
    traits: list[tuple[float, ...]] = []
    for number in reversed(range(len(kept))):
        others = held[:number] + held[number + 1:]
        ids.append(begin)
        traits.append((0.0,) * len(TRAITS))
        for piece, tokens in kept[number]:
            plain = words(piece)
            word = _WORD.search(piece)
            capital = float(word is not None and word[0][0].isupper() and piece[0].isspace())
            figure = float(any(letter.isdigit() for letter in piece))
            shared = sum(all(word in other for word in plain) for other in others) / max(1, len(others))
            for index, token in enumerate(tokens):
                ids.append(token)
                traits.append((1.0, weights[number], float(all(word in asked for word in plain)), shared,
                               float(index == 0), float(not _WORD.search(tokenizer.piece(token))), figure, capital))
    return Sighted(ids=ids, traits=traits)


def _pieces(text: str, tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """A text word by word, each with its tokens; blanks belong to the word behind them."""
    return [(piece, tokenizer.encode(piece)) for piece in _PIECE.findall(text.strip())]


def _weights(passages: Sequence[Passage]) -> list[float]:
    """Each passage's share of what they are meant by: their scores, as shares of the sum; even shares without any."""
    scores = [max(0.0, passage.score or 0.0) for passage in passages]
    total = sum(scores)
    return [score / total for score in scores] if total > 0 else [1.0 / len(scores)] * len(scores)
