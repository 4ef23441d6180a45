"""Verbs of a connection: hello, ping, api, cancel."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from aios import __version__
from aios.errors import ProtocolError
from aios.ipc import protocol, stream
from aios.ipc.protocol import Cancel, Hello, Nothing, Welcome
from aios.security.auth import SCOPES

if TYPE_CHECKING:
    from aios.service.connection import Connection
    from aios.service.daemon import Daemon


def hello(daemon: Daemon, caller: Connection, params: Hello) -> Welcome:
    """Check version and token; without a token the connection may only ping and ask for the api."""
    if params.protocol != protocol.PROTOCOL_VERSION:
        raise ProtocolError(f"this daemon speaks protocol {protocol.PROTOCOL_VERSION}, the client {params.protocol}",
                            remedy="use the same version of aios on both sides")
    identity = daemon.tokens.identify(params.token)
    caller.greet(identity)
    scopes = tuple(scope for scope in SCOPES if scope in identity.scopes)
    return Welcome(protocol=protocol.PROTOCOL_VERSION, version=__version__, pid=os.getpid(), scopes=scopes,
                   frame_bytes_max=stream.FRAME_BYTES_MAX,
                   verbs=tuple(verb.name for verb in protocol.VERBS.values() if verb.scope in ("none", *scopes)))


def ping(daemon: Daemon, caller: Connection, params: Nothing) -> str:
    """Answer."""
    return "pong"


def api(daemon: Daemon, caller: Connection, params: Nothing) -> list[dict[str, Any]]:
    """The table of verbs as data."""
    from aios.ipc import description  # rarely asked for: not in the memory of an idle daemon

    return description.verbs()


def cancel(daemon: Daemon, caller: Connection, params: Cancel) -> bool:
    """Cancel a request of this connection."""
    return daemon.server.cancel(caller, params.msgid)
