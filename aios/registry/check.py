"""`aios plugins check`: what the daemon would say about a plugin, before it is allowed.

The last step runs the plugin's code, in a process of its own but with the rights of whoever asks.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from aios.config import Places
from aios.errors import ManifestError
from aios.registry import content
from aios.registry.catalog import Catalog, Loadable
from aios.registry.discovery import Found, look
from aios.registry.reason import one_line

CHILD_SECONDS_MAX = 240.0     # some dozens of denoiser calls on a busy machine
ANSWER_BYTES_MAX = 1 << 20    # some dozens of findings
COMPLAINT_BYTES_MAX = 400     # the last line of a traceback


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at; `ok` is None where it could not be."""

    name: str
    ok: bool | None
    detail: str = ""


def check(target: str, places: Places, *, seconds_max: float = CHILD_SECONDS_MAX) -> list[Check]:
    """Check a plugin by the path of its folder or by its name; an empty name or unknown one raises BadInput.

    Manifest, permissions of the files and syntax are looked at first; only when they are in order is the plugin
    imported, in a child process, and its heads held to the contract.
    """
    found = find(target, places)
    if found.manifest is None or found.fault is not None:
        return [Check(name="it can be read as a plugin", ok=False, detail=found.fault or "")]
    checks = [Check(name="it can be read as a plugin", ok=True,
                    detail=f"{found.files} files, {found.bytes} bytes, {found.hash[:12]}")]
    if found.manifest.runs_in != "worker":
        return [*checks, Check(name="this version can run it", ok=False, detail="there is no sandbox yet")]
    faults = list(_syntax_faults(found))
    checks.append(Check(name="its files are Python", ok=not faults, detail="; ".join(faults)))
    return checks if faults else checks + _judge(found, seconds_max)


def find(target: str, places: Places) -> Found:
    """The plugin in the folder `target`, or the one called so. Raises BadInput."""
    folder = Path(target).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        known = [one for one in Catalog(places).found if one.folder == folder]
        return known[0] if known else look(folder, "user")
    return Catalog(places).named(target)


def _syntax_faults(found: Found) -> Iterator[str]:
    try:
        files = content.read(found.folder, keep=True, trusted=found.source == "first-party").files
    except ManifestError as error:
        yield error.message
        return
    for name, data in sorted(files.items()):
        if name.endswith(".py"):
            try:
                ast.parse(data, name)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                yield f"{name}: {error}"
        elif name.endswith((".so", ".pyd")):
            yield f"{name}: compiled code cannot be loaded from a plugin; put it into a distribution of its own"


def _judge(found: Found, seconds_max: float) -> list[Check]:
    """Import the plugin in a child process and hear what it found."""
    loadable = Loadable(name=found.name, folder=str(found.folder), package=found.package, hash=found.hash,
                        source=found.source)
    name = "it works in a process of its own"
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as complaints:
        arguments = [msgspec.json.encode(loadable).decode(), str(answer.fileno())]
        try:
            code = _run([sys.executable, "-P", "-m", "aios.testing", *arguments], answer, complaints, seconds_max)
        except subprocess.TimeoutExpired:
            return [Check(name=name, ok=False, detail=f"no end after {seconds_max:g} s")]
        raw = _from(answer, 0)
        lines = _from(complaints, -COMPLAINT_BYTES_MAX).decode(errors="replace").splitlines()
    try:
        findings: Any = msgspec.json.decode(raw)
        return [Check(name=one["law"], ok=one["ok"], detail=one["detail"]) for one in findings]
    except (msgspec.DecodeError, TypeError, KeyError):
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = one_line(next(filter(str.strip, reversed(lines)), ""))
        return [Check(name=name, ok=False, detail=f"it ended with {how} {last}".strip())]


def _run(command: list[str], answer: IO[bytes], complaints: IO[bytes], seconds_max: float) -> int:
    """Exit code of a child that hears nothing and may write to two files; all it started ends with it."""
    with subprocess.Popen(command, env=_environment(), pass_fds=(answer.fileno(),), stdin=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL, stderr=complaints, start_new_session=True) as child:
        try:
            return child.wait(seconds_max)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise


def _from(file: IO[bytes], start: int) -> bytes:
    """What the file holds from `start` (below 0: from its end) on, up to a cap."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size + start) if start < 0 else start)
    return file.read(ANSWER_BYTES_MAX)


def _environment() -> dict[str, str]:
    """Ours, with this very aios first: the child does not search the working directory."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
