"""Verbs that look: status, models.ps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aios.ipc.protocol import Nothing, Status

if TYPE_CHECKING:
    from aios.service.connection import Connection
    from aios.service.daemon import Daemon


def status(daemon: Daemon, caller: Connection, params: Nothing) -> Status:
    """The daemon at a glance."""
    return daemon.status()


def models_ps(daemon: Daemon, caller: Connection, params: Nothing) -> list[dict[str, Any]]:
    """Models loaded in the worker now."""
    return daemon.link.models
