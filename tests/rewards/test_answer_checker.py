"""Tests of verdicts by value, also on texts that try to block the checker."""

import os
import signal
import subprocess
import sys
import time

import pytest

from sspo_cli.rewards import AnswerChecker, Verdict, extract_answer, grade
from sspo_cli.rewards.equality import equal

RIGHT, WRONG = Verdict(True, "ok"), Verdict(False, "ok")
HOSTILE = "10^{10^{10}}"


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("336", r"336^\circ"),
        (r"336^\circ", "336"),
        (r"\boxed{025}", "25"),
        ("10080", r"10,\!080"),
        ("72.", "72"),
        (r"\boxed{72.}", "72"),
        ("0.5", r"\frac{1}{2}"),
        (r"\frac12", r"\frac{1}{2}"),
        ("Evelyn", r"\text{Evelyn}"),
        (r"\text{(C)}", "C"),
        ("yes", "Yes"),
        ("[-2,7]", r"x \in [-2,7]"),
        (r"x \in [-2,7]", r"x \in [-2,7]"),
        ("(3, \\pi/2)", r"\left( 3, \frac{\pi}{2} \right)"),
        ("18%", "18"),
        ("18", r"18\%"),
        ("0.18", r"18\%"),
        ("$18", "18"),
        ("3+5-2=6", "6"),
        ("2, 1", "1,2"),
    ],
)
def test_equal_by_value(checker, prediction, gold):
    assert checker.check([(prediction, gold)]) == [RIGHT]


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("-336", "336"),
        (r"\frac{1}{3}", r"\frac{1}{2}"),
        ("0.333", r"\frac{1}{3}"),
        ("No", "Yes"),
        ("[-2,7)", r"x \in [-2,7]"),
        ("(2,1)", "(1,2)"),
        ("q-p", "p-q"),
        ("5, 6", "5"),
        ("4} \\boxed{5", "5"),
        (r"-\infty", r"\infty"),
        ("3+5-2", "6"),
        ("x" * 5000, "x"),
    ],
)
def test_unequal(checker, prediction, gold):
    assert checker.check([(prediction, gold)]) == [WRONG]


def test_verdicts_keep_the_order_of_the_pairs(checker):
    pairs = [(r"\frac{1}{2}", "0.5"), (None, "1"), ("3", "3"), ("", "1"), (r"\frac{1}{2}", "0.7"), ("2", "3")]
    expected = [RIGHT, Verdict(False, "no answer"), RIGHT, Verdict(False, "no answer"), WRONG, WRONG]
    assert checker.check(pairs) == expected


def test_grade_adds_format_and_answer(checker):
    texts = ["<think>a</think><answer>\\boxed{4}</answer>", "<answer>5</answer>", "4"]
    rewards = grade(texts, ["4", "4", "4"], checker)
    assert [(r.answer, r.format, r.total, r.extracted, r.status) for r in rewards] == [
        (1.0, 1.0, 2.0, "4", "ok"),
        (0.0, 0.25, 0.25, "5", "ok"),
        (0.0, 0.0, 0.0, None, "no answer"),
    ]


def test_a_hostile_answer_among_normal_ones_costs_its_limit():
    normal = [(rf"\frac{{{i}}}{{7}}", f"{i}/7") for i in range(1, 21)]
    with AnswerChecker(workers=1, timeout=1.5) as checker:
        checker.check([("1/2", "0.5")])  # starts the worker
        start = time.perf_counter()
        verdicts = checker.check([*normal[:10], (HOSTILE, "7.5"), *normal[10:]])
        elapsed = time.perf_counter() - start
        assert verdicts == [*[RIGHT] * 10, Verdict(False, "timeout"), *[RIGHT] * 10]
        assert checker.timeouts == 1
        assert 1.5 <= elapsed < 31.0  # 1.5 s of processor time, 30 s by the clock, and a new worker
        assert checker.check([(HOSTILE, "7.5")])[0].status == "timeout"
        assert time.perf_counter() - start < elapsed + 1.4  # the answer is already known
    assert time.perf_counter() - start < elapsed + 3.0  # closing the checker waits for no worker


def test_submit_does_not_wait():
    with AnswerChecker(workers=1, timeout=1.0) as checker:
        start = time.perf_counter()
        pending = checker.submit(HOSTILE, "7.5")
        assert not pending.done()
        assert time.perf_counter() - start < 1.0
        assert checker.submit("7", "7").result(timeout=0.1) == RIGHT
        assert pending.result(timeout=60.0).status == "timeout"


def test_a_worker_stuck_in_c_code_is_killed_at_once_too(checker):
    checker.check([("1/2", "0.5")])
    start = time.perf_counter()
    with pytest.raises(TimeoutError):
        checker._pool.schedule(sum, (range(10**15),), timeout=0.5).result(timeout=60.0)
    assert time.perf_counter() - start < 3.0


def test_leaving_waits_for_no_check():
    with AnswerChecker(workers=1, timeout=60.0) as checker:
        checker.check([("1/2", "0.5")])
        checker.submit(HOSTILE, "7.5")
        start = time.perf_counter()
    assert time.perf_counter() - start < 5.0


