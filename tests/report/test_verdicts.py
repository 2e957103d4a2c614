"""The conclusions of a report: which differences count, which configuration was chosen, which runs are included."""

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy.stats import ttest_rel
from synthetic_runs import answer, evaluation, validation, write_run
from written_reports import Report

from sspo_cli.report.collect import collect
from sspo_cli.report.figures.scores import scores_by_step_figure
from sspo_cli.report.figures.sensitivity import sensitivity_figure
from sspo_cli.report.figures.training import training_figure
from sspo_cli.tracking.files import read_jsonl, write_jsonl_atomic

GRPO, ATANLOG, SIGLOG = ("objective.method=grpo",), ("objective.gate=atanlog",), ("objective.gate=siglog",)


def write_seeds(path: Path, overrides: Sequence[str], correct: Mapping[int, int]) -> None:
    """Write a run for each seed; `correct` holds how many of 200 problems the seed solves after training."""
    for seed, solved in correct.items():
        rows = [evaluation(0, 60), evaluation(12, solved), validation(12, 50)]
        write_run(path / f"{'-'.join(overrides)}-{seed}", *overrides, f"seed={seed}", evaluations=rows)


def seed_by_seed(correct: Sequence[int]) -> dict[int, int]:
    return dict(enumerate(correct))


# How many of 200 problems each seed solves under GRPO, atanlog and siglog, and the expected verdict at p < 0.05. Holm's
# correction multiplies the three p values of the paired t-tests, smallest first, by 3, 2 and 1, and makes none smaller
# than the previous one.
FAMILIES = [
    # p = 0.0009, 0.032, 0.046 become 0.003, 0.064, 0.064; all three are below 0.05 without the correction.
    ([101, 104, 98, 105], [145, 137, 137, 152], [119, 134, 104, 129], "1 of 3, SSPO atanlog − GRPO (+20.4)"),
    # p = 0.0021, 0.020, 0.047 become 0.006, 0.039, 0.047; Bonferroni's 3 × 0.020 would be above 0.05.
    (
        [101, 103, 105, 99],
        [157, 138, 147, 149],
        [125, 135, 120, 111],
        "3 of 3, SSPO siglog − SSPO atanlog (-12.5), SSPO atanlog − GRPO (+22.9), SSPO siglog − GRPO (+10.4)",
    ),
]


@pytest.mark.parametrize(("grpo", "atanlog", "siglog", "said"), FAMILIES)
def test_the_verdict_is_by_holm_s_p(
    tmp_path: Path, grpo: list[int], atanlog: list[int], siglog: list[int], said: str
) -> None:
    for overrides, correct in ((GRPO, grpo), (ATANLOG, atanlog), (SIGLOG, siglog)):
        write_seeds(tmp_path / "runs", overrides, seed_by_seed(correct))
    report = Report(tmp_path / "runs", tmp_path / "out")
    assert report.verdict("arithmetic") == said
    p = [float(ttest_rel(a, b).pvalue) for a, b in ((siglog, atanlog), (atanlog, grpo), (siglog, grpo))]
    assert max(p) < 0.05
    first, second, third = sorted(p)
    by_holm = {first: 3 * first, second: max(3 * first, 2 * second), third: max(3 * first, 2 * second, third)}
    rows = [row for row in report.rows("seeds") if row["quantity"] == "arithmetic"]
    assert [float(row["p_t"]) for row in rows] == pytest.approx(p)
    assert [float(row["p_t_holm"]) for row in rows] == pytest.approx([by_holm[value] for value in p])
    assert [float(row["p_exact"]) for row in rows] == [1 / 8] * 3  # all four differences have one sign: 2 of 16 flips
    assert [float(row["p_exact_holm"]) for row in rows] == [3 / 8] * 3
    assert [int(row["above"]) for row in rows] == [0, 4, 4]
    beyond = [value for value in p if by_holm[value] < 0.05]
    assert said.startswith(f"{len(beyond)} of 3")


