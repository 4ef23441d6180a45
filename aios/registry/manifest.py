"""A plugin's manifest, read without importing its code.

    # plugin.toml
    name = "text_head"                 # as its folder is called
    version = "0.1.0"
    api = 1                            # aios.contracts.API_VERSION it was written for
    runs_in = "worker"
    capabilities = ["heads"]           # what it brings: heads, events
    description = "Text by masked diffusion."
"""

from __future__ import annotations

import re
import tomllib
from typing import Final, Literal

import msgspec

from aios.contracts import API_VERSION
from aios.errors import ManifestError

MANIFEST_NAME: Final = "plugin.toml"
MANIFEST_BYTES_MAX = 1 << 16     # a page of text at most
DESCRIPTION_CHARS_MAX = 500      # shown in one table cell
VERSION_CHARS_MAX = 40
CAPABILITIES_MAX = 16            # there are two kinds today
NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_-]{0,39}")
CAPABILITIES: Final = ("heads", "events")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plugin says about itself."""

    name: str
    version: str
    api: int
    runs_in: Literal["worker", "sandbox"]
    capabilities: tuple[str, ...]
    description: str = ""


def parse(raw: bytes) -> Manifest:
    """Check the bytes of a plugin.toml; ManifestError says what is wrong in one line."""
    remedy = "compare it with what `aios plugins new` writes"
    if len(raw) > MANIFEST_BYTES_MAX:
        raise ManifestError(f"{MANIFEST_NAME} is larger than {MANIFEST_BYTES_MAX} bytes", remedy=remedy)
    try:
        manifest = msgspec.convert(tomllib.loads(raw.decode("utf-8")), Manifest)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ManifestError(f"{MANIFEST_NAME}: {error}", remedy=remedy) from error
    if fault := _fault(manifest):
        raise ManifestError(f"{MANIFEST_NAME}: {fault}", remedy=remedy)
    return manifest


def _fault(manifest: Manifest) -> str | None:
    if not NAME_PATTERN.fullmatch(manifest.name):
        return "name must be a small letter, then at most 39 of a-z, 0-9, _ and -"
    if not manifest.version.strip() or len(manifest.version) > VERSION_CHARS_MAX or not manifest.version.isprintable():
        return f"version must be 1 to {VERSION_CHARS_MAX} printable characters"
    if manifest.api != API_VERSION:
        return f"api is {manifest.api}; this AIOS has plugin api {API_VERSION}"
    if len(manifest.capabilities) > CAPABILITIES_MAX:
        return f"more than {CAPABILITIES_MAX} capabilities"
    for capability in manifest.capabilities:
        if capability not in CAPABILITIES:
            return f"unknown capability {capability[:40]!r}; there are: {', '.join(CAPABILITIES)}"
    if len(manifest.description) > DESCRIPTION_CHARS_MAX or not manifest.description.isprintable():
        return f"description must be one line of at most {DESCRIPTION_CHARS_MAX} characters"
    return None
