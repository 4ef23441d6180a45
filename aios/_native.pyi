"""The Rust extension, built from rust/aios_native."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, TypeAlias

from numpy.typing import NDArray
from typing_extensions import Buffer

def cpu_features() -> list[str]:
    """The instruction sets that kernels may use here, by their customary names."""

def crc32c(data: Buffer, seed: int = 0) -> int:
    """The CRC32C of a contiguous bytes-like object, continued from `seed`, that of what came before."""

def read_safetensors(source: str | Buffer) -> list[tuple[str, str, list[int], int, int]]:
    """(name, dtype, shape, begin, end) of every tensor of a file, given by path or as bytes, in file order.

    Like every reader below it raises OSError for what cannot be read, ValueError for what contradicts its format or
    is too large, NotImplementedError for what is well formed and unknown.
    """

def read_gguf(source: str | Buffer) -> tuple[int, dict[str, object], list[tuple[str, str, list[int], int, int]]]:
    """(version, metadata, tensors with their block types) of a GGUF file, given by path or as bytes."""

def gguf_block(kind: str) -> tuple[int, int, int, bool]:
    """(elements, bytes, bits of a code or 0 where repacking would lose, whether codes have zeros) of a block type."""

def gguf_dequantize(kind: str, data: Buffer, half: bool = False) -> bytes:
    """The values of whole blocks as little-endian f32, or f16 rounded to nearest."""

def gguf_pack(kind: str, data: Buffer, rows: int, columns: int) -> tuple[bytes, bytes, bytes | None]:
    """Codes, scales and zeros in the packed order of whole rows of blocks, without loss."""

_Memory: TypeAlias = Buffer | NDArray[Any]   # NumPy's stubs call arrays buffers from Python 3.12 on
_Parts: TypeAlias = tuple[_Memory, _Memory, _Memory | None]   # codes, scales, zeros

def quant_pack(
    sizes: tuple[int, int, int, int], plain: _Parts, out: _Parts, threads: int
) -> None:
    """Packs plain codes (rows, columns) uint8, scales and zeros (rows, groups) f16 bits into `out`.

    sizes: (rows, columns, bits, group size). Packed parts: codes uint8 flat, scales and zeros (panels, groups, 32) f16
    bits, zeros None where symmetric. This and the next raise ValueError for values and sizes, BufferError for buffers
    that are not contiguous, not writable or overlap.
    """

def quant_unpack(
    sizes: tuple[int, int, int, int], packed: _Parts, out: _Parts, threads: int
) -> None:
    """The inverse of `quant_pack`."""

def quant_dequantize(
    sizes: tuple[int, int, int, int], packed: _Parts, out: _Memory, threads: int
) -> None:
    """The weights (rows, columns) f32 that packed parts stand for."""

def quant_rtn(
    weights: _Memory, bits: int, group_size: int, out: _Parts, threads: int, *,
    search: bool = False, importance: _Memory | None = None, first_row: int = 0
) -> None:
    """Rounds weights (rows, columns) f32 to nearest; errors count rows from `first_row`."""

def quant_hqq(
    weights: _Memory, bits: int, group_size: int, out: _Parts, threads: int, *,
    first_row: int = 0
) -> None:
    """Quantises weights (rows, columns) f32 by half-quadratic splitting."""

def quant_gptq(
    weights: _Memory, bits: int, group_size: int, out: _Parts, threads: int, *,
    hessian: _Memory, damping: float, search: bool
) -> None:
    """Quantises weights (rows, columns) f32 by GPTQ with a Hessian (columns, columns) f64."""

def quant_residual(
    lost: _Memory, left: _Memory, right: _Memory, threads: int, *, hessian: _Memory | None = None, damping: float = 0.0
) -> None:
    """Writes f16 factors (rows, rank) and (rank, columns) of the loss (rows, columns) f32."""

def join_openmp(library: str) -> bool:
    """Run products on the OpenMP threads of a library loaded already; False where it has none."""

def peak_products(sequence: str, rounds: int, threads: int) -> int:
    """Exact products of bytes made from registers on every thread: how many; 0 where there is no such loop.

    sequence: "halves" (pmaddwd, paddd) or "bytes" (pmaddubsw, pmaddwd, paddd); ValueError for others.
    """

def peak_read(memory: Buffer, threads: int) -> int:
    """The exclusive or of all words of 8 bytes of a contiguous buffer, read on so many threads."""

def train_packed_len(outputs: int, depth: int) -> int:
    """Bytes of a weight packed for training, of so many outputs of `depth` values; ValueError for too many."""

def train_pack(weight: Buffer, packed: Buffer, transposed: bool = False, threads: int = 1) -> None:
    """Packs a weight (outputs, depth) f32, (depth, outputs) if `transposed`, into `train_packed_len` bytes."""

def train_product(x: Buffer, packed: Buffer, out: Buffer, threads: int = 1) -> None:
    """out (m, outputs) = x (m, depth) times a packed weight transposed, in integers of 8 bits; f32 both."""

def train_weight_gradient(g: Buffer, x: Buffer, out: Buffer, threads: int = 1) -> None:
    """out (n, k) = g (m, n) transposed times x (m, k), in integers of 12 bits; f32 all."""

class LogitRows:
    """The rows `asked` (i64) of logits (n, columns) f32; the token `barred` has probability 0.

    Every method raises ValueError where a row allows no token or holds what is no number.
    """

    def __new__(cls, logits: Buffer, asked: Buffer, barred: int) -> LogitRows: ...
    def best(self, out: Buffer, threads: int) -> None:
        """Writes the log-probability of each row's likeliest token, f32."""
    def entropy(self, out: Buffer, threads: int) -> None:
        """Writes each row's entropy in nats, f32."""
    def draw(self, temperature: float, uniforms: Buffer, out: Buffer, threads: int) -> None:
        """Draws a token (i64) from each row, by as many uniform numbers (f64) of [0, 1)."""

