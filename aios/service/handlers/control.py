"""Verbs that change the daemon's course: reload, stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aios.ipc.protocol import Nothing, Status

if TYPE_CHECKING:
    from aios.service.connection import Connection
    from aios.service.daemon import Daemon


async def reload(daemon: Daemon, caller: Connection, params: Nothing) -> Status:
    """As SIGHUP: daemon.toml and plugins again; a bad file leaves the old settings and shows in the status."""
    await daemon.reload()
    return daemon.status()


def stop(daemon: Daemon, caller: Connection, params: Nothing) -> bool:
    """As SIGTERM: drain and exit."""
    daemon.stop()
    return True
