"""`aios bench encode`: our sentence encoder in f32, INT8 and INT4 beside sentence-transformers and onnxruntime.

The rows without a suffix judge INT4 with activations of 8 bits: its loss of quality is measured on the very
configuration that is timed. All arms read the same sentences of STS-B and take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aios.config import Config, Places
from aios.errors import AiosError, ModelError
from aios.lab.machine import machine_facts, torch_threads
from aios.lab.model_scores import STSB, sts_pairs
from aios.lab.report import LabOptions, Report, Row, sha256_file
from aios.lab.statistics import Floats, bootstrap, spearman
from aios.store import models
from aios.store.record import ModelRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aios.lab.peer_onnx import OnnxEncoder
    from aios.model.encoder import EncoderModel

MODEL: Final = "minilm"
JUDGED: Final = "int4"
SENTENCES, SENTENCES_QUICK = 2000, 128
TEXTS, TEXTS_QUICK = 2000, 400            # unlabelled training sentences for calibration
PAIRS_QUICK: Final = 500
REPEATS, REPEATS_QUICK = 5, 2
ONE_REPEATS: Final = 20                   # of a single sentence, for each repeat of many
OPENINGS, OPENINGS_QUICK = 7, 1
PROBE_SECONDS_MAX: Final = 120.0
PEAK_REPEATS: Final = 9
RATIO: Final = Row(metric="encode_vs_best_peer", value=None, unit="x", better="higher", must=1.5, aim=4.0,
                   reason="not run")
RATE: Final = Row(metric="encode_sentences_per_s", value=None, unit="/s", better="higher", must=1500.0, aim=2500.0,
                  reason="not run")
RATE_MUST_AMX: Final = 2000.0
ONE: Final = Row(metric="encode_one_ms", value=None, unit="ms", better="lower", must=5.0, aim=2.0, reason="not run")
LOAD: Final = Row(metric="encode_load_ms", value=None, unit="ms", better="lower", must=100.0, aim=30.0,
                  reason="not run")
SHARE: Final = Row(metric="encode_memory_share", value=None, unit="of the f32 weights", better="lower", must=0.5,
                   aim=0.3, reason="not run")
DROP: Final = Row(metric="sts_drop", value=None, unit="", better="lower", must=0.003, aim=0.001, reason="not run")

Encode = Callable[[Sequence[str]], "NDArray[np.float32]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to encode: its name, what it does, and how it is set up."""

    name: str
    encode: Encode
    said: str
    version: str | None = None    # of a peer


def run(options: LabOptions) -> Report:
    """Measure all rows; what cannot be measured here is null with the reason."""
    file = options.find_data(STSB)
    try:
        record = models.find(MODEL, Places.find())
        reason = None if file else f"no {STSB}: name its folder with --data or AIOS_DATA (docs/data.md)"
    except AiosError as error:
        reason = f"{error.message}: {error.remedy}"
    if reason is not None or file is None:
        return Report.of("encode", [replace(row, reason=reason) for row in (RATIO, RATE, ONE, LOAD, SHARE, DROP)],
                         options)
    from aios.lab.eval_quant import calibration_texts
    from aios.lab.low_bit_encoders import low_bit_encoders

    home = low_bit_encoders(record, calibration_texts(file, TEXTS_QUICK if options.quick else TEXTS), options, 0.4)
    with torch_threads() as threads, ExitStack() as stack:
        ours = our_arms(home)
        options.progress("opening the peers", 0.4)
        peers = _peers(stack, record, threads, sentences(file, SENTENCES_QUICK, options.seed))
        rows = [*_speed(ours, peers, sentences(file, SENTENCES_QUICK if options.quick else SENTENCES, options.seed),
                        options, threads),
                _limit(record, file, options, threads),
                *_openings(record, home, options), *_drops(ours, peers, file, options)]
    return Report.of("encode", rows, options, data={STSB: sha256_file(file)}, checkpoints={MODEL: record.release})


def sentences(file: Path, count: int, seed: int) -> list[str]:
    """Distinct sentences of the training and development sets, drawn by seed."""
    pairs = [sts_pairs(file, split) for split in ("train", "dev")]
    known = sorted({text for first, second, _ in pairs for text in (*first, *second)})
    drawn = np.random.default_rng(seed).choice(len(known), size=min(count, len(known)), replace=False)
    return [known[index] for index in drawn]


def our_arms(home: Places) -> list[Arm]:
    """The engine on the installed weights and on their copies in fewer bits."""
    from functools import partial

    from aios.engine.arrow import ArrowEngine
    from aios.lab.low_bit_encoders import RECIPES

    plain, packed = ArrowEngine.open(Config()), ArrowEngine.open(Config(), places=home)
    return [Arm(name="f32", encode=partial(plain.encode, model=MODEL), said="float32"),
            *(Arm(name=name, encode=partial(packed.encode, model=name), said=f"{recipe}, 8-bit activations")
              for name, recipe in RECIPES.items())]


