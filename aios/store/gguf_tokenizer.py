"""The tokenizer of a GGUF file as a tokenizer.json, with the settings that belong to it.

Byte-level BPE only: the file names the rule by which text is split before merging, and a rule that is not known is
refused, because another one would give other tokens without a word. Source: the pre-tokenizers of the models' own
tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from aios.errors import ModelCorrupt, UnknownArchitecture
from aios.store.sources import REMEDY

# Token types of the GGUF specification.
CONTROL, USER_DEFINED = 3, 4
TEMPLATE_CHARS_MAX = 1 << 20

_QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
          r"|\s+")
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [first, _bytes(use_regex=False)]}


_DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)]}
# tokenizer.ggml.pre -> (pre-tokenizer, whether text is normalised to NFC, whether a whole word in the vocabulary wins).
RULES: Final[Mapping[str, tuple[dict[str, Any], bool, bool]]] = {
    "gpt-2": (_bytes(use_regex=True), False, False),
    "smollm": (_DIGITS, False, False),
    "qwen2": (_split(_QWEN2), True, False),
    "llama-bpe": (_split(_LLAMA3), False, True),
}
IDS: Final = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
              "pad_token": "padding_token_id"}
ENDS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_texts(path: Path, metadata: Mapping[str, Any], spec: dict[str, Any]) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json; the ids of ends go into `spec` as well.

    Raises UnknownArchitecture for a tokenizer of another kind, ModelCorrupt for one that does not make sense.
    """
    rule = RULES.get(_text(metadata, "tokenizer.ggml.pre"))
    if _text(metadata, "tokenizer.ggml.model") != "gpt2" or rule is None:
        kind = f"{_text(metadata, 'tokenizer.ggml.model')} {_text(metadata, 'tokenizer.ggml.pre')}"
        raise UnknownArchitecture(f"{path.name} has a tokenizer of the kind {kind!r}", path=str(path),
                                  remedy="byte-level BPE is read, split by the rules of " + ", ".join(RULES))
    tokens, merges = (_texts(path, metadata, key) for key in ("tokens", "merges"))
    if len(set(tokens)) != len(tokens) or len(tokens) > spec["vocab_size"]:
        raise _corrupt(path, f"its {len(tokens)} tokens are not distinct, or more than the embedding has")
    ids = {name: _id(path, metadata, key, len(tokens)) for name, key in IDS.items()}
    ends = sorted({end for key in ENDS if (end := _id(path, metadata, key, len(tokens))) is not None})
    model = _model(path, tokens, merges, metadata, rule)
    model["post_processor"] = _post_processor(tokens, ids["bos_token"], metadata)
    raw = msgspec.json.encode(model)
    _check(path, raw)
    generation = {"bos_token_id": ids["bos_token"], "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
                  "pad_token_id": ids["pad_token"]}
    spec.update({key: value for key, value in generation.items() if value is not None})
    return {"tokenizer.json": raw, "tokenizer_config.json": _config(tokens, ids, metadata, spec),
            "generation_config.json": _pretty({key: value for key, value in generation.items() if value is not None})}


def _model(path: Path, tokens: Sequence[str], merges: Sequence[str], metadata: Mapping[str, Any],
           rule: tuple[dict[str, Any], bool, bool]) -> dict[str, Any]:
    """tokenizer.json, as far as every model has it."""
    splitter, normalised, whole_words = rule
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise _corrupt(path, "its token types do not match its tokens")
    added = [{"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": kind == CONTROL}
             for index, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind in (CONTROL, USER_DEFINED)]
    # A merge may begin with a space only if the first token is one: none is in byte-level BPE.
    pairs = [merge.split(" ") for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise _corrupt(path, "a merge is not two tokens")
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"} if normalised else None, "pre_tokenizer": splitter, "post_processor": None,
        "decoder": _bytes(use_regex=True),
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": whole_words,
                  "vocab": {token: index for index, token in enumerate(tokens)}, "merges": pairs}}


def _post_processor(tokens: Sequence[str], bos: int | None, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    if metadata.get("tokenizer.ggml.add_bos_token") is not True or bos is None:
        return None
    first = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    one, other = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [first, one], "pair": [first, one, other],
            "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}}}


def _config(tokens: Sequence[str], ids: Mapping[str, int | None], metadata: Mapping[str, Any],
            spec: Mapping[str, Any]) -> bytes:
    """tokenizer_config.json: the chat template and the names of special tokens."""
    named = {name: tokens[index] for name, index in ids.items() if index is not None}
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and len(template) <= TEMPLATE_CHARS_MAX:
        named["chat_template"] = template
    return _pretty({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                    "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token") is True,
                    "model_max_length": spec["max_position_embeddings"], **named})


def _check(path: Path, raw: bytes) -> None:
    """Refuse what the tokenizers library cannot open."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_buffer(raw)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:   # a panic in the library's Rust code is a BaseException
        raise _corrupt(path, f"its tokenizer does not make sense: {str(error)[:200]}") from error


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value[:80] if isinstance(value, str) else "nothing"


def _texts(path: Path, metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _corrupt(path, f"it has no {key} of a tokenizer")
    return value


def _id(path: Path, metadata: Mapping[str, Any], key: str, count: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is not None and (not isinstance(value, int) or not 0 <= value < count):
        raise _corrupt(path, f"{key} is {str(value)[:80]}, which is no token")
    return value


def _pretty(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _corrupt(path: Path, why: str) -> ModelCorrupt:
    return ModelCorrupt(f"{path.name}: {why}", remedy=REMEDY, path=str(path))
