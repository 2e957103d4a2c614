"""Write the report of the second study: `python -m tests.study_2.report`. Every number in it is computed from `runs/study-2`."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from math import isnan
from statistics import fmean, stdev

import pandas as pd

from sspo_cli.tracking.files import write_text_atomic

from . import figures
from .__main__ import KEPT
from .analysis import (
    BASELINES,
    METHODS,
    MUS,
    OTHER_GATES,
    OURS,
    TEST,
    WORKS,
    Contrast,
    Study,
    contrast,
    corrected,
    working_rates,
)
from .ledger import Row
from .plan import APPENDIX_SEEDS, LAG, RATE, STAGES, STALE

NAMES = {
    "grpo clip": "GRPO",
    "gspo clip": "GSPO",
    "gmpo clip": "GMPO",
    "sapo sigmoid": "SAPO",
    "cispo cispo": "CISPO",
    **{f"sspo {gate}": f"SSPO-{gate}" for gate in ("atanlog", "expatan", "siglog", "expsig", "gumbel")},
    "pspo pspo": "PSPO",
    "luspo clip": "LUSPO",
}
MODES = {
    "work": "a step for each operand",
    "other work": "steps of other operands",
    "guessed": "no step",
    "broken": "broken",
}
HABITS = ("none", "drop", "sign", "early", "guess")
FILES = """## Files

- `runs.jsonl`: a line for each finished run: what was varied, its seed, its evaluations (`solved` are the solved problems after
  the last step as bits in hexadecimal, the first problem first; `modes` are described in `tests/study_2/ledger.py`), tokens,
  processor seconds.
