"""Tests of every data set in its published layouts, and of the sentence for each thing that can be wrong with a file."""

import json
from typing import get_args

import datasets
import pytest
from shared_data import published
from small_rows import DAPO, DEEPMATH, dapo_row, write_jsonl, write_parquet

from sspo_cli.config import TaskName
from sspo_cli.errors import UserError
from sspo_cli.tasks import TASKS, load_problems

QUESTIONS = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]


def test_every_task_of_the_options_is_known():
    assert set(TASKS) == set(get_args(TaskName))


# --- the published layouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "gold"), [("1,234", "1234"), (" 18", "18"), ("$2,000 ", "2000"), ("-5", "-5"), ("0.5", "0.5")]
)
def test_gsm8k_gold_stands_behind_the_marks(tmp_path, written, gold):
    rows = [{"question": " Why? ", "answer": f"Since 3 #### 4 is no end\n####{written}"}]
    (problem,) = load_problems("gsm8k", path=str(write_jsonl(tmp_path / "test.jsonl", rows)), split="test")
    assert (problem.question, problem.answer, problem.task, problem.id) == ("Why?", gold, "gsm8k", "test-0")


def test_gsm8k_row_without_marks_is_refused(tmp_path):
    file = write_jsonl(
        tmp_path / "train.jsonl", [{"question": "Q", "answer": "so 4\n#### 4"}, {"question": "Q", "answer": "5"}]
    )
    with pytest.raises(UserError, match=r"train.jsonl, line 2 has no gold answer after `####`"):
        load_problems("gsm8k", path=str(file), split="train")


def test_deepmath_parquet_shards_in_order(tmp_path):
    row = {"difficulty": 5.0, "topic": "Mathematics -> Algebra", "r1_solution_1": "Okay, so"}
    for shard in range(2):
        rows = [{**row, "question": f"q{shard}{i}", "final_answer": f"\\frac{{{i}}}{{7}}"} for i in range(2)]
        write_parquet(tmp_path / "data" / f"train-0000{shard}-of-00002.parquet", rows)
    problems = load_problems("deepmath", path=str(tmp_path), split="train")
    assert [p.question for p in problems] == ["q00", "q01", "q10", "q11"]
    assert [p.id for p in problems] == ["train-0", "train-1", "train-2", "train-3"]
    assert problems[1].answer == r"\frac{1}{7}"


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_dapo_of_verl_is_stripped_and_each_question_kept_once(tmp_path, write):
    rows = [dapo_row(1, "What is $1+1$?", "2"), dapo_row(2, "What is 2+2?", "4")] * 3
    rows += [dapo_row(3, "What is 2+2?", "-1")]  # the same question under another index
    rows += [dapo_row(1, "What is the sum of 1 and 1?", "2")]  # another wording under the same index
    file = write(tmp_path / f"train.{'jsonl' if write is write_jsonl else 'parquet'}", rows)
    problems = load_problems("dapo", path=str(file), split="train")
    assert [(p.id, p.question, p.answer) for p in problems] == [
        ("00000000-0000-4000-8000-000000000001", "What is $1+1$?", "2"),
        ("00000000-0000-4000-8000-000000000002", "What is 2+2?", "4"),
    ]


def test_dapo_as_cleaned_by_open_r1(tmp_path):
    row = {"prompt": "Find $x$.", "solution": "34", "extra_info": {"index": "a-b"}}
    (problem,) = load_problems("dapo", path=str(write_jsonl(tmp_path / "p.jsonl", [row])), split="train")
    assert (problem.id, problem.question, problem.answer) == ("a-b", "Find $x$.", "34")


def test_benchmarks_keep_their_ids(tmp_path):
    math = write_jsonl(tmp_path / "math.jsonl", [{"problem": "p", "answer": "\\pi", "unique_id": "test/a/1.json"}])
    aime = write_jsonl(tmp_path / "aime.jsonl", [{"id": 60, "problem": "p", "answer": "025", "solution": "…"}])
    assert load_problems("math500", path=str(math), split="test")[0].id == "test/a/1.json"
    math = write_jsonl(tmp_path / "copy.jsonl", [{"problem": "p", "answer": "1"}, {"problem": "q", "answer": "2"}])
    assert [p.id for p in load_problems("math500", path=str(math), split="test")] == ["test-0", "test-1"]
    (problem,) = load_problems("aime24", path=str(aime), split="test")
    assert (problem.id, problem.answer, problem.task) == ("60", "025", "aime24")
    write_jsonl(aime, [{"id": number, "problem": "p", "answer": "1"} for number in (1, 0)])
    assert [p.id for p in load_problems("aime24", path=str(aime), split="test")] == ["1", "0"]


