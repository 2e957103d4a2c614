"""Tests of the layouts of users' data: columns, chats, types of files, folders of the hub and of `datasets`, kinds of golds."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pytest
from small_rows import gsm8k_row, write_jsonl, write_parquet

from sspo_cli.errors import UserError
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.rows import Layout
from sspo_cli.types import Problem

datasets.disable_progress_bars()
ROW = {"question": "1+1?", "answer": "2"}
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


def load(path: Path, split: str = "train", task: str = "file", **layout: object) -> list[Problem]:
    return load_problems(task, path=str(path), split=split, layout=Layout(**layout))


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
@pytest.mark.parametrize(
    "row",
    [
        {"problem": "1+1?", "solution": "It is \\boxed{1}, no, $\\boxed{2}$."},
        {"problem": "1+1?", "solution": "1+1 = 3 - 1", "answer": "2"},
        {"prompt": "1+1?", "ground_truth": "2"},
        {"prompt": CHAT[1:], "reward_model": {"ground_truth": "2", "style": "rule"}, "data_source": "mine"},
        {"prompt": CHAT, "reward_model": {"ground_truth": ["2"]}},
        {"messages": CHAT[1:], "final_answer": 2},
        {"Question": "1+1?", "Answer": "2"},
        {"PROBLEM": "1+1?", "Expected_Answer": " 2 "},
        {"instruction": "1+1?", "output": "#### 2"},
    ],
    ids=lambda row: "+".join(row),
)
def test_a_row_is_read_in_the_layouts_of_published_data_sets(tmp_path, write, row):
    suffix = "jsonl" if write is write_jsonl else "parquet"
    (problem,) = load(write(tmp_path / f"x.{suffix}", [row]))
    assert (problem.question, problem.answer, problem.id) == ("1+1?", "2", "train-0")


def test_columns_of_other_names_are_named(tmp_path):
    rows = [{"Frage": "1+1?", "meta": {"Antwort": 2}, "Nr": 7, "question": "not this", "Vorbild": "<think>"}]
    columns = {"question": "Frage", "answer": "meta.Antwort", "id": "Nr", "demonstration": "Vorbild"}
    (problem,) = load(write_jsonl(tmp_path / "x.jsonl", rows), columns=columns)
    assert problem == Problem("7", "1+1?", "2", "file", "<think>")
    with pytest.raises(UserError, match=r"line 1 has no text in `Fragen`; its columns are Frage, meta, Nr"):
        load(tmp_path / "x.jsonl", columns={"question": "Fragen"})


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_columns_of_other_names_are_read_for_published_tasks_too(tmp_path, write):
    file = write(tmp_path / ("x.jsonl" if write is write_jsonl else "x.parquet"), [{"q": "1+1?", "a": "so\n#### 2"}])
    (problem,) = load(file, task="gsm8k", columns={"question": "q", "answer": "a"})
    assert (problem.question, problem.answer) == ("1+1?", "2")


def test_a_file_has_no_configuration(tmp_path):
    with pytest.raises(UserError, match=r"x\.jsonl has no configuration cn; config=… is for folders and the hub"):
        load(write_jsonl(tmp_path / "x.jsonl", [ROW]), config="cn")


def test_tasks_without_rows_have_no_columns():
    with pytest.raises(UserError, match="task arithmetic has no options config and columns"):
        load_problems("arithmetic", split="train", layout=Layout(columns={"question": "q"}))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([*CHAT, {"role": "assistant", "content": "2"}], "has the turns system, user, assistant in `prompt`"),
        (["1+1?"], "has a list that is not a chat in `prompt`"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"has no text in `question`.*prompt = \[\{'role': 'user'"),
        ([], "has no text in `question`"),
        ({"role": "user"}, "has no text in `question`.*prompt = "),
        (json.dumps(CHAT), "has a chat written as text in `prompt`"),
        (str(CHAT), "has a chat written as text in `prompt`"),
    ],
)
def test_a_prompt_that_is_no_single_question_is_refused(tmp_path, prompt, said):
    with pytest.raises(UserError, match=f"x.jsonl, line 1 {said}"):
        load(write_jsonl(tmp_path / "x.jsonl", [{"prompt": prompt, "answer": "2"}]))


def test_what_an_instruction_is_about_belongs_to_the_question(tmp_path):
    rows = [{"instruction": "Add them.", "input": about, "output": "7"} for about in ("3, 4", "")]
    assert [p.question for p in load(write_jsonl(tmp_path / "x.jsonl", rows))] == ["Add them.\n\n3, 4", "Add them."]


@pytest.mark.parametrize("options", [{"choices": ["1", "3"]}, {"options": {"A": "1", "B": "3"}}])
def test_a_multiple_choice_without_its_options_is_refused(tmp_path, options):
    def question(text: str, **columns: str) -> str:
        file = write_jsonl(tmp_path / "x.jsonl", [{"question": text, "answer": "B", **options}])
        return load(file, columns=columns)[0].question

    with pytest.raises(
        UserError, match=f"multiple-choice options in `{next(iter(options))}` that are not in its question"
    ):
        question("1+2?")
    for text, columns in (("1+2?\nA. 1\nB. 3", {}), ("1+2?", {"question": "question"})):
        assert question(text, **columns) == text


# --- golds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "gold"),
    [
        ("1+1=2\n#### 2", "2"),
        ("So $\\boxed{\\frac{1}{2}}$ is it.", "\\frac{1}{2}"),
        ("<think>1</think><answer> 2 </answer>", "2"),
        ("$2$", "2"),
        ("The answer is 2.", "2"),
        ("5.4 cents", "5.4 cents"),
        ("It costs 5.4 cents.", "5.4 cents"),
        ("bx - ay = 0", "bx - ay = 0"),
        ("Yes", "Yes"),
        ("\\text{No solution}", "\\text{No solution}"),
        ("025", "025"),
        ("no real roots", "no real roots"),
        ("\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}"),
        ("-", "-"),
        ("\\{\\}", "\\{\\}"),
    ],
)
def test_golds_are_read_whatever_the_source(tmp_path, written, gold):
    file = write_jsonl(
        tmp_path / "x.jsonl", [{"question": "q", "problem": "q", "answer": written, "final_answer": written}]
    )
    for task in ("file", "deepmath", "math500", "aime24"):
        (problem,) = load(file, "test", task)
        assert problem.answer == gold


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"####"', r"`answer` = '####', which is empty"),
        ('"\\\\boxed{}"', "which is empty"),
        ('"</answer>"', "which holds a tag"),
        ('"\\\\boxed{4"', "in which a box never ends"),
        (f'"{"x" * 2000}"', "which has 2,000 characters"),
        ("9" * 5000, "which has 5,000 characters"),
        ('"We add 1 and 1 first.\\nThen 2 and 2 are added, which makes 6."', "a text of several lines"),
        ('"We add 1 and 1 first. Then 2 and 2 are added, which makes 6."', "a text of several sentences"),
        ('"1+1=2\\nThe answer is 2"', "a text of several lines"),
        ('"$"', "which is empty"),
        ('"\\u200b\\u0000"', "which is empty"),
        ('"\\\\text{ }"', "which is empty"),
        ('"?"', "which is empty"),
        ('"nan"', "which marks a missing value"),
        ("NaN", "has no gold answer in `answer`, .*answer = nan"),
        ("-Infinity", "has no gold answer"),
        ("true", "has no gold answer in `answer`, .*answer = True"),
        ("null", "has no gold answer"),
        ('["3", "4"]', "has 2 gold answers in `answer`"),
        ("{}", "has no gold answer"),
        ('"\\ud800"', "has a lone surrogate in `answer`"),
    ],
)
def test_a_gold_that_no_answer_can_match_is_refused_by_its_row(tmp_path, value, said):
    file = tmp_path / "x.jsonl"
    file.write_text(f'{json.dumps(ROW)}\n{{"question": "q", "answer": {value}}}\n')
    with pytest.raises(UserError, match=rf"x\.jsonl, line 2:? .*{said}") as refusal:
        load(file)
    assert len(str(refusal.value)) < 700


# --- types of files --------------------------------------------------------------------------------------------------

LINES = "".join(json.dumps({**ROW, "answer": str(n)}) + "\n" for n in (2, 3)).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b"\xef\xbb\xbf" + LINES),
        ("x.ndjson", LINES.replace(b"\n", b"\r\n")),
        ("x.jsonl.gz", gzip.compress(LINES)),
        ("x.json.bz2", bz2.compress(LINES)),
        ("x.jsonl.xz", lzma.compress(LINES)),
        (
            "x.json",
            json.dumps({"version": 1, "data": [json.loads(line) for line in LINES.splitlines()]}, indent=1).encode(),
        ),
        ("x.csv", b'\xef\xbb\xbfquestion,answer\n"1+1?",2\n"1+1?",3\n'),
        ("x.csv", b'Question;Answer\n1+1?;2\n"1+1?";3\n\n'),
        ("x.tsv", b"question\tanswer\n1+1?\t2\n1+1?\t3\n"),
        ("x.csv.gz", gzip.compress(b"question,answer\n1+1?,2\n1+1?,3\n")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_each_type(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    problems = load(tmp_path / name)
    assert [(problem.question, problem.answer) for problem in problems] == [("1+1?", "2"), ("1+1?", "3")]


def test_fields_of_csv_stay_as_written(tmp_path):
    (tmp_path / "x.csv").write_text('question,answer\n"a, b\nand ""c""",025\n')
    (problem,) = load(tmp_path / "x.csv")
    assert (problem.question, problem.answer) == ('a, b\nand "c"', "025")


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("math.train.jsonl", "math.test.jsonl"),
        ("train.jsonl.gz", "test.jsonl.gz"),
        ("gsm8k_train.csv", "gsm8k_test.csv"),
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train/part-0.jsonl", "test/part-0.jsonl"),
        ("data/train/0.jsonl", "data/test/0.jsonl"),
        ("training.json", "eval.json"),
        ("trainset.jsonl", "testset.jsonl"),
    ],
)
def test_a_folder_with_files_or_folders_named_after_splits(tmp_path, train, test):
    for name, answer in ((train, "1"), (test, "2")):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        row = {**ROW, "answer": answer}
        if file.suffix == ".parquet":
            write_parquet(file, [row])
        elif file.suffix == ".csv":
            file.write_text(f"question,answer\n1+1?,{answer}\n")
        else:
            text = json.dumps(row).encode()
            file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    (tmp_path / "README.md").write_text("No header.\n")
    assert [problem.answer for problem in load(tmp_path, "train")] == ["1"]
    assert [problem.answer for problem in load(tmp_path, "test")] == ["2"]
    with pytest.raises(UserError, match="has no split validation; it has train, test"):
        load(tmp_path, "validation")


