"""The score network as samplers see it: a canvas of tokens in, logits of the clean tokens out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from aios.contracts import Adapter, Canvas, Condition, Logits, Modality, Prediction, Segment
from aios.errors import BadInput
from aios.model.cache import KeyValueCache
from aios.model.config import TransformerConfig
from aios.model.lora import check_wearable
from aios.model.memory_attention import SOURCE, TRAITS, Passages, Pattern
from aios.model.score_network import TextScoreNetwork


class Past:
    """What a network has read of one request: the keys and values of its clean beginning, and its passages."""

    def __init__(self) -> None:
        self.ids: Tensor | None = None  # (b, n), read in order
        self.cache: KeyValueCache | None = None
        self.passages: list[Passages] = []  # of each row
        self.pattern: Pattern | None = None  # of the condition tokens
        self.adapters: tuple[Adapter, ...] = ()  # with which it was read

    def behind(
        self, given: Int[Tensor, "b p"], room: int, config: TransformerConfig, adapters: tuple[Adapter, ...]
    ) -> KeyValueCache:
        """Return the cache with what is known of `given`: all that was read, or nothing of another beginning or
        with other adapters.
        """
        known = 0 if self.ids is None else self.ids.shape[1]
        same = self.ids is not None and len(self.ids) == len(given) and torch.equal(self.ids, given[:, :known])
        same = same and self.adapters == adapters
        if self.cache is None or not same or self.cache.length_max < room:
            self.cache = KeyValueCache(config, batch=len(given), length_max=room)
            self.ids, self.passages, self.pattern, self.adapters = given[:, :0], [], None, adapters
        return self.cache


class TextDenoiser:
    """A network's predictions for canvases of one token segment; rows of positions that are not masked mean nothing.

    A segment that is written onward is read in the order of block diffusion, [clean beginning | what is editable], any
    other one in both directions. Before a given tail no text ends: `end_ids` have probability 0 there.
    What a condition holds of memory is attended to and pointed at, where the network has learned that.
    Adapters are worn by all rows, or those of their `OnRows`; ReleaseMismatch for one that adapts no diffusion model.
    """

    def __init__(self, network: TextScoreNetwork, *, end_ids: Collection[int]) -> None:
        self.network, self.end_ids = network, tuple(end_ids)
        self._packed = network.backbone.packed_layers()
        self._known = {modality for modality in Modality if modality is Modality.TEXT or network.knows(modality)}

    def __call__(
        self, canvas: Canvas, condition: Condition | None = None, adapters: Sequence[Adapter] = ()
    ) -> Prediction:
        check_wearable(adapters, kind="diffusion")
        (segment,) = canvas.segments
        tokens = {} if condition is None else condition.tokens
        self._check(tokens)
        past = segment.memo if isinstance(segment.memo, Past) else Past()
        masked = segment.masked
        begin, hidden = self._hidden(segment, past, tokens.get(SOURCE), tokens.get(TRAITS), tuple(adapters))
        values = torch.zeros(*segment.x.shape, self.network.head.vocab_size)
        asked = hidden[masked[:, begin : begin + hidden.shape[1]]]
        logits = self.network.logits(asked)
        values[masked] = self._pointed(segment, past.passages, asked, logits) if past.passages else logits
        if not segment.onward:
            for end_id in self.end_ids:
                values[:, :, end_id].masked_fill_(~segment.editable[:, -1:], -torch.inf)
        return Prediction(segments=(Logits(values=values),))

    def _check(self, tokens: Mapping[str, Tensor]) -> None:
        """BadInput for condition tokens that the network cannot attend to."""
        memory, given = self.network.backbone.memory, tokens.get(SOURCE)
        if memory is not None and given is not None and given.shape[2] != memory.dim:
            raise BadInput(f"passages have vectors of {given.shape[2]} dimensions; this model has learned to read "
                           f"{memory.dim}", remedy="use the encoder that the model was taught with")

    def _hidden(
        self, segment: Segment, past: Past, memory: Tensor | None, traits: Tensor | None,
        adapters: tuple[Adapter, ...],
    ) -> tuple[int, Tensor]:
        """Return where the hidden states begin that matter, and these; what stands before it is read once."""
        begin, end = 0, segment.x.shape[1]
        if segment.onward:
            columns = segment.editable.any(dim=0).nonzero()[:, 0]
            begin, end = int(columns[0]), int(columns[-1]) + 1
        given = segment.x[:, :begin]
        cache = past.behind(given, segment.x.shape[1], self.network.backbone.config, adapters)
        known = cache.length
        if memory is not None and self.network.backbone.memory is not None and past.pattern is None:
            past.pattern = self.network.backbone.memory.prepared(memory)
        hidden = self.network.read(
            segment.x[:, known:end], cache, end - begin, t=segment.t[:, known:end],
            positions=segment.positions[:, known:end, 0], packed=self._packed, memory=past.pattern,
            adapters=adapters,
            # Text's row stands in for one that was never trained.
            modality=segment.modality if segment.modality in self._known else Modality.TEXT,
        )  # fmt: skip
        cache.advance(begin - known)  # what is editable may change
        past.ids = given
        if traits is not None and not past.passages:
            past.passages = self._passages(segment.x, traits)
        return begin, hidden[:, begin - known :]

    def _passages(self, ids: Tensor, traits: Tensor) -> list[Passages]:
        """The passages at the beginning of each row, for a network that points at words."""
        pointer, count = self.network.pointer, traits.shape[1]
        if pointer is None or pointer.shut:
            return []
        return [pointer.passages(ids[row, :count], traits[row]) for row in range(len(ids))]

    def _pointed(self, segment: Segment, passages: list[Passages], asked: Tensor, logits: Tensor) -> Tensor:
        """Log-probabilities of the masked positions, words of their row's passages mixed in."""
        assert self.network.pointer is not None
        rows, columns = segment.masked.nonzero(as_tuple=True)
        last = torch.stack([segment.x[rows, (columns - back).clamp(min=0)] for back in (1, 2, 3)], dim=1)
        embedded = self.network.head.embed(last[None, :, 0])[0]
        mixed = torch.empty_like(logits)
        for row, seen in enumerate(passages):
            mine = rows == row
            mixed[mine] = self.network.pointer(
                logits[mine], asked[mine], last[mine], embedded[mine], seen
            ).log()
        return mixed
