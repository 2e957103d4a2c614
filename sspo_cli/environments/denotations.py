"""WikiTableQuestions' comparison of two sets of values, by its published definition."""

import ast
import re
import unicodedata
from collections.abc import Iterable, Iterator

_ESCAPES, _ESCAPED = {"n": "\n", "p": "|", "\\": "\\"}, re.compile(r"\\([np\\])")
_DASHES, _SINGLE, _DOUBLE = "‐‑‒–—−", "‘’´`", "“”"
_REFERENCE = re.compile(r"(?<!^)(?:\[[^\]]*\]|•|[*†‡#+])$")  # marks of footnotes
_DETAIL = re.compile(r"(?<!^)\s*\([^)]*\)$")


def split(gold: str) -> list[str]:
    """Split a gold answer at its bars into values; `\\p` stands for a bar within a value, as in the data set's files."""
    return [_ESCAPED.sub(lambda escape: _ESCAPES[escape[1]], value) for value in gold.split("|")]


def joined(values: Iterable[str]) -> str:
    """Join values into one gold answer."""
    return "|".join(value.replace("\\", "\\\\").replace("|", "\\p").replace("\n", "\\n") for value in values)


def same_denotation(solution: str, gold: str) -> bool:
    """Report whether the solution, read as a list in one of several ways, has the gold's values.

    Repeated values are removed first. The solution and the gold must then have the same number of values, and each gold value
    must be in the solution.
    """
    expected = _unique(split(gold))
    return any(_match(_unique(values), expected) for values in _readings(solution))


def _readings(solution: str) -> Iterator[list[str]]:
    """Yield the readings: the whole as one value; a Python list; parts between bars, lines, semicolons or commas."""
    yield [solution]
    try:
        value = ast.literal_eval(solution)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if isinstance(value, list | tuple | set):
        flat = [item[0] if isinstance(item, tuple | list) and len(item) == 1 else item for item in value]
        yield [str(item) for item in flat]
    for separator in (r"\|", r"\n", ";", r",\s*(?:and\s+)?|\s+and\s+"):
        parts = [part.strip() for part in re.split(separator, solution) if part.strip()]
        if len(parts) > 1:
            yield [part.strip("\"'") for part in parts]


def _match(given: list[str], expected: list[str]) -> bool:
    return len(given) == len(expected) and all(any(_equal(value, other) for value in given) for other in expected)


def _unique(values: list[str]) -> list[str]:
    return list({_normalized(value): value for value in values}.values())


def _equal(value: str, expected: str) -> bool:
    if _normalized(value) == _normalized(expected):
        return True
    given, gold = _number(value), _number(expected)
    return given is not None and gold is not None and abs(given - gold) < 1e-6


def _number(text: str) -> float | None:
    text = text.strip().rstrip(".")
    if re.fullmatch(r"[-+−]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    try:
        value = float(text.replace("−", "-"))
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _normalized(text: str) -> str:
    """Lower the case and strip diacritics, footnote marks, details in brackets, quotation marks and a final period."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
    for signs, plain in ((_DASHES, "-"), (_SINGLE, "'"), (_DOUBLE, '"')):
        text = text.translate(dict.fromkeys(map(ord, signs), plain))
    while True:
        shorter = text.strip()
        for pattern in (_REFERENCE, _DETAIL):
            shorter = pattern.sub("", shorter).strip()
        if len(shorter) > 1 and shorter[0] == shorter[-1] == '"':
            shorter = shorter[1:-1]
        if shorter == text:
            break
        text = shorter
    return " ".join(text.removesuffix(".").lower().split())
