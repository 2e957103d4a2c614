import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic_runs import evaluation, validation

from sspo_cli.config import load_config
from sspo_cli.report.collect import Collection
from sspo_cli.report.figures import best_of_each, figures, save
from sspo_cli.report.figures.curves import by_method_figure, cost_figure, grid_figure, smoothed_figure
from sspo_cli.report.figures.gates import gates_figure
from sspo_cli.report.figures.scores import final_figure, scores_by_step_figure
from sspo_cli.report.figures.sensitivity import sensitivity_figure, tick_labels
from sspo_cli.report.figures.staleness import series_of, staleness_figure
from sspo_cli.report.figures.style import line_styles
from sspo_cli.report.figures.training import training_figure
from sspo_cli.report.figures.weights import weights_figure
from sspo_cli.report.groups import RunGroup, listed
from sspo_cli.report.records import MEASUREMENT, BareModel, RunRecord
from sspo_cli.statistics import wilson
from sspo_cli.tracking.jsonl import append_jsonl


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def measured(rows: list[dict]) -> list[dict]:
    return [{**dict.fromkeys(MEASUREMENT), "samples": 1, **row} for row in rows]


def a_run(
    seed: int = 0,
    *overrides: str,
    steps: int = 8,
    last: int | None = None,
    path: Path = Path("run"),
    evaluations: list[dict] | None = None,
    **columns: list[float],
) -> RunRecord:
    noise = np.random.default_rng(seed)
    last = last or steps
    metrics = {
        "reward/mean": noise.uniform(0, 2, last),
        "policy/entropy": noise.uniform(0, 1, last),
        "time/step": noise.uniform(1, 2, last),
        "tokens": np.repeat(np.arange(1, last), 2)[:last] * 1000.0,
        "minibatch": np.resize([1.0, 2.0], last),
        "weights/attenuated": noise.uniform(0, 0.1, last),
    }
    return RunRecord(
        path=path,
        options=load_config(overrides=[f"steps={steps}", f"seed={seed}", *overrides]),
        state="finished" if last == steps else "killed",
        step=last,
        reason=None,
        started=None,
        metrics=pd.DataFrame({**metrics, **columns}, index=pd.RangeIndex(1, last + 1, name="step")),
        evaluations=measured(
            [evaluation(0, 60), evaluation(steps, 120 + seed)] if evaluations is None else evaluations
        ),
    )


def a_group(*runs: RunRecord, method: str = "sspo", gate: str = "atanlog", details: str = "", **about: str) -> RunGroup:
    model, setting = about.get("model", "M"), about.get("setting", "M, arithmetic")
    differs = dict(option.split(" ", 1) for option in details.split(", ")) if details else {}
    label = f"{method.upper()} {gate}" + (f" ({listed(differs)})" if details else "")
    return RunGroup(model, about.get("start", setting), setting, label, method, gate, differs, list(runs or [a_run()]))


def framed(groups: list[RunGroup]) -> tuple[pd.DataFrame, list[RunGroup]]:
    """The frame of their evaluations, and the groups."""
    return Collection(groups).frame, groups


def of_one(group: RunGroup) -> tuple[pd.DataFrame, RunGroup]:
    return Collection([group]).frame, group


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_the_mean_over_seeds_is_thick_the_seeds_are_thin_and_nothing_is_smoothed() -> None:
    one, other, killed = a_run(0), a_run(1), a_run(2, last=3)
    figure = grid_figure([a_group(one, other, killed)], "policy/entropy")
    *thin, thick = figure.axes[0].get_lines()
    drawn = [np.asarray(line.get_ydata()) for line in thin]
    for line, run in zip(drawn, (one, other, killed), strict=True):
        assert np.array_equal(line, run.metrics["policy/entropy"])
    assert np.allclose(thick.get_ydata(), (drawn[0] + drawn[1]) / 2)  # a killed run is drawn, and is in no mean
    assert thick.get_linewidth() > 2 * thin[0].get_linewidth()


