"""From a problem to what the model reads: templates by name, rendered through the tokenizer's chat template."""

import hashlib
import json
import multiprocessing
import re
import resource
from collections.abc import Mapping
from concurrent.futures import TimeoutError
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

from jinja2 import Environment, TemplateError, meta
from pebble import concurrent

from sspo_cli.errors import UserError, border, did_you_mean, shorten
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
QUESTION = "{question}"

# Of the first prompt that a chat template renders, in a process of its own: a template is a program, and may run for ever.
SECONDS = 20.0
MEMORY = 1 << 30  # bytes more than this process has
_CHECKED: set[tuple[str, str]] = set()  # chat templates with the prompt templates that they rendered so
_WITHOUT_SYSTEM: list[Any] = []  # chat templates that refused a system turn
_JINJA = Environment(extensions=["jinja2.ext.loopcontrols"])  # only parses
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # a tag of transformers' own
LONGEST = 1_000_000  # characters more than the question has


@dataclass(frozen=True, slots=True)
class Template:
    """How problems are put to the model.

    name     by which measurements with the same template are known
    system   the system turn; None: there is none
    user     the user turn, in which the problem takes the place of `{question}`
    options  of the chat template, such as `enable_thinking`
    """

    name: str
    system: str | None
    user: str = QUESTION
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, system: str | None = None, user: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Self:
        """Return the template of a name, with turns of one's own in place of its own.

        Raises UserError for an unknown name, and for a user turn without the question.
        """
        if name not in TEMPLATES:
            raise UserError(f"unknown prompt template {name}{did_you_mean(name, TEMPLATES)}")
        if user is not None and QUESTION not in user:
            raise UserError(
                f"the user turn {shorten(repr(user), 80)} has no {QUESTION}, so that all prompts would be the same"
            )
        own = [system, user, dict(options or {})]
        if own != [None, None, {}]:
            digest = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()
            name, known = f"{name}-{digest[:8]}", TEMPLATES[name]
            return cls(name, known if system is None else system or None, user or QUESTION, options or {})
        return cls(name, TEMPLATES[name])

    def messages(self, question: str) -> list[dict[str, str]]:
        """Return the turns that a chat template renders."""
        turns = [{"role": "user", "content": self.user.replace(QUESTION, question)}]
        if self.system:
            turns.insert(0, {"role": "system", "content": self.system})
        return turns


def render(problem: Problem, template: Template | str, tokenizer: Any) -> Prompt:
    """Render a problem; a text is the name of a template.

    Raises UserError for an unknown template, and for a tokenizer whose chat template is missing, cannot render the turns,
    leaves one out or does not know the template's options.
    """
    if isinstance(template, str):
        template = Template.of(template)
    _check_options(tokenizer, template.options)
    return _prompt(
        problem, template.messages(problem.question), tokenizer, f"prompt template {template.name}", template.options
    )


def render_episode(problem: Problem, system: str | None, thinking: bool, tokenizer: Any) -> Prompt:
    """Render the first turn of an episode; `system` is its environment's. Raises UserError as `render` does.

    A chat template without system turns (Gemma's) gets the system's text in front of the question. `thinking` is for those
    that have a choice (Qwen3's).
    """
    options = {"enable_thinking": thinking}
    alone = [{"role": "user", "content": problem.question}]
    if not system:
        return _prompt(problem, alone, tokenizer, "question of an episode", options)
    if tokenizer.chat_template not in _WITHOUT_SYSTEM:
        turns = [{"role": "system", "content": system}, *alone]
        try:
            return _prompt(problem, turns, tokenizer, "system turn of an episode", options)
        except UserError:
            _WITHOUT_SYSTEM.append(tokenizer.chat_template)
    together = [{"role": "user", "content": f"{system}\n\n{problem.question}"}]
    return _prompt(problem, together, tokenizer, "question of an episode", options)


