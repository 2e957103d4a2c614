"""The tables of a report as HTML and LaTeX, with characters that must be escaped."""

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import evaluation, validation, write_run

from sspo_cli.report.collect import collect
from sspo_cli.report.table import Cell, Table, escape_latex
from sspo_cli.report.tables import tables


class Balanced(HTMLParser):
    """HTML parser that fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


AWKWARD = 'αβ μ τ_neg 50 % & #1 ~ ^ \\ {x} <b> "q" ± Δ – — − × → ≤ ≥ ≠ | [0] * Â ρ ε σ π … † ‡ é ł 数 $5 `a_b-c/d`'


def test_what_latex_does_not_know_becomes_ascii() -> None:
    assert escape_latex("50 % of a_b & τ, [1] é 数") == r"50 \% of a\_b \& \ensuremath{\tau}, {[}1{]} e ?"
    assert escape_latex("see `a_b/c` now") == r"see \texttt{a\_\allowbreak{}b/\allowbreak{}c} now"


@pytest.fixture(scope="module")
def every_table(tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    path = tmp_path_factory.mktemp("odd_100%_runs & #1")
    for option in ("objective.method=grpo", "objective.method=sspo", "objective.tau_pos=0.7"):
        for seed in (0, 1):
            for model in ("Qwen/Qwen2.5-7B_Instruct", "Qwen/Qwen3-8B"):
                overrides = (option, f"seed={seed}", f"model.name={model}")
                rows = [evaluation(0, 20, benchmark="math_500%"), evaluation(12, 90 + seed, benchmark="math_500%")]
                rows.append(validation(12, 60 + len(option)))
                write_run(path / f"{option}-{seed}-{model[-3:]}", *overrides, evaluations=rows, whole=True)
    found = tables(collect([path]), paper=True)
    names = ["table1", "table2", "seeds", "paired", "configurations", "runs", "paper1", "paper2"]
    assert [table.name for table in found] == names
    return [
        *found,
        Table("awkward", AWKWARD, found[0].frame, [AWKWARD], [AWKWARD, [Cell(AWKWARD, AWKWARD)]], [AWKWARD]),
    ]


def test_every_table_is_well_formed_html(every_table: list[Table]) -> None:
    for table in every_table:
        Balanced(table.to_html())


@pytest.mark.skipif(
    shutil.which("pdflatex") is None and "CI" not in os.environ,
    reason="pdflatex is not installed (Debian: texlive-latex-recommended)",
)
def test_every_table_compiles_and_fits_the_page(every_table: list[Table], tmp_path: Path) -> None:
    body = "\n".join(table.to_latex() for table in every_table)
    preamble = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "all.tex").write_text(f"{preamble}\n{body}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="latin-1", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout.replace("\n", "")
    assert (tmp_path / "all.pdf").read_bytes().startswith(b"%PDF")
