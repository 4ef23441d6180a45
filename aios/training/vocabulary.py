"""The frozen vocabulary of AIOS's own models: reserved tokens, how text is cut, and how a tokenizer is made.

Text and code share one byte-level BPE. Digits and JSON punctuation stand alone; a line break takes the indentation
behind it along, so that a keyword is the same token wherever its line begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPARE_TOKENS: Final = 200
NAMED_TOKENS: Final = (
    "<|pad|>", "<|mask|>", "<|eot|>",                                  # the first three ids of every AIOS vocabulary
    "<|expand|>", "<|delete|>",                                        # a canvas that grows and shrinks
    "<|system|>", "<|user|>", "<|assistant|>",                         # roles
    "<|tools|>", "<|call|>", "<|result|>",                             # tools: offered, called, answered
    "<|memory|>",                                                      # what was retrieved
    "<|thought|>", "<|action|>", "<|observation|>",                    # the skeleton of reasoning
    "<|code|>", "<|prefix|>", "<|middle|>", "<|suffix|>", "<|end|>",   # code, filling in the middle, end of a turn
)  # fmt: skip
RESERVED: Final = (*NAMED_TOKENS, *(f"<|spare{index}|>" for index in range(SPARE_TOKENS)))
PAD_ID, MASK_ID, EOT_ID = 0, 1, 2
# What a model never writes: no text holds them, so nothing teaches it when to.
UNWRITTEN: Final = tuple(
    index for index, name in enumerate(RESERVED)
    if name in ("<|pad|>", "<|mask|>", "<|expand|>", "<|delete|>") or name.startswith("<|spare")
)  # fmt: skip
SIZES: Final = (2048, 4096)   # below 20M parameters, and from there on: the backbone keeps over 90 % of them
FOLDER: Final = Path(__file__).parent / "vocabularies"

# Alternatives in order: JSON punctuation; one digit; contractions; line breaks with their indentation; words;
# other punctuation; spaces. What no alternative takes does not exist.
PATTERN: Final = (
    r"""[{}\[\]:,"]|\p{N}|'(?:s|t|re|ve|m|ll|d)(?!\p{L})|\n+ *|[ _]?\p{L}+"""
    r"""| ?[^\s\p{L}\p{N}{}\[\]:,"]+| +(?=[ ])|\s"""
)


def guard(text: str) -> str:
    """Return `text` in which nothing reads as a reserved token."""
    return text.replace("<|", "< |")


def train_vocabulary(texts: Iterable[str], size: int) -> Tokenizer:
    """Return a tokenizer of `size` entries; reserved tokens have the first ids.

    Source: Sennrich et al. 2016; bytes as in Radford et al. 2019 ("Language models are unsupervised ...").
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(RESERVED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def vocabulary_path(size: int) -> Path:
    """Return where the frozen tokenizer of `size` entries lies."""
    return FOLDER / f"aios-{size}.json"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
