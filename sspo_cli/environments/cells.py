"""A Python session of numbered cells. Like IPython, with which CodeActInstruct was recorded, it shows values and errors.

The session and the programs that it runs share a confined process, so its output is untrusted text.
"""

import ast
import linecache
import pprint
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

WIDTH = 75  # characters of the line above an error and of the error's title
CONTEXT = 2  # statements shown before and after the failing statement
LONGEST_STATEMENT = 6  # lines; for a longer statement, only the first three and the last two are shown
HIDDEN = {__file__, str(Path(__file__).with_name("interpreter.py"))}  # files whose frames are left out of errors
FRAMES = 4  # frames of the program shown in an error


class TimeoutError(BaseException):
    """Raised in the program at its deadline. Not a subclass of Exception, so that `except Exception` does not catch it."""

    __module__ = "builtins"  # so that tracebacks show the name without a module


class Session:
    """The variables of a session and the number of its last cell."""

    def __init__(self) -> None:
        self._number = 0
        self._module = types.ModuleType("__main__")
        sys.modules["__main__"] = self._module

    def set_up(self, code: str) -> None:
        """Run code without counting it as a cell. Exceptions are not caught."""
        exec(compile(code, "<setup>", "exec"), self._module.__dict__)

    def run(self, code: str) -> None:
        """Run a cell, and print `Out[n]: …` with the value of its last expression, or the traceback of its exception.

        Exceptions of the cell are not raised.
        """
        self._number += 1
        name = f"<cell {self._number}>"
        lines = code.splitlines(keepends=True)
        linecache.cache[name] = (len(code), None, lines, name)  # for tracebacks and inspect.getsource
        try:
            self._execute(ast.parse(code, name), code.rstrip().endswith(";"))
        except SystemExit as error:  # the session continues, as IPython's does
            print(f"SystemExit: {error}")
        except BaseException as error:
            print("\n".join(_described(error)))

    def _execute(self, tree: ast.Module, silent: bool) -> None:
        namespace = self._module.__dict__
        name = f"<cell {self._number}>"
        last = tree.body[-1] if tree.body else None
        if not isinstance(last, ast.Expr) or silent:
            exec(compile(tree, name, "exec"), namespace)
            return
        exec(compile(ast.Module(tree.body[:-1], []), name, "exec"), namespace)
        value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
        if value is not None:
            namespace["_"] = value
            text = _repr(value)
            print(f"Out[{self._number}]: " + ("\n" if "\n" in text else "") + text)


def _repr(value: object) -> str:
    """Return the repr of a value, with one element per line for a container that is wider than a line."""
    if isinstance(value, list | tuple | dict | set | frozenset):
        return pprint.pformat(value, width=79, sort_dicts=False)
    return repr(value)


def _described(error: BaseException, with_earlier: bool = True) -> Iterator[str]:
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and with_earlier:
        yield from _described(earlier, with_earlier=False)
        yield (
            "\nThe above exception was the direct cause of the following exception:\n"
            if error.__cause__
            else ("\nDuring handling of the above exception, another exception occurred:\n")
        )
    if isinstance(error, SyntaxError):
        for line in traceback.format_exception_only(error):
            yield line.rstrip("\n").replace('File "<cell ', "Cell In[").replace('>", line', "], line")
        return
    kind = type(error).__name__
    yield "-" * WIDTH
    yield kind + "Traceback (most recent call last)".rjust(WIDTH - len(kind))
    frames = [place for place in traceback.walk_tb(error.__traceback__) if place[0].f_code.co_filename not in HIDDEN]
    own = [(frame, number) for frame, number in frames if frame.f_code.co_filename.startswith("<cell ")]
    for frame, number in own if len(own) <= FRAMES else own[: FRAMES // 2]:
        yield from _place(frame, number)
    if len(own) > FRAMES:
        yield f"    [... {len(own) - FRAMES} frames are left out ...]\n"
        for frame, number in own[-FRAMES // 2 :]:
            yield from _place(frame, number)
    if frames and frames[-1] not in own:  # the library's frame that raised; the frames between are left out
        yield from _place(*frames[-1])
    message = str(error)
    yield f"{kind}: {message}" if message else kind


def _place(frame: types.FrameType, number: int) -> Iterator[str]:
    """Yield the failing line, marked, and the statements around it."""
    name, function = frame.f_code.co_filename, frame.f_code.co_qualname
    if name.startswith("<cell "):
        place = f"Cell In[{name[6:-1]}], line {number}"
        yield place if function == "<module>" else f"{place}, in {function}"
    else:
        yield f"File {_within_library(name)}:{number}, in {function}"
    lines = linecache.getlines(name)
    pieces = _pieces(lines)
    here = next((i for i, piece in enumerate(pieces) if number in piece), None)
    if here is not None:
        for piece in pieces[max(0, here - CONTEXT) : here + CONTEXT + 1]:
            shown: list[int | None] = list(piece)
            if len(shown) > LONGEST_STATEMENT:
                shown[3:-2] = [None]
            for line in shown:
                if line is None:
                    yield "   (...)"
                else:
                    mark = f"----> {line} " if line == number else f"{line:>7} "
                    yield (mark[-8:] if line < 100 else mark) + lines[line - 1].rstrip("\n")
    yield ""


def _within_library(path: str) -> str:
    """Return a module's path relative to the folder of installed packages, so that it is the same on all machines."""
    for folder in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("stdlib")):
        path = path.removeprefix(folder + "/")
    return path


def _pieces(lines: list[str]) -> list[range]:
    """Return the line numbers of each statement and comment; for a compound statement, only the lines of its header."""
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError, RecursionError):
        return []
    pieces = []
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt | ast.ExceptHandler):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno or node.lineno
            pieces.append(range(node.lineno, max(end, node.lineno) + 1))
    covered = {line for piece in pieces for line in piece}
    pieces += [range(n, n + 1) for n, line in enumerate(lines, start=1) if n not in covered and line.strip()]
    return sorted({piece.start: piece for piece in pieces}.values(), key=lambda piece: piece.start)
