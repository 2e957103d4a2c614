"""A rollout batch as tensors.

Axes: B completions (P prompts × G), T completion tokens, S prompt and completion tokens. All tensors are
right-padded: with causal attention, no real token attends to padding, so no attention mask is needed.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sspo_cli import ranks
from sspo_cli.types import Completion, Group

OUTCOME = ("solved", "turns", "proposals", "calls", "timeouts", "crashes")  # fields of an episode's `Outcome`


@dataclass(frozen=True, slots=True)
class Batch:
    """Completions with all values that the objective needs; minibatches and micro-batches are Batches too.

    groups             [B]    int64    index of the group; rows of a group have the same prompt
    tokens             [B, S] int64    prompt, then completion
    prompt_lengths     [B]    int64
    lengths            [B]    int64    of the completions, including text that the policy read in an episode
    own_lengths        [B]    int64    |y_i|, tokens that the policy wrote
    mask               [B, T] bool     True for completion tokens that the policy wrote and that are included in the loss
    advantages         [B]    float32  Â
    answer_rewards     [B]    float32  r_answer
    format_rewards     [B]    float32  r_format
    own_rewards        [B]    float32  value of the user's reward function; 0 if there is none
    rewards            [B]    float32  weighted sum of these three
    truncated          [B]    bool     truncated at the token limit
    outcomes           [B, 6] float32  values of `OUTCOME` for an episode; NaN for a single turn
    sampling_logprobs  [B, T] float32  by the sampler
    old_logprobs       [B, T] float32  by the policy at rollout time
    old_entropy        [B, T] float32  of the policy at rollout time, in nats
    reference_logprobs [B, T] float32  by the reference policy; 0 without a KL penalty
    routes             [B, T, L] int32 experts that the sampler chose in L layers, see `Routes.codes`; L = 0 if it does not say
    rerouted           [B, T] float32  share of layers in which the policy, at rollout time, chose other experts
    """

    groups: Tensor
    tokens: Tensor
    prompt_lengths: Tensor
    lengths: Tensor
    own_lengths: Tensor
    mask: Tensor
    advantages: Tensor
    answer_rewards: Tensor
    format_rewards: Tensor
    own_rewards: Tensor
    rewards: Tensor
    truncated: Tensor
    outcomes: Tensor
    sampling_logprobs: Tensor
    old_logprobs: Tensor
    old_entropy: Tensor
    reference_logprobs: Tensor
    routes: Tensor
    rerouted: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: Tensor) -> Self:
        """Select rows, and trim the padding to the longest selected row."""
        picked = replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})
        longest = int(picked.lengths.max())
        return replace(
            picked,
            tokens=picked.tokens[:, : int((picked.prompt_lengths + picked.lengths).max())],
            mask=picked.mask[:, :longest],
            sampling_logprobs=picked.sampling_logprobs[:, :longest],
            old_logprobs=picked.old_logprobs[:, :longest],
            old_entropy=picked.old_entropy[:, :longest],
            reference_logprobs=picked.reference_logprobs[:, :longest],
            routes=picked.routes[:, :longest],
            rerouted=picked.rerouted[:, :longest],
        )

    def micro_batches(self, token_budget: int, together: bool) -> Iterator[tuple[Tensor, Self]]:
        """Yield (row indices, micro-batch) pairs of rows of similar length.

        Rows × longest row is at most `token_budget`, unless a single row is longer.

        together  if true, rows of a group are adjacent, for a policy that computes their prompt once; if false, rows are
                  sorted by length, which needs the least padding
        """
        lengths = (self.prompt_lengths + self.lengths).tolist()
        rows: list[int] = []
        width = 0
        for row in self._by_length(lengths, together):
            width = max(width, lengths[row])
            if rows and (len(rows) + 1) * width > token_budget:
                yield (picked := torch.tensor(rows)), self.select(picked)
                rows, width = [], lengths[row]
            rows.append(row)
        yield (picked := torch.tensor(rows)), self.select(picked)

    def share(self, token_budget: int, together: bool, apart: bool = False) -> Iterator[tuple[Tensor, Self]]:
        """Yield this rank's (row indices, micro-batch) pairs.

        apart  each pair has rows of one group alone, and the pairs of a group depend neither on the minibatch nor on the number
               of ranks

        All ranks yield the same number of pairs, with about equal numbers of tokens. If there are too few rows, a pair has no
        row indices and a fully masked completion, so that every rank takes part in the collective operations. Without `apart`,
        a process without other ranks yields the pairs of `micro_batches`.
        """
        if ranks.size() == 1 and not apart:
            yield from self.micro_batches(token_budget, together)
            return
        lengths = (self.prompt_lengths + self.lengths).tolist()
        order = self._by_length(lengths, together)
        if apart:
            parts = self._parts_of_groups(token_budget)
            parts += [[]] * (-len(parts) % ranks.size())
        else:
            for count in itertools.count(ranks.size(), ranks.size()):
                parts = equal_parts(order, lengths, count)
                if all(
                    len(part) * max(lengths[row] for row in part) <= token_budget for part in parts if len(part) > 1
                ):
                    break
        for part in parts[ranks.rank() :: ranks.size()]:
            rows = torch.tensor(part, dtype=torch.long)
            if part:
                yield rows, self.select(rows)
            else:
                shortest = self.select(torch.tensor(order[-1:]))
                yield rows, replace(shortest, mask=torch.zeros_like(shortest.mask))

    def _parts_of_groups(self, token_budget: int) -> list[list[int]]:
        """Split each group into micro-batches. Return the row indices of each micro-batch, largest micro-batch first."""
        parts: list[list[int]] = []
        for group in self.groups.unique():
            rows = (self.groups == group).nonzero().squeeze(1)
            parts += [rows[picked].tolist() for picked, _ in self.select(rows).micro_batches(token_budget, True)]
        return sorted(parts, key=len, reverse=True)

    def _by_length(self, lengths: Sequence[int], together: bool) -> list[int]:
        """Return row indices from the longest to the shortest row. If `together`, the rows of a group stay adjacent."""
        groups = self.groups.tolist() if together else range(len(self))
        longest: dict[int, int] = {}
        for group, length in zip(groups, lengths, strict=True):
            longest[group] = max(length, longest.get(group, 0))
        return sorted(range(len(self)), key=lambda row: (-longest[groups[row]], groups[row], -lengths[row]))

    def to(self, device: torch.device) -> Self:
        """Copy every tensor to a device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> Self:
        """Restore the batch of a checkpoint, with defaults for fields that older versions did not have."""
        missing = {
            "own_lengths": state["lengths"],
            "outcomes": torch.full((len(state["lengths"]), len(OUTCOME)), torch.nan),
            "own_rewards": torch.zeros_like(state["answer_rewards"]),
            "rewards": state["answer_rewards"] + state["format_rewards"],
            "old_entropy": torch.zeros_like(state["old_logprobs"]),
            "reference_logprobs": torch.zeros_like(state["old_logprobs"]),
            "routes": torch.zeros(*state["old_logprobs"].shape, 0, dtype=torch.int32),
            "rerouted": torch.zeros_like(state["old_logprobs"]),
        }
        return cls(**{**missing, **state})


