"""Short texts for the console: numbers, scores, sampled text."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

BARS = "▁▂▃▄▅▆▇█"


def number(metrics: Mapping[str, Any], name: str, spec: str = ".3f") -> str:
    """Format a metric with the format specification `spec`. A missing metric becomes a dash, padded to the width of `0`."""
    value = metrics.get(name)
    return "-".rjust(len(format(0.0, spec))) if value is None else format(value, spec)


def reward_parts(metrics: Mapping[str, Any]) -> list[str]:
    """Format the unweighted parts of the reward, such as `answer 0.375`. `own` is included if the run has such a reward."""
    parts = ("answer", "format", *(["own"] if "reward/own" in metrics else []))
    return [f"{part} {number(metrics, f'reward/{part}')}" for part in parts]


def telemetry_parts(metrics: Mapping[str, Any]) -> list[str]:
    """Format what was measured of the weights' sync and of the devices, with the range over the ranks if they differ.

    For example: `sync 1.25 s`, `by rank 610 to 640 tokens/s`, `memory 71.3 to 72.9 GB`, `FLOPs 41%`. Values that the step does
    not have are left out.
    """
    parts = []
    if any(syncs := rank_values(metrics, "time/sync")):
        parts.append(f"sync {max(syncs):.2f} s")
    if "time/rank_0_tokens_per_second" in metrics:
        parts.append(f"by rank {value_range(rank_values(metrics, 'time/tokens_per_second'), '{:.0f}')} tokens/s")
    if memory := rank_values(metrics, "device/memory"):
        parts.append(f"memory {value_range(memory, '{:.1f}')} GB")
    if "device/flop_utilization" in metrics:
        parts.append(f"FLOPs {number(metrics, 'device/flop_utilization', '.0%')}")
    return parts


def rank_values(metrics: Mapping[str, Any], name: str) -> list[float]:
    """Return the values of a metric on each rank, or that of the only one; empty if the step does not have it."""
    family, _, what = name.partition("/")
    names = itertools.takewhile(metrics.__contains__, (f"{family}/rank_{rank}_{what}" for rank in itertools.count()))
    return [metrics[of_rank] for of_rank in names] or ([metrics[name]] if name in metrics else [])


def value_range(values: Sequence[float], form: str) -> str:
    """Format the lowest and the highest value as `71.3 to 72.9`; only one of them if they are equal as formatted."""
    low, high = form.format(min(values)), form.format(max(values))
    return high if low == high else f"{low} to {high}"


def duration(seconds: float) -> str:
    """Format seconds as `0:01:05`."""
    return str(timedelta(seconds=round(seconds)))


def pass_at_1(summary: Mapping[str, Any]) -> str:
    """Format a score as `34.2 % (30.1 to 38.5 %), n = 512, 3.1 % truncated`. Several samples per problem are stated too."""
    shares = (f"{100 * summary[name]:.1f}" for name in ("pass_at_1", "low", "high"))
    text = "{} % ({} to {} %), n = {}".format(*shares, summary["n"])
    if (samples := summary.get("samples", 1)) > 1:
        text += f", mean of {samples} samples at temperature {summary['temperature']}"
    return f"{text}, {truncated(summary)}" if "truncated" in summary else text


def truncated(summary: Mapping[str, Any]) -> str:
    """Format the share of truncated answers: `3.1 % truncated`."""
    return f"{100 * summary['truncated'] / (summary['n'] * summary.get('samples', 1)):.1f} % truncated"


def printable(text: str) -> str:
    """Replace characters that a terminal interprets or cannot print, such as escape and lone surrogates, with `�`."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def sparkline(values: Iterable[float]) -> str:
    """Return a string with a bar character for each value, scaled to the range of the values."""
    values = list(values)
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)
