"""Weight files under attack: where their numbers stand, how checksums are made to agree with a lie, and the verdict.

A flipped bit is detected when opening or verifying names the file, and the tensor if the bit belongs to one's
payload; it is harmless when metadata and every tensor are what they were. Anything else is undetected.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aios.errors import ModelCorrupt
from aios.lab.parsers.mutations import Sample, Site, flip, varint
from aios.lab.parsers.worker import Undetected

if TYPE_CHECKING:
    from torch import Tensor

    from aios.contracts import PackedTensor

END_BYTES = 8                          # length of the footer and the magic behind it
_CRC_KEY: Final = b"aios.footer_crc32c\x18\x08"      # a key, and the header of a value of eight bytes
_HEX_BYTES = 8
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_PAGE_CRC_FIELD, _PAGE_BYTES_FIELD = 4, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of the directory: its payload, and where the CRC of it stands."""

    begin: int
    end: int
    crc: Site


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSample:
    """A valid weight file, what it holds, and which bytes belong to which tensor."""

    sample: Sample
    holds: object
    payload: tuple[tuple[int, int, str], ...]      # (begin, end, tensor)

    def tensor_at(self, offset: int) -> str | None:
        """The tensor whose payload has the byte at `offset`."""
        return next((name for begin, end, name in self.payload if begin <= offset < end), None)


def weight_files(scratch: Path) -> list[WeightSample]:
    """A plain file of several element types and shapes, and packed ones of every width, with and without zeros."""
    import torch

    noise = torch.Generator().manual_seed(7)
    plain: dict[str, Tensor | PackedTensor] = {
        "w": torch.randn(5, 7, generator=noise), "b": torch.randn(3, generator=noise).bfloat16(),
        "ids": torch.arange(4), "none": torch.zeros(0, 3), "one": torch.tensor(True)}
    packed = {"p.int8": _packed(noise, 8, symmetric=True, rank=0), "p.int2": _packed(noise, 2, symmetric=False, rank=2),
              "p.int4": _packed(noise, 4, symmetric=False, rank=0)}
    return [_written(scratch / "plain.parquet", plain), _written(scratch / "packed.parquet", packed)]


