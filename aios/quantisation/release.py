"""A compressed model as an installed model of its own: weights, card, record; it says what it derives from."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aios.config import Places
from aios.errors import BadInput
from aios.quantisation.calibration import default_texts
from aios.quantisation.recipe import (
    Batches,
    Outcome,
    Produced,
    Progress,
    Recipe,
    after_tuning,
    bits_per_weight,
    compressed,
    plan,
)
from aios.quantisation.subject import Subject
from aios.quantisation.tuning import tune
from aios.security import private_file
from aios.store import models
from aios.store.record import RECORD, TENSORS, TOKENIZER, ModelRecord, check_name, seal
from aios.store.weights import WeightWriter

CARD = "README.md"
PLAN_SHARE, TUNE_SHARE = 0.3, 0.6   # of the time, with a budget, with tuning; for the bar only


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """The new model, and what became of each tensor."""

    record: ModelRecord
    outcomes: tuple[Outcome, ...]


def default_name(name: str, recipe: Recipe) -> str:
    """What the new model is called when nobody says: the old name and its bits."""
    if recipe.bytes_max is not None:
        return f"{name}-{recipe.bytes_max / 1e6:g}mb"
    if recipe.bits_mean_max is not None:
        return f"{name}-{recipe.bits_mean_max:g}bit"
    return f"{name}-int{recipe.form.bits}"


def compress(record: ModelRecord, recipe: Recipe, *, name: str | None = None, texts: Sequence[str] = (),
             places: Places | None = None, progress: Progress = lambda label, done: None) -> Compressed:
    """Install a compressed copy of `record` as `name`; the model it came from is not touched.

    `texts` calibrate it, the sentences inside the package when there are none. Raises BadInput when the name is taken,
    the budget too small or the weights are not finite; ModelCorrupt when the source is.
    """
    places = places or Places.find()
    name = check_name(name or default_name(record.name, recipe))
    subject = Subject.open(record)
    batches = subject.batches(texts or default_texts()) if recipe.calibrated else []
    produced = _produced(subject, recipe, batches, progress)
    outcomes: list[Outcome] = []
    with models.locked(places):
        if name in models.names(places):
            raise BadInput(f"a model called {name!r} is installed already", remedy="choose another name with --as NAME")
        folder = models.staging(places)
        try:
            _copy_files(record, folder)
            with WeightWriter(folder / TENSORS) as writer:
                for tensor_name, tensor, outcome in produced:
                    writer.add(tensor_name, tensor)
                    outcomes.append(outcome)
                subject.check_intact()   # nothing is made of a source whose bytes have rotted
                text = card(record, name, recipe, outcomes, len(texts))
                writer.finish(spec=subject.spec, card=text, tokenizer_sha256=_sha256(folder / TOKENIZER),
                              derived_from=record.release)
            private_file.write(folder / CARD, text.encode())
            seal(folder, name=name, source=f"aios models quantize {record.name}",
                 source_version=record.source_version, licence=record.licence)
            models.install(folder, name, places)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return Compressed(record=models.find(name, places), outcomes=tuple(outcomes))


def _produced(subject: Subject, recipe: Recipe, batches: Batches, progress: Progress) -> Iterator[Produced]:
    """Plan, pack and tune; without tuning each tensor comes as soon as it is packed, so that memory holds one."""
    begin = PLAN_SHARE if recipe.budgeted else 0.0
    end = 1 - TUNE_SHARE if recipe.tune_steps else 1.0
    formats = plan(subject, recipe, batches, lambda label, done: progress(label, begin * done))
    packed = compressed(subject, recipe, formats, batches,
                        lambda label, done: progress(label, begin + (end - begin) * done))
    if not recipe.tune_steps:
        yield from packed
        return
    done = list(packed)
    tuned = tune(subject, {name: tensor for name, tensor, _ in done}, batches, recipe.tune_steps,
                 lambda share: progress("tuning", end + TUNE_SHARE * share))
    for name, _, outcome in done:
        yield name, tuned[name], after_tuning(subject, outcome, tuned[name])


def card(record: ModelRecord, name: str, recipe: Recipe, outcomes: Sequence[Outcome], texts: int) -> str:
    """The model card: what it is, how it was made, what it costs, in Markdown."""
    before, after = (sum(sizes) for sizes in zip(*((o.bytes_before, o.bytes) for o in outcomes), strict=True))
    packed = [outcome for outcome in outcomes if outcome.form is not None]
    counted = Counter(str(outcome.form) for outcome in packed)
    worst = max(packed, key=lambda outcome: outcome.relative_error, default=None)
    calibration = (f"{texts} texts of the person who made it" if texts else "the sentences inside the package") \
        if recipe.calibrated else "none"
    lines = [
        f"# {name}", "",
        f"{record.name} in fewer bits. Made by `aios models quantize`; every other file is that of {record.name}.", "",
        f"- derived from: release `{record.release}` ({record.source} {record.source_version})",
        f"- recipe: {recipe}",
        f"- calibration: {calibration}",
        f"- weights: {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB now, {bits_per_weight(outcomes):.3f} bits for "
        "each number of the model, everything counted",
        f"- formats: {', '.join(f'{count} matrices {form}' for form, count in counted.most_common())}; "
        f"{len(outcomes) - len(packed)} tensors plain",
        f"- licence: {record.licence}", ""]
    if worst is not None:
        lines += [f"The largest error of a matrix is {worst.relative_error:.1%} of its norm ({worst.name}).", ""]
    lines += ["Answers differ from those of the model it came from; cards and memories that pin the one do not fit the "
              "other.", ""]
    return "\n".join(lines)


def _copy_files(record: ModelRecord, folder: Path) -> None:
    """Every file but the weights, the record and the card."""
    for file in record.files:
        if file.name not in (TENSORS, RECORD, CARD):
            private_file.write(folder / file.name, (record.path / file.name).read_bytes())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
