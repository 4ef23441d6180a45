"""From other formats to Parquet V2 and back: streaming, resumable, nothing half done under its final name.

    ModelConverter.convert("SmolLM2-135M")                          # -> SmolLM2-135M.aios/
    ModelConverter.convert("m.gguf", target="m", precision="f32")   # K-quants widened to f32 instead of f16
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aios.errors import AiosError, BadInput, Busy, ModelError, UnknownArchitecture
from aios.security import private_file
from aios.store.convert_safetensors import SafetensorsWriter
from aios.store.download import Progress
from aios.store.models import settle
from aios.store.record import TENSORS, TOKENIZER, architecture
from aios.store.sources import Precision, Source, open_source

if TYPE_CHECKING:
    from aios.store.weights import WeightWriter

Format = Literal["parquet", "safetensors"]

FILES: dict[str, str] = {"parquet": TENSORS, "safetensors": "model.safetensors"}
PHASE = "convert"


def quiet(done_bytes: int, total_bytes: int, phase: str) -> None:
    """The progress callback of a conversion that nobody watches."""


class ModelConverter:
    """Model folders of one format from files of another."""

    @staticmethod
    def convert(path: str | Path, output_format: Format = "parquet", *, target: str | Path | None = None,
                precision: Precision = "f16", progress: Progress = quiet) -> Path:
        """The folder made of the model at `path`: config, tokenizer and model.parquet (or model.safetensors).

        `path` is a Hugging Face folder, a .safetensors file with config.json beside it, a GGUF, a torch checkpoint or
        a folder of ours. `target` is `path` with the ending .aios or .export unless it is given; it must not exist.
        Element types stay; GGUF's Q4_0, Q4_1 and Q8_0 keep their codes; what must be dequantised becomes `precision`.

        An interrupted conversion to Parquet V2 (Ctrl-C, kill -9, a full disk) goes on where it stopped when it is
        called again. Raises BadInput, ModelCorrupt, UnknownArchitecture, Busy or ModelError.
        """
        if output_format not in FILES:
            raise BadInput(f"{output_format!r} is no format", remedy="one of: " + ", ".join(FILES))
        path = Path(path)
        ending = ".aios" if output_format == "parquet" else ".export"
        folder = Path(target) if target is not None else path.with_name(path.name + ending)
        source = open_source(path, plain=output_format == "safetensors", precision=precision)
        convert_source(source, folder, output_format, progress=progress)
        return folder


def convert_source(source: Source, folder: Path, output_format: Format, *, progress: Progress = quiet) -> None:
    """`ModelConverter.convert` of a source that is open; `folder` must not exist, and appears when all is in it."""
    if folder.exists():
        raise BadInput(f"{folder} exists already", remedy="name another target, or remove it")
    staged = folder.with_name(f".{folder.name}.partial")
    with writable(staged):
        convert_into(source, staged, output_format, progress=progress)
        settle(staged, folder)


def convert_into(source: Source, folder: Path, output_format: Format = "parquet", *,
                 progress: Progress = quiet) -> None:
    """Fill `folder` with the model; what an earlier call with the same source left there is used.

    After an error of the source nothing of its weights stays; after anything else (Ctrl-C, a full disk) what was
    written stays for the next call.
    """
    check_usable(source)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(folder):
        weights = FILES[output_format]
        for left in folder.iterdir():
            if not left.name.startswith(weights + "."):   # a partial file may be continued, a whole one is somebody's
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        for name, text in source.texts.items():
            private_file.write(folder / name, text)
        _stream(source, folder / weights, output_format, progress)


def check_usable(source: Source) -> None:
    """Refuse, before anything large is read, what the engine could not use; raises UnknownArchitecture."""
    architecture(source.spec)
    if "pooling.json" in source.texts:
        import msgspec

        try:
            pooling = msgspec.json.decode(source.texts["pooling.json"], type=dict[str, object])
        except msgspec.DecodeError:
            pooling = {}
        if pooling.get("pooling_mode_mean_tokens") is not True:
            raise UnknownArchitecture("the model does not pool by the mean of its tokens",
                                      remedy="only mean pooling is implemented")


def _stream(source: Source, path: Path, output_format: Format, progress: Progress) -> None:
    writer = _writer(source, path, output_format)
    total, done = sum(tensor.bytes for tensor in source.tensors), 0
    try:
        for tensor in source.tensors:
            progress(done, total, PHASE)
            if tensor.name not in writer.done:
                writer.begin(tensor.name, tensor.dtype, tensor.shape, group_size=tensor.group_size,
                             symmetric=tensor.symmetric, rank=tensor.rank)
                for part, piece in tensor.pieces():
                    writer.write(part, piece)   # type: ignore[arg-type]
                writer.end()
            done += tensor.bytes
        progress(done, total, PHASE)
        tokenizer = source.texts.get(TOKENIZER)
        writer.finish(spec=source.spec, card=source.card, derived_from=source.derived_from,
                      tokenizer_sha256="" if tokenizer is None else hashlib.sha256(tokenizer).hexdigest())
    except AiosError:
        writer.abandon()   # the source is not what it should be: going on would not help
        raise
    finally:
        del writer   # a traceback that somebody keeps must not keep its lock


def _writer(source: Source, path: Path, output_format: Format) -> WeightWriter | SafetensorsWriter:
    if output_format == "safetensors":
        return SafetensorsWriter(path, source.tensors)
    from aios.store.weights import WeightWriter

    return WeightWriter(path, source=source.identity)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn what the disk may say into one error with a remedy."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"cannot write {folder}: {error.strerror or error}", path=str(folder),
                         remedy="make space there, then run the same again: it goes on where it stopped") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One conversion at a time fills a folder; raises Busy."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Busy(f"another conversion is filling {folder}", remedy="wait for it, or end it") from error
    finally:
        os.close(descriptor)
