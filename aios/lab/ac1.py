"""AC-1: what diffusion costs against autoregression at the same parameters, tokenizer and data.

Every finished run of `aios train run ac1` is in the ledger with its validation losses. Those chose each run's weights
and settings, so that the honest figure is the loss of the same weights on the test split, which no training opened:
it is measured here where the weights lie at hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from aios.lab.report import LabOptions, Row
from aios.lab.training_roots import TrainingRoots, config_of, recorded
from aios.ledger import Entry, Ledger

if TYPE_CHECKING:
    from torch import Tensor

    from aios.training.plans import Plan

PLAN: Final = "ac1"
MUST, AIM = 1.20, 1.00
DRAWS: Final = 4
ROWS, ROWS_QUICK = 104, 12          # windows of each source: 40,000 tokens, and 4,600
T_TWO_SIDED_95: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}    # by degrees of freedom
AR: Final = "ar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One figure of the comparison: whose runs, and the objective that was measured on them."""

    name: str
    arm: str
    objective: str
    what: str           # of the loss, as the ledger names it

    def metric(self, seed: int) -> str:
        """The row of the ledger with the validation loss of the mixture."""
        return f"{self.arm}-seed-{seed}_{self.objective}_{self.what}_mixture"


ARMS: Final = (
    Arm(name=AR, arm="ar", objective="ar", what="nats_per_token"),
    Arm(name="masked", arm="masked", objective="masked", what="bound_nats_per_token"),
    Arm(name="block2", arm="block2", objective="block", what="bound_nats_per_token"),
    Arm(name="block2_left_to_right", arm="block2", objective="block_left_to_right", what="nats_per_token"),
)
Losses = Mapping[str, Sequence[float]]      # arm -> nats per token of each seed


def rows(options: LabOptions, ledger: Ledger) -> list[Row]:
    """The ratio of perplexities, by arm and of the best one; null where runs are missing."""
    from aios.training.plans import read_plan

    plan = read_plan(PLAN)
    entries, missing = finished(plan, ledger)
    if missing:
        reason = f"not finished: {', '.join(missing)}; `aios train run {PLAN}` goes on with them"
        return [_row("ac1_ppl_ratio", None, reason=reason)]
    validation = validation_losses(plan, entries)
    best = min((arm.name for arm in ARMS if arm.name != AR), key=lambda name: float(np.mean(validation[name])))
    of_validation = [
        _ratio("ac1_ppl_ratio_validation", validation, best, kind="ledger",
               run=entries[f"{AR}-seed-{plan.seeds[0]}"].id, reason=(
                   "validation split, which also chose weights, settings and this arm; "
                   f"the best arm is {best}; {_means(validation)}"))]
    folders = _with_weights(plan, entries, options)
    data = TrainingRoots.of(options).data(plan.data)
    if folders and data is not None and _same_data(data, entries):
        return [*_live(plan, folders, data, best, options), *of_validation]
    return [_stored(ledger, of_validation[0]), *of_validation, *(
        _ratio(f"ac1_ppl_ratio_{arm.name}", validation, arm.name, kind="ledger", run=of_validation[0].run,
               reason="validation split") for arm in ARMS if arm.name != AR)]


def finished(plan: Plan, ledger: Ledger) -> tuple[dict[str, Entry], list[str]]:
    """The latest entry of each run that counts, and the names of runs that there is none of.

    A run counts if it took the plan's steps; all have the data and parameters of the first autoregressive run.
    """
    names = [f"{arm}-seed-{seed}" for seed in plan.seeds for arm in plan.arms]
    found: dict[str, Entry] = {}
    for entry in ledger.entries():
        for name in entry.checkpoints:
            if entry.command == f"train {plan.name}" and name in names and _value(entry, f"{name}_steps") == plan.loop[
                    "steps"]:
                found[name] = entry
    first = next((found[name] for name in names if name in found), None)
    same = {name for name, entry in found.items()
            if first is not None and _setting(plan, entry) == _setting(plan, first)}
    missing = [name + (" (other data or parameters)" if name in found else "") for name in names if name not in same]
    return {name: found[name] for name in names if name in same}, missing


def _setting(plan: Plan, entry: Entry) -> tuple[str, float | None]:
    """What all runs must share: the data's hash and the number of parameters."""
    return entry.data[plan.data], _value(entry, f"{next(iter(entry.checkpoints))}_parameters")


def _value(entry: Entry, metric: str) -> float | None:
    return next((row["value"] for row in entry.rows if row["metric"] == metric), None)


def validation_losses(plan: Plan, entries: Mapping[str, Entry]) -> dict[str, list[float]]:
    """Every arm's validation loss of the mixture, seed by seed, as the runs recorded it."""
    found: dict[str, list[float]] = {}
    for arm in ARMS:
        values = [_value(entries[f"{arm.arm}-seed-{seed}"], arm.metric(seed)) for seed in plan.seeds]
        if all(value is not None for value in values):
            found[arm.name] = [value for value in values if value is not None]
    return found


def ratio(diffusion: Sequence[float], ar: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """exp(mean difference) and its 95 % t-interval over seeds, which are paired; no interval from one seed."""
    gaps = np.array(diffusion) - np.array(ar)
    mean = float(gaps.mean())
    if len(gaps) - 1 not in T_TWO_SIDED_95:
        return math.exp(mean), None
    half = T_TWO_SIDED_95[len(gaps) - 1] * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))


