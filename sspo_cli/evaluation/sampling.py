"""Sampling and grading of a benchmark. Each problem is stored as soon as it is graded."""

import functools
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sspo_cli import ranks
from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.evaluation.identity import Identity
from sspo_cli.evaluation.partial import problems_done
from sspo_cli.evaluation.summary import rows_of
from sspo_cli.rewards import PAPER, AnswerChecker, Scoring, extract_answer, grade
from sspo_cli.rollout.engine import Engine, Sampling
from sspo_cli.rollout.episodes import NO_STAGE, Stage, play
from sspo_cli.rollout.torch_engine import whole_weights
from sspo_cli.seeds import derive_seed
from sspo_cli.tracking.files import append_jsonl
from sspo_cli.types import Completion, Group, Prompt


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
    """Sample and grade a benchmark. Returns a row of `<benchmark>.jsonl`, without the step, for each problem and sample.

    progress  function that is called as progress(n) when n more problems are done
    partial   file of finished problems (see `partial_path`). Problems in the file are not sampled again, and each graded problem
              is appended to the file. The caller must remove the file. If None, problems are not stored.
    stage     environments for problems that are solved in episodes

    Raises UserError if another process writes `partial`.
    """
    prompts = benchmark.prompts
    with problems_done(partial) as done:
        if done:
            progress(len(done))

        def keep(place: int, group: Group) -> None:
            done[place] = rows_of(group, conditions, identity)
            if partial and ranks.is_first():
                append_jsonl(partial, {"place": place, "rows": done[place]})

        missing = [place for place in range(len(prompts)) if place not in done]
        measurement = _Measurement(engine, benchmark, checker, conditions, stage)
        sample = measurement.sample if ranks.size() == 1 else measurement.sample_together
        sample(missing, keep, progress)
    return [row for place in range(len(prompts)) for row in done[place]]


def grade_groups(
    prompts: Sequence[Prompt],
    completions: Sequence[list[Completion]],
    checker: AnswerChecker,
    scoring: Scoring = PAPER,
) -> list[Group]:
    """Grade sampled completions. Returns a graded group for each prompt.

    completions  completions of each prompt; the graded text also includes the opening that the chat template wrote
    scoring      weights and functions of the rewards; ignored for episodes, whose environment computes the reward
    """
    pairs = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
    texts = [p.opening + c.text for p, c in pairs if c.episode is None]
    golds = [p.problem.answer for p, c in pairs if c.episode is None]
    graded = iter(scoring.complete(grade(texts, golds, checker), texts, golds, checker))
    rewards = iter([next(graded) if c.episode is None else c.episode.reward for _, c in pairs])
    return [Group(p, group, [next(rewards) for _ in group]) for p, group in zip(prompts, completions, strict=True)]


class _Grading:
    """Grades sampled problems on a background thread.

    For each graded problem, `keep(index, group)` and then `progress(1)` are called on the sampler's thread.
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
        self._sampled: dict[int, dict[int, Completion]] = defaultdict(dict)  # by problem and sample number
        self._checking: deque[tuple[int, Future[list[Group]]]] = deque()

    def receive(self, place: int, member: int, completion: Completion) -> None:
        """Receive sample `member` of problem number `place`. Once all samples of a problem are received, its grading starts."""
        prompt, sampled = self._prompts[place], self._sampled[place]
        if member in sampled:
            return
        sampled[member] = completion
        if completion.episode is None:  # start the check now; grading reuses its verdict
            text, gold = prompt.opening + completion.text, prompt.problem.answer
            self._checker.submit(extract_answer(text, [gold]), gold)
        if len(sampled) == self._samples:
            group = [sampled[number] for number in range(self._samples)]
            graded = self._background.submit(grade_groups, [prompt], [group], self._checker)
            self._checking.append((place, graded))
        self.finish(wait=False)

    def finish(self, wait: bool) -> None:
        """Pass graded problems to `keep`, in the order of sampling. If `wait` is true, block until all problems are graded."""
        while self._checking and (wait or self._checking[0][1].done()):
            place, graded = self._checking.popleft()
            self._keep(place, graded.result()[0])
            self._progress(1)

    def keep_remaining(self) -> None:
        """Wait for the completely sampled problems of a stopped measurement, and pass them to `keep`."""
        while self._checking:
            place, graded = self._checking.popleft()
            self._keep(place, graded.result()[0])


@dataclass(frozen=True, slots=True)
class _Measurement:
    """The measurement of a policy on a benchmark."""

    engine: Engine
    benchmark: Benchmark
    checker: AnswerChecker
    conditions: Conditions
    stage: Stage

    def sample(
        self, places: Sequence[int], keep: Callable[[int, Group], None], progress: Callable[[int], None]
    ) -> None:
        """Sample the problems with the indices `places`. Each problem is passed to `keep` once it is graded (see `_Grading`).

        The random numbers of a problem depend only on the seed, the benchmark's name and the problem's index, and not on
        interruptions or `max_rows`.
        """
        conditions, prompts = self.conditions, self.benchmark.prompts
        sampling = Sampling(
            temperature=conditions.temperature,
            max_new_tokens=conditions.max_new_tokens,
            seed=derive_seed(conditions.seed, f"evaluation on {self.benchmark.name}"),
            top_p=conditions.top_p,
            top_k=conditions.top_k,
        )
        with ThreadPoolExecutor(1) as background:
            grading = _Grading(self.benchmark, self.checker, conditions.samples, background, keep, progress)
            try:
                for start in range(0, len(places), conditions.chunk):
                    chunk = places[start : start + conditions.chunk]

                    def receive(index: int, member: int, completion: Completion, chunk: Sequence[int] = chunk) -> None:
                        grading.receive(chunk[index], member, completion)

                    chosen = [prompts[place] for place in chunk]
                    groups = play(self.engine, chosen, conditions.samples, sampling, self.stage, receive, order=chunk)
                    for index, group in enumerate(groups):  # for engines that do not report completions while sampling
                        for member, completion in enumerate(group):
                            receive(index, member, completion)
                grading.finish(wait=True)
            except BaseException:
                grading.keep_remaining()
                raise

    def sample_together(
        self, places: Sequence[int], keep: Callable[[int, Group], None], progress: Callable[[int], None]
    ) -> None:
        """Sample on several ranks: each samples its share of several chunks, then all receive all graded problems."""
        width = self.conditions.chunk * ranks.size()
        for start in range(0, len(places), width):
            chunks = places[start : start + width]
            graded = ranks.gather(functools.partial(self._sample_share, chunks[ranks.share(len(chunks))]))
            for place, group in graded:
                keep(place, group)
            progress(len(graded))

    def _sample_share(self, places: Sequence[int]) -> list[tuple[int, Group]]:
        graded: dict[int, Group] = {}
        with whole_weights(
            self.engine
        ):  # also if this rank has no problems, because gathering the weights needs all ranks
            self.sample(places, graded.__setitem__, lambda _: None)
        return sorted(graded.items())
