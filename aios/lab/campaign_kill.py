"""`aios eval campaign kill`: kill -9 of daemon and worker at random moments while busy; every start must be clean.

What the daemon acknowledged (tokens made and revoked) is written down here, outside the process under test. A
start or recovery is unclean when anything is wrong after it: a start that fails, a stale socket or lock, a worker
without its parent, an acknowledged token that is lost or back, leftovers, a request without its error, or a
daemon that does not serve the next one.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from aios.errors import AiosError, DaemonDown, WorkerDied
from aios.ipc.client import Client
from aios.lab.report import LabOptions, Report, Row
from aios.lab.scratch_home import ScratchDaemon, children, scratch_daemon

KILLS = 210
KILLS_QUICK = 8
BUSY_SECONDS_MAX = 60.0        # until the worker is at the request; it may have to start first
DELAY_SECONDS_MAX = 0.4        # from being busy to the kill: some hundred denoising steps
COLD_SHARE = 0.3               # of kills that come while the worker is still starting
ORPHAN_SECONDS_MAX = 5.0       # a worker that outlives its daemon for longer is an orphan
SERVED_SECONDS_MAX = 120.0     # the next request, with the start of a worker in it
LONG = {"length": 128, "steps": 4096, "sampler": "ancestral"}


class Unclean(Exception):
    """What was wrong after a kill."""


@dataclass(slots=True)
class Account:
    """What the daemon acknowledged, kept outside of it."""

    tokens: set[str] = field(default_factory=set)
    pending: set[str] = field(default_factory=set)     # asked for, not acknowledged: may be there or not
    made: int = 0


@dataclass(slots=True)
class Busy:
    """A long request in a thread of its own, and how it ended."""

    daemon: ScratchDaemon
    prompt: str
    seed: int
    outcome: AiosError | None = None
    answered: bool = False
    thread: threading.Thread = field(init=False)

    def start(self) -> None:
        """Ask; the thread ends with the request."""
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        try:
            with self.daemon.connect() as client:
                client.diffuse(self.prompt, seed=self.seed, **LONG)    # type: ignore[arg-type]
            self.answered = True
        except AiosError as error:
            self.outcome = error


def run(options: LabOptions) -> Report:
    """All kills; a full run takes about twenty minutes, a quick one about one."""
    kills = KILLS_QUICK if options.quick else KILLS
    outcome = campaign(kills, options.seed, options.progress)
    unclean = outcome.unclean
    rows = [
        Row(metric="kills", value=outcome.kills, unit="kills", better="higher", must=None if options.quick else 200,
            n=outcome.kills),
        Row(metric="unclean_starts", value=len(unclean), unit="starts", better="lower", must=0, n=outcome.kills,
            reason="; ".join(unclean[:5]) or None),
        Row(metric="kills_of_daemon", value=len(outcome.starts_ms), unit="kills", better="higher"),
        Row(metric="kills_of_worker", value=len(outcome.recoveries_ms), unit="kills", better="higher"),
    ]
    for metric, taken in (("restart_ms", outcome.starts_ms), ("next_answer_ms", outcome.recoveries_ms)):
        if taken:
            rows.append(Row(metric=metric, value=round(statistics.median(taken), 1), unit="ms", better="lower",
                            n=len(taken)))
    return Report.of("kill", rows, options)


@dataclass(slots=True)
class Outcome:
    """Kills that hit a busy victim, what was unclean after them, and how long the recoveries took."""

    kills: int = 0
    unclean: list[str] = field(default_factory=list)
    starts_ms: list[float] = field(default_factory=list)       # of a daemon after its kill
    recoveries_ms: list[float] = field(default_factory=list)   # from the worker's kill to the next answer


def campaign(kills: int, seed: int, progress: Callable[[str, float], None]) -> Outcome:
    """Kill so many times; victims, moments, prompts and seeds follow from `seed`."""
    rng = random.Random(seed)
    outcome, account = Outcome(), Account()
    with scratch_daemon() as daemon:
        while outcome.kills < kills:
            progress(f"kill {outcome.kills + 1} of {kills}", outcome.kills / kills)
            victim = "daemon" if rng.random() < 0.5 else "worker"
            try:
                _one(daemon, victim, rng, account, outcome)
            except (Unclean, AiosError, OSError) as fault:
                outcome.unclean.append(f"kill {outcome.kills} ({victim}): {fault}")
                _begin_anew(daemon)
    return outcome


def _one(daemon: ScratchDaemon, victim: str, rng: random.Random, account: Account, outcome: Outcome) -> None:
    busy = Busy(daemon, f"Once upon a time number {rng.randrange(10**9)}", rng.randrange(2**31))
    busy.start()
    cold = rng.random() < COLD_SHARE
    worker = _wait_busy(daemon, busy, cold=cold)
    with daemon.connect() as client:
        _make_token(client, account, rng)
        time.sleep(rng.random() * DELAY_SECONDS_MAX)
        if busy.answered or busy.outcome is not None or (victim == "worker" and worker not in children(daemon.pid)):
            busy.thread.join(BUSY_SECONDS_MAX)
            return                        # not busy any more: this one does not count
        if victim == "daemon" and rng.random() < 0.5:
            _ask_for_token(client, account)
        os.kill(daemon.pid if victim == "daemon" else worker, signal.SIGKILL)
    killed = time.perf_counter()
    outcome.kills += 1
    if victim == "daemon":
        _after_daemon(daemon, worker, account)
        outcome.starts_ms.append((time.perf_counter() - killed) * 1e3)
        _judge(busy, DaemonDown)
        if rng.random() < 0.5:
            return                        # the next kill finds no worker yet
    else:
        _judge(busy, WorkerDied, may_survive=cold)
    _serve(daemon, rng)
    if victim == "worker":
        outcome.recoveries_ms.append((time.perf_counter() - killed) * 1e3)
        _check_tokens(daemon, account)


def _wait_busy(daemon: ScratchDaemon, busy: Busy, *, cold: bool) -> int:
    """Wait until there is a worker that starts (cold) or is at the request; its pid."""
    until = time.monotonic() + BUSY_SECONDS_MAX
    while time.monotonic() < until:
        beat, found = daemon.beat(), children(daemon.pid)
        if found and beat is not None and (cold or beat.label.startswith("request:")):
            return found[0]
        if busy.outcome is not None:
            raise Unclean(f"the request failed before the kill: {busy.outcome}")
        time.sleep(0.002)
    raise Unclean("the worker did not become busy")


def _make_token(client: Client, account: Account, rng: random.Random) -> None:
    """Have one token made, sometimes one revoked, and write down what was acknowledged."""
    account.made += 1
    name = f"t{account.made}"
    client.call("tokens.new", name=name, scopes=["ask"])
    account.tokens.add(name)
    if len(account.tokens) > 3 or rng.random() < 0.3:
        name = rng.choice(sorted(account.tokens))
        client.call("tokens.revoke", name=name)
        account.tokens.discard(name)


def _ask_for_token(client: Client, account: Account) -> None:
    """Ask without waiting, so that the kill may come in the middle of the write."""
    account.made += 1
    name = f"t{account.made}"
    account.pending.add(name)

    def ask() -> None:
        with suppress(AiosError, OSError):
            client.call("tokens.new", name=name, scopes=["ask"])

    threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.0005)


def _after_daemon(daemon: ScratchDaemon, worker: int, account: Account) -> None:
    """The first start after the kill must work and find everything in order."""
    assert daemon.launched is not None
    daemon.launched.process.wait()
    daemon.start()
    _until(lambda: not Path(f"/proc/{worker}").exists(), ORPHAN_SECONDS_MAX, f"worker {worker} outlived its daemon")
    _check_tokens(daemon, account)
    leftovers = [path.name for folder in (daemon.places.state, daemon.places.runtime)
                 for path in folder.glob(".*.tmp")]
    if leftovers:
        raise Unclean(f"leftovers: {leftovers}")
    present = {path.name for path in daemon.places.runtime.iterdir()}
    wanted = {daemon.places.socket.name, daemon.places.lock.name, daemon.places.owner_token.name}
    if present != wanted:
        raise Unclean(f"the runtime folder holds {sorted(present)}")
    if daemon.places.lock.read_text().strip() != str(daemon.pid):
        raise Unclean("the lock names another process")


def _check_tokens(daemon: ScratchDaemon, account: Account) -> None:
    with daemon.connect() as client:
        known = {str(token["name"]) for token in client.call("tokens.list")}
        if lost := account.tokens - known:
            raise Unclean(f"acknowledged tokens are lost: {sorted(lost)}")
        if back := known - account.tokens - account.pending:
            raise Unclean(f"revoked tokens are back: {sorted(back)}")
        for name in sorted(known & account.pending):
            client.call("tokens.revoke", name=name)
        account.pending.clear()


def _judge(busy: Busy, wanted: type[AiosError], *, may_survive: bool = False) -> None:
    """The request that was running got its clear error.

    One that a starting worker had not been given yet may survive instead: the next worker answers it.
    """
    busy.thread.join(BUSY_SECONDS_MAX)
    if busy.thread.is_alive():
        raise Unclean("the running request got no answer")
    if not (busy.answered and may_survive) and not isinstance(busy.outcome, wanted):
        raise Unclean(f"the running request got {busy.outcome!r}, not {wanted.__name__}")


def _serve(daemon: ScratchDaemon, rng: random.Random) -> None:
    """The next request works by itself."""
    with daemon.connect(SERVED_SECONDS_MAX) as client:
        answer = client.diffuse("The next one", length=8, seed=rng.randrange(2**31))
    if not answer.parts:
        raise Unclean("the next request has an empty answer")


def _begin_anew(daemon: ScratchDaemon) -> None:
    """After an unclean start: whatever is left of this daemon is ended, so that the next kill is judged alone."""
    assert daemon.launched is not None
    if daemon.launched.process.poll() is None:
        daemon.launched.process.kill()
        daemon.launched.process.wait()
    daemon.start()


def _until(done: Callable[[], bool], seconds: float, otherwise: str) -> None:
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise Unclean(otherwise)
        time.sleep(0.005)
