"""Extraction of answers: the text between the tags; without tags the last box, otherwise the last formula or number."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from sspo_cli.rewards.format import TAGS
from sspo_cli.rewards.notation import INVISIBLE, command, has_words
from sspo_cli.rewards.prose import ANSWER, IS, TEXT, UNITS, follows, measured, said, same_words, states

END = 10_000  # characters at the end of a text that are searched first for a number or formula
LABELS = 10  # number of labels tried, from the last
PROSE = 8  # a gold of several sentences with at least this many words is a worked solution
MISSING = ("nan", "NaN", "<NA>", "#N/A")  # how other programs write a missing value in a table
MAX_LENGTH = 1000  # characters; six times the longest gold answer of DeepMath-103K's sample

_CURRENCY = r"(?:[€£]|[Ee]uros?|EUR|dollars?|pesos?|reais|rubl\w*|рубл\w*|kr|zł)"
_NUMBER = (
    r"(?:\d{1,3}(?:(?:,|,?\\[!,]|[\u00a0\u2009\u202f'])\d{3})+(?!\d)|\d{1,2}(?:,\d\d)+,\d{3}(?!\d)|\d{1,3}(?: \d{3}){2,}(?!\d)"
    rf"|\d{{1,3}} \d{{3}}(?= ?{_CURRENCY})|\d{{1,3}}(?:\.\d{{3}}){{2,}}(?![\d.])(?:,\d+)?|\d{{1,3}}\.\d{{3}},\d{{1,2}}(?!\d)"
    r"|\d+,\d{1,2}(?![\d,])|\d+)(?:\.\d+)?(?:[eE][+-]?\d+(?![^\W_]))?|\.\d+"
)
# A number directly after letters is part of a name (`x2`), except after a script without spaces between words.
_SIGNED = rf"(?:(?<![A-Za-z\d_)\]}}%.])[+\u2212-])?(?:\\?[$€£¥₹])?(?<![A-Za-z\d])(?<!\^)(?<!\^\{{)(?:{_NUMBER})"
_OPERATION = r"[ \t]*(?:\*\*|[*/^+×·÷\u2212-])[ \t]*|:(?=\d)"
_PERCENT = r"(?:[ \t]*(?:\\?%|per ?cent\b|pct\b))"
_LIST = rf"[(\[]\s*{_SIGNED}(?:\s*,\s*{_SIGNED})+\s*[)\]]"
# Each alternative ends before the next opening delimiter, so that a megabyte of delimiters takes linear time. A dollar
# sign after a space closes a formula only if the opening one stood before a space; otherwise it is a currency.
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
# The rest of the sentence after one of these labels is the answer, unless later text retracts it.
_LABEL = re.compile(
    rf"(?:(?:^|[.!?;] )[ \t>*_#-]*(?:(?:the|final|correct)[ \t]+){{0,3}}{ANSWER}[ \t*_]*[:：]|^[ \t]*####"
    rf"|(?<![A-Za-z]){ANSWER}s?(?:[ \t]+(?:must|should|would|will)[ \t]+be|[ \t]*{IS})(?![A-Za-z]))[ \t:：*_\"]*",
    re.IGNORECASE | re.MULTILINE,
)
_ENGLISH = re.compile(r"####|answer|option|choice|result|solution", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"(?:^|[.!?\n][ \t]{0,4}|\b(?:but|oh|hmm),? )(?:no|wait|actually|sorry|correction|hmm|oops)\b[,:.!; -]",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?:\$[^$\n]+\$|\\\([^\n]+?\\\)|[^.!?\n。]|[.!?](?![\s*\"')]|$))+")
_OPTION = re.compile(r"(?:\([A-HJ]\)|[A-HJ](?=[).:,]|\s*$))[).:]?(?:\s+[^\n]{1,80})?")
_ASIDE = re.compile(
    r",\s+(?!and\b|or\b)[a-z]{2,}|\s(?:for|in|over|after|at|because|since|as|when|with|where|which)\s|\s\(|[;:]\s"
)
_CHOICE = re.compile(r"\(?[A-Z]\)?|(?:yes|no|true|false)(?=$|\W)", re.IGNORECASE)
_BETWEEN = re.compile(r"\s*(?:[^\W\d_]+\s+){0,2}(?:[,;]|[,;]?\s*(?:and|or)\b)\s*")  # separators of a list

_MARKS = re.compile(
    r"(?P<box>\\{1,4}(?:boxed|fbox|framebox)\s*\{)|\\{1,4}boxed[ \t]+(?P<token>[^\s{}$\\]+)|\\.|[{}]", re.DOTALL
)  # text that was escaped repeatedly has more than one backslash
_END = re.compile(
    r"(?<!\.)(?<!\\right)\.$|(?<!\\)\\$"
)  # the period of a sentence, not that of an ellipsis or of `\right.`
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
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z]{2})")
_NO_WORDS = re.compile(r"\\(?:text\w*|math\w*|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{2,}|[\u3040-\u9fff\uac00-\ud7af]")
_TAG = re.compile("|".join(TAGS))
_NEW_SENTENCE = re.compile(r"[\w)}$][.!?]\s+[A-Z]")
_DENIAL = re.compile(
    r"\b(?:not|never|no|neither|nor|either|else|wrong|false|incorrect|cannot|without|except|unless)\b|n['’]t\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer that a text gives.

    answer  the answer without its wrapping; None if the text gives no answer
    reader  the source: "tags", "boxed", "formula" (the last formula, or a text that is only a formula), "number" (the last
            number), "text" (words after `answer is`); None if there is no answer
    """

    answer: str | None
    reader: str | None


