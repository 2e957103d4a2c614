"""An evaluation: its scores, its chunks, and how it continues after it was stopped."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from random import Random
from threading import Event

import pytest
import torch
from filelock import FileLock

from sspo_cli.errors import UserError
from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.evaluation.identity import Identity
from sspo_cli.evaluation.partial import partial_path, remove_abandoned
from sspo_cli.evaluation.sampling import evaluate
from sspo_cli.evaluation.summary import record, summarize
from sspo_cli.policy.model import fingerprint
from sspo_cli.rewards import AnswerChecker, Verdict
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.statistics import wilson
from sspo_cli.tasks.prompts import Template
from sspo_cli.types import Completion, Problem, Prompt

GREEDY = Conditions(samples=1, temperature=0.0, max_new_tokens=8, prompt="plain", seed=0, max_rows=4)
SAMPLED = replace(GREEDY, samples=3, temperature=0.7, max_rows=6)


class Guessing:
    """Engine that answers the sum of a prompt's tokens or one more, as drawn with the prompt's seed.

    The call with index `stop_at` is interrupted.
    """

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[int, Sampling]] = []
        self.seeds: list[int] = []
        self._stop_at = stop_at

    def sync(self, policy: object) -> None: ...

    def generate(self, request: Request, on_completion: object = None) -> list[list[Completion]]:
        prompts, group_size, sampling = request.prompts, request.group_size, request.sampling
        if len(self.calls) == self._stop_at:
            raise KeyboardInterrupt
        self.calls.append((len(prompts) * group_size, sampling))
        self.seeds += [request.seed_of(index) for index in range(len(prompts))]
        draws = [Random(request.seed_of(index)) for index in range(len(prompts))]
        return [
            [self._completion(sum(prompt) + draw.randint(0, 1), draw) for _ in range(group_size)]
            for prompt, draw in zip(prompts, draws, strict=True)
        ]

    def _completion(self, answer: int, draw: Random) -> Completion:
        length = draw.randint(1, 8)
        return Completion([1] * length, [0.0] * length, f"<answer>{answer}</answer>", truncated=length == 8)


def benchmark(n: int = 10) -> Benchmark:
    problems = [Problem(str(i), f"1+{i}", str(1 + i), "sums") for i in range(n)]
    return Benchmark("sums", "test", [Prompt(p, p.question, [1, int(p.id)]) for p in problems])


@pytest.fixture
def checker():
    with AnswerChecker() as checker:
        yield checker


def identity(of=None, engine="torch"):
    return Identity.of((of or benchmark()).prompts, Template.of("plain"), engine)


def measure(engine, checker, conditions, partial=None, of=None):
    return evaluate(engine, of or benchmark(), checker, conditions, identity(of), lambda n: None, partial)


def test_a_row_for_each_problem_and_sample_and_a_summary_that_counts_them(checker):
    rows = measure(Guessing(), checker, SAMPLED)
    assert [(row["id"], row["sample"]) for row in rows] == [(str(i), sample) for i in range(10) for sample in range(3)]
    right = [row["completion"] == f"<answer>{row['gold']}</answer>" for row in rows]
    assert [row["correct"] for row in rows] == right
    assert 5 < sum(right) < 25
    summary = summarize(rows, benchmark(), SAMPLED, identity())
    assert (summary["n"], summary["samples"], summary["correct"]) == (10, 3, sum(right))
    assert summary["pass_at_1"] == sum(right) / 30
    assert (summary["low"], summary["high"]) == wilson(round(sum(right) / 3), 10)
    by_problem = [right[i : i + 3] for i in range(0, 30, 3)]
    for k in (1, 2, 3):
        solved = [sum(map(any, combinations(samples, k))) / math.comb(3, k) for samples in by_problem]
        assert summary["pass_at_k"][str(k)] == pytest.approx(sum(solved) / 10)
    assert list(summary["pass_at_k"]) == ["1", "2", "3"]
    assert (
        summary["truncated"]
        == sum(row["tokens"] == 8 for row in rows)
        == sum(row["finish"] == "length" for row in rows)
    )
    assert summary["tokens"] == pytest.approx(sum(row["tokens"] for row in rows) / 30)
    assert summary["format"] == pytest.approx(0.25)  # completions end with `</answer>` but have no `<think>`


def test_a_summary_counts_what_was_cut_and_what_ran_out_of_time(checker):
    rows = measure(Guessing(), checker, GREEDY)
    for row in rows:
        row.update(finish="stop", status="ok")
    rows[0].update(finish="length", status="timeout")
    rows[4]["finish"], rows[5]["status"], rows[6]["status"] = "length", "error", "timeout"
    rows[7].update(finish="length", status="no answer")
    summary = summarize(rows, benchmark(), GREEDY, identity())
    assert (summary["truncated"], summary["timeouts"]) == (3, 2)


def test_chunks_hold_at_most_max_rows_completions_and_each_problem_has_its_own_seed(checker):
    engine = Guessing()
    done = []
    evaluate(engine, benchmark(), checker, SAMPLED, identity(), done.append)
    assert [rows for rows, _ in engine.calls] == [6] * 5
    assert done == [1] * 10
    assert len(set(engine.seeds)) == 10
    assert {(sampling.temperature, sampling.max_new_tokens) for _, sampling in engine.calls} == {(0.7, 8)}
    other = Guessing()
    measure(other, checker, replace(SAMPLED, seed=1))
    assert not set(engine.seeds) & set(other.seeds)
    assert measure(Guessing(), checker, replace(SAMPLED, max_rows=30)) == measure(Guessing(), checker, SAMPLED)


def test_every_benchmark_is_sampled_with_its_own_seeds(checker):
    engines = Guessing(), Guessing()
    for engine, name in zip(engines, ("sums", "more sums"), strict=True):
        measure(engine, checker, SAMPLED, of=replace(benchmark(), name=name))
    first, second = ({sampling.seed for _, sampling in engine.calls} for engine in engines)
    assert not first & second


def test_a_chunk_is_at_least_one_problem_and_at_most_256():
    for max_rows, chunk in ((2, 1), (3, 1), (100, 33), (10_000, 256)):
        assert replace(SAMPLED, max_rows=max_rows).chunk == chunk


def test_conditions_match_a_row_only_if_all_of_them_and_its_identity_do():
    row = {"samples": 3, "temperature": 0.7, "max_new_tokens": 8, "template": "plain", "identity": identity().digest}
    assert SAMPLED.matches(row, identity(), "template")
    for key, value in {"samples": 1, "temperature": 0.8, "max_new_tokens": 9, "template": "think-answer"}.items():
        assert not SAMPLED.matches({**row, key: value}, identity(), "template")
    assert not SAMPLED.matches({**row, "prompt": "think-answer"}, identity(), "prompt")
    for another in (identity(benchmark(9)), identity(engine="vLLM 0.11")):
        assert not SAMPLED.matches(row, another, "template")
    assert not GREEDY.matches({}, identity(), "template")  # an older row does not record its prompts


@pytest.mark.parametrize("torn", [0, 40])
def test_a_stopped_measurement_continues_where_it_was(checker, tmp_path, torn):
    whole = measure(Guessing(), checker, SAMPLED)
    partial = partial_path(tmp_path, benchmark(), SAMPLED, identity(), "model")
    with pytest.raises(KeyboardInterrupt):
        measure(Guessing(stop_at=4), checker, SAMPLED, partial)
    kept = partial.read_bytes()
    assert 0 < kept.count(b"\n") <= 8  # four chunks were sampled; the last may be unchecked
    partial.write_bytes(kept[: len(kept) - torn])
    engine = Guessing()
    assert measure(engine, checker, SAMPLED, partial) == whole
    assert len(engine.seeds) == 10 - kept.count(b"\n") + (torn > 0)
    again = Guessing()
    assert measure(again, checker, SAMPLED, partial) == whole
    assert not again.calls


class Telling(Guessing):
    """Engine that reports completions in random order, slowly enough that the previous ones are graded.

    It is interrupted after `stop_at` reports.
    """

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self._stop_after = stop_at

    def generate(self, request: Request, on_completion: Callable | None = None) -> list[list[Completion]]:
        groups = super().generate(request)
        order = [(index, member) for index in range(len(groups)) for member in range(request.group_size)]
        Random(5).shuffle(order)
        for index, member in order[: self._stop_after]:
            on_completion(index, member, groups[index][member])
            time.sleep(0.01)
        if self._stop_after is not None:
            raise KeyboardInterrupt
        return groups


def test_problems_are_kept_and_counted_one_by_one_while_others_of_their_chunk_are_sampled(checker, tmp_path):
    conditions, done = replace(SAMPLED, max_rows=30), []  # one chunk
    whole = measure(Guessing(), checker, conditions)
    assert measure(Telling(), checker, conditions) == whole
    partial = partial_path(tmp_path, benchmark(), conditions, identity(), "model")
    with pytest.raises(KeyboardInterrupt):
        evaluate(Telling(stop_at=28), benchmark(), checker, conditions, identity(), done.append, partial)
    kept = len(partial.read_bytes().splitlines())
    assert 4 <= kept <= 9
    assert done == [1] * len(done)
    assert len(done) <= kept
    engine = Telling()
    assert measure(engine, checker, conditions, partial) == whole
    assert len(engine.seeds) == 10 - kept


def test_what_another_model_or_other_conditions_did_is_not_gone_on_with(tmp_path):
    def path(conditions=SAMPLED, model="model", of=None, engine="torch"):
        return partial_path(tmp_path, of or benchmark(), conditions, identity(of, engine), model)

    changed = Benchmark("sums", "test", [*benchmark(9).prompts, Prompt(Problem("9", "", "77", "sums"), "", [1, 9])])
    others = [
        path(model="another"),
        path(engine="vLLM 0.11 in this process"),
        path(of=benchmark(9)),
        path(of=changed),
        path(replace(SAMPLED, samples=2)),
        path(replace(SAMPLED, temperature=0.8)),
        path(replace(SAMPLED, max_new_tokens=9)),
        path(replace(SAMPLED, seed=1)),
        path(replace(SAMPLED, max_rows=3)),
    ]
    assert len({path(), *others}) == 10
    assert path() == path()


def test_a_model_s_fingerprint_changes_with_one_weight(policy):
    before = fingerprint(policy)
    assert fingerprint(policy) == before
    with torch.no_grad():
        policy.parameters[0].view(-1)[3] += 1e-6
    changed = fingerprint(policy)
    assert changed != before
    assert fingerprint(replace(policy, dtype=torch.bfloat16)) != changed  # another dtype gives other completions


def test_a_model_s_fingerprint_says_how_it_is_computed_with(policy):
    before = fingerprint(policy)
    assert fingerprint(replace(policy, dtype=torch.bfloat16)) != before
    policy.model.generation_config.eos_token_id = [0, 1]
    assert fingerprint(policy) != before


def test_two_processes_do_not_measure_the_same_at_once(checker, tmp_path):
    partial = partial_path(tmp_path, benchmark(), GREEDY, identity(), "model")
    partial.parent.mkdir()
    with (
        FileLock(partial.with_name(f".{partial.name}.lock")),
        pytest.raises(UserError, match="sums is being measured by another process"),
    ):
        measure(Guessing(), checker, GREEDY, partial)
    measure(Guessing(), checker, GREEDY, partial)
    assert [path.name for path in partial.parent.iterdir()] == [partial.name]


def test_the_answers_of_a_chunk_are_checked_while_the_next_one_is_sampled():
    sampled_on = Event()

    class Engine(Guessing):
        def generate(self, request, on_completion=None):
            if self.calls:
                sampled_on.set()
            return super().generate(request, on_completion)

    class Slow(AnswerChecker):
        def check(self, pairs):
            assert sampled_on.wait(timeout=10)
            return [Verdict(True, "ok") for _ in pairs]

    with Slow() as checker:
        assert len(measure(Engine(), checker, GREEDY)) == 10


@pytest.mark.parametrize(
    "change", [{"samples": 2}, {"temperature": 0.8}, {"max_new_tokens": 9}, {"prompt": "think-answer"}]
)
def test_a_record_under_other_conditions_stands_next_to_the_first(checker, tmp_path, change):
    others = replace(SAMPLED, **change)
    summaries = [
        record(
            tmp_path, measure(Guessing(), checker, conditions), benchmark(), conditions, identity(), 3, "step-3", "w"
        )
        for conditions in (SAMPLED, others)
    ]
    assert json.loads((tmp_path / "summary.json").read_text()) == summaries
    assert len((tmp_path / "sums.jsonl").read_text().splitlines()) == 10 * (SAMPLED.samples + others.samples)


def test_a_record_replaces_what_was_measured_alike_and_nothing_else(checker, tmp_path):
    old = {"step": 3, "id": "0", "prompt": "1+0", "correct": True}  # a row of an older version
    summaries = [
        {"step": 3, "benchmark": "sums", "temperature": 0.0, "max_new_tokens": 8, "prompt": "plain", "correct": 1},
        {"step": 3, "benchmark": "others", "temperature": 0.0, "max_new_tokens": 8, "prompt": "plain", "correct": 1},
    ]
    (tmp_path / "sums.jsonl").write_text(json.dumps(old) + "\n")
    (tmp_path / "summary.json").write_text(json.dumps(summaries))
    corrected = replace(
        benchmark(), prompts=[*benchmark(9).prompts, Prompt(Problem("9", "", "77", "sums"), "", [1, 9])]
    )
    measured = [(GREEDY, benchmark(), 3), (SAMPLED, benchmark(), 3), (GREEDY, benchmark(), 2), (GREEDY, corrected, 3)]
    answers = [measure(Guessing(), checker, conditions, of=of) for conditions, of, _ in measured]
    for _ in range(2):
        written = [
            record(tmp_path, rows, of, conditions, identity(of), step, f"step-{step}", "w")
            for rows, (conditions, of, step) in zip(answers, measured, strict=True)
        ]
    assert json.loads((tmp_path / "summary.json").read_text()) == [*summaries, *written]
    rows = [json.loads(line) for line in (tmp_path / "sums.jsonl").read_text().splitlines()]
    expected = [{"step": step, **row} for of, (_, _, step) in zip(answers, measured, strict=True) for row in of]
    assert rows == [old, *expected]


def test_an_identity_is_that_of_problems_golds_prompt_check_and_sampler(monkeypatch):
    prompts = benchmark().prompts
    same = Identity.of([*reversed(prompts)], Template.of("plain"), "torch")
    assert same == identity()

    def changed(of=prompts, template="plain", engine="torch"):
        another = Identity.of(of, Template.of(template), engine)
        assert another.digest != same.digest
        return {name for name, value in another.fields().items() if value != same.fields()[name]} - {"identity"}

    def with_problem(**changes):
        return [replace(prompts[0], problem=replace(prompts[0].problem, **changes)), *prompts[1:]]

    assert changed(prompts[1:]) == {"problems", "rendered"}
    for change in ({"answer": "2"}, {"question": "1 + 0"}, {"setup": "x = 1"}, {"check": "choice"}):
        assert changed(with_problem(**change)) == {"problems"}
    assert changed([replace(prompts[0], text="another"), *prompts[1:]]) == {"rendered"}
    assert changed([replace(prompts[0], token_ids=[7]), *prompts[1:]]) == {"rendered"}
    assert changed(template="think-answer") == {"messages"}
    assert changed(engine="vLLM 0.11 in this process") == {"engine"}
    assert identity(engine="vLLM at http://node7:8000") == identity(engine="vLLM 0.11 in this process")
    monkeypatch.setattr("sspo_cli.evaluation.identity.checker_version", lambda: "another")
    assert changed() == {"checker"}


def test_chunks_that_nobody_has_added_to_for_a_week_are_removed(tmp_path):
    partial = tmp_path / "partial"
    partial.mkdir()
    left = {"old.jsonl": 8, "new.jsonl": 6, "held.jsonl": 8, ".gone.jsonl.lock": 8, ".old.jsonl.12.tmp": 8}
    for name, days in left.items():
        (partial / name).touch()
        os.utime(partial / name, times=(time.time() - 86_400 * days,) * 2)
    with FileLock(partial / ".held.jsonl.lock", is_singleton=False):
        remove_abandoned(partial)
    assert {path.name for path in partial.iterdir()} == {"new.jsonl", "held.jsonl", ".held.jsonl.lock"}