@pytest.mark.parametrize(
    ("file", "split", "count"),
    [
        ("gsm8k/train.jsonl", "train", 7473),
        ("gsm8k/test.jsonl", "test", 1319),
        ("deepmath/sample.jsonl", "train", 4994),
        ("math500/test.jsonl", "test", 500),
        ("aime24/test.jsonl", "test", 30),
        ("aime25/test.jsonl", "test", 30),
    ],
)
def test_shared_copies_load_whole(file, split, count):
    folder = published(file).parent
    problems = load_problems(folder.name, path=str(folder), split=split)
    assert len(problems) == count
    assert not any("####" in p.answer or not p.answer.strip() for p in problems)


def test_shared_dapo_has_no_instructions_left():
    files = [str(published(f"dapo/{name}.jsonl")) for name in ("sample", "processed_sample")]
    verl, cleaned = (load_problems("dapo", path=file, split="train", limit=14) for file in files)
    assert verl == cleaned
    whole = load_problems("dapo", path=files[0], split="train")
    assert not any("Answer:" in p.question for p in whole)


# --- made-up rows in those layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["gsm8k", "gsm8k-hub"])
def test_gsm8k_rows_of_a_folder(small_data, folder):
    train = load_problems("gsm8k", path=str(small_data / folder), split="train")
    assert [p.id for p in train] == [f"train-{n}" for n in range(24)]
    assert [p.answer for p in train] == [str((40 + n) * (30 + 2 * n) - 8) for n in range(24)]
    assert train[0].question.startswith("Noor packs 40 boxes with 30 lamps in each of them.")
    assert train[0].demonstration == (
        "<think>\nNoor packs 40*30=1200 lamps.\nThen 1200-8=1,192 are left.\n</think>\n<answer>1192</answer>"
    )
    test = load_problems("gsm8k", path=str(small_data / folder), split="test", limit=2)
    assert [(p.id, p.answer) for p in test] == [("test-0", str(64 * 78 - 8)), ("test-1", str(65 * 80 - 8))]


def test_benchmark_rows_of_a_folder(small_data):
    math = load_problems("math500", path=str(small_data / "math500"), split="test")
    assert [p.id for p in math] == [f"test/algebra/{n}.json" for n in range(6)]
    assert (math[1].question, math[1].answer, math[1].task) == ("Solve $4x = 6$.", r"\frac{3}{2}", "math500")
    assert all(p.demonstration is None for p in math)
    aime = load_problems("aime24", path=str(small_data / "aime24"), split="test")
    assert [(p.id, p.answer) for p in aime] == [("60", "025"), ("61", "907"), ("62", "004")]
    aime = load_problems("aime25", path=str(small_data / "aime25"), split="test")
    assert [(p.id, p.question) for p in aime] == [
        ("0", "Find the area."),
        ("1", "Find the angle in degrees."),
        ("2", "Find the sum."),
        ("3", "Find $a$."),
    ]


def test_training_rows_of_a_file(small_data):
    verl, cleaned = (
        load_problems("dapo", path=str(small_data / "dapo" / f"{name}.jsonl"), split="train")
        for name in ("sample", "processed_sample")
    )
    assert verl == cleaned
    assert [(p.question, p.answer, p.task) for p in verl] == [(*row, "dapo") for row in DAPO]
    deepmath = load_problems("deepmath", path=str(small_data / "deepmath" / "sample.jsonl"), split="train")
    assert [(p.question, p.answer) for p in deepmath] == DEEPMATH
    assert [p.id for p in deepmath] == [f"train-{n}" for n in range(10)]
    assert all(p.demonstration is None for p in deepmath)  # they have thousands of tokens each


# --- user files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["question", "problem", "prompt"])
@pytest.mark.parametrize("answer", ["answer", "final_answer"])
def test_file_accepts_the_documented_columns(tmp_path, question, answer):
    (problem,) = load_problems(
        "file", path=str(write_jsonl(tmp_path / "x.jsonl", [{question: "q", answer: "a"}])), split="train"
    )
    assert (problem.question, problem.answer, problem.demonstration) == ("q", "a", None)


