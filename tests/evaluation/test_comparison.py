"""The comparison that `sspo eval` prints: which target is better, by how much, and with what certainty.

The models are real, saved and loaded. The problems that each model solves are set by the test, so every number is
known.
"""

import gc
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Outcome, assert_error, sspo

from sspo_cli.config import ModelOptions, TinyModelOptions, load_config
from sspo_cli.evaluation import command
from sspo_cli.policy.checkpoint import save_checkpoint
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.rollout.engine import Request
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.types import Completion

TINY = {"hidden_size": 32, "heads": 1, "layers": 1, "intermediate_size": 48}
Solved = Sequence[set[int]]  # for each sample, the set of solved problems


def policy_of(seed: int) -> Policy:
    return load_policy(ModelOptions(tiny=TinyModelOptions(**TINY, seed=seed)), torch.device("cpu"))


def mark_of(policy: Policy) -> float:
    """Return a fingerprint that differs between models."""
    return float(policy.parameters[0].detach().double().abs().sum())


class Targets:
    """Models and runs in a folder, and the problems that each of them solves. Problem n asks for `n+1`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.solved: dict[float, Solved] = {}
        self.cut: set[int] = set()  # problems whose completions end at the token limit
        self.asked = 0  # prompts that were sampled from

    def problems(self, name: str, numbers: Sequence[int], wrong_golds: Sequence[int] = ()) -> Path:
        """Write a file of problems in which those of `wrong_golds` have another answer."""
        rows = [{"id": n, "question": f"{n}+1", "answer": str(n + 1 + 50 * (n in wrong_golds))} for n in numbers]
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    def model(self, name: str, solved: Solved) -> None:
        policy = policy_of(seed=len(self.solved))
        policy.save(self.path / name)
        self.solved[mark_of(policy)] = solved

    def run(self, name: str, solved: Solved, *overrides: str) -> None:
        policy = policy_of(seed=len(self.solved))
        tiny = [f"model.tiny.{key}={value}" for key, value in TINY.items()]
        options = load_config(overrides=["steps=3", *tiny, *overrides])
        with RunFolder.create(self.path / name, options, ["sspo", "train"]) as folder:
            save_checkpoint(folder.checkpoints / "step-3", policy, {})
        self.solved[mark_of(policy)] = solved

    def generate(self, policy: Policy, prompts: Sequence[list[int]], samples: int) -> list[list[Completion]]:
        solved = self.solved[mark_of(policy)]
        self.asked += len(prompts)
        completions = []
        for prompt in prompts:
            (number,) = map(int, re.findall(r"(\d+)\+1", policy.tokenizer.decode(prompt)))
            answers = [number + (1 if number in solved[sample] else 2) for sample in range(samples)]
            texts = [f"<think>{number}+1</think><answer>{answer}</answer>" for answer in answers]  # in the right format
            completions.append([Completion([1], [0.0], text, truncated=number in self.cut) for text in texts])
        return completions


@pytest.fixture
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Targets:
    known = Targets(tmp_path)

    def generate(engine: TorchEngine, request: Request, *_: object) -> list[list[Completion]]:
        return known.generate(engine.policy, request.prompts, request.group_size)

    monkeypatch.setattr(TorchEngine, "generate", generate)
    for check in ("check_model", "_check_structure"):  # the checks would notice that the model does not answer
        monkeypatch.setattr(command, check, lambda *_, **__: None)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # each collection takes half a second in a test process
    monkeypatch.chdir(tmp_path)
    return known


def measure(*arguments: object) -> str:
    done: Outcome = sspo("eval", "--runs-dir", ".", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_file(path: Path) -> str:
    return f"evaluation.benchmarks=[{{name: file, path: {path}, split: test}}]"


def table(text: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of the table under a heading, by their first cell."""
    rows: dict[str, list[str]] = {}
    lines = iter(text.split(heading, 1)[1].splitlines()[1:])
    for line in itertools.takewhile(lambda line: line.startswith(("┏", "┃", "┡", "│", "└", "├")), lines):
        if line.startswith("│"):
            name, *cells = (cell.strip() for cell in line.strip("│").split("│"))
            rows[name] = cells
    return rows