def _peers(stack: ExitStack, record: ModelRecord, threads: int, texts: Sequence[str]) -> list[Arm]:
    """The peers that are installed, each at its fastest settings."""
    from aios.lab.peer_encoder import PEER, open_peer
    from aios.lab.peer_onnx import open_onnx

    arms: list[Arm] = []
    if (plain := stack.enter_context(open_peer(record))) is not None:
        plain.tune(texts)
        arms.append(Arm(name=PEER, encode=plain.encode, said=plain.settings, version=plain.version))
    onnx: Mapping[Any, OnnxEncoder] = stack.enter_context(open_onnx(record, threads))
    for precision, peer in onnx.items():
        peer.tune(texts)
        arms.append(Arm(name=f"onnxruntime {precision}", encode=peer.encode, said=peer.settings, version=peer.version))
    return arms


def _turns(arms: Sequence[Arm], texts: Sequence[str], repeats: int) -> dict[str, float]:
    """Median seconds of each arm, which take turns after a warm-up."""
    taken: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in range(repeats + 1):
        for arm in arms:
            began = time.perf_counter()
            arm.encode(texts)
            if turn:
                taken[arm.name].append(time.perf_counter() - began)
    return {name: median(seconds) for name, seconds in taken.items()}


def _speed(ours: Sequence[Arm], peers: Sequence[Arm], texts: Sequence[str], options: LabOptions,
           threads: int) -> list[Row]:
    """Many sentences and one, every arm in turn."""
    from aios.lab.peer_encoder import INSTALL

    repeats = REPEATS_QUICK if options.quick else REPEATS
    arms = [*ours, *peers]
    options.progress(f"{len(texts)} sentences", 0.45)
    rates = {name: len(texts) / seconds for name, seconds in _turns(arms, texts, repeats).items()}
    options.progress("one sentence", 0.7)
    ones = {name: 1e3 * seconds for name, seconds in _turns(arms, texts[:1], ONE_REPEATS * repeats).items()}
    facts = machine_facts()
    setting = f"{facts['isa']}, {threads} threads, {len(texts)} sentences of STS-B"
    must = RATE_MUST_AMX if facts["isa"] == "amx" else RATE.must
    best = max(peers, key=lambda arm: rates[arm.name], default=None)
    beside: dict[str, Any] = {} if best is None else {"peer": best.name, "peer_version": best.version}
    rows = [_ratio(rates, best, setting) if best is not None else replace(RATIO, reason=INSTALL)]
    for arm in ours:
        rate, one = rates[arm.name], ones[arm.name]
        rows += [
            replace(_of(RATE, arm.name), value=rate, n=repeats, **beside, reason=f"{arm.said}; {setting}",
                    must=must if arm.name == JUDGED else None, peer_value=None if best is None else rates[best.name]),
            replace(_of(ONE, arm.name), value=one, n=ONE_REPEATS * repeats, **beside,
                    reason=f"{arm.said}; {facts['isa']}, {threads} threads",
                    peer_value=None if best is None else ones[best.name])]
    for arm in peers:
        name = "".join(letter if letter.isalnum() else "_" for letter in arm.name)
        rows += [Row(metric=f"{name}_sentences_per_s", value=rates[arm.name], unit="/s", better="higher", n=repeats,
                     reason=f"{arm.version}; {arm.said}"),
                 Row(metric=f"{name}_one_ms", value=ones[arm.name], unit="ms", better="lower",
                     n=ONE_REPEATS * repeats, reason=f"{arm.version}; {arm.said}")]
    return rows


def _of(row: Row, name: str) -> Row:
    """The judged row itself, or one for comparison named after its arm."""
    return row if name == JUDGED else replace(row, metric=f"{row.metric}_{name}", must=None, aim=None)


def _ratio(rates: Mapping[str, float], best: Arm, setting: str) -> Row:
    said = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return replace(RATIO, value=rates[JUDGED] / rates[best.name], peer=best.name, peer_version=best.version,
                   reason=f"{JUDGED} beside {best.name}; {best.said}; {setting}; sentences/s: {said}")


