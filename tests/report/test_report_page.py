import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from commands import assert_error, sspo
from matplotlib import rc_context
from matplotlib.figure import Figure
from synthetic_runs import evaluation, kept_group, write_bare_model, write_run

from sspo_cli.errors import UserError
from sspo_cli.report import write_report
from sspo_cli.report.collect import collect
from sspo_cli.report.completions import sample_completions
from sspo_cli.report.figures import Drawing
from sspo_cli.report.figures.style import STYLE
from sspo_cli.report.groups import RunGroup
from sspo_cli.report.html import inline_svg, json_for_script
from sspo_cli.tracking.files import read_jsonl, write_jsonl_atomic


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    out = tmp_path_factory.mktemp("report") / "deep" / "er"
    run = write_run(tmp_path_factory.mktemp("runs") / "first-run", whole=True)
    return out, write_report([run], out)


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw a single figure, because drawing all takes most of the time and is tested elsewhere."""

    def figures(*_: object) -> Iterator[Drawing]:
        figure = Figure(figsize=(2, 2))
        figure.subplots().plot([0, 1], [0, 1])
        yield Drawing("line", "A line", "From 0 to 1.", figure)

    monkeypatch.setattr("sspo_cli.report.page.figures", figures)


@pytest.mark.usefixtures("one_figure")
def test_metrics_parquet_has_every_metric_of_every_run(tmp_path: Path) -> None:
    for seed, last in ((0, 12), (1, 5)):
        write_run(tmp_path / "runs" / f"run-{seed}", f"seed={seed}", last=last, whole=True)
    write_report([tmp_path / "runs"], tmp_path)
    frame = pd.read_parquet(tmp_path / "metrics.parquet")
    assert len(frame) == 12 + 5
    assert set(frame["method"]) == {"sspo"}
    assert set(frame["configuration"]) == {"tau_neg 0.3, tau_pos 0.2"}
    for seed, same in frame.groupby("seed"):
        rows = [json.loads(line) for line in (tmp_path / "runs" / f"run-{seed}" / "metrics.jsonl").open()]
        assert set(same["run"]) == {f"run-{seed}"}
        for name in {key for row in rows for key in row}:
            assert list(same[name]) == pytest.approx([row.get(name, np.nan) for row in rows], rel=1e-6, nan_ok=True)


def test_a_report_is_whole(one_run: tuple[Path, list[Path]]) -> None:
    out, written = one_run
    assert sorted(written) == sorted(out.iterdir())
    assert written[:2] == [out / "index.html", out / "report.md"]
    markdown, page = (path.read_text() for path in written[:2][::-1])
    magic = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    figures = re.findall(r"!\[.+\]\((.+)\.png\)", markdown)
    assert {"best", "gates", "training", "weights"} <= set(figures)
    for name in figures:
        for suffix, start in magic.items():
            assert (out / f"{name}.{suffix}").read_bytes().startswith(start)
        assert f'id="{name}"' in page
    tables = {path.stem for path in out.glob("*.tex")}
    assert {"table1", "runs"} <= tables
    for name in tables:
        assert (out / f"{name}.md").read_text() in markdown
        assert f'id="{name}"' in page
        assert {path.suffix for path in out.glob(f"{name}.*")} == {".md", ".tex", ".csv", ".json"}
    assert (out / "metrics.parquet") in written
    assert len(written) == 2 + 1 + 3 * len(figures) + 4 * len(tables)


def test_nothing_on_the_page_points_out_of_it(one_run: tuple[Path, list[Path]]) -> None:
    page = (one_run[0] / "index.html").read_text()
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href|src|url)[=(]"?([^")\s]+)', page.partition("<script")[0])
    assert references
    assert all(reference.removeprefix("#") in ids for reference in references)


def test_the_same_runs_give_the_same_page_over_an_earlier_one(
    tmp_path: Path, one_figure: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sspo_cli.report.page._about", lambda command: "Made once.")  # the original names the time
    run = write_run(tmp_path / "run", whole=True)
    pages = []
    for _ in range(2):
        written = write_report([run], tmp_path / "out")
        pages.append({path.name: path.read_bytes() for path in written})
    assert pages[0] == pages[1]
    assert sorted(pages[0]) == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_a_report_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path: Path, one_figure: None) -> None:
    out = tmp_path / "out"
    for name, model in (("a", "Qwen/Qwen3-8B"), ("b", "Qwen/Qwen3-14B")):
        write_run(tmp_path / "runs" / name, f"model.name={model}")
    earlier = write_report([tmp_path / "runs"], out, paper=True)
    (out / "mine.txt").write_text("kept")
    command = ["sspo", "report", "runs/a", "--out", "out"]
    written = write_report([tmp_path / "runs" / "a"], out, command=command)
    assert {path.name for path in earlier} - {path.name for path in written} >= {"table2.tex", "paper1.csv"}
    assert {path.name for path in out.iterdir()} == {"mine.txt", *(path.name for path in written)}
    about = re.compile(
        r"Made on \d{4}-\d\d-\d\d \d\d:\d\d UTC on \S+ by sspo \S+.*, with .*sspo report runs/a --out out"
    )
    for path in written[:2]:
        assert about.search(path.read_text())
    for place in (tmp_path / "runs" / "a", tmp_path / "runs" / "a" / "eval" / "report"):
        with pytest.raises(UserError, match="is the folder of a run; choose another --out"):
            write_report([tmp_path / "runs"], place)


def test_a_run_is_named_as_for_eval(tmp_path: Path, one_figure: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "mine")
    done = sspo("report", "mine", "--out", "out")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "out/index.html")
    monkeypatch.setenv("SSPO_RUNS", str(tmp_path / "runs"))
    assert sspo("report", "mine", "--out", "elsewhere").returncode == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "mine" / "checkpoints" / "step-2").mkdir(parents=True)
    write_bare_model(tmp_path / "runs" / "model-org-name", "org/name", [evaluation(0, 5)])
    refused = {
        "yours": f"there is no run, measured model or folder of runs yours, here or in {tmp_path / 'runs'}",
        "empty": "there are no runs in empty, and no measured models",
        "": "the name of a run is empty",
        "mine/checkpoints/step-2": f"a report covers whole runs; name the run, {tmp_path / 'runs' / 'mine'}",
    }
    for name, said in refused.items():  # refused even if another run exists
        assert_error(sspo("report", "mine", name, "--out", "refused"), said)
    assert not (tmp_path / "refused").exists()
    done = sspo("report", "mine", "org/name", "--out", "both")
    assert done.returncode == 0, done.stderr
    assert "1 run, 1 configuration, 1 setting, 1 model without a run" in (tmp_path / "both" / "report.md").read_text()
    (tmp_path / "runs" / "mine" / "status.json").unlink()
    assert_error(sspo("report", "org/name", "mine", "--out", "refused"), "mine has no status.json")


def test_what_is_missing_is_named_near_the_top_of_both_pages(tmp_path: Path, one_figure: None) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "good")
    write_run(runs / "bad", "seed=1", last=4, state="failed", reason="5 <bad> steps in a row")
    write_run(runs / "lazy", "seed=3", evaluations=[])
    write_report([runs], tmp_path / "out")
    markdown, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "index.html"))
    listed = markdown[markdown.index("## What is missing") : markdown.index("## Tables")]
    assert "bad` (seed 1) is failed at step 4 of 12: 5 <bad> steps in a row;" in listed
    assert "lazy` (seed 3) is finished, but has no evaluation" in listed
    listed = page[page.index("What is missing") : page.index('<section id="tables"')]
    assert "bad</code> (seed 1) is failed at step 4 of 12: 5 &lt;bad&gt; steps in a row;" in listed


def test_signs_of_trouble_are_named_with_their_run_on_both_pages(tmp_path: Path, one_figure: None) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "short")
    write_run(runs / "good", "seed=1", steps=24)
    cut = write_run(runs / "cut", "seed=2", steps=24) / "metrics.jsonl"
    write_jsonl_atomic(cut, [{**row, "completions/truncated": 0.4} for row in read_jsonl(cut)])
    write_report([runs], tmp_path / "out")
    markdown, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "index.html"))
    assert "## Health: signs of trouble in 1 of 2 runs\n" in markdown
    sentence = "40% of the completions are truncated at the token limit; raise rollout.max_new_tokens."
    assert f"cut`: {sentence}" in markdown
    listed = page[page.index('id="health"') : page.index('<section id="tables"')]
    assert f"cut</code>: {sentence}" in listed
    assert "good" not in listed

    write_report([runs / "good"], tmp_path / "healthy")
    page = (tmp_path / "healthy" / "index.html").read_text()
    assert "Health: signs of trouble in 0 of 1 run<" in page
    assert "stay within their bounds" in page
    write_report([runs / "short"], tmp_path / "few")
    assert "Health" not in (tmp_path / "few" / "report.md").read_text()


def test_no_runs_and_no_place_for_the_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no readable runs"):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        write_report([run], tmp_path / "file")


# ---- the sample of completions


def groups_of(path: Path, rows: list[dict], *overrides: str) -> list[RunGroup]:
    write_jsonl_atomic(write_run(path, *overrides) / "completions.jsonl", rows)
    return collect([path]).groups


def test_few_completions_are_all_there(tmp_path: Path) -> None:
    rows = [row for step in range(1, 13) for row in kept_group(step, 2 - step % 2, f"p{step}", attenuation=0.4)]
    (run,) = sample_completions(groups_of(tmp_path / "run", rows))
    assert run["complete"]
    assert [group["step"] for group in run["groups"]] == list(range(1, 13))
    assert {len(group["completions"]) for group in run["groups"]} == {4}
    first = run["groups"][0]["completions"][0]
    assert first["pieces"] == rows[0]["pieces"]
    assert first["weights"] == [100, 95, 90, 85, 80, 75, 70, 65]
    assert (first["answer"], first["advantage"], first["extracted"]) == (1.0, 0.866, "2")


def test_of_many_completions_whole_rollouts_are_sampled_evenly(tmp_path: Path) -> None:
    rows = [row for step in range(1, 801) for row in kept_group(step, 2 - step % 2, f"p{step}")]
    groups = groups_of(tmp_path / "run", rows)
    sizes = {}
    for budget in (40_000, 400_000):
        (run,) = sample_completions(groups, budget)
        steps = [group["step"] for group in run["groups"]]
        assert not run["complete"]
        assert steps == sorted(steps)
        assert {1, 2, 799, 800} <= set(steps)
        assert steps[1::2] == [step + 1 for step in steps[::2]]  # both groups of a rollout
        gaps = np.diff(steps[::2])
        assert max(gaps) <= 2 * min(gaps) + 4  # gaps of one or two places, each rounded to a rollout
        sizes[budget] = len(json.dumps(run["groups"], ensure_ascii=False))
        assert 0.8 * budget < sizes[budget] <= budget
    (alone,) = sample_completions(groups, 10)
    assert [group["step"] for group in alone["groups"]] == [800]  # a run with completions always shows some


def test_a_long_completion_loses_its_middle(tmp_path: Path) -> None:
    long = {"pieces": [f"{n} " for n in range(5000)], "weights": [0.5] * 2500 + [0.25] * 2500}
    row = {**kept_group(1, 1, "p")[0], **long, "completion": "".join(long["pieces"])}
    old = {name: value for name, value in row.items() if name not in long}
    (run,) = sample_completions(groups_of(tmp_path / "run", [row, old]), budget=40_000)
    cut, cut_text = run["groups"][0]["completions"]
    assert cut["left_out"] + len(cut["pieces"]) == 5000
    half = len(cut["pieces"]) // 2
    assert cut["pieces"] == long["pieces"][:half] + long["pieces"][-half:]
    assert cut["weights"] == [50] * half + [25] * half
    assert cut_text["left_out"] + len(cut_text["pieces"]) == len(old["completion"])
    assert cut_text["pieces"].startswith("0 1 2")
    assert cut_text["pieces"].endswith("4998 4999 ")


@pytest.mark.parametrize(
    ("completion", "pieces", "opening"),
    [
        ("<think>\nyes", ["y", "es", "<eos>"], "<think>\n"),
        ("<think>yes", ["<think>", "yes"], ""),
        ("yes", ["y", "es"], ""),
        ("", [], ""),
    ],
)
def test_what_the_template_opened_is_distinguished_from_what_the_policy_wrote(
    tmp_path: Path, completion: str, pieces: list[str], opening: str
) -> None:
    row = {**kept_group(1, 1, "p")[0], "completion": completion, "pieces": pieces, "weights": [1.0] * len(pieces)}
    (run,) = sample_completions(groups_of(tmp_path / "run", [row]))
    found = run["groups"][0]["completions"][0]
    assert found["opening"] == opening
    assert found["pieces"] == (pieces or "")
    assert not found["weights"]  # all weights are 1


def test_damaged_completions_are_reported_and_the_other_runs_shown(tmp_path: Path) -> None:
    rows = kept_group(1, 1, "p")
    groups_of(tmp_path / "a", rows)
    groups_of(tmp_path / "b", rows, "seed=1")
    with open(tmp_path / "b" / "completions.jsonl", "a") as file:
        file.write('{"step":\n{"torn": ')
    sound, damaged = sample_completions(collect([tmp_path]).groups)
    assert len(sound["groups"]) == 1
    assert damaged["groups"] == []
    assert damaged["damage"] == f"{tmp_path}/b/completions.jsonl, line 5 is not valid JSON"


# ---- what goes into the page


@pytest.mark.parametrize("text", ["</script><script>", "<!-- <script>", "&lt; \u2028 \u2029 \0 \" ' \\ `", "τ 🙂"])
def test_json_cannot_leave_its_script_element(text: str) -> None:
    embedded = json_for_script({text: text})
    assert "<" not in embedded
    assert json.loads(embedded) == {text: text}


def test_a_figure_in_the_page_draws_the_same_lines() -> None:
    def paths(svg: str) -> list[str | None]:
        return [path.get("d") for path in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")]

    figure = Figure(figsize=(4, 3))
    figure.subplots().plot(np.random.default_rng(0).normal(size=(200, 3)))
    drawn = BytesIO()
    with rc_context(STYLE):
        figure.savefig(drawn, format="svg")
    inlined = inline_svg(drawn.getvalue(), "reward", 'a "title"')
    assert len(paths(str(inlined))) > 10
    assert paths(str(inlined)) == paths(drawn.getvalue().decode())