def test_models_and_training_data_make_a_grid_with_a_gap_for_what_was_not_run() -> None:
    names = [("8B", "math"), ("14B", "math"), ("14B", "code"), ("30B", "math")]
    groups = [a_group(model=model, setting=f"{model}, {data}") for model, data in names]
    figure = grid_figure(groups, "reward/mean")
    assert [ax.get_title() for ax in figure.axes] == ["8B, math", "14B, math", "30B, math", "", "14B, code", ""]
    assert [ax.axison for ax in figure.axes] == [True, True, True, False, True, False]
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 3)
    assert [len(ax.get_lines()) for ax in figure.axes] == [1, 1, 1, 0, 1, 0]
    assert texts(figure) == ["SSPO atanlog"]


def test_smoothing_is_the_bias_corrected_moving_average_and_the_axis_says_so() -> None:
    one, other = a_run(0, steps=40), a_run(1, steps=40)
    reward, entropy = smoothed_figure([a_group(one, other)]).axes
    for ax, metric in ((reward, "reward/mean"), (entropy, "policy/entropy")):
        mean = (one.metrics[metric].to_numpy() + other.metrics[metric].to_numpy()) / 2
        average, by_hand = 0.0, []
        for t, value in enumerate(mean, start=1):
            average = 0.98 * average + 0.02 * value
            by_hand.append(average / (1 - 0.98**t))
        (line,) = ax.get_lines()
        assert np.allclose(line.get_ydata(), by_hand, rtol=1e-12)
        assert list(line.get_xdata()) == list(range(1, 41))
        assert ax.get_ylabel().endswith("smoothed, α = 0.02")


def test_reward_by_time_adds_up_the_steps_and_by_tokens_takes_the_last_step_of_a_rollout() -> None:
    seconds = [[3600.0, 7200.0, 3600.0, 3600.0], [7200.0, 7200.0, 7200.0, 7200.0]]
    reward, tokens = [1.0, 0.0, 2.0, 1.0], [100.0, 100.0, 250.0, 250.0]
    runs = [
        a_run(
            seed, steps=4, **{"time/step": own, "reward/mean": reward, "tokens": tokens, "time/elapsed": [1.0, 2, 1, 2]}
        )
        for seed, own in enumerate(seconds)
    ]
    time, token = cost_figure([a_group(*runs)]).axes
    weights = 0.98 ** np.arange(4)
    smooth = [np.dot(reward[: t + 1], weights[t::-1]) / weights[: t + 1].sum() for t in range(4)]
    assert np.allclose(time.get_lines()[0].get_xydata(), np.column_stack([[1.5, 3.5, 5.0, 6.5], smooth]))
    assert time.get_xlabel().startswith("hours")
    assert np.allclose(token.get_lines()[0].get_xydata(), [[100, smooth[1]], [250, smooth[3]]])


def test_each_method_has_a_panel_with_its_configurations_and_the_range_of_the_others() -> None:
    long, short = a_run(0), a_run(1, last=5)
    groups = [a_group(long, method="grpo", gate="clip"), a_group(short, method="gmpo", gate="clip")]
    groups += [a_group(a_run(2), details="τ 1"), a_group(a_run(3), details="τ 2")]
    panels = by_method_figure(groups, "reward/mean").axes
    assert [ax.get_title() for ax in panels] == ["GRPO clip", "GMPO clip", "SSPO atanlog"]
    assert [len(ax.get_lines()) for ax in panels] == [1, 1, 2]
    assert [text.get_text() for text in panels[2].get_legend().get_texts()] == ["τ 1", "τ 2"]
    outline = panels[2].collections[0].get_paths()[0].vertices
    rewards = [run.metrics["reward/mean"] for run in (long, short)]
    for step in range(1, 9):
        there = outline[outline[:, 0] == step, 1]
        own = [reward[step] for reward in rewards if step in reward.index]
        assert (there.min(), there.max()) == pytest.approx((min(own), max(own)))


def test_the_best_configuration_is_that_of_table_1_and_without_a_validation_that_of_the_last_rewards() -> None:
    def tried(details: str, validated: list[int], rewards: list[float]) -> RunGroup:
        rows = [validation(step, correct) for step, correct in zip((0, 4, 8), validated, strict=False)]
        return a_group(a_run(evaluations=rows, **{"reward/mean": rewards}), details=details)

    peaked, risen = tried("τ 1", [50, 80, 60], [1.0] * 8), tried("τ 2", [50, 60, 75], [1.5] * 8)
    alone = a_group(method="grpo", gate="clip", setting="another")
    said = "If a method has several configurations, the figure shows the best by validation Pass@1"
    assert best_of_each([peaked, risen], "last") == ([risen], f"{said}, as in table 1.")
    assert best_of_each([peaked, risen], "best")[0] == [peaked]
    unvalidated = tried("τ 2", [], [0.5] * 7 + [1.6])
    best, how = best_of_each([peaked, unvalidated, alone], "last")
    assert best == [unvalidated, alone]
    assert "without a common validation, by the mean reward of the last tenth of the steps" in how
    assert best_of_each([peaked, alone], "last") == ([peaked, alone], "")


