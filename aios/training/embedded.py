"""One command makes the embedded default text model: `python -m aios.training.embedded --data DIR`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import aios
from aios.contracts import SamplingDefaults
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.training.data import NEVER_WRITTEN, open_corpus, prepare
from aios.training.export import export
from aios.training.loop import LoopConfig, Training

VOCAB_SIZE = 2048
SEED = 7
NETWORK = TransformerConfig.of(192, 5, head_dim=32, time_conditioning=False)
MINUTES = 95.0  # of two Zen 3 cores at 125 GFLOP/s
# The best score of aios.training.judge within its entropy tolerance. At equal entropy the three samplers differ by no
# more than its noise; ancestral sampling of one row, where some steps reveal nothing, needs a third fewer calls.
SAMPLING = SamplingDefaults(sampler="ancestral", steps_per_token=1.0, temperature=0.75, length=64)
EMBEDDED = Path(aios.__file__).parent / "_models" / "text-default"
THREADS = 2
NICENESS = 10


def train_embedded(
    data_dirs: Sequence[Path],
    out_dir: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    compile_network: bool = True,
) -> Training:
    """Prepare the data if `out_dir` has none yet, then train or go on training; return the finished run.

    While a file PAUSE lies in the folder above `out_dir`, training holds between two steps.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    if not (out_dir / "data" / "corpus.json").exists():
        prepare(data_dirs, out_dir / "data", vocab_size=VOCAB_SIZE, seed=SEED)
    torch.set_num_threads(THREADS)
    if steps is None and minutes is None:
        minutes = MINUTES
    config = LoopConfig(seed=SEED, minutes=minutes, steps=steps, compile=compile_network)
    torch.manual_seed(config.seed)
    training = Training(
        TextScoreNetwork(NETWORK, VOCAB_SIZE, never=NEVER_WRITTEN),
        open_corpus(out_dir / "data"),
        config,
        out_dir,
    )
    training.resume()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=1.0)
        for loss in training.run():
            done = config.progress(training.step, training.elapsed_s)
            rate = training.tokens / max(training.elapsed_s, 1e-9)
            left = training.elapsed_s / max(done, 1e-9) * (1 - done) / 60
            text = f"step {training.step}  {loss:.3f} nats/token  {rate:,.0f} tokens/s  {left:.0f} min left"
            progress.update(task, completed=done, description=text)
    return training


def export_embedded(weights: Path, run: Path, folder: Path) -> None:
    """Write weights of `run` as the model `folder`, with its measured bound, samples and model card."""
    export(weights, folder, run=run, config=NETWORK, vocab_size=VOCAB_SIZE, sampling=SAMPLING, seed=SEED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and train or export."""
    parser = argparse.ArgumentParser(prog="python -m aios.training.embedded", description=__doc__)
    parser.add_argument(
        "--data", type=Path, action="append", help="a folder with sources (default: AIOS_DATA)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"), help="the run's folder")
    parser.add_argument("--minutes", type=float, help="wall time of the whole run, pauses included")
    parser.add_argument("--steps", type=int, help="exact number of steps instead of minutes")
    parser.add_argument("--export", type=Path, metavar="CKPT", help="only export these weights of the run")
    parser.add_argument(
        "--to",
        type=Path,
        help="where the model goes (default: OUT/text-default after training, "
        "the package's own folder with --export)",
    )
    parser.add_argument("--eager", action="store_true", help="do not compile the network")
    options = parser.parse_args(arguments)
    data_dirs = options.data or [Path(p) for p in os.environ.get("AIOS_DATA", "").split(os.pathsep) if p]
    if options.export:
        export_embedded(options.export, options.out, options.to or EMBEDDED)
        return 0
    os.nice(NICENESS)
    training = train_embedded(
        data_dirs,
        options.out,
        minutes=options.minutes,
        steps=options.steps,
        compile_network=not options.eager,
    )
    export_embedded(options.out / "best.safetensors", options.out, options.to or options.out / "text-default")
    print(
        json.dumps({"step": training.step, "tokens": training.tokens, "held_out_bound": training.best_bound})
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
