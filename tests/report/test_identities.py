"""Scores with different problems, golds, prompts, checks or samplers share no column, rank, mean or base."""

from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import evaluation, validation, write_run
from written_reports import Report

from sspo_cli.report.choices import best_configurations
from sspo_cli.report.collect import collect
from sspo_cli.tracking.measurement import IDENTITY, columns, differences
from sspo_cli.tracking.run_folder import RunFolder

KNOWN = dict.fromkeys(IDENTITY, "a") | {"identity": "a", "engine": "torch"}


def measured(step: int, correct: int, n: int = 200, benchmark: str = "mine", **changes: Any) -> dict[str, Any]:
    return evaluation(step, correct, n, benchmark=benchmark, **{**KNOWN, **changes})


def pair(trained: int, **changes: Any) -> list[dict[str, Any]]:
    """Return the evaluations before the first step and after the last; the first is 30 % unless `n` changes."""
    return [measured(0, 60 if "n" not in changes else 3, **changes), measured(12, trained, **changes)]


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("problems", "b", "on other problems"),
        ("engine", "vLLM", "by another sampler"),
        (None, None, "by an older version that recorded no fingerprints"),
    ],
)
def test_what_was_measured_differently_is_in_no_common_column(
    tmp_path: Path, part: str | None, value: str | None, said: str
) -> None:
    others = {part: value, "identity": "b"} if part else dict.fromkeys((*IDENTITY, "identity"))
    write_run(tmp_path / "runs" / "a", evaluations=pair(120))
    write_run(tmp_path / "runs" / "b", "objective.method=grpo", evaluations=pair(110))
    write_run(tmp_path / "runs" / "c", "objective.method=gspo", evaluations=pair(180, **others))
    report = Report(tmp_path / "runs", tmp_path / "out")
    rows = [row for row in report.rows("table1") if row["column"] != "Δ Avg"]
    heading = f"mine ({part} {value})" if part else "mine (not fingerprinted)"
    usual = f"mine ({part} {KNOWN[part]})" if part else "mine"
    cells = {(row["method"] or row["kind"], row["column"]): (round(float(row["value"])), row["mark"]) for row in rows}
    assert cells == {
        ("base", usual): (30, ""),
        ("sspo", usual): (60, "best"),
        ("grpo", usual): (55, "second, strongest baseline"),
        ("base", heading): (30, "second"),
        ("gspo", heading): (90, "best, strongest baseline"),
    }
    gains = {row["method"]: float(row["value"]) for row in report.rows("table1") if row["column"] == "Δ Avg"}
    assert gains == {"sspo": 30.0, "grpo": 25.0}  # GSPO has no Δ Avg, and the other rows keep theirs
    assert any("GSPO" in note and "has no Δ Avg: it lacks mine" in note for note in report.notes("table1"))
    assert f"Some were measured {said}." in report.text


