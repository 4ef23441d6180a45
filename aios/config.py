"""daemon.toml and the folders AIOS lives in. An unknown key is an error, a missing one has its default."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from platformdirs import PlatformDirs

from aios.errors import ConfigError

CONFIG_BYTES_MAX = 1 << 20
SOCKET_PATH_BYTES_MAX = 107   # sun_path of Linux without its terminating zero


class DaemonSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[daemon]"""

    drain_seconds: float = 10.0          # how long SIGTERM waits for running requests
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    watch: bool = True                   # reload when daemon.toml or a plugin folder changes on disk


class ModelSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[model]"""

    tier: Literal["edge", "local", "cloud"] = "local"
    encoder: str = "minilm"
    text: str = "text-default"
    code: str = "text-default"
    language: str = "smollm2"
    # Bits of activations in the products of `language`. With 16 it chooses the tokens that f32 would choose; 8, as
    # llama.cpp has, read prompts half as fast again and change one token in sixty (`aios eval generate`).
    language_activations: Literal[8, 16] = 16
    # Of the worker; 0: as many as there are cores. At the size of today's models a second thread gains nothing
    # and loses much as soon as another program wants its core.
    threads: int = 1
    keep_alive_seconds: float = 300.0    # the worker ends after this long without a request
    stall_seconds: float = 120.0         # one quantum that takes longer than this is a hung worker


class LimitsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[limits]"""

    clients_max: int = 128
    queue_max: int = 256
    active_max: int = 64                 # requests that the worker interleaves
    deadline_seconds: float = 600.0      # for requests that name none
    slow_client_seconds: float = 30.0    # a client that reads nothing for this long is dropped


class MemorySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[memory]"""

    key: Literal["file", "credential", "keyring", "passphrase"] = "file"   # of a store that is made anew
    encrypts: Literal["texts", "all"] = "texts"    # of it: texts and metadata, or vectors and columns as well
    passages: int = 5                    # recalled for a request that asks for memory


class PluginsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[plugins]: can narrow what the grants store allows, never widen it."""

    only: tuple[str, ...] = ()           # when set, no other plugin is loaded
    disabled: tuple[str, ...] = ()


class ScheduleSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[schedule]: five-field cron expressions in local time; empty = never."""

    housekeeping: str = "17 3 * * *"     # verify models, remove leftovers, rotate the log, compact memories


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of daemon.toml."""

    daemon: DaemonSection = DaemonSection()
    model: ModelSection = ModelSection()
    limits: LimitsSection = LimitsSection()
    memory: MemorySection = MemorySection()
    plugins: PluginsSection = PluginsSection()
    schedule: ScheduleSection = ScheduleSection()


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The folders of one AIOS home; all owner-only."""

    config: Path     # daemon.toml
    data: Path       # models, plugins
    state: Path      # logs, grants, tokens, quarantine
    cache: Path      # what can be fetched again
    runtime: Path    # socket, lock, owner token

    @classmethod
    def find(cls) -> Places:
        """`AIOS_HOME` when set, else the XDG directories."""
        if home := os.environ.get("AIOS_HOME"):
            root = Path(home).expanduser().absolute()
            return cls(config=root / "config", data=root / "data", state=root / "state",
                       cache=root / "cache", runtime=root / "run")
        user = PlatformDirs("aios", appauthor=False)
        session = os.environ.get("XDG_RUNTIME_DIR", "")
        # Without a login session (cron, a bare container) the usual fallback is a guessable name under a
        # shared folder; a folder of our own state is safer.
        runtime = Path(session) / "aios" if Path(session).is_absolute() else user.user_state_path / "run"
        return cls(config=user.user_config_path, data=user.user_data_path, state=user.user_state_path,
                   cache=user.user_cache_path, runtime=runtime)

    @property
    def config_file(self) -> Path:
        return self.config / "daemon.toml"

    @property
    def socket(self) -> Path:
        return self.runtime / "aios.sock"

    @property
    def lock(self) -> Path:
        return self.runtime / "daemon.lock"

    @property
    def owner_token(self) -> Path:
        return self.runtime / "owner.token"

    @property
    def models(self) -> Path:
        return self.data / "models"

    @property
    def plugins(self) -> Path:
        return self.data / "plugins"

    @property
    def memory(self) -> Path:
        return self.data / "memory"

    @property
    def log_file(self) -> Path:
        return self.state / "daemon.log"

    def create(self) -> None:
        """Make every folder, owner-only; raises ConfigError where that cannot be had."""
        if len(os.fsencode(self.socket)) > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(f"the socket path is longer than {SOCKET_PATH_BYTES_MAX} bytes: {self.socket}",
                              remedy="set AIOS_HOME or XDG_RUNTIME_DIR to a shorter path")
        for folder in (self.config, self.data, self.state, self.cache, self.runtime, self.models, self.plugins):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"cannot create {folder}: {error.strerror}",
                                  remedy="set AIOS_HOME to a folder you own") from error
            info = folder.stat()
            if info.st_uid != os.getuid():
                raise ConfigError(f"{folder} belongs to another user", remedy="set AIOS_HOME to a folder you own")
            if info.st_mode & 0o077:
                folder.chmod(0o700)


def load(path: Path) -> Config:
    """Read daemon.toml; a missing file means all defaults. Raises ConfigError naming the key."""
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", remedy="check its permissions") from error
    if len(raw) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {CONFIG_BYTES_MAX} bytes", remedy="keep only settings in it")
    return parse(raw, str(path))


def parse(raw: bytes, where: str = "daemon.toml") -> Config:
    """Check the bytes of a daemon.toml; raises ConfigError naming the key."""
    remedy = "the annotated daemon.toml at the top of the repository lists every key"
    try:
        config = msgspec.convert(tomllib.loads(raw.decode("utf-8")), Config)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{where}: {error}", remedy=remedy) from error
    for section in ("daemon", "model", "limits", "memory"):
        for name in getattr(config, section).__struct_fields__:
            value = getattr(getattr(config, section), name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                least = 0 if name in ("threads", "drain_seconds") else 1e-3
                if not least <= value < 1e9:
                    raise ConfigError(f"{where}: {section}.{name} is {value}; it must be positive", remedy=remedy)
    return config
