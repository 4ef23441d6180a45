"""The contracts between engine, model, samplers and plugins. Imports no torch.

Time: t = 0 is data, t = 1 is noise. Axis alphabet: b batch, s sequence, d model width, h heads,
v vocabulary, k condition tokens, c latent channels, a position axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from aios.messages import Diffuse, Infill, Part

API_VERSION = 1   # of the plugin contracts; a manifest names the one it was written for


class Modality(IntEnum):
    """Row of the modality embedding."""

    TEXT = 0
    CODE = 1
    IMAGE = 2
    AUDIO = 3

    @classmethod
    def of(cls, name: str) -> Modality:
        """The modality called `name` ("text", "code", "image", "audio"); KeyError if there is none."""
        return cls[name.upper()]


Kind = Literal["ar", "diffusion", "encoder", "control"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of one modality on the canvas, with its own time.

    x: (b, s) token ids or (b, s, c) latents. t: (b, s) in 0..1. editable: (b, s) bool, what may change.
    positions: (b, s, a), one column per position axis. mask_id: the absorbing state of a token segment.
    onward: what is editable sees itself and what stands before it, which is read in order; nothing behind it matters.
    end_ids: tokens behind which nothing need be written. memo: what a denoiser keeps of this very request from one
    call to the next, so that it need not read the same beginning again; it changes no prediction's meaning.
    """

    modality: Modality
    x: Tensor
    t: Tensor
    editable: Tensor
    positions: Tensor
    mask_id: int | None = None
    onward: bool = False
    end_ids: tuple[int, ...] = ()
    memo: Any = None

    @property
    def masked(self) -> Tensor:
        """(b, s) bool: editable positions that still hold the absorbing state."""
        if self.mask_id is None:
            raise TypeError("a latent segment has no masked positions")
        return self.editable & (self.x == self.mask_id)

    def at(self, t: float) -> Segment:
        """The same segment with every editable position at time t; given positions stay at 0 (data)."""
        return replace(self, t=self.editable.to(self.t.dtype) * t)

    def fill(self, where: Tensor, ids: Tensor) -> Segment:
        """Tokens `ids` (b, s) written where `where` (b, s) and the position is editable."""
        return replace(self, x=ids.where(where & self.editable, self.x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """What is being denoised: one or more segments, which may be of several modalities."""

    segments: tuple[Segment, ...]

    def at(self, t: float) -> Canvas:
        """The canvas with every segment's editable positions at time t."""
        return Canvas(segments=tuple(segment.at(t) for segment in self.segments))

    def put(self, index: int, segment: Segment) -> Canvas:
        """The canvas with one segment replaced (it may have grown or shrunk)."""
        return Canvas(segments=(*self.segments[:index], segment, *self.segments[index + 1:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """A prediction for a token segment: unnormalised log p(x_0 | x_t), (b, s, v)."""

    values: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """A prediction for a latent segment: x_0 itself, (b, s, c)."""

    values: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Velocity:
    """A prediction for a latent segment: dx/dt along the path, (b, s, c)."""

    values: Tensor


SegmentPrediction = Logits | Clean | Velocity


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One typed prediction per segment of the canvas, in order."""

    segments: tuple[SegmentPrediction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What the denoiser attends to beside the canvas: (b, k, d) tokens per named source."""

    tokens: Mapping[str, Tensor]

    @classmethod
    def none(cls) -> Condition:
        """No condition at all."""
        return cls(tokens={})


@runtime_checkable
class Adapter(Protocol):
    """A low-rank card worn by rows of the batch; it pins the release and kind it was trained for."""

    @property
    def name(self) -> str:
        """For messages and the record of an answer."""
        ...

    @property
    def kind(self) -> Kind:
        """Of the models that it adapts."""
        ...

    @property
    def release(self) -> str:
        """Of the model that it was trained for."""
        ...

    def delta(self, target: str, x: Tensor) -> Tensor | None:
        """What is added to the output of the linear map called `target` for input x, or None."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """One call of the score network."""

    def __call__(self, canvas: Canvas, condition: Condition, adapters: Sequence[Adapter] = ()) -> Prediction:
        """Predict the clean canvas, by a network that wears `adapters` beside its weights; nothing is mutated."""
        ...


Denoise = Callable[[Canvas], Prediction]   # a Denoiser with its condition and adapters bound: all a sampler sees


@runtime_checkable
class Schedule(Protocol):
    """Signal level over time: alpha(0) = 1 (data), alpha(1) = 0 (noise)."""

    def alpha(self, t: Tensor) -> Tensor:
        """Share of positions that still hold data at time t."""
        ...

    def intervals(self, steps: int) -> Iterator[tuple[float, float]]:
        """(t, s) pairs from noise to data, t > s, ending at s = 0."""
        ...


Sampler = Callable[..., "Iterator[Canvas]"]
# A sampler: (denoise, canvas, schedule, steps, rng, *, temperature) -> one canvas after every denoiser call.


class Tokenizer(Protocol):
    """Text to ids and back."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Token ids, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are dropped, undecodable bytes are replaced."""
        ...

    def piece(self, token_id: int) -> str:
        """The text of one token, for display."""
        ...

    def special(self, name: str) -> int:
        """Id of a reserved token such as "<|mask|>"; KeyError if there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTensor:
    """A weight matrix (rows, columns) in codes of few bits, in the packed order that every kernel reads in place.

    The weight of code c is zero + scale * c; without zeros it is scale * (c - 2^(bits - 1)). Groups of `group_size`
    columns share scale and zero; the last group of a row may be shorter. `left @ right` (n, r) (r, k) is an optional
    residual that is added. Order 1: panels of 32 rows, see rust/arrow_quant/src/order.rs.
    """

    rows: int
    columns: int
    bits: int                          # 8, 4 or 2
    group_size: int                    # 32, 64 or 128
    codes: Tensor                      # uint8, flat
    scales: Tensor                     # float16, (panels, groups, 32)
    zeros: Tensor | None = None        # float16, (panels, groups, 32); None: symmetric
    left: Tensor | None = None         # float16, (rows, rank)
    right: Tensor | None = None        # float16, (rank, columns)
    order: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the matrix it stands for."""
        return self.rows, self.columns

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """What is stored, by part name, without what is absent."""
        every = {"data": self.codes, "scales": self.scales, "zeros": self.zeros, "left": self.left, "right": self.right}
        return {name: part for name, part in every.items() if part is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())


def _intact(wait: bool) -> None:
    """What was never mapped from a file cannot rot under us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model opened by the engine: spec and tensors, mapped from its files."""

    name: str
    kind: Kind
    release: str                       # hash of spec, tokenizer and tensors
    path: Path
    spec: Mapping[str, Any]            # config.json
    tensors: Mapping[str, Tensor | PackedTensor]
    tokenizer: Tokenizer | None
    intact: Callable[[bool], None] = _intact   # raises ModelCorrupt once the file proves bad; True waits for the check


class Workbench(Protocol):
    """What the engine lends a head when it is opened."""

    threads: int

    def model(self, name: str | None) -> OpenModel:
        """The installed model `name`, or the one daemon.toml names for the head's modality; ModelMissing if absent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """A head's own defaults, used where the request says nothing.

    block: tokens that are finished before the next ones are begun, on canvases that are written onward; 0: all at once.
    infill_sampler, infill_temperature: for gaps with a text behind them, where they are others.
    """

    sampler: str
    steps_per_token: float
    temperature: float
    length: int
    block: int = 0
    infill_sampler: str | None = None
    infill_temperature: float | None = None


class Head(Protocol):
    """A modality over the shared backbone, brought by a plugin through `aios_heads`.

    A head that can write further modalities names them in a tuple `also`; it is asked for them where no plugin brings
    a head of their own. One that reads conversations (`Diffuse.messages`) says `converses = True`.
    """

    modality: str      # "text", "code", "image" or "audio"
    process: str       # "absorbing" or "flow"

    def open(self, workbench: Workbench, model: str | None) -> OpenHead:
        """Load what is needed for the first request; called once per model, in the model worker."""
        ...


class OpenHead(Protocol):
    """A head with its weights: turns requests into canvases and canvases into parts.

    One that knows the grammar of what it writes may have `flawed(canvas, attempt) -> Tensor | None`: where (b, s) a
    finished canvas must be written anew because it breaks that grammar, the wider the more attempts came before.
    """

    model: OpenModel
    denoiser: Denoiser
    schedule: Schedule
    defaults: SamplingDefaults

    def encode(self, request: Diffuse | Infill, length: int) -> tuple[Canvas, Condition]:
        """The canvas to start from: given positions clean, the rest noise; BadInput if it cannot fit."""
        ...

    def project(self, hidden: Tensor) -> SegmentPrediction:
        """The backbone's hidden states (b, s, d) of this head's segment, read as its typed prediction."""
        ...

    def decode(self, canvas: Canvas) -> list[Part]:
        """The finished canvas as parts: only what was newly written."""
        ...

    def pieces(self, canvas: Canvas) -> list[str | None]:
        """The canvas for display while it is being denoised, None where it is still masked."""
        ...

    def usage(self, canvas: Canvas) -> tuple[int, int]:
        """(given tokens, new tokens) of a finished canvas."""
        ...


