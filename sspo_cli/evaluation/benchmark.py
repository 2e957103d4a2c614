"""Pass@1 of a policy on a benchmark, avg@n and pass@k: the prompt, the extraction and the check of training.

The problems that are done are kept in `partial/`, so that a stopped measurement continues with the others.
"""

import functools
import json
import math
import time
from collections import defaultdict, deque
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
from sspo_cli.rewards import PAPER, AnswerChecker, Scoring, extract_answer, grade
from sspo_cli.rollout.engine import Engine, Sampling
from sspo_cli.rollout.episodes import NO_STAGE, Stage, play
from sspo_cli.rollout.torch_engine import whole_weights
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
from sspo_cli.tracking.shapes import EVALUATIONS, PARTIAL_PROBLEM
from sspo_cli.types import Completion, Group, Problem, Prompt

ABANDONED = 7 * 86_400  # seconds
CHUNK = 256  # problems at most that are sampled together


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Rendered problems of a benchmark.

    name            name of the task, or of a local file without its type
    max_new_tokens  token limit of a completion, if the benchmark has one
    path            local path or hub name of the problems, if it is not the published data set
    trained_on      number of problems that the measured model was trained on; None if unknown
    """

    name: str
    split: str
    prompts: Sequence[Prompt]
    max_new_tokens: int | None = None
    path: str | None = None
    trained_on: int | None = None

    def measured_on(self, folder: RunFolder) -> Self:
        """Return the benchmark with the number of problems that a run's model was trained on."""
        questions = folder.questions()
        keys = [question_key(prompt.problem) for prompt in self.prompts] if questions is not None else []
        return replace(self, trained_on=None if questions is None else sum(key in questions for key in keys))


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of a measurement.

    samples       completions of each problem
    temperature   0 is greedy
    top_p, top_k  truncation of the sampling, see `Sampling`
    prompt        name of the template
    seed          seed of the sampling
    max_rows      completions sampled at the same time
    turns, proposals, max_tokens  limits of an episode, in which `max_new_tokens` limits a turn
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
    top_p: float = 1.0
    top_k: int | None = None

    @classmethod
    def of(cls, options: RunOptions) -> Self:
        """Return the conditions of a run. The seed is not the run's, so that all runs are measured in the same way."""
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
            top_p=evaluation.top_p,
            top_k=evaluation.top_k,
        )

    def sampler(self, engine: str) -> str:
        """Return the sampler that an engine is under these conditions, for the identity: truncated, it is another one."""
        cuts = [f"top_p={self.top_p:g}"] if self.top_p < 1 else []
        cuts += [f"top_k={self.top_k}"] if self.top_k else []
        return ",".join([engine.partition(" ")[0], *cuts])

    def on(self, benchmark: Benchmark) -> Self:
        """Return the conditions for a benchmark, which may have a token limit."""
        return replace(self, max_new_tokens=benchmark.max_new_tokens or self.max_new_tokens)

    @property
    def chunk(self) -> int:
        """Problems sampled at a time."""
        return max(1, min(CHUNK, self.max_rows // self.samples))

    @property
    def of_episodes(self) -> dict[str, int]:
        """Return the limits of episodes, in the form of a row of a benchmark."""
        return {"turns": self.turns, "proposals": self.proposals, "max_tokens": self.max_tokens}

    def matches(self, row: Mapping[str, Any], identity: Identity, template: str) -> bool:
        """Report whether a row was measured under these conditions; `template` is its key of the template.

        Rows of older versions lack conditions and the identity, so that none of them matches.
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
    done again, and each new problem is appended; the caller removes it. Problems with an environment are played on the `stage`.
    Raises UserError if another process writes the file.
    """
    prompts = benchmark.prompts
    with _problems_done(partial) as done:
        if done:
            progress(len(done))

        def keep(place: int, group: Group) -> None:
            done[place] = _rows(group, conditions, identity)
            if partial and ranks.is_first():
                append_jsonl(partial, {"place": place, "rows": done[place]})

        missing = [place for place in range(len(prompts)) if place not in done]
        share = _sample_and_grade if ranks.size() == 1 else _share_sampling
        share(engine, benchmark, missing, checker, conditions, stage, keep, progress)
    return [row for place in range(len(prompts)) for row in done[place]]


def partial_path(folder: Path, benchmark: Benchmark, conditions: Conditions, identity: Identity, model: str) -> Path:
    """Return the file of finished problems, whose name depends on everything that determines the graded completions.

    model  fingerprint of the policy, so that no other model continues with its completions
    """
    order = [prompt.problem.id for prompt in benchmark.prompts]
    done_with = ["problem by problem", model, asdict(conditions), identity.digest, benchmark.split, order]
    key = xxhash.xxh3_64_hexdigest(json.dumps(done_with).encode())
    return folder / "partial" / f"{benchmark.name}-{key}.jsonl"


def grade_groups(
    prompts: Sequence[Prompt],
    completions: Sequence[list[Completion]],
    checker: AnswerChecker,
    scoring: Scoring = PAPER,
) -> list[Group]:
    """Grade sampled completions, including the text that the chat template opened them with.

    Episodes have the reward of their environment, for any `scoring`.
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

    pass_at_1  share of right samples
    low, high  its 95 % Wilson interval over the problems, for the mean number solved over the samples
    tokens     mean length of a completion
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
    weights: str,
) -> dict[str, Any]:
    """Write `<benchmark>.jsonl` and `summary.json` in `folder`; return the summary.

    weights  fingerprint of the policy, by which `find_recorded` finds the measurement

    Earlier rows of this step with the same conditions and identity are replaced in both files, so that every summary has its
    problems.
    """
    summary = {"step": step, **summarize(rows, benchmark, conditions, identity)}
    summary |= {"checkpoint": checkpoint, "weights": weights}
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

    Problems, and what a kill has left of them: a lock without problems, or a temporary file.
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
def _problems_done(partial: Path | None) -> Iterator[dict[int, list[dict[str, Any]]]]:
    """Yield the rows of each whole problem in the file, by its place; no other process may write the file meanwhile."""
    if partial is None:
        yield {}
        return
    if not ranks.is_first():
        yield ranks.on_first(dict[int, list[dict[str, Any]]])  # those that the first rank has read
        return
    lock = FileLock(partial.with_name(f".{partial.name}.lock"))

    def open_problems() -> dict[int, list[dict[str, Any]]]:
        with explain_os_errors("write", partial):
            partial.parent.mkdir(parents=True, exist_ok=True)
        if not take_lock(lock):
            raise UserError(
                f"{partial.stem.rpartition('-')[0]} is being measured by another process with the same model and conditions "
                f"(its work is {partial}); wait for it"
            )
        truncate_jsonl(partial, lambda problem: True)  # a problem that a kill has torn would run into the next one
        return {problem["place"]: problem["rows"] for problem in read_jsonl(partial, PARTIAL_PROBLEM)}

    try:
        yield ranks.on_first(open_problems)
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


class _Grading:
    """Checks the answers of sampled problems in the background, and keeps each problem as soon as it is graded.

    `keep(place, group)` and then `progress(1)` are called in the thread of the sampler.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        checker: AnswerChecker,
        samples: int,
        background: ThreadPoolExecutor,
        keep: Callable[[int, Group], None],
        progress: Callable[[int], None],
    ) -> None:
        self._prompts, self._checker, self._samples = benchmark.prompts, checker, samples
        self._background, self._keep, self._progress = background, keep, progress
        self._sampled: dict[int, dict[int, Completion]] = defaultdict(dict)  # by place and number in the group
        self._checking: deque[tuple[int, Future[list[Group]]]] = deque()

    def hear(self, place: int, member: int, completion: Completion) -> None:
        """Take a completion; a problem is graded when it has all of its samples."""
        prompt, sampled = self._prompts[place], self._sampled[place]
        if member in sampled:
            return
        sampled[member] = completion
        if completion.episode is None:  # its check begins at once, and the grading finds the verdict
            text, gold = prompt.opening + completion.text, prompt.problem.answer
            self._checker.submit(extract_answer(text, [gold]), gold)
        if len(sampled) == self._samples:
            group = [sampled[number] for number in range(self._samples)]
            graded = self._background.submit(grade_groups, [prompt], [group], self._checker)
            self._checking.append((place, graded))
        self.finish(wait=False)

    def finish(self, wait: bool) -> None:
        """Keep what is graded, in the order of sampling; `wait` for the rest."""
        while self._checking and (wait or self._checking[0][1].done()):
            place, graded = self._checking.popleft()
            self._keep(place, graded.result()[0])
            self._progress(1)

    def keep_rest(self) -> None:
        """Keep what is sampled but was not graded before the measurement was stopped."""
        while self._checking:
            place, graded = self._checking.popleft()
            self._keep(place, graded.result()[0])


def _sample_and_grade(
    engine: Engine,
    benchmark: Benchmark,
    places: Sequence[int],
    checker: AnswerChecker,
    conditions: Conditions,
    stage: Stage,
    keep: Callable[[int, Group], None],
    progress: Callable[[int], None],
) -> None:
    """Sample the problems at those places, and keep each as soon as it is graded, see `_Grading`.

    A problem's draws depend on its place in the benchmark alone, not on interruptions, `max_rows` or other benchmarks.
    """
    sampling = Sampling(
        temperature=conditions.temperature,
        max_new_tokens=conditions.max_new_tokens,
        seed=derive_seed(conditions.seed, f"evaluation on {benchmark.name}"),
        top_p=conditions.top_p,
        top_k=conditions.top_k,
    )
    with ThreadPoolExecutor(1) as background:
        grading = _Grading(benchmark, checker, conditions.samples, background, keep, progress)
        try:
            for start in range(0, len(places), conditions.chunk):
                chunk = places[start : start + conditions.chunk]

                def hear(index: int, member: int, completion: Completion, chunk: Sequence[int] = chunk) -> None:
                    grading.hear(chunk[index], member, completion)

                prompts = [benchmark.prompts[place] for place in chunk]
                groups = play(engine, prompts, conditions.samples, sampling, stage, hear, order=chunk)
                for index, group in enumerate(groups):  # of an engine that says nothing in between
                    for member, completion in enumerate(group):
                        hear(index, member, completion)
            grading.finish(wait=True)
        except BaseException:
            grading.keep_rest()
            raise


def _share_sampling(
    engine: Engine,
    benchmark: Benchmark,
    places: Sequence[int],
    checker: AnswerChecker,
    conditions: Conditions,
    stage: Stage,
    keep: Callable[[int, Group], None],
    progress: Callable[[int], None],
) -> None:
    """Do the same on several ranks, each its share of some chunks; all ranks keep every problem when all have theirs."""
    width = conditions.chunk * ranks.size()
    for start in range(0, len(places), width):
        chunks = places[start : start + width]
        graded = ranks.gather(
            functools.partial(
                _grade_share, engine, benchmark, chunks[ranks.share(len(chunks))], checker, conditions, stage
            )
        )
        for place, group in graded:
            keep(place, group)
        progress(len(graded))


def _grade_share(
    engine: Engine,
    benchmark: Benchmark,
    places: Sequence[int],
    checker: AnswerChecker,
    conditions: Conditions,
    stage: Stage,
) -> list[tuple[int, Group]]:
    graded: dict[int, Group] = {}
    with whole_weights(engine):  # also for a rank without a share: all of them gather the weights
        _sample_and_grade(engine, benchmark, places, checker, conditions, stage, graded.__setitem__, lambda _: None)
    return sorted(graded.items())


def _rows(group: Group, conditions: Conditions, identity: Identity) -> list[dict[str, Any]]:
    """Return the rows of a graded problem for `<benchmark>.jsonl`, one for each sample."""
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
    """Return the fields of a row for an episode; none for a single turn."""
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
    """Summarize the episodes among the rows; return no fields if there are none.

    episodes  means of the outcomes; `solved_at_first` is the share solved by the first proposal, because a second one knows
              that the first is wrong
    parts     parts of a benchmark with several kinds of problems, each with its n, correct, Pass@1, interval and cut answers
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
    truncated = sum(row["finish"] == "length" for row in rows)
    share = correct / len(rows)
    return {"n": n, "correct": correct, "pass_at_1": share, "low": low, "high": high, "truncated": truncated}
