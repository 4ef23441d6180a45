"""Every source of training text by name: where it comes from, under which licence, and how it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from aios.errors import BadInput
from aios.training import call_sources, code_sources, fact_sources, sources, written
from aios.training.sources import CHITCHAT_SHA256, CHITCHAT_WHEEL, Document, find
from aios.training.vocabulary import file_sha256

SGD_ORIGIN: Final = "https://github.com/google-research-datasets/dstc8-schema-guided-dialogue"
HOME_SDIST: Final = "home_assistant_datasets-0.3.0.tar.gz"
HOME_SHA256: Final = "d7c9f1dcf670cd9616d7d7dbb8647b56139458946227d81126683daed6542dd8"
WORDNET_DEB: Final = "wordnet-base_1%3a3.0-37_all.deb"
WORDNET_SHA256: Final = "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A source: its files (name -> sha256, "" where the owner makes the file), public origin, licence, reader.

    here: where a source lies that is on every machine and has no files to be found.
    """

    files: Mapping[str, str]
    origin: str
    licence: str
    read: Callable[[Path], Iterator[Document]]
    here: Callable[[], Path] | None = None

    def locate(self, folders: Sequence[Path]) -> tuple[Path, ...]:
        """Return the source's files; BadInput names a missing one with its origin, or one of another content."""
        if self.here is not None:
            return (self.here(),)
        found = tuple(find(name, folders, self.origin) for name in self.files)
        for path, wanted in zip(found, self.files.values(), strict=True):
            if wanted and (have := file_sha256(path)) != wanted:
                raise BadInput(f"{path.name} has sha256 {have}, not {wanted}",
                               remedy=f"fetch it again: {self.origin}")
        return found

    def hashes(self, paths: Sequence[Path]) -> dict[str, str]:
        """Return the SHA-256 of every file; a folder counts as the hash of its Python files' names and contents."""
        return {path.name: _folder_sha256(path) if path.is_dir() else file_sha256(path) for path in paths}


def _folder_sha256(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(f"{path.relative_to(folder)}\0{file_sha256(path)}\n".encode())
    return total.hexdigest()


def _made(file: str, origin: str, licence: str, read: Callable[[Path], Iterator[Document]], sha256: str = "") -> Origin:
    return Origin(files={file: sha256}, origin=origin, licence=licence, read=read)


ORIGINS: Final[Mapping[str, Origin]] = MappingProxyType({
    "dialogues": _made("sgd_turns.parquet", SGD_ORIGIN, "CC BY-SA 4.0", sources.read_dialogues),
    "task_dialogues": _made("sgd_turns.parquet", SGD_ORIGIN, "CC BY-SA 4.0", call_sources.read_task_dialogues),
    "service_calls": _made("sgd_turns.parquet", SGD_ORIGIN, "CC BY-SA 4.0", call_sources.read_service_calls),
    "chitchat": _made(CHITCHAT_WHEEL, "pip download --no-deps chitchat-dataset==0.9.0", "MIT",
                      sources.read_chitchat, CHITCHAT_SHA256),
    "conversations": _made(CHITCHAT_WHEEL, "pip download --no-deps chitchat-dataset==0.9.0", "MIT",
                           call_sources.read_conversations, CHITCHAT_SHA256),
    "novels": _made("english_novels.parquet", "https://github.com/computationalstylistics/100_english_novels",
                    "public domain", sources.read_novels),
    "worked_problems": _made("gsm8k_train.parquet", "https://github.com/openai/grade-school-math", "MIT",
                             call_sources.read_worked_problems),
    "intents": _made("clinc150.parquet", "https://github.com/clinc/oos-eval", "CC BY 3.0",
                     call_sources.read_intents),
    "home_calls": _made(HOME_SDIST, "the sdist of home-assistant-datasets 0.3.0 on PyPI", "Apache-2.0",
                        call_sources.read_home_calls, HOME_SHA256),
    "glosses": _made(WORDNET_DEB, "apt-get download wordnet-base=1:3.0-37", "WordNet 3.0 license",
                     call_sources.read_glosses, WORDNET_SHA256),
    "library": Origin(files={}, origin="the standard library of the Python that builds", licence="PSF-2.0",
                      read=code_sources.read_library, here=code_sources.standard_library),
    "facts": Origin(files={}, origin="made by the build (aios/training/fact_sources.py)", licence="Apache-2.0",
                    read=fact_sources.read_facts, here=fact_sources.here),
    "packages": Origin(files=code_sources.PACKAGES, origin="pip download --no-deps of the names and versions",
                       licence="MIT, BSD-3-Clause or Apache-2.0", read=code_sources.read_package),
    "algorithms": _made("python_algorithms.parquet", "https://github.com/TheAlgorithms/Python", "MIT",
                        code_sources.read_algorithms),
    "written": _made(written.FILE, "aios train data write (SmolLM2-135M-Instruct)", "Apache-2.0",
                     written.read_written),
    "articles": _made("wikitext2_valid.parquet", "WikiText-2, validation split", "CC BY-SA 3.0",
                      sources.read_articles),
})
