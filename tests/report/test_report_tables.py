import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import evaluation, validation, write_bare_model, write_run

from sspo_cli.report.collect import collect
from sspo_cli.report.frame import gain
from sspo_cli.report.groups import mean_over_seeds
from sspo_cli.report.table import BASELINE, BEST, SECOND, Cell, Table, ranks_and_marks
from sspo_cli.report.tables import tables


def wilson_by_hand(correct: int, n: int) -> tuple[float, float]:
    p, z = correct / n, 1.959963984540054
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * (middle - half) / (1 + z * z / n), 100 * (middle + half) / (1 + z * z / n)


def table_of(path: Path, name: str = "table1", **how: Any) -> Table:
    (table,) = (table for table in tables(collect([path], **how)) if table.name == name)
    return table


def names_of(path: Path, **how: Any) -> list[str]:
    return [table.name for table in tables(collect([path], **how))]


def numbers(table: Table, **which: Any) -> dict[str, Any]:
    """Return the only row of the frame that has the values `which`."""
    (row,) = (row for row in table.frame.to_dict("records") if all(row[name] == value for name, value in which.items()))
    return row


def markdown_rows(table: Table) -> list[list[str]]:
    lines = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (lines[0], *lines[2:])]


def before_and_after(correct: int, **changes: Any) -> list[dict[str, Any]]:
    return [evaluation(0, 60, **changes), evaluation(12, correct, **changes)]


def test_several_seeds_are_averaged_and_do_not_narrow_the_interval(tmp_path: Path) -> None:
    for seed, correct in enumerate((100, 110, 121)):
        write_run(tmp_path / str(seed), f"seed={seed}", evaluations=before_and_after(correct))
    table = table_of(tmp_path)
    row = numbers(table, kind="trained", column="arithmetic")
    assert row["value"] == pytest.approx(100 * 331 / 600)
    assert row["sd"] == pytest.approx(5.2520, abs=1e-4)  # of 50, 55 and 60.5, with n - 1 = 2
    assert (row["low"], row["high"]) == pytest.approx(wilson_by_hand(110, 200))  # 110.33 solved of 200
    assert (row["lowest_seed"], row["highest_seed"]) == (50, 60.5)
    assert (row["seeds"], row["n"]) == ("0, 1, 2", 200)
    assert markdown_rows(table)[1:] == [
        ["base", "", "", "<u>30.0</u> [24.1, 36.7]", "–"],
        ["SSPO", "atanlog", "0, 1, 2", "**55.2 ± 5.3** [48.1, 61.7]", "+25.2"],
    ]


def test_a_cell_that_lacks_a_seed_of_its_row_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "seed=3", evaluations=[*before_and_after(120), evaluation(12, 9, 30, "aime25")])
    write_run(tmp_path / "b", "seed=4", evaluations=before_and_after(120))
    notes = [note for note in table_of(tmp_path).notes if "only" in note]
    assert notes == ["SSPO atanlog in tiny model (3 layers of 64), arithmetic: aime25 was measured for seed 3 only."]


def test_samples_are_shares_of_problems_in_the_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations=[evaluation(12, 37, n=30, samples=4, temperature=0.6)])
    row = numbers(table_of(tmp_path), kind="trained")
    assert row["value"] == pytest.approx(100 * 37 / 120)
    assert (row["low"], row["high"]) == pytest.approx(wilson_by_hand(9, 30))  # 9.25 of 30 solved
    notes = "\n".join(table_of(tmp_path).notes)
    assert "n = 30 problems, mean of 4 samples, temperature 0.6, at most 48 new tokens, prompt `think-answer`" in notes


