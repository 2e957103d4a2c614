"""The paper's conditions (i)-(iv) hold for its own gates and are checked for user-defined gates."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sspo_cli.errors import UserError
from sspo_cli.objectives import SSPO_GATES, build_objective
from sspo_cli.objectives.conditions import check_conditions, check_usable

PEAK_OF_MULTIPLIER = ("expsig", "expatan")  # these gates satisfy condition (iii.1), the others (iii.2)
TAUS = st.floats(0.05, 2.0)
LOG_RATIOS = st.floats(-12.0, 12.0)


def log_f_and_w(name, tau, *log_ratios):
    d = torch.tensor(log_ratios, dtype=torch.float64, requires_grad=True)
    log_f = SSPO_GATES[name](d) if name == "gumbel" else SSPO_GATES[name](d, torch.tensor(tau, dtype=torch.float64))
    (w,) = torch.autograd.grad(log_f.sum(), d)
    return log_f.detach(), w


def bell(name, tau, log_ratio):
    _, w = log_f_and_w(name, tau, log_ratio)
    return w.item() * (math.exp(-log_ratio) if name in PEAK_OF_MULTIPLIER else 1)


@pytest.mark.parametrize("name", SSPO_GATES)
class TestTheGatesOfThePaper:
    @given(tau=TAUS, d=LOG_RATIOS)
    @settings(max_examples=60, deadline=None)
    def test_i_continuously_differentiable(self, name, tau, d):
        step = 1e-4 * tau / max(1.0, math.exp(d))  # the gate's width in log ρ is τ, or τ/ρ for functions of ρ
        log_f, w = log_f_and_w(name, tau, d - step, d, d + step)
        assert (log_f[2] - log_f[0]) / (2 * step) == pytest.approx(w[1].item(), abs=1e-5)
        assert w[2].item() == pytest.approx(w[0].item(), abs=1e-3)

    @given(tau=TAUS)
    @settings(max_examples=30, deadline=None)
    def test_ii_on_policy(self, name, tau):
        log_f, w = log_f_and_w(name, tau, 0.0)
        assert log_f.item() == pytest.approx(0, abs=1e-14)
        assert w.item() == pytest.approx(1, abs=1e-14)

    @given(tau=TAUS, inner=st.floats(0, 12), outer=st.floats(0, 12), side=st.sampled_from([-1, 1]))
    @settings(max_examples=100, deadline=None)
    def test_iii_bell_shaped(self, name, tau, inner, outer, side):
        inner, outer = sorted((inner, outer))
        assert bell(name, tau, side * outer) <= bell(name, tau, side * inner) + 1e-10 <= 1 + 2e-10

    @given(tau=st.floats(0.05, 1.0))
    @settings(max_examples=30, deadline=None)
    def test_iii_vanishes_far_away(self, name, tau):
        _, w = log_f_and_w(name, tau, 30.0, -30.0)
        assert w[0] < 2e-3
        assert w[1] < 2e-3

    @given(tau=TAUS, a=LOG_RATIOS, b=LOG_RATIOS)
    @settings(max_examples=60, deadline=None)
    def test_iv_non_decreasing(self, name, tau, a, b):
        log_f, w = log_f_and_w(name, tau, min(a, b), max(a, b))
        assert log_f[0] <= log_f[1] + 1e-14
        assert (w >= 0).all()

    @pytest.mark.parametrize("tau", [0.05, 0.2, 0.6, 2.0])
    def test_the_check_for_user_gates_lets_them_pass(self, name, tau):
        given = {} if name == "gumbel" else {"tau_neg": tau, "tau_pos": tau}
        objective = build_objective(method="sspo", gate=name, **given)
        check_usable(objective.gate_for, name)
        check_conditions(objective.gate_for, name, "--allow-any-gate")


def tanh_gate(log_ratio, tau):
    return tau * torch.tanh(log_ratio / tau)


def kinked(log_ratio):  # a soft bump with a kink at log ρ = 1
    return torch.where(log_ratio < 1, torch.tanh(log_ratio), torch.tanh(torch.ones_like(log_ratio)) + 0 * log_ratio)


def jumping(log_ratio):
    return torch.tanh(log_ratio) + (log_ratio > 0.5).to(log_ratio.dtype)


def detached(log_ratio):
    return torch.tanh(log_ratio) * (1 + log_ratio.detach().abs() * 0.1)


def over_tokens(log_ratio):
    return torch.tanh(log_ratio) + log_ratio.mean(-1, keepdim=True)


def off_by_a_tenth(log_ratio):
    return torch.tanh(log_ratio) + 0.1


def too_steep(log_ratio):
    return torch.tanh(2 * log_ratio)


def wavy(log_ratio):
    return torch.sin(log_ratio)


def flat_weight(log_ratio):
    return log_ratio


def two_humps(log_ratio):  # w is sech² d with further humps at log ρ = ±4
    humps = torch.tanh(log_ratio) + torch.tanh(log_ratio - 4) / 2 + torch.tanh(log_ratio + 4) / 2
    return humps / (1 + 1 / math.cosh(4) ** 2)


def on_a_floor(log_ratio):  # w is a bell on a floor of 0.3
    return 0.3 * log_ratio + 0.7 * torch.atan(log_ratio)


def unsigned_bell(log_ratio, positive):  # satisfies the conditions for Â <= 0, but is the plain ratio for Â > 0
    return torch.where(positive, log_ratio, torch.tanh(log_ratio))


BREAKING = {
    kinked: r"condition \(i\).*at ρ = 2\.71",
    jumping: r"condition \(i\).*at ρ = 1\.6",
    detached: r"condition \(i\)",
    over_tokens: r"condition \(i\)",
    off_by_a_tenth: r"condition \(ii\), f\(1\) = 1: it is 1\.105\d* at ρ = 1 ",
    too_steep: r"condition \(ii\), f'\(1\) = 1: it is 2 at ρ = 1 ",
    wavy: r"condition \(iv\).*is -0\.\d+ at ρ = (0\.20|4\.8)",
    flat_weight: r"condition \(iii\).*and ρ f'/f is 1 at ρ = 2\.061e-09",
    two_humps: r"condition \(iii\).*and ρ f'/f is 0\.\d+ at ρ =",
    on_a_floor: r"condition \(iii\).*ρ f'/f is 0\.30\d* at ρ = 2\.061e-09",
    unsigned_bell: r"condition \(iii\).*\(Â > 0\)",
}


@pytest.mark.parametrize("gate", BREAKING, ids=lambda gate: gate.__name__)
def test_a_gate_that_breaks_a_condition_is_refused_with_the_value_and_the_place(gate):
    with pytest.raises(UserError, match=BREAKING[gate]) as caught:
        build_objective(method="sspo", gate=gate)
    assert f"gate {gate.__name__} breaks" in str(caught.value)
    assert "--allow-any-gate" in str(caught.value)
    assert build_objective(method="sspo", gate=gate, allow_any_gate=True).gate is gate


def test_a_weight_that_does_not_vanish_above_is_refused():
    def floor_above(log_ratio):  # f'/f peaks at ρ = 1 and vanishes like 1/ρ, but w = ρ f'/f stays 1
        return torch.where(log_ratio > 0, log_ratio, torch.expm1(log_ratio))

    with pytest.raises(
        UserError, match=r"condition \(iii\), ρ f'/f vanishes as ρ grows: it is still 1 at ρ = 4\.852e\+08"
    ):
        build_objective(method="sspo", gate=floor_above)


def wrong_shape(log_ratio):
    return log_ratio[:, :1]


def naive_overflow(log_ratio):
    return torch.log1p(torch.exp(6 * log_ratio)) / 3


def no_gradient(log_ratio):
    return torch.tanh(log_ratio.detach())


def failing(log_ratio):
    raise ZeroDivisionError("by hand")


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (wrong_shape, r"wrong_shape fails on log ratios of shape .*returns the shape \[2, 1\]"),
        (naive_overflow, r"naive_overflow must be finite: log f in torch.float32 is inf at ρ ="),
        (no_gradient, r"no_gradient fails .*RuntimeError"),
        (failing, r"failing fails .*ZeroDivisionError: by hand"),
        (lambda log_ratio, beta: log_ratio, "unknown parameter beta"),
        (lambda: 0, "must be a Python function of the log ratio"),
        (torch.tanh, "must be a Python function of the log ratio"),
    ],
)
def test_an_unusable_gate_is_refused_whatever_is_allowed(gate, message):
    with pytest.raises(UserError, match=message):
        build_objective(method="sspo", gate=gate, allow_any_gate=True)


@pytest.mark.parametrize("method", ["sspo", "arithmetic", "geometric", "sequence"])
def test_a_user_defined_gate_next_to_the_config(tmp_path, monkeypatch, method):
    (tmp_path / f"mygate_{method}.py").write_text(
        "import torch\n"
        "def with_tau(log_ratio, tau):\n    return tau * torch.tanh(log_ratio / tau)\n"
        "def without(log_ratio, sharpness=1.0):\n    return torch.tanh(sharpness * log_ratio) / sharpness\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    log_ratio, advantages, mask = torch.tensor([[0.3], [0.3]]), torch.tensor([1.0, -1.0]), torch.ones(2, 1)

    objective = build_objective(method=method, gate=f"mygate_{method}:with_tau", tau_neg=0.5, tau_pos=0.25)
    wanted = torch.tensor([0.25 * torch.tanh(torch.tensor(1.2)), 0.5 * torch.tanh(torch.tensor(0.6))]).exp()
    torch.testing.assert_close(objective.weights(log_ratio, advantages, mask), wanted)

    objective = build_objective(method=method, gate=f"mygate_{method}:without")
    torch.testing.assert_close(objective.weights(log_ratio, advantages, mask), torch.tanh(log_ratio[:, 0]).exp())
    assert sys.path == path


def test_a_callable_gate_equals_the_same_gate_by_name():
    log_ratio, advantages, mask = torch.tensor([[0.3], [-0.4]]), torch.tensor([1.0, -1.0]), torch.ones(2, 1)
    own = build_objective(method="sspo", gate=lambda log_ratio, tau: tau * torch.atan(log_ratio / tau))
    named = build_objective(method="sspo", gate="atanlog")
    assert torch.equal(own.weights(log_ratio, advantages, mask), named.weights(log_ratio, advantages, mask))
    assert torch.equal(own.token_weights(log_ratio, advantages, mask), named.token_weights(log_ratio, advantages, mask))


def test_import_problems_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brokengate.py").write_text("def gate(log_ratio) return 1\n")
    (tmp_path / "emptygate.py").write_text("gate = 3\n")
    for gate, message in [
        ("nowhere_to_be_found:gate", "nowhere_to_be_found:gate cannot be imported: ModuleNotFoundError"),
        ("brokengate:gate", "brokengate:gate cannot be imported: SyntaxError"),
        ("emptygate:gate", "emptygate.py has no function gate"),
        ("emptygate:other", "emptygate.py has no function other"),
    ]:
        with pytest.raises(UserError, match=message):
            build_objective(method="sspo", gate=gate)