def _limit(record: ModelRecord, file: Path, options: LabOptions, threads: int) -> Row:
    """What the products of the network alone would take at the machine's exact int8 peak."""
    from aios.lab.kernel_peaks import SEQUENCES, operations, run_products
    from aios.quantisation.subject import Subject

    subject = Subject.open(record)
    texts = sentences(file, SENTENCES_QUICK, options.seed)
    tokens = sum(map(len, subject.token_rows(texts))) / len(texts)
    network: EncoderModel = subject.network   # type: ignore[assignment]
    weights = sum(parameter.numel() for parameter in network.layers.parameters() if parameter.ndim == 2)
    rates = []
    for name in SEQUENCES:
        taken = []
        for _ in range(PEAK_REPEATS):
            began = time.perf_counter()
            run_products(name, threads)
            taken.append(time.perf_counter() - began)
        rates.append(operations(name, threads) / median(taken))
    peak, work = max(rates), 2.0 * weights * tokens
    return Row(metric="encode_int8_peak_limit_per_s", value=peak / work if peak else None, unit="/s", better="higher",
               n=PEAK_REPEATS, excused=not peak,
               reason=f"{tokens:.1f} tokens a sentence, {weights / 1e6:.2f}M weights, {peak / 1e9:.0f} GOP/s of exact "
                      "int8 products without loads; codes of 4 bits may reach twice that, since eight of their "
                      "products fit 16 bits together")


def _openings(record: ModelRecord, home: Places, options: LabOptions) -> list[Row]:
    """Time until the first sentence can be encoded, and memory after some were; each in a fresh process."""
    from aios.lab.low_bit_encoders import RECIPES

    options.progress("opening", 0.75)
    root = str(home.data.parent)
    repeats = OPENINGS_QUICK if options.quick else OPENINGS
    cases = [(MODEL, "f32", None), *((name, name, root) for name in RECIPES)]
    found: dict[str, list[dict[str, float]]] = {name: [] for _, name, _ in cases}
    warming = not options.quick     # what was just read is in the page cache anyway
    for turn in range(repeats + warming):
        for model, name, where in cases:
            one = _probe(model, where)
            if turn >= warming:
                found[name].append(one)
    plain = sum(tensor.nbytes for tensor in models.open_tensors(record).values())
    rows = []
    for name, measured in found.items():
        grown = median(one["rss_bytes"] for one in measured)
        rows += [
            replace(_of(LOAD, name), value=median(one["ms"] for one in measured), n=repeats,
                    reason="record, weights, network and tokenizer, in a fresh process with everything imported"),
            replace(_of(SHARE, name), value=grown / plain, n=repeats,
                    reason=f"growth of resident memory by opening and 64 sentences, {grown / 1e6:.1f} MB, in "
                           f"{plain / 1e6:.1f} MB of f32 weights")]
    return rows


def _probe(model: str, home: str | None) -> dict[str, float]:
    words = [sys.executable, "-W", "ignore", "-m", "aios.lab.encode_probe", model]
    environ = {**os.environ, **({"AIOS_HOME": home} if home else {})}
    done = subprocess.run(words, capture_output=True, text=True, timeout=PROBE_SECONDS_MAX, check=False, env=environ)
    if done.returncode != 0:
        raise ModelError(f"{model} did not open: {done.stderr.strip()[-300:]}",
                         remedy="run it alone: " + " ".join(words[1:]))
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _drops(ours: Sequence[Arm], peers: Sequence[Arm], file: Path, options: LabOptions) -> list[Row]:
    """What each configuration loses of the f32 encoder's rank correlation on the development set, as it was timed."""
    first, second, gold = sts_pairs(file, "dev")
    if options.quick:
        chosen = np.random.default_rng(options.seed).permutation(len(gold))[:PAIRS_QUICK]
        first, second, gold = [first[i] for i in chosen], [second[i] for i in chosen], gold[chosen]

    def values(arm: Arm) -> Floats:
        vectors = arm.encode([*first, *second]).astype(np.float64)
        products: Floats = (vectors[:len(gold)] * vectors[len(gold):]).sum(axis=1)
        return products

    options.progress("STS-B development set", 0.9)
    exact = values(ours[0])
    rows = []
    for arm in (*ours[1:], *(peer for peer in peers if "int8" in peer.name)):
        pair = np.stack([exact, values(arm)], axis=1)
        name = "".join(letter if letter.isalnum() else "_" for letter in arm.name)
        rows.append(replace(
            _of(DROP, name), value=_drop(pair, gold), n=len(gold), interval=bootstrap(_drop, pair, gold, options.seed),
            reason=f"{arm.said}; cosines differ by {np.sqrt(np.square(pair[:, 1] - exact).mean()):.4f} (RMS) from f32, "
                   f"whose Spearman is {spearman(exact, gold):.4f}"))
    return rows


def _drop(both: Floats, scores: Floats) -> float:
    return spearman(both[:, 0], scores) - spearman(both[:, 1], scores)
