"""An installed encoder in fewer bits, as `aios models quantize` makes it, in a home of its own that is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Final

from aios.config import Places
from aios.lab.report import LabOptions
from aios.quantisation.formats import Format
from aios.quantisation.recipe import Recipe
from aios.quantisation.release import compress
from aios.store import models
from aios.store.record import ModelRecord

# Groups of 128 are the fastest for the kernels; 8 bits lose nothing by plain rounding, 4 bits go by texts.
RECIPES: Final[Mapping[str, Recipe]] = {
    "int8": Recipe(form=Format(bits=8, group_size=128, symmetric=True), method="rtn"),
    "int4": Recipe(form=Format(bits=4, group_size=128), method="gptq"),
}


def low_bit_encoders(record: ModelRecord, texts: Sequence[str], options: LabOptions, share: float) -> Places:
    """The home in which the copies are installed under the names of `RECIPES`; made now unless they are kept.

    texts calibrate them; share: of the run's progress that the making is.
    """
    recipes = {name: str(recipe) for name, recipe in RECIPES.items()}
    said = json.dumps([record.release, recipes, list(texts)])
    root = Places.find().cache / "encoders" / hashlib.sha256(said.encode()).hexdigest()[:16]
    places = Places(config=root / "config", data=root / "data", state=root / "state", cache=root / "cache",
                    runtime=root / "run")
    for index, (name, recipe) in enumerate(RECIPES.items()):
        if name not in models.names(places):
            compress(record, recipe, name=name, texts=texts, places=places, progress=lambda label, done, at=index: (
                options.progress(label, share * (at + done) / len(RECIPES))))   # type: ignore[misc]
    return places
