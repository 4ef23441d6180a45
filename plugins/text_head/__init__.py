"""Text and code by masked diffusion: the shared backbone with its text head, through the same door as any plugin.

The canvas of `diffuse` is [prompt | new], that of `infill` is [prefix | new | suffix]: given tokens are clean,
the new ones start as masks and are all that may change. Passages from memory stand before a conversation, each behind
the token with which the model has learned to read them. Code is text to a model that names it in its config.json,
behind the token with which files of code begin; where the modality embedding has learned a row for code, it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from aios.contracts import (
    Adapter,
    Canvas,
    Condition,
    Logits,
    Modality,
    OpenModel,
    Prediction,
    SamplingDefaults,
    Schedule,
    Segment,
    Tokenizer,
    Workbench,
)
from aios.diffusion.schedules import LogLinear
from aios.errors import BadInput, ModelCorrupt, ModelError
from aios.hookspecs import hookimpl
from aios.messages import ChatMessage, Diffuse, Infill, Part, question
from aios.model.denoiser import Past, TextDenoiser
from aios.model.lora import check_wearable
from aios.model.memory_attention import TRAITS
from aios.model.score_network import TextScoreNetwork
from aios.text import passages
from aios.text.python_syntax import flaw
from aios.text.turns import Roles, stop_ids, turn_ids

GIVEN_TOKENS_MIN = 16     # with less of its prompt in sight the model does not continue anything
TOKEN_CHARS_MAX = 32      # the longest tokens of a small vocabulary have about half of this
ATTEMPTS_A_LINE = 3       # to write a flawed line anew before the one above it goes too
FALLBACK = SamplingDefaults(sampler="ancestral", steps_per_token=1.0, temperature=0.8, length=64)


class TextHead:
    """The text modality, and code where the model writes it."""

    modality = "text"
    also = ("code",)
    converses = True
    process = "absorbing"

    def open(self, workbench: Workbench, model: str | None) -> OpenTextHead:
        """Build the score network of a diffusion model; ModelMissing, ModelCorrupt or UnknownArchitecture."""
        return OpenTextHead(workbench.model(model))


class OpenTextHead:
    """A text diffusion model at work on canvases of one segment and one row."""

    def __init__(self, model: OpenModel) -> None:
        self.model = model
        self.schedule: Schedule = LogLinear()
        self.network = TextScoreNetwork.open(model.spec, model.tensors)
        self.tokenizer = _tokenizer(model, self.network.head.vocab_size)
        settings = Settings.read(model.spec)
        self.mask_id, self.eot_id, self.length_max = settings.mask_id, settings.eot_id, settings.length_max
        self.defaults, self.modalities, self.code_id = settings.sampling, settings.modalities, settings.code_id
        self.roles, self.end_ids = Roles.read(model.spec), tuple(sorted(stop_ids(model.spec)))
        self._read = TextDenoiser(self.network, end_ids=self.end_ids)

    def encode(self, request: Diffuse | Infill, length: int) -> tuple[Canvas, Condition]:
        """The canvas to start from, with `length` new tokens.

        What is given and does not fit the model's context is cut at its far ends: a prompt or prefix loses its
        beginning, a suffix its end. BadInput when `length` leaves hardly any room for it; ModelError when the model
        does not write the modality.
        """
        if request.modality not in self.modalities:
            raise ModelError(f"{self.model.name} writes {' and '.join(self.modalities)}, no {request.modality[:40]}",
                             remedy="name a model that does: --model NAME")
        room = self.length_max - length
        before, after = (request.prefix, request.suffix) if isinstance(request, Infill) else (request.prompt, "")
        chars_max = self.length_max * TOKEN_CHARS_MAX
        condition = Condition.none()
        if isinstance(request, Diffuse) and request.passages:
            head, condition = self._remembering(request, room)
        elif isinstance(request, Diffuse) and request.messages:
            head = turn_ids(request.conversation, self.roles, self.tokenizer, room=room)
        else:
            head = self.tokenizer.encode(before[-chars_max:])
            if request.modality == "code" and self.code_id is not None:
                head = [self.code_id, *head]   # a file's first token: the first to go where the file is cut
        tail = self.tokenizer.encode(after[:chars_max])
        if room < min(len(head) + len(tail), GIVEN_TOKENS_MIN):
            raise BadInput(f"{length} new tokens leave no room for the given text in a context of {self.length_max}",
                           remedy=f"choose a length of at most {self.length_max - GIVEN_TOKENS_MIN}")
        tail_room = max(room // 2, room - len(head))   # each side may use what the other leaves free
        tail = tail[:tail_room]
        head_room = room - len(tail)
        head = head[-head_room:] if head_room else []
        modality = Modality.of(request.modality)
        return Canvas(segments=(self._segment(head, length, tail, modality),)), condition

    def _remembering(self, request: Diffuse, room: int) -> tuple[list[int], Condition]:
        """The conversation behind the passages of a request, whose prompt is what a user says, and their traits."""
        if request.modality != "text":
            raise BadInput(f"{request.modality[:40]} is written without passages from memory",
                           remedy="leave them out, or write text")
        if passages.ROLE not in self.roles.ids:
            raise BadInput(f"{self.model.name} has not learned to read passages from memory",
                           remedy="leave them out, or use `aios generate`")
        seen = passages.sighted(request.passages, question(request), self.roles.ids[passages.ROLE], self.tokenizer,
                                room=int(room * passages.SHARE_MAX))
        said = request.conversation or (ChatMessage(role="user", content=request.prompt),)
        turns = turn_ids(said, self.roles, self.tokenizer, room=room - len(seen.ids))
        return [*seen.ids, *turns], Condition(tokens={TRAITS: torch.tensor([seen.traits])})

    def denoiser(self, canvas: Canvas, condition: Condition, adapters: Sequence[Adapter] = ()) -> Prediction:
        """Logits of the clean tokens at masked positions; rows of other positions are zero and mean nothing.

        ReleaseMismatch for an adapter of another release or kind of model, CardMisfit for one of other shapes.
        """
        check_wearable(adapters, kind=self.model.kind, release=self.model.release)
        return self._read(canvas, condition, adapters)

    def project(self, hidden: Tensor) -> Logits:
        """Hidden states (b, s, d) as logits (b, s, v); tokens that are never written have probability 0."""
        return Logits(values=self.network.logits(hidden))

    def decode(self, canvas: Canvas) -> list[Part]:
        """One part of plain text: what was newly written, up to the end of text if one was drawn.

        What begins a turn begins without a blank, which words that stood in a passage bring along.
        """
        text = self.tokenizer.decode(self._written(canvas))
        [segment] = canvas.segments
        first = int(segment.editable[0].nonzero()[0])
        turn = first > 0 and int(segment.x[0, first - 1]) == self.roles.ids.get("assistant")
        return [Part(mime="text/plain", text=text.lstrip(" ") if turn else text)]

    def pieces(self, canvas: Canvas) -> list[str | None]:
        """The canvas, token by token: None where masked, "" behind an end of text and for parts of a character."""
        [segment] = canvas.segments
        pieces: list[str | None] = []
        ended = False
        for token_id, new in zip(segment.x[0].tolist(), segment.editable[0].tolist(), strict=True):
            ended = ended or (new and token_id in self.end_ids)
            if new and (ended or token_id == self.mask_id):
                pieces.append("" if ended else None)
            else:
                pieces.append(self.tokenizer.piece(token_id))
        return pieces

    def flawed(self, canvas: Canvas, attempt: int) -> Tensor | None:
        """Where (1, s) a gap in Python code has to be written anew, since the text in it breaks the grammar.

        From the line of the first flaw on; every few attempts one line earlier. None where nothing is to be blamed.
        """
        [segment] = canvas.segments
        gap = segment.editable[0].nonzero()[:, 0]
        first, last = int(gap[0]), int(gap[-1])
        if segment.modality is not Modality.CODE or last + 1 == segment.x.shape[1]:   # no gap: its end is open
            return None
        before, after = (self.tokenizer.decode(ids.tolist()) for ids in (segment.x[0, :first], segment.x[0, last + 1:]))
        ids = self._written(canvas)
        text = self.tokenizer.decode(ids)
        place = flaw(before, text, after)
        if place is None:
            return None
        for _ in range(1 + attempt // ATTEMPTS_A_LINE):
            place = max(text.rfind("\n", 0, max(place, 1)), 0)
        kept = next((count for count in range(len(ids)) if len(self.tokenizer.decode(ids[:count + 1])) > place), 0)
        where = torch.zeros_like(segment.editable)
        where[0, gap[kept:]] = True
        return where

    def usage(self, canvas: Canvas) -> tuple[int, int]:
        """(given tokens, new tokens without the end of text and what stands behind it)."""
        [segment] = canvas.segments
        return int((~segment.editable).sum()), len(self._written(canvas))

    def _segment(self, head: list[int], length: int, tail: list[int], modality: Modality) -> Segment:
        ids = torch.tensor([head + [self.mask_id] * length + tail])
        positions = torch.arange(ids.shape[1])
        editable = ((positions >= len(head)) & (positions < len(head) + length))[None]
        return Segment(modality=modality, x=ids, t=editable.float(), editable=editable,
                       positions=positions[None, :, None], mask_id=self.mask_id,
                       onward=bool(self.defaults.block) and not tail, end_ids=self.end_ids, memo=Past())

    def _written(self, canvas: Canvas) -> list[int]:
        [segment] = canvas.segments
        ids: list[int] = segment.x[segment.editable].tolist()
        return list(takewhile(lambda token: token not in self.end_ids, ids))


def _tokenizer(model: OpenModel, vocab_size: int) -> Tokenizer:
    """The model's tokenizer; ModelCorrupt when it does not belong to the network."""
    if model.tokenizer is None or model.tokenizer.vocab_size > vocab_size:
        raise ModelCorrupt(f"{model.name} has no tokenizer for its {vocab_size} tokens",
                           remedy=f"aios models verify {model.name}")
    return model.tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What config.json says beside the network's shape.

    length_max: tokens of a whole canvas. code_id: the token with which a file of code begins.
    """

    mask_id: int
    eot_id: int
    length_max: int
    sampling: SamplingDefaults
    modalities: tuple[str, ...]
    code_id: int | None

    @classmethod
    def read(cls, spec: Mapping[str, Any]) -> Settings:
        """Checked; raises ModelCorrupt."""
        try:
            told, tokens = spec["aios"], spec["tokens"]
            sampling, code = told.get("sampling"), tokens.get("code")
            settings = cls(mask_id=int(tokens["mask"]), eot_id=int(tokens["eot"]), length_max=int(spec["length_max"]),
                           sampling=FALLBACK if sampling is None else SamplingDefaults(**sampling),
                           modalities=tuple(told.get("modalities", ["text"])),
                           code_id=None if code is None else int(code))
            named = {settings.mask_id, settings.eot_id, settings.code_id or 0}
            if not all(0 <= token < int(spec["vocab_size"]) for token in named) or settings.length_max <= 0:
                raise ValueError("a token or length is out of range")
            if not 0 <= int(settings.sampling.block) <= settings.length_max:
                raise ValueError("a block has between 0 tokens and those of the canvas")
            if not settings.modalities or not set(settings.modalities) <= {"text", "code"}:
                raise ValueError("its modalities are not text and code")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelCorrupt(f"config.json does not say how to sample: {error!r}",
                               remedy="fetch the model again") from None
        return settings


@hookimpl
def aios_heads() -> list[TextHead]:
    """The text head."""
    return [TextHead()]
