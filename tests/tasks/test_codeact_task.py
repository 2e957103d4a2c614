"""Problems of CodeActInstruct, MINT and WikiTableQuestions are joined with their golds, cut into turns, and split by task."""

import json
import logging
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from sspo_cli.errors import UserError
from sspo_cli.tasks import codeact
from sspo_cli.tasks.codeact import split_of
from sspo_cli.types import Problem

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "codeact"
MATH_ID = "oct28/reasoning/algebra/{}/gpt/max5_p2+tool+cd"


def conversation(identity: str, question: str, *turns: str) -> dict:
    roles = ("assistant", "user")
    said = [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return {
        "id": identity,
        "conversations": [{"role": "system", "content": "…"}, {"role": "user", "content": question}, *said],
    }


def write(folder: Path, *rows: dict) -> str:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def both(path: str) -> list[Problem]:
    return [problem for split in ("train", "test") for problem in codeact.problems(path, split)]


TURNS = ("Hm. <execute>1</execute> ok.", "Observation:\nOut[1]: 1", "So <solution> 1 </solution>.")


def test_a_row_is_joined_by_its_text_and_cut_where_a_turn_ends(tmp_path):
    gold = {"problem": "What  is\n1?", "solution": r"As \boxed{2} is more, \boxed{\frac{1}{1}}."}
    path = write(tmp_path, conversation(MATH_ID.format(7), "Task:\nWhat is 1?", *TURNS), gold)
    (problem,) = both(path)
    assert (problem.id, problem.question, problem.answer) == (MATH_ID.format(7), "Task:\nWhat is 1?", r"\frac{1}{1}")
    assert (problem.environment, problem.check, problem.setup) == ("codeact", "math", None)
    assert problem.episode == ("Hm. <execute>1</execute>", TURNS[1], "So <solution> 1 </solution>")


@pytest.mark.parametrize(
    "turns",
    [
        ("<execute>1</execute> so <solution>1</solution>",),
        ("<execute>wikipedia_search('x')</execute>", "Observation:", "<solution>1</solution>"),
        ("<execute>1</execute>", "Observation:"),
        ("<execute>1</execute>",),
    ],
)
def test_what_cannot_be_learnt_from_is_no_demonstration(tmp_path, turns):
    path = write(
        tmp_path, conversation(MATH_ID.format(7), "Task:\nQ", *turns), {"prompt": "Task:\nQ", "reference": "1"}
    )
    assert [problem.episode for problem in both(path)] == [()]


def test_rows_without_gold_are_counted(tmp_path, caplog):
    rows = [
        conversation(f"a/{kind}/1/m/s", "Task:\nQ", *TURNS) for kind in ("reasoning/hotpotqa", "code_generation/APPS")
    ]
    rows += [conversation("a/decision_making/alfworld/pick/trial/m/s", "Task:\nQ", *TURNS)] * 2
    path = write(
        tmp_path, *rows, conversation(MATH_ID.format(7), "Task:\nP", *TURNS), {"prompt": "P", "reference": "1"}
    )
    with caplog.at_level(logging.WARNING):
        assert len(both(path)) == 1
    assert "1 APPS, 2 alfworld, 1 hotpotqa; they do not count as unsolved" in caplog.text


def test_train_and_test_share_no_task_whatever_the_teacher(tmp_path):
    rows = []
    for task in range(60):
        rows += [
            conversation(MATH_ID.format(task).replace("gpt", teacher), f"Task:\nQ{task}", *TURNS) for teacher in "ab"
        ]
        rows.append({"prompt": f"Q{task}", "reference": "1"})
    path = write(tmp_path, *rows)
    train, test = (list(codeact.problems(path, split)) for split in ("train", "test"))
    assert not {p.question for p in train} & {p.question for p in test}
    assert len({p.question for p in train} | {p.question for p in test}) == 60
    assert max(Counter(p.question for p in test).values()) == 1
    assert set(Counter(p.question for p in train).values()) == {2}
    assert all(split_of("/".join(p.id.split("/")[1:4])) == "test" for p in test)


def test_problems_of_mint_are_not_trained_on(tmp_path):
    mint = {
        "task_type": "reasoning",
        "task_name": "math",
        "task_id": 3,
        "prompt": "Q 1",
        "reference": "1.0",
        "extra": {},
    }
    rows = [conversation(MATH_ID.format(n), f"Task:\nQ {n}", *TURNS) for n in range(40)]
    path = write(tmp_path, mint, *rows, *({"prompt": f"Q {n}", "reference": "1"} for n in range(40)))
    assert split_of("reasoning/algebra/1") == "train"
    questions = {problem.question for problem in both(path)}
    assert "Task:\nQ 1" not in questions
    assert len(questions) == 39
    assert [(p.id, p.question, p.answer) for p in codeact.mint_problems(path, "test")] == [
        ("math/3", "Task:\nQ 1", "1.0")
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "x", "conversations": [1, 2, 3]}, "line 1 is not a row of CodeActInstruct"),
        ({"id": MATH_ID.format(1), "conversations": "text"}, "line 1 is not a row of CodeActInstruct"),
        (
            {"task_id": "nt-1", "prompt": "q", "rows": [], "table_id": "t"},
            "has no table: it needs `reference_list`, `columns` and `rows`",
        ),
    ],
)
def test_damaged_rows_are_refused(tmp_path, row, said):
    problems = codeact.problems if "id" in row else codeact.more_problems
    with pytest.raises(UserError, match=said):
        list(problems(write(tmp_path, row), "train"))


