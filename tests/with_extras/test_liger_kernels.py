"""liger-kernel's fused layers in Triton's interpreter instead of on a GPU: `make test-extras`."""

import os

import pytest
import torch
from learning import assert_same, loss_and_gradient
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, StableLmConfig, StableLmForCausalLM

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.kernels import use_liger
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine

pytest.importorskip(
    "liger_kernel",
    reason="liger-kernel is not installed; `make test-extras` brings it along",
    exc_type=ModuleNotFoundError,
)
if not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("Triton's interpreter is not asked for; `make test-extras` does", allow_module_level=True)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch):
    """Add what Triton's interpreter lacks: the conversion of plain numbers as arguments, and rsqrt of libdevice."""
    import numpy
    import triton.language as tl
    from triton.runtime import interpreter

    def with_numbers(argument):
        if type(argument) is float:
            return tl.tensor(interpreter.TensorHandle(numpy.array([argument], numpy.float32), tl.float32), tl.float32)
        return converted(argument)

    converted = interpreter._implicit_cvt
    monkeypatch.setattr(interpreter, "_implicit_cvt", with_numbers)
    # Resolved when the kernel is interpreted.
    monkeypatch.setattr("liger_kernel.ops.rms_norm.rsqrt", lambda x: tl.rsqrt(x))


def qwen3(folder) -> str:
    torch.manual_seed(0)
    sizes = {"vocab_size": 270, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    model: PreTrainedModel = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, initializer_range=0.1))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def kinds(policy: Policy) -> set[str]:
    return {module._get_name() for module in policy.model.modules()}


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
@pytest.mark.parametrize("options", [{}, {"lora": LoraOptions(rank=4), "gradient_checkpointing": True}], ids=str)
def test_fused_layers_give_the_same_loss_gradient_and_samples(tiny, tmp_path, make_batch, name, options):
    model = {"name": qwen3(tmp_path)} if name == "qwen3" else {"tiny": tiny}
    plain, sampling = load_policy(ModelOptions(**model, **options), CPU), Sampling(1.0, max_new_tokens=6, seed=0)
    batch = make_batch(prompts=2)
    expected = loss_and_gradient(plain, batch, 10**6)
    (expected_sample,) = TorchEngine(plain, 64).generate(Request([[5, 6, 7]], 3, sampling))
    policy = load_policy(ModelOptions(**model, kernels="liger", **options), CPU)
    assert {"LigerRMSNorm", "LigerSwiGLUMLP"} <= kinds(policy)
    assert not {"LigerRMSNorm", "LigerSwiGLUMLP"} & kinds(plain)
    assert_same(loss_and_gradient(policy, batch, 10**6), expected)
    (sample,) = TorchEngine(policy, 64).generate(Request([[5, 6, 7]], 3, sampling))
    for ours, theirs in zip(sample, expected_sample, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.sampling_logprobs == pytest.approx(theirs.sampling_logprobs, abs=1e-5)


def test_a_model_of_the_same_type_that_is_loaded_later_is_not_changed(tiny):
    load_policy(ModelOptions(tiny=tiny, kernels="liger"), CPU)
    assert not {"LigerRMSNorm", "LigerSwiGLUMLP"} & kinds(load_policy(ModelOptions(tiny=tiny), CPU))


def test_a_model_without_kernels_is_reported():
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = StableLmForCausalLM(StableLmConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    with pytest.raises(UserError, match="liger-kernel has no kernels for stablelm models"):
        use_liger(model, CPU)
