"""What a memory is: text and metadata, which are sealed, and columns in the clear, by which memories are filtered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from aios.errors import BadInput, LimitExceeded
from aios.messages import Memory as Memory
from aios.messages import MemoryFilter

TEXT_BYTES_MAX: Final = 1 << 20          # a passage, or a long note
METADATA_BYTES_MAX: Final = 64 << 10     # notes about a text are shorter than texts
METADATA_DEPTH_MAX: Final = 32
NAME_BYTES_MAX: Final = 255              # a namespace, a tag
TAGS_MAX: Final = 64
ORIGIN_BYTES_MAX: Final = 2048           # a source, a provenance: an address or a path
FILTER_NAMES_MAX: Final = 1000
NAMESPACE: Final = "default"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

Floats = NDArray[np.float32]
Ids = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMemory:
    """A memory on its way in; `vector` is what finds it, None where the store can encode the text itself."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    vector: ArrayLike | None = None
    namespace: str = NAMESPACE
    tags: Sequence[str] = ()
    time: datetime | None = None         # with its time zone; None: now
    source: str = ""                     # where it comes from: a path, an address, a conversation
    provenance: str = ""                 # what may be believed of it: owner, document, peer, teacher, tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter(MemoryFilter):
    """Conditions on the clear columns, as the store takes them."""

    def native(self) -> tuple[list[str], list[str], list[str], list[str], int | None, int | None]:
        """As the native store takes it; raises BadInput."""
        names = [[_name(name, "a filter", ORIGIN_BYTES_MAX) for name in listed(names, "a filter", FILTER_NAMES_MAX)]
                 for names in (self.namespaces, self.tags, self.sources, self.provenances)]
        since, until = (None if time is None else microseconds(time) for time in (self.since, self.until))
        return names[0], names[1], names[2], names[3], since, until


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A memory that was checked, as the store takes it."""

    columns: tuple[str, list[str], str, str]     # namespace, tags, source, provenance
    time: int                                    # microseconds since 1970
    content: bytes                               # text and metadata, to be sealed


def prepare(memory: NewMemory) -> Prepared:
    """Check a memory; raises BadInput."""
    return Prepared(columns=columns(memory), time=microseconds(memory.time or datetime.now(UTC)),
                    content=content(memory))


def columns(memory: NewMemory) -> tuple[str, list[str], str, str]:
    """namespace, tags, source and provenance, checked; raises BadInput."""
    tags = [_name(tag, "a tag", NAME_BYTES_MAX) for tag in listed(memory.tags, "tags", TAGS_MAX)]
    return (_name(memory.namespace, "a namespace", NAME_BYTES_MAX), tags,
            _name(memory.source, "a source", ORIGIN_BYTES_MAX),
            _name(memory.provenance, "a provenance", ORIGIN_BYTES_MAX))


def content(memory: NewMemory) -> bytes:
    """Text and metadata as the bytes that are sealed; raises BadInput."""
    if not isinstance(memory.text, str) or not isinstance(memory.metadata, Mapping):
        raise BadInput("a memory is a text, with a mapping as its metadata", remedy="give a str and a dict")
    try:
        text = memory.text.encode()
        metadata = msgspec.json.encode(_plain(dict(memory.metadata), METADATA_DEPTH_MAX))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"this memory cannot be kept: {error}",
                       remedy="text is Unicode; metadata is what JSON can say") from error
    for what, size, most in (("the text", len(text), TEXT_BYTES_MAX), ("metadata", len(metadata), METADATA_BYTES_MAX)):
        if size > most:
            raise LimitExceeded(f"{what} of {size} bytes is above {most}", remedy="split it")
    return msgspec.msgpack.encode((text, metadata))


def opened(plain: bytes) -> tuple[str, dict[str, Any]]:
    """Text and metadata of what `content` made."""
    text, metadata = msgspec.msgpack.decode(plain, type=tuple[bytes, bytes])
    return text.decode(), msgspec.json.decode(metadata, type=dict[str, Any])


def vectors(rows: Sequence[ArrayLike], dim: int) -> Floats:
    """Vectors (n, dim) f32, contiguous; raises BadInput for another dimension or numbers that are not finite."""
    try:
        out = np.empty((len(rows), dim), "<f4")
        for index, row in enumerate(rows):
            one = np.asarray(row, np.float32)
            if one.shape != (dim,):
                raise BadInput(f"a vector of shape {one.shape} does not fit a store of {dim} dimensions",
                               remedy="encode with the encoder that the store was made for")
            out[index] = one
    except (TypeError, ValueError) as error:
        raise BadInput(f"this is no vector: {error}", remedy=f"a vector is {dim} numbers") from error
    if not np.isfinite(out).all():
        raise BadInput("a vector holds a number that is not finite", remedy="look at the encoder")
    return out


def microseconds(time: datetime) -> int:
    """Microseconds since 1970; raises BadInput for a time without its zone."""
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise BadInput("a time needs its time zone", remedy="datetime.now(UTC)")
    return (time - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """The time in UTC; times outside of the calendar become its first or last."""
    try:
        return _EPOCH + microseconds * _MICROSECOND
    except OverflowError:
        return (datetime.min if microseconds < 0 else datetime.max).replace(tzinfo=UTC)


def listed(items: Iterable[Any], what: str, most: int) -> list[Any]:
    """The items, at most so many; a text is not a list of texts."""
    if isinstance(items, list | tuple) and len(items) <= most:
        return list(items)
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise BadInput(f"{what} takes a list", remedy="write [\"one\"]")
    out: list[Any] = []
    for item in items:
        if len(out) == most:
            raise LimitExceeded(f"{what} takes {most} at most", remedy="use fewer")
        out.append(item)
    return out


def _name(text: object, what: str, bytes_max: int) -> str:
    if not isinstance(text, str):
        raise BadInput(f"{what} is a text, not {type(text).__name__}", remedy="give a str")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadInput(f"{what} holds half a character: {error.reason}", remedy="text is Unicode") from error
    if size > bytes_max:
        raise LimitExceeded(f"{what} of {size} bytes is above {bytes_max}", remedy="shorten it")
    return text


def _plain(value: Any, depth: int) -> Any:
    """What JSON gives back as it was: nothing deeper than `depth`, keys are texts, numbers are finite."""
    if value is None or isinstance(value, str | int):       # most of what there is
        return value
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError("a number in metadata is not finite")
        return value
    if depth == 0:
        raise ValueError("metadata nests too deeply")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("the keys of metadata are texts")
        return {key: _plain(one, depth - 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, depth - 1) for one in value]
    raise ValueError(f"metadata holds a {type(value).__name__}")
