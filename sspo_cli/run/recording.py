"""Selection and description of the completions for `completions.jsonl`."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from torch import Tensor

from sspo_cli.config import RunOptions
from sspo_cli.policy.pieces import token_pieces
from sspo_cli.types import Completion, Group


def kept_rows(rows: Tensor, minibatch: int, options: RunOptions) -> list[int]:
    """Select the completions of a minibatch that are recorded. Returns their rows in the rollout batch.

    rows       rows of the minibatch in the rollout batch
    minibatch  index of the minibatch, from 0

    The first group of the first minibatch and the first group of the last minibatch, which is the stalest, are recorded. If
    there is a single minibatch, its first two groups are recorded.
    """
    groups = (minibatch == 0) + (minibatch == options.learning.mu - 1)
    return rows[: groups * options.rollout.group_size].tolist()


def kept_completions(
    groups: Sequence[Group], advantages: Tensor, plan: Sequence[Tensor], options: RunOptions, tokenizer: Any
) -> dict[int, dict[str, Any]]:
    """Describe the completions that are recorded. Returns {row in the rollout batch: row of `completions.jsonl`}.

    advantages  [prompts, group size]
    plan        rows of each minibatch of all epochs, in the order of learning
    """
    rows = {row for place, rows in enumerate(plan) for row in kept_rows(rows, place % options.learning.mu, options)}
    return {row: _describe(groups, advantages, row, tokenizer) for row in sorted(rows)}


def with_weights(completions: Sequence[dict[str, Any]], token_weights: Tensor) -> list[dict[str, Any]]:
    """Return the completions with their token weights. Completion i has the weights in row i of `token_weights` [B, T]."""
    return [
        {**completion, "weights": [round(weight, 3) for weight in weights[: len(completion["pieces"])].tolist()]}
        for completion, weights in zip(completions, token_weights, strict=False)
    ]


def _describe(groups: Sequence[Group], advantages: Tensor, row: int, tokenizer: Any) -> dict[str, Any]:
    """Return the row of `completions.jsonl` for the completion in a row of the rollout batch."""
    place, number = divmod(row, advantages.shape[1])
    group = groups[place]
    completion, reward = group.completions[number], group.rewards[number]
    has_end = not completion.truncated and completion.episode is None  # the pieces of an episode include end tokens
    pieces = token_pieces(tokenizer, completion.token_ids[:-1] if has_end else completion.token_ids)
    return {
        "problem": group.prompt.problem.id,
        "prompt": group.prompt.text,
        "gold": group.prompt.problem.answer,
        "completion": group.prompt.opening + completion.text,
        "extracted": reward.extracted,
        "r_answer": reward.answer,
        "r_format": reward.format,
        **({"r_own": reward.own} if reward.weights[2] else {}),
        "advantage": round(advantages[place, number].item(), 6),
        "tokens": completion.own_tokens,
        "truncated": completion.truncated,
        "status": reward.status,
        "pieces": pieces + [""] * has_end,  # the end token has no text
        **_describe_episode(completion),
    }


def _describe_episode(completion: Completion) -> dict[str, Any]:
    """Return the additional fields of an episode.

    `written` alternates between the number of tokens that the policy wrote and the number of tokens that it then read.
    """
    if completion.episode is None:
        return {}
    return {
        "written": [len(list(run)) for _, run in groupby(completion.read)],
        "turns": [asdict(turn) for turn in completion.episode.turns],
        "outcome": asdict(completion.episode.outcome),
    }
