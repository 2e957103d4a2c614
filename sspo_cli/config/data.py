"""Options of data: which tasks, how their problems are put to the model, what its answers earn."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, Strict, ValidationInfo, field_validator, model_validator

from sspo_cli.config.base import Bounded, NonNegativeFloat, Options, PositiveFloat, PositiveInt
from sspo_cli.config.parsing import text_or_file
from sspo_cli.errors import did_you_mean, shorten
from sspo_cli.rewards import Scoring
from sspo_cli.tasks.files import name_without_type
from sspo_cli.tasks.rows import Layout

TaskName = Literal[
    "arithmetic",
    "calculator",
    "chains",
    "calculator-two",
    "gsm8k",
    "deepmath",
    "dapo",
    "codeact",
    "codeact-tasks",
    "math500",
    "aime24",
    "aime25",
    "mint",
    "wtq",
    "file",
]
TASK_NAMES: tuple[str, ...] = get_args(TaskName)
# The environment of each task whose problems are played in episodes.
ENVIRONMENTS = {
    "calculator": "calculator",
    "calculator-two": "calculator",
    "codeact": "codeact",
    "codeact-tasks": "codeact",
    "mint": "codeact",
    "wtq": "codeact",
}


class ColumnOptions(Options):
    """Columns of a data set whose names are not found by themselves; a dotted name is of a nested column."""

    question: str | None = Field(None, description="what is asked")
    answer: str | None = Field(None, description="the gold answer")
    id: str | None = Field(None, description="by which a problem is named; null: its place")
    demonstration: str | None = Field(None, description="a worked completion for the cold start")


class TaskOptions(Options):
    """A data set. Several of them are mixed by weight.

    A text stands for one too: `gsm8k`, `gsm8k=data/gsm8k`, `gsm8k=data/gsm8k:test` or `problems.jsonl`.
    """

    name: TaskName = Field("arithmetic", description="of the data set; file: rows of {question, answer} in `path`")
    path: str | None = Field(None, description="hub name or local folder or file instead of the published one")
    split: str = Field(
        "train", description="train or test, or as the data set names it; of a benchmark, test by default"
    )
    config: str | None = Field(
        None, description="configuration of a data set that has several, such as socratic of gsm8k"
    )
    columns: ColumnOptions | None = Field(None, description="where question and answer are; null: by the usual names")
    weight: PositiveFloat = Field(1.0, description="share of the problems drawn, relative to the other tasks")
    limit: PositiveInt | None = Field(None, description="only the first so many problems")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, values: Any) -> Any:
        return task_from_text(values, "train") if isinstance(values, str) else values

    @model_validator(mode="after")
    def _demonstrations_are_read(self) -> Self:
        if self.name != "file" and self.columns and self.columns.demonstration:
            raise ValueError(f"columns.demonstration is of task file; {self.name} does not read it, leave it out")
        return self

    @property
    def label(self) -> str:
        """Return the name that results are filed under: the task's, or a local file's or folder's without its type."""
        return name_without_type(Path(self.path)) if self.name == "file" and self.path else self.name

    @property
    def layout(self) -> Layout:
        """Return how the rows differ from the published data set's."""
        return Layout(self.config, self.columns.model_dump(exclude_none=True) if self.columns else {})


class BenchmarkOptions(TaskOptions):
    """A data set to measure on."""

    max_new_tokens: PositiveInt | None = Field(
        None, le=10**7, description="of a completion; null: evaluation.max_new_tokens"
    )


def task_from_text(text: str, split: str) -> dict[str, Any]:
    """Return the options that NAME, NAME=PATH, NAME=PATH:SPLIT, NAME:SPLIT, a path or PATH:SPLIT stands for.

    `split` is meant if the text has none. Raises ValueError for an unknown name and an empty path.
    """
    name, equals, path = text.partition("=")
    if equals and name in TASK_NAMES:
        if not path:
            raise ValueError(f"{text} names no path; write {text}PATH, or {name} for the published data set")
        path, split = _path_and_split(path, split)
        return {"name": name, "path": path, "split": split}
    path, split = _path_and_split(text, split)
    if path in TASK_NAMES:
        return {"name": path, "split": split}
    if path and (Path(path).suffix or "/" in path or Path(path).exists()):
        return {"name": "file", "path": path, "split": split}
    raise ValueError(f"unknown task {text or repr(text)}{did_you_mean(text, TASK_NAMES)}")


