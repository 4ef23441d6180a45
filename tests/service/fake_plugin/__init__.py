"""A head for tests of the daemon: SLOW, HANG, RAISE or DIE at the start of the prompt is obeyed at every step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from aios.contracts import Adapter, Canvas, Condition, Modality, Prediction, Workbench
from aios.hookspecs import hookimpl
from aios.testing import FakeHead
from aios.testing.fake import OpenFakeHead


class ObedientHead(FakeHead):
    def open(self, workbench: Workbench, model: str | None) -> OpenObedientHead:
        return OpenObedientHead(self.text, Modality.of(self.modality), "obedient")


class OpenObedientHead(OpenFakeHead):
    def __init__(self, text: str, modality: Modality, model: str) -> None:
        super().__init__(text, modality, model)
        self._certain, self.denoiser = self.denoiser, self._obey

    def _obey(self, canvas: Canvas, condition: Condition, adapters: Sequence[Adapter] = ()) -> Prediction:
        [segment] = canvas.segments
        given = bytes(token for token in segment.x[0].tolist() if token < 256).decode(errors="replace")
        if given.startswith("SLOW"):
            time.sleep(0.02)
        if given.startswith("HANG"):
            time.sleep(600)
        if given.startswith("RAISE"):
            raise ValueError("told to")
        if given.startswith("DIE"):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._certain(canvas, condition, adapters)


@hookimpl
def aios_heads() -> list[ObedientHead]:
    return [ObedientHead("yes", "code")]