class PackedMatrix:
    """A packed matrix over buffers that stay where they are; halves come as u16 bits."""

    def __new__(
        cls, rows: int, columns: int, bits: int, group_size: int, codes: Buffer, scales: Buffer,
        zeros: Buffer | None = None, left: Buffer | None = None, right: Buffer | None = None,
    ) -> PackedMatrix: ...
    def matmul(self, x: Buffer, out: Buffer, threads: int = 1, activation_bits: int = 32) -> None:
        """out (m, rows) = x (m, columns) times the matrix transposed; contiguous f32.

        activation_bits: 32 takes x as it is; 16 and 8 as integers, with a scale for each group of columns.
        """

    def gather(self, ids: Buffer, out: Buffer, threads: int = 1) -> None:
        """out (n, columns) f32 = the rows that `ids` (n) i64 name; IndexError where there is none."""

    def dequantize(self, out: Buffer, threads: int = 1) -> None:
        """out (rows, columns) f32 = the whole matrix, residual included."""

def matmul_together(
    matrices: Sequence[PackedMatrix], x: Buffer, outs: Sequence[Buffer], threads: int = 1, activation_bits: int = 16
) -> None:
    """`PackedMatrix.matmul` of several matrices with one x, which becomes integers of 16 or 8 bits once."""

class PackedLayer:
    """One transformer layer: matrices and biases of query, key, value, out, gate, up, down, and four norms."""

    def __new__(
        cls, matrices: Sequence[PackedMatrix], biases: Sequence[Buffer | None], norms: Sequence[Buffer | None]
    ) -> PackedLayer: ...

def advance_layers(
    layers: Sequence[PackedLayer], shape: tuple[int, int, int, int, int, float], x: Buffer, cos: Buffer, sin: Buffer,
    stores: Sequence[tuple[Buffer, Buffer, int, int]], pieces: Sequence[tuple[int, int, int, int, int]],
    threads: int = 1, activation_bits: int = 16,
) -> None:
    """Turn hidden states x (s, hidden) into those behind all layers; keys and values go into the stores.

    shape: (hidden, heads, kv heads, head dim, ffn, eps). cos, sin (s, head dim). stores: (keys, values, slots,
    capacity), both [layer][slot][kv head][capacity][head dim]. pieces: (store, slot, tokens before, tokens now, and how
    many of these, the last ones, see each other whatever their order).
    """

class PackedEncoder:
    """A whole BERT-style encoder: (hidden, heads, ffn, eps), words, positions, the norm behind them, and layers.

    words: a PackedMatrix or (vocabulary, hidden) f32. places (positions, hidden). norm: weight and bias. Of a layer:
    matrices and biases of queries, keys and values together, out, up, down; weight and bias of both norms.
    """

    def __new__(
        cls, shape: tuple[int, int, int, float], words: PackedMatrix | Buffer, places: Buffer, norm: Sequence[Buffer],
        layers: Sequence[tuple[Sequence[PackedMatrix], Sequence[Buffer | None], Sequence[Buffer]]],
    ) -> PackedEncoder: ...
    def encode(self, ids: Buffer, lengths: Buffer, out: Buffer, threads: int = 1, activation_bits: int = 8) -> None:
        """out (texts, hidden) f32 = unit vectors; `ids` i64 of all texts, `lengths` i64 how many each has."""

