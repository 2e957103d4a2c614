"""Sampling with the policy's own model: each prompt is prefilled once for its whole group, finished rows leave the batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from sspo_cli.policy.model import Policy
from sspo_cli.rollout.engine import Sampling
from sspo_cli.types import Completion


class TorchEngine:
    """Samples `max_rows` completions at a time; the weights are the policy's own, so that a sync copies nothing."""

    name = "torch"

    def __init__(self, policy: Policy, max_rows: int) -> None:
        self.policy = policy
        self.max_rows = max_rows

    def sync(self, policy: Policy) -> dict[str, float]:
        self.policy = policy
        return {}

    def sleep(self) -> None:
        """Holds nothing between two calls."""

    def generate(
        self,
        prompts: Sequence[list[int]],
        group_size: int,
        sampling: Sampling,
        finished: Callable[[int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        generator = torch.Generator(self.policy.device).manual_seed(sampling.seed)
        at_a_time = max(1, self.max_rows // group_size)
        groups: list[list[Completion]] = []
        training = self.policy.model.training
        self.policy.model.eval()
        try:
            # One context for all steps: it casts each weight to bfloat16 once and keeps the copy until it ends.
            with torch.no_grad(), self.policy.autocast():
                for start in range(0, len(prompts), at_a_time):
                    groups += self._generate(prompts[start : start + at_a_time], group_size, sampling, generator)
        finally:
            self.policy.model.train(training)
        if finished:
            for index, group in enumerate(groups):
                for completion in group:
                    finished(index, completion)
        return groups

    def _generate(
        self, prompts: Sequence[list[int]], group_size: int, sampling: Sampling, generator: torch.Generator
    ) -> list[list[Completion]]:
        policy, device = self.policy, self.policy.device
        project = policy.projection()
        ends = torch.tensor(policy.end_ids, device=device)
        tokens, attention = _left_padded(prompts, policy.pad_id, device)
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache(config=policy.model.config)
        rows = torch.arange(len(prompts) * group_size, device=device)  # still sampling, as rows of `written`
        written = torch.full((len(rows), sampling.max_new_tokens), policy.pad_id, device=device)
        logprobs = torch.zeros(len(rows), sampling.max_new_tokens, device=device)
        lengths = torch.full((len(rows),), sampling.max_new_tokens, device=device)
        ended = torch.zeros(len(rows), dtype=torch.bool, device=device)

        for step in range(sampling.max_new_tokens):
            hidden = policy.decoder(
                input_ids=tokens,
                attention_mask=attention,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            logits = project(hidden)
            positions = positions[:, -1:] + 1
            if step == 0:  # from here on, one row for each completion
                cache.batch_repeat_interleave(group_size)
                logits, positions, attention = (
                    x.repeat_interleave(group_size, 0) for x in (logits, positions, attention)
                )
            chosen, chosen_logprobs = _sample(logits, sampling.temperature, generator)
            written[rows, step], logprobs[rows, step] = chosen, chosen_logprobs
            going_on = ~torch.isin(chosen, ends)
            if not going_on.all():
                done = rows[~going_on]
                lengths[done], ended[done] = step + 1, True
                if len(done) == len(rows):
                    break
                kept = going_on.nonzero().squeeze(1)
                cache.batch_select_indices(kept)
                rows, chosen, positions, attention = (x[kept] for x in (rows, chosen, positions, attention))
            tokens = chosen.unsqueeze(1)
            attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)

        return self._completions(written, logprobs, lengths, ended, group_size)

    def _completions(
        self, written: Tensor, logprobs: Tensor, lengths: Tensor, ended: Tensor, group_size: int
    ) -> list[list[Completion]]:
        completions = []
        for ids, values, length, end in zip(
            written.tolist(), logprobs.tolist(), lengths.tolist(), ended.tolist(), strict=True
        ):
            # Tags may be special tokens of the tokenizer, so only the end of the sequence is left out of the text.
            text = self.policy.tokenizer.decode(ids[: length - end], skip_special_tokens=False)
            completions.append(Completion(ids[:length], values[:length], text, truncated=not end))
        return [completions[start : start + group_size] for start in range(0, len(completions), group_size)]


def _sample(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """logits [R, V] -> token [R], its log-probability [R] at the temperature (greedy: at temperature 1)."""
    logprobs = (logits / (temperature or 1.0)).log_softmax(dim=-1)
    if temperature == 0:
        chosen = logprobs.argmax(dim=-1, keepdim=True)
    else:
        chosen = torch.multinomial(logprobs.exp(), 1, generator=generator)
    return chosen.squeeze(1), logprobs.gather(1, chosen).squeeze(1)


def _left_padded(prompts: Sequence[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask [P, longest]; padding on the left, so that every row goes on at the same column."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    attention = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return tokens, attention
