from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.errors import ManifestError
from aios.registry.manifest import MANIFEST_BYTES_MAX, parse

GOOD = b"""
name = "a_plugin-1"
version = "0.1"
api = 1
runs_in = "worker"
capabilities = ["heads", "events"]
description = "Does a thing."
"""


def test_a_good_manifest_is_read() -> None:
    manifest = parse(GOOD)
    assert (manifest.name, manifest.api, manifest.capabilities) == ("a_plugin-1", 1, ("heads", "events"))


@pytest.mark.parametrize(("change", "complaint"), [
    ((b'"a_plugin-1"', b'"A"'), "name must be"),
    ((b'"a_plugin-1"', b'"1a"'), "name must be"),
    ((b'"a_plugin-1"', b'"../x"'), "name must be"),
    ((b'"a_plugin-1"', b'"' + b"a" * 41 + b'"'), "name must be"),
    ((b'"a_plugin-1"', b"7"), "name"),
    ((b'name = "a_plugin-1"\n', b""), "name"),
    ((b"api = 1", b"api = 2"), "api is 2"),
    ((b"api = 1", b"api = true"), "api"),
    ((b'"worker"', b'"kernel"'), "runs_in"),
    ((b'"heads", ', b'"root", '), "unknown capability 'root'"),
    ((b'"0.1"', b'""'), "version must be"),
    ((b'"0.1"', b'"' + b"1" * 41 + b'"'), "version must be"),
    ((b'"Does a thing."', b'"two\\nlines"'), "description must be"),
    ((b'"Does a thing."', b'"\\u001b[31mred"'), "description must be"),
    ((b'"Does a thing."', b'"x"\nadmin = true'), "admin"),
    ((b"name", b"\xff"), "utf-8"),
    ((b"=", b"=="), "plugin.toml"),
])
def test_a_bad_manifest_is_refused_with_what_is_wrong(change: tuple[bytes, bytes], complaint: str) -> None:
    with pytest.raises(ManifestError, match=complaint):
        parse(GOOD.replace(*change, 1))


def test_a_huge_or_deep_manifest_is_refused() -> None:
    with pytest.raises(ManifestError, match="larger than"):
        parse(GOOD + b"#" * MANIFEST_BYTES_MAX)
    with pytest.raises(ManifestError):
        parse(b"a = " + b"[" * 20_000 + b"]" * 20_000)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_manifest_error(raw: bytes) -> None:
    try:
        parse(raw)
    except ManifestError:
        return
