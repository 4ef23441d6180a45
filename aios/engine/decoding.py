"""Texts of one language model that are written together: each step one token of every text.

Texts join and leave between steps; prompts are read in slices beside the texts that are being written already.
A request gives the same text alone and in company, but for rounding: a matrix product of more rows may sum in
another order, so that two tokens that are all but equally likely can change places.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aios import messages
from aios.engine import remembering
from aios.engine.blame import ALLOCATION_FAILED
from aios.engine.chat import OpenLanguage
from aios.engine.router import SEED_BYTES
from aios.engine.sampling import Choice, draw
from aios.errors import AiosError, LimitExceeded, ModelError
from aios.messages import Finish, Generate, Part, Response, State, Usage, Verdict
from aios.model.cache import KeyValueCache, PackedStep, Piece
from aios.text.incremental import GrowingText, StopTexts

CACHE_BYTES_MAX = 2 << 30        # of keys and values: a quarter of the smallest machine of the local tier
SLICE_OPERATIONS = 12e9          # of prompts in one quantum: about a tenth of a second on two cores
SLICE_TOKENS_MIN = 16            # below this a slice costs as much as this
SLICE_TOKENS_MAX = 512
ARRIVALS_CHARS_MAX = 1 << 16     # of prompts that become tokens in one quantum, about 20 ms; one at least

Outcome = State | Response | AiosError


@dataclass(slots=True, kw_only=True, eq=False)
class Writing:
    """One text on its way: its prompt is read until `cache` is None, then it is written."""

    key: Hashable
    request: Generate
    choice: Choice
    seed: int
    rng: torch.Generator
    prompt: list[int]
    room: int                        # new tokens at most
    cache: KeyValueCache | None
    text: GrowingText
    stops: StopTexts
    seen: Tensor | None              # (v,) bool, where a repetition costs
    bytes: int                       # of keys and values, at most
    written: list[int] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    steps: int = 0
    compute_s: float = 0.0

    def take(self, token_id: int) -> str:
        """Write one more token; what may be shown of it."""
        self.written.append(token_id)
        if self.seen is not None:
            self.seen[token_id] = True
        return self._show(self.stops.add(self.text.add(token_id)))

    def close(self) -> str:
        """No more tokens come; what may be shown of what was held back."""
        return self._show(self.stops.add(self.text.finish()) + self.stops.finish())

    def _show(self, text: str) -> str:
        if text:
            self.shown.append(text)
        return text


class Decoding:
    """The texts that one model writes at present; not for use by several threads at once."""

    def __init__(self, language: OpenLanguage,
                 answered: Callable[[Generate, Response], None] = lambda request, response: None) -> None:
        """`answered` hears every answer before the caller does."""
        self.language = language
        self._answered = answered
        self._cache = language.network.running_cache()
        self._arrived: deque[tuple[Hashable, Generate]] = deque()
        self._reading: dict[Hashable, Writing] = {}      # prompts, in the order of their arrival
        self._writing: dict[Hashable, Writing] = {}
        self._finished: dict[Hashable, tuple[Generate, Response]] = {}   # answers that have not left

    @property
    def open(self) -> bool:
        """True while a request is unanswered."""
        return bool(self._arrived or self._reading or self._writing or self._finished)

    def join(self, key: Hashable, request: Generate) -> None:
        """Take a request in under a name of the caller's; what is wrong with it is told by the next `advance`."""
        self._arrived.append((key, request))

    def leave(self, key: Hashable) -> None:
        """Let go of a request, wherever it stands."""
        self._arrived = deque(entry for entry in self._arrived if entry[0] != key)
        self._reading.pop(key, None)
        self._finished.pop(key, None)
        if self._writing.pop(key, None) is not None:
            self._cache.leave(key)

    def advance(self) -> dict[Hashable, Outcome]:
        """One quantum: at most one forward. What came of it, by name; an answered request is gone."""
        outcomes = self._admit()
        try:
            if self._reading or self._writing:
                with torch.inference_mode():
                    outcomes |= self._step()
                self.language.intact(False)
            outcomes |= self._deliver(outcomes)
        except AiosError as error:
            return outcomes | dict.fromkeys(self._abandon(), error)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and ALLOCATION_FAILED not in str(error):
                raise
            full = ModelError("there is not enough free memory for this text",
                              remedy="ask for fewer tokens, or free memory")
            return outcomes | dict.fromkeys(self._abandon(), full)
        return outcomes

    def _deliver(self, outcomes: Mapping[Hashable, Outcome]) -> dict[Hashable, Outcome]:
        """The answers whose last words were shown, none from weights that were not checked."""
        ready = [key for key in self._finished if key not in outcomes]
        if ready:
            self.language.intact(True)
        delivered: dict[Hashable, Outcome] = {}
        for key in ready:
            request, response = self._finished.pop(key)
            self._answered(request, response)
            delivered[key] = response
        return delivered

    def _admit(self) -> dict[Hashable, Outcome]:
        """Turn arrived requests into tokens, as many as fit beside the others; errors of those that never can."""
        refused: dict[Hashable, Outcome] = {}
        chars = 0
        while self._arrived and chars < ARRIVALS_CHARS_MAX:
            key, request = self._arrived[0]
            try:
                if (writing := self._open(key, request)) is None:
                    break                   # it waits until others have left
                self._reading[key] = writing
            except AiosError as error:
                refused[key] = error
            chars += len(request.prompt) + sum(len(one.content) for one in request.messages)
            chars += sum(len(one.text) for one in request.passages)
            self._arrived.popleft()
        return refused

    def _open(self, key: Hashable, request: Generate) -> Writing | None:
        messages.check(request)
        language = self.language
        prompt = language.prompt(request)
        room = min(request.max_tokens, language.network.length_max - len(prompt))
        needed = self._cache.bytes_of(len(prompt) + room)
        if needed > CACHE_BYTES_MAX:
            raise LimitExceeded(f"{len(prompt)} tokens and {room} new ones need {needed >> 20} MiB of memory; the "
                                f"limit is {CACHE_BYTES_MAX >> 20}", remedy="shorten the prompt, or ask for less")
        taken = sum(one.bytes for one in (*self._reading.values(), *self._writing.values()))
        if taken + needed > CACHE_BYTES_MAX:
            return None
        choice = language.choice.asked(request)
        seen = None
        if choice.repetition_penalty != 1.0:
            seen = torch.zeros(language.network.vocab_size, dtype=torch.bool)
            seen[prompt] = True
        seed = int.from_bytes(os.urandom(SEED_BYTES)) if request.seed is None else request.seed
        return Writing(key=key, request=request, choice=choice, seed=seed, rng=torch.Generator().manual_seed(seed),
                       prompt=prompt, room=room, cache=language.network.prompt_cache(len(prompt)),
                       text=GrowingText(language.tokenizer), stops=StopTexts(request.stop), seen=seen, bytes=needed)

    def _step(self) -> dict[Hashable, Outcome]:
        """One forward over a token of every text and a slice of the prompts."""
        began = time.perf_counter()
        slices = self._slices()
        step = PackedStep(self._cache, [piece for _, piece in slices])
        rows = [*(self._writing[key] for key in step.names), *(writing for writing, _ in slices)]
        ids = [self._writing[key].written[-1] for key in step.names]
        for writing, piece in slices:
            ids += writing.prompt[piece.cache.length:piece.cache.length + piece.count]
        counts = [1] * len(step.names) + [piece.count for _, piece in slices]
        ready = [row for row, (writing, count) in enumerate(zip(rows, counts, strict=True))
                 if writing.cache is None or writing.cache.length + count == len(writing.prompt)]
        if ready:
            tokens = self._choose(self.language.network.advance(ids, step, ready), [rows[row] for row in ready])
        else:
            self.language.network.advance(ids, step, [])
            tokens = []
        share_s = (time.perf_counter() - began) / len(ids)
        for writing, count in zip(rows, counts, strict=True):
            writing.steps += 1
            writing.compute_s += share_s * count
        outcomes: dict[Hashable, Outcome] = {
            writing.key: State(step=0, steps=writing.room) for writing in rows[len(step.names):]}
        for row, token_id in zip(ready, tokens, strict=True):
            outcomes.pop(rows[row].key, None)
            if (state := self._write(rows[row], token_id)) is not None:
                outcomes[rows[row].key] = state
        return outcomes

    def _slices(self) -> list[tuple[Writing, Piece]]:
        """The next tokens of prompts, first come first served, within one quantum's work."""
        slices: list[tuple[Writing, Piece]] = []
        left, tokens = SLICE_OPERATIONS, 0
        for writing in self._reading.values():
            assert writing.cache is not None
            waiting = len(writing.prompt) - writing.cache.length
            cost = self.language.network.operations(writing.cache.length)
            count = min(waiting, max(int(left / cost), SLICE_TOKENS_MIN - tokens), SLICE_TOKENS_MAX - tokens)
            if count <= 0:
                break
            slices.append((writing, Piece(cache=writing.cache, count=count)))
            left, tokens = left - count * cost, tokens + count
        return slices

    def _choose(self, logits: Tensor, rows: Sequence[Writing]) -> list[int]:
        """The next token of every row of logits (n, v)."""
        likeliest = logits.max(dim=1)
        if not bool(likeliest.values.isfinite().all()):    # a value that is no number wins every comparison
            name = self.language.name
            raise ModelError(f"model {name} predicted values that are no numbers",
                             remedy=f"check its files: aios models verify {name}")
        return [token_id if row.choice.plain else draw(logits[index], row.choice, row.rng, row.seen)
                for index, (row, token_id) in enumerate(zip(rows, likeliest.indices.tolist(), strict=True))]

    def _write(self, writing: Writing, token_id: int) -> State | None:
        """Add a token to a text, or end it; None when there is nothing more to show of it."""
        ended = token_id in self.language.ends
        delta = "" if ended else writing.take(token_id)
        if ended or writing.stops.found or len(writing.written) == writing.room:
            delta += writing.close()
            finish: Finish = "stop" if ended or writing.stops.found else "length"
            self.leave(writing.key)
            self._finished[writing.key] = writing.request, self._response(writing, finish)
            return State(step=len(writing.written), steps=writing.room, delta=delta) if delta else None
        if writing.cache is not None:
            self._cache.join(writing.key, writing.cache)
            writing.cache = None
            self._writing[writing.key] = self._reading.pop(writing.key)
        return State(step=len(writing.written), steps=writing.room, delta=delta or None)

    def _response(self, writing: Writing, finish: Finish) -> Response:
        choice = writing.choice
        return Response(
            parts=(Part(mime="text/plain", text="".join(writing.shown)),), modality=frozenset({"text"}),
            seed=writing.seed,
            usage=Usage(prompt_tokens=len(writing.prompt), completion_tokens=len(writing.written), steps=writing.steps,
                        compute_ms=writing.compute_s * 1e3),
            verdict=Verdict(
                model=self.language.name, release=self.language.release, finish=finish,
                sampler="greedy" if choice.temperature == 0.0 else "sampling", temperature=choice.temperature,
                filters=choice.filters, memories=remembering.memories(writing.request), threads=torch.get_num_threads(),
                instruction_set=torch.backends.cpu.get_cpu_capability()))

    def _abandon(self) -> list[Hashable]:
        """Let go of everything that was begun; returns the names."""
        lost = [*self._reading, *self._writing, *self._finished]
        for key in lost:
            self.leave(key)
        return lost
