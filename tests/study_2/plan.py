"""Plan the second study: the runs of each stage, with settings chosen from the results of earlier stages."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ruamel.yaml import YAML

from sspo_cli.sweep.grid import Trial, load_sweep

from .ledger import Row

ROOT = Path(__file__).resolve().parents[2]
RATE, MU, PROMPTS, LAG = "optimizer.learning_rate", "learning.mu", "rollout.prompts", "rollout.lag"
STALE = 4  # μ of the primary contrast, where settings are chosen
OTHER_MU = (2, 8)
PROMPTS_PER_MINIBATCH = 8
AGAIN = 3  # trials per method that are repeated with the second seed of the selection

Point = dict[str, Any]  # dotted options
Results = Mapping[str, Sequence[Row]]  # the rows of every finished stage


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the study; its points come from the results of earlier stages or, if None, from a separate sweep file."""

    seeds: Sequence[int]
    points: Callable[[Results], list[Point]] | None


def again(results: Results) -> list[Point]:
    """Return the three best trials of each method by validation."""
    ranked = sorted(results["select"], key=validation, reverse=True)  # among equals, the first in the grid
    return [setting_of(row) for method in methods_of(ranked) for row in of_method(ranked, method)[:AGAIN]]


def rates(results: Results) -> list[Point]:
    """Return every rate for the chosen setting of each method, at μ = 2 and 8."""
    grid = sorted({row.point[RATE] for row in results["select"]})
    chosen = chosen_settings(results).values()
    return [{**point, **at_mu(mu), RATE: rate} for mu in OTHER_MU for point in chosen for rate in grid]


def finals(mu: int) -> Callable[[Results], list[Point]]:
    """Return the function that gives each method's point at one μ, with the chosen setting and rate."""

    def points(results: Results) -> list[Point]:
        chosen = chosen_settings(results)
        if mu == STALE:
            return list(chosen.values())
        at = [row for row in results["rates"] if row.point[MU] == mu]
        return [setting_of(max(of_method(at, method), key=validation)) for method in chosen]

    return points


def appendix(results: Results) -> list[Point]:
    """Return the exploratory variants at μ = 4, each with the setting and the rate of the method that it varies."""
    chosen = chosen_settings(results)
    grpo, gspo, atanlog, sapo, cispo = (
        chosen[name] for name in ("grpo clip", "gspo clip", "sspo atanlog", "sapo sigmoid", "cispo cispo")
    )
    swapped = {"objective.tau_neg": atanlog["objective.tau_pos"], "objective.tau_pos": atanlog["objective.tau_neg"]}
    return [
        {**atanlog, "objective.gate": "expsig"},
        {**without_options(atanlog), "objective.gate": "gumbel"},
        {**atanlog, **swapped},
        {**without_options(grpo), "objective.method": "pspo", "objective.gate": "pspo"},
        {**gspo, "objective.method": "luspo", "objective.normalizer": "length"},
        {**grpo, "objective.normalizer": "token"},
        {**grpo, "objective.normalizer": "constant"},
        {**cispo, "objective.normalizer": "token"},
        *({**point, LAG: lag} for lag in (1, 2) for point in (grpo, gspo, sapo, atanlog)),
    ]


SELECTION_SEED, SECOND_SELECTION_SEED = 1000, 1001
FINAL_SEEDS = range(2000, 2008)
APPENDIX_SEEDS = range(3000, 3003)
SELECTION = ("select", "again", "rates")  # stages that use validation problems only
ONLY_VALIDATION = {"evaluation.every": None, "evaluation.benchmarks": []}
STAGES = {
    "select": Stage([SELECTION_SEED], None),
    "again": Stage([SECOND_SELECTION_SEED], again),
    "rates": Stage([SELECTION_SEED], rates),
    **{f"finals-mu{mu}": Stage(FINAL_SEEDS, finals(mu)) for mu in (STALE, *OTHER_MU)},
    "appendix": Stage(APPENDIX_SEEDS, appendix),
}


def trials_of(name: str, results: Results, folder: Path) -> list[Trial]:
    """Return the trials of a stage, seed by seed, so that a stage that is stopped has about as many runs of each method.

    The chosen points are written to a sweep file in `folder`.
    """
    stage, file = STAGES[name], ROOT / f"configs/sweeps/study-2-{name}.yaml"
    if stage.points is not None:
        file = folder / f"{name}.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        sweep = {
            "base": [os.path.relpath(ROOT / "configs/study-2.yaml", folder)],
            "options": ONLY_VALIDATION if name in SELECTION else {},
            "seeds": list(stage.seeds),
            "blocks": [{"options": point} for point in stage.points(results)],
        }
        with file.open("w") as out:
            YAML().dump(sweep, out)
    return sorted(load_sweep(file, [], folder), key=lambda trial: trial.options.seed)


def validation(row: Row) -> float:
    """Return the validation Pass@1 after the last step, on which every choice is based."""
    return row.pass_at_1("validation")


def chosen_settings(results: Results) -> dict[str, Point]:
    """Choose for each method the setting at μ = 4 with the best mean validation Pass@1 over both seeds of the selection."""
    both = [*results["select"], *results["again"]]
    return {method: _best_of_two_seeds(of_method(both, method)) for method in methods_of(results["select"])}


def _best_of_two_seeds(rows: Sequence[Row]) -> Point:
    by_setting: dict[str, list[Row]] = {}
    for row in rows:
        by_setting.setdefault(repr(setting_of(row)), []).append(row)
    twice = [same for same in by_setting.values() if len(same) == 2]
    return setting_of(max(twice, key=lambda same: fmean(map(validation, same)))[0])


def setting_of(row: Row) -> Point:
    """Return the options that the study varies, without the seed."""
    return {key: value for key, value in row.point.items() if key != "seed"}


def without_options(point: Point) -> Point:
    """Return a point without the options that belong to its gate."""
    return {key: value for key, value in point.items() if not re.match(r"objective\.(tau|eps|clip)", key)}


def at_mu(mu: int) -> Point:
    """Return μ and the number of prompts that keeps the size of minibatches."""
    return {MU: mu, PROMPTS: mu * PROMPTS_PER_MINIBATCH}


def methods_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of the methods with their gates."""
    return sorted({row.method for row in rows})


def of_method(rows: Iterable[Row], method: str) -> list[Row]:
    """Return the rows of a method."""
    return [row for row in rows if row.method == method]