def test_the_distribution_of_weights_is_by_phase_and_sign_over_all_steps_and_seeds(tmp_path: Path) -> None:
    def counts(**bins: int) -> list[int]:
        return [bins.get(f"b{place}", 0) for place in range(24)]

    first = {"step": 1, "minibatch": 1, "epoch": 1, "width": 0.05, "positive": counts(b20=10), "negative": counts()}
    stale = {"minibatch": 2, "epoch": 1, "width": 0.05}
    for seed, step in ((0, 2), (0, 4), (1, 2)):
        (tmp_path / str(seed)).mkdir(exist_ok=True)
        rows = {"positive": counts(b0=seed, b19=3), "negative": counts(b23=1)}
        append_jsonl(tmp_path / str(seed) / "weights.jsonl", {"step": step, **stale, **rows})
    append_jsonl(tmp_path / "0" / "weights.jsonl", first)
    group = a_group(*(a_run(seed, path=tmp_path / str(seed)) for seed in (0, 1)))
    assert weights_figure([a_group(a_run(path=tmp_path / "none"))]) is None
    figure = weights_figure([group])
    positive, negative = ([patch.get_data() for patch in ax.patches] for ax in figure.axes)
    assert np.allclose(positive[0].values, np.eye(24)[20])
    assert np.allclose(positive[1].values, 0.1 * np.eye(24)[0] + 0.9 * np.eye(24)[19])
    assert np.allclose(positive[1].edges, 0.05 * np.arange(25))
    assert len(negative) == 1  # no token of a negative advantage in the first minibatch
    assert np.allclose(negative[0].values, np.eye(24)[23])
    assert [ax.get_title("left") for ax in figure.axes] == ["SSPO atanlog", ""]
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["Â > 0", "Â < 0"]
    assert texts(figure) == ["minibatch 1", "minibatch 2"]
    light, dark = (to_hex(patch.get_edgecolor()) for patch in figure.axes[0].patches)
    assert light > dark == "#d55e00"  # the stalest in the method's own colour


def test_pass_at_1_by_step_is_drawn_with_its_interval() -> None:
    rows = [evaluation(0, 60), evaluation(8, 121), evaluation(8, 3, n=30, benchmark="aime25")]
    figure = scores_by_step_figure(*framed([a_group(a_run(evaluations=rows))]))
    (ax,) = figure.axes  # one evaluation is no curve
    assert ax.get_title() == "arithmetic, n = 200"
    (bars,) = ax.containers
    line, _, (segments,) = bars.lines
    assert np.allclose(line.get_xydata(), [[0, 30], [8, 60.5]])
    assert np.allclose([s[:, 1] for s in segments.get_segments()], 100 * np.array([wilson(60, 200), wilson(121, 200)]))
    assert scores_by_step_figure(*framed([a_group(a_run(evaluations=rows[:1]))])) is None


def test_the_final_scores_are_of_the_selected_step_with_the_bases_first() -> None:
    def rows(seed: int) -> list[dict]:
        scores = [evaluation(step, share) for step, share in ((0, 60), (4, 150 + 10 * seed), (8, 120 + 20 * seed))]
        return scores + [validation(step, share) for step, share in ((0, 25), (4, 45), (8, 40))]

    runs = [a_run(seed, evaluations=rows(seed)) for seed in (0, 1)]
    bare = BareModel(Path("bare"), "M", measured([evaluation(0, 40)]))
    unmeasured = a_group(a_run(0, evaluations=[]), method="grpo", gate="clip")
    groups = [unmeasured, a_group(*runs)]
    for select, (low, mean, high) in {"last": (60, 65, 70), "best": (75, 77.5, 80)}.items():
        frame = Collection(groups, [bare], select=select).frame
        (ax,) = final_figure(frame, groups).axes  # what selects is not shown as a result
        assert [label.get_text() for label in ax.get_yticklabels()] == ["base", "M by sspo eval", "SSPO atanlog"]
        assert [text.get_text() for text in ax.texts] == ["30.0", "20.0", f"{mean:.1f}"]
        dots = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"]
        assert np.allclose(dots, [30, 20, mean])
        interval, seeds, dot = ax.get_lines()[-3:]
        assert np.allclose(interval.get_xdata(), 100 * np.array(wilson(round(2 * mean), 200)))
        assert np.allclose(seeds.get_xdata(), [low, high])
        assert to_hex(dot.get_color()) == "#d55e00"
    assert final_figure(*framed([unmeasured])) is None