def test_splits_of_one_s_own_are_asked_for_by_name(tmp_path):
    for name in ("easy", "hard"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{**ROW, "question": name}])
    assert [problem.question for problem in load(tmp_path, "hard")] == ["hard"]
    with pytest.raises(UserError, match="has no split harder; none of its files is named after it"):
        load(tmp_path, "harder")


def test_a_file_named_after_two_splits_is_refused(tmp_path):
    write_jsonl(tmp_path / "train_test.jsonl", [ROW])
    with pytest.raises(UserError, match="is named after two splits, train and test"):
        load(tmp_path)


@pytest.mark.parametrize("saved", ["splits", "one"])
def test_a_folder_that_datasets_has_saved(tmp_path, saved):
    tables = {name: datasets.Dataset.from_list([{**ROW, "answer": name}]) for name in ("train", "test", "hard")}
    if saved == "one":
        tables["train"].save_to_disk(str(tmp_path / "saved"))
        assert [problem.answer for problem in load(tmp_path / "saved")] == ["train"]
        return
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    for name in tables:
        assert [problem.answer for problem in load(tmp_path / "saved", name)] == [name]
    with pytest.raises(UserError, match="has no split validation; it has train, test, hard"):
        load(tmp_path / "saved", "validation")
    (tmp_path / "saved" / "test" / "state.json").write_text("{")
    with pytest.raises(UserError, match="as saved by `save_to_disk`, cannot be read"):
        load(tmp_path / "saved", "test")


