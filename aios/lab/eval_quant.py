"""`aios eval quant`: what compression costs MiniLM on the STS-B development set, beside plain rounding as the floor.

Calibration and every choice see training sentences without their labels, never the development set; that is measured
once for each compressed model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from torch import nn

from aios.config import Places
from aios.errors import AiosError
from aios.lab.model_scores import STSB, cosines, sts_pairs
from aios.lab.report import LabOptions, Report, Row, sha256_file
from aios.lab.statistics import Floats, bootstrap, spearman
from aios.model.encoder import EncoderModel
from aios.quantisation.formats import Format
from aios.quantisation.recipe import Recipe, bits_per_weight
from aios.quantisation.release import compress
from aios.quantisation.subject import Subject
from aios.store import models
from aios.store.record import ModelRecord

MODEL = "minilm"
TEXTS = 2000                 # unlabelled training sentences for calibration
TEXTS_QUICK = 300
PAIRS_QUICK = 400
INT2_BITS_MAX = 2.6          # bits a weight on average, every tensor of the file counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row: the recipe that is judged, and its verdict."""

    metric: str
    recipe: Recipe
    must: float | None = None
    aim: float | None = None
    bits_max: float | None = None   # a bits row with this must goes with it
    quick: bool = True       # also measured with --quick


CASES: Final = (
    Case(metric="minilm_sts_drop_int8", must=0.0005, aim=0.0002,
         recipe=Recipe(form=Format(bits=8, group_size=64, symmetric=True), method="gptq")),
    Case(metric="minilm_sts_drop_int4", must=0.001, aim=0.0002,
         recipe=Recipe(form=Format(bits=4, group_size=32), method="gptq")),
    # On training pairs 2.5 bits everywhere lost less than a budget of 2.6 that gave attention 4 bits and words fewer.
    Case(metric="minilm_sts_drop_int2", must=0.03, aim=0.015, bits_max=INT2_BITS_MAX,
         recipe=Recipe(form=Format(bits=2, group_size=64), method="gptq")),
    Case(metric="minilm_sts_drop_int8_rounding", quick=False,
         recipe=Recipe(form=Format(bits=8, group_size=64, symmetric=True), method="rtn")),
    Case(metric="minilm_sts_drop_int4_rounding", quick=False,
         recipe=Recipe(form=Format(bits=4, group_size=32), method="rtn")),
    Case(metric="minilm_sts_drop_int2_rounding", quick=False,
         recipe=Recipe(form=Format(bits=2, group_size=32), method="rtn")),
)


def run(options: LabOptions) -> Report:
    """Measure all rows; what cannot be measured here is null with the reason."""
    cases = [case for case in CASES if case.quick or not options.quick]
    file = options.find_data(STSB)
    try:
        record = models.find(MODEL, Places.find())
        reason = None if file else f"no {STSB}: name its folder with --data or AIOS_DATA (docs/data.md)"
    except AiosError as error:
        reason = f"{error.message}: {error.remedy}"
    if reason is not None or file is None:
        return Report.of("quant", [_row(case, reason=reason) for case in cases], options)
    root = Path(tempfile.mkdtemp(prefix="aios-quant-"))
    try:
        rows = _measure(cases, record, file, root, options)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return Report.of("quant", rows, options, data={STSB: sha256_file(file)}, checkpoints={MODEL: record.release})


def _row(case: Case, *, value: float | None = None, reason: str | None = None) -> Row:
    return Row(metric=case.metric, value=value, unit="", better="lower", must=case.must, aim=case.aim, reason=reason)


def _measure(cases: Sequence[Case], record: ModelRecord, file: Path, root: Path, options: LabOptions) -> list[Row]:
    """Each case: compress a copy in a scratch home, open it as the engine does, compare with f32."""
    places = Places(config=root / "config", data=root / "data", state=root / "state", cache=root / "cache",
                    runtime=root / "run")
    texts = calibration_texts(file, TEXTS_QUICK if options.quick else TEXTS)
    subject = Subject.open(record)
    first, second, gold = sts_pairs(file, "dev")
    if options.quick:
        chosen = np.random.default_rng(options.seed).permutation(len(gold))[:PAIRS_QUICK]
        first, second, gold = [first[i] for i in chosen], [second[i] for i in chosen], gold[chosen]
    ids = subject.token_rows([*first, *second])
    options.progress("STS-B development set in f32", 0.0)
    exact = _cosines(subject.network, ids)
    rows: list[Row] = []
    for index, case in enumerate(cases):
        at = (index + 0.1) / len(cases)
        done = compress(record, case.recipe, name=f"case-{index}", texts=texts, places=places,
                        progress=lambda label, share, at=at: options.progress(  # type: ignore[misc]
                            label, at + 0.8 * share / len(cases)))
        spec, tensors = subject.spec, models.open_tensors(done.record)
        values = _cosines(EncoderModel.from_huggingface(spec, tensors), ids)
        bits = bits_per_weight(done.outcomes)
        rows.append(_verdict(case, exact, values, gold, bits, options.seed))
        if case.bits_max is not None:
            rows.append(Row(metric=case.metric.replace("sts_drop", "bits_per_weight"), value=bits, unit="bits",
                            better="lower", must=case.bits_max,
                            reason="codes, scales, zeros, embeddings, norms and biases"))
    return rows


def _verdict(case: Case, exact: Floats, values: Floats, gold: Floats, bits: float, seed: int) -> Row:
    """The drop with its paired bootstrap interval; the reason tells bits and recipe."""
    pair = np.stack([exact, values], axis=1)

    def drop(both: Floats, scores: Floats) -> float:
        return spearman(both[:, 0], scores) - spearman(both[:, 1], scores)

    rmse = float(np.sqrt(np.square(exact - values).mean()))
    return replace(
        _row(case, value=drop(pair, gold)), n=len(gold), interval=bootstrap(drop, pair, gold, seed),
        reason=f"{bits:.3f} bits a weight, everything counted; {case.recipe}; cosines differ by {rmse:.4f} (RMS) "
               f"from f32, whose Spearman is {spearman(exact, gold):.4f}")


def calibration_texts(file: Path, count: int) -> list[str]:
    """Training sentences, spread over the alphabet, without any that the development set holds too."""
    known: set[str] = set()
    for split in ("dev", "test"):
        first, second, _ = sts_pairs(file, split)
        known.update(first, second)
    first, second, _ = sts_pairs(file, "train")
    texts = sorted({*first, *second} - known)
    return texts[::max(len(texts) // count, 1)][:count]


def _cosines(network: nn.Module, ids: Sequence[Sequence[int]]) -> Floats:
    return cosines(network.encode(ids))   # type: ignore[operator]