def test_attenuation_is_that_of_the_stalest_minibatch_and_empty_curves_are_in_no_legend() -> None:
    run = a_run(**{"weights/positive_attenuated": [0.1 * step for step in range(8)]})
    figure = training_figure(*of_one(a_group(run)))
    reward, _, attenuated, scores = figure.axes
    assert [text.get_text() for text in attenuated.get_legend().get_texts()] == ["all", "Â > 0"]
    line = attenuated.get_lines()[1]
    assert np.allclose(line.get_xydata(), [[2, 0.1], [4, 0.3], [6, 0.5], [8, 0.7]])
    assert [text.get_text() for text in reward.get_legend().get_texts()] == ["mean"]
    assert scores.get_legend().get_texts()[0].get_text() == "arithmetic, n = 200"
    old = replace(run, metrics=run.metrics.drop(columns="minibatch"))
    assert len(training_figure(*of_one(a_group(old))).axes[2].get_lines()[1].get_xdata()) == 8


def test_a_long_name_of_a_benchmark_takes_no_room_from_the_panels(tmp_path: Path) -> None:
    ways = [
        evaluation(8, 3, samples=n, temperature=0.5 * n, max_new_tokens=1000 * n, prompt="p" * n) for n in (1, 4, 8)
    ]
    figure = training_figure(*of_one(a_group(a_run(evaluations=ways))))
    save(figure, tmp_path, "training")
    assert all(ax.get_position().width > 0.35 for ax in figure.axes)


def test_the_gates_are_those_of_the_paper() -> None:
    panels = gates_figure().axes
    gates = {ax.get_title().split(",")[0]: (ax, panels[place + 4]) for place, ax in enumerate(panels) if ax.get_title()}
    paper = ["clip (GMPO)", "sigmoid (SAPO)", "expsig", "expatan", "gumbel", "atanlog", "siglog"]
    assert list(gates) == [*paper, "CISPO", "PSPO", "CE-GPPO"]

    def curves(gate: str, panel: int) -> dict[str, list[np.ndarray]]:
        """By label, Â > 0 and Â < 0, one line if equal; the first two lines are clip's, the last is at ρ = 1."""
        drawn: dict[str, list[np.ndarray]] = {}
        for line in gates[gate][panel].get_lines()[2:-1]:
            label = line.get_label() if line.get_linestyle() == "-" else list(drawn)[-1]
            drawn.setdefault(label, []).append(np.asarray(line.get_ydata()))
        return drawn

    ratio = np.asarray(panels[0].get_lines()[0].get_xdata())
    d = np.log(ratio)
    assert list(curves("atanlog", 0)) == ["0.3/0.2", "0.6/0.5"]
    for label, taus in (("0.3/0.2", (0.2, 0.3)), ("0.6/0.5", (0.5, 0.6))):
        for sign, tau in enumerate(taus):  # eqs. (21), (16)
            assert np.allclose(curves("atanlog", 0)[label][sign], np.exp(tau * np.arctan(d / tau)))
            assert np.allclose(curves("atanlog", 1)[label][sign], 1 / (1 + (d / tau) ** 2))
    for label, eps in (("0.1", 0.1), ("0.2", 0.2), ("0.3", 0.3)):
        above, below = curves("clip (GMPO)", 0)[label]
        assert np.allclose(above, np.minimum(ratio, 1 + eps))
        assert np.allclose(below, np.maximum(ratio, 1 - eps))
    for label, taus in (("1/1.05", (1.05, 1)), ("3/4", (4, 3)), ("7/8", (8, 7))):  # eqs. (9), (12)
        for sign, tau in enumerate(taus):
            g = 1 / (1 + np.exp(-tau * (ratio - 1)))
            assert np.allclose(curves("sigmoid (SAPO)", 0)[label][sign], 4 * g / tau)
            assert np.allclose(curves("sigmoid (SAPO)", 1)[label][sign], 4 * g * (1 - g) * ratio)
    (both,) = curves("CISPO", 1)["1"]
    assert np.allclose(both, np.minimum(ratio, 2))
    (both,) = curves("PSPO", 0)["0.3"]
    assert np.allclose(both, 0.7 * ratio + 0.3)