def test_a_worker_left_behind_ends_by_itself():
    code = (
        "from sspo_cli.rewards.equality import equal\n"
        "print(equal('1/2', '0.5', 60.0), flush=True)\n"
        f"equal('{HOSTILE}', '7.5', 0.5)\n"
    )
    orphan = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert orphan.stdout == "True\n"
    assert orphan.returncode == -signal.SIGPROF
    equal("1/2", "0.5", 60.0)
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)  # no alarm is left that would kill an idle worker


def test_time_in_which_a_worker_does_not_run_does_not_count():
    with AnswerChecker(workers=1, timeout=1.0) as checker:
        checker.check([("1/2 x", r"\frac{x}{2}")])
        worker = checker._pool.schedule(os.getpid).result(timeout=60.0)
        pending = checker.submit(HOSTILE, "7.5")
        time.sleep(0.3)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(1.5)
        assert not pending.done()
        os.kill(worker, signal.SIGCONT)
        assert pending.result(timeout=60.0).status == "timeout"


def test_the_wall_clock_is_a_backstop(monkeypatch):
    monkeypatch.setattr("sspo_cli.rewards.answer.WALL_CLOCK", 0.01)
    with AnswerChecker(workers=1, timeout=100.0) as checker:
        assert checker.submit(HOSTILE, "7.5").result(timeout=60.0) == Verdict(False, "timeout")
        assert checker.timeouts == 1


HOSTILE_ANSWERS = [
    *(
        '__import__("os").system("touch hacked")',
        "exec(1)",
        "x.__class__",
        r"\operatorname{eye}(10^9)",
        "9^{9^{9^{9}}}",
    ),
    *("100000000!", r"\sum_{i=1}^{10^{9}} i", "{" * 900, "(" * 900, r"\sqrt{" * 150, r"\frac{1}{" * 100, "-" * 900),
    *("pi(" * 300, "sqrt(" * 190, "2^" * 400, "x" * 10_000, "1" * 10_000, "pi " * 300),
]


def test_no_answer_is_run_or_holds_the_checker_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with AnswerChecker(workers=2, timeout=0.3) as checker:
        verdicts = checker.check([(answer, "7.5") for answer in HOSTILE_ANSWERS])
    assert not any(verdict.equal for verdict in verdicts)
    assert list(tmp_path.iterdir()) == []


def test_workers_are_light_limited_and_replaced_when_they_die(checker):
    checker.check([("1/2", "0.5")])

    def ask(expression: str):
        return checker._pool.schedule(eval, (expression,)).result(timeout=60.0)

    assert "torch" in sys.modules  # imported in the parent by tests/conftest.py
    assert not ask("'torch' in __import__('sys').modules")
    assert ask("__import__('resource').getrlimit(__import__('resource').RLIMIT_AS)[0]") == 2 << 30
    worker = ask("__import__('os').getpid()")
    pending = checker.submit("9^{9^{9^{9}}}", "7.5")
    while not pending.done():
        time.sleep(0.2)
        try:
            os.kill(worker, signal.SIGKILL)
        except ProcessLookupError:
            break
    assert pending.result(timeout=60.0) == Verdict(False, "error")
    assert checker.check([("1/3", r"\frac{1}{3}")]) == [RIGHT]


def test_quick_answers_start_no_worker_and_load_no_sympy():
    code = (
        "import sys\n"
        "from sspo_cli.rewards import AnswerChecker\n"
        "with AnswerChecker() as checker:\n"
        "    checker.check([('1,234', '1234'), ('x', 'x'), (None, '3'), ('3+4', '7')])\n"
        "    assert not {'sympy', 'math_verify', 'torch'} & set(sys.modules)\n"
        "    assert checker._pool is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_hostile_answer_leaves_the_other_worker_to_the_others():
    with AnswerChecker(workers=2, timeout=5.0) as checker:
        checker.check([(rf"\frac{{{i}}}{{9}}", f"{i}/9") for i in range(1, 9)])  # starts both workers
        hostile = checker.submit(HOSTILE, "7.5")
        assert checker.check([(rf"\frac{{{i}}}{{7}}", f"{i}/7") for i in range(1, 31)]) == [RIGHT] * 30
        assert not hostile.done()
        assert hostile.result(timeout=60.0).status == "timeout"


LISTINGS = [
    "{} or {}",
    "{}, {}",
    r"{} \lor {}",
    "either {}; or {}",
    r"\boxed{{{}}} \boxed{{{}}}",
    "{} = {}",
    "x={}, x={}",
    r"x = {} \\text{{ and }} x = {}",
]


@pytest.mark.parametrize("listing", LISTINGS)
def test_naming_several_answers_gains_nothing(checker, listing):
    answers = [extract_answer(f"<answer>{listing.format(*pair)}</answer>") for pair in [(41, 42), (42, 41)]]
    assert sum(verdict.equal for verdict in checker.check([(answer, "42") for answer in answers])) < 2
