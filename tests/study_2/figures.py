"""Draw the figures of the second study."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.stats import t

from sspo_cli.report.figures.style import STYLE, colour_of, grid, legend_below, save

from .analysis import METHODS, MUS, Study


def line_of(method: str) -> dict:
    """Return the colour and dashes of a method, which are the same in every report."""
    colour, dashes = colour_of(*method.split())
    return {"color": colour, "linestyle": dashes}


def draw(study: Study, names: dict[str, str], out: Path) -> None:
    """Write finals, learning-rates, curves and staleness as SVG, PDF and PNG."""
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[Study, Axes, int, dict[str, str]], None]] = {
        "finals": _finals,
        "learning-rates": _rates,
        "curves": _curves,
        "staleness": _staleness,
    }
    for name, panel in figures.items():
        with rc_context(STYLE):
            figure, axes = grid(len(MUS), 2.3, foot=0.2, sharey=True, sharex=name == "finals")
            for ax, mu in zip(axes, MUS, strict=True):
                ax.set_title(f"μ = {mu}")
                panel(study, ax, mu, names)
            if name != "finals":
                legend_below(figure, {names[method]: Line2D([], [], **line_of(method)) for method in METHODS})
        save(figure, out, name)


def _finals(study: Study, ax: Axes, mu: int, names: dict[str, str]) -> None:
    """Draw the final score of each seed, and the mean with its 95 % interval over seeds."""
    for place, method in enumerate(reversed(METHODS)):
        scores, colour = study.scores(mu, method), line_of(method)["color"]
        half = stdev(scores) / len(scores) ** 0.5 * t.ppf(0.975, len(scores) - 1)
        ax.plot(scores, [place] * len(scores), "o", color=colour, alpha=0.35, markersize=3, markeredgewidth=0)
        ax.errorbar(fmean(scores), place, xerr=half, fmt="|", color=colour, markersize=11, capsize=3)
    ax.set_yticks(range(len(METHODS)), [names[method] for method in reversed(METHODS)])
    ax.set_xlabel("test Pass@1, %")
    ax.grid(visible=False, axis="y")


def _rates(study: Study, ax: Axes, mu: int, names: dict[str, str]) -> None:
    """Draw the validation score over the learning rate, with the chosen setting."""
    for method in METHODS:
        scores = study.rate_curve(method, mu)
        ax.plot(scores.keys(), scores.values(), marker="o", markersize=2.5, **line_of(method))
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(scores), [f"{rate:.0e}".replace("e-0", "e-") for rate in scores])
    ax.set_xlabel("learning rate")
    if mu == MUS[0]:
        ax.set_ylabel("validation Pass@1, %")


def _curves(study: Study, ax: Axes, mu: int, names: dict[str, str]) -> None:
    """Draw the test score over sampled tokens; both are means over seeds."""
    for method in METHODS:
        curves = [study.curve(row) for row in study.finals(mu, method)]
        tokens, scores = ([fmean(at) for at in zip(*(curve[i] for curve in curves), strict=True)] for i in (0, 1))
        ax.plot([token / 1000 for token in tokens], scores, marker="o", markersize=2.5, **line_of(method))
    ax.set_xlabel("sampled tokens, thousands")
    if mu == MUS[0]:
        ax.set_ylabel("test Pass@1, %")


def _staleness(study: Study, ax: Axes, mu: int, names: dict[str, str]) -> None:
    """Draw the share of token ratios outside 1 ± 0.2 over the updates since sampling, averaged over runs and batches."""
    of_method = study.in_finals(mu).groupby(["method", "minibatch"])["ratio/outside"].mean()
    for method in METHODS:
        shares = of_method[method]
        ax.plot(shares.index - 1, 100 * shares, marker="o", markersize=2.5, **line_of(method))
    ax.set_xlabel("updates since sampling")
    ax.set_xticks(range(0, mu, max(1, mu // 4)))
    if mu == MUS[0]:
        ax.set_ylabel("ratios outside 1 ± 0.2, %")
