"""The daemon: one process per home that owns the socket, the queue, the grants and the worker's life.

Start: folders, configuration, lock, socket, owner token, READY; then, with clients already served, plugins,
watcher and scheduler. Stop: new requests are refused, running ones finish or are cancelled at the deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from aios import __version__, config
from aios.config import Config, Places
from aios.errors import AiosError, ConfigError, Draining
from aios.ipc.protocol import MemoryStatus, Status, WorkerStatus
from aios.log import EventLog
from aios.messages import Diffuse, Generate
from aios.registry.catalog import Catalog
from aios.security.auth import Tokens
from aios.service.child_link import resident_mb
from aios.service.handlers import HANDLERS
from aios.service.heap import return_freed_memory
from aios.service.housekeeping import Housekeeping
from aios.service.instance import Listener, Lock, sweep
from aios.service.jobs import Board
from aios.service.launch import ReadyPipe
from aios.service.memories import Memories
from aios.service.memory_link import MemoryLink
from aios.service.notify import Notifier
from aios.service.server import Server
from aios.service.worker_link import WorkerLink

if TYPE_CHECKING:
    from aios.service.scheduler import Scheduler
    from aios.service.watcher import Watcher

FLUSH_SECONDS = 1.0        # for the last answers to leave before the sockets close
STOPPING_SECONDS = 45.0    # behind the drain: saving the index of a million memories takes the most of it


class Daemon:
    """Everything the parent process holds."""

    def __init__(self, places: Places, settings: Config, log: EventLog, *, safe_mode: bool = False) -> None:
        self.places = places
        self.config = settings
        self.log = log
        self.safe_mode = safe_mode
        self.config_error: str | None = None
        self.draining = False
        self.started = time.monotonic()
        self.tokens = Tokens(places.state / "tokens.json")
        self.catalog = Catalog(places, settings.plugins, safe_mode=safe_mode)
        self.board = Board(settings.limits)
        self.link = WorkerLink(self.board, log, setup=self._setup, heard=self._heard,
                               keep_alive_seconds=settings.model.keep_alive_seconds,
                               stall_seconds=settings.model.stall_seconds)
        self.memory = MemoryLink(log, setup=self._memory_setup, heard=self._heard_of_memory,
                                 stall_seconds=settings.model.stall_seconds)
        self.memories = Memories(self.memory, self.board, places.memory, self.link.check)
        self.server = Server(self, self.board, HANDLERS, log)
        self.notifier = Notifier()
        self.housekeeping = Housekeeping(places, log)
        self._scheduler: Scheduler | None = None
        self._watcher: Watcher | None = None
        self._stopping = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, listener: Listener, ready: ReadyPipe) -> None:
        """Serve until SIGTERM, SIGINT or the verb stop; returns when everything is ended."""
        loop = asyncio.get_running_loop()
        # create_server rather than create_unix_server: the latter would unlink an inherited socket (Python 3.13).
        sockets = await loop.create_server(self.server.connection, sock=listener.socket)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self.reload()))
        self.notifier.ready(f"listening on {self.places.socket}")
        ready.tell({"pid": os.getpid(), "socket": str(self.places.socket)})
        self.log("daemon.ready", version=__version__, socket=str(self.places.socket), safe_mode=self.safe_mode)
        self._ping_watchdog()
        loop.call_soon(self._start_services)
        await self._stopping.wait()
        await self._drain()
        sockets.close()
        for connection in list(self.server.connections):
            connection.close()
        await self._until(lambda: not self.server.connections, FLUSH_SECONDS)
        for connection in list(self.server.connections):
            connection.abort()
        self.link.stop()
        self.memory.stop()
        await self.link.wait_ended()
        await self.memory.wait_ended()
        self._stop_services()

    def stop(self) -> None:
        """Drain and end; a second call changes nothing."""
        self._stopping.set()

    def accepts(self) -> None:
        """Raises Draining or CrashLoop when no request for the worker is taken now."""
        self.serves()
        self.link.check()

    def serves(self) -> None:
        """Raises Draining when no request at all is taken now."""
        if self.draining:
            raise Draining("the daemon is stopping and takes no new requests", remedy="`aios start` after it ended")

    async def lend(self, request: Diffuse | Generate) -> Diffuse | Generate:
        """The request with the memories it wishes for."""
        return await self.memories.lend(request, self.config.memory.passages)

    async def reload(self) -> None:
        """daemon.toml and plugins again; a bad file leaves the old settings and is told in status and log."""
        async with self._reloading:
            self.notifier.reloading()
            old = self.config
            try:
                settings = config.load(self.places.config_file)
                self._check_schedule(settings)
            except ConfigError as error:
                self.config_error = error.message
                self.log("config.refused", "error", reason=error.message)
            else:
                self._adopt(settings)
            self.catalog.reload(self.config.plugins)
            self.link.forgive()
            self.memory.forgive()
            if self.config.model != old.model:
                self.link.retire()      # another model, tier or number of threads needs a new engine
            else:
                await self.load_plugins()
            self.log("daemon.reloaded", config_error=self.config_error)
            self.notifier.ready(self.config_error or f"listening on {self.places.socket}")

    async def load_plugins(self) -> None:
        """Let a running worker take over what the catalogue now allows; one that cannot is replaced."""
        try:
            await self.link.reload()
        except AiosError as error:
            self.log("plugins.reload_failed", "error", reason=error.message)
            self.link.retire()

    def status(self) -> Status:
        """The daemon at a glance."""
        link = self.link
        worker = WorkerStatus(state=link.state, pid=link.pid, rss_mb=link.rss_mb, restarts=link.restarts,
                              reason=link.reason, models=tuple(str(model.get("name")) for model in link.models))
        memory = MemoryStatus(state=self.memory.state, pid=self.memory.pid, rss_mb=self.memory.rss_mb,
                              restarts=self.memory.restarts, reason=self.memory.reason)
        return Status(
            version=__version__, pid=os.getpid(), state="draining" if self.draining else "ready",
            uptime_s=round(time.monotonic() - self.started, 3), rss_mb=resident_mb(os.getpid()) or 0.0,
            clients=len(self.server.connections), queued=self.board.queued, running=self.board.running,
            served=self.board.served, failed=self.board.failed, safe_mode=self.safe_mode,
            config_file=str(self.places.config_file), config_error=self.config_error, worker=worker,
            memory=memory, plugins=self.catalog.counts(),
            housekeeping={**self.housekeeping.last,
                          "next": self._scheduler.next_run("housekeeping") if self._scheduler else None})

    def _adopt(self, settings: Config) -> None:
        self.config, self.config_error = settings, None
        self.log.set_level(settings.daemon.log_level)
        self.board.limits = settings.limits
        self.link.keep_alive_seconds = settings.model.keep_alive_seconds
        self.link.stall_seconds = settings.model.stall_seconds
        if self._scheduler is not None:
            self._scheduler.reschedule(settings.schedule)
        if settings.daemon.watch != (self._watcher is not None):
            self._watch(settings.daemon.watch)

    def _setup(self) -> dict[str, Any]:
        """What a new worker is told: settings, folders, plugins with the hashes they must have."""
        places = {name: str(getattr(self.places, name)) for name in ("config", "data", "state", "cache", "runtime")}
        return {"config": msgspec.to_builtins(self.config), "places": places,
                "plugins": [one.to_wire() for one in self.catalog.loadable()]}

    def _heard(self, method: str, said: Mapping[str, Any]) -> None:
        """What the worker reports beside its answers."""
        if method == "plugins":
            self.catalog.loaded(said.get("active", {}))
        elif method == "ended":
            self.catalog.loaded({})
        elif method == "plugin.failed":
            self._plugin_failed(said)
        elif method == "log":
            self.log(str(said.get("event", "worker")), "error", **{
                str(key): str(value) for key, value in said.items() if key not in ("event", "level")})

    async def _night(self) -> None:
        """What the scheduler calls: a coroutine, because it runs plain functions in another thread."""
        self._spawn(self._housekeep())

    async def _housekeep(self) -> None:
        await self.housekeeping.run()
        try:
            if await self.memories.compact():
                self.log("memory.compacted")
        except AiosError as error:      # a locked store, a full disk: the next night
            self.log("memory.not_compacted", "warning", reason=error.message)

    def _memory_setup(self) -> dict[str, Any]:
        """What a new memory process is told."""
        return {"folder": str(self.places.memory), "key": self.config.memory.key,
                "encrypts": self.config.memory.encrypts, "passphrase": self.memories.passphrase}

    def _heard_of_memory(self, method: str, said: Mapping[str, Any]) -> None:
        if method == "log":
            self.log("memory.defect", "error", what=str(said.get("what")), trace=str(said.get("trace")))

    def _plugin_failed(self, said: Mapping[str, Any]) -> None:
        name, reason = str(said.get("name")), str(said.get("reason"))
        self.log("plugin.failed", "error", plugin=name, reason=reason)
        if said.get("changed"):
            self.catalog.reload()       # not its code failed: what is on disk is not what was looked at
            return
        try:
            content_hash = said.get("hash") or self.catalog.report(name).hash
        except AiosError:
            return                      # it is gone from the disk meanwhile
        self.catalog.quarantine(name, str(content_hash), reason)

    def _start_services(self) -> None:
        """What need not be there for the first client; imported late to be ready early."""
        from aios.service.scheduler import Scheduler

        try:
            self._check_schedule(self.config)
            self._scheduler = Scheduler({"housekeeping": self._night})
            self._scheduler.start(self.config.schedule)
        except ConfigError as error:
            self.config_error = error.message
            self.log("config.refused", "error", reason=error.message)
        self._watch(self.config.daemon.watch)

    def _check_schedule(self, settings: Config) -> None:
        from aios.service.scheduler import Scheduler

        Scheduler.check(settings.schedule)

    def _watch(self, wanted: bool) -> None:
        """Start or stop watching; a system without inotify watches left is no reason to stop serving."""
        from aios.service.watcher import Watcher

        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None
        if wanted and not self._stopping.is_set():
            watcher = Watcher(lambda: self._spawn(self.reload()))
            try:
                watcher.start([self.places.config_file], [self.places.plugins])
            except OSError as error:
                self.log("watch.failed", "warning", reason=str(error))
            else:
                self._watcher = watcher

    def _stop_services(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
        if self._scheduler is not None:
            self._scheduler.stop()

    async def _drain(self) -> None:
        """Let what was accepted finish within the deadline; cancel the rest."""
        self.draining = True
        seconds = self.config.daemon.drain_seconds
        self.notifier.stopping(f"finishing {self.board.queued + self.board.running} requests")
        self.notifier.send(f"EXTEND_TIMEOUT_USEC={int((seconds + STOPPING_SECONDS) * 1e6)}")
        self.log("daemon.draining", queued=self.board.queued, running=self.board.running)
        await self._until(self._idle, seconds)
        if not self._idle():
            late = Draining("the daemon stopped before this request was finished",
                            remedy="send it again after `aios start`")
            self.server.errands.abandon_all(late)
            self.board.abandon_all(late)
            await self._until(self._idle, FLUSH_SECONDS)

    def _idle(self) -> bool:
        return self.board.idle and self.server.errands.idle

    async def _until(self, done: Any, seconds: float) -> None:
        """Wait for a condition, not for long; only used while stopping."""
        until = time.monotonic() + seconds
        while not done() and time.monotonic() < until:
            await asyncio.sleep(0.01)

    def _ping_watchdog(self) -> None:
        """Tell systemd that loop and supervision work; silence is what makes it act."""
        seconds = self.notifier.watchdog_seconds
        if seconds is None:
            return
        if self.link.healthy and self.memory.healthy:
            self.notifier.watchdog()
        asyncio.get_running_loop().call_later(seconds, self._ping_watchdog)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log("daemon.defect", "error", reason=repr(error))


def run_daemon(places: Places, settings: Config | None = None, *, safe_mode: bool = False, foreground: bool = True,
               ready_fd: int | None = None) -> int:
    """Be the daemon of this home until it is stopped; returns 0. Raises AlreadyRunning or ConfigError."""
    log: EventLog | None = None
    lock: Lock | None = None
    listener: Listener | None = None
    ready = ReadyPipe(ready_fd)
    return_freed_memory()
    try:
        places.create()
        settings = settings or config.load(places.config_file)
        lock = Lock(places)
        log = EventLog(places.log_file, settings.daemon.log_level)
        swept = sweep(places)
        listener = Listener(places)
        if foreground:
            print(f"aios {__version__} listens on {places.socket} (pid {os.getpid()}); Ctrl-C stops it",
                  file=sys.stderr, flush=True)
        asyncio.run(_serve(places, settings, log, listener, safe_mode, ready, swept))
        return 0
    except AiosError as error:
        ready.tell(error)
        raise
    except OSError as error:
        failure = ConfigError(f"the daemon cannot run here: {error}", remedy="set AIOS_HOME to a folder you own")
        ready.tell(failure)
        raise failure from error
    finally:
        if listener is not None:
            listener.close()
            places.owner_token.unlink(missing_ok=True)
        if log is not None:
            log("daemon.end")
            log.close()
        if lock is not None:
            lock.release()


async def _serve(places: Places, settings: Config, log: EventLog, listener: Listener, safe_mode: bool,
                 ready: ReadyPipe, swept: int) -> None:
    log("daemon.start", version=__version__, swept=swept, inherited_socket=listener.inherited)
    daemon = Daemon(places, settings, log, safe_mode=safe_mode)
    daemon.tokens.renew_owner(places.owner_token)
    await daemon.run(listener, ready)


def main(arguments: list[str] | None = None) -> int:
    """`python -m aios.service.daemon`: what `aios start` and the systemd units run."""
    parser = argparse.ArgumentParser(prog="aios.service.daemon")
    parser.add_argument("--safe-mode", action="store_true", help="first-party plugins only")
    parser.add_argument("--ready-fd", type=int, help="write one JSON line here when clients are accepted")
    given = parser.parse_args(arguments)
    try:
        return run_daemon(Places.find(), safe_mode=given.safe_mode, foreground=given.ready_fd is None,
                          ready_fd=given.ready_fd)
    except AiosError as error:
        print(f"error: {error.message}\n{error.remedy}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
