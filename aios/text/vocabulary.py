"""What turns text into token ids: our own fast path, and the tokenizers library for what has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aios._native import FastTokenizer
from aios.errors import ModelCorrupt

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

STRANGE = "a \u0378\U0010fffd"      # with characters that no vocabulary has
TOKENIZER_BYTES_MAX = 64 << 20   # the largest vocabularies in use (256k entries) are about 35 MB


class Vocabulary(Protocol):
    """What `FastTokenizer` and the library offer alike; texts hold no lone surrogates, or UnicodeEncodeError."""

    def encode(self, text: str, *, special: bool = False, framed: bool = False) -> list[int]:
        """Token ids; `special`: reserved tokens in the text are themselves, `framed`: with those around a text."""

    def encode_batch(self, texts: Sequence[str], *, special: bool = False, framed: bool = False,
                     length_max: int | None = None, threads: int = 1) -> list[list[int]]:
        """Token ids of many texts, at most `length_max` each."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are no text are replaced."""

    def token_id(self, spelling: str) -> int | None:
        """The id of a token by its spelling in the file."""

    def added(self) -> list[tuple[str, int, bool]]:
        """Spelling, id, and whether it is special, of every added token."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""

    @property
    def frame_length(self) -> int:
        """How many tokens are put around a text that is framed."""


class LibraryVocabulary:
    """A `Vocabulary` by the tokenizers library: slower, and complete."""

    def __init__(self, library: LibraryTokenizer) -> None:
        library.no_truncation()
        library.no_padding()
        self._library = library
        self.vocab_size: int = library.get_vocab_size(with_added_tokens=True)
        self.frame_length: int = library.num_special_tokens_to_add(is_pair=False)

    def encode(self, text: str, *, special: bool = False, framed: bool = False) -> list[int]:
        """As promised; the library reads `special` from the tokenizer."""
        text.encode()   # for lone surrogates the library raises TypeError
        self._library.encode_special_tokens = not special
        ids: list[int] = self._library.encode(text, add_special_tokens=framed).ids
        return ids

    def encode_batch(self, texts: Sequence[str], *, special: bool = False, framed: bool = False,
                     length_max: int | None = None, threads: int = 1) -> list[list[int]]:
        """As promised; the library has its own idea of threads."""
        for text in texts:
            text.encode()
        self._library.encode_special_tokens = not special
        if length_max is not None:
            self._library.enable_truncation(length_max)
        try:
            encoded = self._library.encode_batch_fast(list(texts), add_special_tokens=framed)
        finally:
            self._library.no_truncation()
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """As promised."""
        text: str = self._library.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token_id(self, spelling: str) -> int | None:
        """As promised."""
        token_id: int | None = self._library.token_to_id(spelling)
        return token_id

    def added(self) -> list[tuple[str, int, bool]]:
        """As promised."""
        added = self._library.get_added_tokens_decoder()
        return [(token.content, token_id, token.special) for token_id, token in added.items()]


def open_vocabulary(path: Path) -> FastTokenizer | LibraryVocabulary:
    """Read a `tokenizer.json`, by the library if it has no fast path; raises ModelCorrupt naming the file."""
    remedy = "remove the model and pull it again: aios models --help"
    try:
        if path.stat().st_size > TOKENIZER_BYTES_MAX:
            raise ModelCorrupt(f"{path} is larger than {TOKENIZER_BYTES_MAX} bytes", remedy=remedy)
        raw = path.read_bytes()
    except OSError as error:
        raise ModelCorrupt(f"cannot read {path}: {error.strerror}", remedy=remedy) from error
    fast = fast_vocabulary(raw)
    if fast is not None:
        return fast
    from tokenizers import Tokenizer as LibraryTokenizer

    try:
        library = LibraryTokenizer.from_buffer(raw)
        library.encode(STRANGE)    # a promised unknown token that does not exist is found here, not in a request
        return LibraryVocabulary(library)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:   # a panic in the library's Rust code is a BaseException
        raise ModelCorrupt(f"{path} is no tokenizer: {str(error)[:200]}", remedy=remedy) from error


def vocabulary_of(library: LibraryTokenizer) -> FastTokenizer | LibraryVocabulary:
    """The vocabulary of a tokenizer that the library has in memory."""
    return fast_vocabulary(library.to_str().encode()) or LibraryVocabulary(library)


def fast_vocabulary(raw: bytes) -> FastTokenizer | None:
    """The fast path of a file; None where the library has to read it, or to say what is wrong with it."""
    try:
        return FastTokenizer(raw)
    except (NotImplementedError, ValueError):
        return None
