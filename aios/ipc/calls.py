"""The calls of a client, each described once: `Client` waits for the answer, `AsyncClient` is awaited."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from aios.errors import ProtocolError
from aios.ipc.conversation import Exchange
from aios.ipc.protocol import Hello, Status, Welcome
from aios.messages import (
    ChatMessage,
    ListMemories,
    Memory,
    MemoryDraft,
    MemoryFilter,
    MemoryPage,
    MemoryStats,
    Passage,
    Recollection,
    Response,
    State,
    from_wire,
    to_wire,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    Vector = bytes | Iterable[float]

P = ParamSpec("P")
T = TypeVar("T")
OnState = Callable[[State], object]
OnText = Callable[[str], object]


class Waits(Protocol):
    """A client whose calls return the answer."""

    def perform(self, exchange: Exchange[T], /) -> T:
        """Ask, and return the answer."""

    def follow(self, exchange: Exchange[T], /) -> Generator[State | T, None, None]:
        """Ask, and yield what happens; the answer comes last."""


class Awaits(Protocol):
    """A client whose calls are awaited."""

    def perform(self, exchange: Exchange[T], /) -> Coroutine[Any, Any, T]:
        """Ask, and return the answer."""

    def follow(self, exchange: Exchange[T], /) -> AsyncGenerator[State | T, None]:
        """Ask, and yield what happens; the answer comes last."""


class Call(Generic[P, T]):
    """How a type checker sees a described call: its return type is that of the client it is bound to."""

    @overload
    def __get__(self, client: Waits, kind: type, /) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaits, kind: type, /) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, kind: type, /) -> Any:
        """Never reached: at run time a call is an ordinary method."""
        raise NotImplementedError


class Stream(Generic[P, T]):
    """The same for a call that is followed: an iterator, or an asynchronous one."""

    @overload
    def __get__(self, client: Waits, kind: type, /) -> Callable[P, Generator[State | T, None, None]]: ...
    @overload
    def __get__(self, client: Awaits, kind: type, /) -> Callable[P, AsyncGenerator[State | T, None]]: ...
    def __get__(self, client: Any, kind: type, /) -> Any:
        """Never reached: at run time a stream is an ordinary method."""
        raise NotImplementedError


Describes = Callable[Concatenate[Any, P], Exchange[T]]


def _call(describe: Describes[P, T]) -> Call[P, T]:
    def perform(client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        return client.perform(describe(client, *args, **kwargs))

    return cast("Call[P, T]", update_wrapper(perform, describe))


def _stream(describe: Describes[P, T]) -> Stream[P, T]:
    def follow(client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        return client.follow(describe(client, *args, **kwargs))

    return cast("Stream[P, T]", update_wrapper(follow, describe))


def hello(token: str | None, client: str) -> Exchange[Welcome]:
    """The first exchange of a connection."""
    return Exchange(verb="hello", params=to_wire(Hello(token=token, client=client)),
                    result=partial(from_wire, kind=Welcome))


class Calls:
    """What a client can ask of the daemon.

    Values that are None are left to the daemon's defaults. Every call raises the daemon's own error
    (see aios.errors), DaemonDown when the connection ends and DeadlineExceeded after the client's timeout.
    """

    @_call
    def ping(self) -> Exchange[str]:
        """Answers "pong"."""
        return Exchange(verb="ping", params={}, result=str)

    @_call
    def api(self) -> Exchange[list[dict[str, Any]]]:
        """The daemon's table of verbs as data."""
        return Exchange(verb="api", params={}, result=list)

    @_call
    def status(self) -> Exchange[Status]:
        """The daemon at a glance."""
        return Exchange(verb="status", params={}, result=partial(from_wire, kind=Status))

    @_call
    def call(self, verb: str, /, **params: Any) -> Exchange[Any]:
        """Any verb by its name; the result as plain data."""
        return Exchange(verb=verb, params=params, result=_as_it_is)

    @_stream
    def stream(self, verb: str, /, **params: Any) -> Exchange[Response]:
        """Any streaming verb by its name: yields a State after each step (a slow reader misses some), last the
        Response. The request is sent at the first item; closing the iterator before the last one cancels it."""
        return Exchange(verb=verb, params=params, result=_response)

    @_call
    def encode(self, texts: Sequence[str], *, model: str | None = None,
               deadline_ms: int | None = None) -> Exchange[NDArray[np.float32]]:
        """Texts to unit vectors: a float32 array (texts, width); without numpy a memoryview of that shape."""
        return Exchange(verb="encode", result=_vectors,
                        params={"texts": [texts] if isinstance(texts, str) else list(texts), "model": model,
                                "deadline_ms": deadline_ms})

    @_call
    def diffuse(self, prompt: str = "", modality: str = "text", size: tuple[int, int] = (512, 512),
                voice_id: str = "default", *, messages: Sequence[ChatMessage | Mapping[str, str]] | None = None,
                system: str | None = None, length: int | None = None, steps: int | None = None,
                sampler: str | None = None, temperature: float | None = None, seed: int | None = None,
                model: str | None = None, memory: Recollection | None = None,
                passages: Sequence[Passage | Mapping[str, Any]] | None = None, deadline_ms: int | None = None,
                on_state: OnState | None = None) -> Exchange[Response]:
        """Continue a prompt or a conversation by diffusion; `on_state` sees the canvas after each step.

        memory="auto": with the memories nearest to what is asked in sight; passages: with these texts in sight.
        """
        return Exchange(verb="diffuse", result=_response, on_state=on_state, params={
            # A daemon that knows no messages must miss the prompt, not continue an empty one.
            "prompt": prompt or None if messages else prompt, "messages": to_wire(list(messages or ())) or None,
            "system": system, "modality": modality, "size": size, "voice_id": voice_id, "length": length,
            "steps": steps, "sampler": sampler, "temperature": temperature, "seed": seed, "model": model,
            "memory": memory, "passages": to_wire(list(passages or ())) or None, "deadline_ms": deadline_ms})

    @_call
    def infill(self, prefix: str, suffix: str, *, modality: str = "text", length: int | None = None,
               steps: int | None = None, sampler: str | None = None, temperature: float | None = None,
               seed: int | None = None, repairs: int | None = None, model: str | None = None,
               deadline_ms: int | None = None, on_state: OnState | None = None) -> Exchange[Response]:
        """Write what stands between a head and a tail; `on_state` sees the canvas after each step."""
        return Exchange(verb="infill", result=_response, on_state=on_state, params={
            "prefix": prefix, "suffix": suffix, "modality": modality, "length": length, "steps": steps,
            "sampler": sampler, "temperature": temperature, "seed": seed, "repairs": repairs, "model": model,
            "deadline_ms": deadline_ms})

    @_call
    def generate(self, prompt: str = "", *, messages: Sequence[ChatMessage | Mapping[str, str]] | None = None,
                 system: str | None = None, max_tokens: int = 256, temperature: float | None = None,
                 top_p: float | None = None, top_k: int | None = None, min_p: float | None = None,
                 repetition_penalty: float | None = None, stop: Sequence[str] = (), seed: int | None = None,
                 raw: bool = False, model: str | None = None, memory: Recollection | None = None,
                 passages: Sequence[Passage | Mapping[str, Any]] | None = None, deadline_ms: int | None = None,
                 on_text: OnText | None = None) -> Exchange[Response]:
        """Continue a prompt or a conversation token by token; `on_text` sees the text as it is written.

        memory and passages as in `diffuse`.
        """
        return Exchange(verb="generate", result=_response, on_state=on_text and partial(_tell, on_text), params={
            "prompt": prompt, "messages": to_wire(list(messages or ())), "system": system, "max_tokens": max_tokens,
            "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
            "repetition_penalty": repetition_penalty, "stop": [stop] if isinstance(stop, str) else list(stop),
            "seed": seed, "raw": raw, "model": model, "memory": memory,
            "passages": to_wire(list(passages or ())) or None, "deadline_ms": deadline_ms})

    @_call
    def remember(self, text: str, metadata: Mapping[str, Any] | None = None, *, vector: Vector | None = None,
                 namespace: str = "default", tags: Sequence[str] = (), time: datetime | None = None, source: str = "",
                 provenance: str = "", once: bool = False, deadline_ms: int | None = None) -> Exchange[int]:
        """Keep a memory; its id once it is on the disk. Without a vector the daemon encodes the text.

        once: if it is there already (same namespace, time, source and text) that one's id; `time` is then needed.
        """
        draft = MemoryDraft(text=text, metadata=dict(metadata or {}), vector=_packed(vector), namespace=namespace,
                            tags=tuple(tags), time=time, source=source, provenance=provenance)
        return Exchange(verb="memory.remember", result=_only, params={
            "memories": to_wire([draft]), "once": once or None, "deadline_ms": deadline_ms})

    @_call
    def remember_many(self, memories: Sequence[MemoryDraft | Mapping[str, Any]], *, once: bool = False,
                      deadline_ms: int | None = None) -> Exchange[list[int]]:
        """Keep memories, all or none; their ids once they are on the disk."""
        return Exchange(verb="memory.remember", result=list, params={
            "memories": to_wire(list(memories)), "once": once or None, "deadline_ms": deadline_ms})

    @_call
    def recall(self, query: str | Vector, k: int = 10, filter: MemoryFilter | None = None, *,
               deadline_ms: int | None = None) -> Exchange[list[Memory]]:
        """The k memories nearest to a text or a vector, best first, of those that pass the filter."""
        text = query if isinstance(query, str) else None
        return Exchange(verb="memory.recall", result=partial(from_wire, kind=list[Memory]), params={
            "query": text, "vector": None if isinstance(query, str) else _packed(query), "k": k,
            "filter": filter and to_wire(filter), "deadline_ms": deadline_ms})

    @_call
    def forget(self, what: int | Sequence[int] | MemoryFilter, *,
               deadline_ms: int | None = None) -> Exchange[list[int]]:
        """Forget memories for good, by id or by a filter that says something; the ids that were there."""
        ids = None if isinstance(what, MemoryFilter) else [what] if isinstance(what, int) else list(what)
        return Exchange(verb="memory.forget", result=list, params={
            "ids": ids, "filter": to_wire(what) if isinstance(what, MemoryFilter) else None,
            "deadline_ms": deadline_ms})

    @_call
    def memory_page(self, filter: MemoryFilter | None = None, *, after: int = 0, limit: int = 100,
                    vectors: bool = False) -> Exchange[MemoryPage]:
        """Some memories in the order of their ids; `after` is the `next` of the page before."""
        asked = ListMemories(filter=filter or MemoryFilter(), after=after, limit=limit, vectors=vectors)
        return Exchange(verb="memory.list", params=to_wire(asked), result=partial(from_wire, kind=MemoryPage))

    @_call
    def memory_stats(self) -> Exchange[MemoryStats]:
        """Sizes and counts of the store of memories."""
        return Exchange(verb="memory.stats", params={}, result=partial(from_wire, kind=MemoryStats))

    @_call
    def compact_memory(self) -> Exchange[bool]:
        """Take the sealed bytes of forgotten memories off the disk; true if there were any."""
        return Exchange(verb="memory.compact", params={}, result=bool)


