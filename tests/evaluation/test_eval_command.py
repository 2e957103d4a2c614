"""`sspo eval` from the command line, on a small run, its checkpoints and a model folder."""

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from commands import assert_error, sspo
from forked import Captured
from measured_runs import SMALL, measure, rows, summaries

from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.statistics import mcnemar, paired_bootstrap, wilson

MODELS = {"prompt": "plain", "rollout__max_new_tokens": 48, "evaluation__benchmarks": SMALL["evaluation__benchmarks"]}


def test_a_run_its_folder_its_checkpoint_and_a_model_folder_agree_with_what_training_measured(runs):
    before = (runs / "one" / "eval" / "summary.json").read_bytes()
    for target in ("one", runs / "one", runs / "one" / "checkpoints" / "step-2"):
        assert "(recorded)" not in measure(target, "--again").stdout
        assert (runs / "one" / "eval" / "summary.json").read_bytes() == before
    assert "(recorded)" in measure("one").stdout
    shutil.copytree(runs / "one" / "checkpoints" / "step-2", runs / "models" / "after")
    measure("models/after", **MODELS)
    ours, training = summaries(runs / "model-models-after")[-1], summaries(runs / "one")[-1]
    assert ours["trained_on"] is None  # unknown for a model without a run
    assert {**ours, "step": 2, "checkpoint": "step-2", "trained_on": 0} == training
    assert (training["low"], training["high"]) == wilson(training["correct"], 30)
    about = json.loads((runs / "model-models-after" / "model.json").read_text())
    assert about["model"] == str(runs / "models" / "after")
    assert about["options"]["rollout"]["max_new_tokens"] == 48


def test_what_is_right_is_counted(runs):
    said = measure("one", "-b", "mine.jsonl").stdout
    n = len(rows(runs / "mine.jsonl"))
    right = (n + 1) // 2
    low, high = wilson(right, n)
    assert f"{100 * right / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in said
    assert f"one, mine (test): {n} problems, greedy, at most 48 tokens, prompt plain, checkpoint step-2" in said


def test_several_targets_on_several_benchmarks_are_compared_problem_by_problem(runs):
    done = measure("one", "models/before", "-b", "arithmetic", "-b", "mine.jsonl", **MODELS)
    folders = {"one": runs / "one", "models/before": runs / "model-models-before"}
    for benchmark in ("arithmetic", "mine"):
        right = {}
        for name, folder in folders.items():
            newest = rows(folder / "eval" / f"{benchmark}.jsonl")[-30 if benchmark == "arithmetic" else 0 :]
            right[name] = {row["id"]: row["correct"] for row in newest}
        ids = list(right["one"])
        a, b = ([right[name][problem] for problem in ids] for name in ("models/before", "one"))
        difference, low, high = (100 * value for value in paired_bootstrap(a, b))
        line = next(
            line
            for line in done.stdout.split(f"{benchmark}: difference from one in points")[1].splitlines()
            if "models/before" in line
        )
        assert f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]" in line
        assert f" {mcnemar(a, b):.2g} " in line
    assert done.stdout.count("models/before, ") == 2


def test_a_benchmark_has_its_own_token_limit_and_the_flag_wins_over_it(runs):
    short = "[{name: arithmetic, split: test, limit: 30, max_new_tokens: 5}]"
    options = {**MODELS, "evaluation__benchmarks": short}
    for limit, flag in ((5, []), (7, ["--max-new-tokens", 7])):
        done = measure("models/before", *flag, **options)
        (measured,) = [row for row in summaries(runs / "model-models-before") if row["max_new_tokens"] == limit]
        answers = rows(runs / "model-models-before" / "eval" / "arithmetic.jsonl")[-30:]
        assert max(row["tokens"] for row in answers) == limit
        assert measured["truncated"] == sum(row["finish"] == "length" for row in answers) > 0
        assert f"], {100 * measured['truncated'] / 30:.1f} % truncated" in done.stdout
        assert f"at most {limit} tokens" in done.stdout


