"""Importing a plugin from the very bytes that were hashed, so that nothing can be exchanged in between."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import decode_source
from pathlib import Path, PurePosixPath
from types import CodeType, ModuleType

from aios.errors import PluginError


class SnapshotLoader(InspectLoader):
    """Serves one package and its sub-modules from memory.

    `__file__` names the file on disk, for tracebacks; a plugin reads its own data files by
    `pkgutil.get_data(__name__, "words.txt")`, which comes here and so is covered by the hash too. Extension
    modules (.so) cannot be loaded from memory: a plugin that has some puts them in a distribution of their own.
    """

    def __init__(self, package: str, folder: Path, files: Mapping[str, bytes]) -> None:
        self._package = package
        self._folder = folder
        self._files = files

    def path_of(self, module: str) -> str | None:
        """The snapshot's path of a module's source, None when it has none."""
        stem = module.removeprefix(self._package).lstrip(".").replace(".", "/")
        for path in (f"{stem}/__init__.py".lstrip("/"), f"{stem}.py"):
            if path in self._files:
                return path
        return None

    def is_package(self, fullname: str) -> bool:
        """Whether the module is a folder with an `__init__.py`."""
        path = self.path_of(fullname)
        return path is not None and PurePosixPath(path).name == "__init__.py"

    def get_source(self, fullname: str) -> str:
        """The module's source text; ImportError if there is none."""
        path = self.path_of(fullname)
        if path is None:
            raise ImportError(f"the plugin has no module {fullname}", name=fullname)
        return decode_source(self._files[path])

    def get_code(self, fullname: str) -> CodeType:
        """The compiled module; nothing is cached on disk."""
        return self.source_to_code(self.get_source(fullname), self.get_filename(fullname))

    def get_filename(self, fullname: str) -> str:
        """Where the module's source lies on disk."""
        return str(self._folder / (self.path_of(fullname) or ""))

    def get_data(self, path: str) -> bytes:
        """The bytes of a file of the snapshot, by its path on disk or relative to the package; OSError if absent."""
        wanted = Path(path)
        inner = wanted.relative_to(self._folder) if wanted.is_absolute() else wanted
        try:
            return self._files[inner.as_posix()]
        except KeyError:
            raise FileNotFoundError(f"the plugin has no file {inner}") from None


class SnapshotFinder(MetaPathFinder):
    """Finds the modules of one snapshot while it is installed on `sys.meta_path`."""

    def __init__(self, package: str, loader: SnapshotLoader) -> None:
        self.package = package
        self._loader = loader

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None,
                  /) -> ModuleSpec | None:
        """The spec of a module of this package; other packages are left to others."""
        if fullname != self.package and not fullname.startswith(self.package + "."):
            return None
        if self._loader.path_of(fullname) is None:
            # Not None: a later finder would look on the disk, where no permission holds.
            raise ModuleNotFoundError(f"the plugin has no module {fullname}", name=fullname)
        spec = ModuleSpec(fullname, self._loader, origin=self._loader.get_filename(fullname),
                          is_package=self._loader.is_package(fullname))
        spec.has_location = True   # sets __file__, for tracebacks and pkgutil.get_data
        return spec


def install(package: str, folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `import package` mean this snapshot, in place of an earlier snapshot of the same package.

    Raises PluginError when a module of that name is there already that is no plugin's.
    """
    uninstall(package)
    if package in sys.modules:
        raise PluginError(f"a module called {package} is loaded already", remedy="rename the plugin's package")
    sys.meta_path.insert(0, SnapshotFinder(package, SnapshotLoader(package, folder, files)))


def uninstall(package: str) -> None:
    """Forget a snapshot and the modules that were imported from it."""
    finders = [one for one in sys.meta_path if isinstance(one, SnapshotFinder) and one.package == package]
    for finder in finders:
        sys.meta_path.remove(finder)
    if finders:
        for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
            del sys.modules[name]
