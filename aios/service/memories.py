"""What the parent does about memories: texts become vectors in the model worker, the rest is the memory process's.

Nothing is started for a home without memories until something is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from aios.errors import EncoderChanged, Internal, MemoryDied
from aios.messages import (
    PASSAGES_MAX,
    Diffuse,
    Encode,
    Forget,
    Generate,
    ListMemories,
    MemoryPage,
    MemoryStats,
    Passage,
    Recall,
    Remember,
    from_wire,
    question,
    to_wire,
)
from aios.service.errands import answered
from aios.service.jobs import Board
from aios.service.memory_link import MemoryLink

PASSAGE_CHARS_MAX: Final = 8192      # of a memory that is lent; five of them fill the context of a small model
QUESTION_CHARS_MAX: Final = 8192     # that memories are judged by; the encoder reads less
# By its vector an encoder is known again; it must never change.
ANCHOR: Final = "On Tuesday the gardener moved three old apple trees from the north wall to the meadow."
FLOAT_BYTES: Final = 4

Asking = TypeVar("Asking", bound=Diffuse | Generate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Vectors of texts as little-endian f32, and whose they are."""

    vectors: list[bytes]
    model: str
    release: str


class Memories:
    """The memory verbs. `check` raises while the model worker is not started any more."""

    def __init__(self, link: MemoryLink, board: Board, folder: Path, check: Callable[[], None]) -> None:
        self.passphrase: str | None = None       # of a locked store, once it opened: a new process needs it again
        self._link, self._board, self._folder, self._check = link, board, folder, check

    @property
    def there(self) -> bool:
        """Whether anything was ever remembered in this home."""
        return self._folder.is_dir()

    async def remember(self, asked: Remember) -> list[int]:
        """Keep memories; their ids once they are on the disk."""
        missing = [index for index, draft in enumerate(asked.memories) if draft.vector is None]
        if not missing:
            return await self._ids("remember", asked, None)
        encoded = await self._encode([asked.memories[index].text for index in missing])
        drafts = list(asked.memories)
        for index, vector in zip(missing, encoded.vectors, strict=True):
            drafts[index] = replace(drafts[index], vector=vector)
        return await self._ids("remember", replace(asked, memories=tuple(drafts)), encoded)

    async def recall(self, asked: Recall) -> list[Any]:
        """The nearest memories as plain data, best first."""
        if not self.there:
            return []
        encoded: Encoded | None = None
        if asked.query is not None:
            encoded = await self._encode([asked.query])
            asked = replace(asked, query=None, vector=encoded.vectors[0])
        found: list[Any] = await self._again("recall", asked, encoded)
        return found

    async def forget(self, asked: Forget) -> list[int]:
        """Forget memories; the ids that were there."""
        return await self._ids("forget", asked, None) if self.there else []

    async def page(self, asked: ListMemories) -> Any:
        """Some memories, in the order of their ids."""
        return await self._again("list", asked, None) if self.there else MemoryPage(memories=(), total=0)

    async def stats(self) -> Any:
        """Sizes and counts."""
        return (await self._again("stats", None, None) if self.there else None) or MemoryStats()

    async def compact(self) -> bool:
        """Rewrite what holds forgotten memories; whether there was anything to do."""
        return self.there and bool(await self._link.ask("compact", {}))

    async def unlock(self, passphrase: str) -> bool:
        """Open the store that a passphrase locks; raises KeyRefused when it is another one."""
        await self._link.ask("unlock", {"passphrase": passphrase})
        self.passphrase = passphrase
        return True

    async def lend(self, request: Asking, k: int) -> Asking:
        """The request with the passages nearest to what it asks, in place of the wish for them."""
        asked, lent = question(request), list[Passage]()
        if self.there and asked.strip():
            encoded = await self._encode([asked])
            wish = {"query": asked[:QUESTION_CHARS_MAX], "vector": encoded.vectors[0], "k": min(k, PASSAGES_MAX)}
            lent = from_wire(await self._again("lend", wish, encoded), list[Passage])
        passages = tuple(replace(one, text=one.text[:PASSAGE_CHARS_MAX]) for one in lent)
        return replace(request, memory="off", passages=passages)

    async def _ids(self, verb: str, asked: Remember | Forget, encoded: Encoded | None) -> list[int]:
        ids: list[int] = await self._asked(verb, asked, encoded)
        return ids

    async def _again(self, verb: str, asked: Any, encoded: Encoded | None) -> Any:
        """A question may be asked twice: the second process knows what the first one did."""
        try:
            return await self._asked(verb, asked, encoded)
        except MemoryDied:
            return await self._asked(verb, asked, encoded)

    async def _asked(self, verb: str, asked: Any, encoded: Encoded | None) -> Any:
        """Ask the memory process, introducing the encoder where it is not known."""
        params = {"request": to_wire(asked), "release": encoded.release if encoded else None}
        try:
            return await self._link.ask(verb, params)
        except EncoderChanged as error:
            if encoded is None or not error.details.get("introduce"):
                raise
        anchor = await self._encode([ANCHOR])
        await self._link.ask("encoder", {"release": anchor.release, "model": anchor.model, "anchor": anchor.vectors[0]})
        return await self._link.ask(verb, params)

    async def _encode(self, texts: Sequence[str]) -> Encoded:
        self._check()
        response = await answered(self._board, "encode", Encode(texts=tuple(texts)))
        data, verdict = response["parts"][0]["data"], response["verdict"]
        width = len(data) // len(texts)
        if not width or width % FLOAT_BYTES or width * len(texts) != len(data):
            raise Internal(f"the encoder gave {len(data)} bytes for {len(texts)} texts")
        vectors = [data[start:start + width] for start in range(0, len(data), width)]
        return Encoded(vectors=vectors, model=verdict["model"], release=verdict["release"])
