from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys

import pytest

from aios.config import Places
from aios.errors import AlreadyRunning, ConfigError
from aios.service import instance
from aios.service.instance import Listener, Lock, sweep


def test_a_second_instance_is_refused_and_told_who_holds_the_home(places: Places) -> None:
    lock = Lock(places)
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
        Lock(places)
    lock.release()
    Lock(places).release()


def test_the_lock_of_a_killed_process_is_free_and_its_socket_is_replaced(places: Places) -> None:
    code = ("import sys, os, signal; from pathlib import Path; from aios.config import Places\n"
            "from aios.service.instance import Lock, Listener\n"
            f"places = Places(**{{name: Path(path) for name, path in {as_texts(places)!r}.items()}})\n"
            "Lock(places); Listener(places); os.kill(os.getpid(), signal.SIGKILL)")
    subprocess.run([sys.executable, "-c", code], check=False)
    assert places.socket.exists(), "a killed daemon leaves its socket"
    lock = Lock(places)
    listener = Listener(places)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(places.socket))
    listener.close()
    lock.release()
    assert not places.socket.exists()


def test_the_socket_is_the_owners_alone(places: Places) -> None:
    listener = Listener(places)
    assert stat.S_IMODE(places.socket.stat().st_mode) == 0o600
    listener.close()


def test_a_link_in_the_lock_s_place_is_refused(places: Places) -> None:
    places.lock.symlink_to(places.state / "elsewhere")
    with pytest.raises(OSError):
        Lock(places)


def test_an_inherited_socket_is_used_and_never_unlinked(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    given = socket.socket(socket.AF_UNIX)
    given.bind(str(places.socket))
    given.listen()
    monkeypatch.setattr(instance, "LISTEN_FDS_START", given.detach())
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "OTHER": "kept"}
    listener = Listener(places, environ)
    assert listener.inherited
    assert environ == {"OTHER": "kept"}, "no child shall take the socket for its own"
    assert not listener.socket.get_inheritable()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(places.socket))
    listener.close()
    assert places.socket.exists()


def test_a_socket_meant_for_another_process_is_not_ours(places: Places) -> None:
    listener = Listener(places, {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"})
    assert not listener.inherited
    listener.close()


def test_an_inherited_socket_of_another_kind_is_refused(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    monkeypatch.setattr(instance, "LISTEN_FDS_START", wrong.detach())
    with pytest.raises(ConfigError, match="not a Unix stream socket"):
        Listener(places, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


def test_half_written_files_of_a_killed_daemon_are_swept(places: Places) -> None:
    left = places.state / ".tokens.json.0123456789abcdef.tmp"
    left.write_text("half")
    kept = places.state / "tokens.json"
    kept.write_text("{}")
    assert sweep(places) == 1
    assert not left.exists() and kept.exists()


def as_texts(places: Places) -> dict[str, str]:
    return {name: str(getattr(places, name)) for name in ("config", "data", "state", "cache", "runtime")}