def test_differences_within_the_noise_of_seeds_are_not_reported_as_beyond_it(tmp_path: Path) -> None:
    """Compare configurations of three, three and two seeds, with two samples of each of 200 problems."""
    correct = {GRPO: [100, 110, 90], ATANLOG: [120, 110, 95], SIGLOG: [119, 90]}
    for overrides, seeds in correct.items():
        for seed, solved in enumerate(seeds):
            rows = [evaluation(12, solved, samples=2, temperature=1.0)]
            write_run(tmp_path / "runs" / f"{overrides[0]}-{seed}", *overrides, f"seed={seed}", evaluations=rows)
    report = Report(tmp_path / "runs", tmp_path / "out")
    assert report.verdict("arithmetic") == "none of 3"
    assert "noise of seeds, by a paired t-test over seeds with Holm's correction" in report.text
    found = {
        (row["configuration"], row["against"]): (float(row["difference"]), int(row["above"]), int(row["n"]))
        for row in report.rows("seeds")
        if row["quantity"] == "arithmetic"
    }
    assert found == {
        ("SSPO atanlog", "GRPO"): (pytest.approx(100 * 25 / 1200), 2, 3),  # above in 2 of 3 seeds and equal in one
        ("SSPO siglog", "GRPO"): (pytest.approx(-100 * 1 / 800), 1, 2),
        ("SSPO siglog", "SSPO atanlog"): (pytest.approx(-100 * 21 / 800), 0, 2),
    }
    assert "It cannot be below 0.5 with 2 seeds and 0.25 with 3 seeds;" in "\n".join(report.notes("seeds"))


@pytest.mark.parametrize("common", [(1, 2, 3), (1, 3)])
def test_seeds_are_paired_by_number_and_those_without_a_partner_are_left_out(
    tmp_path: Path, common: tuple[int, ...]
) -> None:
    """GRPO has the better mean over all of its seeds, so SSPO is compared with it."""
    grpo, atanlog = {1: 120, 2: 90, 3: 111}, {1: 130, 2: 104, 3: 117}
    write_seeds(tmp_path / "runs", GRPO, {0: 180} | {seed: grpo[seed] for seed in common})
    write_seeds(tmp_path / "runs", ATANLOG, {seed: atanlog[seed] for seed in common} | {5: 60})
    rows = Report(tmp_path / "runs", tmp_path / "out").rows("seeds")
    assert [row["quantity"] for row in rows] == ["arithmetic", "reward"]  # validation chooses and is not a result
    row = rows[0]
    assert (row["configuration"], row["against"], row["n"]) == ("SSPO atanlog", "GRPO", str(len(common)))
    assert row["seeds"] == ", ".join(map(str, common))
    differences = [(atanlog[seed] - grpo[seed]) / 2 for seed in common]  # 5, 7 and 3 points
    assert float(row["difference"]) == fmean(differences)
    assert float(row["sd"]) == pytest.approx(stdev(differences))
    assert float(row["p_exact"]) == 2 / 2 ** len(common)
    test = ttest_rel([atanlog[seed] for seed in common], [grpo[seed] for seed in common])
    assert float(row["p_t"]) == pytest.approx(test.pvalue)
    interval = [end / 2 for end in test.confidence_interval()]
    assert (float(row["low"]), float(row["high"])) == pytest.approx(interval)


# ---- problem by problem


def write_answered(path: Path, overrides: Sequence[str], seeds: Sequence[Sequence[set[int]]], n: int) -> None:
    """Write a run for each seed on n problems; `seeds` holds the set of solved problems of each sample of each seed."""
    for seed, samples in enumerate(seeds):
        how = {"samples": len(samples), "temperature": 1.0} if len(samples) > 1 else {}
        row = evaluation(12, sum(map(len, samples)), n=n, **how)
        run = write_run(path / f"{'-'.join(overrides)}-{seed}", *overrides, f"seed={seed}", evaluations=[row])
        rows = [
            answer(row, problem, problem in own, sample) for sample, own in enumerate(samples) for problem in range(n)
        ]
        write_jsonl_atomic(run / "eval" / "arithmetic.jsonl", rows)


