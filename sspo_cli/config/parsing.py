"""A subset of YAML 1.2 for options: text keys, lists, text, numbers, true, false and null.

Everything else that YAML can express (dates, sets, tags, recursive or exploding aliases) is refused before any value is built,
with the line number in the message.
"""

import os
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from sspo_cli.errors import LONGEST_PATH, UserError, reason, shorten

TEXT_FILES = (".txt", ".md", ".jinja", ".j2")
LARGEST_FILE = 1_000_000  # bytes
MOST_VALUES = 100_000  # after expanding aliases
DEEPEST = 30  # levels of lists and sections; the options have six
LONGEST_NUMBER = 100  # characters
NOT_NULL = ("None", "nil", "undefined")  # null in other languages
NOT_TEXT = re.compile("[\0\ud800-\udfff]")

TAG = "tag:yaml.org,2002:"
TEXT, MERGE, NUMBERS = f"{TAG}str", f"{TAG}merge", (f"{TAG}int", f"{TAG}float")
PLAIN = (TEXT, *NUMBERS, f"{TAG}null", f"{TAG}bool", f"{TAG}seq", f"{TAG}map")
NAMES = {"timestamp": "a date", "set": "a set", "binary": "binary data", "omap": "an ordered mapping"}


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a config file. Raises UserError if it is missing, malformed or too large, or if it is not a mapping."""
    name = f"config file {file}"
    values = parse_yaml(read_text(file, name), name)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{name} must hold options as `key: value` lines, not a {type(values).__name__}")
    return values


def read_text(file: Path, name: str) -> str:
    """Read a text file. Raises UserError if it cannot be read or is too large; the message begins with `name`."""
    try:
        with file.open("rb") as stream:  # with a limit, because it may be a pipe or a device
            content = stream.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{name} is larger than {LARGEST_FILE:,} bytes, so it is probably not a config file")
        return content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text") from None
    except ValueError as error:  # a null byte in the name
        raise UserError(f"{name} cannot be read: {error}") from None


def text_or_file(text: str, name: str) -> str:
    """Return `text`, or if it is a file name, the content of this file without the final newline.

    A single line is a file name if it ends like one of `TEXT_FILES` or if the file exists. Raises UserError if the file cannot
    be read; the message begins with `name`.
    """
    if "\n" in text or len(text) > LONGEST_PATH:
        return text
    path = os.path.expanduser(text)
    if not text.endswith(TEXT_FILES) and not os.path.isfile(path):
        return text
    content = read_text(Path(path), name).rstrip("\n")
    if "\n" not in content and content.endswith(TEXT_FILES):  # the recorded text would be read as a file name on resume
        raise UserError(
            f"{name}: the only line of the file looks like a file name, {shorten(content, 80)}; give that file instead"
        )
    return content


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML 1.2, in which `1e-6` is a number; return None for an empty text.

    Raises UserError for invalid YAML and for values that no option can have; the message begins with `name` and the line.
    """
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        if node is None:
            return None
        _check(node, {}, 1)
        return YAML(typ="safe", pure=True).load(text)
    except _Refused as error:
        raise UserError(f"{name}{_place(text, error.line)}: {error}") from None
    except YAMLError as error:
        marked = error if isinstance(error, MarkedYAMLError) else None
        where = _place(text, marked.problem_mark.line + 1) if marked and marked.problem_mark else ""
        raise UserError(f"{name}{where} is not valid YAML: {marked.problem if marked else error}") from None
    except RecursionError:
        raise UserError(f"{name} is nested more than {DEEPEST} levels deep") from None
    except Exception as error:  # from the parser, for numbers and tags that it cannot convert
        raise UserError(f"{name} is not valid YAML: {reason(error)}") from None


def _place(text: str, line: int) -> str:
    return f", line {line}" if "\n" in text else ""


class _Refused(Exception):
    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1


def _check(node: Node, known: dict[int, tuple[int, int] | None], depth: int) -> tuple[int, int]:
    """Return the number of values that a node expands to, and its number of levels.

    known  results by node id; None while a node is being checked, which reveals recursion

    Raises _Refused for a node that no option can have.
    """
    if id(node) in known:
        result = known[id(node)]
        if result is None:
            raise _Refused(node, "an alias refers to a value that contains it")
        return result
    known[id(node)] = None
    _check_scalar(node)
    children: list[Node] = [] if isinstance(node, ScalarNode) else node.value
    if isinstance(node, MappingNode):
        for key, _ in node.value:
            if key.tag not in (TEXT, MERGE):
                raise _Refused(key, f"{_describe(key)} is not the name of an option; quote it to make it text")
            _check_scalar(key)
        children = [value for _, value in node.value]
    if depth > DEEPEST:
        raise _Refused(node, f"more than {DEEPEST} levels of lists and sections")
    results = [_check(child, known, depth + 1) for child in children]
    size = 1 + sum(values for values, _ in results)
    height = 1 + max((levels for _, levels in results), default=0)
    if size > MOST_VALUES:
        raise _Refused(node, f"more than {MOST_VALUES:,} values after expanding aliases")
    if height > DEEPEST:
        raise _Refused(node, f"more than {DEEPEST} levels of lists and sections after expanding aliases")
    known[id(node)] = size, height
    return size, height


def _check_scalar(node: Node) -> None:
    if node.tag not in PLAIN and node.tag != MERGE:
        raise _Refused(node, f"{_describe(node)} is not a value of an option; quote it to make it text")
    if isinstance(node, ScalarNode):
        if node.tag == TEXT and node.value in NOT_NULL and not node.style:
            raise _Refused(node, f"{node.value} is text in YAML; write null for no value, or quote it for text")
        if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
            raise _Refused(node, f"a number of {len(node.value):,} characters")
        if NOT_TEXT.search(node.value):
            raise _Refused(node, "a text with a null character or a lone surrogate")


def _describe(node: Node) -> str:
    kind = str(node.tag).removeprefix(TAG)
    if isinstance(node, ScalarNode):
        name = NAMES.get(kind) or ("" if node.tag in PLAIN else f"a value tagged {kind}")
        return f"{name} ({shorten(node.value, 40)})" if name else shorten(node.value, 40) or "null"
    return NAMES.get(kind) or (f"a {'list' if kind == 'seq' else 'section'}" if node.tag in PLAIN else f"a {kind}")
