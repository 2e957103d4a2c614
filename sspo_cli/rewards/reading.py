"""The answer that a text gives: between its tags; of an untagged text its last box, else its last formula or number."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

END = 10_000  # characters in which the last number or formula is looked for first
MAX_LENGTH = 1000  # characters; six times the longest gold answer of DeepMath-103K's sample

_NUMBER = (
    r"(?:\d{1,3}(?:(?:,|,?\\[!,]|[\u00a0\u2009\u202f])\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+(?![^\W_]))?|\.\d+"
)
# Letters in front make a name of it (`x2`), but not those of a script that puts no spaces between words.
_SIGNED = rf"(?:(?<![A-Za-z\d_)\]}}%.])[+\u2212-])?(?:\\?[$€£¥₹])?(?<![A-Za-z\d])(?<!\^)(?<!\^\{{)(?:{_NUMBER})"
_OPERATION = r"[ \t]*(?:\*\*|[*/^+×·÷\u2212-])[ \t]*|:(?=\d)"
_PERCENT = r"(?:[ \t]*(?:\\?%|percent\b|pct\b))"
_LIST = rf"[(\[]\s*{_SIGNED}(?:\s*,\s*{_SIGNED})+\s*[)\]]"
# Each alternative ends before the next opening delimiter, so a megabyte of these takes linear time. A dollar behind a
# space closes only what opened in front of one: the others are money.
_FORMULA = (
    r"(?<!\\)\$\$(?P<display>(?:\\.|[^$\\])+)\$\$"
    r"|(?<!\\)\\\[(?P<brackets>(?:\\[^\[\]]|[^\\])+)\\\]"
    r"|(?<!\\)\\\((?P<parentheses>(?:\\[^()]|[^\\])+)\\\)"
    r"|(?<![\\$\w])\$(?P<dollars>(?!\s)(?:\\.|[^$\\\n])+(?<!\s)|\s(?:\\.|[^$\\\n])+\s)\$"
)
_VALUE = r"(?P<latex>(?<!\w)[+-]?\d{0,20}(?:\\(?:[cdt]?frac|sqrt|binom|pi|infty)(?![A-Za-z])|[√π∞½⅓⅔¼¾])[^\s$]*)"
_FORMULAS = re.compile(_FORMULA, re.DOTALL)
_PIECES = re.compile(
    rf"{_FORMULA}|{_VALUE}|(?P<list>{_LIST})|(?P<number>{_SIGNED}(?:(?:{_OPERATION}){_SIGNED}){{0,40}}(?:\^\{{?\d+\}}?(?!\w))?{_PERCENT}?)",
    re.DOTALL,
)
_PLAIN_NUMBER = re.compile(rf"{_SIGNED}{_PERCENT}?")
_ASSIGNMENT = re.compile(rf"[A-Za-z]\s*=\s*({_SIGNED}{_PERCENT}?)|[A-Za-z]\s*:\s*(.*)", re.DOTALL)
_STATED = re.compile(
    r"\b(?:answer|option|choice)(?: +is\b:?|:)[ *]*(\w.{0,80}?|\(\w\))[ *.!]*$", re.IGNORECASE | re.MULTILINE
)
# A line of its own, wherever it stands, and the end of the last sentence: what follows them is the answer itself.
_LABELLED = re.compile(
    r"^[ \t>*_#-]*(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t*_]*:[ \t*_]*(.{1,200}?)[ \t*_]*$|^[ \t]*####[ \t]*(.{1,200}?)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_CONCLUDED = re.compile(r"\banswer[ \t]+is[: \t]+([^\n$]{1,200})\Z", re.IGNORECASE)
_CHOICE = re.compile(r"\(?[A-Z]\)?|yes|no|true|false", re.IGNORECASE)
_BETWEEN = re.compile(r"\s*(?:[,;]|[,;]?\s*(?:and|or)\b)\s*")  # what joins the members of a list

_MARKS = re.compile(
    r"(?P<box>\\{1,4}(?:boxed|fbox|framebox)\s*\{)|\\{1,4}boxed[ \t]+(?P<token>[^\s{}$\\]+)|\\.|[{}]", re.DOTALL
)  # more than one backslash: escaped once too often
_END = re.compile(
    r"(?<!\.)(?<!\\right)\.$|(?<!\\)\\$"
)  # a sentence's period, not an ellipsis or an invisible delimiter
_DELIMITERS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("*", "*"),
    ("__", "__"),
    ("```", "```"),
    ("`", "`"),
)
_HEADING = re.compile(r"^(?:#{1,6}|[*•])\s+|^####")
_BETWEEN_BOXES = re.compile(r"\\(?:text|mbox)\s*\{([^{}]*)\}|\$|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])")
_TEXT = re.compile(r"\\(?:text\w*|mbox|math(?:rm|bf|it|sf))\s*\{([^{}]*)\}")
_NOT_IN_SENTENCES = re.compile(r"[^\w\s.,;:!?'’]|[\d_]")
_PUNCTUATION = str.maketrans("", "", ".,;:!?'’")
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z]{2})")
_NO_WORDS = re.compile(r"\\(?:text\w*|math\w*|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(
    r"(?<![^\W\d_])(?!(?:and|or|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|inf|mod|max|min|gcd|lcm|percent|pct)(?![A-Za-z]))[^\W\d_]{2,}"
)

_DENIAL = re.compile(
    r"\b(?:not|never|no|neither|nor|either|else|wrong|false|incorrect|cannot|without|except|unless)\b|n['’]t\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:or|but|if|maybe|perhaps|possibly|probably|could|might|may|about|around|approximately|roughly|nearly|almost"
    r"|between|up to|least|most|more|less|than|fewer|over|under|above|below|any|some|such|half|twice|double|triple"
    r"|minus|negative|plus|times|divided|squared|cubed|factorial|zero|one|two|three|four|five|six|seven|eight|nine|ten"
    r"|eleven|twelve|\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|dozens?|hundreds?|thousands?|[mbtr]illions?"
    r"|guess|think|doubt|unsure|sure)\b",
    re.IGNORECASE,
)
_OPERAND = re.compile(r"\w\s*[*/-]\s*$")  # `xy - 1` is no sentence about 1
_PLAIN_WORDS = re.compile(r"(?:[^\W\d_]|[\s.,:;'’*/°²³$-]|\b[A-Za-z]\s*=|\^\d)*")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text answers.

    answer  bare; None where it gives none
    reader  what it was read from: "tags", "boxed", "formula" (the last one, or a text that is nothing else), "number" (the
            last one), "text" (words behind `answer is`); None without an answer
    """

    answer: str | None
    reader: str | None