def test_file_answers_stay_as_written(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(
        '{"question": "a", "answer": "025"}\n\n{"question": "b", "answer": 25}\n'
        '{"question": "c", "answer": 0.10}\n{"question": "d", "answer": "2024-01-05"}\n'
    )
    assert [p.answer for p in load_problems("file", path=str(file), split="train")] == [
        "025",
        "25",
        "0.10",
        "2024-01-05",
    ]


def test_file_takes_ids_and_demonstrations(tmp_path):
    rows = [{"id": 7, "demonstration": "<think>…</think>", **QUESTIONS[0]}, {"unique_id": "u", **QUESTIONS[1]}]
    first, second = load_problems("file", path=str(write_jsonl(tmp_path / "x.jsonl", rows)), split="train")
    assert (first.id, first.demonstration) == ("7", "<think>…</think>")
    assert (second.id, second.demonstration) == ("u", None)


def test_an_id_of_0_is_one(tmp_path):
    rows = [{"id": 0, "unique_id": "u", **QUESTIONS[0]}]
    (problem,) = load_problems("file", path=str(write_jsonl(tmp_path / "x.jsonl", rows)), split="train")
    assert problem.id == "0"


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "mine" / "x.jsonl", QUESTIONS)
    assert len(load_problems("file", path="~/mine/x.jsonl", split="train")) == 2
    with pytest.raises(UserError, match=r"~/mine/absent does not exist"):
        load_problems("gsm8k", path="~/mine/absent", split="train")


def test_json_array_and_parquet_say_the_same(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(QUESTIONS))
    write_parquet(tmp_path / "b.parquet", QUESTIONS)
    array, parquet = (
        load_problems("file", path=str(tmp_path / name), split="train") for name in ("a.json", "b.parquet")
    )
    assert array == parquet
    assert len(array) == 2


def test_a_changed_file_is_read_again(tmp_path):
    file = write_jsonl(tmp_path / "x.jsonl", QUESTIONS)
    load_problems("file", path=str(file), split="train")
    write_jsonl(file, QUESTIONS[:1])
    assert len(load_problems("file", path=str(file), split="train")) == 1


def test_folder_gives_the_split_asked_for(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", QUESTIONS)
    write_jsonl(tmp_path / "test.jsonl", QUESTIONS[:1])
    write_jsonl(tmp_path / "extra.jsonl", QUESTIONS[:1])
    assert len(load_problems("file", path=str(tmp_path), split="train")) == 2
    assert len(load_problems("file", path=str(tmp_path), split="test")) == 1
    with pytest.raises(UserError, match="has no split validation; it has train, test"):
        load_problems("file", path=str(tmp_path), split="validation")


def test_folder_without_splits_is_read_whole(tmp_path):
    write_jsonl(tmp_path / "algebra.jsonl", QUESTIONS)
    write_jsonl(tmp_path / "geometry.jsonl", QUESTIONS)
    assert len(load_problems("file", path=str(tmp_path), split="train")) == 4


def test_limit_stops_before_what_lies_behind(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(QUESTIONS[0]) + "\n{broken\n")
    assert len(load_problems("file", path=str(file), split="train", limit=1)) == 1


# --- what can be wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (json.dumps(QUESTIONS[0]) + '\n{"question": "b", "answ', r"x\.jsonl, line 2 is not valid JSON"),
        (
            '{"question": "a", "answer": "1"}\n{"question": "b"}\n',
            r"x\.jsonl, line 2 has no gold answer in `answer`, `final_answer`",
        ),
        ('\n{"question": " ", "answer": "1"}\n', r"x\.jsonl, line 2 has no text in `question`"),
        (
            '{"question": "a", "answer": null}\n',
            r"x\.jsonl, line 1 has no gold answer in `answer`.*its columns are question, answer",
        ),
        ('["a", "b"]\n', r"x\.jsonl, line 1 must be an object"),
        ("\n", r"task file has no problems in split train of .*x\.jsonl"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, sentence):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match=sentence):
        load_problems("file", path=str(tmp_path / "x.jsonl"), split="train")


