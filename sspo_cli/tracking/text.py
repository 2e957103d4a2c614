"""Numbers and sampled text, short enough for a console."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

BARS = "▁▂▃▄▅▆▇█"


def number(metrics: Mapping[str, Any], name: str, spec: str = ".3f") -> str:
    """A metric by `spec`; a dash of the same width where the step has none."""
    value = metrics.get(name)
    return "-".rjust(len(format(0.0, spec))) if value is None else format(value, spec)


def reward_parts(metrics: Mapping[str, Any]) -> list[str]:
    """Return `answer 0.375` and the other parts of the reward, without their weights; `own` only of a run that has it."""
    parts = ("answer", "format", *(["own"] if "reward/own" in metrics else []))
    return [f"{part} {number(metrics, f'reward/{part}')}" for part in parts]


def duration(seconds: float) -> str:
    """`0:01:05`."""
    return str(timedelta(seconds=round(seconds)))


def pass_at_1(summary: Mapping[str, Any]) -> str:
    """`34.2 % (30.1 to 38.5 %), n = 512, 3.1 % truncated`, and of several samples how many and at which temperature."""
    shares = (f"{100 * summary[name]:.1f}" for name in ("pass_at_1", "low", "high"))
    text = "{} % ({} to {} %), n = {}".format(*shares, summary["n"])
    if (samples := summary.get("samples", 1)) > 1:
        text += f", mean of {samples} samples at temperature {summary['temperature']}"
    return f"{text}, {truncated(summary)}" if "truncated" in summary else text


def truncated(summary: Mapping[str, Any]) -> str:
    """`3.1 % truncated`: the share of the answers that were cut at the token limit."""
    return f"{100 * summary['truncated'] / (summary['n'] * summary.get('samples', 1)):.1f} % truncated"


def printable(text: str) -> str:
    """Without what a terminal would obey or choke on: escape sequences, half surrogates, other control characters."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def sparkline(values: Iterable[float]) -> str:
    """One bar a value, from their lowest to their highest."""
    values = list(values)
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)
