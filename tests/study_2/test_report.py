"""The second study's outcomes agree with closed forms on made-up runs, and the verdicts of its report follow from them."""

import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from study_2 import figures, report
from study_2.analysis import METHODS, MUS, Study, area, contrast, corrected, solved, working_rates
from study_2.ledger import METRICS, Row
from study_2.plan import APPENDIX_SEEDS, FINAL_SEEDS, LAG, MU, PROMPTS, RATE, ROOT

N = 64  # test problems
RATES = (5e-5, 1e-4, 2e-4, 4e-4)
VALIDATION = dict(zip(RATES, (300, 400, 380, 100), strict=True))  # of 512 problems, after the last step
BELOW = {"grpo clip": 8, "gspo clip": 4}  # how many problems fewer than SSPO-atanlog the method solves, with every seed


def made_up(stage: str, method: str, rate: float, mu: int, seed: int, right: int = 0, lag: int = 0) -> Row:
    """Return a run that solves the first `right` test problems after step 48, half of them after step 16, none before."""
    name, gate = method.split()
    about = {"objective.method": name, "objective.gate": gate, "objective.normalizer": "sequence"}
    varied = {RATE: rate, MU: mu, PROMPTS: 8 * mu, LAG: lag, "seed": seed}
    evaluations = [{"step": 48, "benchmark": "validation", "n": 512, "correct": VALIDATION[rate]}]
    if "finals" in stage or stage == "appendix":
        modes = {"work": [48, right // 2], "guessed": [16, 0], "none": [N, right]}
        bits = f"{int('1' * right + '0' * (N - right), 2):x}"
        evaluations += [
            {"step": 0, "benchmark": "chains", "n": N, "correct": 0, "modes": modes},
            {"step": 16, "benchmark": "chains", "n": N, "correct": right // 2},
            {"step": 48, "benchmark": "chains", "n": N, "correct": right, "modes": modes, "solved": bits},
        ]
    label = f"{stage}-{method}-{rate}-{mu}-{seed}-{lag}"
    return Row(stage, label, None, {**about, **varied}, evaluations, 4800, 0, {"cpu": 1.0 + seed % 2})


def score(method: str, seed: int) -> int:
    return 48 + seed % 2 - BELOW.get(method, 0) - (method == "sapo sigmoid") * (-1) ** seed


@pytest.fixture(scope="module")
def study() -> Study:
    rows = [made_up("select", method, rate, 4, 1000) for method, rate in product(METHODS, RATES)]
    rows += [made_up("again", method, rate, 4, 1001) for method, rate in product(METHODS, RATES[:3])]
    rows += [made_up("rates", method, rate, mu, 1000) for method, mu, rate in product(METHODS, (2, 8), RATES)]
    rows += [
        made_up(f"finals-mu{mu}", method, 1e-4, mu, seed, score(method, seed))
        for mu, seed, method in product(MUS, FINAL_SEEDS, METHODS)
    ]
    rows += [
        made_up("appendix", "sspo atanlog", 1e-4, 4, seed, 32, lag=lag)
        for seed, lag in product(APPENDIX_SEEDS, range(report.VARIANTS))
    ]
    parts = []
    for row in rows:
        steps = pd.DataFrame(0.25, index=range(1, 49), columns=METRICS).rename_axis("step").reset_index()
        minibatch = (steps["step"] - 1) % row.point[MU] + 1
        about = {"run": row.name, "stage": row.stage, "method": row.method, "mu": row.point[MU]}
        parts.append(steps.assign(**about, tokens=100.0 * steps["step"], minibatch=minibatch))
    return Study(rows, pd.concat(parts, ignore_index=True))


def test_solved_problems_are_read_in_their_order():
    assert solved(made_up("finals-mu4", "grpo clip", 1e-4, 4, 2000, 3)).tolist() == [1, 1, 1] + [0] * (N - 3)


def test_the_area_under_straight_lines():
    tokens, scores = [0, 100, 300], [10.0, 30.0, 50.0]
    assert area(tokens, scores, 100) == pytest.approx(20)
    assert area(tokens, scores, 200) == pytest.approx((20 * 100 + 35 * 100) / 200)
    assert area(tokens, scores, 300) == pytest.approx((20 * 100 + 40 * 200) / 300)


def test_a_contrast_is_the_paired_one(study):
    ours, theirs = [50.0, 52, 54, 51], [49.0, 50, 55, 47]
    found, known = contrast(ours, theirs), ttest_rel(ours, theirs)
    assert (found.mean, found.higher) == (1.5, 3)
    assert (found.low, found.high) == pytest.approx(known.confidence_interval())
    assert found.effect == pytest.approx(known.statistic / 2)  # divided by √n for n = 4 pairs
    assert found.p == 6 / 16  # of the 16 sums ±1 ±2 ±1 ±4, three are 6 or 8, and three are −6 or −8
    constant = study.contrast(4, "sspo atanlog", "grpo clip")
    assert constant.mean == pytest.approx(100 * 8 / N)
    assert constant.p == 2 / 256
    assert corrected([constant] * 5) == [pytest.approx(10 / 256)] * 5
    assert constant.problems[0] < constant.mean < constant.problems[1]


def test_areas_end_at_the_tokens_that_all_runs_have(study):
    assert study.curve(study.finals(4, "grpo clip")[0]) == ([0.0, 1600.0, 4800.0], [0.0, 100 * 20 / N, 100 * 40 / N])
    lesser = study.finals(2, "gspo clip")[0].name
    fewer = study.metrics["tokens"].where(study.metrics["run"] != lesser, study.metrics["tokens"] / 3)
    shortened = Study(study.rows, study.metrics.assign(tokens=fewer))
    assert shortened.areas(4) == study.areas(4)
    first = shortened.areas(2)["grpo clip"][0]
    assert first == pytest.approx(100 * 20 / N / 2)  # up to 1,600 tokens


def test_rates_that_work_are_those_near_the_best(study):
    curve = study.rate_curve("sspo siglog", 2)
    assert curve == {rate: pytest.approx(100 * right / 512) for rate, right in VALIDATION.items()}
    assert working_rates(curve) == [1e-4, 2e-4]


def test_the_report_says_what_the_runs_support(study, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "KEPT", tmp_path)
    monkeypatch.setattr(report.Study, "load", lambda folder: study)
    report.main()
    text = (tmp_path / "README.md").read_text()
    assert (
        "**SSPO-atanlog's final Pass@1 is higher than GRPO's and higher than GSPO's in this setting. No difference from GMPO"
        in text
    )
    assert "Above 90 %: none." in text
    assert "| SSPO-atanlog, lag 1 | 50.0 ± 0.0 | 3 |" in " ".join(text.split())
    assert "nan" not in text
    assert "| +12.50 – |" in " ".join(text.split())  # equal differences have no interval
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {
        "finals",
        "learning-rates",
        "curves",
        "staleness",
    }


def test_the_readme_says_what_the_report_says():
    """The report computes the verdicts, and README repeats them."""
    readme, computed = (" ".join((ROOT / name).read_text().split()) for name in ("README.md", "runs/study-2/README.md"))
    final, area_verdict = re.findall(r"\*\*(SSPO-atanlog's .*?)\*\*", computed)
    assert final in readme
    assert "area is lower than GRPO's" in area_verdict
    assert "area under the learning curve is lower than GRPO's" in readme


def test_an_unfinished_study_has_no_outcome(study, tmp_path, monkeypatch):
    rest = [row for row in study.rows if row.stage not in ("finals-mu8", "appendix")]
    monkeypatch.setattr(report, "KEPT", tmp_path)
    monkeypatch.setattr(report.Study, "load", lambda folder: Study(rest, study.metrics))
    report.main()
    text = (tmp_path / "README.md").read_text()
    assert "finals-mu8 0" in text
    assert "Primary" not in text
    assert not (tmp_path / "figures").exists()


def test_every_seed_is_a_point_of_the_figure(study):
    from sspo_cli.report.figures.style import grid

    _, (ax, *_) = grid(3, 2)
    figures._finals(study, ax, 4, report.NAMES)
    points = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    assert np.sort(np.concatenate(points)).tolist() == sorted(s for m in METHODS for s in study.scores(4, m))
