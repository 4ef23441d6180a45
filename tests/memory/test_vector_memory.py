"""ArrowStorage keeps what it acknowledges, finds it, and forgets it for good."""

from __future__ import annotations

import os
import stat
import threading
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from aios.errors import BadInput, KeyRefused, LimitExceeded, MemoryBusy, MemoryCorrupt
from aios.memory.record import Filter, NewMemory
from aios.memory.vector_memory import ArrowStorage
from tests.memory.conftest import DIM, encode

FACTS = ["Mira's dentist is Doctor Oduya", "The blue bicycle stands in the cellar", "Tomas is allergic to hazelnuts",
         "The wifi of the cabin is called seventeen owls"]


def holds(home, needle: bytes) -> bool:
    return any(needle in path.read_bytes() for path in home.rglob("*") if path.is_file())


def test_a_memory_comes_back_whole_and_is_found_by_meaning(store):
    when = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=2)))
    metadata = {"kind": "fact", "pages": [1, 2.5, None, True], "deep": {"ä": "ö"}}
    number = store.remember(FACTS[0], metadata, namespace="people", tags=("dentist", "mira"), time=when,
                            source="diary.md", provenance="owner")
    others = [store.remember(fact) for fact in FACTS[1:]]
    found = store.recall("who is Mira's dentist?", k=2)[0]
    assert (found.id, found.text, found.metadata) == (number, FACTS[0], metadata)
    assert (found.namespace, found.tags, found.source, found.provenance) == (
        "people", ("dentist", "mira"), "diary.md", "owner")
    assert found.time == when and found.time.tzinfo == UTC and found.score is not None and 0 < found.score <= 1.0001
    assert store.select() == [number, *others]
    assert [one.id for one in store.search(encode([FACTS[2]])[0], k=1)] == [others[1]]
    assert store.store("the same as remember") == others[-1] + 1


def test_everything_is_there_after_every_kind_of_closing(reopen):
    expected = {}
    for turn in range(4):
        store = reopen()
        for fact in FACTS:
            expected[store.remember(f"{fact} {turn}")] = f"{fact} {turn}"
        if turn == 1:
            store.flush()
        if turn == 2:
            store.compact()
        if turn == 3:
            store.recall("a question opens the index, which closing saves")
        store.close()
    with reopen() as store:
        assert {number: store.read(number).text for number in store.select()} == expected
        assert store.recall(f"{FACTS[1]} 2", k=1)[0].text == f"{FACTS[1]} 2"
        assert store.verify() == store.stats().memories == 16
    with reopen() as store:      # the saved index
        assert store.recall(f"{FACTS[3]} 0", k=1)[0].text == f"{FACTS[3]} 0"


def test_filters_narrow_what_is_found_in_log_and_segment(store):
    start = datetime(2024, 1, 1, tzinfo=UTC)
    store.remember_many([
        NewMemory(text=f"note {n}", namespace=f"room {n % 3}", tags=[f"tag {t}" for t in range(n % 4)],
                  time=start + timedelta(days=n), source=f"file {n % 2}", provenance="owner" if n < 10 else "peer")
        for n in range(20)])
    for _ in range(2):
        def texts(**conditions):
            return {one.text for one in store.recall("note", k=20, filter=Filter(**conditions))}

        assert texts(namespaces=["room 1"]) == {f"note {n}" for n in range(20) if n % 3 == 1}
        assert texts(tags=["tag 1", "tag 2"]) == {f"note {n}" for n in range(20) if n % 4 == 3}
        assert texts(sources=["file 1"], provenances=["peer"]) == {f"note {n}" for n in range(11, 20, 2)}
        assert texts(since=start + timedelta(days=3), until=start + timedelta(days=5)) == {"note 3", "note 4"}
        assert texts(namespaces=["nowhere"]) == set()
        store.flush()


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("searched", [False, True])
def test_nothing_of_a_forgotten_text_is_in_the_home(reopen, home, flushed, searched):
    with reopen() as store:
        kept = store.remember(FACTS[1], {"word": "keepsake"}, tags=["plain-tag"])
        gone = store.remember(FACTS[0], {"word": "hazelnut"}, tags=["secret-tag"])
        vector = encode([FACTS[0]])[0].tobytes()
        if flushed:
            store.flush()
        if searched:
            store.recall("Mira")
    assert not any(holds(home, word) for word in (b"Oduya", b"hazelnut", b"bicycle", b"keepsake")), "text is sealed"
    assert holds(home, vector) and holds(home, b"secret-tag")
    with reopen() as store:
        key = (home / "keys").read_bytes()[64 * gone:64 * gone + 60]
        assert store.forget(gone) == [gone] and store.forget([gone, 999]) == []
        assert not holds(home, vector) and not holds(home, key), "vector and key go at once"
        assert store.read(gone) is None and store.was_forgotten(gone) and not store.was_forgotten(kept)
        assert [one.id for one in store.recall("Mira's dentist")] == [kept]
        assert store.stats().to_compact == 1
        assert store.compact() and not store.compact()
        assert not holds(home, b"secret-tag") and holds(home, b"plain-tag")
        assert store.stats().to_compact == 0 and store.stats().forgotten == 1
    with reopen() as store:
        assert store.select() == [kept] and store.was_forgotten(gone)
        assert store.remember("a new one") > gone, "ids are not given twice"