- `metrics-STAGE.parquet`: metrics of each optimizer step of the runs of a stage.
- `sweeps/`: the later stages as sweep files, with the settings that were chosen for them.
- `figures/`: the figures as SVG, PDF and PNG."""
VARIANTS = 16  # variants in the appendix
HIGH = 90.0  # a mean score above this leaves little room for differences, and is reported


def main() -> None:
    """Write tables and figures of the finished stages to `runs/study-2/README.md`."""
    study = Study.load(KEPT)
    parts = chain(heading(study), selection(study), *outcomes(study), [FILES])
    write_text_atomic(KEPT / "README.md", "\n\n".join(parts) + "\n")
    if all(map(study.complete, MUS)):
        figures.draw(study, NAMES, KEPT / "figures")


def outcomes(study: Study) -> Iterable[Iterable[str]]:
    """Yield the parts of the report that need the final runs."""
    if all(map(study.complete, MUS)):
        yield final_scores(study)
        yield primary_contrast(study)
        yield areas(study)
        yield exploratory_contrasts(study)
        yield learning_rates(study)
        yield training(study)
        yield staleness(study)
        yield mistakes(study)
    if len(study.of_stage("appendix")) == VARIANTS * len(APPENDIX_SEEDS):
        yield appendix(study)


def heading(study: Study) -> Iterable[str]:
    """Yield the heading and what was run."""
    yield "# The second study"
    hours = sum(row.seconds["cpu"] for row in study.rows) / 3600
    counts = ", ".join(f"{stage} {len(study.of_stage(stage))}" for stage in STAGES)
    yield (
        f"{len(study.rows)} runs, {hours:.2f} hours of processor time. By stage: {counts}. Question, setting, outcomes "
        "and choices were fixed before the runs: [the plan](../../docs/study.md), which also lists the deviations from "
        "it. Written by `python -m tests.study_2.report` from `runs.jsonl` and `metrics-STAGE.parquet` in this folder."
    )
    yield (
        "A model of 0.1 M parameters on a generated task: the differences below say nothing about language models of a "
        "useful size."
    )
    skipped = [row for row in study.rows if row.skipped]
    yield f"Runs with skipped optimizer steps: {len(skipped)}."


def selection(study: Study) -> Iterable[str]:
    """Yield the chosen settings and rates."""
    if not all(map(study.complete, MUS)):
        return
    yield "## What was chosen"
    yield "By validation Pass@1, with the same number of trials for each method. A rate at an end of the grid is marked with *."
    grid = list(study.rate_curve(OURS, STALE))
    ends = (grid[0], grid[-1])
    rows = []
    for method in METHODS:
        points = {mu: study.chosen(method, mu) for mu in MUS}
        chosen_rates = {
            f"rate, μ = {mu}": f"{point[RATE]:g}" + ("*" if point[RATE] in ends else "") for mu, point in points.items()
        }
        rows.append({"method": NAMES[method], "setting": setting(points[STALE]), **chosen_rates})
    yield table(rows)


def final_scores(study: Study) -> Iterable[str]:
    """Yield the primary outcome, final Pass@1."""
    yield "## Primary outcome: final Pass@1"
    yield (
        "Greedy, in %, on 1,024 test problems that no earlier run has seen: mean ± standard deviation over 8 seeds, and "
        "the 95 % interval of the mean over problems."
    )
    yield table(
        {"method": NAMES[method]}
        | {
            f"μ = {mu}": f"{spread(study.scores(mu, method))} {interval(*study.interval_over_problems(mu, method))}"
            for mu in MUS
        }
        for method in METHODS
    )
    before = [100 * e["correct"] / e["n"] for row in study.finals(STALE, OURS) for e in row.evaluations if is_first(e)]
    yield f"Before the first step: {fmean(before):.1f} % for all, since they share the cold start."
    high = [f"{NAMES[m]} at μ = {mu}" for mu in MUS for m in METHODS if fmean(study.scores(mu, m)) > HIGH]
    yield f"Above {HIGH:.0f} %: {', '.join(high) or 'none'}."
    yield "![Final Pass@1 of each seed, mean and 95 % interval over seeds](figures/finals.png)"


def primary_contrast(study: Study) -> Iterable[str]:
    """Yield the contrast of SSPO-atanlog with each baseline at μ = 4, and the conclusion that the data support."""
    yield "## Primary contrast: SSPO-atanlog against the baselines at μ = 4"
    contrasts = [study.contrast(STALE, OURS, other) for other in BASELINES]
    adjusted = corrected(contrasts)
    yield contrast_table([f"SSPO-atanlog − {NAMES[other]}" for other in BASELINES], contrasts, adjusted)
    yield (
        "Differences are in points, paired by seed: mean with the 95 % interval of Student's t over seeds, effect size "
        "(mean over standard deviation), exact p-value over flips of signs, Holm's correction over the five, and the 95 "
        "% interval over problems."
    )
    yield f"**{verdict('final Pass@1', contrasts, adjusted)}**"


def verdict(outcome: str, contrasts: Sequence[Contrast], adjusted: Sequence[float]) -> str:
    """Return sentences that name the baselines from which SSPO-atanlog differs, by the corrected p-values."""
    compared = list(zip(BASELINES, contrasts, adjusted, strict=True))
    differing = [f"{'higher' if each.mean > 0 else 'lower'} than {NAMES[m]}'s" for m, each, p in compared if p < 0.05]
    rest = [NAMES[m] for m, _, p in compared if not p < 0.05]
    sentences = [f"SSPO-atanlog's {outcome} is {' and '.join(differing)} in this setting."] if differing else []
    sentences += [f"No difference from {', '.join(rest)} is shown."] if rest else []
    return " ".join(sentences)


def areas(study: Study) -> Iterable[str]:
    """Yield the second outcome, the area under test Pass@1 over sampled tokens."""
    yield "## Second outcome: area under test Pass@1 over sampled tokens"
    values = {mu: study.areas(mu) for mu in MUS}
    yield (
        "Up to the number of tokens that all runs at this μ have sampled, divided by it: a mean Pass@1 in %, mean ± "
        "standard deviation over seeds."
    )
    yield table(
        {"method": NAMES[method]} | {f"μ = {mu}": spread(values[mu][method]) for mu in MUS} for method in METHODS
    )
    contrasts = [contrast(values[STALE][OURS], values[STALE][other]) for other in BASELINES]
    yield "Paired at μ = 4, Holm's correction over these five:"
    adjusted = corrected(contrasts)
    yield contrast_table([f"SSPO-atanlog − {NAMES[other]}" for other in BASELINES], contrasts, adjusted)
    yield f"**{verdict('area', contrasts, adjusted)}**"
    yield "![Test Pass@1 over sampled tokens](figures/curves.png)"


def exploratory_contrasts(study: Study) -> Iterable[str]:
    """Yield all other paired differences, without correction."""
    yield "## Exploratory: other gates, other μ"
    yield "Without a correction for the number of comparisons; none of these p-values is evidence by itself."
    pairs = [(mu, OURS, other) for mu in MUS if mu != STALE for other in BASELINES]
    pairs += [(STALE, gate, other) for gate in OTHER_GATES for other in (*BASELINES, OURS)]
    labels = [f"μ = {mu}: {NAMES[method]} − {NAMES[other]}" for mu, method, other in pairs]
    yield contrast_table(labels, [study.contrast(*pair) for pair in pairs])


def learning_rates(study: Study) -> Iterable[str]:
    """Yield the curve of each method over learning rates, and how many rates work."""
    yield "## Exploratory: the learning rates that work"
    yield (
        f"Validation Pass@1 in % with the chosen setting, one seed. In bold the rates at most {WORKS:g} points below the "
        "method's best. At μ = 4 also the lowest, mean and highest score of the three settings."
    )
    rows: list[dict[str, str]] = []
    for method in METHODS:
        for mu in MUS:
            scores = study.rate_curve(method, mu)
            good = working_rates(scores)
            cells = {
                f"{rate:g}": f"**{score:.1f}**" if rate in good else f"{score:.1f}" for rate, score in scores.items()
            }
            rows.append({"method": NAMES[method], "μ": str(mu), **cells, "rates that work": str(len(good))})
        every = study.mean_of_rate(method)
        cells = {f"{rate:g}": f"{low:.1f} / {mean:.1f} / {high:.1f}" for rate, (low, mean, high) in every.items()}
        rows.append({"method": NAMES[method], "μ": "4, three settings", **cells, "rates that work": ""})
    yield table(rows)
    yield "![Validation Pass@1 by learning rate](figures/learning-rates.png)"


def training(study: Study) -> Iterable[str]:
    """Yield entropy, length, tokens and time of the finals."""
    yield "## Exploratory: training"
    yield (
        "Means over the last 16 steps of the finals, of all seeds: entropy in nats, completion length in tokens, groups "
        "with equal rewards; then tokens sampled and seconds of the processor by run."
    )
    rows = []
    for mu in MUS:
        metrics = study.in_finals(mu)
        late = metrics[metrics["step"] > metrics["step"].max() - 16].groupby("method").mean(numeric_only=True)
        for method in METHODS:
            runs = study.finals(mu, method)
            rows.append(
                {
                    "μ": str(mu),
                    "method": NAMES[method],
                    "entropy": f"{late.loc[method, 'policy/entropy']:.3f}",
                    "length": f"{late.loc[method, 'completions/length']:.1f}",
                    "equal groups": f"{100 * late.loc[method, 'groups/equal_reward']:.0f} %",
                    "tokens": f"{fmean(row.tokens for row in runs):,.0f}",
                    "seconds": spread([row.seconds["cpu"] for row in runs]),
                }
            )
    yield table(rows)


def staleness(study: Study) -> Iterable[str]:
    """Yield how far ratios move, by the sign of the advantage and the number of updates since sampling."""
    yield "## Exploratory: staleness, and which side moves away"
    yield (
        "All steps of the finals after the first of each rollout batch, in which every ratio is 1. Outside: the share of "
        "token ratios outside 1 ± 0.2; attenuated: the share of tokens with a gate weight below 0.5; drift: the mean log "
        "ratio, each for Â > 0 and Â < 0. The last column is the share outside in the last step of the batches."
    )
    rows = []
    for mu in MUS:
        metrics = study.in_finals(mu)
        stale = metrics[metrics["minibatch"] > 1].groupby("method").mean(numeric_only=True)
        last = metrics[metrics["minibatch"] == mu].groupby("method").mean(numeric_only=True)
        for method in METHODS:
            at = stale.loc[method]
            rows.append(
                {
                    "μ": str(mu),
                    "method": NAMES[method],
                    "outside": f"{100 * at['ratio/outside']:.2f} %",
                    "outside, Â > 0, Â < 0": (
                        f"{100 * at['ratio/positive_outside']:.2f}, {100 * at['ratio/negative_outside']:.2f} %"
                    ),
                    "attenuated, Â > 0, Â < 0": (
                        f"{100 * at['weights/positive_attenuated']:.2f}, {100 * at['weights/negative_attenuated']:.2f} %"
                    ),
                    "drift, Â > 0, Â < 0": f"{at['ratio/positive_log_mean']:+.4f}, {at['ratio/negative_log_mean']:+.4f}",
                    "outside, last": f"{100 * last.loc[method, 'ratio/outside']:.2f} %",
                }
            )
    yield table(rows)
    yield "![Share of ratios outside 1 ± 0.2](figures/staleness.png)"


def mistakes(study: Study) -> Iterable[str]:
    """Yield scores within each kind of completion and each kind of problem, before the first and after the last step."""
    yield "## Exploratory: where a method fails"
    yield (
        "Finals at μ = 4, all seeds together: Pass@1 in % of the completions of each kind, with their share of all in "
        "parentheses; then of the problems in which a habit of the teacher does harm (docs/study.md). A problem may have "
        "several."
    )
    rows = [{"method": "before the first step"} | modes(study.finals(STALE, OURS), is_first)]
    rows += [{"method": NAMES[method]} | modes(study.finals(STALE, method), is_last) for method in METHODS]
    yield table([{k: v for k, v in row.items() if k not in HABITS} for row in rows])
    yield table([{k: v for k, v in row.items() if k not in MODES.values()} for row in rows])


def appendix(study: Study) -> Iterable[str]:
    """Yield the exploratory variants, with three seeds each."""
    yield "## Appendix: variants at μ = 4, three seeds, exploratory"
    yield (
        "Each with the setting and the rate of the method that it varies. The seeds are others than those of the finals, "
        "so that no difference is paired."
    )
    by_variant: dict[str, list[float]] = {}
    for row in study.of_stage("appendix"):
        normalizer, lag = row.point["objective.normalizer"], row.point[LAG]
        label = NAMES[row.method] + f", {setting(row.point)}" * bool(setting(row.point))
        label += f", normalizer {normalizer}" * (normalizer != "sequence") + f", lag {lag}" * bool(lag)
        by_variant.setdefault(label, []).append(100 * row.pass_at_1(TEST))
    finals = {method: study.scores(STALE, method) for method in METHODS}
    rows = [
        {"variant": label, "Pass@1": spread(scores), "seeds": str(len(scores))} for label, scores in by_variant.items()
    ]
    yield table(rows)
    reference = ", ".join(f"{NAMES[method]} {spread(scores)}" for method, scores in finals.items())
    yield f"Finals at μ = 4, for comparison: {reference}."


def modes(rows: Iterable[Row], wanted: Callable[[dict], bool]) -> dict[str, str]:
    """Return the score within each kind of completion and of problem, over the wanted evaluation of each run."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        for name, (number, right) in next(e for e in row.evaluations if wanted(e))["modes"].items():
            old = counts.setdefault(name, [0, 0])
            counts[name] = [old[0] + number, old[1] + right]
    everything = sum(counts[name][0] for name in MODES if name in counts)

    def cell(name: str) -> str:
        number, right = counts.get(name, (0, 0))
        return f"{100 * right / number:.1f} ({100 * number / everything:.0f} %)" if number else "–"

    return {MODES.get(name, name): cell(name) for name in (*MODES, *HABITS)}


