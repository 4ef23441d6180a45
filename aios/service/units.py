"""systemd units: a user service (with an optional socket) and a system template for start at boot.

`aios.service` runs in the owner's session manager and uses the owner's XDG folders (or AIOS_HOME as it was at
installation). `aios@.service` starts at boot, as user %i, in a home of its own below /var/lib/aios: clients of
that daemon set AIOS_HOME=/var/lib/aios/USER.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aios.config import Places
from aios.errors import EX_CONFIG, EX_UNAVAILABLE, BadInput, ConfigError
from aios.security import private_file

SYSTEM_FOLDER = Path("/etc/systemd/system")
SYSTEMCTL_SECONDS_MAX = 60.0   # enable --now waits for READY=1
WATCHDOG_SECONDS = 30          # the daemon pings every 15; a loop stuck for longer is not coming back

_SERVICE = """\
[Unit]
Description=AIOS, an agent daemon whose intelligence runs locally{title}
Documentation=man:systemd.service(5)
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
{environment}WatchdogSec={watchdog}
Restart=on-failure
RestartSec=2
# A wrong configuration or a second instance does not get better by trying again.
RestartPreventExitStatus={config} {unavailable}
TimeoutStopSec={stop}
# The daemon itself ends its worker, after the requests; systemd kills only what is left.
KillMode=mixed
# The worker is meant to die first when memory runs out; the daemon reports it and lives on.
OOMPolicy=continue
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX
SystemCallArchitectures=native
# No MemoryDenyWriteExecute: torch's oneDNN kernels are written at run time.
{hardening}
[Install]
WantedBy={target}
"""

# Mount namespaces and capabilities belong to the system manager; in a user manager they need user namespaces.
_SYSTEM_HARDENING = """\
User=%i
StateDirectory=aios/%i
StateDirectoryMode=0700
WorkingDirectory=/var/lib/aios/%i
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictNamespaces=yes
CapabilityBoundingSet=
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
IPAddressDeny=any
"""

_SOCKET = """\
[Unit]
Description=Socket of AIOS: the first client starts the daemon

