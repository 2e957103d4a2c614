"""The figures of scores: Pass@1, sensitivity to hyperparameters and staleness."""

from pathlib import Path

import numpy as np
import pytest
from drawn_runs import a_group, a_run, framed, measured
from matplotlib.colors import to_hex
from synthetic_runs import evaluation, validation

from sspo_cli.report.collect import Collection
from sspo_cli.report.figures.scores import final_figure, scores_by_step_figure
from sspo_cli.report.figures.sensitivity import sensitivity_figure, tick_labels
from sspo_cli.report.figures.staleness import series_of, staleness_figure
from sspo_cli.report.groups import RunGroup
from sspo_cli.report.records import BareModel
from sspo_cli.statistics import wilson

pytestmark = pytest.mark.filterwarnings("error")


def test_pass_at_1_by_step_is_drawn_with_its_interval() -> None:
    rows = [evaluation(0, 60), evaluation(8, 121), evaluation(8, 3, n=30, benchmark="aime25")]
    figure = scores_by_step_figure(*framed([a_group(a_run(evaluations=rows))]))
    (ax,) = figure.axes  # aime25 has only one evaluation, which is no curve
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
        (ax,) = final_figure(frame, groups).axes  # the validation that selects is not shown as a result
        assert [label.get_text() for label in ax.get_yticklabels()] == ["base", "M by sspo eval", "SSPO atanlog"]
        assert [text.get_text() for text in ax.texts] == ["30.0", "20.0", f"{mean:.1f}"]
        dots = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"]
        assert np.allclose(dots, [30, 20, mean])
        interval, seeds, dot = ax.get_lines()[-3:]
        assert np.allclose(interval.get_xdata(), 100 * np.array(wilson(round(2 * mean), 200)))
        assert np.allclose(seeds.get_xdata(), [low, high])
        assert to_hex(dot.get_color()) == "#d55e00"
    assert final_figure(*framed([unmeasured])) is None


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
    assert len(panels) == 2 * 3  # the validation that chooses, the benchmark and the reward
    assert [ax.get_ylabel() for ax in panels[::2]] == [
        "validation\nPass@1 (%)",
        "arithmetic\nPass@1 (%)",
        "final\nreward",
    ]
    assert [ax.get_title() for ax in panels[:2]] == ["GRPO\nclip", "SSPO\natanlog"]
    validated = panels[1]
    assert [list(line.get_ydata()) for line in validated.get_lines()] == [[50, 51], [50.5], [60, 61], [60.5]]
    assert [patch.get_x() for patch in validated.patches] == [0.55]  # the chosen configuration, the second, is on grey
    assert not panels[0].patches  # a single configuration is not marked
    assert [label.get_text() for label in panels[5].get_xticklabels()] == ["0.3/0.2", "0.6/0.5"]
    assert panels[5].get_xlabel() == "τ_neg/\nτ_pos"
    assert panels[0].get_ylim() == validated.get_ylim()


def test_options_that_go_together_are_named_once() -> None:
    both = [a_group(details=f"objective.eps_low {eps}, objective.eps_high {eps}") for eps in ("0.1", "0.2")]
    assert tick_labels(both) == ("ε", ["0.1", "0.2"])
    assert tick_labels([a_group()]) == ("", [""])


def test_staleness_is_drawn_by_mu_with_the_seeds_range() -> None:
    def at(mu: int, *correct: int) -> RunGroup:
        shares = [0.1, 0.5] * 4  # of attenuated tokens, by minibatch 1 and 2
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
    assert np.allclose(attenuated.get_xydata(), [[2, 0.5]])  # no step has minibatch 8


def test_series_by_mu_do_not_mix_what_else_differs() -> None:
    def at(mu: int, prompts: int) -> RunGroup:
        run = a_run(0, f"learning.mu={mu}", f"rollout.prompts={prompts}")
        return a_group(run, start="M, arithmetic", setting=f"M, arithmetic (mu {mu}, prompts {prompts})")

    together = [at(2, 16), at(8, 64)]  # both have 8 prompts in a minibatch
    assert series_of(together) == [together]
    crossed = [at(2, 16), at(8, 16), at(2, 64), at(8, 64)]
    assert series_of(crossed) == [crossed[:2], crossed[2:]]