def test_the_layout_of_table_1(tmp_path: Path) -> None:
    math500 = [evaluation(step, correct, n=30, benchmark="math_500") for step, correct in ((0, 3), (12, 9))]
    for name, correct, *overrides in (
        ("a", 121, "objective.gate=atanlog"),
        ("b", 100, "objective.method=grpo"),
        ("c", 121, "objective.gate=siglog"),
        ("d", 99, "objective.method=gspo"),
        ("e", 110, "objective.method=sequence", "objective.gate=sigmoid"),
    ):
        write_run(tmp_path / name, *overrides, evaluations=[*before_and_after(correct), *math500])
    assert markdown_rows(table_of(tmp_path)) == [
        ["Method", "Gate", "Seeds", "arithmetic", "math_500", "Δ Avg"],
        ["base", "", "", "30.0 [24.1, 36.7]", "<u>10.0</u> [3.5, 25.6]", "–"],
        ["GRPO", "clip", "0", "*50.0* [43.1, 56.9]", "***30.0*** [16.7, 47.9]", "*+20.0*"],
        ["GSPO", "clip", "0", "49.5 [42.6, 56.4]", "***30.0*** [16.7, 47.9]", "+19.8"],
        ["SSPO", "atanlog", "0", "**60.5** [53.6, 67.0]", "**30.0** [16.7, 47.9]", "**+25.2**"],
        ["SSPO", "siglog", "0", "**60.5** [53.6, 67.0]", "**30.0** [16.7, 47.9]", "**+25.2**"],
        ["sequence", "sigmoid", "0", "<u>55.0</u> [48.1, 61.7]", "**30.0** [16.7, 47.9]", "<u>+22.5</u>"],
    ]
    notes = "\n".join(table_of(tmp_path).notes)
    for said in (
        "base: the evaluation before the first step of RL and after the cold start (700 supervised steps)",
        "finished runs, measured after their last step",
        "95 % Wilson interval",
        "GRPO: seed 0: `b`",
        "arithmetic: test split, n = 200 problems, 1 sample, greedy",
    ):
        assert said in notes


def test_the_gain_is_computed_from_the_cells_as_printed() -> None:
    assert gain({"a": 88.88, "b": 0.0}, {"a": 66.62}) == pytest.approx(22.3)  # 88.9 - 66.6, not 22.26
    assert gain({"a": 50.04, "b": 20.04, "c": 9.96}, {"a": 40.0, "b": 20.0, "c": 10.0}) == pytest.approx(10 / 3)
    assert gain({"a": 50.0}, {"a": 40.0, "b": 20.0}) is None
    assert gain({"a": 50.0}, {}) is None


def test_a_benchmark_that_is_missing_leaves_no_gain_and_one_without_a_base_no_part_in_it(tmp_path: Path) -> None:
    more = [evaluation(0, 3, n=30, benchmark="math500"), evaluation(12, 9, n=30, benchmark="math500")]
    write_run(tmp_path / "a", evaluations=[*before_and_after(120), *more, evaluation(12, 3, n=30, benchmark="aime25")])
    write_run(tmp_path / "b", "objective.method=grpo", evaluations=before_and_after(100))
    table = table_of(tmp_path)
    assert numbers(table, column="Δ Avg")["value"] == pytest.approx((30 + 20) / 2)
    notes = "\n".join(table.notes)
    assert (
        "Δ Avg leaves out aime25, on which the base of tiny model (3 layers of 64), arithmetic was not measured."
        in notes
    )
    assert "GRPO in tiny model (3 layers of 64), arithmetic has no Δ Avg: it lacks math500." in notes


def test_marks_are_shared_and_go_by_what_is_printed() -> None:
    marked = ranks_and_marks([16.7, 16.6667, None, 20.0, 13.3, 13.25], [False, False, True, False, True, True])
    assert [rank for rank, _ in marked] == [2, 2, None, 1, 3, 4]
    assert [set(marks) for _, marks in marked] == [{SECOND}, {SECOND}, set(), {BEST}, {BASELINE}, set()]
    # A single score has no score to compare it with.
    assert ranks_and_marks([None, 5.0], [False, True]) == [(None, frozenset()), (1, frozenset())]


def test_a_best_baseline_is_bold_and_italic_in_every_form() -> None:
    cell = Cell("1_0 %", "[0, 2]", frozenset({BEST, BASELINE}), 10.0)
    second = Cell("9", marks=frozenset({SECOND}))
    table = Table("t", "a|b & c", None, ["x & y", "z"], ["block", [cell, second]])
    assert "| ***1_0 %*** [0, 2] | <u>9</u> |" in table.to_markdown()
    assert r"**a\|b & c**" in table.to_markdown()
    assert '<td data-sort="10.0"><b><i>1_0 %</i></b> <small>[0, 2]</small></td><td><u>9</u></td>' in table.to_html()
    assert '<th scope="col">x &amp; y</th>' in table.to_html()
    assert r"\textbf{\textit{1\_0 \%}} {\scriptsize {[}0, 2{]}} & \underline{9} \\" in table.to_latex()
    assert r"\multicolumn{2}{l}{block} \\" in table.to_latex()


