"""Tests of stop strings in sampled tokens: a stop string need not be a token, and may end inside one."""

import pytest
import torch
from transformers import Qwen2Tokenizer

from sspo_cli.policy.tiny import CHAT_TEMPLATE, tiny_tokenizer
from sspo_cli.rollout import torch_engine
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.stop_strings import StopStrings
from sspo_cli.rollout.torch_engine import TorchEngine

STOP = ("</execute>", "</solution>")
NEW_LINE, SPACE = "Ċ", "Ġ"  # as byte-level tokenizers write them
MERGES = [
    ("<", "/"),
    ("e", "x"),
    (">", NEW_LINE),
    (">", "."),
    ("ex", "e"),
    ("</", "exe"),
    ("</exe", "c"),
    ("t", "e"),
    (f">{NEW_LINE}", SPACE),
]


def merging_tokenizer() -> Qwen2Tokenizer:
    """Return a BPE tokenizer with tokens such as `</exec` and `>\\n `, but without a token for a whole tag."""
    characters = {token: i for token, i in tiny_tokenizer().get_vocab().items() if i < 259}
    vocabulary = {**characters, **{a + b: 259 + i for i, (a, b) in enumerate(MERGES)}}
    return Qwen2Tokenizer(
        vocab=vocabulary, merges=MERGES, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


TOKENIZER = merging_tokenizer()


def ids_of(*tokens: str) -> list[int]:
    ids = TOKENIZER.convert_tokens_to_ids(list(tokens))
    assert None not in ids
    return ids


SPELLINGS = {
    "merged": ["</exec", "u", "te", ">"],
    "ends inside a token": ["</exec", "u", "te", f">{NEW_LINE}"],
    "ends inside a longer token": ["</exec", "u", "te", f">{NEW_LINE}{SPACE}"],
    "with a stop behind": ["</exec", "u", "te", ">."],
    "letter by letter": [*"</execute>"],
    "otherwise merged": ["<", "/", "ex", "e", "c", "u", "t", "e", ">."],
    "the other one": [*"</solution>"],
}


@pytest.mark.parametrize("before", [[], [*"a>b"], ["x"] * 20], ids=["alone", "after text", "after much text"])
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_string_is_found_with_the_token_that_completes_it_and_not_before(spelling, before):
    ids = ids_of(*before, *spelling)
    written = torch.tensor([ids, [5] * len(ids)])
    stopping = StopStrings(STOP, TOKENIZER, len(TOKENIZER))
    found = [stopping.completed(written, torch.tensor([1, 0]), step).tolist() for step in range(len(ids))]
    assert found == [[False, False]] * (len(ids) - 1) + [[False, True]]


@pytest.mark.parametrize("text", ["</execute", "<execute>", "</execut>e>", "< /execute>", "</Execute>", "execute>>>"])
def test_what_only_looks_like_one_is_none(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    stopping = StopStrings(STOP, TOKENIZER, len(TOKENIZER))
    rows = torch.tensor([0])
    assert not any(stopping.completed(torch.tensor([ids]), rows, step).any() for step in range(len(ids)))


def test_half_a_character_before_the_string_is_no_obstacle():
    stray = TOKENIZER.encode("é", add_special_tokens=False)[:1]
    ids = stray + ids_of(*"</execute>")
    stopping = StopStrings(STOP, TOKENIZER, len(TOKENIZER))
    assert stopping.completed(torch.tensor([ids]), torch.tensor([0]), len(ids) - 1).all()


def test_the_engine_ends_a_row_there_keeps_its_last_token_whole_and_continues_with_the_others(policy, monkeypatch):
    policy.__dict__["tokenizer"] = TOKENIZER  # the dataclass is frozen
    end = TOKENIZER.eos_token_id
    scripts = [
        ids_of(*"ab", "</exec", *"ute", f">{NEW_LINE}", *"zzz"),
        [*ids_of(*"cd"), end, *ids_of(*"zzzzzzz")],
        ids_of(*"</execution>"),
    ]
    left = [0, 1, 2]
    step = 0

    def scripted(logits, temperature, uniform, *truncation):
        nonlocal step
        chosen = torch.tensor([scripts[row][step] for row in left])
        step += 1
        return chosen, torch.zeros(len(left))

    selected = torch_engine._select

    def select(cache, rows):
        left[:] = [left[place] for place in rows.tolist()]
        selected(cache, rows)

    monkeypatch.setattr(torch_engine, "_sample", scripted)
    monkeypatch.setattr(torch_engine, "_select", select)
    sampling = Sampling(1.0, 10, seed=0, stop=STOP)
    groups = TorchEngine(policy, 8).generate(Request([[2, 10]] * 3, 1, sampling))
    (stopped,), (ended,), (cut,) = groups
    assert stopped.token_ids == scripts[0][:7]
    assert stopped.text == "ab</execute>\n"
    assert not stopped.truncated
    assert (ended.text, ended.truncated) == ("cd", False)
    assert (cut.token_ids, cut.truncated) == (scripts[2][:10], True)
