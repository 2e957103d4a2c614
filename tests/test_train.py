"""Whole runs of the loop, as a user starts them: what they learn and what they leave behind."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import BEFORE_BEST, rows, run, run_killed, weights, without_times
from transformers import AutoModelForCausalLM, AutoTokenizer

from sspo_cli.policy.checkpoint import load_state
from sspo_cli.rollout.torch_engine import TorchEngine


def test_the_folder_holds_what_the_readme_says(undisturbed: Path):
    config = json.loads((undisturbed / "config.json").read_text())
    assert config["options"]["steps"] == 10
    assert config["packages"]["torch"] == torch.__version__ or config["packages"]["torch"] in torch.__version__
    status = json.loads((undisturbed / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 10)
    metrics = rows(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 11))
    assert [row["minibatch"] for row in metrics] == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert [row["rollout"] for row in metrics] == [0] * 4 + [1] * 4 + [2] * 2
    summary = json.loads((undisturbed / "eval" / "summary.json").read_text())
    assert [(row["step"], row["n"]) for row in summary] == [(0, 20), (4, 20), (8, 20), (10, 20)]
    problems = rows(undisturbed / "eval" / "arithmetic.jsonl")
    assert sum(row["correct"] for row in problems if row["step"] == 10) == summary[-1]["correct"]
    completions = rows(undisturbed / "completions.jsonl")
    assert {row["rollout"] for row in completions} == {0, 1, 2}
    assert sorted(path.name for path in (undisturbed / "checkpoints").iterdir()) == ["step-10", "step-9"]


def test_a_group_of_the_first_and_one_of_the_last_minibatch_are_kept_token_by_token(undisturbed: Path):
    completions = rows(undisturbed / "completions.jsonl")
    places = [(row["step"], row["rollout"], row["minibatch"], row["epoch"]) for row in completions]
    assert places == [
        place for place in [(1, 0, 1, 1), (4, 0, 4, 1), (5, 1, 1, 1), (8, 1, 4, 1), (9, 2, 1, 1)] for _ in range(4)
    ]
    for start in range(0, len(completions), 4):
        group = completions[start : start + 4]
        assert len({row["problem"] for row in group}) == 1
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-4)
    for row in completions:
        assert len(row["pieces"]) == len(row["weights"]) == row["tokens"]
        assert "".join(row["pieces"]) == row["completion"]
        assert (row["pieces"][-1] == "") == (not row["truncated"])
        assert (set(row["weights"]) == {1.0}) == (row["minibatch"] == 1)
        assert row["status"] in ("ok", "no answer")


def test_every_step_has_a_histogram_of_its_token_weights(undisturbed: Path):
    metrics, histograms = rows(undisturbed / "metrics.jsonl"), rows(undisturbed / "weights.jsonl")
    assert [(row["step"], row["minibatch"], row["epoch"]) for row in histograms] == [
        (row["step"], row["minibatch"], row["epoch"]) for row in metrics
    ]
    for histogram, row in zip(histograms, metrics, strict=True):
        for sign in ("positive", "negative"):
            counts = histogram[sign]
            assert (row["minibatch"] == 1) <= (sum(counts) == counts[20])
            if sum(counts):
                middles = [histogram["width"] * (bin + 0.5) for bin in range(24)]
                mean = sum(c * m for c, m in zip(counts, middles, strict=True)) / sum(counts)
                assert mean == pytest.approx(row[f"weights/{sign}_mean"], abs=0.03)
                assert sum(counts[:10]) / sum(counts) == pytest.approx(row[f"weights/{sign}_attenuated"], abs=1e-6)


@pytest.mark.parametrize(("mu", "places"), [(1, [(1, 1, 1)] * 2), (2, [(1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 2, 2)])])
def test_two_groups_are_kept_of_each_pass_over_a_rollout_batch(undisturbed: Path, mu: int, places: list):
    name = f"kept-{mu}"
    sets = {"learning.mu": mu, "learning.epochs": mu, "steps": mu * mu, "rollout.temperature": 0.9}
    run(undisturbed.parent, "--run", name, *(part for key, value in sets.items() for part in ("-s", f"{key}={value}")))
    completions = rows(undisturbed.parent / name / "completions.jsonl")
    assert [(row["step"], row["minibatch"], row["epoch"]) for row in completions] == [
        p for p in places for _ in range(4)
    ]
    if mu == 1:
        assert completions[0]["problem"] != completions[4]["problem"]


def test_kept_weights_are_those_of_the_objective_at_that_step(undisturbed: Path, monkeypatch: pytest.MonkeyPatch):
    """Compare with w = ρ f'/f = 1 / (1 + (d/τ)²) of SSPO-atanlog at the log-ratios that the loop computes."""
    from sspo_cli.objectives import Objective

    original, seen = Objective.weights, []

    def noted(self, log_ratio, advantages, mask):
        seen.extend(zip(log_ratio.detach().clone(), advantages.tolist(), mask.sum(dim=1).tolist(), strict=True))
        return original(self, log_ratio, advantages, mask)

    monkeypatch.setattr(Objective, "weights", noted)
    run(undisturbed.parent, "--run", "derived", "-s", "steps=4")
    known = {}
    for log_ratio, advantage, length in seen:
        tau = 0.2 if advantage > 0 else 0.3
        weights = (1 / (1 + (log_ratio[:length] / tau) ** 2)).tolist()
        known.setdefault(round(advantage, 4), []).append(weights)
    stale = [row for row in rows(undisturbed.parent / "derived" / "completions.jsonl") if row["minibatch"] == 4]
    assert stale
    for row in stale:
        candidates = [w for w in known[round(row["advantage"], 4)] if len(w) == row["tokens"]]
        assert any(row["weights"] == pytest.approx(weights, abs=6e-4) for weights in candidates)


