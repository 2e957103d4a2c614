"""`sspo` as a user types it, run in this process, because starting Python and torch would take most of the time."""

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

from sspo_cli.cli import main


@dataclass
class Outcome:
    returncode: int
    stdout: str
    stderr: str


def sspo(*arguments: object, **options: object) -> Outcome:
    """Run `sspo` with `arguments`; `options` become `-s key=value`, with `__` for the dots."""
    sets = [part for key, value in options.items() for part in ("-s", f"{key.replace('__', '.')}={value}")]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["sspo", *map(str, arguments), *sets]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def assert_error(done: Outcome, said: str) -> None:
    """Check for exit code 1 and one sentence on standard error, without a traceback."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("sspo: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert said in done.stderr, done.stderr
    assert "Traceback" not in done.stdout
