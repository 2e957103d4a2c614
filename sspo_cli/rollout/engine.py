"""The protocol of samplers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sspo_cli.policy.model import Policy
from sspo_cli.seeds import derive_seed
from sspo_cli.types import Completion


@dataclass(frozen=True, slots=True)
class Sampling:
    """The parameters of sampling. Only evaluations truncate (top-k, top-p): the objectives assume the full softmax.

    temperature     0 is greedy
    max_new_tokens  length at which a completion without an end-of-sequence token is truncated
    seed            the same seed, weights and prompts give the same completions
    first           index of the call's first prompt among all prompts that share the seed
    stop            strings that end a completion like an end-of-sequence token, after the token that completes one of them;
                    tokens are never split
    top_p, top_k    sample from the fewest most probable tokens that have this probability, and from at most so many

    The random numbers of a prompt depend only on the seed and its index. The number of prompts that are sampled together, and
    the number of calls, only affect the rounding of the logits.
    """

    temperature: float
    max_new_tokens: int
    seed: int
    first: int = 0
    stop: tuple[str, ...] = ()
    top_p: float = 1.0
    top_k: int | None = None

    def seed_of(self, index: int) -> int:
        """Return the seed of the random numbers of a prompt of this call."""
        return derive_seed(self.seed, "prompt", self.first + index)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to sample `group_size` completions of each prompt.

    prompts  token ids of each prompt
    seeds    seeds of the random numbers of each prompt; None: by their indices
    """

    prompts: Sequence[list[int]]
    group_size: int
    sampling: Sampling
    seeds: Sequence[int] | None = None

    def seed_of(self, index: int) -> int:
        """Return the seed of the random numbers of prompt number `index`."""
        return self.sampling.seed_of(index) if self.seeds is None else self.seeds[index]

    def part(self, start: int, count: int) -> "Request":
        """Return the request for `count` prompts from number `start`."""
        end = start + count
        sampling = replace(self.sampling, first=self.sampling.first + start)
        return Request(self.prompts[start:end], self.group_size, sampling, self.seeds and self.seeds[start:end])


OnCompletion = Callable[[int, int, Completion], object]
"""(index of the prompt, number in its group, completion); called as soon as it is done, while others are still sampled."""


class Engine(Protocol):
    """A sampler whose behaviour policy is set by `sync`."""

    @property
    def name(self) -> str:
        """Name of the sampler for the run's notes, because `auto` depends on the machine."""

    def check_capacity(self, tokens: int) -> None:
        """Raise UserError if a prompt and its completion, `tokens` together, do not fit this sampler.

        The model's context is checked elsewhere.
        """

    def sync(self, policy: Policy) -> dict[str, float]:
        """Set behaviour policy := policy. Returns metrics of a probe if the weights were copied.

        Raises UserError if the check fails.
        """

    def generate(self, request: Request, on_completion: OnCompletion | None = None) -> list[list[Completion]]:
        """Sample the completions of each prompt, in the order of the prompts."""

    def sleep(self) -> None:
        """Free memory for the learner as far as possible, until the next sync."""


def to_completion(
    policy: Policy, token_ids: list[int], logprobs: list[float], ended: bool, routes: Any = None
) -> Completion:
    """Make a completion from sampled tokens and their log-probabilities.

    ended   the completion ended with an end-of-sequence token, its last one, or with a stop string; otherwise it is truncated
    """
    written = token_ids[:-1] if ended and token_ids[-1] in policy.end_ids else token_ids
    # Tags may be special tokens, so decode all of them and leave out only the end of the sequence.
    text = policy.tokenizer.decode(written, skip_special_tokens=False)
    return Completion(token_ids, logprobs, text, truncated=not ended, routes=routes)
