"""The evaluation of code: the held-out set, what counts as right, and all rows on a tiny model and its twin."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from aios.config import Places
from aios.engine import router
from aios.errors import BadInput
from aios.lab import code_twin, eval_code, functions, training_roots
from aios.lab.code_twin import Twin
from aios.lab.eval_code import Gap, body_gap, line_gap, neighbour
from aios.lab.functions import HeldOutFunction, read_functions
from aios.lab.report import LabOptions, Report
from aios.lab.statistics import clopper_pearson
from aios.lab.syntax import SOURCE_CHARS_MAX, function_parses, function_shape
from aios.lab.training_roots import TrainingRoots
from aios.ledger import Entry, Ledger
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.training import code_sources
from aios.training.build import place
from aios.training.checkpoints import write_tensors
from aios.training.data import save_stream, tokenise
from aios.training.objective import END_ID, Autoregressive, middle_last
from aios.training.recipes.mixtures import read_mixture
from aios.training.sources import Document
from aios.training.vocabulary import EOT_ID, UNWRITTEN, vocabulary_path
from tests.engine.conftest import write_model

SHAPE = TransformerConfig.of(16, 1, head_dim=8, time_conditioning=False)
SET = read_functions()
BYTES_MAX = 500_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(vocabulary_path(2048)))


def test_no_function_of_the_set_is_in_a_document_that_a_recipe_trains_on() -> None:
    share = read_mixture("small").test_percent / 100
    for one in SET:
        if one.held == "test":
            assert place(one.origin) < share, one.origin
        else:
            assert one.origin.split("/")[0] in code_sources.LEFT_OUT, one.origin
        assert functions.held_back(one.origin) == one.held
    assert any(one.held == "test" for one in SET)
    assert functions.held_back("ast.py") is None, "most files are trained on"


def test_the_set_is_small_licensed_and_within_its_limits(tokenizer: Tokenizer) -> None:
    assert functions.SET.stat().st_size <= BYTES_MAX
    assert len(SET) == 500 and len({(one.origin, one.body) for one in SET}) == 500
    for one in SET:
        assert one.licence == "PSF-2.0"
        parts = [tokenizer.encode(part).ids for part in (one.context + one.header, one.body, one.tail)]
        assert 4 <= len(parts[1]) <= 64 and sum(map(len, parts)) <= 256 - 5, one.name
        whole = tokenizer.encode(one.context + one.header + one.body + one.tail).ids
        assert [token for part in parts for token in part] == whole
        assert body_gap(one).parses(one.body) and body_gap(one).right(one.body)


def test_every_hidden_line_is_cut_between_tokens_and_fits_back(tokenizer: Tokenizer) -> None:
    for one in SET:
        gap = line_gap(one)
        assert gap == line_gap(one), "the same line every day"
        assert gap.before + gap.hidden + gap.after == one.body and gap.hidden.strip()
        whole = tokenizer.encode(gap.prefix + gap.hidden + gap.suffix).ids
        assert [token for part in (gap.prefix, gap.hidden, gap.suffix) for token in tokenizer.encode(part).ids] == whole
        assert gap.right(gap.hidden)


SOURCE = '''<|code|>import os

class Box:
    """A box."""

    @property
    def size(self):
        """How much."""

        total = self.a + self.b
        return total * 2

    def empty(self): pass

    def told(self):
        """Nothing else."""

def outer(x,
          y=(1, 2)):
    @wraps(x)
    def inner():
        return [x]
    return inner

async def last(stream):
    async for line in stream:
        yield line'''


def found(tokenizer: Tokenizer, name: str = "idlelib/box.py") -> list[HeldOutFunction]:
    return list(functions.functions_of(Document(name=name, lines=tuple(SOURCE.split("\n"))), tokenizer))


def test_functions_are_cut_into_header_and_body(tokenizer: Tokenizer) -> None:
    made = {one.name: one for one in found(tokenizer)}
    assert set(made) == {"Box.size", "outer", "last"}, "a body is more than a docstring, on lines of its own"
    assert made["Box.size"].header == '    @property\n    def size(self):\n        """How much."""'
    assert made["Box.size"].body == "\n\n        total = self.a + self.b\n        return total * 2"
    assert made["Box.size"].context == 'import os\n\nclass Box:\n    """A box."""\n\n'
    assert made["Box.size"].tail.startswith("\n\n    def empty(self): pass\n")
    assert made["outer"].header.endswith("y=(1, 2)):") and made["outer"].body.startswith("\n    @wraps(x)\n")
    assert made["last"].tail == "\n"
    assert not found(tokenizer, "ast.py"), "a file that is trained on gives none"
    text = SOURCE.removeprefix("<|code|>")
    for one in made.values():
        assert one.context + one.header + one.body + one.tail in text + "\n"


def test_what_training_has_seen_word_for_word_is_no_question(tokenizer: Tokenizer) -> None:
    made = found(tokenizer)
    stream = np.array(tokenizer.encode("x = 1" + made[1].body + "\n\n" + made[1].body).ids, np.uint16)
    kept = list(functions.unseen([*made, *made], tokenizer, [stream[:5], stream]))
    assert kept == [made[0], made[2]], "each body once"


def test_a_library_gives_its_held_out_functions_and_those_of_the_test_split_first(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tested = next(f"m{number}.py" for number in range(2000) if functions.held_back(f"m{number}.py") == "test")
    body = "def {0}(x):\n    # a remark\n    return x.{0}(len(x), 17)\n"
    for name in ("idlelib/a.py", "idlelib/idle_test/b.py", "ast.py", tested):
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body.format(f"f{path.stem}") + "\n" + body.format("known") + "\ndef g(): pass\n")
    with pytest.raises(BadInput, match="no data in"):
        functions.collect(tmp_path / "data", tmp_path / "lib")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    tokenizer.save(str(tmp_path / "data" / "tokenizer.json"))
    seen = Document(name="ast.py", lines=("def known(x):", "    return x.known(len(x), 17)"))
    save_stream(tokenise([seen], tokenizer), tmp_path / "data" / "library.train.npz")
    made = functions.collect(tmp_path / "data", tmp_path / "lib")
    assert [(one.origin, one.held) for one in made] == [(tested, "test"), ("idlelib/a.py", "left_out")]
    assert [one.name for one in made] == [f"f{tested[:-3]}", "fa"]
    assert made[1].header == "def fa(x):" and made[1].body == "\n\n    return x.fa(len(x), 17)"
    assert functions.collect(tmp_path / "data", tmp_path / "lib", functions_max=1) == made[:1]


def test_a_set_survives_its_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = found(tokenizer)
    functions.write_functions(made, tmp_path / "new" / "set.parquet")
    assert [asdict(one) for one in read_functions(tmp_path / "new" / "set.parquet")] == [asdict(one) for one in made]
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize(("source", "parses"), [
    ("def f(x):\n    return x", True),
    ("    def f(self):\n        return 1", True),
    ("    @property\n    async def f(self):\n        await x", True),
    ('def f():\n    """Only this."""', False),
    ('def f():\n    """This."""\n    pass', True),
    ("def f():\n", False),
    ("def f():\n    return (", False),
    ("def f():\n    x = '", False),
    ("x = 1", False),
    ("def f():\n    return 1\x00", False),
    ("def f():\n    return '\ud800'", False),
    ("def f():\n    return " + "(" * 300 + ")" * 300, False),
    ("def f():\n    return " + "-" * 5000 + "1", False),
    ("def f():\n    return '" + "a" * SOURCE_CHARS_MAX + "'", False),
    ("def f():\n    return '\\d'", True),
])  # fmt: skip
def test_what_parses_is_a_function_and_nothing_breaks_the_parser(source: str, parses: bool) -> None:
    if "-" * 9 in source:    # whether so deep a tree is refused is the interpreter's own affair
        function_shape(source)
    else:
        assert function_parses(source) == parses


def test_the_shape_forgets_formatting_and_nothing_else() -> None:
    shape = function_shape("def f(a):\n    return a+( 1 )")
    assert shape == function_shape("def f(a):\n    return (a + 1)\n")
    assert shape != function_shape("def f(a):\n    return a + 2")
    assert function_shape("def f(a):\n    break") is None, "it parses, and does not compile"


def test_nothing_that_was_generated_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(eval_code.__file__).read_text() + Path(functions.__file__).read_text()
    source += Path(function_parses.__code__.co_filename).read_text()
    called = {node.func.id for node in ast.walk(ast.parse(source))
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
    assert not called & {"exec", "eval", "__import__"}
    gap = Gap(function=SET[0], before="", hidden="", after="")
    for text in ("\n    raise SystemExit(1)", "\n    __import__('os').abort()"):
        gap.parses(text)
        gap.right(text)


def test_a_copied_line_is_the_one_above_or_below() -> None:
    one = HeldOutFunction(name="f", origin="x", held="test", licence="", context="", header="def f():",
                          body="\n    a\n    b", tail="")  # fmt: skip
    assert neighbour(Gap(function=one, before="\n    a", hidden="\n    b", after="")) == "\n    a"
    assert neighbour(Gap(function=one, before="", hidden="\n    a", after="\n    b")) == "\n    b"


def test_the_interval_of_a_rate_is_the_known_one() -> None:
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert clopper_pearson(10, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert clopper_pearson(4, 20) == pytest.approx((0.0573, 0.4366), abs=1e-4)
    assert clopper_pearson(350, 500) == pytest.approx((0.6577, 0.7399), abs=1e-4)
    with pytest.raises(ValueError, match="3 hits in 2"):
        clopper_pearson(3, 2)


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = TextScoreNetwork(SHAPE, 2048, never=UNWRITTEN).state_dict()
    return {name: torch.randn_like(tensor) * 0.3 for name, tensor in state.items()}


def write_twin(root: Path, shape: TransformerConfig = SHAPE, *, finished: bool = True) -> Path:
    folder = root / "nano-twin" / "twin-seed-7"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"network": shape.to_dict(), "vocab_size": 2048}))
    state = TextScoreNetwork(shape, 2048, never=UNWRITTEN).state_dict()
    write_tensors({name: torch.randn_like(one) * 0.3 for name, one in state.items()}, folder / "best.safetensors", {})
    if finished:
        (folder / "result.json").write_text("{}")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A home whose model for code has random weights; few functions, no twin, nothing in the ledger."""
    monkeypatch.setenv("AIOS_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("AIOS_EXPERIMENTS", str(tmp_path / "experiments"))
    monkeypatch.delenv("AIOS_DATA", raising=False)
    monkeypatch.setattr(training_roots, "checkout", lambda: tmp_path)
    monkeypatch.setattr(eval_code, "Config", tiny_config)
    monkeypatch.setattr(eval_code, "read_functions", lambda: few())
    monkeypatch.setattr(router, "REPAIRS", 1)      # random weights write nothing that could be mended
    places = Places.find()
    places.create()
    spec = {"model_type": "aios-score-network", "transformer": SHAPE.to_dict(), "vocab_size": 2048, "length_max": 256,
            "aios": {"kind": "diffusion", "modalities": ["text", "code"]},
            "tokens": {"mask": 1, "eot": 2, "code": 15, "never": list(UNWRITTEN)}}
    write_model(places.models / "tiny", spec, random_weights(1), Tokenizer.from_file(str(vocabulary_path(2048))))
    return places


def tiny_config() -> object:
    from aios.config import parse

    return parse(b'[model]\ncode = "tiny"\n')


def few() -> list[HeldOutFunction]:
    short = [one for one in SET if len(one.body) < 60]
    return [*[one for one in short if one.held == "test"][:1], *[one for one in short if one.held != "test"][:3]]


def rows(report: Report) -> dict[str, float | None]:
    return {row.metric: row.value for row in report.rows}


def test_without_a_twin_its_rows_are_null_and_the_others_stand(home: Places, tmp_path: Path) -> None:
    report = eval_code.run(LabOptions(seed=3, plot=tmp_path / "out"))
    told = {row.metric: row for row in report.rows}
    assert {"code_parse_rate", "code_parse_rate_shuffled", "code_parse_rate_real", "code_line_infill_rate",
            "code_line_infill_rate_copy", "code_line_infill_rate_sampled", "fim_line_infill_rate",
            "infill_vs_fim", "code_parse_rate_draft", "code_line_infill_rate_draft"} == set(told)  # fmt: skip
    assert told["code_parse_rate_real"].value == 1.0
    for name in ("code_parse_rate", "code_line_infill_rate"):
        assert told[name].n == 4 and told[name].interval is not None and told[name].value is not None
    assert told["infill_vs_fim"].value is None and "aios train run nano-twin" in (told["infill_vs_fim"].reason or "")
    assert told["infill_vs_fim"].missed and report.exit_code == 1
    samples = [json.loads(line) for line in (tmp_path / "out" / eval_code.SAMPLES).read_text().splitlines()]
    assert len(samples) == 4 and all(
        {"body", "body_parses", "line", "line_equal", "hidden_line"} <= set(one) for one in samples)
    again = eval_code.run(LabOptions(seed=3, plot=tmp_path / "out"))
    assert rows(again) == rows(report) and list(report.data) == ["heldout_functions.parquet"]


def test_a_model_that_writes_no_code_has_null_rows_with_the_reason(
    home: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.models / "tiny" / "config.json").unlink()
    report = eval_code.run(LabOptions(seed=3))
    assert all(row.value is None and row.reason for row in report.rows) and report.exit_code == 1


class Sure(Twin):
    """A twin that knows every line by heart."""

    def fill(self, prefix: str, hidden: str, suffix: str) -> tuple[str, str]:
        return "", hidden


def test_the_twin_fills_the_same_gaps_and_the_better_of_its_ways_counts(
    home: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_twin(tmp_path / "runs")
    measured = rows(eval_code.run(LabOptions(seed=3, quick=True, plot=tmp_path / "out")))
    assert measured["fim_line_infill_rate"] == 0.0 and measured["infill_vs_fim"] is None, "nothing to divide by"
    monkeypatch.setattr(code_twin, "Twin", Sure)
    monkeypatch.setattr(Sure, "find", classmethod(lambda cls, roots: Sure.open(next(roots.runs("nano-twin")))))
    report = eval_code.run(LabOptions(seed=3, quick=True, plot=tmp_path / "out"))
    told = {row.metric: row for row in report.rows}
    assert told["fim_line_infill_rate"].value == 1.0 and told["infill_vs_fim"].peer_value == 1.0
    assert told["infill_vs_fim"].value == measured["code_line_infill_rate_draft"]
    assert "until its end sentinel 0, told the length 4" in (told["fim_line_infill_rate"].reason or "")
    assert set(report.checkpoints) == {"tiny", "nano-twin"}


def test_the_recorded_twin_stands_in_where_it_is_of_the_same_model_and_set(home: Places, tmp_path: Path) -> None:
    report = eval_code.run(LabOptions(seed=3, plot=tmp_path / "out"))
    for index, data in enumerate(({"other": "set"}, dict(report.data))):
        row = {"metric": "fim_line_infill_rate", "value": 0.5, "unit": "", "better": "higher", "kind": "live"}
        Ledger.here().append(Entry(
            id=f"run-{index}", command="eval code", argv=("aios",), commit=None, seed=1, quick=False, machine={},
            started="", duration_s=1.0, data=data, checkpoints=report.checkpoints, rows=(row,)))
        told = {row.metric: row for row in eval_code.run(LabOptions(seed=3, plot=tmp_path / "out")).rows}
        if index == 0:
            assert told["infill_vs_fim"].value is None
    assert told["infill_vs_fim"].value == (told["code_line_infill_rate_draft"].value or 0) / 0.5
    assert told["infill_vs_fim"].kind == told["fim_line_infill_rate"].kind == "ledger"
    assert told["infill_vs_fim"].run == "run-1"


def test_only_a_finished_twin_of_the_same_size_counts(home: Places, tmp_path: Path) -> None:
    roots = TrainingRoots(folders=(tmp_path / "runs",))
    folder = write_twin(tmp_path / "runs", TransformerConfig.of(16, 2, head_dim=8, time_conditioning=False),
                        finished=False)  # fmt: skip
    reason = Twin.find(roots)
    assert isinstance(reason, str) and "not finished" in reason
    (folder / "result.json").write_text("{}")
    assert isinstance(Twin.find(roots), Twin)
    told = {row.metric: row for row in eval_code.run(LabOptions(seed=3, quick=True, plot=tmp_path / "out")).rows}
    assert "no twin of it" in (told["infill_vs_fim"].reason or "")


def scripted(twin: Twin, script: Sequence[int]) -> tuple[str, str]:
    """What a twin makes of a sequence of likeliest tokens, an end among them."""
    class Script(Twin):
        def _likeliest(self, given: list[int], written: list[int]):
            for token in script:
                yield token, token == END_ID

    made = Script(network=twin.network, tokenizer=twin.tokenizer, sha256="")
    return made.fill("def f():", "\n    return x", "\n")


def test_the_twin_ends_by_itself_or_at_the_known_length(tmp_path: Path) -> None:
    twin = Twin.open(write_twin(tmp_path))
    ids = twin.tokenizer.encode("\n    return x")
    assert len(ids) == 3
    other = twin.tokenizer.encode(" y")[0]
    end, longer = END_ID, [*ids, other, other, other, other]
    assert scripted(twin, [*ids, end]) == ("\n    return x", "\n    return x")
    assert scripted(twin, [*longer])[0] == "\n    return x y y y", "it is given up at twice the length"
    assert scripted(twin, [*longer])[1] == "\n    return x"


def test_the_twin_reads_a_gap_as_it_was_told_them_in_training(tmp_path: Path) -> None:
    twin = Twin.open(write_twin(tmp_path))
    prefix, hidden, suffix = (twin.tokenizer.encode(text) for text in ("def f():", "\n    return x", "\n\nx = 1"))
    row = torch.tensor([prefix + hidden + suffix + [EOT_ID] * 4])
    cuts = torch.tensor([[len(prefix), len(prefix + hidden)]])
    batch = Autoregressive().batch(middle_last(row, cuts), torch.Generator(), training=True)
    read = []

    class Listening(Twin):
        def _likeliest(self, given: list[int], written: list[int]):
            read.extend(given)
            yield from ((token, token == END_ID) for token in [*hidden, END_ID])

    Listening(network=twin.network, tokenizer=twin.tokenizer, sha256="").fill("def f():", "\n    return x", "\n\nx = 1")
    assert [*read, *hidden] == batch.inputs[0].tolist()
    assert [*hidden, END_ID] == batch.targets[0, -len(hidden) - 1 :].tolist()


def test_the_twins_next_token_is_the_likeliest_that_may_stand_there(tmp_path: Path) -> None:
    twin = Twin.open(write_twin(tmp_path))
    given, written = [EOT_ID, *twin.tokenizer.encode("def f(x):")], twin.tokenizer.encode("\n    return")
    token, ends = next(twin._likeliest(given, written))
    read = Autoregressive().reader(twin.network, 0, torch.device("cpu"))
    with torch.inference_mode():
        logits = twin.network.logits(read(torch.tensor([given + written])))[0, -1]
    order = [one for one in logits.argsort(descending=True).tolist() if one not in code_twin.BARRED]
    assert ends == (order[0] == END_ID) and token == next(one for one in order if one != END_ID)
