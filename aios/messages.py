"""What travels between a client, the daemon and the engine: plain data, wire-safe.

Every type here converts with `to_wire` and `from_wire`; unknown fields are ignored, so that an older
reader understands a newer writer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from aios.errors import BadInput

FORMAT_VERSION = 1

TEXTS_PER_ENCODE_MAX = 4096       # 4,096 x 384 f32 is 6 MiB: the answer fits one frame
PROMPT_CHARS_MAX = 1 << 20        # a long book chapter; the model's context is far below it
LENGTH_TOKENS_MAX = 4096          # a canvas of this size still takes well under a gigabyte
STEPS_MAX = 4096                  # never more useful than one step a token

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
class Diffuse(Sampling):
    """Continue a prompt by diffusion."""

    prompt: str
    modality: str = "text"
    model: str | None = None
    size: tuple[int, int] = (512, 512)
    voice_id: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Infill(Sampling):
    """Write what stands between a given head and a given tail."""

    prefix: str
    suffix: str
    modality: str = "text"
    model: str | None = None


Generation = Diffuse | Infill
Request = Encode | Diffuse | Infill


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
    """The canvas after one denoising step; `pieces` has None where a position is still masked."""

    step: int
    steps: int
    pieces: tuple[str | None, ...] = field(default=())

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
    else:
        _check_sampling(request)
        longest = len(request.prompt) if isinstance(request, Diffuse) else len(request.prefix) + len(request.suffix)
    if longest > PROMPT_CHARS_MAX:
        raise BadInput(f"{longest} characters; the limit is {PROMPT_CHARS_MAX}", remedy="shorten the text")


def _check_sampling(request: Sampling) -> None:
    for name, value, low, high in (("length", request.length, 1, LENGTH_TOKENS_MAX),
                                   ("steps", request.steps, 1, STEPS_MAX),
                                   ("temperature", request.temperature, 0.0, 10.0),
                                   ("seed", request.seed, 0, 2**63 - 1)):
        if value is not None and not low <= value <= high:   # also refuses NaN
            raise BadInput(f"{name} is {value}; it must lie in {low}..{high}", remedy=f"choose another {name}")