def _ratio(metric: str, losses: Losses, name: str, *, reason: str, kind: str = "live", run: str | None = None) -> Row:
    if name not in losses:
        return _row(metric, None, reason=f"the runs recorded no {name}")
    value, interval = ratio(losses[name], losses[AR])
    return replace(_row(metric, round(value, 4), reason=reason), n=len(losses[name]), run=run,
                   kind="ledger" if kind == "ledger" else "live",
                   interval=None if interval is None else (round(interval[0], 4), round(interval[1], 4)))


def _row(metric: str, value: float | None, *, reason: str) -> Row:
    headline = metric == "ac1_ppl_ratio"
    return Row(metric=metric, value=value, unit="x", better="lower", must=MUST if headline else None,
               aim=AIM if headline else None, reason=reason, kind="live" if value is not None else "ledger")


def _means(losses: Losses) -> str:
    return "mean nats per token: " + ", ".join(f"{name} {np.mean(values):.4f}" for name, values in losses.items())


def _stored(ledger: Ledger, of_validation: Row) -> Row:
    """The ratio on the test split that a full run measured earlier; the validation's where there was none."""
    earlier = recorded(ledger, "eval text", "ac1_ppl_ratio")
    if earlier is not None:
        return earlier
    return replace(of_validation, metric="ac1_ppl_ratio", must=MUST, aim=AIM, reason=(
        f"no weights at hand for the test split, and no run has measured it; {of_validation.reason}"))


def _with_weights(plan: Plan, entries: Mapping[str, Entry], options: LabOptions) -> dict[str, Path]:
    """The folders of all runs, if each holds the very weights that the ledger names; else none."""
    from aios.training.vocabulary import file_sha256

    found = {folder.name: folder for folder in TrainingRoots.of(options).runs(plan.name)
             if folder.name in entries
             and file_sha256(folder / "best.safetensors") == entries[folder.name].checkpoints[folder.name]}
    return found if set(found) == set(entries) else {}


def _same_data(folder: Path, entries: Mapping[str, Entry]) -> bool:
    from aios.training.build import data_sha256

    return {entry.data[PLAN] for entry in entries.values()} == {data_sha256(folder)}


def _live(plan: Plan, folders: Mapping[str, Path], data: Path, best: str, options: LabOptions) -> list[Row]:
    """All runs' weights on one random subsample of the test split."""
    windows, weights = test_windows(data, ROWS_QUICK if options.quick else ROWS, options.seed)
    losses: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    for number, seed in enumerate(plan.seeds):
        for index, arm in enumerate(ARMS):
            options.progress(f"AC-1 on the test split: {arm.name}, seed {seed}",
                             (number + index / len(ARMS)) / len(plan.seeds))
            told = {name: score(folders[f"{arm.arm}-seed-{seed}"], arm, ids, options.seed)
                    for name, ids in windows.items()}
            losses[arm.name].append(sum(weights[name] * told[name] for name in told))
    tokens = sum(ids.numel() for ids in windows.values())
    reason = (f"test split, which no training or choice has seen, {tokens} tokens drawn by the seed, the same for all "
              f"runs; {best} was best on validation; t-interval over {len(plan.seeds)} seeds; {_means(losses)}")
    return [_ratio("ac1_ppl_ratio", losses, best, reason=reason), *(
        _ratio(f"ac1_ppl_ratio_{arm.name}", losses, arm.name,
               reason="test split; " + ("a likelihood" if arm.what == "nats_per_token" else "an upper bound"))
        for arm in ARMS if arm.name != AR)]


def test_windows(data: Path, rows: int, seed: int, length: int = 128) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Random windows of each source's test split that do not overlap, and the shares of the sources."""
    import torch

    from aios.training.data import load_stream

    weights: dict[str, float] = json.loads((data / "corpus.json").read_text(encoding="utf-8"))["weights"]
    rng, found = np.random.default_rng(seed), {}
    for name in weights:
        stream = load_stream(data / f"{name}.test.npz")
        first = np.sort(rng.permutation(max(len(stream.tokens) // length, 1))[:rows]) * length
        found[name] = torch.from_numpy(stream.windows(first, length))
    return found, weights


def score(folder: Path, arm: Arm, windows: Tensor, seed: int) -> float:
    """Nats per token of a run's best weights on these windows, by the objective that the arm is judged by."""
    from aios.model.config import TransformerConfig
    from aios.model.score_network import TextScoreNetwork
    from aios.training.checkpoints import read_tensors
    from aios.training.objective import LeftToRight, bound, objective
    from aios.training.vocabulary import UNWRITTEN

    told = config_of(folder)
    network = TextScoreNetwork(TransformerConfig(**told["network"]), told["vocab_size"], never=UNWRITTEN).eval()
    network.load_state_dict(read_tensors(folder / "best.safetensors")[0])
    loop = told["loop"]
    asked = (LeftToRight(block=loop["block"]) if arm.objective == "block_left_to_right"
             else objective(arm.objective, block=loop["block"], onward=loop["onward"]))
    return bound(network, asked, windows, draws=DRAWS, seed=seed)
