"""Options of data: tasks, benchmarks, prompts and rewards."""

import re
from collections.abc import Sequence
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
# Environment by task, for tasks that are played in episodes.
ENVIRONMENTS = {
    "calculator": "calculator",
    "calculator-two": "calculator",
    "codeact": "codeact",
    "codeact-tasks": "codeact",
    "mint": "codeact",
    "wtq": "codeact",
}


class ColumnOptions(Options):
    """Columns of a data set, if they do not have the usual names. A dotted name refers to a field of a nested column."""

    question: str | None = Field(None, description="column of the question")
    answer: str | None = Field(None, description="column of the gold answer, which is the correct answer")
    id: str | None = Field(
        None, description="column of the problem's id; null: a usual column of ids, otherwise the position of the row"
    )
    demonstration: str | None = Field(None, description="column of a worked completion for the cold start")


class TaskOptions(Options):
    """A data set. If there are several, they are mixed by weight.

    A task may also be written as text: `gsm8k`, `gsm8k=data/gsm8k`, `gsm8k=data/gsm8k:test` or `problems.jsonl`.
    """

    name: TaskName = Field(
        "arithmetic", description="name of the data set, or file for rows of {question, answer} in `path`"
    )
    path: str | None = Field(
        None, description="name on the hub, local folder or local file to read instead of the published data set"
    )
    split: str = Field(
        "train", description="split of the data set, such as train or test; the default for benchmarks is test"
    )
    config: str | None = Field(
        None, description="configuration, for a data set that has several, such as socratic for gsm8k"
    )
    columns: ColumnOptions | None = Field(
        None, description="names of the columns; null: the usual names are recognized"
    )
    weight: PositiveFloat = Field(
        1.0, description="weight of the task in the random choice of problems, relative to the other tasks"
    )
    limit: PositiveInt | None = Field(None, description="number of problems to use, starting with the first; null: all")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, values: Any) -> Any:
        return task_from_text(values, "train") if isinstance(values, str) else values

    @model_validator(mode="after")
    def _demonstrations_are_read(self) -> Self:
        if self.name != "file" and self.columns and self.columns.demonstration:
            raise ValueError(f"columns.demonstration applies only to task file, not to {self.name}; leave it out")
        return self

    @property
    def label(self) -> str:
        """Return the name used in results: the task's name, or for task `file` the name of its file without the suffix."""
        return name_without_type(Path(self.path)) if self.name == "file" and self.path else self.name

    @property
    def is_single_file(self) -> bool:
        """Report whether the rows are those of a local file, which has no splits. Code-acting splits its tasks itself."""
        return self.name not in ENVIRONMENTS and self.path is not None and Path(self.path).expanduser().is_file()

    @property
    def layout(self) -> Layout:
        """Return the configuration and columns to read, if they differ from those of the published data set."""
        return Layout(self.config, self.columns.model_dump(exclude_none=True) if self.columns else {})


class BenchmarkOptions(TaskOptions):
    """A data set for measuring."""

    max_new_tokens: int | None = Field(
        None, gt=0, le=10**7, description="token limit of a completion; null: evaluation.max_new_tokens"
    )


def task_from_text(text: str, split: str) -> dict[str, Any]:
    """Parse NAME, NAME=PATH, NAME=PATH:SPLIT, NAME:SPLIT, a path or PATH:SPLIT into options.

    split  split to use if `text` specifies none

    Raises ValueError if the name is unknown or the path is empty.
    """
    name, equals, path = text.partition("=")
    if equals and name in TASK_NAMES:
        if not path:
            raise ValueError(f"{text} has no path after `=`; write {text}PATH, or {name} for the published data set")
        path, split = _path_and_split(path, split)
        return {"name": name, "path": path, "split": split}
    path, split = _path_and_split(text, split)
    if path in TASK_NAMES:
        return {"name": path, "split": split}
    if path and (Path(path).suffix or "/" in path or Path(path).exists()):
        return {"name": "file", "path": path, "split": split}
    raise ValueError(f"unknown task {text or repr(text)}{did_you_mean(text, TASK_NAMES)}")


