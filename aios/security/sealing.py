"""Sealing: every item has a random key of its own, and those keys are wrapped by one that a secret of the owner opens.

    secret (file, credential, passphrase, keyring) -> wraps the master key -> wraps each item's key -> seals the item

Changing the secret rewrites one small file; erasing an item's wrapped key erases the item wherever its sealed bytes
are. Both steps are AES-256-GCM; an item and its key are bound to the store's identity and the item's number. A store
that is encrypted as a whole has a key for its files besides, derived from the master key; that it is so is noted with
the master key and bound to it, so that nobody can quietly turn such a store into a clear one.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from aios.errors import KeyRefused
from aios.security import private_file

KEY_BYTES: Final = 32                 # AES-256
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
WRAPPED_BYTES: Final = NONCE_BYTES + KEY_BYTES + TAG_BYTES
FORMAT_VERSION: Final = 1
ENVELOPE_NAME: Final = "master.json"
ENVELOPE_BYTES_MAX: Final = 4096
SECRET_BYTES_MAX: Final = 4096
SECRET_BYTES_MIN: Final = 16          # of a credential or keyring entry: less is guessed
PASSPHRASE_CHARS_MIN: Final = 8
SALT_BYTES: Final = 16
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 15, 8, 1     # 32 MiB and about 0.1 s: a guess costs as much. RFC 7914
Encrypts = Literal["texts", "all"]               # what of a store is sealed: texts and metadata, or everything but ids
_ITEM_NONCE: Final = bytes(NONCE_BYTES)          # an item's key seals one message in its life


class KeySource(Protocol):
    """Where the owner's secret comes from."""

    @property
    def kind(self) -> str:
        """file, credential, passphrase or keyring: noted beside the wrapped master key."""

    def secret(self, folder: Path, *, create: bool) -> bytes:
        """The secret for the store in `folder`, made if there is none and `create`; raises KeyRefused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretFile:
    """A file that only the owner can read; beside the store unless `path` names another place.

    The default, so that a machine can boot without anybody there. Who copies the folder with it has both.
    """

    path: Path | None = None
    kind: str = "file"

    def secret(self, folder: Path, *, create: bool) -> bytes:
        """The file's bytes."""
        path = self.path or folder / "master.secret"
        data = private_file.read(path, SECRET_BYTES_MAX)
        if data is None and create:
            private_file.write(path, data := os.urandom(KEY_BYTES))
        if data is None:
            raise KeyRefused(f"the key file {path} is missing", remedy="put it back from where you keep it")
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyRefused(f"{path} can be read by others", remedy=f"chmod 600 {path}")
        return _long_enough(data, str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A credential that systemd hands to the service (LoadCredential= or LoadCredentialEncrypted=)."""

    name: str = "aios-memory"
    kind: str = "credential"

    def secret(self, folder: Path, *, create: bool) -> bytes:
        """The credential's bytes; systemd makes it, never this program."""
        where = os.environ.get("CREDENTIALS_DIRECTORY")
        data = private_file.read(Path(where) / self.name, SECRET_BYTES_MAX) if where else None
        if data is None:
            raise KeyRefused(f"systemd handed over no credential {self.name!r}",
                             remedy=f"add LoadCredentialEncrypted={self.name} to the unit and restart it")
        return _long_enough(data, f"the credential {self.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passphrase:
    """What the owner types; nothing opens the store before."""

    text: str
    kind: str = "passphrase"

    def secret(self, folder: Path, *, create: bool) -> bytes:
        """The passphrase as UTF-8."""
        if create and len(self.text) < PASSPHRASE_CHARS_MIN:
            raise KeyRefused(f"a passphrase has {PASSPHRASE_CHARS_MIN} characters or more",
                             remedy="choose a longer one")
        return self.text.encode("utf-8", errors="surrogatepass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The desktop's keyring, where the package `keyring` is installed."""

    service: str = "aios"
    user: str = "memory"
    kind: str = "keyring"

    def secret(self, folder: Path, *, create: bool) -> bytes:
        """The entry's text, made at random if there is none and `create`."""
        try:
            import keyring
        except ImportError as error:
            raise KeyRefused("the package keyring is not installed", remedy="pip install keyring") from error
        text = keyring.get_password(self.service, self.user)
        if text is None and create:
            text = os.urandom(KEY_BYTES).hex()
            keyring.set_password(self.service, self.user, text)
        if text is None:
            raise KeyRefused(f"the keyring has no entry {self.service}/{self.user}", remedy="unlock the keyring")
        return _long_enough(text.encode(), "the keyring's entry")


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """master.json."""

    version: int
    source: str
    salt: str
    wrapped: str
    encrypts: Encrypts = "texts"

    def about(self, identity: bytes) -> bytes:
        """What the wrapped master key is bound to."""
        return identity if self.encrypts == "texts" else identity + self.encrypts.encode()


class Vault:
    """The open master key of one store; seals and opens items."""

    def __init__(self, master: bytes, identity: bytes, encrypts: Encrypts = "texts") -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM
        self._master = AESGCM(master)
        self._identity = identity
        #: Of the files of a store that is encrypted as a whole; None for any other.
        self.file_key = None if encrypts == "texts" else _expand(master, identity, b"aios memory files")

    def seal(self, number: int, plain: bytes) -> tuple[bytes, bytes]:
        """(wrapped key, sealed bytes) of an item; the key exists nowhere else."""
        fresh, about = os.urandom(KEY_BYTES + NONCE_BYTES), self._about(number)
        key, nonce = fresh[:KEY_BYTES], fresh[KEY_BYTES:]
        sealed = self._cipher(key).encrypt(_ITEM_NONCE, plain, about)
        return nonce + self._master.encrypt(nonce, key, about), sealed

    def open(self, number: int, wrapped: bytes, sealed: bytes) -> bytes:
        """The item; raises KeyRefused where key, number or bytes do not belong together."""
        from cryptography.exceptions import InvalidTag

        about = self._about(number)
        try:
            key = self._master.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], about)
            return self._cipher(key).decrypt(_ITEM_NONCE, sealed, about)
        except InvalidTag as error:
            raise KeyRefused(f"item {number} does not open under this key",
                             remedy="the store was put together from different ones; restore it as a whole") from error

    def _about(self, number: int) -> bytes:
        return self._identity + number.to_bytes(8, "little")


def create_vault(folder: Path, identity: bytes, source: KeySource, encrypts: Encrypts = "texts") -> Vault:
    """Make the master key of a new store and put it, wrapped, into the folder."""
    master = os.urandom(KEY_BYTES)
    _write_envelope(folder, identity, source, master, encrypts)
    return Vault(master, identity, encrypts)


def open_vault(folder: Path, identity: bytes, source: KeySource | None = None) -> Vault:
    """Open the master key; without a source by the kind that was noted. Raises KeyRefused."""
    master, encrypts = _master(folder, identity, source)
    return Vault(master, identity, encrypts)


def change_secret(folder: Path, identity: bytes, source: KeySource, new: KeySource) -> None:
    """Wrap the master key by another secret; the old one opens nothing any more."""
    master, encrypts = _master(folder, identity, source)
    _write_envelope(folder, identity, new, master, encrypts)


def noted_source(folder: Path) -> str:
    """The kind of secret that opens the store in this folder."""
    return _read_envelope(folder).source


def _master(folder: Path, identity: bytes, source: KeySource | None) -> tuple[bytes, Encrypts]:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    envelope = _read_envelope(folder)
    source = source or _default(envelope.source)
    if source.kind != envelope.source:
        raise KeyRefused(f"the store opens with a {envelope.source}, not with a {source.kind}",
                         remedy="give the right one, or change the secret first")
    try:
        salt, wrapped = bytes.fromhex(envelope.salt), bytes.fromhex(envelope.wrapped)
    except ValueError as error:
        raise _damaged(folder) from error
    if len(wrapped) != WRAPPED_BYTES or len(salt) != SALT_BYTES:
        raise _damaged(folder)
    key = _derive(source, source.secret(folder, create=False), salt)
    try:
        master = AESGCM(key).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], envelope.about(identity))
    except InvalidTag as error:
        raise KeyRefused(f"the {source.kind} is not the one that this store was closed with",
                         remedy="give the right one; without it nobody can read the texts") from error
    return master, envelope.encrypts


