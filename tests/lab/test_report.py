"""A row judges itself, and a report is worth its worst row."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from aios.lab import present
from aios.lab.report import LabOptions, Report, Row


def row(**changes: object) -> Row:
    return Row(**({"metric": "m", "value": 1.0, "unit": "ms", "better": "lower", "must": 2.0} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("changes", "ok", "missed"), [
    ({}, True, False),
    ({"value": 2.0}, True, False),
    ({"value": 2.1}, False, True),
    ({"better": "higher"}, False, True),
    ({"better": "higher", "value": 2.0}, True, False),
    ({"value": 0.0, "must": 0}, True, False),
    ({"value": 1.0, "must": 0}, False, True),
    ({"must": None}, None, False),
    ({"value": None, "reason": "no data"}, False, True),
    ({"value": None, "reason": "no data", "must": None}, False, False),
    ({"value": None, "reason": "no AMX here", "excused": True}, None, False),
])
def test_a_must_holds_or_is_missed_and_null_is_a_miss(
        changes: dict[str, object], ok: bool | None, missed: bool) -> None:
    one = row(**changes)
    assert (one.ok, one.missed) == (ok, missed)
    assert Report.of("r", [row(), one], LabOptions()).exit_code == int(missed)


def test_null_needs_a_reason_and_a_number_must_be_one() -> None:
    for changes in ({"value": None}, {"value": math.nan}, {"value": math.inf}, {"peer_value": math.nan}):
        with pytest.raises(ValueError, match="m:"):
            row(**changes)


@pytest.mark.parametrize(("better", "value", "peer", "ratio"), [
    ("lower", 2.0, 8.0, 4.0), ("higher", 8.0, 2.0, 4.0), ("higher", 1.0, 0.0, None), ("lower", 0.0, 1.0, None),
    ("lower", 1.0, None, None)])
def test_the_ratio_says_how_many_times_better_than_the_peer(
        better: str, value: float, peer: float | None, ratio: float | None) -> None:
    assert row(better=better, value=value, peer_value=peer).ratio == ratio


def test_the_json_has_the_named_fields_and_reads_back() -> None:
    report = Report.of("toy", [row(interval=(0.5, 1.5), n=3, peer="p"), row(value=None, reason="r", excused=True)],
                       LabOptions(seed=5))
    data = json.loads(json.dumps(report.to_json()))
    assert set(data) >= {"name", "commit", "date", "machine", "quick", "rows"}
    assert set(data["machine"]) == {"cpu", "isa", "threads", "memory_gb", "gpu"}
    assert set(data["rows"][0]) == {
        "metric", "value", "unit", "better", "must", "aim", "ok", "kind", "peer", "peer_version", "peer_value", "ratio",
        "n", "interval", "run", "reason"}
    assert tuple(Row.from_json(one) for one in data["rows"]) == report.rows


def test_data_is_looked_for_in_the_named_folder_alone_else_in_the_environment(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "b" / "x.parquet").write_bytes(b"")
    monkeypatch.setenv("AIOS_DATA", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert LabOptions().find_data("x.parquet") == tmp_path / "b" / "x.parquet"
    assert LabOptions(data=tmp_path / "a").find_data("x.parquet") is None
    monkeypatch.delenv("AIOS_DATA")
    assert LabOptions().find_data("x.parquet") is None


def test_seeds_differ_from_run_to_run_unless_given() -> None:
    assert len({LabOptions().seed for _ in range(20)}) > 1
    assert LabOptions(seed=3).seed == 3


def test_the_table_shows_verdicts_reasons_and_peers() -> None:
    from rich.console import Console

    rows = [row(), row(metric="slow", value=9.0), row(metric="gone", value=None, reason="no [data] here"),
            row(metric="beside", peer="faiss", peer_version="1.8", peer_value=3.0, interval=(0.9, 1.1))]
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(present.table(Report.of("toy", rows, LabOptions(quick=True, seed=11))))
    console.file.close()
    text = console.export_text()
    for words in ("toy (quick)", "seed 11", "missed", "no [data] here", "faiss 1.8: 3", "3.00x", "95%"):
        assert words in text


@pytest.mark.parametrize(("value", "text"), [(None, "—"), (0.0, "0"), (12345.0, "12,345"), (0.86651, "0.8665"),
                                             (123.456, "123.5"), (0.999999, "1.0000")])
def test_figures_show_the_digits_that_matter(value: float | None, text: str) -> None:
    assert present.number(value) == text


def test_a_plot_is_a_png_named_after_the_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra `bench`")
    path = present.plot(Report.of("toy", [row(), row(value=None, reason="r")], LabOptions()), tmp_path / "new")
    assert path == tmp_path / "new" / "toy.png"
    assert path.read_bytes().startswith(b"\x89PNG")
