"""Tables, which can be formatted as Markdown, LaTeX, HTML, CSV and JSON."""

import html
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

BEST, SECOND, BASELINE = "best", "second", "strongest baseline"
NOTHING = "–"
LONG = 900  # number of characters above which a note is collapsed


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    extra   text in a smaller font after `text`, such as an interval
    marks   subset of BEST (bold), SECOND (underlined) and BASELINE (italic)
    number  sort key in the HTML page; if None, the sort key is `text`
    """

    text: str
    extra: str = ""
    marks: frozenset[str] = frozenset()
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """A table that can be formatted in several ways.

    name      file name without suffix, such as table1
    title     line above the table, as plain text
    frame     numbers for CSV and JSON, with a row for each cell or each line of the table
    headings  column headings of the formatted table
    lines     lines of the formatted table: a list of cells, or a string that is a heading for the following lines
    notes     notes below the table, as plain text with code in backticks
    """

    name: str
    title: str
    frame: pd.DataFrame
    headings: list[str]
    lines: list[list[Cell] | str]
    notes: list[str] = field(default_factory=list)

    def to_csv(self) -> str:
        return self.frame.to_csv(index=False)

    def to_json(self) -> str:
        """Return a JSON object with name, title, notes and the rows of the frame. Missing values are null."""
        rows = json.loads(self.frame.to_json(orient="records", double_precision=15))
        content = {"name": self.name, "title": self.title, "notes": self.notes, "rows": rows}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Return the title, the table and the notes as Markdown. Marks are bold, <u> and italic."""
        padding = [""] * (len(self.headings) - 1)
        lines = [
            [f"**{_escape_markdown(line)}**", *padding] if isinstance(line, str) else [_markdown(cell) for cell in line]
            for line in self.lines
        ]
        body = pd.DataFrame(lines, columns=[_escape_markdown(heading) for heading in self.headings])
        table = body.to_markdown(index=False, disable_numparse=True)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"**{_escape_markdown(self.title)}**\n\n{table}\n\n{notes}\n"

    def to_html(self) -> str:
        """Return a <figure> with the title as caption and the notes as a list. `data-sort` of a <td> is the cell's number."""
        head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in self.headings)
        bodies = ""
        for heading, block in self._blocks():
            rows = (
                [f'<th colspan="{len(self.headings)}" scope="rowgroup">{html.escape(heading)}</th>'] if heading else []
            )
            rows += ["".join(map(_html, line)) for line in block]
            bodies += f"<tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody>"
        notes = "".join(f"<li>{_html_note(note)}</li>" for note in self.notes)
        return (
            f'<figure class="table" id="{self.name}"><table><caption>{html.escape(self.title)}</caption>'
            f'<thead><tr>{head}</tr></thead>{bodies}</table><ul class="notes">{notes}</ul></figure>\n'
        )

    def to_latex(self) -> str:
        """Return a table environment for pdflatex with booktabs and graphicx. A wide table is scaled to the line width."""
        blocks = []
        for heading, block in self._blocks():
            rows = [rf"\multicolumn{{{len(self.headings)}}}{{l}}{{{escape_latex(heading)}}}"] if heading else []
            rows += [" & ".join(map(_latex, line)) for line in block]
            blocks.append("\n".join(rf"{row} \\" for row in rows))
        notes = " ".join(map(escape_latex, self.notes))
        return "\n".join(
            [
                r"% needs \usepackage{booktabs,graphicx}",
                r"\begin{table}[t]",
                r"\centering\small\setlength{\tabcolsep}{4pt}",
                rf"\caption{{{escape_latex(self.title)}}}\label{{tab:{self.name}}}",
                r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                rf"\begin{{tabular}}{{{'l' * len(self.headings)}}}",
                r"\toprule",
                " & ".join(map(escape_latex, self.headings)) + r" \\",
                r"\midrule",
                "\n\\midrule\n".join(blocks),
                r"\bottomrule",
                r"\end{tabular}}",
                rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize {notes}}}",
                r"\end{table}",
                "",
            ]
        )

    def _blocks(self) -> list[tuple[str, list[list[Cell]]]]:
        """Return (heading, lines) pairs. The heading is empty for lines before the first heading."""
        blocks: list[tuple[str, list[list[Cell]]]] = []
        for line in self.lines:
            if isinstance(line, str):
                blocks.append((line, []))
            else:
                if not blocks:
                    blocks.append(("", []))
                blocks[-1][1].append(line)
        return blocks


