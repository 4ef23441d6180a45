"""The ONNX peer of the encoder is the same network as ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aios.lab import peer_onnx
from aios.lab.peer_onnx import OnnxEncoder
from aios.model.config import EncoderConfig
from aios.model.encoder import EncoderModel

CONFIG = EncoderConfig(vocab_size=50, hidden_dim=32, num_layers=2, num_heads=4, ffn_dim=64, positions_max=40,
                       num_types=2, norm_eps=1e-12)
ROWS = ([3, 9, 27, 31, 4], [3, 4], list(range(40)))


class Letters:
    """A tokenizer whose texts are the numbers of rows."""

    def encode_batch(self, texts: list[str]) -> list[object]:
        return [type("Encoding", (), {"ids": ROWS[int(text)]})() for text in texts]


def test_the_graph_gives_the_vectors_of_the_network_whatever_it_is_padded_with() -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    network = EncoderModel(CONFIG).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    state = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}
    model = peer_onnx._model(onnx, CONFIG, state).SerializeToString()
    peer = OnnxEncoder(start=lambda threads: runtime.InferenceSession(model, providers=["CPUExecutionProvider"]),
                       tokenizer=Letters(), precision="f32", version="1.0", threads=1, batch_size=2)
    vectors = peer.encode(["0", "1", "2"])
    np.testing.assert_allclose(vectors, network.encode(ROWS).numpy(), atol=2e-5)
