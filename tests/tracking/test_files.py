import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sspo_cli.errors import UserError
from sspo_cli.tracking.files import (
    append_jsonl,
    last_jsonl_rows,
    read_json,
    read_jsonl,
    remove_leftovers,
    truncate_jsonl,
    write_json_atomic,
    write_text_atomic,
)
from sspo_cli.tracking.records import flush_folder


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "status.json"
    write_text_atomic(path, "old")

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, crash)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_on_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.fstat(fd).st_size), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_text_atomic(tmp_path / "a", "four")
    assert calls == [4, "replace"]


def test_two_processes_that_write_a_file_do_not_write_into_each_other_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (sources.append(a), replace(a, b)))
    write_text_atomic(tmp_path / "a", "one")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    write_text_atomic(tmp_path / "a", "two")
    assert len(set(sources)) == 2


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")]
)
def test_a_disk_that_refuses_is_one_sentence_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError) as raised:
        write_json_atomic(tmp_path / "status.json", {})
    assert str(raised.value) == f"cannot write {tmp_path / 'status.json'}: {said}"
    with pytest.raises(UserError, match=r"cannot write .*no-such-folder/rows\.jsonl"):
        append_jsonl(tmp_path / "no-such-folder" / "rows.jsonl", {})


def test_rows_come_back_as_they_were_appended(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "two\nlines \u2028 and π"}, {"n": 1, "x": 0.1}]
    for row in rows:
        append_jsonl(path, row)
    assert read_jsonl(path) == rows
    assert "π" in path.read_text(encoding="utf-8")  # readable without a JSON parser
    assert read_jsonl(tmp_path / "absent.jsonl") == []


def test_what_json_has_no_word_for_is_null_and_half_a_surrogate_is_no_exception(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_jsonl(
        path, {"loss": float("nan"), "list": [float("inf"), 1.0], "pair": (1, {"x": float("-inf")}), "text": "\ud83d"}
    )
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "loss": None,
        "list": [None, 1.0],
        "pair": [1, {"x": None}],
        "text": "?",
    }


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, {"step": 1})
    whole = path.read_bytes()
    for torn in (b"{", b'{"step": 2, "text": "\xcf', b'{"step": 2}'):  # the last of these lacks only its newline
        path.write_bytes(whole + torn)
        assert read_jsonl(path) == [{"step": 1}]


def test_a_damaged_line_elsewhere_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"step":\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2 is not valid JSON"):
        read_jsonl(path)
    with pytest.raises(UserError, match="is not valid JSON"):
        read_json(path)


def test_truncating_keeps_whole_rows_and_makes_room_for_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    for step in range(1, 6):
        append_jsonl(path, {"step": step})
    with path.open("ab") as file:
        file.write(b'{"step": 6, "tor')
    truncate_jsonl(path, lambda row: row["step"] <= 3)
    append_jsonl(path, {"step": 4, "again": True})
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3, 4]

    monkeypatch.setattr(os, "replace", lambda a, b: pytest.fail("stopped here"))
    with pytest.raises(pytest.fail.Exception):
        truncate_jsonl(path, lambda row: False)
    assert len(read_jsonl(path)) == 4
    truncate_jsonl(tmp_path / "absent.jsonl", lambda row: False)
    assert not (tmp_path / "absent.jsonl").exists()


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = {".lock", ".gitignore", "a.tmp", ".a.tmp", ".folder.1.tmp", "status.json"}
    for name in kept - {".folder.1.tmp"} | {".status.json.123.tmp", ".a.b.7.tmp"}:
        (tmp_path / name).touch()
    (tmp_path / ".folder.1.tmp").mkdir()
    os.utime(tmp_path / ".a.b.7.tmp", times=(0, 0))
    remove_leftovers(tmp_path, older_than=60.0)
    assert {path.name for path in tmp_path.iterdir()} == kept | {".status.json.123.tmp"}
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_the_last_rows_of_a_long_file_are_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_jsonl_rows(path, 3) == []
    for step in range(50):
        append_jsonl(path, {"step": step, "padding": "x" * 3000})
    with path.open("ab") as file:
        file.write(b'{"step": 50, "pad')
    assert [row["step"] for row in last_jsonl_rows(path, 3)] == [47, 48, 49]
    assert [row["step"] for row in last_jsonl_rows(path, 100)] == list(range(50))


def test_of_rows_longer_than_expected_only_whole_ones_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(10):
        append_jsonl(path, {"step": step, "padding": "x" * 5000})
    assert [row["step"] for row in last_jsonl_rows(path, 3)] == [8, 9]


def test_a_folder_is_flushed_while_another_thread_replaces_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    ended = threading.Event()

    def replace_until_ended() -> None:
        while not ended.is_set():
            write_json_atomic(tmp_path / "status.json", {"step": 1})

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(replace_until_ended)
        try:
            for _ in range(300):
                flush_folder(tmp_path)
        finally:
            ended.set()
        writing.result()
