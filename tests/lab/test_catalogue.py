"""Whatever is measured is in one table, is recorded, and can be run again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from aios.errors import BadInput
from aios.lab import catalogue, machine
from aios.lab.report import LabOptions, Report, Row
from aios.ledger import Ledger


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """An empty ledger, and `bench toy`, whose value is 1 in full and 3 when quick."""
    def measure(options: LabOptions) -> Report:
        value = 3.0 if options.quick else 1.0
        return Report.of("toy", [Row(metric="m", value=value, unit="ms", better="lower", must=2.0),
                                 Row(metric="n", value=value, unit="", better="higher")], options,
                         data={"d": "00"}, checkpoints={"c": "11"})

    module = ModuleType("toy_measurement")
    module.run = measure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_measurement", module)
    monkeypatch.setitem(catalogue.GROUPS["bench"], "toy", "toy_measurement:run")  # type: ignore[index]
    monkeypatch.setattr(machine, "checkout", lambda: None)
    return Ledger(tmp_path)


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in catalogue.GROUPS
                                             for name in catalogue.GROUPS[group]])
def test_every_entry_names_a_module_of_the_lab(group: catalogue.Group, name: str) -> None:
    module, _, function = catalogue.GROUPS[group][name].partition(":")
    assert function == "run"
    assert (Path(machine.__file__).parent / (module.rpartition(".")[2] + ".py")).is_file()


def test_an_unknown_name_is_bad_input_that_lists_the_known() -> None:
    with pytest.raises(BadInput) as unknown:
        catalogue.entry_point("eval", "nothing")
    assert "encode" in unknown.value.remedy


def test_a_run_is_recorded_with_all_it_takes_to_repeat_it(book: Ledger) -> None:
    report = catalogue.run("bench", "toy", LabOptions(seed=9, data=Path("/somewhere")), ledger=book)
    recorded, = book.entries()
    assert recorded.argv == ("aios", "bench", "toy", "--seed", "9")
    assert (recorded.command, recorded.seed, recorded.quick) == ("bench toy", 9, False)
    assert (recorded.data, recorded.checkpoints) == ({"d": "00"}, {"c": "11"})
    assert [Row.from_json(one) for one in recorded.rows] == list(report.rows)
    assert {row.run for row in report.rows} == {recorded.id}


def test_a_quick_run_shows_the_last_full_run_beside_its_own_rows_and_as_such(book: Ledger) -> None:
    catalogue.run("bench", "toy", LabOptions(), ledger=book)
    last = catalogue.run("bench", "toy", LabOptions(), ledger=book)
    quick = catalogue.run("bench", "toy", LabOptions(quick=True), ledger=book)
    assert [(row.metric, row.kind, row.value) for row in quick.rows] == [
        ("m", "live", 3.0), ("n", "live", 3.0), ("m", "ledger", 1.0), ("n", "ledger", 1.0)]
    assert quick.rows[2].run == last.rows[0].run
    assert quick.exit_code == 1
    *_, recorded = book.entries()
    assert len(recorded.rows) == 2   # a stored value is never recorded anew


def test_one_metric_alone_can_be_shown(book: Ledger) -> None:
    report = catalogue.run("bench", "toy", LabOptions(only="n"), ledger=book)
    assert [row.metric for row in report.rows] == ["n"]
    assert book.find("bench toy").argv[-2:] == ("--rerun", "n")
    with pytest.raises(BadInput, match="no row"):
        catalogue.run("bench", "toy", LabOptions(only="absent"), ledger=book)


def test_training_pauses_while_anyone_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    pause = tmp_path / "runs" / "PAUSE"
    monkeypatch.setattr(machine, "checkout", lambda: tmp_path)
    monkeypatch.setattr(machine, "PAUSE_SETTLE_S", 0)
    pause.write_text("999999999\n")   # left by a measurement that was killed
    with machine.training_paused():
        assert pause.exists()
        pause.write_text(f"1 {pause.read_text()}")   # another process measures too
    assert pause.read_text() == "1\n"
    pause.unlink()
    with pytest.raises(RuntimeError), machine.training_paused():
        raise RuntimeError
    assert not pause.exists()


def test_where_nothing_trains_nothing_is_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in (tmp_path, None):
        monkeypatch.setattr(machine, "checkout", lambda root=root: root)
        with machine.training_paused():
            assert list(tmp_path.iterdir()) == []


def test_machine_facts_are_of_this_machine() -> None:
    facts = machine.machine_facts()
    assert facts["threads"] >= 1
    assert facts["memory_gb"] > 0
    assert facts["cpu"]
