"""One step on several ranks is that of one process: gradient, norm, weights, rows, and the files of the model."""

import itertools
import sys
from pathlib import Path

import gradients
import pytest
import torch
from safetensors.torch import load_file

from sspo_cli.errors import UserError
from sspo_cli.policy.optimizer import adamw
from sspo_cli.policy.sharded_files import load_optimizer_parts, save_model
from sspo_cli.supervisor import run_ranks

FLOAT32 = [*gradients.KINDS, "large micro-batches", "two rows", "together"]


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
    for kind in [*FLOAT32, *(["shared blocks", "looped experts"] if size == 2 else [])]:
        one, several = alone[0][kind], results[kind]
        gradient = one["gradient"]
        assert ((several["gradient"] - gradient).norm() / gradient.norm()).item() <= 1e-6, kind
        assert several["norm"] == pytest.approx(one["norm"], rel=1e-6), kind
        assert (several["weights"] - one["weights"]).abs().max().item() <= 1e-5, kind
        for name, rows in one["rows"].items():
            assert torch.allclose(several["rows"][name], rows, rtol=0, atol=1e-5), (kind, name)
        assert several["same_parameters"], kind
        for ours, theirs in zip(several["metrics"], one["metrics"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5), kind


@pytest.mark.parametrize("size", gradients.SIZES)
def test_choices_of_experts_are_counted_over_all_ranks(together, size):
    """Each completion has one token, of which one of two layers has another choice in the sampler."""
    batch = gradients.make_batch()
    changed, tokens = int(batch.mask[:, 0].sum()), int(batch.mask.sum())
    for metrics in torch.load(together / f"{size}.pt", weights_only=True)["moe"]["metrics"]:
        assert metrics["sampler/rerouted_layers"] == pytest.approx(changed / (2 * tokens))
        assert metrics["sampler/rerouted_tokens"] == pytest.approx(changed / tokens)
        assert 1 < metrics["policy/expert_load"] <= 4  # 8 experts, of which 2 are chosen


@pytest.mark.parametrize(
    ("size", "kind"),
    [*itertools.product(gradients.SIZES, ["bfloat16", "together, bfloat16"]), (2, "layer norms, bfloat16")],
)
def test_in_bfloat16_they_agree_to_its_rounding(alone, together, size, kind):
    one, several = alone[0][kind], torch.load(together / f"{size}.pt", weights_only=True)[kind]
    gradient = one["gradient"]
    assert ((several["gradient"] - gradient).norm() / gradient.norm()).item() <= 2e-2
    assert several["norm"] == pytest.approx(one["norm"], rel=1e-2)


def test_adapters_are_computed_token_by_token_as_by_one_process(alone, together):
    several = torch.load(together / "2.pt", weights_only=True)["by token"]
    torch.testing.assert_close(several, alone[0]["by token"])


def test_weights_without_a_gradient_have_no_optimizer_state_after_it_is_read(loaded, together):
    """A vision tower, for example, is not used by text."""
    names = loaded[1]["optimizer"]
    assert names["read"] == names["written"]
    assert "model.embed_tokens.weight" in names["written"]
    assert not any("unused" in name for name in names["written"])
    assert gradients.optimizer_states(together / "optimizer")["read"] == names["read"]


def test_the_optimizer_state_of_another_model_is_refused(together):
    policy = gradients.make_policy("moe")
    optimizer = adamw(policy.parameters, (0.9, 0.95), 0.01, eight_bit=False)
    with pytest.raises(ValueError, match=r"the model does not have, such as model\.layers\.0\.mlp\.down_proj\.weight"):
        load_optimizer_parts(policy.model, optimizer, together / "optimizer")


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


@pytest.fixture(scope="module")
def loaded(alone, together):
    """Return what one process and several ranks load from the same folders."""
    return gradients.load(alone[1]), torch.load(together / "loaded.pt", weights_only=True)


@pytest.mark.parametrize("kind", gradients.LOADED)
def test_a_model_that_is_read_in_parts_is_that_of_one_process(loaded, kind):
    expected, model = (results[kind] for results in loaded)
    assert model["weights"].keys() == expected["weights"].keys()
    assert all(torch.equal(weight, expected["weights"][name]) for name, weight in model["weights"].items())
    torch.testing.assert_close(model["logprobs"], expected["logprobs"], atol=1e-5, rtol=0)
    if kind == "dequantized":
        (note,) = model["notes"]
        assert note.endswith("dequantized whole into the memory of its machine: its weights are quantized")
    else:
        assert model["notes"] == expected["notes"]
        assert bool(model["notes"]) == (kind == "unused")


def test_the_heads_of_the_loaded_models_differ_where_they_should(loaded):
    heads = {
        kind: torch.equal(results["weights"]["lm_head.weight"], results["weights"]["model.embed_tokens.weight"])
        for kind, results in loaded[1].items()
        if kind in ("dense", "bin", "head twice", "two heads", "untied", "several files")
    }
    assert [kind for kind, is_tied in heads.items() if is_tied] == ["dense", "bin", "head twice"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "of another shape",
            "lm_head.weight of shape 266×32 for 301×32, model.embed_tokens.weight of shape 266×32 for",
        ),
        ("missing", "1 is missing (model.layers.1.mlp.up_proj.weight), which would be initialized randomly"),
        ("missing file", "No such file or directory: "),
        ("truncated", "SafetensorError: "),
    ],
)
def test_a_model_that_one_process_refuses_is_refused_by_every_rank_in_the_same_words(loaded, kind, said):
    (sentence,) = loaded[0][kind]
    assert said in sentence
    assert loaded[1][kind] == [sentence] * gradients.WRITING


def test_what_only_ranks_refuse_is_refused_by_each_of_them(loaded):
    unreadable, quantized = loaded[1]["unreadable by rank 1"], loaded[1]["quantized"]
    assert len(unreadable) == len(quantized) == gradients.WRITING
    ((sentence,), (other,)) = set(unreadable), set(quantized)
    assert sentence.startswith("rank 1: model.name = ")
    assert sentence.endswith("cannot be loaded: [Errno 5] Input/output error")
    assert "are quantized and stay so, which is for one process: they cannot be sharded over 3 ranks" in other


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
