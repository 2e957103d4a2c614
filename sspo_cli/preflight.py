"""Checks before anything is spent: a perfect answer can earn the full reward, and every problem fits the model."""

from collections.abc import Callable, Iterable
from typing import Any

from sspo_cli.errors import UserError
from sspo_cli.policy.model import Policy, check_ids
from sspo_cli.rewards import AnswerChecker, grade
from sspo_cli.types import Prompt


def check_rewards(tokenizer: Any, prompt: Prompt, checker: AnswerChecker, note: Callable[[str], None]) -> None:
    """Note one rendered prompt and the rewards of four synthetic completions, encoded and decoded as sampled ones are.

    Raises UserError if the perfect one does not reach 2.0, because of a chat template that swallows the tags, say, or of a
    gold answer that does not agree with itself.
    """
    gold = prompt.problem.answer
    wrong = "1" if gold == "0" else "0"
    completions = {
        "perfect": f"<think>…</think><answer>{gold}</answer>",
        "wrong answer": f"<think>…</think><answer>{wrong}</answer>",
        "broken format": f"{gold}</answer>",
        "empty": "",
    }
    texts = []
    for text in completions.values():
        ids = tokenizer.encode(text.removeprefix(prompt.opening), add_special_tokens=False)
        texts.append(prompt.opening + tokenizer.decode(ids, skip_special_tokens=False))
    rewards = grade(texts, [gold] * len(texts), checker)
    scores = ", ".join(f"{name} {reward.total:g}" for name, reward in zip(completions, rewards, strict=True))
    note(f"the first prompt, rendered:\n{prompt.text}")
    note(f"rewards of synthetic completions: {scores}")
    if rewards[0].total < 2.0:
        raise UserError(
            f"a perfect completion of problem {prompt.problem.id} earns {rewards[0].total:g} instead of 2 "
            f"(answer {rewards[0].answer:g}, format {rewards[0].format:g}, read as {texts[0]!r}); "
            "choose another prompt template or tokenizer, or mend the gold answer"
        )


def check_lengths(prompts: Iterable[Prompt], max_new_tokens: int, policy: Policy) -> int:
    """Return how many tokens a prompt and its completion may have at most, over all of them.

    Raises UserError for a prompt with tokens that the model does not have, and for one that leaves too little of the model's
    context for its completion.
    """
    longest = 0
    for prompt in prompts:
        check_ids(prompt.token_ids, policy, f"the prompt of problem {prompt.problem.id} of {prompt.problem.task}")
        needed = len(prompt.token_ids) + max_new_tokens
        longest = max(longest, needed)
        if policy.context is not None and needed > policy.context:
            raise UserError(
                f"problem {prompt.problem.id} of {prompt.problem.task} needs {needed} tokens, {len(prompt.token_ids)} for its "
                f"prompt and {max_new_tokens} for the completion, but the model's context is {policy.context}; "
                "lower max_new_tokens or leave the problem out"
            )
    return longest
