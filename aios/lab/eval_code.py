"""`aios eval code`: bodies and lines of held-out Python functions, hidden and filled in by the engine.

The number of hidden tokens is known to the model, as it is to anybody who asks for `--length`; the file goes on behind
the gap. What comes back is parsed and compiled in memory and never run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aios.config import Config, Places
from aios.errors import AiosError, BadInput
from aios.lab.functions import SET, HeldOutFunction, read_functions
from aios.lab.machine import torch_threads
from aios.lab.report import LabOptions, Report, Row, sha256_file
from aios.lab.statistics import Floats, bootstrap, clopper_pearson
from aios.lab.syntax import function_parses, function_shape
from aios.lab.training_roots import TrainingRoots, recorded
from aios.ledger import Ledger, checkout

if TYPE_CHECKING:
    from aios.contracts import Tokenizer
    from aios.engine.arrow import ArrowEngine
    from aios.lab.code_twin import Twin

PARSE: Final = Row(metric="code_parse_rate", value=None, unit="", better="higher", must=0.70, aim=0.95,
                   reason="not run")
LINE: Final = Row(metric="code_line_infill_rate", value=None, unit="", better="higher", reason="not run")
TWIN: Final = Row(metric="fim_line_infill_rate", value=None, unit="", better="higher", reason="not run")
RATIO: Final = Row(metric="infill_vs_fim", value=None, unit="x", better="higher", must=1.0, aim=1.2, reason="not run")
FUNCTIONS_QUICK: Final = 40
# One position a step, the surest first, its likeliest token: the counterpart of the twin's greedy decoding.
GREEDY: Final = {"sampler": "confidence", "temperature": 0.0}
SEED_MAX: Final = 2**31
PEER: Final = "fill-in-the-middle twin"
SAMPLES: Final = "eval-code-samples.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A function with a part of it hidden: `prefix`, `hidden` and `suffix` as they stand in the file."""

    function: HeldOutFunction
    before: str      # of the body
    hidden: str
    after: str       # of the body

    @property
    def prefix(self) -> str:
        """What stands before the gap."""
        return self.function.context + self.function.header + self.before

    @property
    def suffix(self) -> str:
        """What stands behind it."""
        return self.after + self.function.tail

    def filled(self, text: str) -> str:
        """The function with `text` in the gap."""
        return self.function.header + self.before + text + self.after

    def right(self, text: str) -> bool:
        """Whether the filled function compiles and is the real one, formatting aside."""
        shape = function_shape(self.filled(text))
        return shape is not None and shape == function_shape(self.filled(self.hidden))

    def parses(self, text: str) -> bool:
        """Whether the filled function parses."""
        return function_parses(self.filled(text))


def body_gap(function: HeldOutFunction) -> Gap:
    """The whole body hidden."""
    return Gap(function=function, before="", hidden=function.body, after="")