@pytest.mark.parametrize("card", [False, True], ids=["without a card", "with a card"])
def test_published_layouts_as_local_folders(tmp_path, monkeypatch, card):
    """AIME24 has only a train split; DAPO-Processed and GSM8K have several configurations."""
    monkeypatch.chdir(tmp_path)
    files = {
        "HuggingFaceH4/aime_2024": {"data/train-0.parquet": [{"id": 60, "problem": "p", "answer": "204"}]},
        "open-r1/DAPO-Math-17k-Processed": {
            f"{name}/train-0.parquet": [{"prompt": name, "solution": "7", "extra_info": {"index": name}}]
            for name in ("all", "cn", "en")
        },
        "openai/gsm8k": {
            f"{name}/{split}-0.parquet": [gsm8k_row(number)]
            for name, number in (("main", 0), ("socratic", 1))
            for split in ("train", "test")
        },
        "opencompass/AIME2025": {f"aime2025-{name}.jsonl": [{"question": name, "answer": "1"}] for name in ("I", "II")},
    }
    configs = {
        "HuggingFaceH4/aime_2024": {"default": {"train": "data/train-*"}},
        "open-r1/DAPO-Math-17k-Processed": {name: {"train": f"{name}/train-*"} for name in ("all", "cn", "en")},
        "openai/gsm8k": {
            name: {split: f"{name}/{split}-*" for split in ("train", "test")} for name in ("main", "socratic")
        },
        "opencompass/AIME2025": {f"AIME2025-{name}": {"test": f"aime2025-{name}.jsonl"} for name in ("I", "II")},
    }
    for folder, contents in files.items():
        for name, rows in contents.items():
            (write_parquet if name.endswith("parquet") else write_jsonl)(tmp_path / folder / name, rows)
        if card:
            declared = [
                {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in data.items()]}
                for name, data in configs[folder].items()
            ]
            (tmp_path / folder / "README.md").write_text(f"---\nconfigs: {json.dumps(declared)}\n---\n# Data\n")

    assert [p.answer for p in load(Path("HuggingFaceH4/aime_2024"), "test", "aime24")] == ["204"]
    dapo = Path("open-r1/DAPO-Math-17k-Processed")
    assert [p.question for p in load(dapo, "train", "dapo")] == ["all"]
    assert [p.question for p in load(dapo, "train", "dapo", config="cn")] == ["cn"]
    with pytest.raises(UserError, match="has the configurations all, cn, en; choose one as config="):
        load(dapo, "train")
    with pytest.raises(UserError, match="has no configuration de; it has all, cn, en"):
        load(dapo, "train", config="de")
    main, socratic = (load(Path("openai/gsm8k"), "test", "gsm8k", config=name) for name in (None, "socratic"))
    assert (main[0].question, socratic[0].question) == (gsm8k_row(0)["question"], gsm8k_row(1)["question"])
    assert [p.question for p in load(Path("opencompass/AIME2025"), "test", "aime25")] == ["I", "II"]


def test_a_configuration_of_the_hub(monkeypatch):
    def load_dataset(name, config, split):
        assert (name, config, split) == ("openai/gsm8k", "socratic", "test")
        return datasets.Dataset.from_list([{"question": "q", "answer": "#### 7"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for path in (None, "openai/gsm8k"):
        assert len(load_problems("gsm8k", path=path, split="test", layout=Layout(config="socratic"))) == 1
