"""Verbs about tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aios.ipc.protocol import Named, NewToken, Nothing
from aios.security.auth import NOBODY

if TYPE_CHECKING:
    from aios.service.connection import Connection
    from aios.service.daemon import Daemon


def new(daemon: Daemon, caller: Connection, params: NewToken) -> dict[str, Any]:
    """A new token; this is the only time its secret is seen."""
    secret = daemon.tokens.new(params.name, params.scopes)
    daemon.log("token.new", name=params.name, scopes=",".join(params.scopes))
    return {"name": params.name, "scopes": list(params.scopes), "token": secret}


def listing(daemon: Daemon, caller: Connection, params: Nothing) -> list[dict[str, object]]:
    """Names, scopes and dates."""
    return daemon.tokens.list()


def revoke(daemon: Daemon, caller: Connection, params: Named) -> bool:
    """Withdraw a token, also from connections that already said hello with it."""
    if not daemon.tokens.revoke(params.name):
        return False
    for connection in daemon.server.connections:
        if connection.identity.name == params.name:
            connection.identity = NOBODY
    daemon.log("token.revoked", name=params.name)
    return True