def escape_latex(text: str) -> str:
    """Escape text for pdflatex without additional packages.

    Code in backticks is set in typewriter type and may break across lines. A non-ASCII character without an entry in LATEX is
    replaced by its closest ASCII letters, or by a question mark.
    """
    parts = ["".join(LATEX.get(letter) or _ascii(letter) for letter in part) for part in text.split("`")]
    code = [re.sub(r"([-/=.]|\\_)", r"\1\\allowbreak{}", part) for part in parts[1::2]]
    parts[1::2] = [rf"\texttt{{{part}}}" for part in code]
    return "".join(parts)


MATH = {"−": "-", "±": r"\pm", "×": r"\times", "→": r"\rightarrow", "≤": r"\leq", "≥": r"\geq", "≠": r"\neq"}
GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "μ": "mu", "π": "pi", "ρ": "rho"}
GREEK |= {"σ": "sigma", "τ": "tau", "Δ": "Delta", "Σ": "Sigma"}
LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{letter: f"{{{letter}}}" for letter in "[]*"},  # after `\\`, LaTeX would read them as arguments
    **{letter: rf"\ensuremath{{{letter}}}" for letter in "<>|"},
    **{letter: rf"\ensuremath{{{command}}}" for letter, command in MATH.items()},
    **{letter: rf"\ensuremath{{\{name}}}" for letter, name in GREEK.items()},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "Â": r"\ensuremath{\hat{A}}"},
    **{"–": "--", "—": "---", "…": r"\ldots{}", "’": "'", "†": r"\dag{}", "‡": r"\ddag{}"},
}


def _ascii(letter: str) -> str:
    return unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"


def _code(text: str, start: str, end: str) -> str:
    return re.sub("`([^`]+)`", lambda code: f"{start}{code[1]}{end}", text)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([|*\\]|<(?=\w))", r"\\\1", text)


def ranks_and_marks(
    values: Sequence[float | None], baselines: Sequence[bool]
) -> list[tuple[int | None, frozenset[str]]]:
    """Return the rank and the marks of each cell of a column, from its value rounded to one decimal, as printed.

    values     percentages; None for an empty cell
    baselines  True for each cell of a baseline method

    Cells with equal printed values have the same rank and marks. No cell is marked if all printed values are equal.
    """
    printed = [None if value is None else round(value, 1) for value in values]
    order = sorted({value for value in printed if value is not None}, reverse=True)
    strongest = max(
        (p for p, is_baseline in zip(printed, baselines, strict=True) if is_baseline and p is not None), default=None
    )
    compared = len(order) > 1
    marked = []
    for value, is_baseline in zip(printed, baselines, strict=True):
        rank = None if value is None else order.index(value) + 1
        marks = [mark for mark, its_rank in ((BEST, 1), (SECOND, 2)) if rank == its_rank]
        marks += [BASELINE] if is_baseline and value is not None and value == strongest else []
        marked.append((rank, frozenset(marks if compared else [])))
    return marked


def _markdown(cell: Cell) -> str:
    marks = {BASELINE: ("*", "*"), SECOND: ("<u>", "</u>"), BEST: ("**", "**")}
    return _marked(cell, _escape_markdown, marks) + (f" {_escape_markdown(cell.extra)}" if cell.extra else "")


def _html(cell: Cell) -> str:
    marks = {BASELINE: ("<i>", "</i>"), SECOND: ("<u>", "</u>"), BEST: ("<b>", "</b>")}
    extra = f" <small>{html.escape(cell.extra)}</small>" if cell.extra else ""
    number = "" if cell.number is None else f' data-sort="{cell.number!r}"'
    text = _code(_marked(cell, html.escape, marks), "<code>", "</code>")
    return f"<td{number}>{text}{extra}</td>"


def _html_note(note: str) -> str:
    """Format a note as HTML. A long note is collapsed to the text before its first colon."""
    first, colon, rest = (_code(html.escape(part), "<code>", "</code>") for part in note.partition(": "))
    return f"<details><summary>{first}</summary>{rest}</details>" if len(note) > LONG else f"{first}{colon}{rest}"


def _latex(cell: Cell) -> str:
    marks = {BASELINE: (r"\textit{", "}"), SECOND: (r"\underline{", "}"), BEST: (r"\textbf{", "}")}
    return _marked(cell, escape_latex, marks) + (f" {{\\scriptsize {escape_latex(cell.extra)}}}" if cell.extra else "")


def _marked(cell: Cell, escape: Callable[[str], str], marks: dict[str, tuple[str, str]]) -> str:
    text = escape(cell.text)
    for mark, (start, end) in marks.items():
        if mark in cell.marks:
            text = f"{start}{text}{end}"
    return text
