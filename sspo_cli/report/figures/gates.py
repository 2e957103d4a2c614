"""The gates compared with clip, computed by the objectives that training uses."""

from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sspo_cli.objectives import SSPO_GATES, build_objective
from sspo_cli.report.figures.style import BEHIND, LINES, STYLE, WIDTH, shades

Settings = tuple[tuple[str, dict[str, Any]], ...]
"""Labels and options of the lines of a gate."""


def _pairs(*pairs: tuple[float, float]) -> Settings:
    return tuple((f"{neg:g}/{pos:g}", {"tau_neg": neg, "tau_pos": pos}) for neg, pos in pairs)


def _settings(names: tuple[str, ...], *values: float) -> Settings:
    return tuple((f"{value:g}", dict.fromkeys(names, value)) for value in values)


# The grids of appendix A; for other gates, values around the defaults.
GRIDS: dict[tuple[str, str], Settings] = {
    ("gmpo", "clip"): _settings(("eps_low", "eps_high"), 0.1, 0.2, 0.3),
    ("sapo", "sigmoid"): _pairs((1.0, 1.05), (3.0, 4.0), (7.0, 8.0)),
    **{("sspo", gate): (("", {}),) if gate == "gumbel" else _pairs((0.3, 0.2), (0.6, 0.5)) for gate in SSPO_GATES},
    ("cispo", "cispo"): _settings(("eps_high",), 0.2, 1.0, 4.0),
    ("pspo", "pspo"): _settings(("alpha",), 0.1, 0.3, 0.5),
    ("cegppo", "cegppo"): _settings(("beta_low", "beta_high"), 0.5, 0.75, 1.0),
}
TITLES = {
    "clip": "clip (GMPO), ε",
    "sigmoid": "sigmoid (SAPO), τ_neg/τ_pos",
    "gumbel": "gumbel",
    "cispo": "CISPO, ε_high",
    "pspo": "PSPO, α",
    "cegppo": "CE-GPPO, β",
}
SIGNS: tuple[tuple[float, Any, str], ...] = ((1.0, "-", "Â > 0"), (-1.0, (0, (2.5, 1.2)), "Â < 0"))
CAPTION = (
    "Gate f(ρ) of a sequence whose tokens all have the probability ratio ρ, and weight w(ρ) of a token in the gradient, at "
    "the temperatures of the paper's grids. Lines are solid for Â > 0 (τ_pos) and dashed for Â < 0 (τ_neg), with only a solid "
    "line if both are equal; grey is clip at ε = 0.2. At ρ = 1 all weights are 1, except PSPO's weight of 1 - α, and SAPO's gate "
    "is 2/τ. Clip is shown in a geometric mean; in GRPO's arithmetic mean, w is ρ where it is 1 here. SAPO, CISPO, PSPO and "
    "CE-GPPO are arithmetic means."
)


def gates_figure() -> Figure:
    """Draw f(ρ) and, below, w(ρ) for each gate, with a line for each setting of its grid and each sign of Â."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 11.2))
        panels = figure.subplots(6, 4, sharex=True)
        columns = [(panels[row, column], panels[row + 1, column]) for row in (0, 2, 4) for column in range(4)]
        for (f_panel, w_panel), ((method, gate), settings) in zip(columns, GRIDS.items(), strict=False):
            _draw(f_panel, w_panel, "gmpo", "clip", {"eps_low": 0.2, "eps_high": 0.2}, color=BEHIND, linewidth=1.0)
            colours = shades(LINES["grpo" if gate == "clip" else method, gate][0], len(settings))
            for (label, options), colour in zip(settings, reversed(colours), strict=True):
                _draw(f_panel, w_panel, method, gate, options, color=colour, label=label)
            f_panel.set_title(TITLES.get(gate, f"{gate}, τ_neg/τ_pos"), pad=17 if len(settings) > 1 else 5)
            if len(settings) > 1:
                f_panel.legend(
                    loc="lower center",
                    bbox_to_anchor=(0.5, 0.96),
                    ncols=3,
                    handlelength=1.0,
                    columnspacing=0.7,
                    handletextpad=0.4,
                )
            f_panel.set_ylim(0, 3.4 if gate == "sigmoid" else 2.6)
            w_panel.set_ylim(-0.05, 1.65)
            for ax in (f_panel, w_panel):
                ax.axvline(1.0, color=BEHIND, linewidth=0.6, zorder=0)
            w_panel.set_xlabel("ratio ρ")
            w_panel.xaxis.set_tick_params(labelbottom=True)
        for row, label in enumerate(("f(ρ)", "w(ρ)") * 3):
            panels[row, 0].set_ylabel(label)
        for pair in columns[len(GRIDS) :]:
            for ax in pair:
                ax.set_axis_off()
        key = [Line2D([], [], color="black", linestyle=dashes, label=label) for _, dashes, label in SIGNS]
        key.append(Line2D([], [], color=BEHIND, linewidth=1.0, label="clip, ε = 0.2"))
        columns[-1][0].legend(handles=key, loc="center")
    return figure


def _draw(
    f_panel: Axes, w_panel: Axes, method: str, gate: str, options: dict[str, Any], label: str = "", **line: Any
) -> None:
    objective = build_objective(method=method, gate=gate, **options)
    log_ratio = torch.linspace(-4.0, 0.92, 401, dtype=torch.float64)[:, None]
    ratio, mask = log_ratio.exp().flatten(), torch.ones_like(log_ratio)
    drawn: dict[Axes, torch.Tensor] = {}
    for sign, dashes, _ in SIGNS:
        advantages = torch.full((len(ratio),), sign, dtype=torch.float64)
        f = objective.weights(log_ratio, advantages, mask)
        w = objective.token_weights(log_ratio, advantages, mask).flatten()
        for ax, values in ((f_panel, f), (w_panel, w)):
            if ax not in drawn or not torch.equal(drawn[ax], values):
                ax.plot(ratio, values, linestyle=dashes, label=label if sign > 0 else None, **line)
            drawn[ax] = values
