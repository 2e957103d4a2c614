"""The words around an answer: its unit, and the sentence that states it. Unknown words are never skipped."""

import re

from sspo_cli.rewards.notation import INVISIBLE, NAMES


def _vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Names of units, comma-separated; the first name of a unit replaces its other names. Plurals are recognized.
_UNITS = """
m meter metre, cm centimeter centimetre, mm millimeter millimetre, km kilometer kilometre, in inch inche, ft foot feet, yd yard,
mi mile, mph, kmh kph, g gram gramme, kg kilogram kilo, mg milligram, lb pound £ gbp, oz ounce, ton tonne, l liter litre,
ml milliliter millilitre, gal gallon, s sec second, ms millisecond, min minute, h hr hour, day, week, month, yr year,
dollar usd buck $, cent ¢, euro € eur, yen jpy ¥, rupee inr ₹ rs, degree deg ° circ, radian rad, celsius, fahrenheit, hz, kw,
kj, mol, unit, square sq, cubic cu, per /, am, pm
"""
UNITS = {name: names.split()[0] for names in _UNITS.split(",") for name in names.split()}
SPEEDS = {"mph": ["mi", "per", "h"], "kmh": ["km", "per", "h"]}
_WORDS_OF_TWO = _vocabulary("am an as at be by do go he if in is it me my of on so to up us we")
# A sentence with one of these words does not plainly state a value: it denies, doubts, bounds, scales or computes one.
_NO_PROSE = _vocabulary(
    """
    not never no neither nor none either else wrong false incorrect cannot without except unless isn aren wasn doesn or
    but if maybe perhaps possibly probably could might may about around approximately roughly nearly almost between least
    most more less than fewer over under above below half third quarter twice thrice double triple minus negative plus
    times divided multiplied squared cubed factorial choose root log logarithm mod modulo base divisible multiple power
    inverse reciprocal opposite absolute zero one two three four five six seven eight nine ten eleven twelve twenty thirty
    forty fifty sixty seventy eighty ninety dozen dozens hundred hundreds thousand thousands million millions billion
    billions trillion trillions guess think doubt unsure sure exceeds beyond up
    """
)
ANSWER = (
    r"(?:answer|option|choice|result|solution|Antwort|Lösung|Ergebnis|réponse|résultat|respuesta|resultado|resposta|risposta|risultato"
    r"|antwoord|odpowiedź|cevap|svar|ответ|jawaban|答案|答え|정답)"
)
IS = r"(?:is|are|equals|ist|lautet|beträgt|est|es|é|è|jest|wynosi|adalah|это|равен|是|为|は|은|는)"
_STATING = _vocabulary(
    """
    is are was were be equal equals becomes give gives get gets got has have had make makes made earn earns earned cost
    costs need needs needed pay pays paid take takes took spend spends spent save saves saved sell sells sold buy buys
    bought find found obtain yields weighs contains receives received owes use uses used total ist sind lautet beträgt est
    sont es son é são è jest wynosi это равен adalah
    """
)
_OPENING = _vocabulary("so thus hence therefore then and finally now ok okay well that this which it answer result")
_FILLING = _vocabulary("a an the just only simply exactly precisely then therefore thus indeed now to of")
_LETTERS = re.compile(r"[^\W\d_]+")
_LEAD = re.compile(r"(?:[^\W\d_]|[\s.,;:=\"'’*_-])*")
_TAIL = re.compile(r"(?:[^\W\d_]|[\s.,;:!?\"'’/°¢$€£¥²³-]|\*\*|\^\{?[23]\}?)*")
_AFTER_UNIT = re.compile(
    r"[,;:.!?]|\b(?:for|in|on|at|to|from|by|that|which|who|and|with|left|remaining|altogether|total|when|since)\b"
)
_TOKEN = (
    r"(?:\\(?:text\w*|mbox|math(?:rm|it|bf|sf))\s*\{[^{}\d$]*\}|[^\W\d_]|['’°¢²³/.,;$€£¥-]"
    r"|\^\s*\{?\s*(?:\\circ|[23])\s*\}?|\\(?:degrees?|\$|[,;:! ])|~|\s)"
)
_MEASURED = re.compile(rf"(?P<value>.*?(?:[\d)\]}}.]|\\pi))(?P<unit>(?!-){_TOKEN}+)", re.DOTALL)
_CURRENCY = re.compile(r"(?P<sign>(?:[^=]*=\s*)?[+-]?)\s*\\?(?P<unit>[$€£¥₹])\s*(?P<value>[+-]?[\d.\\].*)")
_IN_UNIT = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|[°¢$€£¥₹/]|\^\s*\{?\s*[23]")
_RAISED = str.maketrans({"²": "^2", "³": "^3"})
_HALF_DAY = re.compile(r"\b([ap])\.\s?m\b\.?")
_NO_BRACES = str.maketrans("{}", "  ")
_COMMAND = re.compile(r"\\(?:text\w*|mbox|math(?:rm|it|bf|sf))|\\[,;:! ]|\\|~")
_NAMES_IN_LATEX = re.compile(r"\\(?:text\w*|mbox|math\w*|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")

TEXT = re.compile(r"\\(?:text\w*|mbox|math(?:rm|bf|it|sf))\s*\{([^{}]*)\}")
_NOT_IN_SENTENCES = re.compile(r"[^\w\s.,;:!?'’]|[\d_]")
_PUNCTUATION = str.maketrans("", "", ".,;:!?'’")
STATED = re.compile(r"[^\W\d_]{2,}(?: [^\W\d_]+){0,5}")
_CLAUSE = re.compile(r"(?:^|[.,;:!?—-])\s*(yes|no|true|false)\s*(?=$|[.,;:!?—-])", re.IGNORECASE)
_ANSWERED = re.compile(
    r"(yes|no|true|false)(?=$|\s*[.,;:!?—-]|\s+(?:it|they|there|this|that|the|we|he|she|because|since)\b)",
    re.IGNORECASE,
)
# `yes` has no entry: a `no` later in the sentence need not deny it.
_CONTRARY = {"no": "yes", "true": "false", "false": "true"}


def same_words(text: str, other: str) -> bool:
    """Report whether two texts are equal; `\\text{}` around words is ignored.

    Case, punctuation and a leading article are ignored in texts of words, but not in texts with digits or mathematical
    signs and not in single letters.
    """
    if " ".join(TEXT.sub(r"\1", text).split()) == " ".join(TEXT.sub(r"\1", other).split()):
        return True
    return (words := _words(text)) is not None and words == _words(other)


def _words(text: str) -> list[str] | None:
    text = TEXT.sub(r"\1", text)
    if _NOT_IN_SENTENCES.search(text):
        return None
    words = text.casefold().translate(_PUNCTUATION).split()
    words = words[words[:1] in (["a"], ["an"], ["the"]) :]
    return words if any(len(word) > 1 for word in words) else None


def said(sentence: str, gold: str) -> bool:
    """Report whether a sentence states the words of a gold answer.

    `The function is even` states `even`. The gold answers Yes, No, True and False may also open the sentence, as in
    `Yes, it converges`.
    """
    words = " ".join(TEXT.sub(r"\1", gold).split()).casefold()
    if not STATED.fullmatch(words):
        return False
    text = TEXT.sub(r"\1", sentence).strip(" \n.!*_\"'$").casefold()
    if text.endswith(words) and states(text[: -len(words)]):
        return True
    answered = _ANSWERED.match(text)
    if not answered or answered[1] != words or re.search(rf"\b{_CONTRARY.get(words)}\b", text):
        return False
    return set(_CLAUSE.findall(text)) <= {words}


def states(lead: str) -> bool:
    """Report whether the text before a value only introduces it: `The answer is`, `x =`, `Janet makes`, or nothing."""
    words = [word.casefold() for word in _LETTERS.findall(lead)]
    if not _LEAD.fullmatch(lead) or not _NO_PROSE.isdisjoint(words) or "n't" in lead or "n’t" in lead:
        return False
    while words and words[-1] in _FILLING:
        words.pop()
    stated = re.search(r"[:=是为はは은는][\s*\"'_]*$", lead) is not None
    return stated or not words or words[-1] in _STATING or _OPENING.issuperset(words)


def follows(tail: str) -> bool:
    """Report whether the text after a value is only its unit and prose: `apples`, `m^2`, `dollars a day`, or nothing."""
    words = _LETTERS.findall(tail)
    if not _TAIL.fullmatch(tail) or tail.startswith("-") or not _NO_PROSE.isdisjoint(word.casefold() for word in words):
        return False
    touching = words[0] if words and tail.startswith(words[0]) and tail.isascii() else ""
    glued = touching and (len(touching) == 1 or _unit(touching) not in UNITS.values())
    return not glued and all(map(_is_word, words))


def measured(answer: str, *, glued: bool = False) -> tuple[str, frozenset[str]]:
    """Split an answer into its value and the words of its unit: `5.4 \\text{ cents}` gives (`5.4`, {cent}).

    The set is empty if the answer has no unit. A single letter directly after the number, as in `5m`, is a unit only if
    `glued`.
    """
    answer = _HALF_DAY.sub(r"\1m", answer.translate(INVISIBLE).translate(_RAISED)).strip()
    if currency := _CURRENCY.fullmatch(answer):
        value, unit = measured(currency["value"], glued=glued)
        return currency["sign"] + value, unit | {UNITS[currency["unit"]]}
    match = _MEASURED.fullmatch(answer)
    if not match or names_a_variable(match["value"].rpartition("=")[2]):
        return answer, frozenset()
    text = re.sub(r"\^\s*circ", "°", _COMMAND.sub(" ", match["unit"].translate(_NO_BRACES)))
    touching = re.match(r"[^\W\d_]+", match["unit"])
    if touching and (_unit(touching[0]) not in UNITS.values() or (len(touching[0]) == 1 and not glued)):
        return answer, frozenset()
    unit = unit_words(text) if follows(f" {text}") else frozenset()
    return (match["value"].rstrip(), unit) if unit - {"square", "cubic", "per"} else (answer, frozenset())


def names_a_variable(text: str) -> bool:
    return re.search(r"[A-Za-z]", _NAMES_IN_LATEX.sub(" ", text)) is not None


def unit_words(text: str) -> frozenset[str]:
    """Return the words of a unit in one spelling: {cm, square} for both `square centimeters` and `cm^2`."""
    tokens = _IN_UNIT.findall(_AFTER_UNIT.split(text, maxsplit=1)[0].strip() or text)
    raised = {"2": "square", "3": "cubic"}
    words = [raised.get(token[-1]) or _unit(token) for token in tokens]
    words = [part for word in words for part in SPEEDS.get(word, [word])]
    return frozenset(word for word in words if word not in _FILLING)


def same_unit(given: frozenset[str], expected: frozenset[str]) -> bool:
    """Report whether two units are compatible: one is missing, or they differ only in words that are not units."""
    if not given or not expected:
        return True
    return (given <= expected or expected <= given) and (given ^ expected).isdisjoint(UNITS.values())


def _unit(word: str) -> str:
    word = word.casefold()
    for name in (word, word.removesuffix("s"), word.removesuffix("es")):
        if name in UNITS:
            return UNITS[name]
    return word.removesuffix("s") or word


def _is_word(word: str) -> bool:
    if _unit(word) in UNITS.values():
        return True
    if len(word) < 3 and word.isascii():
        return word in _WORDS_OF_TWO or word in ("a", "I")
    return word not in NAMES and (not word.isascii() or re.search("[aeiouAEIOU]", word) is not None)
