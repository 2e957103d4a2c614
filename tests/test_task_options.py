"""The short texts that name a task or a benchmark in a config and after `-b`."""

import json
from pathlib import Path

import pytest
from commands import assert_error, sspo

from sspo_cli.config import BenchmarkOptions, ColumnOptions, TaskOptions, load_config
from sspo_cli.errors import UserError
from sspo_cli.evaluation.targets import Target, tasks_of
from sspo_cli.tasks.rows import Layout

ROW = json.dumps({"Frage": "1+1", "Antwort": "2"}) + "\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text(ROW)
    (tmp_path / "a:b").mkdir()
    (tmp_path / "gsm8k").mkdir()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gsm8k", TaskOptions(name="gsm8k")),
        ("gsm8k:test", TaskOptions(name="gsm8k", split="test")),
        ("gsm8k=data/gsm8k", TaskOptions(name="gsm8k", path="data/gsm8k")),
        ("gsm8k=data/gsm8k:test", TaskOptions(name="gsm8k", path="data/gsm8k", split="test")),
        ("gsm8k=a:b", TaskOptions(name="gsm8k", path="a:b")),
        ("aime24=HuggingFaceH4/aime_2024:train", TaskOptions(name="aime24", path="HuggingFaceH4/aime_2024")),
        ("mine.jsonl", TaskOptions(name="file", path="mine.jsonl")),
        ("mine.jsonl:hard", TaskOptions(name="file", path="mine.jsonl", split="hard")),
        ("someone/data:hard", TaskOptions(name="file", path="someone/data", split="hard")),
        ("file=mine.jsonl", TaskOptions(name="file", path="mine.jsonl")),
    ],
)
def test_a_text_stands_for_a_task(text, expected):
    assert load_config(overrides=[f"tasks=[{text}]"]).tasks == [expected]
    assert load_config(overrides=[f"cold_start.tasks=[{text}]"]).cold_start.tasks == [expected]
    own = "split" in expected.model_fields_set or ":train" in text
    as_benchmark = BenchmarkOptions(**{**dict(expected), **({} if own else {"split": "test"})})
    assert load_config(overrides=[f"evaluation.benchmarks=[{text}]"]).evaluation.benchmarks == [as_benchmark]
    assert tasks_of(Target("one", load_config(), Path("one"), None), [text]) == [as_benchmark]


def test_several_short_forms_and_whole_ones():
    options = load_config(
        overrides=["tasks=[gsm8k, {name: deepmath, weight: 2}]", "evaluation.benchmarks=[gsm8k, math500]"]
    )
    assert [(task.name, task.split, task.weight) for task in options.tasks] == [
        ("gsm8k", "train", 1),
        ("deepmath", "train", 2),
    ]
    assert [(task.name, task.split) for task in options.evaluation.benchmarks] == [
        ("gsm8k", "test"),
        ("math500", "test"),
    ]
    (benchmark,) = load_config(overrides=["evaluation.benchmarks=[{name: aime24}]"]).evaluation.benchmarks
    assert benchmark.split == "test"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tasks=[gms8k]", "unknown task gms8k; did you mean gsm8k"),
        ("tasks=['']", "unknown task ''"),
        ("tasks=['gsm8k=']", "gsm8k= has no path after `=`; write gsm8k=PATH"),
        ("evaluation.benchmarks=[gms8k]", "unknown task gms8k; did you mean gsm8k"),
        ("evaluation.benchmarks=[3]", "evaluation.benchmarks.0"),
        ("tasks=[{columns: {questoin: q}}]", "unknown option `tasks.0.columns.questoin`; did you mean `tasks"),
        (
            "tasks=[{name: gsm8k, columns: {demonstration: d}}]",
            "columns.demonstration applies only to task file, not to gsm8k",
        ),
        ("tasks=gsm8k", "`tasks` = 'gsm8k' is not valid: it is a list; write tasks="),
    ],
)
def test_a_text_that_stands_for_none_is_refused(override, said):
    with pytest.raises(UserError, match=said):
        load_config(overrides=[override])


@pytest.mark.parametrize(
    ("path", "label"),
    [("a/mine.jsonl", "mine"), ("a/mine.jsonl.gz", "mine"), ("x/v1.5", "v1.5"), ("math.v2.csv", "math.v2")],
)
def test_results_are_filed_under_the_name_without_its_type(path, label):
    assert TaskOptions(name="file", path=path).label == label


def test_columns_and_configuration_make_the_layout():
    task = TaskOptions(name="file", path="x", config="cn", columns=ColumnOptions(question="Frage"))
    assert task.layout == Layout("cn", {"question": "Frage"})
    assert TaskOptions().layout == Layout()


def test_columns_are_read_by_a_run():
    tasks = "[{name: file, path: mine.jsonl, columns: {question: Frage, answer: Lösung}}]"
    done = sspo("train", "--runs-dir", ".", "--run", "bad", tasks=tasks, cold_start__steps=0)
    assert_error(done, "mine.jsonl, line 1 has no gold answer in `Lösung`; its columns are Frage, Antwort")
