from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import evaluation, validation, write_run

from sspo_cli.report.choices import best_configurations
from sspo_cli.report.collect import collect
from sspo_cli.report.table import Table
from sspo_cli.report.tables.configurations import configurations_table


def tried(path: Path, *overrides: str, held_out: int, test: int = 100) -> None:
    for seed in (0, 1):
        rows = [evaluation(0, 60), evaluation(12, test), validation(0, 10), validation(12, held_out + 2 * seed)]
        write_run(path / f"{'-'.join(overrides)}-{seed}", *overrides, f"seed={seed}", evaluations=rows)


def table_of(path: Path) -> Table | None:
    collection = collect([path])
    chosen, _ = best_configurations(collection.groups, "last")
    return configurations_table(collection, chosen)


def test_every_configuration_is_there_and_the_chosen_ones_say_so(tmp_path: Path) -> None:
    tried(tmp_path, "objective.tau_pos=0.2", held_out=50, test=90)
    tried(tmp_path, "objective.tau_pos=0.5", held_out=40, test=190)
    tried(tmp_path, "objective.gate=gumbel", held_out=10)
    table = table_of(tmp_path)
    assert table is not None
    assert table.headings == [
        "Method",
        "Gate",
        "Configuration",
        "Chosen",
        "Seeds",
        "validation",
        "arithmetic",
        "Reward",
    ]
    assert [[cell.text for cell in line[:7]] for line in table.lines] == [
        ["SSPO", "atanlog", "tau_neg 0.3, tau_pos 0.2", "yes", "0, 1", "51.0 ± 1.4", "45.0 ± 0.0"],
        ["SSPO", "atanlog", "tau_neg 0.3, tau_pos 0.5", "", "0, 1", "41.0 ± 1.4", "95.0 ± 0.0"],
        ["SSPO", "gumbel", "–", "yes", "0, 1", "11.0 ± 1.4", "50.0 ± 0.0"],
    ]
    # A tenth of 12 steps is one step.
    rewards = [run.metrics["reward/mean"][12] for run in collect([tmp_path]).groups[0].runs]
    row = table.frame.to_dict("records")[0]
    assert (row["reward"], row["reward sd"]) == pytest.approx((np.mean(rewards), np.std(rewards, ddof=1)))


def test_runs_at_another_staleness_are_no_rivals(tmp_path: Path) -> None:
    for mu, held_out in ((2, 50), (8, 10)):
        tried(tmp_path, f"learning.mu={mu}", "rollout.prompts=16", held_out=held_out)
    assert table_of(tmp_path) is None
    groups = collect([tmp_path]).groups
    assert best_configurations(groups, "last") == (groups, [])
    assert [group.setting.removeprefix(group.start) for group in groups] == [" (mu 2)", " (mu 8)"]