def interval_of(differences: Sequence[float]) -> tuple[float, float]:
    """Return the exact 2.5th and 97.5th percentiles of the mean of a bootstrap resample.

    They follow from convolving the distribution of one draw. Asserts that neither percentile is near a step of the
    distribution, where a finite number of resamples might give the neighbouring value.
    """
    unit = min((abs(d) for d in differences if d), default=1.0)
    steps = [round(d / unit) for d in differences]
    assert np.allclose(np.array(steps) * unit, differences)
    lowest = min(steps)
    one = np.bincount([step - lowest for step in steps]) / len(steps)
    total = np.ones(1)
    for _ in steps:
        total = np.convolve(total, one)
    below = np.cumsum(total)
    ends = [int(np.searchsorted(below, share)) for share in (0.025, 0.975)]
    for end, share in zip(ends, (0.025, 0.975), strict=True):
        error = 4 * math.sqrt(share * (1 - share) / 9_999)
        assert below[end] - share > error
        assert share - (below[end - 1] if end else 0.0) > error
    low, high = ((end + lowest * len(steps)) * unit / len(steps) for end in ends)
    return low, high


def cell(percent: float, low: float, high: float, form: str = "+.1f") -> str:
    return f"{percent:{form}} [{low:{form}}, {high:{form}}]"


N = 15
WEAK, STRONG = set(range(4)), set(range(2, 9))  # only the weak model solves 2, only the strong one 5
MCNEMAR = 2 * sum(math.comb(7, k) for k in range(3)) / 2**7  # 0.453
DIFFERENCES = [(n in STRONG) - (n in WEAK) for n in range(N)]


def test_a_difference_is_that_target_minus_the_first_with_mcnemar_s_p(targets: Targets) -> None:
    targets.problems("mine.jsonl", range(N))
    targets.model("weak", [WEAK])
    targets.model("strong", [STRONG])
    low, high = (100 * end for end in interval_of(DIFFERENCES))
    assert f"{MCNEMAR:.2g}" == "0.45"

    said = measure("weak", "strong", "-b", "mine.jsonl")
    assert table(said, "mine: difference from weak in points") == {"strong": [cell(20, low, high), "0.45"]}
    shares = {name: cells[0].split()[0] for name, cells in table(said, "Pass@1 in %").items()}
    assert shares == {"weak": "26.7", "strong": "46.7"}

    said = measure("strong", "weak", "-b", "mine.jsonl")
    assert table(said, "mine: difference from strong in points") == {"weak": [cell(-20, -high, -low), "0.45"]}
    for name, solved in (("weak", WEAK), ("strong", STRONG)):
        rows = [json.loads(line) for line in (targets.path / f"model-{name}" / "eval" / "mine.jsonl").open()]
        assert {int(row["id"]) for row in rows if row["correct"]} == solved
        (summary,) = json.loads((targets.path / f"model-{name}" / "eval" / "summary.json").read_text())
        assert (summary["correct"], summary["n"]) == (len(solved), N)


def test_every_target_is_compared_with_the_first_on_each_benchmark(targets: Targets) -> None:
    targets.problems("mine.jsonl", range(N))
    targets.problems("late.jsonl", range(6, 16))
    targets.model("weak", [WEAK])
    targets.model("strong", [STRONG])
    targets.model("best", [set(range(15))])
    said = measure("weak", "strong", "best", "-b", "mine.jsonl", "-b", "late.jsonl")
    points = {
        benchmark: {
            name: (cells[0].split()[0], cells[1])
            for name, cells in table(said, f"{benchmark}: difference from").items()
        }
        for benchmark in ("mine", "late")
    }
    # In the first file `best` solves 11 more than `weak`. In the second, `strong` and `best` solve 3 and 9 more.
    assert points["mine"] == {"strong": ("+20.0", "0.45"), "best": ("+73.3", f"{2**-10:.2g}")}
    assert points["late"] == {"strong": ("+30.0", f"{2**-2:.2g}"), "best": ("+90.0", f"{2**-8:.2g}")}
    assert [cells.split()[0] for cells in table(said, "Pass@1 in %")["best"]] == ["100.0", "90.0"]


