from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from synthetic_runs import evaluation, write_run

from sspo_cli.errors import UserError
from sspo_cli.report import write_report
from sspo_cli.report.figures import gates_figure, lines_of, reward_figure, save, training_figure
from sspo_cli.report.runs import collect


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    out = tmp_path_factory.mktemp("report") / "deep" / "er"
    run = write_run(tmp_path_factory.mktemp("runs") / "first-run")
    return out, write_report([run], out)


def test_a_report_is_whole(one_run: tuple[Path, list[Path]]) -> None:
    out, written = one_run
    assert sorted(written) == sorted(out.iterdir())
    assert written[0] == out / "report.md"
    magic = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for name in ("reward", "entropy", "gates", "training"):
        for suffix, start in magic.items():
            assert (out / f"{name}.{suffix}").read_bytes().startswith(start)
    page = (out / "report.md").read_text()
    assert (out / "pass_at_1.md").read_text() in page
    for said in (
        "95 % Wilson",
        "n = 200 problems, greedy, at most 48 new tokens, prompt `think-answer`",
        "![Reward](reward.png)",
    ):
        assert said in page
    assert "Not in the table" not in page
    assert "first-run`" in page


def test_the_same_runs_give_the_same_files(one_run: tuple[Path, list[Path]], tmp_path: Path) -> None:
    out, _ = one_run
    (group,) = collect([write_run(tmp_path / "run")]).groups
    for path in save(training_figure(group), tmp_path, "training"):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_what_is_not_in_the_table_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sspo_cli.report.page.save", lambda figure, out, name: [])  # the slow part
    runs = tmp_path / "runs"
    write_run(runs / "good")
    write_run(runs / "bad", "seed=1", last=4, state="failed", reason="5 bad steps in a row")
    write_run(runs / "dead", "seed=2", last=7, state="running")
    write_run(runs / "lazy", "seed=3", evaluations=[])
    write_run(runs / "late", "seed=4", evaluations=[evaluation(12, 99)])
    write_run(runs / "other", "objective.method=gmpo", state="interrupted", last=0)
    write_report([runs], tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    listed = page[page.index("## Not in the table") : page.index("## Figures")]
    for said in (
        "bad` (seed 1) is failed at step 4 of 12: 5 bad steps in a row;",
        "dead` (seed 2) is killed at step 7 of 12;",
        "lazy` (seed 3) is finished, but was not evaluated after its last step.",
        "late` (seed 4) was not evaluated before its first step.",
        "other` (seed 0) is interrupted at step 0 of 12;",
    ):
        assert said in listed
    assert "good`" not in listed
    assert "### Training: GMPO, tiny model" in page  # a page of curves for each configuration


def test_no_runs_and_no_place_for_the_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no readable runs"):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        write_report([run], tmp_path / "file")


def test_seeds_are_thin_and_unsmoothed_and_their_mean_is_thick(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / str(seed), f"seed={seed}")
    (group,) = collect([tmp_path]).groups
    axes = reward_figure([group]).axes
    assert [ax.get_ylabel().split(" (")[0] for ax in axes] == ["reward", "answer part", "format part"]
    for ax, metric in zip(axes, ("reward/mean", "reward/answer", "reward/format"), strict=True):
        *seeds, mean = ax.get_lines()
        drawn = [np.asarray(line.get_ydata()) for line in seeds]
        assert np.array_equal(drawn, [run.metrics[metric] for run in group.runs])
        assert np.allclose(mean.get_ydata(), np.mean(drawn, axis=0))
        assert mean.get_linewidth() > 2 * seeds[0].get_linewidth()


def test_a_metric_that_some_steps_lack_is_drawn_where_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    (group,) = collect([tmp_path]).groups
    attenuated = training_figure(group).axes[2]
    (negative,) = (line for line in attenuated.get_lines() if line.get_label() == "Â < 0")
    assert list(negative.get_xdata()) == [2, 4, 6, 8, 10, 12]


def test_pass_at_1_is_drawn_with_its_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations=[evaluation(12, 121), evaluation(0, 60)])
    (group,) = collect([tmp_path]).groups
    held_out = training_figure(group).axes[3]
    (bars,) = held_out.containers
    line, _, (segments,) = bars.lines
    assert np.allclose(line.get_xydata(), [[0, 0.3], [12, 0.605]])
    spans = [segment[:, 1] for segment in segments.get_segments()]
    assert np.allclose(spans, [[0.2407, 0.3668], [0.5359, 0.6702]], atol=1e-4)
    assert [text.get_text() for text in held_out.texts] == ["30.0%", "60.5%"]


def test_the_gates_are_those_of_the_paper() -> None:
    gate, weight = gates_figure().axes[:2]  # Â > 0
    lines = {line.get_label(): line for line in weight.get_lines()}
    ratio = lines["atanlog"].get_xdata()
    assert np.allclose(lines["atanlog"].get_ydata(), 1 / (1 + (np.log(ratio) / 0.2) ** 2))  # eq. (16)
    assert np.allclose(lines["clip"].get_ydata(), ratio < 1.2)
    (clip,) = (line for line in gate.get_lines() if line.get_label() == "clip")
    assert np.allclose(clip.get_ydata(), np.minimum(ratio, 1.2))


def test_a_method_has_one_colour_everywhere(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "objective.tau_pos=0.5")
    write_run(tmp_path / "b")
    write_run(tmp_path / "c", "objective.method=sequence", "objective.gate=atanlog")
    first, second, free = collect([tmp_path]).groups
    both, alone = lines_of([first, second, free]), lines_of([second])
    assert to_hex(both[0][0]) == to_hex(both[1][0]) == to_hex(alone[0][0]) == "#d55e00"
    assert both[0][1] != both[1][1]  # configurations of one method by their dashes
    assert lines_of([free]) == [both[2]]
