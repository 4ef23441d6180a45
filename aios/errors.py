"""Every error AIOS raises on purpose, with a stable wire code and the remedy.

    AiosError
    ├── BadInput                 input.invalid        the caller's value is wrong
    │   ├── LimitExceeded        input.too_large      a cap was hit before anything was allocated
    │   └── ConfigError          config.invalid       daemon.toml or the environment
    ├── ProtocolError            protocol.invalid     bytes on the socket that are no MessagePack-RPC
    │   └── UnknownVerb          protocol.unknown_verb
    ├── AuthError                auth.refused         token, scope or peer identity
    ├── DaemonError              daemon.failed
    │   ├── DaemonDown           daemon.down          no daemon answers on the socket
    │   ├── AlreadyRunning       daemon.running       a second instance
    │   ├── Busy                 daemon.busy          the bounded queue is full
    │   ├── Draining             daemon.draining      the daemon is stopping
    │   ├── WorkerDied           worker.died          the model worker ended under this request
    │   ├── CrashLoop            worker.crash_loop    the worker keeps dying
    │   └── Poisonous            request.poisonous    this very request killed the worker twice
    ├── Cancelled                request.cancelled
    ├── DeadlineExceeded         request.deadline
    ├── ModelError               model.failed
    │   ├── ModelMissing         model.missing        not installed here
    │   ├── ModelCorrupt         model.corrupt        hash, size or structure is wrong
    │   └── UnknownArchitecture  model.architecture
    ├── CardError                card.failed
    │   ├── ReleaseMismatch      card.release_mismatch  trained for another release or kind of model
    │   └── CardMisfit           card.misfit          its matrices are not those of the network
    ├── PluginError              plugin.failed        plugin code raised; it is quarantined
    │   ├── ManifestError        plugin.manifest
    │   ├── NotAllowed           plugin.not_allowed   no permission for this content hash
    │   └── NoHead               plugin.no_head       no plugin offers the modality
    ├── MemoryStoreError         memory.failed        the store of memories
    │   ├── MemoryCorrupt        memory.corrupt       what was acknowledged is damaged
    │   ├── MemoryStopped        memory.stopped       a sync failed; nothing more is written
    │   ├── MemoryBusy           memory.busy          another process writes the store
    │   ├── MemoryDied           memory.died          the memory process ended under this request
    │   ├── EncoderChanged       memory.encoder       the memories' vectors are of another encoder
    │   └── KeyRefused           memory.key           the secret is missing or another one
    ├── DownloadError            download.failed
    └── Internal                 internal             a defect of AIOS; details are in the log
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE = 64, 65, 66, 69
EX_SOFTWARE, EX_CANTCREAT, EX_TEMPFAIL, EX_NOPERM, EX_CONFIG = 70, 73, 75, 77, 78


class AiosError(Exception):
    """The root: a message for people, a remedy they can act on, details for programs."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = EX_SOFTWARE

    def __init__(self, message: str, *, remedy: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details: dict[str, Any] = details

    def to_wire(self) -> list[Any]:
        """The array `[code, message, remedy, details]` that clients receive."""
        return [self.code, self.message, self.remedy, self.details]


class BadInput(AiosError):
    """A value the caller gave cannot be used."""

    code = "input.invalid"
    exit_code = EX_DATAERR


class LimitExceeded(BadInput):
    """The input is larger than the stated limit; nothing was allocated for it."""

    code = "input.too_large"


class ConfigError(BadInput):
    """daemon.toml or the environment cannot be used as it is."""

    code = "config.invalid"
    exit_code = EX_CONFIG


class ProtocolError(AiosError):
    """The bytes received are not the protocol; the connection is closed."""

    code = "protocol.invalid"
    exit_code = EX_DATAERR


class UnknownVerb(ProtocolError):
    """No verb of that name exists in this protocol version."""

    code = "protocol.unknown_verb"


class AuthError(AiosError):
    """The peer, its token or its scope does not permit this."""

    code = "auth.refused"
    exit_code = EX_NOPERM


class DaemonError(AiosError):
    """The daemon could not do its part."""

    code = "daemon.failed"
    exit_code = EX_UNAVAILABLE


class DaemonDown(DaemonError):
    """No daemon answers on the socket."""

    code = "daemon.down"


class AlreadyRunning(DaemonError):
    """Another daemon holds the lock of this home."""

    code = "daemon.running"


class Busy(DaemonError):
    """The queue is full; nothing of this request was started."""

    code = "daemon.busy"
    exit_code = EX_TEMPFAIL


class Draining(DaemonError):
    """The daemon is stopping and takes no new requests."""

    code = "daemon.draining"
    exit_code = EX_TEMPFAIL


class WorkerDied(DaemonError):
    """The model worker ended while this request was running."""

    code = "worker.died"
    exit_code = EX_TEMPFAIL


class CrashLoop(DaemonError):
    """The model worker died several times in a row without finishing a request."""

    code = "worker.crash_loop"


class Poisonous(DaemonError):
    """This very request was running at two deaths of the worker; it is refused."""

    code = "request.poisonous"
    exit_code = EX_DATAERR


class Cancelled(AiosError):
    """The request was cancelled by its client."""

    code = "request.cancelled"
    exit_code = EX_TEMPFAIL


class DeadlineExceeded(AiosError):
    """The request's deadline passed before it was finished."""

    code = "request.deadline"
    exit_code = EX_TEMPFAIL


class ModelError(AiosError):
    """A model could not be opened or used."""

    code = "model.failed"
    exit_code = EX_DATAERR


class ModelMissing(ModelError):
    """The model is not installed here."""

    code = "model.missing"
    exit_code = EX_NOINPUT


class ModelCorrupt(ModelError):
    """A model file's hash, size or structure is wrong."""

    code = "model.corrupt"


class UnknownArchitecture(ModelError):
    """The model's architecture is none of those AIOS implements."""

    code = "model.architecture"


class CardError(AiosError):
    """An adapter cannot be used."""

    code = "card.failed"
    exit_code = EX_DATAERR


class ReleaseMismatch(CardError):
    """The adapter was trained for another release or kind of model; it cannot be worn here."""

    code = "card.release_mismatch"


class CardMisfit(CardError):
    """The adapter's matrices are not of the network's names and shapes."""

    code = "card.misfit"


class PluginError(AiosError):
    """A plugin's code raised; the plugin is quarantined, the daemon goes on."""

    code = "plugin.failed"


class ManifestError(PluginError):
    """A plugin's manifest is missing, malformed or asks for what does not exist."""

    code = "plugin.manifest"
    exit_code = EX_DATAERR


class NotAllowed(PluginError):
    """The owner has not allowed this plugin's present content."""

    code = "plugin.not_allowed"
    exit_code = EX_NOPERM


class NoHead(PluginError):
    """No healthy plugin offers a head for the modality."""

    code = "plugin.no_head"
    exit_code = EX_UNAVAILABLE


class MemoryStoreError(AiosError):
    """The store of memories could not do its part."""

    code = "memory.failed"
    exit_code = EX_UNAVAILABLE


class MemoryCorrupt(MemoryStoreError):
    """A file of the store is damaged or missing; nothing was guessed."""

    code = "memory.corrupt"
    exit_code = EX_DATAERR


class MemoryStopped(MemoryStoreError):
    """A sync failed: nobody knows what the disk holds, so nothing is written until the store is opened again."""

    code = "memory.stopped"


class MemoryBusy(MemoryStoreError):
    """Another process is the writer of this store."""

    code = "memory.busy"
    exit_code = EX_TEMPFAIL


class MemoryDied(MemoryStoreError):
    """The memory process ended while this request was on its way: it may have been done or not."""

    code = "memory.died"
    exit_code = EX_TEMPFAIL


class EncoderChanged(MemoryStoreError):
    """The vectors of the memories were made by an encoder that this one cannot stand for."""

    code = "memory.encoder"
    exit_code = EX_CONFIG


class KeyRefused(MemoryStoreError):
    """The secret that opens the store is missing, too weak or another one."""

    code = "memory.key"
    exit_code = EX_NOPERM


class DownloadError(AiosError):
    """A download failed; nothing was left behind."""

    code = "download.failed"
    exit_code = EX_UNAVAILABLE


class Internal(AiosError):
    """A defect of AIOS itself."""

    code = "internal"


def _tree(root: type[AiosError]) -> Iterator[type[AiosError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def from_wire(error: object) -> AiosError:
    """Rebuild the error a daemon sent; unknown codes become the nearest known ancestor or AiosError."""
    if not isinstance(error, list | tuple) or len(error) < 2 or not isinstance(error[0], str):
        return Internal(f"the daemon sent an error of unknown shape: {str(error)[:200]}")
    code, message = error[0], str(error[1])
    remedy = str(error[2]) if len(error) > 2 else ""
    raw = error[3] if len(error) > 3 and isinstance(error[3], Mapping) else {}
    details = {str(k): v for k, v in raw.items() if str(k) not in ("message", "remedy")}
    # Internal shares the root's code and is the right class for it.
    known = {kind.code: kind for kind in _tree(AiosError)}
    return known.get(code, AiosError)(message, remedy=remedy, **details)
