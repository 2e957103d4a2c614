"""Pass@1 of a policy on a benchmark, avg@n and pass@k: the prompt, the extraction and the check of training.

A benchmark is sampled chunk by chunk. The chunks that are done are kept in `partial/`, so that a stopped one continues there.
"""

import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import xxhash
from filelock import FileLock

from sspo_cli import ranks
from sspo_cli.config import EpisodeOptions, RunOptions
from sspo_cli.errors import UserError
from sspo_cli.evaluation.identity import Identity
from sspo_cli.locks import hold_lock, take_lock
from sspo_cli.rewards import PAPER, AnswerChecker, Scoring, grade
from sspo_cli.rollout.engine import Engine, Sampling
from sspo_cli.rollout.episodes import NO_STAGE, Stage, play
from sspo_cli.seeds import derive_seed
from sspo_cli.statistics import pass_at_k, wilson
from sspo_cli.tasks.contamination import question_key
from sspo_cli.tracking.files import (
    append_jsonl,
    explain_os_errors,
    read_json,
    read_jsonl,
    remove_leftovers,
    truncate_jsonl,
    write_json_atomic,
    write_jsonl_atomic,
)
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.shapes import EVALUATIONS, PARTIAL_CHUNK
from sspo_cli.types import Completion, Group, Problem, Prompt