def all_flips(differences: Sequence[Fraction]) -> float:
    """Return the two-sided p of a sign-flip test by enumerating all flips of the signs."""
    flips = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(flip >= abs(sum(differences)) for flip in flips) / len(flips)


def share(seeds: Sequence[Sequence[set[int]]], problem: int) -> Fraction:
    answers = [problem in sample for seed in seeds for sample in seed]
    return Fraction(sum(answers), len(answers))


@pytest.mark.parametrize(
    ("grpo", "sspo"),
    [
        # two seeds against three, so the differences are sixths
        ([[{0, 1, 5}], [{0, 6}]], [[{0, 1, 2, 3}], [{0, 2, 4, 7}], [{1, 3, 4}]]),
        ([[{0, 1, 5}], [{0, 6}], [{3, 5}]], [[{0, 1, 2, 3, 4, 7}], [{0, 2, 4, 7, 8}]]),
        # one seed against three, and one against two
        ([[{0, 1, 5}]], [[{0, 1, 2, 3}], [{0, 2, 4, 7}], [{1, 3, 4, 6}]]),
        ([[{0, 1, 5}], [{0, 2}]], [[{0, 1, 2, 3}]]),
        # two seeds against three, with two samples each
        ([[{0, 1}, {0, 2}], [{1}, {5}]], [[{0, 1, 2}, {2, 3}], [{2, 3, 4}, {0, 4}], [{6, 7}, {1, 2, 6}]]),
    ],
)
def test_the_p_of_unequal_numbers_of_seeds_is_that_of_all_flips(
    tmp_path: Path, grpo: list[list[set[int]]], sspo: list[list[set[int]]]
) -> None:
    n = 9
    write_answered(tmp_path / "runs", GRPO, grpo, n)
    write_answered(tmp_path / "runs", ATANLOG, sspo, n)
    (row,) = Report(tmp_path / "runs", tmp_path / "out").rows("paired")
    differences = [share(sspo, problem) - share(grpo, problem) for problem in range(n)]
    assert (row["configuration"], row["against"]) == ("SSPO atanlog", "GRPO")
    assert float(row["difference"]) == pytest.approx(float(100 * sum(differences) / n))
    assert float(row["p"]) == pytest.approx(all_flips(differences))
    assert (int(row["seeds"]), int(row["seeds_against"])) == (len(sspo), len(grpo))
    assert float(row["value"]) == pytest.approx(float(100 * sum(share(sspo, problem) for problem in range(n)) / n))


def test_holm_s_correction_of_paired_p_is_for_the_whole_table(tmp_path: Path) -> None:
    """GRPO solves problem 0, siglog solves 7 more, and atanlog 5 more than siglog.

    McNemar's p values are therefore 2 / 2^7, 2 / 2^5 and, for atanlog against GRPO, 2 / 2^12.
    """
    for overrides, solved in ((GRPO, 1), (SIGLOG, 8), (ATANLOG, 13)):
        write_answered(tmp_path / "runs", overrides, [[set(range(solved))]], 20)
    report = Report(tmp_path / "runs", tmp_path / "out")
    rows = report.rows("paired")
    found = {(row["configuration"], row["against"]): (float(row["p"]), float(row["p_holm"])) for row in rows}
    assert found == {
        ("SSPO atanlog", "GRPO"): pytest.approx((2**-11, 3 * 2**-11)),
        ("SSPO siglog", "GRPO"): pytest.approx((2**-6, 2 * 2**-6)),
        ("SSPO siglog", "SSPO atanlog"): pytest.approx((2**-4, 2**-4)),
    }
    paired = report.text[report.text.index("**Paired comparisons") :]
    printed = [
        tuple(cell.strip() for cell in line.split("|")[-3:-1]) for line in paired.splitlines() if "| 20 " in line
    ]
    assert set(printed) == {("< 0.001", "0.001"), ("0.016", "0.031"), ("0.062", "0.062")}


