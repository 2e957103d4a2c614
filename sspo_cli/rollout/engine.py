"""What the loop asks of a sampler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

    A prompt's draws depend on the seed and its own place alone. How many prompts are sampled together, and in how many
    calls, changes nothing but the rounding of the logits.
    """

    temperature: float
    max_new_tokens: int
    seed: int
    first: int = 0

    def seed_of(self, index: int) -> int:
        """Return the seed of the draws of a call's prompt."""
        return derive_seed(self.seed, "prompt", self.first + index)


class Engine(Protocol):
    @property
    def name(self) -> str:
        """For the run's notes: `auto` is not the same everywhere."""

    def check_room(self, tokens: int) -> None:
        """Raises UserError where a prompt and its completion, `tokens` together, would not fit, though the model has the
        context."""

    def sync(self, policy: Policy) -> dict[str, float]:
        """Behaviour policy := policy. Returns metrics of a check of that, where the weights were copied.

        Raises UserError where the check fails.
        """

    def generate(
        self,
        prompts: Sequence[list[int]],
        group_size: int,
        sampling: Sampling,
        finished: Callable[[int, Completion], object] | None = None,
    ) -> list[list[Completion]]:
        """`group_size` completions for each prompt, in the order of the prompts.

        `finished(index of the prompt, completion)` is called as soon as one is done, while others are still sampled.
        """

    def sleep(self) -> None:
        """Leaves its memory to the learner, as far as it can; the next sync wakes it up."""