def test_only_finished_runs_that_were_measured_at_their_end_are_in_it(tmp_path: Path) -> None:
    write_run(tmp_path / "failed", last=12, state="failed", evaluations=[evaluation(0, 60), evaluation(12, 200)])
    write_run(tmp_path / "unmeasured", "seed=1", evaluations=[evaluation(0, 60), evaluation(6, 20)])
    assert set(table_of(tmp_path).frame["kind"]) == {"base"}
    write_run(tmp_path / "whole", "seed=2", evaluations=[evaluation(0, 60), evaluation(12, 120)])
    row = numbers(table_of(tmp_path), kind="trained", column="arithmetic")
    assert (row["value"], row["seeds"]) == (60, "2")
    assert numbers(table_of(tmp_path), kind="base")["value"] == 30


def test_without_an_evaluation_there_are_only_the_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations=[])
    assert names_of(tmp_path) == ["runs"]
    row = table_of(tmp_path, "runs").frame.to_dict("records")[0]
    assert (row["state"], row["steps"], row["validation"], row["seconds"]) == ("finished", 12, None, None)


def test_measurements_with_other_settings_are_other_columns(tmp_path: Path) -> None:
    sampled = evaluation(12, 360, temperature=1.0, samples=4)
    write_run(tmp_path / "a", evaluations=[*before_and_after(120), sampled, evaluation(12, 30, n=40)])
    headings, _, trained = markdown_rows(table_of(tmp_path))
    assert dict(zip(headings, trained, strict=True)) == {
        "Method": "SSPO",
        "Gate": "atanlog",
        "Seeds": "0",
        "arithmetic (n 200, samples 1, temperature 0.0)": "**60.0** [53.1, 66.5]",
        "arithmetic (n 200, samples 4, temperature 1.0)": "45.0 [38.3, 51.9]",
        "arithmetic (n 40, samples 1, temperature 0.0)": "75.0 [59.8, 85.8]",
        "Δ Avg": "+30.0",
    }


def test_a_model_that_was_only_measured_has_its_own_row(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "model.name=Qwen/Qwen3-8B")
    write_bare_model(tmp_path / "model-qwen3", "Qwen/Qwen3-8B", [evaluation(0, 40)])
    write_bare_model(tmp_path / "model-other", "models/other", [evaluation(0, 50)])
    rows = markdown_rows(table_of(tmp_path))
    assert [(row[0], row[3], row[4]) for row in rows] == [
        ("Method", "arithmetic", "Δ Avg"),
        ("**Qwen3-8B, gsm8k**", "", ""),
        ("base", "<u>30.0</u> [24.1, 36.7]", "–"),
        ("Qwen3-8B by sspo eval", "20.0 [15.0, 26.1]", "<u>-10.0</u>"),
        ("SSPO", "**60.0** [53.1, 66.5]", "**+30.0**"),
        ("**other**", "", ""),
        ("other by sspo eval", "25.0 [19.5, 31.4]", "–"),
    ]


def test_models_alone_are_reported(tmp_path: Path) -> None:
    write_bare_model(tmp_path / "model-other", "models/other", [evaluation(0, 50)])
    assert names_of(tmp_path) == ["table1"]


def test_of_several_configurations_validation_chooses_and_never_a_test(tmp_path: Path) -> None:
    def tried(tau: float, test: int, held_out: int) -> list[dict[str, Any]]:
        for seed in (0, 1):
            rows = [*before_and_after(test), validation(0, 10), validation(12, held_out + seed)]
            write_run(tmp_path / f"{tau}-{seed}", f"objective.tau_pos={tau}", f"seed={seed}", evaluations=rows)
        return rows

    tried(0.5, test=190, held_out=40)
    tried(0.2, test=120, held_out=50)
    table = table_of(tmp_path)
    assert numbers(table, kind="trained", column="arithmetic")["configuration"] == "tau_neg 0.3, tau_pos 0.2"
    shown = "SSPO atanlog (tau_pos 0.2) in tiny model (3 layers of 64), arithmetic is shown"
    why = "for its mean validation Pass@1 of 50.5 %; not shown: SSPO atanlog (tau_pos 0.5) 40.5."
    assert f"{shown} {why}" in table.notes
    assert len(table_of(tmp_path, "runs").frame) == 4
    write_run(tmp_path / "third", "objective.tau_pos=0.7", evaluations=before_and_after(150))
    table = table_of(tmp_path)
    assert sum(table.frame["kind"] == "trained") == 6  # 3 configurations in 2 columns, one of which is Δ Avg
    assert any("all 3 configurations are shown, because they have no common validation" in note for note in table.notes)


