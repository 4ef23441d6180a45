"""The verbs of the daemon: one table, typed by plain dataclasses. `aios api` prints it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from aios import messages
from aios.errors import UnknownVerb
from aios.security.auth import Scope

PROTOCOL_VERSION = 1

Place = Literal["daemon", "worker", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """No parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """First request on a connection; without a token only `ping` and `api` may follow."""

    protocol: int = PROTOCOL_VERSION
    token: str | None = None
    client: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The daemon's answer to hello."""

    protocol: int
    version: str
    pid: int
    scopes: tuple[str, ...]
    frame_bytes_max: int
    verbs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What every verb of the worker and of memory accepts beside its own parameters."""

    stream: bool = False              # send `state` notifications: [msgid, State]
    deadline_ms: int | None = None    # from arrival; the daemon's default when absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Cancel a running or queued request of this connection by its msgid."""

    msgid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A model or plugin by name."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """Permission for a plugin's present content; `confirm` repeats the hash that `plugins.show` gave."""

    name: str
    confirm: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token for one client, good for some scopes."""

    name: str
    scopes: tuple[str, ...] = ("ask",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlock:
    """The passphrase that opens the store of memories; of a home without one it becomes the passphrase."""

    passphrase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """The model worker as the parent sees it."""

    state: Literal["off", "starting", "ready", "busy", "stopping", "crash-loop"]
    pid: int | None = None
    rss_mb: float | None = None
    restarts: int = 0
    reason: str | None = None         # why it last ended, when that was no choice
    models: tuple[str, ...] = ()      # loaded now


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStatus:
    """The memory process as the parent sees it; off until something is remembered or asked for."""

    state: Literal["off", "starting", "ready", "busy", "stopping", "crash-loop"] = "off"
    pid: int | None = None
    rss_mb: float | None = None
    restarts: int = 0
    reason: str | None = None         # why it last ended, when that was no choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The daemon at a glance."""

    version: str
    pid: int
    state: Literal["starting", "ready", "draining"]
    uptime_s: float
    rss_mb: float
    clients: int
    queued: int
    running: int
    served: int
    failed: int
    safe_mode: bool
    config_file: str
    config_error: str | None
    worker: WorkerStatus
    memory: MemoryStatus = MemoryStatus()
    plugins: dict[str, int] = field(default_factory=dict)     # state -> count
    housekeeping: dict[str, Any] = field(default_factory=dict)  # last run, next run, findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One row of the table."""

    name: str
    scope: Scope
    place: Place
    params: type
    result: Any
    doc: str
    streams: bool = False


VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(name="hello", scope="none", place="daemon", params=Hello, result=Welcome,
             doc="Versions, and the token that opens the other verbs."),
        Verb(name="ping", scope="none", place="daemon", params=Nothing, result=str, doc='Answers "pong".'),
        Verb(name="api", scope="none", place="daemon", params=Nothing, result=list[dict[str, Any]],
             doc="This table as data."),
        Verb(name="status", scope="ask", place="daemon", params=Nothing, result=Status, doc="The daemon at a glance."),
        Verb(name="cancel", scope="ask", place="daemon", params=Cancel, result=bool,
             doc="Cancel a request of this connection; true if it was still running or queued."),
        Verb(name="encode", scope="ask", place="worker", params=messages.Encode, result=messages.Response,
             doc="Texts to unit vectors: one part of little-endian f32, shape in its MIME type."),
        Verb(name="diffuse", scope="ask", place="worker", params=messages.Diffuse, result=messages.Response,
             doc="Continue a prompt by diffusion, or answer a conversation.", streams=True),
        Verb(name="infill", scope="ask", place="worker", params=messages.Infill, result=messages.Response,
             doc="Write what stands between a head and a tail.", streams=True),
        Verb(name="generate", scope="ask", place="worker", params=messages.Generate, result=messages.Response,
             doc="Continue a prompt or a conversation with an autoregressive model.", streams=True),
        Verb(name="memory.remember", scope="memory", place="memory", params=messages.Remember, result=list[int],
             doc="Keep memories, all or none; their ids once they are on the disk. Texts alone are encoded."),
        Verb(name="memory.recall", scope="memory", place="memory", params=messages.Recall,
             result=list[messages.Memory], doc="The memories nearest to a text or a vector, best first."),
        Verb(name="memory.forget", scope="memory", place="memory", params=messages.Forget, result=list[int],
             doc="Forget memories for good, by id or by a filter; the ids that were there."),
        Verb(name="memory.list", scope="memory", place="memory", params=messages.ListMemories,
             result=messages.MemoryPage, doc="Memories page by page, with their vectors if wanted: an export."),
        Verb(name="memory.stats", scope="memory", place="memory", params=Nothing, result=messages.MemoryStats,
             doc="Sizes and counts of the store."),
        Verb(name="memory.compact", scope="memory", place="memory", params=Nothing, result=bool,
             doc="Take the sealed bytes of forgotten memories off the disk; true if there were any."),
        Verb(name="memory.unlock", scope="memory", place="memory", params=Unlock, result=bool,
             doc="Open a store that a passphrase locks, until the daemon ends."),
        Verb(name="models.ps", scope="ask", place="daemon", params=Nothing, result=list[dict[str, Any]],
             doc="Models loaded in the worker now."),
        Verb(name="plugins.list", scope="ask", place="daemon", params=Nothing, result=list[dict[str, Any]],
             doc="Every plugin found, its state and why."),
        Verb(name="plugins.show", scope="ask", place="daemon", params=Named, result=dict[str, Any],
             doc="One plugin: manifest, content hash, state, reason."),
        Verb(name="plugins.allow", scope="admin", place="daemon", params=Allow, result=dict[str, Any],
             doc="Pin permission to a plugin's present content; without `confirm` only shows what would be allowed."),
        Verb(name="plugins.reload", scope="plugins", place="daemon", params=Nothing, result=list[dict[str, Any]],
             doc="Look for plugins again and load them anew; lifts quarantine of changed ones."),
        Verb(name="tokens.new", scope="admin", place="daemon", params=NewToken, result=dict[str, Any],
             doc="A scoped token; its secret is shown once."),
        Verb(name="tokens.list", scope="admin", place="daemon", params=Nothing, result=list[dict[str, Any]],
             doc="Names and scopes of tokens; never secrets."),
        Verb(name="tokens.revoke", scope="admin", place="daemon", params=Named, result=bool, doc="Withdraw a token."),
        Verb(name="reload", scope="admin", place="daemon", params=Nothing, result=Status,
             doc="Read daemon.toml and the plugins again, as SIGHUP does."),
        Verb(name="stop", scope="admin", place="daemon", params=Nothing, result=bool,
             doc="Drain and exit, as SIGTERM does."),
    )
}


def verb(name: object) -> Verb:
    """The table's row; raises UnknownVerb."""
    if isinstance(name, str) and name in VERBS:
        return VERBS[name]
    raise UnknownVerb(f"no verb {str(name)[:80]!r}", remedy="`aios api` prints every verb")