def equal_parts(order: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Split `order` into `count` parts with about equal numbers of tokens; none is empty if there are at least `count` rows."""
    if len(order) < count:
        return [[row] for row in order] + [[]] * (count - len(order))
    parts: list[list[int]] = []
    start, left = 0, sum(lengths[row] for row in order)
    for remaining in range(count, 0, -1):
        last = len(order) - remaining + 1  # leaves at least one row for each later part
        end, tokens = start + 1, lengths[order[start]]
        while end < last and (remaining == 1 or tokens + lengths[order[end]] / 2 <= left / remaining):
            tokens += lengths[order[end]]
            end += 1
        parts.append(list(order[start:end]))
        start, left = end, left - tokens
    return parts


def collate(groups: Sequence[Group], advantages: Tensor, *, mask_truncated: bool) -> Batch:
    """Collect graded groups and their advantages [P, G] in one Batch, in the order of the groups.

    mask_truncated  mask all tokens of truncated completions
    """
    prompts = [group.prompt.token_ids for group in groups for _ in group.completions]
    completions = [completion for group in groups for completion in group.completions]
    rewards = [reward for group in groups for reward in group.rewards]
    truncated = torch.tensor([completion.truncated for completion in completions])
    lengths = torch.tensor([len(completion.token_ids) for completion in completions])
    mask = pad_sequence([torch.tensor(_written(completion)) for completion in completions], batch_first=True)
    return Batch(
        groups=torch.tensor([number for number, group in enumerate(groups) for _ in group.completions]),
        tokens=pad_sequence(
            [torch.tensor(prompt + c.token_ids) for prompt, c in zip(prompts, completions, strict=True)],
            batch_first=True,
        ),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        lengths=lengths,
        own_lengths=torch.tensor([completion.own_tokens for completion in completions]),
        mask=mask & ~truncated.unsqueeze(1) if mask_truncated else mask,
        advantages=advantages.flatten(),
        answer_rewards=torch.tensor([reward.answer for reward in rewards]),
        format_rewards=torch.tensor([reward.format for reward in rewards]),
        own_rewards=torch.tensor([reward.own for reward in rewards]),
        rewards=torch.tensor([reward.total for reward in rewards]),
        truncated=truncated,
        outcomes=torch.tensor([_outcome(completion) for completion in completions]),
        sampling_logprobs=pad_sequence([torch.tensor(c.sampling_logprobs) for c in completions], batch_first=True),
        old_logprobs=torch.zeros(mask.shape),
        old_entropy=torch.zeros(mask.shape),
        reference_logprobs=torch.zeros(mask.shape),
        routes=_routes(completions, mask),
        rerouted=torch.zeros(mask.shape),
    )


def _written(completion: Completion) -> list[bool]:
    return [not read for read in completion.read] if completion.read else [True] * len(completion.token_ids)


def _routes(completions: Sequence[Completion], mask: Tensor) -> Tensor:
    if any(completion.routes is None for completion in completions):
        return torch.zeros(*mask.shape, 0, dtype=torch.int32)
    return pad_sequence([torch.from_numpy(completion.routes) for completion in completions], batch_first=True)


def _outcome(completion: Completion) -> list[float]:
    if completion.episode is None:
        return [math.nan] * len(OUTCOME)
    return [float(getattr(completion.episode.outcome, name)) for name in OUTCOME]


def minibatch_rows(prompts: int, group_size: int, mu: int, epochs: int, seed: int) -> list[Tensor]:
    """Return the row indices of each optimizer step on a rollout batch.

    Each epoch has μ disjoint minibatches of whole groups, in a new random order. Groups are not split, because their
    completions share the prompt and their advantages sum to 0.
    """
    generator = torch.Generator().manual_seed(seed)
    plan = []
    for _ in range(epochs):
        for chosen in torch.randperm(prompts, generator=generator).chunk(mu):
            plan.append((chosen.unsqueeze(1) * group_size + torch.arange(group_size)).flatten())
    return plan
