"""`aios bench text`: a language model's prompts and words a second beside llama.cpp, on the same weights.

Both sides quantise the dequantised weights of the installed model anew: our INT4 in groups of 64 with zeros and GGUF's
Q4_0 take 4.5 bits a weight, our INT8 in groups of 64 and Q8_0 8.25 and 8.5. llama.cpp turns activations into bytes;
`generate` keeps 16 bits of them, which is what the judged rows time, and rows ending in _a8 say what bytes would give.
All arms take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aios.config import Places
from aios.errors import AiosError
from aios.lab.machine import machine_facts, torch_threads
from aios.lab.report import LabOptions, Report, Row
from aios.model.quant_linear import FAST_BITS, INFERENCE_BITS
from aios.store import models

if TYPE_CHECKING:
    from torch import Tensor

    from aios.lab.peer_llamacpp import LlamaCpp
    from aios.model.language import LanguageModel
    from aios.store.record import ModelRecord

MODEL: Final = "smollm2"
PROMPT_TOKENS: Final = 128
WRITTEN, WRITTEN_QUICK = 32, 8
REPEATS, REPEATS_QUICK = 9, 3
SLOW_REPEATS: Final = 2                    # of arms that are only shown
PAIRS: Final[Mapping[int, str]] = {4: "Q4_0", 8: "Q8_0"}
GROUP_SIZE: Final = 64
AGREEMENT_MIN: Final = 0.98                # correlation of logits, below which the two are not the same model
PROMPT: Final = Row(metric=f"prompt{PROMPT_TOKENS}_vs_llamacpp", value=None, unit="x", better="higher", must=2.0,
                    aim=6.0, reason="not run")
DECODE: Final = Row(metric="decode_vs_llamacpp", value=None, unit="x", better="higher", must=1.0, aim=1.6,
                    reason="not run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One opened model: reads a prompt from the beginning, then tokens behind it one after another."""

    name: str
    read: Callable[[Sequence[int]], None]
    write: Callable[[Sequence[int]], None]
    logits: Callable[[], np.ndarray]
    said: str


Speeds = tuple[float, float]    # tokens a second of reading and of writing


def run(options: LabOptions) -> Report:
    """Measure all rows; what cannot be measured here is null with the reason."""
    from aios.lab.peer_llamacpp import INSTALL, installed

    try:
        record = models.find(MODEL, Places.find())
    except AiosError as error:
        reason = f"{error.message}: {error.remedy}"
        return Report.of("text", [replace(PROMPT, reason=reason), replace(DECODE, reason=reason)], options)
    if not installed():
        return Report.of("text", [replace(PROMPT, reason=INSTALL), replace(DECODE, reason=INSTALL)], options,
                         checkpoints={record.name: record.release})
    import torch

    with torch_threads() as threads, torch.inference_mode():
        rows = _beside_llamacpp(record, options, threads)
        rows += _shown(record, options, threads)
    return Report.of("text", rows, options, checkpoints={record.name: record.release})