def test_seeds_that_answered_other_problems_are_no_mean(tmp_path: Path) -> None:
    write_answered(tmp_path / "runs", GRPO, [[{0}], [{0}]], 9)
    for method in (ATANLOG, SIGLOG):
        write_answered(tmp_path / "runs", method, [[{0, 1}], [{0, 2}]], 9)
    answers = tmp_path / "runs" / f"{SIGLOG[0]}-1" / "eval" / "arithmetic.jsonl"
    write_jsonl_atomic(answers, [{**row, "id": f"{row['id']}-of-another"} for row in read_jsonl(answers)])
    report = Report(tmp_path / "runs", tmp_path / "out")
    assert [row["configuration"] for row in report.rows("paired")] == ["SSPO atanlog"]
    assert "is not compared on arithmetic: its seeds answered different problems." in "\n".join(report.notes("paired"))


# ---- which configuration


def write_tried(path: Path, tau: float, held_out: Sequence[Mapping[int, int]], tests: Mapping[int, int]) -> None:
    """Write a run of SSPO with one tau_pos for each seed.

    `held_out` holds the correct answers to 100 validation problems by step for each seed, `tests` those to 200 test
    problems by step.
    """
    for seed, by_step in enumerate(held_out):
        rows: list[dict[str, Any]] = [evaluation(step, correct) for step, correct in tests.items()]
        rows += [validation(step, correct) for step, correct in by_step.items()]
        write_run(path / f"{tau}-{seed}", f"objective.tau_pos={tau}", f"seed={seed}", evaluations=rows)


def test_a_configuration_is_chosen_at_the_step_that_is_reported(tmp_path: Path) -> None:
    """tau_pos 0.5 has the best validation at any step, 0.2 the best after the last step; 0.7 did not finish."""
    write_tried(tmp_path / "runs", 0.5, [{4: 90, 12: 40}] * 2, {0: 60, 4: 180, 12: 80})
    write_tried(tmp_path / "runs", 0.2, [{4: 50, 12: 60}] * 2, {0: 60, 4: 90, 12: 100})
    write_run(
        tmp_path / "runs" / "0.7", "objective.tau_pos=0.7", state="failed", last=3, evaluations=[evaluation(0, 60)]
    )
    last = Report(tmp_path / "runs", tmp_path / "last")
    best = Report(tmp_path / "runs", tmp_path / "best", select="best")
    assert [row["configuration"][-3:] for row in last.rows("table1") if row["kind"] == "trained"] == ["0.2"] * 2
    assert [row["configuration"][-3:] for row in best.rows("table1") if row["kind"] == "trained"] == ["0.5"] * 2
    assert (last.trained(), best.trained()) == ({"0, 1": 50.0}, {"0, 1": 90.0})
    for report in (last, best):
        assert [float(row["value"]) for row in report.rows("table1") if row["kind"] == "base"] == [30.0]
    assert "is shown for its mean validation Pass@1 of 60.0 %; not shown: SSPO atanlog (tau_pos 0.5) 40.0." in last.text
    assert "is shown for its mean validation Pass@1 of 90.0 %; not shown: SSPO atanlog (tau_pos 0.2) 60.0." in best.text
    for report, chosen in ((last, "0.2"), (best, "0.5")):
        rows = report.rows("configurations")
        assert [row["configuration"][-3:] for row in rows if row["chosen"] == "True"] == [chosen]
        assert [row["configuration"][-3:] for row in rows] == ["0.2", "0.5"]
    assert [float(row["validation"]) for row in last.rows("configurations")] == [60.0, 40.0]
    assert [float(row["validation"]) for row in best.rows("configurations")] == [60.0, 90.0]
    assert [float(row["arithmetic"]) for row in best.rows("configurations")] == [50.0, 90.0]


