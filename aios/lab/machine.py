"""The machine a number was measured on, and keeping background training off it meanwhile."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from aios.ledger import checkout

ISA_FLAGS: Final = (   # the best one present names the machine's instruction set
    ("amx_bf16", "amx"), ("avx512_vnni", "avx512_vnni"), ("avx512f", "avx512"), ("avx2", "avx2"), ("asimd", "neon"))
GIT_SECONDS_MAX = 10.0
PAUSE_SETTLE_S = 3.0   # training looks for the pause between two steps, which take about a second


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[int]:
    """torch on `count` threads meanwhile, on every usable core when nothing is said; yields the number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def commit() -> str | None:
    """The checkout's commit, "-dirty" when files beside the ledger differ from it; None where there is none."""
    root = checkout()
    head = _git(root, "rev-parse", "--short=12", "HEAD") if root else None
    if not head:
        return None
    changed = _git(root, "status", "--porcelain", "--", ".", ":(exclude)experiments")
    return f"{head}-dirty" if changed else head


def _git(root: Path | None, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True,
                              timeout=GIT_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine_facts() -> dict[str, Any]:
    """Processor, best instruction set, usable threads, memory and GPU; costs no heavy import."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "isa": next((name for flag, name in ISA_FLAGS if flag in flags), platform.machine()),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": _gpu(),
    }


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _gpu() -> str | None:
    for card in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return None


@contextmanager
def training_paused() -> Iterator[None]:
    """Hold background training of this checkout while measuring, by the file runs/PAUSE.

    The file lists the processes that measure; it goes with the last of them, and the dead do not count.
    """
    root = checkout()
    pause = root / "runs" / "PAUSE" if root else None
    if pause is None or not pause.parent.is_dir():
        yield   # nothing trains here
        return
    _enlist(pause, present=True)
    try:
        time.sleep(PAUSE_SETTLE_S)
        yield
    finally:
        _enlist(pause, present=False)


def _enlist(pause: Path, *, present: bool) -> None:
    with (pause.parent / ".pause.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            pids = {int(word) for word in pause.read_text(encoding="ascii").split()}
        except (FileNotFoundError, ValueError):
            pids = set()
        alive = {pid for pid in pids if Path(f"/proc/{pid}").exists()} - {os.getpid()}
        alive |= {os.getpid()} if present else set()
        if alive:
            pause.write_text(" ".join(map(str, sorted(alive))) + "\n", encoding="ascii")
        else:
            pause.unlink(missing_ok=True)