def read_answer(text: str, golds: Sequence[str] = ()) -> Reading:
    """Read the answer of a completion, tagged or not. The text in `<think>` is ignored.

    golds  gold answers, needed to recognize an answer in words: nothing else marks which words are the answer
    """
    if (tagged := extract_answer(text, golds)) is not None:
        return Reading(tagged, "tags")
    text = outside_thoughts(text.translate(INVISIBLE))
    if boxed := _last_boxed(text):
        return Reading(_without_words(boxed, golds), "boxed")
    if is_bare(text):
        return _as_number_or_formula(peel(text))
    if any(same_words(peel(text), peel(gold)) for gold in golds):
        return Reading(peel(text), "text")
    if stated := _stated(text, golds):
        return stated
    if (sentence := _in_words(text, golds)) is not None:
        return Reading(sentence, "text")
    if piece := _last_piece(_end(text)) or _last_piece(text):
        return _as_number_or_formula(piece)
    labels = list(_LABEL.finditer(text))
    words = labels and _SENTENCE.match(text, labels[-1].end(), labels[-1].end() + END)
    return Reading(words[0].strip(" *_"), "text") if words else Reading(None, None)


def read_gold(gold: str) -> str:
    """Return the bare answer of a gold field.

    The answer is the text after GSM8K's `####`, or in the tags or last box of a worked solution, or else the whole field.
    Words around a single number or formula are dropped, except a unit of measure.
    """
    gold = gold.rpartition("####")[2]
    if len(gold) > MAX_LENGTH or "<answer>" in gold or _last_boxed(gold):
        return read_answer(gold).answer or peel(gold)
    return _without_words(gold, keep_unit=True) if has_words(gold) else peel(gold)


def check_gold(gold: str) -> str | None:
    """Return the reason why no answer can match a gold from `read_gold`, as the end of a sentence; None if one can match."""
    if not _holds_something(gold):
        return "which is empty when it is read"
    if gold in MISSING:
        return "which marks a missing value"
    if len(gold) > MAX_LENGTH:
        return f"which has {len(gold):,} characters when it is read; answers have at most {MAX_LENGTH:,}"
    if _TAG.search(gold):
        return "which holds a tag of the answer format"
    if "\\boxed" in gold:
        return "in which a box never ends"
    if "\n" in gold and "\\begin" not in gold:
        return "a text of several lines, in which neither `####` nor `\\boxed{}` marks the answer"
    is_prose = len(_WORD.findall(_NO_WORDS.sub(" ", gold))) >= PROSE and _NEW_SENTENCE.search(gold)
    return "a text of several sentences, in which neither `####` nor `\\boxed{}` marks the answer" if is_prose else None