@pytest.mark.parametrize("validated", [1, 2])
def test_a_configuration_is_not_chosen_by_a_part_of_its_seeds(tmp_path: Path, validated: int) -> None:
    write_tried(tmp_path / "runs", 0.5, [{12: 90}] * validated + [{}] * (3 - validated), {0: 60, 12: 80})
    write_tried(tmp_path / "runs", 0.2, [{12: 60}] * 3, {0: 60, 12: 100})
    report = Report(tmp_path / "runs", tmp_path / "out")
    trained = [row for row in report.rows("table1") if (row["kind"], row["column"]) == ("trained", "arithmetic")]
    assert [(row["configuration"][-3:], row["seeds"]) for row in trained] == [("0.2", "0, 1, 2"), ("0.5", "0, 1, 2")]
    assert "all 2 configurations are shown, because they have no common validation to choose by" in report.text
    assert {row["chosen"] for row in report.rows("configurations")} == {"True"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([{"n": 100}] * 2, [{"n": 50}] * 2),  # the configurations have different problems
        ([{"n": 100}, {"n": 50}], [{"n": 100}, {"n": 50}]),  # the seeds of each have different problems
        ([{"max_new_tokens": 48}, {"max_new_tokens": 96}], [{"max_new_tokens": 48}, {"max_new_tokens": 96}]),
    ],
)
def test_validations_that_are_not_alike_choose_nothing(
    tmp_path: Path, first: list[dict[str, int]], second: list[dict[str, int]]
) -> None:
    for tau, seeds in ((0.5, first), (0.2, second)):
        for seed, how in enumerate(seeds):
            rows = [evaluation(0, 60), evaluation(12, 100), validation(12, 40, **{"n": 100, **how})]
            overrides = (f"objective.tau_pos={tau}", f"seed={seed}")
            write_run(tmp_path / "runs" / f"{tau}-{seed}", *overrides, evaluations=rows)
    report = Report(tmp_path / "runs", tmp_path / "out")
    assert "all 2 configurations are shown, because they have no common validation to choose by" in report.text


def test_each_setting_has_its_own_choice(tmp_path: Path) -> None:
    for mu, held_out in ((2, {0.5: 90, 0.2: 60}), (4, {0.5: 30, 0.2: 60})):
        for tau, correct in held_out.items():
            rows = [evaluation(0, 60), evaluation(12, 100), validation(12, correct)]
            overrides = (f"objective.tau_pos={tau}", f"learning.mu={mu}")
            write_run(tmp_path / "runs" / f"{mu}-{tau}", *overrides, evaluations=rows)
    rows = Report(tmp_path / "runs", tmp_path / "out").rows("configurations")
    chosen = [(row["setting"][-6:], row["configuration"][-3:]) for row in rows if row["chosen"] == "True"]
    assert chosen == [("(mu 2)", "0.5"), ("(mu 4)", "0.2")]


def test_a_configuration_s_reward_is_the_mean_of_its_finished_seeds(tmp_path: Path) -> None:
    """A reward of 0.0 counts in the mean like any other number."""
    write_run(tmp_path / "runs" / "rival", "objective.tau_pos=0.5")
    for seed, reward, state in ((0, 0.0, "finished"), (1, 1.5, "finished"), (2, 2.0, "failed")):
        run = write_run(tmp_path / "runs" / str(seed), f"seed={seed}", state=state)
        rows = read_jsonl(run / "metrics.jsonl")
        write_jsonl_atomic(run / "metrics.jsonl", [{**row, "reward/mean": reward} for row in rows])
    row = Report(tmp_path / "runs", tmp_path / "out").rows("configurations")[0]
    assert (row["configuration"][-3:], row["seeds"], float(row["reward"])) == ("0.2", "0, 1", 0.75)
    assert float(row["reward sd"]) == pytest.approx(stdev([0.0, 1.5]))


