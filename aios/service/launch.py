"""Start a daemon in the background and know when it answers.

The daemon gets one end of a pipe (`--ready-fd`). It writes one JSON line when it accepts clients, or its error,
and closes it; a daemon that dies first closes it too. So nobody polls and nobody guesses.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aios.config import Places
from aios.errors import AiosError, DaemonError, from_wire
from aios.service.spawn import python_command, python_environ

READY_SECONDS_MAX = 30.0      # 50 times the usual; a cold disk on a loaded machine
EXIT_SECONDS = 5.0            # from the closed pipe to the end of a daemon that failed
LINE_BYTES_MAX = 64 << 10
LOG_TAIL_BYTES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A daemon that answers."""

    pid: int
    socket: str
    ready_ms: float               # from before the process was made until it accepted clients
    process: subprocess.Popen[bytes]


def launch(places: Places, *, safe_mode: bool = False, environ: dict[str, str] | None = None) -> Launched:
    """Start `aios.service.daemon` in a session of its own; raises the error it ended with."""
    places.create()
    started = time.perf_counter()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    output = os.open(places.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    command = python_command("aios.service.daemon", "--ready-fd", str(writer),
                             *(["--safe-mode"] if safe_mode else []))
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(writer,),
                                   start_new_session=True, cwd="/", env=python_environ(environ))
    finally:
        os.close(writer)
        os.close(output)
    try:
        line = _read_line(reader, started + READY_SECONDS_MAX)
    finally:
        os.close(reader)
    answer = _answer(line, process, places, started + READY_SECONDS_MAX)
    return Launched(pid=process.pid, socket=answer["socket"], ready_ms=(time.perf_counter() - started) * 1e3,
                    process=process)


class ReadyPipe:
    """The daemon's side: says once how the start went; a parent that no longer listens is no error."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    def tell(self, answer: dict[str, Any] | AiosError) -> None:
        """Write the line and close; a second call does nothing."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        told = answer if isinstance(answer, dict) else {"error": answer.to_wire()}
        with suppress(OSError):
            os.write(descriptor, json.dumps(told, default=str).encode()[:LINE_BYTES_MAX - 1] + b"\n")
        os.close(descriptor)


def _read_line(reader: int, until: float) -> bytes:
    """What the daemon wrote before it closed the pipe or time was up."""
    line = b""
    while not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
        left = until - time.perf_counter()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            break
        chunk = os.read(reader, LINE_BYTES_MAX)
        if not chunk:
            break
        line += chunk
    return line


def _answer(line: bytes, process: subprocess.Popen[bytes], places: Places, until: float) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and "error" in answer:
        process.wait(READY_SECONDS_MAX)
        raise from_wire(answer["error"])
    if isinstance(answer, dict) and isinstance(answer.get("socket"), str):
        return answer
    with suppress(subprocess.TimeoutExpired):     # who closed the pipe without a word is about to end
        process.wait(EXIT_SECONDS if time.perf_counter() < until else 0)
    if process.poll() is None:
        process.kill()
        process.wait()
        raise DaemonError(f"the daemon did not answer within {READY_SECONDS_MAX:.0f} s",
                          remedy="`aios logs` shows how far it came; `aios daemon` runs it in the foreground")
    raise DaemonError(f"the daemon ended with status {process.returncode} before it answered",
                      remedy="`aios logs` shows why; `aios daemon` runs it in the foreground", log=_tail(places))


def _tail(places: Places) -> str:
    with places.log_file.open("rb") as file:
        file.seek(max(0, places.log_file.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace")
