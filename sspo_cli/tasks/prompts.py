"""Prompts: named templates, rendered with the tokenizer's chat template."""

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

# System turn by template name; None: no system turn.
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
ASKED = "<answer>"
THINKING = "enable_thinking"  # option of chat templates such as Qwen3's: let the model think before it answers

# Limits of the first rendering with a chat template. It runs in a child process, because a template may never end.
SECONDS = 20.0
MEMORY = 1 << 30  # bytes in addition to the memory of this process
_CHECKED: set[tuple[str, str]] = set()  # (chat template, kind of prompt) that passed `_check_template`
_WITHOUT_SYSTEM: list[Any] = []  # chat templates that refuse system turns
_JINJA = Environment(extensions=["jinja2.ext.loopcontrols"])  # used for parsing only
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # a tag that transformers adds to Jinja
LONGEST = 1_000_000  # maximum number of characters that a chat template may add to the turns


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template.

    name     a key of TEMPLATES, followed by a hash if turns or options differ from this template; stored with scores
    system   the system turn, or None
    user     the user turn, in which `{question}` is replaced by the problem
    options  options of the chat template, such as `enable_thinking`
    """

    name: str
    system: str | None
    user: str = QUESTION
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, system: str | None = None, user: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Self:
        """Return the template with this name; `system` and `user` replace its turns if they are not None.

        Raises UserError for an unknown name, and for a user turn without the question.
        """
        if name not in TEMPLATES:
            raise UserError(f"unknown prompt template {name}{did_you_mean(name, TEMPLATES)}")
        if user is not None and QUESTION not in user:
            raise UserError(
                f"the user turn {shorten(repr(user), 80)} has no {QUESTION}, so all prompts would be the same; add {QUESTION}"
            )
        own = [system, user, dict(options or {})]
        if own != [None, None, {}]:
            digest = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()
            name, known = f"{name}-{digest[:8]}", TEMPLATES[name]
            return cls(name, known if system is None else system or None, user or QUESTION, options or {})
        return cls(name, TEMPLATES[name])

    @property
    def asks_for_tags(self) -> bool:
        """Report whether the prompt asks for the answer in tags."""
        return ASKED in f"{self.system} {self.user}"

    def messages(self, question: str) -> list[dict[str, str]]:
        """Return the turns that a chat template renders."""
        turns = [{"role": "user", "content": self.user.replace(QUESTION, question)}]
        if self.system:
            turns.insert(0, {"role": "system", "content": self.system})
        return turns


def render(problem: Problem, template: Template | str, tokenizer: Any) -> Prompt:
    """Render a problem with a template, given as a `Template` or by its name.

    Raises UserError if the template is unknown, if the tokenizer has no chat template, or if the chat template cannot render
    the turns, leaves out a turn or does not read one of the template's options.
    """
    if isinstance(template, str):
        template = Template.of(template)
    _check_options(tokenizer, template.options)
    return _prompt(
        problem, template.messages(problem.question), tokenizer, f"prompt template {template.name}", template.options
    )


def render_episode(problem: Problem, system: str | None, thinking: bool, tokenizer: Any) -> Prompt:
    """Render the prompt of an episode. Raises UserError in the same cases as `render`.

    system    system turn of the environment; if the chat template refuses system turns (Gemma's), the text is put before the
              question in the user turn
    thinking  the option THINKING of chat templates; other templates ignore it
    """
    options = {THINKING: thinking}
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
    """Render turns with the tokenizer's chat template.

    The first prompt of each kind is rendered in a child process first, with limits of time and memory.

    what     kind of prompt, for messages
    options  options of the chat template

    Raises UserError if the tokenizer's chat template is missing or cannot render the turns.
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
    """Return the start of the policy's turn that a rendered prompt already contains: `<think>` or an empty string."""
    return OPENING if text.rstrip().endswith(OPENING) else ""


def _prompt(
    problem: Problem, turns: list[dict[str, str]], tokenizer: Any, what: str, options: Mapping[str, Any]
) -> Prompt:
    text = render_turns(tokenizer, turns, what, options)
    _check_turns(text, turns, tokenizer)
    # Special tokens are not added: the chat template already writes the beginning-of-sequence token of models that need one.
    with border(f"the tokenizer {tokenizer.name_or_path} cannot encode problem {problem.id}"):
        token_ids = tokenizer.encode(text, add_special_tokens=False)
    return Prompt(problem, text, token_ids, opening=opening_of(text))


def _check_options(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Raise UserError for an option that the chat template does not read and would ignore."""
    unknown = options.keys() - _variables(str(tokenizer.chat_template)) if options else ()
    if unknown:
        raise UserError(
            f"the chat template{_of(tokenizer)} has no option {min(unknown)}; remove it from chat.template_kwargs"
        )


def reads_option(tokenizer: Any, name: str) -> bool:
    """Report whether the chat template reads an option, such as THINKING."""
    return name in _variables(str(tokenizer.chat_template))


@cache
def _variables(chat_template: str) -> set[str]:
    """Return the variables that a chat template reads, or all words in it if it is not valid Jinja."""
    try:
        return meta.find_undeclared_variables(_JINJA.parse(_GENERATION.sub("", chat_template)))
    except TemplateError:
        return set(re.findall(r"\w+", chat_template))


def _check_turns(text: str, turns: list[dict[str, str]], tokenizer: Any) -> None:
    """Raise UserError if a rendered text lacks one of the turns."""
    for turn in turns:
        if turn["content"].strip() not in text:
            raise UserError(
                f"the chat template{_of(tokenizer)} leaves out the {turn['role']} turn, {shorten(repr(turn['content']), 80)}; "
                "correct the chat template, or use another"
            )


def _of(tokenizer: Any) -> str:
    """Return " of NAME" if the tokenizer has a name, otherwise an empty string."""
    return f" of {tokenizer.name_or_path}" if tokenizer.name_or_path else ""


def _apply(tokenizer: Any, turns: list[dict[str, str]], options: Mapping[str, Any]) -> str:
    """Render the turns. Raises any exception of the template, and ValueError if the result is not a prompt."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    if not isinstance(text, str) or not text:
        raise ValueError("it writes nothing")
    if len(text) > LONGEST + sum(len(turn["content"]) for turn in turns):
        raise ValueError(f"it writes {len(text):,} characters")
    return text


def _check_template(tokenizer: Any, turns: list[dict[str, str]], options: Mapping[str, Any]) -> None:
    """Render the turns in a child process with limits of time and memory.

    The child is forked, because it needs the tokenizer, which takes seconds to load. Raises any exception of the template,
    and ValueError if a limit is reached.
    """
    child = concurrent.process(timeout=SECONDS, context=multiprocessing.get_context("fork"))(_apply_within_limits)
    try:
        child(tokenizer, turns, options).result()
    except TimeoutError:
        raise ValueError(f"it has not ended after {SECONDS:g} seconds") from None
    except MemoryError:
        raise ValueError(f"it needs more than {MEMORY >> 20:,} MiB of memory") from None


def _apply_within_limits(tokenizer: Any, turns: list[dict[str, str]], options: Mapping[str, Any]) -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():  # on other systems there is no memory limit
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))
    _apply(tokenizer, turns, options)
