"""The score network as samplers see it: a canvas of tokens in, logits of the clean tokens out."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from aios.contracts import Canvas, Logits, Modality, Prediction, Segment
from aios.model.cache import AttentionMask, KeyValueCache
from aios.model.score_network import TextScoreNetwork


class Past:
    """What a network has read of one request: the keys and values of its clean beginning."""

    def __init__(self) -> None:
        self.ids: Tensor | None = None  # (b, n), read in order
        self.cache: KeyValueCache | None = None

    def continues(self, given: Int[Tensor, "b p"]) -> bool:
        """Return whether all that was read is the beginning of `given`."""
        if self.ids is None or self.ids.shape[0] != given.shape[0] or self.ids.shape[1] > given.shape[1]:
            return False
        return torch.equal(self.ids, given[:, : self.ids.shape[1]])


class TextDenoiser:
    """A network's predictions for canvases of one token segment; rows of positions that are not masked mean nothing.

    A segment that is written onward is read in the order of block diffusion, [clean beginning | what is editable], any
    other one in both directions. Before a given tail no text ends: `end_id` has probability 0 there.
    """

    def __init__(self, network: TextScoreNetwork, *, end_id: int) -> None:
        self.network, self.end_id = network, end_id
        self._known = {modality for modality in Modality if modality is Modality.TEXT or network.knows(modality)}

    def __call__(self, canvas: Canvas) -> Prediction:
        (segment,) = canvas.segments
        masked = segment.masked
        values = torch.zeros(*segment.x.shape, self.network.head.vocab_size)
        if segment.onward:
            first, hidden = self._onward(segment)
            values[masked] = self.network.logits(hidden[masked[:, first : first + hidden.shape[1]]])
        else:
            hidden = self.network.hidden(
                segment.x, t=segment.t, positions=segment.positions[..., 0], modality=self._row(segment)
            )
            values[masked] = self.network.logits(hidden[masked])
            values[:, :, self.end_id].masked_fill_(~segment.editable[:, -1:], -torch.inf)
        return Prediction(segments=(Logits(values=values),))

    def _row(self, segment: Segment) -> Modality:
        """Return the modality whose embedding is used: text's for one that was never trained."""
        return segment.modality if segment.modality in self._known else Modality.TEXT

    def _onward(self, segment: Segment) -> tuple[int, Tensor]:
        """Return where what is editable begins, and its hidden states; what stands before it is read once."""
        columns = segment.editable.any(dim=0).nonzero()[:, 0]
        first, end = int(columns[0]), int(columns[-1]) + 1
        past = segment.memo if isinstance(segment.memo, Past) else Past()
        given = segment.x[:, :first]
        if past.cache is None or not past.continues(given) or past.cache.length_max < end:
            past.cache = KeyValueCache(
                self.network.backbone.config, batch=given.shape[0], length_max=segment.x.shape[1]
            )
            past.ids = given[:, :0]
        cache = past.cache
        known = cache.length
        index = torch.arange(known, end)[:, None]
        seen = (torch.arange(end) <= index) | (index >= first)
        hidden = self.network.hidden(
            segment.x[:, known:end], t=segment.t[:, known:end], positions=segment.positions[:, known:end, 0],
            modality=self._row(segment), mask=AttentionMask(allowed=seen[None, None]), cache=cache,
        )  # fmt: skip
        cache.length, past.ids = first, given  # what is editable may change
        return first, hidden[:, first - known :]
