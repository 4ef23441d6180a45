"""Byte-level BPE as one writes it in Python: the reference of the algorithm, and what speed is measured against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any


def alphabet() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary.

    Source: Radford et al. 2019; printable Latin-1 stands for itself, the rest follow from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + at) for at, byte in enumerate(others)}


class PlainBpe:
    """A vocabulary of one Split pattern and byte-level BPE; ImportError without the `regex` package.

    Source: Sennrich et al. 2016, algorithm 1, one word at a time and without a memory of earlier words.
    """

    def __init__(self, path: Path) -> None:
        described: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.pattern: str = described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        self.vocabulary: dict[str, int] = described["model"]["vocab"]
        self._find = import_module("regex").compile(self.pattern).findall
        merges = described["model"]["merges"]
        self._ranks: dict[tuple[str, str], int] = {(left, right): at for at, (left, right) in enumerate(merges)}
        self._alphabet = alphabet()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return [self.vocabulary[token] for word in self._find(text) for token in self._joined(word)]

    def bytes_by_rank(self) -> dict[bytes, int]:
        """The bytes of every token that merges can make, with its id, which grows with its rank."""
        byte_of = {character: byte for byte, character in self._alphabet.items()}
        made = {left + right for left, right in self._ranks} | set(byte_of)
        return {bytes(byte_of[one] for one in token): self.vocabulary[token] for token in made}

    def _joined(self, word: str) -> list[str]:
        symbols = [self._alphabet[byte] for byte in word.encode()]
        unknown = len(self._ranks)
        while len(symbols) > 1:
            pair = min(pairwise(symbols), key=lambda one: self._ranks.get(one, unknown))
            if pair not in self._ranks:
                break
            merged, at = [], 0
            while at < len(symbols):
                if at + 1 < len(symbols) and (symbols[at], symbols[at + 1]) == pair:
                    merged.append(symbols[at] + symbols[at + 1])
                    at += 2
                else:
                    merged.append(symbols[at])
                    at += 1
            symbols = merged
        return symbols
