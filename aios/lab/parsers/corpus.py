"""Small valid inputs of every kind, made when a campaign starts, with the places where a lie would hurt."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aios.lab.parsers.mutations import Sample, Site
from aios.lab.parsers.weights import WeightSample

SEED = 20_261_121                # of the contents; mutations have a seed of their own
_SAFETENSORS_BYTES: Final[Mapping[str, int]] = {
    "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
#: GGUF type: (code, elements of a block, bytes of a block)
_GGUF_TYPES: Final[Mapping[str, tuple[int, int, int]]] = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
    "BF16": (30, 1, 2)}
_GGUF_ALIGNMENT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The valid inputs by kind: parquet, safetensors, gguf, frames, spec, tokenizer, chat, memories, vectors."""

    samples: Mapping[str, Sequence[Sample]]

    def of(self, kind: str) -> Sequence[Sample]:
        """Those of one kind."""
        return self.samples[kind]


def make_corpus(weight_files: Sequence[WeightSample], memory_files: Sequence[Sample],
                vector_files: Sequence[Sample]) -> Corpus:
    """Every sample, the same in every process."""
    rng = random.Random(SEED)
    return Corpus(samples={
        "parquet": [file.sample for file in weight_files], "safetensors": _safetensors(rng), "gguf": _gguf(rng),
        "frames": _frames(), "spec": _specs(), "tokenizer": _tokenizers(), "chat": _chats(),
        "memories": memory_files, "vectors": vector_files})


def _safetensors(rng: random.Random) -> list[Sample]:
    shapes: list[dict[str, tuple[str, list[int]]]] = [
        {"w": ("F32", [3, 4]), "b": ("F16", [3])},
        {f"t.{kind}": (kind, [2, 3]) for kind in _SAFETENSORS_BYTES},
        {"empty": ("F32", [0, 7]), "scalar": ("I64", []), "deep": ("U8", [1, 2, 1, 2, 1, 2, 1, 1])},
    ]
    return [_safetensors_file(rng, f"safetensors {number}", tensors) for number, tensors in enumerate(shapes)]


def _safetensors_file(rng: random.Random, name: str, tensors: Mapping[str, tuple[str, list[int]]]) -> Sample:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, (kind, shape) in tensors.items():
        begin, end = end, end + _product(shape) * _SAFETENSORS_BYTES[kind]
        header[tensor] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    data = len(text).to_bytes(8, "little") + text + rng.randbytes(end)

    def repair(damaged: bytes) -> bytes:
        """The length in front agrees with the header again, wherever the payload was meant to begin."""
        return (max(0, len(damaged) - 8 - end)).to_bytes(8, "little") + damaged[8:]

    # No sites: the numbers of the header are found in its text, the length in front by `repair` and by noise.
    return Sample(name=name, data=data, repair=repair)


