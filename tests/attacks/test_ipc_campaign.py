"""The small version of `aios eval campaign ipc`: a fixed seed, a real daemon, a few hundred attacks."""

from __future__ import annotations

import asyncio
import random
import stat
import time

import pytest

from aios.ipc.stream import Request, encode
from aios.lab import campaign_ipc
from aios.lab.ipc_attacks import KINDS, Attack, attack, deaf
from aios.lab.report import LabOptions
from aios.lab.scratch_home import scratch_daemon

SMALL = 400


async def small_work(socket, client):
    """Honest clients that need no model."""
    async def asks() -> bool:
        return await client.ping() == "pong" and (await client.status()).state == "ready"

    return [asks]


def test_a_small_campaign_breaks_nothing_and_disturbs_nobody(monkeypatch):
    monkeypatch.setattr(campaign_ipc, "ATTACKS", SMALL)
    monkeypatch.setattr(campaign_ipc, "honest_work", small_work)
    report = campaign_ipc.run(LabOptions(seed=20))
    rows = {row.metric: row for row in report.rows}
    assert rows["attacks"].value == SMALL
    for metric in ("unanswered", "crashes", "honest_failed"):
        assert rows[metric].value == 0, rows[metric].reason
    assert rows["honest_failed"].n > 10
    assert rows["growth_mb"].value is not None


def test_one_client_that_floods_and_never_reads_delays_nobody():
    async def talk(target: campaign_ipc.Target, ping) -> float:
        flood = asyncio.create_task(campaign_ipc.strike(target, deaf(random.Random(1))))
        longest = 0.0
        while not flood.done():
            started = time.monotonic()
            await asyncio.to_thread(ping)
            longest = max(longest, time.monotonic() - started)
            await asyncio.sleep(0.02)
        await flood
        return longest

    with scratch_daemon(settings={"limits": {"slow_client_seconds": 1.0}}) as daemon, daemon.connect() as client:
        places = daemon.places
        assert stat.S_IMODE(places.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(places.runtime.stat().st_mode) == 0o700
        assert stat.S_IMODE(places.owner_token.stat().st_mode) == 0o600
        target = campaign_ipc.Target(str(places.socket), places.owner_token.read_text().strip())
        assert asyncio.run(talk(target, client.ping)) < 2.0


def test_an_attack_is_made_from_its_seed_and_number_alone():
    assert [attack(3, number) for number in range(50)] == [attack(3, number) for number in range(50)]
    assert attack(3, 0) != attack(4, 0)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_kind_of_attack_deserves_an_answer_or_a_close(make):
    for seed in range(20):
        blow = make(random.Random(seed))
        asked, closes, partial = campaign_ipc.foresee(blow.payload)
        assert asked or closes or partial or blow.manner == "half-close", blow.payload[:80]


def test_the_judge_finds_a_daemon_that_accepts_what_it_should_refuse(tmp_path):
    """The campaign must be able to fail: against a server that answers everything with success, it does."""
    async def gullible(reader, writer) -> None:
        while await reader.read(1 << 16):
            writer.write(b"\x94\x01\x07\xc0\xc3")          # [1, 7, nil, true]
        writer.close()

    async def talk(blow: Attack) -> None:
        server = await asyncio.start_unix_server(gullible, str(tmp_path / "s"))
        try:
            async with asyncio.timeout(2):
                await campaign_ipc.strike(campaign_ipc.Target(str(tmp_path / "s"), ""), blow)
        finally:
            server.close()

    with pytest.raises(campaign_ipc.Unanswered, match="accepted"):
        asyncio.run(talk(Attack(kind="x", payload=encode(Request(msgid=7, verb="x", params=[])))))
    with pytest.raises(TimeoutError):
        asyncio.run(talk(Attack(kind="x", payload=b"\xc1")))
