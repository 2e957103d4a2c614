"""A sweep of the best configurations of an earlier sweep."""

import itertools
from pathlib import Path

import pytest

from sspo_cli.errors import UserError
from sspo_cli.sweep import load_sweep
from sspo_cli.tracking.files import write_json_atomic
from sspo_cli.tracking.run_folder import RunFolder

BEFORE = """
seeds: [0, 1]
blocks:
  - options: {objective.method: grpo}
    zip: [{objective.eps_low: [0.1, 0.2], objective.eps_high: [0.1, 0.2]}]
  - options: {objective.method: sspo}
"""
AFTER = "best_of: before.yaml\nseeds: [5]\ngrid: {learning.mu: [4, 8]}\n"
# Solved validation problems by seed.
SOLVED = {("grpo", 0.1): (90, 40), ("grpo", 0.2): (70, 70), ("sspo", None): (10, 10)}
PROBLEMS = 100


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "before.yaml").write_text(BEFORE)
    (tmp_path / "after.yaml").write_text(AFTER)
    return tmp_path / "runs"


def finish(runs: Path, *benchmarks: str) -> None:
    """Write finished runs of the sweep BEFORE.

    Only validation after the last step has the results of SOLVED; every other evaluation solves the remaining problems
    instead.
    """
    for trial in load_sweep(runs.parent / "before.yaml", [], runs):
        objective, step = trial.options.objective, trial.options.steps
        solved = SOLVED[objective.method, objective.eps_low][trial.options.seed]
        rows = []
        for benchmark, at in itertools.product(benchmarks, (1, step)):
            correct = solved if (benchmark, at) == ("validation", step) else PROBLEMS - solved
            row = {"step": at, "benchmark": benchmark, "split": "", "n": PROBLEMS, "samples": 1, "temperature": 0.0}
            row |= {"max_new_tokens": 64, "prompt": "plain", "checkpoint": f"step-{step}", "truncated": 0}
            rows.append({**row, "correct": correct, "pass_at_1": correct / PROBLEMS})
        with RunFolder.create(runs / "before" / trial.name, trial.options, []) as run:
            run.write_status("finished", step, step)
            write_json_atomic(run.summary_path, rows)


def test_the_best_of_each_variant_is_taken_by_validation_over_all_seeds(runs):
    finish(runs, "validation", "arithmetic")
    trials = load_sweep(runs.parent / "after.yaml", [], runs)
    found = {
        (t.options.objective.method, t.options.objective.eps_low, t.options.learning.mu, t.options.seed) for t in trials
    }
    assert found == {(method, eps, mu, 5) for method, eps in (("grpo", 0.2), ("sspo", None)) for mu in (4, 8)}
    assert len(trials) == 4


def test_a_method_that_the_earlier_sweep_did_not_vary_is_taken_too(runs):
    (runs.parent / "before.yaml").write_text(
        "options: {objective.method: grpo}\ngrid: {objective.eps_low: [0.1, 0.2]}\n"
    )
    finish(runs, "validation")
    trials = load_sweep(runs.parent / "after.yaml", [], runs)
    assert {(t.options.objective.method, t.options.objective.eps_low) for t in trials} == {("grpo", 0.1)}


def test_nothing_is_chosen_by_a_test_score(runs):
    finish(runs, "arithmetic")
    with pytest.raises(UserError, match=r"no validation problems in common; set evaluation\.validation there"):
        load_sweep(runs.parent / "after.yaml", [], runs)


def test_an_unfinished_sweep_is_reported(runs):
    with pytest.raises(
        UserError, match=r"best_of needs finished trials, but 6 of 6 trials of .*before\.yaml are not finished"
    ):
        load_sweep(runs.parent / "after.yaml", [], runs)


def test_best_of_and_blocks_exclude_each_other(runs):
    (runs.parent / "after.yaml").write_text(AFTER + "blocks: [{options: {objective.method: grpo}}]\n")
    with pytest.raises(UserError, match="best_of and blocks exclude each other"):
        load_sweep(runs.parent / "after.yaml", [], runs)