def _path_and_split(text: str, split: str) -> tuple[str, str]:
    """Split `data/gsm8k:test`; a path that exists is one, even with a colon."""
    path, colon, own = text.rpartition(":")
    return (path, own) if colon and path and own and "/" not in own and not Path(text).exists() else (text, split)


class ChatOptions(Options):
    """The turns and the chat template of a prompt, next to the prompt template; episodes use only the chat template.

    A text of one line that ends in .txt, .md, .jinja or .j2, or names a file that exists, stands for what that file holds.
    """

    system: str | None = Field(None, description="system turn in place of the prompt template's; '' leaves it out")
    user: str | None = Field(None, description="user turn with {question}; null: the question alone")
    template: str | None = Field(
        None, description="chat template in place of the tokenizer's, such as for a base model"
    )
    template_kwargs: dict[str, Any] = Field(
        {}, description="options of the chat template, such as enable_thinking: false"
    )

    @field_validator("system", "user", "template")
    @classmethod
    def _from_file(cls, text: str | None, info: ValidationInfo) -> str | None:
        return text if text is None else text_or_file(text, f"chat.{info.field_name} = {text}")

    @model_validator(mode="after")
    def _can_be_rendered(self) -> Self:
        if self.user is not None and "{question}" not in self.user:
            raise ValueError(
                f"chat.user = {shorten(repr(self.user), 80)} has no {{question}}; put it where the problem is to be"
            )
        if self.system is not None and "{question}" in self.system:
            raise ValueError("chat.system holds {question}, where no problem is put in; move it to chat.user")
        if self.template is not None and not re.search(r"\{[{%]", self.template):
            raise ValueError(
                f"chat.template = {shorten(repr(self.template), 80)} is neither a Jinja template nor its file"
            )
        if taken := RENDERED_WITH & self.template_kwargs.keys():
            raise ValueError(
                f"chat.template_kwargs.{min(taken)} is given to the chat template by sspo itself; leave it out"
            )
        return self


# What `apply_chat_template` takes itself.
RENDERED_WITH = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}


class RewardOptions(Options):
    """The reward of a completion in training. Pass@1 does not depend on it: it counts right answers."""

    answer: NonNegativeFloat = Field(1.0, description="weight of r_answer, 1 or 0")
    format: NonNegativeFloat = Field(1.0, description="weight of r_format, between 0 and 1")
    function: str | None = Field(
        None, min_length=1, description="your own as module:function: (text of a completion, gold answer) -> number"
    )
    weight: PositiveFloat = Field(1.0, description="of its value")
    range: Annotated[tuple[Bounded, Bounded], Strict(False)] = Field(
        (0.0, 1.0), description="that its values lie in; one that runs out of time counts as the lowest"
    )

    @model_validator(mode="after")
    def _something_is_rewarded(self) -> Self:
        low, high = self.range
        if low >= high:
            raise ValueError(f"reward.range = {[low, high]} is empty; give the lowest and the highest value")
        if self.function is None and not (self.answer or self.format):
            raise ValueError("reward.answer = 0 and reward.format = 0 leave nothing to learn; give one a weight")
        if self.function is None and (self.weight, self.range) != (1.0, (0.0, 1.0)):
            raise ValueError("reward.weight and reward.range are of reward.function, which is not given")
        return self

    @property
    def scoring(self) -> Scoring:
        """Return the weights and the function that a reward is the sum of."""
        return Scoring(self.answer, self.format, self.function, self.weight, *self.range)