def test_several_samples_are_shares_and_have_no_mcnemar_p(targets: Targets) -> None:
    weak, strong = [1, 4, 2, 1, 1, 3], [2, 3, 4, 3, 1, 2]  # how many of four samples solve each problem
    targets.problems("mine.jsonl", range(6))
    for name, counts in (("weak", weak), ("strong", strong)):
        targets.model(name, [{n for n, right in enumerate(counts) if sample < right} for sample in range(4)])
    low, high = (100 * end for end in interval_of([(b - a) / 4 for a, b in zip(weak, strong, strict=True)]))
    said = measure("weak", "strong", "-b", "mine.jsonl", "--samples", 4, "--temperature", 1)
    assert table(said, "mine: difference from weak in points") == {"strong": [cell(100 * 3 / 24, low, high), "–"]}
    by_k = {
        name: [sum(1 - math.comb(4 - right, k) / math.comb(4, k) for right in counts) / 6 for k in (1, 2, 4)]
        for name, counts in (("weak", weak), ("strong", strong))
    }
    assert table(said, "mine: unbiased pass@k in %") == {
        name: [f"{100 * share:.1f}" for share in shares] for name, shares in by_k.items()
    }


@pytest.mark.parametrize(("first", "other", "points"), [("once", "twice", "+20.0"), ("twice", "once", "-20.0")])
def test_one_sample_against_several_has_no_mcnemar_p(targets: Targets, first: str, other: str, points: str) -> None:
    benchmarks = of_file(targets.problems("mine.jsonl", range(5)))
    targets.run("once", [{0, 1}], benchmarks, "evaluation.max_new_tokens=7")
    targets.run("twice", [{0, 1, 2}, {0, 2, 3}], benchmarks, "evaluation.samples=2", "evaluation.temperature=1")
    said = measure(first, other)
    (cells,) = table(said, f"mine: difference from {first} in points").values()
    assert (cells[0].split()[0], cells[1]) == (points, "–")
    assert table(said, "mine: unbiased pass@k in %") == {"once": ["40.0", "–"], "twice": ["60.0", "80.0"]}
    assert "once, mine (test): 5 problems, greedy, at most 7 tokens, prompt plain, checkpoint step-3" in said
    assert "twice, mine (test): 5 problems, 2 samples at temperature 1, seed 0, at most 64 tokens" in said
    assert "their scores are not comparable; set one limit with --max-new-tokens" in said


def test_targets_that_answered_other_problems_are_not_compared(targets: Targets) -> None:
    targets.run("one", [WEAK], of_file(targets.problems("a/mine.jsonl", range(6))))
    others = {"as many": range(2, 8), "fewer": range(5), "more": range(7)}
    for name, numbers in others.items():
        targets.run(name, [STRONG], of_file(targets.problems(f"data/{name}/mine.jsonl", numbers)))
    said = measure("one", *others)
    assert table(said, "mine: difference from one in points") == {
        name: ["measured on other problems", "–"] for name in others
    }
    shares = {name: [cell.split()[0] for cell in cells] for name, cells in table(said, "Pass@1 in %").items()}
    assert shares == {  # each target has its own column
        "one": ["66.7", "–", "–", "–"],
        "as many": ["–", "100.0", "–", "–"],
        "fewer": ["–", "–", "60.0", "–"],
        "more": ["–", "–", "–", "71.4"],
    }


def test_a_target_with_another_prompt_or_sampler_is_not_compared(targets: Targets) -> None:
    file = of_file(targets.problems("mine.jsonl", range(6)))
    targets.run("one", [WEAK], file)
    targets.run("asked to think", [STRONG], file, "prompt=think-answer")
    said = measure("one", "asked to think")
    (why,) = table(said, "mine: difference from one in points").values()
    assert why == ["measured with another prompt", "–"]
    shares = {name: [cell.split()[0] for cell in cells] for name, cells in table(said, "Pass@1 in %").items()}
    assert shares == {"one": ["66.7", "–"], "asked to think": ["–", "66.7"]}
    assert "mine (prompt plain)" in said