[Socket]
ListenStream={path}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done: the files written or removed, whether systemd took it, and one line for people."""

    files: tuple[Path, ...]
    managed: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceManager:
    """Where units go and which systemctl to ask: the user's manager, or the system's for one user."""

    places: Places
    folder: Path
    user: str | None = None                # a name: the system template for that user
    home: str | None = None                # AIOS_HOME to pin in the unit

    @classmethod
    def of_user(cls, places: Places, environ: Mapping[str, str] | None = None) -> ServiceManager:
        """The manager of this session."""
        env = os.environ if environ is None else environ
        base = env.get("XDG_CONFIG_HOME", "")
        root = Path(base) if Path(base).is_absolute() else Path(env.get("HOME") or Path.home()) / ".config"
        home = env.get("AIOS_HOME")
        return cls(places=places, folder=root / "systemd/user",
                   home=str(Path(home).expanduser().absolute()) if home else None)

    @classmethod
    def of_system(cls, places: Places, user: str, folder: Path = SYSTEM_FOLDER) -> ServiceManager:
        """The system's manager, for one user's daemon from boot on; needs root."""
        if not user or not user.isascii() or not all(letter.isalnum() or letter in "_-" for letter in user):
            raise BadInput(f"not a user name: {user[:80]!r}", remedy="give a login name")
        return cls(places=places, folder=folder, user=user)

    @property
    def unit(self) -> str:
        """The unit to start."""
        return f"aios@{self.user}.service" if self.user else "aios.service"

    def texts(self, *, socket: bool = False, drain_seconds: float = 10.0) -> dict[str, str]:
        """File name -> content of the units to install."""
        stop = int(drain_seconds) + 20
        if self.user:
            return {"aios@.service": service_text(stop_seconds=stop, system=True)}
        files = {"aios.service": service_text(stop_seconds=stop, home=self.home)}
        if socket:
            files["aios.socket"] = _SOCKET.format(path=str(self.places.socket).replace("%", "%%"))
        return files

    def install(self, *, socket: bool = False, drain_seconds: float = 10.0) -> Outcome:
        """Write the units and start them where systemd runs; without it the files are still written."""
        files = self.texts(socket=socket, drain_seconds=drain_seconds)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                private_file.write(self.folder / name, text.encode())
        except OSError as error:
            raise ConfigError(f"cannot write units to {self.folder}: {error.strerror}",
                              remedy="units of the system need root" if self.user else "check permissions") from error
        units = ["aios.socket"] if socket else [self.unit]
        problem = self._systemctl("daemon-reload") or self._systemctl("enable", "--now", *units)
        paths = tuple(self.folder / name for name in files)
        if problem:
            return Outcome(files=paths, managed=False, note=f"written, but not started: {problem}")
        return Outcome(files=paths, managed=True, note=f"{units[0]} is enabled and started")

    def uninstall(self) -> Outcome:
        """Stop and remove what `install` wrote."""
        names = ("aios@.service",) if self.user else ("aios.socket", "aios.service")
        present = tuple(self.folder / name for name in names if (self.folder / name).exists())
        if not present:
            return Outcome(files=(), managed=False, note=f"no unit of AIOS in {self.folder}")
        units = [self.unit] if self.user else [path.name for path in present]
        problem = self._systemctl("disable", "--now", *units)
        for path in present:
            path.unlink()
        problem = problem or self._systemctl("daemon-reload")
        return Outcome(files=present, managed=not problem, note=f"removed; {problem}" if problem else "removed")

    def status(self) -> dict[str, str]:
        """What systemd says of the unit, and whether its file exists."""
        name = "aios@.service" if self.user else "aios.service"
        answer = {"unit": self.unit, "file": str(self.folder / name),
                  "installed": "yes" if (self.folder / name).exists() else "no"}
        done = self._ask("show", self.unit, "--property=ActiveState,SubState,UnitFileState,MainPID,StatusText")
        if isinstance(done, str):
            return answer | {"systemd": done}
        return answer | dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    def _systemctl(self, *arguments: str) -> str:
        """Run systemctl; an empty string when it worked, else the reason."""
        done = self._ask(*arguments)
        if isinstance(done, str):
            return done
        return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() \
            else f"systemctl {arguments[0]} ended with {done.returncode}"

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str] | str:
        program = shutil.which("systemctl")
        if program is None:
            return "systemctl is not installed here"
        command = [program, *([] if self.user else ["--user"]), "--no-pager", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS_MAX, check=False,
                                  stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"systemctl does not answer: {error}"
        if "Failed to connect" in done.stderr or "not been booted with systemd" in done.stderr:
            return "systemd does not run here"
        return done


def service_text(*, stop_seconds: int, home: str | None = None, system: bool = False) -> str:
    """The text of aios.service, or of the template aios@.service."""
    pinned = "/var/lib/aios/%i" if system else _escape(home) if home else ""
    return _SERVICE.format(
        title=" (%i)" if system else "",
        command=" ".join(_quote(word) for word in (sys.executable, "-P", "-m", "aios.service.daemon")),
        environment=f'Environment="AIOS_HOME={pinned}"\n' if pinned else "",
        watchdog=WATCHDOG_SECONDS, config=EX_CONFIG, unavailable=EX_UNAVAILABLE, stop=stop_seconds,
        hardening=_SYSTEM_HARDENING if system else "",
        target="multi-user.target" if system else "default.target")


def _escape(text: str) -> str:
    """A value inside double quotes of a unit file."""
    if any(ord(letter) < 32 for letter in text):
        raise ConfigError(f"a path with control characters cannot stand in a unit: {text!r}", remedy="rename it")
    return text.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')


def _quote(word: str) -> str:
    return '"' + _escape(word).replace("$", "$$") + '"'
