"""Readers of code, calls and definitions."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pyarrow import Table, parquet

from aios.errors import BadInput
from aios.training import call_sources, code_sources
from aios.training.call_sources import (
    CALLS_MEMBER,
    read_glosses,
    read_home_calls,
    read_intents,
    read_service_calls,
    read_task_dialogues,
    read_worked_problems,
)
from aios.training.code_sources import plain_code, read_algorithms, read_library, read_package


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    parquet.write_table(Table.from_pylist(rows), path)
    return path


def test_code_loses_comments_and_keeps_what_only_looks_like_one() -> None:
    source = '# licence\n\n\n\ndef f():   # why\n\treturn "# text"  \n'
    assert plain_code(source) == 'def f():\n    return "# text"'


@pytest.mark.parametrize(
    "source", ["def f(:\n  'open", "x = '" + "y" * 500 + "'\n", "", "# only a comment\n", "a\x00b"]
)
def test_what_is_no_plain_code_is_left_out(source: str) -> None:
    assert plain_code(source) is None


def test_code_cannot_spell_a_reserved_token() -> None:
    assert plain_code("x = '<|mask|>'\n") == "x = '< |mask|>'"


def test_the_library_is_read_without_its_tests(tmp_path: Path) -> None:
    for name in ("one.py", "test/two.py", "pack/three.py", "pack/four.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    found = list(read_library(tmp_path))
    assert [document.name for document in found] == ["one.py", "pack/three.py"]
    assert found[0].lines == ("<|code|>x = 1",)


def test_a_package_is_read_from_its_wheel(tmp_path: Path) -> None:
    path = tmp_path / "pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("pack/a.py", "x = 1\ny = 2\n")
        wheel.writestr("pack/tests/b.py", "x = 1\n")
        wheel.writestr("pack/c.txt", "x = 1\n")
    (found,) = read_package(path)
    assert (found.name, found.lines) == ("pack/pack/a.py", ("<|code|>x = 1", "y = 2"))


def test_algorithms_that_are_empty_are_left_out(tmp_path: Path) -> None:
    rows = [{"path": "a.py", "code": ""}, {"path": "b.py", "code": "x = 1\n"}]
    assert [document.name for document in read_algorithms(table(tmp_path / "a.parquet", rows))] == ["b.py"]


def test_dialogues_have_roles(tmp_path: Path) -> None:
    turns = [("1", "USER", "Hi."), ("1", "SYSTEM", "Bye <|user|>."), ("2", "USER", "Yes.")]
    rows = [{"split": "train", "dialogue": d, "speaker": s, "utterance": u} for d, s, u in turns]
    read = list(read_task_dialogues(table(tmp_path / "t.parquet", rows)))
    assert [d.lines for d in read] == [("<|user|>Hi.<|assistant|>Bye < |user|>.",), ("<|user|>Yes.",)]


def test_a_service_call_follows_the_last_turns(tmp_path: Path) -> None:
    history = "\n".join(["USER: old"] * 4 + ["SYSTEM: Where?", "USER: In San Jose", "SYSTEM: When?", "USER: Now"])
    wanted = '{"method": "Reserve", "parameters": {"time": "11:30"}}'
    rows = [{"split": "dev", "dialogue": "7", "history": history, "call": wanted, "service": "R"},
            {"split": "dev", "dialogue": "7", "history": history, "call": "", "service": ""}]  # fmt: skip
    (found,) = read_service_calls(table(tmp_path / "t.parquet", rows))
    assert found.name == "dev/7", "the same split as its dialogue"
    assert found.lines[0].endswith(
        '<|assistant|>When?<|user|>Now<|call|>{"name":"Reserve","arguments":{"time":"11:30"}}'
    )
    assert found.lines[0].count("old") == 2


def archive(path: Path, name: str, content: bytes) -> Path:
    with tarfile.open(path, "w:gz") as made:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        made.addfile(entry, io.BytesIO(content))
    return path


def home(*messages: dict[str, Any]) -> str:
    return json.dumps({"messages": json.dumps([{"role": "system", "content": "devices"}, *messages])})


def test_requests_to_a_home_end_in_a_call_or_an_answer(tmp_path: Path) -> None:
    function = {"name": "HassTurnOn", "arguments": {"domain": ["light"]}}
    lines = [home({"role": "user", "content": "Light  on"},
                  {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}),
             home({"role": "user", "content": "Turn it down"}, {"role": "assistant", "content": "What?"}),
             home({"role": "user", "content": "Nobody answers"})]  # fmt: skip
    path = archive(tmp_path / "h.tar.gz", f"h-1.0/{CALLS_MEMBER}", "\n".join(lines).encode())
    assert [document.lines[0] for document in read_home_calls(path)] == [
        '<|user|>Light on<|call|>{"name":"HassTurnOn","arguments":{"domain":["light"]}}',
        "<|user|>Turn it down<|assistant|>What?",
    ]


def test_an_archive_without_its_member_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no"):
        list(read_home_calls(archive(tmp_path / "h.tar.gz", "h-1.0/other", b"{}")))


def test_intents_of_the_training_split_are_calls(tmp_path: Path) -> None:
    splits = ("train", "val", "oos_train")
    rows = [{"split": split, "text": "book a flight", "intent": "book_flight"} for split in splits]
    (found,) = read_intents(table(tmp_path / "c.parquet", rows))
    assert found.lines == ('<|user|>book a flight<|call|>{"name":"book_flight","arguments":{}}',)


def test_worked_problems_lose_their_calculator_marks(tmp_path: Path) -> None:
    rows = [{"question": "How many?", "answer": "He has 2*3=<<2*3=6>>6.\nSo 6.\n#### 6"}]
    (found,) = read_worked_problems(table(tmp_path / "g.parquet", rows))
    assert found.lines == ("<|user|>How many?<|assistant|>He has 2*3=6. So 6. The answer is 6.",)


def test_definitions_are_read_from_the_debian_package(tmp_path: Path) -> None:
    line = "00401783 04 n 02 re_freshment 0 recreation 1 001 @ 00401639 n 0000 | activity that refreshes; \"a rest\"\n"
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as made:
        for kind in call_sources.WORDNET_PARTS:
            content = ("  1 licence\n" + (line if kind == "noun" else "")).encode()
            entry = tarfile.TarInfo(f"./usr/share/wordnet/data.{kind}")
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    raw = data.getvalue()
    members = [(b"debian-binary", b"2.0\n"), (b"control.tar.xz", b"odd"), (b"data.tar.xz", raw)]
    package = b"!<arch>\n" + b"".join(
        name.ljust(16) + b"0".ljust(32) + str(len(content)).encode().ljust(10) + b"`\n" + content
        + b"\n" * (len(content) % 2) for name, content in members)  # fmt: skip
    (tmp_path / "w.deb").write_bytes(package)
    (found,) = read_glosses(tmp_path / "w.deb")
    assert found.name == "n00401783"
    assert found.lines == ('re freshment, recreation (noun): activity that refreshes; "a rest"',)
    (tmp_path / "w.deb").write_bytes(package[:100])
    with pytest.raises(BadInput, match="holds no data"):
        list(read_glosses(tmp_path / "w.deb"))


def test_every_pinned_package_has_a_hash() -> None:
    assert all(len(digest) == 64 for digest in code_sources.PACKAGES.values())
