"""Options must have their declared types and sensible sizes; unusable YAML and names are refused in one sentence."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from annotated_types import Le
from commands import Outcome, assert_error, sspo
from pydantic import BaseModel

from sspo_cli.config import BenchmarkOptions, LoraOptions, RunOptions, TaskOptions, VllmOptions, load_config
from sspo_cli.config.hints import nested_section
from sspo_cli.errors import UserError, quantity
from sspo_cli.sweep import load_sweep


def options_of_type(section: type[BaseModel], kinds: tuple[type, ...], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the options of the types `kinds` in a section and its subsections."""
    for name, field in section.model_fields.items():
        candidates = {field.annotation, *get_args(field.annotation)}
        for inner in [*candidates]:
            candidates |= set(get_args(inner))
        if candidates & set(kinds) and not candidates & {tuple, dict}:
            yield prefix + name
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and candidate not in LISTED:
                yield from options_of_type(candidate, kinds, f"{prefix}{name}.")


LISTED = (TaskOptions,)  # these are in a list, so no dotted key reaches them
NUMBERS = [*options_of_type(RunOptions, (int, float))]


def test_every_numeric_option_is_tried():
    assert len(NUMBERS) >= 48
    assert {"seed", "objective.tau_neg", "model.tiny.layers", "model.lora.rank", "cold_start.steps"} <= set(NUMBERS)


@pytest.mark.parametrize("value", ["true", "'8'", "on", "[1]", "{a: 1}", "2024-01-01", "1" + "0" * 24, "1e308", "''"])
@pytest.mark.parametrize("option", NUMBERS)
def test_what_is_no_number_of_a_sensible_size_is_refused(option: str, value: str):
    with pytest.raises(UserError) as raised:
        load_config([], [f"{option}={value}", *(["objective.method=grpo"] if ".eps_" in option else [])])
    assert option.rpartition(".")[2] in str(raised.value)


def bounded(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[float]]]:
    """Yield the dotted name and the upper bounds of each bounded option in a section and its subsections."""
    for name, field in section.model_fields.items():
        if bounds := [bound.le for bound in field.metadata if isinstance(bound, Le)]:
            yield prefix + name, bounds
        if (nested := nested_section(section, name)) and nested not in (*LISTED, BenchmarkOptions):
            yield from bounded(nested, f"{prefix}{name}.")


BOUNDED = dict(bounded(RunOptions))


def test_an_option_has_one_upper_bound_which_is_applied():
    assert (BOUNDED["model.lora.rank"], BOUNDED["threads"], BOUNDED["evaluation.max_new_tokens"]) == (
        [65536],
        [1024],
        [10**7],
    )
    for option, bounds in BOUNDED.items():
        (bound,) = bounds
        with pytest.raises(UserError, match="less than or equal to"):
            load_config([], [f"{option}={bound + 1}"])


@pytest.mark.parametrize("option", options_of_type(RunOptions, (bool,)))
@pytest.mark.parametrize("value", ["on", "1", "'true'", "yes"])
def test_what_is_no_boolean_is_refused(option: str, value: str):
    with pytest.raises(UserError, match=option):
        load_config([], [f"{option}={value}"])


def test_whole_numbers_may_stand_for_decimal_ones_and_lists_for_pairs():
    options = load_config([], ["objective.tau_neg=1", "optimizer.betas=[0, 0.5]", "model.lora={alpha: 8}"])
    assert (options.objective.tau_neg, options.optimizer.betas) == (1.0, (0.0, 0.5))
    assert options.model.lora == LoraOptions(alpha=8.0)
    with pytest.raises(UserError, match="betas"):
        load_config([], ["optimizer.betas=[true, 0.5]"])


