from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import evaluation, write_run

from sspo_cli.report.collect import Collection, collect
from sspo_cli.report.tables import tables
from sspo_cli.report.tables.paper import PAPER, attainability, paper_tables, printed


def test_the_printed_gain_of_siglog_alone_does_not_follow_from_its_cells() -> None:
    table = paper_tables()[0]
    gains = table.frame[table.frame["column"] == "Δ Avg"].set_index("gate")
    by_hand = {
        "expsig": (89.2 + 64.8 + 16.7 - 144.5) / 3,
        "siglog": (88.9 + 64.8 + 16.7 - 144.5) / 3,
        "atanlog": (91.6 + 66.6 + 20.0 - 144.5) / 3,
    }
    for gate, expected in by_hand.items():
        assert gains.loc[gate, "value"] == pytest.approx(expected, abs=1e-6)
    wrong = gains[gains["value"].round(1) != gains["printed"]]
    assert list(wrong.index) == ["siglog"]
    assert (wrong["value"].round(1).item(), wrong["printed"].item()) == (8.6, 8.8)
    (note,) = (note for note in table.notes if "printed Δ Avg" in note)
    assert note == "The printed Δ Avg does not follow from the cells of SSPO siglog: +8.8 printed, +8.6 from its cells."


def test_cells_that_no_count_of_solved_problems_gives_are_marked() -> None:
    def fits(percent: float, answers: int) -> bool:
        """Check in integers whether |100 k / answers - percent| <= 0.05 for any k."""
        k = np.arange(answers + 1)
        return bool((np.abs(1000 * k - round(10 * percent) * answers) * 2 <= answers).any())

    sizes = {"gsm8k": 1319, "math500": 500, "aime24": 30, "aime25": 30}
    for row in PAPER:
        for benchmark, percent in row.cells.items():
            n = sizes.get(benchmark)
            expected = (None, None) if n is None else (fits(percent, n), fits(percent, 32 * n))
            assert attainability(benchmark, percent) == expected, (row, benchmark)
    first, second = (table.to_markdown() for table in paper_tables())
    assert "†" not in first.partition("\n- ")[0]
    assert "there is none here" in first
    assert "| 17.8†          | 13.2†          | 56.8          | 18.4" in second
    assert "15 of 15 on AIME 2024, 15 of 15 on AIME 2025, 7 of 15 on MATH-500" in second


def test_with_32_samples_of_30_problems_every_decimal_is_possible() -> None:
    assert [tenths for tenths in range(1001) if not attainability("aime24", tenths / 10)[1]] == []
    assert attainability("aime25", 13.2) == (False, True)
    assert attainability("aime25", 16.7) == (True, True)


def test_the_marks_are_those_that_the_paper_describes() -> None:
    table = paper_tables()[1].frame
    of_14b = table[(table["model"] == "Qwen3-14B") & (table["column"] == "math500")].set_index("method")
    assert of_14b["mark"].to_dict() == {
        "base": "",
        "grpo": "",
        "gspo": "best, strongest baseline",
        "sapo": "",
        "sspo": "second",
    }


def test_the_papers_figures_stand_next_to_ours_where_model_method_and_gate_are_its(tmp_path: Path) -> None:
    model = "model.name=Qwen/Qwen2.5-7B-Instruct"
    aime = [evaluation(0, 3, 30, "aime25"), evaluation(12, 9, 30, "aime25")]
    math500 = [evaluation(0, 280, 500, "math500"), evaluation(12, 330, 500, "math500")]
    write_run(tmp_path / "a", model, "objective.gate=siglog", evaluations=[*math500, *aime])
    # Not in the paper's Table 1.
    write_run(tmp_path / "b", model, "objective.method=gspo", evaluations=[*math500, *aime])
    (table, *_) = tables(collect([tmp_path]), paper=True)
    assert table.headings[3:] == ["math500", "paper: math500", "aime25", "paper: aime25", "Δ Avg", "paper: Δ Avg"]
    papers = [[cell.text for cell in line[4::2]] for line in table.lines]
    assert papers == [["56.6", "10.0", "–"], ["–", "–", "–"], ["64.8", "16.7", "+7.5"]]  # (8.2 + 6.7) / 2
    assert [cell.text for cell in table.lines[2][3::2]] == ["66.0", "30.0", "+15.0"]
    assert any("a reference, not a target" in note for note in table.notes)
    (without, *_) = tables(collect([tmp_path]))
    assert "paper" not in "".join(without.headings)
    assert "paper" not in without.frame


def test_the_papers_tables_need_no_runs() -> None:
    assert [table.name for table in tables(Collection(), paper=True)] == ["paper1", "paper2"]
    assert printed("Qwen3-8B", "sspo", "atanlog", "aime24") == 28.3
    assert printed("Qwen3-8B", "", "", "codeact") == 18.4
    assert printed("Qwen3-8B", "sspo", "siglog", "aime24") is None
