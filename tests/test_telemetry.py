"""The measurements of a GPU, on a fake one, and the operations of a model compared with torch's own count."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sspo_cli.config import ModelOptions, TinyModelOptions
from sspo_cli.memory.shape import read_shape
from sspo_cli.policy.tiny import tiny_model, tiny_tokenizer
from sspo_cli.run.telemetry import Telemetry, flops

ROWS, LENGTH = 3, 40


def texts(prompt: int) -> Any:
    """Return ROWS rows of one group, each with `prompt` prompt tokens and a completion that fills it up to LENGTH tokens."""
    lengths = torch.full((ROWS,), prompt)
    return SimpleNamespace(
        prompt_lengths=lengths, lengths=LENGTH - lengths, groups=torch.zeros(ROWS, dtype=torch.int64)
    )


def test_the_operations_of_a_model_are_those_that_torch_counts(tiny: TinyModelOptions):
    """torch also counts the products of a token with later ones, which are computed and masked: half of the attention."""
    model, shape = tiny_model(tiny, tiny_tokenizer()), read_shape(ModelOptions(tiny=tiny, attention="eager"))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.full((ROWS, LENGTH), 5))
    counted = {str(operator): number for operator, number in counter.get_flop_counts()["Global"].items()}
    attention = counted.pop("aten.bmm")
    expected = sum(counted.values()) + attention / 2
    assert flops(shape, texts(0), trains_all=True) / 3 == pytest.approx(expected, rel=0.01)
    assert flops(shape, texts(0), trains_all=False) / 2 == pytest.approx(expected, rel=0.01)


def test_a_shared_prompt_is_counted_once(tiny: TinyModelOptions):
    alone, shared = (read_shape(ModelOptions(tiny=tiny, attention=kind)) for kind in ("eager", "sdpa"))
    weights = sum(inputs * outputs for inputs, outputs in alone.linear.values())
    prompt = 2 * weights * 30 + 4 * alone.layers * alone.queries * 30**2 / 2
    assert flops(alone, texts(30), True) - flops(shared, texts(30), True) == pytest.approx(3 * (ROWS - 1) * prompt)


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("A1", None)]
)
def test_a_gpu_has_its_memory_and_its_share_of_what_it_can_do(monkeypatch, tiny, name, peak):
    forgotten = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7e9)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forgotten.append)
    policy: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    options = ModelOptions(tiny=tiny)
    measured = Telemetry(policy, options).metrics(texts(30), {"time/learning": 0.25})
    share = {"device/flop_utilization": flops(read_shape(options), texts(30), True) / 0.25 / peak} if peak else {}
    assert measured == pytest.approx({"device/memory": 7.0, **share})
    assert forgotten == [policy.device]
