"""The schedule and the guarded step agree with closed forms and values by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sspo_cli.config import ColdStartOptions, ModelOptions, OptimizerOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.optimizer import adamw, check_weights, guarded_step, scheduled_rate

BETAS = (0.9, 0.99)

# {step: rate} for a peak rate of 1 and 13 steps. With a warm-up of 3, ten steps are left, so that step 8 is halfway.
RATES = [
    ("constant", 0, {0: 1, 1: 1, 6: 1, 12: 1}),
    ("constant", 3, {0: 1 / 3, 1: 2 / 3, 2: 1, 3: 1, 4: 1, 8: 1, 12: 1}),
    ("linear", 0, {0: 1, 1: 12 / 13, 6: 7 / 13, 12: 1 / 13}),
    ("linear", 3, {0: 1 / 3, 1: 2 / 3, 2: 1, 3: 1, 4: 0.9, 8: 0.5, 12: 0.1}),
    ("cosine", 0, {0: 1, 1: math.cos(math.pi / 26) ** 2, 12: math.sin(math.pi / 26) ** 2}),
    ("cosine", 3, {0: 1 / 3, 1: 2 / 3, 2: 1, 3: 1, 4: math.cos(math.pi / 20) ** 2, 8: 0.5, 12: 0.0244717418524232}),
]


@pytest.mark.parametrize("options_type", [OptimizerOptions, ColdStartOptions])
@pytest.mark.parametrize(("schedule", "warmup_steps", "rates"), RATES)
def test_rates_by_hand(options_type, schedule, warmup_steps, rates):
    for learning_rate in (1.0, 3e-4):
        options = options_type(learning_rate=learning_rate, schedule=schedule, warmup_steps=warmup_steps)
        for step, rate in rates.items():
            assert scheduled_rate(options, step, 13) == pytest.approx(rate * learning_rate, rel=1e-12)


def test_a_run_shorter_than_its_warmup_only_warms_up():
    options = OptimizerOptions(learning_rate=1.0, warmup_steps=4, schedule="cosine")
    assert [scheduled_rate(options, step, 3) for step in range(3)] == [0.25, 0.5, 0.75]
    assert scheduled_rate(options, 3, 4) == 1.0


def a_matrix_and_a_vector(dtype=torch.float32):
    """Return a matrix and a vector whose gradients have norms 3 and 4, together 5."""
    matrix, vector = nn.Parameter(torch.ones(2, 2, dtype=dtype)), nn.Parameter(torch.full((4,), -1.0, dtype=dtype))
    matrix.grad = torch.tensor([[1.0, 2.0], [-2.0, 0.0]], dtype=dtype)
    vector.grad = torch.tensor([2.0, -2.0, 2.0, 2.0], dtype=dtype)
    return matrix, vector


@pytest.mark.parametrize(("limit", "scale"), [(0.5, 0.1), (4.0, 0.8), (6.0, 1.0)])
def test_a_step_is_clipped_by_the_norm_of_all_gradients_which_is_returned_unclipped(limit, scale):
    matrix, vector = a_matrix_and_a_vector()
    steps = [0.25 * scale * parameter.grad for parameter in (matrix, vector)]  # steps of plain gradient descent
    norm, taken = guarded_step(torch.optim.SGD([matrix, vector], lr=7.0), 0.0, 0.25, limit, seed=0)
    assert norm == pytest.approx(5.0)
    assert taken
    torch.testing.assert_close(matrix.detach(), 1 - steps[0])
    torch.testing.assert_close(vector.detach(), -1 - steps[1])
    assert matrix.grad is vector.grad is None


def test_the_norm_of_bfloat16_gradients_is_not_rounded_to_bfloat16():
    """The norm is √1003 = 31.67; the nearest bfloat16 numbers are 31.625 and 31.75."""
    parameter = nn.Parameter(torch.zeros(1003, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    norm, _ = guarded_step(torch.optim.SGD([parameter]), 0.0, 1.0, 1e9, seed=0)
    assert norm == pytest.approx(math.sqrt(1003), rel=1e-6)


def test_parameters_without_a_gradient_stay_out_of_the_norm_and_of_the_step():
    matrix, vector = a_matrix_and_a_vector()
    vector.grad = None
    norm, taken = guarded_step(torch.optim.SGD([matrix, vector]), 0.0, 1.0, 1.0, seed=0)
    assert (norm, taken) == (pytest.approx(3.0), True)
    assert torch.equal(vector.detach(), torch.full((4,), -1.0))


def test_two_steps_of_adamw_are_those_of_its_equations():
    matrix, vector = a_matrix_and_a_vector()
    optimizer = adamw([matrix, vector], BETAS, weight_decay=0.1, eight_bit=False)
    expected = {"matrix": matrix.detach().double().numpy(), "vector": vector.detach().double().numpy()}
    first = {name: np.zeros_like(value) for name, value in expected.items()}
    second = {name: np.zeros_like(value) for name, value in expected.items()}
    generator = torch.Generator().manual_seed(0)
    for step, rate in ((1, 0.01), (2, 0.02)):
        for name, parameter in (("matrix", matrix), ("vector", vector)):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            g, decay = parameter.grad.double().numpy(), 0.1 if name == "matrix" else 0.0
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.99 * second[name] + 0.01 * g**2
            direction = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.99**step)) + 1e-8)
            expected[name] = expected[name] * (1 - rate * decay) - rate * direction
        guarded_step(optimizer, 0.0, rate, 1e9, seed=0)
    np.testing.assert_allclose(matrix.detach().numpy(), expected["matrix"], rtol=1e-5)
    np.testing.assert_allclose(vector.detach().numpy(), expected["vector"], rtol=1e-5)


def test_weight_decay_shrinks_every_matrix_and_no_norm_or_bias(policy):
    optimizer = adamw(policy.parameters, BETAS, weight_decay=0.5, eight_bit=False)
    before = {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}
    for parameter in policy.parameters:
        parameter.grad = torch.zeros_like(parameter)
    guarded_step(optimizer, 0.0, 0.1, 1.0, seed=0)
    vectors = 0
    for name, parameter in policy.model.named_parameters():
        vector = name.endswith(("norm.weight", "bias"))
        vectors += vector
        torch.testing.assert_close(parameter.detach(), before[name] * (1.0 if vector else 0.95), msg=name)
    assert vectors == 2 * (2 + 3) + 1  # two norms and the biases of q, k, v in each layer, and the final norm


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_step_that_is_not_finite_leaves_everything_as_if_it_had_never_been(bad, where):
    def optimizer_of(parameters):
        return adamw(parameters, BETAS, weight_decay=0.1, eight_bit=False)

    def give_gradients(parameters, step):
        for number, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(10 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)

    disturbed, undisturbed = a_matrix_and_a_vector(), a_matrix_and_a_vector()
    optimizers = [optimizer_of(disturbed), optimizer_of(undisturbed)]
    for step in (1, 2, 3):
        if step > 1:
            give_gradients(disturbed, step + 100)
            if where == "gradient":
                disturbed[1].grad[2] = bad
            norm, taken = guarded_step(optimizers[0], bad if where == "loss" else 0.0, 9.9, 1.0, seed=0)
            assert not taken
            assert math.isfinite(norm) == (where == "loss")
            assert disturbed[0].grad is disturbed[1].grad is None
        for parameters, optimizer in zip((disturbed, undisturbed), optimizers, strict=True):
            give_gradients(parameters, step)
            assert guarded_step(optimizer, 0.0, 0.1, 1.0, seed=0)[1]
        for one, other in zip(disturbed, undisturbed, strict=True):
            assert torch.equal(one, other)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert {float(state["step"]) for state in states[0].values()} == {3.0}


def test_random_rounding_is_drawn_from_the_seed_of_the_step():
    class Rounding(torch.optim.SGD):
        def step(self):
            drawn.append(torch.rand(3).tolist())

    drawn = []
    for seed in (1, 2, 1):
        matrix, _ = a_matrix_and_a_vector()
        torch.rand(seed)  # earlier random draws must not matter
        guarded_step(Rounding([matrix]), 0.0, 1.0, 1.0, seed)
    assert drawn[0] == drawn[2] != drawn[1]


def test_bfloat16_weights_are_refused_on_several_ranks():
    with pytest.raises(UserError, match=r"if they are sharded over 2 ranks; use model.weights=float32"):
        check_weights(ModelOptions(weights="bfloat16"), 2)
    check_weights(ModelOptions(weights="bfloat16"), 1)
    check_weights(ModelOptions(), 2)
