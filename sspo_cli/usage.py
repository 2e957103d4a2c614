"""One-sentence messages for mistakes on the command line, instead of the parser's box."""

import difflib
import re
from typing import Any

import typer

from sspo_cli.errors import UserError, command_line, did_you_mean, shorten

# The parser's own class (click's, or typer's copy of it), of which typer exports this one subclass.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
LONGEST_VALUE = 120  # maximum number of characters of a value in a message
SURELY_MEANT, PERHAPS_MEANT = 0.8, 0.65  # similarity of two names, without their dashes


def explain_usage(error: Any) -> UserError:
    """Turn a usage error into a UserError with the problem, the probably intended option or command, and a pointer to --help."""
    kind, context = type(error).__name__, error.ctx
    message = error.format_message().strip().removesuffix(".")
    path = context.command_path.split() if context else []
    command, help_ = command_line(*path), f"; see {command_line(*path, '--help')}" if context else ""
    if kind == "NoSuchOption":
        return UserError(
            f"{command} has no option {error.option_name}{_meant_option(error.option_name, context) or help_}"
        )
    if named := re.match(r"No such command '(.*?)'", message):
        return UserError(f"there is no command {named[1]}{did_you_mean(named[1], context.command.commands)}")
    if kind == "MissingParameter":
        name = " / ".join(error.param.opts) if error.param.param_type_name == "option" else error.param.display_name_raw
        return UserError(f"{command} needs {name}: {_clause(error.param.help)}{help_}")
    if kind == "BadParameter":
        return UserError(f"{_given(error)} is not valid: {_clause(error.message.removeprefix('Value error, '))}{help_}")
    if extra := re.match(r"Got unexpected extra argument\S* \((.*)\)", message):
        given = shorten(extra[1], LONGEST_VALUE) or "''"
        return UserError(f"{command} takes no argument `{given}`{_meant_flag(extra[1]) or help_}")
    return UserError(f"{_clause(message)}{help_}")


def _given(error: Any) -> str:
    """Return the option and its value."""
    option = max(error.param.opts, key=len) if error.param else "a value"
    failed: list[Any] = getattr(error.__cause__, "errors", list)()  # from pydantic, which converts the values
    return f"`{option} {shorten(str(failed[0]['input']), LONGEST_VALUE)}`" if failed else option


def _meant_option(name: str, context: Any) -> str | None:
    """Return the end of a sentence that names a similar option of the command, or the run option with this name."""
    if not name.startswith("--"):
        return None
    given = name.removeprefix("--")[:LONGEST_VALUE]
    opts = [option for parameter in context.command.params for option in parameter.opts]
    known = [option.removeprefix("--") for option in opts if option.startswith("--")]
    begun = [option for option in known if len(given) > 2 and option.startswith(given)]
    near = begun or difflib.get_close_matches(given, known, n=1, cutoff=PERHAPS_MEANT)
    surely = bool(near) and difflib.SequenceMatcher(None, given, near[0]).ratio() >= SURELY_MEANT
    if not surely and "set" in known:
        from sspo_cli.config import RunOptions, option_named  # imports torch

        if option := option_named(given.replace("-", "_"), RunOptions):
            return f"; it is an option of a run: write -s {option}=VALUE"
    return f"; did you mean --{near[0]}?" if near else None


def _meant_flag(extra: str) -> str | None:
    """Return the end of a sentence that names the flag which belongs before an argument."""
    first = extra.split()[0] if extra.split() else ""
    if re.fullmatch(r"[a-z_.]+=.*", first):
        return f"; did you mean -s {first}?"
    return f"; did you mean -c {first}?" if first.endswith((".yaml", ".yml", ".json")) else None


def _clause(sentence: str) -> str:
    """Convert a sentence to a clause."""
    return f"{sentence[:1].lower()}{sentence[1:]}".removesuffix(".")