def test_bad_parquet_rows_and_files_are_named(tmp_path):
    rows = write_parquet(tmp_path / "rows.parquet", [*QUESTIONS, {"question": "c", "answer": None}])
    with pytest.raises(UserError, match=r"rows\.parquet, row 3 has no gold answer in `answer`"):
        load_problems("file", path=str(rows), split="train")
    (tmp_path / "cut.parquet").write_bytes(rows.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut\.parquet is not valid Parquet"):
        load_problems("file", path=str(tmp_path / "cut.parquet"), split="train")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.jsonl does not exist"):
        load_problems("file", path=str(tmp_path / "absent.jsonl"), split="train")
    with pytest.raises(UserError, match=r"absent does not exist"):  # an absolute path is not a name on the hub
        load_problems("gsm8k", path=str(tmp_path / "absent"), split="train")
    (tmp_path / "x.txt").write_text("question,answer\n")
    with pytest.raises(UserError, match=r"x\.txt has an unknown type; use \.jsonl, .*\.json, .*\.parquet"):
        load_problems("file", path=str(tmp_path / "x.txt"), split="train")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.jsonl is not UTF-8"):
        load_problems("file", path=str(tmp_path / "latin.jsonl"), split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no \.jsonl"):
        load_problems("file", path=str(tmp_path / "empty"), split="train")


def test_two_rows_with_one_id_are_refused(tmp_path):
    rows = [{"id": "same", **row} for row in QUESTIONS]
    with pytest.raises(UserError, match="two problems of task file have the id same"):
        load_problems("file", path=str(write_jsonl(tmp_path / "x.jsonl", rows)), split="train")


def test_unknown_tasks_splits_and_missing_paths():
    with pytest.raises(UserError, match="unknown task gms8k; did you mean gsm8k"):
        load_problems("gms8k", split="train")
    with pytest.raises(UserError, match="has no split test; it has train"):
        load_problems("deepmath", split="test")
    with pytest.raises(UserError, match="has no split train; it has test"):
        load_problems("math500", split="train")
    with pytest.raises(UserError, match="task `file` needs path"):
        load_problems("file", split="train")


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_an_unreachable_hub_points_to_path(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"openai/never-there, which is not a local .* cannot be loaded.*path="):
        load_problems("gsm8k", path="openai/never-there", split="train")


@pytest.mark.parametrize(
    ("task", "path", "split", "asked"),
    [
        ("gsm8k", None, "test", ("openai/gsm8k", "main", "test")),
        ("gsm8k", "someone/other", "train", ("someone/other", None, "train")),
        ("aime24", None, "test", ("HuggingFaceH4/aime_2024", None, "train")),  # the name of its only split on the hub
        ("aime24", "HuggingFaceH4/aime_2024", "test", ("HuggingFaceH4/aime_2024", None, "train")),
        ("aime24", "Maxwell-Jia/AIME_2024", "test", ("Maxwell-Jia/AIME_2024", None, "train")),
        ("aime25", None, "test", ("math-ai/aime25", None, "test")),
    ],
)
def test_hub_names_configurations_and_splits(monkeypatch, task, path, split, asked):
    def load_dataset(name, config, split):
        assert (name, config, split) == asked
        return datasets.Dataset.from_list([{"question": "q", "answer": "#### 7", "id": 3, "long_solution": "…"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (problem,) = load_problems(task, path=path, split=split)
    assert (problem.question, problem.task) == ("q", task)


def test_copies_on_the_hub_are_read_through_datasets(monkeypatch, tmp_path):
    """The folders are laid out as on the hub, with the configurations and columns of the published data sets."""
    row = json.dumps
    files = {
        "opencompass/AIME2025": {
            "aime2025-I.jsonl": [row({"question": "one", "answer": "70"}), row({"question": "two", "answer": "588"})],
            "aime2025-II.jsonl": [row({"question": "three", "answer": "336^\\circ"})],
            "README.md": [
                "---\nconfigs:",
                *(
                    f"- config_name: AIME2025-{name}\n  data_files:\n  - split: test\n    path: aime2025-{name}.jsonl"
                    for name in ("I", "II")
                ),
                "---",
            ],
        },
        "Maxwell-Jia/AIME_2024": {
            "aime_2024_problems.jsonl": [row({"ID": "2024-II-4", "Problem": "log", "Solution": "…", "Answer": 33})]
        },
    }
    for name, texts in files.items():
        (tmp_path / name).mkdir(parents=True)
        for file, lines in texts.items():
            (tmp_path / name / file).write_text("\n".join(lines) + "\n")
    load_dataset = datasets.load_dataset

    def from_folder(name, config, split):
        return load_dataset(str(tmp_path / name), config, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    problems = load_problems("aime25", path="opencompass/AIME2025", split="test")
    assert [(p.id, p.question, p.answer) for p in problems] == [
        ("0", "one", "70"),
        ("1", "two", "588"),
        ("2", "three", r"336^\circ"),
    ]
    (problem,) = load_problems("aime24", path="Maxwell-Jia/AIME_2024", split="test")
    assert (problem.id, problem.question, problem.answer) == ("2024-II-4", "log", "33")
