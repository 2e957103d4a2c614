"""One step on several ranks is that of one process: gradient, norm, weights, rows, and the files of the model."""

import sys
from pathlib import Path

import gradients
import pytest
import torch
from safetensors.torch import load_file

from sspo_cli.errors import UserError
from sspo_cli.policy.sharded_files import save_model
from sspo_cli.supervisor import run_ranks

FLOAT32 = [*gradients.KINDS, "large micro-batches", "two rows"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process computes, and the folder of the models that it writes."""
    folder = tmp_path_factory.mktemp("alone")
    gradients.write_models(folder)
    return gradients.all_gradients(), folder


@pytest.fixture(scope="module")
def together(forked_ranks, alone, tmp_path_factory):
    """The folder of what 4, 3 and 2 ranks compute and write."""
    folder = tmp_path_factory.mktemp("together")
    run_ranks([sys.executable, gradients.__file__, str(folder), str(alone[1])], max(gradients.SIZES))
    return folder


@pytest.mark.parametrize("size", gradients.SIZES)
def test_gradient_norm_and_rows_are_those_of_one_process(alone, together, size):
    """The norm is looked at on its own: a wrong factor of the mean over the ranks cancels in a clipped step of Adam."""
    results = torch.load(together / f"{size}.pt", weights_only=True)
    for kind in FLOAT32:
        one, several = alone[0][kind], results[kind]
        gradient = one["gradient"]
        assert ((several["gradient"] - gradient).norm() / gradient.norm()).item() <= 1e-6, kind
        assert several["norm"] == pytest.approx(one["norm"], rel=1e-6), kind
        assert (several["weights"] - one["weights"]).abs().max().item() <= 1e-5, kind
        for name, rows in one["rows"].items():
            assert torch.allclose(several["rows"][name], rows, rtol=0, atol=1e-5), (kind, name)
        assert several["same_parameters"], kind


@pytest.mark.parametrize("size", gradients.SIZES)
def test_in_bfloat16_they_agree_to_its_rounding(alone, together, size):
    one, several = alone[0]["bfloat16"], torch.load(together / f"{size}.pt", weights_only=True)["bfloat16"]
    gradient = one["gradient"]
    assert ((several["gradient"] - gradient).norm() / gradient.norm()).item() <= 2e-2
    assert several["norm"] == pytest.approx(one["norm"], rel=1e-2)


@pytest.mark.parametrize("kind", gradients.EXPORTED)
def test_the_files_of_a_model_are_those_of_one_process(alone, together, kind):
    ours, theirs = alone[1] / kind, together / "models" / kind
    assert names(ours) == names(theirs)
    for name in names(ours):
        if name.endswith(".safetensors"):
            expected, written = load_file(ours / name), load_file(theirs / name)
            assert expected.keys() == written.keys()
            assert all(torch.equal(tensor, written[key]) for key, tensor in expected.items())
        elif name != "adapter_config.json":  # in which peft writes a set, in any order
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_a_model_that_is_read_in_parts_is_that_of_one_process(alone, together):
    expected, loaded = gradients.load(alone[1]), torch.load(together / "loaded.pt", weights_only=True)
    assert loaded["of another shape"] == expected["of another shape"]
    assert "lm_head.weight of shape 266×32 for 301×32" in loaded["of another shape"]
    for kind in gradients.LOADED[:-1]:
        ours, theirs = expected[kind]["weights"], loaded[kind]["weights"]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items()), kind
        torch.testing.assert_close(loaded[kind]["logprobs"], expected[kind]["logprobs"], atol=1e-5, rtol=0)
        assert not loaded[kind]["notes"]


@pytest.mark.parametrize(("kind", "part"), [("lora", "model"), ("lora", "tokenizer"), ("dense", "tokenizer")])
def test_a_full_disk_is_one_sentence(monkeypatch, tmp_path, kind, part):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    policy = gradients.make_policy(kind)
    monkeypatch.setattr(getattr(policy, part), "save_pretrained", refuse)
    with pytest.raises(UserError, match=r"^the weights cannot be written to .*: \[Errno 28\] No space left on device$"):
        save_model(policy.model, policy.tokenizer, tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
