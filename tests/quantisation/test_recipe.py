"""From a model to a compressed one: what is kept, what is packed, and that it still works."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace

import pytest
import torch

from aios.config import Places
from aios.contracts import PackedTensor
from aios.errors import BadInput, ModelCorrupt
from aios.quantisation.formats import Format
from aios.quantisation.recipe import Recipe, bits_per_weight, compressed, plan
from aios.quantisation.release import compress, default_name
from aios.quantisation.sensitivity import weighted_error
from aios.quantisation.subject import Subject
from aios.store import models
from aios.store.quant import Method
from aios.store.record import TENSORS
from tests.quantisation.conftest import TEXTS

FOUR = Recipe(form=Format(bits=4, group_size=32))
NAMES = ("tiny-encoder", "tiny-chat", "tiny-untied", "tiny-text")


def nothing(label: str, done: float) -> None:
    assert 0 <= done <= 1, label


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq"])
def test_matrices_are_packed_and_the_rest_is_halved(home: Places, name: str, method: Method) -> None:
    subject = Subject.open(models.find(name, home))
    recipe = replace(FOUR, method=method)
    batches = subject.batches(TEXTS)
    done = {stored: tensor for stored, tensor, _ in
            compressed(subject, recipe, plan(subject, recipe, batches, nothing), batches, nothing)}
    assert set(done) == set(subject.tensors)
    for stored, tensor in done.items():
        source = subject.plain(stored)
        if source.ndim == 2 and min(source.shape) >= 32:
            assert isinstance(tensor, PackedTensor) and tensor.shape == tuple(source.shape)
        else:
            assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float16


@pytest.mark.parametrize("name", NAMES)
def test_eight_bits_barely_change_the_hidden_states(home: Places, scratch: Places, name: str) -> None:
    record = models.find(name, home)
    done = compress(record, Recipe(form=Format(bits=8, group_size=32)), texts=TEXTS, places=scratch)
    before, after = Subject.open(record), Subject.open(done.record)
    for batch in before.batches(TEXTS):
        a, b = before.network.hidden(batch), after.network.hidden(batch)   # type: ignore[operator]
        assert float((a - b).norm() / a.norm()) < 0.03


def test_gptq_leaves_less_output_error_than_rounding() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(256, 64) @ torch.randn(64, 64)
    weights, gram = torch.randn(48, 64), inputs.T @ inputs / 256
    from aios.quantisation.recipe import quantised
    from aios.store.quant import ArrowQuant

    errors = [weighted_error(weights, weights - ArrowQuant.dequantize(
        quantised(weights, Format(bits=2, group_size=32), method, gram)), gram) for method in ("gptq", "rtn")]
    assert errors[0] < errors[1] / 2


def test_a_compressed_model_says_what_it_derives_from(home: Places, scratch: Places) -> None:
    record = models.find("tiny-encoder", home)
    source = hashlib.sha256((record.path / TENSORS).read_bytes()).hexdigest()
    done = compress(record, FOUR, texts=TEXTS, places=scratch)
    weights = models.open_tensors(done.record)
    assert done.record.name == "tiny-encoder-int4"
    assert done.record.release != record.release
    assert (done.record.derived_from, weights.derived_from) == (record.release, record.release)
    assert record.release in weights.card and "gptq, int4 g32" in weights.card
    assert (done.record.path / "README.md").read_text() == weights.card
    assert (done.record.path / "tokenizer.json").read_bytes() == (record.path / "tokenizer.json").read_bytes()
    assert hashlib.sha256((record.path / TENSORS).read_bytes()).hexdigest() == source
    weights.verify()


def test_the_same_recipe_gives_the_same_release(home: Places, scratch: Places) -> None:
    record = models.find("tiny-chat", home)
    releases = {compress(record, FOUR, name=name, texts=TEXTS, places=scratch).record.release for name in ("a", "b")}
    assert len(releases) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_of_bits_is_kept_and_used(home: Places, scratch: Places, name: str) -> None:
    record = models.find(name, home)
    recipe = Recipe(form=Format(bits=2, group_size=64), bits_mean_max=6.0)
    done = compress(record, recipe, texts=TEXTS, places=scratch)
    assert bits_per_weight(done.outcomes) <= 6.0
    assert len({outcome.form for outcome in done.outcomes}) > 2   # plain ones are None
    assert sum(outcome.bytes for outcome in done.outcomes) == \
        sum(entry.bytes for entry in models.open_tensors(done.record).records.values())


def test_a_budget_of_bytes_holds_for_the_file(home: Places, scratch: Places) -> None:
    record = models.find("tiny-chat", home)
    most = 60_000
    done = compress(record, Recipe(form=Format(bits=2, group_size=64), bytes_max=most), texts=TEXTS, places=scratch)
    assert (done.record.path / TENSORS).stat().st_size <= most


def test_matrices_of_one_layer_share_a_format(home: Places) -> None:
    subject = Subject.open(models.find("tiny-encoder", home))
    batches = subject.batches(TEXTS)
    formats = plan(subject, Recipe(form=Format(bits=2, group_size=64), bits_mean_max=6.0), batches, nothing)
    for layer in range(2):
        parts = [f"encoder.layer.{layer}.attention.self.{part}.weight" for part in ("query", "key", "value")]
        assert len({formats[part] for part in parts}) == 1


def test_a_residual_lowers_the_error(home: Places, scratch: Places) -> None:
    record = models.find("tiny-encoder", home)
    plain, repaired = (
        compress(record, Recipe(form=Format(bits=2, group_size=32, rank=rank)), name=f"r{rank}", texts=TEXTS,
                 places=scratch) for rank in (0, 8))
    errors = [next(o.relative_error for o in done.outcomes if o.name.endswith("0.output.dense.weight"))
              for done in (plain, repaired)]
    assert errors[1] < errors[0]


def test_a_compressed_model_can_be_compressed_again(home: Places, scratch: Places) -> None:
    first = compress(models.find("tiny-text", home), FOUR, texts=TEXTS, places=scratch)
    again = compress(first.record, Recipe(form=Format(bits=2, group_size=32)), texts=TEXTS, places=scratch)
    assert again.record.derived_from == first.record.release


def test_a_name_that_is_taken_and_weights_that_are_not_finite_are_refused(home: Places, scratch: Places) -> None:
    record = models.find("tiny-encoder", home)
    with pytest.raises(BadInput, match="installed already"):
        compress(record, FOUR, name="tiny-chat", texts=TEXTS, places=home)
    subject = Subject.open(record)
    tensors = {name: subject.plain(name).clone() for name in subject.tensors}
    tensors["encoder.layer.0.output.dense.weight"][3, 4] = torch.nan
    broken = Subject(subject.kind, subject.spec, tensors)
    recipe = replace(FOUR, method="rtn")
    with pytest.raises(BadInput):
        list(compressed(broken, recipe, plan(broken, recipe, [], nothing), [], nothing))


def test_a_failure_leaves_nothing_behind(home: Places, scratch: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("aios.quantisation.release.seal", fail)
    with pytest.raises(OSError, match="disk full"):
        compress(models.find("tiny-encoder", home), FOUR, texts=TEXTS, places=scratch)
    assert [path.name for path in scratch.models.iterdir()] == [".lock"]


def test_nothing_is_made_of_a_source_that_has_rotted(home: Places, scratch: Places) -> None:
    record = models.find("tiny-encoder", home)
    folder = shutil.copytree(record.path, scratch.models / "tiny-encoder")
    with (folder / TENSORS).open("r+b") as file:
        file.seek(models.open_tensors(record).records["embeddings.LayerNorm.weight"].offset)
        file.write(b"\x01")
    with pytest.raises(ModelCorrupt, match=r"embeddings\.LayerNorm\.weight"):
        compress(replace(record, path=folder), FOUR, name="new", texts=TEXTS, places=scratch)
    assert "new" not in models.names(scratch)
    assert not list(scratch.models.glob(models.STAGING + "*"))


def test_names_follow_from_recipes() -> None:
    assert default_name("m", FOUR) == "m-int4"
    assert default_name("m", replace(FOUR, bytes_max=8_500_000)) == "m-8.5mb"
    assert default_name("m", replace(FOUR, bits_mean_max=2.6)) == "m-2.6bit"
