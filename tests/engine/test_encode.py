"""Encoding sentences by the engine: unit vectors, batches, quanta."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from aios.config import Config, Places
from aios.engine import encoding
from aios.engine.arrow import ArrowEngine
from aios.errors import AiosError, BadInput, ModelError, ModelMissing
from aios.messages import TEXTS_PER_ENCODE_MAX, Encode, Response

TEXTS = ["the cat sat", "", "a dog ran in the park", "mat", "good morning " * 50, "unknown words", "the cat sat"]


def test_texts_become_unit_vectors_in_their_order(engine: ArrowEngine) -> None:
    together = engine.encode(TEXTS)
    assert together.dtype == np.float32
    assert together.shape == (len(TEXTS), 16)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    alone = np.concatenate([engine.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_no_texts_give_no_rows_of_full_width(engine: ArrowEngine) -> None:
    assert engine.encode([]).shape == (0, 16)


def test_a_text_is_cut_at_the_encoders_length(engine: ArrowEngine) -> None:
    np.testing.assert_array_equal(engine.encode(["the cat " * 11]), engine.encode(["the cat " * 40]))


@pytest.mark.parametrize("text", ["\x00", "\ud800", "\ud83d\ude00", "[SEP] [CLS]", "a" * (1 << 20), "a " * (1 << 19)])
def test_hostile_texts_are_encoded(engine: ArrowEngine, text: str) -> None:
    assert np.isfinite(engine.encode([text])).all()


def test_a_single_string_is_refused(engine: ArrowEngine) -> None:
    with pytest.raises(BadInput, match="list of texts"):
        engine.encode("the cat")


def test_the_answer_is_one_little_endian_tensor(engine: ArrowEngine) -> None:
    [answers] = [one for one in engine.encode_many([Encode(texts=("the cat", "mat"))]) if one]
    [part] = answers[0].parts
    assert part.mime == "application/vnd.aios.tensor;dtype=float32;shape=2,16"
    np.testing.assert_array_equal(np.frombuffer(part.data, "<f4").reshape(2, 16), engine.encode(["the cat", "mat"]))
    assert answers[0].verdict.model == "tiny-encoder"
    assert answers[0].usage.prompt_tokens == 4 + 3


def test_requests_of_a_batch_are_answered_as_if_alone(engine: ArrowEngine) -> None:
    requests = [Encode(texts=tuple(TEXTS)), Encode(texts=()), Encode(texts=("mat",))]
    answers: dict[int, Response | AiosError] = {}
    for finished in engine.encode_many(requests):
        assert not answers.keys() & finished.keys()
        answers |= finished
    for index, request in enumerate(requests):
        vectors = np.frombuffer(answers[index].parts[0].data, "<f4").reshape(-1, 16)
        np.testing.assert_allclose(vectors, engine.encode(request.texts), atol=1e-5)


def test_a_large_request_is_split_and_a_small_one_comes_first(engine: ArrowEngine) -> None:
    large, small = Encode(texts=("the cat sat",) * 1000), Encode(texts=("mat",))
    quanta = list(engine.encode_many([large, small]))
    assert len(quanta) >= 1000 / encoding.TEXTS_PER_QUANTUM_MAX
    assert set(quanta[0]) == {1}
    assert set(quanta[-1]) == {0}


def test_a_quantum_is_bounded_in_tokens() -> None:
    groups = list(encoding._quanta([256] * 64))
    assert max(len(group) for group in groups) * 256 <= encoding.TOKENS_PER_QUANTUM_MAX
    assert sorted(row for group in groups for row in group) == list(range(64))


def test_a_request_that_cannot_be_answered_holds_up_no_other(engine: ArrowEngine) -> None:
    requests = [Encode(texts=("a",), model="absent"), Encode(texts=("a",) * (TEXTS_PER_ENCODE_MAX + 1)),
                Encode(texts=("a",)), Encode(texts=("a",), model="tiny-text")]
    answers: dict[int, Response | AiosError] = {}
    for finished in engine.encode_many(requests):
        answers |= finished
    assert [type(answers[index]) for index in range(4)] == [ModelMissing, BadInput, Response, ModelError]


def test_a_missing_encoder_names_the_command_that_brings_it(home: Places) -> None:
    bare = ArrowEngine.open(Config(), places=home)
    with pytest.raises(ModelMissing) as caught:
        bare.encode(["a"])
    assert caught.value.remedy == "aios models pull minilm"


def test_opening_an_encoder_does_not_import_torchs_compiler(home: Places) -> None:
    program = (
        "import sys; from aios.config import Config, ModelSection, Places; from aios.engine.arrow import ArrowEngine\n"
        "engine = ArrowEngine.open(Config(model=ModelSection(encoder='tiny-encoder', threads=1)))\n"
        "engine.encode(['a']); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120,
                   env={**os.environ, "AIOS_HOME": str(home.config.parent)})
