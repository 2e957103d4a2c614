"""Tests of the options of each method: defaults and refused options."""

import inspect

import pytest
import torch
from pydantic import ValidationError

from sspo_cli.config import ObjectiveOptions
from sspo_cli.errors import UserError
from sspo_cli.objectives import GATES, METHODS, OPTIONS, SSPO_GATES, build_objective, resolve_options

DEFAULTS = [
    ({}, {"method": "sspo", "gate": "atanlog", "tau_neg": 0.3, "tau_pos": 0.2}),
    ({"method": "grpo"}, {"method": "grpo", "gate": "clip", "eps_low": 0.2, "eps_high": 0.2}),
    ({"method": "gspo"}, {"method": "gspo", "gate": "clip", "eps_low": 3e-4, "eps_high": 4e-4}),
    ({"method": "gmpo"}, {"method": "gmpo", "gate": "clip", "eps_low": 0.2, "eps_high": 0.2, "clip_space": "ratio"}),
    (
        {"method": "gmpo", "clip_space": "log"},
        {"method": "gmpo", "gate": "clip", "eps_low": 0.4, "eps_high": 0.4, "clip_space": "log"},
    ),
    ({"method": "sapo"}, {"method": "sapo", "gate": "sigmoid", "tau_neg": 1.0, "tau_pos": 1.05}),
    ({"method": "sspo", "gate": "gumbel"}, {"method": "sspo", "gate": "gumbel"}),
    (
        {"method": "sspo", "gate": "siglog", "tau_pos": 0.7},
        {"method": "sspo", "gate": "siglog", "tau_neg": 0.3, "tau_pos": 0.7},
    ),
    (
        {"method": "geometric", "gate": "sigmoid"},
        {"method": "geometric", "gate": "sigmoid", "tau_neg": 1.0, "tau_pos": 1.05},
    ),
    (
        {"method": "sequence", "gate": "clip"},
        {"method": "sequence", "gate": "clip", "eps_low": 3e-4, "eps_high": 4e-4, "clip_space": "ratio"},
    ),
    (
        {"method": "arithmetic", "gate": "clip"},
        {"method": "arithmetic", "gate": "clip", "eps_low": 0.2, "eps_high": 0.2, "clip_space": "ratio"},
    ),
    (
        {"method": "luspo"},
        {"method": "luspo", "gate": "clip", "normalizer": "length", "eps_low": 3e-4, "eps_high": 4e-4},
    ),
    ({"method": "cispo"}, {"method": "cispo", "gate": "cispo", "normalizer": "token", "eps_high": 4.0}),
    ({"method": "pspo"}, {"method": "pspo", "gate": "pspo", "alpha": 0.1}),
    (
        {"method": "cegppo", "normalizer": "sequence"},
        {
            "method": "cegppo",
            "gate": "cegppo",
            "normalizer": "sequence",
            "eps_low": 0.2,
            "eps_high": 0.2,
            "beta_low": 0.75,
            "beta_high": 1.0,
        },
    ),
    (
        {"normalizer": "constant"},
        {"method": "sspo", "gate": "atanlog", "normalizer": "constant", "tau_neg": 0.3, "tau_pos": 0.2},
    ),
    (
        {"method": "sequence", "gate": "expatan", "allow_any_gate": False},
        {"method": "sequence", "gate": "expatan", "tau_neg": 0.3, "tau_pos": 0.2, "allow_any_gate": False},
    ),
]


@pytest.mark.parametrize(("given", "resolved"), DEFAULTS)
def test_defaults(given, resolved):
    resolved = {"normalizer": "sequence", **resolved}
    assert resolve_options(**given) == resolved
    assert resolve_options(**resolved) == resolved
    nothing = dict.fromkeys(("gate", "tau_neg", "tau_pos", "eps_low", "eps_high", "clip_space"))
    assert resolve_options(**{**nothing, **given}) == resolved


def test_every_cell_of_the_table_can_be_built():
    log_ratio, advantages, mask = torch.tensor([[0.1, -0.2]]), torch.tensor([1.0]), torch.ones(1, 2)
    cells = [(method, gate) for method, row in METHODS.items() for gate in row.gates]
    assert len(cells) == 4 + 5 + 4 + 3 * 10
    for method, gate in cells:
        assert resolve_options(**resolve_options(method=method, gate=gate)) == resolve_options(method=method, gate=gate)
        assert build_objective(method=method, gate=gate).weights(log_ratio, advantages, mask).isfinite().all()


