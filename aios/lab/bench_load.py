"""`aios bench load`: how fast a model opens, warm and cold, what memory that takes, and how fast the peers are.

Open means: from a path to a network whose first forward can start, in a fresh process with everything imported. The
forward itself follows, to prove that it could. Weights are random: opening does not look at them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from aios.errors import ModelError
from aios.lab.report import LabOptions, Report, Row

REPEATS, REPEATS_QUICK = 7, 2
SECONDS_MAX = 300.0          # of one opening, its imports included
INSTALL: Final = "install the peer: pip install 'aios-daemon[bench]'"
OPEN_MUST, OPEN_AIM = 100.0, 20.0
RSS_MUST, RSS_AIM = 0.2, 0.05
RATIO_MUST, RATIO_AIM = 1.0, 3.0

Measured = dict[str, float]    # what aios.lab.load_probe prints


def run(options: LabOptions) -> Report:
    """All rows; about five minutes, most of them imports and the writing of random models."""
    with TemporaryDirectory(prefix="aios-load-") as scratch:
        folder = Path(scratch)
        rows = [*_large(folder, options), *_beside_safetensors(folder / "plain", options),
                *_beside_llamacpp(folder / "int4", options)]
    return Report.of("load", rows, options)


def _large(folder: Path, options: LabOptions) -> list[Row]:
    """The two large packed models, which differ in kind as well."""
    from aios.lab.load_models import qwen3, score_network, write_random_codes

    layers = (8, 6) if options.quick else (24, 28)
    rows: list[Row] = []
    shares: list[float] = []
    for index, (metric, bits, spec) in enumerate((
            ("open_350m_int2", 2, score_network(layers[0])), ("open_600m_int4", 4, qwen3(layers[1])))):
        options.progress(f"{metric}: writing random codes", 0.25 * index)
        file = write_random_codes(folder / metric, spec, bits=bits, group_size=64, seed=options.seed)
        options.progress(metric, 0.25 * index + 0.1)
        warm, cold = (_repeat(["ours"], folder / metric, options, cache)["ours"] for cache in ("warm", "cold"))
        size = file.stat().st_size
        said = f"random weights, {size / 1e6:.0f} MB" + f", {layers[index]} layers"
        forward = f"; the first forward of one token takes {median(one['forward_ms'] for one in warm):.0f} ms more"
        rows += [_open_row(f"{metric}_ms", warm, said + forward),
                 _open_row(f"{metric}_cold_ms", cold, said + "; out of the page cache: fsync, POSIX_FADV_DONTNEED")]
        shares += [one["rss_bytes"] / size for one in (*warm, *cold)]
    rows.append(Row(metric="rss_before_first_forward_share", value=round(max(shares), 4), unit="of the file",
                    better="lower", must=RSS_MUST, aim=RSS_AIM, n=len(shares),
                    reason="growth of resident memory by the open; the worst of both models, warm and cold"))
    return rows


def _open_row(metric: str, measured: Sequence[Measured], said: str) -> Row:
    return Row(metric=metric, value=round(median(one["ms"] for one in measured), 2), unit="ms", better="lower",
               must=OPEN_MUST, aim=OPEN_AIM, n=len(measured), reason=said)


def _beside_safetensors(folder: Path, options: LabOptions) -> list[Row]:
    """The same f32 tensors of a 135M model in both formats, into the same network."""
    from aios.lab.load_models import llama, write_plain

    layers = 4 if options.quick else 30
    options.progress("beside safetensors: writing random weights", 0.5)
    write_plain(folder, llama(layers), options.seed)
    options.progress("beside safetensors", 0.55)
    beside = _installed("transformers") and not options.quick
    kinds = ["ours", "safetensors", *(["transformers"] if beside else [])]
    measured = _repeat(kinds, folder, options, "warm")
    said = f"f32, {layers} layers of SmolLM2-135M's sizes, random weights, warm; safetensors.torch.load_file and " \
           "load_state_dict(assign=True) into the same network"
    rows = [_ratio_row("load_vs_safetensors_ratio", measured, "safetensors", "safetensors", said)]
    if options.quick:
        return rows
    theirs = measured.get("transformers")
    rows.append(Row(
        metric="load_transformers_ms", value=None if theirs is None else _ms(theirs), unit="ms", better="lower",
        n=None if theirs is None else len(theirs), peer="transformers", peer_version=_installed("transformers"),
        reason=INSTALL if theirs is None else "from_pretrained of the same file, for comparison"))
    return rows


def _beside_llamacpp(folder: Path, options: LabOptions) -> list[Row]:
    """Four bits of the same random weights: our INT4 and GGUF's Q4_0, both in groups of 32."""
    from aios.lab.load_models import llama, write_int4

    metric, layers = "load_vs_llamacpp_ratio", 4 if options.quick else 30
    if not (_installed("llama-cpp-python") and _installed("gguf")):
        return [Row(metric=metric, value=None, unit="x", better="higher", must=RATIO_MUST, aim=RATIO_AIM,
                    peer="llama-cpp-python", reason=INSTALL)]
    options.progress("beside llama.cpp: quantising random weights", 0.75)
    write_int4(folder, llama(layers), options.seed, gguf=True)
    options.progress("beside llama.cpp", 0.85)
    measured = _repeat(["ours", "llamacpp"], folder, options, "warm")
    said = f"INT4 beside Q4_0, {layers} layers of SmolLM2-135M's sizes, random weights, warm; no vocabulary in " \
           "either file, the peer maps its file and gets the smallest context"
    return [_ratio_row(metric, measured, "llamacpp", "llama-cpp-python", said)]


def _ratio_row(metric: str, measured: dict[str, list[Measured]], kind: str, peer: str, said: str) -> Row:
    ours, theirs = _ms(measured["ours"]), _ms(measured[kind])
    return Row(metric=metric, value=round(theirs / ours, 3), unit="x", better="higher", must=RATIO_MUST, aim=RATIO_AIM,
               n=len(measured["ours"]), peer=peer, peer_version=_installed(peer),
               reason=f"ours {ours:.1f} ms, theirs {theirs:.1f} ms; {said}")


def _ms(measured: Sequence[Measured]) -> float:
    return round(median(one["ms"] for one in measured), 2)


def _repeat(kinds: Sequence[str], folder: Path, options: LabOptions, cache: str) -> dict[str, list[Measured]]:
    """Open by every kind in turn, again and again, each time in a new process; a first round warms the cache."""
    measured: dict[str, list[Measured]] = {kind: [] for kind in kinds}
    warming = cache == "warm" and not options.quick     # what was just written is in the page cache anyway
    for repeat in range(warming + (REPEATS_QUICK if options.quick else REPEATS)):
        for kind in kinds:
            one = _probe(kind, folder, cache)
            if repeat >= warming:
                measured[kind].append(one)
    return measured


def _probe(kind: str, folder: Path, cache: str) -> Measured:
    words: list[str] = [sys.executable, "-W", "ignore", "-m", "aios.lab.load_probe", kind, str(folder), cache]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    if done.returncode != 0:
        raise ModelError(f"{kind} did not open its model: {done.stderr.strip()[-300:]}",
                         remedy="run it alone: " + " ".join(words[1:]))
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def _installed(distribution: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
