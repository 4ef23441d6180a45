"""Verbs about plugins. Only the daemon writes grants and quarantine, on these requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aios.ipc.protocol import Allow, Named, Nothing

if TYPE_CHECKING:
    from aios.service.connection import Connection
    from aios.service.daemon import Daemon


def listing(daemon: Daemon, caller: Connection, params: Nothing) -> list[dict[str, Any]]:
    """Every plugin with its state."""
    return [report.to_wire() for report in daemon.catalog.reports()]


def show(daemon: Daemon, caller: Connection, params: Named) -> dict[str, Any]:
    """One plugin."""
    return daemon.catalog.report(params.name).to_wire()


async def allow(daemon: Daemon, caller: Connection, params: Allow) -> dict[str, Any]:
    """Show what would be allowed, or allow it and let a running worker load it."""
    answer = daemon.catalog.allow(params.name, params.confirm)
    if not answer["allowed"]:
        return answer
    daemon.log("plugin.allowed", plugin=params.name, hash=answer["hash"], by=caller.identity.name)
    await daemon.load_plugins()
    return {**answer, "state": daemon.catalog.report(params.name).state}


async def reload(daemon: Daemon, caller: Connection, params: Nothing) -> list[dict[str, Any]]:
    """Look for plugins again, load them anew, and forgive a crash loop."""
    daemon.catalog.reload()
    daemon.link.forgive()
    await daemon.load_plugins()
    return listing(daemon, caller, params)