class FastTokenizer:
    """A tokenizer.json with a fast path; NotImplementedError says what has none, ValueError what is malformed."""

    def __new__(cls, source: Buffer) -> FastTokenizer: ...
    def encode(self, text: str, *, special: bool = False, framed: bool = False) -> list[int]:
        """Ids of a text; `special`: reserved tokens in it are themselves, `framed`: with those around a text.

        UnicodeEncodeError for lone surrogates.
        """

    def encode_batch(
        self, texts: Sequence[str], *, special: bool = False, framed: bool = False, length_max: int | None = None,
        threads: int = 1,
    ) -> list[list[int]]:
        """Ids of many texts, at most `length_max` each, the frame's included."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are no text are replaced, ids that are no token are nothing."""

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

class FrameScanner:
    """Finds where MessagePack frames end in a stream fed in any pieces; builds no object."""

    def __new__(cls, bytes_max: int, depth_max: int, elements_max: int) -> FrameScanner: ...
    def feed(self, piece: Buffer) -> tuple[list[int], str | None]:
        """The offsets in `piece` behind every frame that became complete, and why the rest is refused."""

    @property
    def partial(self) -> bool:
        """True when the last byte fed was not the last of a frame."""

class MemoryStore:
    """A store of memories: the one writer, or a reader's snapshot. Raises StorageError, OSError, ValueError."""

    def __new__(cls, folder: str | PathLike[str], writable: bool, key: bytes | None = None) -> MemoryStore: ...
    @staticmethod
    def create(folder: str | PathLike[str], dim: int, half: bool, identity: bytes, key: bytes | None = None) -> None:
        """Make an empty store; `identity` is 16 random bytes; with a key of 32 it is encrypted as a whole."""

    @staticmethod
    def look(folder: str | PathLike[str]) -> tuple[bytes, bool] | None:
        """The 16 bytes that name the store in a folder, and whether it opens with a key only; None if there is none."""

    def identity(self) -> bytes:
        """The 16 bytes that name the store."""

    def shape(self) -> tuple[int, bool]:
        """Dimensions of a vector, and whether it is kept in half precision."""

    def reserve(self, count: int) -> int:
        """The first of `count` ids given to memories to come."""

    def append(
        self, ids: Sequence[int], times: Sequence[int], columns: Sequence[tuple[str, Sequence[str], str, str]],
        vectors: _Memory, sealed: Sequence[bytes], keys: Sequence[bytes],
    ) -> None:
        """Keep memories durably, all or none; columns are namespace, tags, source, provenance; vectors (n, dim) f32."""

    def forget(self, ids: Sequence[int]) -> list[int]:
        """Forget memories; the ids that were there."""

    def read(self, id: int) -> tuple[int, str, list[str], str, str, bytes, bytes] | None:
        """time, namespace, tags, source, provenance, sealed, wrapped key of a memory, or None."""

    def forgotten(self, id: int) -> bool:
        """Whether an id was forgotten."""

    def forgotten_ids(self) -> bytes:
        """Every forgotten id, as u64."""

    def select(
        self, namespaces: Sequence[str], tags: Sequence[str], sources: Sequence[str], provenances: Sequence[str],
        since: int | None, until: int | None,
    ) -> bytes:
        """The ids, as u64, of live memories that pass: one of the names, all of the tags, since <= time < until."""

    def scan(self, row: int, count: int, above: int) -> tuple[bytes, bytes, int]:
        """Ids (u64) above a bound and vectors (f32) of `count` live memories from a row on, and the row to go on from,
        0 at the end."""

    def vectors(self, ids: Sequence[int]) -> bytes:
        """The vectors (f32) of live memories, each checked."""

    def flush(self) -> None:
        """Turn the log into a segment."""

    def compact(self) -> bool:
        """Rewrite what holds forgotten memories; whether there was anything to do."""

    def refresh(self) -> None:
        """A reader's newer snapshot."""

    def verify(self) -> int:
        """Read and check every live memory; how many there are."""

    def stats(self) -> tuple[int, int, int, int, int, int]:
        """live, forgotten, rows to compact, segments, rows in the log, bytes."""

    def close(self) -> None:
        """Let go of the files and the lock."""

