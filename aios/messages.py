"""What travels between a client, the daemon and the engine: plain data, wire-safe.

Every type here converts with `to_wire` and `from_wire`; unknown fields are ignored, so that an older
reader understands a newer writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeVar

import msgspec

from aios.errors import BadInput

FORMAT_VERSION = 1

TEXTS_PER_ENCODE_MAX = 4096       # 4,096 x 384 f32 is 6 MiB: the answer fits one frame
PROMPT_CHARS_MAX = 1 << 20        # a long book chapter; the model's context is far below it
LENGTH_TOKENS_MAX = 4096          # a canvas of this size still takes well under a gigabyte
REPAIRS_MAX = 256                 # what so many have not mended stays as it is
STEPS_MAX = 4096                  # never more useful than one step a token
NEW_TOKENS_MAX = 1 << 17          # the longest contexts of the models at hand
CHAT_MESSAGES_MAX = 1024          # a day's conversation; its characters are limited as those of a prompt
STOPS_MAX, STOP_CHARS_MAX = 16, 256   # every one is looked for after every token
TOP_K_MAX = 1 << 20               # above every vocabulary
PASSAGES_MAX = 64                 # of memories in one request; more than a model of today reads with profit
MEMORIES_PER_REMEMBER_MAX = 1024  # with 384 dimensions 1.5 MiB of vectors; every one has its share of the frame
MEMORIES_PER_PAGE_MAX = 256       # of what is listed at once; every one with all its tags fits a frame's elements
IDS_PER_FORGET_MAX = 16_384       # a quarter of the elements of a frame
RECALL_MAX = 1000                 # as many memories fit a frame, long ones apart
VECTOR_BYTES_MAX = 8192 * 4       # of the widest store

Recollection = Literal["off", "auto"]
Finish = Literal["stop", "length", "cancelled"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode:
    """Turn texts into unit vectors."""

    texts: tuple[str, ...]
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a canvas is denoised; `None` means the head's default."""

    length: int | None = None         # new tokens at most
    steps: int | None = None          # denoising steps
    sampler: str | None = None        # ancestral | confidence | entropy
    temperature: float | None = None  # of the token distribution; 0 = most likely
    seed: int | None = None           # drawn and reported when absent


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What memory lends to a request."""

    text: str
    id: int = 0                # of the memory; 0 for a text that was never one
    score: float | None = None
    source: str = ""
    provenance: str = ""
    vector: bytes | None = None   # little-endian f32: the stored pattern, for heads that attend to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Diffuse(Sampling):
    """Continue a prompt, or write the assistant's next turn of a conversation, by diffusion."""

    prompt: str = ""
    messages: tuple[ChatMessage, ...] = ()    # a conversation instead of a prompt
    system: str | None = None                 # goes before the messages
    modality: str = "text"
    model: str | None = None
    size: tuple[int, int] = (512, 512)
    voice_id: str = "default"
    memory: Recollection = "off"              # auto: the passages nearest to the prompt are recalled
    passages: tuple[Passage, ...] = ()        # to write with in sight, best first

    @property
    def conversation(self) -> tuple[ChatMessage, ...]:
        """The messages, behind the system text where there is one."""
        before = () if self.system is None else (ChatMessage(role="system", content=self.system),)
        return (*before, *self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Infill(Sampling):
    """Write what stands between a given head and a given tail."""

    prefix: str
    suffix: str
    modality: str = "text"
    model: str | None = None
    repairs: int | None = None    # how often code that breaks its grammar may be written anew; 0: never


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Continue a prompt, or a conversation, token by token; `None` means the model's own default.

    A model with a chat template reads the prompt as a user's message unless `raw` is set.
    """

    prompt: str = ""
    messages: tuple[ChatMessage, ...] = ()    # a conversation instead of a prompt
    system: str | None = None                 # goes before both
    model: str | None = None
    max_tokens: int = 256
    temperature: float | None = None          # of the token distribution; 0 = most likely
    top_k: int | None = None                  # keep the k most likely tokens; 0 = all
    top_p: float | None = None                # keep the most likely ones that make up this share; 1 = all
    min_p: float | None = None                # drop those less likely than this share of the likeliest; 0 = none
    repetition_penalty: float | None = None   # of tokens that stand in the text already; 1 = none
    stop: tuple[str, ...] = ()                # ends the text before the first of these
    seed: int | None = None                   # drawn and reported when absent
    raw: bool = False                         # continue the prompt as it stands
    memory: Recollection = "off"              # auto: the passages nearest to the prompt are recalled
    passages: tuple[Passage, ...] = ()        # to write with in sight, best first


Generation = Diffuse | Infill
Request = Encode | Diffuse | Infill | Generate


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFilter:
    """Conditions on what is clear of memories, which all have to hold; what is empty lets everything through."""

    namespaces: Sequence[str] = ()       # one of these
    tags: Sequence[str] = ()             # all of these
    sources: Sequence[str] = ()          # one of these
    provenances: Sequence[str] = ()      # one of these
    since: datetime | None = None        # this time or later
    until: datetime | None = None        # before this time


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDraft:
    """A memory on its way in."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    vector: bytes | None = None          # little-endian f32; None: the encoder makes one of the text
    namespace: str = "default"
    tags: tuple[str, ...] = ()
    time: datetime | None = None         # with its time zone; None: now
    source: str = ""                     # where it comes from: a path, an address, a conversation
    provenance: str = ""                 # what may be believed of it: owner, document, peer, teacher, tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A memory as it was kept; `score` is its nearness to the query, where there was one."""

    id: int
    text: str
    metadata: dict[str, Any]
    namespace: str
    tags: tuple[str, ...]
    time: datetime                       # UTC
    source: str
    provenance: str
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """Keep memories, all or none of them; the answer is their ids, and comes when they are on the disk.

    once: one that is there already (same namespace, time, source and text) is not kept again, its id is answered.
    """

    memories: tuple[MemoryDraft, ...]
    once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """The k memories nearest to a text or a vector, of those that pass the filter."""

    query: str | None = None
    vector: bytes | None = None          # little-endian f32, in place of the text
    k: int = 10
    filter: MemoryFilter = MemoryFilter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Forget memories by id, or all that pass a filter that says something; it cannot be undone."""

    ids: tuple[int, ...] = ()
    filter: MemoryFilter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListMemories:
    """A page of the memories that pass the filter, in the order of their ids."""

    filter: MemoryFilter = MemoryFilter()
    after: int = 0                       # the `next` of the page before
    limit: int = 100
    vectors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPage:
    """Some memories; `next` is None on the last page. Large texts end a page before its limit."""

    memories: tuple[Memory, ...]
    total: int                           # that pass the filter and come after the page before
    next: int | None = None
    dim: int = 0
    vectors: tuple[bytes, ...] = ()      # little-endian f32, one for each memory where they were asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStats:
    """Sizes and counts of the store."""

    memories: int = 0
    forgotten: int = 0                   # ids that stay as tombstones
    to_compact: int = 0                  # rows of forgotten memories whose sealed bytes are still on the disk
    segments: int = 0
    log_rows: int = 0                    # what the next opening reads again
    bytes: int = 0                       # of segments and log
    dim: int = 0
    vector: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One piece of an answer: a MIME type and either text or bytes."""

    mime: str
    text: str | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the answer cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0             # denoiser calls
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Enough to judge the answer and to replay it on the same kind of machine."""

    model: str
    release: str                       # base identity of the weights
    instruction_set: str
    threads: int
    sampler: str | None = None
    temperature: float | None = None
    finish: Finish = "stop"
    plugin: str | None = None          # the head that answered
    filters: dict[str, float] | None = None   # of an autoregressive model: top_k, top_p and their like
    memories: tuple[int, ...] = ()     # ids of the passages that were in sight
    repairs: int = 0                   # how often a part was written anew, because it broke the language's grammar
    flawed: bool = False               # whether what was written still does


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer: parts, the modalities they are in, what it cost and how it came about."""

    parts: tuple[Part, ...]
    modality: frozenset[str]
    usage: Usage
    verdict: Verdict
    seed: int | None = None

    @property
    def text(self) -> str:
        """All text parts joined."""
        return "".join(part.text for part in self.parts if part.text is not None)

    def to_json(self) -> dict[str, Any]:
        """The object `--json` prints: wire fields plus `text`; bytes as base64."""
        return {"text": self.text, **msgspec.to_builtins(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A request on its way.

    Of a diffusion the canvas after one denoising step: `pieces` has None where a position is still masked. Of an
    autoregressive model the text that became certain since the last state: every `delta` joined is the answer.
    """

    step: int
    steps: int
    pieces: tuple[str | None, ...] = field(default=())
    delta: str | None = None

    def rendered(self, mask: str = "░") -> str:
        """The text as it stands, with `mask` for every open position."""
        return "".join(mask if piece is None else piece for piece in self.pieces)


def to_wire(message: Any) -> Any:
    """Plain dicts, lists, strings, numbers and bytes, ready for MessagePack."""
    return msgspec.to_builtins(message, builtin_types=(bytes,))


def from_wire(data: Any, kind: type[T]) -> T:
    """Check plain data against a message type; raises BadInput naming the field."""
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise BadInput(f"{kind.__name__}: {error}", remedy="`aios api` prints every verb with its types") from error


def check(request: Request) -> None:
    """Hold a request against the limits before anything is allocated for it; raises BadInput."""
    if isinstance(request, Encode):
        if len(request.texts) > TEXTS_PER_ENCODE_MAX:
            raise BadInput(f"{len(request.texts)} texts in one request; the limit is {TEXTS_PER_ENCODE_MAX}",
                           remedy="send them in several requests")
        longest = max((len(text) for text in request.texts), default=0)
    elif isinstance(request, Generate):
        _check_generate(request)
        longest = _chars(request)
    else:
        _check_sampling(request)
        if isinstance(request, Diffuse):
            _check_diffuse(request)
            longest = _chars(request)
        else:
            _check_range("repairs", request.repairs, 0, REPAIRS_MAX)
            longest = len(request.prefix) + len(request.suffix)
    if longest > PROMPT_CHARS_MAX:
        raise BadInput(f"{longest} characters; the limit is {PROMPT_CHARS_MAX}", remedy="shorten the text")


def _chars(request: Diffuse | Generate) -> int:
    texts = [*(one.content for one in request.messages), *(one.text for one in request.passages)]
    return len(request.prompt) + len(request.system or "") + sum(map(len, texts))


def _check_sampling(request: Sampling) -> None:
    _check_range("length", request.length, 1, LENGTH_TOKENS_MAX)
    _check_range("steps", request.steps, 1, STEPS_MAX)
    _check_range("temperature", request.temperature, 0.0, 10.0)
    _check_range("seed", request.seed, 0, 2**63 - 1)


def _check_generate(request: Generate) -> None:
    _check_range("max_tokens", request.max_tokens, 1, NEW_TOKENS_MAX)
    _check_range("temperature", request.temperature, 0.0, 10.0)
    _check_range("top_k", request.top_k, 0, TOP_K_MAX)
    _check_range("top_p", request.top_p, 1e-6, 1.0)
    _check_range("min_p", request.min_p, 0.0, 1.0)
    _check_range("repetition_penalty", request.repetition_penalty, 0.01, 100.0)
    _check_range("seed", request.seed, 0, 2**63 - 1)
    _check_range("the number of stop texts", len(request.stop), 0, STOPS_MAX)
    for text in request.stop:
        _check_range("the length of a stop text", len(text), 1, STOP_CHARS_MAX)
    _check_conversation(request)
    if request.raw and (request.messages or request.system is not None):
        raise BadInput("a raw prompt has neither messages nor a system text", remedy="leave out raw, or put all of it "
                                                                                     "into the prompt")


def _check_diffuse(request: Diffuse) -> None:
    _check_conversation(request)
    if request.system is not None and not request.messages:
        raise BadInput("a prompt that is continued has no system text", remedy="make the prompt a user's message")


def _check_conversation(request: Diffuse | Generate) -> None:
    _check_range("the number of messages", len(request.messages), 0, CHAT_MESSAGES_MAX)
    if request.messages and request.prompt:
        raise BadInput("there are both a prompt and messages", remedy="make the prompt the last message")
    if request.system is not None and request.messages and request.messages[0].role == "system":
        raise BadInput("there are two system texts", remedy="leave out one of them")
    _check_range("the number of passages", len(request.passages), 0, PASSAGES_MAX)
    for passage in request.passages:
        _check_vector(passage.vector)
    if len({len(passage.vector or b"") for passage in request.passages}) > 1:
        raise BadInput("passages have vectors of different lengths", remedy="give one kind, or none")
    if request.passages and request.memory != "off":
        raise BadInput("there are passages, and memory is asked for others", remedy="leave out one of them")


def question(request: Diffuse | Generate) -> str:
    """What memories are recalled for: the prompt, or the last words of the user."""
    said = [one.content for one in request.messages if one.role == "user"]
    return said[-1] if said else request.prompt


def check_memory(request: Remember | Recall | Forget | ListMemories) -> None:
    """The same for what is asked of memory; raises BadInput."""
    if isinstance(request, Remember):
        _check_range("the number of memories", len(request.memories), 1, MEMORIES_PER_REMEMBER_MAX)
        for draft in request.memories:
            _check_vector(draft.vector)
            if request.once and draft.time is None:
                raise BadInput("a memory that is kept once needs its time", remedy="give the time, or leave out once")
    elif isinstance(request, Recall):
        _check_range("k", request.k, 1, RECALL_MAX)
        if (request.query is None) == (request.vector is None):
            raise BadInput("a question is a text or a vector", remedy="give one of query and vector")
        _check_range("the length of the query", len(request.query or ""), 0, PROMPT_CHARS_MAX)
        _check_vector(request.vector)
    elif isinstance(request, Forget):
        _check_range("the number of ids", len(request.ids), 0, IDS_PER_FORGET_MAX)
        if bool(request.ids) == (request.filter is not None):
            raise BadInput("what is forgotten is named by ids or by a filter", remedy="give one of them")
        if request.filter is not None and not any(to_wire(request.filter).values()):
            raise BadInput("an empty filter would forget everything", remedy="name a tag, a source or a time")
    else:
        _check_range("limit", request.limit, 1, MEMORIES_PER_PAGE_MAX)
        _check_range("after", request.after, 0, 2**63 - 1)


def _check_vector(vector: bytes | None) -> None:
    if vector is not None and (len(vector) % 4 or not 0 < len(vector) <= VECTOR_BYTES_MAX):
        raise BadInput(f"a vector of {len(vector)} bytes", remedy=f"give little-endian f32, {VECTOR_BYTES_MAX} at most")


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:   # also refuses NaN
        raise BadInput(f"{name} is {value}; it must lie in {low}..{high}", remedy=f"choose another {name}")