@pytest.mark.parametrize(
    ("free", "named"),
    [("arithmetic clip", "grpo"), ("sequence clip", "gspo"), ("geometric clip", "gmpo"), ("arithmetic sigmoid", "sapo")]
    + [(f"geometric {gate}", f"sspo {gate}") for gate in SSPO_GATES],
)
def test_a_named_method_is_its_cell(free, named):
    log_ratio, advantages = torch.randn(6, 5), torch.tensor([1.0, -1.0] * 3)
    mask = torch.ones(6, 5)
    method, gate = free.split()
    cell = build_objective(method=method, gate=gate)
    method, *gates = named.split()
    same = build_objective(method=method, gate=gates[0] if gates else None)
    assert torch.equal(cell.weights(log_ratio, advantages, mask), same.weights(log_ratio, advantages, mask))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "grpo", "gate": "atanlog"}, "grpo has the gate clip, not atanlog.*is method arithmetic"),
        ({"method": "grpo", "gate": "sigmoid"}, "grpo has the gate clip, not sigmoid.*is method sapo"),
        ({"method": "sapo", "gate": "clip"}, "sapo has the gate sigmoid, not clip.*is method grpo"),
        ({"method": "sspo", "gate": "clip"}, "sspo accepts the gates .*atanlog.*not clip.*is method gmpo"),
        ({"method": "sspo", "gate": GATES["clip"]}, "not clip.*is method gmpo"),
        ({"method": "sspo", "gate": "sigmoid"}, "sspo accepts the gates.*not sigmoid.*is method geometric"),
        ({"method": "gspo", "gate": "os.path:join"}, "gspo has the gate clip.*is method sequence"),
        ({"method": "arithmetic"}, "arithmetic needs a gate; choose from clip, sigmoid,"),
        ({"method": "gspo", "tau_pos": 0.2}, "gspo has no option tau_pos; its options are eps_low, eps_high$"),
        ({"method": "grpo", "clip_space": "log"}, "grpo has no option clip_space"),
        ({"method": "sapo", "eps_low": 0.2}, "sapo has no option eps_low; its options are tau_neg, tau_pos$"),
        (
            {"method": "sspo", "gate": "gumbel", "tau_neg": 1.0},
            "sspo with gate gumbel has no option tau_neg; it has no",
        ),
        ({"method": "sequence", "gate": "clip", "tau_neg": 1.0}, "with gate clip has no option tau_neg"),
        ({"method": "grpo", "eps_low": 1.0}, "eps_low = 1.0 leaves no lower bound.*choose a value below 1$"),
        ({"method": "gmpo", "eps_low": 1.5}, "eps_low = 1.5 leaves no lower bound.*or clip_space log"),
        ({"method": "grpo", "eps_high": 0.0}, "eps_high = 0.0 must be a positive number"),
        ({"method": "sapo", "tau_pos": -1}, "tau_pos = -1.0 must be a positive number"),
        ({"method": "sapo", "tau_pos": float("nan")}, "tau_pos = nan must be a positive number"),
        ({"method": "sapo", "tau_pos": float("inf")}, "tau_pos = inf must be a positive number"),
        ({"method": "gmpo", "clip_space": "logs"}, "clip_space = 'logs' must be ratio or log"),
        ({"method": "pspo", "alpha": 1.0}, "alpha = 1.0 leaves nothing of the current policy.*below 1$"),
        ({"method": "cispo", "eps_low": 0.2}, "cispo has no option eps_low; its options are eps_high$"),
        ({"method": "sspo", "normalizer": "tokens"}, "unknown normalizer 'tokens'; did you mean token?"),
        ({"method": "sppo"}, "unknown method 'sppo'; did you mean"),
        ({"method": "GMPO"}, "unknown method 'GMPO'; did you mean gmpo?"),
        ({"method": "ppo2000"}, "unknown method 'ppo2000'"),
        ({"method": 7}, "unknown method 7; choose from grpo"),
        ({"method": ["sspo"]}, "unknown method"),
        ({"method": "sspo", "gate": "arctanlog"}, "unknown gate 'arctanlog'; did you mean atanlog?"),
        ({"method": "grpo", "gate": "sigmod"}, "unknown gate 'sigmod'; did you mean sigmoid?"),
        ({"method": "sspo", "gate": "qqq"}, "unknown gate 'qqq'; choose from clip.*, module:function$"),
        ({"method": "sspo", "gate": 3}, "unknown gate 3"),
        ({"method": "sspo", "gate": ["atanlog"]}, "unknown gate"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(UserError, match=message):
        resolve_options(**given)
    with pytest.raises(UserError, match=message):
        build_objective(**given)


def test_a_log_clip_may_reach_below_a_ratio_of_nothing():
    assert resolve_options(method="gmpo", clip_space="log", eps_low=1.5)["eps_low"] == 1.5


@pytest.mark.parametrize("value", ["abc", "0.3", [1], {}])
def test_a_wrongly_typed_number_is_left_to_the_config_but_never_built(value):
    assert resolve_options(method="sspo", tau_neg=value)["tau_neg"] == value
    with pytest.raises(UserError, match=r"tau_neg = .* must be a positive number"):
        build_objective(method="sspo", tau_neg=value)


def test_every_declared_option_is_a_keyword_and_a_field_of_the_config():
    for function in (build_objective, resolve_options):
        named = set(inspect.signature(function).parameters) - {"token_limit"}
        assert named == {"method", "gate", "normalizer", "allow_any_gate", "allow_any_method", *OPTIONS}
        for name, option in OPTIONS.items():
            assert f"{name:14}  {option.description}" in function.__doc__
    assert list(ObjectiveOptions.model_fields) == [
        "method",
        "gate",
        "normalizer",
        *OPTIONS,
        "allow_any_gate",
        "allow_any_method",
    ]
    assert all(
        ObjectiveOptions.model_fields[name].description == option.description for name, option in OPTIONS.items()
    )


@pytest.mark.parametrize("function", [build_objective, resolve_options])
def test_other_keywords_are_refused(function):
    with pytest.raises(TypeError, match="tau_negative"):
        function(method="sspo", tau_negative=0.3)


@pytest.mark.parametrize(("name", "value"), [("tau_neg", "much"), ("eps_low", [1])])
def test_the_config_refuses_a_wrong_type(name, value):
    method = "sspo" if name == "tau_neg" else "grpo"
    with pytest.raises(ValidationError, match=name):
        ObjectiveOptions(**{"method": method, name: value})