def with_episodes(given: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Add the benchmarks of `texts` that are played in episodes to unvalidated options, if these have the section `episode`.

    Without such a benchmark, validation would refuse the section, because nothing would use it.
    """
    evaluation = given.get("evaluation") or {}
    listed = evaluation.get("benchmarks") or [] if isinstance(evaluation, dict) else None
    if "episode" not in given or not isinstance(listed, list):
        return given
    names = {str(item.get("name")) if isinstance(item, dict) else _task_of(str(item)) for item in listed}
    played = [text for text in texts if _task_of(text) in ENVIRONMENTS.keys() - names]
    return {**given, "evaluation": {**evaluation, "benchmarks": [*listed, *played]}} if played else given


def _task_of(text: str) -> str:
    """Return the NAME of NAME=PATH:SPLIT."""
    return text.partition("=")[0].partition(":")[0]


def _path_and_split(text: str, split: str) -> tuple[str, str]:
    """Split `data/gsm8k:test` at its colon, unless the whole text is an existing path."""
    path, colon, own = text.rpartition(":")
    return (path, own) if colon and path and own and "/" not in own and not Path(text).exists() else (text, split)


class ChatOptions(Options):
    """Changes to the prompt template and the chat template. Episodes use only the changes to the chat template.

    A single line that ends in .txt, .md, .jinja or .j2, or that is an existing file, is replaced by the content of the file.
    """

    system: str | None = Field(
        None, description="system turn that replaces the prompt template's; '' for no system turn"
    )
    user: str | None = Field(
        None, description="user turn, in which {question} is replaced by the question; null: the question alone"
    )
    template: str | None = Field(
        None, description="chat template that replaces the tokenizer's, for example for a base model"
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
                f"chat.user = {shorten(repr(self.user), 80)} has no {{question}}; insert it where the problem belongs"
            )
        if self.system is not None and "{question}" in self.system:
            raise ValueError(
                "chat.system contains {question}, but the problem is inserted only in chat.user; move it there"
            )
        if self.template is not None and not re.search(r"\{[{%]", self.template):
            raise ValueError(
                f"chat.template = {shorten(repr(self.template), 80)} is neither a Jinja template nor a file that holds one"
            )
        if taken := RENDERED_WITH & self.template_kwargs.keys():
            raise ValueError(f"chat.template_kwargs.{min(taken)} is set by sspo itself; leave it out")
        return self


# Arguments of `apply_chat_template` itself.
RENDERED_WITH = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}


class RewardOptions(Options):
    """The reward of a completion in training. Pass@1 is the share of right answers and does not depend on the reward."""

    answer: NonNegativeFloat = Field(
        1.0, description="weight of r_answer, which is 1 for a right answer and otherwise 0"
    )
    format: NonNegativeFloat = Field(1.0, description="weight of r_format, which is between 0 and 1")
    function: str | None = Field(
        None,
        min_length=1,
        description="your own reward as module:function, a function (text of a completion, gold answer) -> number",
    )
    weight: PositiveFloat = Field(1.0, description="weight of the value of `function`")
    range: Annotated[tuple[Bounded, Bounded], Strict(False)] = Field(
        (0.0, 1.0),
        description="range of the values of `function`; a call that exceeds the time limit gets the lowest value",
    )

    @model_validator(mode="after")
    def _something_is_rewarded(self) -> Self:
        low, high = self.range
        if low >= high:
            raise ValueError(f"reward.range = {[low, high]} is empty; the first number must be less than the second")
        if self.function is None and not (self.answer or self.format):
            raise ValueError(
                "reward.answer = 0 and reward.format = 0 leave nothing to learn; give a weight to one of them"
            )
        if self.function is None and (self.weight, self.range) != (1.0, (0.0, 1.0)):
            raise ValueError(
                "reward.weight and reward.range apply to reward.function, which is not set; leave them out"
            )
        return self

    @property
    def scoring(self) -> Scoring:
        """Return the weights and the function of the reward."""
        return Scoring(self.answer, self.format, self.function, self.weight, *self.range)