def test_a_method_has_one_colour_everywhere() -> None:
    first, second = a_group(details="τ 1"), a_group(details="τ 2")
    elsewhere = replace(first, setting="M, gsm8k")
    free = a_group(method="sequence")
    lines = line_styles([first, second, elsewhere, free])
    assert to_hex(lines[0][0]) == to_hex(lines[1][0]) == "#d55e00"
    assert lines[0][1] != lines[1][1]  # configurations of one method by their dashes
    assert lines[2] == lines[0]  # the same configuration on other data
    assert line_styles([free]) == [lines[3]]


def test_every_collection_gives_figures_that_say_over_how_many_seeds(tmp_path: Path) -> None:
    def drawn(*groups: RunGroup) -> dict[str, str]:
        return {drawing.name: drawing.caption for drawing in figures(Collection(groups=list(groups)))}

    one = drawn(a_group(a_run(path=tmp_path)))
    assert list(one) == ["best", "pass-at-1", "gates", "training"]  # no curve in two figures
    assert one["training"].startswith("One seed; no smoothing.")
    assert "The figure of this configuration shows the curves without smoothing." in one["best"]
    seeds = a_group(*(a_run(seed, path=tmp_path) for seed in range(3)))
    single = a_group(a_run(seed=3, path=tmp_path), method="grpo", gate="clip")
    both = drawn(seeds, single)
    shared = ["reward", "entropy", "best", "cost", "pass-at-1", "pass-at-1-by-step", "gates"]
    assert list(both)[: len(shared)] == shared
    assert both["entropy"].startswith("Thick: mean over 1 to 3 seeds")
    assert "Means over 1 to 3 seeds" in both["best"]
    many = drawn(*(a_group(a_run(path=tmp_path), details=f"τ {place}") for place in range(7)))
    assert {"reward-by-method", "entropy-by-method"} < set(many)
    assert "the best by" in many["reward"]
    assert not any(name.startswith("training") for name in many)
    bare = a_run(path=tmp_path, evaluations=[])
    assert list(drawn(a_group(replace(bare, metrics=pd.DataFrame())))) == ["gates"]
    assert "cost" not in drawn(a_group(replace(bare, metrics=bare.metrics[["reward/mean"]])))