def test_options_that_were_written_by_a_run_are_read_again():
    options = load_config([], ["model.lora={rank: 4}", "rollout.vllm={kv_cache_gib: 1}"])
    assert RunOptions.model_validate(options.model_dump(mode="json")) == options
    assert options.rollout.vllm == VllmOptions(kv_cache_gib=1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", ""], "unknown method ''"),
        (["--method", "~"], "unknown method '~'"),
        (["--method", "null"], "unknown method 'null'"),
        (["--gate", ""], "unknown gate ''"),
        (["--gate", "~"], "unknown gate '~'"),
        (["-s", "objective.method="], "`-s objective.method=` has no value"),
        (["-s", "objective.method=null"], "objective.method = null is not a method"),
        (["-s", "prompt=# no value"], "has no value"),
        (["--run", ""], "--run '' does not name a folder"),
        (["--run", "."], "--run . does not name a folder"),
        (["--run", "../outside"], "--run ../outside does not name a folder inside the runs folder"),
        (["--run", "a/../../outside"], "does not name a folder inside"),
        (["--run", "/outside"], "does not name a folder inside"),
        (["--run", "a" * 5000], "is too long"),
        (["--run", "a\nb"], "cannot be printed"),
        (["--run", "a\udcff"], "cannot be printed"),
        (["-s", "a." * 3000 + "a=1"], "no option has so many dots"),
        (["-s", f"prompt={'long ' * 1000}"], "unknown prompt template long"),
        (["-s", f"model.name={'x' * 5000}"], "cannot be loaded"),
        (["-s", f"steps={'x' * 5000}"], "`steps` = 'xxx"),
        (["-s", f"{'x' * 5000}=1"], "unknown option"),
        (["-c", "x" * 5000], "cannot be read: File name too long"),
    ],
)
def test_a_flag_is_taken_literally_and_a_sentence_is_short(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    done = sspo("train", *arguments)
    assert_error(done, said)
    assert len(done.stderr) < 1700
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"}


@pytest.mark.parametrize("command", [["sweep", "--name"], ["eval", "one", "--checkpoint"], ["sweep", "--ray"]])
def test_other_empty_names(tmp_path, command):
    (tmp_path / "sweep.yaml").write_text("")
    assert_error(sspo(*command, "", *(["-c", tmp_path / "sweep.yaml"] * (command[0] == "sweep"))), command[-1])


BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGED_LAUGHS = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
MALFORMED = {
    "impossible date": b"seed: 2024-13-45\n",
    "impossible time": b"seed: 2024-01-01T99:99:99\n",
    "date": b"tasks: [{name: 2024-01-01}]\n",
    "date for a key": b"2024-01-01: 1\n",
    "number for a key": b"1: 2\n",
    "null for a key": b"~: 2\n",
    "list for a key": b"? [a, b]\n: 2\n",
    "set": b"wandb: {tags: !!set {a, b}}\n",
    "binary": b"prompt: !!binary aGVsbG8=\n",
    "ordered mapping": b"model: !!omap [a: 1]\n",
    "python object": b"prompt: !!python/object/apply:os.system ['true']\n",
    "unknown tag": b"prompt: !mine plain\n",
    "wrong tag": b"steps: !!int many\n",
    "wrong boolean": b"steps: !!bool perhaps\n",
    "surrogate": b'prompt: "\\ud800"\n',
    "surrogate for a key": b'"\\ud800": 1\n',
    "null character": b'device: "\\0"\n',
    "5,000 digits": b"steps: " + b"9" * 5000 + b"\n",
    "5,000 hexadecimal digits": b"steps: 0x" + b"f" * 5000 + b"\n",
    "900 levels": b"tasks: " + b"[" * 900 + b"]" * 900 + b"\n",
    "900 open levels": b"tasks: " + b"[" * 900,
    "40 levels of sections": b"tasks: " + b"{a: " * 40 + b"1" + b"}" * 40 + b"\n",
    "aliases 40 levels deep": b"a0: &a0 [1]\n" + b"".join(b"a%d: &a%d [*a%d]\n" % (n, n, n - 1) for n in range(1, 40)),
    "UTF-16": "seed: 1\n".encode("utf-16"),
    "UTF-16 without a mark": "seed: 1\n".encode("utf-16-le"),
    "UTF-32": "seed: 1\n".encode("utf-32"),
    "alias of itself": b"tasks: &a [*a]\n",
    "sections of each other": b"model: &a {tiny: {lora: *a}}\n",
    "alias of nothing": b"tasks: *a\n",
    "alias bomb": BILLION_LAUGHS.encode(),
    "bomb of merged sections": MERGED_LAUGHS.encode(),
    "merge of a list": b"<<: [1, 2]\n",
    "two documents": b"seed: 1\n---\nseed: 2\n",
    "a list": b"- 1\n",
    "a word": b"seed\n",
    "control characters": b"seed: \x01\x02\n",
    "2 MB": b"# " + b"x" * 2_000_000,
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_yaml_is_one_sentence(tmp_path, content):
    (tmp_path / "bad.yaml").write_bytes(content)
    start = time.monotonic()
    assert_refused(sspo("train", "-c", tmp_path / "bad.yaml", "--runs-dir", tmp_path / "runs"), "bad.yaml")
    assert time.monotonic() - start < 60
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "/"])
def test_what_is_no_file_of_options_is_refused(path):
    assert_refused(sspo("train", "-c", path), path)


