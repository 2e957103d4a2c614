"""The measurement of a Pass@1, recorded in `eval/summary.json`: its conditions and its identity.

Only scores with equal measurements may be compared, ranked, averaged or pooled.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

EPISODE = ("turns", "proposals", "max_tokens")  # limits of an episode; None for a benchmark without episodes
CONDITIONS = ("benchmark", "split", "n", "samples", "temperature", "max_new_tokens", "prompt", *EPISODE)
# Fingerprints of everything that affects the score besides conditions and model. Older versions recorded none.
IDENTITY = ("problems", "messages", "rendered", "checker", "engine")
MEASUREMENT = CONDITIONS + IDENTITY

# Description of a difference in each part of the identity. A corrected gold answer also changes `problems`.
DIFFERENTLY = {
    "problems": "on other problems",
    "messages": "with another prompt",
    "rendered": "with another chat template or tokenizer",
    "checker": "by another version of the answer check",
    "engine": "by another sampler",
}


def measurement_of(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Return the values of MEASUREMENT in an evaluation. A missing number of samples, as in older versions, means 1."""
    return tuple(row.get(name, 1 if name == "samples" else None) for name in MEASUREMENT)


def has_identity(row: Mapping[Any, Any]) -> bool:
    """Report whether an evaluation has an identity. Older versions did not record it, so that it is missing, None or NaN."""
    return any(isinstance(row.get(name), str) for name in IDENTITY)


def comparable(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluations with the most frequent measurement, sorted by step. A tie is won by the latest measurement."""
    by_step = sorted(rows, key=lambda row: row["step"])
    counts = Counter(measurement_of(row) for row in reversed(by_step))
    usual = max(counts, key=counts.__getitem__, default=None)
    return [row for row in by_step if measurement_of(row) == usual]


def differences(row: Mapping[Any, Any], other: Mapping[Any, Any], same_model: bool) -> list[str]:
    """Describe how the identities of two evaluations differ; return an empty list if the evaluations may be compared.

    same_model  True if both evaluations are of the same model. Otherwise, differences in `rendered` are ignored, because
                different models render the same messages with different chat templates
    """
    if has_identity(row) != has_identity(other):
        return ["by an older version that recorded no fingerprints"]
    differing = {name for name in IDENTITY if row.get(name) != other.get(name)}
    return describe(differing if same_model else differing - {"rendered"})


def describe(differing: Set[str]) -> list[str]:
    """Describe differences in the parts `differing` of the identity.

    `rendered` is omitted if `problems` or `messages` differ, because these always change the rendered prompts.
    """
    names = differing - {"rendered"} if differing & {"problems", "messages"} else differing
    return [DIFFERENTLY[name] for name in IDENTITY if name in names]


def columns(
    rows: Sequence[Mapping[Any, Any]], models: Sequence[str | None], names: Sequence[str] = MEASUREMENT
) -> list[str]:
    """Return, for each evaluation, the heading of its table column.

    models  model of each row; rows of different models may share a column although their chat templates differ
    names   parts of the measurement that must be equal within a column

    A heading is the name of the benchmark. If a benchmark has several columns, the headings also state how the measurements
    differ.
    """
    asked = [tuple(row.get(name) for name in names if name != "rendered") for row in rows]
    rendered: dict[Any, set[Any]] = defaultdict(set)
    for key, model, row in zip(asked, models, rows, strict=True):
        rendered[key, model].add(row.get("rendered"))
    apart = {key for (key, _), texts in rendered.items() if len(texts) > 1}
    keys = [(key, row.get("rendered") if key in apart else None) for key, row in zip(asked, rows, strict=True)]
    distinct = dict(zip(reversed(keys), reversed(rows), strict=True))  # maps each key to its first row
    headings: dict[Any, str] = {}
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        of_benchmark = [key for key in dict.fromkeys(keys) if distinct[key]["benchmark"] == benchmark]
        details = _details([distinct[key] for key in of_benchmark], names)
        for key, detail in zip(of_benchmark, details, strict=True):
            headings[key] = f"{benchmark} ({', '.join(detail)})" if detail else benchmark
    return [headings[key] for key in keys]


def _details(rows: Sequence[Mapping[Any, Any]], names: Sequence[str]) -> list[list[str]]:
    """Describe each row by the conditions that differ between the rows, and by a minimal set of fingerprints.

    A row without an identity gets the detail `not fingerprinted` instead of fingerprints if other rows have an identity.
    """
    known = [row for row in rows if has_identity(row)]
    telling = [name for name in names if name not in IDENTITY and len({str(row.get(name)) for row in rows}) > 1]
    telling += [name for name in IDENTITY if len({row[name] for row in known}) > 1]
    for name in [name for name in reversed(IDENTITY) if name in telling]:
        fewer = [each for each in telling if each != name]
        if len({tuple(str(row.get(each)) for each in fewer) for row in known}) == len(known):
            telling = fewer
    details = []
    for row in rows:
        is_known = has_identity(row)
        detail = [f"{name} {row.get(name)}" for name in telling if is_known or name not in IDENTITY]
        details.append(detail if is_known or not known else [*detail, "not fingerprinted"])
    return details
