"""A benchmark, and the conditions under which it is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from sspo_cli.config import EpisodeOptions, RunOptions
from sspo_cli.evaluation.identity import Identity
from sspo_cli.tasks.contamination import question_key
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.types import Prompt

CHUNK = 256  # most problems that are sampled at the same time


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Rendered problems of a benchmark.

    name            name of the task, or of a local file without its suffix
    max_new_tokens  token limit of a completion for this benchmark; None if the run's limit is used
    path            local path or hub name of the problems; None for the published data set
    trained_on      number of the benchmark's problems on which the measured model was trained; None if unknown
    """

    name: str
    split: str
    prompts: Sequence[Prompt]
    max_new_tokens: int | None = None
    path: str | None = None
    trained_on: int | None = None

    @property
    def runs_programs(self) -> bool:
        """Report whether a problem is solved with programs, whose random numbers depend on the seed."""
        return any(prompt.problem.environment == "codeact" for prompt in self.prompts)

    def measured_on(self, folder: RunFolder) -> Self:
        """Return the benchmark with `trained_on` set to the number of problems among a run's training problems."""
        questions = folder.questions()
        keys = [question_key(prompt.problem) for prompt in self.prompts] if questions is not None else []
        return replace(self, trained_on=None if questions is None else sum(key in questions for key in keys))


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of a measurement.

    samples       number of completions of each problem
    temperature   sampling temperature; 0 for greedy decoding
    top_p, top_k  parameters of truncated sampling (see `Sampling`)
    prompt        name of the prompt template
    seed          random seed of sampling
    max_rows      most completions that are sampled at the same time
    turns, proposals, max_tokens  limits of an episode; `max_new_tokens` limits each of its turns
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
        """Return the conditions in a run's options. The seed is always 0, so that all runs are measured in the same way."""
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
        """Return the sampler's name for the identity: the engine, and top_p and top_k if they truncate the distribution."""
        cuts = [f"top_p={self.top_p:g}"] if self.top_p < 1 else []
        cuts += [f"top_k={self.top_k}"] if self.top_k else []
        return ",".join([engine.partition(" ")[0], *cuts])

    def on(self, benchmark: Benchmark) -> Self:
        """Return the conditions for a benchmark. The benchmark's token limit, if it has one, replaces `max_new_tokens`."""
        return replace(self, max_new_tokens=benchmark.max_new_tokens or self.max_new_tokens)

    @property
    def chunk(self) -> int:
        """Number of problems that are sampled at the same time."""
        return max(1, min(CHUNK, self.max_rows // self.samples))

    @property
    def of_episodes(self) -> dict[str, int]:
        """Limits of an episode, by field name of the rows of a benchmark."""
        return {"turns": self.turns, "proposals": self.proposals, "max_tokens": self.max_tokens}

    def matches(self, row: Mapping[str, Any], identity: Identity, template: str) -> bool:
        """Report whether a row was measured with this identity under these conditions.

        template  name of the row's field with the prompt template: `prompt` in summaries, `template` in answers

        Rows of older versions never match, because they have no identity.
        """
        return (
            row.get("identity") == identity.digest
            and row.get("samples", 1) == self.samples
            and row.get("temperature", 0.0) == self.temperature
            and row.get("max_new_tokens", self.max_new_tokens) == self.max_new_tokens
            and row.get(template, self.prompt) == self.prompt
            and all(row.get(name, value) == value for name, value in self.of_episodes.items())
        )