def read_answer(text: str, golds: Sequence[str] = ()) -> Reading:
    """The answer of a completion, tagged or not. What it thinks aloud (`<think>`) is no answer.

    Of words it keeps what is a gold's very text: nothing else says which of them are the answer.
    """
    if (tagged := extract_answer(text, golds)) is not None:
        return Reading(tagged, "tags")
    said = outside_thoughts(text)
    if boxed := _last_boxed(said):
        return Reading(_without_words(boxed, golds), "boxed")
    if is_bare(said):
        return _as_number_or_formula(peel(said))
    if any(same_words(peel(said), peel(gold)) for gold in golds):
        return Reading(peel(said), "text")
    if labelled := _after_label(said):
        return labelled
    if piece := _last_piece(_end(said)) or _last_piece(said):
        return _as_number_or_formula(piece)
    if stated := _STATED.findall(said):
        return Reading(stated[-1], "text")
    return Reading(None, None)


def read_gold(gold: str) -> str:
    """The bare answer of a gold field: behind GSM8K's `####`, in a worked solution's tags or last box; else itself, without
    the words around its one number or formula."""
    gold = gold.rpartition("####")[2]
    if len(gold) > MAX_LENGTH or "<answer>" in gold or _last_boxed(gold):
        return read_answer(gold).answer or peel(gold)
    return _without_words(gold)


