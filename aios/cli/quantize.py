"""`aios models quantize`: a copy of a model in fewer bits, and what that did to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aios.cli import render
from aios.cli.options import Json
from aios.errors import BadInput

if TYPE_CHECKING:
    from aios.lab.model_scores import Score
    from aios.quantisation.recipe import Outcome, Recipe
    from aios.quantisation.release import Compressed
    from aios.store.record import ModelRecord

BITS_DEFAULT = 4
BITS_BUDGET_MIN = 2          # where a budget starts unless --bits says more
MB = 1_000_000

Method = Literal["rtn", "hqq", "gptq"]


def quantize(
        name: Annotated[str, typer.Argument(help="The model to compress; it stays as it is.")],
        bits: Annotated[int | None, typer.Option(help="8, 4 or 2; 4 when absent. With a budget: the fewest a matrix "
                                                      "may get.")] = None,
        method: Annotated[Method, typer.Option(help="rtn rounds, hqq also seeks better zeros, gptq goes by texts.")]
        = "gptq",
        group: Annotated[int, typer.Option(help="Columns that share a scale: 32, 64 or 128. A budget chooses.")] = 64,
        symmetric: Annotated[bool, typer.Option("--symmetric", help="No zeros: smaller, less exact.")] = False,
        rank: Annotated[int, typer.Option(help="Rank of a residual in f16 that repairs each linear layer.")] = 0,
        budget_mb: Annotated[float | None, typer.Option(help="Choose formats so that the weights fit into this many "
                                                             "MB.")] = None,
        budget_bits: Annotated[float | None, typer.Option(help="Choose formats for this many bits a weight on "
                                                               "average, everything counted.")] = None,
        tune: Annotated[int, typer.Option(metavar="STEPS", help="Afterwards let scales, biases and norms learn from "
                                                                "the source model, for this many batches.")] = 0,
        calibrate: Annotated[Path | None, typer.Option(metavar="FILE", help="Texts like those the model will read, one "
                                                                            "a line.")] = None,
        data: Annotated[Path | None, typer.Option(metavar="DIR", help="Evaluation data, to compare before and after; "
                                                                      "AIOS_DATA when absent.")] = None,
        new_name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="What to call the result.")] = None,
        json: Json = False) -> None:
    """Make a copy of a model in fewer bits, with a table of what that costs."""
    from aios.lab.model_scores import score
    from aios.quantisation.calibration import read_texts
    from aios.quantisation.release import compress
    from aios.quantisation.subject import Subject
    from aios.store.models import find

    recipe = _recipe(bits, method, group, symmetric, rank, budget_mb, budget_bits, tune)
    texts = read_texts(calibrate) if calibrate else ()
    record = find(name)
    with render.progress(name, json, unit="share") as move:
        done = compress(record, recipe, name=new_name, texts=texts,
                        progress=lambda label, share: move(share, 1.0, label))
        move(1.0, 1.0, "quality before")
        before = score(Subject.open(record), data)
        move(1.0, 1.0, "quality after")
        after = score(Subject.open(done.record), data) if before.value is not None else before
    found = _found(record, recipe, done, before, after)
    render.emit(found, json, lambda: _show(found, done.outcomes))


def _recipe(bits: int | None, method: Method, group: int, symmetric: bool, rank: int, budget_mb: float | None,
            budget_bits: float | None, tune: int) -> Recipe:
    from aios.quantisation.formats import Format
    from aios.quantisation.recipe import Recipe

    for value, option in ((budget_mb, "--budget-mb"), (budget_bits, "--budget-bits")):
        if value is not None and not 0 < value < float("inf"):
            raise BadInput(f"{option} {value} is no budget", remedy="give a number above 0")
    if tune < 0:
        raise BadInput(f"--tune {tune} is no number of steps", remedy="100 takes minutes on a small model")
    budgeted = budget_mb is not None or budget_bits is not None
    if budgeted and rank:
        raise BadInput("a budget chooses among formats without a residual", remedy="leave out --rank or the budget")
    form = Format(bits=bits or (BITS_BUDGET_MIN if budgeted else BITS_DEFAULT), group_size=group, symmetric=symmetric,
                  rank=rank)
    return Recipe(form=form, method=method, bytes_max=None if budget_mb is None else int(budget_mb * MB),
                  bits_mean_max=budget_bits, tune_steps=tune)


def _found(record: ModelRecord, recipe: Recipe, done: Compressed, before: Score, after: Score) -> dict[str, Any]:
    from aios.quantisation.recipe import bits_per_weight

    outcomes = done.outcomes
    numbers = sum(8 * outcome.bytes / outcome.bits_per_weight for outcome in outcomes if outcome.bytes)
    bytes_before, bytes_after = sum(o.bytes_before for o in outcomes), sum(o.bytes for o in outcomes)
    return {
        "name": done.record.name, "source": record.name, "release": done.record.release,
        "derived_from": record.release, "path": str(done.record.path), "recipe": str(recipe),
        "bytes_before": bytes_before, "bytes": bytes_after,
        "bits_per_weight_before": 8 * bytes_before / max(numbers, 1), "bits_per_weight": bits_per_weight(outcomes),
        "quality": {"metric": before.metric, "better": before.better, "before": before.value, "after": after.value,
                    "reason": before.reason or after.reason},
        "tensors": [{"name": o.name, "shape": list(o.shape), "format": str(o.form) if o.form else None,
                     "bytes_before": o.bytes_before, "bytes": o.bytes, "bits_per_weight": o.bits_per_weight,
                     "relative_error": o.relative_error, "output_error": o.output_error} for o in outcomes]}


def _show(found: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    packed = [outcome for outcome in outcomes if outcome.form is not None]
    render.table(
        ["tensor", "format", "before", "after", "bits a weight", "weight error", "output error"],
        [[o.name, str(o.form), render.size(o.bytes_before), render.size(o.bytes), f"{o.bits_per_weight:.2f}",
          f"{o.relative_error:.4f}", "" if o.output_error is None else f"{o.output_error:.4f}"] for o in packed],
        "no matrix of this model is large enough to be packed")
    quality = found["quality"]
    measured = quality["reason"] if quality["before"] is None else \
        f"{quality['before']:.4f} before, {quality['after']:.4f} after ({quality['better']} is better)"
    print()
    render.facts({
        "model": found["name"], "derived from": found["source"], "recipe": found["recipe"],
        "plain tensors": len(outcomes) - len(packed),
        "size": f"{render.size(found['bytes_before'])} before, {render.size(found['bytes'])} after",
        "bits a weight": f"{found['bits_per_weight_before']:.2f} before, {found['bits_per_weight']:.3f} after, "
                         "everything counted",
        quality["metric"]: measured, "release": found["release"], "folder": found["path"]})
