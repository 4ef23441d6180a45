"""How AIOS starts its own Python processes: same interpreter, same aios, never code from the working directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_ONLY_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def python_command(module: str, *arguments: str) -> list[str]:
    """The argument list that runs a module; -P keeps the working directory off the import path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def python_environ(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for it: what systemd told this process alone is left out, this very aios is importable."""
    env = {name: value for name, value in (os.environ if environ is None else environ).items()
           if name not in _ONLY_OURS}
    home = Path(__file__).resolve().parents[2]
    entries = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if Path(entry).is_absolute()]
    # Before the standard library on the path: only for a source checkout, never for a whole site-packages.
    if home.name not in ("site-packages", "dist-packages") and str(home) not in entries:
        entries.insert(0, str(home))
    # OpenMP's threads else spin at every barrier: with other work on the machine that made a diffusion 12 times slower.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if entries:
        env["PYTHONPATH"] = os.pathsep.join(entries)
    return env
