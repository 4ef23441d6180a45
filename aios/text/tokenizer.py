"""The tokenizers of text models and of sentence encoders, over a vocabulary read from a `tokenizer.json`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aios._native import FastTokenizer
from aios.errors import ModelCorrupt
from aios.text.vocabulary import LibraryVocabulary, Vocabulary, open_vocabulary, vocabulary_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

TOKEN_CHARS_MAX = 128   # real text has 4 or 5 a token; what is longer is cut before it costs time
UNDECODABLE = "\ufffd"
GUARD = "\ufdd0"         # a code point that no text holds: Unicode keeps it for a program's own use


class TextTokenizer:
    """The `Tokenizer` contract; reserved tokens spelled out in a text are read as plain text."""

    def __init__(self, source: FastTokenizer | LibraryVocabulary | LibraryTokenizer) -> None:
        self._vocabulary = _vocabulary(source)
        self._pieces: dict[int, str] = {}
        self._reserved: list[str] | None = None
        self.vocab_size: int = self._vocabulary.vocab_size

    @classmethod
    def open(cls, path: Path) -> TextTokenizer:
        """Read a `tokenizer.json`; raises ModelCorrupt naming the file."""
        return cls(open_vocabulary(path))

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens; lone surrogates are replaced."""
        # Were reserved tokens read, a prompt could smuggle a mask or an end of text into the canvas.
        try:
            return self._vocabulary.encode(text)
        except UnicodeEncodeError:
            return self._vocabulary.encode(well_formed(text))

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` of many texts, on so many threads."""
        try:
            return self._vocabulary.encode_batch(texts, threads=threads)
        except UnicodeEncodeError:
            return self._vocabulary.encode_batch([well_formed(text) for text in texts], threads=threads)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids with the special tokens that the model wants around a text."""
        return self._vocabulary.encode(well_formed(text), framed=True)

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered chat template: reserved tokens in it are themselves, but for guarded ones."""
        text = well_formed(text)
        if GUARD not in text:
            return self._vocabulary.encode(text, special=True)
        # What a person wrote is read as plain text, piece by piece between the template's own tokens.
        pattern = "|".join(map(re.escape, self.reserved)) or r"(?!)"
        ids: list[int] = []
        for piece in re.split(f"({pattern})", text):
            if piece in self.reserved:
                ids.append(self.special(piece))
            elif piece:
                ids += self.encode(piece.replace(GUARD, ""))
        return ids

    def guarded(self, text: str) -> str:
        """The text with every reserved token spelled out in it marked as plain text, for `encode_rendered`."""
        text = text.replace(GUARD, "")
        for name in self.reserved:
            text = text.replace(name, name[0] + GUARD + name[1:])
        return text

    @property
    def reserved(self) -> list[str]:
        """The spelling of every special token, long ones first."""
        if self._reserved is None:
            names = (name for name, _, special in self._vocabulary.added() if special)
            self._reserved = sorted(names, key=len, reverse=True)
        return self._reserved

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are dropped, undecodable bytes are replaced."""
        return self._vocabulary.decode(ids)

    def piece(self, token_id: int) -> str:
        """The text of one token; empty for special tokens and for bytes that are no text alone."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self.decode([token_id]).replace(UNDECODABLE, "")
        return piece

    def special(self, name: str) -> int:
        """Id of a reserved token such as "<|mask|>"; KeyError if there is none."""
        token_id = self._vocabulary.token_id(name)
        if token_id is None:
            raise KeyError(name)
        return token_id


class SentenceTokenizer:
    """Texts to the token ids a sentence encoder reads: special tokens around, cut at `length_max` tokens."""

    def __init__(self, source: FastTokenizer | LibraryVocabulary | LibraryTokenizer, length_max: int) -> None:
        self._vocabulary = _vocabulary(source)
        if length_max <= self._vocabulary.frame_length:
            raise ModelCorrupt(f"an encoder that reads {length_max} tokens has no room for a text",
                               remedy="remove the model and pull it again: aios models --help")
        self._length_max = length_max
        self._chars_max = length_max * TOKEN_CHARS_MAX
        self._threads = len(os.sched_getaffinity(0))

    @classmethod
    def open(cls, path: Path, length_max: int) -> SentenceTokenizer:
        """Read a `tokenizer.json`; raises ModelCorrupt naming the file."""
        return cls(open_vocabulary(path), length_max)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text; lone surrogates are replaced."""
        cut = [text[:self._chars_max] for text in texts]
        try:
            return self._encode(cut)
        except UnicodeEncodeError:
            return self._encode([well_formed(text) for text in cut])

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._vocabulary.encode_batch(texts, framed=True, length_max=self._length_max, threads=self._threads)


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _vocabulary(source: FastTokenizer | LibraryVocabulary | LibraryTokenizer) -> Vocabulary:
    return source if isinstance(source, FastTokenizer | LibraryVocabulary) else vocabulary_of(source)