def _packed(noise: object, bits: int, *, symmetric: bool, rank: int) -> PackedTensor:
    import torch

    from aios.contracts import PackedTensor

    generator = noise if isinstance(noise, torch.Generator) else None
    rows, columns, group = 33, 40, 32

    def halves(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).half()

    return PackedTensor(
        rows=rows, columns=columns, bits=bits, group_size=group,
        codes=torch.randint(0, 256, (64 * 64 * bits // 8,), generator=generator, dtype=torch.uint8),
        scales=halves(2, 2, 32), zeros=None if symmetric else halves(2, 2, 32),
        left=halves(rows, rank) if rank else None, right=halves(rank, columns) if rank else None)


def _written(path: Path, tensors: Mapping[str, Tensor | PackedTensor]) -> WeightSample:
    from aios.store.weights import WeightWriter

    writer = WeightWriter(path)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish(spec={"model_type": "none", "n": 1}, card="# A card\n", tokenizer_sha256="0" * 64)
    data = path.read_bytes()
    payload = sorted(_extents(path))
    footer = len(data) - END_BYTES - int.from_bytes(data[-END_BYTES:-4], "little")
    pages = list(_pages(data, max(end for _, end, _ in payload), footer))
    sites = [*_sites(data, footer)]
    for page in pages:
        sites += [Site(offset=at, length=min(4, page.end - at)) for at in range(page.begin, page.end, 4)]
    return WeightSample(
        sample=Sample(name=path.name, data=data, sites=tuple(sites), repair=_repairer(data, footer, pages)),
        holds=snapshot(path), payload=tuple(payload))


def _extents(path: Path) -> Iterator[tuple[int, int, str]]:
    """Where the bytes of every part lie."""
    from aios import _native

    native = _native.WeightFile(path, False)
    for index, name in enumerate(native.names()):
        for offset, size in native.record(index)[7]:
            if size:
                yield offset, offset + size, name


def parts(tensor: Tensor | PackedTensor) -> list[bytes]:
    """The bytes of a tensor, part by part."""
    import torch

    every = [tensor] if isinstance(tensor, torch.Tensor) else list(tensor.parts.values())
    return [bytes(one.contiguous().reshape(-1).view(torch.uint8).numpy()) for one in every]


def snapshot(path: Path) -> object:
    """Everything a file says: metadata, and shape, type and bytes of each tensor; raises ModelCorrupt.

    It is opened, verified in full, and read, as a model is before it answers.
    """
    from aios.store.weights import WeightLoader

    loader = WeightLoader.open(path, check="none")
    try:
        loader.verify()
        tensors = [(name, repr(loader.records[name]), parts(loader[name])) for name in loader]
        loader.intact(wait=True)
        return sorted(loader.metadata.items()), tensors
    finally:
        loader.close()


def flip_and_judge(files: list[WeightSample], path: Path) -> tuple[int, Callable[[int], None]]:
    """How many bits all files have, and the attack that flips one of them."""
    sizes = [8 * len(one.sample.data) for one in files]

    def attack(bit: int) -> None:
        number = 0
        while bit >= sizes[number]:
            bit -= sizes[number]
            number += 1
        path.write_bytes(flip(files[number].sample.data, bit))
        judge(files[number], bit >> 3, path)

    return sum(sizes), attack


def judge(file: WeightSample, offset: int | None, path: Path) -> None:
    """Read the damaged file at `path`; Undetected if it passes for another one or the wrong culprit is named."""
    where = f"{file.sample.name} damaged at byte {offset}"
    try:
        found = snapshot(path)
    except ModelCorrupt as error:
        tensor = None if offset is None else file.tensor_at(offset)
        if path.name not in str(error):
            raise Undetected(f"{where}: the file is not named: {error}") from error
        if tensor is not None and error.details.get("tensor") != tensor:
            raise Undetected(f"{where}: tensor {tensor} is not named: {error}") from error
        raise
    if found != file.holds:
        raise Undetected(f"{where}: it is read as another file")


def _repairer(data: bytes, footer: int, pages: list[Page]) -> Callable[[bytes], bytes]:
    """Makes checksums and the footer's length agree with a damaged copy of `data`."""
    def repair(damaged: bytes) -> bytes:
        if damaged[:footer] == data[:footer]:
            ours = damaged[footer:-END_BYTES]
            return damaged[:footer] + _signed(ours) + len(ours).to_bytes(4, "little") + data[-4:]
        if len(damaged) != len(data):
            return damaged
        fixed = bytearray(damaged)
        for page in pages:
            crc = _zigzag(zlib.crc32(fixed[page.begin:page.end]))
            if len(crc) == page.crc.length:
                fixed[page.crc.offset:page.crc.offset + page.crc.length] = crc
        return bytes(fixed)
    return repair


def _signed(footer: bytes) -> bytes:
    """The footer with the checksum it deserves."""
    from aios._native import crc32c

    at = footer.find(_CRC_KEY) + len(_CRC_KEY)
    if at < len(_CRC_KEY):
        return footer
    zeroed = footer[:at] + b"0" * _HEX_BYTES + footer[at + _HEX_BYTES:]
    return footer[:at] + f"{crc32c(zeroed):08x}".encode() + footer[at + _HEX_BYTES:]


def _zigzag(crc: int) -> bytes:
    """A CRC as Thrift writes it: a signed 32-bit number."""
    signed = crc - (1 << 32) if crc >> 31 else crc
    return varint((signed << 1 ^ signed >> 31) & (1 << 32) - 1)


def _pages(data: bytes, at: int, end: int) -> Iterator[Page]:
    """The pages from `at` on that lie one behind another up to `end`."""
    while at < end:
        fields, behind = _struct(data, at)
        size = next(_integer(data, site) for number, site in fields if number == _PAGE_BYTES_FIELD)
        crc = next(site for number, site in fields if number == _PAGE_CRC_FIELD)
        yield Page(begin=behind, end=behind + size, crc=crc)
        at = behind + size


def _sites(data: bytes, at: int) -> list[Site]:
    """Every number and length of the Thrift struct at `at`, at any depth."""
    found: list[Site] = []
    _struct(data, at, found)
    return found


def _struct(data: bytes, at: int, found: list[Site] | None = None) -> tuple[list[tuple[int, Site]], int]:
    """The integer fields of a struct in Thrift's compact protocol, and the offset behind it."""
    fields, number = list[tuple[int, Site]](), 0
    while data[at]:
        head, at = data[at], at + 1
        number += head >> 4
        site, at = _value(data, at, head & 15, found)
        if site is not None:
            fields.append((number, site))
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, found: list[Site] | None, *, element: bool = False) -> tuple[
        Site | None, int]:
    if kind == _STRUCT:
        return None, _struct(data, at, found)[1]
    if kind in (_TRUE, _FALSE):
        return None, at + element
    if kind in (_LIST, _SET):
        return None, _list(data, at, found)
    if kind in (_BYTE, _DOUBLE):
        return None, at + (1 if kind == _BYTE else 8)
    length = _varint_bytes(data, at)
    site = Site(offset=at, length=length, encoding="varint" if kind == _BINARY else "zigzag")
    if found is not None:
        found.append(site)
    return site, at + length + (_unsigned(data, site) if kind == _BINARY else 0)


def _list(data: bytes, at: int, found: list[Site] | None) -> int:
    head, at = data[at], at + 1
    count = head >> 4
    if count == 15:
        site = Site(offset=at, length=_varint_bytes(data, at), encoding="varint")
        if found is not None:
            found.append(site)
        count, at = _unsigned(data, site), at + site.length
    for _ in range(count):
        _, at = _value(data, at, head & 15, found, element=True)
    return at


def _varint_bytes(data: bytes, at: int) -> int:
    length = 1
    while data[at + length - 1] & 0x80:
        length += 1
    return length


def _unsigned(data: bytes, site: Site) -> int:
    return sum((data[site.offset + index] & 0x7F) << 7 * index for index in range(site.length))


def _integer(data: bytes, site: Site) -> int:
    raw = _unsigned(data, site)
    return raw >> 1 ^ -(raw & 1)