def test_a_single_configuration_is_compared_with_nothing(tmp_path: Path) -> None:
    write_seeds(tmp_path / "runs", ATANLOG, seed_by_seed([100, 110]))
    report = Report(tmp_path / "runs", tmp_path / "out")
    assert "noise of seeds" not in report.text
    assert {path.name for path in report.out.glob("*.csv")} == {"table1.csv", "runs.csv"}


# ---- which runs


def test_what_an_unfinished_run_measured_is_in_no_number(tmp_path: Path) -> None:
    """The unfinished runs have evaluations of every step; only their state shows that they did not finish."""
    runs = tmp_path / "runs"
    rows = [evaluation(step, correct) for step, correct in ((0, 60), (4, 80), (12, 120))]
    held_out = [validation(step, correct) for step, correct in ((4, 30), (12, 50))]
    write_run(runs / "finished", *ATANLOG, evaluations=[*rows, *held_out])
    high = [evaluation(0, 60), evaluation(4, 200), evaluation(12, 200), validation(4, 99), validation(12, 99)]
    for seed, state in enumerate(("failed", "interrupted", "running"), start=1):
        write_run(runs / state, *ATANLOG, f"seed={seed}", state=state, evaluations=high)
    for overrides, state in ((GRPO, "finished"), (SIGLOG, "failed")):
        for seed in (0, 1):
            write_run(runs / f"{overrides[0]}-{seed}", *overrides, f"seed={seed}", state=state, evaluations=high)
    for select in ("last", "best"):
        report = Report(runs, tmp_path / select, select=select)
        assert report.trained() == {"0": 60.0, "0, 1": 100.0}
        assert not (report.out / "seeds.csv").exists()  # no two configurations share two finished seeds
    stopped = [line for line in report.text.splitlines() if "its evaluations are not counted" in line]
    assert len(stopped) == 5
    measured = {row["run"].rpartition("/")[2]: (row["arithmetic"], row["validation"]) for row in report.rows("runs")}
    assert measured["finished"] == ("60.0", "50.0")
    assert {measured[name] for name in ("failed", "interrupted", "running")} == {("", "")}


def test_the_sensitivity_figure_shows_shares_of_all_samples(tmp_path: Path) -> None:
    for tau, seeds in ((0.2, (120, 140)), (0.5, (80, 100))):
        for seed, correct in enumerate(seeds):
            rows = [evaluation(12, correct, samples=2, temperature=1.0)]
            write_run(tmp_path / f"{tau}-{seed}", f"objective.tau_pos={tau}", f"seed={seed}", evaluations=rows)
    collection = collect([tmp_path])
    axes = sensitivity_figure(collection.frame, collection.groups, collection.groups).subfigs[0].axes[0]
    drawn = [list(line.get_ydata()) for line in axes.get_lines()]
    assert drawn == [pytest.approx(values) for values in ([30, 35], [32.5], [20, 25], [22.5])]


def test_what_an_unfinished_run_measured_is_in_no_figure(tmp_path: Path) -> None:
    rows = [evaluation(step, correct) for step, correct in ((0, 60), (4, 80), (12, 120))]
    write_run(tmp_path / "a", evaluations=rows)
    write_run(tmp_path / "b", "seed=1", evaluations=[{**row, "correct": 200} for row in rows], state="failed", last=12)
    collection = collect([tmp_path])
    frame, groups = collection.frame, collection.groups
    by_step = scores_by_step_figure(frame, groups)
    assert by_step is not None
    for axes in (by_step.axes[0], training_figure(frame, groups[0]).axes[3]):
        drawn = [list(line.get_ydata()) for line in axes.get_lines()]
        assert [30, 40, 60] in drawn
        assert max(map(max, drawn)) < 70  # the interval of 60 % ends below 70
