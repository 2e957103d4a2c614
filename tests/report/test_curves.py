"""Training curves: means and seeds, smoothing, panels, axes of time and tokens."""

from pathlib import Path

import numpy as np
import pytest
from drawn_runs import a_group, a_run, of_one, texts

from sspo_cli.report.collect import Collection
from sspo_cli.report.figures import figures
from sspo_cli.report.figures.curves import by_method_figure, cost_figure, grid_figure, smoothed_figure
from sspo_cli.report.figures.training import training_figure

pytestmark = pytest.mark.filterwarnings("error")


def test_the_mean_over_seeds_is_thick_the_seeds_are_thin_and_nothing_is_smoothed() -> None:
    one, other, killed = a_run(0), a_run(1), a_run(2, last=3)
    figure = grid_figure([a_group(one, other, killed)], "policy/entropy")
    *thin, thick = figure.axes[0].get_lines()
    drawn = [np.asarray(line.get_ydata()) for line in thin]
    for line, run in zip(drawn, (one, other, killed), strict=True):
        assert np.array_equal(line, run.metrics["policy/entropy"])
    assert np.allclose(thick.get_ydata(), (drawn[0] + drawn[1]) / 2)  # a killed run is drawn but not averaged
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
