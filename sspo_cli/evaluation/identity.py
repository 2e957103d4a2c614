"""What makes two measurements of one name the same: the problems, the prompt, the check of answers and the sampler."""

import json
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from typing import Any, Self

import xxhash

from sspo_cli.rewards import checker_version
from sspo_cli.tasks.prompts import QUESTION, Template
from sspo_cli.types import Problem, Prompt

DIGITS = 12  # of 64 bits, hexadecimal: enough that no two of a report's benchmarks share them


@dataclass(frozen=True, slots=True)
class Identity:
    """The fingerprints of a measurement, by the names that `tracking.measurement.IDENTITY` has for them.

    problems  ids, questions and gold answers, in whatever order
    messages  what the prompt template adds to a question, before any chat template
    rendered  the prompts as the model reads them, their tokens included
    checker   of the code that reads and checks answers
    engine    the kind of sampler: torch or vLLM
    """

    problems: str
    messages: str
    rendered: str
    checker: str
    engine: str

    @classmethod
    def of(cls, prompts: Iterable[Prompt], template: Template, engine: str) -> Self:
        """Compute it for rendered problems; `engine` is the sampler's whole name, of which the first word counts."""
        prompts = sorted(prompts, key=lambda prompt: prompt.problem.id)
        return cls(
            problems=problems_fingerprint(prompt.problem for prompt in prompts),
            messages=_fingerprint(template.messages(QUESTION)),
            rendered=_fingerprint([[prompt.problem.id, prompt.text, prompt.token_ids] for prompt in prompts]),
            checker=checker_version(),
            engine=engine.partition(" ")[0],
        )

    @property
    def digest(self) -> str:
        """The whole of it in one word, which stands in every row of answers."""
        return _fingerprint(astuple(self))

    def fields(self) -> dict[str, str]:
        """Return it as a row of `summary.json` has it."""
        return {"identity": self.digest, **asdict(self)}


def problems_fingerprint(problems: Iterable[Problem]) -> str:
    """Hash everything of the problems that determines what is asked and which answer is right."""
    return _fingerprint(
        sorted([p.id, p.question, p.answer, p.check, p.environment or "", p.setup or ""] for p in problems)
    )


def _fingerprint(value: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(value).encode())[:DIGITS]