VALIDATED = [
    part
    for option in ("validation=16", "every=2", "samples=8", "temperature=0.8")  # sampled, so that the scores differ
    for part in ("-s", f"evaluation.{option}")
] + ["-s", "checkpoint.keep=1"]


@pytest.fixture(scope="session")
def validated(undisturbed: Path) -> Path:
    run(undisturbed.parent, "--run", "validated", *VALIDATED)
    return undisturbed.parent / "validated"


def test_the_best_checkpoint_by_validation_is_kept_next_to_the_last(validated: Path):
    summary = json.loads((validated / "eval" / "summary.json").read_text())
    scores = [(row["step"], row["n"], row["pass_at_1"]) for row in summary if row["benchmark"] == "validation"]
    assert [(step, n) for step, n, _ in scores] == [(step, 16) for step in (0, 2, 4, 6, 8, 10)]
    highest = max(score for _, _, score in scores)
    first = next(step for step, _, score in scores if score == highest)
    assert len({score for _, _, score in scores}) > 1
    best = json.loads((validated / "checkpoints" / "best.json").read_text())
    assert best == {"step": first, "pass_at_1": highest, "n": 16}
    folders = {path.name for path in (validated / "checkpoints").iterdir()} - {"best.json"}
    assert folders == {f"step-{first}", "step-10"}
    assert AutoModelForCausalLM.from_pretrained(validated / "checkpoints" / f"step-{first}")


def test_validation_problems_are_trained_on_nowhere(validated: Path, monkeypatch: pytest.MonkeyPatch):
    from sspo_cli import examination, session

    taught, seen = examination.demonstrations_of, []

    def noted(prompts, *more):
        seen.extend(prompt.problem.question for prompt in prompts)
        return taught(prompts, *more)

    monkeypatch.setattr(examination, "demonstrations_of", noted)
    monkeypatch.setattr(
        session, "train", lambda run: seen.extend(p.problem.question for task in run.prompts for p in task)
    )
    more = ["-s", "cold_start.tasks=[{name: arithmetic, limit: 200}]"]
    for name, options in (("untrained", []), ("untrained-either", more)):
        seen.clear()
        run(validated.parent, "--run", name, *VALIDATED, *options)
        held_out = {row["id"].removeprefix("arithmetic-0-") for row in rows(validated / "eval" / "validation.jsonl")}
        assert len(held_out) == 16
        assert len(seen) == 2 * 184
        assert not held_out & set(seen)


@pytest.mark.slow
def test_killed_between_a_measurement_and_its_choice_the_best_is_the_same(validated: Path, tmp_path: Path):
    run_killed(tmp_path, BEFORE_BEST, 8, *VALIDATED)
    killed = tmp_path / "killed"
    measured = json.loads((killed / "eval" / "summary.json").read_text())[-1]["step"]
    assert measured == 4 > json.loads((killed / "checkpoints" / "best.json").read_text())["step"]
    run(tmp_path, "--run", "killed", "--resume", *VALIDATED)
    for name in ("checkpoints/best.json", "eval/summary.json", "eval/validation.jsonl", "completions.jsonl"):
        assert (killed / name).read_text() == (validated / name).read_text(), name
    assert {p.name for p in (killed / "checkpoints").iterdir()} == {
        p.name for p in (validated / "checkpoints").iterdir()
    }