def line_gap(function: HeldOutFunction) -> Gap:
    """One line of the body hidden, always the same one: arms of different days fill the same gaps."""
    lines = function.body[1:].split("\n")
    choice = random.Random(f"{function.origin}:{function.name}")
    last = choice.choice([index for index, line in enumerate(lines) if line.strip()])
    first = last
    while first and not lines[first - 1].strip():   # blank lines are one token with the break behind them
        first -= 1
    parts = ["".join("\n" + line for line in part) for part in (lines[:first], lines[first:last + 1], lines[last + 1:])]
    return Gap(function=function, before=parts[0], hidden=parts[1], after=parts[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Filler:
    """The engine as users have it, with the model that it takes for code."""

    engine: ArrowEngine
    tokenizer: Tokenizer
    name: str
    release: str
    parameters: int

    @classmethod
    def open(cls, places: Places, config: Config) -> Filler:
        """The default model for code; raises an AiosError when there is none or it writes no code."""
        from aios.engine.arrow import ArrowEngine
        from aios.engine.assembly import Assembly
        from aios.registry.registry import Registry

        assembly = Assembly(config, places)
        model = assembly.model(config.model.code)
        if model.tokenizer is None:
            raise BadInput(f"{model.name} has no tokenizer", remedy=f"aios models verify {model.name}")
        engine = ArrowEngine(assembly, Registry.allowed(config, places))
        engine.infill("def f(x):", "\n", modality="code", length=1, seed=0)
        [loaded] = [one for one in assembly.loaded() if one.name == model.name]
        return cls(engine=engine, tokenizer=model.tokenizer, name=model.name, release=model.release,
                   parameters=loaded.parameters)

    def fill(self, gap: Gap, seed: int, **sampling: Any) -> str:
        """As many tokens as are hidden; nothing where the context is too short for the gap."""
        length = len(self.tokenizer.encode(gap.hidden))
        if "sampler" in sampling:
            sampling["steps"] = length
        try:
            answer = self.engine.infill(gap.prefix, gap.suffix, modality="code", length=length, seed=seed, **sampling)
        except BadInput:
            return ""
        return answer.text


def run(options: LabOptions) -> Report:
    """Measure all rows; what cannot be measured here is null with the reason."""

    data = {SET.name: sha256_file(SET)}
    functions = read_functions()
    if options.quick:
        functions = random.Random(options.seed).sample(functions, min(FUNCTIONS_QUICK, len(functions)))
    try:
        with torch_threads():
            filler = Filler.open(Places.find(), Config())
            measured = Measured(filler=filler, functions=functions, options=options, data=data)
            rows, checkpoints = measured.rows(), measured.checkpoints()
    except AiosError as error:
        reason = f"{error.message}: {error.remedy}"
        rows, checkpoints = [replace(row, reason=reason) for row in (PARSE, LINE, TWIN, RATIO)], {}
    return Report.of("code", rows, options, data=data, checkpoints=checkpoints)


class Measured:
    """One run: the engine and its twin on the same functions; every sample is written."""

    def __init__(self, *, filler: Filler, functions: Sequence[HeldOutFunction], options: LabOptions,
                 data: dict[str, str]) -> None:
        from aios.lab.code_twin import Twin

        self.filler, self.functions, self.options, self.data = filler, functions, options, data
        self.twin = self._fitting(Twin.find(TrainingRoots.of(options)))
        self.samples: list[dict[str, Any]] = [
            {"function": one.name, "origin": one.origin, "held": one.held} for one in functions]

    def rows(self) -> list[Row]:
        """Everything measured, and the samples written."""
        rows = [*self._bodies(), *self._lines()]
        self._write()
        return rows

    def checkpoints(self) -> dict[str, str]:
        """What was measured: the model's release, the hash of the twin's weights."""
        from aios.lab.code_twin import PLAN, Twin

        twin = {PLAN: self.twin.sha256} if isinstance(self.twin, Twin) else {}
        return {self.filler.name: self.filler.release, **twin}

    def _fitting(self, twin: Twin | str) -> Twin | str:
        """The twin, if it is one of this model: of the same size."""
        if isinstance(twin, str) or twin.parameters == self.filler.parameters:
            return twin
        return (f"{self.filler.name} has {self.filler.parameters:,} parameters, the twin at hand {twin.parameters:,}: "
                "no twin of it")

    def _fill(self, gaps: Sequence[Gap], what: str, begin: float, share: float, **sampling: Any) -> Iterator[str]:
        for index, gap in enumerate(gaps):
            self.options.progress(what, begin + share * index / len(gaps))
            text = self.filler.fill(gap, (self.options.seed + index) % SEED_MAX, **sampling)
            self.samples[index][what] = text
            yield text

    def _bodies(self) -> list[Row]:
        """How many functions parse with a body by the model, with the real one, and with its tokens in disorder."""
        gaps = [body_gap(one) for one in self.functions]
        drafts = list(self._fill(gaps, "body_draft", 0.0, 0.2, repairs=0))
        texts = list(self._fill(gaps, "body", 0.2, 0.3))
        parsed, undone = ([gap.parses(text) for gap, text in zip(gaps, filled, strict=True)]
                          for filled in (texts, drafts))
        disorder = [gap.parses(self._shuffled(gap, index)) for index, gap in enumerate(gaps)]
        tested = [hit for hit, one in zip(parsed, self.functions, strict=True) if one.held == "test"]
        for sample, hit in zip(self.samples, parsed, strict=True):
            sample["body_parses"] = hit
        told = (f"{len(tested)} of the functions are from the recipe's test split, {sum(tested)} of those parse; the "
                "others are from packages that no recipe reads; default sampler and repairs, one sample a function, by "
                "seed")
        return [
            rate(PARSE, parsed, told),
            rate(beside(PARSE, "code_parse_rate_draft"), undone,
                 "without repairs: what breaks the grammar is not written anew"),
            rate(beside(PARSE, "code_parse_rate_shuffled"), disorder, "floor: the real body's tokens in random order"),
            rate(beside(PARSE, "code_parse_rate_real"), [gap.parses(gap.hidden) for gap in gaps],
                 "ceiling: the real body")]

    def _shuffled(self, gap: Gap, index: int) -> str:
        ids = self.filler.tokenizer.encode(gap.hidden)
        random.Random(self.options.seed + index).shuffle(ids)
        return self.filler.tokenizer.decode(ids)

    def _lines(self) -> list[Row]:
        """How many hidden lines come back as they were, by the model, by copying a neighbour, by the twin."""
        gaps = [line_gap(one) for one in self.functions]
        ours = self._judged(gaps, "line", list(self._fill(gaps, "line", 0.5, 0.1, **GREEDY)))
        drafts = self._judged(gaps, "line_draft", list(self._fill(gaps, "line_draft", 0.6, 0.1, **GREEDY, repairs=0)))
        copied = [gap.right(neighbour(gap)) for gap in gaps]
        rows = [rate(LINE, ours, "greedy: one token a step, the surest first, temperature 0; what breaks the grammar "
                                 "is written anew"),
                rate(beside(LINE, "code_line_infill_rate_draft"), drafts, "the same without repairs"),
                rate(beside(LINE, "code_line_infill_rate_copy"), copied, "floor: the line above the gap, or below")]
        if not self.options.quick:
            drawn = self._judged(gaps, "line_sampled", list(self._fill(gaps, "line_sampled", 0.7, 0.2)))
            rows.append(rate(beside(LINE, "code_line_infill_rate_sampled"), drawn, "default sampler, by seed"))
        return [*rows, *self._beside_the_twin(gaps, drafts)]

    def _judged(self, gaps: Sequence[Gap], what: str, texts: Sequence[str]) -> list[bool]:
        hits = [gap.right(text) for gap, text in zip(gaps, texts, strict=True)]
        for sample, hit, gap in zip(self.samples, hits, gaps, strict=True):
            sample |= {f"{what}_equal": hit, "hidden_line": gap.hidden}
        return hits

    def _beside_the_twin(self, gaps: Sequence[Gap], ours: Sequence[bool]) -> list[Row]:
        if isinstance(self.twin, str):
            return self._beside_the_recorded_twin(ours, self.twin)
        free, known = [], []
        for index, gap in enumerate(gaps):
            self.options.progress("the twin's lines", 0.9 + 0.1 * index / len(gaps))
            until_end, same_length = self.twin.fill(gap.prefix, gap.hidden, gap.suffix)
            free.append(until_end)
            known.append(same_length)
            self.samples[index] |= {"twin_until_end": until_end, "twin_same_length": same_length}
        until = self._judged(gaps, "twin_until_end", free)
        same = self._judged(gaps, "twin_same_length", known)
        best = max(until, same, key=sum)
        twin = rate(TWIN, best, f"greedy, f32, {self.twin.parameters:,} parameters; the better of two: until its end "
                                f"sentinel {sum(until)}, told the length {sum(same)}")
        if not any(best):
            return [twin, replace(RATIO, n=len(gaps), peer=PEER, reason="the twin found no line: there is no ratio")]
        mine, theirs = np.array(ours, float), np.array(best, float)
        return [twin, replace(
            RATIO, value=ratio(mine, theirs), n=len(gaps), peer=PEER, peer_value=twin.value,
            interval=bootstrap(ratio, mine, theirs, self.options.seed),
            reason="the same gaps, without repairs on either side; the interval is over functions")]

    def _beside_the_recorded_twin(self, ours: Sequence[bool], reason: str) -> list[Row]:
        """The twin of an earlier full run with the same functions, beside a twin-less machine."""
        ledger = Ledger.here()
        row = recorded(ledger, "eval code", TWIN.metric)
        entry = ledger.find(row.run) if row is not None and row.run else None
        same = (entry is not None and entry.data == self.data
                and entry.checkpoints.get(self.filler.name) == self.filler.release)
        if row is None or not same or not row.value:
            return [replace(TWIN, reason=reason), replace(RATIO, peer=PEER, reason=reason)]
        value = sum(ours) / len(ours) / row.value
        return [row, replace(RATIO, value=value, kind="ledger", run=row.run, n=len(ours), peer=PEER,
                             peer_value=row.value, reason=f"our lines now, the twin's from the ledger: {reason}")]

    def _write(self) -> None:
        from aios.training.checkpoints import publish

        root = checkout()
        folder = self.options.plot or (root / "runs" / "eval-code" if root else Places.find().state / "eval-code")
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f".{SAMPLES}"
        staged.write_text("".join(json.dumps(one, ensure_ascii=True) + "\n" for one in self.samples), encoding="utf-8")
        publish(staged, folder / SAMPLES)


def neighbour(gap: Gap) -> str:
    """The line before the gap, else the one behind it: what a copying machine would write."""
    above, below = gap.before.rpartition("\n")[2], gap.after[1:].partition("\n")[0]
    return "\n" + (above or below)


def ratio(ours: Floats, theirs: Floats) -> float:
    """How many times more hits we have; a resample without any of theirs counts as half a hit."""
    return float(ours.sum() / max(theirs.sum(), 0.5))


def beside(row: Row, metric: str) -> Row:
    """A row like another that nobody must reach."""
    return replace(row, metric=metric, must=None, aim=None)


def rate(row: Row, hits: Sequence[bool], reason: str) -> Row:
    """The share of hits, with its exact interval."""
    return replace(row, value=sum(hits) / len(hits), n=len(hits), interval=clopper_pearson(sum(hits), len(hits)),
                   reason=reason)
