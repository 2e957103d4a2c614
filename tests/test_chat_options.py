"""User-defined system turn, user turn, chat template and options of the chat template."""

import json
from pathlib import Path

import pytest
from commands import assert_error, sspo

from sspo_cli.config import RunOptions, load_config, to_yaml
from sspo_cli.errors import UserError
from sspo_cli.evaluation.benchmark import Conditions
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.tasks.prompts import TEMPLATES, Template, render
from sspo_cli.types import Problem

PROBLEM = Problem("1", "\\frac{1}{2}+1?", "2", "test")
THINKING = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "system.txt").write_text("Be brief.\nBe right.\n")
    (tmp_path / "prompts" / "user").write_text("Solve:\n{question}\n")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[you]\n")


def options(*overrides: str) -> RunOptions:
    return load_config(overrides=overrides)


def rendered(given: RunOptions) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = given.chat.template or tokenizer.chat_template + THINKING
    return render(PROBLEM, given.template, tokenizer).text


def test_turns_of_one_s_own_take_the_place_of_the_template_s():
    text = rendered(options("prompt=think-answer", "chat.user=Q {question} A", "chat.system=Think."))
    assert text.startswith("<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\nQ \\frac{1}{2}+1? A<|im_end|>\n")
    assert TEMPLATES["think-answer"] in rendered(options("prompt=think-answer", "chat.user=Q {question} A"))
    assert "system" not in rendered(options("prompt=think-answer", "chat.system=''"))


def test_files_are_read_once_and_recorded_as_their_text(tmp_path):
    given = options("chat.system=prompts/system.txt", "chat.user=prompts/user", "chat.template=chat.jinja")
    assert rendered(given) == "[system] Be brief.\nBe right.\n[user] Solve:\n\\frac{1}{2}+1?\n[you]"
    (tmp_path / "again.yaml").write_text(to_yaml(given))
    for file in ("prompts/system.txt", "prompts/user", "chat.jinja"):
        (tmp_path / file).unlink()
    assert load_config([tmp_path / "again.yaml"]) == given


def test_options_of_the_chat_template():
    assert rendered(options()).endswith("assistant\n")
    assert rendered(options("chat.template_kwargs.enable_thinking=false")).endswith(
        "assistant\n<think>\n\n</think>\n\n"
    )
    for word in ("role", "endif"):  # in the template, but not among its variables
        with pytest.raises(UserError, match=f"has no option {word}; remove it"):
            rendered(options(f"chat.template_kwargs.{word}=x"))
    with pytest.raises(UserError, match="has no option enable_thinkin; remove it"):
        rendered(options("chat.template_kwargs.enable_thinkin=false"))


def test_measurements_with_other_prompts_are_distinguished():
    names = [
        Conditions.of(options(*overrides)).prompt
        for overrides in (
            (),
            ("chat.system=Think.",),
            ("chat.system=Think!",),
            ("chat.user=Think. {question}",),
            ("chat.template_kwargs={enable_thinking: true}",),
            ("prompt=think-answer", "chat.system=Think."),
        )
    ]
    assert names[0] == "plain"
    assert len(set(names)) == len(names)
    assert Template.of("plain", "Think.").name == names[1]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("chat.user=Solve it.", "chat.user = 'Solve it.' has no {question}"),
        ("chat.user=prompts/usr.txt", "prompts/usr.txt cannot be read: No such file or directory"),
        ("chat.system=prompts/absent.md", "prompts/absent.md cannot be read"),
        ("chat.template=absent.jinja", "absent.jinja cannot be read"),
        ("chat.template=chat", "chat.template = 'chat' is neither a Jinja template nor a file that holds one"),
        ("chat.system='Solve {question}'", "chat.system contains {question}"),
        ("chat.template_kwargs={messages: []}", "chat.template_kwargs.messages is set by sspo itself"),
        ("chat_template_kwargs={a: 1}", "unknown option `chat_template_kwargs`; did you mean `chat.template_kwargs`"),
    ],
)
def test_what_is_no_prompt_is_refused(override, said):
    with pytest.raises(UserError) as error:
        options(override)
    assert said in str(error.value)


def test_a_run_asks_so_and_its_checkpoint_keeps_the_chat_template(tmp_path):
    small = {
        "steps": 1,
        "cold_start__steps": 0,
        "model__tiny__hidden_size": 32,
        "model__tiny__heads": 1,
        "model__tiny__layers": 1,
        "rollout__prompts": 2,
        "rollout__group_size": 2,
        "rollout__max_new_tokens": 8,
        "learning__mu": 1,
        "evaluation__benchmarks": "[{name: arithmetic, split: test, limit: 2}]",
        "tasks": "[{limit: 9}]",
    }
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}=")
    own = {"chat__template": "chat.jinja", "chat__user": "2*{question}", "chat__system": "1+"}
    train = ("train", "--runs-dir", ".", "--run")
    done = sspo(*train, "one", **small, **own)
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "one" / "completions.jsonl").read_text().splitlines()[0])
    assert first["prompt"].startswith("1+2*")
    assert first["prompt"].endswith("=")
    saved = tmp_path / "one" / "checkpoints" / "step-1" / "chat_template.jinja"
    assert saved.read_text() == (tmp_path / "chat.jinja").read_text()
    (measured, *_) = json.loads((tmp_path / "one" / "eval" / "summary.json").read_text())
    assert measured["prompt"] == Template.of("plain", "1+", "2*{question}").name
    assert_error(sspo(*train, "two", **small, prompt="plan", chat__system="1+"), "unknown prompt template plan")
    assert not (tmp_path / "two").exists()
