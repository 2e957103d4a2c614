"""The table of speed and memory: of runs on several ranks, on GPUs, or with a sampler that weights are passed to."""

import pandas as pd

from sspo_cli.report.collect import Collection
from sspo_cli.report.records import RunRecord, short_names
from sspo_cli.report.table import NOTHING, Cell, Table
from sspo_cli.tracking.text import value_range

NUMBERS = {  # heading, format and unit, by name in the files
    "run_tokens_per_second": ("Tokens/s", "{:,.0f}", ""),
    "tokens_per_second": ("Sampled tokens/s of a rank", "{:,.0f}", ""),
    "memory": ("Peak memory", "{:.1f}", " GB"),
    "flop_utilization": ("FLOPs utilization", "{:.0%}", ""),
    "sync": ("Sync", "{:.2f}", " s"),
    "waiting": ("Waiting", "{:.0%}", ""),
}
NOTES = [
    "Two numbers are the range over the ranks. If the number of ranks has changed, only the steps on the last number count.",
    "Tokens/s: of all ranks, by the time of the steps without evaluations and checkpoints; of a rank: by its time of sampling.",
    "Peak memory: what torch had allocated on a GPU. FLOPs utilization: of learning, as a share of what the GPUs can do.",
    "Sync: mean seconds to pass the weights to the sampler. Waiting: share of the time of the steps in which a rank waited for "
    "the others in exchanges of data.",
]


def telemetry_table(collection: Collection) -> Table | None:
    """Make a line for each run with several ranks, a GPU or a sync; None if there is none."""
    measured = {run: ranks for run in collection.runs if (ranks := by_rank(run))}
    if not measured:
        return None
    folder, short = short_names([run.path for run in collection.runs])
    frame = pd.DataFrame(
        [
            {"run": str(run.path), "rank": rank} | row
            for run, ranks in measured.items()
            for rank, row in enumerate(ranks)
        ]
    )
    columns = {name: texts for name, texts in NUMBERS.items() if name in frame}
    lines: list[list[Cell] | str] = [
        [
            Cell(f"`{short[run.path]}`"),
            Cell(str(len(ranks)), number=len(ranks)),
            *(
                _cell([row[name] for row in ranks if name in row], form, unit)
                for name, (_, form, unit) in columns.items()
            ),
        ]
        for run, ranks in measured.items()
    ]
    headings = ["Run", "Ranks", *(heading for heading, _, _ in columns.values())]
    return Table(
        "telemetry", "Speed and memory", frame, headings, lines, [f"Run: its folder below `{folder}`.", *NOTES]
    )


def by_rank(run: RunRecord) -> list[dict[str, float]]:
    """Return what was measured of each rank, by name in NUMBERS, on the number of ranks of the last step.

    Returns an empty list for a run on a single rank without a GPU and without a sync.
    """
    counts = run.metrics.filter(regex=r"^time/rank_\d+_learning$").notna().sum(axis=1).clip(lower=1)
    if counts.empty:
        return []
    count = int(counts.iloc[-1])
    alike = run.metrics[counts == count]

    def values(name: str, rank: int | None = None) -> pd.Series:
        family, _, what = name.partition("/")
        name = name if rank is None or count == 1 else f"{family}/rank_{rank}_{what}"
        return alike[name].dropna() if name in alike else pd.Series(dtype=float)

    def last_speed(rank: int | None = None) -> float:
        speeds = values("time/tokens_per_second", rank)
        return speeds[speeds > 0].iloc[-1:].mean()  # 0 in a resumed process that has not sampled yet

    ranks = []
    for rank in range(count):
        syncs = values("time/sync", rank)
        row = {
            "run_tokens_per_second": last_speed(),
            "memory": values("device/memory", rank).max(),
            "flop_utilization": values("device/flop_utilization").mean(),
            "sync": syncs[syncs > 0].mean(),
        }
        if count > 1:
            row["tokens_per_second"] = last_speed(rank)
            row["waiting"] = values("time/waiting", rank).sum() / values("time/step").sum()
        ranks.append({name: float(value) for name, value in row.items() if not pd.isna(value)})
    return ranks if count > 1 or ranks[0].keys() - {"run_tokens_per_second"} else []


def _cell(values: list[float], form: str, unit: str) -> Cell:
    return Cell(value_range(values, form) + unit, number=max(values)) if values else Cell(NOTHING)
