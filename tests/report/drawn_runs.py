"""Groups of runs in memory from which the tests draw figures."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from synthetic_runs import evaluation

from sspo_cli.config import load_config
from sspo_cli.report.collect import Collection
from sspo_cli.report.groups import RunGroup, listed
from sspo_cli.report.records import MEASUREMENT, RunRecord


def measured(rows: list[dict]) -> list[dict]:
    return [{**dict.fromkeys(MEASUREMENT), "samples": 1, **row} for row in rows]


def a_run(
    seed: int = 0,
    *overrides: str,
    steps: int = 8,
    last: int | None = None,
    path: Path = Path("run"),
    evaluations: list[dict] | None = None,
    **columns: list[float],
) -> RunRecord:
    noise = np.random.default_rng(seed)
    last = last or steps
    metrics = {
        "reward/mean": noise.uniform(0, 2, last),
        "policy/entropy": noise.uniform(0, 1, last),
        "time/step": noise.uniform(1, 2, last),
        "tokens": np.repeat(np.arange(1, last), 2)[:last] * 1000.0,
        "minibatch": np.resize([1.0, 2.0], last),
        "weights/attenuated": noise.uniform(0, 0.1, last),
    }
    return RunRecord(
        path=path,
        options=load_config(overrides=[f"steps={steps}", f"seed={seed}", *overrides]),
        state="finished" if last == steps else "killed",
        step=last,
        reason=None,
        started=None,
        metrics=pd.DataFrame({**metrics, **columns}, index=pd.RangeIndex(1, last + 1, name="step")),
        evaluations=measured(
            [evaluation(0, 60), evaluation(steps, 120 + seed)] if evaluations is None else evaluations
        ),
    )


def a_group(*runs: RunRecord, method: str = "sspo", gate: str = "atanlog", details: str = "", **about: str) -> RunGroup:
    model, setting = about.get("model", "M"), about.get("setting", "M, arithmetic")
    differs = dict(option.split(" ", 1) for option in details.split(", ")) if details else {}
    label = f"{method.upper()} {gate}" + (f" ({listed(differs)})" if details else "")
    return RunGroup(model, about.get("start", setting), setting, label, method, gate, differs, list(runs or [a_run()]))


def framed(groups: list[RunGroup]) -> tuple[pd.DataFrame, list[RunGroup]]:
    """Return the frame of the groups' evaluations, and the groups."""
    return Collection(groups).frame, groups


def of_one(group: RunGroup) -> tuple[pd.DataFrame, RunGroup]:
    return Collection([group]).frame, group


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]