def test_forgetting_by_filter_takes_what_passes_and_an_empty_filter_takes_nothing(store):
    store.remember_many([NewMemory(text=f"note {n}", namespace=f"room {n % 2}") for n in range(6)])
    assert len(store.forget(Filter(namespaces=["room 1"]))) == 3
    assert {store.read(number).namespace for number in store.select()} == {"room 0"}
    with pytest.raises(BadInput, match="everything"):
        store.forget(Filter())
    assert len(store.forget(store.select())) == 3 and store.recall("note") == []


def test_readers_have_snapshots_and_never_wait_for_the_writer(store, reopen):
    first = store.remember(FACTS[0])
    reader = reopen(read_only=True)
    second = store.remember(FACTS[1])
    assert reader.select() == [first] and [one.id for one in reader.recall(FACTS[1])] == [first]
    reader.refresh()
    assert reader.recall(FACTS[1], k=1)[0].id == second
    store.forget(first)
    assert reader.read(first) is None, "a forgotten key opens nothing, however old the snapshot"
    assert [one.id for one in reader.recall(FACTS[0])] == [second]
    store.compact()
    assert reader.read(second).text == FACTS[1], "the old segment lives as long as its readers"
    reader.refresh()
    assert reader.select() == [second] and [one.id for one in reader.recall(FACTS[0])] == [second]
    with pytest.raises(BadInput, match="reading only"):
        reader.remember("no")
    reader.close()
    with pytest.raises(MemoryBusy):
        reopen()


def test_threads_share_the_store_and_lose_nothing(store):
    written: dict[int, str] = {}
    errors: list[BaseException] = []

    def work(lane: int) -> None:
        try:
            for turn in range(8):
                text = f"lane{lane} turn{turn}"
                written[store.remember(text)] = text
                store.recall(text, k=1)
                if turn == 4:
                    store.flush()
        except BaseException as error:
            errors.append(error)

    lanes = [threading.Thread(target=work, args=(lane,)) for lane in range(6)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert not errors, errors
    assert {number: store.read(number).text for number in store.select()} == written
    assert all(store.recall(text, k=1)[0].text == text for text in written.values())


def test_files_are_the_owners_alone(store, home):
    store.remember(FACTS[0])
    store.flush()
    store.forget(1)
    store.compact()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o600}


@pytest.mark.parametrize("wrong", [
    {"text": 5}, {"text": "half \ud800"}, {"text": "x", "metadata": {"a": object()}},
    {"text": "x", "metadata": {1: 2}}, {"text": "x", "metadata": {"a": float("nan")}},
    {"text": "x", "vector": [1.0] * (DIM + 1)}, {"text": "x", "vector": [float("inf")] * DIM},
    {"text": "x", "vector": "words"}, {"text": "x", "namespace": "n" * 256}, {"text": "x", "tags": "tag"},
    {"text": "x", "tags": ["t"] * 65}, {"text": "x", "source": 7}, {"text": "x", "provenance": "\udfff"},
    {"text": "x", "time": datetime(2024, 1, 1)}, {"text": "x" * ((1 << 20) + 1)},
    {"text": "x", "metadata": {"a": "x" * (65 << 10)}},
])
def test_what_cannot_be_kept_is_refused_as_a_whole(store, wrong):
    with pytest.raises(BadInput):
        store.remember_many([NewMemory(text="fine"), NewMemory(**wrong)])
    assert store.select() == []


