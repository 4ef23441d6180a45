"""Run plans: arms, tuning trials and seeds as data, and the one queue that works them off, run after run.

A plan's folder holds one folder a run. What is finished has a `result.json`; everything else is begun or gone on with
in a fixed order, so that the same command continues a plan wherever it stopped.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from aios.errors import BadInput
from aios.model.config import TransformerConfig
from aios.training.loop import LoopConfig

FOLDER: Final = Path(__file__).parent / "recipes" / "runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a plan: its name within the plan, its arm, and how it trains."""

    name: str
    arm: str
    trial: bool
    loop: LoopConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is trained on which data: every arm with every seed, behind as many tuning trials for each arm.

    loop: options of all runs. arms: name -> options of its own. trials: options that are tried, by number.
    """

    name: str
    description: str
    data: str
    seeds: tuple[int, ...]
    network: TransformerConfig
    loop: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    trial_steps: int = 0
    trial_seed: int = 0
    trials: tuple[Mapping[str, Any], ...] = field(default=())

    def trial_runs(self) -> Iterator[Run]:
        """Yield the tuning trials, arm after arm."""
        for arm, own in self.arms.items():
            for number, tried in enumerate(self.trials):
                told = {**self.loop, **own, **tried, "steps": self.trial_steps}
                loop = _loop(told, self.trial_seed)
                yield Run(name=f"trial-{arm}-{number}", arm=arm, trial=True, loop=loop)

    def full_runs(self, chosen: Mapping[str, int]) -> Iterator[Run]:
        """Yield every arm's runs, seed after seed; `chosen` is the number of each arm's best trial."""
        for seed in self.seeds:
            for arm, own in self.arms.items():
                tried = self.trials[chosen[arm]] if self.trials else {}
                loop = _loop({**self.loop, **own, **tried}, seed)
                yield Run(name=f"{arm}-seed-{seed}", arm=arm, trial=False, loop=loop)

    def next_run(self, folder: Path) -> Run | None:
        """Return the first run that has no result yet; None when the plan is done."""
        for run in self.trial_runs():
            if result(folder / run.name) is None:
                return run
        for run in self.full_runs(self.chosen(folder)):
            if result(folder / run.name) is None:
                return run
        return None

    def chosen(self, folder: Path) -> dict[str, int]:
        """Return the number of each arm's trial with the lowest validation loss; all trials must be finished."""
        best: dict[str, tuple[float, int]] = {}
        for run in self.trial_runs():
            told = result(folder / run.name)
            assert told is not None, run.name
            number = int(run.name.rpartition("-")[2])
            best[run.arm] = min(best.get(run.arm, (float("inf"), 0)), (float(told["best_bound"]), number))
        return {arm: number for arm, (_, number) in best.items()}

    def names(self) -> list[str]:
        """Return every run's name, in the order in which they run."""
        seeds = [f"{arm}-seed-{seed}" for seed in self.seeds for arm in self.arms]
        return [run.name for run in self.trial_runs()] + seeds


def result(folder: Path) -> dict[str, Any] | None:
    """Return what a finished run wrote, None if it is not finished."""
    try:
        told: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return told


def names() -> list[str]:
    """Return the plans that AIOS brings."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_plan(recipe: str) -> Plan:
    """Return the plan of that name, or of the TOML file at that path; BadInput says what is wrong with it."""
    path = Path(recipe) if recipe.endswith(".toml") else FOLDER / f"{recipe}.toml"
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no run plan {recipe!r}", remedy="one of: " + ", ".join(names())) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}", remedy="correct the plan") from error
    try:
        return _plan(path.stem, told)
    except (msgspec.ValidationError, TypeError, ValueError, KeyError) as error:
        raise BadInput(f"{path}: {error}", remedy="see the plans that AIOS brings") from error


def _plan(name: str, told: dict[str, Any]) -> Plan:
    trials = told.pop("trials", {})
    plan = Plan(
        name=name, description=told.pop("description"), data=told.pop("data"), seeds=tuple(told.pop("seeds")),
        network=TransformerConfig.of(**told.pop("network")), loop=told.pop("loop"), arms=told.pop("arms"),
        trial_steps=trials.get("steps", 0), trial_seed=trials.get("seed", 0), trials=tuple(trials.get("grid", ())),
    )
    if told:
        raise ValueError(f"unknown option {sorted(told)[0]!r}")
    if not plan.arms or not plan.seeds:
        raise ValueError("a plan needs arms and seeds")
    list(plan.trial_runs())
    list(plan.full_runs(dict.fromkeys(plan.arms, 0)))   # every option is checked before anything runs
    return plan


def _loop(told: Mapping[str, Any], seed: int) -> LoopConfig:
    known = {one.name for one in fields(LoopConfig)}
    if unknown := set(told) - known:
        raise ValueError(f"unknown loop option {sorted(unknown)[0]!r}")
    return msgspec.convert({"lengths": (128,), **told, "seed": seed}, LoopConfig)


def shortened(plan: Plan, steps: int) -> Plan:
    """Return the plan with runs and trials of `steps` steps: to see that everything works."""
    return replace(plan, loop={**plan.loop, "steps": steps}, trial_steps=min(plan.trial_steps, steps))


def settings(plan: Plan, run: Run, data_sha256: str, vocab_size: int) -> dict[str, Any]:
    """Return everything that decides what a run computes: what `config.json` in its folder says."""
    return {"plan": plan.name, "run": run.name, "data": plan.data, "data_sha256": data_sha256,
            "vocab_size": vocab_size, "network": plan.network.to_dict(), "loop": asdict(run.loop)}