@pytest.mark.parametrize(
    "value", ["2024-13-45", "2024-01-01", "!!set {a}", "&a [*a]", "[" * 900, '"\\ud800"', "!x y", "*a"]
)
def test_an_override_has_the_same_border(value):
    assert_refused(sspo("train", "-s", f"prompt={value}"), "the value in `-s prompt=")


SWEEPS = {
    "a date in a grid": "grid: {steps: [2024-01-01]}\n",
    "a set in options": "options: {wandb.tags: !!set {a}}\n",
    "a list of itself": "grid: {wandb.tags: &a [*a]}\n",
    "true for a number": "grid: {steps: [true]}\n",
    "true for a seed": "seeds: [true]\n",
    "text for a seed": "seeds: ['1']\n",
    "a seed of 30 digits": f"seeds: [{10**30}]\n",
    "a key of many dots": f"grid: {{{'a.' * 3000}a: [1]}}\n",
    "its own best": "best_of: bad.yaml\n",
    "a ring": "best_of: ring/../other.yaml\n",
    "a number for a file": "best_of: 3\n",
    "base is a folder": "base: [.]\n",
    "10^12 trials": "grid: {" + ", ".join(f"s{n}: [{'1, ' * 10}]" for n in range(12)) + "}\n",
}


@pytest.mark.parametrize("text", SWEEPS.values(), ids=SWEEPS)
def test_malformed_sweeps_are_one_sentence(tmp_path, text):
    (tmp_path / "ring").mkdir()
    (tmp_path / "other.yaml").write_text("best_of: bad.yaml\n")
    (tmp_path / "bad.yaml").write_text(text)
    assert_refused(sspo("sweep", "-c", tmp_path / "bad.yaml", "--runs-dir", tmp_path / "runs", "--dry-run"), "")


def test_more_trials_are_an_option_and_a_trial_more_costs_no_more_than_the_one_before(tmp_path):
    """Expanding was once quadratic: four times as many trials took sixteen times as long."""
    seconds = []
    for count in (150, 600):
        (tmp_path / "sweep.yaml").write_text(f"seeds: {list(range(count // 10))}\ngrid: {{steps: {[*range(1, 11)]}}}\n")
        start = time.process_time()
        assert len(load_sweep(tmp_path / "sweep.yaml", [], tmp_path, most=600)) == count
        seconds.append(time.process_time() - start)
    assert seconds[1] < 9 * seconds[0]
    with pytest.raises(UserError, match=r"expands to 600 trials, more than 599; .* --max-trials"):
        load_sweep(tmp_path / "sweep.yaml", [], tmp_path, most=599)


def assert_refused(done: Outcome, said: str) -> None:
    """Check for one sentence on standard error of less than 1,700 characters."""
    assert_error(done, said)
    assert len(done.stderr) < 1700


def test_a_long_value_is_shortened_wherever_a_sentence_repeats_it():
    error = UserError(f"model.name = {'x' * 5000} cannot be loaded:\nfirst\tline \udcff; use another")
    assert str(error).startswith("model.name = xxxx")
    assert str(error).endswith("cannot be loaded: first line \\udcff; use another")
    assert len(str(error)) < 300
    assert len(str(UserError("word " * 5000))) <= 1600


def test_a_number_is_written_with_its_noun():
    assert [quantity(count, "problem") for count in (0, 1, 2)] == ["0 problems", "1 problem", "2 problems"]


def test_a_path_of_usual_length_is_not_shortened():
    path = Path("/tmp") / ("a" * 100) / ("b" * 100)
    assert str(path) in str(UserError(f"cannot read {path}: no such file"))