def _tell(on_text: OnText, state: State) -> None:
    if state.delta:
        on_text(state.delta)


def _as_it_is(result: Any) -> Any:
    return result


def _only(result: list[int]) -> int:
    [number] = result
    return number


def _packed(vector: Vector | None) -> bytes | None:
    """Numbers as little-endian f32; bytes are taken to be that."""
    if vector is None or isinstance(vector, bytes):
        return vector
    from array import array

    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _response(result: Any) -> Response:
    return from_wire(result, Response)


def _vectors(result: Any) -> NDArray[np.float32]:
    """The rows of a tensor part: little-endian f32, the shape in its MIME type."""
    part = _response(result).parts[0]
    fields = dict(field.strip().partition("=")[::2] for field in part.mime.split(";")[1:])
    count, width = (int(axis) for axis in fields.get("shape", "0,0").split(","))
    data = part.data or b""
    if fields.get("dtype") != "float32" or len(data) != 4 * count * width:
        raise ProtocolError(f"the daemon sent {len(data)} bytes as {part.mime[:80]!r}",
                            remedy="use a client of the daemon's own version")
    try:
        import numpy as np
    except ImportError:
        return cast("NDArray[np.float32]", _view(data, count, width))
    return np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(count, width)


def _view(data: bytes, count: int, width: int) -> memoryview[Any]:
    from array import array

    numbers = array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    flat = memoryview(numbers)
    return flat.cast("B").cast("f", (count, width)) if data else flat
