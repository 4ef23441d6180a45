"""sentence-transformers over the very weights of an installed encoder, as the peer of our own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from aios.lab.machine import torch_threads
from aios.store.convert import ModelConverter
from aios.store.record import ModelRecord

PEER = "sentence-transformers"
INSTALL = "install the peer: pip install 'aios-daemon[bench]'"
BATCHES: Final = (32, 128)   # its default, and one that suits short sentences
MODULES: Final = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]


@dataclass(slots=True, kw_only=True)
class PeerEncoder:
    """The peer, its version, and the settings it runs fastest with here."""

    model: Any
    version: str
    threads: int
    batch_size: int = BATCHES[0]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (n, 384) on the peer's own thread count."""
        with torch_threads(self.threads):
            vectors: NDArray[np.float32] = self.model.encode(
                list(texts), batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True)
        return vectors

    def tune(self, texts: Sequence[str]) -> None:
        """Keep the thread count and batch size that encode `texts` fastest."""
        timings = {}
        for threads in sorted({1, self.threads}):
            for batch in BATCHES:
                self.threads, self.batch_size = threads, batch
                self.encode(texts[:batch])
                began = time.perf_counter()
                self.encode(texts)
                timings[time.perf_counter() - began] = threads, batch
        self.threads, self.batch_size = timings[min(timings)]

    @property
    def settings(self) -> str:
        """The settings, for the row."""
        return f"peer at its fastest: threads {self.threads}, batch {self.batch_size}"


@contextmanager
def open_peer(record: ModelRecord) -> Iterator[PeerEncoder | None]:
    """The peer over the model's files, offline; None where it is not installed."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError:
        yield None
        return
    hush: Callable[[], None] = logging.disable_progress_bar
    hush()
    with TemporaryDirectory(prefix="aios-peer-") as scratch:
        folder = ModelConverter.convert(record.path, "safetensors", target=Path(scratch) / "model")
        _lay_out(folder)
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        yield PeerEncoder(model=model, version=metadata.version(PEER), threads=torch.get_num_threads())


def _lay_out(folder: Path) -> None:
    """Add to an exported model what sentence-transformers looks for."""
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    (folder / "modules.json").write_text(json.dumps(MODULES), encoding="utf-8")
    (folder / "pooling.json").rename(folder / "1_Pooling" / "config.json")
