from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aios.config import Places
from aios.errors import BadInput
from aios.service import units
from aios.service.units import ServiceManager


def managers(places: Places, folder: Path) -> list[ServiceManager]:
    user = ServiceManager.of_user(places, {"HOME": str(folder), "AIOS_HOME": str(folder / "a home % \"quoted\"")})
    return [replace(user, folder=folder), replace(user, folder=folder, home=None),
            ServiceManager.of_system(places, "alice", folder)]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
@pytest.mark.parametrize("index", [0, 1, 2])
def test_systemd_has_nothing_to_say_about_the_units(places: Places, tmp_path: Path, index: int) -> None:
    manager = managers(places, tmp_path)[index]
    for name, text in manager.texts(socket=True).items():
        (tmp_path / name).write_text(text)
    names = [str(tmp_path / name).replace("aios@.service", "aios@alice.service")
             for name in manager.texts(socket=True)]
    mode = [] if manager.user else ["--user"]
    done = subprocess.run(["systemd-analyze", *mode, "--man=no", "verify", *names], capture_output=True, text=True,
                          env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
                          check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert (done.returncode, ours) == (0, []), "it exits with 0 on unknown keys, so every line counts"


def test_the_user_unit_pins_home_and_interpreter(places: Places, tmp_path: Path) -> None:
    text = managers(places, tmp_path)[0].texts()["aios.service"]
    assert f'ExecStart="{sys.executable}" "-P" "-m" "aios.service.daemon"' in text
    assert 'a home %% \\"quoted\\""' in text
    for line in ("Type=notify", "ExecReload=/bin/kill -HUP $MAINPID", "NoNewPrivileges=yes", "KillMode=mixed"):
        assert line in text.splitlines()


def test_the_boot_template_is_hardened_and_runs_as_its_instance(places: Places, tmp_path: Path) -> None:
    lines = managers(places, tmp_path)[2].texts()["aios@.service"].splitlines()
    for line in ("User=%i", "ProtectSystem=strict", "PrivateTmp=yes", "RestrictAddressFamilies=AF_UNIX",
                 'Environment="AIOS_HOME=/var/lib/aios/%i"', "WantedBy=multi-user.target"):
        assert line in lines


@pytest.mark.parametrize("name", ["", "../x", "a b", "x;y", "ü", "%i"])
def test_what_is_no_user_name_is_refused(places: Places, name: str) -> None:
    with pytest.raises(BadInput, match="not a user name"):
        ServiceManager.of_system(places, name)


def test_without_systemd_the_units_are_written_and_the_note_says_so(places: Places, tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units.shutil, "which", lambda name: None)
    manager = replace(ServiceManager.of_user(places, {"HOME": str(tmp_path)}), folder=tmp_path / "user")
    outcome = manager.install(socket=True)
    assert not outcome.managed and "systemctl is not installed here" in outcome.note
    assert {path.name for path in outcome.files} == {"aios.service", "aios.socket"}
    assert all(path.exists() for path in outcome.files)
    assert manager.status()["installed"] == "yes"
    assert {path.name for path in manager.uninstall().files} == {"aios.service", "aios.socket"}
    assert list((tmp_path / "user").iterdir()) == []
    assert "no unit" in manager.uninstall().note


def test_systemctl_is_asked_in_order_and_its_refusal_is_told(places: Places, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "calls"
    fake = tmp_path / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *enable*) echo "it is masked" >&2; exit 1;; esac\n')
    fake.chmod(0o700)
    monkeypatch.setattr(units.shutil, "which", lambda name: str(fake))
    outcome = replace(ServiceManager.of_user(places, {"HOME": str(tmp_path)}), folder=tmp_path / "u").install()
    assert (outcome.managed, outcome.note) == (False, "written, but not started: it is masked")
    assert log.read_text().splitlines() == ["--user --no-pager daemon-reload",
                                            "--user --no-pager enable --now aios.service"]