def test_questions_that_make_no_sense_are_refused(store, home):
    for k in (0, -1, 4097):
        with pytest.raises(BadInput):
            store.recall("x", k=k)
    with pytest.raises(BadInput):
        store.recall([1.0, 2.0])
    with pytest.raises(BadInput):
        store.forget([-1])
    with pytest.raises(LimitExceeded):
        store.recall("x", filter=Filter(tags=["t"] * 1001))
    with pytest.raises(BadInput, match="needs a vector"):
        ArrowStorage.open(home.parent / "other", DIM).remember("text without a vector")
    assert store.recall("anything") == []
    assert store.remember_many([]) == []


def test_a_store_of_another_dimension_or_none_at_all_says_so(store, home, tmp_path):
    store.close()
    with pytest.raises(BadInput, match=f"{DIM} dimensions, not 384"):
        ArrowStorage.open(home)
    with pytest.raises(Exception, match="No such file"):
        ArrowStorage.open(tmp_path / "none", read_only=True)


def test_without_the_key_nothing_opens(store, home, reopen):
    store.remember(FACTS[0])
    store.close()
    secret = (home / "master.secret").read_bytes()
    (home / "master.secret").unlink()
    with pytest.raises(KeyRefused, match="missing"):
        reopen()
    (home / "master.secret").write_bytes(os.urandom(32))
    (home / "master.secret").chmod(0o600)
    with pytest.raises(KeyRefused, match="not the one"):
        reopen()
    (home / "master.secret").write_bytes(secret)
    with reopen() as again:
        assert again.read(1).text == FACTS[0]


def test_a_damaged_index_is_made_anew_and_a_damaged_segment_is_told(store, home, reopen):
    store.remember_many([NewMemory(text=fact) for fact in FACTS])
    store.recall("x")
    store.flush()
    store.close()
    (index,) = home.glob("index-*")
    index.write_bytes(index.read_bytes()[:100])
    with reopen() as again:
        assert again.recall(FACTS[2], k=1)[0].text == FACTS[2]
    (segment,) = home.glob("segment-*")
    data = bytearray(segment.read_bytes())
    for number, fact in enumerate(FACTS, 1):
        at = bytes(data).index(encode([fact])[0].tobytes())
        segment.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
        with reopen() as again, pytest.raises(MemoryCorrupt, match=f"memory {number} "):
            again.verify()
    segment.write_bytes(data)


def test_segments_are_opened_by_any_arrow_reader(store, home):
    import polars
    import pyarrow as pa

    when = datetime(2024, 5, 6, tzinfo=UTC)
    store.remember_many([
        NewMemory(text=fact, namespace=f"n{index}", tags=["a", f"t{index}"][:index], time=when, source="s",
                  provenance="p") for index, fact in enumerate(FACTS)])
    store.flush()
    (path,) = home.glob("segment-*")
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        table.validate(full=True)
        assert table["id"].to_pylist() == [1, 2, 3, 4] and table["time"].to_pylist() == [when] * 4
        assert table["namespace"].to_pylist() == ["n0", "n1", "n2", "n3"]
        assert table["tags"].to_pylist() == [[], ["a"], ["a", "t2"], ["a", "t3"]]
        assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), encode(FACTS))
        assert all(len(sealed) > 16 for sealed in table["sealed"].to_pylist())
        del table
    frame = polars.read_ipc(path)
    assert frame.columns == ["id", "time", "namespace", "tags", "source", "provenance", "crc32c", "sealed", "vector"]
    assert frame["source"].to_list() == ["s"] * 4


def test_vectors_may_be_kept_in_half_precision(tmp_path):
    with ArrowStorage.open(tmp_path / "half", DIM, vector="f16", encode=encode) as store:
        store.remember_many([NewMemory(text=fact) for fact in FACTS])
        store.flush()
        assert store.recall(FACTS[1], k=1)[0].text == FACTS[1]
        assert store.stats().vector == "f16" and store.verify() == 4
