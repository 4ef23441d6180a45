"""Memories as a text file: one JSON object a line, everything but ids' keys, so that a store can be moved or mended.

The first line names the format. Vectors are little-endian f32 in base64. The file is as readable as the memories are:
owner-only, and not touched by forgetting.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from aios.errors import BadInput, LimitExceeded
from aios.memory.record import METADATA_BYTES_MAX, NAMESPACE, TEXT_BYTES_MAX, Floats, Memory, NewMemory
from aios.security import private_file

_T = TypeVar("_T")
FORMAT: Final = "aios-memories-1"
#: Six bytes for an escaped one, and room for a vector of 8,192 dimensions and the columns.
LINE_BYTES_MAX: Final = 6 * (TEXT_BYTES_MAX + METADATA_BYTES_MAX) + (1 << 20)


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    format: str
    dim: int


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A memory; `id` is what it was called in the store it comes from."""

    text: str
    vector: str | None = None
    id: int = 0
    time: datetime | None = None
    namespace: str = NAMESPACE
    tags: list[str] = []
    source: str = ""
    provenance: str = ""
    metadata: dict[str, Any] = {}


def write(path: Path, dim: int, memories: Iterator[tuple[Memory, Floats]]) -> int:
    """Write memories with their vectors; the file is there as a whole or not at all. Returns how many."""
    count = 0
    with private_file.replaced(path) as file:
        file.write(msgspec.json.encode(_Head(format=FORMAT, dim=dim)) + b"\n")
        for memory, vector in memories:
            file.write(msgspec.json.encode(_line(memory, vector)) + b"\n")
            count += 1
    return count


def read(path: Path, dim: int, progress: Callable[[float], None]) -> Iterator[NewMemory]:
    """The memories of a file, one after another; raises BadInput naming the line that is wrong."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}", remedy="give a file that an export wrote") from error
    with file:
        size = max(1, os.fstat(file.fileno()).st_size)
        head = _decode(_next(file.readline, path, 1), _Head, path, 1)
        if head is None or head.format != FORMAT:
            raise BadInput(f"{path} is no export of memories", remedy=f"its first line names the format {FORMAT}")
        number = 1
        while line := _next(file.readline, path, number := number + 1):
            found = _decode(line, _Line, path, number)
            if found is not None:
                same = head.dim == dim          # vectors of another encoder mean nothing here
                yield _memory(found, dim if same else None, path, number)
            progress(min(1.0, file.tell() / size))


def _line(memory: Memory, vector: Floats) -> _Line:
    packed = base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return _Line(id=memory.id, text=memory.text, metadata=memory.metadata, vector=packed, time=memory.time,
                 namespace=memory.namespace, tags=list(memory.tags), source=memory.source, provenance=memory.provenance)


def _memory(line: _Line, dim: int | None, path: Path, number: int) -> NewMemory:
    vector: Floats | None = None
    if line.vector is not None and dim is not None:
        try:
            vector = np.frombuffer(base64.b64decode(line.vector, validate=True), "<f4")
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: the vector is damaged", remedy="export again") from error
    if line.time is not None and line.time.tzinfo is None:
        raise BadInput(f"{path}, line {number}: the time has no zone", remedy="end it with Z")
    return NewMemory(text=line.text, metadata=line.metadata, vector=vector, namespace=line.namespace,
                     tags=tuple(line.tags), time=line.time, source=line.source, provenance=line.provenance)


def _next(readline: Callable[[int], bytes], path: Path, number: int) -> bytes:
    line = readline(LINE_BYTES_MAX + 1)
    if len(line) > LINE_BYTES_MAX:
        raise LimitExceeded(f"{path}, line {number}: longer than {LINE_BYTES_MAX} bytes", remedy="split the text")
    return line


def _decode(line: bytes, kind: type[_T], path: Path, number: int) -> _T | None:
    """The object of a line; None of an empty one."""
    if not line.strip():
        return None
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{path}, line {number}: {error}", remedy="mend or remove the line") from error