def _plain(record: ModelRecord) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the installed model in f32, one after another."""
    from aios.lab.peer_language import plain

    for name, tensor in models.open_tensors(record).items():
        yield name, plain(tensor)


def _beside_llamacpp(record: ModelRecord, options: LabOptions, threads: int) -> list[Row]:
    from aios.lab.peer_llamacpp import LlamaCpp, gguf_file
    from aios.store.record import SPEC, read_spec

    spec = read_spec(record.path / SPEC)
    ids = prompt(int(spec["vocab_size"]), options.seed)
    ours: dict[int, dict[int, Arm]] = {}      # by bits of weights, then of activations
    peers: dict[int, Arm] = {}
    for index, (bits, kind) in enumerate(PAIRS.items()):
        options.progress(f"INT{bits} and {kind} of the same weights", 0.15 * index)
        file = gguf_file(record.release, spec, lambda: _plain(record), kind)
        peers[bits] = _their_arm(LlamaCpp.open(file, kind, threads).tuned(ids))
        ours[bits] = our_arms(record, spec, bits)
    options.progress("in turns", 0.3)
    arms = [arm for by_activations in ours.values() for arm in by_activations.values()]
    speeds = _turns([*arms, *peers.values()], ids, options)
    rows: list[Row] = []
    for which, row in ((0, PROMPT), (1, DECODE)):
        pairs = {(bits, activations): _pair(row, which, arm, peers[bits], speeds, options, threads)
                 for bits, by_activations in ours.items() for activations, arm in by_activations.items()}
        # The peer rounds activations to 8 bits: so do the arms that are judged beside it.
        worst = min((key for key in pairs if key[1] == FAST_BITS), key=lambda key: pairs[key].value or 0.0)
        rows += [replace(pairs[worst], reason=f"the smaller of both pairs, INT{worst[0]}, activations of {worst[1]} "
                                              f"bits as the peer's; {pairs[worst].reason}"),
                 *(replace(pair, metric=f"int{bits}{_suffix(activations)}_{row.metric}", must=None, aim=None)
                   for (bits, activations), pair in pairs.items())]
    return [*rows, *(one for arm in [*arms, *peers.values()] for one in _speed_rows(arm, speeds[arm.name])),
            _agreement({bits: found[FAST_BITS] for bits, found in ours.items()}, peers, ids)]


def prompt(vocabulary: int, seed: int) -> list[int]:
    """Tokens drawn by seed: how long they take does not depend on which they are."""
    drawn: list[int] = np.random.default_rng(seed).integers(0, vocabulary, PROMPT_TOKENS).tolist()
    return drawn


def our_arms(record: ModelRecord, spec: Mapping[str, Any], bits: int) -> dict[int, Arm]:
    """Our network with its matrices rounded to so many bits, by the bits of activations."""
    from aios.model.language import LanguageModel
    from aios.quantisation.formats import packable
    from aios.store.quant import ArrowQuant

    tensors = {name: ArrowQuant.quantize(tensor, bits=bits, group_size=GROUP_SIZE, symmetric=bits == 8)
               if packable(tensor.shape) else tensor for name, tensor in _plain(record)}
    arms = {}
    for activations in (INFERENCE_BITS, FAST_BITS):
        network = LanguageModel.open(spec, tensors, activations)
        said = f"INT{bits} in groups of {GROUP_SIZE}, activations of {activations} bits"
        arms[activations] = Writer(network).arm(f"INT{bits}{_suffix(activations)}", said)
    return arms


def _suffix(activations: int) -> str:
    return "" if activations == INFERENCE_BITS else f"_a{activations}"


class Writer:
    """A language model that reads and writes one text as the engine does: a cache, and steps of one native call."""

    def __init__(self, network: LanguageModel) -> None:
        self._network = network
        self._running = network.running_cache()
        self._logits: Tensor | None = None

    def arm(self, name: str, said: str) -> Arm:
        """As the others are seen."""
        return Arm(name=name, read=self.read, write=self.write, logits=self.logits, said=said)

    def read(self, ids: Sequence[int]) -> None:
        """Read a prompt from the beginning."""
        from aios.model.cache import PackedStep, Piece

        self._running, cache = self._network.running_cache(), self._network.prompt_cache(len(ids))
        step = PackedStep(self._running, [Piece(cache=cache, count=len(ids))])
        self._logits = self._network.advance(ids, step)[0]
        self._running.join("text", cache)

    def write(self, ids: Sequence[int]) -> None:
        """Read tokens behind it, one after another."""
        from aios.model.cache import PackedStep

        for token in ids:
            self._logits = self._network.advance([token], PackedStep(self._running))[0]

    def logits(self) -> np.ndarray:
        """Of the token behind the last one read."""
        assert self._logits is not None
        return self._logits.float().numpy()


def _their_arm(peer: LlamaCpp) -> Arm:
    return Arm(name=peer.kind, read=peer.read, write=peer.write, logits=peer.logits, said=peer.settings)


def _turns(arms: Sequence[Arm], ids: Sequence[int], options: LabOptions, repeats: int | None = None
           ) -> dict[str, Speeds]:
    """Median speeds of each arm, which take turns after a warm-up; what is written lies behind the whole prompt."""
    repeats = repeats or (REPEATS_QUICK if options.quick else REPEATS)
    written = WRITTEN_QUICK if options.quick else WRITTEN
    taken: dict[str, list[Speeds]] = {arm.name: [] for arm in arms}
    for turn in range(repeats + 1):
        for arm in arms:
            began = time.perf_counter()
            arm.read(ids)
            read = time.perf_counter()
            arm.write(ids[:written])
            if turn:
                taken[arm.name].append((len(ids) / (read - began), written / (time.perf_counter() - read)))
    return {name: (median(one[0] for one in speeds), median(one[1] for one in speeds))
            for name, speeds in taken.items()}


def _pair(row: Row, which: int, ours: Arm, theirs: Arm, speeds: Mapping[str, Speeds], options: LabOptions,
          threads: int) -> Row:
    from aios.lab.peer_llamacpp import PEER, version

    mine, other = speeds[ours.name][which], speeds[theirs.name][which]
    return replace(row, value=mine / other, n=REPEATS_QUICK if options.quick else REPEATS, peer=PEER,
                   peer_version=version(), reason=(
                       f"{machine_facts()['isa']}, {threads} threads; tokens/s: {ours.name} {mine:.0f}, {theirs.name} "
                       f"{other:.0f}; {ours.said} beside {theirs.said}"))


def _speed_rows(arm: Arm, speeds: Speeds, n: int | None = None) -> list[Row]:
    name = "".join(letter if letter.isalnum() else "_" for letter in arm.name.lower())
    return [Row(metric=f"{name}_prompt{PROMPT_TOKENS}_tokens_per_s", value=speeds[0], unit="/s", better="higher", n=n,
                reason=arm.said),
            Row(metric=f"{name}_decode_tokens_per_s", value=speeds[1], unit="/s", better="higher", n=n,
                reason=arm.said)]


def _agreement(ours: Mapping[int, Arm], peers: Mapping[int, Arm], ids: Sequence[int]) -> Row:
    """That both sides compute the same network: the correlation of their logits behind the prompt."""
    found = {}
    for bits, arm in ours.items():
        arm.read(ids)
        peers[bits].read(ids)
        found[bits] = float(np.corrcoef(arm.logits(), peers[bits].logits())[0, 1])
    said = ", ".join(f"INT{bits} and {PAIRS[bits]} {value:.5f}" for bits, value in found.items())
    return Row(metric="logits_agreement", value=found[8], unit="", better="higher", must=AGREEMENT_MIN, n=len(found),
               reason=f"correlation behind the prompt, of 8 bits; {said}")


def _shown(record: ModelRecord, options: LabOptions, threads: int) -> list[Row]:
    """transformers and torchao, for comparison; they are not judged, and a quick run leaves them out."""
    from aios.lab.peer_torchao import transformers_arms
    from aios.store.record import SPEC, read_spec

    if options.quick:
        return []
    spec = read_spec(record.path / SPEC)
    ids = prompt(int(spec["vocab_size"]), options.seed)
    rows: list[Row] = []
    for index, arm in enumerate(transformers_arms(spec, dict(models.open_tensors(record)))):
        options.progress(arm.name, 0.6 + 0.13 * index)
        rows += _speed_rows(arm, _turns([arm], ids, options, SLOW_REPEATS)[arm.name], SLOW_REPEATS)
    return rows
