"""A real pretrained model, SmolLM2-135M-Instruct (Q4_1, dequantized), agrees with its own `generate` and forward pass."""

import pytest
import torch
from shared_data import SHARED_DATA
from small_rows import gsm8k_row

from sspo_cli.config import ModelOptions
from sspo_cli.policy.model import load_policy
from sspo_cli.policy.pieces import token_pieces
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.prompts import render
from sspo_cli.types import Problem

CPU = torch.device("cpu")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEXTS = ["2345 + 17 = 2362", "naïve café", "答えは 12 です。", "🙂🙃👩‍👩‍👧 ok", "<think>日本</think> 🙂", " \n\t x  y"]


def gsm8k_prompts(policy, count: int) -> list[list[int]]:
    if (SHARED_DATA / "gsm8k").is_dir():
        problems = load_problems("gsm8k", path=str(SHARED_DATA / "gsm8k"), split="test", limit=count)
    else:
        made = [gsm8k_row(number) for number in range(count)]
        problems = [Problem(str(n), row["question"], "", "gsm8k") for n, row in enumerate(made)]
    return [render(problem, "think-answer", policy.tokenizer).token_ids for problem in problems]


def plain_logprobs(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Return the completion's log-probabilities [T], from one forward pass of prompt and completion."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def test_the_tokenizer_is_the_published_one(policy):
    tokenizer = policy.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids[:3] == [1, 9690, 198]  # <|im_start|>, system, a line break
    assert ids[-6:] == [2, 198, 1, 520, 9531, 198]  # assistant is two tokens
    assert tokenizer.decode(ids) == text
    assert policy.end_ids == [2]
    assert tokenizer.backend_tokenizer.decode(list(range(17)), skip_special_tokens=True) == ""
    assert len(tokenizer.encode("2345", add_special_tokens=False)) == 4  # one token per digit
    assert tokenizer.encode("<jupyter_code>", add_special_tokens=False) == [13]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(policy, text):
    ids = policy.tokenizer.encode(text, add_special_tokens=False)
    assert policy.tokenizer.decode(ids) == text
    for end in range(1, len(ids) + 1):
        pieces = token_pieces(policy.tokenizer, ids[:end])
        assert len(pieces) == end
        assert "".join(pieces) == policy.tokenizer.decode(ids[:end])


def test_greedy_tokens_are_those_of_generate(policy):
    prompts, tokens = gsm8k_prompts(policy, 8), 8
    groups = TorchEngine(policy, 8).generate(Request(prompts, 1, Sampling(0.0, tokens, seed=0)))
    for prompt, (completion,) in zip(prompts, groups, strict=True):
        ids = torch.tensor([prompt])
        expected = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
        assert completion.token_ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampler_and_policy_agree_with_a_plain_forward_pass(policy, model_folder, dtype):
    """The packed prompts have unequal lengths; bfloat16 rounds log-probabilities by up to a tenth of a nat."""
    from sspo_cli.model_check.compare import Row, batch_of

    exact, tolerance = policy.model, {"float32": 1e-4, "bfloat16": 0.3}[dtype]
    tried = policy if dtype == "float32" else load_policy(ModelOptions(name=str(model_folder), dtype=dtype), CPU)
    prompts = [
        policy.tokenizer.encode(text, add_special_tokens=False) for text in ("Once upon", "The sum of 2, 3 and 5 is")
    ]
    groups = TorchEngine(tried, 4).generate(Request(prompts, 2, Sampling(1.0, 16, seed=3)))
    drawn = [Row(prompt, c.token_ids) for prompt, group in zip(prompts, groups, strict=True) for c in group]
    by_sampler = [torch.tensor(c.sampling_logprobs) for group in groups for c in group]
    with torch.no_grad():
        by_policy, entropy = tried.logprobs(batch_of(drawn), 1.0)
    assert entropy.isfinite().all()
    differences = []
    for number, row in enumerate(drawn):
        expected = plain_logprobs(exact, row.prompt, row.completion)
        for values in (by_sampler[number], by_policy[number, : len(expected)]):
            differences.append((values - expected).abs())
    differences = torch.cat(differences)
    assert differences.max() <= tolerance
    assert differences.mean() <= tolerance / 5
    if dtype == "bfloat16":
        assert differences.max() > 1e-4  # it was computed in bfloat16
        assert all(parameter.dtype == torch.float32 for parameter in tried.parameters)
