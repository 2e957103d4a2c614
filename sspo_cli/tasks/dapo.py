"""DAPO-Math-17k, as published by its authors (in verl's columns, each row about 100 times) or as cleaned by open-r1."""

from collections.abc import Iterator

from sspo_cli.errors import UserError
from sspo_cli.tasks.rows import PLAIN, Layout, Published, Row, read_rows
from sspo_cli.types import Problem

PUBLISHED = Published(
    "BytedTsinghua-SIA/DAPO-Math-17k",
    splits={"train": "train"},
    columns=("prompt", "reward_model", "extra_info", "solution"),
)
PROCESSED = Published(
    "open-r1/DAPO-Math-17k-Processed", splits={"train": "train"}, columns=PUBLISHED.columns, config="all"
)
# The authors' instructions, which are removed because they ask for a different answer format than the prompt templates.
INSTRUCTION_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "
    "(without quotes) where $Answer is the answer to the problem."
)
INSTRUCTION_AFTER = 'Remember to put your answer on its own line after "Answer:".'


def problems(path: str | None, split: str, layout: Layout = PLAIN) -> Iterator[Problem]:
    """Load each question once. If a question occurs with two gold answers, as a few do, the first one is used.

    Raises UserError in the same cases as `read_rows`, and if a row has no question or no answer.
    """
    ids: set[str] = set()
    questions: set[str] = set()
    for row in read_rows(path, split, PUBLISHED, PROCESSED, layout=layout):
        identity, question = row.identity("extra_info.index") or f"{split}-{row.number}", _question(row)
        if identity not in ids and question not in questions:
            ids.add(identity)
            questions.add(question)
            yield Problem(identity, question, row.gold("reward_model.ground_truth", "solution"), "dapo")


def _question(row: Row) -> str:
    question = row.question("prompt").removeprefix(INSTRUCTION_BEFORE).removesuffix(INSTRUCTION_AFTER).strip()
    if not question:
        raise UserError(f"{row.where} has no question in `prompt`")
    return question
