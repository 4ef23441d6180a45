"""The nightly look at the models, in a process of its own, and its findings."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

from aios.config import Places
from aios.log import EventLog
from aios.security import private_file
from aios.service.spawn import python_command, python_environ

HOUSEKEEPING_SECONDS_MAX = 3600.0    # hashing a terabyte of models would take longer; there is another night
FINDINGS_BYTES_MAX = 1 << 20
NICE = 15                            # never in anybody's way


class Housekeeping:
    """Runs `aios.store.housekeeping` and remembers what it found."""

    def __init__(self, places: Places, log: EventLog) -> None:
        self._file = places.state / "housekeeping.json"
        self._log = log
        self._busy = False
        self.last: dict[str, Any] = self._read()

    async def run(self) -> None:
        """Verify the models, remove leftovers, rotate the log; one at a time."""
        if self._busy:
            return
        self._busy = True
        try:
            self._log.rotate()
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self.last = {"started": started, **await self._findings(), "finished":
                         datetime.now(UTC).isoformat(timespec="seconds")}
            await asyncio.to_thread(private_file.write, self._file, json.dumps(self.last).encode())
            self._log("housekeeping.done", outcome=str(self.last["outcome"]))
        finally:
            self._busy = False

    async def _findings(self) -> dict[str, Any]:
        try:
            process = await asyncio.create_subprocess_exec(
                "nice", "-n", str(NICE), *python_command("aios.store.housekeeping"), env=python_environ(), cwd="/",
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
        except OSError as error:
            return {"outcome": f"failed: {error.strerror}"}
        try:
            out, _ = await asyncio.wait_for(process.communicate(), HOUSEKEEPING_SECONDS_MAX)
            found = json.loads(out[:FINDINGS_BYTES_MAX])
            broken = {name: problem for name, problem in found["models"].items() if problem}
            return {"outcome": "ok" if not broken else "broken models", "models": len(found["models"]),
                    "broken": broken, "removed": list(found["removed"])}
        except (TimeoutError, ValueError, KeyError, AttributeError) as error:
            return {"outcome": f"failed: {type(error).__name__} (status {process.returncode})"}
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _read(self) -> dict[str, Any]:
        """The findings of an earlier daemon; none when there are none that can be read."""
        if not self._file.exists():
            return {}
        try:
            found = json.loads(self._file.read_bytes()[:FINDINGS_BYTES_MAX])
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
