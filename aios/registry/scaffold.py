"""`aios plugins new`: a working plugin with a passing test, to be changed into one's own."""

from __future__ import annotations

import os
from pathlib import Path
from string import Template

from aios.contracts import API_VERSION
from aios.errors import BadInput
from aios.registry.manifest import NAME_PATTERN

TEMPLATES = Path(__file__).resolve().parent.parent / "_templates" / "plugin"
LAYOUT = {"plugin.toml.tmpl": "plugin.toml", "__init__.py.tmpl": "__init__.py", "README.md.tmpl": "README.md",
          "test_plugin.py.tmpl": "tests/test_plugin.py"}


def write_plugin(name: str, parent: Path) -> Path:
    """Write the plugin `name` as a new folder of `parent` and return it; BadInput when that cannot be done.

    Files are writable by their owner alone, whatever the umask: others would be refused by the daemon.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise BadInput(f"{name[:60]!r} is no name for a plugin",
                       remedy="a small letter, then at most 39 of a-z, 0-9, _ and -")
    folder = parent / name
    try:
        folder.mkdir(mode=0o700, parents=True)
        (folder / "tests").mkdir(mode=0o700)
        for source, target in LAYOUT.items():
            text = Template((TEMPLATES / source).read_text(encoding="utf-8")).substitute(name=name, api=API_VERSION)
            descriptor = os.open(folder / target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError as error:
        raise BadInput(f"{folder} is there already", remedy="choose another name or folder") from error
    except OSError as error:
        raise BadInput(f"cannot write {error.filename}: {error.strerror}", remedy="choose another folder") from error
    return folder
