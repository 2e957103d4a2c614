"""Checks before a run: sizes fit the machine, a perfect answer earns the full reward, problems fit the model."""

import os
from collections.abc import Callable, Iterable
from typing import Any

from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError, shorten
from sspo_cli.policy.model import Policy, check_ids
from sspo_cli.rewards import AnswerChecker, Scoring, grade, read_gold, respell
from sspo_cli.rollout.episodes import NO_STAGE, Stage
from sspo_cli.types import Prompt

CALL = "6*7"  # the code that a perfect episode runs
CLOSING = "</think>"

# Lower bounds in bytes, so that only sizes that can never fit are refused.
PER_COMPLETION = 512  # its token ids, text and reward as Python objects
PER_TOKEN = 12  # id and log-probability of a token while it is sampled
PER_INDEX = 8
PER_WEIGHT = 16  # a weight, its gradient and two moments
PER_LAYER = 16384  # modules of a layer as Python objects


def check_sizes(options: RunOptions) -> None:
    """Raise UserError if a part of the run needs more memory than the machine has.

    Without this check, the system would grant the memory at first and kill the process later.
    """
    rollout, learning, evaluation, tiny = options.rollout, options.learning, options.evaluation, options.model.tiny
    completions = rollout.prompts * rollout.group_size
    together = max(rollout.group_size, min(rollout.max_rows, completions))
    measured = max(evaluation.samples, rollout.max_rows if evaluation.benchmarks else 0)
    measured_tokens = max(evaluation.limits(rollout), default=evaluation.max_new_tokens or 0)
    layer = 4 * tiny.hidden_size**2 + 3 * tiny.hidden_size * tiny.intermediate_size
    needs = {
        "rollout.prompts x rollout.group_size": completions * PER_COMPLETION,
        "rollout.max_new_tokens": together * rollout.max_new_tokens * PER_TOKEN,
        "evaluation.samples": evaluation.samples * PER_COMPLETION,
        "evaluation.max_new_tokens": min(measured, together) * measured_tokens * PER_TOKEN,
        "learning.epochs": learning.epochs * completions * PER_INDEX,
        "cold_start.batch_size": options.cold_start.batch_size * PER_INDEX if options.cold_start.steps else 0,
        "model.tiny": 0 if options.model.name else tiny.layers * (PER_LAYER + PER_WEIGHT * layer),
    }
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for names, needed in needs.items():
        if needed > room:
            raise UserError(
                f"{names}: at least {needed / 2**30:,.0f} GiB of memory are needed, but this machine has "
                f"{room / 2**30:,.0f}; choose a smaller size"
            )


