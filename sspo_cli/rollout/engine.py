"""The protocol that every sampler implements, and the requests that it receives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sspo_cli.policy.model import Policy
from sspo_cli.seeds import derive_seed
from sspo_cli.types import Completion


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. Only evaluations use top-k and top-p, because the objectives assume the full softmax.

    temperature     0 selects the most probable token (greedy decoding)
    max_new_tokens  length at which a completion without an end-of-sequence token is truncated
    seed            the same seed, weights and prompts give the same completions
    first           index of the call's first prompt among all prompts that share the seed
    stop            strings that end a completion. The token that completes a string is the last one and is not split.
    top_p           sample from the fewest most probable tokens whose total probability reaches `top_p`
    top_k           sample from the `top_k` most probable tokens; None for all tokens

    The random numbers of a prompt depend only on the seed and the prompt's index. How many prompts are sampled together, and
    in how many calls, affects only the rounding of the logits.
    """

    temperature: float
    max_new_tokens: int
    seed: int
    first: int = 0
    stop: tuple[str, ...] = ()
    top_p: float = 1.0
    top_k: int | None = None

    def seed_of(self, index: int) -> int:
        """Return the random seed of prompt number `index` of this call."""
        return derive_seed(self.seed, "prompt", self.first + index)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to sample `group_size` completions of each prompt.

    prompts  token ids of each prompt
    seeds    random seed of each prompt; if None, `sampling` derives the seeds from the prompts' indices
    """

    prompts: Sequence[list[int]]
    group_size: int
    sampling: Sampling
    seeds: Sequence[int] | None = None

    def seed_of(self, index: int) -> int:
        """Return the random seed of prompt number `index`."""
        return self.sampling.seed_of(index) if self.seeds is None else self.seeds[index]

    def part(self, start: int, count: int) -> "Request":
        """Return the request for at most `count` of the prompts, beginning with prompt number `start`."""
        end = start + count
        sampling = replace(self.sampling, first=self.sampling.first + start)
        return Request(self.prompts[start:end], self.group_size, sampling, self.seeds and self.seeds[start:end])


OnCompletion = Callable[[int, int, Completion], object]
"""A callback with (prompt index, index in the group, completion).

It is called as soon as a completion is done, while the engine still samples other completions.
"""


class Engine(Protocol):
    """A sampler whose behaviour policy is set by `sync`."""

    @property
    def name(self) -> str:
        """Name of the sampler, for the record: which sampler `rollout.engine = auto` selects depends on the machine."""

    def check_capacity(self, tokens: int) -> None:
        """Raise UserError if this sampler cannot hold a prompt and its completion of `tokens` tokens in total.

        The model's context length is checked elsewhere.
        """

    def sync(self, policy: Policy) -> dict[str, float]:
        """Set the behaviour policy to `policy`.

        If the weights were copied, returns the metrics of `rollout.probe`, otherwise an empty dict. Raises UserError if the
        probe fails.
        """

    def generate(self, request: Request, on_completion: OnCompletion | None = None) -> list[list[Completion]]:
        """Sample the completions of each prompt, in the order of the prompts."""

    def sleep(self) -> None:
        """Free as much memory as possible for the learner, until the next `sync`."""


def to_completion(
    policy: Policy, token_ids: list[int], logprobs: list[float], ended: bool, routes: Any = None
) -> Completion:
    """Make a completion from sampled tokens and their log-probabilities.

    ended   True if the last token is an end-of-sequence token or completes a stop string; False if the completion is truncated
    routes  see `Completion.routes`
    """
    written = token_ids[:-1] if ended and token_ids[-1] in policy.end_ids else token_ids
    # Tags may be special tokens, so decode all of them and leave out only the end of the sequence.
    text = policy.tokenizer.decode(written, skip_special_tokens=False)
    return Completion(token_ids, logprobs, text, truncated=not ended, routes=routes)