def test_the_first_minibatch_is_on_policy_and_the_later_ones_are_not(undisturbed: Path):
    for row in rows(undisturbed / "metrics.jsonl"):
        assert (row["ratio/log_std"] == 0.0) == (row["minibatch"] == 1)
        assert row["sampler/mismatch_max"] < 1e-4


def test_a_second_epoch_compares_with_the_policy_that_sampled(undisturbed: Path):
    run(undisturbed.parent, "--run", "epochs", "-s", "learning.epochs=2", "-s", "learning.mu=2", "-s", "steps=6")
    metrics = rows(undisturbed.parent / "epochs" / "metrics.jsonl")
    assert [(row["rollout"], row["epoch"], row["minibatch"]) for row in metrics] == [
        *[(0, epoch, minibatch) for epoch in (1, 2) for minibatch in (1, 2)],
        *[(1, 1, minibatch) for minibatch in (1, 2)],
    ]
    assert [row["ratio/log_std"] == 0.0 for row in metrics] == [True, False, False, False, True, False]
    assert all(row["ratio/log_std"] < 0.3 for row in metrics)  # without the old log-probabilities it would exceed 1
    assert metrics[2]["sampler/mismatch_max"] < 1e-4


def test_every_rollout_samples_with_its_own_seed(undisturbed: Path, monkeypatch: pytest.MonkeyPatch):
    generate, seeds = TorchEngine.generate, []

    def noted(self, request, on_completion=None):
        seeds.append((request.sampling.temperature, request.sampling.seed))
        return generate(self, request, on_completion)

    monkeypatch.setattr(TorchEngine, "generate", noted)
    monkeypatch.setattr("sspo_cli.session.check_model", lambda *_, **__: None)  # the check samples as well
    run(undisturbed.parent, "--run", "seeds")
    run(undisturbed.parent, "--run", "seeds-1", "--seed", "1")
    sampled = [seed for temperature, seed in seeds if temperature > 0]
    assert len(sampled) == len(set(sampled)) == 6


def test_the_rates_are_those_of_the_schedule_in_their_order(undisturbed: Path):
    """The rate rises to 1e-3 in ten steps of warm-up, in the metrics and in the optimizer's state."""
    logged = [row["optimizer/learning_rate"] for row in rows(undisturbed / "metrics.jsonl")]
    assert logged == pytest.approx([1e-4 * step for step in range(1, 11)])
    for step in (9, 10):
        groups = load_state(undisturbed / "checkpoints" / f"step-{step}")["optimizer"]["param_groups"]
        assert [group["lr"] for group in groups] == pytest.approx([1e-4 * step] * len(groups))


def test_the_final_model_loads_with_plain_transformers(undisturbed: Path):
    folder = undisturbed / "checkpoints" / "step-10"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2"}], add_generation_prompt=True, return_dict=False
    )
    assert model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False).shape[1] > len(prompt)


def test_the_same_seed_gives_identical_metrics_and_another_one_others(undisturbed: Path):
    run(undisturbed.parent, "--run", "again")
    again = undisturbed.parent / "again"
    assert without_times(again) == without_times(undisturbed)
    assert weights(again) == weights(undisturbed)
    run(undisturbed.parent, "--run", "other", "--seed", "1")
    assert without_times(undisturbed.parent / "other") != without_times(undisturbed)


def test_runs_with_the_same_cold_start_share_it_whatever_their_method(undisturbed: Path):
    runs = undisturbed.parent
    before = set((runs / "cold-starts").iterdir())
    run(runs, "--run", "gspo", "--method", "gspo")
    assert set((runs / "cold-starts").iterdir()) == before
    first, other = without_times(runs / "gspo"), without_times(undisturbed)
    # With the same weights, prompts and completions, all methods agree on-policy up to rounding.
    assert first[0] == pytest.approx(other[0], rel=1e-5)
    assert first[1:] != other[1:]
    run(runs, "--run", "elsewhere", "-s", "cold_start.learning_rate=5e-3")
    assert len(list((runs / "cold-starts").iterdir())) == len(before) + 1
