"""Conversations as a diffusion model has learned them: every turn begins with its role's token.

`<|user|>TEXT<|assistant|>TEXT<|user|>...`: a turn ends where the next one begins, or with the text. Which ids these
tokens have stands in config.json under `tokens.roles`; a model without that has seen no conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aios.contracts import Tokenizer
from aios.errors import BadInput, ModelCorrupt
from aios.messages import ChatMessage
from aios.text.tokenizer import TOKEN_CHARS_MAX

ROLES: Final = ("system", "user", "assistant", "tool", "memory")
CUT_TOKENS_MIN: Final = 16    # a conversation that is cut to less than this asks nothing any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The ids of the tokens with which turns begin, by role: those that the model has learned."""

    ids: Mapping[str, int]

    @classmethod
    def read(cls, spec: Mapping[str, Any]) -> Roles:
        """Those of a config.json, none where it names none; raises ModelCorrupt. Unknown roles are left out."""
        try:
            told = spec["tokens"].get("roles", {})
            if not isinstance(told, Mapping):
                raise TypeError("roles are no table")
            ids = {role: _token(told[role], spec) for role in ROLES if role in told}
            if len({*ids.values(), *(_token(spec["tokens"][name], spec) for name in ("mask", "eot"))}) < len(ids) + 2:
                raise ValueError("two tokens have one id")
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ModelCorrupt(f"config.json does not say how turns begin: {error!r}",
                               remedy="fetch the model again") from None
        return cls(ids=ids)

    def begin(self, role: str) -> int:
        """The token with which a turn of `role` begins; BadInput when the model has learned no such turns."""
        if "assistant" not in self.ids:
            raise BadInput("this model has learned no conversations", remedy="give a prompt")
        if role not in self.ids:
            raise BadInput(f"this model has learned no {role[:20]} turns, only {', '.join(self.ids)}",
                           remedy="say it in a user's message")
        return self.ids[role]


def stop_ids(spec: Mapping[str, Any]) -> frozenset[int]:
    """The tokens that end what is written: the end of the text, and every token with which another turn begins."""
    roles = Roles.read(spec)
    return frozenset({spec["tokens"]["eot"], *roles.ids.values()})


def turn_ids(messages: Sequence[ChatMessage], roles: Roles, tokenizer: Tokenizer, *, room: int) -> list[int]:
    """Return a conversation's token ids up to where the assistant begins, at most `room` of them.

    Of one that is too long the oldest turns are left out, so that it begins with one of the user's. A system text
    before them stays, in at most half of the room; a last turn that is too long by itself loses its beginning.
    BadInput for roles that the model has not learned, or when hardly any room is left.
    """
    answer = roles.begin("assistant")
    begins = [roles.begin(message.role) for message in messages]
    chars_max = max(1, room) * TOKEN_CHARS_MAX   # more never fits, and costs time
    first = 1 if messages and messages[0].role == "system" else 0
    before = [begins[0], *tokenizer.encode(messages[0].content.strip()[:chars_max])] if first else []
    turns: list[list[int]] = []                  # the last one first
    space = room - 1
    for message, begin in zip(reversed(messages[first:]), reversed(begins[first:]), strict=True):
        turns.append([begin, *tokenizer.encode(message.content.strip()[-chars_max:])])
        space -= len(turns[-1])
        if space < 0:
            break
    if len(before) > space:
        if room < CUT_TOKENS_MIN:
            raise BadInput(f"there is room for {max(0, room)} tokens: too little for this conversation",
                           remedy="ask for a smaller length")
        before = before[:(room - 1) // 2]
        turns = _newest(turns, roles, room - 1 - len(before))
    return [*before, *(token for turn in reversed(turns) for token in turn), answer]


def _newest(turns: Sequence[list[int]], roles: Roles, space: int) -> list[list[int]]:
    """The most of the last turns that fit, beginning with one of the user's; else what fits of the last one."""
    fitting, size = 0, 0
    for count, turn in enumerate(turns, start=1):
        size += len(turn)
        if size <= space and turn[0] == roles.ids.get("user"):
            fitting = count
    if fitting or not turns:
        return list(turns[:fitting])
    begin, *text = turns[0]
    return [[begin, *text[-(space - 1):]]]


def _token(value: Any, spec: Mapping[str, Any]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < int(spec["vocab_size"]):
        raise ValueError(f"{value!r} is no token")
    return value
