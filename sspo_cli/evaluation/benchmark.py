"""A benchmark and the conditions that it is measured under."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from sspo_cli.config import EpisodeOptions, RunOptions
from sspo_cli.evaluation.identity import Identity
from sspo_cli.tasks.contamination import question_key
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.types import Prompt

CHUNK = 256  # most problems that are sampled together


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
        """Return the conditions of a run. The seed is 0 for all runs, so that they are measured in the same way."""
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
        """Return the name of the sampler for the identity: the engine, with top_p and top_k if they truncate the softmax."""
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
        """Report whether a row was measured under these conditions.

        template  key of the prompt template in the row

        Rows of older versions have no identity, so they never match.
        """
        return (
            row.get("identity") == identity.digest
            and row.get("samples", 1) == self.samples
            and row.get("temperature", 0.0) == self.temperature
            and row.get("max_new_tokens", self.max_new_tokens) == self.max_new_tokens
            and row.get(template, self.prompt) == self.prompt
            and all(row.get(name, value) == value for name, value in self.of_episodes.items())
        )