def _holds_something(text: str) -> bool:
    """Report whether a text has more than delimiters, empty `\\text{}` and invisible characters."""
    text = TEXT.sub(r"\1", text.translate(INVISIBLE))
    return any(letter.isprintable() and letter not in " $?\\" for letter in text)


def extract_answer(text: str, golds: Sequence[str] = ()) -> str | None:
    """Return the peeled text between the last complete pair of answer tags, or None if there is no pair.

    Words that only state a number or formula are dropped, unless the text equals one of the `golds`. Only the last pair is
    read, so that a completion gains nothing by giving several answers or by mentioning the tags in its reasoning.
    """
    for piece in reversed(text.split("<answer>")[1:]):
        answer, closing, _ = piece.partition("</answer>")
        if closing:
            return _without_words(answer, golds)
    return None


def _without_words(answer: str, golds: Sequence[str] = (), *, keep_unit: bool = False) -> str:
    """Return the number or formula of a sentence that plainly states it, with its unit if a gold has one.

    Any other sentence is returned whole. With `keep_unit`, a unit of measure is always kept.
    """
    peeled = peel(answer)
    if len(peeled) > MAX_LENGTH or is_bare(peeled) or any(_spelt(peeled) == _spelt(peel(gold)) for gold in golds):
        return peeled
    pieces = list(_PIECES.finditer(peeled))
    if len({_content(piece) for piece in pieces}) != 1:
        return peeled
    ends = [0, *(piece.end() for piece in pieces)]
    if not all(states(peeled[end : piece.start()]) for end, piece in zip(ends, pieces, strict=False)):
        return peeled
    tail = peeled[ends[-1] :]
    value = peel(_content(pieces[0]))
    if keep_unit and not measured(value + tail.rstrip(" .!"))[1].isdisjoint(UNITS.values()):
        return value + tail.rstrip(" .!")
    return _with_unit(value, tail, golds) if follows(tail) else peeled


def _with_unit(value: str, tail: str, golds: Sequence[str]) -> str:
    return value + tail.rstrip(" .!") if any(measured(peel(gold))[1] for gold in golds) else value


def _spelt(text: str) -> str:
    return "".join(TEXT.sub(r"\1", text).split())


