"""The client: the same calls blocking and awaited, interruption, and what the daemon's silence means."""

from __future__ import annotations

import asyncio
import inspect
import signal
import subprocess
import sys
import threading
import time
from statistics import median

import pytest

import aios
from aios import errors
from aios.ipc.client import AsyncClient, Client, connect, connect_async
from aios.messages import ChatMessage, MemoryFilter, Passage, Response, State


@pytest.fixture
def client(fake):
    with connect(fake.socket) as client:
        yield client


def eventually(law, seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not law():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_call_returns_what_the_daemon_answers(client):
    assert client.ping() == "pong"
    assert client.call("echo", a=1, b=[b"bytes", "text", None]) == {"a": 1, "b": [b"bytes", "text", None]}


def test_values_that_are_none_are_not_sent(client, fake):
    client.diffuse("x", seed=3)
    assert fake.seen[-1].params == [{"prompt": "x", "modality": "text", "size": [512, 512], "voice_id": "default",
                                     "seed": 3}]


def test_a_conversation_goes_without_a_prompt_so_that_an_older_daemon_refuses_it(client, fake):
    client.diffuse(messages=[ChatMessage(role="user", content="x")], system="Be brief")
    asked = fake.seen[-1].params[0]
    assert (asked["messages"], asked["system"]) == ([{"role": "user", "content": "x"}], "Be brief")
    assert "prompt" not in asked
    client.diffuse("y", messages=[{"role": "user", "content": "x"}])
    assert fake.seen[-1].params[0]["prompt"] == "y"      # for the daemon to refuse


def test_the_welcome_is_kept(client):
    assert client.welcome.scopes == ("ask",)


def test_diffuse_returns_a_response_and_shows_its_states(client):
    states: list[State] = []
    response = client.diffuse("hello", on_state=states.append)
    assert isinstance(response, Response)
    assert (response.text, response.seed) == ("hello!", 7)
    assert [state.step for state in states] == [1, 2, 3]
    assert states[0].pieces == ("hello", None)
    assert client.diffuse("again").text == "again!"


def test_generate_shows_the_text_as_it_is_written(client, fake):
    pieces: list[str] = []
    assert client.generate("abc", stop="x", on_text=pieces.append).text == "abc"
    assert pieces == ["a", "b", "c"]
    client.generate(messages=[{"role": "user", "content": "x"}, ChatMessage(role="assistant", content="y")], top_k=5)
    asked = fake.seen[-1].params[0]
    assert asked["messages"] == [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert (asked["top_k"], asked["max_tokens"], "temperature" in asked) == (5, 256, False)
    assert [item.delta for item in client.stream("generate", prompt="ab") if isinstance(item, State)] == ["a", "b"]


def test_a_stream_yields_states_and_ends_with_the_response(client):
    *states, last = client.stream("diffuse", prompt="hello")
    assert [state.step for state in states] == [1, 2, 3]
    assert isinstance(last, Response)


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "bc", ""]])
def test_encode_returns_one_row_for_each_text(client, texts):
    vectors = client.encode(texts)
    assert vectors.shape == (len(texts), 3)
    assert vectors[:, 0].tolist() == [len(text) for text in texts]