def test_the_best_step_by_validation_can_be_selected(tmp_path: Path) -> None:
    held_out = [validation(step, correct) for step, correct in ((0, 10), (4, 60), (8, 60), (12, 50))]
    tests = [evaluation(step, correct) for step, correct in ((0, 60), (4, 130), (8, 190), (12, 120))]
    write_run(tmp_path / "a", evaluations=[*held_out, *tests])
    write_run(tmp_path / "b", "seed=1", evaluations=tests)
    assert numbers(table_of(tmp_path), kind="trained", column="arithmetic")["value"] == 60
    table = table_of(tmp_path, select="best")
    row = numbers(table, kind="trained", column="arithmetic")
    # Seed 0 is best at step 4, the earlier of two equal steps. Seed 1 has no validation.
    assert (row["value"], row["seeds"]) == (65, "0")
    assert any("best step by Pass@1 on validation problems" in note for note in table.notes)
    best, last = (numbers(table_of(tmp_path, "runs", select=select), seed=0) for select in ("best", "last"))
    assert (best["best_step"], best["validation"], best["arithmetic"]) == (4, pytest.approx(60), 65)
    assert (last["best_step"], last["validation"], last["arithmetic"]) == (4, pytest.approx(50), 60)


def test_table_2_has_a_block_for_each_setting_and_a_row_for_each_method(tmp_path: Path) -> None:
    for model, better in (("Qwen/Qwen3-8B", 0), ("Qwen/Qwen3-14B", 20)):
        for name, correct, held_out, *overrides in (
            ("grpo", 100, 50, "objective.method=grpo"),
            ("atanlog", 110, 60, "objective.gate=atanlog"),
            ("siglog", 120, 55, "objective.gate=siglog"),
        ):
            rows = [*before_and_after(correct + better), validation(12, held_out)]
            write_run(tmp_path / f"{name}-{better}", f"model.name={model}", *overrides, evaluations=rows)
    assert markdown_rows(table_of(tmp_path, "table2")) == [
        ["Method", "arithmetic"],
        ["**Qwen3-8B, gsm8k**", ""],
        ["base", "30.0"],
        ["GRPO", "<u>*50.0*</u>"],
        ["SSPO atanlog", "**55.0**"],
        ["**Qwen3-14B, gsm8k**", ""],
        ["base", "30.0"],
        ["GRPO", "<u>*60.0*</u>"],
        ["SSPO atanlog", "**65.0**"],
    ]
    (tmp_path / "one").mkdir()
    write_run(tmp_path / "one" / "a")
    assert "table2" not in names_of(tmp_path / "one")


def test_every_run_is_in_the_appendix_with_what_it_differs_in(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "optimizer.learning_rate=1e-3", whole=True)
    write_run(
        tmp_path / "b", "objective.method=grpo", state="failed", last=5, reason="5 bad steps in a row", whole=True
    )
    grpo, sspo = table_of(tmp_path, "runs").frame.to_dict("records")
    assert (grpo["state"], grpo["step"], grpo["steps"], grpo["reason"]) == ("failed", 5, 12, "5 bad steps in a row")
    assert (sspo["seconds"], sspo["tokens"], sspo["arithmetic"]) == (6.0, 12 * 640, 60)
    assert math.isnan(grpo["arithmetic"])
    assert sspo["differences"] == "tau_neg 0.3, tau_pos 0.2, optimizer.learning_rate 0.001"
    (run,) = (run for run in collect([tmp_path]).runs if run.path.name == "a")
    assert sspo["reward"] == run.metrics["reward/mean"][12]


