"""Compiled layers: the same loss and gradient, and sampling without them. liger-kernel's are in `tests/with_extras/`."""

import shutil

import pytest
import torch
from learning import assert_same, loss_and_gradient
from torch._dynamo.utils import counters

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.model import load_policy
from sspo_cli.rollout.engine import Sampling
from sspo_cli.rollout.torch_engine import TorchEngine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True, "lora": LoraOptions(rank=4)}], ids=str)
def test_compiled_layers_give_the_same_loss_and_gradient(tiny, make_batch, options):
    """Also of micro-batches of other sizes, for which little is compiled anew."""
    plain = load_policy(ModelOptions(tiny=tiny, **options), CPU)
    policy = load_policy(ModelOptions(tiny=tiny, kernels="compiled", **options), CPU)
    batch = make_batch(prompts=5)
    with torch.compiler.set_stance("default", force_backend="aot_eager"):  # what is captured, without the wait for C++
        for budget in (10**6, 100, 45):
            assert_same(loss_and_gradient(policy, batch, budget), loss_and_gradient(plain, batch, budget))
    assert 0 < counters["stats"]["unique_graphs"] <= 8
    assert not counters["graph_break"]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile wants a C++ compiler on a CPU")
def test_the_real_compiler_agrees_and_sampling_does_without_it(tiny, make_batch):
    plain = load_policy(ModelOptions(tiny=tiny), CPU)
    policy = load_policy(ModelOptions(tiny=tiny, kernels="compiled"), CPU)
    sampling = Sampling(temperature=1.0, max_new_tokens=8, seed=0)
    sampled = TorchEngine(policy, 64).generate([[5, 6, 7], [8, 9]], 3, sampling)
    assert not counters["frames"]
    assert sampled == TorchEngine(plain, 64).generate([[5, 6, 7], [8, 9]], 3, sampling)
    batch = make_batch(prompts=5)
    assert_same(loss_and_gradient(policy, batch, 10**6), loss_and_gradient(plain, batch, 10**6))
    assert counters["frames"]["ok"] > 0


def test_without_a_compiler_one_sentence_says_so(tiny, monkeypatch):
    policy = load_policy(ModelOptions(tiny=tiny, kernels="compiled"), CPU)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/g++"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(
        UserError, match=r"model\.kernels = compiled does not work here: .*compiler.*use model\.kernels=torch"
    ):
        policy.check_logits()


def test_liger_kernels_are_for_gpus(tiny):
    with pytest.raises(UserError, match="needs a CUDA GPU, not device = cpu"):
        load_policy(ModelOptions(tiny=tiny, kernels="liger"), CPU)