def is_first(evaluation: dict) -> bool:
    """Report whether an evaluation uses the test problems before the first step."""
    return evaluation["benchmark"] == TEST and evaluation["step"] == 0


def is_last(evaluation: dict) -> bool:
    """Report whether an evaluation uses the test problems after the last step."""
    return evaluation["benchmark"] == TEST and "solved" in evaluation


def contrast_table(
    labels: Sequence[str], contrasts: Sequence[Contrast], adjusted: Sequence[float] | None = None
) -> str:
    """Format contrasts as a table, with corrected p-values if there are any."""
    rows = []
    for place, (label, each) in enumerate(zip(labels, contrasts, strict=True)):
        row = {
            "difference": label,
            "mean": f"{each.mean:+.2f} {interval(each.low, each.high, '+.2f')}",
            "effect": "–" if isnan(each.effect) else f"{each.effect:+.2f}",
            "seeds higher": f"{each.higher} of 8",
            "p": f"{each.p:.3f}",
        }
        if adjusted:
            row["p, Holm"] = f"{adjusted[place]:.3f}"
        if each.problems:
            row["over problems"] = interval(*each.problems, "+.2f")
        rows.append(row)
    return table(rows)


def setting(point: dict) -> str:
    """Describe the options of the gate."""
    names = {"eps_low": "ε_low", "eps_high": "ε_high", "tau_neg": "τ_neg", "tau_pos": "τ_pos", "alpha": "α"}
    return ", ".join(
        f"{name} {point[f'objective.{key}']:g}" for key, name in names.items() if f"objective.{key}" in point
    )


def spread(values: Sequence[float]) -> str:
    """Format mean ± standard deviation."""
    return f"{fmean(values):.1f} ± {stdev(values):.1f}"


def interval(low: float, high: float, form: str = ".1f") -> str:
    """Format an interval, or a dash if there is none."""
    return "–" if isnan(low) else f"[{low:{form}}, {high:{form}}]"


def table(rows: Iterable[dict[str, str]]) -> str:
    """Format rows as a Markdown table."""
    return pd.DataFrame(list(rows)).to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    main()
