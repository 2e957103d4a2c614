"""A sample of the completions that runs kept, small enough for a page."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from operator import itemgetter
from typing import Any

from sspo_cli.errors import UserError
from sspo_cli.report.groups import RunGroup
from sspo_cli.report.records import RunRecord, short_names
from sspo_cli.tracking.files import explain_os_errors, parse_json
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.shapes import COMPLETION, check_shape

BUDGET = 2_400_000  # most characters of JSON for the completions of all runs together
SHORTEST_CUT = 300  # tokens that a cut completion keeps at least, however many runs there are
LONGEST_OPENING = 64  # most characters that a prompt template may put before the policy's first token


def sample_completions(groups: Sequence[RunGroup], budget: int = BUDGET) -> list[dict[str, Any]]:
    """Sample whole rollouts of each run within its part of the budget: the last, the first, and evenly spaced ones between.

    run         {path, name, label, seed, complete, damage, groups}: `complete` if all groups are included; `damage` describes
                the line of its file that cannot be read
    group       {step, rollout, minibatch, epoch, problem, prompt, gold, completions}
    completion  {answer, format, advantage, extracted, tokens, truncated, opening, pieces, read, weights, left_out, outcome}:

    - `opening`: the text that the template opened the completion with
    - `pieces`: the texts of the tokens; the whole text in a run of an older version
    - `weights`: token weights in hundredths; null if all are 100. A single weight that a bad step made not finite is null.
    - `left_out`: number of pieces missing in the middle of a long completion
    - `read`, `outcome`: for an episode, a flag for each piece that the policy read, and the outcome; null for a single turn
    """
    runs = [(group, run) for group in groups for run in group.runs]
    if not runs:
        return []
    _, short = short_names([run.path for _, run in runs])
    sampled = []
    for group, run in runs:
        header = {"path": str(run.path), "name": short[run.path], "label": group.label, "seed": run.seed}
        try:
            kept, complete = _sample(run, budget // len(runs))
            sampled.append({**header, "complete": complete, "damage": None, "groups": kept})
        except UserError as error:  # the page shows the error, and the other runs are still read
            sampled.append({**header, "complete": False, "damage": str(error), "groups": []})
    return sampled


def _sample(run: RunRecord, budget: int) -> tuple[list[dict[str, Any]], bool]:
    """Return groups of the run by step, and True if the run recorded no others. Only lines of sampled rollouts are parsed."""
    path = RunFolder(run.path).completions_path
    if not path.exists():
        return [], True
    with explain_os_errors("read", path):
        *lines, _torn = path.read_bytes().split(b"\n")
    longest = max(SHORTEST_CUT, budget // (12 * run.options.rollout.group_size))  # a token takes about 12 characters
    rollouts: dict[int, list[dict[str, Any]]] = {}  # by their first line
    seen: set[int] = set()
    used = 0

    def row(number: int) -> dict[str, Any]:
        where = f"{path}, line {number + 1}"
        return check_shape(parse_json(lines[number], where), COMPLETION, where)

    for place in coarse_to_fine(len(lines)):
        if place in seen:
            continue
        rows = [row(place)]
        first = last = place
        while first > 0 and (before := row(first - 1))["rollout"] == rows[0]["rollout"]:
            first, rows = first - 1, [before, *rows]
        while last + 1 < len(lines) and (after := row(last + 1))["rollout"] == rows[0]["rollout"]:
            last, rows = last + 1, [*rows, after]
        seen.update(range(first, last + 1))
        rollout = [_group(list(members), longest) for _, members in groupby(rows, itemgetter("step", "problem"))]
        used += len(json.dumps(rollout, ensure_ascii=False))
        if used > budget:
            if not rollouts:  # always show some: the stalest minibatch of the last rollout
                rollouts[first] = rollout[-1:]
            break
        rollouts[first] = rollout
    groups = [group for first in sorted(rollouts) for group in rollouts[first]]
    return groups, len(seen) == len(lines) and used <= budget


def coarse_to_fine(n: int) -> Iterator[int]:
    """Yield indices in 0..n-1, some more than once: the last, the first, then the middle, the quarters, ….

    The order is that of reversed binary digits, so that every prefix is spread evenly.
    """
    if n:
        yield from (n - 1, 0)
    bits = n.bit_length()
    for i in range(1, 2**bits):
        yield n * int(f"{i:0{bits}b}"[::-1], 2) >> bits


def _group(rows: list[dict[str, Any]], longest: int) -> dict[str, Any]:
    names = ("step", "rollout", "minibatch", "epoch", "problem", "prompt", "gold")
    return {**{name: rows[0].get(name) for name in names}, "completions": [_completion(row, longest) for row in rows]}


def _completion(row: dict[str, Any], longest: int) -> dict[str, Any]:
    text, pieces, weights = row["completion"], row.get("pieces"), row.get("weights")
    opening = ""
    if pieces:
        written = "".join(pieces)
        ends = range(min(LONGEST_OPENING, len(text)))
        opening = next((text[:end] for end in ends if written.startswith(text[end:])), "")
    hundredths = weights and [None if weight is None else round(100 * weight) for weight in weights]
    read = [bool(place % 2) for place, count in enumerate(row.get("written") or []) for _ in range(count)]
    whole: str | list[str] = pieces or text
    left_out = 0
    if len(whole) > longest:
        half = longest // 2
        left_out = len(whole) - 2 * half
        head, tail = whole[:half], whole[-half:]
        whole = [*head, *tail] if pieces else f"{head}{tail}"
        hundredths = hundredths and hundredths[:half] + hundredths[-half:]
        read = read and read[:half] + read[-half:]
    own = {weight for weight, is_read in zip_longest(hundredths or [], read, fillvalue=False) if not is_read}
    return {
        "answer": row["r_answer"],
        "format": row["r_format"],
        "advantage": row["advantage"],
        "extracted": row["extracted"],
        "tokens": row["tokens"],
        "truncated": row["truncated"],
        "opening": opening,
        "pieces": whole,
        "read": read or None,
        "weights": None if own == {100} else hundredths,
        "left_out": left_out,
        "outcome": row.get("outcome"),
    }
