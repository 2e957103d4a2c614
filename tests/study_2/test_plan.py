"""Tests of the plan of the second study: equal trials, identical gradients at μ = 1, and choices by validation alone."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from sspo_cli.config import LearningOptions
from sspo_cli.objectives import build_objective
from sspo_cli.policy.learner import accumulate_gradient
from sspo_cli.sweep.grid import load_sweep
from study_2 import plan
from study_2.ledger import Ledger, Row, modes_of

SELECT = plan.ROOT / "configs/sweeps/study-2-select.yaml"


@pytest.fixture(scope="module")
def grid():
    return load_sweep(SELECT, [], Path("unused"))


def row(trial, stage, correct):
    options = trial.options
    objective = {f"objective.{name}": value for name, value in options.objective.model_dump().items()}
    point = {
        **objective,
        plan.RATE: options.optimizer.learning_rate,
        plan.MU: options.learning.mu,
        plan.PROMPTS: options.rollout.prompts,
        plan.LAG: options.rollout.lag,
        "seed": options.seed,
    }
    measured = [
        {"step": 0, "benchmark": "validation", "n": 512, "correct": 500},
        {"step": 48, "benchmark": "validation", "n": 512, "correct": correct},
        {"step": 48, "benchmark": "chains", "n": 1024, "correct": 1000 - correct},  # the test score must not matter
    ]
    return Row(stage, trial.name, None, point, measured, tokens=1, skipped=0, seconds={"cpu": 1.0})


@pytest.fixture(scope="module")
def results(grid):
    """Results of the first seed, in which trial k of each method's twelve solves 10·k validation problems."""
    number = Counter()
    select = []
    for trial in grid:
        method = tuple(trial.options.objective.words)
        select.append(row(trial, "select", 10 * number[method]))
        number[method] += 1
    return {"select": select}


def test_every_method_has_as_many_trials_and_the_same_rates(grid):
    trials = Counter()
    rates = {}
    for trial in grid:
        method = tuple(trial.options.objective.words)
        trials[method] += 1
        rates.setdefault(method, Counter())[trial.options.optimizer.learning_rate] += 1
        assert trial.options.evaluation.benchmarks == []
        assert trial.options.evaluation.validation == 512
    assert len(trials) == 8
    assert set(trials.values()) == {12}
    assert len({json.dumps(sorted(counts.items())) for counts in rates.values()}) == 1
    assert set(rates["grpo", "clip"].values()) == {3}


def test_at_mu_1_all_settings_of_all_methods_have_the_identical_gradient(grid, policy, make_batch):
    batch = make_batch()
    gradients = []
    objectives = {repr(trial.options.objective): trial.options.objective for trial in grid}
    assert len(objectives) == 24
    for options in objectives.values():
        policy.model.zero_grad()
        objective = build_objective(**options.model_dump())
        factors = objective.factors(batch.mask.sum(1))
        accumulate_gradient(policy, objective, batch, factors, LearningOptions(), 1.0, on_policy=True)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters]))
    norm = gradients[0].norm()
    assert norm > 0.1
    assert max((gradient - gradients[0]).norm() for gradient in gradients) < 2e-6 * norm


def test_the_three_best_of_each_method_get_a_second_seed(results):
    points = plan.again(results)
    assert len(points) == 24
    best = {plan.validation(r): plan.setting_of(r) for r in plan.of_method(results["select"], "sspo siglog")}
    assert [p for p in points if p["objective.gate"] == "siglog"] == [best[k / 512] for k in (110, 100, 90)]


def test_the_setting_is_the_best_over_both_seeds_and_the_rate_of_each_mu_by_validation(results, tmp_path):
    again = plan.trials_of("again", results, tmp_path)
    assert {trial.options.seed for trial in again} == {1001}
    number = Counter()
    second = []
    for trial in again:
        method = tuple(trial.options.objective.words)
        second.append(row(trial, "again", [10, 200, 20][number[method]]))
        number[method] += 1
    both = {**results, "again": second}
    chosen = plan.chosen_settings(both)
    expected = {plan.validation(r): r for r in plan.of_method(results["select"], "gspo clip")}[100 / 512]
    assert chosen["gspo clip"] == plan.setting_of(expected)

    rates = plan.trials_of("rates", both, tmp_path)
    assert len(rates) == 8 * 2 * 4
    assert {(t.options.learning.mu, t.options.rollout.prompts) for t in rates} == {(2, 16), (8, 64)}
    by_rate = {5e-5: 50, 1e-4: 300, 2e-4: 20, 4e-4: 10}
    with_rates = {**both, "rates": [row(t, "rates", by_rate[t.options.optimizer.learning_rate]) for t in rates]}
    for mu in (2, 8):
        finals = plan.trials_of(f"finals-mu{mu}", with_rates, tmp_path)
        assert [t.options.seed for t in finals] == [seed for seed in range(2000, 2008) for _ in range(8)]
        assert {t.options.optimizer.learning_rate for t in finals} == {1e-4}
        assert {t.options.learning.mu for t in finals} == {mu}
        assert [b.limit for t in finals for b in t.options.evaluation.benchmarks] == [1024] * 64
    primary = plan.trials_of("finals-mu4", with_rates, tmp_path)
    assert {t.options.optimizer.learning_rate for t in primary if "gspo" in t.name} == {expected.point[plan.RATE]}
    assert len(plan.trials_of("appendix", with_rates, tmp_path)) == 16 * 3


def test_completions_are_counted_by_their_mode_and_by_the_habits_that_can_do_harm():
    def answer(completion, correct=False, question="5+8-2"):
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        return {"id": f"chains-0-{question}", "prompt": prompt, "completion": completion, "correct": correct}

    counted = modes_of(
        [
            answer("<think>5+8=13,13-2=11</think><answer>11</answer>", True),
            answer("<think>5+8=14,14-2=12</think><answer>12</answer>"),
            answer("<think>5-2=3</think><answer>3</answer>"),
            answer("<think>5+8=13,13+2=15</think><answer>15</answer>"),
            answer("<think>5+8-2</think><answer>11</answer>", True),
            answer("5+8=13,13-2=11</think><answer>11</answer>"),
            answer("<think>9-3=6,6+4=10</think><answer>6</answer>", False, "9-3+4"),
            answer("<think>1-5=6,6+4=11,11-7=3,3+5=8</think><answer>8</answer>", False, "11-5+4-7+5"),
            answer("<think>9-3=6,6-4=2</think><answer>2</answer>", True, "9-3-4"),
        ]
    )
    assert counted == {
        **{"work": [5, 2], "other work": [2, 0], "guessed": [1, 1], "broken": [1, 0]},
        **{"drop": [6, 2], "sign": [6, 2], "early": [1, 0], "guess": [1, 0], "none": [1, 1]},
    }


def test_a_kept_run_is_not_missing_although_its_folder_is_gone(results, grid, tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.missing(grid) == grid
    lines = [json.dumps({name: getattr(r, name) for name in Row.__slots__}) for r in results["select"][:90]]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines) + "\n")
    ledger = Ledger(tmp_path)
    assert ledger.missing(grid) == grid[90:]
    assert ledger.of_stage("select", grid) is None
    assert ledger.of_stage("select", grid[:90]) == results["select"][:90]