def _default(kind: str) -> KeySource:
    sources: dict[str, KeySource] = {"file": SecretFile(), "credential": Credential(), "keyring": Keyring()}
    if kind not in sources:
        raise KeyRefused(f"the store opens with a {kind}", remedy="give it when the store is opened")
    return sources[kind]


def _derive(source: KeySource, secret: bytes, salt: bytes) -> bytes:
    """The key that wraps the master key: slow from what people think of, quick from random bytes."""
    if source.kind == "passphrase":
        from hashlib import scrypt

        return scrypt(secret, salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P, maxmem=64 << 20, dklen=KEY_BYTES)
    return _expand(secret, salt, b"aios memory master key")


def _expand(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    """A key for one purpose, of random bytes. RFC 5869."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=purpose).derive(secret)


def _write_envelope(folder: Path, identity: bytes, source: KeySource, master: bytes, encrypts: Encrypts) -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    key = _derive(source, source.secret(folder, create=True), salt)
    envelope = _Envelope(version=FORMAT_VERSION, source=source.kind, salt=salt.hex(), wrapped="", encrypts=encrypts)
    wrapped = nonce + AESGCM(key).encrypt(nonce, master, envelope.about(identity))
    private_file.write(folder / ENVELOPE_NAME,
                       msgspec.json.encode(msgspec.structs.replace(envelope, wrapped=wrapped.hex())))


def _read_envelope(folder: Path) -> _Envelope:
    data = private_file.read(folder / ENVELOPE_NAME, ENVELOPE_BYTES_MAX)
    if data is None:
        raise KeyRefused(f"{folder / ENVELOPE_NAME} is missing", remedy="put it back from a backup of this store")
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(folder) from error
    if envelope.version != FORMAT_VERSION:
        raise KeyRefused(f"{folder / ENVELOPE_NAME} has version {envelope.version}; this AIOS reads {FORMAT_VERSION}",
                         remedy="use the AIOS that wrote it")
    return envelope


def _damaged(folder: Path) -> KeyRefused:
    return KeyRefused(f"{folder / ENVELOPE_NAME} is damaged", remedy="put it back from a backup of this store")


def _long_enough(secret: bytes, what: str) -> bytes:
    if len(secret) < SECRET_BYTES_MIN:
        raise KeyRefused(f"{what} has fewer than {SECRET_BYTES_MIN} bytes", remedy="use a random one of 32")
    return secret
