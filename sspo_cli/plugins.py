"""Functions that a user specifies: a built-in function by its name, or a user-defined function as `module:function`."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from sspo_cli.errors import UserError, did_you_mean


def load_function(kind: str, name: object, built_in: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Return the built-in function of this name, or import `module:function`.

    kind  kind of the function for messages, such as "gate"

    The module is searched in the current directory first. Raises UserError if there is no such built-in, module or function,
    or if the module cannot be imported.
    """
    text = str(name)  # a config may hold anything
    if text in built_in:
        return built_in[text]
    module_name, _, function_name = text.partition(":")
    if not (module_name and function_name):
        raise UserError(f"unknown {kind} {name!r}{did_you_mean(name, [*built_in, 'module:function'])}")
    current_directory = os.getcwd()
    sys.path.insert(0, current_directory)  # a console script does not search there by default
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise UserError(f"{kind} {name} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(current_directory)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{kind} {name}: {module.__file__} has no function {function_name}")
    return function
