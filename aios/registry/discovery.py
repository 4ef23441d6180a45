"""Finding plugins: folders and entry points, with their manifests and content hashes, importing none of them.

Sources, in the order in which names are given away:
1. first-party: `aios/_plugins/` in an installed wheel, `plugins/` beside the package in a source checkout;
2. user: the plugins folder of the AIOS home;
3. entry points of the group `aios.plugins`, whose value is a top-level package that contains a plugin.toml.
The working directory is never searched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from aios.config import Places
from aios.errors import ManifestError
from aios.registry import content, manifest
from aios.registry.manifest import MANIFEST_NAME, NAME_PATTERN, Manifest
from aios.registry.reason import one_line

ENTRY_POINT_GROUP = "aios.plugins"
PLUGINS_MAX = 200                    # more folders than this are a mistake, not a collection

Source = Literal["first-party", "user", "entry-point"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A plugin on disk. `manifest` and `hash` are missing exactly when `fault` says why it is invalid."""

    name: str
    source: Source
    folder: Path
    package: str                     # the name its code is imported under
    manifest: Manifest | None = None
    hash: str = ""
    files: int = 0
    bytes: int = 0
    fault: str | None = None


def discover(places: Places, *, first_party: Path | None = None) -> list[Found]:
    """Every plugin of all sources; of several with one name the first is kept and the others are invalid."""
    found = [look(folder, "first-party") for folder in _folders(first_party or first_party_folder())]
    found += [look(folder, "user") for folder in _folders(places.plugins)]
    found += _entry_points()
    taken: dict[str, Found] = {}
    result = []
    for one in found[:PLUGINS_MAX]:
        key = one.name.replace("-", "_")   # as the import system sees it
        if key in taken and one.fault is None:
            one = replace(one, fault=f"the name is taken by the plugin in {taken[key].folder}")
        taken.setdefault(key, one)
        result.append(one)
    return result


def first_party_folder() -> Path | None:
    """Where the plugins are that ship with this AIOS."""
    package = Path(__file__).resolve().parent.parent
    installed, checkout = package / "_plugins", package.parent / "plugins"
    # A stranger's top-level `plugins` package beside an installed aios is not ours; in a source checkout, though,
    # an editable installation leaves a copy in `_plugins` that must not hide the files being edited.
    if checkout.is_dir() and (package.parent / "rust" / "aios_native").is_dir():
        return checkout
    return installed if installed.is_dir() else None


def look(folder: Path, source: Source, package: str | None = None) -> Found:
    """One plugin folder: its manifest and content hash, or the fault that makes it invalid."""
    base = Found(name=one_line(folder.name)[:40], source=source, folder=folder,
                 package=package or "aios_plugin_" + folder.name.replace("-", "_"))
    try:
        # Whoever can write a first-party plugin can write aios itself: refusing it would protect nothing.
        read = content.read(folder, trusted=source == "first-party")
        if read.manifest is None:
            raise ManifestError(f"there is no {MANIFEST_NAME}")
        parsed = manifest.parse(read.manifest)
        if source != "entry-point" and parsed.name != folder.name:
            raise ManifestError(f"{MANIFEST_NAME}: name is {parsed.name!r}, but the folder is {folder.name!r}")
    except ManifestError as error:
        return replace(base, fault=one_line(f"{error.message}; {error.remedy}" if error.remedy else error.message))
    return replace(base, name=parsed.name, manifest=parsed, hash=read.hash, files=read.count, bytes=read.size)


def _folders(root: Path | None) -> Iterator[Path]:
    """The sub-folders of a plugins folder (and links, so that they are reported as invalid), by name."""
    if root is None or not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        if not path.name.startswith((".", "__")) and (path.is_dir() or path.is_symlink()):
            yield path


def _entry_points() -> Iterator[Found]:
    """Plugins that installed distributions announce; found by file name, never by import."""
    from importlib.metadata import distributions

    search = _search_path()
    seen: set[str] = set()
    for distribution in distributions(path=search):
        try:
            points = distribution.entry_points
        except (OSError, ValueError, TypeError, AttributeError):   # all of these the parser lets out
            continue    # a damaged distribution announces nothing, and harms no other
        for point in points:
            if point.group == ENTRY_POINT_GROUP and point.value not in seen:
                seen.add(point.value)
                yield _entry_point(point.name, point.value, search)


def _entry_point(name: str, package: str, search: list[str]) -> Found:
    from importlib.machinery import PathFinder

    shown = name if NAME_PATTERN.fullmatch(name) else one_line(name)[:40]
    base = Found(name=shown, source="entry-point", folder=Path(package), package=package)
    # Importing a sub-package would run its parent, which no permission covers.
    if not package.isidentifier():
        return replace(base, fault="the entry point must name a top-level package")
    if package in sys.stdlib_module_names or package == "aios":
        return replace(base, fault=f"a plugin's package cannot be called {package}")
    spec = PathFinder.find_spec(package, search)
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    if len(locations) != 1:
        return replace(base, fault=f"there is no package {package} with a folder of its own")
    found = look(Path(locations[0]), "entry-point", package)
    if found.fault is None and found.name != name:
        return replace(found, fault=f"{MANIFEST_NAME}: name is {found.name!r}, but the entry point is {name!r}")
    return found if found.fault is None else replace(found, name=shown)


def _search_path() -> list[str]:
    """sys.path without the working directory: what lies there is nobody's installed plugin."""
    try:
        here = Path.cwd()
    except FileNotFoundError:   # it was removed under us: nothing can lie there
        here = Path("/")
    return [entry for entry in sys.path if entry and Path(entry).absolute() != here]