class _Gguf:
    """A GGUF file field by field, with the place of every number."""

    def __init__(self, version: int, tensors: int, pairs: int) -> None:
        self.data, self.sites = bytearray(b"GGUF"), list[Site]()
        self.number("<I", version).number("<Q", tensors).number("<Q", pairs)

    def number(self, form: str, value: float) -> _Gguf:
        """One number; integers of four and eight bytes are sites."""
        if form in ("<I", "<Q"):
            self.sites.append(Site(offset=len(self.data), length=struct.calcsize(form)))
        self.data += struct.pack(form, value)
        return self

    def text(self, text: str) -> _Gguf:
        """Its length, then its bytes."""
        self.number("<Q", len(text.encode()))
        self.data += text.encode()
        return self

    def texts(self, key: str, texts: Sequence[str]) -> _Gguf:
        """A pair whose value is a list of texts."""
        self.text(key).number("<I", 9).number("<I", 8).number("<Q", len(texts))
        for one in texts:
            self.text(one)
        return self

    def scalar(self, key: str, kind: int, form: str, value: float) -> _Gguf:
        """A pair whose value is one number."""
        return self.text(key).number("<I", kind).number(form, value)

    def sample(self, rng: random.Random, name: str, tensors: Mapping[str, tuple[str, list[int]]]) -> Sample:
        """The file with these tensors behind its metadata."""
        payload = bytearray()
        for tensor, (kind, shape) in tensors.items():
            code, elements, size = _GGUF_TYPES[kind]
            self.text(tensor).number("<I", len(shape))
            for axis in shape:
                self.number("<Q", axis)
            payload += bytes(-len(payload) % _GGUF_ALIGNMENT)
            self.number("<I", code).number("<Q", len(payload))
            payload += rng.randbytes(_product(shape) // elements * size)
        self.data += bytes(-len(self.data) % _GGUF_ALIGNMENT)
        return Sample(name=name, data=bytes(self.data + payload), sites=tuple(self.sites))


def _gguf(rng: random.Random) -> list[Sample]:
    every = {f"t.{kind}": (kind, [elements * 2, 3]) for kind, (_, elements, _) in _GGUF_TYPES.items()}
    small = {"w": ("F32", [8, 2]), "n": ("F16", [8])}
    numbers = _Gguf(3, len(every), 14)
    for kind, form in enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f")):
        numbers.scalar(f"number.{kind}", kind, form, 7)
    for kind, form in ((7, "<?"), (10, "<Q"), (11, "<q"), (12, "<d")):
        numbers.scalar(f"number.{kind}", kind, form, 1)
    numbers.scalar("general.alignment", 4, "<I", _GGUF_ALIGNMENT)
    numbers.text("ids").number("<I", 9).number("<I", 5).number("<Q", 3)
    for value in (1, -2, 3):
        numbers.number("<i", value)
    numbers.texts("words", ["a", "ä", ""])
    vocabulary = [chr(33 + index) for index in range(20)]
    words = _Gguf(2, 2, 4).text("general.architecture").number("<I", 8).text("llama")
    words.text("tokenizer.ggml.model").number("<I", 8).text("gpt2")
    words.texts("tokenizer.ggml.tokens", vocabulary).texts("tokenizer.ggml.merges", ["! \"", "# $"])
    return [numbers.sample(rng, "gguf every type", every), words.sample(rng, "gguf words", small),
            _Gguf(3, 0, 0).sample(rng, "gguf empty", {})]


def _frames() -> list[Sample]:
    from aios.ipc.stream import Request, Response, encode

    return [
        Sample(name="request", data=encode(Request(msgid=7, verb="diffuse", params=[
            {"prompt": "Once", "length": 8, "seed": 1, "temperature": 0.5, "note": None, "stream": True}]))),
        Sample(name="response", data=encode(Response(msgid=7, error=None, result={
            "parts": [b"\x00" * 40, "text" * 20, [1, -1, 1 << 40, 0.25], {"a": {"b": {"c": []}}}]}))),
    ]


def _specs() -> list[Sample]:
    llama = {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 320, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "rope_scaling": {"rope_type": "default", "factor": 1.0}, "head_dim": 16,
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
        "max_position_embeddings": 2048}
    bert = {
        "model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "position_embedding_type": "absolute"}
    return [_text("spec llama", llama), _text("spec qwen3", {**llama, "model_type": "qwen3", "qkv_bias": True}),
            _text("spec bert", bert)]


def _tokenizers() -> list[Sample]:
    letters = [chr(97 + index) for index in range(26)]
    vocab = {token: index for index, token in enumerate(["<pad>", "<eos>", *letters, "th", "the", "in"])}
    special = [{"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for index, token in enumerate(["<pad>", "<eos>"])]
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab,
                             "merges": [["t", "h"], ["th", "e"], ["i", "n"]]}
    before = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    common: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
                              "normalizer": {"type": "NFC"}, "post_processor": None, "decoder": before}
    split = {"type": "Split", "pattern": {"Regex": "\\p{L}+| "}, "behavior": "Isolated", "invert": False}
    pieces = {"type": "WordPiece", "unk_token": "<pad>", "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100, "vocab": vocab}
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True}
    return [_text("tokenizer bytes", {**common, "pre_tokenizer": before, "model": model}),
            _text("tokenizer split", {**common, "pre_tokenizer": split, "model": model}),
            _text("tokenizer words", {**common, "normalizer": bert, "pre_tokenizer": {"type": "BertPreTokenizer"},
                                      "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
                                      "model": pieces})]


def _chats() -> list[Sample]:
    template = ("{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if loop.first and message.content "
                "| length > 3 %}{{ message.content[:20] | trim }}{% else %}{{ message.content }}{% endif %}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|assistant|>' * 1 }}{% endif %}")
    loops = ("{%- set ns = namespace(n=0) -%}{%- macro show(x) -%}{{ x | tojson }}{%- endmacro -%}"
             "{%- for i in range(3) -%}{%- set ns.n = ns.n + i -%}{{ show({'n': ns.n, 'm': messages | length}) }}"
             "{%- endfor -%}{{ eos_token ~ bos_token }}")
    return [_text(f"chat {number}", {"chat_template": source, "bos_token": "<pad>", "eos_token": {"content": "<eos>"},
                                     "add_bos_token": False, "model_max_length": 2048})
            for number, source in enumerate((template, loops))]


def _text(name: str, value: object) -> Sample:
    return Sample(name=name, data=json.dumps(value, ensure_ascii=False).encode())


def _product(shape: Sequence[int]) -> int:
    product = 1
    for axis in shape:
        product *= axis
    return product
