"""Laws of the text head's canvas, loaded through the registry as any plugin is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from aios.config import Config, Places
from aios.contracts import Canvas, Head, Modality, OpenModel, Prediction
from aios.errors import BadInput, ModelCorrupt, ModelError, ReleaseMismatch, UnknownArchitecture
from aios.messages import ChatMessage, Diffuse, Infill
from aios.model.lora import LowRank
from aios.model.score_network import TextScoreNetwork
from aios.model.transformer import TransformerConfig
from aios.registry.registry import Registry
from aios.testing import broken_laws, load

MASK, EOT, LENGTH_MAX, VOCABULARY = 1, 2, 40, 131
CODE = 3     # NUL in letters: no text holds it
USER, ASSISTANT = 4, 5     # the next letters that no text holds
NEVER = [0, MASK]


class Letters:
    """One token for each ASCII character, ids from 3."""

    vocab_size = VOCABULARY

    def encode(self, text: str) -> list[int]:
        return [3 + ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token - 3) for token in ids if token >= 3)

    def piece(self, token_id: int) -> str:
        return self.decode([token_id])

    def special(self, name: str) -> int:
        raise KeyError(name)


def model(**changes: Any) -> OpenModel:
    torch.manual_seed(0)
    config = TransformerConfig.of(16, 1, head_dim=8, time_conditioning=False)
    network = TextScoreNetwork(config, VOCABULARY, never=NEVER)
    spec = {"model_type": "aios-score-network", "transformer": config.to_dict(), "vocab_size": VOCABULARY,
            "length_max": LENGTH_MAX, "tokens": {"mask": MASK, "eot": EOT, "never": NEVER},
            "aios": {"sampling": {"sampler": "entropy", "steps_per_token": 0.25, "temperature": 0.5, "length": 9}}}
    fields = {"name": "letters", "kind": "diffusion", "release": "0", "path": Path(), "spec": spec,
              "tensors": network.state_dict(), "tokenizer": Letters()}
    return OpenModel(**{**fields, **changes})


class Bench:
    threads = 1

    def __init__(self, opened: OpenModel) -> None:
        self._opened = opened

    def model(self, name: str | None) -> OpenModel:
        return self._opened


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    torch.set_num_threads(1)   # two that wait for each other are slow on a busy machine
    root = tmp_path_factory.mktemp("home")
    registry = Registry.allowed(Config(), Places(config=root, data=root, state=root, cache=root, runtime=root))
    [head] = [head for plugin, head in registry.heads() if plugin == "text_head"]
    return head


@pytest.fixture(scope="module")
def opened(head: Head) -> Any:
    return head.open(Bench(model()), None)


def predict(opened: Any, canvas: Canvas) -> Prediction:
    with torch.inference_mode():
        return opened.denoiser(canvas, None)


def row(canvas: Canvas) -> str:
    return "".join({MASK: "_", EOT: "$"}.get(token) or chr(token - 3) for token in canvas.segments[0].x[0].tolist())


def written(canvas: Canvas, text: str) -> Canvas:
    """The canvas with its new part overwritten; "_" stays masked, "$" ends the text."""
    [segment] = canvas.segments
    x = segment.x.clone()
    x[segment.editable] = torch.tensor([{"_": MASK, "$": EOT}.get(one, ord(one) + 3) for one in text])
    return canvas.put(0, segment.fill(segment.editable, x))


def card(**changes: Any) -> LowRank:
    factors = {"layers.0.attention.out": (torch.ones(2, 16), torch.ones(16, 2))}
    return LowRank(**{"name": "card", "kind": "diffusion", "release": "0", "alpha": 1.0, "factors": factors,
                      **changes})


def test_a_card_of_the_very_model_is_worn_for_a_request(opened: Any) -> None:
    canvas, condition = opened.encode(Diffuse(prompt="cat"), 4)
    with torch.inference_mode():
        worn, bare = (opened.denoiser(canvas, condition, cards).segments[0].values for cards in ([card()], []))
        again = opened.denoiser(canvas, condition).segments[0].values
    assert torch.equal(bare, again)
    assert not torch.allclose(worn[:, 3:], bare[:, 3:])


@pytest.mark.parametrize("other", [{"kind": "ar"}, {"release": "1"}])
def test_a_card_of_another_model_is_refused(opened: Any, other: dict[str, str]) -> None:
    canvas, condition = opened.encode(Diffuse(prompt="cat"), 4)
    with pytest.raises(ReleaseMismatch):
        opened.denoiser(canvas, condition, [card(**other)])


@pytest.fixture(scope="module")
def coder(head: Head) -> Any:
    spec = dict(model().spec)
    spec["aios"] = {**spec["aios"], "modalities": ["text", "code"]}
    return head.open(Bench(model(spec=spec)), None)


def filled(head: Any, prefix: str, text: str, suffix: str) -> Canvas:
    canvas, _ = head.encode(Infill(prefix=prefix, suffix=suffix, modality="code"), len(text))
    return written(canvas, text)


def again(head: Any, canvas: Canvas, attempt: int) -> str | None:
    """The canvas with what is to be written anew masked."""
    where = head.flawed(canvas, attempt)
    [segment] = canvas.segments
    return None if where is None else row(canvas.put(0, segment.fill(where, torch.full_like(segment.x, MASK))))


def test_a_gap_in_code_is_written_anew_from_its_flawed_line_on_and_later_from_lines_above(coder: Any) -> None:
    assert coder.flawed(filled(coder, "def f(x):", "\n y=1\n z=2", "\n"), 0) is None
    flawed = filled(coder, "def f(x):", "\n y=1\n z=)\n w", "\n")
    assert [again(coder, flawed, attempt) for attempt in (0, 2, 3)] == [
        "def f(x):\n y=1________\n", "def f(x):\n y=1________\n", "def f(x):_____________\n"]


def test_an_open_end_and_plain_text_have_no_flaws(coder: Any) -> None:
    assert coder.flawed(filled(coder, "def f(x):", "\n y=)", ""), 0) is None
    canvas, _ = coder.encode(Infill(prefix="a", suffix="b"), 3)
    assert coder.flawed(written(canvas, "((("), 0) is None


def test_a_prompt_stands_before_the_masks(opened: Any) -> None:
    canvas, condition = opened.encode(Diffuse(prompt="cat"), 4)
    assert row(canvas) == "cat____"
    assert not condition.tokens
    [segment] = canvas.segments
    assert segment.positions[0, :, 0].tolist() == list(range(7))
    assert segment.t[0].tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_an_infill_stands_between_its_ends(opened: Any) -> None:
    canvas, _ = opened.encode(Infill(prefix="cat", suffix="mat"), 4)
    assert row(canvas) == "cat____mat"
    assert canvas.segments[0].masked.sum() == 4


def test_what_does_not_fit_is_cut_at_its_far_ends(opened: Any) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz" * 9
    canvas, _ = opened.encode(Diffuse(prompt=letters), 10)
    assert row(canvas) == letters[-30:] + "_" * 10
    canvas, _ = opened.encode(Infill(prefix=letters, suffix=letters), 10)
    assert row(canvas) == letters[-15:] + "_" * 10 + letters[:15]
    canvas, _ = opened.encode(Infill(prefix="ab", suffix=letters), 10)
    assert row(canvas) == "ab" + "_" * 10 + letters[:28]
    canvas, _ = opened.encode(Infill(prefix=letters, suffix="yz"), 10)
    assert row(canvas) == letters[-28:] + "_" * 10 + "yz"


@pytest.mark.parametrize(("prompt", "length", "fits"), [
    ("", 40, True), ("", 41, False), ("cat", 37, True), ("cat", 38, False), ("c" * 50, 24, True), ("c" * 50, 25, False),
])
def test_a_length_must_leave_room_for_what_is_given(opened: Any, prompt: str, length: int, fits: bool) -> None:
    if fits:
        canvas, _ = opened.encode(Diffuse(prompt=prompt), length)
        assert canvas.segments[0].x.shape[1] <= LENGTH_MAX
    else:
        with pytest.raises(BadInput, match="no room"):
            opened.encode(Diffuse(prompt=prompt), length)


def test_logits_at_masks_are_those_of_the_network(opened: Any) -> None:
    canvas, _ = opened.encode(Diffuse(prompt="cat"), 4)
    [logits] = predict(opened, canvas).segments
    with torch.inference_mode():
        expected = opened.network(canvas.segments[0].x)
    torch.testing.assert_close(logits.values[0, 3:], expected[0, 3:])
    assert (logits.values[0, 3:, NEVER] == -torch.inf).all()
    assert logits.values[0, 3:, EOT].isfinite().all()


def test_before_a_given_tail_the_text_cannot_end(opened: Any) -> None:
    canvas, _ = opened.encode(Infill(prefix="cat", suffix="mat"), 4)
    [logits] = predict(opened, canvas).segments
    assert (logits.values[canvas.segments[0].masked][:, EOT] == -torch.inf).all()


def test_only_what_is_new_is_decoded_up_to_the_end_of_text(opened: Any) -> None:
    canvas, _ = opened.encode(Diffuse(prompt="cat"), 6)
    [part] = opened.decode(written(canvas, " sat$x"))
    assert (part.mime, part.text) == ("text/plain", " sat")
    assert opened.usage(written(canvas, " sat$x")) == (3, 4)
    assert opened.usage(written(canvas, " sat!!")) == (3, 6)


def test_pieces_show_the_canvas_with_gaps_where_masked(opened: Any) -> None:
    canvas, _ = opened.encode(Infill(prefix="at", suffix="ma"), 4)
    assert opened.pieces(canvas) == ["a", "t", None, None, None, None, "m", "a"]
    assert opened.pieces(written(canvas, "_s_t")) == ["a", "t", None, "s", None, "t", "m", "a"]


def test_nothing_is_shown_behind_an_end_of_text(opened: Any) -> None:
    canvas, _ = opened.encode(Diffuse(prompt="at"), 4)
    assert opened.pieces(written(canvas, "_s$_")) == ["a", "t", None, "s", "", ""]


def test_hidden_states_are_projected_as_the_denoiser_does(opened: Any) -> None:
    canvas, _ = opened.encode(Diffuse(prompt="cat"), 4)
    with torch.inference_mode():
        logits = opened.project(opened.network.hidden(canvas.segments[0].x)).values
    torch.testing.assert_close(logits[0, 3:], predict(opened, canvas).segments[0].values[0, 3:])


def test_the_models_own_defaults_are_used(opened: Any, head: Head) -> None:
    assert (opened.defaults.sampler, opened.defaults.length) == ("entropy", 9)
    spec = {**model().spec, "aios": {}}
    assert head.open(Bench(model(spec=spec)), None).defaults.length > 0


def bilingual(*, learned: bool) -> OpenModel:
    """A model of text and code; its embedding of code is zero unless it was `learned`."""
    told = model()
    tensors = dict(told.tensors)
    rows = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    if not learned:
        rows[Modality.CODE] = 0.0
    tensors["backbone.modality.weight"] = rows
    spec = {**told.spec, "aios": {**told.spec["aios"], "modalities": ["text", "code"]},
            "tokens": {**told.spec["tokens"], "code": CODE}}
    return model(spec=spec, tensors=tensors)


def test_a_model_of_text_alone_writes_no_code(opened: Any) -> None:
    with pytest.raises(ModelError, match="letters writes text, no code"):
        opened.encode(Diffuse(prompt="cat", modality="code"), 4)


def test_code_begins_as_a_file_does_where_there_is_room(head: Head) -> None:
    both = head.open(Bench(bilingual(learned=False)), None)
    canvas, _ = both.encode(Diffuse(prompt="cat", modality="code"), 4)
    assert (row(canvas), canvas.segments[0].modality) == ("\0cat____", Modality.CODE)
    canvas, _ = both.encode(Infill(prefix="cat", suffix="mat", modality="code"), 4)
    assert row(canvas) == "\0cat____mat"
    canvas, _ = both.encode(Diffuse(prompt="c" * 50, modality="code"), 10)
    assert row(canvas) == "c" * 30 + "_" * 10
    canvas, _ = both.encode(Diffuse(prompt="cat"), 4)
    assert (row(canvas), canvas.segments[0].modality) == ("cat____", Modality.TEXT)


def talking() -> OpenModel:
    """A model that has learned conversations."""
    spec = model().spec
    return model(spec={**spec, "tokens": {**spec["tokens"], "roles": {"user": USER, "assistant": ASSISTANT}}})


def test_a_conversation_is_given_up_to_the_answer(head: Head) -> None:
    opened = head.open(Bench(talking()), None)
    turns = [ChatMessage(role="user", content="hi"), ChatMessage(role="assistant", content="yo"),
             ChatMessage(role="user", content="cat?")]
    canvas, _ = opened.encode(Diffuse(messages=tuple(turns)), 4)
    assert row(canvas) == "\1hi\2yo\1cat?\2____"
    canvas, _ = opened.encode(Diffuse(messages=(turns[0], turns[1], *turns)), 24)
    assert row(canvas) == "\1hi\2yo\1cat?\2" + "_" * 24
    with pytest.raises(BadInput, match="too little"):
        opened.encode(Diffuse(messages=tuple(turns)), 30)


def test_an_answer_ends_where_the_next_turn_begins(head: Head) -> None:
    opened = head.open(Bench(talking()), None)
    canvas, _ = opened.encode(Diffuse(messages=(ChatMessage(role="user", content="hi"),)), 6)
    answered = written(canvas, "yo\1hm_")
    assert (opened.decode(answered)[0].text, opened.usage(answered)) == ("yo", (4, 2))
    assert opened.pieces(answered)[-6:] == ["y", "o", "", "", "", ""]
    assert set(canvas.segments[0].end_ids) == {EOT, USER, ASSISTANT}


def test_no_turn_begins_before_a_given_tail(head: Head) -> None:
    opened = head.open(Bench(talking()), None)
    canvas, _ = opened.encode(Infill(prefix="cat", suffix="mat"), 4)
    [logits] = predict(opened, canvas).segments
    assert (logits.values[canvas.segments[0].masked][:, [EOT, USER, ASSISTANT]] == -torch.inf).all()


def test_a_model_that_learned_no_conversations_wants_a_prompt(opened: Any) -> None:
    with pytest.raises(BadInput, match="no conversations"):
        opened.encode(Diffuse(messages=(ChatMessage(role="user", content="hi"),)), 4)


@pytest.mark.parametrize("learned", [True, False])
def test_the_embedding_of_code_is_used_once_it_was_learned(head: Head, learned: bool) -> None:
    both = head.open(Bench(bilingual(learned=learned)), None)
    canvas, _ = both.encode(Diffuse(prompt="cat", modality="code"), 4)
    [logits] = predict(both, canvas).segments
    row_used = Modality.CODE if learned else Modality.TEXT
    with torch.inference_mode():
        expected = both.network.logits(both.network.hidden(canvas.segments[0].x, modality=row_used))
    torch.testing.assert_close(logits.values[0, 4:], expected[0, 4:])


@pytest.mark.parametrize(("change", "error"), [
    ({"aios": {"modalities": ["image"]}}, ModelCorrupt),
    ({"aios": {"modalities": []}}, ModelCorrupt),
    ({"tokens": {"mask": 1, "eot": 2, "code": 10**6, "never": []}}, ModelCorrupt),
    ({"tokens": {"mask": 1, "eot": 2, "never": [], "roles": {"user": 10**6}}}, ModelCorrupt),
    ({"model_type": "bert"}, UnknownArchitecture),
    ({"tokens": {"never": []}}, ModelCorrupt),
    ({"tokens": {"mask": 10**6, "eot": 2, "never": []}}, ModelCorrupt),
    ({"tokens": {"mask": -1, "eot": 2, "never": []}}, ModelCorrupt),
    ({"aios": {"sampling": {"sampler": "entropy"}}}, ModelCorrupt),
    ({"aios": {"sampling": {"sampler": "left_to_right", "steps_per_token": 1, "temperature": 1, "length": 8,
                            "block": -2}}}, ModelCorrupt),
    ({"aios": None}, ModelCorrupt),
    ({"length_max": 0}, ModelCorrupt),
    ({"length_max": "long"}, ModelCorrupt),
    ({"vocab_size": 7}, ModelCorrupt),
])
def test_a_model_that_does_not_fit_is_refused(head: Head, change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        head.open(Bench(model(spec={**model().spec, **change})), None)


def test_a_model_without_its_tokenizer_is_refused(head: Head) -> None:
    with pytest.raises(ModelCorrupt, match="no tokenizer"):
        head.open(Bench(model(tokenizer=None)), None)


def test_it_keeps_the_laws_of_every_head() -> None:
    assert broken_laws(load(Path(__file__).parents[1])) == []
