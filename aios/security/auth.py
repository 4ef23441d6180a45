"""Who may ask for what: tokens with scopes, and the user at the other end of a socket.

The socket's folder and the peer's uid keep other users out. Tokens divide the rights of this user's own programs:
the owner token (new at every start of the daemon) opens everything, further ones only their scopes. A program of
the same user that can read files can read the owner token: tokens hold programs that are kept from files.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from aios.errors import AuthError, BadInput, ConfigError
from aios.security import private_file

Scope = Literal["none", "ask", "memory", "plugins", "admin"]
SCOPES: tuple[Scope, ...] = ("ask", "memory", "plugins", "admin")

OWNER = "owner"                    # the name of who holds the owner token
SECRET_BYTES = 32                  # as many as the hash that is stored of it
SECRET_CHARS_MAX = 256             # ours have 43; of longer ones no more is hashed
TOKENS_MAX = 256                   # one a program; more is a loop gone wrong
TOKENS_FILE_BYTES_MAX = 256 << 10  # 256 entries of below 300 bytes
FORMAT_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_PEER = struct.Struct("3i")        # struct ucred: pid, uid, gid


class HasOptions(Protocol):
    """A socket, or what asyncio shows of one."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes:
        """As socket.socket.getsockopt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process that connected, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whom a token names, and what it opens."""

    name: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raises AuthError unless this identity has the scope ("none" is everyone's)."""
        if scope != "none" and scope not in self.scopes:
            has = ", ".join(sorted(self.scopes)) or "none"
            raise AuthError(f"this needs the scope {scope!r}; {self.name} has: {has}",
                            remedy=f"say hello with a token that has it: aios token new NAME --scope {scope}")


NOBODY = Identity(name="nobody", scopes=frozenset())       # before hello, or without a token


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    sha256: str
    scopes: tuple[Scope, ...]
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    version: int
    tokens: dict[str, _Token]


def check_peer(connection: HasOptions, *uids: int) -> Peer:
    """The process at the other end; raises AuthError unless it runs as one of these users."""
    pid, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if uid not in uids:
        raise AuthError(f"the process at the other end runs as user {uid}, not as {uids[0]}",
                        remedy="every user has a daemon of their own: aios start")
    return Peer(pid=pid, uid=uid, gid=gid)


def read_owner_token(file: Path) -> str | None:
    """What a client says hello with; None when there is no daemon's token."""
    data = private_file.read(file, SECRET_CHARS_MAX)
    return None if data is None else data.decode("ascii", errors="replace").strip()


class Tokens:
    """The tokens of one daemon: the owner's, and those in an owner-only file as hashes; only the parent writes it."""

    def __init__(self, file: Path) -> None:
        """Reads the file; raises ConfigError when it is damaged or not ours alone."""
        self._file = file
        self._owner = ""
        self._tokens = _load(file)

    def renew_owner(self, file: Path) -> None:
        """Write a new owner token to `file`; the previous one is void from now on."""
        secret = _secret()
        private_file.write(file, secret.encode() + b"\n")
        self._owner = _digest(secret)

    def identify(self, secret: str | None) -> Identity:
        """Whose token this is, in the same time for every wrong one; NOBODY without one, AuthError for an unknown."""
        import hmac

        if secret is None:
            return NOBODY
        digest = _digest(secret[:SECRET_CHARS_MAX])
        found: Identity | None = None
        if hmac.compare_digest(digest, self._owner):
            found = Identity(name=OWNER, scopes=frozenset(SCOPES))
        for name, token in self._tokens.items():
            if hmac.compare_digest(digest, token.sha256):
                found = Identity(name=name, scopes=frozenset(token.scopes))
        if found is None:
            raise AuthError("this token is not known here",
                            remedy="the owner token is new at every start of the daemon; connect again")
        return found

    def new(self, name: str, scopes: Iterable[str]) -> str:
        """Make a token and return its secret, which is stored nowhere; raises BadInput."""
        if not _NAME.fullmatch(name) or name == OWNER or name in self._tokens:
            raise BadInput(f"{name[:80]!r} cannot be the name of a new token",
                           remedy="choose an unused one of letters, digits, dot, dash and underscore, 40 at most")
        if len(self._tokens) >= TOKENS_MAX:
            raise BadInput(f"there are {TOKENS_MAX} tokens already", remedy="revoke one: aios token revoke NAME")
        wanted = set(scopes)
        if not wanted or not wanted <= set(SCOPES):
            raise BadInput(f"the scopes of a token are one or more of: {', '.join(SCOPES)}",
                           remedy="name the fewest that the program needs")
        secret = _secret()
        token = _Token(sha256=_digest(secret), scopes=tuple(scope for scope in SCOPES if scope in wanted),
                       created=datetime.now(UTC).isoformat(timespec="seconds"))
        self._store({**self._tokens, name: token})
        return secret

    def list(self) -> list[dict[str, object]]:
        """Name, scopes and date of every token; never a secret or its hash."""
        return [{"name": name, "scopes": list(token.scopes), "created": token.created}
                for name, token in sorted(self._tokens.items())]

    def revoke(self, name: str) -> bool:
        """Forget a token; False when there is none of that name."""
        if name not in self._tokens:
            return False
        self._store({other: token for other, token in self._tokens.items() if other != name})
        return True

    def _store(self, tokens: dict[str, _Token]) -> None:
        private_file.write(self._file, msgspec.json.encode(_Document(version=FORMAT_VERSION, tokens=tokens)))
        self._tokens = tokens      # only once it is on disk


def _load(file: Path) -> dict[str, _Token]:
    data = private_file.read(file, TOKENS_FILE_BYTES_MAX)
    if data is None:
        return {}
    try:
        document = msgspec.json.decode(data, type=_Document)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}: {error}", remedy=f"move it away and make the tokens anew: {file}") from error
    if document.version != FORMAT_VERSION:
        raise ConfigError(f"{file} has version {document.version}; this AIOS reads {FORMAT_VERSION}",
                          remedy="use the AIOS that wrote it, or move the file away")
    return document.tokens


def _secret() -> str:
    import secrets  # here, because clients only read tokens

    return secrets.token_urlsafe(SECRET_BYTES)


def _digest(secret: str) -> str:
    import hashlib

    return hashlib.sha256(secret.encode("utf-8", errors="surrogatepass")).hexdigest()
