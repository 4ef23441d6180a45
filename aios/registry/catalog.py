"""The parent's view of all plugins: what is there, what may be loaded, what failed. Imports no plugin code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aios.config import Places, PluginsSection
from aios.errors import BadInput, NotAllowed
from aios.messages import from_wire, to_wire
from aios.registry.discovery import Found, Source, discover
from aios.security.grants import PinFile

State = Literal["active", "ready", "not-allowed", "changed", "disabled", "quarantined", "unsupported", "invalid"]
FIX = {
    "not-allowed": "aios plugins allow {name}",
    "changed": "aios plugins allow {name}",
    "quarantined": "repair it and run `aios plugins reload`, or try the same content again: aios plugins allow {name}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginReport:
    """One plugin as `aios plugins list` and `show` tell it; wire-safe.

    active: loaded in the worker. ready: may be loaded, and will be when the worker next starts. not-allowed: the
    owner has not allowed it. changed: its content is not the one that was allowed. disabled: daemon.toml or safe
    mode leave it out. quarantined: this content failed; `reason` says how. unsupported: it asks for what this
    version lacks. invalid: it cannot be read as a plugin.
    """

    name: str
    state: State
    reason: str = ""
    remedy: str = ""
    source: Source
    version: str = ""
    api: int = 0
    runs_in: str = ""
    capabilities: tuple[str, ...] = ()
    description: str = ""
    folder: str
    hash: str = ""
    files: int = 0
    bytes: int = 0

    def to_wire(self) -> dict[str, Any]:
        """Plain data for the verbs plugins.list and plugins.show."""
        data: dict[str, Any] = to_wire(self)
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Loadable:
    """What the worker is told to load: a folder and the hash its content must have."""

    name: str
    folder: str
    package: str
    hash: str
    source: Source

    def to_wire(self) -> dict[str, Any]:
        """Plain data for the channel to the worker."""
        data: dict[str, Any] = to_wire(self)
        return data

    @classmethod
    def from_wire(cls, data: Any) -> Loadable:
        """Checked; raises BadInput."""
        return from_wire(data, cls)


class Catalog:
    """All plugins of one home with their states; the only writer of grants and quarantine.

    Used by the daemon's parent for as long as it runs, and by the command line without a daemon just to look.
    """

    def __init__(self, places: Places, settings: PluginsSection | None = None, *, safe_mode: bool = False) -> None:
        self._places = places
        self._safe_mode = safe_mode
        self._active: dict[str, str] = {}             # name -> hash, as the worker reported
        self._failures: dict[tuple[str, str], str] = {}   # also when the disk refuses the quarantine file
        self.reload(settings or PluginsSection())

    def reload(self, settings: PluginsSection | None = None) -> None:
        """Look at the disk again: folders, entry points, grants and quarantine; with new settings if given.

        Quarantine is bound to a content hash: a plugin that changed is free of it by that alone.
        """
        if settings is not None:
            self._settings = settings
        self._grants = PinFile(self._places.state / "grants.json")
        self._quarantine = PinFile(self._places.state / "quarantine.json")
        self.found: list[Found] = discover(self._places)

    def reports(self) -> list[PluginReport]:
        """Every plugin with its state, first-party first, then by name."""
        return [self._report(found) for found in sorted(self.found, key=_order)]

    def report(self, name: str) -> PluginReport:
        """The plugin called `name`; of several, the one that holds the name. Raises BadInput."""
        return self._report(self.named(name))

    def counts(self) -> dict[str, int]:
        """State -> how many plugins are in it."""
        counts: dict[str, int] = {}
        for report in self.reports():
            counts[report.state] = counts.get(report.state, 0) + 1
        return counts

    def loadable(self) -> list[Loadable]:
        """What the worker may load, in the order in which it shall."""
        return [Loadable(name=found.name, folder=str(found.folder), package=found.package, hash=found.hash,
                         source=found.source)
                for found in sorted(self.found, key=_order) if self._report(found).state in ("ready", "active")]

    def allow(self, name: str, confirm: str | None = None) -> dict[str, Any]:
        """Show what would be allowed; with the shown hash as `confirm`, pin it and lift its quarantine.

        Raises BadInput for an unknown or invalid plugin, NotAllowed when the content is not the confirmed one.
        """
        self.reload()
        found = self.named(name)
        if found.manifest is None or found.fault is not None:
            raise BadInput(f"plugin {name} is invalid: {found.fault}", remedy="repair it first")
        shown = {"name": found.name, "version": found.manifest.version, "hash": found.hash,
                 "capabilities": list(found.manifest.capabilities), "files": found.files, "bytes": found.bytes,
                 "source": found.source, "folder": str(found.folder), "allowed": False}
        if confirm is None:
            return shown
        if confirm != found.hash:
            raise NotAllowed(f"plugin {name}: its content changed since you looked",
                             remedy=f"look again: aios plugins allow {name}", hash=found.hash)
        self._grants.put(found.name, found.hash, f"version {found.manifest.version}")
        self._failures.pop((found.name, found.hash), None)
        self._quarantine.drop(found.name)
        return {**shown, "allowed": True, "state": self._report(found).state}

    def loaded(self, active: Mapping[str, str]) -> None:
        """Take note of what the worker has loaded: name -> hash; empty when it ended."""
        self._active = dict(active)

    def quarantine(self, name: str, content_hash: str, reason: str) -> None:
        """Keep this content from being loaded again, until it changes or the owner allows it anew."""
        self._active.pop(name, None)
        self._failures[(name, content_hash)] = reason
        # A full disk must not take the daemon down: memory then remembers until the daemon ends.
        try:
            self._quarantine.put(name, content_hash, reason)
        except (OSError, ValueError, BadInput):
            return

    def named(self, name: str) -> Found:
        """The plugin called `name` as it was found; of several, the one that holds the name. Raises BadInput."""
        for found in self.found:
            if found.name == name:
                return found
        known = ", ".join(sorted({found.name for found in self.found})) or "none"
        raise BadInput(f"no plugin {name[:40]!r}; there are: {known}", remedy="aios plugins list")

    def _report(self, found: Found) -> PluginReport:
        state, reason = self._state(found)
        said = found.manifest
        about: dict[str, Any] = {} if said is None else {
            "version": said.version, "api": said.api, "runs_in": said.runs_in, "capabilities": said.capabilities,
            "description": said.description}
        return PluginReport(name=found.name, state=state, reason=reason, source=found.source,
                            folder=str(found.folder).encode(errors="replace").decode(),   # a name may be no UTF-8
                            remedy=FIX.get(state, "").format(name=found.name),
                            hash=found.hash, files=found.files, bytes=found.bytes, **about)

    def _state(self, found: Found) -> tuple[State, str]:
        """The first thing that stands against it, from what cannot be helped to what the owner decides."""
        if found.manifest is None or found.fault is not None:
            return "invalid", found.fault or ""
        if found.manifest.runs_in == "sandbox":
            return "unsupported", "it runs in a sandbox, which this version does not have"
        if self._safe_mode and found.source != "first-party":
            return "disabled", "safe mode: first-party plugins only"
        if found.name in self._settings.disabled:
            return "disabled", "[plugins] disabled in daemon.toml names it"
        if self._settings.only and found.name not in self._settings.only:
            return "disabled", "[plugins] only in daemon.toml does not name it"
        if found.source != "first-party":   # whoever can write there can write aios itself: allowed by that
            pin = self._grants.get(found.name)
            if pin is None:
                return "not-allowed", self._grants.damage or ""
            if pin.hash != found.hash:
                return "changed", f"its content is not the one allowed on {pin.since}"
        if reason := self._failure(found):
            return "quarantined", reason
        return ("active", "") if self._active.get(found.name) == found.hash else ("ready", "")

    def _failure(self, found: Found) -> str | None:
        if reason := self._failures.get((found.name, found.hash)):
            return reason
        pin = self._quarantine.get(found.name)
        return pin.note or "it failed" if pin is not None and pin.hash == found.hash else None


def _order(found: Found) -> tuple[bool, str]:
    return found.source != "first-party", found.name

