"""The figures of a report as a whole: selection, captions, colours, files and layout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_runs import a_group, a_run, framed, of_one, texts
from matplotlib import rc_context
from matplotlib.colors import to_hex
from synthetic_runs import evaluation, validation

from sspo_cli.report.collect import Collection
from sspo_cli.report.figures import best_of_each, figures, save
from sspo_cli.report.figures.curves import by_method_figure, grid_figure, smoothed_figure
from sspo_cli.report.figures.gates import gates_figure
from sspo_cli.report.figures.scores import final_figure
from sspo_cli.report.figures.sensitivity import sensitivity_figure
from sspo_cli.report.figures.style import STYLE, line_styles
from sspo_cli.report.figures.training import training_figure
from sspo_cli.report.figures.weights import weights_figure
from sspo_cli.report.groups import RunGroup
from sspo_cli.tracking.jsonl import append_jsonl

pytestmark = pytest.mark.filterwarnings("error")


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
    assert len(negative) == 1  # the first minibatch has no token with a negative advantage
    assert np.allclose(negative[0].values, np.eye(24)[23])
    assert [ax.get_title("left") for ax in figure.axes] == ["SSPO atanlog", ""]
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["Â > 0", "Â < 0"]
    assert texts(figure) == ["minibatch 1", "minibatch 2"]
    light, dark = (to_hex(patch.get_edgecolor()) for patch in figure.axes[0].patches)
    assert light > dark == "#d55e00"  # the stalest minibatch has the method's colour


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
        """Return the curves by label, without clip and ρ = 1. Equal curves for Â > 0 and Â < 0 share a line."""
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
    assert lines[0][1] != lines[1][1]  # configurations of one method differ by their dashes
    assert lines[2] == lines[0]  # the same configuration on other data
    assert line_styles([free]) == [lines[3]]


def test_every_collection_gives_figures_that_say_over_how_many_seeds(tmp_path: Path) -> None:
    def drawn(*groups: RunGroup) -> dict[str, str]:
        return {drawing.name: drawing.caption for drawing in figures(Collection(groups=list(groups)))}

    one = drawn(a_group(a_run(path=tmp_path)))
    assert list(one) == ["best", "pass-at-1", "gates", "training"]  # no curve appears in two figures
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


def test_a_study_of_staleness_has_its_figures(tmp_path: Path) -> None:
    groups = [
        a_group(a_run(path=tmp_path), details=details, start="M", setting=f"M (mu {mu})")
        for mu, details in ((2, "τ 1"), (2, "τ 2"), (4, ""))
    ]
    groups = [replace(g, runs=[a_run(0, f"learning.mu={g.setting[-2]}", path=tmp_path)]) for g in groups]
    drawn = {drawing.name: drawing for drawing in figures(Collection(groups=groups))}
    assert {"staleness", "sensitivity", "reward-by-mu", "entropy-by-mu"} < set(drawn)
    assert [ax.get_title() for ax in drawn["best"].figure.axes] == ["mu 2", "mu 2", "mu 4", "mu 4"]
    assert texts(drawn["best"].figure) == ["SSPO atanlog"]  # a single configuration needs no options in its name
    assert texts(drawn["reward-by-mu"].figure) == ["μ = 2", "μ = 4"]


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
    assert "Panels left out: not recorded at two steps: token entropy (nats), stalest tokens with w < 0.5;" in caption
    assert caption.endswith("no evaluation of a finished run.")
    assert [ax.get_ylabel()[:6] for ax in smoothed_figure([bare]).axes] == ["reward"]
    only = a_group(a_run(evaluations=[evaluation(8, 100)]))
    assert final_figure(*framed([only])) is None  # a single dot is no figure


def test_no_panel_of_weights_is_empty(tmp_path: Path) -> None:
    row = {"step": 1, "epoch": 1, "minibatch": 1, "width": 0.05, "positive": [0] * 24, "negative": [0] * 24}
    append_jsonl(tmp_path / "weights.jsonl", row)
    assert weights_figure([a_group(a_run(path=tmp_path))]) is None
    append_jsonl(tmp_path / "weights.jsonl", row | {"step": 2, "positive": [0] * 20 + [5] + [0] * 3})
    above, below = weights_figure([a_group(a_run(path=tmp_path))]).axes
    assert (above.axison, below.axison) == (True, False)
    assert below.texts[0].get_text() == "no tokens with Â < 0"


def test_panels_keep_their_room_next_to_long_names_and_many_configurations() -> None:
    """Check layouts with long labels: matplotlib warns if a panel has no room, and the warning is an error here."""
    details = [f"chat.system {place} {'word ' * 30}".strip() for place in range(12)]
    groups = [a_group(details=detail) for detail in details] + [a_group(method="grpo", gate="clip")]
    frame = Collection(groups).frame
    drawn = [by_method_figure(groups, "reward/mean"), sensitivity_figure(frame, groups, [])]
    long_path = a_group(details="model.name /" + "x" * 300)
    drawn.append(final_figure(*framed([long_path, a_group()])))
    for figure in drawn:
        with rc_context(STYLE):
            figure.get_layout_engine().execute(figure)
        panels = [ax for ax in figure.axes if ax.axison]
        assert min(ax.get_position().height * figure.get_figheight() for ax in panels) > 0.6
