"""`aios version`."""

from __future__ import annotations

import platform

import aios
from aios.cli import render
from aios.cli.options import Json


def version(json: Json = False) -> None:
    """Print the version."""
    found = {"version": aios.__version__, "python": platform.python_version(), "machine": platform.machine()}
    render.emit(found, json, lambda: render.say(f"aios {aios.__version__}"))