def test_a_run_of_another_setting_is_in_no_caption_and_in_no_row_of_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", "seed=1")
    other = ("cold_start.steps=100", "tasks=[{name: gsm8k, limit: 9}, {name: deepmath}]", "seed=2")
    write_run(tmp_path / "c", *other, state="failed", last=2, evaluations=[])
    assert any("after the cold start (700 supervised steps)" in note for note in table_of(tmp_path).notes)
    runs = {row["seed"]: row["differences"] for row in table_of(tmp_path, "runs").frame.to_dict("records")}
    assert runs == {0: "", 1: "", 2: ""}
    write_run(tmp_path / "d", *other[:1], "tasks=[{name: gsm8k}, {name: deepmath}]", "seed=3")
    settings = {row["seed"]: row["setting"] for row in table_of(tmp_path, "runs").frame.to_dict("records")}
    assert "{" not in "".join(settings.values())


def test_numbers_that_all_print_alike_are_not_marked(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations=[evaluation(0, 0), evaluation(12, 0)])
    write_run(tmp_path / "b", "objective.method=grpo", evaluations=[evaluation(0, 0), evaluation(12, 0)])
    assert "**" not in "".join(cell for row in markdown_rows(table_of(tmp_path))[1:] for cell in row)


def test_offline_runs_say_how_they_get_to_wandb(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b c", "d")):
        write_run(tmp_path / name, f"seed={seed}")
    for name in ("a", "b c"):
        (tmp_path / name / "wandb" / "offline-run-1").mkdir(parents=True)
    (note,) = (note for note in table_of(tmp_path, "runs").notes if "wandb" in note)
    assert note == (
        f"To send the 2 offline runs to wandb: `wandb sync {tmp_path}/a/wandb/offline-run-* "
        f"'{tmp_path}/b c'/wandb/offline-run-*`"
    )


def test_the_plain_forms_carry_the_numbers_ranks_and_marks(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations=before_and_after(121))
    write_run(tmp_path / "b", "objective.method=grpo", evaluations=before_and_after(100))
    table = table_of(tmp_path)
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    (grpo,) = (row for row in rows if (row["method"], row["column"]) == ("grpo", "arithmetic"))
    assert (grpo["value"], grpo["n"], grpo["rank"], grpo["mark"]) == ("50.0", "200", "2", "second, strongest baseline")
    whole = json.loads(table.to_json())
    assert whole["notes"] == table.notes
    (base,) = (row for row in whole["rows"] if row["kind"] == "base")
    assert (base["value"], base["sd"], base["rank"]) == (30.0, None, 3)


def test_a_mean_over_seeds_stops_where_one_does(tmp_path: Path) -> None:
    write_run(tmp_path / "a", last=5, state="interrupted")
    write_run(tmp_path / "b", "seed=1", last=8, state="interrupted")
    (group,) = collect([tmp_path]).groups
    mean = mean_over_seeds(group.counted, "reward/mean")
    assert list(mean.index) == [1, 2, 3, 4, 5]
    one, other = (run.metrics["reward/mean"] for run in group.runs)
    assert mean[3] == pytest.approx((one[3] + other[3]) / 2)
    write_run(tmp_path / "c", "seed=2")
    (group,) = collect([tmp_path]).groups
    assert len(mean_over_seeds(group.counted, "reward/mean")) == 12  # only finished runs count once there is one


def test_how_many_answers_were_cut_stands_next_to_each_score(tmp_path: Path) -> None:
    """The base model has no truncated answer of 200; the two seeds have 30 and 50, which is 20 % on average."""
    for seed, cut in ((0, 30), (1, 50)):
        evaluations = [evaluation(0, 60), evaluation(12, 100, truncated=cut)]
        write_run(tmp_path / str(seed), f"seed={seed}", evaluations=evaluations)
    table = table_of(tmp_path)
    assert [row[3] for row in markdown_rows(table)[1:]] == [
        "<u>30.0</u> [24.1, 36.7]",
        "**50.0 ± 0.0** [43.1, 56.9], 20.0 % cut",
    ]
    assert numbers(table, kind="trained", column="arithmetic")["truncated"] == pytest.approx(20)
    assert any(note.startswith("% cut is the share of answers truncated at the token limit") for note in table.notes)
