"""The parent's side of a process of its own: started when needed, told what it is, watched, buried, started anew.

What the process does, and what becomes of its work when it dies, is the subclass's business.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal

from aios.errors import AiosError, CrashLoop, Internal, ProtocolError, from_wire
from aios.ipc import stream
from aios.log import EventLog
from aios.service.pulse import Pulse
from aios.service.spawn import python_command, python_environ

DEATHS_IN_A_ROW_MAX = 5        # without one finished request in between: the next one would die too
START_SECONDS = 60.0           # importing torch from a cold disk beside other work; the stall limit is for quanta
STOP_SECONDS = 5.0             # from the closed channel to SIGKILL
EOF_SECONDS = 1.0              # a grandchild that holds the channel open cannot delay the news of a death for longer
TICK_SECONDS_MAX = 5.0         # of looking at the pulse, only while there is work
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

State = Literal["off", "starting", "ready", "busy", "stopping", "crash-loop"]


class ChildLink(asyncio.Protocol):
    """One process at a time. `setup` is what a new one is told, `heard` gets what it reports."""

    name: ClassVar[str]                                # in the log
    title: ClassVar[str]                               # in errors
    module: ClassVar[str]                              # what is run
    died_as: ClassVar[type[AiosError]]                 # what its requests get when it dies
    stop_seconds: ClassVar[float] = STOP_SECONDS

    def __init__(self, log: EventLog, *, setup: Callable[[], dict[str, Any]],
                 heard: Callable[[str, Mapping[str, Any]], None], stall_seconds: float) -> None:
        self.stall_seconds = stall_seconds
        self.restarts = 0
        self.reason: str | None = None
        self._log = log
        self._setup = setup
        self._heard = heard
        self._phase: Literal["off", "starting", "up", "stopping"] = "off"
        self._deaths = 0                                       # in a row
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._pulse: Pulse | None = None
        self._transport: asyncio.Transport | None = None
        self._framer = stream.Framer()
        self._calls: dict[int, asyncio.Future[Any]] = {}       # our own requests, numbered downwards from MSGID_MAX
        self._next_call = stream.MSGID_MAX
        self._verdict: str | None = None                       # why we killed it ourselves
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._looked_at = self._busy_since = time.monotonic()
        self._ended = asyncio.Event()
        self._ended.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def pump(self) -> None:
        """Give the process what it may run; start it first if there is something."""
        raise NotImplementedError

    @property
    def working(self) -> bool:
        """True while it has somebody's request in hand."""
        raise NotImplementedError

    @property
    def state(self) -> State:
        """As `aios status` names it."""
        if self._phase == "off" and self.crash_loop:
            return "crash-loop"
        if self._phase == "up":
            return "busy" if self.working else "ready"
        return self._phase

    @property
    def crash_loop(self) -> bool:
        """True when it died too often in a row to be started again by itself."""
        return self._deaths >= DEATHS_IN_A_ROW_MAX

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None else None

    @property
    def rss_mb(self) -> float | None:
        """Resident memory of the running process in 10^6 bytes."""
        return resident_mb(self.pid) if self.pid is not None else None

    @property
    def healthy(self) -> bool:
        """False when supervision itself is late: the service manager should then know."""
        return "tick" not in self._timers or time.monotonic() - self._looked_at < 4 * self._tick_seconds

    def check(self) -> None:
        """Raises CrashLoop while the process is not started any more."""
        if self.crash_loop:
            raise CrashLoop(f"{self.title} died {self._deaths} times in a row; last: {self.reason}",
                            remedy="`aios logs` shows why; then `aios restart`", deaths=self._deaths)

    def forgive(self) -> None:
        """A reload or restart: it may be started again."""
        self._deaths = 0

    def stop(self) -> None:
        """Close the channel: the process ends by itself, or is killed after a few seconds."""
        if self._phase in ("starting", "up"):
            self._phase = "stopping"
            self._stop_timer("keep-alive")
            self._stop_timer("tick")
            if self._transport is not None:
                self._transport.close()
            self._timers["kill"] = self._later(self.stop_seconds, self._kill)

    async def wait_ended(self) -> None:
        """Returns once no process is left."""
        await self._ended.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The channel is open."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._phase == "stopping":
            transport.close()

    def data_received(self, data: bytes) -> None:
        """What the process answers and reports."""
        try:
            for message in self._framer.feed(data):
                self._hear(message)
        except ProtocolError as error:
            self._kill(f"it sent what cannot be read: {error.message}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come; if the process does not end now, it is ended."""
        self._transport = None
        if self._process is None:
            return
        if self._process.returncode is not None:
            self._bury()
        elif "kill" not in self._timers:
            self._timers["kill"] = self._later(self.stop_seconds, self._kill)

    def _lost(self, how: str, label: str) -> None:
        """The process died at what its pulse says: what it had in hand is answered."""
        raise NotImplementedError

    def _given_up(self, error: AiosError) -> None:
        """It cannot be started: what waits is answered with `error`."""
        raise NotImplementedError

    def _gone(self) -> None:
        """No process is there any more, whatever ended it."""

    @property
    def _tick_seconds(self) -> float:
        return min(max(self.stall_seconds / 4, 0.05), TICK_SECONDS_MAX)

    def _start(self) -> None:
        with ExitStack() as undo:
            try:
                pulse = Pulse.create()
                undo.callback(pulse.close)
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                undo.callback(ours.close)
                ours.setblocking(False)
                with theirs:
                    command = python_command(self.module, "--channel", str(theirs.fileno()),
                                             "--pulse", str(pulse.descriptor), "--parent", str(os.getpid()))
                    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd="/", env=python_environ(),
                                               pass_fds=(theirs.fileno(), pulse.descriptor))
                self._pidfd = os.pidfd_open(process.pid)
            except OSError as error:
                self._deaths += 1
                self.reason = f"it could not be started: {error.strerror}"
                self._given_up(self.died_as(f"{self.title}: {self.reason}", remedy="try again in a moment"))
                return
            undo.pop_all()
        self._process, self._pulse = process, pulse
        self._phase, self._verdict = "starting", None
        self._framer = stream.Framer()
        self._ended.clear()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._exited)
        self._log(f"{self.name}.start", "info", **{self.name: process.pid})
        self._spawn(self._introduce(ours))

    async def _introduce(self, channel: socket.socket) -> None:
        """Open the channel and tell the new process who it is; work follows when it has answered."""
        process = self._process
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=channel)
        try:
            told = self._setup()
            await self._call("setup", told)
            while told != (now := self._setup()):      # the settings changed meanwhile
                told = now
                await self._call("reload", told)
        except AiosError as error:
            if self._phase == "starting" and self._process is process:     # not its successor
                self._kill(f"it could not be set up: {error.message}")
            return
        if self._phase == "starting" and self._process is process:
            self._phase = "up"
            self.pump()

    async def _call(self, verb: str, params: dict[str, Any]) -> Any:
        number, self._next_call = self._next_call, self._next_call - 1
        self._calls[number] = asyncio.get_running_loop().create_future()
        self._watch()
        self._send(stream.Request(msgid=number, verb=verb, params=[params]))
        try:
            return await self._calls[number]
        finally:
            self._calls.pop(number, None)

    def _send(self, message: stream.Message) -> None:
        if self._transport is not None:
            self._transport.write(stream.encode(message))

    def _hear(self, message: stream.Message) -> None:
        if isinstance(message, stream.Response):
            error = from_wire(message.error) if message.error is not None else None
            if (call := self._calls.get(message.msgid)) is None:
                self._answered(message.msgid, error, message.result)
            elif not call.done():
                call.set_result(message.result) if error is None else call.set_exception(error)
        elif isinstance(message, stream.Notification):
            self._notified(message)

    def _answered(self, number: int, error: AiosError | None, result: Any) -> None:
        """An answer to a request that is none of our own calls."""
        raise NotImplementedError

    def _notified(self, message: stream.Notification) -> None:
        """What it says beside its answers."""
        if message.params and isinstance(message.params[0], dict):
            self._heard(message.method, message.params[0])

    def _watch(self) -> None:
        """There is something to do: look at the pulse from now on."""
        if "tick" not in self._timers:
            self._busy_since = time.monotonic()
            self._plan_tick()

    def _plan_tick(self) -> None:
        self._looked_at = time.monotonic()
        self._timers["tick"] = self._later(self._tick_seconds, self._tick)

    def _tick(self) -> None:
        """Look whether the process moves, as long as it has something to do."""
        self._timers.pop("tick", None)
        if self._phase not in ("starting", "up") or not (self.working or self._calls):
            return
        assert self._pulse is not None
        # Before there was something to do the page may have been quiet for as long as it liked.
        patience = self.stall_seconds if self._phase == "up" else max(self.stall_seconds, START_SECONDS)
        if time.monotonic() - max(self._pulse.read().at, self._busy_since) > patience:
            self._kill(f"no progress for {patience:g} s")
            return
        self._plan_tick()

    def _kill(self, why: str | None = None) -> None:
        self._timers.pop("kill", None)
        if self._process is not None and self._process.returncode is None:
            self._verdict = why or self._verdict
            self._process.kill()

    def _exited(self) -> None:
        """The process is gone; what it wrote before is read first."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        assert self._process is not None
        self._process.wait()
        if self._transport is None:
            self._bury()
        else:
            self._timers["eof"] = self._later(EOF_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _bury(self) -> None:
        """Process and channel are gone: answer its work, clean up, and start anew if something waits."""
        assert self._process is not None and self._pulse is not None
        for name in list(self._timers):
            self._stop_timer(name)
        process, label, wanted = self._process, self._pulse.read().label, self._phase == "stopping"
        self._pulse.close()
        self._process, self._phase = None, "off"
        self._gone()
        if wanted and not self.working:
            self._log(f"{self.name}.end", "info", **{self.name: process.pid})
        else:
            self._died(process, label)
        for call in list(self._calls.values()):
            if not call.done():
                call.set_exception(self.died_as(f"{self.title} ended", remedy="try again"))
        self._heard("ended", {})
        self._ended.set()
        self.pump()

    def _died(self, process: subprocess.Popen[bytes], label: str) -> None:
        how = self._verdict or describe_exit(process.returncode)
        self._deaths += 1
        self.restarts += 1
        self.reason = f"{how} (at {label})" if label else how
        self._log(f"{self.name}.died", "error", **{self.name: process.pid}, how=how, at=label,
                  deaths_in_a_row=self._deaths)
        self._lost(how, label)
        if self.crash_loop:
            try:
                self.check()
            except CrashLoop as error:
                self._log(f"{self.name}.crash_loop", "error", deaths=self._deaths)
                self._given_up(error)

    def _later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, call)

    def _stop_timer(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log(f"{self.name}.defect", "error", reason=repr(error))
            self._kill(repr(Internal(str(error))))


def describe_exit(code: int | None) -> str:
    """A process's end in words."""
    if code is None:
        return "it is still there"
    if code >= 0:
        return f"it exited with status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"it was ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")


def resident_mb(pid: int) -> float | None:
    """Resident memory of a process in 10^6 bytes; None when it is gone."""
    try:
        return round(int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * PAGE_BYTES / 1e6, 1)
    except (OSError, ValueError, IndexError):
        return None