def test_equal_identities_share_a_column_and_its_note_names_the_sampler(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", evaluations=pair(120))
    write_run(tmp_path / "runs" / "b", "seed=1", evaluations=pair(140))
    report = Report(tmp_path / "runs", tmp_path / "out")
    assert report.trained("mine") == {"0, 1": pytest.approx(65.0)}
    assert any("sampled by torch, fingerprint of the problems and golds a" in note for note in report.notes("table1"))
    assert "have separate columns" not in report.text


def test_runs_of_an_older_version_are_said_to_be_unchecked(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    report = Report(tmp_path / "runs", tmp_path / "out")
    assert report.trained() == {"0": 60.0}
    assert any("recorded without fingerprints" in note for note in report.notes("table1"))


def test_every_part_of_an_identity_keeps_numbers_apart() -> None:
    said = {
        "problems": "on other problems",
        "messages": "with another prompt",
        "rendered": "with another chat template or tokenizer",
        "checker": "by another version of the answer check",
        "engine": "by another sampler",
    }
    assert tuple(said) == IDENTITY
    for part, how in said.items():
        rows = [measured(0, 1), measured(0, 1, **{part: "b"})]
        assert columns(rows, ["8B"] * 2) == [f"mine ({part} {KNOWN[part]})", f"mine ({part} b)"]
        assert differences(*rows, same_model=True) == [how]
        assert differences(*rows, same_model=False) == ([] if part == "rendered" else [how])
    older = measured(0, 1, **dict.fromkeys(IDENTITY))
    assert columns([*rows[:1], older], ["8B"] * 2) == ["mine", "mine (not fingerprinted)"]
    assert differences(rows[0], older, same_model=True)
    assert not differences(older, older, same_model=True)


def test_models_read_one_prompt_through_chat_templates_of_their_own() -> None:
    rows = [measured(0, 1), measured(0, 1, rendered="b"), measured(0, 1, rendered="c")]
    assert columns(rows, ["8B", "14B", "14B"]) == ["mine (rendered a)", "mine (rendered b)", "mine (rendered c)"]
    assert columns(rows[:2], ["8B", "14B"]) == ["mine", "mine"]
    assert columns(rows[:2], ["8B", "8B"]) == ["mine (rendered a)", "mine (rendered b)"]


def test_a_heading_says_only_what_distinguishes_columns() -> None:
    rows = [
        measured(0, 1),
        measured(0, 1, n=100, problems="b"),
        measured(0, 1, problems="c", rendered="c", checker="c"),
    ]
    assert columns(rows, ["8B"] * 3) == [
        "mine (n 200, problems a)",
        "mine (n 100, problems b)",
        "mine (n 200, problems c)",
    ]
    assert columns(rows[:2], ["8B"] * 2) == ["mine (n 200)", "mine (n 100)"]


def test_one_run_measured_with_another_n_or_on_more_takes_the_gain_from_no_other(tmp_path: Path) -> None:
    methods = ("sspo", "grpo", "gspo", "sapo")
    for method, trained in zip(methods, (120, 110, 100, 90), strict=True):
        write_run(tmp_path / "runs" / method, f"objective.method={method}", evaluations=pair(trained))
    odd = [*pair(45, n=50, problems="b"), *pair(3, n=30, benchmark="aime25")]
    write_run(tmp_path / "runs" / "odd", "objective.method=gmpo", evaluations=odd)
    report = Report(tmp_path / "runs", tmp_path / "out")
    gains = {row["method"]: float(row["value"]) for row in report.rows("table1") if row["column"] == "Δ Avg"}
    assert gains == {"sspo": 30.0, "grpo": 25.0, "gspo": 20.0, "sapo": 15.0}
    notes = report.notes("table1")
    assert any("Δ Avg in" in note and "it leaves out aime25, mine (n 50)" in note for note in notes)


def test_validations_of_other_problems_choose_nothing(tmp_path: Path) -> None:
    for place, problems in enumerate("ab"):
        rows = [validation(12, 60 + place, **{**KNOWN, "problems": problems})]
        write_run(tmp_path / str(place), f"objective.tau_pos=0.{place + 1}", evaluations=[*pair(120), *rows])
    groups = collect([tmp_path]).groups
    chosen, notes = best_configurations(groups, "last")
    assert chosen == groups
    assert "they have no common validation to choose by" in notes[0]


def test_the_best_checkpoint_is_chosen_among_comparable_validations(tmp_path: Path) -> None:
    rows = [validation(step, correct, **KNOWN) for step, correct in ((0, 20), (4, 50), (8, 60), (12, 55))]
    rows[1] |= {"problems": "b", "pass_at_1": 0.9, "correct": 90}
    run = RunFolder(write_run(tmp_path / "a", evaluations=[*pair(120), *rows]))
    for row in rows:
        (run.checkpoints / f"step-{row['step']}").mkdir()
    assert run.choose_best() == 8
    (record,) = collect([run.path]).runs
    assert record.selected_step("best") == 8


def test_runs_that_left_out_other_training_problems_are_not_averaged(tmp_path: Path) -> None:
    overlap = {"task": "codeact", "benchmark": "math500", "rows": 12, "of": 4000, "problems": 9}
    for seed, fingerprint in enumerate(("x", "x", "y", None)):
        run = RunFolder(write_run(tmp_path / "runs" / str(seed), f"seed={seed}"))
        left_out = {"problems": 12, "fingerprint": fingerprint} if fingerprint else None
        data = {
            "problems": 3988,
            "fingerprint": "f",
            "overlaps": [overlap] if fingerprint else [],
            "left_out": left_out,
        }
        run.note_data(data, [1, 2])
    report = Report(tmp_path / "runs", tmp_path / "out")
    assert report.trained().keys() == {"0, 1", "2", "3"}
    note = "12 of the 4,000 rows of codeact ask 9 problems of math500; they are left out of training (3 runs)."
    assert note in report.notes("table1")


def test_a_benchmark_that_was_trained_on_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "a", evaluations=pair(120, trained_on=7))
    report = Report(tmp_path / "runs", tmp_path / "out")
    assert (
        f"`{run}` (seed 0) was trained on 7 of the 200 problems of mine, so its score there is not a test result."
        in report.text
    )
