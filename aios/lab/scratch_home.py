"""A daemon of its own for a measurement: scratch home, own settings, models of the real home by hard link."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from aios.config import Places
from aios.errors import DaemonDown
from aios.ipc.client import Client, connect
from aios.service.launch import Launched, launch
from aios.service.pulse import Beat, Pulse

STOP_SECONDS_MAX = 60.0      # the drain and the worker's end


class ScratchDaemon:
    """One scratch home with at most one daemon, which this object starts, restarts and ends."""

    def __init__(self, root: Path) -> None:
        self.environ = {**os.environ, "AIOS_HOME": str(root)}
        self.places = Places(config=root / "config", data=root / "data", state=root / "state", cache=root / "cache",
                             runtime=root / "run")
        self.places.create()
        self.launched: Launched | None = None

    @property
    def pid(self) -> int:
        """Of the daemon that runs now."""
        assert self.launched is not None
        return self.launched.pid

    def start(self) -> Launched:
        """Start the daemon and wait until it accepts clients."""
        self.launched = launch(self.places, environ=self.environ)
        return self.launched

    def stop(self) -> int:
        """Ask it to stop and wait for its exit code."""
        assert self.launched is not None
        process = self.launched.process
        process.terminate()
        try:
            return process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def connect(self, timeout: float = 120.0) -> Client:
        """A client with the owner's token."""
        return connect(self.places.socket, timeout=timeout)

    def end(self) -> None:
        """Whatever happened: no process of this home is left."""
        if self.launched is not None and self.launched.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self.stop()

    def has_model(self, name: str) -> bool:
        """Whether the model was found in the real home."""
        return (self.places.models / name).is_dir()

    def beat(self) -> Beat | None:
        """What the worker does this moment, read from its shared page; None while there is no worker."""
        folder = Path(f"/proc/{self.pid}/fd")
        for entry in folder.iterdir():
            with suppress(OSError):
                if "memfd:aios-pulse" in str(entry.readlink()):
                    pulse = Pulse(os.open(entry, os.O_RDWR | os.O_CLOEXEC))
                    try:
                        return pulse.read()
                    finally:
                        pulse.close()
        return None


@contextmanager
def scratch_daemon(*, models: Sequence[str] = (), settings: Mapping[str, Mapping[str, object]] | None = None,
                   start: bool = True) -> Iterator[ScratchDaemon]:
    """A daemon in a new home with these models of the real one (where installed) and these settings."""
    real = Places.find()
    with tempfile.TemporaryDirectory(prefix="aios-lab-") as folder:
        daemon = ScratchDaemon(Path(folder) / "home")
        for name in models:
            if (real.models / name).is_dir():
                shutil.copytree(real.models / name, daemon.places.models / name, copy_function=_link)
        lines = [line for section, keys in (settings or {}).items()
                 for line in (f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in keys.items()))]
        daemon.places.config_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            if start:
                daemon.start()
            yield daemon
        finally:
            daemon.end()


def answers(daemon: ScratchDaemon) -> bool:
    """Whether the daemon says hello."""
    try:
        with daemon.connect(timeout=10.0):
            return True
    except DaemonDown:
        return False


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far, with the kernel's nanosecond clock."""
    total = 0
    for entry in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):
            total += int(entry.read_text().split()[0])
    return total / 1e9


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else '"' + str(value).replace('"', "") + '"'
