"""`aios eval text`: diffusion beside autoregression, the soundness of bounds, and how well the embedded model writes.

Bounds are measured on the held-out set inside the package. What needs the training stream, the runs' weights or SmolLM2
is measured where they are at hand; elsewhere the last full run's figure is shown, as one of the ledger, or null with
the reason.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from aios.config import Config, Places
from aios.errors import AiosError
from aios.lab.machine import torch_threads
from aios.lab.report import LabOptions, Report, Row, sha256_file
from aios.lab.training_roots import TrainingRoots, recorded
from aios.ledger import Ledger, checkout

if TYPE_CHECKING:
    from aios.lab.continuations import Judge
    from aios.lab.judged_text import Trained
    from aios.lab.text_model import Rate, TextModel, Windows

NAME: Final = "eval text"
WINDOWS, WINDOWS_QUICK = 20, 4      # of each source; 256 tokens each
INT4_WINDOWS, INT4_WINDOWS_QUICK = 6, 2      # the two networks share windows and maskings, so that fewer do
TOKENS, TRIALS = 64, 15             # of the default sampler, through the daemon
ZSTD_LEVEL: Final = 19
DIGITS: Final = 4
DATA, TWIN = "small", "nano-twin"
PROMPT: Final = "Once upon a time there was"
SHAPES: Final = {row.metric: row for row in (
    Row(metric="nano_heldout_bits_per_byte", value=None, unit="bits", better="lower", reason=" "),
    Row(metric="nano_vs_5gram", value=None, unit="x", better="lower", must=1.0, aim=0.75, reason=" "),
    Row(metric="ngram5_bits_per_byte", value=None, unit="bits", better="lower", reason=" "),
    Row(metric="nano_ar_twin_bits_per_byte", value=None, unit="bits", better="lower", reason=" "),
    Row(metric="smollm2_bits_per_byte", value=None, unit="bits", better="lower", reason=" "),
    Row(metric="zstd19_bits_per_byte", value=None, unit="bits", better="lower", reason=" "),
    Row(metric="nano_judge_position", value=None, unit="", better="higher", must=0.5, aim=0.8, reason=" "),
    Row(metric="distinct_3", value=None, unit="", better="higher", reason=" "),
    Row(metric="train_overlap_8gram", value=None, unit="", better="lower", reason=" "),
    Row(metric="nano_backbone_share_strict", value=None, unit="", better="higher", must=0.90, aim=0.92, reason=" "),
    Row(metric="nano_diffuse64_ms", value=None, unit="ms", better="lower", must=500, aim=200, reason=" "),
    Row(metric="int4_bound_increase_percent", value=None, unit="%", better="lower", must=2.0, aim=1.0, reason=" "),
)}
SLOW: Final = ("nano_vs_5gram", "ngram5_bits_per_byte", "smollm2_bits_per_byte", "nano_judge_position", "distinct_3",
               "train_overlap_8gram")      # not within a minute


def shape(metric: str, value: float | None, *, interval: tuple[float, float] | None = None, **facts: Any) -> Row:
    """A row of this evaluation with its must and aim, figures rounded to what matters."""
    return replace(SHAPES[metric], value=None if value is None else round(value, DIGITS),
                   interval=None if interval is None else (round(interval[0], DIGITS), round(interval[1], DIGITS)),
                   **{"reason": None, **facts})


def run(options: LabOptions) -> Report:
    """Measure all rows; under a minute when quick, about 12 in full on two cores."""
    from aios.lab import ac1, heldout, known_source

    ledger = Ledger.here()
    rows: list[Row] = []
    checkpoints: dict[str, str] = {}
    with torch_threads():
        rows += known_source.rows(_part(options, 0.0, 0.1))
        rows += ac1.rows(_part(options, 0.1, 0.25), ledger)
        try:
            nano = Nano.open(options, ledger)
        except AiosError as error:
            reason = f"{error.message}: {error.remedy}"
            rows += [shape(metric, None, reason=reason) for metric in SHAPES]
        else:
            rows += nano.rows()
            checkpoints = {nano.model.record.name: nano.model.record.release}
    data = {heldout.PATH.name: sha256_file(heldout.PATH)}
    return Report.of("text", rows, options, data=data, checkpoints=checkpoints)


def _part(options: LabOptions, begin: float, end: float) -> LabOptions:
    """The options of a part that takes this stretch of the whole."""
    return replace(options, progress=lambda label, done: options.progress(label, begin + (end - begin) * done))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nano:
    """The embedded model on the held-out set, and everything that is put beside it."""

    model: TextModel
    documents: Sequence[Any]
    windows: Sequence[Windows]
    options: LabOptions
    ledger: Ledger
    roots: TrainingRoots

    @classmethod
    def open(cls, options: LabOptions, ledger: Ledger) -> Nano:
        """The model that daemon.toml names by default (or the option `model`); raises AiosError."""
        from aios.lab import heldout
        from aios.lab.text_model import TextModel

        model = TextModel.open(options.extra.get("model", Config().model.text), Places.find())
        documents = heldout.read()
        windows = model.windows(documents, WINDOWS_QUICK if options.quick else WINDOWS, options.seed)
        return cls(model=model, documents=documents, windows=windows, options=options, ledger=ledger,
                   roots=TrainingRoots.of(options))

    def rows(self) -> list[Row]:
        """All rows, quick ones first."""
        from aios.lab.text_model import DRAWS, nats, rate
        from aios.training.objective import Masked

        self.options.progress("held-out text", 0.25)
        asked, seed = self.model.asked, self.options.seed
        mine = rate(self.windows, [nats(self.model.network, one, seed, asked) for one in self.windows])
        kind = f"an upper bound, {DRAWS} maskings of each"
        if asked.exact:
            whole = rate(self.windows, [nats(self.model.network, one, seed, Masked()) for one in self.windows])
            kind = ("the likelihood of what it writes in blocks, in their order; by masked diffusion over the whole "
                    f"window the upper bound is {whole.value:.4f}")
        tokens = sum(len(one.first) * one.length for one in self.windows)
        caution = "" if self.model.frozen_vocabulary else (
            "; trained on another split, which may have held some of this text")
        found = [
            shape("nano_heldout_bits_per_byte", mine.value, n=sum(len(one.first) for one in self.windows),
                  interval=mine.interval(self.options.seed), reason=(
                      f"{kind}; {self.model.record.name}, {tokens} tokens, standard error "
                      f"{mine.resampled(self.options.seed).std():.4f}{caution}; {mine.told()}")),
            self._share(), self._zstd(), *self._twin(mine), self._int4(), self._through_daemon()]
        if self.options.quick:
            return found + [self._earlier(metric, "only a full run measures it: aios eval text") for metric in SLOW]
        return found + self._slow(mine)

    def _earlier(self, metric: str, reason: str) -> Row:
        """The last full run's value, of this very model, for what cannot be measured now; or null with the reason."""
        return recorded(self.ledger, NAME, metric, self.model.record.release) or shape(metric, None, reason=reason)

    def _share(self) -> Row:
        return shape("nano_backbone_share_strict", self.model.backbone_share(),
                     reason="every embedding counted as head")

    def _zstd(self) -> Row:
        """zstd on each source's held-out text alone: it has seen no other text."""
        import pyarrow

        from aios.lab.heldout import plain

        codec, total, told = pyarrow.Codec("zstd", compression_level=ZSTD_LEVEL), 0.0, []
        for one in self.windows:
            text = "\n".join(plain(document.text) for document in self.documents
                             if document.source == one.cut.source).encode()
            bits = 8 * len(codec.compress(text, asbytes=True)) / len(text)
            total += one.cut.weight * bits
            told.append(f"{one.cut.source} {bits:.3f}")
        return shape("zstd19_bits_per_byte", total,
                     reason="the held-out text of each source alone, without a dictionary; " + ", ".join(told))

    def _twin(self, mine: Rate) -> list[Row]:
        """The autoregressive network of the same size and data: its likelihood of the same windows."""
        from aios.lab.text_model import nats, network_of_run, rate
        from aios.lab.training_roots import config_of
        from aios.training.objective import Autoregressive

        metric = "nano_ar_twin_bits_per_byte"
        folder = next(self.roots.runs(TWIN), None)
        if folder is None:
            return [self._earlier(metric, f"no weights of the twin at hand: aios train run {TWIN}")]
        if config_of(folder)["vocab_size"] != self.model.spec["vocab_size"]:
            return [shape(metric, None, reason=f"{folder.name} has another vocabulary than {self.model.record.name}")]
        self.options.progress("the autoregressive twin", 0.35)
        network = network_of_run(folder)
        twin = rate(self.windows, [nats(network, one, self.options.seed, Autoregressive()) for one in self.windows])
        ratio = mine.interval(self.options.seed, over=twin)
        return [shape(metric, twin.value, interval=twin.interval(self.options.seed), reason=(
            f"a likelihood, of the same windows; run {folder.name}; the figure of {self.model.record.name} is "
            f"{mine.value / twin.value:.3f} times as high (95%: {ratio[0]:.3f} to {ratio[1]:.3f}); {twin.told()}"))]

    def _int4(self) -> Row:
        from aios.lab import int4_bound

        metric = "int4_bound_increase_percent"
        self.options.progress("four bits a weight", 0.4)
        networks = int4_bound.pair(self.model, self.roots)
        if networks is None:
            return self._earlier(metric, f"{self.model.record.name} is stored in few bits, and the run that it was "
                                         "made from is not at hand")
        exact, packed, how = networks
        chosen = self.model.windows(self.documents, INT4_WINDOWS_QUICK if self.options.quick else INT4_WINDOWS,
                                    self.options.seed)
        value, interval = int4_bound.increase(exact, packed, chosen, self.options.seed, self.model.asked)
        return shape(metric, value, interval=interval, n=sum(len(one.first) for one in chosen), reason=how)

    def _through_daemon(self) -> Row:
        """What a user waits for: 64 tokens by the default sampler from a daemon with default settings."""
        from aios.lab.scratch_home import scratch_daemon

        self.options.progress("64 tokens through the daemon", 0.45)
        name, taken = self.model.record.name, []
        with scratch_daemon(models=[name]) as daemon, daemon.connect() as client:
            for trial in range(TRIALS + 1):
                began = time.perf_counter()
                client.diffuse(PROMPT, length=TOKENS, seed=self.options.seed + trial, model=name)
                if trial:       # the first one opens the model
                    taken.append((time.perf_counter() - began) * 1e3)
        return shape("nano_diffuse64_ms", median(taken), n=len(taken),
                     reason=f"through a daemon with default settings; from {min(taken):.0f} to {max(taken):.0f} ms")

    def _slow(self, mine: Rate) -> list[Row]:
        """What needs SmolLM2 or the training stream."""
        from aios.lab import judged_text

        folder = self.roots.data(DATA)
        self.options.progress("5-grams of the training stream", 0.5)
        trained = (f"no built data: aios train data build {DATA}; name its folder with --data" if folder is None
                   else judged_text.open_trained(folder, self.model))
        try:
            judge, no_judge = judged_text.open_judge(Places.find()), ""
        except AiosError as error:
            judge, no_judge = None, f"{error.message}: {error.remedy}"
        found = [self._smollm2(judge) if judge else self._earlier("smollm2_bits_per_byte", no_judge)]
        if isinstance(trained, str):
            return found + [self._earlier(metric, trained) for metric in SLOW if metric != "smollm2_bits_per_byte"]
        return [*found, *self._ngram(trained, mine), *judged_text.rows(
            self.model, self.documents, trained, judge, self._folder(), _part(self.options, 0.6, 1.0), shape)]

    def _ngram(self, trained: Trained, mine: Rate) -> list[Row]:
        """The 5-gram model on the same windows; it also sees the tokens before them."""
        from aios.lab.text_model import rate

        found, count = [], sum(len(one.first) for one in self.windows)
        for one in self.windows:
            every = trained.ngram.nats(one.cut.tokens, self.model.eot)
            found.append(every[one.first[:, None] + range(one.length)].sum(axis=1))
        floor = rate(self.windows, found)
        return [
            shape("nano_vs_5gram", mine.value / floor.value,
                  interval=mine.interval(self.options.seed, over=floor), n=count, reason=(
                      "over the likelihood of interpolated modified Kneser-Ney on "
                      f"{sum(map(len, trained.train))} training tokens, the same windows; floor: {floor.told()}")),
            shape("ngram5_bits_per_byte", floor.value, interval=floor.interval(self.options.seed),
                  reason="a likelihood, of the same windows")]

    def _smollm2(self, judge: Judge) -> Row:
        """Its likelihood of the text of the same windows, by its own tokens."""
        from aios.lab.heldout import spelled
        from aios.lab.text_model import rate

        found = []
        for one in self.windows:
            self.options.progress(f"SmolLM2: {one.cut.source}", 0.55)
            texts = [("", spelled(row, self.model.tokenizer)) for row in one.ids.tolist()]
            found.append(judge.losses(texts).nats)
        peer = rate(self.windows, found)
        return shape("smollm2_bits_per_byte", peer.value, interval=peer.interval(self.options.seed), reason=(
            "a likelihood, of the text of the same windows, a line break for each reserved token; 134.5M parameters; "
            + peer.told()))

    def _folder(self) -> Path:
        """Where samples go: beside the pictures, else among the runs of this checkout, else into our own state."""
        if self.options.plot is not None:
            return self.options.plot
        root = checkout()
        return root / "runs" / "eval-text" if root else Places.find().state / "eval-text"
