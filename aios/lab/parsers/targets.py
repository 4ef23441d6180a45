"""What is attacked: each reader of bytes from outside, the inputs it gets, and what it may answer."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aios import _native
from aios.errors import AiosError, ModelCorrupt
from aios.lab.parsers import entries, memories, vectors, weights
from aios.lab.parsers.corpus import Corpus, make_corpus
from aios.lab.parsers.mutations import Mutant, mutant
from aios.lab.parsers.worker import Flips, Target, Undetected

_NATIVE = (ValueError, NotImplementedError)       # how the native readers refuse
_ENTRIES_SHARE = 30                               # of all native entries together
_FRAME_LIMITS = (1 << 20, 32, 1 << 16)
_READ_BYTES_MAX = 1 << 16                         # of one tensor of a foreign file, per case


Read = Callable[[random.Random, Mutant], None]


def open_targets(scratch: Path) -> tuple[list[Target], Flips]:
    """All targets over a corpus made now below `scratch`, shown to work on it as it is."""
    warnings.simplefilter("ignore")               # NumPy warns of what wrong arguments are made of
    np.seterr(all="ignore")
    files = weights.weight_files(scratch)
    corpus = make_corpus(files, memories.samples(scratch), vectors.samples(scratch))
    bench = entries.Bench(corpus=corpus, scratch=scratch)
    entries.prove(bench)
    bits, flip = weights.flip_and_judge(files, scratch / "flipped.parquet")

    def reader(kind: str, share: float, read: Read, refusals: tuple[type[BaseException], ...]) -> Target:
        samples = corpus.of(kind)
        for sample in samples:                    # a reader that refuses what is valid proves nothing
            read(random.Random(0), Mutant(sample=sample, kind="none", data=sample.data))
        return Target(name=kind, share=share, attack=lambda rng: read(rng, mutant(rng, samples)), refusals=refusals)

    targets = [
        reader("parquet", 20, _weights(scratch, files), (AiosError,)),
        reader("safetensors", 14, _safetensors, _NATIVE),
        reader("gguf", 18, _gguf, _NATIVE),
        reader("frames", 6, _frames, ()),
        reader("spec", 5, _spec(scratch), (AiosError,)),
        reader("tokenizer", 2, _tokenizer(scratch), (AiosError,)),
        reader("chat", 0.5, _chat(corpus, scratch), (AiosError,)),
        reader("memories", 10, _memories(scratch), (_native.StorageError, OSError)),
        reader("vectors", 6, _vectors(scratch), (OSError,)),
        Target(name="crc32c", share=2, attack=_crc32c, refusals=()),
        *(Target(name=name, share=_ENTRIES_SHARE * share, attack=entries.attack(name, bench),
                 refusals=entries.REFUSALS) for name, share in entries.shares().items()),
    ]
    return targets, Flips(bits=bits, attack=flip, refusals=(ModelCorrupt,))


def _weights(scratch: Path, files: list[weights.WeightSample]) -> Read:
    path = scratch / "hostile.parquet"

    def read(rng: random.Random, made: Mutant) -> None:
        path.write_bytes(made.data)
        found = weights.snapshot(path)
        # Behind checksums that were not made to agree, nothing else may be read than what was written.
        if made.kind != "repaired" and all(found != file.holds for file in files):
            raise Undetected(f"{made.kind} of {made.sample.name}: it is read as another file")
    return read


def _memories(scratch: Path) -> Read:
    """One file of a store of memories is damaged, the others are whole."""
    folder = scratch / "hostile-memories"
    shutil.copytree(memories.store_folder(scratch).parent, folder)
    holds = {kind: memories.snapshot(folder / kind) for kind in memories.STORES}

    def read(rng: random.Random, made: Mutant) -> None:
        path = folder / made.sample.name
        path.write_bytes(made.data)
        try:
            found = memories.snapshot(path.parent)
        finally:
            path.write_bytes(made.sample.data)
        if found != holds[path.parent.name]:
            raise Undetected(f"{made.kind} of {made.sample.name}: other memories are read")
    return read


def _vectors(scratch: Path) -> Read:
    """A damaged index is searched before it is checked: links may lead anywhere."""
    path = scratch / "hostile.vectors"

    def read(rng: random.Random, made: Mutant) -> None:
        path.write_bytes(made.sample.data)
        holds = vectors.search(_native.VectorSearch.open(path))
        path.write_bytes(made.data)
        index = _native.VectorSearch.open(path)
        found = vectors.search(index)
        index.verify()
        if found != holds:
            raise Undetected(f"{made.kind} of {made.sample.name}: other vectors are found")
    return read


def _safetensors(rng: random.Random, made: Mutant) -> None:
    end = 0
    for _, _, _, begin, behind in _native.read_safetensors(made.data):
        if not 8 <= begin <= behind <= len(made.data) or begin < end:
            raise Undetected("a tensor that lies outside the file or over another was accepted")
        end = behind


def _gguf(rng: random.Random, made: Mutant) -> None:
    _, _, tensors = _native.read_gguf(made.data)
    for _, kind, shape, begin, behind in tensors:
        if not 0 <= begin <= behind <= len(made.data):
            raise Undetected("a tensor that lies outside the file was accepted")
        if behind - begin <= _READ_BYTES_MAX:
            _read_gguf_tensor(rng, kind, shape, made.data[begin:behind])


def _read_gguf_tensor(rng: random.Random, kind: str, shape: list[int], data: bytes) -> None:
    try:
        _native.gguf_dequantize(kind, data, rng.random() < 0.5)
        if len(shape) == 2 and _native.gguf_block(kind)[2]:
            _native.gguf_pack(kind, data, *shape)
    except _NATIVE:
        return


def _frames(rng: random.Random, made: Mutant) -> None:
    data, ends, fault, at = made.data, list[int](), None, 0
    whole, pieces = _native.FrameScanner(*_FRAME_LIMITS), _native.FrameScanner(*_FRAME_LIMITS)
    expected = whole.feed(data)
    while at < len(data) and fault is None:
        piece = data[at:at + rng.choice([1, 2, 7, 100])]
        found, fault = pieces.feed(piece)
        ends += [at + end for end in found]
        at += len(piece)
    if (ends, fault) != expected:
        raise Undetected("frames end elsewhere when they come in pieces")


def _crc32c(rng: random.Random) -> None:
    data = rng.randbytes(rng.randrange(600))
    cut = rng.randrange(len(data) + 1)
    whole, shifted = _native.crc32c(data), _native.crc32c(memoryview(b"x" + data)[1:])
    if not whole == shifted == _native.crc32c(data[cut:], _native.crc32c(data[:cut])):
        raise Undetected("a sum depends on where its data lies")
    if data and whole == _native.crc32c(_flipped(rng, data)):
        raise Undetected("a sum overlooks a bit")


def _flipped(rng: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _odd(rng: random.Random, made: Mutant) -> bytes:
    """A mutant of a JSON text; half of the time still JSON, with one value of another kind."""
    if made.kind == "none" or rng.random() < 0.5:
        return made.data
    value = json.loads(made.sample.data)
    places: list[tuple[Any, Any]] = []
    _places(value, places)
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(
            [None, True, -1, 0, 1 << 31, 1 << 64, 1e308, -0.5, "", "x", "\x00", [], [1], {}, {"a": {}}, "9" * 5000,
             ["a"] * 1000, 10**40])
    return json.dumps(value).encode()


def _places(value: object, found: list[tuple[Any, Any]]) -> None:
    """Every place in a JSON value, as the object or array that holds it and the key."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            _places(value[key], found)


