"""Every exception of a library for a broken data file becomes one sentence that names the file and, if possible, the row."""

import contextlib
import gzip
import json
import os
from pathlib import Path

import datasets
import pytest
from small_rows import write_parquet

from sspo_cli.errors import UserError
from sspo_cli.tasks import load_problems

GOOD = b'{"question": "q", "answer": "2"}\n'


def refusal(path: object, split: str = "train") -> str:
    with pytest.raises(UserError) as error:
        load_problems("file", path=str(path), split=split)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", GOOD + b"[" * 200_000, "x.jsonl, line 2 is nested too deeply"),
        ("x.json", b"[" * 200_000, "x.json cannot be read: it is nested too deeply"),
        ("x.jsonl", GOOD + b'{"question": "\xe9"}', "x.jsonl is not UTF-8 text in line 2"),
        ("x.jsonl", "\ufeff{}".encode("utf-16"), "x.jsonl is UTF-16 text"),
        ("x.csv", "question,answer\n".encode("utf-16"), "x.csv is UTF-16 text"),
        ("x.jsonl", GOOD + b"\0\0\0", "x.jsonl, line 2 is not valid JSON"),
        ("x.jsonl", GOOD + b"9" * 5000, "x.jsonl, line 2 must be an object"),
        ("x.json", b'[{"question": "q",\n "answer" 2}]', "x.json, line 2 is not valid JSON"),
        ("x.json", b"7", "x.json must hold an array of objects, not 7"),
        ("x.jsonl.gz", GOOD, "x.jsonl.gz cannot be read: Not a gzipped file"),
        ("x.jsonl.gz", gzip.compress(GOOD * 9000)[:-40], "x.jsonl.gz cannot be read after line"),
        ("x.jsonl.bz2", GOOD, "x.jsonl.bz2 cannot be read"),
        ("x.jsonl.xz", GOOD, "x.jsonl.xz cannot be read"),
        ("x.csv", b'question,answer\nq,2\nq,"3', "x.csv, row 2 is not valid CSV"),
        ("x.csv", b"question,answer\nq,2\nq,2,3\n", "x.csv, row 2 has 3 fields, but the first line names 2"),
        ("x.csv", b"question,answer,answer\nq,2,3\n", "x.csv has two columns named 'answer'"),
        ("x.parquet", GOOD, "x.parquet is not valid Parquet"),
        ("x.parquet", b"", "x.parquet is not valid Parquet"),
        ("x.arrow", GOOD, "x.arrow cannot be read"),
        ("x.parquet.gz", GOOD, "x.parquet.gz has an unknown type"),
        ("x", GOOD, "x has an unknown type"),
    ],
    ids=range(21),
)
def test_broken_content(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


def test_damaged_parquet(tmp_path):
    whole = write_parquet(tmp_path / "x.parquet", [{"question": "q", "answer": "2"}] * 500).read_bytes()
    for keep in (4, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.parquet").write_bytes(whole[:keep])
        assert "cut.parquet is not valid Parquet" in refusal(tmp_path / "cut.parquet")
    for place in range(4, len(whole) - 8, 7):  # pyarrow may read the file or raise any of its exceptions
        (tmp_path / "bad.parquet").write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
        with contextlib.suppress(UserError):
            load_problems("file", path=str(tmp_path / "bad.parquet"), split="train")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("~nouser-at-all/x.jsonl", "data file ~nouser-at-all/x.jsonl cannot be read: "),
        ("", "the path of a data set is empty"),
        ("x\0y.jsonl", "cannot be read: embedded null byte"),
        ("x" * 5000 + ".jsonl", "cannot be read: "),
        ("/dev/zero", "/dev/zero has an unknown type"),
        ("a/b/c", "data file a/b/c does not exist"),
        ("./nothing", "data file ./nothing does not exist"),
    ],
)
def test_paths_that_are_none(path, said):
    assert said in refusal(path)


def test_what_is_no_file_or_folder_of_files(tmp_path):
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    assert "zero.jsonl is a folder, a pipe or a device, not a file" in refusal(tmp_path / "zero.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "pipe.jsonl is a folder, a pipe or a device" in refusal(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "data folder " in refusal(tmp_path / "folder.jsonl")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").mkdir()
    assert "holds no .jsonl" in refusal(tmp_path / "data")
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("---\nconfigs: [{config_name: [}\n---\n")
    assert "README.md cannot be read" in refusal(tmp_path / "card")
    (tmp_path / "card" / "README.md").write_text("---\nconfigs: [{config_name: a, data_files: 'no-*.jsonl'}]\n---\n")
    assert "configuration a of data folder" in refusal(tmp_path / "card")


def test_a_loop_of_links(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    assert "a.jsonl" in refusal(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("CUDA"), datasets.exceptions.DatasetGenerationError("no")]
)
def test_whatever_the_hub_s_library_raises(monkeypatch, error):
    def load_dataset(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "split train of some/data, which is not a local file or folder, cannot be loaded" in refusal("some/data")


def test_a_row_that_cannot_be_decoded_is_named(monkeypatch):
    class Table:
        column_names = ("question", "answer")

        def __iter__(self):
            yield json.loads(GOOD)
            raise KeyError("image")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: Table())
    assert "some/data, train row 2 cannot be read: KeyError: 'image'" in refusal("some/data")


def test_a_surrogate_in_a_question(tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(GOOD + b'{"question": "a \\udc80", "answer": "2"}')
    assert "x.jsonl, line 2 has a lone surrogate in `question`" in refusal(tmp_path / "x.jsonl")
