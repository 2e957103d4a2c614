"""Selection of recorded training completions that is small enough for the report page."""

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
SHORTEST_CUT = 300  # least number of tokens of a shortened completion, independent of the number of runs
LONGEST_OPENING = 64  # most characters that a prompt template puts before the policy's first token


def sample_completions(groups: Sequence[RunGroup], budget: int = BUDGET) -> list[dict[str, Any]]:
    """Select whole rollout batches of each run: the last, the first, and evenly spaced batches between them.

    budget  most characters of JSON for all runs together; each run has an equal share

    Returns a list of runs. A run has groups, and a group has completions:

    run         {path, name, label, seed, complete, damage, groups}; `complete` is true if all recorded groups are included;
                `damage` describes an unreadable line, or is None
    group       {step, rollout, minibatch, epoch, problem, prompt, gold, completions}
    completion  {answer, format, advantage, extracted, tokens, truncated, opening, pieces, read, weights, left_out, outcome}

    - `opening`: start of the completion that the prompt template wrote
    - `pieces`: list of the tokens' texts; the whole text as a string if an older version wrote the run
    - `weights`: token weights in hundredths, with null for a weight that is not finite; null if all weights are 100
    - `left_out`: number of pieces omitted in the middle of a long completion
    - `read`: for an episode, a list with true for each piece that the environment wrote; null for a single turn
    - `outcome`: outcome of the episode; null for a single turn
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
        except UserError as error:  # the page shows the error; the remaining runs are still read
            sampled.append({**header, "complete": False, "damage": str(error), "groups": []})
    return sampled


def _sample(run: RunRecord, budget: int) -> tuple[list[dict[str, Any]], bool]:
    """Return the selected groups in order of steps, and whether these are all recorded groups. Parses only the lines needed."""
    path = RunFolder(run.path).completions_path
    if not path.exists():
        return [], True
    with explain_os_errors("read", path):
        *lines, _torn = path.read_bytes().split(b"\n")
    longest = max(SHORTEST_CUT, budget // (12 * run.options.rollout.group_size))  # a token takes about 12 characters
    rollouts: dict[int, list[dict[str, Any]]] = {}  # by the number of their first line
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
            if not rollouts:  # show at least one group: the last group of the last rollout batch
                rollouts[first] = rollout[-1:]
            break
        rollouts[first] = rollout
    groups = [group for first in sorted(rollouts) for group in rollouts[first]]
    return groups, len(seen) == len(lines) and used <= budget


def coarse_to_fine(n: int) -> Iterator[int]:
    """Yield all indices in 0..n-1: the last, the first, then the middle, the quarters, and so on. Indices may repeat.

    The order follows the reversed binary digits of a counter (van der Corput sequence), so that every prefix is spread evenly.
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