ABANDONED = 7 * 86_400  # seconds
CHUNK = 256  # problems at most between two signs of progress


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Problems to measure on, rendered.

    name            the task's, or a local file's stem
    max_new_tokens  of a completion, if the benchmark has a limit of its own
    path            or hub name that they come from, if that is not the published data set
    trained_on      how many of them the measured model was trained on; None if that is not known
    """

    name: str
    split: str
    prompts: Sequence[Prompt]
    max_new_tokens: int | None = None
    path: str | None = None
    trained_on: int | None = None

    def measured_on(self, folder: RunFolder) -> Self:
        """Return the benchmark for a run's model, which may have been trained on some of it."""
        questions = folder.questions()
        keys = [question_key(prompt.problem) for prompt in self.prompts] if questions is not None else []
        return replace(self, trained_on=None if questions is None else sum(key in questions for key in keys))


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a benchmark is measured.

    samples      completions of each problem
    temperature  0 is greedy
    prompt       name of the template
    seed         of the sampling
    max_rows     completions sampled at a time
    turns, proposals, max_tokens  of an episode, in which `max_new_tokens` are a turn's
    """

    samples: int
    temperature: float
    max_new_tokens: int
    prompt: str
    seed: int
    max_rows: int
    turns: int = EpisodeOptions().turns
    proposals: int = EpisodeOptions().proposals
    max_tokens: int = EpisodeOptions().max_tokens

    @classmethod
    def of(cls, options: RunOptions) -> Self:
        """Return those of a run. The seed is not the run's, so that all runs are measured alike."""
        evaluation, episode = options.evaluation, options.episode or EpisodeOptions()
        return cls(
            samples=evaluation.samples,
            temperature=evaluation.temperature,
            max_new_tokens=evaluation.max_new_tokens or options.rollout.max_new_tokens,
            prompt=options.template.name,
            seed=0,
            max_rows=options.rollout.max_rows,
            turns=episode.turns,
            proposals=episode.proposals,
            max_tokens=episode.max_tokens,
        )

    def on(self, benchmark: Benchmark) -> Self:
        """Return those of a benchmark, which may have a token limit of its own."""
        return replace(self, max_new_tokens=benchmark.max_new_tokens or self.max_new_tokens)

    @property
    def chunk(self) -> int:
        """Problems sampled at a time."""
        return max(1, min(CHUNK, self.max_rows // self.samples))

    @property
    def of_episodes(self) -> dict[str, int]:
        """Return what an episode is limited by, as its row of a benchmark says it."""
        return {"turns": self.turns, "proposals": self.proposals, "max_tokens": self.max_tokens}

    def matches(self, row: Mapping[str, Any], identity: Identity, template: str) -> bool:
        """Decide whether a row was measured so; `template` is its key of the template.

        Rows of older versions do not say all of the conditions, and nothing of the identity: none of them matches.
        """
        return (
            row.get("identity") == identity.digest
            and row.get("samples", 1) == self.samples
            and row.get("temperature", 0.0) == self.temperature
            and row.get("max_new_tokens", self.max_new_tokens) == self.max_new_tokens
            and row.get(template, self.prompt) == self.prompt
            and all(row.get(name, value) == value for name, value in self.of_episodes.items())
        )


def evaluate(
    engine: Engine,
    benchmark: Benchmark,
    checker: AnswerChecker,
    conditions: Conditions,
    identity: Identity,
    progress: Callable[[int], None],
    partial: Path | None = None,
    stage: Stage = NO_STAGE,
) -> list[dict[str, Any]]:
    """Sample and grade a benchmark: a row for each problem and sample, as in `<benchmark>.jsonl` except for the step.

    `progress(n)` is called when n more problems are done. With a `partial` file (see `partial_path`), what it holds is not
    done again, and new chunks are appended; the caller removes it. Problems with an environment are played on the `stage`.
    Raises UserError if another process writes the file.
    """
    with _chunks_done(partial) as chunks:
        for chunk in chunks:
            progress(len(chunk) // conditions.samples)
        for groups in _graded_chunks(engine, benchmark, checker, conditions, stage, first=len(chunks)):
            chunks.append([row for group in groups for row in _rows(group, conditions, identity)])
            if partial and ranks.is_first():
                append_jsonl(partial, {"rows": chunks[-1]})
            progress(len(groups))
    return [row for chunk in chunks for row in chunk]


def partial_path(folder: Path, benchmark: Benchmark, conditions: Conditions, identity: Identity, model: str) -> Path:
    """Return where chunks that are done are kept: a name of its own for everything that determines the graded completions.

    `model` is the policy's fingerprint, so that no other model continues with this one's completions.
    """
    order = [prompt.problem.id for prompt in benchmark.prompts]
    done_with = [model, asdict(conditions), identity.digest, benchmark.split, order]
    key = xxhash.xxh3_64_hexdigest(json.dumps(done_with).encode())
    return folder / "partial" / f"{benchmark.name}-{key}.jsonl"


def grade_groups(
    prompts: Sequence[Prompt],
    completions: Sequence[list[Completion]],
    checker: AnswerChecker,
    scoring: Scoring = PAPER,
) -> list[Group]:
    """Grade sampled completions; what the chat template opened counts as part of the text.

    Episodes have their environment's reward, whatever `scoring` is.
    """
    pairs = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
    texts = [p.opening + c.text for p, c in pairs if c.episode is None]
    golds = [p.problem.answer for p, c in pairs if c.episode is None]
    graded = iter(scoring.complete(grade(texts, golds, checker), texts, golds, checker))
    rewards = iter([next(graded) if c.episode is None else c.episode.reward for _, c in pairs])
    return [Group(p, group, [next(rewards) for _ in group]) for p, group in zip(prompts, completions, strict=True)]


def summarize(
    rows: Sequence[dict[str, Any]], benchmark: Benchmark, conditions: Conditions, identity: Identity
) -> dict[str, Any]:
    """Summarize rows as in `summary.json`, except for step and checkpoint.

    pass_at_1  share of all samples that are right
    low, high  its 95 % Wilson interval over the problems, as many solved as on average over the samples
    tokens     mean of a completion
    """
    samples, n = conditions.samples, len(benchmark.prompts)
    solved = [sum(row["correct"] for row in rows[i : i + samples]) for i in range(0, len(rows), samples)]
    correct = sum(solved)
    low, high = wilson(round(correct / samples), n)
    tries = sorted({2**power for power in range(samples.bit_length())} | {samples})
    return {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "n": n,
        "samples": samples,
        "temperature": conditions.temperature,
        "max_new_tokens": conditions.max_new_tokens,
        "prompt": conditions.prompt,
        "seed": conditions.seed,
        **identity.fields(),
        "path": benchmark.path,
        "trained_on": benchmark.trained_on,
        "correct": correct,
        "pass_at_1": correct / len(rows),
        "low": low,
        "high": high,
        "pass_at_k": {str(k): math.fsum(pass_at_k(c, samples, k) for c in solved) / n for k in tries},
        "format": math.fsum(row["format"] for row in rows) / len(rows),
        "truncated": sum(row["finish"] == "length" for row in rows),
        "timeouts": sum(row["status"] == "timeout" for row in rows),
        "tokens": sum(row["tokens"] for row in rows) / len(rows),
        **_summarize_episodes(rows, conditions),
    }


@ranks.by_first
def record(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    benchmark: Benchmark,
    conditions: Conditions,
    identity: Identity,
    step: int,
    checkpoint: str,
) -> dict[str, Any]:
    """Write `<benchmark>.jsonl` and `summary.json` in `folder`; returns the summary.

    Earlier rows of this step under the same conditions and of the same identity are replaced in both, so that every summary
    has its problems.
    """
    summary = {"step": step, **summarize(rows, benchmark, conditions, identity), "checkpoint": checkpoint}
    details, summaries = folder / f"{benchmark.name}.jsonl", folder / "summary.json"

    def is_replaced(row: dict[str, Any], template: str) -> bool:
        return row.get("step") == step and conditions.matches(row, identity, template)

    with explain_os_errors("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(FileLock(folder / ".lock")):  # an `sspo eval` may measure a run that is still training
        kept = [row for row in read_jsonl(details) if not is_replaced(row, "template")]
        write_jsonl_atomic(details, [*kept, *({"step": step, **row} for row in rows)])
        kept = read_json(summaries, EVALUATIONS) if summaries.exists() else []
        kept = [row for row in kept if row["benchmark"] != benchmark.name or not is_replaced(row, "prompt")]
        write_json_atomic(summaries, [*kept, summary])
        remove_leftovers(folder)
    _remove_abandoned(folder / "partial")
    return summary


def _remove_abandoned(partial: Path) -> None:
    """Remove what no process is at and none has added to for a week: its model has trained on, or was deleted.

    Chunks, and what a kill has left of them: a lock without chunks, or a temporary file.
    """
    for path in partial.glob("*"):
        with suppress(FileNotFoundError):  # another process removes the same
            if time.time() - path.stat().st_mtime <= ABANDONED:
                continue
            lock = FileLock(path if path.suffix == ".lock" else path.with_name(f".{path.name}.lock"))
            if take_lock(lock):
                path.unlink(missing_ok=True)
                Path(lock.lock_file).unlink(missing_ok=True)
                lock.release()


@contextmanager
def _chunks_done(partial: Path | None) -> Iterator[list[list[dict[str, Any]]]]:
    """Yield the rows of each whole chunk in the file, which no other process may write meanwhile."""
    if partial is None:
        yield []
        return
    if not ranks.is_first():
        yield ranks.on_first(list[list[dict[str, Any]]])  # those that the first rank has read
        return
    lock = FileLock(partial.with_name(f".{partial.name}.lock"))

    def open_chunks() -> list[list[dict[str, Any]]]:
        with explain_os_errors("write", partial):
            partial.parent.mkdir(parents=True, exist_ok=True)
        if not take_lock(lock):
            raise UserError(
                f"{partial.stem.rpartition('-')[0]} is being measured by another process with the same model and conditions "
                f"(its work is {partial}); wait for it"
            )
        truncate_jsonl(partial, lambda chunk: True)  # a chunk that a kill has torn would run into the next one
        return [chunk["rows"] for chunk in read_jsonl(partial, PARTIAL_CHUNK)]

    try:
        yield ranks.on_first(open_chunks)
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _graded_chunks(
    engine: Engine, benchmark: Benchmark, checker: AnswerChecker, conditions: Conditions, stage: Stage, first: int
) -> Iterator[list[Group]]:
    """Yield the graded chunks from number `first` on. The answers of a chunk are checked while the next one is sampled.

    A problem's draws depend on its place in the benchmark alone, not on interruptions, `max_rows` or other benchmarks.
    """
    with ThreadPoolExecutor(1) as background:
        checking: Future[list[Group]] | None = None

        def sample(number: int) -> list[Group]:
            """Sample this rank's share of a chunk, begin its grading, and return the graded share of the chunk before."""
            nonlocal checking
            start = number * conditions.chunk
            chunk = benchmark.prompts[start : start + conditions.chunk]
            mine = ranks.share(len(chunk))
            prompts = chunk[mine]
            sampling = Sampling(
                temperature=conditions.temperature,
                max_new_tokens=conditions.max_new_tokens,
                seed=derive_seed(conditions.seed, f"evaluation on {benchmark.name}"),
                first=start + mine.start,
            )
            completions = play(engine, prompts, conditions.samples, sampling, stage)
            checked, checking = checking, background.submit(grade_groups, prompts, completions, checker)
            return checked.result() if checked else []

        numbers = range(first, math.ceil(len(benchmark.prompts) / conditions.chunk))
        for number in numbers:
            groups = ranks.gather(functools.partial(sample, number))
            if number > first:
                yield groups
        if last := checking:
            yield ranks.gather(last.result)


def _rows(group: Group, conditions: Conditions, identity: Identity) -> list[dict[str, Any]]:
    """Return a graded problem as objects for `<benchmark>.jsonl`, one for each sample."""
    return [
        {
            "samples": conditions.samples,
            "temperature": conditions.temperature,
            "max_new_tokens": conditions.max_new_tokens,
            "template": conditions.prompt,
            "identity": identity.digest,
            "sample": sample,
            "id": group.prompt.problem.id,
            "prompt": group.prompt.text,
            "completion": group.prompt.opening + completion.text,
            "extracted": reward.extracted,
            "gold": group.prompt.problem.answer,
            "correct": reward.answer == 1.0,
            "format": reward.format,
            "tokens": completion.own_tokens,
            "finish": "length" if completion.truncated else "stop",
            "status": reward.status,
            **_episode_of(group.prompt.problem, completion, conditions),
        }
        for sample, (completion, reward) in enumerate(zip(group.completions, group.rewards, strict=True))
    ]


def _episode_of(problem: Problem, completion: Completion, conditions: Conditions) -> dict[str, Any]:
    """Return what a row says of an episode; nothing of a single turn."""
    if completion.episode is None:
        return {}
    turns = [asdict(turn) for turn in completion.episode.turns]
    return {
        **conditions.of_episodes,
        "part": problem.part,
        "played": turns,
        "outcome": asdict(completion.episode.outcome),
    }


def _summarize_episodes(rows: Sequence[dict[str, Any]], conditions: Conditions) -> dict[str, Any]:
    """Summarize the episodes among the rows; nothing without one.

    episodes  means of the outcomes; `solved_at_first` is the share that the first proposal has solved: a second one
              knows that the first is wrong
    parts     of a benchmark of several kinds of problems, each with its n, correct, Pass@1 and interval
    """
    outcomes = [row["outcome"] for row in rows if "outcome" in row]
    if not outcomes:
        return {}
    names = ("turns", "proposals", "calls", "timeouts", "crashes")
    means = {name: sum(outcome[name] for outcome in outcomes) / len(outcomes) for name in names}
    first = sum(outcome["solved"] and outcome["proposals"] == 1 for outcome in outcomes) / len(outcomes)
    parts = {
        name: [row for row in rows if row.get("part") == name] for name in sorted({row.get("part", "") for row in rows})
    }
    return {
        **conditions.of_episodes,
        "episodes": {**means, "solved_at_first": first},
        "parts": {
            name: _summarize_part(of_part, conditions.samples) for name, of_part in parts.items() if len(parts) > 1
        },
    }


def _summarize_part(rows: Sequence[dict[str, Any]], samples: int) -> dict[str, Any]:
    n, correct = len(rows) // samples, sum(row["correct"] for row in rows)
    low, high = wilson(round(correct / samples), n)
    return {"n": n, "correct": correct, "pass_at_1": correct / len(rows), "low": low, "high": high}
