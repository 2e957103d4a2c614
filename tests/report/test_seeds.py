import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel
from synthetic_runs import evaluation, write_run

from sspo_cli.report.collect import collect
from sspo_cli.report.frame import rows_of
from sspo_cli.report.table import Table
from sspo_cli.report.tables import tables
from sspo_cli.report.tables.seeds import against_noise


def trained(path: Path, scores: dict[str, list[int]], *overrides: str) -> None:
    """Write a run for each gate and seed; `scores` holds how many of 200 problems each seed solves after training."""
    for gate, solved in scores.items():
        method = ("objective.method=grpo",) if gate == "clip" else (f"objective.gate={gate}",)
        for seed, correct in enumerate(solved):
            rows = [evaluation(0, 60), evaluation(12, correct)]
            write_run(path / f"{gate}{seed}{len(overrides)}", *method, *overrides, f"seed={seed}", evaluations=rows)


def table_of(path: Path, name: str) -> Table:
    (table,) = (table for table in tables(collect([path])) if table.name == name)
    return table


def test_configurations_are_compared_seed_by_seed(tmp_path: Path) -> None:
    grpo, atanlog = [100, 120, 90, 110], [108, 122, 104, 120]
    trained(tmp_path, {"clip": grpo, "atanlog": atanlog})
    compared, reward = table_of(tmp_path, "seeds").frame.to_dict("records")
    assert (compared["quantity"], reward["quantity"]) == ("arithmetic", "reward")
    assert (compared["configuration"], compared["against"], compared["role"]) == (
        "SSPO atanlog",
        "GRPO",
        "strongest baseline",
    )
    differences = (np.array(atanlog) - np.array(grpo)) / 2  # in percentage points
    assert compared["difference"] == pytest.approx(differences.mean()) == 4.25
    assert compared["sd"] == pytest.approx(differences.std(ddof=1))
    test = ttest_rel(atanlog, grpo)
    assert compared["p_t"] == compared["p_t_holm"] == pytest.approx(test.pvalue)
    assert (compared["low"], compared["high"]) == pytest.approx([end / 2 for end in test.confidence_interval()])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=4)]
    assert compared["p_exact"] == pytest.approx(np.mean([s >= differences.sum() - 1e-9 for s in sums])) == 1 / 8
    assert (compared["above"], compared["n"], compared["seeds"]) == (4, 4, "0, 1, 2, 3")
    last = {
        (run.options.objective.gate, run.options.seed): run.metrics["reward/mean"][12]
        for run in collect([tmp_path]).runs
    }
    means = [np.mean([last[gate, seed] for seed in range(4)]) for gate in ("atanlog", "clip")]
    assert abs(reward["difference"]) == pytest.approx(abs(means[0] - means[1]))
    assert "It cannot be below 0.12 with 4 seeds" in "\n".join(table_of(tmp_path, "seeds").notes)


def test_the_correction_is_for_one_setting_and_quantity(tmp_path: Path) -> None:
    scores = {"clip": [100, 101, 103], "atanlog": [150, 152, 151], "siglog": [120, 118, 125]}
    trained(tmp_path, scores)
    trained(tmp_path, {"clip": [90, 91, 80], "atanlog": [150, 150, 149]}, "learning.mu=4")
    collection = collect([tmp_path])
    noise = against_noise(rows_of(collection.frame, collection.groups), collection.groups)
    rows = [row for row in noise.to_dict("records") if row["quantity"] == "arithmetic"]
    mu2, mu4 = ([row for row in rows if row["setting"].endswith(f"(mu {mu})")] for mu in (2, 4))
    assert [(row["configuration"], row["against"]) for row in mu2] == [
        ("SSPO siglog", "SSPO atanlog"),
        ("SSPO atanlog", "GRPO"),
        ("SSPO siglog", "GRPO"),
    ]
    smallest = min(row["p_t"] for row in mu2)
    assert min(row["p_t_holm"] for row in mu2) == pytest.approx(3 * smallest)
    assert [row["p_t_holm"] for row in mu4] == [mu4[0]["p_t"]]
    (noise,) = (note for note in table_of(tmp_path, "table1").notes if "noise of seeds" in note)
    assert "arithmetic (mu 2): 3 of 3, SSPO siglog − SSPO atanlog (-15.0), SSPO atanlog − GRPO (+24.8)" in noise
    assert "reward (mu 4): none of 1" in noise


def test_equal_differences_do_not_pass_for_certainty(tmp_path: Path) -> None:
    trained(tmp_path, {"clip": [100, 110, 120], "atanlog": [102, 112, 122]})
    compared = table_of(tmp_path, "seeds").frame.to_dict("records")[0]
    assert (compared["difference"], compared["p_t"], compared["p_exact"]) == (1.0, 0.25, 0.25)
    assert math.isnan(compared["low"])


def test_without_two_common_seeds_nothing_is_known(tmp_path: Path) -> None:
    trained(tmp_path, {"clip": [100], "atanlog": [150, 152]})
    assert "seeds" not in [table.name for table in tables(collect([tmp_path]))]
    assert any("No two configurations share two seeds" in note for note in table_of(tmp_path, "table1").notes)
