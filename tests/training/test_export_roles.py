"""config.json names the tokens of turns where the data taught them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from aios.text.turns import Roles
from aios.training.data import Corpus, tokenise
from aios.training.export import PLAIN, ROLES, Trained
from aios.training.sources import Document
from aios.training.vocabulary import vocabulary_path

TALE = "The fox ran home.\nIt was late."
SETTINGS = {"network": {}, "vocab_size": 2048, "loop": {"lengths": [16], "objectives": {"spans": 1.0}}}


def learned(data: Path, *texts: str) -> Trained:
    """A run over one source a text."""
    shutil.copyfile(vocabulary_path(2048), data / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    streams = {str(index): tokenise([Document(name="0", lines=(text,))], tokenizer)
               for index, text in enumerate(texts)}
    corpus = Corpus(train=streams, held_out={}, weights=dict.fromkeys(streams, 1 / len(streams)))
    return Trained(folder=data, settings=SETTINGS, tensors={}, step=0, data=data, corpus=corpus)


@pytest.mark.parametrize(("texts", "roles"), [
    ((TALE,), ()),
    ((TALE, "<|user|>Hi.<|assistant|>Hello."), ("user", "assistant")),
    (("<|user|>Light on", "Hm.<|assistant|>Hello."), ("user", "assistant")),
    (("<|system|>Be brief.<|user|>Hi.<|assistant|>Hello.<|result|>4",), ("system", "user", "assistant", "tool")),
    (("<|user|>Light on<|call|>{}",), ()),
])
def test_roles_are_those_that_the_data_uses(tmp_path: Path, texts: tuple[str, ...], roles: tuple[str, ...]) -> None:
    run = learned(tmp_path, *texts)
    spec = run.specification(PLAIN)
    assert spec["tokens"].get("roles", {}) == {role: run.token(ROLES[role]) for role in roles}
    assert set(Roles.read(spec).ids) == set(roles)