@pytest.mark.parametrize(
    "problems", [codeact.problems, codeact.more_problems, codeact.mint_problems, codeact.wtq_problems]
)
def test_a_folder_and_a_split_are_needed(problems, tmp_path):
    with pytest.raises(UserError, match="needs path=…, a folder with gold answers"):
        next(problems(None, "train"))
    with pytest.raises(UserError, match="has no split dev; it has train, test"):
        next(problems(str(tmp_path), "dev"))


@pytest.fixture(scope="module")
def shared() -> str:
    if not SHARED.exists():
        pytest.skip(f"the real rows are not here: {SHARED}")
    return str(SHARED)


def test_the_real_rows(shared, caplog):
    """The real rows have 14 that can be checked, 8 of MATH and 6 of WikiTableQuestions; 12 of them are demonstrations."""
    problems = both(shared)
    assert Counter(problem.check for problem in problems) == {"math": 8, "denotation": 6}
    assert sum(bool(problem.episode) for problem in problems) == 12
    assert "2 APPS, 3 alfworld, 4 hotpotqa" in caplog.text
    more = [list(codeact.more_problems(shared, split)) for split in ("train", "test")]
    assert sum(map(len, more)) == 356


def test_the_real_benchmarks(shared, caplog):
    mint = list(codeact.mint_problems(shared, "test"))
    assert Counter(problem.id.partition("/")[0] for problem in mint) == {
        "math": 100, "gsm8k": 48, "mmlu": 76, "theoremqa": 49
    }  # fmt: skip
    assert "43 hotpotqa, 45 humaneval, 91 mbpp" in caplog.text
    assert len(list(codeact.wtq_problems(shared, "test"))) == 60


def test_setups_make_the_tables_that_the_prompts_show(shared):
    """pandas prints the first five rows as the prompt shows them, wide or narrow, so that all numbers and types agree."""
    problems = list(codeact.wtq_problems(shared, "test")) + [p for p in both(shared) if p.check == "denotation"]
    for problem in problems:
        names: dict = {}
        exec(problem.setup, names)
        assert set(names) - {"__builtins__"} == {"conn" if "`conn`" in problem.question else "df"}
        table = names["df"] if "df" in names else pd.read_sql("select * from data_table", names["conn"])
        narrow = str(table.head())
        with pd.option_context("display.width", 10_000, "display.max_columns", None):
            wide = str(table.head())
        assert problem.question.partition("are shown):\n")[2].partition("\n\nWrite")[0] in (narrow, wide)
    assert len(problems) == 66
