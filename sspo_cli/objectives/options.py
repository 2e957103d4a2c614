"""Validation and defaults of a method's options."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from sspo_cli.errors import UserError, did_you_mean
from sspo_cli.objectives.gates import BY_SIGN, GATES, OPTIONS, Gate, check_values
from sspo_cli.objectives.methods import DEFAULT_METHOD, METHODS
from sspo_cli.objectives.normalizers import NORMALIZERS
from sspo_cli.objectives.own_method import OwnMethod
from sspo_cli.plugins import load_function

P = ParamSpec("P")
R = TypeVar("R")
OWN_NORMALIZER = "sequence"  # default normalizer of a user-defined method


def takes_options(function: Callable[P, R]) -> Callable[P, R]:
    """Replace `**options` in a function's signature by the keywords in OPTIONS.

    The placeholder `OPTIONS` in its docstring is replaced by their descriptions.
    """
    signature = inspect.signature(function)
    *named, _options = signature.parameters.values()
    keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in OPTIONS]
    signature = signature.replace(parameters=[*named, *keywords])

    @wraps(function)
    def checked(*args: P.args, **given: P.kwargs) -> R:
        signature.bind(*args, **given)  # raises TypeError for a keyword that does not exist
        return function(*args, **given)

    descriptions = "\n    ".join(f"{name:14}  {option.description}" for name, option in OPTIONS.items())
    checked.__doc__ = (function.__doc__ or "").replace("OPTIONS", descriptions)
    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked


@takes_options
def resolve_options(
    *,
    method: Any = None,
    gate: Any = None,
    normalizer: Any = None,
    allow_any_gate: Any = None,
    allow_any_method: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Return the method, its gate, its normalizer and all their options; missing and None options get their defaults.

    OPTIONS

    The function is idempotent. Values of a wrong type are returned unchanged, because the later validation of the config
    reports them in better messages.

    Raises UserError for an unknown method, gate or normalizer, for a gate that cannot be imported or does not belong to the
    method, for an option that neither the method nor the gate has, and for a number out of range.
    """
    method = DEFAULT_METHOD if method is None else method
    given = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    flags = {"allow_any_gate": allow_any_gate, "allow_any_method": allow_any_method}
    extra = {name: flag for name, flag in flags.items() if flag is not None}
    if normalizer is not None and normalizer not in NORMALIZERS:
        raise UserError(f"unknown normalizer {normalizer!r}{did_you_mean(normalizer, NORMALIZERS)}")
    if not isinstance(method, str) or method not in METHODS:
        load_method(method)
        if refused := [name for name, value in {"gate": gate, **given}.items() if value is not None]:
            raise UserError(f"method {function_name(method)} is your own function and has no option {refused[0]}")
        return {"method": method, "gate": None, "normalizer": normalizer or OWN_NORMALIZER, **extra}
    gate = _choose_gate(method, gate)
    names = _option_names(method, load_gate(gate))
    if refused := [name for name in given if name not in names]:
        of_gate = "" if len(METHODS[method].gates) == 1 else f" with gate {function_name(gate)}"
        has = f"its options are {', '.join(names)}" if names else "it has no options"
        raise UserError(f"method {method}{of_gate} has no option {refused[0]}; {has}")
    defaults = {name: OPTIONS[name].default(METHODS[method].aggregation, gate, given) for name in names}
    resolved = {**defaults, **given}
    check_values(resolved)
    return {"method": method, "gate": gate, "normalizer": normalizer or METHODS[method].normalizer, **resolved, **extra}


def load_method(method: str | OwnMethod) -> OwnMethod:
    """Import a user-defined method by `module:function`; return a callable unchanged.

    Raises UserError for an unknown method and for a module or function that does not exist.
    """
    if callable(method):
        return method
    if not isinstance(method, str) or ":" not in method:
        raise UserError(f"unknown method {method!r}{did_you_mean(method, [*METHODS, 'module:function'])}")
    return load_function("method", method, {})


def load_gate(gate: str | Gate) -> Gate:
    """Find a gate by its name or by `module:function`; return a callable unchanged.

    Raises UserError if there is no such gate, module or function.
    """
    return gate if callable(gate) else load_function("gate", gate, GATES)


def gate_parameters(gate: Gate) -> list[str]:
    """List the parameters of a gate after the log ratio: tau, positive, or names of options.

    Raises UserError for any other parameter without a default, and for a callable without a signature.
    """
    try:
        _, *parameters = inspect.signature(gate).parameters.values()
    except ValueError:
        raise UserError(
            f"gate {function_name(gate)} must be a Python function of the log ratio; wrap it in one"
        ) from None
    signed = {name for pair in BY_SIGN.values() for name in pair}
    known = (*BY_SIGN, "positive", *(name for name in OPTIONS if name not in signed))
    for parameter in parameters:
        if parameter.name not in known and parameter.default is parameter.empty:
            raise UserError(
                f"gate {function_name(gate)} has the unknown parameter {parameter.name}; after the log ratio a "
                f"gate may have the parameters {', '.join(known)}, and others only with a default"
            )
    return [parameter.name for parameter in parameters if parameter.name in known]


def function_name(function: str | Callable[..., Any]) -> str:
    """Return the name of a gate or a method, for messages."""
    return function if isinstance(function, str) else getattr(function, "__name__", repr(function))


def _choose_gate(method: str, gate: str | Gate | None) -> str | Gate:
    aggregation, gates, default, _ = METHODS[method]
    gate = default if gate is None else gate
    if gate is None:
        raise UserError(
            f"method {method} needs a gate; choose from {', '.join(gates)}, or pass your own module:function"
        )
    function = load_gate(gate)  # first, so that a misspelt name is reported as such
    gate = next((name for name, built_in in GATES.items() if built_in is function), gate)
    if gate in gates or (gate not in GATES and len(gates) > 1):
        return gate
    takes = f"has the gate {gates[0]}" if len(gates) == 1 else f"accepts the gates {', '.join(gates)} or your own"
    same_cell = (name for name, row in METHODS.items() if row.aggregation is aggregation and gate in row.gates)
    raise UserError(
        f"method {method} {takes}, not {function_name(gate)}; "
        f"the {aggregation.__name__} aggregation of {function_name(gate)} is method {next(same_cell, aggregation.__name__)}"
    )


def _option_names(method: str, gate: Gate) -> list[str]:
    parameters = gate_parameters(gate)
    names = {name for parameter in parameters for name in BY_SIGN.get(parameter, (parameter,))}
    return [name for name, option in OPTIONS.items() if name in names and method not in option.absent_from]
