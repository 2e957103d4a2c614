import math
from pathlib import Path

import pandas as pd
import pytest
from synthetic_runs import evaluation, write_run

from sspo_cli.intervals import wilson
from sspo_cli.report.runs import collect
from sspo_cli.report.statistics import mean_over_seeds
from sspo_cli.report.tables import before_and_after, for_reading, to_latex, to_markdown


def wilson_by_hand(correct: int, n: int) -> tuple[float, float]:
    p, z = correct / n, 1.959963984540054
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@pytest.mark.parametrize(("correct", "n"), [(0, 30), (3, 30), (171, 512), (512, 512)])
def test_the_interval_is_wilsons(correct: int, n: int) -> None:
    assert wilson(correct, n) == pytest.approx(wilson_by_hand(correct, n), abs=1e-9)


def table_of(path: Path) -> pd.DataFrame:
    return before_and_after(collect([path]).groups)


def test_several_seeds_are_averaged_and_do_not_narrow_the_interval(tmp_path: Path) -> None:
    for seed, correct in enumerate((100, 110, 121)):
        write_run(tmp_path / str(seed), f"seed={seed}", evaluations=[evaluation(0, 60), evaluation(12, correct)])
    (row,) = table_of(tmp_path).to_dict("records")
    assert row["pass_at_1_before"] == 0.3
    assert row["pass_at_1_after"] == pytest.approx(331 / 600)
    assert (row["low_after"], row["high_after"]) == pytest.approx(wilson_by_hand(110, 200))  # 110.33 solved of 200
    assert (row["lowest_seed_after"], row["highest_seed_after"]) == (0.5, 0.605)
    assert (row["seeds"], row["n"]) == ("0, 1, 2", 200)


def test_the_table_for_reading_by_method_gate_and_benchmark(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations=[evaluation(12, 121), evaluation(0, 60), evaluation(6, 99)])
    math500 = [evaluation(step, correct, n=30, benchmark="math_500") for step, correct in ((0, 3), (12, 9))]
    write_run(tmp_path / "b", "objective.method=grpo", evaluations=[evaluation(12, 100), *math500])
    readable = for_reading(table_of(tmp_path))
    assert to_markdown(readable).splitlines()[2:] == [
        "| GRPO     | clip    |       0 | – → 50.0 [43.1, 56.9]                 | 10.0 [3.5, 25.6] → 30.0 [16.7, 47.9] |",
        "| SSPO     | atanlog |       0 | 30.0 [24.1, 36.7] → 60.5 [53.6, 67.0] | –                                    |",
    ]
    assert list(readable.columns) == ["Method", "Gate", "Seeds", "arithmetic", "math_500"]
    latex = to_latex(readable)
    assert r"SSPO & atanlog & 0 & 30.0 [24.1, 36.7] $\rightarrow$ 60.5 [53.6, 67.0] & -- \\" in latex
    assert r"math\_500" in latex
    assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert latex.isascii()


def test_only_finished_runs_that_were_measured_at_their_end_are_in_it(tmp_path: Path) -> None:
    write_run(tmp_path / "failed", last=12, state="failed")
    write_run(tmp_path / "unmeasured", "seed=1", evaluations=[evaluation(0, 10), evaluation(6, 20)])
    assert table_of(tmp_path).empty
    write_run(tmp_path / "whole", "seed=2", evaluations=[evaluation(0, 60), evaluation(12, 120)])
    (row,) = table_of(tmp_path).to_dict("records")
    assert (row["pass_at_1_before"], row["seeds"]) == (
        0.3,
        "2",
    )  # the other seed's 10 / 200 is not the before of this after


def test_only_an_evaluation_before_the_first_step_is_the_before(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations=[evaluation(6, 90), evaluation(12, 120)])
    (row,) = table_of(tmp_path).to_dict("records")
    assert math.isnan(row["pass_at_1_before"])
    assert row["pass_at_1_after"] == 0.6


def test_measurements_with_other_settings_are_other_columns(tmp_path: Path) -> None:
    greedy = [evaluation(0, 60), evaluation(12, 120)]
    sampled = [evaluation(12, 90, temperature=1.0)]
    write_run(tmp_path / "a", evaluations=[*greedy, *sampled])
    readable = for_reading(table_of(tmp_path))
    assert readable["arithmetic (temperature 0.0)"].item().startswith("30.0")
    assert readable["arithmetic (temperature 1.0)"].item() == "– → 45.0 [38.3, 51.9]"


def test_a_mean_over_seeds_stops_where_one_does(tmp_path: Path) -> None:
    write_run(tmp_path / "a", last=5, state="interrupted")
    write_run(tmp_path / "b", "seed=1", last=8, state="interrupted")
    (group,) = collect([tmp_path]).groups
    mean = mean_over_seeds(group.counted, "reward/mean")
    assert list(mean.index) == [1, 2, 3, 4, 5]
    one, other = (run.metrics["reward/mean"] for run in group.runs)
    assert mean[3] == pytest.approx((one[3] + other[3]) / 2)
    write_run(tmp_path / "c", "seed=2")
    (group,) = collect([tmp_path]).groups
    assert len(mean_over_seeds(group.counted, "reward/mean")) == 12  # finished runs only, once there is one
