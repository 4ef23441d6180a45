"""The matrices X^T X, their stages, and the texts they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aios.config import Places
from aios.errors import BadInput
from aios.quantisation import calibration
from aios.quantisation.calibration import default_texts, grams, linear_layers, read_texts, stages
from aios.quantisation.subject import Subject
from aios.store import models
from tests.quantisation.conftest import TEXTS


class Chain(nn.Module):
    """Two layers on one input, then one on their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last, self.unused = (nn.Linear(8, 8) for _ in range(4))
        self.calls = 0

    def hidden(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x) + self.second(x))
        self.calls += 1
        return y


def test_grams_are_the_mean_outer_products_of_the_inputs() -> None:
    network, batches = Chain(), [torch.randn(3, 5, 8), torch.randn(2, 4, 8)]
    found = grams(network, ["first", "last"], batches)
    rows = torch.cat([batch.reshape(-1, 8) for batch in batches])
    torch.testing.assert_close(found["first"], rows.T @ rows / 23)
    inner = network.first(rows) + network.second(rows)
    torch.testing.assert_close(found["last"], inner.T @ inner / 23)


def test_layers_that_read_one_tensor_share_one_matrix_and_the_rest_does_not_run() -> None:
    network = Chain()
    found = grams(network, ["first", "second"], [torch.randn(3, 5, 8)])
    assert found["first"] is found["second"]
    assert network.calls == 0


def test_a_layer_that_never_runs_has_no_matrix_and_hooks_do_not_stay() -> None:
    network = Chain()
    assert set(grams(network, ["first", "unused"], [torch.randn(3, 5, 8)])) == {"first"}
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_stages_hold_whole_layers_in_order_within_the_memory(home: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Subject.open(models.find("tiny-encoder", home)).network
    names = linear_layers(network, {name for name, _ in network.named_modules()})
    assert len(names) == 8
    assert stages(network, names) == [names[:4], names[4:]]
    assert stages(network, names, passes=1) == [names]
    monkeypatch.setattr(calibration, "GRAM_BYTES_MAX", 1)
    assert stages(network, names, passes=1) == [names[:4], names[4:]]


def test_the_package_brings_texts_of_its_own() -> None:
    texts = default_texts()
    assert len(texts) >= 100
    assert len(set(texts)) == len(texts)


def test_texts_are_the_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("\n".join([*TEXTS, "", "  "]))
    assert list(read_texts(file)) == TEXTS


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_without_texts_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "texts"
    file.write_bytes(content)
    with pytest.raises(BadInput, match="texts"):
        read_texts(file)
    with pytest.raises(BadInput, match="cannot be read"):
        read_texts(tmp_path / "absent")
