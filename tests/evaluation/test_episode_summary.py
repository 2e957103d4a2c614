"""The figures of a summary that concern episodes."""

import pytest

from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.evaluation.identity import Identity
from sspo_cli.evaluation.summary import summarize
from sspo_cli.statistics import wilson

IDENTITY = Identity("problems", "messages", "rendered", "checker", "torch")
CONDITIONS = Conditions(2, 1.0, 24, "plain", 0, 8, turns=4, proposals=2, max_tokens=96)


def row(part: str, solved: bool, proposals: int, calls: int, finish: str = "stop") -> dict:
    outcome = {
        "solved": solved,
        "proposals": proposals,
        "turns": calls + proposals,
        "calls": calls,
        "timeouts": 0,
        "crashes": 0,
    }
    return {
        "part": part,
        "correct": solved,
        "format": 1.0,
        "tokens": 9,
        "finish": finish,
        "status": "ok",
        "outcome": outcome,
    }


def test_solved_at_the_first_proposal_means_and_parts():
    rows = [
        *(row("math", True, 1, 1), row("math", True, 2, 2)),
        *(row("math", False, 2, 0), row("math", False, 0, 4, "length")),
        *(row("wtq", True, 1, 3), row("wtq", False, 1, 0)),
    ]
    summary = summarize(rows, Benchmark("codeact", "test", [None] * 3), CONDITIONS, IDENTITY)
    assert summary["pass_at_1"] == pytest.approx(3 / 6)
    assert summary["episodes"]["solved_at_first"] == pytest.approx(2 / 6)
    assert summary["episodes"]["calls"] == pytest.approx(10 / 6)
    assert summary["episodes"]["turns"] == pytest.approx(17 / 6)
    assert {name: part["n"] for name, part in summary["parts"].items()} == {"math": 2, "wtq": 1}
    assert summary["parts"]["math"]["correct"] == 2
    assert (summary["parts"]["math"]["low"], summary["parts"]["math"]["high"]) == wilson(1, 2)
    assert {name: part["truncated"] for name, part in summary["parts"].items()} == {"math": 1, "wtq": 0}
    assert summary["max_tokens"] == 96


def test_rows_measured_with_other_limits_of_episodes_do_not_match_and_single_turns_have_none():
    measured = {"samples": 2, "temperature": 1.0, "max_new_tokens": 24, "prompt": "plain", "identity": IDENTITY.digest}
    assert CONDITIONS.matches(measured, IDENTITY, "prompt")
    assert CONDITIONS.matches({**measured, "turns": 4, "proposals": 2, "max_tokens": 96}, IDENTITY, "prompt")
    for name in ("turns", "proposals", "max_tokens"):
        limits = {"turns": 4, "proposals": 2, "max_tokens": 96, name: 1}
        assert not CONDITIONS.matches({**measured, **limits}, IDENTITY, "prompt")