def extract_answer(text: str, golds: Sequence[str] = ()) -> str | None:
    """The text between the last complete pair of answer tags, without what is wrapped around the answer; None without a pair.
    Its words go too where they only state a number or formula, and the text is none of the `golds`.

    Exactly one pair counts, so naming several answers gains nothing: the last one is what the completion ends on, and
    tags that the reasoning merely mentions come before it.
    """
    for piece in reversed(text.split("<answer>")[1:]):
        answer, closing, _ = piece.partition("</answer>")
        if closing:
            return _without_words(answer, golds)
    return None


def _without_words(answer: str, golds: Sequence[str] = ()) -> str:
    """The one number or formula of a sentence that plainly states it. A sentence with several or with none, or one that
    denies, bounds, scales or doubts it (`not 42`, `at least 42`), stays whole: it names no answer."""
    peeled = peel(answer)
    if len(peeled) > MAX_LENGTH or is_bare(peeled) or any(_spelt(peeled) == _spelt(peel(gold)) for gold in golds):
        return peeled
    pieces = list(_PIECES.finditer(peeled))
    values = {_content(piece) for piece in pieces}
    if len(values) != 1 or any(_OPERAND.search(peeled[: piece.start()]) for piece in pieces):
        return peeled
    words = _PIECES.sub(" ", peeled)
    plain = _PLAIN_WORDS.fullmatch(words) and not _DENIAL.search(words) and not _DOUBT.search(words)
    return peel(values.pop()) if plain else peeled


def same_words(text: str, other: str) -> bool:
    """Whether both are the same text, in `\\text{}` or not; of words alone whatever their case, punctuation and leading article.
    Never so of single letters, digits and signs, which mathematics reads more strictly."""
    if " ".join(_TEXT.sub(r"\1", text).split()) == " ".join(_TEXT.sub(r"\1", other).split()):
        return True
    return (words := _words(text)) is not None and words == _words(other)


def _words(text: str) -> list[str] | None:
    text = _TEXT.sub(r"\1", text)
    if _NOT_IN_SENTENCES.search(text):
        return None
    words = text.casefold().translate(_PUNCTUATION).split()
    words = words[words[:1] in (["a"], ["an"], ["the"]) :]
    return words if any(len(word) > 1 for word in words) else None


def _spelt(text: str) -> str:
    return "".join(_TEXT.sub(r"\1", text).split())


