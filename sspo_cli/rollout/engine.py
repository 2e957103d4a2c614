"""What the loop asks of a sampler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sspo_cli.policy.model import Policy
from sspo_cli.seeds import derive_seed
from sspo_cli.types import Completion


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. Never truncated (top-k, top-p): the objectives assume the full softmax.

    temperature     0 is greedy
    max_new_tokens  a completion without an end-of-sequence token by then is truncated
    seed            the same seed, weights and prompts give the same completions
    first           place of the call's first prompt among all prompts that share the seed
    stop            strings that end a completion as an end-of-sequence token does, after the token that completes one of them;
                    tokens are never cut

    A prompt's draws depend on the seed and its own place alone. How many prompts are sampled together, and in how many
    calls, changes nothing but the rounding of the logits.
    """

    temperature: float
    max_new_tokens: int
    seed: int
    first: int = 0
    stop: tuple[str, ...] = ()

    def seed_of(self, index: int) -> int:
        """Return the seed of the draws of a call's prompt."""
        return derive_seed(self.seed, "prompt", self.first + index)


@dataclass(frozen=True, slots=True)
class Request:
    """What an engine is asked to sample: `group_size` completions of each prompt.

    prompts  token ids of each
    seeds    of the draws of each prompt; None: by their places
    """

    prompts: Sequence[list[int]]
    group_size: int
    sampling: Sampling
    seeds: Sequence[int] | None = None

    def seed_of(self, index: int) -> int:
        """Return the seed of the draws of prompt number `index`."""
        return self.sampling.seed_of(index) if self.seeds is None else self.seeds[index]

    def part(self, start: int, count: int) -> "Request":
        """Return the request of `count` of the prompts, from number `start` on."""
        end = start + count
        sampling = replace(self.sampling, first=self.sampling.first + start)
        return Request(self.prompts[start:end], self.group_size, sampling, self.seeds and self.seeds[start:end])


OnCompletion = Callable[[int, Completion], object]
"""(index of the prompt, its completion); called as soon as the completion is done, while others are still sampled."""


class Engine(Protocol):
    """A sampler whose behaviour policy is set by `sync`."""

    @property
    def name(self) -> str:
        """Name the sampler for the run's notes: `auto` is not the same everywhere."""

    def check_capacity(self, tokens: int) -> None:
        """Check that a prompt and its completion, `tokens` together, fit, whatever the model's context.

        Raises UserError if they do not.
        """

    def sync(self, policy: Policy) -> dict[str, float]:
        """Set behaviour policy := policy. Returns metrics of a check of that if the weights were copied.

        Raises UserError if the check fails.
        """

    def generate(self, request: Request, on_completion: OnCompletion | None = None) -> list[list[Completion]]:
        """Sample the completions of each prompt, in the order of the prompts."""

    def sleep(self) -> None:
        """Leave its memory to the learner, as far as it can; the next sync wakes it up."""


def to_completion(policy: Policy, token_ids: list[int], logprobs: list[float], ended: bool) -> Completion:
    """Make a completion of sampled tokens and their log-probabilities.

    ended  by an end-of-sequence token, which is the last one then, or by a stop string; the completion is truncated otherwise
    """
    written = token_ids[:-1] if ended and token_ids[-1] in policy.end_ids else token_ids
    # Tags may be special tokens of the tokenizer, so only the end of the sequence is left out of the text.
    text = policy.tokenizer.decode(written, skip_special_tokens=False)
    return Completion(token_ids, logprobs, text, truncated=not ended)