def test_a_model_alone_has_the_defaults_of_a_named_model_also_under_what_is_not_given(runs):
    measure("models/before", "-b", "mine.jsonl", "--limit", 1, "--max-new-tokens", 4)
    done = measure("models/before", "-b", "mine.jsonl", "--limit", 1, rollout__max_new_tokens=9)
    assert "at most 9 tokens, prompt think-answer" in done.stdout


def test_truncated_sampling_is_another_measurement(runs):
    measure("one", "-b", "mine.jsonl", "--temperature", 1)
    done = measure("one", "-b", "mine.jsonl", "--temperature", 1, "--top-p", 0.001)
    assert "sampled by torch, top_p=0.001, problems" in done.stdout
    whole, cut = [row for row in summaries(runs / "one") if row["benchmark"] == "mine"]
    assert (whole["engine"], cut["engine"]) == ("torch", "torch,top_p=0.001")
    greedy = measure("one", "-b", "mine.jsonl").stdout  # so small a top_p keeps one token
    assert f"{100 * cut['pass_at_1']:.1f} [" in greedy


def test_a_model_next_to_a_run_is_measured_like_the_run(runs):
    measure("models/before", "one")
    (base,), trained = summaries(runs / "model-models-before"), summaries(runs / "one")[-1]
    assert base["max_new_tokens"] == 48
    same = ("benchmark", "split", "n", "samples", "temperature", "max_new_tokens", "prompt", "seed")
    assert [base[name] for name in same] == [trained[name] for name in same]


def test_a_model_and_a_run_are_not_measured_with_different_token_limits(runs):
    given = {**MODELS, "rollout__max_new_tokens": 20}
    done = sspo("eval", "--runs-dir", ".", "one", "models/before", **given)
    assert_error(
        done, "arithmetic would be measured for one with at most 48 tokens and models/before with at most 20, so their"
    )
    assert "set the same limit for both with --max-new-tokens" in done.stderr
    assert not (runs / "model-models-before").exists()
    measure("one", "models/before", "--max-new-tokens", 6, **given)


def test_samples_at_a_temperature_do_not_depend_on_what_else_is_measured(runs):
    sampled = ("--samples", 3, "--temperature", 1, "--seed", 5)
    measure("one", "-b", "mine.jsonl", *sampled)
    alone = (runs / "one" / "eval" / "mine.jsonl").read_bytes()
    shutil.rmtree(runs / "one" / "eval")
    said = measure("one", "-b", "arithmetic", "-b", "mine.jsonl", *sampled).stdout
    assert (runs / "one" / "eval" / "mine.jsonl").read_bytes() == alone
    answers = rows(runs / "one" / "eval" / "mine.jsonl")
    assert len({(row["id"], row["sample"]) for row in answers}) == len(answers) == 3 * len(rows(runs / "mine.jsonl"))
    assert len({row["completion"] for row in answers}) > len(answers) / 3
    summary = summaries(runs / "one")[-1]
    assert (summary["benchmark"], summary["samples"], summary["temperature"], summary["seed"]) == ("mine", 3, 1.0, 5)
    assert summary["correct"] == sum(row["correct"] for row in answers)
    assert "3 samples at temperature 1, seed 5" in said
    assert "mine: unbiased pass@k" in said


def test_measurements_under_other_conditions_stand_side_by_side(runs):
    measure("one", "--temperature", 1)
    measure("one", "--max-new-tokens", 8)
    at_the_end = [row for row in summaries(runs / "one") if row["step"] == 2]
    conditions = [(row["temperature"], row["max_new_tokens"]) for row in at_the_end]
    assert conditions == [(0.0, 48), (1.0, 48), (0.0, 8)]
    assert len(rows(runs / "one" / "eval" / "arithmetic.jsonl")) == 4 * 30


