"""Policies on a CUDA GPU agree with the CPU: `make test-gpu`. The models are small, with far from uniform outputs."""

import copy

import pytest
import torch
from learning import assert_same, loss_and_gradient
from safetensors.torch import load_file
from small_runs import AFTER_STEP, IN_CHECKPOINT, rows, run, run_killed, weights, without_times

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.policy.batch import collate
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.types import Group, Problem, Prompt, Reward

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA GPU here; `make test-gpu` is for machines with one", allow_module_level=True)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PROMPTS = [[2, 10, 11], [2, 12, 13, 14, 15, 16], [2, 17]]
ON_GPU = ("-s", "device=cuda")
KINDS = {
    "full": {},
    "checkpointing": {"gradient_checkpointing": True},
    "LoRA": {"lora": LoraOptions(rank=4)},
    "compiled": {"kernels": "compiled"},
}


def both(tiny, **options) -> tuple[Policy, Policy]:
    """Return the same random policy on the CPU in float32, and on the GPU with `options`."""
    alone = {name: value for name, value in options.items() if name == "lora"}
    on_cpu, on_gpu = (
        load_policy(ModelOptions(tiny=tiny, **alone), CPU),
        load_policy(ModelOptions(tiny=tiny, **options), GPU),
    )
    with torch.no_grad():
        for parameter in on_cpu.model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(2)
    on_gpu.model.load_state_dict(copy.deepcopy(on_cpu.model.state_dict()))
    return on_cpu, on_gpu


def sampled(policy: Policy, **options):
    sampling = Sampling(**{"temperature": 1.0, "max_new_tokens": 12, "seed": 1, **options})
    return TorchEngine(policy, 100).generate(Request(PROMPTS, 4, sampling))


def batch_of(groups):
    prompts = [Prompt(Problem("", "", "", ""), "", ids) for ids in PROMPTS]
    rewards = [Reward(0, 0, None, "ok")] * 4
    rollout = [Group(prompt, group, rewards) for prompt, group in zip(prompts, groups, strict=True)]
    return collate(rollout, torch.zeros(3, 4), mask_truncated=False)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_loss_and_gradient_are_those_of_the_cpu(tiny, make_batch, kind):
    on_cpu, on_gpu = both(tiny, dtype="float32", **KINDS[kind])
    for budget in (10**6, 45):
        expected = loss_and_gradient(on_cpu, make_batch(prompts=5), budget)
        loss, gradient = loss_and_gradient(on_gpu, make_batch(prompts=5), budget)
        assert_same((loss, gradient.cpu()), expected)


def test_in_bfloat16_the_gradient_agrees_to_its_rounding(tiny, make_batch):
    on_cpu, on_gpu = both(tiny)
    assert on_gpu.dtype == torch.bfloat16  # what `auto` chooses on a GPU
    _, expected = loss_and_gradient(on_cpu, make_batch(prompts=5), 10**6)
    _, gradient = loss_and_gradient(on_gpu, make_batch(prompts=5), 10**6)
    assert ((gradient.cpu() - expected).norm() / expected.norm()).item() < 0.05


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_in_float32_the_completions_are_those_of_the_cpu(tiny, temperature):
    on_cpu, on_gpu = both(tiny, dtype="float32")
    ours, theirs = (sampled(policy, temperature=temperature) for policy in (on_gpu, on_cpu))
    for group, expected in zip(ours, theirs, strict=True):
        assert [c.token_ids for c in group] == [c.token_ids for c in expected]
        for completion, other in zip(group, expected, strict=True):
            assert completion.sampling_logprobs == pytest.approx(other.sampling_logprobs, abs=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_the_sampler_s_log_probabilities_are_the_policy_s(tiny, dtype, tolerance):
    _, on_gpu = both(tiny, dtype=dtype)
    batch = batch_of(sampled(on_gpu)).to(GPU)
    logprobs, _ = on_gpu.logprobs(batch, 1.0)
    assert (logprobs - batch.sampling_logprobs)[batch.mask].abs().max().item() < tolerance


def test_liger_s_kernels_give_the_same_loss_and_gradient(tiny, make_batch):
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    on_cpu, on_gpu = both(tiny, dtype="float32", kernels="liger")
    loss, gradient = loss_and_gradient(on_gpu, make_batch(prompts=5), 10**6)
    assert_same((loss, gradient.cpu()), loss_and_gradient(on_cpu, make_batch(prompts=5), 10**6))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    run(runs, "--run", "whole", *ON_GPU)
    return runs


def test_a_run_of_the_embedded_task_measures_memory(whole):
    measured = [row["device/memory"] for row in rows(whole / "whole" / "metrics.jsonl") if "policy/loss" in row]
    assert len(measured) == 10
    assert all(0 < gigabytes < 2 for gigabytes in measured)


@pytest.mark.parametrize(
    ("point", "countdown"), [(AFTER_STEP, 5), (IN_CHECKPOINT, 2)], ids=["after a step", "in a checkpoint"]
)
def test_killed_and_resumed_it_ends_as_if_it_had_not_been(whole, point, countdown):
    run_killed(whole, point, countdown, *ON_GPU)
    run(whole, "--run", "killed", "--resume")
    killed, alone = (
        [
            {key: value for key, value in row.items() if not key.startswith("device/")}
            for row in without_times(whole / name)
        ]
        for name in ("killed", "whole")
    )
    assert killed == alone
    assert weights(whole / "killed") == weights(whole / "whole")
    (whole / "killed").rename(whole / f"killed-{countdown}")


def test_a_run_with_eight_bits_learns(tmp_path):
    pytest.importorskip("torchao", reason="torchao is not installed")
    run(tmp_path, "--run", "eight", *ON_GPU, "-s", "model.weights=bfloat16", "-s", "optimizer.eight_bit=true")
    start, end = (
        load_file(folder / "model.safetensors")
        for folder in (
            next((tmp_path / "cold-starts").glob("*/step-*")),
            tmp_path / "eight" / "checkpoints" / "step-10",
        )
    )
    assert any((start[name].float() - end[name].float()).abs().max() > 0 for name in start)
