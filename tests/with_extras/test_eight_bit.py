"""AdamW's moments in 8 bits and weights in bfloat16, by torchao: `make test-extras`."""

from pathlib import Path

import pytest
import torch
from small_runs import AFTER_STEP, rows, run, run_killed, weights, without_times
from torch import nn

from sspo_cli.policy.checkpoint import load_state
from sspo_cli.policy.optimizer import adamw, guarded_step

pytest.importorskip(
    "torchao", reason="torchao is not installed; `make test-extras` brings it along", exc_type=ModuleNotFoundError
)

BETAS = (0.9, 0.99)
IN_EIGHT_BITS = ["-s", "model.weights=bfloat16", "-s", "optimizer.eight_bit=true"]


def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: torch.Tensor, number: int, rate: float):
    parameter.grad = gradient.clone()
    guarded_step(optimizer, 0.0, rate, max_grad_norm=1e9, seed=number)


def test_eight_bits_follow_the_full_moments():
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(64, 64, generator=draw)
    ours, full = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    eight, plain = adamw([ours], BETAS, 0.1, eight_bit=True), adamw([full], BETAS, 0.1, eight_bit=False)
    for number in range(50):
        gradient = torch.randn(64, 64, generator=draw) + 0.5
        step(ours, eight, gradient, number, 1e-2)
        step(full, plain, gradient, number, 1e-2)
        if number == 0:  # the moments are not rounded yet
            torch.testing.assert_close(ours, full, atol=1e-6, rtol=1e-6)
    moved = (full - start).norm()
    assert moved > 1
    assert (ours - full).norm() < 0.05 * moved
    moments = eight.state[ours]["exp_avg"], eight.state[ours]["exp_avg_sq"]
    bytes_held = sum(moment.codes.nbytes + moment.scale.nbytes for moment in moments)
    # Two moments of one byte instead of four, and a scale for each 256 elements.
    assert bytes_held < 0.26 * 8 * start.numel()


def test_small_updates_of_bfloat16_weights_add_up():
    """Each update is a fortieth of the distance to the next bfloat16, so rounding to nearest would drop them all."""
    parameter = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = adamw([parameter], BETAS, 0.0, eight_bit=True)
    for number in range(200):
        step(parameter, optimizer, torch.ones_like(parameter), number, 1e-4)
    assert parameter.dtype == torch.bfloat16
    assert parameter.float().mean().item() == pytest.approx(1 - 200 * 1e-4, abs=1e-3)


@pytest.mark.slow
def test_a_run_learns_and_killed_and_resumed_it_ends_as_if_it_had_not_been(tmp_path: Path):
    run(tmp_path, "--run", "whole", *IN_EIGHT_BITS)
    state = load_state(tmp_path / "whole" / "checkpoints" / "step-10")["optimizer"]["state"]
    assert any(type(values["exp_avg"]).__name__ == "OptimState8bit" for values in state.values())
    first = rows(tmp_path / "whole" / "metrics.jsonl")[0]
    assert first["reward/mean"] > 0.3  # the cold start had an effect
    assert first["policy/grad_norm"] > 0

    run_killed(tmp_path, AFTER_STEP, 5, *IN_EIGHT_BITS)
    run(tmp_path, "--run", "killed", "--resume", *IN_EIGHT_BITS)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")
