"""A rank that fails, is killed or stops: all end, and one sentence says which one and why."""

import sys
import time
from pathlib import Path

import pytest

from sspo_cli.errors import UserError
from sspo_cli.ranks import PATIENCE
from sspo_cli.supervisor import run_ranks

FAILING = Path(__file__).with_name("failing.py")
SENTENCES = {
    "refused": "rank 1: the GPU's memory is full; ask for less",
    "killed": ("rank 1: it was ended by SIGKILL, as the system does when the memory is full; --resume continues"),
    "stopped": (
        f"rank 1 did not answer for 4 seconds ({PATIENCE}): it was stopped, or its machine hangs; --resume continues"
    ),
    "bug": "rank 1: it failed by KeyError: 'a mistake'; see its output above",
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_one_sentence_says_which_rank_and_why(monkeypatch, tmp_path, capfd, kind):
    monkeypatch.setenv(PATIENCE, "4")
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        run_ranks([sys.executable, str(FAILING), kind, str(tmp_path)], 2)
    assert str(error.value) == SENTENCES[kind]
    assert time.monotonic() - began < 120  # of which most goes to imports
    printed = capfd.readouterr().err
    assert ("KeyError" in printed) == (kind == "bug")
    if kind == "refused":
        first = ["UserError: rank 1: there is no such file; name another", "UserError: no room"]
        shared = [line.replace("UserError", "SharedError") for line in first]
        rest = ["0", "1", "2", "3", "4", "within", "True", "3.0"]
        assert (tmp_path / "rank-0").read_text().splitlines() == [*first, *rest]
        assert (tmp_path / "rank-1").read_text().splitlines() == [*shared, *rest]