def _spec(scratch: Path) -> Read:
    from aios.model.imports import bert_config, language_config
    from aios.store.record import architecture, read_spec

    path = scratch / "config.json"

    def read(rng: random.Random, made: Mutant) -> None:
        path.write_bytes(_odd(rng, made))
        spec = read_spec(path)
        architecture(spec)
        (bert_config if spec["model_type"] == "bert" else language_config)(spec)
    return read


def _tokenizer(scratch: Path) -> Read:
    from aios.text.tokenizer import TextTokenizer

    path = scratch / "tokenizer.json"

    def read(rng: random.Random, made: Mutant) -> None:
        path.write_bytes(_odd(rng, made))
        tokenizer = TextTokenizer.open(path)
        tokenizer.decode(tokenizer.encode("the thin\ud800g <eos>"))
    return read


def _chat(corpus: Corpus, scratch: Path) -> Read:
    from aios.messages import ChatMessage
    from aios.text.chat import ChatTemplate
    from aios.text.tokenizer import TextTokenizer

    (scratch / "honest.json").write_bytes(corpus.of("tokenizer")[0].data)
    tokenizer = TextTokenizer.open(scratch / "honest.json")
    folder = scratch / "chat"
    folder.mkdir()
    said = [ChatMessage(role="user", content="the <eos> thing"), ChatMessage(role="assistant", content="in")]

    def read(rng: random.Random, made: Mutant) -> None:
        (folder / "tokenizer_config.json").write_bytes(_odd(rng, made))
        template = ChatTemplate.open(folder)
        if template is not None:
            template.render(said, tokenizer)
    return read