class StorageError(Exception):
    """(kind, tensor or None, why) of a weight file or store of memories; kind is corrupt, input, limit, busy, stopped.
    """

class WeightFile(Buffer):
    """A weight file, open and mapped; as a buffer it is the whole file, and writes stay in this process."""

    def __new__(cls, path: str | PathLike[str], check: bool) -> WeightFile: ...
    def names(self) -> list[str]:
        """The tensors' names, in file order."""

    def metadata(self) -> list[tuple[str, str]]:
        """Keys and values of the footer."""

    def tensors_sha256(self) -> str:
        """The identity of all tensors."""

    def record(
        self, index: int
    ) -> tuple[str, str, list[int], int, bool, int, int, list[tuple[int, int]], int, str]:
        """name, dtype, shape, group_size, symmetric, order, rank, (offset, bytes) of each part, checksum, sha256."""

    def verify(self, index: int) -> None:
        """Check everything about one tensor."""

    def intact(self, wait: bool) -> bool:
        """Raise what is known to be wrong; False while the background check still runs."""

    def close(self) -> None:
        """End the background check."""

class WeightWriter:
    """Writes one weight file, tensor after tensor."""

    def __new__(cls, path: str | PathLike[str], source: str) -> WeightWriter: ...
    def done(self) -> list[str]:
        """The tensors that are complete."""

    def begin(
        self, name: str, dtype: str, shape: list[int], group_size: int, symmetric: bool, rank: int
    ) -> list[int]:
        """Begin a tensor; the bytes that each part must receive."""

    def write(self, part: str, piece: Buffer) -> None:
        """The next bytes of a part."""

    def end(self) -> None:
        """The tensor is complete."""

    def tensors_sha256(self) -> str:
        """The identity of the tensors so far."""

    def finish(self, metadata: list[tuple[str, str]]) -> None:
        """Write directory and footer, sync, rename into place."""

    def abandon(self) -> None:
        """Remove the partial file and its journal."""

class VectorSearch:
    """Vectors of one dimension by u64 ids, searched exactly, or by a graph once it is built.

    Everything raises ValueError and BufferError for values and buffers, OverflowError beyond a cap, OSError for files:
    with a number where the system refused, without one where the file is damaged.
    """

    def __new__(cls, dim: int, metric: str) -> VectorSearch: ...
    @staticmethod
    def open(path: str | PathLike[str]) -> VectorSearch:
        """The index that `save` wrote, in place."""

    @staticmethod
    def open_sealed(path: str | PathLike[str], key: bytes, number: int) -> VectorSearch:
        """The index that `save_sealed` wrote under this key and number, opened into memory."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write the index to a file, durably."""

    def save_sealed(self, path: str | PathLike[str], key: bytes, number: int) -> None:
        """Write the index to a file, durably, encrypted under 32 bytes of key and a number that it opens with only."""

    def verify(self) -> None:
        """Check all of the file that the index was opened from."""

    def add(self, ids: _Memory, vectors: _Memory, threads: int = 1) -> None:
        """Add vectors (n, dim) f32 under ids (n) u64 that are not there yet: all or none."""

    def remove(self, ids: _Memory) -> int:
        """Remove ids (n) u64 and zero their vectors; returns how many were there."""

    def search(
        self, queries: _Memory, ids: _Memory, scores: _Memory, allowed: _Memory | None = None, effort: int = 0,
        threads: int = 1,
    ) -> None:
        """Fill ids (n, k) u64 and scores (n, k) f32 with the best for queries (n, dim) f32.

        effort: what a walk over the graph keeps in sight; 0 searches exactly. allowed: the ids (m) u64 to choose from.
        """

    def build_graph(self, threads: int = 1) -> None:
        """Make the graph anew over all vectors."""

    def compact(self, threads: int = 1) -> None:
        """Leave the places of removed vectors behind; a graph is made anew."""

    def ids(self) -> bytes:
        """The ids that are there as little-endian u64, in no order."""

    def facts(self) -> tuple[int, int, int, int, bool]:
        """dim, vectors, places (those of removed vectors too), bytes of a vector, whether there is a graph."""

    @property
    def metric(self) -> str:
        """cosine, dot or l2."""