def check_rewards(
    tokenizer: Any,
    prompt: Prompt,
    checker: AnswerChecker,
    scoring: Scoring,
    stage: Stage,
    note: Callable[[str], None],
) -> None:
    """Note one rendered prompt, and the rewards of synthetic completions that are encoded and decoded like sampled completions.

    For a problem with an environment, note the reward of a perfect episode instead: a call, then the gold answer.

    Raises UserError if the perfect completion does not earn the full reward of answer and format, or if another spelling of
    the gold answer is graded as wrong. Possible causes are a chat template that drops the tags, or a gold answer that nothing
    can match. Also raises UserError if the user's reward function runs out of time or ends its process.
    """
    note(f"the first prompt, rendered:\n{prompt.text}")
    if prompt.problem.environment:
        _check_episode(prompt, stage, note)
        return
    gold = read_gold(prompt.problem.answer)
    wrong = "1" if gold == "0" else "0"
    completions = {
        "perfect": f"<think>…</think><answer>{gold}</answer>",
        "respelt": f"<think>…</think><answer>{respell(gold)}</answer>",
        "wrong answer": f"<think>…</think><answer>{wrong}</answer>",
        "broken format": f"{gold}</answer>",
        "empty": "",
    }
    texts = []
    for text in completions.values():
        ids = tokenizer.encode(text.removeprefix(prompt.opening), add_special_tokens=False)
        texts.append(prompt.opening + tokenizer.decode(ids, skip_special_tokens=False))
    golds = [prompt.problem.answer] * len(texts)
    rewards = scoring.complete(grade(texts, golds, checker), texts, golds, checker)
    scores = ", ".join(f"{name} {reward.total:g}" for name, reward in zip(completions, rewards, strict=True))
    note(f"rewards of synthetic completions, of at most {scoring.highest:g}: {scores}")
    perfect, respelt, *_ = rewards
    if scoring.function and perfect.status != "ok":
        ended = f"has not ended after {checker.limit:g} s" if perfect.status == "timeout" else "ends its process"
        raise UserError(
            f"reward {scoring.function} {ended} for the completion {shorten(repr(texts[0]), 160)}, so every completion would "
            "get the lowest reward; correct the function, or raise answer_timeout"
        )
    if perfect.answer + perfect.format < 2.0:
        raise UserError(
            f"a perfect completion of problem {prompt.problem.id} earns {perfect.answer:g} for its answer and {perfect.format:g} "
            f"for its format instead of 1 and 1 (read as {texts[0]!r}); choose another prompt template or tokenizer, or correct "
            "the gold answer"
        )
    if not respelt.answer:
        raise UserError(
            f"the gold answer of problem {prompt.problem.id} of {prompt.problem.task}, {shorten(repr(gold), 80)}, is not "
            f"recognized as equal to {shorten(repr(respell(gold)), 80)}, so probably no answer can match it; correct it"
        )


def _check_episode(prompt: Prompt, stage: Stage, note: Callable[[str], None]) -> None:
    """Play a perfect episode whose turns are encoded and decoded like sampled turns. Raises UserError if it is not solved."""
    problem, dialogue = prompt.problem, stage.dialogue
    assert problem.environment
    assert dialogue
    environment = stage.environments[problem.environment]
    episode = environment.open(problem, seed=0)
    answers: list[str | None] = []
    try:
        for written in (f"<execute>{CALL}</execute>", f"<solution>{problem.answer}</solution>"):
            opening = dialogue.opening if answers else prompt.opening
            ids = dialogue.encode_turn(written, "")
            text = f"{opening}{CLOSING if opening else ''}{dialogue.tokenizer.decode(ids, skip_special_tokens=False)}"
            answers += environment.step([(episode, text)])
            if episode.over:
                break
            dialogue.bridge(ids, str(answers[-1]))
    finally:
        environment.close([episode])
    total = episode.reward.total
    note(f"a perfect episode: the call {CALL} was answered {answers[0]!r}, and the gold answer earns {total:g}")
    if total < 2.0 and episode.limits.turns > 1:
        raise UserError(
            f"a perfect episode of problem {problem.id} of {problem.task} earns {total:g} instead of 2 (it ended by "
            f"{episode.outcome.ended}); choose another tokenizer, or correct the gold answer"
        )


def check_lengths(prompts: Iterable[Prompt], max_new_tokens: int, policy: Policy, stage: Stage = NO_STAGE) -> int:
    """Return the largest number of tokens that a prompt and its completion may have together.

    Raises UserError for a prompt with tokens that the model does not have, and for one that leaves too little of the model's
    context for its completion.
    """
    longest = 0
    for prompt in prompts:
        check_ids(prompt.token_ids, policy, f"the prompt of problem {prompt.problem.id} of {prompt.problem.task}")
        room = stage.longest(prompt, max_new_tokens)
        needed = len(prompt.token_ids) + room
        longest = max(longest, needed)
        if policy.context is not None and needed > policy.context:
            limit = "episode.max_tokens" if prompt.problem.environment else "max_new_tokens"
            instead = (
                f"lower {limit}" if len(prompt.token_ids) < policy.context else "use a model with a longer context"
            )
            raise UserError(
                f"problem {prompt.problem.id} of {prompt.problem.task} needs {needed} tokens, {len(prompt.token_ids)} for its "
                f"prompt and {room} for the completion, but the model's context is {policy.context}; "
                f"{instead} or leave the problem out"
            )
    return longest
