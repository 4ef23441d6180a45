"""Converting a large model: how fast, and in how little memory. Rows of `aios bench quant`.

The model is made here, of random bytes in the shapes of a 1.5B language model in bf16, in three shards; it is converted
by a process of its own, whose peak of resident memory the kernel tells. The source was just written, so that it comes
from the page cache where it fits; the result is on disk when the clock stops.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from aios.lab.report import LabOptions, Row

BYTES, BYTES_QUICK = 3_000_000_000, 200_000_000
SHARDS: Final = 3
POOL_BYTES: Final = 32 << 20   # random bytes that every tensor is cut from: the converter does not compress
VOCAB, WIDTH, FFN = 151_936, 1536, 8960
SPEC: Final = {"model_type": "qwen2", "hidden_size": WIDTH, "intermediate_size": FFN, "vocab_size": VOCAB}
PROGRAM: Final = """
import json, sys, time
from aios.store.convert import ModelConverter
began = time.perf_counter()
ModelConverter.convert(sys.argv[1], target=sys.argv[2])
seconds = time.perf_counter() - began
status = open("/proc/self/status").read()
print(json.dumps([seconds, int(status.split("VmHWM:")[1].split()[0]) * 1024]))
"""


def rows(options: LabOptions) -> list[Row]:
    """convert_gb_per_s and convert_peak_mb; without Linux or the space for two copies, null with the reason."""
    wanted = BYTES_QUICK if options.quick else BYTES
    with TemporaryDirectory(prefix="aios-convert-") as scratch:
        folder = Path(scratch)
        if shutil.disk_usage(folder).free < 2.2 * wanted:
            return _nothing(f"{folder.parent} has no space for two copies of {wanted / 1e9:.1f} GB")
        if not Path("/proc/self/status").exists():
            return _nothing("the peak of a process's memory is read from /proc, which is not here")
        size = _write_model(folder / "model", wanted, options.seed)
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder / "model"), str(folder / "out")],
                              capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return _nothing(f"the conversion failed: {done.stderr.strip()[-200:]}")
    seconds, peak = json.loads(done.stdout)
    said = f"{size / 1e9:.1f} GB of random bf16 in {SHARDS} shards of safetensors"
    return [Row(metric="convert_gb_per_s", value=round(size / seconds / 1e9, 3), unit="GB/s", better="higher", n=1,
                reason=said),
            Row(metric="convert_peak_mb", value=round(peak / 1e6, 1), unit="MB", better="lower", must=1024, n=1,
                reason=said)]


def _nothing(reason: str) -> list[Row]:
    return [Row(metric="convert_gb_per_s", value=None, unit="GB/s", better="higher", reason=reason),
            Row(metric="convert_peak_mb", value=None, unit="MB", better="lower", must=1024, reason=reason)]


def _shapes(wanted: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of tensors until `wanted` bytes are full; the embedding only where there is room for it."""
    if wanted > 1e9:
        yield "model.embed_tokens.weight", (VOCAB, WIDTH)
        wanted -= 2 * VOCAB * WIDTH
    layer = 0
    while wanted > 0:
        for part, shape in (("mlp.gate_proj", (FFN, WIDTH)), ("mlp.up_proj", (FFN, WIDTH)),
                            ("mlp.down_proj", (WIDTH, FFN)), ("self_attn.q_proj", (WIDTH, WIDTH)),
                            ("input_layernorm", (WIDTH,))):
            yield f"model.layers.{layer}.{part}.weight", shape
            wanted -= 2 * prod(shape)
        layer += 1


def _write_model(folder: Path, wanted: int, seed: int) -> int:
    """A sharded Hugging Face folder; the bytes of its tensors."""
    import numpy as np

    folder.mkdir()
    pool = np.random.default_rng(seed).bytes(POOL_BYTES)
    tensors = list(_shapes(wanted))
    places: dict[str, str] = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        mine = tensors[shard::SHARDS]
        places |= {tensor: name for tensor, _ in mine}
        _write_shard(folder / name, mine, pool)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(SPEC))
    return sum(2 * prod(shape) for _, shape in tensors)


def _write_shard(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], pool: bytes) -> None:
    header, end = {}, 0
    for name, shape in tensors:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        while end > 0:
            end -= file.write(pool[:end])
        file.flush()
        os.fsync(file.fileno())