def outside_thoughts(text: str) -> str:
    """What follows the last `</think>`, up to thoughts that never end."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def is_bare(text: str) -> bool:
    """Whether a text is nothing but an expression: one line without words."""
    text = text.strip()
    if len(text) > MAX_LENGTH or re.search(r"[\n#]", text) or not re.search(r"\w", text):
        return False
    return not _WORD.search(_NO_WORDS.sub(" ", text))


def _after_label(text: str) -> Reading | None:
    """What the last line `Answer: …` or `#### …` gives, else what the text ends on after `answer is`; None: no value."""
    labels = [label[1] or label[2] for label in _LABELLED.finditer(text)]
    if not labels and (concluded := _CONCLUDED.search(text)):
        labels.append(concluded[1])
    value = _without_words(labels[-1].lstrip("*_ ").rstrip("*_ .!\n")) if labels else ""
    if _CHOICE.fullmatch(value):
        return Reading(value, "text")
    if not is_bare(value) or "boxed" in value:
        return None
    return _as_number_or_formula(value) if re.search(r"[\d\\^+*/=]", value) else None


def _as_number_or_formula(answer: str) -> Reading:
    if assigned := _ASSIGNMENT.fullmatch(answer):
        answer = assigned[1] or assigned[2]
    return Reading(answer, "number" if _PLAIN_NUMBER.fullmatch(answer) else "formula")


def _end(text: str) -> str:
    """Its last lines, where a text is long; cut in a line only where it has no others."""
    end = text[-END:]
    return end if len(text) <= END else end.partition("\n")[2] or end


def _last_piece(text: str) -> str | None:
    """The last number; or the last formula, with those that are joined to it."""
    pieces = list(_PIECES.finditer(text))
    if not pieces or pieces[-1]["number"]:
        return _content(pieces[-1]) if pieces else None
    formulas = reversed(list(takewhile(lambda piece: not piece["number"], reversed(pieces))))
    return ", ".join(peel(_content(formula)) for formula in _last_run(list(formulas)))


def _last_run(formulas: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """The last formula, with those before it that a comma, `and` or `or` joins to it."""
    run = list(formulas[-1:])
    for formula in reversed(formulas[:-1]):
        if not _BETWEEN.fullmatch(formula.string, formula.end(), run[-1].start()):
            break
        run.append(formula)
    return run[::-1]


def _content(piece: re.Match[str]) -> str:
    content = next(group for group in piece.groups() if group is not None)
    return content.rstrip(".,;:!?") if piece["latex"] else content


def peel(answer: str) -> str:
    """An answer without what is wrapped around it: `\\boxed{}`, `$…$` and its kin, outer white space, a final period.

    Of prose around a box, only the box is left, unless it denies it (`not \\boxed{42}`); several boxes are a list.
    """
    if len(answer) > MAX_LENGTH:
        return answer.strip()
    while True:
        peeled = _undelimited(_END.sub("", _HEADING.sub("", _unboxed(answer).strip())).strip())
        if "\\begin" not in peeled:  # where two backslashes end a row
            peeled = _ESCAPED_TWICE.sub(r"\\", peeled)
        if peeled == answer:
            return answer
        answer = peeled


def _unboxed(text: str) -> str:
    """What its boxes hold; all of a text that has none or denies them."""
    boxes, around = _boxed(text), text
    for start, end, _ in reversed(boxes):
        around = around[:start] + around[end:]
    return text if not boxes or _DENIAL.search(around) else ", ".join(content for _, _, content in boxes)


def _last_boxed(text: str) -> str | None:
    """What the last box holds; boxes of one formula, and boxes or formulas joined by a comma or `and`, are a list."""
    boxes = _boxed(text)
    if not boxes:
        return None
    first, end, _ = boxes[-1]
    formulas = [formula for formula in _FORMULAS.finditer(text) if formula.start() < first]
    if formulas and end <= formulas[-1].end():
        first = _last_run(formulas)[0].start()
    for start, end, _ in reversed([box for box in boxes if box[0] < first]):
        if not _BETWEEN.fullmatch(_BETWEEN_BOXES.sub(r" \1 ", text[end:first])):
            break
        first = start
    return ", ".join(dict.fromkeys(content.strip() for start, _, content in boxes if start >= first))


def _boxed(text: str) -> list[tuple[int, int, str]]:
    """The outermost complete `\\boxed{…}`: start, end and what it holds, by counting braces; escaped ones do not count."""
    boxes: list[tuple[int, int, str]] = []
    open_braces: list[re.Match[str]] = []
    for mark in _MARKS.finditer(text):
        if mark["token"]:
            boxes.append((mark.start(), mark.end(), mark["token"]))
        elif mark[0] == "{" or mark["box"]:
            open_braces.append(mark)
        elif mark[0] == "}" and open_braces and (opening := open_braces.pop())["box"]:
            while boxes and boxes[-1][0] > opening.start():
                boxes.pop()  # it is inside this one
            boxes.append((opening.start(), mark.end(), text[opening.end() : mark.start()]))
    return boxes


def _undelimited(text: str) -> str:
    """`$x$` as `x`, but `$x$ or $y$` as it is."""
    for left, right in _DELIMITERS:
        inner = text.removeprefix(left).removesuffix(right)
        if f"{left}{inner}{right}" == text and left not in inner and right not in inner:
            return inner
    return text
