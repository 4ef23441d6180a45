"""`aios bench daemon`: how quick, small and fair the daemon is, measured from outside, on real requests.

Each figure is taken on a daemon of its own in a scratch home. Steps are counted by the worker's own counter on
its shared page, memory and CPU time by the kernel.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from aios.errors import AiosError
from aios.ipc.client import AsyncClient, Client, connect_async
from aios.lab.report import LabOptions, Report, Row
from aios.lab.scratch_home import ScratchDaemon, children, cpu_seconds, scratch_daemon
from aios.messages import State
from aios.service.child_link import resident_mb

SENTENCE = "The quick brown fox jumps over the lazy dog beside the quiet river."
PROMPT = "Once upon a time there was"
TOKENS = 32                       # of a diffusion under load
LONG = {"length": 128, "steps": 4096, "sampler": "ancestral"}   # runs for as long as it is needed
CLIENTS = 32
KEEP_ALIVE_SECONDS = 2.0
NO_ENCODER = "minilm is not installed: aios models pull minilm"


def run(options: LabOptions) -> Report:
    """All rows of the daemon; a full run takes about two minutes."""
    parts: list[tuple[str, Callable[[LabOptions], list[Row]]]] = [
        ("command line", _command_line), ("start", _start), ("idle and round trip", _idle),
        ("32 clients", _clients), ("cancel", _cancel), ("encode while diffusing", _encode_wait),
        ("memory given back", _memory)]
    rows: list[Row] = []
    for index, (label, measure) in enumerate(parts):
        options.progress(label, index / len(parts))
        rows += measure(options)
    return Report.of("daemon", rows, options)


def _start(options: LabOptions) -> list[Row]:
    """From before the process is made until a client has said hello."""
    taken = []
    with scratch_daemon(start=False) as daemon:
        for _ in range(3 if options.quick else 15):
            began = time.perf_counter()
            daemon.start()
            with daemon.connect():
                taken.append((time.perf_counter() - began) * 1e3)
            daemon.stop()
    return [Row(metric="daemon_ready_ms", value=_round(statistics.median(taken)), unit="ms", better="lower",
                must=1500, aim=600, n=len(taken), interval=(_round(min(taken)), _round(max(taken))))]


def _command_line(options: LabOptions) -> list[Row]:
    """The whole process of `aios --help`, as a shell sees it."""
    script = Path(sys.executable).with_name("aios")
    found = str(script) if script.exists() else shutil.which("aios")
    command = [found] if found else [sys.executable, "-m", "aios"]
    taken = []
    for number in range(6 if options.quick else 31):
        began = time.perf_counter()
        subprocess.run([*command, "--help"], stdout=subprocess.DEVNULL, check=True)
        if number:       # the first one fills the page cache
            taken.append((time.perf_counter() - began) * 1e3)
    return [Row(metric="cli_help_ms", value=_round(statistics.median(taken)), unit="ms", better="lower",
                must=250, aim=120, n=len(taken))]


def _idle(options: LabOptions) -> list[Row]:
    """The parent after it has served, with its worker loaded and a client connected, while nobody asks anything."""
    seconds, pings = (5.0, 500) if options.quick else (30.0, 5000)
    with scratch_daemon(models=["minilm"]) as daemon, daemon.connect() as client:
        _warm(daemon, client)
        for _ in range(100):
            client.ping()
        taken = []
        for _ in range(pings):
            began = time.perf_counter()
            client.ping()
            taken.append((time.perf_counter() - began) * 1e6)
        time.sleep(1.0)
        before = cpu_seconds(daemon.pid)
        time.sleep(seconds)
        percent = (cpu_seconds(daemon.pid) - before) / seconds * 100
        memory = resident_mb(daemon.pid)
    return [
        Row(metric="parent_idle_rss_mb", value=memory, unit="MB", better="lower", must=60, aim=40, n=1,
            reason=None if memory else "the daemon ended"),
        Row(metric="parent_idle_cpu_percent", value=round(percent, 4), unit="% of a core", better="lower", must=0.5,
            aim=0.1, n=1),
        Row(metric="ping_rtt_us", value=_round(statistics.median(taken)), unit="us", better="lower", must=1000,
            aim=250, n=len(taken)),
    ]


def _clients(options: LabOptions) -> list[Row]:
    """32 clients at once, each asking again as soon as it was answered; half encode, half diffuse 32 tokens."""
    seconds = 8.0 if options.quick else 30.0
    with scratch_daemon(models=["minilm"]) as daemon:
        if not daemon.has_model("minilm"):
            return [Row(metric=metric, value=None, unit=unit, better="lower", must=must, aim=aim, reason=NO_ENCODER)
                    for metric, unit, must, aim in (("clients32_lost", "requests", 0, 0),
                                                    ("clients32_p99_over_p50", "ratio", 10, 4))]
        with daemon.connect() as client:
            _warm(daemon, client)
        taken, lost = asyncio.run(_load(daemon, seconds, options.seed))
    ratio = {verb: _percentile(times, 99) / _percentile(times, 50) for verb, times in taken.items()}
    answered = sum(len(times) for times in taken.values())
    rows = [Row(metric="clients32_lost", value=lost, unit="requests", better="lower", must=0, aim=0, n=answered),
            Row(metric="clients32_p99_over_p50", value=round(max(ratio.values()), 3), unit="ratio", better="lower",
                must=10, aim=4, n=answered)]
    for verb, times in taken.items():
        rows.append(Row(metric=f"clients32_{verb}_p50_ms", value=_round(_percentile(times, 50)), unit="ms",
                        better="lower", n=len(times)))
    return rows


async def _load(daemon: ScratchDaemon, seconds: float, seed: int) -> tuple[dict[str, list[float]], int]:
    """Latencies in ms per verb of all requests begun within `seconds`, and how many were not answered rightly."""
    until = time.perf_counter() + seconds
    taken: dict[str, list[float]] = {"encode": [], "diffuse": []}
    lost = 0

    async def serve(number: int, client: AsyncClient) -> None:
        nonlocal lost
        verb = "encode" if number % 2 else "diffuse"
        count = 0
        while time.perf_counter() < until:
            began = time.perf_counter()
            try:
                if verb == "encode":
                    right = (await client.encode([f"{SENTENCE} {number} {count}"])).shape[0] == 1
                else:
                    answer = await client.diffuse(PROMPT, length=TOKENS, seed=seed + 1000 * count + number)
                    right = bool(answer.parts)
            except AiosError:
                right = False
            lost += not right
            taken[verb].append((time.perf_counter() - began) * 1e3)
            count += 1

    clients = [await connect_async(daemon.places.socket) for _ in range(CLIENTS)]
    await asyncio.gather(*(serve(number, client) for number, client in enumerate(clients)))
    for client in clients:
        await client.close()
    return taken, lost


def _cancel(options: LabOptions) -> list[Row]:
    """Steps the worker does after the daemon acknowledged a cancellation, until it is free; the worst of all trials."""
    steps, waits = [], []
    with scratch_daemon() as daemon, daemon.connect() as client, daemon.connect() as other:
        _warm(daemon, client)
        for trial in range(5 if options.quick else 40):
            states = client.stream("diffuse", prompt=PROMPT, seed=options.seed + trial, **LONG)
            for _ in range(2 + trial % 5):
                next(states)
            began = time.perf_counter()
            states.close()             # sends the cancellation
            other.ping()               # what was sent before on this machine has arrived
            client.ping()              # the daemon has passed it on
            at = _steps(daemon)
            while (beat := daemon.beat()) is not None and beat.label != "idle":
                time.sleep(0.0005)
            waits.append((time.perf_counter() - began) * 1e3)
            steps.append(_steps(daemon) - at)
    return [Row(metric="cancel_steps", value=max(steps), unit="steps", better="lower", must=1, aim=1, n=len(steps)),
            Row(metric="cancel_wait_ms", value=_round(statistics.median(waits)), unit="ms", better="lower",
                n=len(waits))]


def _encode_wait(options: LabOptions) -> list[Row]:
    """Latency of encoding one sentence while a long diffusion runs, and alone."""
    count = 30 if options.quick else 300
    shape = {"metric": "encode_wait_during_diffuse_ms", "unit": "ms", "better": "lower", "must": 150, "aim": 40}
    with scratch_daemon(models=["minilm"]) as daemon, daemon.connect() as busy, daemon.connect() as client:
        if not daemon.has_model("minilm"):
            return [Row(**shape, value=None, reason=NO_ENCODER)]    # type: ignore[arg-type]
        _warm(daemon, client)
        alone = [_timed(lambda: client.encode([SENTENCE])) for _ in range(count)]
        waits: list[float] = []
        while len(waits) < count:
            states = busy.stream("diffuse", prompt=PROMPT, seed=options.seed + len(waits), **LONG)
            for item in states:
                if not isinstance(item, State) or len(waits) >= count:
                    break
                waits.append(_timed(lambda: client.encode([SENTENCE])))
            states.close()
    return [Row(**shape, value=_round(_percentile(waits, 95)), n=len(waits)),    # type: ignore[arg-type]
            Row(metric="encode_alone_ms", value=_round(_percentile(alone, 95)), unit="ms", better="lower",
                n=len(alone))]


def _memory(options: LabOptions) -> list[Row]:
    """Share of the memory that serving cost which is back after the keep-alive, parent and children together."""
    settings = {"model": {"keep_alive_seconds": KEEP_ALIVE_SECONDS}}
    with scratch_daemon(models=["minilm"], settings=settings) as daemon, daemon.connect() as client:
        before = _tree_mb(daemon.pid)
        _warm(daemon, client)
        peak = _tree_mb(daemon.pid)
        until = time.monotonic() + KEEP_ALIVE_SECONDS + 20
        while children(daemon.pid) and time.monotonic() < until:
            time.sleep(0.05)
        after = _tree_mb(daemon.pid)
    returned = 100 * (peak - after) / (peak - before)
    return [Row(metric="rss_returned_percent", value=round(returned, 2), unit="%", better="higher", must=95, aim=99,
                n=1),
            Row(metric="worker_rss_mb", value=_round(peak - before), unit="MB", better="lower", n=1)]


def _warm(daemon: ScratchDaemon, client: Client) -> None:
    """Start the worker and open what will be used."""
    client.diffuse(PROMPT, length=8, seed=1)
    if daemon.has_model("minilm"):
        client.encode([SENTENCE])


def _steps(daemon: ScratchDaemon) -> int:
    beat = daemon.beat()
    if beat is None:
        raise RuntimeError("the worker ended while it was measured")
    return beat.steps


def _tree_mb(pid: int) -> float:
    return sum(resident_mb(one) or 0.0 for one in (pid, *children(pid)))


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def _percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)] if ordered else 0.0


def _round(value: float) -> float:
    return round(value, 3)
