"""`aios bench`, `eval` and `lab` with a measurement that takes no time."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from aios.lab import catalogue
from aios.lab.report import LabOptions, Report, Row
from aios.ledger import Ledger

if TYPE_CHECKING:
    from tests.cli.conftest import Run


@pytest.fixture
def seen(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[LabOptions]:
    """`bench toy`, `eval toy` and `campaign toy`: two rows, the second of which misses its must when quick."""
    options: list[LabOptions] = []

    def measure(given: LabOptions) -> Report:
        options.append(given)
        given.progress("counting", 0.5)
        return Report.of("toy", [
            Row(metric="speed", value=2.0, unit="x", better="higher", must=1.0),
            Row(metric="growth_mb", value=9.0 if given.quick else 1.0, unit="MB", better="lower", must=5.0)], given)

    module = ModuleType("toy_measurement")
    module.run = measure   # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_measurement", module)
    monkeypatch.setattr(catalogue, "training_paused", __import__("contextlib").nullcontext)
    for table in catalogue.GROUPS.values():
        monkeypatch.setitem(table, "toy", "toy_measurement:run")   # type: ignore[arg-type]
    return options


@pytest.mark.parametrize("words", [("bench",), ("eval",), ("eval", "campaign")])
def test_the_exit_code_says_whether_every_must_holds(run: Run, seen: list[LabOptions], words: tuple[str, ...]) -> None:
    assert run(*words, "toy", "--seed", "5").code == 0
    done = run(*words, "toy", "--quick", "--json")
    assert done.code == 1
    assert done.json["quick"] is True
    assert [row["ok"] for row in done.json["rows"] if row["kind"] == "live"] == [True, False]
    assert seen[0].seed == 5


def test_flags_reach_the_measurement(run: Run, seen: list[LabOptions], tmp_path: Path) -> None:
    done = run("bench", "toy", "--data", str(tmp_path), "--rerun", "speed", "--json")
    assert done.code == 0
    assert [row["metric"] for row in done.json["rows"]] == ["speed"]
    assert seen[0].data == tmp_path


def test_a_picture_is_drawn_where_it_is_wanted(run: Run, seen: list[LabOptions], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run("bench", "toy", "--plot", str(tmp_path / "p"), "--json").code == 0
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["toy.png"]


@pytest.mark.parametrize("words", [("bench",), ("eval",), ("eval", "campaign")])
def test_without_a_name_the_names_are_listed(run: Run, seen: list[LabOptions], words: tuple[str, ...]) -> None:
    assert f"aios {' '.join(words)} toy" in run(*words).out.splitlines()
    assert "toy" in run(*words, "--json").json["names"]


@pytest.mark.parametrize("words", [("bench", "nobody"), ("bench", "toy", "--data", "/nonexistent"),
                                   ("bench", "toy", "--rerun", "nobody"), ("lab", "show", "nobody")])
def test_what_does_not_exist_is_named(run: Run, seen: list[LabOptions], words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.code == 65
    assert "error: " in done.err


def test_a_run_is_listed_shown_and_repeated(run: Run, seen: list[LabOptions]) -> None:
    run("eval", "toy", "--seed", "9")
    run_id = run("lab", "list", "--json").json["runs"][0]["id"]
    assert run_id in run("lab", "list").out
    shown = run("lab", "show", run_id[:12])
    assert "aios eval toy --seed 9" in shown.out
    assert "growth_mb" in shown.out
    assert run("lab", "show", "eval toy", "--json").json["id"] == run_id
    again = run("lab", "rerun", "eval toy", "--json")
    assert again.code == 0
    assert again.json["seed"] == seen[-1].seed == 9
    assert len(run("lab", "list", "--json").json["runs"]) == 2


def test_a_torn_line_is_mentioned_and_skipped(run: Run, seen: list[LabOptions]) -> None:
    run("bench", "toy")
    with (Ledger.here().folder / "bench-toy.jsonl").open("a") as file:
        file.write('{"torn')
    done = run("lab", "list")
    assert "bench toy" in done.out
    assert "bench-toy.jsonl:2 cannot be read" in done.err
