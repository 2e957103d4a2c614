"""What may be given for a method, what is filled in, and what is refused."""

import importlib
import inspect
import math
import os
import sys
from numbers import Real
from typing import Any

from sspo_cli.errors import UserError, did_you_mean
from sspo_cli.objectives.aggregations import Aggregation, sequence
from sspo_cli.objectives.gates import GATES, Gate
from sspo_cli.objectives.methods import METHODS

OPTIONS = ("tau_neg", "tau_pos", "eps_low", "eps_high", "clip_space")


def resolve_options(
    *,
    method: Any = None,
    gate: Any = None,
    tau_neg: Any = None,
    tau_pos: Any = None,
    eps_low: Any = None,
    eps_high: Any = None,
    clip_space: Any = None,
    allow_any_gate: Any = None,
) -> dict[str, Any]:
    """The method, its gate and every option that they have, with defaults for those that are None.

    Idempotent. Numbers of a wrong type are passed on as they are: this runs before the validation of a config, which
    says better what is wrong with them.

    Raises UserError for an unknown method or gate, a gate that cannot be imported or that the method does not take, an
    option that the two do not have, and a number out of range.
    """
    method = "sspo" if method is None else method
    values = (tau_neg, tau_pos, eps_low, eps_high, clip_space)
    given = {name: value for name, value in zip(OPTIONS, values, strict=True) if value is not None}
    extra = {} if allow_any_gate is None else {"allow_any_gate": allow_any_gate}
    gate = _choose_gate(method, gate)
    names = _option_names(method, load_gate(gate))
    if refused := [name for name in given if name not in names]:
        of_gate = "" if len(METHODS[method].gates) == 1 else f" with gate {gate_name(gate)}"
        has = f"its options are {', '.join(names)}" if names else "it has no options"
        raise UserError(f"method {method}{of_gate} has no option {refused[0]}; {has}")
    defaults = _defaults(METHODS[method].aggregation, gate, clip_space)
    resolved = {name: given.get(name, defaults[name]) for name in names}
    _check_ranges(resolved)
    return {"method": method, "gate": gate, **resolved, **extra}


def load_gate(gate: str | Gate) -> Gate:
    """A gate by its name, by `module:function` (looked for in the current directory first), or the callable itself.

    Raises UserError where there is no such gate, module or function.
    """
    if callable(gate):
        return gate
    if str(gate) in GATES:
        return GATES[gate]
    module_name, _, function_name = str(gate).partition(":")
    if not (module_name and function_name):
        raise UserError(f"unknown gate {gate!r}{did_you_mean(gate, [*GATES, 'module:function'])}")
    here = os.getcwd()
    sys.path.insert(0, here)  # a console script does not look there by itself
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise UserError(f"gate {gate} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"gate {gate}: {module.__file__} has no function {function_name}")
    return function


def gate_parameters(gate: Gate) -> list[str]:
    """What a gate wants beside the log ratio: some of tau, positive and the options by name.

    Raises UserError for a parameter that nothing here can give, and for a callable without a signature.
    """
    try:
        _, *parameters = inspect.signature(gate).parameters.values()
    except ValueError:
        raise UserError(f"gate {gate_name(gate)} must be a Python function of the log ratio; wrap it in one") from None
    known = ("tau", "positive", "eps_low", "eps_high", "clip_space")
    for parameter in parameters:
        if parameter.name not in known and parameter.default is parameter.empty:
            raise UserError(
                f"gate {gate_name(gate)} wants {parameter.name}; after the log ratio a gate may have the parameters "
                f"{', '.join(known)}, and others only with a default"
            )
    return [parameter.name for parameter in parameters if parameter.name in known]


def gate_name(gate: str | Gate) -> str:
    return gate if isinstance(gate, str) else getattr(gate, "__name__", repr(gate))


def _choose_gate(method: str, gate: str | Gate | None) -> str | Gate:
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(f"unknown method {method!r}{did_you_mean(method, METHODS)}")
    aggregation, gates, default = METHODS[method]
    gate = default if gate is None else gate
    if gate is None:
        raise UserError(
            f"method {method} needs a gate; choose from {', '.join(gates)}, or give your own module:function"
        )
    function = load_gate(gate)  # first of all: a misspelt name is not of any method
    gate = next((name for name, built_in in GATES.items() if built_in is function), gate)
    if gate in gates or (gate not in GATES and len(gates) > 1):
        return gate
    takes = f"has the gate {gates[0]}" if len(gates) == 1 else f"takes the gates {', '.join(gates)} or your own"
    same_cell = (name for name, row in METHODS.items() if row.aggregation is aggregation and gate in row.gates)
    raise UserError(
        f"method {method} {takes}, not {gate_name(gate)}; "
        f"the {aggregation.__name__} aggregation of {gate_name(gate)} is method {next(same_cell, aggregation.__name__)}"
    )


def _option_names(method: str, gate: Gate) -> list[str]:
    names: list[str] = []
    for parameter in gate_parameters(gate):
        names += ["tau_neg", "tau_pos"] if parameter == "tau" else [parameter]
    # GRPO and GSPO clip the ratio; only of GMPO two readings are about.
    return [name for name in OPTIONS if name in names and not (name == "clip_space" and method in ("grpo", "gspo"))]


def _defaults(aggregation: Aggregation, gate: str | Gate, clip_space: Any) -> dict[str, Any]:
    """Of a cell, so that a free cell starts where the method of the same cell does."""
    if aggregation is sequence:
        eps = {"eps_low": 3e-4, "eps_high": 4e-4}  # of GSPO's authors
    elif clip_space == "log":
        eps = {"eps_low": 0.4, "eps_high": 0.4}  # of GMPO's released code
    else:
        eps = {"eps_low": 0.2, "eps_high": 0.2}  # the middle of the grid in appendix A
    # The first pairs of the grids in appendix A, as printed.
    tau = {"tau_neg": 1.0, "tau_pos": 1.05} if gate == "sigmoid" else {"tau_neg": 0.3, "tau_pos": 0.2}
    return {**eps, **tau, "clip_space": "ratio"}


def _check_ranges(resolved: dict[str, Any]) -> None:
    numbers = {name: float(value) for name, value in resolved.items() if isinstance(value, Real)}
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise UserError(f"{name} = {value} must be a positive number")
    clip_space = resolved.get("clip_space", "ratio")
    if clip_space not in ("ratio", "log"):
        raise UserError(f"clip_space = {clip_space!r} must be ratio or log")
    if clip_space == "ratio" and numbers.get("eps_low", 0) >= 1:
        instead = ", or clip_space log" if "clip_space" in resolved else ""
        raise UserError(
            f"eps_low = {numbers['eps_low']} leaves no lower bound 1 - eps_low > 0; choose one below 1{instead}"
        )
