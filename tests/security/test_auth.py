"""Tokens, scopes and peers."""

from __future__ import annotations

import os
import socket

import pytest

from aios.errors import AuthError, BadInput, ConfigError
from aios.security.auth import NOBODY, SCOPES, TOKENS_MAX, Tokens, check_peer, read_owner_token


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tokens.json"


def test_the_owner_token_opens_everything_until_it_is_renewed(file, tmp_path):
    tokens, place = Tokens(file), tmp_path / "owner.token"
    tokens.renew_owner(place)
    first = read_owner_token(place)
    assert tokens.identify(first).scopes == set(SCOPES)
    tokens.renew_owner(place)
    with pytest.raises(AuthError):
        tokens.identify(first)
    assert tokens.identify(read_owner_token(place)).name == "owner"
    assert place.stat().st_mode & 0o777 == 0o600


def test_a_token_opens_its_scopes_only_and_survives_a_restart(file):
    secret = Tokens(file).new("editor", ["ask", "memory"])
    identity = Tokens(file).identify(secret)
    assert (identity.name, identity.scopes) == ("editor", {"ask", "memory"})
    identity.require("ask")
    identity.require("none")
    with pytest.raises(AuthError, match="'admin'"):
        identity.require("admin")


def test_no_token_is_nobody_and_nobody_may_do_only_what_needs_no_scope(file):
    assert Tokens(file).identify(None) is NOBODY
    NOBODY.require("none")
    with pytest.raises(AuthError):
        NOBODY.require("ask")


@pytest.mark.parametrize("guess", ["", "x", "é", "\ud800", "a" * 43, "a" * 100_000])
def test_a_guess_is_refused(file, guess):
    tokens = Tokens(file)
    with pytest.raises(AuthError):       # also before there is an owner token
        tokens.identify(guess)
    tokens.new("other", ["ask"])
    with pytest.raises(AuthError):
        tokens.identify(guess)


def test_a_revoked_token_opens_nothing(file):
    tokens = Tokens(file)
    secret = tokens.new("editor", ["ask"])
    assert tokens.revoke("editor")
    assert not tokens.revoke("editor")
    with pytest.raises(AuthError):
        Tokens(file).identify(secret)


def test_no_secret_is_stored_or_listed(file):
    tokens = Tokens(file)
    secret = tokens.new("editor", ["admin"])
    assert secret not in file.read_text()
    assert [(row["name"], row["scopes"]) for row in tokens.list()] == [("editor", ["admin"])]
    assert set(tokens.list()[0]) == {"name", "scopes", "created"}
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "owner", "a b", "../x", "x" * 41, "taken", "ä", "-x", "x\n"])
def test_a_name_that_cannot_be_used_is_refused(file, name):
    tokens = Tokens(file)
    tokens.new("taken", ["ask"])
    with pytest.raises(BadInput):
        tokens.new(name, ["ask"])


@pytest.mark.parametrize("scopes", [[], ["none"], ["ask", "root"]])
def test_scopes_that_do_not_exist_are_refused(file, scopes):
    with pytest.raises(BadInput):
        Tokens(file).new("x", scopes)


def test_there_is_an_end_to_tokens(file, monkeypatch):
    monkeypatch.setattr("aios.security.auth.TOKENS_MAX", 2)
    tokens = Tokens(file)
    tokens.new("a", ["ask"])
    tokens.new("b", ["ask"])
    with pytest.raises(BadInput):
        tokens.new("c", ["ask"])


def test_the_largest_store_can_be_read_again(file):
    tokens = Tokens(file)
    for index in range(TOKENS_MAX):
        tokens._tokens[f"{index:040}"] = _longest(file)
    tokens.revoke("0" * 40)
    assert len(Tokens(file).list()) == TOKENS_MAX - 1


def _longest(file):
    other = Tokens(file.with_name("other.json"))
    if not other.list():
        other.new("x", SCOPES)
    return other._tokens["x"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 9, "tokens": {}}',
                                     b'{"version": 1, "tokens": {"x": {"sha256": "", "scopes": ["root"]}}}', b"\xff"])
def test_a_damaged_store_stops_the_start_instead_of_opening_doors(file, content):
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError):
        Tokens(file)


def test_an_empty_hash_in_the_store_matches_no_token(file):
    file.write_bytes(b'{"version": 1, "tokens": {"x": {"sha256": "", "scopes": ["admin"], "created": ""}}}')
    file.chmod(0o600)
    for guess in ("", "a" * 1000):
        with pytest.raises(AuthError):
            Tokens(file).identify(guess)


def test_a_store_that_others_can_write_is_refused(file):
    Tokens(file).new("x", ["ask"])
    file.chmod(0o622)
    with pytest.raises(ConfigError):
        Tokens(file)


def test_a_failed_write_changes_nothing(file, monkeypatch):
    tokens = Tokens(file)
    tokens.new("kept", ["ask"])

    def broken(*_: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr("aios.security.private_file.write", broken)
    with pytest.raises(OSError, match="no space"):
        tokens.revoke("kept")
    assert [row["name"] for row in tokens.list()] == ["kept"]


def test_the_kernel_names_the_peer_and_strangers_are_refused():
    left, right = socket.socketpair()
    with left, right:
        assert check_peer(left, os.getuid()).pid == os.getpid()
        with pytest.raises(AuthError):
            check_peer(left, os.getuid() + 1)
