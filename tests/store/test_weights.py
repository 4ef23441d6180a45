"""Weight files as Python and other Parquet readers see them: no copy, no wrong byte, and whoever lies is named."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import duckdb
import polars
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import aios
from aios import _native
from aios.contracts import PackedTensor
from aios.errors import BadInput, Busy, LimitExceeded, ModelCorrupt, ModelMissing
from aios.store.record import release_id
from aios.store.weights import Part, WeightLoader, WeightWriter

SPEC = {"model_type": "llama", "rope_theta": 1e-5, "hidden_size": 8, "nested": {"b": [1, None, True]}}


def half(*shape: int) -> Tensor:
    return torch.rand(*shape).half()


def packed(rows: int, columns: int, bits: int, group_size: int, *, symmetric: bool = False,
           rank: int = 0) -> PackedTensor:
    panels, groups = -(-rows // 32), -(-columns // group_size)
    return PackedTensor(
        rows=rows, columns=columns, bits=bits, group_size=group_size,
        codes=torch.randint(0, 256, (panels * 32 * -(-columns // 32) * 32 * bits // 8,), dtype=torch.uint8),
        scales=half(panels, groups, 32), zeros=None if symmetric else half(panels, groups, 32),
        left=half(rows, rank) if rank else None, right=half(rank, columns) if rank else None)


def tensors() -> dict[str, Tensor | PackedTensor]:
    return {
        "matrix": torch.randn(5, 3), "scalar": torch.tensor(2.5), "empty": torch.empty(0, 7, dtype=torch.int64),
        "half": torch.randn(2, 3, 4).half(), "brain": torch.randn(9).bfloat16(), "double": torch.randn(2).double(),
        "i64": torch.arange(-2, 3), "i32": torch.arange(4, dtype=torch.int32), "i16": torch.ones(1, dtype=torch.int16),
        "i8": torch.tensor([-1], dtype=torch.int8), "u8": torch.tensor([255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]), "p8": packed(33, 70, 8, 32, symmetric=True, rank=2),
        "p4": packed(1, 1, 4, 64), "p2": packed(64, 129, 2, 128, rank=1), "p0": packed(0, 5, 2, 32)}


def write(path: Path, content: dict[str, Tensor | PackedTensor], **finish: Any) -> str:
    with WeightWriter(path) as writer:
        for name, tensor in content.items():
            writer.add(name, tensor)
        return writer.finish(**{"spec": SPEC, "card": "# A card", "tokenizer_sha256": "ab" * 32, **finish})


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def same(one: Tensor | PackedTensor, other: Tensor | PackedTensor) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, PackedTensor) and isinstance(other, PackedTensor):
        fields = ("rows", "columns", "bits", "group_size", "order")
        return (all(getattr(one, field) == getattr(other, field) for field in fields)
                and one.parts.keys() == other.parts.keys()
                and all(torch.equal(one.parts[part], other.parts[part]) for part in one.parts))
    return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.parquet"


def test_what_is_written_is_read_back_and_proved(path: Path) -> None:
    content = tensors()
    release = write(path, content, derived_from="cd" * 32)
    loader = aios.WeightLoader.open(path)
    loader.intact(wait=True)
    seen: list[tuple[int, int]] = []
    loader.verify(lambda done, total: seen.append((done, total)))
    assert list(loader) == list(content) and len(loader) == len(content) and "nobody" not in loader
    assert all(same(loader[name], tensor) for name, tensor in content.items())
    assert (loader.spec, loader.card, loader.tokenizer_sha256) == (SPEC, "# A card", "ab" * 32)
    assert loader.release == release == release_id(SPEC, "ab" * 32, loader.tensors_sha256)
    assert loader.derived_from == "cd" * 32
    assert seen[-1][0] == seen[-1][1] == sum(record.bytes for record in loader.records.values())
    assert path.stat().st_mode & 0o777 == 0o600 and names(path.parent) == [path.name]


def test_tensors_lie_in_the_map_aligned_and_writing_to_them_stays_here(path: Path) -> None:
    write(path, tensors())
    before = path.read_bytes()
    loader = WeightLoader.open(path)
    for name, record in loader.records.items():
        raw = loader.packed_bytes(name)
        assert raw == before[record.offset:record.offset + len(raw)]
        tensor = loader[name]
        if isinstance(tensor, PackedTensor):
            assert all(part.data_ptr() % 64 == 0 for part in tensor.parts.values())
        elif tensor.numel():
            assert tensor.dtype == torch.bool or tensor.data_ptr() % 64 == 0
    matrix = loader["matrix"]
    assert isinstance(matrix, Tensor) and loader["matrix"] is matrix
    matrix.fill_(7)
    assert path.read_bytes() == before
    loader.close()
    del loader
    assert matrix.eq(7).all()   # the map lives as long as a tensor over it


def test_the_identity_is_of_the_tensors_not_of_their_order_or_the_file(tmp_path: Path) -> None:
    content = tensors()
    turned = dict(reversed(content.items()))
    assert write(tmp_path / "a", content) == write(tmp_path / "b", turned)
    assert write(tmp_path / "c", content, card="another") == write(tmp_path / "a", content)
    assert write(tmp_path / "d", {**content, "scalar": torch.tensor(2.0)}) != write(tmp_path / "a", content)
    assert write(tmp_path / "e", content, spec={"model_type": "llama"}) != write(tmp_path / "a", content)


def test_every_parquet_reader_sees_names_shapes_types_and_the_payload(path: Path) -> None:
    content = tensors()
    write(path, content)
    loader = WeightLoader.open(path)
    expected = [{"name": name, "shape": list(record.shape), "dtype": record.dtype, "group_size": record.group_size,
                 "data": bytes(loader.packed_bytes(name))} for name, record in loader.records.items()]
    columns = list(expected[0])
    assert parquet.read_table(path, columns=columns, page_checksum_verification=True).to_pylist() == expected
    assert polars.read_parquet(path, columns=columns).to_dicts() == expected
    rows = duckdb.sql(f"select {', '.join(columns)} from read_parquet('{path}')")
    assert rows and [dict(zip(columns, row, strict=True)) for row in rows.fetchall()] == expected
    packed_row = parquet.read_table(path).slice(list(content).index("p8"), 1).to_pylist()[0]
    tensor = content["p8"]
    assert isinstance(tensor, PackedTensor) and tensor.right is not None
    assert packed_row["right"] == tensor.right.numpy().tobytes() and packed_row["zeros"] == b""
    assert parquet.read_schema(path).metadata[b"aios.card"] == b"# A card"


def test_a_piece_may_have_any_size_and_comes_from_any_buffer(tmp_path: Path) -> None:
    raw = os.urandom(1_000_003)
    with WeightWriter(tmp_path / "a") as writer:
        sizes = writer.begin("x", "u8", (len(raw),))
        assert sizes == {"data": len(raw), "scales": 0, "zeros": 0, "left": 0, "right": 0}
        assert tuple(sizes) == get_args(Part)
        view = memoryview(bytearray(raw))
        for start, end in ((0, 1), (1, 1), (1, 700_000), (700_000, len(raw))):
            writer.write("data", view[start:end])
        writer.write("scales", b"")
        writer.end()
        writer.finish(spec=SPEC, card="", tokenizer_sha256="")
    loader = WeightLoader.open(tmp_path / "a")
    loader.verify()
    assert loader.packed_bytes("x") == raw


def test_an_unfinished_file_never_appears_and_leaves_nothing(path: Path) -> None:
    with pytest.raises(RuntimeError), WeightWriter(path) as writer:
        writer.add("x", torch.zeros(3))
        raise RuntimeError
    assert not names(path.parent)
    with WeightWriter(path, source="kept") as writer:
        writer.add("x", torch.zeros(3))
        with pytest.raises(Busy):
            WeightWriter(path, source="kept")
    del writer
    resumed = WeightWriter(path, source="kept")
    assert resumed.done == {"x"}
    resumed.abandon()
    assert not names(path.parent)


def test_an_old_file_stays_until_the_new_one_is_whole(path: Path) -> None:
    write(path, {"x": torch.zeros(3)})
    old = WeightLoader.open(path)
    with WeightWriter(path) as writer:
        writer.add("x", torch.ones(3))
        assert same(WeightLoader.open(path)["x"], torch.zeros(3))
        writer.finish(spec=SPEC, card="", tokenizer_sha256="")
    assert same(WeightLoader.open(path)["x"], torch.ones(3))
    assert same(old["x"], torch.zeros(3))


@pytest.mark.parametrize(("call", "error"), [
    (lambda w: w.add("a", torch.zeros(2, dtype=torch.complex64)), BadInput),
    (lambda w: w.begin("a", "f33", (1,)), BadInput),
    (lambda w: w.begin("a", "f32", (-1,)), BadInput),
    (lambda w: w.begin("a", "f32", (1 << 70,)), BadInput),
    (lambda w: w.begin("a", "f32", ("1",)), BadInput),
    (lambda w: w.begin("\ud800", "f32", (1,)), BadInput),
    (lambda w: w.begin(b"a", "f32", (1,)), BadInput),
    (lambda w: w.begin("a", "f32", (1 << 29,)), LimitExceeded),
    (lambda w: w.begin("a" * 513, "f32", (1,)), BadInput),
    (lambda w: w.write("data", b"x"), BadInput),
    (lambda w: w.end(), BadInput),
    (lambda w: (w.begin("a", "u8", (4,)), w.write("data", memoryview(b"12345678")[::2])), BadInput),
    (lambda w: (w.begin("a", "u8", (4,)), w.write("data", 5)), BadInput),
    (lambda w: (w.begin("a", "u8", (4,)), w.write("more", b"x")), BadInput),
    (lambda w: (w.begin("a", "u8", (4,)), w.write("data", b"12345")), BadInput),
    (lambda w: (w.begin("a", "u8", (4,)), w.end()), BadInput),
    (lambda w: (w.add("a", torch.zeros(1)), w.add("a", torch.zeros(1))), BadInput),
    (lambda w: w.add("a", packed(3, 3, 3, 32)), BadInput),
    (lambda w: w.add("a", packed(3, 3, 4, 16)), BadInput),
    (lambda w: w.finish(spec={"a": float("nan")}, card="", tokenizer_sha256=""), BadInput),
    (lambda w: w.finish(spec={"a": object()}, card="", tokenizer_sha256=""), BadInput),
    (lambda w: w.finish(spec={"a": "x" * (1 << 20)}, card="", tokenizer_sha256=""), LimitExceeded),
    (lambda w: w.finish(spec={}, card="\ud800", tokenizer_sha256=""), BadInput),
])
def test_what_cannot_be_stored_is_refused_with_a_name_for_it(path: Path, call: Any, error: type[Exception]) -> None:
    with WeightWriter(path) as writer, pytest.raises(error, match=r"model\.parquet|a:|spec"):
        call(writer)
    assert not names(path.parent)


def test_a_packed_tensor_whose_parts_do_not_fit_is_refused(path: Path) -> None:
    good = packed(33, 70, 4, 32)
    fields = {field: getattr(good, field) for field in ("rows", "columns", "bits", "group_size", "zeros")}
    with WeightWriter(path) as writer, pytest.raises(BadInput, match="its data has"):
        writer.add("x", PackedTensor(**fields, codes=good.codes[:-1], scales=good.scales))
    with WeightWriter(path) as writer, pytest.raises(BadInput, match="its scales has"):
        writer.add("x", PackedTensor(**fields, codes=good.codes, scales=good.scales.float()[:1]))


def test_a_missing_or_foreign_file_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        WeightLoader.open(tmp_path / "none")
    (tmp_path / "text").write_text("hello " * 99)
    with pytest.raises(ModelCorrupt, match="text: it does not begin and end as a Parquet file"):
        WeightLoader.open(tmp_path / "text")
    with pytest.raises(ModelCorrupt, match="not a plain file"):
        WeightLoader.open(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ModelCorrupt, match="not a plain file"):
        WeightLoader.open(tmp_path / "fifo")
    polars.DataFrame({"x": [1, 2]}).write_parquet(tmp_path / "other")
    with pytest.raises(ModelCorrupt, match="other: "):
        WeightLoader.open(tmp_path / "other")


def test_damage_names_file_and_tensor_at_verify_and_in_the_background(path: Path) -> None:
    write(path, tensors())
    offset = WeightLoader.open(path, check="none").records["brain"].offset
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    loader = WeightLoader.open(path)
    with pytest.raises(ModelCorrupt, match=r"model\.parquet: tensor brain: its CRC32C differs") as raised:
        loader.intact(wait=True)
    assert raised.value.details == {"path": str(path), "tensor": "brain"} and raised.value.remedy
    with pytest.raises(ModelCorrupt, match="tensor brain"):
        loader.intact(wait=False)
    with pytest.raises(ModelCorrupt, match="tensor brain"):
        loader.verify()
    WeightLoader.open(path, check="none").intact(wait=True)   # nobody looked


def test_an_identity_that_does_not_follow_from_the_content_is_refused(path: Path) -> None:
    pairs = {"aios.spec": "{}", "aios.card": "", "aios.tokenizer_sha256": "", "aios.derived_from": ""}
    for change, why in (({}, "release does not follow"), ({"aios.release": "ab" * 32}, "release does not follow"),
                        ({"aios.spec": "{"}, "spec cannot be read"), ({"aios.spec": "[]"}, "spec cannot be read"),
                        ({"aios.spec": "[" * 100_000}, "spec cannot be read")):
        writer = _native.WeightWriter(path, "")
        writer.finish(list({**pairs, **change}.items()))
        with pytest.raises(ModelCorrupt, match=why):
            WeightLoader.open(path)
    writer = _native.WeightWriter(path, "")
    writer.finish([*pairs.items(), ("aios.card", "again")])
    with pytest.raises(ModelCorrupt, match="twice"):
        WeightLoader.open(path)


def test_closing_while_the_check_runs_is_safe_and_its_verdict_is_never_yes(path: Path) -> None:
    write(path, {"large": torch.zeros(8 << 20)})
    for _ in range(10):
        loader = WeightLoader.open(path)
        held = loader["large"]
        loader.close()
        try:
            loader.intact(wait=True)   # through before the close
        except ModelCorrupt as error:
            assert "closed before it was checked" in error.message
        assert isinstance(held, Tensor) and float(held[-1]) == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("whole") / "model.parquet"
    write(file, {"a": torch.arange(3.0), "b": packed(2, 3, 2, 32, rank=1)})
    return file


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_refused_or_harmless(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw)))
        raw[start:start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    changed = bytes(raw) != whole.read_bytes()
    (tmp_path / "x").write_bytes(raw)
    try:
        WeightLoader.open(tmp_path / "x", check="none").verify()
        assert not changed
    except ModelCorrupt:
        assert changed


JUNK = [None, 0, -1, 1 << 70, 1.5, "", "x", "\0", b"", b"x", [], [1], [-1], {}, object(), torch.zeros(2),
        memoryview(b"12345678")[::2], "data", "f32", [1 << 63], [1] * 100]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_argument_makes_the_extension_panic(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("junk") / "model.parquet"
    junk = st.sampled_from(JUNK)
    writer = _native.WeightWriter(path, "")
    ok = (ValueError, TypeError, OverflowError, OSError, BufferError, _native.StorageError)
    for name, count in (("begin", 6), ("write", 2), ("finish", 1), ("write", 2), ("end", 0)):
        with suppress(*ok):
            getattr(writer, name)(*[data.draw(junk) for _ in range(count)])
    paths: st.SearchStrategy[Any] = st.sampled_from([None, 0, 1.5, "", "\0", b"x\0", [], "/", path / "x" / "y"])
    make: Any
    for make in (_native.WeightWriter, _native.WeightFile):
        with suppress(*ok):
            make(data.draw(paths), data.draw(junk))
