"""The score network as samplers see it: a canvas of tokens in, logits of the clean tokens out."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Int
from torch import Tensor

from aios.contracts import Canvas, Logits, Modality, Prediction, Segment
from aios.model.cache import KeyValueCache
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork


class Past:
    """What a network has read of one request: the keys and values of its clean beginning."""

    def __init__(self) -> None:
        self.ids: Tensor | None = None  # (b, n), read in order
        self.cache: KeyValueCache | None = None

    def behind(self, given: Int[Tensor, "b p"], room: int, config: TransformerConfig) -> KeyValueCache:
        """Return the cache with what is known of `given`: all that was read, or nothing of another beginning."""
        known = 0 if self.ids is None else self.ids.shape[1]
        same = self.ids is not None and len(self.ids) == len(given) and torch.equal(self.ids, given[:, :known])
        if self.cache is None or not same or self.cache.length_max < room:
            self.cache = KeyValueCache(config, batch=len(given), length_max=room)
            self.ids = given[:, :0]
        return self.cache


class TextDenoiser:
    """A network's predictions for canvases of one token segment; rows of positions that are not masked mean nothing.

    A segment that is written onward is read in the order of block diffusion, [clean beginning | what is editable], any
    other one in both directions. Before a given tail no text ends: `end_ids` have probability 0 there.
    """

    def __init__(self, network: TextScoreNetwork, *, end_ids: Collection[int]) -> None:
        self.network, self.end_ids = network, tuple(end_ids)
        self._packed = network.backbone.packed_layers()
        self._known = {modality for modality in Modality if modality is Modality.TEXT or network.knows(modality)}

    def __call__(self, canvas: Canvas) -> Prediction:
        (segment,) = canvas.segments
        masked = segment.masked
        begin, hidden = self._hidden(segment)
        values = torch.zeros(*segment.x.shape, self.network.head.vocab_size)
        values[masked] = self.network.logits(hidden[masked[:, begin : begin + hidden.shape[1]]])
        if not segment.onward:
            for end_id in self.end_ids:
                values[:, :, end_id].masked_fill_(~segment.editable[:, -1:], -torch.inf)
        return Prediction(segments=(Logits(values=values),))

    def _hidden(self, segment: Segment) -> tuple[int, Tensor]:
        """Return where the hidden states begin that matter, and these; what stands before it is read once."""
        begin, end = 0, segment.x.shape[1]
        if segment.onward:
            columns = segment.editable.any(dim=0).nonzero()[:, 0]
            begin, end = int(columns[0]), int(columns[-1]) + 1
        past = segment.memo if isinstance(segment.memo, Past) else Past()
        given = segment.x[:, :begin]
        cache = past.behind(given, segment.x.shape[1], self.network.backbone.config)
        known = cache.length
        hidden = self.network.read(
            segment.x[:, known:end], cache, end - begin, t=segment.t[:, known:end],
            positions=segment.positions[:, known:end, 0], packed=self._packed,
            # Text's row stands in for one that was never trained.
            modality=segment.modality if segment.modality in self._known else Modality.TEXT,
        )  # fmt: skip
        cache.advance(begin - known)  # what is editable may change
        past.ids = given
        return begin, hidden[:, begin - known :]