def test_the_same_figure_gives_the_same_files_with_text_as_text(tmp_path: Path) -> None:
    group = a_group(a_run(0), a_run(1), details="a name so long that it has to be broken: " + "τ 0.3; " * 20)
    for out in ("a", "b"):
        (tmp_path / out).mkdir()
    first, second = (save(grid_figure([group], "reward/mean"), out, "x") for out in (tmp_path / "a", tmp_path / "b"))
    assert [path.suffix for path in first] == [".svg", ".pdf", ".png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert ">optimizer step</text>" in first[0].read_text()


def test_sensitivity_shows_every_configuration_with_its_seeds_and_marks_the_chosen() -> None:
    def tried(details: str, validated: int, reward: float, **about: str) -> RunGroup:
        runs = [
            a_run(
                seed, evaluations=[validation(8, validated + seed), evaluation(8, 100)], **{"reward/mean": [reward] * 8}
            )
            for seed in (0, 1)
        ]
        return a_group(*runs, details=details, **about)

    tuned = [
        tried(f"objective.tau_neg {neg}, objective.tau_pos {pos}", validated, reward)
        for neg, pos, validated, reward in (("0.3", "0.2", 50, 1.0), ("0.6", "0.5", 60, 1.5))
    ]
    clipped = tried("", 40, 1.2, method="grpo", gate="clip")
    figure = sensitivity_figure(*framed([clipped, *tuned]), [clipped, tuned[1]])
    panels = figure.subfigs[0].axes if figure.subfigs else figure.axes
    assert len(panels) == 2 * 3  # validation, which chooses, then the benchmark, then the reward
    assert [ax.get_ylabel() for ax in panels[::2]] == [
        "validation\nPass@1 (%)",
        "arithmetic\nPass@1 (%)",
        "final\nreward",
    ]
    assert [ax.get_title() for ax in panels[:2]] == ["GRPO\nclip", "SSPO\natanlog"]
    validated = panels[1]
    assert [list(line.get_ydata()) for line in validated.get_lines()] == [[50, 51], [50.5], [60, 61], [60.5]]
    assert [patch.get_x() for patch in validated.patches] == [0.55]  # the second one is on grey
    assert not panels[0].patches  # where there is no choice, none is marked
    assert [label.get_text() for label in panels[5].get_xticklabels()] == ["0.3/0.2", "0.6/0.5"]
    assert panels[5].get_xlabel() == "τ_neg/\nτ_pos"
    assert panels[0].get_ylim() == validated.get_ylim()


def test_options_that_go_together_are_named_once() -> None:
    both = [a_group(details=f"objective.eps_low {eps}, objective.eps_high {eps}") for eps in ("0.1", "0.2")]
    assert tick_labels(both) == ("ε", ["0.1", "0.2"])
    assert tick_labels([a_group()]) == ("", [""])


def test_staleness_is_drawn_by_mu_with_the_seeds_range() -> None:
    def at(mu: int, *correct: int) -> RunGroup:
        shares = [0.1, 0.5] * 4  # of attenuated tokens: of the last minibatch where μ = 2
        runs = [
            a_run(seed, f"learning.mu={mu}", evaluations=[evaluation(8, c)], **{"weights/attenuated": shares})
            for seed, c in enumerate(correct)
        ]
        return a_group(*runs, start="M, arithmetic", setting=f"M, arithmetic (mu {mu})")

    groups = [at(2, 100, 120), at(8, 40, 60)]
    assert series_of(groups) == [groups]
    assert series_of(groups[:1]) == []
    figure = staleness_figure(*framed(groups))
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == [
        "arithmetic, Pass@1 (%)",
        "final reward",
        "final token entropy (nats)",
        "stalest tokens with w < 0.5",
    ]
    (bars,) = figure.axes[0].containers
    line, _, (ranges,) = bars.lines
    assert np.allclose(line.get_xydata(), [[2, 55], [8, 25]])
    assert np.allclose([segment[:, 1] for segment in ranges.get_segments()], [[50, 60], [20, 30]])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2", "8"]
    attenuated = figure.axes[3].containers[0].lines[0]
    assert np.allclose(attenuated.get_xydata(), [[2, 0.5]])  # nothing is known at μ = 8


def test_series_by_mu_do_not_mix_what_else_differs() -> None:
    def at(mu: int, prompts: int) -> RunGroup:
        run = a_run(0, f"learning.mu={mu}", f"rollout.prompts={prompts}")
        return a_group(run, start="M, arithmetic", setting=f"M, arithmetic (mu {mu}, prompts {prompts})")

    together = [at(2, 16), at(8, 64)]  # as many prompts in a minibatch
    assert series_of(together) == [together]
    crossed = [at(2, 16), at(8, 16), at(2, 64), at(8, 64)]
    assert series_of(crossed) == [crossed[:2], crossed[2:]]


def test_a_study_of_staleness_has_its_figures(tmp_path: Path) -> None:
    groups = [
        a_group(a_run(path=tmp_path), details=details, start="M", setting=f"M (mu {mu})")
        for mu, details in ((2, "τ 1"), (2, "τ 2"), (4, ""))
    ]
    groups = [replace(g, runs=[a_run(0, f"learning.mu={g.setting[-2]}", path=tmp_path)]) for g in groups]
    drawn = {drawing.name: drawing for drawing in figures(Collection(groups=groups))}
    assert {"staleness", "sensitivity", "reward-by-mu", "entropy-by-mu"} < set(drawn)
    assert [ax.get_title() for ax in drawn["best"].figure.axes] == ["mu 2", "mu 2", "mu 4", "mu 4"]
    assert texts(drawn["best"].figure) == ["SSPO atanlog"]  # one of each needs no options in its name
    assert texts(drawn["reward-by-mu"].figure) == ["μ = 2", "μ = 4"]


def test_equal_curves_are_drawn_once_and_named(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("reward/mean", "reward/answer", "policy/entropy", "weights/attenuated"), [0.0] * 8)
    names = ("expsig", "gumbel", "atanlog")
    groups = [a_group(a_run(path=tmp_path, **nothing), gate=gate) for gate in names]
    for figure in (grid_figure(groups, "reward/mean"), smoothed_figure(groups), cost_figure(groups)):
        assert {len(ax.get_lines()) for ax in figure.axes} == {1}
        assert texts(figure) == [f"SSPO {gate}" for gate in names]
    captions = {drawing.name: drawing.caption for drawing in figures(Collection(groups=groups))}
    said = "Equal curves are drawn once, in the colour of the first: SSPO expsig, SSPO gumbel, SSPO atanlog."
    assert all(captions[name].count(said) == 1 for name in ("reward", "entropy", "best", "cost"))
    apart = [*groups[:2], a_group(a_run(path=tmp_path, **nothing | {"reward/mean": [0.0] * 7 + [1.0]}))]
    captions = {drawing.name: drawing.caption for drawing in figures(Collection(groups=apart))}
    assert captions["reward"].endswith("first: SSPO expsig, SSPO gumbel.")
    assert captions["entropy"].endswith(said)
    reward, entropy, attenuated, _ = training_figure(*of_one(groups[0])).axes
    assert [text.get_text() for text in reward.get_legend().get_texts()] == ["mean, answer"]
    assert [len(ax.get_lines()) for ax in (reward, entropy, attenuated)] == [1, 1, 1]
    seeds = [a_run(seed, **{"reward/mean": [1.0] * 8}) for seed in range(3)]
    assert len(grid_figure([a_group(*seeds)], "reward/mean").axes[0].get_lines()) == 1


def test_a_figure_or_panel_without_a_curve_is_left_out(tmp_path: Path) -> None:
    def drawn(*groups: RunGroup) -> dict[str, str]:
        return {drawing.name: drawing.caption for drawing in figures(Collection(groups=list(groups)))}

    assert list(drawn(a_group(a_run(steps=1, path=tmp_path, tokens=[64.0])))) == [
        "pass-at-1",
        "pass-at-1-by-step",
        "gates",
    ]
    short = a_group(a_run(steps=1, path=tmp_path, tokens=[64.0]), method="grpo", gate="clip")
    assert texts(grid_figure([short, a_group()], "reward/mean")) == ["GRPO clip", "SSPO atanlog"]
    assert "training-m-arithmetic-grpo-clip" not in drawn(short, a_group(a_run(path=tmp_path)))
    run = a_run(path=tmp_path, evaluations=[])
    bare = a_group(replace(run, metrics=run.metrics[["reward/mean"]]))
    figure = training_figure(*of_one(bare))
    assert [ax.get_ylabel() for ax in figure.axes] == ["reward (minibatch mean)"]
    caption = drawn(bare)["training"]
    assert "Without a panel: not recorded at two steps: token entropy (nats), stalest tokens with w < 0.5;" in caption
    assert caption.endswith("no evaluation of a finished run.")
    assert [ax.get_ylabel()[:6] for ax in smoothed_figure([bare]).axes] == ["reward"]
    only = a_group(a_run(evaluations=[evaluation(8, 100)]))
    assert final_figure(*framed([only])) is None  # a single dot


def test_no_panel_of_weights_is_empty(tmp_path: Path) -> None:
    row = {"step": 1, "epoch": 1, "minibatch": 1, "width": 0.05, "positive": [0] * 24, "negative": [0] * 24}
    append_jsonl(tmp_path / "weights.jsonl", row)
    assert weights_figure([a_group(a_run(path=tmp_path))]) is None
    append_jsonl(tmp_path / "weights.jsonl", row | {"step": 2, "positive": [0] * 20 + [5] + [0] * 3})
    above, below = weights_figure([a_group(a_run(path=tmp_path))]).axes
    assert (above.axison, below.axison) == (True, False)
    assert below.texts[0].get_text() == "no tokens with Â < 0"
