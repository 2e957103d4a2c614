"""The identity of a measurement: fingerprints of the problems, the prompt, the answer check and the sampler."""

import json
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from typing import Any, Self

import xxhash

from sspo_cli.rewards import checker_version
from sspo_cli.tasks.prompts import QUESTION, Template
from sspo_cli.types import Problem, Prompt

SAME_FILES = "give all machines the same model and data"  # if the ranks have read different ones
DIGITS = 12  # hexadecimal digits of a 64-bit hash, enough to distinguish the benchmarks of a report


@dataclass(frozen=True, slots=True)
class Identity:
    """The fingerprints of a measurement, with the names in `tracking.measurement.IDENTITY`.

    problems  hash of ids, questions, gold answers and rules of checking, independent of the order of the problems
    messages  hash of the messages that the prompt template makes of a placeholder question, before the chat template
    rendered  hash of the rendered prompts and their tokens
    checker   version of the code that reads and checks answers
    engine    kind of sampler (torch or vLLM), with top_p and top_k if they truncate the distribution
    """

    problems: str
    messages: str
    rendered: str
    checker: str
    engine: str

    @classmethod
    def of(cls, prompts: Iterable[Prompt], template: Template, engine: str) -> Self:
        """Compute the identity of rendered problems. Only the first word of `engine`, the sampler's name, is used."""
        prompts = sorted(prompts, key=lambda prompt: prompt.problem.id)
        return cls(
            problems=problems_fingerprint(prompt.problem for prompt in prompts),
            messages=hash_of(template.messages(QUESTION)),
            rendered=hash_of([[prompt.problem.id, prompt.text, prompt.token_ids] for prompt in prompts]),
            checker=checker_version(),
            engine=engine.partition(" ")[0],
        )

    @property
    def digest(self) -> str:
        """Hash of all fingerprints, which every row of answers contains."""
        return hash_of(astuple(self))

    def fields(self) -> dict[str, str]:
        """Return the digest and the fingerprints as fields of a row of `summary.json`."""
        return {"identity": self.digest, **asdict(self)}


def problems_fingerprint(problems: Iterable[Problem]) -> str:
    """Return a hash of all fields of the problems that determine the questions and the right answers."""
    return hash_of(sorted([p.id, p.question, p.answer, p.check, p.environment or "", p.setup or ""] for p in problems))


def hash_of(value: Any) -> str:
    """Return a short hash of plain values."""
    return xxhash.xxh3_64_hexdigest(json.dumps(value).encode())[:DIGITS]
