"""How much a method depends on its hyperparameters: a dot for each configuration that was tried."""

from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sspo_cli.report.figures.style import RANGE, STYLE, WIDTH, colour_of
from sspo_cli.report.measurements import VALIDATION, by, final, selected
from sspo_cli.report.runs import Group, Select

PLACES = 34  # for configurations, side by side in a row
GAP = 0.7  # of a place, between the panels of two methods
SYMBOLS = {"tau_neg": "τ_neg", "tau_pos": "τ_pos", "eps_low": "ε_low", "eps_high": "ε_high"}
Scores = dict[str, dict[int, list[float]]]  # by what was measured and the group's place, a number for each seed


def sensitivity_figure(groups: Sequence[Group], chosen: Sequence[Group], select: Select) -> Figure:
    """Of one setting: a panel for each method and gate, above one another for Pass@1 and the final reward; in it each
    configuration with its seeds, and the chosen one on grey."""
    scores = _scores(groups, select)
    rows = _rows(groups)
    foot = 0.75  # inches, for the names of the configurations
    heights = [0.35 + 1.05 * len(scores) + foot for _ in rows]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.2))
        shared: dict[str, Axes] = {}
        for part, variants in zip(figure.subfigures(len(rows), 1, squeeze=False).flat, rows, strict=True):
            widths = [len(places) + GAP for places in variants]
            spare = PLACES - sum(widths) if len(rows) > 1 else 0
            panels = part.subplots(
                len(scores), len(widths) + (spare > 0), squeeze=False, width_ratios=[*widths, *[spare] * (spare > 0)]
            )
            for ax in panels[:, len(widths) :].flat:
                ax.set_axis_off()
            for line, (name, measured) in zip(panels, scores.items(), strict=True):
                for ax, places in zip(line, variants, strict=False):
                    if name in shared:
                        ax.sharey(shared[name])
                    shared.setdefault(name, ax)
                    _draw(ax, [(groups[place], measured.get(place, [])) for place in places], chosen)
                    ax.tick_params(labelleft=ax is line[0])
                line[0].set_ylabel(name.replace(" ", "\n", 1), fontsize=7)
            for column, places in enumerate(variants):
                own = [groups[place] for place in places]
                panels[0, column].set_title(own[0].variant.replace(" ", "\n"), fontsize=7)
                keys, labels = names_of(own)
                for ax in panels[:-1, column]:
                    ax.set_xticks(range(len(own)), [])
                panels[-1, column].set_xticks(range(len(own)), labels, rotation=90, fontsize=6.5)
                panels[-1, column].set_xlabel(keys, fontsize=6.5)
        key = {
            "mean over seeds": Line2D([], [], color="black", marker="o", linestyle="", markersize=4),
            "each seed": Line2D([], [], color="black", marker="_", linestyle="", markersize=6, alpha=0.6),
            "chosen by validation": Patch(color=RANGE),
        }
        figure.legend(key.values(), key.keys(), loc="outside lower center", ncols=3)
    return figure


def names_of(groups: Sequence[Group]) -> tuple[str, list[str]]:
    """What the configurations of a method differ in, and the values in each: `τ_neg/τ_pos` and `0.3/0.2`."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for key in dict.fromkeys(key for group in groups for key in group.differs):
        values = tuple(_short(group.differs.get(key)) for group in groups)
        columns.setdefault(values, []).append(key.rpartition(".")[2])
    names = ["ε" if keys == ["eps_low", "eps_high"] else SYMBOLS.get(keys[0], keys[0]) for keys in columns.values()]
    return "/\n".join(names), ["/".join(values) for values in zip(*columns, strict=True)] or [""] * len(groups)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _scores(groups: Sequence[Group], select: Select) -> Scores:
    """Validation first, which chooses; then the benchmarks; the reward last."""
    scores: Scores = {}
    rows = selected(groups, select)
    for column in sorted(rows["column"].unique(), key=lambda column: not column.startswith(VALIDATION)):
        same = rows[rows["column"] == column]
        shares = (100 * same["correct"] / (same["n"] * same["samples"])).groupby(same["group"])
        scores[f"{column} Pass@1 (%)"] = {int(place): list(own) for place, own in shares}
    rewards = {
        place: [reward for run in group.counted if (reward := final(run, "reward/mean")) is not None]
        for place, group in enumerate(groups)
    }
    return {**scores, "final reward": rewards}


def _rows(groups: Sequence[Group]) -> list[list[list[int]]]:
    """Places of the groups by method and gate, in as many rows as they need."""
    rows: list[list[list[int]]] = []
    room = 0.0
    for places in by(range(len(groups)), lambda place: (groups[place].method, groups[place].gate)).values():
        wanted = len(places) + GAP
        if not rows or wanted > room:
            rows.append([])
            room = PLACES
        rows[-1].append(places)
        room -= wanted
    return rows


def _draw(ax: Axes, tried: Sequence[tuple[Group, list[float]]], chosen: Sequence[Group]) -> None:
    rivals = len(tried) > 1
    for place, (group, values) in enumerate(tried):
        colour, _ = colour_of(group.method, group.gate)
        if rivals and any(group is one for one in chosen):
            ax.axvspan(place - 0.45, place + 0.45, color=RANGE, linewidth=0, zorder=0)
        ax.plot([place] * len(values), values, linestyle="", marker="_", color=colour, alpha=0.6, markersize=6)
        if values:
            ax.plot(place, sum(values) / len(values), marker="o", color=colour, markersize=4)
    ax.set_xlim(-0.5, len(tried) - 0.5)
    ax.grid(visible=False, axis="x")
