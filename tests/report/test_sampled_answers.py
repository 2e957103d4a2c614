import json
from itertools import pairwise
from pathlib import Path

from synthetic_runs import evaluation, write_bare_model, write_run

from sspo_cli.report.answers import sample_answers
from sspo_cli.report.collect import collect
from sspo_cli.tracking.files import read_jsonl, write_jsonl_atomic


def test_answers_are_of_the_step_that_the_tables_show_and_spread_over_the_problems(tmp_path: Path) -> None:
    sampled = [evaluation(0, 0, 300), evaluation(12, 400, 300, samples=4, temperature=1.0)]
    write_run(tmp_path / "a", evaluations=sampled, whole=True)
    write_bare_model(tmp_path / "m", "org/M", [evaluation(0, 7, 10)])
    page = sample_answers(collect([tmp_path]))
    run, model = page["sources"]
    (shown,) = run["benchmarks"]
    assert (shown["name"], shown["step"], shown["problems"]) == ("arithmetic", 12, 300)
    assert (shown["right"], shown["total"], len(shown["answers"])) == (400, 1200, 200)
    ids = list(dict.fromkeys(int(answer["id"].partition("-")[2]) for answer in shown["answers"]))
    assert len(ids) == 50  # with all four samples of each
    assert (ids[0], ids[-1]) == (0, 299)
    assert ids == sorted(ids)
    assert max(b - a for a, b in pairwise(ids)) < 12
    (bare,) = model["benchmarks"]
    assert (bare["right"], bare["total"], len(bare["answers"])) == (7, 10, 10)
    for answer in (*shown["answers"], *bare["answers"]):  # each question is stored only once
        assert page["questions"][answer["question"]] == f"What is {answer['id'].partition('-')[2]} + 1?"
        assert answer["right"] == (answer["extracted"] == answer["gold"])
    assert len(page["questions"]) == len(set(page["questions"]))


def test_answers_stay_within_their_budget_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, f"seed={int(name, 36)}", evaluations=[evaluation(12, 50)], whole=True)
    file = tmp_path / "a" / "eval" / "arithmetic.jsonl"
    write_jsonl_atomic(file, [{**row, "completion": "x" * 9999 + "y" * 9999} for row in read_jsonl(file)])
    collection = collect([tmp_path])
    page = sample_answers(collection, budget=60_000)
    assert len(json.dumps(page)) < 60_000
    (long,), (short,) = (source["benchmarks"] for source in page["sources"])
    assert 5 < len(long["answers"]) < len(short["answers"])
    text, left_out = long["answers"][0]["text"], long["answers"][0]["left_out"]
    assert len(text) + left_out == 19998
    assert text == "x" * (len(text) // 2) + "y" * (len(text) // 2)
    file.write_text("{}\n")
    damaged, whole = sample_answers(collection)["sources"]
    assert f"{file}, line 1" in damaged["damage"]
    assert damaged["benchmarks"] == []
    assert whole["damage"] is None


def test_a_run_without_answers_is_not_listed(tmp_path: Path) -> None:
    write_run(tmp_path / "old")  # a run of an older version, without a file of answers
    assert sample_answers(collect([tmp_path])) == {"questions": [], "sources": []}