def test_files_of_one_name_are_filed_apart_and_each_is_measured_again_in_its_place(targets: Targets) -> None:
    targets.problems("a/problems.jsonl", range(6))
    targets.problems("b/problems.jsonl", range(2, 8))
    targets.problems("c/problems.jsonl", range(6), wrong_golds=[4])  # the problems of a with a corrected answer
    targets.run("one", [WEAK])
    for _ in range(2):
        for folder in "abc":
            measure("one", "-b", f"{folder}/problems.jsonl", "--again")
    summaries = json.loads((targets.path / "one" / "eval" / "summary.json").read_text())
    assert [(row["path"], row["correct"]) for row in summaries] == [
        ("a/problems.jsonl", 4),
        ("b/problems.jsonl", 2),
        ("c/problems.jsonl", 4),
    ]
    assert len({row["problems"] for row in summaries}) == 3
    assert {row["engine"] for row in summaries} == {"torch"}
    answers = [json.loads(line) for line in (targets.path / "one" / "eval" / "problems.jsonl").open()]
    assert [row["identity"] for row in answers] == [row["identity"] for row in summaries for _ in range(6)]


def test_a_mistyped_name_is_reported_before_another_target_is_measured(targets: Targets) -> None:
    targets.run("one", [WEAK], of_file(targets.problems("mine.jsonl", range(6))))
    assert_error(sspo("eval", "--runs-dir", ".", "one", "tpyo"), "there is no run tpyo in")
    assert not (targets.path / "one" / "eval" / "summary.json").exists()


def test_equal_differences_have_an_exact_interval_and_a_sentence(targets: Targets) -> None:
    targets.problems("mine.jsonl", range(N))
    for name in ("one", "other"):
        targets.model(name, [WEAK])
    said = measure("one", "other", "-b", "mine.jsonl")
    most = 100 * (1 - 0.025 ** (1 / N))
    assert table(said, "mine: difference from one in points") == {"other": [cell(0, -most, most), "1"]}
    assert "other and one differ by the same amount on every problem" in said


def test_the_order_of_the_problems_does_not_matter(targets: Targets) -> None:
    targets.run("one", [WEAK], of_file(targets.problems("a/mine.jsonl", range(N))))
    targets.run("other", [STRONG], of_file(targets.problems("b/mine.jsonl", range(N - 1, -1, -1))))
    low, high = (100 * end for end in interval_of(DIFFERENCES))
    assert table(measure("one", "other"), "mine: difference from one in points") == {
        "other": [cell(20, low, high), "0.45"]
    }


def test_equal_ids_of_files_with_other_answers_are_other_problems(targets: Targets) -> None:
    targets.run("one", [WEAK], of_file(targets.problems("a/mine.jsonl", range(6))))
    targets.run("other", [STRONG], of_file(targets.problems("b/mine.jsonl", range(6), wrong_golds=[4])))
    assert table(measure("one", "other"), "mine: difference from one in points") == {
        "other": ["measured on other problems", "–"]
    }


def test_a_benchmark_most_of_whose_completions_were_cut_says_so(targets: Targets) -> None:
    targets.cut = {0, 1, 2}
    targets.model("weak", [WEAK])
    for name, n in (("half", 6), ("most", 5)):
        targets.problems(f"{name}.jsonl", range(n))
    said = measure("weak", "-b", "half.jsonl", "-b", "most.jsonl", "--max-new-tokens", 9).splitlines()
    (place,) = (place for place, line in enumerate(said) if "most completions were truncated at 9 tokens" in line)
    assert said[place - 1].startswith("weak, most (test): 5 problems, greedy, at most 9 tokens")


