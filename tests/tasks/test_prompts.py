"""Rendered prompts: one beginning of sequence, the right turns, and the opening of the completion."""

import pytest
from tokenizers.processors import TemplateProcessing

from sspo_cli.errors import UserError
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.tasks.prompts import TEMPLATES, Template, render
from sspo_cli.types import Problem

PROBLEM = Problem("1", "1+1?", "2", "test")


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def test_plain_is_the_question_alone(tokenizer):
    prompt = render(PROBLEM, "plain", tokenizer)
    assert prompt.text == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.problem is PROBLEM
    assert prompt.opening == ""


def test_think_answer_explains_the_format_in_a_system_turn(tokenizer):
    text = render(PROBLEM, "think-answer", tokenizer).text
    system, user = text.split("<|im_end|>\n")[:2]
    assert system == f"<|im_start|>system\n{TEMPLATES['think-answer']}"
    assert user == "<|im_start|>user\n1+1?"
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert tag in system


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_the_chat_template(tokenizer, name):
    prompt = render(PROBLEM, name, tokenizer)
    turns = [{"role": "system", "content": TEMPLATES[name]}] if TEMPLATES[name] else []
    turns.append({"role": "user", "content": PROBLEM.question})
    assert prompt.token_ids == tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(prompt.token_ids) == prompt.text


def test_a_tokenizer_that_adds_a_beginning_adds_no_second_one(tokenizer):
    beginning = tokenizer.pad_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{beginning} $A", special_tokens=[(beginning, tokenizer.pad_token_id)]
    )
    tokenizer.chat_template = beginning + tokenizer.chat_template
    assert tokenizer.encode(f"{beginning}1").count(tokenizer.pad_token_id) == 2
    assert render(PROBLEM, "plain", tokenizer).token_ids.count(tokenizer.pad_token_id) == 1


@pytest.mark.parametrize(
    ("ending", "opening"), [("<think>", "<think>"), ("<think>\n", "<think>"), ("<think>\n\n</think>\n\n", ""), ("", "")]
)
def test_opening_is_what_the_template_wrote(tokenizer, ending, opening):
    tokenizer.chat_template += "{{ '" + ending.replace("\n", "\\n") + "' }}"
    assert render(PROBLEM, "plain", tokenizer).opening == opening


def test_refusals_are_sentences(tokenizer):
    with pytest.raises(UserError, match="unknown prompt template think_answer; did you mean think-answer"):
        render(PROBLEM, "think_answer", tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system turn, please') }}"
    tokenizer.name_or_path = "some/model"
    with pytest.raises(
        UserError, match="some/model refuses the prompt template think-answer: TemplateError: no system turn, please"
    ):
        render(PROBLEM, "think-answer", tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="the tokenizer some/model has no chat template"):
        render(PROBLEM, "plain", tokenizer)


def test_a_chat_template_may_trim_a_turn_but_not_leave_it_out(tokenizer):
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content | trim }}{% endfor %}"
    assert render(PROBLEM, Template.of("plain", user=" {question}\n"), tokenizer).text == PROBLEM.question
    with pytest.raises(UserError, match="leaves out the system turn, 'Be brief"):
        render(PROBLEM, Template.of("plain", system="Be brief."), tokenizer)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1/0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ none + 1 }}", "TypeError"),
        ("{{ messages | map('upper'", "TemplateSyntaxError"),
        ("{% for i in range(10**9) %}{{ i }}{% endfor %}", "OverflowError"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "has not ended"),
        ("{{ 10**(10**10) }}", "has not ended"),
        ("{{ 'a' * 10**11 }}", "MiB of memory"),
        ("{{ 'a' * 10**8 }}", "it writes 100,000,000 characters|has not ended"),
        ("", "has no chat template"),
        ("{% if false %}x{% endif %}", "it writes nothing"),
        ("{% if true %}x{% endif %}", "leaves out the user turn"),
    ],
)
def test_a_chat_template_that_fails_in_any_way_is_one_sentence(tokenizer, monkeypatch, template, said):
    monkeypatch.setattr("sspo_cli.tasks.prompts.SECONDS", 1.0)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=said) as raised:
        render(PROBLEM, "plain", tokenizer)
    assert len(str(raised.value)) < 400
