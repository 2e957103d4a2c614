"""Tests of the sandbox: how calls end, which variables survive them, and the loss of the fork server."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest

from sspo_cli.environments.calls import MOST_OUTPUT
from sspo_cli.environments.memory import private_bytes
from sspo_cli.environments.sandbox import Interpreter, Result, Sandbox, SandboxFailure, SandboxLimits, SetupFailed

GONE = "the interpreter was ended and its variables are gone."
BUSY = "while True: pass"
STUBBORN = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
# A single call into C, which handles no signal while it runs.
IN_C = "sum(range(10**12))"


def run(sandbox: Sandbox, *programs: str, setup: str | None = None) -> list[Result]:
    """Run the cells of one episode."""
    interpreter = sandbox.open(setup, seed=7)
    results = [sandbox.run([(interpreter, code)])[0] for code in programs]
    sandbox.close([interpreter])
    return results


def state(interpreter: Interpreter) -> str:
    """Return the state of the interpreter's process as the kernel's letter: R, S or T."""
    assert interpreter.process
    return Path(f"/proc/{interpreter.process.process_id}/stat").read_text().rpartition(")")[2].split()[0]


def test_variables_stay_and_values_are_shown_as_ipython_shows_them(sandbox):
    results = run(
        sandbox,
        "x = 20\nx + 1",
        "print('a'); y = x",
        "y;",
        "[10**30 + n for n in range(3)]",
        "None",
        "import pandas as pd\npd.DataFrame({'a': [1]})",
        "'text'",
    )
    assert [result.text for result in results] == [
        "Out[1]: 21",
        "a",
        "",
        "Out[4]: \n[1000000000000000000000000000000,\n 1000000000000000000000000000001,\n 1000000000000000000000000000002]",
        "",
        "Out[6]: \n   a\n0  1",
        "Out[7]: 'text'",
    ]
    assert {result.status for result in results} == {"ok"}


def test_errors_are_shown_as_ipython_shows_them(sandbox):
    """Tracebacks are those of CodeActInstruct: statements around the failing line, long ones shortened, no blank lines."""
    code = 'q = """\none\ntwo\nthree\nfour\nfive\nsix\n"""\n\n# a comment\ndef f(a):\n    return 1 / a\n\nf(0)\nprint(q)\nq'
    (result,) = run(sandbox, code)
    assert result.text.splitlines() == [
        "-" * 75,
        "ZeroDivisionError                         Traceback (most recent call last)",
        "Cell In[1], line 14",
        "     11 def f(a):",
        "     12     return 1 / a",
        "---> 14 f(0)",
        "     15 print(q)",
        "     16 q",
        "",
        "Cell In[1], line 12, in f",
        "     10 # a comment",
        "     11 def f(a):",
        "---> 12     return 1 / a",
        "     14 f(0)",
        "     15 print(q)",
        "",
        "ZeroDivisionError: division by zero",
    ]
    (result,) = run(sandbox, 'q = """\none\ntwo\nthree\nfour\nfive\nsix\n"""\n1 / 0')
    shown = ['      1 q = """', "      2 one", "      3 two", "   (...)", "      7 six", '      8 """', "----> 9 1 / 0"]
    assert result.text.splitlines()[3:10] == shown


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = = 1", "  Cell In[1], line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("input()", "EOFError: EOF when reading a line"),
        ("raise ValueError", "ValueError"),
        ("import subprocess\nsubprocess.run(['ls'])", "PermissionError: [Errno 1] Operation not permitted"),
    ],
)
def test_how_a_cell_may_end(sandbox, code, expected):
    result, after = run(sandbox, code, "1")
    assert expected in result.text
    assert (result.status, after.text) == ("ok", "Out[2]: 1")


def test_random_numbers_follow_the_seed(sandbox):
    (result,) = run(sandbox, "import random, numpy\nprint(random.random(), numpy.random.rand())")
    assert result.text == f"{random.Random(7).random()} {numpy.random.RandomState(7).rand()}"


def test_deadlines_neighbours_and_what_is_kept(sandbox, monkeypatch):
    """Programs that never end do not delay their neighbours: all of them are interrupted or killed at the same time."""
    monkeypatch.setattr(sandbox, "_limits", SandboxLimits(call_timeout=1.5))
    programs = [BUSY, "import time\ntime.sleep(1000)", STUBBORN, IN_C, "import signal\nsignal.signal(2, 1)\n" + BUSY]
    endless = [sandbox.open("kept = 1", 0) for _ in programs]
    innocent = sandbox.open(None, 0)
    results = sandbox.run([*zip(endless, programs, strict=True), (innocent, "1")])
    assert max(result.seconds for result in results) < 30
    assert [result.status for result in results] == ["timeout"] * 5 + ["ok"]
    assert [result.variables_lost for result in results[:2]] == [False, False]
    assert results[0].text.endswith("TimeoutError: Timed out after 1.5 seconds.")
    assert [result.variables_lost for result in results[3:5]] == [True, True]
    assert results[4].text == f"Timed out after 1.5 seconds and did not stop: {GONE}"
    after = sandbox.run([(interpreter, "kept") for interpreter in endless])
    assert {result.text.partition(": ")[2] for result in after} == {"1"}  # ended interpreters have run the setup again
    sandbox.close([*endless, innocent])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os\nos._exit(0)", "The program ended its process (exit status 0)"),
        ("import ctypes\nctypes.string_at(0)", "The program ended its process (signal 11)"),
        ("import os\nos.close(3)", "The program ended its process (exit status 1)"),
        ("import ctypes\nctypes.CDLL(None).syscall(0x40000027)", "The program ended its process (signal 31)"),
        ("while True: print('x' * 10**6)", f"More than {MOST_OUTPUT >> 20} MiB of output"),
        ("import os\nwhile True: os.write(3, b'x' * 10**5)", f"More than {MOST_OUTPUT >> 20} MiB of output"),
    ],
)
def test_a_program_that_ends_its_process(sandbox, code, said):
    if "40000027" in code and os.uname().machine != "x86_64":
        pytest.skip("only x86_64 has a second ABI with other system calls")
    first, crashed, after, later = run(sandbox, "x = 1", "print('before')\n" + code, "'x' in globals()", "1")
    assert (first.status, crashed.status, crashed.variables_lost) == ("ok", "crashed", True)
    assert crashed.text.splitlines()[0].startswith("before") or "output" in said
    assert crashed.text.splitlines()[-1] == f"{said}: {GONE}"
    assert (after.text, later.text) == ("Out[1]: False", "Out[2]: 1")


def test_output_is_cut_and_is_text(sandbox):
    long, odd = run(sandbox, "print('ä' * 5000)", "import os\nos.write(1, b'\\xff\\x00ok'); print('\\ud800')")
    assert long.text == "ä" * 2000 + "...\n[Output Truncated]"
    assert odd.text == "\ufffd\x00ok\\ud800"


def test_nothing_runs_between_calls(sandbox):
    """A timer of a program cannot fire between calls, and a forged token only ends the observation of its program early."""
    forge = (
        "import os, sys, time\nframe = sys._getframe()\nwhile 'token' not in frame.f_locals: frame = frame.f_back\n"
        "print('Observation: solved')\nos.write(3, frame.f_locals['token'])\nstart = time.monotonic()\n"
        "while time.monotonic() < start + 1: pass\nlate = 1"
    )
    timer, forger = sandbox.open(None, 0), sandbox.open(None, 0)
    alarm = "import signal, os, time\nstruck = []\nsignal.signal(14, lambda *_: struck.append(1))\nsignal.setitimer(0, 0.05)"
    results = sandbox.run([(timer, alarm), (forger, forge)])
    assert [result.status for result in results] == ["ok", "ok"]
    time.sleep(0.3)
    assert {state(timer), state(forger)} == {"T"}
    results = sandbox.run([(timer, "time.sleep(0.01)\nlen(struck)"), (forger, "late")])
    assert [result.text for result in results] == ["Out[2]: 1", "Out[2]: 1"]
    sandbox.close([timer, forger])


def test_what_a_program_patches_stays_its_own(sandbox):
    patch = (
        "import builtins, sys, math\nbuiltins.print = lambda *a, **k: None\nmath.pi = 3\n"
        "cells = sys.modules['sspo_cli.environments.cells']\n"
        "cells.Session.run = lambda self, code: sys.stdout.write('solved')\nsys.stdout = None"
    )
    patched, other = sandbox.open(None, 0), sandbox.open(None, 0)
    sandbox.run([(patched, patch)])
    results = sandbox.run([(patched, "1"), (other, "import math\nprint(1); math.pi > 3.1")])
    assert [result.text for result in results] == ["solved", "1\nOut[1]: True"]
    sandbox.close([patched, other])


def test_a_setup_is_no_cell_and_its_failure_is_ours(sandbox):
    assert run(sandbox, "table", setup="table = [1]\nprint('unseen')")[0].text == "Out[1]: [1]"
    with pytest.raises(SetupFailed, match="ZeroDivisionError: division by zero"):
        run(sandbox, "1", setup="1 / 0")
    assert run(sandbox, "1")[0].status == "ok"


def test_a_large_setup_and_large_code_arrive(sandbox):
    text = "x" * (1 << 21)
    assert run(sandbox, f"a = {text!r}\nlen(a), len(b)", setup=f"b = {text!r}")[0].text == "Out[1]: (2097152, 2097152)"


def test_cells_of_a_continued_episode_run_again_in_silence(sandbox):
    interpreter = sandbox.open("x = 1", 7, ["import random\nprint(random.random())", "x += 1", "1 / 0"])
    (result,) = sandbox.run([(interpreter, "print(random.random())\nx")])
    expected = random.Random(7)
    expected.random()
    assert result.text == f"{expected.random()}\nOut[4]: 2"
    sandbox.close([interpreter])


def test_a_cell_that_kills_when_it_runs_again_loses_the_variables(sandbox):
    interpreter = sandbox.open("x = 1", 7, ["y = 1", "import os\nos._exit(5)"])
    (result,) = sandbox.run([(interpreter, "'y' in globals(), x")])
    assert result.text == f"The program ended its process (exit status 5): {GONE}\nOut[1]: (False, 1)"
    assert interpreter.cells == ["'y' in globals(), x"]
    sandbox.close([interpreter])


def test_when_all_have_too_much_memory_the_largest_is_ended_running_or_not(sandbox, monkeypatch):
    """With a budget of 300 MiB, a second hoarder makes the first one, which is idle and larger, lose its variables."""
    monkeypatch.setattr(sandbox, "_budget", 300 << 20)
    monkeypatch.setattr(sandbox, "_limits", SandboxLimits(call_timeout=60))
    fill = "import time\nkept = bytearray({} << 20)\nfor n in range(0, len(kept), 4096): kept[n] = 1\ntime.sleep(0.5)"
    small, hoarder, second, greedy = (sandbox.open(None, 0) for _ in range(4))
    sandbox.run([(small, "kept = 1"), (hoarder, fill.format(200))])
    assert hoarder.process
    assert private_bytes(hoarder.process.process_id) > 200 << 20
    (result,) = sandbox.run([(second, fill.format(150))])
    assert result.status == "ok"
    results = sandbox.run([(hoarder, "'kept' in globals()"), (second, "len(kept) >> 20"), (small, "kept")])
    lost = f"Out of memory between two calls: {GONE}\nOut[1]: False"
    assert [result.text for result in results] == [lost, "Out[2]: 150", "Out[2]: 1"]
    (result,) = sandbox.run([(greedy, fill.format(400))])
    assert (result.status, result.text) == ("memory", f"Out of memory: {GONE}")
    assert sandbox.run([(second, "len(kept) >> 20")])[0].text == "Out[3]: 150"
    sandbox.close([small, hoarder, second, greedy])


class TestServerLost:
    def test_killed_during_a_turn_that_turn_is_run_again(self, sandbox, monkeypatch):
        """The server is killed when half of the interpreters have answered."""
        failures, kills = sandbox.failures, [1]
        original = sandbox._keep_memory_budget

        def kill_once(running):
            if kills and len(list(running)) < 3:
                os.kill(sandbox.server_process_id, signal.SIGKILL)
                kills.pop()
            original(running)

        monkeypatch.setattr(sandbox, "_keep_memory_budget", kill_once)
        interpreters = [sandbox.open(None, n) for n in range(4)]
        sandbox.run([(interpreter, "runs = []") for interpreter in interpreters])
        code = "import time\nruns.append(1)\ntime.sleep({})\nlen(runs)"
        results = sandbox.run([(each, code.format(0 if n % 2 else 1)) for n, each in enumerate(interpreters)])
        assert [result.text for result in results] == ["Out[2]: 1"] * 4
        assert sandbox.failures == failures + 1
        results = sandbox.run([(interpreter, "len(runs)") for interpreter in interpreters])
        assert [result.text for result in results] == ["Out[3]: 1"] * 4
        sandbox.close(interpreters)

    def test_killed_twice_in_a_turn_it_is_a_failure_and_the_next_turn_finds_the_variables(self, sandbox, monkeypatch):
        interpreters = [sandbox.open("base = 10", n) for n in range(4)]
        sandbox.run([(interpreter, f"x = base + {n}") for n, interpreter in enumerate(interpreters)])
        monkeypatch.setattr(
            sandbox, "_keep_memory_budget", lambda running: os.kill(sandbox.server_process_id, signal.SIGKILL)
        )
        with pytest.raises(SandboxFailure, match="fork server ended twice within one turn"):
            sandbox.run([(interpreters[0], "x = 0\nimport time\ntime.sleep(1)")])
        monkeypatch.undo()
        results = sandbox.run([(interpreter, "x") for interpreter in interpreters])
        assert [result.text for result in results] == [f"Out[2]: {10 + n}" for n in range(4)]
        sandbox.close(interpreters)

    def test_no_process_is_left_when_the_trainer_is_killed(self, sandbox):
        program = (
            "import sys, time\nfrom sspo_cli.environments.sandbox import Sandbox\n"
            "with Sandbox() as sandbox:\n    interpreter = sandbox.open(None, 0)\n    sandbox.run([(interpreter, '1')])\n"
            "    print(sandbox.server_process_id, interpreter.process.process_id, flush=True)\n    time.sleep(600)\n"
        )
        trainer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert trainer.stdout
        processes = trainer.stdout.readline().split()
        trainer.kill()
        trainer.wait()
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{pid}/cwd").is_symlink() and _alive(pid) for pid in processes):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(processes) == 2


def _alive(process_id: str) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_many_episodes_are_alive_at_once(sandbox):
    """The sandbox holds the 256 interpreters of a rollout batch of 32 prompts and 8 completions.

    The trainer has two descriptors for each of them.
    """
    interpreters = [sandbox.open(None, n) for n in range(256)]
    sandbox.run([(interpreter, f"x = {n}") for n, interpreter in enumerate(interpreters)])
    results = sandbox.run([(interpreter, "x") for interpreter in interpreters])
    assert [result.text for result in results] == [f"Out[2]: {n}" for n in range(256)]
    assert all(interpreter.process for interpreter in interpreters)
    sandbox.close(interpreters)
