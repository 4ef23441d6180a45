"""The daemon as a process: its life, and what it does when something in it dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.config import Places
from aios.errors import (
    AlreadyRunning,
    Cancelled,
    ConfigError,
    DaemonDown,
    DeadlineExceeded,
    Draining,
    PluginError,
    Poisonous,
    WorkerDied,
)
from aios.ipc.client import Client
from aios.lab.scratch_home import ScratchDaemon, answers, children
from aios.messages import State
from aios.service.launch import launch
from aios.service.spawn import python_environ

Served = tuple[ScratchDaemon, Client]
SLOW = {"prompt": "SLOW", "modality": "code", "length": 512}


def until(done: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """True for a process that ended, also while nobody has fetched its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def events(places: Places) -> list[dict[str, Any]]:
    return [json.loads(line) for line in places.log_file.read_text().splitlines() if line.startswith("{")]


def allow(client: Client) -> None:
    shown = client.call("plugins.allow", name="obedient")
    assert client.call("plugins.allow", name="obedient", confirm=shown["hash"])["allowed"]


@pytest.fixture
def obedient(scratch: ScratchDaemon, install_plugin: Callable[[Places], None]) -> Iterator[Served]:
    """A daemon whose plugin for modality "code" obeys words in the prompt, and a client of it."""
    install_plugin(scratch.places)
    scratch.places.config_file.write_text("[model]\nkeep_alive_seconds = 60\nthreads = 1\n[daemon]\nwatch = false\n")
    scratch.start()
    with scratch.connect() as client:
        allow(client)
        yield scratch, client


def test_start_serve_stop_leaves_nothing_behind(scratch: ScratchDaemon) -> None:
    launched = scratch.start()
    with scratch.connect() as client:
        status = client.status()
        assert (status.pid, status.state, status.worker.state) == (launched.pid, "ready", "off")
        assert status.rss_mb < 60
        until(lambda: client.status().housekeeping["next"] is not None)
        with pytest.raises(AlreadyRunning, match=str(launched.pid)):
            scratch.start()
        scratch.launched = launched
        assert client.call("stop") is True
    assert launched.process.wait(20) == 0
    assert list(scratch.places.runtime.iterdir()) == [scratch.places.lock]
    assert not answers(scratch)


def test_after_kill_9_the_next_start_cleans_up_and_keeps_the_tokens(scratch: ScratchDaemon) -> None:
    scratch.start()
    with scratch.connect() as client:
        token = client.call("tokens.new", name="editor", scopes=["ask"])["token"]
    os.kill(scratch.pid, signal.SIGKILL)
    assert scratch.launched is not None
    scratch.launched.process.wait()
    assert scratch.places.socket.exists()
    left = scratch.places.state / ".grants.json.00.tmp"
    left.write_text("half")
    with pytest.raises(DaemonDown):
        scratch.connect()
    scratch.start()
    with scratch.connect() as client:
        assert [one["name"] for one in client.call("tokens.list")] == ["editor"]
        assert token not in (scratch.places.state / "tokens.json").read_text()
    assert not left.exists()
    assert scratch.stop() == 0


def test_the_service_manager_hears_of_every_phase(scratch: ScratchDaemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(scratch.places.runtime / "notify"))
        manager.settimeout(20)
        # The launcher keeps systemd's variables to itself, so the daemon is started as systemd starts it.
        environ = {**python_environ(scratch.environ), "WATCHDOG_USEC": "200000",
                   "NOTIFY_SOCKET": str(scratch.places.runtime / "notify")}
        process = subprocess.Popen([sys.executable, "-P", "-m", "aios.service.daemon"], env=environ,
                                   stderr=subprocess.DEVNULL)
        try:
            def hear(word: str) -> str:
                while word not in (told := manager.recv(4096).decode()):
                    pass
                return told

            assert f"MAINPID={process.pid}" in hear("READY=1")
            hear("WATCHDOG=1")
            hear("WATCHDOG=1")
            scratch.places.config_file.write_text("[daemon]\nnonsense = 1\n")
            process.send_signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in hear("RELOADING=1")
            assert "nonsense" in hear("READY=1"), "a refused file is told"
            with scratch.connect() as client:
                assert "nonsense" in str(client.status().config_error)
            scratch.places.config_file.write_text("[daemon]\nlog_level = \"debug\"\n")
            process.send_signal(signal.SIGHUP)
            assert "listening" in hear("READY=1")
            process.send_signal(signal.SIGTERM)
            hear("STOPPING=1")
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


def test_a_broken_configuration_is_told_to_whoever_starts_the_daemon(scratch: ScratchDaemon) -> None:
    scratch.places.config_file.write_text("[limits]\nclients_max = -1\n")
    with pytest.raises(ConfigError, match="clients_max"):
        scratch.start()
    assert not scratch.places.socket.exists()


def test_a_bad_cron_expression_is_told_and_the_daemon_runs(scratch: ScratchDaemon) -> None:
    scratch.places.config_file.write_text('[schedule]\nhousekeeping = "every now and then"\n')
    scratch.start()
    with scratch.connect() as client:
        until(lambda: client.status().config_error is not None)
        scratch.places.config_file.write_text('[schedule]\nhousekeeping = ""\n')
        assert client.call("reload")["config_error"] is None
    assert scratch.stop() == 0


