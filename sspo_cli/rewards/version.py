"""The version of the answer check: a fingerprint of its code and its libraries."""

import ast
import json
from functools import cache
from importlib import metadata, resources
from typing import Any

import xxhash

LIBRARIES = ("math-verify", "latex2sympy2_extended", "sympy")
WITHOUT_EFFECT = ("pool.py", "version.py")  # modules that do not affect a verdict
DIGITS = 12


@cache
def checker_version() -> str:
    """Return a fingerprint that changes with any code that reads or checks answers.

    It hashes the modules' syntax trees and the libraries' versions; comments, docstrings and layout are ignored.
    """
    modules = sorted(resources.files("sspo_cli.rewards").iterdir(), key=lambda file: file.name)
    code = [
        [file.name, _tree(ast.parse(file.read_text(encoding="utf-8")))]
        for file in modules
        if file.name.endswith(".py") and file.name not in WITHOUT_EFFECT
    ]
    versions = [metadata.version(name) for name in LIBRARIES]
    return xxhash.xxh3_64_hexdigest(json.dumps([code, versions]).encode())[:DIGITS]


def _tree(node: Any) -> Any:
    """Return a syntax tree as nested lists without docstrings and empty fields; it is the same in all versions of Python."""
    if isinstance(node, list):
        return [_tree(item) for item in node if not _is_text(item)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [[name, _tree(value)] for name, value in ast.iter_fields(node) if value not in (None, [])]
    return [type(node).__name__, *fields]


def _is_text(node: Any) -> bool:
    """Report whether a node is a statement that is only a string, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
