"""Two MessagePack-RPC clients from PyPI that nobody here wrote, against a real daemon."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator

import aio_msgpack_rpc
import pytest
from aio_msgpack_rpc.error import RPCResponseError

from aios.lab.scratch_home import ScratchDaemon, scratch_daemon

with warnings.catch_warnings():
    warnings.simplefilter("ignore")       # theirs, at import
    from pynvim.msgpack_rpc import socket_session

TEXT = "written by a fake head"
DIFFUSE = {"prompt": "x", "modality": "code", "length": 30, "steps": 10, "seed": 1}
PLUGIN = {
    "plugin.toml": 'name = "fake"\nversion = "1"\napi = 1\nruns_in = "worker"\ncapabilities = ["heads"]\n',
    "__init__.py": f"""\
from aios.hookspecs import hookimpl
from aios.testing import FakeHead


@hookimpl
def aios_heads():
    return [FakeHead({TEXT!r}, modality="code")]
"""}


@pytest.fixture(scope="module")
def daemon() -> Iterator[ScratchDaemon]:
    """A daemon whose head for code always writes the same text."""
    with scratch_daemon(start=False) as daemon:
        folder = daemon.places.plugins / "fake"
        folder.mkdir(mode=0o700)
        for name, content in PLUGIN.items():
            (folder / name).write_text(content)
            (folder / name).chmod(0o600)
        daemon.start()
        with daemon.connect() as owner:
            found = owner.call("plugins.allow", name="fake")
            owner.call("plugins.allow", name="fake", confirm=found["hash"])
        yield daemon


@pytest.fixture
def token(daemon) -> str:
    return daemon.places.owner_token.read_text().strip()


@pytest.fixture
def session(daemon):
    session = socket_session(str(daemon.places.socket))
    yield session
    # Its close() ends the loop before the socket is closed; the loss of the connection stops the loop.
    session.loop._transport.close()
    session.loop._loop.run_forever()
    session.close()


def test_pynvim_says_hello_and_asks(session, token):
    assert session.request("ping") == "pong"
    assert "ask" in session.request("hello", {"token": token})["scopes"]
    assert session.request("status")["state"] == "ready"


def test_pynvim_receives_the_states_of_a_diffusion(session, token):
    session.request("hello", {"token": token})
    answer = session.request("diffuse", {**DIFFUSE, "stream": True})
    assert answer["parts"][0]["text"] == TEXT
    states = []
    while len(states) < 1 or states[-1]["step"] < states[-1]["steps"]:
        kind, method, (msgid, state) = session.next_message()
        assert (kind, method) == ("notification", "state")
        assert isinstance(msgid, int)
        states.append(state)
    steps = [state["step"] for state in states]
    assert steps == sorted(set(steps))
    assert None in states[0]["pieces"]
    assert None not in states[-1]["pieces"]


def test_pynvim_receives_errors_as_arrays(session, token):
    with pytest.raises(Exception, match="say hello"):
        session.request("status")
    session.error_wrapper = lambda error: KeyError(error[0])
    with pytest.raises(KeyError, match=r"protocol\.unknown_verb"):
        session.request("nonsense")


def test_aio_msgpack_rpc_asks_and_diffuses(daemon, token):
    async def talk() -> None:
        reader, writer = await asyncio.open_unix_connection(str(daemon.places.socket))
        client = aio_msgpack_rpc.Client(reader, writer)
        try:
            assert await client.call("ping") == "pong"
            await client.call("hello", {"token": token})
            answers = await asyncio.gather(*(client.call("diffuse", {**DIFFUSE, "seed": i}) for i in range(4)),
                                           client.call("status"))
            assert [answer["parts"][0]["text"] for answer in answers[:4]] == [TEXT] * 4
            assert answers[4]["state"] == "ready"
            with pytest.raises(RPCResponseError) as caught:
                await client.call("diffuse", {"prompt": 5})
            code, message, remedy, details = caught.value.args[0]
            assert (code, details) == ("input.invalid", {})
            assert "prompt" in message
            assert remedy
        finally:
            client.close()
            await writer.wait_closed()

    asyncio.run(talk())
