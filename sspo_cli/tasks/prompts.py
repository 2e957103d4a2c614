"""From a problem to what the model reads: templates by name, rendered through the tokenizer's chat template."""

from typing import Any

import jinja2

from sspo_cli.errors import UserError, did_you_mean
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


def render(problem: Problem, template_name: str, tokenizer: Any) -> Prompt:
    """Raises UserError for an unknown template, and for a tokenizer whose chat template is missing or refuses the turns."""
    if template_name not in TEMPLATES:
        raise UserError(f"unknown prompt template {template_name}{did_you_mean(template_name, TEMPLATES)}")
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} has no chat template; use an instruct model")
    turns = [{"role": "user", "content": problem.question}]
    if system := TEMPLATES[template_name]:
        turns.insert(0, {"role": "system", "content": system})
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} refuses the prompt template {template_name}: {error}"
        ) from None
    # The chat template writes a beginning-of-sequence token itself where the model wants one; a second must not be added.
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return Prompt(problem, text, token_ids, opening=OPENING if text.rstrip().endswith(OPENING) else "")
