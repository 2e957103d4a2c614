"""Checks of proposed solutions, by the rule in `problem.check`.

The checks run in the trainer, where no code of a policy can affect them. The rules are:

math        equal in value, as compared by `AnswerChecker`; an answer in Python notation is accepted as well
denotation  the same set of values, compared as in WikiTableQuestions: by number or by normalized text
within-5    MINT's rule for GSM8K and MATH, whose gold answers are rounded: a number within 5 % of the gold. For evaluation only
theoremqa   TheoremQA's rule: numbers within 4 %, lists of numbers, `True` or `False`, a letter. For evaluation only
choice      the letter of an option
"""

import ast
import re
from collections.abc import Callable, Sequence

from sspo_cli.environments.denotations import same_denotation
from sspo_cli.environments.notation import as_latex
from sspo_cli.errors import UserError, did_you_mean
from sspo_cli.rewards import AnswerChecker, Verdict, extract_answer
from sspo_cli.types import Problem

_QUOTED = re.compile(r"""(["'`])(?P<inside>[^"'`]*)\1""")
_NUMBER = re.compile(
    r"[-+−]?\$?\s*(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:\s*(?:/\s*\d+(?:\.\d+)?|[eE][-+]?\d+))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}")
_LETTER = re.compile(
    r"(?:option|choice|(?:the )?answer(?: is)?:?)?\s*\(?([A-Za-z])\s*(?:[).:].*)?", re.IGNORECASE | re.DOTALL
)
_TRUTH = {"true": "true", "yes": "true", "false": "false", "no": "false"}


def check_proposals(proposals: Sequence[tuple[str, Problem]], checker: AnswerChecker) -> list[Verdict]:
    """Return a verdict for each pair of a proposed solution and its problem. Raises UserError for an unknown rule."""
    for _, problem in proposals:
        if problem.check != "math" and problem.check not in RULES:
            known = ("math", *RULES)
            raise UserError(
                f"problem {problem.id} has the unknown check {problem.check}{did_you_mean(problem.check, known)}"
            )
    solutions = [unquoted(solution) for solution, _ in proposals]
    maths = [i for i, (_, problem) in enumerate(proposals) if problem.check == "math"]
    pairs = [(solutions[i], proposals[i][1].answer) for i in maths]
    verdicts = dict(zip(maths, _check_maths(pairs, checker), strict=True))
    return [
        verdicts[i] if i in verdicts else Verdict(RULES[problem.check](solutions[i], problem.answer), "ok")
        for i, (_, problem) in enumerate(proposals)
    ]


def unquoted(solution: str) -> str:
    """Strip white space and one pair of quotation marks around a solution."""
    solution = solution.strip()
    quoted = _QUOTED.fullmatch(solution)
    return quoted["inside"].strip() if quoted else solution


def within(tolerance: float) -> Callable[[str, str], bool]:
    """Return a rule that accepts a number whose relative difference from the gold is at most `tolerance`."""

    def compare(solution: str, gold: str) -> bool:
        given, expected = number_of(solution), number_of(gold)
        return given is not None and expected is not None and abs(given - expected) <= tolerance * abs(expected)

    return compare


def theoremqa(solution: str, gold: str) -> bool:
    """Compare a solution with the gold by TheoremQA's rule for the gold's type."""
    if (truth := _TRUTH.get(gold.lower())) is not None:
        return _TRUTH.get(solution.lower().rstrip(".")) == truth
    if re.fullmatch(r"[a-z]", gold):
        return same_choice(solution, gold)
    if gold.startswith("["):
        expected, given = _numbers(gold), _numbers(solution)
        return given is not None and expected is not None and len(given) == len(expected) and _all_near(given, expected)
    return within(0.04)(solution, gold)


def same_choice(solution: str, gold: str) -> bool:
    """Report whether a solution such as `C`, `(c)`, `C) 18107` or `option C` gives the gold's letter."""
    letter = _LETTER.fullmatch(solution)
    return letter is not None and letter[1].lower() == gold.strip().lower()


def number_of(text: str) -> float | None:
    """Return the only number of a text, which may be surrounded by words or a unit; None if there is not exactly one."""
    text = _FRACTION.sub(r"\1/\2", text.replace("\\,", ""))
    numbers = [match[0] for match in _NUMBER.finditer(text)]
    if len(numbers) != 1:
        return None
    cleaned = re.sub(r"[\s,$]", "", numbers[0].replace("−", "-"))
    numerator, _, denominator = cleaned.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _all_near(given: Sequence[float], expected: Sequence[float]) -> bool:
    return all(abs(a - b) <= 0.04 * abs(b) for a, b in zip(given, expected, strict=True))


def _numbers(text: str) -> list[float] | None:
    try:
        values = ast.literal_eval(text.strip())
        return [float(value) for value in values] if isinstance(values, list | tuple) else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _check_maths(pairs: Sequence[tuple[str, str]], checker: AnswerChecker) -> list[Verdict]:
    verdicts = checker.check([(_bare(solution, gold), gold) for solution, gold in pairs])
    retried = {
        i: latex
        for i, ((solution, _), verdict) in enumerate(zip(pairs, verdicts, strict=True))
        if not verdict.equal and (latex := as_latex(solution)) is not None
    }
    second = checker.check([(latex, pairs[i][1]) for i, latex in retried.items()])
    for i, verdict in zip(retried, second, strict=True):
        verdicts[i] = verdict
    return verdicts


def _bare(solution: str, gold: str) -> str | None:
    return extract_answer(f"<answer>{solution}</answer>", [gold])


RULES: dict[str, Callable[[str, str], bool]] = {
    "denotation": same_denotation,
    "within-5": within(0.05),
    "theoremqa": theoremqa,
    "choice": same_choice,
}
