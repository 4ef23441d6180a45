"""A head without a network: it is certain of one text, so that what the daemon does with it can be foretold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aios.contracts import (
    Adapter,
    Canvas,
    Condition,
    Denoiser,
    Head,
    Logits,
    Modality,
    OpenModel,
    Prediction,
    SamplingDefaults,
    Schedule,
    Segment,
    Workbench,
)
from aios.diffusion.schedules import SCHEDULES
from aios.hookspecs import hookimpl
from aios.messages import Diffuse, Infill, Part

MASK, END, VOCABULARY = 256, 257, 258   # after the 256 bytes
CERTAIN = 30.0                          # logit: every other token together has probability below 1e-10


class FakeHead:
    """Writes `text` into whatever it is given, byte by byte, then ends; needs no model."""

    process = "absorbing"

    def __init__(self, text: str = "hello", modality: str = "text") -> None:
        self.modality = modality
        self.text = text

    def open(self, workbench: Workbench, model: str | None) -> OpenFakeHead:
        """Ready at once."""
        return OpenFakeHead(self.text, Modality.of(self.modality), model or "fake")


class OpenFakeHead:
    """Tokens are bytes; the canvas is one segment of given bytes and masks."""

    schedule: Schedule = SCHEDULES["log_linear"]
    defaults = SamplingDefaults(sampler="confidence", steps_per_token=1.0, temperature=0.0, length=16)

    def __init__(self, text: str, modality: Modality, model: str) -> None:
        self._text = list(text.encode())
        self._modality = modality
        self.model = OpenModel(name=model, kind="diffusion", release="0" * 64, path=Path(), spec={}, tensors={},
                               tokenizer=None)
        self.denoiser: Denoiser = self._predict

    def encode(self, request: Diffuse | Infill, length: int) -> tuple[Canvas, Condition]:
        """[given bytes | `length` masks | given bytes]."""
        before, after = (request.prompt, "") if isinstance(request, Diffuse) else (request.prefix, request.suffix)
        head, tail = (list(text.encode(errors="replace")) for text in (before, after))
        x = torch.tensor([head + [MASK] * length + tail])
        editable = torch.zeros_like(x, dtype=torch.bool)
        editable[:, len(head):len(head) + length] = True
        positions = torch.arange(x.shape[1])[None, :, None]
        segment = Segment(modality=self._modality, x=x, t=editable.float(), editable=editable, positions=positions,
                          mask_id=MASK)
        return Canvas(segments=(segment,)), Condition.none()

    def _predict(self, canvas: Canvas, condition: Condition, adapters: Sequence[Adapter] = ()) -> Prediction:
        """Certain of the text's next byte at every open position, and of END after it."""
        [segment] = canvas.segments
        index = (segment.editable.cumsum(dim=1) - 1).clamp(min=0, max=len(self._text))
        wanted = torch.tensor([*self._text, END])[index]
        return Prediction(segments=(Logits(values=CERTAIN * torch.nn.functional.one_hot(wanted, VOCABULARY).float()),))

    def project(self, hidden: Tensor) -> Logits:
        """There is no backbone: what comes in is taken for logits."""
        return Logits(values=hidden)

    def decode(self, canvas: Canvas) -> list[Part]:
        """The new bytes up to END."""
        return [Part(mime="text/plain", text=bytes(self._written(canvas)).decode(errors="replace"))]

    def pieces(self, canvas: Canvas) -> list[str | None]:
        """One piece a position; END shows as nothing."""
        [segment] = canvas.segments
        return [None if token == MASK else chr(token) if token < MASK else "" for token in segment.x[0].tolist()]

    def usage(self, canvas: Canvas) -> tuple[int, int]:
        """(given bytes, new bytes)."""
        [segment] = canvas.segments
        return int((~segment.editable).sum()), len(self._written(canvas))

    def _written(self, canvas: Canvas) -> list[int]:
        [segment] = canvas.segments
        tokens: list[int] = segment.x[segment.editable].tolist()
        return [token for token in (tokens[:tokens.index(END)] if END in tokens else tokens) if token < MASK]


class FakePlugin:
    """A plugin object that brings the given heads."""

    def __init__(self, *heads: Any) -> None:
        self._heads: list[Head] = list(heads or [FakeHead()])

    @hookimpl
    def aios_heads(self) -> list[Head]:
        """The heads given at construction."""
        return self._heads
