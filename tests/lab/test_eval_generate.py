"""The evaluation of the language model, on a model small enough for a test."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aios.lab import eval_generate
from aios.lab.report import LabOptions
from aios.messages import Generate, State

transformers = pytest.importorskip("transformers")


class Language:
    """As much of an opened language model as the evaluation's equality needs."""

    def __init__(self) -> None:
        from aios.model.language import LanguageModel

        config = transformers.LlamaConfig(vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
                                          num_key_value_heads=2, intermediate_size=80, max_position_embeddings=64)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        self.spec, self.tensors = model.config.to_dict(), model.state_dict()
        self.network = LanguageModel.open(self.spec, self.tensors)


def test_equality_is_judged_position_by_position() -> None:
    from aios.lab.peer_language import PeerLanguage

    language: Any = Language()
    peer = PeerLanguage.open(language.spec, language.tensors)
    assert peer is not None
    prompts = [[1, 2, 3], [7], [90, 5, 5, 5]]
    row, fast, ties = eval_generate._equality(language, language, peer, prompts, LabOptions(quick=True))
    assert (row.value, row.ok, fast.value, fast.must) == (1.0, True, 1.0, None)
    assert row.n is not None and row.n + (ties.value or 0) == eval_generate.TOKENS_QUICK
    peer.write(prompts, 3)

    class Other:
        def judged(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
            tokens, leads = peer.judged(prompt, count)
            return [(token + 1) % 97 if at == 5 else token for at, token in enumerate(tokens)], leads

        version = "1"

    wrong: Any = Other()
    row, _, _ = eval_generate._equality(language, language, wrong, prompts, LabOptions(quick=True))
    assert row.value is not None and row.value < 1.0 and row.missed


def test_without_the_model_every_must_is_null_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    report = eval_generate.run(LabOptions(quick=True))
    assert [(row.metric, row.value, row.missed) for row in report.rows] == [
        ("greedy_equal", None, True), ("generate_vs_transformers", None, True)]
    assert "aios models pull smollm2" in (report.rows[0].reason or "")


def test_without_the_peer_the_musts_are_null_and_our_speed_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_generate, "write", lambda language, texts, count: None)
    language: Any = Language()
    language.prompt = lambda request: [1, 2] if isinstance(request, Generate) else State(step=0, steps=0)
    rows = {row.metric: row for row in eval_generate.rows_of(language, language, None, LabOptions(quick=True))}
    assert rows["greedy_equal"].value is None and rows["generate_vs_transformers"].value is None
    assert "pip install" in (rows["generate_vs_transformers"].reason or "")
    assert (rows["tokens_per_s_b16"].value or 0) > 0