def test_changes_on_disk_are_noticed(scratch: ScratchDaemon, install_plugin: Callable[[Places], None]) -> None:
    scratch.start()
    with scratch.connect() as client:
        until(lambda: client.status().housekeeping["next"] is not None)    # the services are up
        names = {plugin["name"] for plugin in client.call("plugins.list")}
        install_plugin(scratch.places)
        scratch.places.config_file.write_text("[model]\nkeep_alive_seconds = -1\n")
        until(lambda: client.status().config_error is not None, 10)
        assert {plugin["name"] for plugin in client.call("plugins.list")} == names | {"obedient"}
    assert scratch.stop() == 0


def test_requests_are_answered_streamed_cancelled_and_limited_in_time(obedient: Served) -> None:
    _, client = obedient
    answer = client.diffuse("", "code", length=8, seed=3)
    assert (answer.text, answer.seed, answer.verdict.plugin) == ("yes", 3, "obedient")
    assert answer.usage.queue_ms > 0
    states = client.stream("diffuse", **SLOW)
    seen = [next(states) for _ in range(3)]
    assert all(isinstance(state, State) for state in seen)
    states.close()
    with pytest.raises(DeadlineExceeded):
        client.diffuse(**SLOW, deadline_ms=100)     # type: ignore[arg-type]
    until(lambda: client.status().running == 0)
    assert client.diffuse("", "code", length=8).text == "yes"
    assert [plugin["state"] for plugin in client.call("plugins.list")] == ["active", "active"]


def test_a_dying_worker_is_replaced_and_a_poisonous_request_refused(obedient: Served) -> None:
    _, client = obedient
    for _ in range(2):
        with pytest.raises(WorkerDied):
            client.diffuse("DIE", "code", length=8, seed=1)
    with pytest.raises(Poisonous):
        client.diffuse("DIE", "code", length=8, seed=1)
    assert client.diffuse("", "code", length=8).text == "yes"
    assert client.status().worker.restarts == 2
    with pytest.raises(PluginError, match="told to"):
        client.diffuse("RAISE", "code", length=8)
    states = {plugin["name"]: plugin["state"] for plugin in client.call("plugins.list")}
    assert states["obedient"] == "quarantined" and states["text_head"] == "active"
    allow(client)
    assert client.diffuse("", "code", length=8).text == "yes", "allowing it again lifts the quarantine"


def test_stopping_finishes_what_runs_and_refuses_what_comes(obedient: Served) -> None:
    scratch, client = obedient
    client.diffuse("", "code", length=8)
    with scratch.connect() as busy:
        short = busy.stream("diffuse", prompt="SLOW", modality="code", length=60)
        next(short)
        assert client.call("stop") is True
        until(lambda: client.status().state == "draining")
        with pytest.raises(Draining):
            client.diffuse("", "code", length=8)
        assert next(item for item in short if not isinstance(item, State)).text == "yes"
    assert scratch.launched is not None
    assert scratch.launched.process.wait(20) == 0


def test_stopping_cancels_what_outlasts_the_deadline_and_leaves_no_worker(obedient: Served) -> None:
    scratch, client = obedient
    scratch.places.config_file.write_text("[daemon]\ndrain_seconds = 0.3\nwatch = false\n")
    client.call("reload")
    states = client.stream("diffuse", **SLOW)
    next(states)
    [worker] = children(scratch.pid)
    assert scratch.launched is not None
    scratch.launched.process.terminate()
    with pytest.raises((Draining, Cancelled)):
        for _ in states:
            pass
    assert scratch.launched.process.wait(20) == 0
    assert gone(worker)


def test_the_worker_dies_with_a_parent_that_was_killed(obedient: Served) -> None:
    scratch, client = obedient
    states = client.stream("diffuse", prompt="HANG", modality="code", length=8)
    next(states)
    [worker] = children(scratch.pid)
    assert Path(f"/proc/{worker}/oom_score_adj").read_text().strip() == "500"
    os.kill(scratch.pid, signal.SIGKILL)
    until(lambda: gone(worker), 5)


def test_an_inherited_socket_is_served_and_left_alone(scratch: ScratchDaemon) -> None:
    places = scratch.places
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(places.socket))
        given.listen()
        # As systemd does it: descriptor 3, and the variables name the very process.
        code = (f"import os, sys; os.dup2({given.fileno()}, 3); os.environ['LISTEN_PID'] = str(os.getpid())\n"
                "os.execv(sys.executable, [sys.executable, '-P', '-m', 'aios.service.daemon'])")
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(given.fileno(),), stderr=subprocess.DEVNULL,
                                   env={**python_environ(scratch.environ), "LISTEN_FDS": "1"})
        try:
            until(places.owner_token.exists)      # connecting succeeds at once, the token comes with the daemon
            with scratch.connect() as client:
                assert client.status().pid == process.pid
            process.terminate()
            assert process.wait(20) == 0
            assert places.socket.exists(), "it belongs to systemd"
        finally:
            process.kill()
            process.wait()


def test_safe_mode_leaves_strangers_out(scratch: ScratchDaemon, install_plugin: Callable[[Places], None]) -> None:
    install_plugin(scratch.places)
    scratch.launched = launch(scratch.places, safe_mode=True, environ=scratch.environ)
    with scratch.connect() as client:
        assert client.status().safe_mode is True
        allow(client)
        states = {plugin["name"]: plugin["state"] for plugin in client.call("plugins.list")}
        assert (states["obedient"], states["text_head"]) == ("disabled", "ready")
    assert scratch.stop() == 0
