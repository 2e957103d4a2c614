"""The documentation is true: its links, commands and options exist, its code runs, its computed tables are current."""

import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch
import typer
from commands import sspo
from generated_docs import generated

from sspo_cli.cli import app
from sspo_cli.config import RunOptions, load_config, option_named, task_from_text
from sspo_cli.config.listing import list_options
from sspo_cli.config.presets import find_config, find_preset
from sspo_cli.objectives import GATES, build_objective, conditions
from sspo_cli.sweep import load_sweep

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
OTHER_PROGRAMS = ("pip", "vllm", ".venv/bin/pre-commit", ".venv/bin/pytest", "wandb", "torchrun", "srun")
PLACEHOLDERS = {"NAME": "table1", "GB": "80", "N": "2", "FILE": "file.jsonl", "DIR": "folder"}
GROUP = typer.main.get_command(app)
PENDING: set[str] = set()  # pages that are being written


def code(page: Path, *kinds: str) -> list[str]:
    return [text for kind, text in FENCED.findall(page.read_text()) if kind in kinds]


def commands() -> list[tuple[str, str, bool]]:
    """Return the page and text of every command, and whether it is complete: inline code may leave arguments out."""
    found: dict[str, tuple[str, str, bool]] = {}
    for page in PAGES:
        for text in INLINE.findall(FENCED.sub("", page.read_text())):
            line = " ".join(text.split())
            if re.match(r"(sspo \w|make \w|python -m \w)", line) and "…" not in line:
                found.setdefault(line, (page.name, line, False))
    for page in PAGES:
        for line in "\n".join(code(page, "sh")).replace("\\\n", " ").splitlines():
            if command := line.partition(" #")[0].strip():
                found[command] = (page.name, command, True)
    return list(found.values())


def modules(folder: Path) -> None:
    """Write the Python blocks that begin with a file name, such as `# own_gate.py`, and link `configs` and `examples`."""
    for page in PAGES:
        for block in code(page, "python"):
            if name := re.match(r"# (\w+\.py)\n", block):
                (folder / name[1]).write_text(block)
    for name in ("configs", "examples"):
        (folder / name).symlink_to(ROOT / name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_to_files_and_headings(page):
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        path, _, heading = link.partition("#")
        if "://" in path or Path(path).name in PENDING:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_have_no_row_twice(page):
    for table in re.findall(r"(?:^\|.*\n)+", FENCED.sub("", page.read_text()), re.MULTILINE):
        named = re.findall(r"^\| *(`[^|]*`) *\|", table, re.MULTILINE)
        assert len(named) == len(set(named)), table


def test_generated_pages_are_current():
    for path, text in generated().items():
        assert path.read_text(encoding="utf-8") == text, "run `python -m tests.generated_docs`"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index and page.name != "README.md"
    ] == []


@pytest.mark.parametrize(("page", "line", "whole"), commands())
def test_commands_can_be_given(page, line, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    modules(tmp_path)
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line) if not word.startswith("[")]
    while words and "=" in words[0] and not words[0].startswith("-"):  # environment variables
        words.pop(0)
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program.removeprefix(".venv/bin/") == "python":
        check_python(*arguments[:2])
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", line)))) <= set(extras)
    elif program == "sspo":
        check_sspo(arguments, whole)
    else:
        assert program in OTHER_PROGRAMS


def check_python(target: str, module: str = "") -> None:
    """Find a script, a module of this repository (commands run at its root) or an installed module."""
    if target != "-m":
        assert (ROOT / target).exists()
    elif module.startswith("tests."):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
    else:
        assert importlib.util.find_spec(module)


def check_sspo(arguments: list[str], whole: bool) -> None:
    """Parse a command as `sspo` does, and resolve its options, tasks and trials without starting anything."""
    with GROUP.make_context("sspo", arguments, resilient_parsing=True) as group:
        name, command, rest = GROUP.resolve_command(group, arguments)
    given = command.make_context(name, rest, resilient_parsing=not whole).params
    if name == "sweep" and whole:
        check_sweep(find_config(given["config"], "sweeps/"), *(given["set_"] or []))
    elif name in ("train", "eval"):
        flags = {f"objective.{key}": given[key] for key in ("method", "gate") if given.get(key)}
        load_config([find_config(file) for file in given.get("config") or []], given.get("set_") or [], flags)
    elif name == "configs" and given["name"]:
        find_preset(given["name"])
    elif name == "options" and given["section"]:
        list_options(given["section"])
    for benchmark in given.get("benchmark") or []:
        task_from_text(benchmark, "test")


@cache
def check_sweep(file: Path, *overrides: str) -> None:
    assert load_sweep(file, overrides, Path("runs"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page):
    """Inline code such as `rollout.max_rows` or `learning.std=none` names an option."""
    for text in INLINE.findall(FENCED.sub("", page.read_text())):
        if name := re.match(r"(?:-s )?'?([a-z]+(?:\.[a-z_]+)+)(?=$|=|:)", text):
            section = name[1].partition(".")[0]
            if section in RunOptions.model_fields and section not in ("tasks",):
                assert option_named(name[1], RunOptions) == name[1], text


def test_yaml_blocks_of_sweeps_are_those_of_the_files():
    (block,) = code(ROOT / "docs" / "sweeps.md", "yaml")
    text = (ROOT / "configs" / "sweeps" / "table1.yaml").read_text()
    assert all(line in text for line in block.splitlines())


def test_the_table_of_conditions_is_computed():
    rows = re.findall(
        r"^\| `(\w+)` \| (yes|no) \| (yes|no) \| (yes|no) \| (yes|no) \|$",
        (ROOT / "docs/methods.md").read_text(),
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == list(GATES)
    for gate, *stated in rows:
        objective = build_objective(method="arithmetic", gate=gate)
        log_ratio = conditions._grid(torch.float64)
        log_f, w = conditions._evaluate(objective.gate_for, log_ratio)
        violations = (
            conditions._not_smooth(objective.gate_for, log_ratio),
            conditions._not_on_policy(log_ratio, log_f, w),
            conditions._no_bell(log_ratio, w),
            conditions._decreasing(log_ratio, w),
        )
        assert ["no" if violation else "yes" for violation in violations] == stated, gate


def test_the_objective_in_another_trainer_learns(capsys):
    runpy.run_path(str(ROOT / "examples" / "objective_in_another_trainer.py"), run_name="__main__")
    rewards = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert rewards[-1] > 0.8 > 0.2 > rewards[0]


def test_the_gate_of_the_examples_passes_the_check(monkeypatch, capsys):
    runpy.run_path(str(ROOT / "examples" / "own_gate.py"), run_name="__main__")
    assert "ρ = 1.0   w = 1.000" in capsys.readouterr().out
    monkeypatch.chdir(ROOT / "examples")
    monkeypatch.delitem(sys.modules, "own_gate", raising=False)
    build_objective(method="sspo", gate="own_gate:tanhlog")  # raises UserError if it breaks a condition
    done = sspo("train", "--gate", "own_gate:tanhlog", "--dry-run")
    assert "gate: own_gate:tanhlog" in done.stdout