def test_without_numpy_encode_returns_a_view_of_the_same_shape(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    vectors = client.encode(["a", "bc"])
    assert (vectors.shape, vectors.tolist()) == ((2, 3), [[1.0, 0.0, 1.0], [2.0, 0.0, 1.0]])
    assert len(client.encode([])) == 0


def test_an_error_of_the_daemon_arrives_as_its_class(client):
    with pytest.raises(errors.ModelMissing, match="no such thing") as caught:
        client.call("nothing")
    assert caught.value.remedy == "make one"
    assert caught.value.details == {"name": "nothing"}
    assert client.ping() == "pong"


def test_a_value_without_a_wire_form_is_refused_and_the_connection_lives(client):
    with pytest.raises(errors.BadInput):
        client.call("echo", value=object())
    with pytest.raises(errors.LimitExceeded):
        client.call("echo", value=b"x" * (8 << 20))
    assert client.ping() == "pong"


def test_without_a_daemon_the_remedy_is_to_start_it(tmp_path):
    with pytest.raises(errors.DaemonDown) as caught:
        connect(tmp_path / "none.sock")
    assert caught.value.remedy == "aios start"
    with pytest.raises(errors.DaemonDown):
        asyncio.run(connect_async(tmp_path / "none.sock"))


def test_a_wrong_token_is_refused(fake):
    with pytest.raises(errors.AuthError):
        connect(fake.socket, token="guess")
    with pytest.raises(errors.AuthError):
        connect(fake.socket, token="")


def test_silence_beyond_the_timeout_raises_and_cancels(fake):
    with connect(fake.socket, timeout=0.1) as client:
        with pytest.raises(errors.DeadlineExceeded):
            client.call("slow", seconds=0.3)
        eventually(fake.cancelled)
        time.sleep(0.3)
        assert client.ping() == "pong"      # the late answer is nobody's


def test_a_closed_stream_cancels_its_request(client, fake):
    stream = client.stream("diffuse", prompt="never")
    assert next(stream).step == 1
    stream.close()
    eventually(fake.cancelled)
    assert client.ping() == "pong"


def test_other_calls_run_beside_an_open_stream(client):
    stream = client.stream("diffuse", prompt="x")
    assert next(stream).step == 1
    assert client.ping() == "pong"
    assert [type(item) for item in stream] == [State, State, Response]


def test_ctrl_c_during_a_call_cancels_it(client, fake):
    def interrupt() -> None:
        eventually(lambda: any(getattr(message, "verb", "") == "slow" for message in fake.seen))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A process started in the background by a shell ignores SIGINT; this one shall not, wherever it runs.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    helper = threading.Thread(target=interrupt)
    helper.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            client.call("slow", seconds=3)
    finally:
        helper.join()
        signal.signal(signal.SIGINT, before)
    eventually(fake.cancelled)
    assert client.ping() == "pong"


@pytest.mark.parametrize(("verb", "error"), [("hangup", errors.DaemonDown), ("garbage", errors.ProtocolError),
                                             ("refuse", errors.AuthError)])
def test_the_end_of_a_connection_has_a_reason(fake, verb, error):
    with connect(fake.socket) as client:
        for _ in range(2):
            with pytest.raises(error):
                client.call(verb)
    with pytest.raises(error):
        asyncio.run(_call_async(fake, verb))


async def _call_async(fake, verb, **params):
    async with await connect_async(fake.socket) as client:
        return await client.call(verb, **params)


def test_a_closed_client_says_so(fake):
    client = connect(fake.socket)
    client.close()
    client.close()
    with pytest.raises(errors.DaemonDown, match="closed"):
        client.ping()


def test_awaited_calls_run_at_once_and_find_their_own_answers(fake):
    async def talk() -> None:
        async with await connect_async(fake.socket) as client:
            started = time.monotonic()
            answers = await asyncio.gather(*(client.call("slow", seconds=0.2 - 0.01 * i) for i in range(10)))
            assert answers == [0.2 - 0.01 * i for i in range(10)]
            assert time.monotonic() - started < 1.0
            items = [item async for item in client.stream("diffuse", prompt="x")]
            assert [type(item) for item in items] == [State, State, State, Response]
            assert (await client.encode(["abc"])).tolist() == [[3.0, 0.0, 1.0]]

    asyncio.run(talk())


def test_a_cancelled_task_cancels_its_request(fake):
    async def talk() -> None:
        async with await connect_async(fake.socket, timeout=5) as client:
            task = asyncio.create_task(client.call("slow", seconds=3))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.ping() == "pong"
        async with await connect_async(fake.socket, timeout=0.05) as client:
            with pytest.raises(errors.DeadlineExceeded):
                await client.call("slow", seconds=3)

    asyncio.run(talk())
    assert len(fake.cancelled()) == 2


def test_both_clients_offer_the_same_calls_with_the_same_signatures():
    names = {name for name in dir(Client) if not name.startswith("_")}
    assert names == {name for name in dir(AsyncClient) if not name.startswith("_")}
    for name in ("ping", "api", "status", "encode", "generate", "diffuse", "infill", "call", "stream"):
        assert getattr(Client, name) is getattr(AsyncClient, name)
        assert getattr(Client, name).__doc__
    assert list(inspect.signature(Client.diffuse).parameters)[:5] == ["self", "prompt", "modality", "size", "voice_id"]


def test_aios_names_its_client():
    assert (aios.connect, aios.connect_async) == (connect, connect_async)


def test_importing_the_client_loads_nothing_heavy():
    heavy = {"asyncio", "numpy", "torch", "pyarrow", "rich", "typer", "pydantic", "cryptography"}
    code = f"import sys, aios.ipc.client; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_ping_takes_well_below_a_millisecond(client):
    def one() -> float:
        started = time.perf_counter()
        client.ping()
        return time.perf_counter() - started

    assert median(one() for _ in range(500)) < 2e-3     # the benchmark has the real bound


def test_memory_calls_say_what_is_kept_and_whom_it_concerns(client, fake):
    def asked(call) -> tuple[str, dict]:
        with pytest.raises(errors.ModelMissing):
            call()
        return fake.seen[-1].verb, fake.seen[-1].params[0] if fake.seen[-1].params else {}

    vector = b"\0\0\x80?\0\0\0@"
    draft = {"text": "x", "metadata": {"a": 1}, "vector": vector, "namespace": "default", "tags": ["t"], "time": None,
             "source": "", "provenance": ""}
    assert asked(lambda: client.remember("x", {"a": 1}, vector=[1.0, 2.0], tags=["t"])) == (
        "memory.remember", {"memories": [draft]})
    assert asked(lambda: client.recall("who?", 3, MemoryFilter(tags=["t"])))[1]["filter"]["tags"] == ["t"]
    assert asked(lambda: client.recall([1.0, 2.0])) == ("memory.recall", {"vector": vector, "k": 10})
    assert asked(lambda: client.forget(7)) == ("memory.forget", {"ids": [7]})
    assert "ids" not in asked(lambda: client.forget(MemoryFilter(sources=["s"])))[1]
    assert asked(client.memory_stats) == ("memory.stats", {})


def test_passages_and_the_wish_for_memory_travel_with_a_request(client, fake):
    client.diffuse("x", memory="auto")
    assert fake.seen[-1].params[0]["memory"] == "auto"
    client.generate("x", passages=[Passage(text="y", id=3), {"text": "z"}])
    assert [one["text"] for one in fake.seen[-1].params[0]["passages"]] == ["y", "z"]
