"""The small version of `aios eval campaign parsers`: a fixed seed, a few hundred inputs, and proof that it can fail."""

from __future__ import annotations

import random
import resource
import sys
import warnings

import numpy as np
import psutil
import pytest

from aios.errors import ModelCorrupt
from aios.lab import campaign_parsers
from aios.lab.parsers import entries, weights, worker
from aios.lab.parsers.arguments import Guarded, Overrun, distorted
from aios.lab.parsers.mutations import Sample, Site, edge, encoded, flip, mutant, varint
from aios.lab.parsers.targets import open_targets
from aios.lab.parsers.worker import Cases, Undetected, judge
from aios.lab.report import LabOptions

SMALL = 1200
SEED = 3

DYING = """
import os, sys
from pathlib import Path
from aios.lab.parsers.worker import Journal
folder, seed, count, start, step = Path(sys.argv[1]), *map(int, sys.argv[2:])
journal = Journal(folder / f"journal-{start % step}")
for number in range(start, count, step):
    counts = journal.read()
    counts.number = number
    journal.write(counts)
    if number == 5:
        sys.stderr.write("memory allocation of 99999999999 bytes failed")
        sys.stderr.flush()
        os.abort()
    if number == 8:
        os._exit(3)
    counts.done += 1
    journal.write(counts)
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """The cases of a small campaign, in this process."""
    scratch = tmp_path_factory.mktemp("parsers")
    with warnings.catch_warnings(), np.errstate(all="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(scratch)
        yield Cases(*open_targets(scratch), SEED, SMALL)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return weights.weight_files(tmp_path_factory.mktemp("weights"))


def test_hostile_inputs_are_refused_and_nothing_worse(cases):
    found = []
    for number in range(SMALL):
        name, attack, refusals = cases.case(number)
        if (wrong := judge(attack, refusals, warm=False)) is not None:
            found.append((number, name, *wrong))
    assert not found, found[:5]


def test_every_native_entry_is_attacked():
    missing = set(entries.members()) - set(entries.entries())
    assert not missing, f"aios/lab/parsers/entries.py has no case for {sorted(missing)}"
    gone = set(entries.entries()) - set(entries.members())
    assert gone <= {"WeightFile.__buffer__"}, "before Python 3.12 a class does not show that it is a buffer"


def test_a_case_is_made_from_its_seed_and_number_alone(cases):
    assert [cases.case(number)[0] for number in range(50)] == [cases.case(number)[0] for number in range(50)]
    sample = Sample(name="x", data=bytes(range(100)), sites=(Site(offset=3, length=4),))
    made = [[mutant(random.Random(f"{seed}:{n}"), [sample]).data for n in range(50)] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_all_bits_are_flipped_when_the_campaign_is_large_enough(cases):
    bits = cases.flips
    flipped = [cases.flip(number) for number in range(SMALL)]
    assert [turn for turn in flipped if turn is not None] == list(range(bits))
    assert bits == SMALL * worker.FLIPS_SHARE


def test_a_lie_is_written_as_its_place_demands():
    assert encoded(-1, Site(offset=0, length=4)) == b"\xff" * 4
    assert encoded(300, Site(offset=0, length=1, encoding="varint")) == varint(300) == b"\xac\x02"
    assert encoded(-1, Site(offset=0, length=1, encoding="zigzag")) == b"\x01"
    assert {edge(random.Random(n), 10) > 1 << 60 for n in range(50)} == {True, False}


def test_a_flipped_bit_of_a_payload_is_blamed_on_its_tensor(files, tmp_path):
    path = tmp_path / "w.parquet"
    for file in files:
        begin, _, name = file.payload[0]
        path.write_bytes(flip(file.sample.data, 8 * begin + 3))
        with pytest.raises(ModelCorrupt, match=name):
            weights.judge(file, begin, path)


def test_the_judge_finds_a_reader_that_believes_everything(files, tmp_path, monkeypatch):
    """The campaign must be able to fail."""
    one, other = files
    path = tmp_path / "w.parquet"
    path.write_bytes(other.sample.data)
    with pytest.raises(Undetected, match="another file"):
        weights.judge(one, None, path)
    begin, _, name = one.payload[0]

    def vague(path):
        raise ModelCorrupt(f"{path.name}: something is wrong")

    monkeypatch.setattr(weights, "snapshot", vague)
    with pytest.raises(Undetected, match=f"tensor {name} is not named"):
        weights.judge(one, begin, path)


def test_every_way_to_break_is_counted_as_what_it_is():
    class PanicException(BaseException):
        pass

    def fails(error):
        def attack():
            raise error
        return judge(attack, (ValueError,))

    assert fails(ValueError()) is None
    assert fails(PanicException("oh"))[0] == "panics"
    assert fails(KeyError("k"))[0] == "panics"
    assert fails(MemoryError())[0] == "over_cap"
    assert fails(Undetected("x")) == ("undetected", "x")
    hoard = []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10      # of earlier tests as well
    below_peak = peak - psutil.Process().memory_info().rss
    assert judge(lambda: hoard.append(bytearray(below_peak + (worker.RESIDENT_MB << 21))), ())[0] == "over_cap"


def test_a_write_beside_an_array_is_found():
    guarded = Guarded()
    array = guarded.array(np.zeros((2, 3), np.float32))
    array[:] = 1
    guarded.check()
    guarded._buffers[0][-1] ^= 1
    with pytest.raises(Overrun):
        guarded.check()


def test_wrong_arguments_reach_every_depth():
    valid = ((1, 2), (np.zeros(4, np.uint8), None), "name")
    kinds = {tuple(type(one).__name__ for one in distorted(random.Random(n), valid)) for n in range(300)}
    assert len(kinds) > 30


def test_a_worker_that_dies_is_counted_and_its_case_is_named(tmp_path, monkeypatch):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    monkeypatch.setattr(campaign_parsers, "worker", lambda words: [sys.executable, str(script), *words])
    monkeypatch.setattr(campaign_parsers, "POLL_SECONDS", 0.02)
    outcome = campaign_parsers.campaign(12, 1, lambda label, done: None, lanes=2)
    assert (outcome.inputs, outcome.panics, outcome.over_cap) == (12, 1, 1)
    assert any(reason.startswith("over_cap: case 5 ") for reason in outcome.reasons)
    assert any(reason.startswith("panics: case 8 ended the process with status 3") for reason in outcome.reasons)
    rows = {row.metric: row for row in campaign_parsers.rows(outcome, quick=False)}
    assert rows["inputs"].missed and rows["panics"].missed and rows["over_cap_allocations"].missed


def test_the_campaign_runs_in_processes_of_its_own(monkeypatch):
    monkeypatch.setattr(campaign_parsers, "INPUTS_QUICK", 600)
    rows = {row.metric: row for row in campaign_parsers.run(LabOptions(seed=SEED, quick=True)).rows}
    assert rows["inputs"].value == 600
    for metric in ("panics", "over_cap_allocations", "undetected_bit_flips"):
        assert rows[metric].value == 0, rows[metric].reason
