"""GGUF files of language models: config.json and names as Hugging Face has them, codes kept where that loses nothing.

Q4_0, Q4_1 and Q8_0 matrices keep their very codes and scales in the packed order, at 32 columns a group; F32, F16 and
BF16 tensors stay as they are; the other types are dequantised. Source: the GGUF specification and the tensor names of
the ggml project.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import lcm, prod
from pathlib import Path
from typing import Any, Final

import msgspec

from aios.errors import ModelCorrupt, UnknownArchitecture
from aios.store.gguf_tokenizer import tokenizer_texts
from aios.store.sources import (
    PIECE_BYTES,
    REMEDY,
    Pieces,
    Precision,
    Source,
    SourceTensor,
    identity_of,
    read_pieces,
    reading,
)
from aios.store.sources_safetensors import check_unique, stored

CLASSES: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
PLAIN: Final = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32", "I16": "i16",
                "I8": "i8"}
GROUP_SIZE = 32
PANEL_ROWS = 32
NUMBER_MAX = 1 << 31
ENDS: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS: Final = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
NAME = re.compile(r"(?:blk\.(\d{1,4})\.)?([a-z_]+)\.(weight|bias)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One tensor of the file: its type and where its bytes lie; `heads` > 0 when its rows are permuted."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int
    heads: int = 0


def gguf_source(path: Path, *, plain: bool, precision: Precision) -> Source:
    """The model of a GGUF file; raises UnknownArchitecture for what AIOS has no counterpart of."""
    from aios._native import read_gguf

    with reading(path):
        _, metadata, found = read_gguf(str(path))
    facts = Facts(path, metadata)
    shapes = {name: tuple(shape) for name, _, shape, _, _ in found}
    spec = facts.spec(shapes)
    heads = {"attn_q": spec["num_attention_heads"], "attn_k": spec["num_key_value_heads"]}
    tensors, dequantised = [], 0
    for name, kind, shape, begin, end in found:
        ours, part = _renamed(name)
        # llama.cpp reorders the rows of queries and keys for its own rotary embedding, in this architecture only.
        permuted = heads.get(part, 0) if facts.architecture == "llama" else 0
        tensor = _tensor(ours, Stored(path=path, kind=kind, shape=tuple(shape), begin=begin, end=end, heads=permuted),
                         plain=plain, precision=precision)
        dequantised += kind not in PLAIN and not tensor.group_size
        tensors.append(tensor)
    texts = tokenizer_texts(path, metadata, spec)   # it also puts the ids of special tokens into the spec
    texts |= {"config.json": msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n",
              "README.md": facts.card(spec).encode()}
    return Source(spec=spec, texts=texts, tensors=check_unique(tensors, path), licence=facts.text("general.license"),
                  identity=identity_of([path], "gguf", str(plain), precision), dequantised=dequantised)


class Facts:
    """The metadata of a GGUF file, each value checked when it is asked for."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._metadata = metadata
        self.architecture = self.text("general.architecture")
        if self.architecture not in CLASSES:
            raise UnknownArchitecture(f"{path.name} is of the architecture {self.architecture!r}",
                                      remedy="those read are " + ", ".join(CLASSES), path=str(path))

    def text(self, key: str, default: str = "unknown") -> str:
        """A text of at most 200 characters."""
        value = self._metadata.get(key)
        return value[:200] if isinstance(value, str) and value else default

    def number(self, key: str, default: int | None = None) -> int:
        """A positive whole number of the architecture."""
        value = self._metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < NUMBER_MAX:
            raise ModelCorrupt(f"{self._path.name} gives {self.architecture}.{key} as {str(value)[:80]}",
                               remedy=REMEDY, path=str(self._path))
        return value

    def real(self, key: str, default: float) -> float:
        """A positive number of the architecture."""
        value = self._metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise ModelCorrupt(f"{self._path.name} gives {self.architecture}.{key} as {str(value)[:80]}",
                               remedy=REMEDY, path=str(self._path))
        return value

    def spec(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """config.json as Hugging Face would have it; `shapes` are those of the file's tensors, by their name there."""
        hidden, heads = self.number("embedding_length"), self.number("attention.head_count")
        head_dim = self.number("attention.key_length", hidden // heads)
        self._refuse_what_is_not_built(head_dim)
        embedding = shapes.get("token_embd.weight", ())
        if len(embedding) != 2 or not embedding[0]:
            raise ModelCorrupt(f"{self._path.name} has no embedding of tokens", remedy=REMEDY, path=str(self._path))
        spec: dict[str, Any] = {
            "model_type": self.architecture, "architectures": [CLASSES[self.architecture]],
            "vocab_size": embedding[0], "hidden_size": hidden, "intermediate_size": self.number("feed_forward_length"),
            "num_hidden_layers": self.number("block_count"), "num_attention_heads": heads,
            "num_key_value_heads": self.number("attention.head_count_kv", heads), "head_dim": head_dim,
            "hidden_act": "silu", "max_position_embeddings": self.number("context_length", 2048),
            "rms_norm_eps": self.real("attention.layer_norm_rms_epsilon", 1e-6),
            "rope_theta": self.real("rope.freq_base", 10_000.0),
            "tie_word_embeddings": "output.weight" not in shapes}
        if self.architecture == "llama":
            spec["attention_bias"] = "blk.0.attn_q.bias" in shapes
        return spec

    def card(self, spec: Mapping[str, Any]) -> str:
        """A model card of what the file says about itself."""
        size = f"{spec['num_hidden_layers']} layers of width {spec['hidden_size']}, {spec['vocab_size']:,} tokens"
        return (f"# {self.text('general.name', self._path.stem)}\n\nConverted from `{self._path.name}` "
                f"({self.architecture}: {size}).\n\n- Author: {self.text('general.organization')}\n"
                f"- Licence: {self.text('general.license')}\n")

    def _refuse_what_is_not_built(self, head_dim: int) -> None:
        prefix = self.architecture
        refused = {
            "rotary scaling": self.text(f"{prefix}.rope.scaling.type", "none") != "none",
            "rotary embedding of a part of each head": self.number("rope.dimension_count", head_dim) != head_dim,
            "experts": self._metadata.get(f"{prefix}.expert_count", 0) != 0,
            "further files": self._metadata.get("split.count", 1) not in (0, 1),
            "values of another width than keys": self.number("attention.value_length", head_dim) != head_dim,
        }
        for what, there in refused.items():
            if there:
                raise UnknownArchitecture(f"{self._path.name} uses {what}, which is not implemented",
                                          remedy="choose another model", path=str(self._path))


def _renamed(name: str) -> tuple[str, str]:
    """(Hugging Face's name, the part's name in the file) of a tensor."""
    found = NAME.fullmatch(name)
    if found is not None and found[1] is None and found[2] in ENDS:
        return f"{ENDS[found[2]]}.{found[3]}", found[2]
    if found is not None and found[1] is not None and found[2] in PARTS:
        return f"model.layers.{int(found[1])}.{PARTS[found[2]]}.{found[3]}", found[2]
    raise UnknownArchitecture(f"the tensor {name[:80]!r} belongs to no part that AIOS knows",
                              remedy="choose another model")


def _tensor(name: str, stored_as: Stored, *, plain: bool, precision: Precision) -> SourceTensor:
    from aios._native import gguf_block

    _, _, bits, zeros = gguf_block(stored_as.kind)
    size = stored_as.end - stored_as.begin
    _check_rows(name, stored_as)
    if bits and not plain:
        return SourceTensor(name=name, dtype=f"int{bits}", shape=stored_as.shape, bytes=size, group_size=GROUP_SIZE,
                            symmetric=not zeros, pieces=_packed(stored_as))
    if stored_as.kind not in PLAIN:
        return SourceTensor(name=name, dtype=precision, shape=stored_as.shape, bytes=size,
                            pieces=_dequantised(stored_as, half=precision == "f16"))
    pieces = _reordered(stored_as) if stored_as.heads else stored(stored_as.path, stored_as.begin, stored_as.end)
    return SourceTensor(name=name, dtype=PLAIN[stored_as.kind], shape=stored_as.shape, bytes=size, pieces=pieces)


def _check_rows(name: str, stored_as: Stored) -> None:
    """Refuse what cannot be taken row by row although it must be."""
    if stored_as.kind not in PLAIN and len(stored_as.shape) != 2:
        raise ModelCorrupt(f"{stored_as.path.name}: {name} is of the type {stored_as.kind} and no matrix",
                           remedy=REMEDY, path=str(stored_as.path))
    rows = stored_as.shape[0] if stored_as.shape else 0
    if stored_as.heads and (not rows or rows % (2 * stored_as.heads)):
        raise ModelCorrupt(f"{stored_as.path.name}: {name} of {rows} rows does not split into {stored_as.heads} heads",
                           remedy=REMEDY, path=str(stored_as.path))


def _rows(stored_as: Stored, unit: int) -> Iterator[tuple[int, memoryview]]:
    """(rows, their bytes) in pieces of a multiple of `unit` rows, the rows of queries and keys in their own order."""
    rows = stored_as.shape[0]
    row_bytes = (stored_as.end - stored_as.begin) // max(1, rows)
    head_dim = rows // stored_as.heads if stored_as.heads else 1
    unit = lcm(unit, head_dim)
    step = max(1, PIECE_BYTES // max(1, row_bytes) // unit) * unit
    for piece in read_pieces(stored_as.path, stored_as.begin, stored_as.end, piece_bytes=step * row_bytes):
        count = len(piece) // row_bytes
        if stored_as.heads:
            # Rows i and i + head_dim / 2 of a head lie beside each other in the file, as a pair of the rotation.
            half = head_dim // 2
            order = (head + 2 * i + side for head in range(0, count, head_dim) for side in (0, 1) for i in range(half))
            piece = memoryview(b"".join(piece[row * row_bytes:(row + 1) * row_bytes] for row in order))
        yield count, piece


def _reordered(stored_as: Stored) -> Pieces:
    def pieces() -> Iterator[tuple[str, memoryview]]:
        return (("data", piece) for _, piece in _rows(stored_as, 1))
    return pieces


def _dequantised(stored_as: Stored, *, half: bool) -> Pieces:
    def pieces() -> Iterator[tuple[str, bytes]]:
        from aios._native import gguf_dequantize

        if prod(stored_as.shape):
            for _, piece in _rows(stored_as, 1):
                with reading(stored_as.path):
                    values = gguf_dequantize(stored_as.kind, piece, half)
                yield "data", values
    return pieces


def _packed(stored_as: Stored) -> Pieces:
    def pieces() -> Iterator[tuple[str, bytes | bytearray]]:
        from aios._native import gguf_pack

        scales, zeros = bytearray(), bytearray()   # an eighth or a quarter of the codes: they may wait
        if prod(stored_as.shape):
            for rows, piece in _rows(stored_as, PANEL_ROWS):
                with reading(stored_as.path):
                    codes, some_scales, some_zeros = gguf_pack(stored_as.kind, piece, rows, stored_as.shape[1])
                yield "data", codes
                scales += some_scales
                zeros += some_zeros or b""
        yield "scales", scales
        if zeros:
            yield "zeros", zeros
    return pieces
