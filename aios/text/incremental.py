"""Text that grows by tokens: what is certain of it, and where it shall end."""

from __future__ import annotations

from collections.abc import Sequence

from aios.contracts import Tokenizer

UNDECODABLE = "\ufffd"
PENDING_TOKENS_MAX = 8    # a character has at most 4 bytes: what is no text by then never becomes any


class GrowingText:
    """Decodes token by token; a character appears when its last byte has come.

    A few tokens before the new ones are decoded with them, because some vocabularies write a word's space with the
    word before.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0      # tokens whose text was handed out
        self._context = 0    # where decoding begins

    def add(self, token_id: int) -> str:
        """The text that became certain by this token; often empty."""
        self._ids.append(token_id)
        end = len(self._ids)
        if self._tokenizer.decode(self._ids[self._context:]).endswith(UNDECODABLE):
            if end - self._shown < PENDING_TOKENS_MAX:
                return ""
            end -= self._unfinished()
        return self._hand_out(end)

    def finish(self) -> str:
        """What is left, although it may be half a character."""
        return self._hand_out(len(self._ids))

    def _unfinished(self) -> int:
        """How many of the last tokens may be the beginning of one character: together they decode as one unknown."""
        return next((count for count in (3, 2, 1) if self._tokenizer.decode(self._ids[-count:]) == UNDECODABLE), 0)

    def _hand_out(self, end: int) -> str:
        """The text of the tokens before `end` that was not shown yet."""
        before = self._tokenizer.decode(self._ids[self._context:self._shown])
        text = self._tokenizer.decode(self._ids[self._context:end])
        self._context, self._shown = self._shown, end
        return text[len(before):]


class StopTexts:
    """Ends a growing text before the first of some stop texts; holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What may be shown now; nothing any more once `found`."""
        if self.found:
            return ""
        self._held += text
        hits = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            self.found = True
            shown, self._held = self._held[:min(hits)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[:len(self._held) - keep], self._held[len(self._held) - keep:]
        return shown

    def finish(self) -> str:
        """What was held back and became no stop text."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)
