"""`python -m aios.testing LOADABLE`: judge one plugin; the child process of `aios plugins check`.

Writes one JSON array of findings to the descriptor named in the arguments, so that what the plugin prints cannot
be taken for it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from aios.config import Places
from aios.errors import PluginError
from aios.registry.catalog import Loadable
from aios.testing.plugin import LoadedPlugin


def main(arguments: list[str]) -> None:
    """`arguments`: the Loadable as JSON, and the number of the descriptor to write to."""
    loadable = msgspec.json.decode(arguments[0], type=Loadable)
    law = "it can be imported and its hooks are those it declares"
    try:
        registry = LoadedPlugin(name=loadable.name, loadable=loadable).registry()
    except PluginError as error:
        findings: list[Any] = [{"law": law, "ok": False, "detail": error.message}]
    else:
        from aios.testing.laws import judge_heads

        findings = [{"law": law, "ok": True, "detail": ""}, *judge_heads(registry, Places.find())]
    with os.fdopen(int(arguments[1]), "wb") as file:
        file.write(msgspec.json.encode(findings))


if __name__ == "__main__":
    main(sys.argv[1:])
