"""`sspo eval` refuses options that would have no effect."""

import pytest
from commands import assert_error, sspo
from measured_runs import measure


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "model.name=other",
            "-s model.name would be ignored: an evaluation does not use it; name the model as an argument",
        ),
        ("seed=3", "-s seed would be ignored: an evaluation does not use it; use --seed, the seed of the sampling"),
        ("rollout.temperature=0.5", "use --temperature"),
        ("optimizer={learning_rate: 1}", "-s optimizer.learning_rate would be ignored"),
        ("evaluation.every=3", "-s evaluation.every would be ignored: an evaluation does not use it; leave it out"),
        ("rollout.promts=3", "unknown option `rollout.promts`; did you mean `rollout.prompts`?"),
    ],
)
def test_an_option_that_an_evaluation_would_ignore_is_refused(runs, option, said):
    assert_error(sspo("eval", "--runs-dir", ".", "models/before", "-s", option), said)
    assert not (runs / "model-models-before").exists()


def test_an_option_that_grading_would_ignore_is_refused(runs):
    done = sspo("eval", "--completions", "mine.jsonl", "-s", "prompt=plain")
    assert_error(done, "-s prompt would be ignored: the grading of recorded completions does not use it; leave it out")


MINE = ["-b", "mine.jsonl"]
ONE_LIMIT = "evaluation.benchmarks=[{name: arithmetic, limit: 2, max_new_tokens: 4}]"


@pytest.mark.parametrize(
    ("arguments", "option", "said"),
    [
        (["one", "--seed", 3], None, "--seed would be ignored: greedy completions do not depend on it"),
        (MINE, "evaluation.benchmarks=[chains]", "-b names the benchmarks, and chains is not among them"),
        (MINE, "model.revision=main", "model.revision would be ignored: model.name = models/before is a local folder"),
        (MINE, "model.weights=float32", "use model.dtype"),
        ([*MINE, "--max-new-tokens", 8], "evaluation.max_new_tokens=9", "--max-new-tokens is given, too"),
        ([*MINE, "--temperature", 1], "evaluation.temperature=0.5", "--temperature is given, too"),
        (["-s", ONE_LIMIT], "evaluation.max_new_tokens=9", "each benchmark has its own token limit"),
        (MINE, "rollout.vllm.kv_cache_gib=1", "rollout.engine = auto samples with torch on a CPU"),
        ([*MINE, "--engine", "torch"], "rollout.vllm.kv_cache_gib=1", "--engine torch is given, too"),
        ([*MINE, "--engine", "torch"], "rollout.engine=vllm", "--engine torch is given, too"),
        ([*MINE, "-s", "chat.system=Hi"], "prompt=plain", "prompt would be ignored: chat.system replaces"),
        (["-b", "calculator"], "prompt=plain", "each benchmark is played in episodes"),
        (["-b", "calculator"], "episode.memory_mib=99", "it is for programs, which only code-acting runs"),
        (
            ["-b", "mine.jsonl:dev"],
            "prompt=plain",
            "-b: mine.jsonl is a single file, which is read whole; leave out :dev",
        ),
    ],
)
def test_an_option_without_effect_next_to_others_is_refused(runs, monkeypatch, arguments, option, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = arguments if option is None else ["models/before", *arguments, "-s", option]
    assert_error(sspo("eval", "--runs-dir", ".", *given), said)
    assert not (runs / "model-models-before").exists()


def test_options_that_are_given_twice_alike_or_at_their_defaults_are_taken(runs):
    flags = ("--max-new-tokens", 4, "--seed", 0, "--limit", 1, "-b", "mine.jsonl")
    options = {"evaluation__max_new_tokens": 4, "evaluation__benchmarks": "[{name: file, path: mine.jsonl}]"}
    assert "at most 4 tokens" in measure("models/before", *flags, **options).stdout
