"""Exports hold everything but keys, and hostile ones are refused by line."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.errors import BadInput
from aios.memory.record import Filter, NewMemory
from aios.memory.vector_memory import ArrowStorage
from tests.memory.conftest import DIM, encode


def contents(store):
    return [(one.text, one.metadata, one.namespace, one.tags, one.time, one.source, one.provenance)
            for one in map(store.read, store.select())]


def test_what_is_exported_can_be_imported_elsewhere(store, tmp_path):
    when = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    store.remember_many([
        NewMemory(text=f"note {n} ü\n\"", metadata={"n": n}, namespace=f"room {n % 2}", tags=["t"] * (n % 3), time=when,
                  source="s", provenance="p") for n in range(700)])
    store.forget(3)
    path = tmp_path / "all.jsonl"
    assert store.export(path) == 699
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shares: list[float] = []
    with ArrowStorage.open(tmp_path / "other", DIM, encode=encode) as other:
        assert other.import_(path, shares.append) == 699
        assert contents(other) == contents(store)
        assert other.recall("note 77", k=1)[0].score == pytest.approx(store.recall("note 77", k=1)[0].score)
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert store.export(tmp_path / "some.jsonl", Filter(namespaces=["room 0"])) == 349
    with pytest.raises(BadInput, match="there already"):
        store.export(path)
    with pytest.raises(BadInput, match="cannot read"):
        store.import_(tmp_path / "none")


def test_vectors_of_another_encoder_are_made_anew(store, tmp_path):
    store.remember("the blue bicycle")
    store.export(tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    (tmp_path / "all.jsonl").write_text("\n".join([json.dumps({"format": "aios-memories-1", "dim": 5}), *lines[1:]]))
    with ArrowStorage.open(tmp_path / "other", DIM, encode=encode) as other:
        other.import_(tmp_path / "all.jsonl")
        assert other.recall("the blue bicycle")[0].score == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("line", "said"), [
    ('{"text": 5}', "line 3"), ('{"text": "a", "time": "2024-01-01T00:00:00"}', "zone"),
    ('{"text": "a", "vector": "!!!"}', "vector"), ('{"text": "a", "vector": "AAAA"}', "vector"),
    ('{"text": "a", "metadata": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}", "line 3"), ("[1]", "line 3"),
    ('{"text": "\\ud800"}', "line 3"), ('{"text": "a", "tags": [' + ",".join(['"t"'] * 65) + "]}", "tags"),
    ("\xff", "line 3"),
])
def test_a_wrong_line_is_refused_and_named(store, tmp_path, line, said):
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(b'{"format": "aios-memories-1", "dim": 32}\n{"text": "fine"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(BadInput, match=said):
        store.import_(path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_imported(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "exchange"
    folder.mkdir(exist_ok=True)
    (folder / "any.jsonl").write_bytes(b'{"format": "aios-memories-1", "dim": 32}\n' + data)
    with ArrowStorage.open(folder / "store", DIM, encode=encode) as store:
        try:
            store.import_(folder / "any.jsonl")
        except BadInput:
            return
