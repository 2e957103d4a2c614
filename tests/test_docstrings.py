"""Plain English: docstrings of the package begin with a verb or a noun, and no text uses the phrases to avoid."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "sspo_cli", ROOT / "tests"
FRAGMENTS = re.compile(
    r"(What|How|Whether|Those|That|Which|Where|Who|When|Why|Of|By|From|As|With|Without|For|To|In|On|At|Not|It|Its|They|This|These)\b"
)
PHRASES = re.compile(
    r"\b(anew|beside|but for|goes? on|(?<!soon )as it is|(?<!soon )as they are|of its own|of one's own|of the user's own|is told"
    r"|are told|tells|one after the other|nothing but|and so for|whatever it|whoever|of every class"
    r"|(?<=Raises UserError )where)\b"
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
QUOTES_THEM = {TESTS / "test_docstrings.py", ROOT / "CONTRIBUTING.md"}
PAGES = ("*.md", "Makefile", "docs/*.md", "examples/*.py", "sspo_cli/configs/**/*.yaml", "sspo_cli/report/*.j*")


def texts_of_code(file: Path, strings: bool) -> Iterator[tuple[int, str]]:
    """Yield the docstrings, comments and names of tests with their lines; `strings` adds all texts of several words.

    A comment is read together with the one on the line before.
    """
    source = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if strings and isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, " ".join(node.value.split())
        elif isinstance(node, DOCUMENTED):
            name = "" if isinstance(node, ast.Module) else node.name.replace("_", " ")
            yield node.body[0].lineno, f"{name}: {' '.join((ast.get_docstring(node) or '').split())}"
    before, last = "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comment, line = token.string.strip("# "), token.start[0]
            yield line, f"{before} {comment}" if last == line - 1 else comment
            before, last = comment, line


def fragments(file: Path) -> Iterator[str]:
    """Yield the docstrings that begin with a fragment."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, DOCUMENTED) and (match := FRAGMENTS.match(ast.get_docstring(node) or "")):
            yield f"{file.relative_to(ROOT)}:{node.body[0].lineno} begins with {match[0]!r}"


def phrases(file: Path, texts: Iterator[tuple[int, str]]) -> list[str]:
    """Return the phrases to avoid in the texts of a file."""
    return [
        f"{file.relative_to(ROOT)}:{line} has {match[0]!r}" for line, text in texts for match in PHRASES.finditer(text)
    ]


def test_the_package_is_in_plain_english():
    files = sorted(PACKAGE.rglob("*.py"))
    assert [found for file in files for found in fragments(file)] == []
    assert [found for file in files for found in phrases(file, texts_of_code(file, strings=True))] == []


def test_tests_and_pages_are_in_plain_english():
    tests = {*TESTS.rglob("*.py")} - QUOTES_THEM
    assert [found for file in sorted(tests) for found in phrases(file, texts_of_code(file, strings=False))] == []
    pages = {page for pattern in PAGES for page in ROOT.glob(pattern)} - QUOTES_THEM
    lines = {page: enumerate(page.read_text(encoding="utf-8").splitlines(), 1) for page in sorted(pages)}
    assert len(lines) > 30
    assert [found for page, numbered in lines.items() for found in phrases(page, numbered)] == []


def test_the_rules_match_whole_words_only():
    assert FRAGMENTS.match("Whether it is so.")
    assert not FRAGMENTS.match("Whatever it is.")
    assert PHRASES.search("the run goes on")
    assert not PHRASES.search("besides, a storyteller")
