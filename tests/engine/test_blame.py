"""A plugin's failure is the plugin's: it is named and taken out, and the engine goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aios.config import Config, Places
from aios.contracts import Canvas, Condition, Logits, Modality, Prediction, SamplingDefaults, Segment
from aios.diffusion.schedules import LogLinear
from aios.engine.arrow import ArrowEngine
from aios.engine.blame import blame
from aios.errors import BadInput, ModelError, NoHead, PluginError
from aios.hookspecs import hookimpl
from aios.messages import Part
from aios.registry.registry import Registry

VOCABULARY, MASK = 5, 4


class Head:
    """Writes random digits; `broken` names what goes wrong, `error` how."""

    modality, process = "text", "absorbing"

    def __init__(self, broken: str = "", error: BaseException | None = None) -> None:
        self.broken, self.error = broken, error
        self.model = SimpleNamespace(name="digits", release="0", intact=lambda wait: None)
        self.schedule = LogLinear()
        self.defaults = SamplingDefaults(sampler="ancestral", steps_per_token=1.0, temperature=1.0, length=3)

    def _do(self, what: str) -> None:
        if what == self.broken and self.error is not None:
            raise self.error

    def open(self, workbench: Any, model: str | None) -> Head:
        self._do("open")
        return self

    def encode(self, request: Any, length: int) -> tuple[Canvas, Condition]:
        self._do("encode")
        ids = torch.full((1, length), MASK)
        editable = torch.ones(1, length, dtype=torch.bool)
        segment = Segment(modality=Modality.TEXT, x=ids, t=editable.float(), editable=editable,
                          positions=torch.arange(length)[None, :, None], mask_id=MASK)
        return Canvas(segments=(segment,)), Condition.none()

    def denoiser(self, canvas: Canvas, condition: Condition, adapters: Any = ()) -> Prediction:
        self._do("denoiser")
        values = torch.zeros(1, canvas.segments[0].x.shape[1] + (self.broken == "shape"), VOCABULARY)
        if self.broken == "nan":
            values[0, 0, 0] = torch.nan
        return Prediction(segments=() if self.broken == "segments" else (Logits(values=values),))

    def decode(self, canvas: Canvas) -> list[Part]:
        self._do("decode")
        return [Part(mime="text/plain", text="".join(map(str, canvas.segments[0].x[0].tolist())))]

    def pieces(self, canvas: Canvas) -> list[str | None]:
        self._do("pieces")
        return [None if token == MASK else str(token) for token in canvas.segments[0].x[0].tolist()]

    def usage(self, canvas: Canvas) -> tuple[int, int]:
        self._do("usage")
        return 0, canvas.segments[0].x.shape[1]


class Plugin:
    def __init__(self, head: Head) -> None:
        self.head = head

    @hookimpl
    def aios_heads(self) -> list[Head]:
        return [self.head]


def engine_with(head: Head, settings: Config, home: Places) -> tuple[ArrowEngine, Registry]:
    registry = Registry()
    registry.add("digits", Plugin(head))
    return ArrowEngine.open(settings, places=home, registry=registry), registry


def test_a_strangers_head_is_served_like_ours(settings: Config, home: Places) -> None:
    engine, _ = engine_with(Head(), settings, home)
    response = engine.diffuse("", seed=1)
    assert len(response.text) == 3
    assert set(response.text) <= set("0123")
    assert response.verdict.plugin == "digits"


@pytest.mark.parametrize("what", ["open", "encode", "denoiser", "pieces", "decode", "usage"])
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), StopIteration(), BaseException("panic")],
                         ids=lambda error: type(error).__name__)
def test_a_failing_plugin_is_named_and_taken_out(what: str, error: BaseException, settings: Config,
                                                 home: Places) -> None:
    engine, registry = engine_with(Head(what, error), settings, home)
    with pytest.raises(PluginError, match="digits") as caught:
        engine.diffuse("", seed=1)
    assert caught.value.details["plugin"] == "digits"
    assert type(error).__name__ in caught.value.message
    assert [failure.plugin for failure in registry.failures] == ["digits"]
    with pytest.raises(NoHead):
        engine.diffuse("", seed=1)
    assert engine.encode(["the cat"]).shape == (1, 16)


@pytest.mark.parametrize("what", ["shape", "segments"])
def test_a_prediction_that_breaks_the_contract_is_the_plugins_failure(what: str, settings: Config,
                                                                      home: Places) -> None:
    engine, _ = engine_with(Head(what), settings, home)
    with pytest.raises(PluginError, match="TypeError"):
        engine.diffuse("", seed=1)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (Head("nan"), ModelError),                                # weights may be damaged
        (Head("denoiser", MemoryError()), ModelError),            # the machine's fault
        (Head("denoiser", RuntimeError("DefaultCPUAllocator: can't allocate memory")), ModelError),
        (Head("encode", BadInput("too long")), BadInput),         # the caller's fault
    ],
    ids=["nan", "memory", "allocator", "input"],
)
def test_what_is_not_the_plugins_fault_does_not_take_it_out(head: Head, kind: type[Exception], settings: Config,
                                                            home: Places) -> None:
    engine, registry = engine_with(head, settings, home)
    with pytest.raises(kind) as caught:
        engine.diffuse("", seed=1)
    assert not isinstance(caught.value, PluginError)
    assert not registry.failures


def test_adopting_another_registry_serves_the_next_request(settings: Config, home: Places) -> None:
    engine, _ = engine_with(Head(), settings, home)
    engine.diffuse("", seed=1)
    engine.adopt(Registry())
    with pytest.raises(NoHead):
        engine.diffuse("", seed=1)


def test_an_interrupt_is_nobodys_fault() -> None:
    with pytest.raises(KeyboardInterrupt), blame("digits", "denoising"):
        raise KeyboardInterrupt
