"""What conditioning on memory costs a request: looking up, judging, retrieving, and the attention in every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from aios.contracts import Condition
from aios.engine.remembering import conditioned
from aios.lab.report import LabOptions, Row
from aios.memory.conditioner import MemoryConditioner
from aios.memory.record import Floats, NewMemory
from aios.memory.vector_memory import DIM, ArrowStorage
from aios.messages import Diffuse
from aios.model.config import TransformerConfig
from aios.model.memory_attention import SOURCE, GatedCrossAttention, MemoryOptions

if TYPE_CHECKING:
    from aios.engine.arrow import ArrowEngine

OVERHEAD: Final = Row(metric="conditioning_overhead_ms", value=None, unit="ms", better="lower", must=10, aim=2,
                      reason="not run")
MEMORIES, MEMORIES_QUICK = 100_000, 10_000
GROUP: Final = 8192
QUERIES, QUERIES_QUICK = 200, 40
NEAR: Final = 0.35               # length of the noise around a centre: neighbours have the cosines of like sentences
CENTRES: Final = 2000
HIDDEN_DIM: Final = 256          # of the embedded model
STEPS: Final = 24                # denoiser calls of an answer, one block of tokens each


def overhead(engine: ArrowEngine, scratch: Path, options: LabOptions) -> list[Row]:
    """conditioning_overhead_ms, and the encoding of a query beside it."""
    count = MEMORIES_QUICK if options.quick else MEMORIES
    options.progress(f"conditioning among {count} memories", 0.95)
    rng = np.random.default_rng(options.seed)
    centres = rng.standard_normal((CENTRES, DIM), np.float32)
    asked = QUERIES_QUICK if options.quick else QUERIES
    with ArrowStorage.open(scratch / "many") as store:
        for start in range(0, count, GROUP):
            size = min(GROUP, count - start)
            vectors = _near(centres[rng.integers(CENTRES, size=size)], rng)
            store.remember_many([NewMemory(text=f"The code of {_cupboard(start + row)} is {rng.integers(10_000)}.",
                                           vector=vector) for row, vector in enumerate(vectors)])
        conditioner = MemoryConditioner(store)
        # The last memories, each asked for by a vector near its own: a question is not the sentence that answers it.
        queries = [(f"What is the code of {_cupboard(start + row)}?", vector)
                   for row, vector in enumerate(_near(vectors, rng))][-asked:]
        retrieving = _median_ms([partial(_condition, conditioner, *query) for query in queries])
        recalling = _median_ms([partial(store.recall, vector, 5) for _, vector in queries])
        condition = _condition(conditioner, *queries[0])
    attending = _attention_ms(condition)
    encoding = _median_ms([partial(engine.encode, [f"What is the code of cupboard {number} in the hall?"])
                           for number in range(20)])
    note = (f"at {count:,} memories: looking up and judging {retrieving:.2f} (five nearest alone {recalling:.2f}), "
            f"attention in {STEPS} denoiser calls {attending:.2f}")
    return [replace(OVERHEAD, value=retrieving + attending, n=len(queries), reason=note),
            Row(metric="query_encoding_ms", value=encoding, unit="ms", better="lower", n=20)]


def _near(centres: Floats, rng: np.random.Generator) -> Floats:
    """Unit vectors around centres."""
    units = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    noise = rng.standard_normal(centres.shape, np.float32) * np.float32(NEAR / DIM ** 0.5)
    moved = units + noise
    near: Floats = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return near


def _cupboard(number: int) -> str:
    return f"cupboard {number} in hall {number % 97}"


def _condition(conditioner: MemoryConditioner, question: str, vector: Floats) -> Condition:
    """Everything between a query's vector and the condition that a denoiser attends to."""
    passages = conditioner.passages(question, vector=vector)
    return conditioned(Condition.none(), Diffuse(passages=passages))


def _attention_ms(condition: Condition) -> float:
    """The gated attention of one answer, of the embedded model's width: what is prepared once, and every call."""
    attention = GatedCrossAttention(HIDDEN_DIM, MemoryOptions(dim=DIM), TransformerConfig.of(HIDDEN_DIM, 1).norm_eps)
    attention.requires_grad_(False).gate.fill_(0.5)
    x, tokens = torch.randn(1, 2, HIDDEN_DIM), condition.tokens.get(SOURCE, torch.randn(1, 6, DIM))
    with torch.inference_mode():
        pattern = attention.prepared(tokens)
        assert pattern is not None
        return _median_ms([partial(attention.prepared, tokens)] * 20) \
            + STEPS * _median_ms([partial(attention, x, pattern)] * 200)


def _median_ms(calls: list[Callable[[], object]]) -> float:
    """The median time of the calls after one of them as a warm-up."""
    calls[0]()
    taken = []
    for call in calls:
        began = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - began))
    return median(taken)
