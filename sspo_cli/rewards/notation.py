"""Translation of answers into LaTeX: Unicode signs, plain text such as `2pi` or `sqrt(2)`, number bases, synonyms."""

import re
import unicodedata

INVISIBLE = dict.fromkeys(
    map(ord, "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufe0f\ufeff")
)
_COMMANDS = (
    r"∞\infty ×\times ±\pm ∓\mp ≠\ne ≤\le ⩽\le ≦\le ≥\ge ⩾\ge ≧\ge ≈\approx ∈\in ∉\notin ∪\cup ∩\cap ∨\lor ∧\land ∅\emptyset "
    r"∖\setminus ⌊\lfloor ⌋\rfloor ⌈\lceil ⌉\rceil ·\cdot ⋅\cdot ∙\cdot √\sqrt ∛\cbrt °^\circ º^\circ ϕ\phi ϵ\epsilon ∂\partial"
)
_GREEK = {
    character: "\\" + (name[1].title() if name[0] == "CAPITAL" else name[1].lower()) + " "
    for character in map(chr, range(0x391, 0x3CA))
    if len(name := unicodedata.name(character, "").replace("LAMDA", "LAMBDA").removeprefix("GREEK ").split(" LETTER "))
    == 2
}
_SIGNS = str.maketrans(
    {
        **_GREEK,
        **{command[0]: f"{command[1:]} " for command in _COMMANDS.split()},
        **{letter: rf"\mathbb{{{unicodedata.normalize('NFKC', letter)}}}" for letter in "ℝℂℤℚℕ"},
        **dict.fromkeys("−–‐‑‒﹣", "-"),
        **dict.fromkeys("⁄∕÷", "/"),
        **dict.fromkeys("’′", "'"),
        "≡": "=",
    }
)
_RAISED = re.compile(r"[⁺⁻]?[⁰¹²³⁴-⁹ⁿⁱ]+")
_LOWERED = re.compile(r"[₊₋]?[₀-₉ₐ-ₜ]+")
_LETTERS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_FUNCTIONS = (
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan arccot arcsec arccsc arcsinh arccosh arctanh "
    "ln log exp max min gcd lcm sqrt cbrt abs floor ceil binom factorial frac"
)
# Plain-text word -> LaTeX command. Other words are not translated.
NAMES = {name: name for name in f"{_LETTERS} {_FUNCTIONS} infty".split()} | {
    **dict.fromkeys(["Pi", "PI"], "pi"),
    **dict.fromkeys(["inf", "infinity", "Infinity", "oo"], "infty"),
    **dict.fromkeys(["binomial", "comb"], "binom"),
    **{f"a{name}": f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sinh", "cosh", "tanh")},
    "ceiling": "ceil",
    "Abs": "abs",
    "dfrac": "frac",
    "union": "cup",
}
_ARGUMENTS = {  # the delimiters that replace the parentheses around an argument
    r"\sqrt": (r"\sqrt{", "}"),
    r"\cbrt": (r"\sqrt[3]{", "}"),
    r"\abs": (r"\left|", r"\right|"),
    r"\floor": (r"\lfloor ", r"\rfloor "),
    r"\ceil": (r"\lceil ", r"\rceil "),
    r"\binom": (r"\binom{", "}"),
    r"\factorial": ("(", ")!"),
    r"\exp": ("e^{", "}"),
    "^": ("^{", "}"),
}
_CALL = re.compile(rf"({'|'.join(map(re.escape, _ARGUMENTS))})\s*\(")
_NAME_OR_COMMAND = re.compile(
    r"\\(?:text\w*|mbox|math\w*|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+"
    r"|(?<![A-Za-z\\])(?P<word>[A-Za-z]{2,})(?![A-Za-z])"
)
_IN_TEXT = re.compile(r"\\(?:text\w*|math\w*|mbox|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"(?<![^\W\d_])[^\W\d_]{3,}")
_NUMERALS = ["", "", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_IN_BASE = re.compile(
    rf"(?<![\w.])([\dA-Fa-f]*\d[\dA-Fa-f]*)(?:[\s(,]|\\text|\{{)*(?:in\s+)?base[\s}}{{-]*(\d+|{'|'.join(_NUMERALS[2:])})[\s)}}]*$"
)
_NUMERAL_INDEX = re.compile(rf"(?<=\w)()_\{{?({'|'.join(_NUMERALS[2:])})(?![A-Za-z])\}}?")
_SYNONYMS = (
    (re.compile(r"(?<=[\w)\]}])\*\*(?=[\w({-])"), "^"),
    (re.compile(r"(?<=\S)~(?=\S)"), " "),  # a space in TeX; in front of a number, `~` means "about"
    (re.compile(r"\\degrees?(?![A-Za-z])"), r"^\\circ "),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\(?:equiv|coloneqq)(?![A-Za-z])"), "="),
    (re.compile(r"\\(?:leqslant|leqq)(?![A-Za-z])|=<|<="), r"\\le "),
    (re.compile(r"\\(?:geqslant|geqq)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"!=|=/=|\\not\s*="), r"\\ne "),
    (re.compile(r"\\lg(?![A-Za-z])"), r"\\log_{10}"),
    (re.compile(r"\\varphi(?![A-Za-z])"), r"\\phi "),
    (re.compile(r"\\log\s*_\s*(?:\{\s*e\s*\}|e(?![A-Za-z]))"), r"\\ln "),
    (re.compile(r"\\(?:mathrm|text|rm)\s*\{\s*([ie])\s*\}"), r" \1"),
    (re.compile(r"\+/?-"), r"\\pm "),
    (re.compile(r"\{:\}|\\!:\\!|(?<=\d)\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"_\{?\\(?:text|mathrm)\s*\{\s*(\w+)\s*\}\}?|_\{\((\d+)\)\}|_\((\d+)\)"), r"_{\1\2\3}"),
    (re.compile(r"(?<=[)\]}])\s*U\s*(?=[(\[{\\])"), r" \\cup "),
    (re.compile(r"([A-Za-z\d]+|\([^()]*\))\s*(?:\\?choose)\s*([A-Za-z\d]+|\([^()]*\))"), r"\\binom{\1}{\2}"),
    (re.compile(r"^\s*=\s*"), ""),
    (re.compile(r"(^|[(\[{,=]\s*)-\s+(?=[\d.\\])"), r"\1-"),
    (
        re.compile(r"\s*(?:\\text\w*\s*\{\s*)?(?:\\?%|(?<![A-Za-z])(?:per ?cent(?:age)?|pct)(?![A-Za-z]))\s*\}?\s*$"),
        r"\\%",
    ),
    (re.compile(r"\s+"), " "),
)
_PLAIN = (
    (re.compile(r"(?<![A-Za-z\\])log(\d+)\s*\("), r"\\log_{\1}("),
    (re.compile(r"\\(?:text|operatorname)\s*\{\s*(arc\w+|a?(?:sin|cos|tan)h?|ln|log|exp)\s*\}"), r"\\\1 "),
)
_LATEX = (
    (re.compile(r"\\(sqrt|cbrt)\s*(\d+(?:\.\d+)?|[A-Za-z]|\\pi(?![A-Za-z]))"), r"\\\1{\2}"),
    (re.compile(r"\\cbrt\s*(?=\{)"), r"\\sqrt[3]"),
    (re.compile(r"\^\s*(-\s*(?:\d+|\\?[A-Za-z]+))"), r"^{\1}"),
    (re.compile(r"(?<![\w)}./])(\d+)/(\d+)\s+(?=[A-Za-z\\(])"), r"\\frac{\1}{\2} "),
)
_APPROXIMATELY = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])")
_NAME = re.compile(r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*(?:\([^()]*\))?)?\s*=?\s*")
_BRACES = re.compile(r"^(?:\\left)?\\\{(.*?)(?:\\right)?\\\}$")
_SIGN = re.compile(r"\\pm(?![A-Za-z])")
_EITHER_SIGN = re.compile(r"[^,]*\\pm(?![A-Za-z])[^,]*")
_BARE_LOG = re.compile(r"\\log(?![A-Za-z]|\s*_)")


def in_latex(answer: str) -> str:
    """Translate an answer into LaTeX, and drop the approximation that follows an exact value."""
    text = _in_ascii(answer)
    for written, read in _SYNONYMS:
        text = written.sub(read, text)
    text = _NUMERAL_INDEX.sub(_with_index, _IN_BASE.sub(_with_index, text))
    if not has_words(text):
        for written, read in _PLAIN:
            text = written.sub(read, text)
        text = _NAME_OR_COMMAND.sub(_as_command, text)
    for written, read in _LATEX:
        text = written.sub(read, text)
    return _exactly(_with_braces(text).strip())


def has_words(text: str) -> bool:
    """Report whether a text has words of three or more letters, other than mathematical names and those in `\\text{}`."""
    return any(
        command(word[0]) is None for word in _WORD.finditer(_IN_TEXT.sub(" ", text)) if word[0] not in ("and", "mod")
    )


def with_logarithms(answer: str, gold: str) -> str:
    """Rewrite `\\log` without a base: as `\\log_{10}` if the gold contains a logarithm to base 10, otherwise as `\\ln`."""
    decimal = re.search(r"\\log\s*_\s*(?:\{\s*10\s*\}|10)", gold)
    return _BARE_LOG.sub(r"\\log_{10}" if decimal else r"\\ln", answer)


def with_both_signs(answer: str) -> str:
    """Expand `\\frac{1 \\pm x}{2}` to `\\frac{1+x}{2}, \\frac{1-x}{2}`, and each member of a list in the same way."""
    members = _BRACES.sub(r"\1", answer)
    return _EITHER_SIGN.sub(lambda member: ", ".join(_SIGN.sub(sign, member[0]) for sign in "+-"), members)


def _in_ascii(answer: str) -> str:
    if answer.isascii():
        return answer
    text = _RAISED.sub(lambda raised: _script("^", raised[0]), answer.translate(INVISIBLE))
    text = _LOWERED.sub(lambda lowered: _script("_", lowered[0]), text)
    for character in set(text):
        if unicodedata.decomposition(character).startswith("<fraction>"):
            numerator, _, denominator = unicodedata.normalize("NFKC", character).partition("⁄")
            text = text.replace(character, rf"\frac{{{numerator}}}{{{denominator or 1}}}")
    return unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)


def _script(mark: str, characters: str) -> str:
    digits = unicodedata.normalize("NFKC", characters).translate(_SIGNS)
    return mark + (digits if len(digits) == 1 else f"{{{digits}}}")


def command(word: str) -> str | None:
    """Return the LaTeX command, without its backslash, for a plain-text word; None if there is no such command.

    A command that is joined to an `x` is separated from it: `sinx` becomes `sin x`.
    """
    if word in NAMES:
        return NAMES[word]
    return f"{NAMES[word[:-1]]} x" if word.endswith("x") and word[:-1] in NAMES else None


def _as_command(match: re.Match[str]) -> str:
    name = command(match["word"] or "")
    if name is None:
        return match[0]
    return rf"\{name}" if match.string[match.end() : match.end() + 1] in ("(", "{", "[") else rf"\{name} "


def _with_index(match: re.Match[str]) -> str:
    base = match[2] if match[2].isdecimal() else str(_NUMERALS.index(match[2]))
    return f"{match[1]}_{{{base}}}"


def _with_braces(text: str) -> str:
    """Replace parentheses by braces after commands that take braces: `\\sqrt(x+1)` becomes `\\sqrt{x+1}`.

    Unclosed parentheses are not replaced.
    """
    start = 0
    while call := _CALL.search(text, start):
        opening = call.end() - 1
        depth = 0
        for end in range(opening, len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if not depth:
                break
        else:
            start = call.end()
            continue
        left, right = _ARGUMENTS[call[1]]
        argument = text[opening + 1 : end]
        if call[1] == r"\binom":
            argument = "}{".join(part.strip() for part in argument.split(",", 1))
        text = text[: call.start()] + left + argument + right + text[end + 1 :]
        start = call.start() + len(left)
    return text


def _exactly(text: str) -> str:
    """Keep the exact side of an approximation: `\\sqrt{2}` of `\\sqrt{2} \\approx 1.41`, but `1.41` of `x \\approx 1.41`."""
    exact, *rounded = _APPROXIMATELY.split(text)
    return exact.strip() if not (rounded and _NAME.fullmatch(exact)) else rounded[-1].strip()