def test_a_killed_evaluation_ends_byte_for_byte_the_same(runs):
    command = ["eval", "models/before", "--runs-dir", ".", "--samples", "2", "--temperature", "1", "-b", "arithmetic"]
    command += ["-b", "mine.jsonl", "-s", "rollout.max_rows=16", "-s", "evaluation.max_new_tokens=16"]
    command += ["-s", f"evaluation.benchmarks={SMALL['evaluation__benchmarks']}"]
    assert sspo(*command).returncode == 0
    folder = runs / "model-models-before" / "eval"
    whole = {path.name: path.read_bytes() for path in folder.glob("*.json*")}
    assert {"arithmetic.jsonl", "mine.jsonl", "summary.json"} <= whole.keys()
    shutil.rmtree(runs / "model-models-before")

    killed = f"""
import os, signal, sys
from sspo_cli.evaluation import sampling
append, chunks = sampling.append_jsonl, 0
def fatal(path, row):
    global chunks
    append(path, row)
    chunks += 1
    if chunks == 3:
        with open(path, "ab") as file:
            file.write(b'{{"rows": [{{"id": "torn')
        os.kill(os.getpid(), signal.SIGKILL)
sampling.append_jsonl = fatal
sys.argv = ["sspo", *{command!r}]
from sspo_cli.cli import main
main()
"""
    process = Captured("-c", killed)
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert not (folder / "summary.json").exists()
    assert sspo(*command).returncode == 0
    assert {path.name: path.read_bytes() for path in folder.glob("*.json*")} == whole
    assert not list((folder / "partial").glob("*"))


def test_after_ctrl_c_the_same_command_continues(runs, monkeypatch):
    calls, generate = [], TorchEngine.generate

    def counted(stop_at: int) -> Callable:
        def interrupted(self, request, *more):
            calls.append(request.sampling.seed)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return generate(self, request, *more)

        calls.clear()
        return interrupted

    for check in ("check_model", "_check_structure"):  # the checks sample as well
        monkeypatch.setattr(f"sspo_cli.evaluation.command.{check}", lambda *_, **__: None)
    command = ("eval", "one", "models/before", "--runs-dir", ".", "-b", "mine.jsonl", "--again")
    monkeypatch.setattr(TorchEngine, "generate", counted(2))
    done = sspo(*command)
    assert done.returncode == 130
    assert "stopped; finished work is saved; the same command resumes it" in done.stderr
    monkeypatch.setattr(TorchEngine, "generate", counted(0))
    assert sspo(*command).returncode == 0
    assert len(calls) == 1  # for the second target; the first was finished before
    assert sspo(*command).returncode == 0
    assert len(calls) == 3  # a finished command starts over
    assert sspo(*command[:-1]).returncode == 0
    assert len(calls) == 3  # without --again, recorded results are not sampled again


def test_which_checkpoint_of_a_run(runs):
    assert "checkpoint step-1" in measure("one", "--checkpoint", 1).stdout
    assert [row["step"] for row in summaries(runs / "one")] == [0, 2, 1]
    assert_error(sspo("eval", "one", "--runs-dir", ".", "--checkpoint", "best"), "has no best checkpoint")
    best = {"step": 1, "pass_at_1": 0.5, "n": 8}
    (runs / "one" / "checkpoints" / "best.json").write_text(json.dumps(best))
    assert "checkpoint step-1" in measure("one", "--checkpoint", "best").stdout
    assert "checkpoint step-2" in measure("one").stdout
    assert_error(sspo("eval", "one", "--runs-dir", ".", "--checkpoint", 7), "or one of its steps: 1, 2")
    done = sspo("eval", "models/before", "--runs-dir", ".", "--checkpoint", 1)
    assert_error(done, "a model has no checkpoints")
    assert_error(
        sspo("eval", "one/checkpoints/step-1", "--runs-dir", ".", "--checkpoint", 1), "is a checkpoint already"
    )


