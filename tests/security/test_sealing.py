"""Items open under their own key, their own number and their own store, and under nothing else."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from aios.errors import KeyRefused
from aios.security import sealing
from aios.security.sealing import (
    Credential,
    Keyring,
    Passphrase,
    SecretFile,
    change_secret,
    create_vault,
    noted_source,
    open_vault,
)

IDENTITY = bytes(range(16))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sealing, "SCRYPT_N", 16)


@pytest.fixture
def credentials(tmp_path, monkeypatch):
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "aios-memory").write_bytes(os.urandom(32))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))


@pytest.fixture
def keyring(monkeypatch):
    """The package, with its entries in a dictionary."""
    entries: dict[tuple[str, str], str] = {}
    module = ModuleType("keyring")
    module.get_password = lambda service, user: entries.get((service, user))
    module.set_password = lambda service, user, text: entries.__setitem__((service, user), text)
    monkeypatch.setitem(sys.modules, "keyring", module)


SOURCES = [SecretFile(), Credential(), Passphrase(text="correct horse"), Keyring()]


@pytest.mark.parametrize("source", SOURCES, ids=lambda one: one.kind)
def test_every_source_opens_what_it_closed(tmp_path, credentials, keyring, source):
    wrapped, sealed = create_vault(tmp_path, IDENTITY, source).seal(7, b"a text")
    assert b"a text" not in sealed and len(wrapped) == sealing.WRAPPED_BYTES
    assert open_vault(tmp_path, IDENTITY, source).open(7, wrapped, sealed) == b"a text"
    assert noted_source(tmp_path) == source.kind
    if source.kind != "passphrase":
        assert open_vault(tmp_path, IDENTITY).open(7, wrapped, sealed) == b"a text"
    else:
        with pytest.raises(KeyRefused, match="opens with a passphrase"):
            open_vault(tmp_path, IDENTITY)
        with pytest.raises(KeyRefused, match="not the one"):
            open_vault(tmp_path, IDENTITY, Passphrase(text="correct house"))


def test_another_number_store_key_or_bit_opens_nothing(tmp_path):
    vault = create_vault(tmp_path, IDENTITY, SecretFile())
    wrapped, sealed = vault.seal(7, b"a text")
    other_key, other = vault.seal(7, b"a text")
    assert other != sealed, "every item has a key of its own"
    flipped = [bytes([sealed[0] ^ 1]) + sealed[1:], sealed[:-1], b"", wrapped]
    wrong = [(8, wrapped, sealed), (7, other_key, sealed), (7, wrapped, other), *((7, wrapped, one) for one in flipped),
             (7, bytes(60), sealed), (7, wrapped[:-1] + bytes([wrapped[-1] ^ 1]), sealed)]
    for number, key, item in wrong:
        with pytest.raises(KeyRefused):
            vault.open(number, key, item)
    with pytest.raises(KeyRefused):
        open_vault(tmp_path, bytes(16))


def test_a_changed_secret_opens_the_same_items_and_the_old_one_nothing(tmp_path):
    wrapped, sealed = create_vault(tmp_path, IDENTITY, SecretFile()).seal(1, b"x")
    new = Passphrase(text="a longer passphrase")
    change_secret(tmp_path, IDENTITY, SecretFile(), new)
    assert open_vault(tmp_path, IDENTITY, new).open(1, wrapped, sealed) == b"x"
    with pytest.raises(KeyRefused, match="opens with a passphrase, not with a file"):
        open_vault(tmp_path, IDENTITY, SecretFile())


def test_what_a_store_encrypts_is_bound_to_its_master_key(tmp_path):
    vault = create_vault(tmp_path, IDENTITY, SecretFile(), "all")
    assert vault.file_key is not None and len(vault.file_key) == sealing.KEY_BYTES
    assert open_vault(tmp_path, IDENTITY).file_key == vault.file_key
    change_secret(tmp_path, IDENTITY, SecretFile(), Passphrase(text="a longer passphrase"))
    assert open_vault(tmp_path, IDENTITY, Passphrase(text="a longer passphrase")).file_key == vault.file_key
    path = tmp_path / sealing.ENVELOPE_NAME
    path.write_bytes(path.read_bytes().replace(b'"encrypts":"all"', b'"encrypts":"texts"'))
    with pytest.raises(KeyRefused, match="not the one"):
        open_vault(tmp_path, IDENTITY, Passphrase(text="a longer passphrase"))
    path.write_bytes(path.read_bytes().replace(b'"encrypts":"texts"', b'"encrypts":"some"'))
    with pytest.raises(KeyRefused, match="damaged"):
        open_vault(tmp_path, IDENTITY, Passphrase(text="a longer passphrase"))


def test_an_envelope_from_before_there_was_a_choice_opens(tmp_path):
    wrapped, sealed = create_vault(tmp_path, IDENTITY, SecretFile()).seal(1, b"x")
    path = tmp_path / sealing.ENVELOPE_NAME
    path.write_bytes(path.read_bytes().replace(b',"encrypts":"texts"', b""))
    vault = open_vault(tmp_path, IDENTITY)
    assert vault.file_key is None and vault.open(1, wrapped, sealed) == b"x"


def test_secrets_that_are_missing_short_or_readable_by_others_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(KeyRefused, match="handed over"):
        create_vault(tmp_path, IDENTITY, Credential())
    with pytest.raises(KeyRefused, match="8 characters"):
        create_vault(tmp_path, IDENTITY, Passphrase(text="short"))
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(KeyRefused, match="not installed"):
        create_vault(tmp_path, IDENTITY, Keyring())
    short = tmp_path / "short"
    short.write_bytes(b"short")
    short.chmod(0o600)
    with pytest.raises(KeyRefused, match="16 bytes"):
        create_vault(tmp_path, IDENTITY, SecretFile(path=short))
    create_vault(tmp_path, IDENTITY, SecretFile())
    (tmp_path / "master.secret").chmod(0o640)
    with pytest.raises(KeyRefused, match="read by others"):
        open_vault(tmp_path, IDENTITY)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"version": 2, "source": "file", "salt": "", "wrapped": ""}',
                                    b'{"version": 1, "source": "file", "salt": "zz", "wrapped": ""}',
                                    b'{"version": 1, "source": "file", "salt": "00", "wrapped": "00"}',
                                    b'{"version": 1, "source": "nobody", "salt": "00", "wrapped": "00"}', b"[" * 4000])
def test_a_damaged_envelope_is_refused(tmp_path, damage):
    create_vault(tmp_path, IDENTITY, SecretFile())
    (tmp_path / sealing.ENVELOPE_NAME).write_bytes(damage)
    with pytest.raises(KeyRefused):
        open_vault(tmp_path, IDENTITY)
    (tmp_path / sealing.ENVELOPE_NAME).unlink()
    with pytest.raises(KeyRefused, match="missing"):
        open_vault(tmp_path, IDENTITY)
