"""From a problem to what the model reads: templates by name, rendered through the tokenizer's chat template."""

import multiprocessing
import resource
from concurrent.futures import TimeoutError
from pathlib import Path
from typing import Any

from pebble import concurrent

from sspo_cli.errors import UserError, border, did_you_mean
from sspo_cli.types import Problem, Prompt

# System turn by template name; None: the question stands alone.
TEMPLATES: dict[str, str | None] = {
    "think-answer": (
        "You are a helpful assistant. Think step by step before you answer. Enclose the reasoning in <think> </think> tags "
        "and the final answer in <answer> </answer> tags, and write nothing else: "
        "<think> reasoning process here </think> <answer> answer here </answer>"
    ),
    "plain": None,
}
OPENING = "<think>"

# Of the first prompt that a chat template renders, in a process of its own: a template is a program, and may run for ever.
SECONDS = 20.0
MEMORY = 1 << 30  # bytes more than this process has
_CHECKED: set[tuple[str, str]] = set()  # chat templates with the prompt templates that they rendered so
LONGEST = 1_000_000  # characters more than the question has


def render(problem: Problem, template_name: str, tokenizer: Any) -> Prompt:
    """Raises UserError for an unknown template, and for a tokenizer whose chat template is missing or cannot render the turns."""
    turns = messages(problem.question, template_name)
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} has no chat template; use an instruct model")
    failure = f"the chat template of {tokenizer.name_or_path} refuses the prompt template {template_name}"
    with border(failure):
        kind = str(tokenizer.chat_template), template_name
        if kind not in _CHECKED:
            _check_template(tokenizer, turns)
            _CHECKED.add(kind)
        text = _apply(tokenizer, turns)
    # The chat template writes a beginning-of-sequence token itself where the model wants one; a second must not be added.
    with border(f"the tokenizer {tokenizer.name_or_path} cannot encode problem {problem.id}"):
        token_ids = tokenizer.encode(text, add_special_tokens=False)
    return Prompt(problem, text, token_ids, opening=OPENING if text.rstrip().endswith(OPENING) else "")


def messages(question: str, template_name: str) -> list[dict[str, str]]:
    """Return the turns that a chat template renders. Raises UserError for an unknown prompt template."""
    if template_name not in TEMPLATES:
        raise UserError(f"unknown prompt template {template_name}{did_you_mean(template_name, TEMPLATES)}")
    turns = [{"role": "user", "content": question}]
    if system := TEMPLATES[template_name]:
        turns.insert(0, {"role": "system", "content": system})
    return turns


def _apply(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    """Render the turns. Raises whatever the template does, and ValueError for what is no prompt."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if not isinstance(text, str) or not text:
        raise ValueError("it writes nothing")
    if len(text) > LONGEST + sum(len(turn["content"]) for turn in turns):
        raise ValueError(f"it writes {len(text):,} characters")
    return text


def _check_template(tokenizer: Any, turns: list[dict[str, str]]) -> None:
    """Render in a child process with limits of time and memory.

    The child is a fork: it needs the tokenizer, and loading that anew takes seconds. Raises whatever the template does, and
    ValueError at the limits.
    """
    child = concurrent.process(timeout=SECONDS, context=multiprocessing.get_context("fork"))(_apply_within_limits)
    try:
        child(tokenizer, turns).result()
    except TimeoutError:
        raise ValueError(f"it has not ended after {SECONDS:g} seconds") from None
    except MemoryError:
        raise ValueError(f"it takes more than {MEMORY >> 20:,} MiB of memory") from None


def _apply_within_limits(tokenizer: Any, turns: list[dict[str, str]]) -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere the limit does not hold
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))
    _apply(tokenizer, turns)
