"""Many texts of many requests to unit vectors, in quanta short enough for others to be served in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aios.contracts import OpenModel
from aios.messages import Encode, Part, Response, Usage, Verdict
from aios.model.encoder import EncoderModel
from aios.text.tokenizer import SentenceTokenizer

TEXTS_PER_QUANTUM_MAX = 64       # as many short sentences as make the matrices of a small encoder efficient
TOKENS_PER_QUANTUM_MAX = 2048    # about a third of a second of MiniLM on two cores without AMX


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceEncoder:
    """An encoder model with its tokenizer."""

    name: str
    release: str
    network: EncoderModel
    tokenizer: SentenceTokenizer
    intact: Callable[[bool], None]    # of its OpenModel

    @classmethod
    def open(cls, model: OpenModel, tokenizer: SentenceTokenizer) -> SentenceEncoder:
        """Build the network from the model's tensors; raises UnknownArchitecture or ModelCorrupt."""
        network = EncoderModel.from_huggingface(model.spec, model.tensors)
        return cls(name=model.name, release=model.release, network=network, tokenizer=tokenizer,
                   intact=model.intact)


@dataclass(slots=True, kw_only=True)
class Encoding:
    """A request on its way: rows of `vectors` (n, d) are filled until none is open."""

    vectors: Tensor
    open: int
    tokens: int = 0
    compute_s: float = 0.0

    def response(self, encoder: SentenceEncoder) -> Response:
        """The finished answer: one tensor part, little-endian f32."""
        rows, width = self.vectors.shape
        part = Part(mime=f"application/vnd.aios.tensor;dtype=float32;shape={rows},{width}",
                    data=self.vectors.numpy().astype("<f4", copy=False).tobytes())
        return Response(
            parts=(part,), modality=frozenset({"text"}),
            usage=Usage(prompt_tokens=self.tokens, compute_ms=self.compute_s * 1e3),
            verdict=Verdict(model=encoder.name, release=encoder.release, threads=torch.get_num_threads(),
                            instruction_set=torch.backends.cpu.get_cpu_capability()))


def encode(encoder: SentenceEncoder, requests: Mapping[int, Encode]) -> Iterator[dict[int, Encoding]]:
    """Encode the texts of all requests together; after every quantum yields those that are finished, by key.

    Requests of few texts come first, and texts of like length share a batch.
    """
    width = encoder.network.config.hidden_dim
    encodings = {key: Encoding(vectors=torch.empty(len(request.texts), width), open=len(request.texts))
                 for key, request in requests.items()}
    if empty := {key: encoding for key, encoding in encodings.items() if not encoding.open}:
        yield empty
    rows = sorted(((key, row) for key, request in requests.items() for row in range(len(request.texts))),
                  key=lambda at: (len(requests[at[0]].texts), at[0], len(requests[at[0]].texts[at[1]])))
    for start in range(0, len(rows), TEXTS_PER_QUANTUM_MAX):
        chunk = rows[start:start + TEXTS_PER_QUANTUM_MAX]
        began = time.perf_counter()
        ids = encoder.tokenizer.encode_batch([requests[key].texts[row] for key, row in chunk])
        for members in _quanta([len(sequence) for sequence in ids]):
            vectors = encoder.network.encode([ids[member] for member in members])
            tokens = sum(len(ids[member]) for member in members)
            share_s = (time.perf_counter() - began) / tokens
            finished = {}
            for key, places in _by_key([chunk[member][0] for member in members]).items():
                encoding = encodings[key]
                encoding.vectors[[chunk[members[place]][1] for place in places]] = vectors[places]
                own_tokens = sum(len(ids[members[place]]) for place in places)
                encoding.open -= len(places)
                encoding.tokens += own_tokens
                encoding.compute_s += share_s * own_tokens
                if not encoding.open:
                    finished[key] = encoding
            yield finished
            began = time.perf_counter()


def _by_key(keys: Sequence[int]) -> dict[int, list[int]]:
    """Where each key stands in the list."""
    places: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return places


def _quanta(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers, shortest first, in groups that stay below the tokens of one quantum (one row at least)."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[row] > TOKENS_PER_QUANTUM_MAX:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
