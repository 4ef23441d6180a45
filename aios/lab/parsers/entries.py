"""Every entry of the native extension, with a valid call of each; attacks replace its arguments by wrong ones.

`entries()` must cover `members()`: a native function, class, method or attribute without a case here fails a test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aios import _native
from aios.errors import AiosError
from aios.lab.parsers import logits, memories, products, vectors
from aios.lab.parsers.arguments import Guarded, distorted, wrong_keywords
from aios.lab.parsers.corpus import Corpus

#: What an entry may answer to wrong arguments; StorageError carries (kind, tensor, why).
REFUSALS: Final = (TypeError, ValueError, BufferError, OverflowError, OSError, IndexError, NotImplementedError,
                   AiosError, _native.StorageError)
_PLAIN: Final = ("__new__", "__doc__", "__module__", "__repr__", "__hash__", "__eq__", "__ne__", "__lt__", "__le__",
                 "__gt__", "__ge__", "__weakref__", "__dict__", "__release_buffer__")
HONEST_SHARE = 0.1
_BITS: Final = (2, 4, 8)
_GROUPS: Final = (32, 64, 128)
_ROWS_MAX, _COLUMNS_MAX = 70, 150
_NO_ARGUMENTS: Final = ("cpu_features", "names", "metadata", "tensors_sha256", "close", "done", "end", "abandon",
                        "partial", "__buffer__", "identity", "shape", "forgotten_ids", "flush", "compact", "refresh",
                        "verify", "stats", "ids", "facts", "metric")
_SLOW: Final = {"quant_gptq": 0.1, "quant_residual": 0.1}      # milliseconds each, however small the matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A valid call; `guarded` knows the arrays it may write to."""

    call: Callable[..., object]
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    guarded: Guarded = field(default_factory=Guarded)


