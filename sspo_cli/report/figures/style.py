"""The style of all figures: colours, sizes, legends, files."""

import math
import textwrap
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from sspo_cli.report.groups import RunGroup
from sspo_cli.tracking.files import write_bytes_atomic

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlepad": 5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "savefig.dpi": 160,
    "pdf.fonttype": 42,  # embeds text as text
    "svg.fonttype": "none",
    "svg.hashsalt": "sspo",  # makes files reproducible
}
WIDTH = 7.2  # inches, the width of a page's text
LETTERS_AN_INCH = 13

# Colours of Okabe and Ito and of Tol, distinguishable with any colour vision; the baselines are also dashed.
LINES: dict[tuple[str, str], tuple[str, Any]] = {
    ("grpo", "clip"): ("#000000", (0, (5, 1.5))),
    ("gspo", "clip"): ("#56B4E9", (0, (5, 1.5))),
    ("gmpo", "clip"): ("#882255", (0, (5, 1.5))),
    ("sapo", "sigmoid"): ("#999933", (0, (5, 1.5))),
    ("luspo", "clip"): ("#44AA99", (0, (5, 1.5))),
    ("cispo", "cispo"): ("#332288", (0, (5, 1.5))),
    ("pspo", "pspo"): ("#DDCC77", (0, (5, 1.5))),
    ("cegppo", "cegppo"): ("#AA4499", (0, (5, 1.5))),
    ("sspo", "expsig"): ("#E69F00", "-"),
    ("sspo", "expatan"): ("#CC79A7", "-"),
    ("sspo", "gumbel"): ("#009E73", "-"),
    ("sspo", "atanlog"): ("#D55E00", "-"),
    ("sspo", "siglog"): ("#0072B2", "-"),
}
DOTS = (0, (1, 1.2))
MORE_DASHES = ((0, (4, 1, 1, 1)), (0, (2, 1)), (0, (6, 1, 1, 1, 1, 1)))
BEHIND = "#c4c4c4"  # lines that are shown for comparison only
RANGE = "#e4e4e4"  # areas behind lines, lighter than the grey lines


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    """Write SVG, PDF and PNG without dates, so that the same figure gives the same files."""
    nothing_about = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    metadata_of: dict[str, dict[str, Any]] = {"svg": nothing_about, "pdf": {"CreationDate": None}, "png": {}}
    paths = []
    with rc_context(STYLE):
        if layout := figure.get_layout_engine():
            layout.execute(figure)
            figure.set_layout_engine("none")  # the layout is computed once for all three files
        for kind, metadata in metadata_of.items():
            drawn = BytesIO()
            figure.savefig(drawn, format=kind, metadata=metadata)
            paths.append(out / f"{name}.{kind}")
            content = drawn.getvalue()
            write_bytes_atomic(paths[-1], _in_256_colours(content) if kind == "png" else content)
    return paths


def _in_256_colours(png: bytes) -> bytes:
    """Reduce a picture to 256 colours, which takes a third of the bytes."""
    small = BytesIO()
    with Image.open(BytesIO(png)) as image:
        image.convert("RGB").quantize(dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def colour_of(method: str, gate: str) -> tuple[str, Any]:
    """Return colour and dashes, which are the same in every report.

    A combination of method and gate that is not in `LINES` gets a colour that depends on its names, and dots.
    """
    colours = [colour for colour, _ in LINES.values()]
    return LINES.get((method, gate), (colours[zlib.crc32(repr((method, gate)).encode()) % len(colours)], DOTS))


def line_styles(groups: Sequence[RunGroup]) -> list[tuple[str, Any]]:
    """Return colours and dashes. Configurations of the same method and gate differ only in the dashes."""
    configurations: dict[tuple[str, str], list[str]] = defaultdict(list)
    styles = []
    for group in groups:
        seen = configurations[group.method, group.gate]
        if group.details not in seen:
            seen.append(group.details)
        colour, dashes = colour_of(group.method, group.gate)
        place = seen.index(group.details)
        styles.append((colour, MORE_DASHES[(place - 1) % len(MORE_DASHES)] if place else dashes))
    return styles


def shades(colour: str, number: int) -> list[tuple[float, float, float]]:
    """Return shades from a light one to the colour itself."""
    lightness = [0.0] if number == 1 else [0.62 * (1 - place / (number - 1)) for place in range(number)]
    red, green, blue = to_rgb(colour)
    return [(red + (1 - red) * t, green + (1 - green) * t, blue + (1 - blue) * t) for t in lightness]


def grid(count: int, height: float, columns: int = 3, foot: float = 0.6, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` panels, row by row, each `height` inches high, and `foot` inches for the legend."""
    columns = 2 if (columns, count) == (3, 4) else min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH if columns > 1 else 5.2, rows * height + foot))
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    for ax in axes[max(0, count - columns) : count]:  # the lowest panel of each column
        ax.xaxis.set_tick_params(labelbottom=True)
    return figure, axes[:count]


def wrapped(text: str, inches: float) -> str:
    """Break text into lines that fit the width; a word that is longer than a line is broken, too."""
    width = max(12, int(inches * LETTERS_AN_INCH))
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def legend_below(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Draw a legend below all panels and enlarge the figure by its lines."""
    width = figure.get_figwidth()
    labels = [wrapped(label, width - 0.8) for label in handles]
    longest = max((len(line) for label in labels for line in label.splitlines()), default=1)
    fitting = int(width * (LETTERS_AN_INCH + 1) / (longest + 6))  # 6 letters for the line and gaps
    columns = max(1, min(len(labels), fitting))
    lines = sum(1 + label.count("\n") for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.16 * math.ceil(lines / columns))
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=columns)


def rows_of_panels(axes: Sequence[Axes]) -> int:
    """Return the number of rows of the grid that the panels are in."""
    spec = axes[0].get_subplotspec()
    assert spec is not None
    return spec.get_gridspec().nrows


def inches_wide(ax: Axes) -> float:
    """Estimate the width in inches that a panel has for its title."""
    figure, spec = ax.get_figure(), ax.get_subplotspec()
    assert isinstance(figure, Figure)
    assert spec is not None
    return figure.get_figwidth() / spec.get_gridspec().ncols - 0.5
