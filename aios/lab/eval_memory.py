"""`aios eval memory`: whether what was remembered is found, used, and cheap to use.

Facts are drawn at run time from templates and values that nothing was trained on (`aios.lab.facts`). Each is one of a
hundred of its template; the conditioner retrieves five of them, one of which is true, and `diffuse` answers in at most
24 tokens. Beside it: every way to use memory alone, no memory, the first passage as it stands, and `generate`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import numpy as np

from aios.config import Config, Places
from aios.errors import AiosError
from aios.lab.facts import TEMPLATES, Fact, used, world
from aios.lab.machine import torch_threads
from aios.lab.memory_judge import Judge
from aios.lab.memory_overhead import OVERHEAD, overhead
from aios.lab.memory_writers import ARMS, Writer
from aios.lab.report import LabOptions, Report, Row
from aios.lab.statistics import clopper_pearson
from aios.memory.conditioner import MemoryConditioner
from aios.memory.record import Filter, NewMemory
from aios.memory.vector_memory import ArrowStorage
from aios.messages import Passage

if TYPE_CHECKING:
    from aios.engine.arrow import ArrowEngine

ROWS: Final = {row.metric: row for row in (
    Row(metric="fact_used_percent", value=None, unit="%", better="higher", must=80, aim=95, reason="not run"),
    Row(metric="fact_ranked_first_percent", value=None, unit="%", better="higher", must=80, aim=90, reason="not run"),
    Row(metric="relevant_percent", value=None, unit="%", better="higher", must=80, aim=90, reason="not run"),
    Row(metric="wrong_memory_changes_answer_percent", value=None, unit="%", better="higher", must=80, aim=95,
        reason="not run"), OVERHEAD)}
ANSWERED: Final = ("fact_used_percent", "relevant_percent", "wrong_memory_changes_answer_percent")
QUESTIONS, QUESTIONS_QUICK = 240, 24        # that are answered
JUDGED_QUICK, GENERATED_QUICK = 8, 4        # of these: the language model beside is twenty times as large
RANKED, RANKED_QUICK = 100, 10              # questions of each world that the conditioner alone is asked
ANSWER_TOKENS: Final = 24
RETRIEVED: Final = 5
OTHERS: Final = 19                          # memories beside the true one that the judge chooses from
TEXT_MODEL, LANGUAGE_MODEL = "text-default", "smollm2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question with what the conditioner retrieved for it; `first` is where the true passage stands, if anywhere."""

    fact: Fact
    world: Sequence[Fact]
    passages: tuple[Passage, ...]
    first: bool
    nearest: bool        # whether similarity alone would have put it first

    @property
    def others(self) -> list[Fact]:
        """The facts of the other passages."""
        told = {passage.text for passage in self.passages} - {self.fact.told}
        return [fact for fact in self.world if fact.told in told]

    def mistaken(self, rng: random.Random) -> tuple[tuple[Passage, ...], str]:
        """The passages with another value in place of the true one, and that value."""
        known = {fact.value for fact in self.world}
        value = next(one.value for one in iter(lambda: rng.choice(self.world), None) if one.value != self.fact.value)
        if self.fact.kind == "number":
            value = next(str(number) for number in iter(lambda: rng.randrange(100, 1_000_000), None)
                         if str(number) not in known)
        return tuple(replace(passage, text=passage.text.replace(self.fact.value, value))
                     if passage.text == self.fact.told else passage for passage in self.passages), value


def run(options: LabOptions) -> Report:
    """Measure all rows; what cannot be measured here is null with the reason."""
    from aios.engine.arrow import ArrowEngine
    from aios.store import models

    places = Places.find()
    try:
        engine, checkpoints = ArrowEngine.open(Config(), places=places), {}
        with torch_threads(), TemporaryDirectory(prefix="aios-memory-") as scratch:
            asked = retrieved(engine, Path(scratch), options)
            rows = [*_ranking(asked), *_answers(places, asked, options), *overhead(engine, Path(scratch), options)]
        for name in (TEXT_MODEL, LANGUAGE_MODEL, Config().model.encoder):
            checkpoints[name] = models.find(name, places).release
    except AiosError as error:
        reason = f"{error.message}: {error.remedy}"
        return Report.of("memory", [replace(row, reason=reason) for row in ROWS.values()], options)
    return Report.of("memory", rows, options, checkpoints=checkpoints)


def retrieved(engine: ArrowEngine, scratch: Path, options: LabOptions) -> list[Asked]:
    """Questions about worlds of facts, each world in a namespace of one store, with what was retrieved for them."""
    rng = random.Random(options.seed)
    worlds = [world(template, rng) for template in TEMPLATES]
    each = RANKED_QUICK if options.quick else RANKED
    found = []
    with ArrowStorage.open(scratch / "facts") as store:
        conditioner = MemoryConditioner(store)
        for number, facts in enumerate(worlds):
            options.progress("remembering and asking", 0.3 * number / len(worlds))
            _remember(engine, store, facts, str(number))
            chosen = rng.sample(facts, each)
            for fact, vector in zip(chosen, engine.encode([fact.asked for fact in chosen]), strict=True):
                here = Filter(namespaces=[str(number)])
                passages = conditioner.passages(fact.asked, vector=vector, k=RETRIEVED, filter=here)
                [nearest] = store.recall(vector, 1, here)
                found.append(Asked(fact=fact, world=facts, passages=passages, nearest=nearest.text == fact.told,
                                   first=bool(passages) and passages[0].text == fact.told))
    rng.shuffle(found)
    return found


