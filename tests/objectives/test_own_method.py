"""Tests of methods that a user defines as functions of whole completions."""

import pytest
import torch
from commands import assert_error, sspo

from sspo_cli.config import ObjectiveOptions
from sspo_cli.errors import UserError
from sspo_cli.objectives import build_objective

TAU = 0.3


def sspo_by_hand(log_ratio, advantages, mask):
    gated = TAU * torch.atan(log_ratio / TAU)
    return ((gated * mask).sum(1) / mask.sum(1).clamp(min=1)).exp()


def with_own_factor(log_ratio, advantages, mask):
    return 7.0 * mask.sum(1) * sspo_by_hand(log_ratio, advantages, mask)


@pytest.mark.parametrize("normalizer", ["sequence", "token"])
def test_sspo_as_a_method_of_ones_own_is_sspo(normalizer):
    draw = torch.Generator().manual_seed(0)
    log_ratio, advantages = torch.randn(6, 5, generator=draw), torch.randn(6, generator=draw)
    mask = torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
    log_ratio[~mask] = torch.nan
    own = build_objective(method=sspo_by_hand, normalizer=normalizer)
    built_in = build_objective(method="sspo", tau_neg=TAU, tau_pos=TAU, normalizer=normalizer)
    torch.testing.assert_close(own.weights(log_ratio, advantages, mask), built_in.weights(log_ratio, advantages, mask))
    torch.testing.assert_close(
        own.token_weights(log_ratio, advantages, mask), built_in.token_weights(log_ratio, advantages, mask)
    )
    assert torch.equal(own.factors(mask.sum(1)), built_in.factors(mask.sum(1)))


def test_the_method_s_own_factor_is_divided_out_of_the_conditions():
    log_ratio, mask = torch.tensor([[0.1, 0.2]]), torch.ones(1, 2)
    own = build_objective(method=with_own_factor).weights(log_ratio, torch.ones(1), mask)
    assert own.item() == pytest.approx(14 * sspo_by_hand(log_ratio, None, mask).item())


def grpo(log_ratio, advantages, mask):
    clipped = torch.where(advantages[:, None] > 0, log_ratio.clamp(max=0.2), log_ratio.clamp(min=-0.2))
    return (clipped.exp() * mask).sum(1) / mask.sum(1).clamp(min=1)


def of_the_batch(log_ratio, advantages, mask):
    return sspo_by_hand(log_ratio, advantages, mask) * mask.sum(1) / mask.sum()


def first_token_only(log_ratio, advantages, mask):
    return (TAU * torch.atan(log_ratio[:, 0] / TAU)).exp()


def too_steep(log_ratio, advantages, mask):
    return sspo_by_hand(2 * log_ratio, advantages, mask)


def unnormalized(log_ratio, advantages, mask):
    return log_ratio.sum(1).exp()


def of_tokens(log_ratio, advantages, mask):
    return log_ratio.exp()


def infinite(log_ratio, advantages, mask):
    return 1 / (log_ratio * 0).sum(1)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (grpo, r"^method grpo breaks condition \(i\).*pass --allow-any-method to run it anyway$"),
        (of_the_batch, "^method of_the_batch uses more than a completion's own tokens.*objective.normalizer$"),
        (
            first_token_only,
            "^method first_token_only does not have the policy gradient at ρ = 1: .*, but are 1, 0, 0; ",
        ),
        (too_steep, r"^method too_steep breaks condition \(ii\), f'\(1\) = 1: it is 2 at ρ = 1"),
        (unnormalized, "^method unnormalized must be finite: log f in torch.float32 is inf at ρ ="),
        (of_tokens, r"^method of_tokens fails on .*ValueError: it returns the shape \[6, 5\]$"),
        (infinite, "^method infinite must be finite: S is not"),
    ],
)
def test_refusals(method, message):
    with pytest.raises(UserError, match=message):
        build_objective(method=method)


@pytest.mark.parametrize("method", [of_the_batch, of_tokens, infinite])
def test_what_cannot_be_run_is_refused_whatever_is_allowed(method):
    with pytest.raises(UserError):
        build_objective(method=method, allow_any_method=True)


@pytest.mark.parametrize("method", [grpo, unnormalized, first_token_only])
def test_any_other_method_runs_if_it_is_allowed(method):
    weights = build_objective(method=method, allow_any_method=True).weights(
        torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2)
    )
    assert weights.tolist() == [1.0]


def test_from_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "mymethod.py").write_text(
        "def mine(log_ratio, advantages, mask):\n"
        "    return ((log_ratio.tanh() * mask).sum(1) / mask.sum(1).clamp(min=1)).exp()\n"
        "def linear(log_ratio, advantages, mask):\n"
        "    return ((log_ratio * mask).sum(1) / mask.sum(1).clamp(min=1)).exp()\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ObjectiveOptions(method="mymethod:mine", normalizer="length")
    assert options.model_dump() == {
        "method": "mymethod:mine",
        "normalizer": "length",
        "allow_any_gate": False,
        "allow_any_method": False,
    }
    assert options.words == ["mymethod:mine"]
    done = sspo("train", "--method", "mymethod:linear", "--allow-any-method", "--dry-run")
    assert "method: mymethod:linear" in done.stdout
    assert_error(sspo("train", "--method", "mymethod:other"), "has no function other")
    assert_error(sspo("train", "--method", "mymethod:mine", "--gate", "atanlog"), "has no option gate")
    assert_error(sspo("train", "--method", "mymethod:mine", objective__tau_neg=0.3), "has no option tau_neg")
    assert_error(sspo("train", "--method", "mymethod:linear", "--runs-dir", tmp_path), "breaks condition (iii)")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".pyc" and path.name[0] != "_") == [
        "mymethod.py"
    ]
