"""A plugin folder, loaded for a test just as the model worker loads it, without asking for permission."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aios.errors import ManifestError, PluginError
from aios.registry.catalog import Loadable
from aios.registry.discovery import look
from aios.registry.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPlugin:
    """A folder's plugin and what must be known to load it anew."""

    name: str
    loadable: Loadable

    def registry(self) -> Registry:
        """A registry that holds this plugin alone; raises PluginError with the reason it would be quarantined for."""
        registry = Registry.load([self.loadable])
        for failure in registry.failures:
            raise PluginError(failure.reason, plugin=self.name)
        return registry


def load(folder: Path | str) -> LoadedPlugin:
    """The plugin in `folder`; ManifestError says what is wrong with it. None of its code runs yet."""
    # Looked at as first-party: an author's own folder may be writable by a group, which a daemon would refuse.
    found = look(Path(folder).resolve(), "first-party")
    if found.fault is not None:
        raise ManifestError(f"{found.folder}: {found.fault}")
    return LoadedPlugin(name=found.name, loadable=Loadable(
        name=found.name, folder=str(found.folder), package=found.package, hash=found.hash, source=found.source))