def _remember(engine: ArrowEngine, store: ArrowStorage, facts: Sequence[Fact], namespace: str) -> None:
    vectors = engine.encode([fact.told for fact in facts])
    store.remember_many([NewMemory(text=fact.told, vector=vector, namespace=namespace)
                         for fact, vector in zip(facts, vectors, strict=True)])


def _ranking(asked: Sequence[Asked]) -> list[Row]:
    first = [one.first for one in asked]
    nearest = 100 * float(np.mean([one.nearest for one in asked]))
    return [replace(_share("fact_ranked_first_percent", first), peer="similarity alone", peer_value=nearest,
                    reason=f"{len(TEMPLATES)} templates of 100 facts each; chance: 1")]


def _answers(places: Places, asked: Sequence[Asked], options: LabOptions) -> list[Row]:
    """What is written with memory in sight, and without."""
    chosen = [one for one in asked if one.passages][:QUESTIONS_QUICK if options.quick else QUESTIONS]
    if not chosen:
        return [replace(ROWS[metric], reason="the conditioner retrieved nothing") for metric in ANSWERED]
    copied = 100 * float(np.mean([used(one.passages[0].text, one.fact, one.others) for one in chosen]))
    try:
        writer = Writer.open(places, TEXT_MODEL)
        answers = {arm: writer.answers(chosen, arm, options) for arm in ARMS}
    except AiosError as error:
        reason = f"{error.message}: {error.remedy}"
        return [*(replace(ROWS[metric], reason=reason) for metric in ANSWERED),
                _aside("copy_first_passage", copied, len(chosen)), *_generated(places, chosen, options)]
    rows = [replace(_share("fact_used_percent", _used(chosen, answers["memory"])),
                    reason=f"in at most {ANSWER_TOKENS} tokens, likeliest first; {writer.told}")]
    rows += [_aside(arm, 100 * float(np.mean(_used(chosen, answers[arm]))), len(chosen)) for arm in ARMS
             if arm != "memory"]
    rows += [_aside("copy_first_passage", copied, len(chosen)), *_generated(places, chosen, options),
             *_wrong(writer, chosen, answers["memory"], options)]
    return rows + _judged(places, chosen, answers, options)


def _used(chosen: Sequence[Asked], answers: Sequence[str]) -> list[bool]:
    return [used(answer, one.fact, one.others) for one, answer in zip(chosen, answers, strict=True)]


def _wrong(writer: Writer, chosen: Sequence[Asked], answers: Sequence[str], options: LabOptions) -> list[Row]:
    """Whether another value in the true passage changes the answer, and whether to that value."""
    rng = random.Random(options.seed + 1)
    mistaken = [one.mistaken(rng) for one in chosen]
    wrong = [replace(one, passages=passages) for one, (passages, _) in zip(chosen, mistaken, strict=True)]
    changed = writer.answers(wrong, "memory", options)
    rows = _share("wrong_memory_changes_answer_percent",
                  [old != new for old, new in zip(answers, changed, strict=True)])
    to = [value in new for (_, value), new in zip(mistaken, changed, strict=True)]
    return [replace(rows, reason=f"to the value that stands there now: {100 * float(np.mean(to)):.1f} %")]


def _judged(places: Places, chosen: Sequence[Asked], answers: dict[str, list[str]], options: LabOptions) -> list[Row]:
    """How often the judge finds the true memory by the answer, among 20 of its template."""
    options.progress("judging", 0.9)
    try:
        judge = Judge.open(places, LANGUAGE_MODEL)
    except AiosError as error:
        return [replace(ROWS["relevant_percent"], reason=f"{error.message}: {error.remedy}")]
    rng, chosen = random.Random(options.seed + 2), chosen[:JUDGED_QUICK] if options.quick else chosen
    lineups = [[one.fact.told, *(fact.told for fact in rng.sample([fact for fact in one.world if fact is not one.fact],
                                                                 OTHERS))] for one in chosen]
    judged = [judge.first((answers["memory"][index], answers["none"][index], f"{one.fact.value}."), lineup)
              for index, (one, lineup) in enumerate(zip(chosen, lineups, strict=True))]
    _, floor, ceiling = 100 * np.mean(judged, axis=0)
    return [replace(_share("relevant_percent", [first for first, _, _ in judged]), reason=(
        f"{judge.told}; true memory found by the answer among {OTHERS + 1} of its template; "
        f"without memory {floor:.1f}, by the value itself {ceiling:.1f}"))]


def _generated(places: Places, chosen: Sequence[Asked], options: LabOptions) -> list[Row]:
    """`generate` with the same passages."""
    options.progress("generate, beside", 0.8)
    chosen = chosen[:GENERATED_QUICK] if options.quick else chosen
    try:
        answers = Writer.generated(places, LANGUAGE_MODEL, chosen)
    except AiosError as error:
        return [Row(metric="fact_used_percent_generate", value=None, unit="%", better="higher",
                    reason=f"{error.message}: {error.remedy}")]
    return [replace(_aside("generate", 100 * float(np.mean(_used(chosen, answers))), len(chosen)),
                    reason=f"{LANGUAGE_MODEL}, likeliest tokens, at most {ANSWER_TOKENS}")]


def _share(metric: str, hits: Sequence[bool]) -> Row:
    low, high = clopper_pearson(sum(hits), len(hits))
    return replace(ROWS[metric], value=100 * sum(hits) / len(hits), n=len(hits), interval=(100 * low, 100 * high),
                   reason=None)


def _aside(arm: str, value: float, count: int) -> Row:
    return Row(metric=f"fact_used_percent_{arm}", value=value, unit="%", better="higher", n=count)
