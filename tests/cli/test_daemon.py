"""The daemon's life through the command line, with a real daemon; no model is loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aios.cli.daemon import held
from aios.config import Places
from aios.errors import EX_CONFIG, DaemonDown

if TYPE_CHECKING:
    from tests.cli.conftest import Run


def aios_process(*words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, so that the daemon it starts is no child of the tests."""
    return subprocess.run([sys.executable, "-m", "aios", *words], capture_output=True, text=True, timeout=60,
                          check=False)


def start(word: str = "start", *flags: str) -> Any:
    return json.loads(aios_process(word, *flags, "--json").stdout)


@pytest.fixture
def stopped(run: Run) -> Iterator[Run]:
    """A home whose daemon, if a test started one, is ended afterwards."""
    yield run
    run("stop")


def test_without_a_daemon_status_is_3_and_stop_is_content(run: Run) -> None:
    done = run("status")
    assert done.code == 3
    assert "aios start" in done.out
    assert run("status", "--json").json == {"running": False}
    assert run("stop", "--json").json == {"running": False, "stopped": False, "pid": None}


def test_a_daemon_starts_once_answers_and_stops(stopped: Run) -> None:
    run = stopped
    started = start()
    assert started["started"] is True
    again = start()
    assert (again["started"], again["pid"]) == (False, started["pid"])

    status = run("status", "--json")
    assert status.code == 0
    assert status.json["pid"] == started["pid"]
    assert status.json["socket"] == str(Places.find().socket)
    assert f"pid {started['pid']}" in run("status").out
    assert run("models", "ps", "--json").json == {"models": []}
    assert "daemon.ready" in [event["event"] for event in run("logs", "--json").json["events"]]

    ended = run("stop", "--json").json
    assert (ended["stopped"], ended["pid"]) == (True, started["pid"])
    assert run("status").code == 3


def test_restart_makes_a_new_process_with_new_flags(stopped: Run) -> None:
    first = start()["pid"]
    second = start("restart", "--safe-mode")["pid"]
    assert first != second
    assert stopped("status", "--json").json["safe_mode"] is True


def test_a_token_is_shown_once_and_can_be_withdrawn(stopped: Run) -> None:
    run = stopped
    start()
    made = run("token", "new", "bot", "--scope", "ask", "--scope", "plugins", "--json").json
    assert made["scopes"] == ["ask", "plugins"]
    assert len(made["token"]) > 30
    assert "bot" in run("token", "list").out
    assert made["token"] not in run("token", "list", "--json").out
    assert run("token", "revoke", "bot", "--json").json == {"revoked": True}
    assert run("token", "revoke", "bot").code == 1
    assert run("token", "new", "bot", "--scope", "nonsense").code == 65


def test_a_wrong_daemon_toml_is_told_at_once(stopped: Run) -> None:
    run = stopped
    places = Places.find()
    places.create()
    places.config_file.write_text("[daemon]\nnonsense = 1\n")
    done = aios_process("start")
    assert done.returncode == EX_CONFIG
    assert "nonsense" in done.stderr
    places.config_file.unlink()
    start()
    places.config_file.write_text("[model]\nthreads = -1\n")
    done = run("reload")
    assert done.code == EX_CONFIG
    assert "threads" in done.err
    assert "threads" in run("status").out
    places.config_file.unlink()
    assert run("reload").code == 0


def test_a_killed_daemon_is_noticed_and_replaced(stopped: Run) -> None:
    run = stopped
    pid = start()["pid"]
    os.kill(pid, signal.SIGKILL)
    while held(Places.find()):
        time.sleep(0.01)
    assert run("status").code == 3
    assert run("encode", "a").code == DaemonDown.exit_code
    assert start()["started"] is True


def test_the_foreground_daemon_ends_with_its_signal(home: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "aios", "daemon"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert f"pid {process.pid}" in process.stderr.readline()
        second = aios_process("daemon")
        assert second.returncode == DaemonDown.exit_code
        assert f"pid {process.pid}" in second.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_service_is_written_where_systemd_looks_even_without_systemd(
        run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("PATH", str(tmp_path))   # no systemctl: nothing of this machine is touched
    unit = tmp_path / "c/systemd/user/aios.service"
    done = run("service", "install", "--json")
    assert done.json["files"] == [str(unit)]
    assert "ExecStart=" in unit.read_text()
    assert run("service", "status", "--json").json["installed"] == "yes"
    assert run("service", "uninstall").code == 0
    assert not unit.exists()
