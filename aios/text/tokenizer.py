"""Tokenizers read from a model's `tokenizer.json` by the tokenizers library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as LibraryTokenizer

from aios.errors import ModelCorrupt

STRANGE = "a \u0378\U0010fffd"      # with characters that no vocabulary has
TOKENIZER_BYTES_MAX = 64 << 20   # the largest vocabularies in use (256k entries) are about 35 MB
TOKEN_CHARS_MAX = 128   # real text has 4 or 5 a token; what is longer is cut before it costs time
UNDECODABLE = "\ufffd"
GUARD = "\ufdd0"         # a code point that no text holds: Unicode keeps it for a program's own use


class TextTokenizer:
    """The `Tokenizer` contract; reserved tokens spelled out in a text are read as plain text."""

    def __init__(self, library: LibraryTokenizer) -> None:
        library.no_truncation()
        library.no_padding()
        # Otherwise a prompt could smuggle a mask or an end of text into the canvas.
        library.encode_special_tokens = True
        self._library = library
        self._pieces: dict[int, str] = {}
        self._reserved: list[str] | None = None
        self.vocab_size: int = library.get_vocab_size(with_added_tokens=True)

    @classmethod
    def open(cls, path: Path) -> TextTokenizer:
        """Read a `tokenizer.json`; raises ModelCorrupt naming the file."""
        return cls(_read(path))

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens; lone surrogates are replaced."""
        ids: list[int] = self._library.encode(well_formed(text), add_special_tokens=False).ids
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids with the special tokens that the model wants around a text."""
        ids: list[int] = self._library.encode(well_formed(text), add_special_tokens=True).ids
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered chat template: reserved tokens in it are themselves, but for guarded ones."""
        text = well_formed(text)
        if GUARD not in text:
            return self._with_reserved(text)
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
            added = self._library.get_added_tokens_decoder().values()
            self._reserved = sorted((token.content for token in added if token.special), key=len, reverse=True)
        return self._reserved

    def _with_reserved(self, text: str) -> list[int]:
        self._library.encode_special_tokens = False
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        finally:
            self._library.encode_special_tokens = True
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are dropped, undecodable bytes are replaced."""
        text: str = self._library.decode(list(ids), skip_special_tokens=True)
        return text

    def piece(self, token_id: int) -> str:
        """The text of one token; empty for special tokens and for bytes that are no text alone."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self.decode([token_id]).replace(UNDECODABLE, "")
        return piece

    def special(self, name: str) -> int:
        """Id of a reserved token such as "<|mask|>"; KeyError if there is none."""
        token_id: int | None = self._library.token_to_id(name)
        if token_id is None:
            raise KeyError(name)
        return token_id


class SentenceTokenizer:
    """Texts to the token ids a sentence encoder reads: special tokens around, cut at `length_max` tokens."""

    def __init__(self, library: LibraryTokenizer, length_max: int) -> None:
        library.enable_truncation(length_max)
        library.no_padding()
        library.encode_special_tokens = True
        self._library = library
        self._chars_max = length_max * TOKEN_CHARS_MAX

    @classmethod
    def open(cls, path: Path, length_max: int) -> SentenceTokenizer:
        """Read a `tokenizer.json`; raises ModelCorrupt naming the file."""
        return cls(_read(path), length_max)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text; lone surrogates are replaced."""
        cut = [well_formed(text[:self._chars_max]) for text in texts]
        return [encoding.ids for encoding in self._library.encode_batch_fast(cut)]


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _read(path: Path) -> LibraryTokenizer:
    remedy = "remove the model and pull it again: aios models --help"
    try:
        if path.stat().st_size > TOKENIZER_BYTES_MAX:
            raise ModelCorrupt(f"{path} is larger than {TOKENIZER_BYTES_MAX} bytes", remedy=remedy)
        raw = path.read_bytes()
    except OSError as error:
        raise ModelCorrupt(f"cannot read {path}: {error.strerror}", remedy=remedy) from error
    try:
        library = LibraryTokenizer.from_buffer(raw)
        library.encode(STRANGE)    # a promised unknown token that does not exist is found here, not in a request
        return library
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:   # a panic in the library's Rust code is a BaseException
        raise ModelCorrupt(f"{path} is no tokenizer: {str(error)[:200]}", remedy=remedy) from error
