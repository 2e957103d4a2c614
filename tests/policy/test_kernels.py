"""Tests of compiled layers: loss and gradient stay the same, and sampling does not use them.

Tests of liger-kernel are in `tests/with_extras/`.
"""

import shutil

import pytest
import torch
from commands import sspo
from learning import assert_same, loss_and_gradient
from torch._dynamo.utils import counters

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.kernels import compile_layers
from sspo_cli.policy.model import load_policy
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.long), {"gradient_checkpointing": True, "lora": LoraOptions(rank=4)}],
    ids=["full", "checkpointing and LoRA"],
)
def test_compiled_layers_give_the_same_loss_and_gradient(tiny, make_batch, options):
    """No number of prompts, completions or tokens makes a layer fall back to code that is not compiled."""
    plain = load_policy(ModelOptions(tiny=tiny, **options), CPU)
    policy = load_policy(ModelOptions(tiny=tiny, kernels="compiled", **options), CPU)
    sizes = [(5, 4), (1, 1)]
    with (
        torch.compiler.set_stance(
            "default", force_backend="eager"
        ),  # capture the graphs without waiting for the compiler
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
    ):
        for prompts, group_size in sizes:
            batch = make_batch(prompts=prompts, group_size=group_size)
            for budget in (10**6, 45):
                assert_same(loss_and_gradient(policy, batch, budget), loss_and_gradient(plain, batch, budget))
        graphs = counters["stats"]["unique_graphs"]
        batch = make_batch(prompts=4, group_size=3, seed=1)
        assert_same(loss_and_gradient(policy, batch, 60), loss_and_gradient(plain, batch, 60))
    assert 0 < counters["stats"]["unique_graphs"] == graphs  # another size needs no new graph
    assert not counters["graph_break"]


@pytest.mark.long  # the compiler takes a minute
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile wants a C++ compiler on a CPU")
def test_the_real_compiler_agrees_and_sampling_does_without_it(tiny, make_batch):
    plain = load_policy(ModelOptions(tiny=tiny), CPU)
    policy = load_policy(ModelOptions(tiny=tiny, kernels="compiled"), CPU)
    sampling = Sampling(temperature=1.0, max_new_tokens=8, seed=0)
    sampled = TorchEngine(policy, 64).generate(Request([[5, 6, 7], [8, 9]], 3, sampling))
    assert not counters["frames"]
    assert sampled == TorchEngine(plain, 64).generate(Request([[5, 6, 7], [8, 9]], 3, sampling))
    batch = make_batch(prompts=5)
    assert_same(loss_and_gradient(policy, batch, 10**6), loss_and_gradient(plain, batch, 10**6))
    assert counters["frames"]["ok"] > 0


@pytest.mark.long
def test_without_a_compiler_one_sentence_says_so(tmp_path):
    with torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "g++")), "force_disable_caches": True}):
        done = sspo("train", "--runs-dir", tmp_path, steps=1, model__kernels="compiled", model__tiny__layers=1)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("sspo: torch.compile does not work here: ")
    assert "compiler" in said
    assert "use model.kernels=torch and, on a GPU, also optimizer.eight_bit=false" in said


def test_a_model_without_layers_to_compile_is_reported():
    with pytest.raises(UserError, match=r"Linear has no layers to compile one by one; use model\.kernels=torch"):
        compile_layers(torch.nn.Linear(1, 1))


def test_liger_kernels_are_for_gpus(tiny):
    with pytest.raises(UserError, match="needs a CUDA GPU, not device = cpu"):
        load_policy(ModelOptions(tiny=tiny, kernels="liger"), CPU)
