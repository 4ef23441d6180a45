"""Verbs about memories: coroutines, which the server gives a deadline and lets their client cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aios.ipc.protocol import Nothing, Unlock
from aios.messages import Forget, ListMemories, Recall, Remember

if TYPE_CHECKING:
    from aios.service.connection import Connection
    from aios.service.daemon import Daemon


async def remember(daemon: Daemon, caller: Connection, params: Remember) -> list[int]:
    """Keep memories; answered when they are on the disk."""
    return await daemon.memories.remember(params)


async def recall(daemon: Daemon, caller: Connection, params: Recall) -> list[Any]:
    """The memories nearest to a text or a vector."""
    return await daemon.memories.recall(params)


async def forget(daemon: Daemon, caller: Connection, params: Forget) -> list[int]:
    """Forget for good; the log keeps how many and by whom, never what."""
    gone = await daemon.memories.forget(params)
    daemon.log("memory.forgotten", count=len(gone), by=caller.identity.name)
    return gone


async def listing(daemon: Daemon, caller: Connection, params: ListMemories) -> Any:
    """Memories page by page."""
    return await daemon.memories.page(params)


async def stats(daemon: Daemon, caller: Connection, params: Nothing) -> Any:
    """Sizes and counts."""
    return await daemon.memories.stats()


async def compact(daemon: Daemon, caller: Connection, params: Nothing) -> bool:
    """Take the bytes of forgotten memories off the disk."""
    return await daemon.memories.compact()


async def unlock(daemon: Daemon, caller: Connection, params: Unlock) -> bool:
    """Open a store that a passphrase locks, until the daemon ends."""
    return await daemon.memories.unlock(params.passphrase)
