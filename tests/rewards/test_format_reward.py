"""Tests of r_format, by cases and against the shared reading of appendix A."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import published

from sspo_cli.rewards import format_reward


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        (" \n<think>\na\n</think>\n \n<answer>\nb\n</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("<think>a</think> so <answer>b</answer>", 0.5),
        ("<think>a<answer>b</answer>", 0.5),
        ("<think>a</think></answer>", 0.5),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.5),
        ("<think>a</think><think>b</think><answer>c</answer>", 0.5),
        ("<think><answer>b</answer></think></answer>", 0.5),
        ("<think></answer>", 0.5),
        ("<think>a</think><answer>b</answer>.", 0.25),
        ("<think>", 0.25),
        ("a</think><answer>b</answer>", 0.25),
        ("</answer>", 0.25),
        ("Sure! <think>a</think><answer>b</answer> Done.", 0.0),
        ("<Think>a</Think><answer>b</ANSWER>", 0.0),
        ("", 0.0),
    ],
)
def test_cases(text, reward):
    assert format_reward(text) == reward


def test_agrees_with_the_shared_cases():
    file = published("outputs/format_cases.jsonl")
    cases = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(cases) == 13
    assert [format_reward(case["text"]) for case in cases] == [case["paper_r_format_literal"] for case in cases]


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "x"]), max_size=8).map("".join))
def test_full_reward_needs_the_four_tags_in_order_and_nothing_outside(text):
    bare = text.strip()
    positions = [bare.find(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    right = (
        positions == sorted(positions)
        and positions[0] == 0
        and all(bare.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
        and bare.endswith("</answer>")
        and not bare[positions[1] + len("</think>") : positions[2]].strip()
    )
    assert (format_reward(text) == 1.0) == right


@pytest.mark.parametrize("piece", ["<think>", "</think> ", "<answer>", " \n", "<think></think>"])
def test_long_nonsense_costs_no_time(piece):
    start = time.perf_counter()
    format_reward("<think>" + piece * 100_000 + "</answer>")
    assert time.perf_counter() - start < 1.0