def test_a_published_benchmark_from_a_path_is_its_test_split(targets: Targets) -> None:
    targets.model("weak", [WEAK])
    rows = [{"question": f"{n}+1", "answer": f"#### {n + 1}"} for n in range(6)]
    (targets.path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = measure("weak", "-b", "gsm8k=rows.jsonl")
    assert "weak, gsm8k (test): 6 problems" in said
    assert table(said, "Pass@1 in %")["weak"][0].startswith("66.7 ")


def test_what_was_done_of_other_weights_in_the_same_folder_is_not_gone_on_with(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets.problems("mine.jsonl", range(6))
    targets.model("model", [WEAK])
    command = ("model", "-b", "mine.jsonl", "-s", "rollout.max_rows=2")
    generate, calls = targets.generate, itertools.count(1)

    def interrupted(*asked: Any) -> list[list[Completion]]:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return generate(*asked)

    monkeypatch.setattr(targets, "generate", interrupted)
    assert sspo("eval", "--runs-dir", ".", *command).returncode == 130
    targets.model("model", [{5}])
    assert table(measure(*command), "Pass@1 in %")["model"][0].startswith("16.7 ")


# ---- what is recorded already


def is_sampled(targets: Targets, *arguments: object) -> bool:
    """Run `sspo eval` and return whether it sampled; check that it prints "(recorded)" exactly if it did not."""
    asked = targets.asked
    printed = measure(*arguments)
    is_new = targets.asked > asked
    assert ["(recorded)" in printed, "--again measures it again" in printed] == [not is_new] * 2
    return is_new


def test_what_is_recorded_is_shown_and_replaced_only_by_again(targets: Targets) -> None:
    targets.run("one", [WEAK], of_file(targets.problems("mine.jsonl", range(6))))
    (weights,) = targets.solved
    summary, answers = (targets.path / "one" / "eval" / name for name in ("summary.json", "mine.jsonl"))
    first = table(measure("one"), "Pass@1 in %")["one"][0]
    files = summary.read_bytes(), answers.read_bytes()
    targets.solved[weights] = [{5}]  # sampling again would show this
    assert table(measure("one"), "Pass@1 in %")["one"][0] == f"{first} (recorded)"
    assert (summary.read_bytes(), answers.read_bytes()) == files
    assert table(measure("one", "--again"), "Pass@1 in %")["one"][0].startswith("16.7 ")
    assert [row["correct"] for row in json.loads(summary.read_text())] == [1]
    assert sum(json.loads(line)["correct"] for line in answers.open()) == 1
    assert not list((summary.parent / "partial").glob("*"))


def test_other_conditions_problems_or_weights_are_sampled(targets: Targets) -> None:
    targets.problems("mine.jsonl", range(6))
    targets.model("model", [WEAK, WEAK])
    command = ("model", "-b", "mine.jsonl")
    sampled = ("--samples", 2, "--temperature", 1)
    for change in ([], sampled, ["--max-new-tokens", 9], ["--temperature", 1, "--top-p", 0.5], ["-s", "prompt=plain"]):
        assert is_sampled(targets, *command, *change)
        assert not is_sampled(targets, *command, *change)
    assert is_sampled(targets, *command, *sampled, "--seed", 3)
    assert_error(
        sspo("eval", "--runs-dir", ".", *command, "--seed", 3),
        "--seed would be ignored: greedy completions do not depend on it",
    )
    targets.problems("mine.jsonl", range(5, -1, -1))  # the same problems in another order
    assert not is_sampled(targets, *command)
    targets.problems("mine.jsonl", range(6), wrong_golds=[4])
    assert is_sampled(targets, *command)
    targets.model("model", [WEAK, WEAK])  # another seed's weights in the same folder
    assert is_sampled(targets, *command)
    assert not is_sampled(targets, *command)


@pytest.mark.parametrize("fault", ["edited", "shorter", "missing"])
def test_a_recorded_score_without_its_answers_is_not_believed(targets: Targets, fault: str) -> None:
    targets.problems("mine.jsonl", range(6))
    targets.model("model", [WEAK])
    measure("model", "-b", "mine.jsonl")
    answers = targets.path / "model-model" / "eval" / "mine.jsonl"
    whole = answers.read_text()
    damaged = {"edited": whole.replace("true", "false", 1), "shorter": whole.split("\n", 1)[1], "missing": ""}[fault]
    answers.write_text(damaged) if damaged else answers.unlink()
    assert is_sampled(targets, "model", "-b", "mine.jsonl")
    assert answers.read_text() == whole
