"""Recorded outputs that are graded without a model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sspo_cli.errors import UserError
from sspo_cli.evaluation.recorded import grade_file
from sspo_cli.statistics import wilson

GRADED = ("extracted", "reader", "verdict", "r_answer", "r_format", "status")
CASES = [
    ({"gold": "42", "completion": "<think>a</think><answer>42</answer>"}, ("42", "tags", "correct", 1.0, 1.0, "ok")),
    ({"gold": 42, "completion": r"So \boxed{41}, no: \boxed{42}", "id": 7}, ("42", "boxed", "correct", 1.0, 0.0, "ok")),
    ({"gold": "#### 1,072", "prediction": "A: 1072"}, ("1072", "number", "correct", 1.0, 0.0, "ok")),
    ({"gold": r"$\frac12$", "prediction": "It is 0.5."}, ("0.5", "number", "correct", 1.0, 0.0, "ok")),
    ({"gold": "1/2", "completion": r"It is $\frac{1}{2}$."}, (r"\frac{1}{2}", "formula", "correct", 1.0, 0.0, "ok")),
    ({"gold": "paris", "completion": "<think>a</think>Paris"}, ("Paris", "text", "correct", 1.0, 0.25, "ok")),
    ({"gold": ["6", "7"], "completion": "7"}, ("7", "number", "correct", 1.0, 0.0, "ok")),
    ({"gold": ["9^{9^{9^{9}}}", "5"], "completion": "5"}, ("5", "number", "correct", 1.0, 0.0, "ok")),
    ({"gold": "6", "prediction": "7", "completion": "6"}, ("6", "number", "correct", 1.0, 0.0, "ok")),
    ({"gold": "6", "completion": "3+5-2"}, ("3+5-2", "formula", "wrong", 0.0, 0.0, "ok")),
    ({"gold": "6", "completion": ""}, (None, None, "wrong", 0.0, 0.0, "no answer")),
    ({"gold": None, "completion": "6", "note": None}, ("6", "number", "wrong", 0.0, 0.0, "no gold")),
    ({"gold": "", "completion": "6"}, ("6", "number", "wrong", 0.0, 0.0, "no gold")),
    ({"gold": "6.5", "completion": r"\boxed{9^{9^{9^{9}}}}"}, ("9^{9^{9^{9}}}", "boxed", "wrong", 0.0, 0.0, "timeout")),
    ({"gold": ["6", "9^{9^{9^{9}}}"], "completion": "7.5"}, ("7.5", "number", "wrong", 0.0, 0.0, "timeout")),
]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_come_back_in_order_with_their_fields_and_the_verdict(tmp_path, capsys):
    file = written(tmp_path / "outputs.jsonl", [row for row, _ in CASES])
    grade_file(file, None, timeout=2.0)
    graded = [json.loads(line) for line in (tmp_path / "outputs.graded.jsonl").read_text().splitlines()]
    assert graded == [row | dict(zip(GRADED, verdict, strict=True)) for row, verdict in CASES]
    low, high = wilson(9, 15)
    said = capsys.readouterr().out
    assert f"9 of 15 correct: 60.0% [{low:.1%}, {high:.1%}]" in said
    assert "number 8 (5 correct)" in said
    (counted,) = re.findall("counted as wrong: (.*)", said)
    assert set(counted.split(", ")) == {"no gold 2", "timeout 2", "no answer 1"}
    assert str(tmp_path / "outputs.graded.jsonl") in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not valid JSON"),
        (f'{{"gold": {"9" * 5000}}}', "line 2 has an integer of more than 4,300 digits"),
        ("[1]", "line 2 must be an object"),
        ('{"completion": "5"}', "line 2 has no `gold`; its fields are completion"),
        ('{"gold": "5", "text": "5"}', "line 2 has no text in `completion` or `prediction`; its fields are gold, text"),
        ('{"gold": "5", "completion": null}', "line 2 has no text in `completion`"),
        ('{"gold": {"a": 1}, "completion": "5"}', "line 2 has a `gold` that is neither text nor a number"),
        ('{"gold": "5", "completion": NaN}', "line 2 has no text in `completion`"),
        (f'{{"gold": "5", "completion": "5", "more": {"[" * 2000 + "]" * 2000}}}', "line 2 is nested too deeply"),
        ('{"gold": true, "completion": "5"}', "line 2 has a `gold` that is neither text nor a number"),
    ],
)
def test_a_bad_row_is_reported_by_its_line_and_nothing_is_written(tmp_path, line, said):
    file = tmp_path / "outputs.jsonl"
    file.write_text('{"gold": "5", "completion": "5"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"^[^\n]*$") as raised:
        grade_file(file)
    assert said in str(raised.value)
    assert list(tmp_path.iterdir()) == [file]


def test_fields_of_the_names_that_are_added_are_kept(tmp_path, capsys):
    own = {"gold": "5", "completion": "5", "extracted": ["mine"], "status": 3}
    file = written(tmp_path / "outputs.jsonl", [own, {"gold": "5", "completion": "6", "sspo_status": "taken"}])
    grade_file(file)
    first, second = (json.loads(line) for line in (tmp_path / "outputs.graded.jsonl").read_text().splitlines())
    added = {"reader": "number", "r_format": 0.0, "sspo_sspo_status": "ok"}
    assert first == {**own, **added, "verdict": "correct", "r_answer": 1.0, "sspo_extracted": "5"}
    assert second["sspo_extracted"] == "6"
    assert second["sspo_status"] == "taken"
    assert "extracted as sspo_extracted, status as sspo_sspo_status" in capsys.readouterr().out


def test_answers_of_several_measurements_have_a_share_each(tmp_path, capsys):
    rows = [
        {"gold": "5", "completion": text, "identity": identity, "step": step}
        for step, identity, text in ((0, "a", "4"), (8, "a", "5"), (8, "b", "5"), (8, "b", "6"))
    ]
    grade_file(written(tmp_path / "outputs.jsonl", rows))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" correct")[0] for line in lines[:3]] == [
        "step 0, identity a: 0 of 1",
        "step 8, identity a: 1 of 1",
        "step 8, identity b: 1 of 2",
    ]


def test_a_gold_that_is_not_a_number_is_none(tmp_path):
    file = tmp_path / "outputs.jsonl"
    file.write_text('{"gold": NaN, "completion": "5"}\n')
    grade_file(file)
    assert json.loads((tmp_path / "outputs.graded.jsonl").read_text())["status"] == "no gold"


def test_the_file_itself_is_never_overwritten(tmp_path):
    file = written(tmp_path / "outputs.jsonl", [{"gold": "5", "completion": "5"}])
    before = file.read_bytes()
    for out in (file, tmp_path / "." / "outputs.jsonl"):
        with pytest.raises(UserError, match="is the file to be graded"):
            grade_file(file, out)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"), [(b"\n\n", "has no rows"), (b"\xff\xfe{", "is not UTF-8 text"), (None, "cannot read")]
)
def test_unreadable_files(tmp_path, content, said):
    file = tmp_path / "outputs.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=said):
        grade_file(file)


def test_an_output_in_no_folder_is_reported_before_anything_is_graded(tmp_path):
    file = written(tmp_path / "outputs.jsonl", [{"gold": "5", "completion": "5"}])
    with pytest.raises(UserError, match="there is no folder"):
        grade_file(file, tmp_path / "none" / "graded.jsonl")


def test_grading_needs_no_torch():
    code = "import sspo_cli.evaluation.recorded, sys; sys.exit(any(name in sys.modules for name in ('torch', 'sympy', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_device_is_no_file_of_outputs():
    with pytest.raises(UserError, match="/dev/zero is a device, not a regular file"):
        grade_file(Path("/dev/zero"))
