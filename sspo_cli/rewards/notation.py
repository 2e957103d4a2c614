"""One way of writing for answers that differ in characters alone: Unicode signs, Python's powers, units, approximations."""

import re

_SIGNS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "²": "^2",
        "³": "^3",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "±": r"\pm ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "∈": r"\in ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∅": r"\emptyset ",
    }
)
_ROOT = re.compile(r"√\s*(?:(\d+(?:\.\d+)?|[A-Za-z])|\(([^()]*)\)|\{([^{}]*)\})")
_SYNONYMS = (
    (re.compile(r"(?<=[\w)\]}])\*\*(?=[\w({-])"), "^"),
    (re.compile(r"(?<=\S)~(?=\S)"), " "),  # a space of TeX; in front of a number it says `about`
    (re.compile(r"\\degrees?(?![A-Za-z])"), r"^\\circ "),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\(?:equiv|coloneqq)(?![A-Za-z])"), "="),
    (re.compile(r"\{:\}"), ":"),
    (re.compile(r"^\s*=\s*"), ""),
    (re.compile(r"(^|[(\[{,=]\s*)-\s+(?=[\d.\\])"), r"\1-"),
    (re.compile(r"\s+"), " "),
)
_APPROXIMATELY = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])")
_NAME = re.compile(r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*(?:\([^()]*\))?)?\s*=?\s*")
# Two characters at least, and no digits: `2\mathrm{i}` and `5 \text{ or 6}` are no units.
_LABEL = re.compile(
    r"(?<=[\d)\]}%])(?:\s|\\[,;:! ])*\\(?:text\w*|mbox|math(?:rm|it|bf|sf))\s*\{(?P<words>[^{}\d$]{2,})\}"
    r"(?:\s*\^\s*\{?\d\}?)?[\s.]*$"
)
_NO_LABEL = re.compile(
    r"(?<![A-Za-z])(?:or|and|not?|never|nor|neither|n't|wrong|false|incorrect|if|but|maybe|perhaps|about|around|least|most"
    r"|more|less|than|over|under|half|times|hundred|thousand|[mb]illion|dozen|mod|choose)(?![A-Za-z])",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"(?<=[\d}).])(?:\s|\\[,;:! ])*(?:\\(?:text|mathrm)\s*\{\s*)?[mgshlL](?:\s*/\s*[smh])?\s*\}?"
    r"(?:\s*\^\s*\{?[23]\}?)?$"
)
_MODULUS = re.compile(r"(?:\s|\\[,;:! ])*(?:\\pmod(?![A-Za-z])|\(\s*(?:\\text\s*\{\s*)?\\?mod\b).*$")
_NAMES = re.compile(r"\\(?:text\w*|mbox|math\w*|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")
_BRACES = re.compile(r"^(?:\\left)?\\\{(.*?)(?:\\right)?\\\}$")
_SIGN = re.compile(r"\\pm(?![A-Za-z])")
_EITHER_SIGN = re.compile(r"[^,]*\\pm(?![A-Za-z])[^,]*")


def in_latex(answer: str) -> str:
    """An answer in LaTeX's signs, without a unit in text and without the approximation of a value that it names as well."""
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", answer.translate(_SIGNS))
    for written, read in _SYNONYMS:
        text = written.sub(read, text)
    text = _exactly(text.strip())
    label = _LABEL.search(text)
    if not label or _NO_LABEL.search(label["words"]):
        return text
    value = text[: label.start()]
    return text if _names_a_variable(value.rpartition("=")[2]) else value


def measured_as(answer: str, gold: str) -> str:
    """An answer without its unit of one letter and its modulus, where the gold has no variable or modulus that they may be."""
    if "mod" not in gold:
        answer = _MODULUS.sub("", answer)
    return answer if _names_a_variable(gold) else _UNIT.sub("", answer)


def with_both_signs(answer: str) -> str:
    """`\\frac{1+x}{2}, \\frac{1-x}{2}` of `\\frac{1 \\pm x}{2}`, and so for each member of a list."""
    members = _BRACES.sub(r"\1", answer)
    return _EITHER_SIGN.sub(lambda member: ", ".join(_SIGN.sub(sign, member[0]) for sign in "+-"), members)


def _names_a_variable(answer: str) -> bool:
    return re.search(r"[A-Za-z]", _NAMES.sub(" ", answer)) is not None


def _exactly(text: str) -> str:
    """`\\sqrt{2}` of `\\sqrt{2} \\approx 1.41`, but `1.41` of `x \\approx 1.41`."""
    exact, *rounded = _APPROXIMATELY.split(text)
    return exact.strip() if not (rounded and _NAME.fullmatch(exact)) else rounded[-1].strip()