def outside_thoughts(text: str) -> str:
    """Return the text after the last `</think>`, up to an unclosed `<think>`."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def is_bare(text: str) -> bool:
    """Report whether a text is only an expression: one line without words."""
    text = text.strip()
    if len(text) > MAX_LENGTH or re.search(r"[\n#]", text) or not re.search(r"\w", text):
        return False
    words = _WORD.findall(_NO_WORDS.sub(" ", text))
    return all(command(word) or word in ("and", "or", "mod", "percent", "pct") for word in words)


def _stated(text: str, golds: Sequence[str]) -> Reading | None:
    """Read the last `Answer: …`, `#### …` or `answer is …` that has a value, unless later text retracts it."""
    taken_back = max((match.start() for match in _TAKEN_BACK.finditer(text)), default=-1)
    for label in reversed(list(_LABEL.finditer(text))[-LABELS:]):
        line = text[label.end() : label.end() + 200].lstrip().partition("\n")[0].strip(" \t*_")
        sentence = _SENTENCE.match(line)
        if taken_back >= label.end():
            return None
        if option := _OPTION.match(line):
            return Reading(option[0].rstrip(" .*_"), "text")
        if sentence and (reading := _value_in(sentence[0].strip(' *_"'), golds)):
            comma = not _ENGLISH.search(label[0]) and re.fullmatch(r"([+-]?\d+),(\d+)", reading.answer or "")
            return Reading(f"{comma[1]}.{comma[2]}", "number") if comma else reading
    return None


def _value_in(sentence: str, golds: Sequence[str]) -> Reading | None:
    """Read the value at the start of the text after a label, or the whole text if it states a gold in words."""
    value = _without_words(sentence, golds)
    if (choice := _CHOICE.match(value)) and (len(choice[0].strip("()")) > 1 or choice.end() == len(value)):
        return Reading(choice[0], "text")
    if any(said(sentence, gold) for gold in golds):
        return Reading(sentence, "text")
    if not is_bare(value) and (piece := _PIECES.match(value)):
        tail = _ASIDE.split(value[piece.end() :], maxsplit=1)[0]
        if not follows(tail):
            return None
        value = _with_unit(peel(_content(piece)), tail, golds)
    elif not is_bare(value) or "boxed" in value or not re.search(r"[\d\\^+*/=]", value):
        return None
    return _as_number_or_formula(value)


def _in_words(text: str, golds: Sequence[str]) -> str | None:
    """Return the whole text if it states a gold in words, or its last sentence if this sentence states one, otherwise None."""
    sentences = [text.strip(), *(_SENTENCE.findall(_end(text).strip())[-1:])]
    return next((sentence.strip() for sentence in sentences if any(said(sentence, peel(gold)) for gold in golds)), None)


def _as_number_or_formula(answer: str) -> Reading:
    if assigned := _ASSIGNMENT.fullmatch(answer):
        answer = assigned[1] or assigned[2]
    return Reading(answer, "number" if _PLAIN_NUMBER.fullmatch(answer) else "formula")


def _end(text: str) -> str:
    """Return the last complete lines of a long text, or the end of its last line if this line is too long."""
    end = text[-END:]
    return end if len(text) <= END else end.partition("\n")[2] or end


def _last_piece(text: str) -> str | None:
    """Return the last number or formula; if the formula ends a list of formulas, return the whole list."""
    pieces = list(_PIECES.finditer(text))
    if not pieces or pieces[-1]["number"]:
        return _content(pieces[-1]) if pieces else None
    formulas = reversed(list(takewhile(lambda piece: not piece["number"], reversed(pieces))))
    return ", ".join(peel(_content(formula)) for formula in _last_run(list(formulas)))


def _last_run(formulas: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """Return the last formula and those before it that a comma, `and` or `or` joins to it."""
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
    """Strip the wrapping of an answer: `\\boxed{}`, `$…$` and similar delimiters, outer white space, a final period.

    Prose around a box is dropped, unless it denies the box (`not \\boxed{42}`). Several boxes become a list.
    """
    if len(answer) > MAX_LENGTH:
        return answer.strip()
    while True:
        peeled = _undelimited(_END.sub("", _HEADING.sub("", _unboxed(answer).strip())).strip())
        if "\\begin" not in peeled:  # in a matrix, two backslashes end a row
            peeled = _ESCAPED_TWICE.sub(r"\\", peeled)
        if peeled == answer:
            return answer
        answer = peeled


def _unboxed(text: str) -> str:
    """Return the content of a text's boxes, or the whole text if it has no box or denies its boxes."""
    boxes, around = _boxed(text), text
    for start, end, _ in reversed(boxes):
        around = around[:start] + around[end:]
    return text if not boxes or _DENIAL.search(around) else ", ".join(content for _, _, content in boxes)


def _last_boxed(text: str) -> str | None:
    """Return the content of the last box; boxes in the same formula, or joined by a comma, `and` or `or`, form a list."""
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
    """Find the outermost complete `\\boxed{…}` by counting unescaped braces: start, end and content of each."""
    boxes: list[tuple[int, int, str]] = []
    open_braces: list[re.Match[str]] = []
    for mark in _MARKS.finditer(text):
        if mark["token"]:
            boxes.append((mark.start(), mark.end(), mark["token"]))
        elif mark[0] == "{" or mark["box"]:
            open_braces.append(mark)
        elif mark[0] == "}" and open_braces and (opening := open_braces.pop())["box"]:
            while boxes and boxes[-1][0] > opening.start():
                boxes.pop()  # nested in this box
            boxes.append((opening.start(), mark.end(), text[opening.end() : mark.start()]))
    return boxes


def _undelimited(text: str) -> str:
    """Strip one pair of delimiters around the whole text: `$x$` becomes `x`, `$x$ or $y$` is not changed."""
    for left, right in _DELIMITERS:
        inner = text.removeprefix(left).removesuffix(right)
        if f"{left}{inner}{right}" == text and left not in inner and right not in inner:
            return inner
    return text
