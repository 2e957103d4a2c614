"""Plain English in the package: docstrings begin with a verb or a noun, and no text uses the phrases to avoid."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "sspo_cli"
PENDING = {"session.py", "tracking/run_folder.py", "tracking/tracker.py"}  # not revised yet; add none
FRAGMENTS = re.compile(
    r"(What|How|Whether|Those|That|Which|Where|Who|When|Why|Of|By|From|As|With|Without|For|To|In|On|At|Not|It|Its|They|This|These)\b"
)
PHRASES = re.compile(
    r"\b(anew|beside|but for|goes? on|(?<!soon )as it is|as they are|of its own|of one's own|of the user's own|is told"
    r"|are told|tells|one after the other|nothing but|and so for|whatever it|whoever|of every class"
    r"|(?<=Raises UserError )where)\b"
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def problems(file: Path) -> Iterator[str]:
    """Yield the fragments and phrases of a file; a comment is read together with the one on the line before."""
    source = file.read_text(encoding="utf-8")
    texts = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            texts.append((node.lineno, " ".join(node.value.split())))
        elif isinstance(node, DOCUMENTED) and (match := FRAGMENTS.match(ast.get_docstring(node) or "")):
            yield f"{file.relative_to(PACKAGE)}:{node.body[0].lineno} begins with {match[0]!r}"
    before, last = "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comment, line = token.string.strip("# "), token.start[0]
            texts.append((line, f"{before} {comment}" if last == line - 1 else comment))
            before, last = comment, line
    for line, text in texts:
        yield from (f"{file.relative_to(PACKAGE)}:{line} has {match[0]!r}" for match in PHRASES.finditer(text))


def test_the_package_is_in_plain_english():
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if str(file.relative_to(PACKAGE)) not in PENDING]
    assert [problem for file in files for problem in problems(file)] == []


def test_the_rules_match_whole_words_only():
    assert FRAGMENTS.match("Whether it is so.")
    assert not FRAGMENTS.match("Whatever it is.")
    assert PHRASES.search("the run goes on")
    assert not PHRASES.search("besides, a storyteller")
