"""Tests of the command `try_sandbox`: its JSON, its verdicts, its messages."""

import json
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "sspo_cli.environments.try_sandbox"]


def try_sandbox(given: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *options], input=given, capture_output=True, text=True, check=False)


def test_episodes_and_verdicts(sandbox):
    cheat = "import sys\nsys.modules['sspo_cli.environments.checks'] = None\nprint('{\"correct\": true}')"
    episodes = [
        {"turns": ["x = 1", "x + 1"], "gold": "42", "solution": "42"},
        {"turns": [cheat], "gold": "3.14159", "solution": "3"},
        {"turns": ["while True: pass"], "gold": ["b", "a"], "solution": "a, b"},
        {"turns": ["import os\nos._exit(7)", "'again'", "2"], "gold": 42, "solution": None},
        {"turns": [], "gold": None, "solution": "1"},
        {"turns": ["print(open('/proc/%d/cmdline' % __import__('os').getppid()).read())"]},
    ]
    result = try_sandbox(json.dumps({"episodes": episodes}), "--call-timeout", "3")
    assert result.returncode == 0, result.stderr
    played = json.loads(result.stdout)["episodes"]
    assert [set(episode) for episode in played] == [{"turns", "correct"}] * 6
    assert [episode["correct"] for episode in played] == [True, False, True, None, None, None]
    assert [[turn["status"] for turn in episode["turns"]] for episode in played] == [
        ["ok", "ok"], ["ok"], ["timeout"], ["crashed", "ok", "ok"], [], ["ok"]
    ]  # fmt: skip
    assert [turn["text"] for turn in played[0]["turns"]] == ["", "Out[2]: 2"]
    assert [turn["text"] for turn in played[3]["turns"]][1:] == ["Out[1]: 'again'", "Out[2]: 2"]
    assert "PermissionError" in played[5]["turns"][0]["text"]
    assert all(set(turn) == {"text", "status", "seconds"} for episode in played for turn in episode["turns"])
    assert 3 <= played[2]["turns"][0]["seconds"] < 60


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "standard input is not valid JSON"),
        ("[]", 'standard input must be an object {"episodes": […]}'),
        ('{"episodes": [{"turns": "x"}]}', "episode 0 must be an object whose `turns` is a list of texts"),
    ],
)
def test_what_it_cannot_read(given, said, monkeypatch, capsys):
    import io

    from sspo_cli.environments import try_sandbox as command

    class Unused:
        def __init__(self, limits): ...
        def __enter__(self): ...
        def __exit__(self, *_): ...

    monkeypatch.setattr(command, "Sandbox", Unused)  # a real sandbox would take seconds to start
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    assert command.main([]) == 1
    output = capsys.readouterr()
    assert (output.out, output.err.startswith(said)) == ("", True)
