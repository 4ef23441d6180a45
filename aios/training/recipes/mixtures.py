"""Data recipes: which sources, in which shares, cut by which vocabulary."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import msgspec

from aios.errors import BadInput
from aios.training.recipes.catalogue import ORIGINS
from aios.training.vocabulary import SIZES

FOLDER: Final = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One source in a mixture.

    share: of the training batches, 0 for what is only measured. megabytes_max: of the whole source, and
    document_kilobytes_max: of the beginning of each document; 0 keeps everything. optional: may be absent.
    """

    share: float = 0.0
    megabytes_max: float = 0.0
    document_kilobytes_max: float = 0.0
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A data recipe."""

    name: str
    description: str
    vocabulary: int
    validation_percent: float
    test_percent: float
    sources: Mapping[str, Share]
    measured: Mapping[str, Share]

    @property
    def every(self) -> Mapping[str, Share]:
        """What is trained on, then what is only measured."""
        return {**self.sources, **self.measured}


def names() -> list[str]:
    """Return the data recipes that AIOS brings."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_mixture(recipe: str) -> Mixture:
    """Return the recipe of that name, or of the TOML file at that path; BadInput says what is wrong with it."""
    path = Path(recipe) if recipe.endswith(".toml") else FOLDER / f"{recipe}.toml"
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no data recipe {recipe!r}", remedy="one of: " + ", ".join(names())) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}", remedy="correct the recipe") from error
    try:
        for name, options in {**told.get("sources", {}), **told.get("measured", {})}.items():
            _known(options, Share, name)
        _known(told, Mixture, "the recipe")
        mixture = msgspec.convert({"measured": {}, **told, "name": path.stem}, Mixture)
    except (msgspec.ValidationError, ValueError) as error:
        raise BadInput(f"{path}: {error}", remedy="see the recipes that AIOS brings") from error
    _check(mixture, path)
    return mixture


def _known(told: Mapping[str, Any], kind: type, where: str) -> None:
    """Raise ValueError if `told` has a key that `kind` lacks."""
    known = {field.name for field in fields(kind)}
    if unknown := set(told) - known:
        raise ValueError(f"{where} has no option {sorted(unknown)[0]!r}; there are {', '.join(sorted(known))}")


def _check(mixture: Mixture, path: Path) -> None:
    unknown = set(mixture.every) - set(ORIGINS)
    total = sum(share.share for share in mixture.sources.values())
    wrong = (
        f"no source is called {sorted(unknown)[0]!r}" if unknown
        else "it names no sources" if not mixture.sources
        else f"the shares add up to {total:g}, not 1" if abs(total - 1) > 1e-6
        else f"a vocabulary has {' or '.join(map(str, SIZES))} entries" if mixture.vocabulary not in SIZES
        else "validation and test must leave something to train on"
        if not 0 < mixture.validation_percent + mixture.test_percent < 50 else ""
    )  # fmt: skip
    if wrong:
        raise BadInput(f"{path.name}: {wrong}", remedy="sources: " + ", ".join(sorted(ORIGINS)))