def render_turns(tokenizer: Any, turns: list[dict[str, str]], what: str, options: Mapping[str, Any]) -> str:
    """Render turns through the chat template, which is checked at its first `what`; `options` are the template's.

    Raises UserError for a tokenizer whose chat template is missing or cannot render them.
    """
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} has no chat template; use an instruct model")
    with border(f"the chat template{_of(tokenizer)} refuses the {what}"):
        kind = str(tokenizer.chat_template), what
        if kind not in _CHECKED:
            _check_template(tokenizer, turns, options)
            _CHECKED.add(kind)
        return _apply(tokenizer, turns, options)


def opening_of(text: str) -> str:
    """Return what a rendered text has already written of the policy's turn."""
    return OPENING if text.rstrip().endswith(OPENING) else ""


def _prompt(
    problem: Problem, turns: list[dict[str, str]], tokenizer: Any, what: str, options: Mapping[str, Any]
) -> Prompt:
    text = render_turns(tokenizer, turns, what, options)
    _check_turns(text, turns, tokenizer)
    # The chat template writes a beginning-of-sequence token itself where the model wants one; a second must not be added.
    with border(f"the tokenizer {tokenizer.name_or_path} cannot encode problem {problem.id}"):
        token_ids = tokenizer.encode(text, add_special_tokens=False)
    return Prompt(problem, text, token_ids, opening=opening_of(text))


def _check_options(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Raise UserError for an option that the chat template does not read: it would be ignored."""
    unknown = options.keys() - _variables(str(tokenizer.chat_template)) if options else ()
    if unknown:
        raise UserError(
            f"the chat template{_of(tokenizer)} knows no option {min(unknown)}; leave it out of chat.template_kwargs"
        )


@cache
def _variables(chat_template: str) -> set[str]:
    """Return the names that a chat template reads from outside; all words of one that is no Jinja and cannot be rendered."""
    try:
        return meta.find_undeclared_variables(_JINJA.parse(_GENERATION.sub("", chat_template)))
    except TemplateError:
        return set(re.findall(r"\w+", chat_template))


def _check_turns(text: str, turns: list[dict[str, str]], tokenizer: Any) -> None:
    """Raise UserError if a chat template has left out a turn."""
    for turn in turns:
        if turn["content"].strip() not in text:
            raise UserError(
                f"the chat template{_of(tokenizer)} leaves out the {turn['role']} turn, {shorten(repr(turn['content']), 80)}; "
                "correct it, or take another"
            )


def _of(tokenizer: Any) -> str:
    """Name the tokenizer, if it has a name, behind what is its."""
    return f" of {tokenizer.name_or_path}" if tokenizer.name_or_path else ""


def _apply(tokenizer: Any, turns: list[dict[str, str]], options: Mapping[str, Any]) -> str:
    """Render the turns. Raises whatever the template does, and ValueError for what is no prompt."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    if not isinstance(text, str) or not text:
        raise ValueError("it writes nothing")
    if len(text) > LONGEST + sum(len(turn["content"]) for turn in turns):
        raise ValueError(f"it writes {len(text):,} characters")
    return text


def _check_template(tokenizer: Any, turns: list[dict[str, str]], options: Mapping[str, Any]) -> None:
    """Render in a child process with limits of time and memory.

    The child is a fork: it needs the tokenizer, and loading that anew takes seconds. Raises whatever the template does, and
    ValueError at the limits.
    """
    child = concurrent.process(timeout=SECONDS, context=multiprocessing.get_context("fork"))(_apply_within_limits)
    try:
        child(tokenizer, turns, options).result()
    except TimeoutError:
        raise ValueError(f"it has not ended after {SECONDS:g} seconds") from None
    except MemoryError:
        raise ValueError(f"it takes more than {MEMORY >> 20:,} MiB of memory") from None


def _apply_within_limits(tokenizer: Any, turns: list[dict[str, str]], options: Mapping[str, Any]) -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere the limit does not hold
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))
    _apply(tokenizer, turns, options)
