"""`aios daemon`, `start`, `stop`, `restart`, `reload` and `status`: the daemon's life."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aios import config
from aios.cli import render
from aios.cli.options import Json
from aios.errors import AiosError, ConfigError, DaemonDown, DaemonError

if TYPE_CHECKING:
    from aios.ipc.client import Client

EXIT_NOT_RUNNING = 3          # what LSB says `status` returns for a stopped service
POLL_SECONDS = 0.01
STOP_MARGIN_SECONDS = 45.0    # beyond the drain: worker and memory process are given time to end too

SafeMode = Annotated[bool, typer.Option("--safe-mode", help="Load first-party plugins only.")]


def daemon(safe_mode: SafeMode = False) -> None:
    """Run the daemon in the foreground, as a service manager wants it."""
    from aios.service.spawn import python_command, python_environ

    command = python_command("aios.service.daemon", *(["--safe-mode"] if safe_mode else []))
    # The same process with a new image: the daemon does not carry the command line in its memory, and what the
    # service manager told this process (NOTIFY_SOCKET, LISTEN_FDS) is still meant for it.
    os.execve(command[0], command, {**os.environ, **python_environ()})  # noqa: S606 - a list, and no outside data


def start(safe_mode: SafeMode = False, json: Json = False) -> None:
    """Start the daemon in the background and wait until it is ready."""
    places = config.Places.find()
    found = {"running": True, "started": False, "socket": str(places.socket), "log": str(places.log_file)}
    if running := _status():
        found |= {"pid": running["pid"]}
        words = "already running"
    else:
        from aios.service.launch import launch

        launched = launch(places, safe_mode=safe_mode)
        found |= {"started": True, "pid": launched.pid, "ready_ms": round(launched.ready_ms, 1)}
        words = f"ready after {launched.ready_ms:.0f} ms"
    render.emit(found, json, lambda: render.say(f"{words}: pid {found['pid']}, socket {places.socket}"))


def stop(json: Json = False) -> None:
    """Drain the daemon and wait until it has ended."""
    pid = _stop(config.Places.find())
    render.emit({"running": False, "stopped": pid is not None, "pid": pid}, json,
                lambda: render.say("the daemon was not running" if pid is None else f"stopped: pid {pid}"))


def restart(safe_mode: SafeMode = False, json: Json = False) -> None:
    """Stop the daemon if it runs, then start it."""
    _stop(config.Places.find())
    start(safe_mode=safe_mode, json=json)


def reload(json: Json = False) -> None:
    """Read daemon.toml and the plugins again."""
    from aios.ipc.client import connect

    with connect() as client:
        found = client.call("reload")
    if error := found.get("config_error"):
        raise ConfigError(str(error), remedy=f"correct {found['config_file']}; the old settings are in force")
    render.emit(found, json, lambda: render.say(f"reloaded: {found['config_file']}"))


def status(json: Json = False) -> int:
    """Show the daemon at a glance; exit code 3 when it does not run."""
    places = config.Places.find()
    found = _status()
    if found is None:
        render.emit({"running": False}, json, lambda: render.say("the daemon does not run; `aios start` starts it"))
        return EXIT_NOT_RUNNING
    found = {"running": True, **found, "socket": str(places.socket), "token_file": str(places.owner_token),
             "log": str(places.log_file)}
    render.emit(found, json, lambda: _show_status(found))
    return 0


def _connect() -> Client:
    from aios.ipc.client import connect

    return connect()


def _status() -> dict[str, Any] | None:
    """The daemon's status; None when nothing answers."""
    try:
        with _connect() as client:
            found: dict[str, Any] = client.call("status")
    except DaemonDown:
        return None
    return found


def _stop(places: config.Places) -> int | None:
    """Ask the daemon to drain and wait for its end; its pid, or None when it did not run."""
    try:
        with _connect() as client:
            pid = client.welcome.pid
            client.call("stop")
    except DaemonDown:
        return None
    drain = _drain_seconds(places)
    deadline = time.monotonic() + drain + STOP_MARGIN_SECONDS
    while held(places):
        if time.monotonic() > deadline:
            raise DaemonError(f"the daemon (pid {pid}) still runs after {drain + STOP_MARGIN_SECONDS:.0f} s",
                              remedy=f"kill -9 {pid}; the next start cleans up")
        time.sleep(POLL_SECONDS)
    return pid


def _drain_seconds(places: config.Places) -> float:
    try:
        return config.load(places.config_file).daemon.drain_seconds
    except AiosError:   # the file was broken after the daemon read it
        return config.Config().daemon.drain_seconds


def held(places: config.Places) -> bool:
    """Whether a daemon still holds this home: its lock outlasts everything else that it does."""
    descriptor = os.open(places.lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _show_status(found: dict[str, Any]) -> None:
    worker, memory = found["worker"], found["memory"]
    render.facts({
        "daemon": f"{found['state']}, pid {found['pid']}, version {found['version']}"
                  + (", safe mode" if found["safe_mode"] else ""),
        "up": render.duration(found["uptime_s"]),
        "memory": f"{found['rss_mb']:.1f} MB",
        "requests": f"{found['running']} running, {found['queued']} queued, {found['served']} served, "
                    f"{found['failed']} failed",
        "clients": found["clients"],
        "worker": worker["state"] + (f", pid {worker['pid']}" if worker["pid"] else "")
                  + (f", {worker['rss_mb']:.0f} MB" if worker["rss_mb"] else ""),
        "models": worker["models"],
        "memories": memory["state"] + (f", {memory['rss_mb']:.0f} MB" if memory["rss_mb"] else "")
                    + (f", {memory['restarts']} restarts" if memory["restarts"] else ""),
        "restarts": worker["restarts"] or None,
        "last end": worker["reason"],
        "plugins": ", ".join(f"{count} {state}" for state, count in found["plugins"].items()),
        "housekeeping": found["housekeeping"],
        "socket": found["socket"],
        "configuration": found["config_file"],
        "not applied": found["config_error"],
    })
