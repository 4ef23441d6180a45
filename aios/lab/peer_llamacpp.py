"""llama.cpp over GGUF files made of the very weights of an installed language model, as the peer of our own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from aios.config import Places
from aios.lab.load_models import write_gguf

PEER: Final = "llama-cpp-python"
INSTALL: Final = "install the peer: pip install 'aios-daemon[bench]'"
CONTEXT_TOKENS: Final = 512
LAYOUT: Final = 1                       # of the files made here: a new number makes them anew


def installed() -> bool:
    """Whether the peer, and what writes its files, can be imported."""
    return find_spec("llama_cpp") is not None and find_spec("gguf") is not None


def gguf_file(release: str, spec: Mapping[str, Any], tensors: Callable[[], Iterable[tuple[str, Tensor]]],
              kind: str) -> Path:
    """The model in blocks of `kind`, made now unless it is kept in the cache."""
    folder = Places.find().cache / "gguf"
    key = hashlib.sha256(f"{release} {kind} {LAYOUT}".encode()).hexdigest()[:16]
    path = folder / f"{key}-{kind}.gguf"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        begun = path.with_suffix(".begun")
        write_gguf(begun, spec, tensors(), kind)
        begun.replace(path)
    return path


@dataclass(slots=True, kw_only=True)
class LlamaCpp:
    """An opened file, and the thread count it runs fastest with here."""

    path: Path
    kind: str
    threads: int
    model: Any

    @classmethod
    def open(cls, path: Path, kind: str, threads: int) -> LlamaCpp:
        """Map the file; llama.cpp arranges its matrices for this machine's instructions."""
        llama: Any = import_module("llama_cpp")
        model = llama.Llama(model_path=str(path), n_ctx=CONTEXT_TOKENS, n_batch=CONTEXT_TOKENS, n_threads=threads,
                            n_threads_batch=threads, verbose=False)
        return cls(path=path, kind=kind, threads=threads, model=model)

    def tuned(self, ids: Sequence[int]) -> LlamaCpp:
        """This one or one on a single thread, whichever reads `ids` faster."""
        arms = [self, *([LlamaCpp.open(self.path, self.kind, 1)] if self.threads > 1 else [])]
        taken = {}
        for arm in arms:
            arm.read(ids)
            began = time.perf_counter()
            arm.read(ids)
            taken[time.perf_counter() - began] = arm
        return taken[min(taken)]

    def read(self, ids: Sequence[int]) -> None:
        """Read a prompt from the beginning; the logits of what follows are computed."""
        self.model.reset()
        self.model.eval(ids)

    def write(self, ids: Sequence[int]) -> None:
        """Read tokens behind what was read, one after another, as writing does."""
        for token in ids:
            self.model.eval([token])

    def logits(self) -> NDArray[np.float32]:
        """Of the token behind the last one read."""
        llama: Any = import_module("llama_cpp")
        found = llama.llama_get_logits_ith(self.model.ctx, -1)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(found, shape=(self.model.n_vocab(),)).copy()
        return logits

    @property
    def settings(self) -> str:
        """The settings, for the row."""
        llama: Any = import_module("llama_cpp")
        facts = llama.llama_print_system_info().decode()
        found = [word for word in ("AVX2", "AVX512", "AVX512_VNNI", "AMX_INT8", "NEON") if f"{word} = 1" in facts]
        built = ", ".join(found) or "no SIMD"
        return f"llama.cpp {self.kind}, threads {self.threads} (its fastest), built with {built}"


def version() -> str:
    """Of the peer's package."""
    return metadata.version(PEER)