def test_a_run_that_vllm_sampled_for_is_measured_without_vllm(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    config = runs / "one" / "config.json"
    about = json.loads(config.read_text())
    about["options"]["rollout"]["engine"] = "vllm"
    config.write_text(json.dumps(about))
    before = summaries(runs / "one")
    assert_error(sspo("eval", "--runs-dir", ".", "one"), "vLLM is not installed")
    measure("one", "--engine", "torch")
    assert summaries(runs / "one") == before
    assert_error(sspo("eval", "--runs-dir", ".", "one", "--engine", "vllm"), "vLLM is not installed")


def test_completions_longer_than_a_vllm_server_takes_are_refused_and_nothing_is_sampled(runs, monkeypatch):
    asked = []

    def answer(client, method, path, json=None):
        asked.append(path)
        return httpx.Response(200, json={"data": [{"id": "served", "max_model_len": 60}]})

    monkeypatch.setattr(httpx.Client, "request", answer)
    before = sorted(runs.rglob("*"))
    server = {"rollout__vllm__server": "http://node:8000", "rollout__vllm__exchange": runs}
    done = sspo("eval", "--runs-dir", ".", "models/before", **MODELS, **server)
    assert_error(done, "accepts sequences of 60 tokens, but ")
    assert "/v1/completions" not in asked
    assert sorted(runs.rglob("*")) == before


def test_a_limited_evaluation_is_printed_and_not_recorded(runs):
    before = sorted(runs.rglob("*"))
    said = measure("one", "models/before", "--limit", 5, **MODELS).stdout
    assert said.count("arithmetic (test): 5 problems") == 2
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there is no run nothing in"),
        ([], "give runs or models to measure"),
        (["one", "--completions", "mine.jsonl"], "give runs or models to measure"),
        (
            ["--completions", "mine.jsonl", "--samples", "4"],
            "nothing is sampled with --completions; leave out sampling options",
        ),
        ([""], "the name of a run is empty"),
        (["one", "-b", ""], "unknown benchmark ''"),
        (["one", "-b", "gsm8k="], "has no path after"),
        (["one", "-b", "file"], "benchmark `file` has no path"),
        (
            ["one", "--again", "--limit", "3"],
            "results with --limit are never recorded, so they are always measured again",
        ),
        (["--completions", "mine.jsonl"], "--completions reads no runs; leave out --runs-dir"),
        (
            ["--completions", "mine.jsonl", "--again"],
            "nothing is sampled with --completions; leave out sampling options",
        ),
        (["."], "is a folder of runs, not a run; name one of them: one"),
        (["one", "--top-p", "0.9"], "--top-p and --top-k do not apply to greedy completions; add --temperature"),
        (["one", "--temperature", "inf"], "--temperature inf would"),
        (["one", "--out", "graded.jsonl"], "--out applies only to --completions"),
        (["one", "-b", "gsm9k"], "unknown benchmark gsm9k; use arithmetic, calculator"),
        (["one", "-b", "mine.jsonl", "-b", "./mine.jsonl"], "two of the benchmarks have the same name"),
        (["one", "-b", "models/arithmetic.jsonl"], "would be stored as arithmetic"),
        (["one", "-b", "models/validation.jsonl"], "would be stored as validation"),
        (["one", "-b", "gsm8k=nowhere.jsonl"], "data file nowhere.jsonl does not exist"),
        (["one", "--samples", "4"], "4 greedy completions would all be the same; add --temperature"),
        (["one", "./one"], "one and ./one are the same"),
        (["one", "--max-new-tokens", "5000"], "5000 for the completion, but the model's context is"),
        (["models/before", "-b", "mint=nowhere", "-s", "episode.turns=3"], "data file nowhere has an unknown type"),
        (["models/before", "-b", "mine.jsonl", "-s", "episode.turns=3"], "episode is given, but no task has episodes"),
        (["one", "-s", "prompt=plain"], "is measured with its own options; leave out -c and -s"),
    ],
)
def test_wrong_input_is_reported_in_a_sentence(runs, arguments, said):
    for name in ("arithmetic", "validation"):
        (runs / "models" / f"{name}.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    before = sorted(runs.rglob("*"))
    assert_error(sspo("eval", "--runs-dir", ".", *arguments), said)
    assert sorted(runs.rglob("*")) == before


def test_the_results_of_two_models_do_not_mix(runs):
    measure("models/before", "-b", "mine.jsonl")
    shutil.copytree(runs / "models" / "before", runs / "models-before")
    assert_error(sspo("eval", "models-before", "--runs-dir", "."), "holds the results of another model")


def test_a_run_is_measured_where_the_kernels_that_it_learned_with_are_not(runs: Path):
    config = runs / "one" / "config.json"
    about = json.loads(config.read_text())
    about["options"]["model"]["kernels"] = "liger"
    config.write_text(json.dumps(about))
    assert "30 problems" in measure("one", "--limit", 30).stdout