Make = Callable[[random.Random, "Bench"], Call]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What valid calls are made of: the corpus and a folder to write in."""

    corpus: Corpus
    scratch: Path


def members() -> Iterator[str]:
    """The names of everything the extension offers: functions, classes, and what their instances have."""
    for name, value in vars(_native).items():
        if isinstance(value, type):
            if not issubclass(value, BaseException):
                yield name
                yield from (f"{name}.{member}" for member in vars(value) if member not in _PLAIN)
        elif isinstance(value, BuiltinFunctionType):
            yield name


def entries() -> Mapping[str, Make]:
    """A maker of valid calls for each member."""
    return _ENTRIES


def attack(name: str, bench: Bench) -> Callable[[random.Random], None]:
    """Calls one entry, one time in ten as it should be, and looks whether it wrote where it may."""
    make = _ENTRIES[name]

    def call(rng: random.Random) -> None:
        made = make(rng, bench)
        arguments, keywords = made.arguments, dict(made.keywords)
        if rng.random() >= HONEST_SHARE:
            arguments = distorted(rng, arguments)
            keywords = wrong_keywords(rng, keywords)
        try:
            made.call(*arguments, **keywords)
        finally:
            made.guarded.check()
    return call


def shares() -> Mapping[str, float]:
    """How often each entry is attacked: those that take arguments more often, slow ones less."""
    without = {name for name in _ENTRIES if name.rpartition(".")[2] in _NO_ARGUMENTS}
    raw = {name: 0.2 if name in without else _SLOW.get(name, 1.0) for name in _ENTRIES}
    return {name: share / sum(raw.values()) for name, share in raw.items()}


def prove(bench: Bench, seed: int = 0) -> None:
    """Make every valid call as it is: an attack on a call that is refused anyway would prove nothing."""
    for name, make in _ENTRIES.items():
        made = make(random.Random(f"{seed}:{name}"), bench)
        made.call(*made.arguments, **made.keywords)
        made.guarded.check()


def _floats(rng: random.Random, *shape: int) -> NDArray[Any]:
    return np.random.default_rng(rng.getrandbits(32)).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    """A packed matrix of random size with all its buffers, and the plain ones it is made of."""

    sizes: tuple[int, int, int, int]
    plain: tuple[Any, Any, Any]
    packed: tuple[Any, Any, Any]

    @classmethod
    def make(cls, rng: random.Random, guarded: Guarded, size: tuple[int, int] | None = None) -> _Matrix:
        """Any bits, group and size, symmetric or not; codes and scales are random."""
        rows, columns = size or (rng.randint(0, _ROWS_MAX), rng.randint(0, _COLUMNS_MAX))
        bits, group = rng.choice(_BITS), rng.choice(_GROUPS)
        noise = np.random.default_rng(rng.getrandbits(32))
        panels, groups, symmetric = -(-rows // 32), -(-columns // group), rng.random() < 0.5
        count = panels * 32 * (-(-columns // 32) * 32) * bits // 8

        def halves(*shape: int) -> NDArray[Any]:
            return guarded.array(noise.standard_normal(shape).astype(np.float16).view(np.uint16))

        return cls(
            sizes=(rows, columns, bits, group),
            plain=(guarded.array(noise.integers(0, 1 << bits, (rows, columns), np.uint8)), halves(rows, groups),
                   None if symmetric else halves(rows, groups)),
            packed=(guarded.array(noise.integers(0, 256, count, np.uint8)), halves(panels, groups, 32),
                    None if symmetric else halves(panels, groups, 32)))


def _crc32c(rng: random.Random, bench: Bench) -> Call:
    return Call(call=_native.crc32c, arguments=(rng.randbytes(rng.randrange(200)), rng.getrandbits(32)))


def _scanner(rng: random.Random) -> _native.FrameScanner:
    return _native.FrameScanner(1 << 20, 32, 1 << 16)


def _pack(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    matrix = _Matrix.make(rng, guarded)
    return Call(call=_native.quant_pack, arguments=(matrix.sizes, matrix.plain, matrix.packed, 1), guarded=guarded)


def _unpack(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    matrix = _Matrix.make(rng, guarded)
    return Call(call=_native.quant_unpack, arguments=(matrix.sizes, matrix.packed, matrix.plain, 1), guarded=guarded)


def _dequantize(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    matrix = _Matrix.make(rng, guarded)
    out = guarded.array(np.zeros(matrix.sizes[:2], np.float32))
    return Call(call=_native.quant_dequantize, arguments=(matrix.sizes, matrix.packed, out, 1), guarded=guarded)


def _rtn(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    matrix = _Matrix.make(rng, guarded)
    rows, columns, bits, group = matrix.sizes
    importance = np.abs(_floats(rng, columns)) if rng.random() < 0.5 else None
    return Call(call=_native.quant_rtn, arguments=(_floats(rng, rows, columns), bits, group, matrix.packed, 1),
                keywords={"search": rng.random() < 0.3, "importance": importance, "first_row": rng.randrange(100)},
                guarded=guarded)


def _matrix_arguments(rng: random.Random, guarded: Guarded) -> tuple[Any, ...]:
    """What a PackedMatrix is made of, with a residual now and then."""
    matrix = _Matrix.make(rng, guarded)
    rows, columns, _, _ = matrix.sizes
    rank = rng.choice([0, 0, 1, 7])
    factors = [guarded.array(np.full(shape, 0x2C00, np.uint16)) for shape in ((rows, rank), (rank, columns))]
    return (*matrix.sizes, *matrix.packed, *(factors if rank else (None, None)))


def _matrix(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    return Call(call=_native.PackedMatrix, arguments=_matrix_arguments(rng, guarded), guarded=guarded)


def _matmul(rng: random.Random, bench: Bench) -> Call:
    guarded, m = Guarded(), rng.randint(0, 20)
    arguments = _matrix_arguments(rng, guarded)
    x, out = _floats(rng, m, arguments[1]), guarded.array(np.zeros((m, arguments[0]), np.float32))
    bits = rng.choice((32, 16, 8))
    return Call(call=_native.PackedMatrix(*arguments).matmul, arguments=(x, out, 1, bits), guarded=guarded)


def _together(rng: random.Random, bench: Bench) -> Call:
    guarded, m = Guarded(), rng.randint(0, 20)
    first = _matrix_arguments(rng, guarded)
    several = [first]
    while len(several) < 3 and (other := _matrix_arguments(rng, guarded))[1] == first[1]:
        several.append(other)
    outs = [guarded.array(np.zeros((m, arguments[0]), np.float32)) for arguments in several]
    matrices = [_native.PackedMatrix(*arguments) for arguments in several]
    return Call(call=_native.matmul_together, guarded=guarded,
                arguments=(matrices, _floats(rng, m, first[1]), outs, 1, rng.choice((16, 8))))


def _layer_of(rng: random.Random, sizes: tuple[int, int, int, int, int], guarded: Guarded) -> tuple[Any, ...]:
    hidden, heads, kv_heads, head_dim, ffn = sizes
    query, key = heads * head_dim, kv_heads * head_dim
    reads, gated = (key, hidden), (ffn, hidden)
    shapes = ((query, hidden), reads, reads, (hidden, query), gated, gated, (hidden, ffn))
    made = [_Matrix.make(rng, guarded, shape) for shape in shapes]
    matrices = [_native.PackedMatrix(*matrix.sizes, *matrix.packed) for matrix in made]
    biases = [guarded.array(np.zeros(rows, np.float32)) if rng.random() < 0.3 else None for rows, _ in shapes]
    wide, narrow = (guarded.array(np.ones(width, np.float32)) for width in (hidden, head_dim))
    return matrices, biases, (wide, wide, *((narrow, narrow) if rng.random() < 0.5 else (None, None)))


def _layer_sizes(rng: random.Random) -> tuple[int, int, int, int, int]:
    kv_heads = rng.randint(1, 2)
    return rng.randint(1, 40), kv_heads * rng.randint(1, 2), kv_heads, 2 * rng.randint(1, 8), rng.randint(1, 40)


def _layer(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    return Call(call=_native.PackedLayer, arguments=_layer_of(rng, _layer_sizes(rng), guarded), guarded=guarded)


def _layers(rng: random.Random, bench: Bench) -> Call:
    guarded, sizes = Guarded(), _layer_sizes(rng)
    layers = [_native.PackedLayer(*_layer_of(rng, sizes, guarded)) for _ in range(rng.randint(1, 2))]
    slots, capacity, start = rng.randint(1, 3), rng.randint(6, 12), rng.randint(0, 3)
    memory = [guarded.array(np.zeros((len(layers), slots, sizes[2], capacity, sizes[3]), np.float32)) for _ in "kv"]
    counts = [rng.randint(0, 3) for _ in range(slots)]
    pieces = [(0, slot, start, count, rng.randint(0, count)) for slot, count in enumerate(counts)]
    tokens = sum(piece[3] for piece in pieces)
    x, cos, sin = (guarded.array(np.zeros((tokens, width), np.float32)) for width in (sizes[0], sizes[3], sizes[3]))
    return Call(call=_native.advance_layers, guarded=guarded, arguments=(
        layers, (*sizes, 1e-5), x, cos, sin, [(*memory, slots, capacity)], pieces, 1, rng.choice((16, 8))))


def _encoder_of(rng: random.Random, guarded: Guarded) -> tuple[Any, ...]:
    """What a PackedEncoder of 20 words and 6 positions is made of."""
    heads, ffn = rng.randint(1, 2), rng.randint(1, 40)
    hidden = heads * rng.choice((8, 16))
    shapes = ((3 * hidden, hidden), (hidden, hidden), (ffn, hidden), (hidden, ffn))
    norm = [guarded.array(np.ones(hidden, np.float32)) for _ in "wb"]
    layers = []
    for _ in range(rng.randint(0, 2)):
        made = [_Matrix.make(rng, guarded, shape) for shape in shapes]
        biases = [guarded.array(np.zeros(rows, np.float32)) if rng.random() < 0.5 else None for rows, _ in shapes]
        layers.append(([_native.PackedMatrix(*one.sizes, *one.packed) for one in made], biases, [*norm, *norm]))
    packed = _Matrix.make(rng, guarded, (20, hidden))
    plain = guarded.array(np.ones((20, hidden), np.float32))
    words = plain if rng.random() < 0.5 else _native.PackedMatrix(*packed.sizes, *packed.packed)
    return (hidden, heads, ffn, 1e-12), words, guarded.array(np.zeros((6, hidden), np.float32)), norm, layers


def _encoder(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    return Call(call=_native.PackedEncoder, arguments=_encoder_of(rng, guarded), guarded=guarded)


def _encode(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    arguments = _encoder_of(rng, guarded)
    lengths = np.array([rng.randint(1, 6) for _ in range(rng.randint(0, 4))], np.int64)
    ids = np.array([rng.randrange(20) for _ in range(lengths.sum())], np.int64)
    out = guarded.array(np.zeros((len(lengths), arguments[0][0]), np.float32))
    return Call(call=_native.PackedEncoder(*arguments).encode, guarded=guarded,
                arguments=(ids, lengths, out, rng.randint(1, 2), rng.choice((16, 8))))


def _gather(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    arguments = _matrix_arguments(rng, guarded)
    ids = np.array([rng.randrange(arguments[0]) for _ in range(rng.randrange(9) if arguments[0] else 0)], np.int64)
    out = guarded.array(np.zeros((len(ids), arguments[1]), np.float32))
    return Call(call=_native.PackedMatrix(*arguments).gather, arguments=(ids, out, 1), guarded=guarded)


def _whole(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    arguments = _matrix_arguments(rng, guarded)
    out = guarded.array(np.zeros(arguments[:2], np.float32))
    return Call(call=_native.PackedMatrix(*arguments).dequantize, arguments=(out, 1), guarded=guarded)


def _hqq(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    matrix = _Matrix.make(rng, guarded)
    rows, columns, bits, group = matrix.sizes
    return Call(call=_native.quant_hqq, arguments=(_floats(rng, rows, columns), bits, group, matrix.packed, 1),
                keywords={"first_row": rng.randrange(100)}, guarded=guarded)


def _hessian(rng: random.Random, columns: int) -> NDArray[Any]:
    samples = _floats(rng, columns + 1, columns).astype(np.float64)
    return samples.T @ samples


def _gptq(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    matrix = _Matrix.make(rng, guarded)
    rows, columns, bits, group = matrix.sizes
    return Call(call=_native.quant_gptq, arguments=(_floats(rng, rows, columns), bits, group, matrix.packed, 1),
                keywords={"hessian": _hessian(rng, columns), "damping": 0.01, "search": rng.random() < 0.5},
                guarded=guarded)


def _residual(rng: random.Random, bench: Bench) -> Call:
    guarded = Guarded()
    rows, columns, rank = rng.randint(1, _ROWS_MAX), rng.randint(1, _COLUMNS_MAX), rng.randint(0, 5)
    factors = [guarded.array(np.zeros(shape, np.uint16)) for shape in ((rows, rank), (rank, columns))]
    hessian = _hessian(rng, columns) if rng.random() < 0.5 else None
    return Call(call=_native.quant_residual, arguments=(_floats(rng, rows, columns), *factors, 1),
                keywords={"hessian": hessian, "damping": 0.01}, guarded=guarded)


def _foreign(rng: random.Random, bench: Bench, kind: str) -> str | bytes:
    data = rng.choice(bench.corpus.of(kind)).data
    if rng.random() < 0.7:
        return data
    path = bench.scratch / "foreign"
    path.write_bytes(data)
    return str(path)


def _block(rng: random.Random) -> tuple[str, int, int]:
    """A block type with the elements and bytes of a block."""
    kind = rng.choice(bench_blocks())
    elements, size, _, _ = _native.gguf_block(kind)
    return kind, elements, size


def bench_blocks() -> list[str]:
    """The block types that the importer reads."""
    known = []
    for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"):
        with suppress(NotImplementedError):
            _native.gguf_block(kind)
            known.append(kind)
    return known


def _gguf_dequantize(rng: random.Random, bench: Bench) -> Call:
    kind, _, size = _block(rng)
    return Call(call=_native.gguf_dequantize, arguments=(kind, bytes(size * rng.randrange(5)), rng.random() < 0.5))


def _gguf_pack(rng: random.Random, bench: Bench) -> Call:
    kind, size = rng.choice([("Q4_0", 18), ("Q4_1", 20), ("Q8_0", 34)])
    rows, blocks = rng.randrange(40), rng.randrange(4)
    return Call(call=_native.gguf_pack, arguments=(kind, bytes(size * rows * blocks), rows, blocks * 32))


def _path(rng: random.Random, bench: Bench) -> str:
    """A valid weight file; now and then what only looks like a path to one, but is never waited for."""
    path = bench.scratch / "weights.parquet"
    path.write_bytes(rng.choice(bench.corpus.of("parquet")).data)
    return str(path)


def _open(rng: random.Random, bench: Bench) -> Call:
    return Call(call=_native.WeightFile, arguments=(_path(rng, bench), rng.random() < 0.5))


def _file(rng: random.Random, bench: Bench) -> _native.WeightFile:
    return _native.WeightFile(_path(rng, bench), False)


def _writer(rng: random.Random, bench: Bench) -> _native.WeightWriter:
    """A writer with one tensor begun; the file is abandoned by whoever comes next."""
    for left in bench.scratch.glob("written*"):
        left.unlink(missing_ok=True)
    return _native.WeightWriter(str(bench.scratch / "written.parquet"), "")


def _begun(rng: random.Random, bench: Bench) -> _native.WeightWriter:
    writer = _writer(rng, bench)
    writer.begin("w", "f32", [2, 3], 0, False, 0)
    return writer


def _full(rng: random.Random, bench: Bench) -> _native.WeightWriter:
    writer = _begun(rng, bench)
    writer.write("data", bytes(24))
    return writer


def _complete(rng: random.Random, bench: Bench) -> _native.WeightWriter:
    writer = _full(rng, bench)
    writer.end()
    return writer


def _words(rng: random.Random, bench: Bench) -> _native.FastTokenizer:
    return _native.FastTokenizer(bench.corpus.of("tokenizer")[0].data)


def _plain(make: Callable[[random.Random, Bench], Any], name: str, *arguments: Any) -> Make:
    """A method or attribute of what `make` returns, called with these arguments."""
    def call(rng: random.Random, bench: Bench) -> Call:
        instance = make(rng, bench)
        if not callable(getattr(type(instance), name, None)):
            return Call(call=lambda *nothing: getattr(instance, name))
        return Call(call=getattr(instance, name), arguments=arguments)
    return call


def _of_memories(make: memories.Make) -> Make:
    """A call on a store of memories."""
    def call(rng: random.Random, bench: Bench) -> Call:
        function, arguments = make(rng, bench.scratch)
        return Call(call=function, arguments=arguments)
    return call


def _of_vectors(make: vectors.Make) -> Make:
    """A call on an index of vectors, on rows of logits, or of a product."""
    def call(rng: random.Random, bench: Bench) -> Call:
        function, arguments, guarded = make(rng, bench.scratch)
        return Call(call=function, arguments=arguments, guarded=guarded)
    return call


_ENTRIES: dict[str, Make] = {
    "cpu_features": lambda rng, bench: Call(call=_native.cpu_features),
    "crc32c": _crc32c,
    "FastTokenizer": lambda rng, bench: Call(call=_native.FastTokenizer,
                                             arguments=(bench.corpus.of("tokenizer")[0].data,)),
    "FastTokenizer.encode": _plain(lambda rng, bench: _words(rng, bench), "encode", "the thin <eos> in\U0001f600"),
    "FastTokenizer.encode_batch": _plain(lambda rng, bench: _words(rng, bench), "encode_batch", ["the thin", "", "in"]),
    "FastTokenizer.decode": _plain(lambda rng, bench: _words(rng, bench), "decode", [0, 3, 1 << 20]),
    "FastTokenizer.token_id": _plain(lambda rng, bench: _words(rng, bench), "token_id", "<eos>"),
    "FastTokenizer.added": _plain(lambda rng, bench: _words(rng, bench), "added"),
    "FastTokenizer.vocab_size": _plain(lambda rng, bench: _words(rng, bench), "vocab_size"),
    "FastTokenizer.frame_length": _plain(lambda rng, bench: _words(rng, bench), "frame_length"),
    "FrameScanner": lambda rng, bench: Call(call=_native.FrameScanner, arguments=(1 << 20, 32, 1 << 16)),
    "FrameScanner.feed": _plain(lambda rng, bench: _scanner(rng), "feed", b"\x93\x01\x02\x03"),
    "FrameScanner.partial": _plain(lambda rng, bench: _scanner(rng), "partial"),
    "quant_pack": _pack,
    "quant_unpack": _unpack,
    "quant_dequantize": _dequantize,
    "quant_rtn": _rtn,
    "quant_hqq": _hqq,
    "quant_gptq": _gptq,
    "quant_residual": _residual,
    "join_openmp": lambda rng, bench: Call(call=_native.join_openmp, arguments=(f"/nowhere/{rng.random()}.so",)),
    "peak_products": lambda rng, bench: Call(call=_native.peak_products, arguments=("bytes", 100, 2)),
    "peak_read": lambda rng, bench: Call(call=_native.peak_read, arguments=(bytes(1000), 2)),
    "PackedMatrix": _matrix,
    "PackedMatrix.matmul": _matmul,
    "matmul_together": _together,
    "PackedLayer": _layer,
    "advance_layers": _layers,
    "PackedEncoder": _encoder,
    "PackedEncoder.encode": _encode,
    "PackedMatrix.gather": _gather,
    "PackedMatrix.dequantize": _whole,
    "read_safetensors": lambda rng, bench: Call(call=_native.read_safetensors,
                                                arguments=(_foreign(rng, bench, "safetensors"),)),
    "read_gguf": lambda rng, bench: Call(call=_native.read_gguf, arguments=(_foreign(rng, bench, "gguf"),)),
    "gguf_block": lambda rng, bench: Call(call=_native.gguf_block, arguments=(_block(rng)[0],)),
    "gguf_dequantize": _gguf_dequantize,
    "gguf_pack": _gguf_pack,
    **{name: _of_memories(make) for name, make in memories.MAKERS.items()},
    **{name: _of_vectors(make) for name, make in {**vectors.MAKERS, **logits.MAKERS, **products.MAKERS}.items()},
    "WeightFile": _open,
    "WeightFile.names": _plain(_file, "names"),
    "WeightFile.metadata": _plain(_file, "metadata"),
    "WeightFile.tensors_sha256": _plain(_file, "tensors_sha256"),
    "WeightFile.record": _plain(_file, "record", 0),
    "WeightFile.verify": _plain(_file, "verify", 0),
    "WeightFile.intact": _plain(_file, "intact", True),
    "WeightFile.close": _plain(_file, "close"),
    "WeightFile.__buffer__": lambda rng, bench: Call(call=memoryview, arguments=(_file(rng, bench),)),
    "WeightWriter": lambda rng, bench: Call(call=_native.WeightWriter,
                                            arguments=("begun.parquet", "a source")),    # relative: a part of it is too
    "WeightWriter.done": _plain(_complete, "done"),
    "WeightWriter.begin": _plain(_writer, "begin", "w", "int4", [40, 96], 32, True, 2),
    "WeightWriter.write": _plain(_begun, "write", "data", bytes(24)),
    "WeightWriter.end": _plain(_full, "end"),
    "WeightWriter.tensors_sha256": _plain(_complete, "tensors_sha256"),
    "WeightWriter.finish": _plain(_complete, "finish", [("aios.spec", "{}"), ("a", "b")]),
    "WeightWriter.abandon": _plain(_begun, "abandon"),
}
