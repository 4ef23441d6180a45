"""Verbs of a connection: hello, ping, api, cancel."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

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
    return [{"name": verb.name, "scope": verb.scope, "params": _members(verb), "result": _written(verb.result),
             "streams": verb.streams, "doc": verb.doc} for verb in protocol.VERBS.values()]


def cancel(daemon: Daemon, caller: Connection, params: Cancel) -> bool:
    """Cancel a request of this connection."""
    return daemon.board.cancel(caller, params.msgid)


def _members(verb: protocol.Verb) -> dict[str, str]:
    """Parameter name -> type as Python writes it; what every worker verb accepts beside its own is included."""
    kinds = [verb.params, *([protocol.Call] if verb.place == "worker" else [])]
    return {field.name: str(field.type) for kind in kinds for field in fields(kind)}


def _written(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
