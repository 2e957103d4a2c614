"""The gates of the paper against clip, by the very objectives that training uses."""

from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sspo_cli.objectives import SSPO_GATES, build_objective
from sspo_cli.report.figures.style import BEHIND, LINES, STYLE, WIDTH, shades

# Appendix A's grids. Each pair is (τ_neg, τ_pos), or ε on both sides.
TAUS = ((0.3, 0.2), (0.6, 0.5))
GRIDS: dict[tuple[str, str], tuple[tuple[float, ...], ...]] = {
    ("gmpo", "clip"): ((0.1,), (0.2,), (0.3,)),
    ("sapo", "sigmoid"): ((1.0, 1.05), (3.0, 4.0), (7.0, 8.0)),
    **{("sspo", gate): () if gate == "gumbel" else TAUS for gate in SSPO_GATES},
}
TITLES = {"clip": "clip (GMPO), ε", "sigmoid": "sigmoid (SAPO), τ_neg/τ_pos", "gumbel": "gumbel"}
SIGNS: tuple[tuple[float, Any, str], ...] = ((1.0, "-", "Â > 0"), (-1.0, (0, (2.5, 1.2)), "Â < 0"))
CAPTION = (
    "Gate f(ρ) of a sequence whose tokens all have the probability ratio ρ, and weight w(ρ) of a token in the gradient, at "
    "the temperatures of the paper's grids; solid for Â > 0 (τ_pos), dashed for Â < 0 (τ_neg); grey: clip at ε = 0.2. All "
    "weights are 1 at ρ = 1. SAPO's gate is 2/τ there. Clip is shown in a geometric mean; in GRPO's arithmetic one, w is ρ "
    "where it is 1 here."
)


def gates_figure() -> Figure:
    """Draw a pair of panels for each gate: f(ρ) above, w(ρ) under it; a line for each setting of its grid and sign of Â."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 7.6))
        panels = figure.subplots(4, 4, sharex=True)
        columns = [(panels[row, column], panels[row + 1, column]) for row in (0, 2) for column in range(4)]
        for (f_panel, w_panel), ((method, gate), settings) in zip(columns, GRIDS.items(), strict=False):
            _draw(f_panel, w_panel, "gmpo", "clip", (0.2,), color=BEHIND, linewidth=1.0)
            colours = shades(LINES["grpo" if gate == "clip" else method, gate][0], len(settings) or 1)
            for setting, colour in zip(settings or ((),), reversed(colours), strict=True):
                _draw(f_panel, w_panel, method, gate, setting, color=colour, label="/".join(f"{x:g}" for x in setting))
            f_panel.set_title(TITLES.get(gate, f"{gate}, τ_neg/τ_pos"), pad=17 if settings else 5)
            if settings:
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
        for row, label in enumerate(("f(ρ)", "w(ρ)") * 2):
            panels[row, 0].set_ylabel(label)
        for ax in columns[-1]:  # seven gates
            ax.set_axis_off()
        key = [Line2D([], [], color="black", linestyle=dashes, label=label) for _, dashes, label in SIGNS]
        key.append(Line2D([], [], color=BEHIND, linewidth=1.0, label="clip, ε = 0.2"))
        columns[-1][0].legend(handles=key, loc="center")
    return figure


def _draw(
    f_panel: Axes, w_panel: Axes, method: str, gate: str, setting: tuple[float, ...], label: str = "", **line: Any
) -> None:
    names = ("tau_neg", "tau_pos") if len(setting) == 2 else ("eps_low", "eps_high")
    options: dict[str, Any] = dict(zip(names, setting * 2 if len(setting) == 1 else setting, strict=False))
    objective = build_objective(method=method, gate=gate, **options)
    log_ratio = torch.linspace(-4.0, 0.92, 401, dtype=torch.float64)[:, None]
    ratio, mask = log_ratio.exp().flatten(), torch.ones_like(log_ratio)
    for sign, dashes, _ in SIGNS:
        advantages = torch.full((len(ratio),), sign, dtype=torch.float64)
        f = objective.weights(log_ratio, advantages, mask)
        w = objective.token_weights(log_ratio, advantages, mask).flatten()
        for ax, values in ((f_panel, f), (w_panel, w)):
            ax.plot(ratio, values, linestyle=dashes, label=label if sign > 0 else None, **line)
